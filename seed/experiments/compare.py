"""What does searching buy? Ways to choose layers choose at equal cost; what each chose is distilled alike and judged.

Cost is counted in layer-tokens: one layer applied to one token.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
from msgspec import structs

from seed import stats
from seed.config import spell_parts
from seed.console import Advance
from seed.errors import ModelError, StudyError
from seed.evidence import WIDTH, ComparedFinal, Comparison, ComparisonSummary, Reached, StrategyRun
from seed.experiments import runner
from seed.experiments.runner import FinishedSearch
from seed.optimize.space import drop_layers
from seed.optimize.strategies import STRATEGIES, run_strategy
from seed.proxy.layer_tokens import BudgetedScorer
from seed.records import Candidate, Estimate, Frontier, SearchSpace
from seed.reporting.document import Findings
from seed.reporting.experiment_page import tell_comparison
from seed.reporting.wording import count_things
from seed.stages import students
from seed.stages.students import Member
from seed.stages.study_record import find_learning_rate, read_results
from seed.study_dir import read_record

REFERENCE = "subset"
UNLIMITED = ("sweep",)  # pays what it costs: it is there to say what there was to be found
NAMES = {one.name: (one.title, one.source) for one in STRATEGIES.values()} | {
    WIDTH: ("uniform width", "after arXiv 2407.14679")
}


def compare_strategies(
    search: FinishedSearch,
    *,
    strategies: tuple[str, ...] | None = None,
    depths: tuple[int, ...] | None = None,
    cost: float | None = None,
    rng_seeds: tuple[int, ...] = (0, 1, 2),
    distill_tokens: int | None = None,
    learning_rate: float | None = None,
) -> Findings:
    """Run a comparison, or what is left of it.

    The reference always plays; others may be added later. None: every strategy that can choose such sets (the whole space
    only where the search has swept it), every depth, the cost of greedy removal with recovery, and the search's own tokens and
    learning rate.

    Raises:
        SeedError: anything a user can mend.
    """
    path, protocol, rng_seeds = search.folder.comparison, search.protocol, tuple(sorted(set(rng_seeds)))
    tokens = distill_tokens or search.plan.distill_tokens
    rate = learning_rate or find_learning_rate(read_results(search.folder)[0]) or protocol.short_learning_rate
    space = choose_space(read_record(search.folder.frontier, Frontier).space, depths)
    refuse_others(space, strategies or ())
    settings = {
        **runner.describe_training(search, distill_tokens=tokens, rng_seeds=rng_seeds),
        "cost": cost or "that of greedy removal with recovery",
        "learning_rate": rate,
        "min_dropped": space.min_dropped,
        "max_dropped": space.max_dropped,
        **({"depths": ", ".join(map(str, sorted(set(depths))))} if depths else {}),
    }
    everything = list_strategies(space, covers_space=search.plan.covers_space)
    comparison = runner.read_begun(path, Comparison, settings) or start_comparison(search, space, settings, budget=cost)
    runs = list_runs(comparison, (REFERENCE, *(strategies or everything)), rng_seeds=rng_seeds)
    search.terminal.say(
        f"plan: {count_things(len(runs), 'choice')} to make, each with {comparison.budget:,.0f} layer-tokens to spend; then what was chosen "
        f"is distilled for {protocol.describe_training(tokens)} with each of the random seeds {settings['rng_seeds']}"
    )
    with search.terminal.stage("choose", total=len(runs)) as advance:
        for name, rng_seed in runs:
            run = choose_layers(search, space, name, rng_seed=rng_seed, budget=comparison.budget, advance=advance)
            comparison = runner.keep(
                path, structs.replace(comparison, runs=(*comparison.runs, list_asked(run, depths)))
            )
    if finals := list_finals(search, comparison, rng_seeds=rng_seeds):
        runner.store_states(search, steps=protocol.count_steps(tokens), rng_seeds=rng_seeds)
    with search.terminal.stage("distill", total=len(finals)) as advance:
        for member, depth, seed in finals:
            trained = runner.train(search, member, tokens=tokens, learning_rate=rate, rng_seed=seed, advance=advance)
            final = ComparedFinal(
                candidate=member.candidate,
                width=member.width,
                like_dropped=depth,
                rng_seed=seed,
                validation_loss=students.finite(trained.outcome.best_loss),
                test_sums=students.list_sums(trained.test),
                seconds=trained.whole_seconds,
            )
            comparison = runner.keep(path, structs.replace(comparison, finals=(*comparison.finals, final)))
    played = tuple(name for name in dict.fromkeys(run.strategy for run in comparison.runs) if name in NAMES)
    repeat = {"strategies": None if set(played) == set(everything) else played}
    return tell_comparison(comparison, summarize_comparison(comparison), names=NAMES, repeat=repeat)


def list_strategies(space: SearchSpace, *, covers_space: bool) -> list[str]:
    """All that play where none is named."""
    able = [name for name, strategy in STRATEGIES.items() if strategy.plays_in(space)]
    return [*(name for name in able if covers_space or name not in UNLIMITED), WIDTH]


def refuse_others(space: SearchSpace, strategies: Sequence[str]) -> None:
    """Raise where a strategy cannot choose sets of a space.

    Raises:
        StudyError: naming it.
    """
    if wrong := [name for name in strategies if name != WIDTH and not STRATEGIES[name].plays_in(space)]:
        raise StudyError(
            f"--strategies {' '.join(wrong)}: chooses other parts than the search, which was for --parts {spell_parts(space.kinds)}. "
            "Leave it out."
        )


def choose_space(space: SearchSpace, depths: Sequence[int] | None) -> SearchSpace:
    """The part of a search's space that holds these depths; None: all of it.

    Raises:
        StudyError: it does not hold one of them.
    """
    if depths is None:
        return space
    if wrong := [depth for depth in depths if not space.min_dropped <= depth <= space.max_dropped]:
        raise StudyError(
            f"--depths {' '.join(map(str, wrong))}: the search was for {space.min_dropped} to {space.max_dropped} dropped layers. "
            "Choose among these."
        )
    return structs.replace(space, max_dropped=max(depths))


def list_asked(run: StrategyRun, depths: Collection[int] | None) -> StrategyRun:
    """A run with its picks of these depths only; None: all."""
    picks = [pick for pick in run.picks if depths is None or pick.num_dropped in depths]
    return structs.replace(run, picks=tuple(picks))


def start_comparison(
    search: FinishedSearch, space: SearchSpace, settings: runner.Settings, *, budget: float | None
) -> Comparison:
    """A comparison in which nobody has chosen yet."""
    if budget is None:  # the strongest simple baseline sets the price
        name = "greedy_recovered"
        with search.terminal.stage("budget", total=space.max_dropped) as advance:
            scorer = BudgetedScorer(search.sweep, on_paid=lambda cost: advance(1, NAMES[name][0]))
            run_strategy(STRATEGIES[name], scorer, space, proxy=search.session.recovered_proxy, rng_seed=0)
        budget = scorer.spent
    dense = runner.judge_dense(search)
    return Comparison(
        study=search.folder.name,
        model=search.protocol.model,
        proxy=search.session.recovered_proxy,
        budget=budget,
        num_candidates=space.size,
        dense_test_sums=dense.sums.tolist(),
        test_counts=dense.counts.tolist(),
        settings=settings,
        runs=(),
        finals=(),
    )


def list_runs(
    comparison: Comparison, names: Sequence[str], *, rng_seeds: Sequence[int]
) -> list[tuple[str, int | None]]:
    """Choices that are still to be made: random strategies once for each seed, the others once."""
    done = {(run.strategy, run.rng_seed) for run in comparison.runs}
    wanted = [
        (name, rng_seed)
        for name in dict.fromkeys(names)
        for rng_seed in (rng_seeds if name != WIDTH and STRATEGIES[name].is_random else (None,))
    ]
    return [one for one in wanted if one not in done]


def choose_layers(
    search: FinishedSearch, space: SearchSpace, name: str, *, rng_seed: int | None, budget: float, advance: Advance
) -> StrategyRun:
    """Let a strategy choose within a budget of its own."""
    title, picks = NAMES[name][0], {}
    scorer = BudgetedScorer(
        search.sweep,
        budget=math.inf if name in UNLIMITED else budget,
        on_paid=lambda cost: advance(cost / budget, title),
    )
    cost = scorer.unit * scorer.prices.trace  # uniform width pays for looking at activations once
    if name != WIDTH:
        proxy = search.session.recovered_proxy
        picks = run_strategy(STRATEGIES[name], scorer, space, proxy=proxy, rng_seed=rng_seed or 0)
        cost = scorer.spent
    advance(1 - scorer.spent / budget, title)  # done, whatever it spent
    return StrategyRun(
        strategy=name, rng_seed=rng_seed, cost=cost, num_scores=scorer.num_scores, picks=tuple(picks.values())
    )


def list_finals(
    search: FinishedSearch, comparison: Comparison, *, rng_seeds: Sequence[int]
) -> list[tuple[Member, float | None, int]]:
    """Distillations that are still to be done: of picks, whoever picked them, and of widths with the depth whose size they have."""
    done = {(final.candidate, final.width, final.rng_seed) for final in comparison.finals}
    picks = list(dict.fromkeys(pick for run in comparison.runs for pick in run.picks))
    wanted: list[tuple[Member, float | None]] = [(Member(candidate=pick), None) for pick in picks]
    if any(run.strategy == WIDTH for run in comparison.runs):
        wanted += [(member, depth) for depth, member in list_widths(search, picks).items()]
    return [
        (member, depth, rng_seed)
        for rng_seed in rng_seeds
        for member, depth in wanted
        if (member.candidate, member.width, rng_seed) not in done
    ]


def list_widths(search: FinishedSearch, picks: Sequence[Candidate]) -> dict[float, Member]:
    """All layers cut to the size of each depth that was chosen for; none where this family's widths cannot be cut."""
    if search.protocol.start is not None:
        return {}  # a width would get fewer tokens than what goes on from a recovered model
    found = {}
    for depth, pick in sorted({pick.num_dropped: pick for pick in picks}.items()):
        try:
            [width] = students.plan_widths(search.sweep.instruments, [pick])
        except ModelError:  # there is none of this size
            continue
        found[depth] = Member(candidate=drop_layers(search.session.anatomy.num_layers, []), width=width)
    return found


