"""A search in stages: each drops some layers, recovers what is left, and hands the best on to the next.

Every stage is an ordinary study in a folder of its own, with the original model as teacher and as the base of every ratio,
and so is the search at once that the end is compared with, for the same tokens. How one search goes is handed in.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from seed import folder, resolve
from seed.config import Stages, StudyConfig, parse_stages
from seed.console import Terminal
from seed.errors import StudyError
from seed.evidence import StagedSearch, StageRecord
from seed.findings import StudyRecord
from seed.folder import StudyFolder
from seed.optimize.movement import measure_movements
from seed.optimize.replication import is_paired, stack_losses
from seed.optimize.space import drop_layers
from seed.records import DistillResult, Estimate
from seed.reporting.wording import count_things
from seed.scores import ScoreStore
from seed.stages import planning
from seed.stats import CANNOT_TELL, NOTHING, judge_difference

STAGED_SIZE = 2  # models that are distilled in each stage, unless told otherwise

Search = Callable[[StudyConfig, Terminal], StudyRecord]


def search_in_stages(settings: StudyConfig, terminal: Terminal, *, search: Search) -> StagedSearch:
    """Search stage by stage, then at once, and write down what came of it.

    Args:
        settings: of the whole; ``stages`` says how many layers each stage drops.
        terminal: where progress is written.
        search: runs one search, or what is left of it.

    Raises:
        SeedError: anything a user can mend.
    """
    settings = resolve.fill_from_files(settings)
    assert settings.stages is not None
    asked = parse_stages(settings.stages)
    root = name_root(settings)
    decisive = check_plan(settings, StudyFolder(root))
    each = settings.change(
        stages=None,
        one_shot=True,
        studies_dir=root,
        max_ppl_ratio=None,
        max_latency_ratio=None,
        frontier_size=settings.frontier_size or STAGED_SIZE,
        width_baseline=False,
    )
    stages: list[StageRecord] = []
    record: StudyRecord | None = None
    stopped: str | None = None
    for number, count in enumerate(list_counts(asked), 1):
        gone = stages[-1].result.candidate.dropped_layers if stages else ()
        depth = len(gone) + count
        if record is not None and depth > count_droppable(record):
            left = count_droppable(record) - len(gone)
            stopped = f"only {left} more layer{'' if left == 1 else 's'} may go"
            break
        name = f"stage-{number}"
        start = root / stages[-1].name / "models" / stages[-1].result.key if stages else None
        terminal.say(f"stage {number}: {count} more layer{'s' if count > 1 else ''}, {depth} in all")
        wanted = each.change(study=name, start=start, min_dropped=depth, max_dropped=depth)
        if start is None:  # later ones have had more tokens than a width cut from the original would
            wanted = wanted.change(width_baseline=settings.width_baseline)
        record = search(wanted, terminal)
        if number == 1:  # what later stages go on from is settled now; before, nothing was there to be mixed
            folder.write_bytes(StudyFolder(root).stages_plan, json.dumps(decisive, indent=1).encode() + b"\n")
        stage = describe_stage(root, name, record, gone=gone)
        stopped = reach_target(stage, settings)
        if stopped and stage.result.validation.ppl_ratio > (settings.max_ppl_ratio or math.inf):
            if not stages:
                raise StudyError(
                    f"--max-ppl-ratio {settings.max_ppl_ratio}: the first stage ends at {stage.result.validation.ppl_ratio:.3f}. "
                    "Drop fewer layers in it, distil for longer, or allow more."
                )
            break
        stages.append(stage)
        if stopped:
            break
    assert record is not None
    one_shot = None
    if settings.one_shot and len(stages) > 1:
        depth = len(stages[-1].result.candidate.dropped_layers)
        terminal.say(f"at once: {count_things(depth, 'layer')}, for the {stages[-1].tokens:,} tokens of all stages")
        at_once = each.change(
            study="one-shot",
            min_dropped=depth,
            max_dropped=depth,
            distill_tokens=stages[-1].tokens,
            width_baseline=settings.width_baseline,
        )
        one_shot = describe_stage(root, "one-shot", search(at_once, terminal), gone=())
    excess, verdict = compare_ends(stages[-1], one_shot, np.array(record.dense.test_counts))
    staged = StagedSearch(
        study=root.name,
        model=record.plan.identity["model"],
        num_layers=record.space.num_layers,
        counts=tuple(
            len(b) - len(a) for a, b in itertools.pairwise([(), *(s.result.candidate.dropped_layers for s in stages)])
        ),
        stopped_because=stopped,
        dense=record.dense,
        stages=tuple(stages),
        one_shot=one_shot,
        movements=measure_movements(stages),
        excess=excess,
        verdict=verdict,
        command=resolve.typed_command(settings),
    )
    folder.write_record(StudyFolder(root).stages, staged)
    return staged


def check_plan(settings: StudyConfig, study: StudyFolder) -> dict[str, str | int | float | None]:
    """What decides every stage, since a later one goes on from what an earlier one distilled.

    Raises:
        StudyError: the folder holds a staged search by other settings, or a search at once.
    """
    if study.plan.exists():
        raise StudyError(
            f"{study.root}: holds a search at once. Take another name with --study NAME for one in stages."
        )
    decisive: dict[str, str | int | float | None] = {
        "stages": settings.stages,
        "distill_tokens": settings.distill_tokens,
        "learning_rate": settings.learning_rate,
        "frontier_size": settings.frontier_size,
        "recovery": settings.chosen_recovery.name,
    }
    if study.stages_plan.exists():
        known = folder.read_record(study.stages_plan, dict[str, str | int | float | None])
        planning.require_same_settings(known, decisive, place=study.root)
    return decisive


def count_droppable(record: StudyRecord) -> int:
    """How many layers can be gone at most."""
    space = record.space
    return min(space.num_layers - 1, len(space.droppable_layers) + len(space.gone_layers))


def name_root(settings: StudyConfig) -> Path:
    """The folder of a staged search: the study's name, or the model's and its stages."""
    assert settings.stages is not None
    stages = settings.stages.replace("…", "...").replace("+...", "-on").replace("+", "-").replace(" ", "")
    name = settings.study or f"{resolve.name_default_study(settings.model)}-{stages}"
    return settings.studies_dir / folder.name_study(name)


def list_counts(asked: Stages) -> Iterator[int]:
    """How many layers each stage drops, without end where stages go on."""
    yield from asked.counts
    while asked.goes_on:
        yield asked.counts[-1]


def reach_target(stage: StageRecord, settings: StudyConfig) -> str | None:
    """Say which target ends the search here, or None."""
    ratio, latency = stage.result.validation.ppl_ratio, stage.result.latency.ratio
    if settings.max_ppl_ratio is not None and ratio > settings.max_ppl_ratio:
        return f"a further stage ends at a validation PPL ratio of {ratio:.3f}, above {settings.max_ppl_ratio:g}"
    if settings.max_latency_ratio is not None and latency <= settings.max_latency_ratio:
        return f"the latency ratio is {latency:.3f}, at most {settings.max_latency_ratio:g}"
    return None


def describe_stage(root: Path, name: str, record: StudyRecord, *, gone: tuple[int, ...]) -> StageRecord:
    """What a stage's study came to: its best model after recovery by validation text, and what each layer cost at its begin."""
    best: DistillResult = min(record.distilled, key=lambda result: result.validation.loss)
    rung, singles = read_singles(root / name, num_layers=record.space.num_layers, gone=gone)
    tokens = int(best.settings["distill_tokens"]) + int(best.settings.get("earlier_tokens", 0))
    return StageRecord(
        name=name,
        gone_layers=gone,
        result=best,
        tokens=tokens,
        singles=singles,
        rung=rung,
        replication=record.replications.get(best.key),
    )


