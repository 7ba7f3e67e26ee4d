"""A study's plan: made, read back, and compared with what is planned today.

Nothing heavy is imported here, so that wrong input is answered at once.
"""

import datetime
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from seed import __version__, resolve, study_dir
from seed.config import StudyConfig
from seed.errors import StudyError
from seed.plans import Protocol, SearchPlan
from seed.records import SearchSpace
from seed.reporting.wording import count_things
from seed.study_dir import StudyFolder

FRONTIER_SIZE = 6
FEW_STEPS = 10  # below this many, training hardly recovers anything
MAX_COVERED = 20_000_000  # at a tenth of a millisecond each half an hour; real ones take a thousand times as long


def compare_protocols(found: Protocol | Mapping[str, Any], wanted: Protocol | Mapping[str, Any]) -> list[str]:
    """Say, field by field, how a new plan differs from the study's."""

    def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for name, part in value.items() for k, v in flatten(part, f"{prefix}{name}.").items()}
        return {prefix.rstrip("."): value}

    old, new = flatten(msgspec.to_builtins(found)), flatten(msgspec.to_builtins(wanted))

    def spell(name: str) -> str:
        shown = [f"{values.get(name)}" for values in (old, new)]
        if name == "proxy":  # is told as the proxy
            name, shown = "proxy", [proxy.replace("_", "-") for proxy in shown]
        return f"{name}: {shown[0]} in the study, {shown[1]} now"

    return [spell(name) for name in sorted(old | new) if old.get(name) != new.get(name) and not name.endswith(".notes")]


def spell_differences(found: Protocol | Mapping[str, Any], wanted: Protocol | Mapping[str, Any]) -> str:
    """The first eight of them in one line; empty where there are none."""
    differences = compare_protocols(found, wanted)
    return "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")


def require_same_settings(known: Mapping[str, Any], wanted: Mapping[str, Any], *, place: Path) -> None:
    """Raise when what was begun at ``place`` had other settings; settings that only it knows are its results.

    Raises:
        StudyError: with every difference.
    """
    changed = [
        f"{name}: {known.get(name)} there, {value} now" for name, value in wanted.items() if known.get(name) != value
    ]
    if changed:
        raise StudyError(
            f"{place}: was begun with other settings ({', '.join(changed)}). Repeat them to go on, or move the file away to "
            "begin anew."
        )


def read_planned(path: Path) -> tuple[StudyFolder, SearchPlan, Protocol]:
    """The study in a folder, its plan and its protocol.

    Raises:
        SeedError: there is no such study, or another version of Seed planned it.
    """
    study = study_dir.open_existing(path)
    plan = study_dir.read_record(study.plan, SearchPlan)
    return study, plan, read_protocol(plan, place=study.root)


def open_planned(path: Path, *, trust_remote_code: bool = False) -> tuple[StudyFolder, SearchPlan, Protocol]:
    """What ``read_planned`` returns, to open the model: that is data, but its code runs only where the user says so again.

    Raises:
        SeedError: there is no such study, another version of Seed planned it, or its model's code wants the user's word.
    """
    study, plan, protocol = read_planned(path)
    if protocol.trust_remote_code and not trust_remote_code:
        model = protocol.location + (f"@{protocol.revision}" if protocol.revision else "")
        raise StudyError(
            f"{study.root}: its model {model} brings its own code, and a study's folder does not choose what runs. If you trust "
            "its authors, add --trust-remote-code."
        )
    return study, plan, protocol


