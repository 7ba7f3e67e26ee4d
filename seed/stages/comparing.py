"""Strategies side by side on one model: what each chooses at equal cost, and what full distillation makes of it.

Which strategies there are is ``optimize.strategies``' business, what they pay ``meter``'s, what the numbers say
``optimize.comparison``'s. Everything finished is written as it comes; a stopped comparison goes on.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from seed import folder
from seed.errors import ModelError
from seed.evidence import ComparedFinal, Comparison, StrategyRun
from seed.optimize.comparison import WIDTH
from seed.optimize.space import drop_layers
from seed.optimize.strategies import STRATEGIES, Strategy, run_strategy
from seed.records import SearchSpace
from seed.scoring.quality import logits_of, measure_losses
from seed.scoring.sweep import Sweep
from seed.stages import narrowing, planning, schooling
from seed.stages.meter import Account, Measured
from seed.stages.schooling import Member
from seed.stages.workbench import Workbench

UNLIMITED = ("sweep",)  # pays what it costs: it is there to say what there was to be found


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """What a comparison does. ``budget``: layer-tokens; None: what greedy removal with recovery costs."""

    space: SearchSpace
    strategies: tuple[str, ...]
    budget: float | None
    rng_seeds: tuple[int, ...]
    distill_tokens: int
    learning_rate: float


def find_budget(
    bench: Workbench, measured: Measured, space: SearchSpace, *, on_paid: Callable[[float], None] = lambda cost: None
) -> float:
    """What greedy removal with recovery costs, in layer-tokens: the strongest simple rival sets the price."""
    account = Account(measured, on_paid=on_paid)
    run_strategy(STRATEGIES["greedy_recovered"], account, space, rung=bench.recovered_rung, rng_seed=0)
    return account.spent


def play(
    strategy: Strategy,
    bench: Workbench,
    measured: Measured,
    space: SearchSpace,
    *,
    budget: float,
    rng_seed: int | None,
    on_paid: Callable[[float], None] = lambda cost: None,
) -> StrategyRun:
    """Let one strategy choose on its own account."""
    account = Account(measured, budget=math.inf if strategy.name in UNLIMITED else budget, on_paid=on_paid)
    picks = run_strategy(strategy, account, space, rung=bench.recovered_rung, rng_seed=rng_seed or 0)
    return StrategyRun(
        strategy=strategy.name,
        rng_seed=rng_seed,
        cost=account.spent,
        num_scores=account.num_scores,
        picks=tuple(picks.values()),
    )


def start_comparison(
    bench: Workbench,
    measured: Measured,
    settings: ComparisonSettings,
    *,
    on_round: Callable[[], None] = lambda: None,
) -> Comparison:
    """Begin a comparison, or read back the one that was begun. ``on_round``: of the greedy removal that sets the budget.

    Raises:
        StudyError: it was begun with other settings.
    """
    described = describe_settings(bench, settings)
    path = bench.folder.comparison
    if path.exists():
        known = folder.read_record(path, Comparison)
        planning.require_same_settings(known.settings, described, place=path)
        return known
    test = measure_losses(
        logits_of(bench.teacher.model), bench.streams["test"], micro_batch=bench.micro_batch, device=bench.device
    )
    return Comparison(
        study=bench.folder.name,
        model=bench.protocol.model,
        rung=bench.recovered_rung,
        budget=settings.budget or find_budget(bench, measured, settings.space, on_paid=lambda cost: on_round()),
        num_candidates=settings.space.size,
        dense_test_sums=test.sums.tolist(),
        test_counts=test.counts.tolist(),
        settings=described,
        runs=(),
        finals=(),
    )


def describe_settings(bench: Workbench, settings: ComparisonSettings) -> dict[str, str | int | float]:
    """What decides the numbers, for people and for going on; strategies may be added later."""
    return {
        "cost": settings.budget or "that of greedy removal with recovery",
        "rng_seeds": ", ".join(map(str, settings.rng_seeds)),
        "distill_tokens": settings.distill_tokens,
        "batch_tokens": bench.batch_windows * bench.protocol.window_tokens,
        "learning_rate": settings.learning_rate,
        "calibration_tokens": bench.protocol.calibration_tokens,
        "validation_tokens": bench.protocol.streams["validation"].tokens,
        "test_tokens": bench.protocol.streams["test"].tokens,
        "min_dropped": settings.space.min_dropped,
        "max_dropped": settings.space.max_dropped,
    }


def list_runs(comparison: Comparison, settings: ComparisonSettings) -> list[tuple[Strategy, int | None]]:
    """Runs that are still to be done: random strategies once for each seed, the others once."""
    done = {(run.strategy, run.rng_seed) for run in comparison.runs}
    chosen = [STRATEGIES[name] for name in settings.strategies if name != WIDTH]
    runs = [(one, seed) for one in chosen for seed in (settings.rng_seeds if one.is_random else (None,))]
    return [(one, seed) for one, seed in runs if (one.name, seed) not in done]


def play_all(
    bench: Workbench,
    measured: Measured,
    comparison: Comparison,
    settings: ComparisonSettings,
    *,
    on_run: Callable[[StrategyRun], None],
    on_paid: Callable[[Strategy, float], None] = lambda strategy, share: None,
) -> Comparison:
    """Let every strategy choose that has not yet; return the comparison with all runs.

    ``on_paid`` gets shares of the budget, 1 for each run in all, whatever it left or overdrew.
    """
    budget = comparison.budget
    for strategy, rng_seed in list_runs(comparison, settings):
        left = 1.0

        def pay(cost: float, strategy: Strategy = strategy) -> None:
            nonlocal left
            share = min(left, cost / budget)
            left -= share
            on_paid(strategy, share)

        run = play(strategy, bench, measured, settings.space, budget=budget, rng_seed=rng_seed, on_paid=pay)
        on_paid(strategy, left)
        comparison = _keep(bench, comparison, runs=(*comparison.runs, run))
        on_run(run)
    return comparison


def add_width(bench: Workbench, measured: Measured, comparison: Comparison) -> Comparison:
    """The comparison with the baseline that drops no layers; it pays for looking at activations once."""
    if any(run.strategy == WIDTH for run in comparison.runs):
        return comparison
    run = StrategyRun(strategy=WIDTH, rng_seed=None, cost=measured.prices.trace, num_scores=0, picks=())
    return _keep(bench, comparison, runs=(*comparison.runs, run))


def plan_baselines(bench: Workbench, sweep: Sweep, comparison: Comparison) -> dict[int, Member]:
    """All layers cut to the size of each depth that strategies chose for; none where this family's widths cannot be cut."""
    if not any(run.strategy == WIDTH for run in comparison.runs) or bench.protocol.start is not None:
        return {}  # a width would get fewer tokens than what goes on from a recovered model
    picks = {len(pick.dropped_layers): pick for run in comparison.runs for pick in run.picks}
    whole = drop_layers(bench.anatomy.num_layers, [])
    found = {}
    for depth, pick in sorted(picks.items()):
        try:
            [width] = narrowing.plan_widths(sweep.instruments, [pick])
        except ModelError:  # there is none of this size
            continue
        found[depth] = Member(candidate=whole, width=width)
    return found