def read_singles(study: Path, *, num_layers: int, gone: tuple[int, ...]) -> tuple[str, dict[str, float]]:
    """Log PPL ratio to the dense model of dropping each further layer alone, by the best rung without training."""
    with ScoreStore(StudyFolder(study).scores, read_only=True) as store:
        rows = store.read_rows()
    [dense] = [row for row in rows if row.rung == "dense"]
    assert dense.counts is not None
    total, base = sum(dense.counts), sum(loss or 0.0 for loss in dense.sums)
    rungs = {row.rung for row in rows}
    rung = "closed_form" if "closed_form" in rungs else "none"
    sums = {row.key: row.sums for row in rows if row.rung == rung}
    found = {}
    for layer in range(num_layers):
        losses = sums.get(drop_layers(num_layers, (*gone, layer)).key)
        if layer not in gone and losses is not None and None not in losses:
            found[str(layer)] = (sum(loss or 0.0 for loss in losses) - base) / total
    return rung, found


def compare_ends(staged: StageRecord, one_shot: StageRecord | None, counts_D: np.ndarray) -> tuple[Estimate, str]:
    """PPL at the end of the stages over that at once, and what it means."""
    if one_shot is None:
        return NOTHING, CANNOT_TELL
    ours, theirs = staged.result.replicas, one_shot.result.replicas
    if not is_paired(ours, theirs):
        return NOTHING, CANNOT_TELL
    return judge_difference(stack_losses(ours), stack_losses(theirs), counts_D)
