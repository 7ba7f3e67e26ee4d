"""From what was asked to a whole config: files read, a model without one known by its size, bounds fitted to its layers.

Nothing heavy is imported here, so that wrong input is answered at once.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from seed import study_dir, untrusted
from seed.cli import SECONDS, list_options, spell_command, spell_seconds
from seed.config import DEFAULT_TEXT, OPTIONS, SECTIONS, StudyConfig, known
from seed.errors import CorpusError, ModelError, SeedError, SpaceError, StudyError
from seed.models.files import is_local
from seed.models.provenance import Start, find_origin, read_start
from seed.optimize.space import list_parts, make_space, narrow_space
from seed.records import SearchSpace
from seed.reporting.wording import count_things

SELF = "self:"  # before a file of prompts, which the model answers itself
NAMED_TEXTS = ("demo", "wikitext2")  # a folder of such a name must not be taken for the corpus
FILE_BYTES = 10**6  # the largest preset has fifty lines


def fill_from_files(asked: StudyConfig) -> StudyConfig:
    """Return the config with what the model's preset and the user's file say where nothing was told, and the model that they mean.

    Raises:
        SpaceError: the file is wrong.
        ModelError: the model to go on from is none.
    """
    if asked.is_settled:
        return asked
    own, model, typed = {} if asked.space is None else read_file(asked.space), asked.model, asked.list_typed()
    start = None if asked.start is None else read_start(asked.start)
    preset, named = read_preset(model), own.get("hub_id")
    if asked.is_typed("model"):
        is_of_hub = not is_local(model)
        if is_of_hub and named not in (None, model, preset.get("hub_id")):  # what runs is not the file's to choose
            raise SpaceError(
                f"{asked.space}: is of {named}, and --model says {model}. Leave --model out, or the file's name."
            )
    elif named is not None:
        model, preset = named, read_preset(name_base(named))
    elif start is not None:
        model = name_base(start.base_model)
        preset = read_preset(model)
    hub_id = preset.get("hub_id", named)
    filled = preset | own | {"hub_id": hub_id}
    if locate_model(model, hub_id) != hub_id and (named is not None or "revision" not in own):
        filled.pop("revision", None)  # of another model, which this one is only shaped like
    in_file = frozenset(name for name, value in own.items() if name not in typed and preset.get(name) != value)
    try:
        return StudyConfig(
            **filled | typed | {"model": model}, given=frozenset(typed), in_file=in_file, is_settled=True
        )
    except SeedError as error:
        if not in_file:
            raise
        raise SpaceError(f"{asked.space}: {error}") from error


def resolve_config(asked: StudyConfig) -> StudyConfig:
    """Return the config filled from files, with whole paths, so that a study can be continued from any folder.

    Raises:
        SeedError: a file is wrong, or contradicts what was told; or a local model comes without any text.
    """
    settings = fill_from_files(asked)
    if settings.recovery_text is None and is_local(settings.model):
        raise ask_for_text(settings.model, option="--recovery-text")

    def resolve_path(text: str | None) -> str | None:
        if not text or text in NAMED_TEXTS:
            return text
        kind = SELF * text.startswith(SELF)
        path = os.path.expanduser(text.removeprefix(kind))
        return kind + str(Path(path).resolve()) if os.path.exists(path) else text

    return replace(
        settings,
        recovery_text=resolve_path(settings.recovery_text),
        validation_text=resolve_path(settings.validation_text),
        test_text=resolve_path(settings.test_text),
    )


def ask_for_text(model: str, *, option: str) -> CorpusError:
    """What is raised where a local model comes without text: which one is the user's to say, not the hub's to give."""
    return CorpusError(
        f"{model}: a local model, and which text? Give {option} FILE or DIRECTORY; {' and '.join(NAMED_TEXTS)} are known by name."
    )


def name_base(base_model: str) -> str:
    """The name by which ``--model`` knows an original: its preset's where there is one."""
    return next((name for name in list_presets() if read_preset(name)["hub_id"] == base_model), base_model)


def locate_model(model: str, hub_id: str | None) -> str:
    """``demo``, an absolute directory or GGUF file, or a hub id."""
    if model != "demo" and is_local(model):
        return str(Path(model).expanduser().resolve())
    return hub_id if hub_id is not None and model in list_presets() else model


