"""Search spaces: presets in TOML, their checks, and the candidates in a space.

Data about models lives in ``search_spaces/*.toml``; a model without a preset gets ``default_preset``.
"""

import difflib
import itertools
import math
import random
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from seed import untrusted
from seed.errors import SpaceError, StudyError
from seed.records import Candidate, Record, SearchSpace

SPACE_BYTES = 10**6  # the largest preset has a hundred lines


class ModelSection(Record, frozen=True, kw_only=True):
    """The model on the hub. Revisions are full commit hashes, pinned only where known for certain; tied weights count once."""

    name: str
    num_layers: int
    num_params: int | None = None
    revision: str | None = None
    license: str | None = None


class SpaceSection(Record, frozen=True, kw_only=True):
    """How many layers may go, and which (all, unless listed)."""

    max_dropped: int
    min_dropped: int = 1
    droppable_layers: tuple[int, ...] | None = None


class DataSection(Record, frozen=True, kw_only=True):
    """Default corpus and how much of it is used; tokens."""

    corpus: str
    window_tokens: int
    calibration_tokens: int
    validation_tokens: int
    test_tokens: int | None = None


class LatencySection(Record, frozen=True, kw_only=True):
    """The workload that is timed."""

    batch: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 64
    repeats: int | None = None  # timed pairs of dense and cut model; None: as many as the interval needs


class RecoverySection(Record, frozen=True, kw_only=True):
    """Budgets of short and full distillation."""

    batch_tokens: int
    distill_tokens: int
    learning_rates: tuple[float, ...]
    short_steps: int = 10


class SearchSection(Record, frozen=True, kw_only=True):
    """How many candidates are scored."""

    trials: int = 100


class Preset(Record, frozen=True, kw_only=True):
    """One file of search_spaces/. ``config`` is the part of the model's public config that its shape needs."""

    model: ModelSection
    space: SpaceSection
    data: DataSection
    recovery: RecoverySection
    latency: LatencySection = LatencySection()
    search: SearchSection = SearchSection()
    config: dict[str, Any] | None = None


SECTIONS: dict[str, type[Record]] = {
    "model": ModelSection,
    "space": SpaceSection,
    "data": DataSection,
    "recovery": RecoverySection,
    "latency": LatencySection,
    "search": SearchSection,
}