def make_plan(
    settings: StudyConfig,
    protocol: Protocol,
    *,
    name: str,
    trials: int,
    distill_tokens: int,
    covers_space: bool,
) -> SearchPlan:
    """Return the plan of a study."""
    return SearchPlan(
        name=name,
        identity=msgspec.to_builtins(protocol),
        trials=trials,
        sweep_budget=settings.sweep_budget,
        covers_space=covers_space,
        frontier_size=settings.frontier_size or FRONTIER_SIZE,
        distill_tokens=distill_tokens,
        replicas=settings.replicas,
        width_baseline=settings.width_baseline,
        max_ppl_ratio=settings.max_ppl_ratio,
        storage=settings.storage,
        command=resolve.typed_command(settings),
        seed_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def say_tokens(protocol: Protocol, distill_tokens: int) -> str:
    """How much a distillation will train: whole steps, which may be more or less than was asked for."""
    steps = protocol.count_steps(distill_tokens)
    trained = steps * protocol.step_tokens
    nearest = f", the nearest to {distill_tokens:,}" if trained != distill_tokens else ""
    return f"{trained:,} tokens ({count_things(steps, 'step')} of {protocol.step_tokens:,}{nearest})"


def warn_of_few_steps(protocol: Protocol, distill_tokens: int) -> list[str]:
    """One line where a distillation is too short to mean anything."""
    steps = protocol.count_steps(distill_tokens)
    if steps >= FEW_STEPS:
        return []
    return [
        f"  {count_things(steps, 'step')} of training can hardly recover anything: give --distill-tokens "
        f"{FEW_STEPS * protocol.step_tokens:,} or more"
    ]


def allows_singles(plan: SearchPlan, space: SearchSpace) -> bool:
    """May each layer's removal be scored beside the trials? Where that is no more work than they are."""
    return plan.covers_space or len(space.droppable_layers) <= plan.trials


def continue_plan(found: SearchPlan, wanted: SearchPlan, *, place: Path) -> SearchPlan:
    """Return the wanted plan; whether to sweep was settled when the study began, unless the budget changed.

    Raises:
        StudyError: a study of this name was planned otherwise, with every difference.
    """
    known = read_protocol(found, place=place)
    if found.fingerprint == wanted.fingerprint or known == read_protocol(wanted, place=place):
        # an earlier version may have said less
        return settle_plan(found, msgspec.structs.replace(wanted, identity=found.identity))
    shown = spell_differences(known, read_protocol(wanted, place=place))
    raise StudyError(
        f"{place}: holds a study of another plan ({shown}). Numbers of the two cannot be mixed: "
        "use the same settings to continue it, or another name with --study NAME."
    )


def settle_plan(found: SearchPlan, wanted: SearchPlan) -> SearchPlan:
    """Return the wanted plan with what was settled when the study began; unless the sweep's budget changed, the sweep too."""
    wanted = msgspec.structs.replace(wanted, trusts_closed_form=found.trusts_closed_form)
    is_settled = found.sweep_budget == wanted.sweep_budget  # estimates of one machine differ from day to day
    return msgspec.structs.replace(wanted, covers_space=found.covers_space) if is_settled else wanted


def read_protocol(plan: SearchPlan, *, place: Path) -> Protocol:
    """Return the typed protocol of a plan.

    Raises:
        StudyError: the plan was written by a version of Seed that plans otherwise.
    """
    try:
        protocol = msgspec.convert(plan.identity, Protocol)
    except msgspec.ValidationError as error:
        if plan.seed_version == __version__:
            raise StudyError(
                f"{place}: its plan.json is damaged, or was written in the midst of a version of Seed ({error}). Restore it from a copy, "
                "or start a study of another name (--study NAME)."
            ) from error
        raise StudyError(
            f"{place}: its plan was written by seed {plan.seed_version}, and this is {__version__} ({error}). "
            "Use that version, or start a study of another name (--study NAME)."
        ) from error
    if plan.covers_space and protocol.space.size > MAX_COVERED:
        raise StudyError(
            f"{place}: its plan says that all {protocol.space.size:,} candidates were scored, and no search scores more than "
            f"{MAX_COVERED:,}. Restore plan.json from a copy, or start a study of another name (--study NAME)."
        )
    return protocol


def quiet_libraries() -> None:
    """Keep libraries from drawing bars and warnings over ours, unless the user asked for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.utils.logging.disable_progress_bar()  # of loading weights, which takes seconds
    enable_progress_bars()  # of downloads, which take minutes
    if not sys.warnoptions:
        import warnings

        warnings.filterwarnings("ignore", category=FutureWarning)
