"""From settings to a plan: checks that need no model, and what changed since last time.

Nothing heavy is imported here, so that wrong input is answered at once.
"""

import datetime
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from seed import __version__, folder
from seed.errors import CorpusError, ModelError, SpaceError, StudyError
from seed.folder import StudyFolder
from seed.optimize.space import Preset, list_presets, load_preset, narrow_space, presets_directory
from seed.plans import Protocol, SearchPlan
from seed.records import SearchSpace
from seed.reporting.wording import count_things
from seed.stages.options import spell_command
from seed.stages.settings import SearchSettings
from seed.stages.starts import Start, read_start

NAMED_TEXTS = ("demo", "wikitext2")  # a folder of such a name must not be taken for the corpus
FRONTIER_SIZE = 6
FEW_STEPS = 10  # below this many, training hardly recovers anything
MAX_COVERED = 20_000_000  # at a tenth of a millisecond each half an hour; real ones take a thousand times as long


def find_preset(settings: SearchSettings) -> Preset | None:
    """Return the preset that a search starts from: the user's file, the model's own, or none.

    Raises:
        SpaceError: the file is wrong.
    """
    if settings.space is not None:
        return load_preset(settings.space)
    if settings.model in list_presets():
        return load_preset(presets_directory() / f"{settings.model}.toml")
    return None


def start_from_preset(settings: SearchSettings) -> tuple[SearchSettings, Preset | None]:
    """Return the settings with the model that they mean and whole paths, and the preset that they start from.

    Raises:
        SpaceError: the file of a search space is wrong.
        CorpusError: a local model comes without any text.
    """
    preset = find_preset(settings)
    start = None if settings.start is None else read_start(settings.start)
    if start is not None and settings.model == SearchSettings.model and settings.space is None:
        settings = replace(settings, model=name_base(start.base_model))
        preset = find_preset(settings)
    if settings.space is not None and settings.model == SearchSettings.model and preset is not None:
        settings = replace(settings, model=preset.model.name)
    if preset is None and settings.recovery_text is None and Path(settings.model).expanduser().is_dir():
        raise ask_for_text(settings.model, option="--recovery-text")
    return resolve_paths(settings), preset


def ask_for_text(model: str, *, option: str) -> CorpusError:
    """What is raised where a local model comes without text: which one is the user's to say, not the hub's to give."""
    return CorpusError(
        f"{model}: a local model, and which text? Give {option} FILE or DIRECTORY; {' and '.join(NAMED_TEXTS)} are known by name."
    )


def name_base(base_model: str) -> str:
    """The name by which ``--model`` knows an original: its preset's where there is one."""
    for name in list_presets():
        if load_preset(presets_directory() / f"{name}.toml").model.name == base_model:
            return name
    return base_model


def resolve_paths(settings: SearchSettings) -> SearchSettings:
    """Make the paths of texts absolute, so that a study can be continued from any folder."""

    def resolve(text: str | None) -> str | None:
        if not text or text in NAMED_TEXTS:
            return text
        path = os.path.expanduser(text)
        return str(Path(path).resolve()) if os.path.exists(path) else text

    return replace(
        settings,
        recovery_text=resolve(settings.recovery_text),
        validation_text=resolve(settings.validation_text),
        test_text=resolve(settings.test_text),
    )


def name_study(settings: SearchSettings) -> str:
    """The name of a search's folder, by settings that ``start_from_preset`` has settled.

    Raises:
        StudyError: it cannot be a folder's name.
    """
    return folder.name_study(settings.study or name_default_study(settings.model))


def name_default_study(model: str) -> str:
    """A folder name for the study of a model: the last part of its name or path."""
    name = re.sub(
        r"[^A-Za-z0-9._-]+", "-", Path(model).expanduser().resolve().name if model in (".", "..") else Path(model).name
    )
    return name.strip("-._")[:100] or "study"


def compare_protocols(found: Protocol | Mapping[str, Any], wanted: Protocol | Mapping[str, Any]) -> list[str]:
    """Say, field by field, how a new plan differs from the study's."""

    def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for name, part in value.items() for k, v in flatten(part, f"{prefix}{name}.").items()}
        return {prefix.rstrip("."): value}

    old, new = flatten(msgspec.to_builtins(found)), flatten(msgspec.to_builtins(wanted))
    return [
        f"{name}: {old.get(name)} in the study, {new.get(name)} now"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and not name.endswith(".notes")
    ]


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
    study = folder.open_existing(path)
    plan = folder.read_record(study.plan, SearchPlan)
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
    settings: SearchSettings,
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
        command=typed_command(settings),
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


def typed_command(settings: SearchSettings) -> str:
    """The command that says the same: every setting that is not the default."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    defaults = {field.name: field.default for field in fields(settings)}
    return spell_command("seed.search", {name: value for name, value in values.items() if value != defaults[name]})


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


def check_dropped(settings: SearchSettings, preset: Preset, *, num_layers: int, needed: Sequence[int] = ()) -> Preset:
    """Return the preset fitted to the opened model and to --max-dropped; ``needed``: layers that its family cannot do without.

    Raises:
        SpaceError: the preset is of a model with another number of layers, or lets a needed one go.
    """
    if preset.model.num_layers != num_layers:
        place = settings.space or f"{settings.model}.toml"
        raise SpaceError(
            f"{place}: num_layers = {preset.model.num_layers}, but {settings.model} has {num_layers} layers. Use a file made for this model."
        )
    least, most = settings.min_dropped or preset.space.min_dropped, settings.max_dropped or preset.space.max_dropped
    if settings.min_dropped is not None and settings.max_dropped is None:
        most = max(least, most)
    droppable = preset.space.droppable_layers
    if droppable is not None and set(droppable) & set(needed):
        raise SpaceError(
            f"{settings.space or settings.model + '.toml'}: droppable_layers names {sorted(set(droppable) & set(needed))}, which "
            f"{settings.model} cannot do without. Leave them out."
        )
    if droppable is None and needed:
        droppable = tuple(layer for layer in range(num_layers) if layer not in needed)
    section = msgspec.structs.replace(
        preset.space, max_dropped=most, min_dropped=min(least, most), droppable_layers=droppable
    )
    return msgspec.structs.replace(preset, space=section)


def go_on_from(space: SearchSpace, start: Start, settings: SearchSettings) -> SearchSpace:
    """The space that is left behind a recovered model: at least one more layer goes, bounds count all that are gone.

    Raises:
        ModelError: it is a model of another depth.
        SpaceError: nothing is left to drop within the bounds.
    """
    if start.candidate.num_layers != space.num_layers:
        raise ModelError(
            f"--start {start.path}: was cut from a model of {start.candidate.num_layers} layers, but {settings.model} has "
            f"{space.num_layers}. Give a model that was recovered from {settings.model}."
        )
    least = len(start.candidate.dropped_layers) + 1
    if settings.max_dropped is not None and settings.max_dropped < least:
        raise SpaceError(
            f"--max-dropped {settings.max_dropped}: counts from the original, of which {start.path} lacks {count_things(least - 1, 'layer')} already. "
            f"Give {least} or more."
        )
    return narrow_space(
        space,
        gone_layers=start.candidate.dropped_layers,
        min_dropped=settings.min_dropped or least,
        max_dropped=settings.max_dropped or max(space.max_dropped, least),
        place=f"--start {start.path}",
    )