def presets_directory() -> Path:
    """Where the presets lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def list_presets() -> list[str]:
    """Names that ``--model`` knows."""
    return sorted(path.stem for path in presets_directory().glob("*.toml"))


def load_preset(path: Path) -> Preset:
    """Read and check a TOML file.

    Raises:
        SpaceError: it is missing, not TOML, has an unknown key or a wrong type, or contradicts itself.
    """
    try:
        content = tomllib.loads(untrusted.read_bounded(path, limit=SPACE_BYTES).decode("utf-8-sig"))
    except StudyError as error:
        raise SpaceError(
            f"{path}: larger than {SPACE_BYTES / 1e6:.0f} MB, and a search space is a few lines. Give a TOML file like those in "
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
    try:
        preset = msgspec.convert(content, Preset)
    except msgspec.ValidationError as error:
        raise SpaceError(f"{path}: {_explain(str(error))}") from error
    make_space(preset.space, num_layers=preset.model.num_layers, place=str(path))
    for section, key in (
        ("model", "num_params"),
        ("data", "window_tokens"),
        ("data", "calibration_tokens"),
        ("data", "validation_tokens"),
        ("data", "test_tokens"),
        ("recovery", "short_steps"),
        ("recovery", "batch_tokens"),
        ("recovery", "distill_tokens"),
        ("latency", "batch"),
        ("latency", "prompt_tokens"),
        ("latency", "new_tokens"),
        ("latency", "repeats"),
        ("search", "trials"),
    ):
        value = getattr(getattr(preset, section), key)
        if value is not None and value < 1:
            raise SpaceError(f"{path}: {section}.{key} = {value}, but it must be 1 or more.")
    rates = preset.recovery.learning_rates
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise SpaceError(f"{path}: recovery.learning_rates must be one or more numbers above 0.")
    return preset


def default_preset(name: str, *, num_layers: int, num_params: int, max_positions: int) -> Preset:
    """Settings for a model without a preset, by its size. Budgets in tokens; rates fall with size."""
    window = max(16, min(1024, max_positions))
    rate = min(1e-3, 1e-4 * (1e9 / max(num_params, 1)) ** 0.5)
    return Preset(
        model=ModelSection(name=name, num_layers=num_layers),
        space=SpaceSection(max_dropped=max(1, num_layers // 3)),
        data=DataSection(
            corpus="wikitext2",
            window_tokens=window,
            calibration_tokens=16_384,
            validation_tokens=65_536,
            test_tokens=262_144,
        ),
        latency=LatencySection(prompt_tokens=min(128, max_positions // 2), new_tokens=min(64, max_positions // 2)),
        recovery=RecoverySection(
            batch_tokens=max(window, 8192),
            distill_tokens=max(200_000, min(40_000_000, num_params // 10)),
            learning_rates=(rate / 3, rate, rate * 3),
        ),
    )


def make_space(section: SpaceSection, *, num_layers: int, place: str) -> SearchSpace:
    """Check the bounds against the model and return the space.

    Raises:
        SpaceError: bounds outside the model, naming the key, the value and what would fit.
    """
    droppable = section.droppable_layers if section.droppable_layers is not None else tuple(range(num_layers))
    wrong = [layer for layer in droppable if not 0 <= layer < num_layers]
    if wrong:
        raise SpaceError(
            f"{place}: droppable layers {wrong} are not in the model, which has layers 0 to {num_layers - 1}. Leave them out."
        )
    if len(set(droppable)) != len(droppable):
        raise SpaceError(f"{place}: droppable layers {list(droppable)} name a layer twice. Name each once.")
    most = min(len(droppable), num_layers - 1)
    if most < 1:
        raise SpaceError(
            f"{place}: {len(droppable)} of {num_layers} layers may go (droppable_layers), so nothing can be dropped."
        )
    if section.max_dropped > most:
        raise SpaceError(
            f"{place}: max_dropped = {section.max_dropped}, but the model has {num_layers} layers, of which "
            f"{len(droppable)} may go. Use {most} or fewer."
        )
    if not 1 <= section.min_dropped <= section.max_dropped:
        raise SpaceError(
            f"{place}: min_dropped = {section.min_dropped} and max_dropped = {section.max_dropped}; "
            "wanted 1 <= min_dropped <= max_dropped."
        )
    return SearchSpace(
        num_layers=num_layers,
        droppable_layers=tuple(sorted(droppable)),
        min_dropped=section.min_dropped,
        max_dropped=section.max_dropped,
    )


def narrow_space(
    space: SearchSpace, *, gone_layers: Sequence[int], min_dropped: int, max_dropped: int, place: str
) -> SearchSpace:
    """Return the space that is left when these layers are gone for good; the bounds count them.

    Raises:
        SpaceError: they are not droppable, or no candidate with more layers gone is within the bounds.
    """
    gone = (*space.gone_layers, *gone_layers)
    wrong = sorted(set(gone_layers) - set(space.droppable_layers))
    if wrong or len(set(gone)) != len(gone):
        raise SpaceError(
            f"{place}: layers {sorted(gone_layers)} are to be gone, but only {list(space.droppable_layers)} may go, each "
            "once. Leave the others out."
        )
    left = tuple(layer for layer in space.droppable_layers if layer not in gone)
    most = min(len(gone) + len(left), space.num_layers - 1)
    if not len(gone) < min_dropped <= max_dropped <= most:
        raise SpaceError(
            f"{place}: min_dropped = {min_dropped} and max_dropped = {max_dropped}, with layers {sorted(gone)} gone; "
            f"wanted {len(gone) + 1} <= min_dropped <= max_dropped <= {most}."
        )
    return SearchSpace(
        num_layers=space.num_layers,
        droppable_layers=left,
        min_dropped=min_dropped,
        max_dropped=max_dropped,
        gone_layers=tuple(sorted(gone)),
    )


def enumerate_candidates(space: SearchSpace) -> Iterator[Candidate]:
    """Yield every candidate, in lexicographic order of kept layers: neighbours share the longest prefixes."""
    candidates = [
        drop_more(space, dropped)
        for count in space.more_dropped
        for dropped in itertools.combinations(space.droppable_layers, count)
    ]
    yield from sorted(candidates, key=lambda candidate: candidate.kept_layers)


def draw_candidate(space: SearchSpace, rng: random.Random) -> Candidate:
    """Return a random candidate: first how many layers go, evenly, then which."""
    count = rng.choice(space.more_dropped)
    return drop_more(space, rng.sample(space.droppable_layers, count))


def drop_more(space: SearchSpace, dropped: Iterable[int]) -> Candidate:
    """Return the candidate without these layers and without those that are gone already."""
    return drop_layers(space.num_layers, (*space.gone_layers, *dropped))


def drop_deepest(space: SearchSpace, num_dropped: int) -> Candidate:
    """Return the candidate with so many layers gone that lacks the last of those that may go."""
    more = num_dropped - len(space.gone_layers)
    return drop_more(space, space.droppable_layers[len(space.droppable_layers) - more :])


def drop_layers(num_layers: int, dropped: Iterable[int]) -> Candidate:
    """Return the candidate without these layers."""
    gone = set(dropped)
    return Candidate(
        num_layers=num_layers, kept_layers=tuple(layer for layer in range(num_layers) if layer not in gone)
    )


def contains(space: SearchSpace, candidate: Candidate) -> bool:
    """Is the candidate in the space?"""
    dropped, gone = set(candidate.dropped_layers), set(space.gone_layers)
    more = dropped - gone
    return gone <= dropped and len(more) in space.more_dropped and more <= set(space.droppable_layers)


def _explain(message: str) -> str:
    """Turn msgspec's words into ours: key, what is wrong, what is allowed."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    section = key.split(".")[0].split("[")[0]
    unknown = re.search(r"unknown field `(.+)`", what)
    if unknown:
        allowed = list(SECTIONS[section].__struct_fields__) if section in SECTIONS else [*SECTIONS, "config"]
        near = difflib.get_close_matches(unknown[1], allowed, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        place = f"[{section}] " if section in SECTIONS else ""
        return f"{place}has an unknown key {unknown[1]}.{hint} Allowed: {', '.join(allowed)}."
    missing = re.search(r"missing required field `(.+)`", what)
    if missing:
        place = f"[{section}] " if section in SECTIONS else ""
        return f"{place}lacks {missing[1]}. Add it; search_spaces/gpt2.toml shows every key."
    return f"{key}: {what.replace('`', '')}. Mend its type."
