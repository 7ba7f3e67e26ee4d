"""A score by closed form against one by 30 steps of distillation: what both cost, and what both recover.

The embedded model and its own settings. Seconds a candidate inside the sweep (the block's first candidate, which brings
the walker there, is not counted) against seconds of short distillation of the block's last candidate, from the better
of its known starts. Recovered is the share of the log PPL ratio without recovery that is gone, on the candidates that
were distilled.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import shapes, turns
from seed import sessions
from seed.console import Terminal
from seed.optimize.space import enumerate_candidates
from seed.proxy.closed_form import Refit
from seed.proxy.instruments import Instruments, make_walker, start_student, train_student
from seed.proxy.subset_walker import measure_unrecovered
from seed.records import Candidate
from seed.stages import budgets

BLOCK = 24
NUM_BLOCKS = 8  # in full: all of them


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Time both, block by block in turns."""
    with tempfile.TemporaryDirectory() as directory:
        session, instruments = shapes.open_demo(Path(directory))
        steps = session.protocol.short_steps
        instruments = budgets.store_teacher_states(session, instruments, steps=steps, rng_seeds=[0])
        return measure_speedup(terminal, session, instruments, num_blocks=None if full else NUM_BLOCKS)


def measure_speedup(
    terminal: Terminal, session: sessions.Session, instruments: Instruments, *, num_blocks: int | None
) -> dict[str, Any]:
    """Seconds a candidate by closed form in the sweep and by short distillation, and what both recover."""
    walker, dense_loss = make_walker(instruments), instruments.dense_validation.loss
    blocks = shapes.cut_blocks(list(enumerate_candidates(session.protocol.space)), size=BLOCK, count=num_blocks)
    closed, short, recovered = [], [], []
    with terminal.stage("30 steps", total=len(blocks)) as advance:
        for first, *block in blocks:
            walker.measure(first)
            began = time.perf_counter()
            for candidate in block:
                losses, refit = walker.measure(candidate)
            closed.append((time.perf_counter() - began) / len(block))
            chosen = block[-1]
            [none] = measure_unrecovered(
                instruments.anatomy, [chosen], instruments.validation, micro_batch=instruments.micro_batch
            )
            start = refit if losses.loss < none.loss else None
            began = time.perf_counter()
            end = distill_shortly(session, instruments, chosen, start)
            short.append(time.perf_counter() - began)
            damage = none.loss - dense_loss
            recovered.append([1 - (loss - dense_loss) / damage for loss in (losses.loss, end)])
            advance(1, f"{short[-1] / closed[-1]:.1f} times")
    return {
        "closed_form_speedup": float(np.sum(short) / np.sum(closed)),
        "closed_form_speedup_spread": turns.spread_of(np.array(short) / np.array(closed)),
        "speedup_details": {
            "steps": session.protocol.short_steps,
            "distilled": len(short),
            "closed_form_seconds": float(np.mean(closed)),
            "short_seconds": float(np.mean(short)),
            "closed_form_recovery": turns.spread_of([row[0] for row in recovered]),
            "short_recovery": turns.spread_of([row[1] for row in recovered]),
        },
    }


def distill_shortly(
    session: sessions.Session, instruments: Instruments, candidate: Candidate, start: Refit | None
) -> float:
    """Short distillation from a known start: a student, its steps, and a look before and after; the better loss."""
    settings = budgets.short_settings(session, candidate)
    result = train_student(instruments, start_student(instruments, candidate, start, settings=settings), settings)
    return min(point.validation_loss for point in result.curve)


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print seconds a candidate, their ratio, and what both recover."""
    details = fields["speedup_details"]
    rows = [
        [name, f"{details[f'{proxy}_seconds']:.3f}", turns.show_spread(details[f"{proxy}_recovery"])]
        for name, proxy in (("closed form in the sweep", "closed-form"), (f"{details['steps']} steps", "short"))
    ]
    columns = ["score", "s a candidate", "recovered (p10 to p90)"]
    title = f"Closed form and short distillation, {details['distilled']} candidates distilled"
    terminal.show_table(columns, rows, title=title)
    terminal.say(
        f"closed form is {fields['closed_form_speedup']:.1f} times as fast (ratio of sums; by block "
        f"{turns.show_spread(fields['closed_form_speedup_spread'], digits=1)}); at least 10 wanted"
    )
