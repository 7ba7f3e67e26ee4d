"""Ways to choose which layers go, each from its paper, behind one interface and one account.

A strategy is a generator: it measures through a ``Meter``, which keeps the account in layer-tokens, and yields a candidate
whenever it settles on one for its depth; a later one of the same depth replaces it. When the budget is spent the meter
raises, and what was yielded stands. Nothing is measured or priced here.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import optuna

from seed.optimize.sampler import candidate_of, flag_distributions, make_sampler, make_subset_sampler
from seed.optimize.space import contains, drop_layers, drop_more, enumerate_candidates
from seed.records import Candidate, SearchSpace, hash_text

# EvoPress (arXiv 2410.14649), settings of its layer dropping: sets drawn first, offspring of a generation, survivors of
# the first selection, and the share of the tokens that it reads (2,048 of 32,768).
DRAWN_FIRST, OFFSPRING, SURVIVORS, FIRST_SHARE = 64, 32, 2, 1 / 16
MOST_SWAPS = 3


class BudgetSpent(Exception):  # noqa: N818  it is no error: the search is over
    """The next measurement would cost more than what is left."""


class Meter(Protocol):
    """Measures for one strategy, and keeps its account."""

    def score(self, candidates: Sequence[Candidate], *, proxy: str, share: float = 1.0) -> list[float]:
        """Losses on a share of the validation text, nats per token; what was scored before costs nothing.

        Raises:
            BudgetSpent: they cost more than is left.
        """

    def weigh_layers(self, measure: str) -> list[float]:
        """How important each layer is, higher is more: ``block_influence``, ``taylor`` or ``magnitude``."""

    def measure_distances(self, num_layers: int) -> list[float]:
        """Angular distance between the inputs of layer i and of layer i + ``num_layers``, for every i; layers that are gone do not count."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to choose. ``search`` takes the meter, the space, the proxy of scores with recovery, and a random seed."""

    name: str
    title: str
    source: str
    search: Callable[[Meter, SearchSpace, str, int], Iterator[Candidate]]
    is_random: bool = False


def run_strategy(
    strategy: Strategy, meter: Meter, space: SearchSpace, *, proxy: str, rng_seed: int
) -> dict[int, Candidate]:
    """Let a strategy choose within its budget; return its pick for each number of dropped layers."""
    picks: dict[int, Candidate] = {}
    try:
        for candidate in strategy.search(meter, space, proxy, rng_seed):
            if contains(space, candidate):
                picks[len(candidate.dropped_layers)] = candidate
    except BudgetSpent:
        pass
    return dict(sorted(picks.items()))


# ---- one shot: rank layers once, drop the lowest


def drop_lowest(
    space: SearchSpace, importance: Sequence[float], *, protected: Sequence[int] = ()
) -> Iterator[Candidate]:
    """Yield, for every number of dropped layers, the candidate without the least important ones; what is not finite stays."""
    order = sorted(set(space.droppable_layers) - set(protected), key=lambda layer: (_finite(importance[layer]), layer))
    for count in range(1, min(space.more_dropped[-1], len(order)) + 1):
        yield drop_more(space, order[:count])


