"""Search spaces: their bounds checked, and the candidates in a space."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

from seed.errors import SpaceError
from seed.records import Candidate, SearchSpace, split_part

SAMPLERS = ("subset", "tpe", "nsgaii", "random")  # see ``sampler``, which takes a second to import


def make_space(
    *,
    num_layers: int,
    max_dropped: int,
    place: str,
    min_dropped: int = 1,
    droppable_layers: tuple[int, ...] | None = None,
) -> SearchSpace:
    """Check the bounds against the model and return the space. ``droppable_layers``: None means all.

    Raises:
        SpaceError: bounds outside the model, naming the key, the value and what would fit.
    """
    droppable = droppable_layers if droppable_layers is not None else tuple(range(num_layers))
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
    if max_dropped > most:
        raise SpaceError(
            f"{place}: max_dropped = {max_dropped}, but the model has {num_layers} layers, of which "
            f"{len(droppable)} may go. Use {most} or fewer."
        )
    if not 1 <= min_dropped <= max_dropped:
        raise SpaceError(
            f"{place}: min_dropped = {min_dropped} and max_dropped = {max_dropped}; "
            "wanted 1 <= min_dropped <= max_dropped."
        )
    return SearchSpace(
        num_layers=num_layers,
        droppable_layers=tuple(sorted(droppable)),
        min_dropped=min_dropped,
        max_dropped=max_dropped,
    )


def narrow_space(
    space: SearchSpace, *, gone_layers: Sequence[int], min_dropped: int, max_dropped: int, place: str
) -> SearchSpace:
    """Return the space that is left when these layers are gone for good; the bounds count them.

    Raises:
        SpaceError: they are not droppable, or no candidate with more layers gone is within the bounds.
    """
    left = tuple(layer for layer in space.droppable_layers if layer not in gone_layers)
    if len(left) != len(space.droppable_layers) - len(gone_layers):
        raise SpaceError(
            f"{place}: layers {sorted(gone_layers)} are to be gone, but only {list(space.droppable_layers)} may go, each "
            "once. Leave the others out."
        )
    num_gone = len(gone_layers)
    most = min(num_gone + len(left), space.num_layers - 1)
    if not num_gone < min_dropped <= max_dropped <= most:
        raise SpaceError(
            f"{place}: min_dropped = {min_dropped} and max_dropped = {max_dropped}, with layers {sorted(gone_layers)} gone; "
            f"wanted {num_gone + 1} <= min_dropped <= max_dropped <= {most}."
        )
    return SearchSpace(
        num_layers=space.num_layers,
        droppable_layers=left,
        min_dropped=min_dropped,
        max_dropped=max_dropped,
        gone_layers=tuple(sorted(gone_layers)),
    )


# ---- candidates: the one place that knows which parts may go


def list_parts(space: SearchSpace) -> tuple[str, ...]:
    """The parts that may go, in the model's order: whole layers, or their attention, or their MLP, or both apart."""
    if not space.kinds:
        return tuple(map(str, space.droppable_layers))
    return tuple(f"{layer}.{kind}" for layer in space.droppable_layers for kind in space.kinds)


def group_parts(space: SearchSpace) -> list[list[str]]:
    """The parts that may go, those of a kind together, in the model's order."""
    if not space.kinds:
        return [list(list_parts(space))]
    return [[f"{layer}.{kind}" for layer in space.droppable_layers] for kind in space.kinds]


def drop_parts(space: SearchSpace, parts: Iterable[str]) -> Candidate:
    """Return the candidate without these parts and without the layers that are gone already."""
    return Candidate.drop(space.num_layers, (*map(str, space.gone_layers), *parts))


def drop_more(space: SearchSpace, layers: Iterable[int]) -> Candidate:
    """Return the candidate without these layers and without those that are gone already."""
    return drop_layers(space.num_layers, (*space.gone_layers, *layers))


def drop_layers(num_layers: int, layers: Iterable[int]) -> Candidate:
    """Return the candidate without these layers."""
    return Candidate.drop(num_layers, map(str, layers))


def lacks(candidate: Candidate, part: str) -> bool:
    """Is a part gone, be it with its layer?"""
    layer, _ = split_part(part)
    return part in candidate.parts or str(layer) in candidate.parts


def drop_deepest(space: SearchSpace, num_dropped: int) -> Candidate:
    """Return the candidate with so many layers gone that lacks the last of those that may go."""
    more = num_dropped - len(space.gone_layers)
    return drop_more(space, space.droppable_layers[len(space.droppable_layers) - more :])


def draw_candidate(space: SearchSpace, rng: random.Random) -> Candidate:
    """Return a random candidate: first how many parts go, evenly, then which."""
    count = rng.choice(space.more_dropped)
    return drop_parts(space, rng.sample(list_parts(space), count))


def enumerate_candidates(space: SearchSpace) -> Iterator[Candidate]:
    """Yield every candidate, in lexicographic order of kept parts: neighbours share the longest prefixes."""
    parts = list_parts(space)
    candidates = [
        drop_parts(space, dropped) for count in space.more_dropped for dropped in itertools.combinations(parts, count)
    ]
    yield from sorted(candidates, key=order_walk)


def order_walk(candidate: Candidate) -> tuple[int, ...]:
    """What candidates are sorted by, so that neighbours share the longest prefixes."""
    return candidate.sublayers.kept_layers


def contains(space: SearchSpace, candidate: Candidate) -> bool:
    """Is the candidate in the space?"""
    gone = [part for part in list_parts(space) if lacks(candidate, part)]
    return len(gone) in space.more_dropped and drop_parts(space, gone) == candidate