def name_study(settings: StudyConfig) -> str:
    """The name of a search's folder, by settings that are resolved.

    Raises:
        StudyError: it cannot be a folder's name.
    """
    return study_dir.name_study(settings.study or name_default_study(settings.model))


def name_default_study(model: str) -> str:
    """A folder name for the study of a model: the last part of its name or path."""
    name = re.sub(
        r"[^A-Za-z0-9._-]+", "-", Path(model).expanduser().resolve().name if model in (".", "..") else Path(model).name
    )
    return name.removesuffix(".gguf").strip("-._")[:100] or "study"


def typed_command(settings: StudyConfig) -> str:
    """The command that says the same, but for what only files and Python can say."""
    typed = {name: value for name, value in settings.list_typed().items() if OPTIONS[name][0].help is not None}
    times = {name: spell_seconds(value) for name, value in typed.items() if OPTIONS[name][1].metavar == SECONDS.metavar}
    lists = {name: ",".join(map(str, typed[name])) for name in ("parts", "bits", "tasks", "min_task") if name in typed}
    return spell_command("seed.search", typed | times | lists)


def find_space(settings: StudyConfig, *, num_layers: int, needed: Sequence[int] = ()) -> SearchSpace:
    """Return the space that is searched in the opened model; ``needed``: layers that its family cannot do without.

    Raises:
        SpaceError: a file is of a model with another number of layers, or lets a needed one go, or bounds are outside the model.
        ModelError: it goes on from a model of another depth.
    """
    file = settings.space or f"{settings.model}.toml"
    if settings.num_layers not in (None, num_layers):
        raise SpaceError(
            f"{file}: num_layers = {settings.num_layers}, but {settings.model} has {num_layers} layers. Use a file made for this model."
        )
    droppable = settings.droppable_layers
    if droppable is not None and set(droppable) & set(needed):
        raise SpaceError(
            f"{file}: droppable_layers names {sorted(set(droppable) & set(needed))}, which {settings.model} cannot do without. "
            "Leave them out."
        )
    if droppable is None and needed:
        droppable = tuple(layer for layer in range(num_layers) if layer not in needed)
    least, most, is_typed = settings.min_dropped or 1, known(settings.max_dropped), settings.is_typed("max_dropped")
    if not settings.is_given("max_dropped"):
        most = min(most, num_layers - 1 if droppable is None else len(droppable), num_layers - 1)
    if settings.is_given("min_dropped") and not is_typed:
        most = max(least, most)
    space = make_space(
        num_layers=num_layers,
        min_dropped=min(least, most),
        max_dropped=most,
        droppable_layers=droppable,
        place="--max-dropped" if is_typed else str(settings.space or f"search space of {settings.model}"),
    )
    if settings.start is not None:
        return go_on_from(space, read_start(settings.start), settings)
    space = msgspec.structs.replace(space, kinds=settings.kinds)
    if space.kinds and (not space.more_dropped or (is_typed and space.more_dropped[-1] < 2 * most)):
        num_parts = len(list_parts(space))
        raise SpaceError(
            f"--min-dropped {space.min_dropped} and --max-dropped {most}: with --parts {','.join(settings.parts)} there are {num_parts} parts that "
            f"may go, each half a layer. Give bounds up to {num_parts // 2}."
        )
    return space


def go_on_from(space: SearchSpace, start: Start, settings: StudyConfig) -> SearchSpace:
    """The space that is left behind a recovered model: at least one more layer goes, bounds count all that are gone."""
    if start.candidate.num_layers != space.num_layers:
        raise ModelError(
            f"--start {start.path}: was cut from a model of {start.candidate.num_layers} layers, but {settings.model} has "
            f"{space.num_layers}. Give a model that was recovered from {settings.model}."
        )
    least = len(start.candidate.dropped_layers) + 1
    most = known(settings.max_dropped) if settings.is_given("max_dropped") else max(space.max_dropped, least)
    if most < least:
        raise SpaceError(
            f"{settings.name_place('max_dropped')}--max-dropped {most}: counts from the original, of which {start.path} lacks "
            f"{count_things(least - 1, 'layer')} already. Give {least} or more."
        )
    return narrow_space(
        space,
        gone_layers=start.candidate.dropped_layers,
        min_dropped=known(settings.min_dropped) if settings.is_given("min_dropped") else least,
        max_dropped=most,
        place=f"--start {start.path}",
    )