# ---- what the numbers say


def summarize_comparison(comparison: Comparison) -> ComparisonSummary:
    """What each strategy reached at each depth, beside the reference's picks of the same depth; within a depth best first.

    Three things vary: which documents are read, the random seed of distillation, that of a search. Documents and
    distillations are paired; runs of different strategies are not. A depth counts where every pick of a strategy there is
    distilled. One whose picks end as no model at all, with losses that are no numbers, has a row without a value, the last.
    """
    counts_D, rows = np.array(comparison.test_counts), []
    for depth in sorted({pick.num_dropped for run in comparison.runs for pick in run.picks}):
        losses = read_losses(comparison, depth=depth)
        theirs_RSD = losses.get(REFERENCE)
        found = []
        for strategy, ours_RSD in losses.items():
            runs = [run for run in comparison.runs if run.strategy == strategy]
            picks = find_picks(runs, depth=depth)
            excess = stats.NOTHING
            if strategy == REFERENCE:
                excess = Estimate(value=0.0, low=0.0, high=0.0)
            elif theirs_RSD is not None:
                excess = stats.estimate_excess(ours_RSD, theirs_RSD, counts_D)
            found.append(
                Reached(
                    strategy=strategy,
                    num_dropped=depth,
                    picks=picks,
                    num_runs=len(runs),
                    num_without=0 if strategy == WIDTH else len(runs) - len(picks),
                    cost=float(np.mean([run.cost for run in runs])),
                    ppl_ratio=stats.estimate_ratio(ours_RSD, comparison.dense_test_sums, counts_D),
                    excess=excess,
                )
            )
        rows += sorted(found, key=lambda row: (row.ppl_ratio.value or math.inf, row.cost, row.strategy))
    return ComparisonSummary(reference=REFERENCE, rows=tuple(rows))


