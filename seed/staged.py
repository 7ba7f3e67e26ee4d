"""A search in stages: each drops some layers, recovers what is left, and hands its best model on to the next.

Every stage is an ordinary study in a folder of its own, with the original model as teacher and as the base of every ratio;
so is the search at once, for the same tokens, that the end is compared with.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seed import plans, resolve, study_dir
from seed.config import StudyConfig, parse_stages
from seed.console import Terminal
from seed.errors import StudyError
from seed.evidence import StagedSearch, StageRecord, StudyRecord
from seed.optimize.analysis import is_paired, stack_losses
from seed.records import Estimate
from seed.reporting.wording import count_things
from seed.stats import CANNOT_TELL, NOTHING, judge_difference
from seed.study_dir import StudyFolder

STAGED_SIZE = 2  # models that are distilled in each stage, unless told otherwise

Search = Callable[[StudyConfig, Terminal], StudyRecord]


def search_in_stages(settings: StudyConfig, terminal: Terminal, *, search: Search) -> StagedSearch:
    """Search stage by stage, then at once, and write down what came of it. ``search`` runs one search, or what is left of it."""
    settings = resolve.fill_from_files(settings)
    assert settings.stages is not None
    asked, root = parse_stages(settings.stages), name_root(settings)
    study = StudyFolder(root)
    decisive = check_plan(settings, study)
    has_one_shot = settings.one_shot and len(asked.counts) > 1
    half = None if settings.time is None else settings.time / (1 + has_one_shot)  # the search at once has the other
    each = settings.change(
        stages=None,
        time=None if half is None else half / len(asked.counts),
        one_shot=True,
        studies_dir=root,
        max_ppl_ratio=None,
        max_latency_ratio=None,
        frontier_size=choose_frontier_size(settings),
    )

    def run(name: str, depth: int, **changes: Any) -> StudyRecord:
        wanted = each.change(study=name, min_dropped=depth, max_dropped=depth, **changes)
        return search(wanted, terminal)

    stages: list[StageRecord] = []
    record: StudyRecord | None = None
    depth, stopped = 0, None
    counts = itertools.chain(asked.counts, itertools.repeat(asked.counts[-1]) if asked.goes_on else ())
    for number, count in enumerate(counts, 1):
        if record is not None and depth + count > count_droppable(record):
            stopped = f"only {count_things(count_droppable(record) - depth, 'more layer')} may go"
            break
        terminal.say(f"stage {number}: {count_things(count, 'more layer')}, {depth + count} in all")
        name = f"stage-{number}"
        if stages:  # a width is cut from the original, and would have had fewer tokens than models that go on
            start = root / stages[-1].name / "models" / stages[-1].result.key
            record = run(name, depth + count, start=start, width_baseline=False)
        else:  # what later stages go on from is settled behind it; before, nothing is there to be mixed
            record = run(name, depth + count)
            study_dir.write_record(study.stages_plan, decisive)
        stage = describe_stage(name, record)
        stopped = reach_target(stage, settings)
        if stage.result.validation.ppl_ratio > (settings.max_ppl_ratio or math.inf):
            break
        stages.append(stage)
        depth += count
        if stopped:
            break
    assert record is not None
    if not stages:
        raise StudyError(
            f"--max-ppl-ratio {settings.max_ppl_ratio}: the first stage ends at {stage.result.validation.ppl_ratio:.3f}. "
            "Drop fewer layers in it, distil for longer, or allow more."
        )
    one_shot = None
    if settings.one_shot and len(stages) > 1:
        tokens = stages[-1].tokens
        terminal.say(f"at once: {count_things(depth, 'layer')}, for the {tokens:,} tokens of all stages")
        one_shot = describe_stage("one-shot", run("one-shot", depth, distill_tokens=tokens, time=half))
    excess, verdict = compare_ends(stages[-1], one_shot, np.array(record.dense.test_counts))
    staged = StagedSearch(
        study=root.name,
        model=record.plan.protocol.model,
        stopped_because=stopped,
        dense=record.dense,
        stages=tuple(stages),
        one_shot=one_shot,
        excess=excess,
        verdict=verdict,
        command=resolve.typed_command(settings),
    )
    study_dir.write_record(study.stages, staged)
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
        "frontier_size": choose_frontier_size(settings),
        "recovery": settings.chosen_recovery.name,
    }
    if study.stages_plan.exists():
        known = study_dir.read_record(study.stages_plan, dict[str, str | int | float | None])
        plans.require_same_settings(known, decisive, place=study.root)
    return decisive


def choose_frontier_size(settings: StudyConfig) -> int:
    """How many models are distilled in each stage."""
    return settings.frontier_size if settings.is_given("frontier_size") else STAGED_SIZE


def count_droppable(record: StudyRecord) -> int:
    """How many layers can be gone at most."""
    space = record.space
    return min(space.num_layers - 1, len(space.droppable_layers) + len(space.gone_layers))


def name_root(settings: StudyConfig) -> Path:
    """The folder of a staged search: the study's name, or the model's and its stages."""
    assert settings.stages is not None
    stages = settings.stages.replace("…", "...").replace("+...", "-on").replace("+", "-").replace(" ", "")
    name = settings.study or f"{resolve.name_default_study(settings.model)}-{stages}"
    return settings.studies_dir / study_dir.name_study(name)


def reach_target(stage: StageRecord, settings: StudyConfig) -> str | None:
    """Say which target ends the search here, or None."""
    ratio, latency = stage.result.validation.ppl_ratio, stage.result.latency.ratio
    if settings.max_ppl_ratio is not None and ratio > settings.max_ppl_ratio:
        return f"a further stage ends at a validation PPL ratio of {ratio:.3f}, above {settings.max_ppl_ratio:g}"
    if settings.max_latency_ratio is not None and latency <= settings.max_latency_ratio:
        return f"the latency ratio is {latency:.3f}, at most {settings.max_latency_ratio:g}"
    return None


def describe_stage(name: str, record: StudyRecord) -> StageRecord:
    """What a stage's study came to: its best model after recovery, by validation text."""
    best = min(record.distilled, key=lambda result: result.validation.loss)
    tokens = int(best.settings["distill_tokens"]) + int(best.settings.get("earlier_tokens", 0))
    return StageRecord(name=name, result=best, tokens=tokens, replication=record.replications.get(best.key))


def compare_ends(staged: StageRecord, one_shot: StageRecord | None, counts_D: np.ndarray) -> tuple[Estimate, str]:
    """PPL at the end of the stages over that at once, and what it means."""
    if one_shot is None or not is_paired(staged.result.replicas, one_shot.result.replicas):
        return NOTHING, CANNOT_TELL
    return judge_difference(stack_losses(staged.result.replicas), stack_losses(one_shot.result.replicas), counts_D)
