"""Closed-form recovery against no recovery, on the same blocks of neighbouring subsets of the embedded model.

Up to 4 layers dropped, with as many calibration as validation tokens; both begin every block anew.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import shapes, turns
from seed.console import Terminal
from seed.optimize.space import enumerate_candidates
from seed.proxy.instruments import make_walker
from seed.proxy.subset_walker import measure_unrecovered
from seed.records import Candidate

TOKENS = 8192  # of each stream
BLOCK = 24
NUM_BLOCKS = 6  # in full: all of them


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Time both, block by block in turns."""
    with tempfile.TemporaryDirectory() as directory:
        session, instruments = shapes.open_demo(
            Path(directory), max_dropped=4, calibration_tokens=TOKENS, validation_tokens=TOKENS
        )
    num_blocks = None if full else NUM_BLOCKS
    walker, micro_batch = make_walker(instruments), instruments.micro_batch
    blocks = shapes.cut_blocks(list(enumerate_candidates(session.protocol.space)), size=BLOCK, count=num_blocks)

    def time_both(block: Sequence[Candidate], number: int) -> dict[str, float]:
        walker.nodes.clear()
        ways: dict[str, turns.Way] = {
            "closed form": lambda: [walker.measure(candidate) for candidate in block],
            "none": lambda: measure_unrecovered(
                instruments.anatomy, block, instruments.validation, micro_batch=micro_batch
            ),
        }
        return turns.time_turn(ways, number=number)

    rows = []
    time_both(blocks[0][:2], 0)  # warms up
    with terminal.stage("sweep", total=len(blocks)) as advance:
        for number, block in enumerate(blocks):
            rows.append(time_both(block, number))
            advance(1, "")
    closed, none = (np.array([row[name] for row in rows]) for name in ("closed form", "none"))
    count = sum(map(len, blocks))
    return {
        "sweep_over_none": float(closed.sum() / none.sum()),
        "sweep_over_none_spread": turns.spread_of(closed / none),
        "sweep_details": {
            "candidates": count,
            "calibration_tokens": instruments.calibration.num_tokens,
            "validation_tokens": instruments.validation.num_tokens,
            "closed_form_seconds": float(closed.sum()) / count,
            "none_seconds": float(none.sum()) / count,
        },
    }


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print seconds a candidate and their ratio."""
    details = fields["sweep_details"]
    rows = [
        [
            f"{details['candidates']} candidates, {details['calibration_tokens']:,} calibration and "
            f"{details['validation_tokens']:,} validation tokens",
            f"{details['closed_form_seconds']:.3f} / {details['none_seconds']:.3f}",
            f"{fields['sweep_over_none']:.2f}",
            turns.show_spread(fields["sweep_over_none_spread"]),
        ]
    ]
    columns = ["timed", "s a candidate, closed form / none", "ratio of sums", "by block (p10 to p90)"]
    terminal.show_table(columns, rows, title="Closed form over no recovery: at most 2.5 wanted")
