"""A fidelity study: candidates scored at every rung and then distilled in full, more than once.

Which candidates, and what the numbers say, is ``optimize.fidelity``'s business. Every score and every final is
written as it comes; a stopped study goes on.
"""

import functools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from seed import folder
from seed.evidence import (
    FidelityRow,
    FidelityStudy,
    FinalScore,
)
from seed.optimize.fidelity import choose_candidates
from seed.optimize.space import contains, enumerate_candidates
from seed.plans import SearchPlan
from seed.records import Candidate, DenseResult, TrialRecord
from seed.scoring.distillation import Distilled, DistillSettings
from seed.scoring.instruments import start_student, train_student
from seed.scoring.sweep import Sweep
from seed.stages import planning, recovering, schooling
from seed.stages.workbench import Workbench

DOUBLED = 2  # finals that are run again with twice the budget, to see whether it has plateaued


@dataclass(frozen=True, kw_only=True)
class FidelitySettings:
    """What a fidelity study does. ``short_steps``: short distillations, each a rung of its own."""

    depths: tuple[int, ...]
    per_depth: int
    near_margin: float
    short_steps: tuple[int, ...]
    distill_tokens: int
    learning_rate: float
    rng_seeds: tuple[int, ...]


def list_scored(
    bench: Workbench, sweep: Sweep, plan: SearchPlan, trials: Sequence[TrialRecord]
) -> list[tuple[Candidate, float]]:
    """Candidates that the search scored by closed form, or where the family has none at its own rung, with their losses."""
    scored = {trial.evaluation.candidate: trial.evaluation.qualities for trial in trials}
    if plan.covers_space:
        for candidate in enumerate_candidates(bench.protocol.space):
            scored.setdefault(candidate, sweep.known(candidate))
    rung = "closed_form" if bench.gains is not None else bench.protocol.rung
    return [
        (candidate, qualities[rung].loss)
        for candidate, qualities in scored.items()
        if rung in qualities and math.isfinite(qualities[rung].loss) and contains(bench.protocol.space, candidate)
    ]


def choose_depths(scored: Sequence[tuple[Candidate, float]], *, per_depth: int) -> tuple[int, ...]:
    """The two deepest cuts of which enough candidates are scored; else the two with most."""
    counts = Counter(len(candidate.dropped_layers) for candidate, _ in scored)
    enough = sorted(depth for depth, count in counts.items() if count >= per_depth)
    if len(enough) < 2:
        enough = sorted(sorted(counts, key=lambda depth: counts[depth])[-2:])
    return tuple(enough[-2:])


def start_study(
    bench: Workbench,
    scored: Sequence[tuple[Candidate, float]],
    settings: FidelitySettings,
    dense: DenseResult,
) -> FidelityStudy:
    """Choose the candidates, or read back the study that was begun.

    Raises:
        StudyError: the study was begun with other settings, or the search has scored too little.
    """
    described = describe_settings(bench, settings)
    if bench.folder.fidelity.exists():
        known = folder.read_record(bench.folder.fidelity, FidelityStudy)
        planning.require_same_settings(
            known.settings | {"near_margin": known.near_margin},
            described | {"near_margin": settings.near_margin},
            place=bench.folder.fidelity,
        )
        return known
    chosen = choose_candidates(
        scored, depths=settings.depths, per_depth=settings.per_depth, near_margin=settings.near_margin
    )
    random.Random(0).shuffle(chosen)  # so that a study stopped early is a smaller one of the same kind
    return FidelityStudy(
        study=bench.folder.name,
        model=bench.protocol.model,
        dense_validation_loss=dense.validation.loss,
        dense_test_loss=dense.test.loss,
        near_margin=settings.near_margin,
        settings=described,
        rows=tuple(
            FidelityRow(candidate=candidate, near_best=near, losses={}, seconds={}, finals=())
            for candidate, near in chosen
        ),
    )


def describe_settings(bench: Workbench, settings: FidelitySettings) -> dict[str, str | int | float]:
    """What decides the numbers, for people and for going on."""
    return {
        "depths": ", ".join(map(str, settings.depths)),
        "candidates_per_depth": settings.per_depth,
        "distill_tokens": settings.distill_tokens,
        "batch_tokens": bench.batch_windows * bench.protocol.window_tokens,
        "learning_rate": settings.learning_rate,
        "final_rng_seeds": ", ".join(map(str, settings.rng_seeds)),
        "short_steps": ", ".join(map(str, settings.short_steps)),
        "short_rng_seed": bench.protocol.rng_seed,
        "calibration_tokens": bench.protocol.calibration_tokens,
        "validation_tokens": bench.protocol.streams["validation"].tokens,
        "test_tokens": bench.protocol.streams["test"].tokens,
    }


def count_longest(bench: Workbench, settings: FidelitySettings) -> int:
    """Steps of the study's longest distillation."""
    return max(schooling.count_steps(bench, 2 * settings.distill_tokens), *settings.short_steps)


def count_units(bench: Workbench, study: FidelityStudy, settings: FidelitySettings) -> tuple[int, int]:
    """Steps of distillation that the study takes, and how many of them are done."""
    full, shorts = schooling.count_steps(bench, settings.distill_tokens), sum(settings.short_steps)
    doubled = 2 * full * min(DOUBLED, len(settings.depths))
    total = len(study.rows) * (shorts + full * len(settings.rng_seeds)) + doubled
    done = sum(full * len(row.finals) for row in study.rows)
    done += sum(steps for row in study.rows for steps in settings.short_steps if name_short(steps) in row.losses)
    return total, done + doubled * ("doubling_the_budget" in study.settings)


