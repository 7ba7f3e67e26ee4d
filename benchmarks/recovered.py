"""How much of what cutting costs closed form wins back on a real model, and what that costs beside no recovery.

SmolLM2 where ``SEED_REAL_MODELS`` names a directory with its weights and text (``smollm2-135m-instruct``, ``text``), on twelve
sets of one to four layers; in full also fitted for each candidate, as narrow models are, with as many calibration as
validation tokens.
"""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import turns
from seed import resolve, sessions
from seed.config import StudyConfig
from seed.console import Terminal
from seed.evaluation.perplexity import DocumentLosses
from seed.optimize.space import drop_layers
from seed.protocols import describe_reference
from seed.proxy.instruments import Instruments, make_walker
from seed.proxy.subset_walker import SubsetWalker, measure_unrecovered
from seed.records import Candidate
from seed.study_dir import StudyFolder

VALIDATION_TOKENS, CALIBRATION_TOKENS = 4096, 16_384
SETS = (
    *((10,), (4,), (22,), (10, 20), (4, 11), (13, 17)),
    *((14, 15, 16), (7, 12, 25), (9, 18, 23), (5, 11, 17, 23), (12, 13, 14, 15), (3, 16, 19, 26)),
)


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Score each set both ways, in turns."""
    real = os.environ.get("SEED_REAL_MODELS")
    if real is None:
        return {"recovered": None}
    model, text = (str(Path(real) / name) for name in ("smollm2-135m-instruct", "text"))
    settings = StudyConfig(
        model=model,
        recovery_text=text,
        window_tokens=512,
        validation_tokens=VALIDATION_TOKENS,
        calibration_tokens=CALIBRATION_TOKENS,
        test_tokens=VALIDATION_TOKENS,
    )
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as directory:
        session, _ = sessions.open_for_search(
            resolve.resolve_config(settings),
            study=StudyFolder(Path(directory) / "study"),
            device=device,
            reference=describe_reference(device),
        )
    instruments = sessions.prepare_instruments(session)
    anatomy, gains = instruments.anatomy, instruments.gains
    assert gains is not None, "the model has closed form"
    walkers: dict[str, SubsetWalker] = {}
    shared = turns.time_call(lambda: walkers.update({"closed form": make_walker(instruments)}))
    if full:
        walkers["for each candidate"] = SubsetWalker(
            anatomy,
            calibration=session.streams["recovery"].take_evenly(VALIDATION_TOKENS),
            validation=instruments.validation,
            micro_batch=instruments.micro_batch,
            gains=gains,
            is_shared=False,
        )
    rows = []
    with terminal.stage("recovered", total=len(SETS)) as advance:
        for number, layers in enumerate(SETS):
            candidate = drop_layers(anatomy.num_layers, layers)
            seconds, row = score_ways(instruments, walkers, candidate, number=number)
            shared += seconds
            rows.append({"layers": list(layers), **row})
            advance(1, candidate.key)
    return {"recovered": {"shared_seconds": shared, "sets": rows, **summarise(rows)}}


def score_ways(
    instruments: Instruments, walkers: dict[str, SubsetWalker], candidate: Candidate, *, number: int
) -> tuple[float, dict[str, Any]]:
    """Seconds of maps that all candidates share; and a set's log PPL ratios and seconds, each way."""
    maps = walkers["closed form"].maps
    assert maps is not None, "the model is wide"
    shared = turns.time_call(lambda: [maps.find(edge) for edge in list_gaps(candidate)])
    losses: dict[str, DocumentLosses] = {}

    def score(name: str) -> None:
        if name == "none":
            text, micro_batch = instruments.validation, instruments.micro_batch
            [losses[name]] = measure_unrecovered(instruments.anatomy, [candidate], text, micro_batch=micro_batch)
        else:
            walkers[name].nodes.clear()
            losses[name] = walkers[name].measure(candidate)[0]

    ways = {name: functools.partial(score, name) for name in ("none", *walkers)}
    seconds = turns.time_turn(ways, number=number)
    excess = {name: one.loss - instruments.dense_validation.loss for name, one in losses.items()}
    return shared, {"log_ppl_ratio": excess, "seconds": seconds}


def list_gaps(candidate: Candidate) -> list[tuple[int, int]]:
    """Kept layers whose next one is gone, with the next that is kept."""
    return [edge for edge in candidate.edges if edge[1] != edge[0] + 1]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares won back and times beside no recovery, by way."""
    found: dict[str, Any] = {}
    for name in rows[0]["seconds"]:
        if name != "none":
            shares = [1 - row["log_ppl_ratio"][name] / row["log_ppl_ratio"]["none"] for row in rows]
            ratios = [row["seconds"][name] / row["seconds"]["none"] for row in rows]
            found[name] = {"share": turns.range_of(shares), "over_none": turns.spread_of(np.array(ratios))}
    return {"ways": found}


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print shares won back and times."""
    found = fields["recovered"]
    if found is None:
        terminal.say("recovered: SEED_REAL_MODELS names no directory of real weights, so it is left out")
        return
    rows = [
        [name, turns.show_range(way["share"]), turns.show_spread(way["over_none"])]
        for name, way in found["ways"].items()
    ]
    columns = ["closed form", "share of the lost log PPL (least to most)", "time beside no recovery"]
    terminal.show_table(
        columns,
        rows,
        title=f"Twelve sets of SmolLM2-135M; what they share took {found['shared_seconds']:.0f} s",
        num_words=1,
    )