def choose_window(name: str, given: int | None, *, longest: int) -> tuple[int, str]:
    """Return how many tokens a window holds, and why: as told, else as the original is judged, where it is known.

    Perplexities on windows of two lengths do not compare: the longer one gives more context.
    """
    if given is not None:
        return given, "as told"
    if (preset := read_preset(name).get("window_tokens")) is not None:
        return preset, f"as {name}'s search space has it"
    origin = find_origin(name)
    if origin is not None:
        if origin.window_tokens is not None and 2 <= origin.window_tokens <= longest:
            return origin.window_tokens, f"as in the study that it comes from, of {origin.base_model} (seed.json)"
        base = name_base(origin.base_model)
        preset = read_preset(base).get("window_tokens")
        if preset is not None and preset <= longest:
            return preset, f"as the search space of its original, {base}, has it"
    return min(
        1024, longest
    ), "as many as it reads, 1,024 at most; a PPL on other windows does not compare (--window-tokens)"


def choose_text(name: str) -> str:
    """The text to be judged on where none is named: the model's own, or its study's where that is a known corpus.

    Raises:
        CorpusError: a local model has neither.
    """
    if (text := read_preset(name).get("recovery_text")) is not None:
        return str(text)
    origin = find_origin(name)  # may come from anyone, so no file that it names is opened
    if origin is not None and origin.test_text in NAMED_TEXTS:
        return origin.test_text
    if is_local(name):
        raise ask_for_text(name, option="--test-text")
    return DEFAULT_TEXT


def presets_directory() -> Path:
    """Where the presets lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def list_presets() -> list[str]:
    """Names that ``--model`` knows."""
    return sorted(path.stem for path in presets_directory().glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """The options of a known model; of another model none."""
    return read_file(presets_directory() / f"{name}.toml") if name in list_presets() else {}


def read_file(path: Path) -> dict[str, Any]:
    """Read and check a TOML file; return the options in it.

    Raises:
        SpaceError: it is missing, not TOML, has an unknown key or a wrong value, or contradicts itself.
    """
    values: dict[str, Any] = {}
    for section, table in _read_toml(path).items():
        if section not in SECTIONS and section != "config":
            raise SpaceError(f"{path}: {_explain_unknown(section, [*SECTIONS, 'config'])}")
        if not isinstance(table, dict):
            raise SpaceError(f"{path}: {section} = {table}: wanted a section, [{section}] and keys below it.")
        if section == "config":
            values["shape"] = table
            continue
        known = {said.key or name: (name, kind) for name, said, kind in list_options(SECTIONS[section]) if said.in_file}
        for key, value in table.items():
            if key not in known:
                raise SpaceError(f"{path}: [{section}] {_explain_unknown(key, list(known))}")
            name, kind = known[key]
            try:
                values[name] = kind.read(tuple(value) if isinstance(value, list) else value)
            except ValueError as error:
                raise SpaceError(f"{path}: {section}.{key} = {value}: {error}.") from error
    if (least := values.get("min_dropped", 1)) > (most := values.get("max_dropped", least)):
        raise SpaceError(f"{path}: min_dropped = {least} and max_dropped = {most}; wanted min_dropped <= max_dropped.")
    if "num_layers" in values and "max_dropped" in values:
        bounds = {name: values[name] for name in ("min_dropped", "max_dropped", "droppable_layers") if name in values}
        make_space(num_layers=values["num_layers"], place=str(path), **bounds)
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(untrusted.read_bounded(path, limit=FILE_BYTES).decode("utf-8-sig"))
    except StudyError as error:
        raise SpaceError(
            f"{path}: larger than {FILE_BYTES / 1e6:.0f} MB, and a search space is a few lines. Give a TOML file like those in "
            "search_spaces/."
        ) from error
    except OSError as error:
        raise SpaceError(
            f"{path}: cannot be read ({error.strerror}). Give a TOML file like those in search_spaces/."
        ) from error
    except (ValueError, RecursionError) as error:  # TOML's own, encodings', and numbers of too many digits
        raise SpaceError(f"{path}: not valid TOML ({error}). Mend that place.") from error
    if (excess := untrusted.find_excess(content)) is not None:
        raise SpaceError(f"{path}: {excess}. Mend that number.")
    return content


def _explain_unknown(key: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"has an unknown key {key}.{hint} Allowed: {', '.join(allowed)}."