def name_short(steps: int) -> str:
    """The rung of a short distillation of so many steps."""
    return f"short_distillation_{steps}"


def run_study(
    bench: Workbench, sweep: Sweep, study: FidelityStudy, settings: FidelitySettings, *, on_step: Callable[[str], None]
) -> FidelityStudy:
    """Do what is missing; return the whole study. ``on_step`` hears of every step with what it is part of."""

    def keep(index: int, row: FidelityRow) -> FidelityRow:
        nonlocal study
        rows = (*study.rows[:index], row, *study.rows[index + 1 :])
        study = msgspec.structs.replace(study, rows=rows)
        folder.write_record(bench.folder.fidelity, study)
        return row

    missing = [row.candidate for row in study.rows if "none" not in row.losses]
    raw = dict(zip(missing, sweep.measure_unrecovered(missing), strict=True))
    for index, known in enumerate(study.rows):
        row, candidate = known, known.candidate
        if candidate in raw:
            row = keep(index, _score_cheaply(sweep, row, raw[candidate].loss))
        for steps in settings.short_steps:
            if name_short(steps) not in row.losses:
                short = recovering.distill_settings(
                    bench, candidate, steps=steps, learning_rate=bench.protocol.short_learning_rate, looks=1
                )
                went, seconds = _distill_shortly(sweep, candidate, short, functools.partial(on_step, candidate.key))
                row = msgspec.structs.replace(
                    row,
                    losses=row.losses | {name_short(steps): went.best_loss},
                    seconds=row.seconds | {name_short(steps): seconds},
                )
                row = keep(index, row)
        for rng_seed in settings.rng_seeds:
            if all(final.rng_seed != rng_seed for final in row.finals):
                final = run_final(bench, sweep, candidate, settings, rng_seed=rng_seed, on_step=on_step)
                row = keep(index, msgspec.structs.replace(row, finals=(*row.finals, final)))
    if "doubling_the_budget" not in study.settings:
        said = _double_budget(bench, sweep, study, settings, on_step=on_step)
        study = msgspec.structs.replace(study, settings=study.settings | {"doubling_the_budget": said})
        folder.write_record(bench.folder.fidelity, study)
    return study


def run_final(
    bench: Workbench,
    sweep: Sweep,
    candidate: Candidate,
    settings: FidelitySettings,
    *,
    rng_seed: int,
    on_step: Callable[[str], None],
    budget: int = 1,
) -> FinalScore:
    """Distill in full, and judge the best weights as they would be exported."""
    full = schooling.full_settings(
        bench,
        candidate,
        distill_tokens=budget * settings.distill_tokens,
        learning_rate=settings.learning_rate,
        looks=4,
        rng_seed=rng_seed,
    )
    trained = schooling.distill_once(
        bench, sweep, schooling.Member(candidate=candidate), full, on_step=functools.partial(on_step, candidate.key)
    )
    return FinalScore(
        rng_seed=rng_seed,
        validation_loss=trained.went.best_loss,
        test_loss=trained.test.loss,
        best_step=trained.went.best_step,
        seconds=trained.whole_seconds,
    )


def _score_cheaply(sweep: Sweep, row: FidelityRow, raw_loss: float) -> FidelityRow:
    losses, seconds = {"none": raw_loss}, {"none": sweep.rows[row.candidate.key]["none"].seconds or 0.0}
    if sweep.instruments.gains is not None:
        losses["closed_form"] = sweep.measure(row.candidate).loss
        seconds["closed_form"] = sweep.rows[row.candidate.key]["closed_form"].seconds or 0.0
    return msgspec.structs.replace(row, losses=losses, seconds=seconds)


def _distill_shortly(
    sweep: Sweep, candidate: Candidate, settings: DistillSettings, on_step: Callable[[], None]
) -> tuple[Distilled, float]:
    began = time.perf_counter()
    _, refit = schooling.prepare_start(sweep, candidate)
    student = start_student(sweep.instruments, candidate, refit, settings=settings)
    went = train_student(sweep.instruments, student, settings, candidate=candidate, on_step=lambda step: on_step())
    return went, time.perf_counter() - began


def _double_budget(
    bench: Workbench, sweep: Sweep, study: FidelityStudy, settings: FidelitySettings, *, on_step: Callable[[str], None]
) -> str:
    """Say what twice the budget makes of the best candidates: what is left of it says how far from a plateau it is."""
    dense, seed = study.dense_test_loss, settings.rng_seeds[0]
    losses = {row.candidate: next(f.test_loss for f in row.finals if f.rng_seed == seed) for row in study.rows}
    said = []
    for depth in settings.depths[-DOUBLED:]:
        candidate = min((c for c in losses if len(c.dropped_layers) == depth), key=lambda c: losses[c])
        final = run_final(bench, sweep, candidate, settings, rng_seed=seed, on_step=on_step, budget=2)
        said.append(
            f"{candidate.key}: test PPL ratio {math.exp(losses[candidate] - dense):.4f} to "
            f"{math.exp(final.test_loss - dense):.4f}"
        )
    return "; ".join(said)
