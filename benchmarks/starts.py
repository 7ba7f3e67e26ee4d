"""Closed-form weights as the start of distillation: how many tokens they save, against the raw weights.

Each set is distilled from both starts, for each of a few budgets with a schedule of its own: within one run warm-up and
decay make the middle of the curve unlike the end of a shorter run. The loss that the raw start ends with after the
largest budget is looked up on the closed-form start's line through (tokens, last validation loss), from no tokens at
all; what it needs is given as a share of the raw start's tokens. Lines between budgets lie above a curve that falls
ever more slowly, so shares are, if anything, too large.

The embedded model and its own settings; same batches for both starts, and each at the better of two learning rates.
"""

import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks import shapes, turns
from seed import sessions
from seed.console import Terminal
from seed.optimize.space import drop_layers
from seed.proxy.closed_form import Refit
from seed.proxy.instruments import Instruments, exported_losses, make_job, make_walker, start_student, train_students
from seed.records import Candidate
from seed.stages import budgets

SETS = {"drop-1": (1,), "drop-1-7": (1, 7), "drop-1-6-7": (1, 6, 7), "drop-2-8-10": (2, 8, 10)}  # the last is a bad one
BUDGETS, BUDGETS_FULL = (20_000, 40_000, 60_000), (50_000, 100_000, 200_000)  # tokens
RATES = (5e-4, 1e-3)  # at the lower alone closed form looks better than it is: raw starts have further to go
SEEDS, SEEDS_FULL = 1, 2
STARTS = ("raw", "closed form")
Point = tuple[float, float]  # tokens, validation loss


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Distill every set from both starts, for every budget, rate and random seed."""
    shares, rates = BUDGETS_FULL if full else BUDGETS, RATES
    seeds = range(SEEDS_FULL if full else SEEDS)
    with tempfile.TemporaryDirectory() as directory:
        session, instruments = shapes.open_demo(Path(directory))
        steps = {budget: count_steps(session, budget) for budget in shares}
        instruments = budgets.store_teacher_states(session, instruments, steps=max(steps.values()), rng_seeds=seeds)
        sets = {name: drop_layers(session.anatomy.num_layers, gone) for name, gone in SETS.items()}
        refits = find_refits(instruments, sets)
        fresh = make_starts(instruments, sets, refits)
        lines: dict[str, dict[str, list[list[Point]]]] = {
            name: {
                start: [
                    [(0.0, exported_losses(instruments, fresh[name, start], instruments.validation).loss)]
                    for _ in seeds
                ]
                for start in STARTS
            }
            for name in sets
        }
        with terminal.stage("starts", total=len(rates) * len(seeds) * sum(shares)) as advance:
            for budget, rng_seed in itertools.product(shares, seeds):
                losses: dict[tuple[str, str], float] = {}
                for rate in rates:
                    found = train_starts(
                        session, instruments, sets, refits, steps=steps[budget], rate=rate, rng_seed=rng_seed
                    )
                    losses = {key: min(loss, losses.get(key, math.inf)) for key, loss in found.items()}
                    advance(budget, "")
                tokens = float(steps[budget] * session.batch_windows * session.protocol.window_tokens)
                for (name, start), loss in losses.items():
                    lines[name][start][rng_seed].append((tokens, loss))
        dense_loss = instruments.dense_validation.loss
    return {
        "starts": {name: summarize(line, dense_loss=dense_loss) for name, line in lines.items()},
        "starts_share": summarize_shares([share for line in lines.values() for share in find_shares(line)]),
        "starts_details": {"rates": list(rates), "rng_seeds": list(seeds), "dense_loss": dense_loss, "lines": lines},
    }


def count_steps(session: sessions.Session, tokens: int) -> int:
    """Whole steps of so many tokens."""
    return max(1, round(tokens / (session.batch_windows * session.protocol.window_tokens)))


def find_refits(instruments: Instruments, sets: dict[str, Candidate]) -> dict[str, Refit]:
    """Closed-form corrections of each set."""
    walker = make_walker(instruments)
    return {name: walker.measure(candidate)[1] for name, candidate in sets.items()}


def make_starts(
    instruments: Instruments, sets: dict[str, Candidate], refits: dict[str, Refit]
) -> dict[tuple[str, str], nn.Module]:
    """A student of each set from each start."""
    return {
        (name, start): start_student(instruments, candidate, refits[name] if start == "closed form" else None)
        for name, candidate in sets.items()
        for start in STARTS
    }


def train_starts(
    session: sessions.Session,
    instruments: Instruments,
    sets: dict[str, Candidate],
    refits: dict[str, Refit],
    *,
    steps: int,
    rate: float,
    rng_seed: int,
) -> dict[tuple[str, str], float]:
    """Validation loss after the last step, of all sets from both starts, side by side."""
    students = make_starts(instruments, sets, refits)
    jobs = [
        make_job(
            instruments,
            student,
            budgets.distill_settings(session, sets[name], steps=steps, learning_rate=rate, looks=1, rng_seed=rng_seed),
            candidate=sets[name],
        )
        for (name, _), student in students.items()
    ]
    trained = train_students(instruments, jobs)
    return {key: one.curve[-1].validation_loss for key, one in zip(students, trained, strict=True)}


def find_tokens(line: Sequence[Point], loss: float) -> float | None:
    """The fewest tokens after which a line through (tokens, loss) is at a loss or below it; None: it never is."""
    tokens, start = line[0]
    if start <= loss:
        return tokens
    for (before, higher), (after, lower) in itertools.pairwise(line):
        if lower <= loss:
            return before + (after - before) * (higher - loss) / (higher - lower)
    return None


def find_shares(lines: dict[str, list[list[Point]]]) -> list[float | None]:
    """For each random seed, the closed-form start's tokens to the raw start's last loss, as a share of the raw start's."""
    shares = []
    for raw, closed in zip(lines["raw"], lines["closed form"], strict=True):
        tokens, loss = raw[-1]
        needed = find_tokens(closed, loss)
        shares.append(None if needed is None else needed / tokens)
    return shares


