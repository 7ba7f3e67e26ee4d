"""Ways to choose which layers go, each from its paper, behind one interface, for comparison at equal cost; a search uses ``sampler``.

A strategy is a generator: it measures through a ``Scorer``, which pays from a budget, and yields a candidate whenever it
settles on one for its depth; a later one of the same depth replaces it. When the budget is spent the scorer raises, and
what was yielded stands.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from seed.optimize.space import (
    contains,
    drop_more,
    drop_parts,
    enumerate_candidates,
    group_parts,
    lacks,
    list_parts,
)
from seed.records import Candidate, SearchSpace

# EvoPress (arXiv 2410.14649), settings of its layer dropping: sets drawn first, offspring of a generation, survivors of
# the first selection, and the share of the tokens that it reads (2,048 of 32,768).
DRAWN_FIRST, OFFSPRING, SURVIVORS, FIRST_SHARE = 64, 32, 2, 1 / 16
MOST_SWAPS = 3


class BudgetSpent(Exception):  # noqa: N818  it is no error: the search is over
    """The next measurement would cost more than what is left."""


class Scorer(Protocol):
    """Measures for one strategy, and pays from its budget."""

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> list[float]:
        """Losses on a share of the validation text, nats per token; what was scored before costs nothing.

        Raises:
            BudgetSpent: they cost more than is left.
        """

    def weigh_layers(self, measure: str) -> list[float]:
        """How important each layer is, higher is more: ``block_influence``, ``taylor`` or ``magnitude``; its attention: ``attention_influence``."""

    def measure_distances(self, num_layers: int) -> list[float]:
        """Angular distance between the inputs of layer i and of layer i + ``num_layers``, for every i; layers that are gone do not count."""


Search = Callable[[Scorer, SearchSpace, str, int], Iterator[Candidate]]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to choose. ``search`` takes the scorer, the space, the proxy of scores with recovery, and a random seed."""

    name: str
    title: str
    source: str
    search: Search
    is_random: bool = False
    by_parts: bool = False  # does it take attention and MLP apart, in a space that lets them go alone?
    needs_parts: bool = False  # does it play in such a space only?

    def plays_in(self, space: SearchSpace) -> bool:
        """Can it choose sets of this space?"""
        return bool(space.kinds) if self.needs_parts else self.by_parts or len(space.kinds) != 1

    def narrow(self, space: SearchSpace) -> SearchSpace:
        """What of a space it searches: whole layers, unless it takes them apart."""
        return space if self.by_parts else msgspec.structs.replace(space, kinds=())


STRATEGIES: dict[str, Strategy] = {}


def register(name: str, *, title: str, source: str, **flags: bool) -> Callable[[Search], Search]:
    """Make a function a strategy of this name."""

    def add(search: Search) -> Search:
        STRATEGIES[name] = Strategy(name=name, title=title, source=source, search=search, **flags)
        return search

    return add


def run_strategy(
    strategy: Strategy, scorer: Scorer, space: SearchSpace, *, proxy: str, rng_seed: int
) -> dict[float, Candidate]:
    """Let a strategy choose within its budget; return its pick for each number of dropped layers.

    Where attention and MLP go alone, two of them make a layer: picks of a depth lack as many, and are of about one size.
    """
    picks: dict[float, Candidate] = {}
    try:
        for candidate in strategy.search(scorer, strategy.narrow(space), proxy, rng_seed):
            if contains(space, candidate) and candidate.num_dropped % 1 == 0:
                picks[candidate.num_dropped] = candidate
    except BudgetSpent:
        pass
    return dict(sorted(picks.items()))


def make_finite(loss: float) -> float:
    """A loss to be compared; what is no number is the worst."""
    return loss if math.isfinite(loss) else math.inf


# ---- samplers: scores with recovery, one candidate at a time, over all depths at once


