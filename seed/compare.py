"""What does searching buy? python -m seed.compare studies/demo

Published ways to choose layers and Seed's own search choose at equal cost on the model of a finished study; what each
chose is distilled with the same budget and random seeds, and judged on test text. Cost is counted in layer-tokens: one
layer applied to one token. Everything finished is kept; run again to go on.
"""

import argparse
import functools
from pathlib import Path

from seed import folder
from seed.console import Terminal, run_command
from seed.errors import SeedError
from seed.evidence import Comparison, ComparisonSummary, StrategyRun
from seed.optimize.comparison import REFERENCE, WIDTH, summarize_comparison
from seed.optimize.strategies import STRATEGIES
from seed.records import Frontier
from seed.stages import options, planning

TITLES = {name: strategy.title for name, strategy in STRATEGIES.items()} | {WIDTH: "uniform width"}
SOURCES = {name: strategy.source for name, strategy in STRATEGIES.items()} | {WIDTH: "after arXiv 2407.14679"}


def compare_strategies(
    path: Path,
    *,
    terminal: Terminal,
    strategies: tuple[str, ...] | None = None,
    cost: float | None = None,
    rng_seeds: tuple[int, ...] = (0, 1, 2),
    distill_tokens: int | None = None,
    learning_rate: float | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Comparison, ComparisonSummary]:
    """Run a comparison, or what is left of it, and write its page.

    Args:
        path: the folder of a finished search.
        terminal: where progress and the result are written.
        strategies: names of ``TITLES``; None: all, the whole space only where the study has swept it.
        cost: layer-tokens that each may spend; None: what greedy removal with recovery costs.
        rng_seeds: of random strategies and of distillations.
        distill_tokens: recovery tokens of a distillation; None: the study's.
        learning_rate: of distillations; None: as tuned in the study, or the preset's middle one.
        device: default: as chosen for the search.
        trust_remote_code: run the code that the study's model brings along.

    Raises:
        SeedError: anything a user can mend.
    """
    if unknown := sorted(set(strategies or ()) - set(TITLES)):
        raise SeedError(f"--strategies {' '.join(unknown)}: unknown. Choose from {', '.join(TITLES)}.")
    study, plan, protocol = planning.open_planned(path, trust_remote_code=trust_remote_code)
    planning.quiet_libraries()
    from seed.reporting.comparison import format_cost, write_comparison_page
    from seed.reporting.summary import show_comparison
    from seed.scores import ScoreStore
    from seed.scoring.sweep import Sweep
    from seed.stages import comparing, schooling, searching, workbench
    from seed.stages.gathering import find_learning_rate, read_distilled
    from seed.stages.meter import Measured

    with folder.lock(study), ScoreStore(study.scores) as store:
        frontier = folder.read_record(study.frontier, Frontier)
        terminal.say(f"opening {protocol.model}")
        bench = workbench.reopen(study, protocol, device_name=device)
        sweep = Sweep(workbench.prepare_instruments(bench), store)
        everything = [name for name in TITLES if name != "sweep" or plan.covers_space]
        settings = comparing.ComparisonSettings(
            space=frontier.space or protocol.space,
            strategies=tuple(dict.fromkeys((REFERENCE, *(strategies or everything)))),
            budget=cost,
            rng_seeds=tuple(sorted(set(rng_seeds))),
            distill_tokens=distill_tokens or plan.distill_tokens,
            learning_rate=learning_rate or find_learning_rate(read_distilled(study)) or protocol.short_learning_rate,
        )
        measured = Measured(sweep)
        with terminal.stage("budget", total=settings.space.max_dropped) as advance:
            on_round = functools.partial(advance, 1, "greedy removal with recovery")
            comparison = comparing.start_comparison(bench, measured, settings, on_round=on_round)
        runs = comparing.list_runs(comparison, settings)
        terminal.say(
            f"plan: {len(settings.strategies)} {'strategy' if len(settings.strategies) == 1 else 'strategies'}, each with {comparison.budget:,.0f} layer-tokens to spend; then their "
            f"picks distilled for {planning.say_tokens(protocol, settings.distill_tokens)} with random seed{'s' if len(settings.rng_seeds) > 1 else ''} "
            + ", ".join(map(str, settings.rng_seeds))
        )

        def show(run: StrategyRun) -> None:
            picks = "; ".join(", ".join(pick.dropped_parts) for pick in run.picks) or "nothing"
            seed = "" if run.rng_seed is None else f" (seed {run.rng_seed})"
            terminal.say(f"  {TITLES[run.strategy]}{seed}: {picks}; cost {format_cost(run.cost, comparison.budget)}")

        with terminal.stage("choose", total=100 * len(runs)) as advance:  # per cent of a budget
            comparison = comparing.play_all(
                bench,
                measured,
                comparison,
                settings,
                on_run=show,
                on_paid=lambda strategy, share: advance(100 * share, strategy.title),
            )
        if WIDTH in settings.strategies:
            comparison = comparing.add_width(bench, measured, comparison)
        baselines = comparing.plan_baselines(bench, sweep, comparison)
        todo = comparing.list_finals(comparison, settings, baselines)
        if todo:
            steps = schooling.count_steps(bench, settings.distill_tokens)
            searching.store_states(terminal, bench, sweep, steps=steps, rng_seeds=settings.rng_seeds)
            with terminal.stage("distill", total=len(todo) * steps) as advance:
                comparison = comparing.distill_all(
                    bench, sweep, comparison, settings, on_step=lambda key: advance(1, key), baselines=baselines
                )
    summary = summarize_comparison(comparison)
    played = tuple(dict.fromkeys(run.strategy for run in comparison.runs))
    asked = {
        "strategies": None if set(played) == set(everything) else played,
        "cost": cost,
        "rng_seeds": settings.rng_seeds,
        "distill_tokens": distill_tokens,
        "learning_rate": learning_rate,
    }
    command = options.spell_command("seed.compare", asked, str(path))
    write_comparison_page(comparison, summary, study.comparison_page, command=command, titles=TITLES, sources=SOURCES)
    show_comparison(terminal, comparison, summary, page=study.comparison_page, titles=TITLES)
    return comparison, summary


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.CommandParser(
        prog="python -m seed.compare",
        description="Let strategies choose layers at equal cost, and see what distillation makes of what they chose.",
        epilog="The same command again continues a stopped comparison; with other strategies it adds them.",
        argument_default=argparse.SUPPRESS,
    )
    options.add_study(parser)
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help=f"any of {', '.join(TITLES)} (default: all)")
    parser.add_argument(
        "--cost",
        type=options.positive_float,
        metavar="N",
        help="layer-tokens that each may spend (default: what greedy removal with recovery costs)",
    )
    options.add_trainings(
        parser,
        distill_tokens="of each distillation (default: the study's)",
        rng_seeds="of strategies and distillations (default: 0 1 2)",
        learning_rate="of distillations (default: the study's)",
    )
    options.add_trust(parser)
    return parser


def main() -> None:
    """Read the command line and compare."""
    words = options.read_words(make_parser())
    compare_strategies(words.pop("path"), terminal=Terminal(), **words)


if __name__ == "__main__":
    run_command(main)