def rank_by_block_influence(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """ShortGPT (arXiv 2403.03853): 1 - cosine similarity of what goes into a layer and what comes out."""
    yield from drop_lowest(space, meter.weigh_layers("block_influence"))


def rank_by_perplexity(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Shortened LLaMA (arXiv 2402.02834), PPL: the perplexity without each single layer, no recovery."""
    losses = meter.score(list_singles(space), proxy="none")
    importance = dict(zip(space.droppable_layers, losses, strict=True))
    yield from drop_lowest(space, [importance.get(layer, math.inf) for layer in range(space.num_layers)])


def rank_by_taylor(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Shortened LLaMA (arXiv 2402.02834), Taylor+: |weight x gradient| summed over a layer; both ends are protected.

    The paper protects the first four and the last two of 32 layers; here the same shares of any depth.
    """
    first, last = round(space.num_layers / 8), round(space.num_layers / 16)
    protected = [*range(first), *range(space.num_layers - last, space.num_layers)]
    yield from drop_lowest(space, meter.weigh_layers("taylor"), protected=protected)


def rank_by_magnitude(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Shortened LLaMA (arXiv 2402.02834), Mag: |weight| summed over a layer (Li et al. 2017), no data."""
    yield from drop_lowest(space, meter.weigh_layers("magnitude"))


def drop_last(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Reassessing Layer Pruning (arXiv 2411.15558), reverse order: the last layers first, no measurement."""
    yield from drop_lowest(space, [float(-layer) for layer in range(space.num_layers)])


def drop_nearest_block(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """PruneMe (arXiv 2403.17887): the block of n layers whose input and output differ by the smallest angle."""
    present = drop_more(space, []).kept_layers
    for count in range(1, space.more_dropped[-1] + 1):
        distances = meter.measure_distances(count)
        blocks = {first: present[first : first + count] for first in range(len(distances))}
        allowed = [first for first, block in blocks.items() if set(block) <= set(space.droppable_layers)]
        if allowed:
            yield drop_more(space, blocks[min(allowed, key=lambda first: (_finite(distances[first]), first))])


# ---- searches


def remove_greedily(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """SLEB (arXiv 2402.09025): remove the layer that costs least, measure all again, no recovery."""
    yield from _remove_one_by_one(meter, space, proxy="none")


def remove_greedily_recovered(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """The same with recovery in every score: greedy removal at its best."""
    yield from _remove_one_by_one(meter, space, proxy=proxy)


def _remove_one_by_one(meter: Meter, space: SearchSpace, *, proxy: str) -> Iterator[Candidate]:
    gone = space.gone_layers
    while len(gone) < space.max_dropped:
        left = [layer for layer in space.droppable_layers if layer not in gone]
        candidates = [drop_layers(space.num_layers, (*gone, layer)) for layer in left]
        losses = meter.score(candidates, proxy=proxy)
        best = min(range(len(left)), key=lambda i: (_finite(losses[i]), left[i]))
        gone = (*gone, left[best])
        yield candidates[best]


def evolve(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """EvoPress (arXiv 2410.14649): (1 + 32) evolution at each depth, selection in two steps, no recovery.

    k (L - k) / 1.5 generations for k of L layers that may go; depths take turns, so that a smaller budget cuts all alike. A mutation
    swaps dropped for kept layers, min(r, s) times, r and s drawn from 1 to 3. Perplexity stands for the KL divergence; the
    first step reads the same part of the text every time, and offspring that are alike count once.
    """
    rng = random.Random(rng_seed)
    total = len(space.droppable_layers)
    depths = range(max(1, space.more_dropped[0]), space.more_dropped[-1] + 1)
    generations = {count: max(1, int(count * (total - count) / 1.5)) for count in depths}
    done = dict.fromkeys(depths, 0)
    parents: dict[int, Candidate] = {}
    while any(done[count] < generations[count] for count in depths):
        count = min(depths, key=lambda count: done[count] / generations[count])
        if count not in parents:
            drawn = {drop_more(space, rng.sample(space.droppable_layers, count)) for _ in range(DRAWN_FIRST)}
            [parents[count]] = _select(meter, sorted(drawn, key=lambda c: c.key), keep=1, share=FIRST_SHARE)
        parent = parents[count]
        offspring = {mutate(space, parent, rng) for _ in range(OFFSPRING)} - {parent}
        kept = _select(meter, sorted(offspring, key=lambda c: c.key), keep=SURVIVORS, share=FIRST_SHARE)
        [parents[count]] = _select(meter, [parent, *kept], keep=1, share=1.0)
        done[count] += 1
        yield parents[count]


def mutate(space: SearchSpace, parent: Candidate, rng: random.Random) -> Candidate:
    """Swap some dropped layers for kept ones; where nothing can be swapped, the parent itself."""
    dropped = set(parent.dropped_layers) - set(space.gone_layers)
    for _ in range(min(rng.randint(1, MOST_SWAPS), rng.randint(1, MOST_SWAPS))):
        kept = [layer for layer in space.droppable_layers if layer not in dropped]
        if kept and dropped:
            dropped ^= {rng.choice(sorted(dropped)), rng.choice(kept)}
    return drop_more(space, dropped)


def _select(meter: Meter, candidates: Sequence[Candidate], *, keep: int, share: float) -> list[Candidate]:
    losses = meter.score(candidates, proxy="none", share=share) if candidates else []
    order = sorted(range(len(candidates)), key=lambda i: _finite(losses[i]))
    return [candidates[i] for i in order[:keep]]


def search_with(name: str) -> Callable[[Meter, SearchSpace, str, int], Iterator[Candidate]]:
    """A search with one of the samplers: scores with recovery, one candidate at a time, over all depths at once."""

    def search(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=["minimize", "minimize"])
        subset = make_subset_sampler(space, rng_seed=rng_seed)
        best: dict[int, float] = {}
        for number in range(space.size):
            state = int(hash_text(f"{rng_seed}/{number}")[:8], 16)
            study.sampler = subset if name == "subset" else make_sampler(name, space, random_state=state)
            trial = study.ask(fixed_distributions=flag_distributions(space))
            candidate = candidate_of(space, trial.params)
            [loss] = meter.score([candidate], proxy=proxy)
            if not math.isfinite(loss):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
            study.tell(trial, [math.exp(min(loss, 500.0)), float(len(candidate.kept_layers))])
            count = len(candidate.dropped_layers)
            if loss < best.get(count, math.inf):
                best[count] = loss
                yield candidate

    return search


def sweep_all(meter: Meter, space: SearchSpace, proxy: str, rng_seed: int) -> Iterator[Candidate]:
    """Score every candidate with recovery: what any search at this proxy can find at most."""
    candidates = list(enumerate_candidates(space))
    losses = dict(zip(candidates, meter.score(candidates, proxy=proxy), strict=True))
    yield from sorted(candidates, key=lambda c: (-_finite(losses[c]), c.key))  # the best of each depth comes last


def list_singles(space: SearchSpace) -> list[Candidate]:
    """The candidates without one layer more."""
    return [drop_more(space, [layer]) for layer in space.droppable_layers]


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            name="subset", title="Seed's sampler", source="this package", search=search_with("subset"), is_random=True
        ),
        Strategy(name="sweep", title="every set, at any cost", source="this package", search=sweep_all),
        Strategy(name="last_layers", title="last layers", source="arXiv 2411.15558", search=drop_last),
        Strategy(name="magnitude", title="magnitude", source="arXiv 2402.02834", search=rank_by_magnitude),
        Strategy(name="taylor", title="Taylor+", source="arXiv 2402.02834", search=rank_by_taylor),
        Strategy(
            name="block_influence", title="block influence", source="arXiv 2403.03853", search=rank_by_block_influence
        ),
        Strategy(
            name="angular_distance", title="angular distance", source="arXiv 2403.17887", search=drop_nearest_block
        ),
        Strategy(name="perplexity", title="one-shot PPL", source="arXiv 2402.02834", search=rank_by_perplexity),
        Strategy(name="greedy", title="greedy", source="arXiv 2402.09025", search=remove_greedily),
        Strategy(
            name="greedy_recovered",
            title="greedy with recovery",
            source="this package",
            search=remove_greedily_recovered,
        ),
        Strategy(name="evopress", title="EvoPress", source="arXiv 2410.14649", search=evolve, is_random=True),
        Strategy(name="random", title="random", source="Optuna", search=search_with("random"), is_random=True),
        Strategy(name="tpe", title="TPE", source="Optuna", search=search_with("tpe"), is_random=True),
        Strategy(name="nsgaii", title="NSGA-II", source="Optuna", search=search_with("nsgaii"), is_random=True),
    )
}