def search_with(name: str) -> Search:
    """A search with one of the samplers."""

    def search(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
        from seed.optimize.sampler import SampledStudy  # takes a second, and commands list what strategies there are

        study = SampledStudy(space, sampler=name, rng_seed=rng_seed)
        best: dict[float, float] = {}
        for _ in range(space.size):
            candidate = study.ask()
            [loss] = scorer.score([candidate], proxy=proxy)
            if not math.isfinite(loss):
                study.tell(candidate, None)
                continue
            study.tell(candidate, [math.exp(min(loss, 500.0)), sum(candidate.count_kept()) / 2])
            if loss < best.get(candidate.num_dropped, math.inf):
                best[candidate.num_dropped] = loss
                yield candidate

    return search


register("subset", title="Seed's sampler", source="this package", is_random=True, by_parts=True)(search_with("subset"))


@register("sweep", title="every set, at any cost", source="this package", by_parts=True)
def sweep_all(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Score every candidate with recovery: what any search at this proxy can find at most."""
    candidates = list(enumerate_candidates(space))
    losses = dict(zip(candidates, scorer.score(candidates, proxy=proxy), strict=True))
    yield from sorted(candidates, key=lambda c: (-make_finite(losses[c]), c.key))  # the best of each depth comes last


# ---- one shot: rank layers once, drop the lowest


def drop_lowest(
    space: SearchSpace, importance: Sequence[float], *, protected: Sequence[int] = (), kind: str = ""
) -> Iterator[Candidate]:
    """Yield, for every number of dropped layers, the candidate without the least important ones; what is not finite stays.

    ``kind``: of the part that goes; without one, layers go whole.
    """
    free = set(space.droppable_layers) - set(protected)
    order = sorted(free, key=lambda layer: (make_finite(importance[layer]), layer))
    for count in range(1, min(space.more_dropped[-1], len(order)) + 1):
        yield drop_parts(space, [f"{layer}.{kind}" if kind else str(layer) for layer in order[:count]])


@register("last_layers", title="last layers", source="arXiv 2411.15558")
def drop_last(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Reassessing Layer Pruning, reverse order: the last layers first, no measurement."""
    yield from drop_lowest(space, [float(-layer) for layer in range(space.num_layers)])


@register("magnitude", title="magnitude", source="arXiv 2402.02834")
def rank_by_magnitude(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Shortened LLaMA, Mag: |weight| summed over a layer (Li et al. 2017), no data."""
    yield from drop_lowest(space, scorer.weigh_layers("magnitude"))


@register("taylor", title="Taylor+", source="arXiv 2402.02834")
def rank_by_taylor(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Shortened LLaMA, Taylor+: |weight x gradient| summed over a layer; both ends are protected.

    The paper protects the first four and the last two of 32 layers; here the same shares of any depth.
    """
    first, last = round(space.num_layers / 8), round(space.num_layers / 16)
    protected = [*range(first), *range(space.num_layers - last, space.num_layers)]
    yield from drop_lowest(space, scorer.weigh_layers("taylor"), protected=protected)


@register("block_influence", title="block influence", source="arXiv 2403.03853")
def rank_by_block_influence(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """ShortGPT: 1 - cosine similarity of what goes into a layer and what comes out."""
    yield from drop_lowest(space, scorer.weigh_layers("block_influence"))


@register("llm_drop", title="LLM-Drop", source="arXiv 2406.15786", by_parts=True, needs_parts=True)
def rank_attentions(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """LLM-Drop, Attention Drop: 1 - cosine similarity of what goes into an attention and what comes out, residual added; MLPs stay."""
    yield from drop_lowest(space, scorer.weigh_layers("attention_influence"), kind="attn")


@register("angular_distance", title="angular distance", source="arXiv 2403.17887")
def drop_nearest_block(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """PruneMe: the block of n layers whose input and output differ by the smallest angle."""
    present = drop_more(space, []).kept_layers
    for count in range(1, space.more_dropped[-1] + 1):
        distances = scorer.measure_distances(count)
        blocks = {first: present[first : first + count] for first in range(len(distances))}
        allowed = [first for first, block in blocks.items() if set(block) <= set(space.droppable_layers)]
        if allowed:
            yield drop_more(space, blocks[min(allowed, key=lambda first: (make_finite(distances[first]), first))])


@register("perplexity", title="one-shot PPL", source="arXiv 2402.02834")
def rank_by_perplexity(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Shortened LLaMA, PPL: the perplexity without each single layer, no recovery."""
    losses = scorer.score([drop_more(space, [layer]) for layer in space.droppable_layers], proxy="none")
    importance = dict(zip(space.droppable_layers, losses, strict=True))
    yield from drop_lowest(space, [importance.get(layer, math.inf) for layer in range(space.num_layers)])


# ---- searches


@register(
    "greedy_parts", title="greedy by parts", source="arXiv 2406.10594, 2405.18218", by_parts=True, needs_parts=True
)
@register("greedy", title="greedy", source="arXiv 2402.09025")
def remove_greedily(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """SLEB: remove the layer that costs least, measure all again, no recovery. By parts: BlockPruner, and FinerCut.

    FinerCut removes what moves the model's output least; perplexity, by which BlockPruner goes, stands for that.
    """
    yield from remove_greedily_recovered(scorer, space, "none", rng_seed)


@register("greedy_recovered", title="greedy with recovery", source="this package", by_parts=True)
def remove_greedily_recovered(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """The same with recovery in every score: greedy removal at its best."""
    gone: tuple[str, ...] = ()
    while len(gone) < space.more_dropped[-1]:
        left = [part for part in list_parts(space) if part not in gone]
        candidates = [drop_parts(space, (*gone, part)) for part in left]
        losses = scorer.score(candidates, proxy=proxy)
        best = min(range(len(left)), key=lambda i: make_finite(losses[i]))  # of equals the first
        gone = (*gone, left[best])
        yield candidates[best]


@register(
    "evopress_parts",
    title="EvoPress by parts",
    source="arXiv 2410.14649",
    is_random=True,
    by_parts=True,
    needs_parts=True,
)
@register("evopress", title="EvoPress", source="arXiv 2410.14649", is_random=True)
def evolve(scorer: Scorer, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """EvoPress: (1 + 32) evolution at each depth, selection in two steps, no recovery.

    k (L - k) / 1.5 generations for k of L layers that may go; depths take turns, so that a smaller budget cuts all alike. A mutation
    swaps dropped for kept layers, min(r, s) times, r and s drawn from 1 to 3. By parts, k attentions and k MLPs are gone, and a swap
    is among either. Perplexity stands for the KL divergence; the first step reads the same part of the text every time, and
    offspring that are alike count once.
    """
    rng = random.Random(rng_seed)
    groups, total = group_parts(space), len(space.droppable_layers)
    unit = 2 if space.kinds else 1  # parts that make a layer
    depths = [count // len(groups) for count in space.more_dropped if count and count % unit == 0]
    generations = {count: max(1, int(count * (total - count) / 1.5)) for count in depths}
    done = dict.fromkeys(depths, 0)
    parents: dict[int, Candidate] = {}
    while any(done[count] < generations[count] for count in depths):
        count = min(depths, key=lambda count: done[count] / generations[count])
        if count not in parents:
            drawn = {
                drop_parts(space, [part for group in groups for part in rng.sample(group, count)])
                for _ in range(DRAWN_FIRST)
            }
            [parents[count]] = select_best(scorer, sorted(drawn, key=lambda c: c.key), keep=1, share=FIRST_SHARE)
        parent = parents[count]
        offspring = {mutate(space, parent, rng) for _ in range(OFFSPRING)} - {parent}
        kept = select_best(scorer, sorted(offspring, key=lambda c: c.key), keep=SURVIVORS, share=FIRST_SHARE)
        [parents[count]] = select_best(scorer, [parent, *kept], keep=1, share=1.0)
        done[count] += 1
        yield parents[count]


def mutate(space: SearchSpace, parent: Candidate, rng: random.Random) -> Candidate:
    """Swap some dropped parts for kept ones of their kind; where nothing can be swapped, the parent itself."""
    groups = group_parts(space)
    dropped = {part for part in list_parts(space) if lacks(parent, part)}
    for _ in range(min(rng.randint(1, MOST_SWAPS), rng.randint(1, MOST_SWAPS))):
        group = rng.choice(groups) if len(groups) > 1 else groups[0]
        gone, kept = [part for part in group if part in dropped], [part for part in group if part not in dropped]
        if gone and kept:
            dropped ^= {rng.choice(gone), rng.choice(kept)}
    return drop_parts(space, dropped)


def select_best(scorer: Scorer, candidates: Sequence[Candidate], *, keep: int, share: float) -> list[Candidate]:
    """The best of these by their loss without recovery on a share of the text."""
    losses = scorer.score(candidates, proxy="none", share=share) if candidates else []
    order = sorted(range(len(candidates)), key=lambda i: make_finite(losses[i]))
    return [candidates[i] for i in order[:keep]]


for _name, _title in (("random", "random"), ("tpe", "TPE"), ("nsgaii", "NSGA-II")):
    register(_name, title=_title, source="Optuna", is_random=True, by_parts=True)(search_with(_name))