def read_losses(comparison: Comparison, *, depth: float) -> dict[str, np.ndarray]:
    """Summed test losses at a depth by strategy: (R picks, S seeds, D documents), not a number where a student broke.

    Strategies of which any pick lacks a random seed are left out.
    """
    seeds = sorted({final.rng_seed for final in comparison.finals})
    sums = {
        (final.candidate, final.like_dropped, final.rng_seed): np.array(final.test_sums, dtype=float)
        for final in comparison.finals
    }
    found = {}
    for strategy in dict.fromkeys(run.strategy for run in comparison.runs):
        picks = find_picks([run for run in comparison.runs if run.strategy == strategy], depth=depth)
        like = depth if strategy == WIDTH else None
        if like is not None:
            picks = tuple(final.candidate for final in comparison.finals if final.like_dropped == like)[:1]
        keys = [[(pick, like, seed) for seed in seeds] for pick in picks]
        if keys and seeds and all(key in sums for row in keys for key in row):
            found[strategy] = np.array([[sums[key] for key in row] for row in keys])
    return found


def find_picks(runs: Sequence[StrategyRun], *, depth: float) -> tuple[Candidate, ...]:
    """Picks of this depth, one of each run that has one."""
    return tuple(pick for run in runs for pick in run.picks if pick.num_dropped == depth)