def summarize(lines: dict[str, list[list[Point]]], *, dense_loss: float) -> dict[str, Any]:
    """PPL ratios by tokens from both starts, means over random seeds, and the shares."""
    return {
        "tokens": [point[0] for point in lines["raw"][0]],
        **{
            f"{start} ppl_ratio": np.exp(
                np.mean([[loss for _, loss in line] for line in lines[start]], 0) - dense_loss
            ).tolist()
            for start in STARTS
        },
        "shares": find_shares(lines),
    }


def summarize_shares(shares: Sequence[float | None]) -> dict[str, Any]:
    """Mean and spread of the shares that exist, and how many do not."""
    reached = [share for share in shares if share is not None]
    return {
        "never": len(shares) - len(reached),
        "reached": len(reached),
        "mean": float(np.mean(reached)) if reached else None,
        "spread": turns.spread_of(reached) if reached else None,
    }


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print PPL ratios by budget from both starts, and the shares."""
    rows = []
    for name, found in fields["starts"].items():
        for start in STARTS:
            ratios = [f"{ratio:.4f}" for ratio in found[f"{start} ppl_ratio"]]
            told = ", ".join("never" if share is None else f"{share:.2f}" for share in found["shares"])
            rows.append([f"{name}, {start}", *ratios, told if start == "closed form" else ""])
    columns = [f"{tokens:,.0f} tokens" for tokens in next(iter(fields["starts"].values()))["tokens"]]
    rates = " or ".join(f"{rate:g}" for rate in fields["starts_details"]["rates"])
    terminal.show_table(
        ["PPL ratio after", *columns, "share of the raw start's tokens"],
        rows,
        title=f"Distillation from raw and from closed-form weights, rate {rates}",
    )
    share = fields["starts_share"]
    spread = f"{turns.show_spread(share['spread'])}, mean {share['mean']:.2f}" if share["reached"] else "none"
    terminal.say(
        f"Tokens that closed-form weights need to where raw ones end, as a share: {spread}; {share['never']} of "
        f"{share['never'] + share['reached']} never get there"
    )