def list_finals(
    comparison: Comparison, settings: ComparisonSettings, baselines: Mapping[int, Member] | None = None
) -> list[tuple[Member, int, int | None]]:
    """Distillations that are still to be done, each once for each random seed: of picks, whoever picked them, and of baselines.

    The last of each three is the depth whose size a baseline has.
    """
    done = {(final.candidate, final.width, final.rng_seed) for final in comparison.finals}
    wanted: dict[Member, int | None] = {
        Member(candidate=pick): None for run in comparison.runs for pick in run.picks
    } | {member: depth for depth, member in (baselines or {}).items()}
    return [
        (member, seed, depth)
        for seed in settings.rng_seeds
        for member, depth in wanted.items()
        if (member.candidate, member.width, seed) not in done
    ]


def distill_all(
    bench: Workbench,
    sweep: Sweep,
    comparison: Comparison,
    settings: ComparisonSettings,
    *,
    on_step: Callable[[str], None],
    baselines: Mapping[int, Member] | None = None,
) -> Comparison:
    """Distill what is missing; return the comparison with all finals."""
    for member, rng_seed, depth in list_finals(comparison, settings, baselines):
        full = schooling.full_settings(
            bench,
            member.candidate,
            distill_tokens=settings.distill_tokens,
            learning_rate=settings.learning_rate,
            looks=4,
            rng_seed=rng_seed,
        )
        step = functools.partial(on_step, member.key)
        trained = schooling.distill_once(bench, sweep, member, full, on_step=step)
        final = ComparedFinal(
            candidate=member.candidate,
            width=member.width,
            like_dropped=depth,
            rng_seed=rng_seed,
            validation_loss=schooling.finite(trained.went.best_loss),
            test_sums=schooling.list_sums(trained.test),
            seconds=trained.whole_seconds,
        )
        comparison = _keep(bench, comparison, finals=(*comparison.finals, final))
    return comparison


def _keep(
    bench: Workbench,
    comparison: Comparison,
    *,
    runs: Sequence[StrategyRun] | None = None,
    finals: Sequence[ComparedFinal] | None = None,
) -> Comparison:
    comparison = msgspec.structs.replace(
        comparison,
        runs=comparison.runs if runs is None else tuple(runs),
        finals=comparison.finals if finals is None else tuple(finals),
    )
    folder.write_record(bench.folder.comparison, comparison)
    return comparison
