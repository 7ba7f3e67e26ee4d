"""How soon each search finds the frontier, on landscapes where every set is scored; and how long Seed's takes to ask.

Frontier regret is how much worse than the best existing perplexity the best found one is, a mean over least numbers of
dropped layers, or of attentions and MLPs where they go alone. What a strategy settles on without having scored it is
scored too, and counts as an evaluation. A landscape has one proxy: where that is a score with recovery, greedy removal
and EvoPress get recovery as well.
"""

import itertools
import math
import statistics
import time
from typing import Any

import numpy as np
import optuna

from benchmarks.scored_spaces import Landscape, LandscapeScorer, list_landscapes, load_landscape
from seed.console import Terminal
from seed.optimize.strategies import STRATEGIES, BudgetSpent
from seed.optimize.subset_sampler import FLAG, SubsetSampler
from seed.records import SearchSpace

BUDGETS = (30, 57, 100, 200)  # evaluations
NAMES = ("subset", "greedy", "perplexity", "evopress", "random", "tpe", "nsgaii", "greedy_parts", "evopress_parts")
SEEDS, SEEDS_FULL = 5, 20
MOST_LAYERS = 12  # of landscapes that are played by default, besides one of 22
DEEPER = "llama22_closed_form"
ASKS, ASKS_FULL = 10, 50
NUM_TRIALS, NUM_FLAGS, MAX_DROPPED = 2000, 48, 4


def measure(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Play every strategy on every landscape, and time asks of a long study."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return measure_landscapes(terminal, full=full) | time_long_studies(asks=ASKS_FULL if full else ASKS)
    finally:
        optuna.logging.set_verbosity(verbosity)


def measure_landscapes(terminal: Terminal, *, full: bool) -> dict[str, Any]:
    """Regrets in per cent by landscape, strategy and budget, and milliseconds an ask of ``subset``."""
    regrets: dict[str, Any] = {}
    details: dict[str, Any] = {}
    ask_ms: dict[str, Any] = {}
    for landscape in choose_landscapes(full=full):
        runs = list_runs(landscape.space, full=full)
        found: dict[str, list[dict[str, Any]]] = {}
        with terminal.stage(landscape.name, total=len(runs)) as advance:
            for name, rng_seed in runs:
                found.setdefault(name, []).append(play(name, landscape, rng_seed=rng_seed))
                advance(1, name)
        regrets[landscape.name] = {name: summarize(rows) for name, rows in found.items()}
        asks = {name: [ms for row in rows for ms in row.pop("ask_ms")] for name, rows in found.items()}
        ask_ms[landscape.name] = {"median": statistics.median(asks["subset"]), "max": max(asks["subset"])}
        details[landscape.name] = {"about": landscape.about, "sets": landscape.space.size, "runs": found}
    return {"regret_per_cent": regrets, "subset_ask_ms": ask_ms, "regret_details": details}


def choose_landscapes(*, full: bool) -> list[Landscape]:
    """All in full; by default those of few layers, and one that is deeper."""
    landscapes = [load_landscape(name) for name in list_landscapes()]
    return [one for one in landscapes if full or one.space.num_layers <= MOST_LAYERS or one.name == DEEPER]


def list_runs(space: SearchSpace, *, full: bool) -> list[tuple[str, int]]:
    """Strategies and random seeds; what is not random is played once."""
    seeds = range(SEEDS_FULL if full else SEEDS)
    able = [name for name in NAMES if STRATEGIES[name].plays_in(space)]
    return [(name, rng_seed) for name in able for rng_seed in (seeds if STRATEGIES[name].is_random else [0])]


def play(name: str, landscape: Landscape, *, rng_seed: int) -> dict[str, Any]:
    """Let a strategy search; return its regret at each budget."""
    scorer, strategy = TimedScorer(landscape, budget=max(BUDGETS)), STRATEGIES[name]
    began = time.perf_counter()
    try:
        for candidate in strategy.search(scorer, strategy.narrow(landscape.space), "any", rng_seed):
            scorer.score([candidate], proxy="any")  # costs nothing but where it was chosen unseen
    except BudgetSpent:
        pass
    return {
        "rng_seed": rng_seed,
        "seconds": time.perf_counter() - began,
        "evaluations": scorer.spent,
        "regret": {str(budget): 100 * landscape.regret(scorer.list_found(within=budget)) for budget in BUDGETS},
        "ask_ms": scorer.ask_ms,
    }


class TimedScorer(LandscapeScorer):
    """Remembers how long the strategy took between two scores."""

    def __init__(self, landscape: Landscape, *, budget: float) -> None:
        super().__init__(landscape, budget=budget)
        self.ask_ms: list[float] = []
        self._left = time.perf_counter()

    def score(self, *args: Any, **kwargs: Any) -> list[float]:
        before = self.spent
        ms = 1000 * (time.perf_counter() - self._left)
        try:
            return super().score(*args, **kwargs)
        finally:
            if self.spent > before:
                self.ask_ms.append(ms)
                self._left = time.perf_counter()


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over random seeds, by budget."""
    summary: dict[str, Any] = {}
    for budget in map(str, BUDGETS):
        values = [row["regret"][budget] for row in rows if row["regret"][budget] is not None]
        if values:
            sd = statistics.stdev(values) if len(values) > 1 else None
            summary[budget] = {"mean": statistics.fmean(values), "sd": sd}
    return summary


def time_long_studies(*, asks: int) -> dict[str, Any]:
    """Milliseconds an ask in a study of 2,000 trials with 48 flags, where few may go, and where any number may."""
    name = f"subset_ask_ms_{NUM_TRIALS}x{NUM_FLAGS}"
    return {
        f"{name}_up_to_{MAX_DROPPED}": time_long_study(asks=asks, max_dropped=MAX_DROPPED),
        f"{name}_any_number": time_long_study(asks=asks, max_dropped=None),
    }


def time_long_study(*, asks: int, max_dropped: int | None) -> dict[str, Any]:
    """Milliseconds that ``SubsetSampler`` takes to ask, the first time and later."""
    rng = np.random.default_rng(0)
    flags = [f"keep_{part:02d}" for part in range(NUM_FLAGS)]
    alone, together = rng.gamma(1.0, 0.03, NUM_FLAGS), rng.normal(0, 0.01, (NUM_FLAGS, NUM_FLAGS))
    drawn: dict[tuple[int, ...], None] = dict.fromkeys((part,) for part in range(NUM_FLAGS))
    while len(drawn) < NUM_TRIALS:
        drawn[tuple(sorted(rng.choice(NUM_FLAGS, rng.integers(2, MAX_DROPPED + 1), replace=False).tolist()))] = None
    study = optuna.create_study(directions=["minimize", "minimize"])
    distributions = dict.fromkeys(flags, FLAG)
    for dropped in drawn:
        loss = 2.5 + alone[list(dropped)].sum() + sum(together[pair] for pair in itertools.combinations(dropped, 2))
        study.add_trial(
            optuna.trial.create_trial(
                values=[math.exp(loss), NUM_FLAGS - len(dropped)],
                params={name: int(part not in dropped) for part, name in enumerate(flags)},
                distributions=distributions,
            )
        )
    study.sampler = SubsetSampler(flags, max_dropped=max_dropped, seed=0)
    milliseconds = []
    for _ in range(asks + 1):
        began = time.perf_counter()
        trial = study.ask(fixed_distributions=distributions)
        milliseconds.append(1000 * (time.perf_counter() - began))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    later = milliseconds[1:]
    return {"first_ms": milliseconds[0], "median": statistics.median(later), "max": max(later), "asks": asks}


def show(terminal: Terminal, fields: dict[str, Any]) -> None:
    """Print a table for each landscape, and what asks take."""
    for name, strategies in fields["regret_per_cent"].items():
        details = fields["regret_details"][name]
        rows = []
        for strategy, summary in strategies.items():
            runs = details["runs"][strategy]
            cells = [show_cell(summary.get(str(budget))) for budget in BUDGETS]
            evaluations = statistics.fmean(run["evaluations"] for run in runs)
            rows.append([STRATEGIES[strategy].title, *cells, f"{evaluations:.0f}", f"{len(runs)}"])
        ms = fields["subset_ask_ms"][name]
        columns = ["regret in per cent after", *(f"{budget}" for budget in BUDGETS), "evaluations made", "runs"]
        terminal.show_table(columns, rows, title=f"{name}, {details['sets']:,} sets: mean ± sd over random seeds")
        terminal.say(f"An ask of Seed's sampler: {ms['median']:.1f} ms, at most {ms['max']:.0f} ms\n")
    for name, ms in fields.items():
        if name.startswith("subset_ask_ms_"):
            told = name.removeprefix("subset_ask_ms_").replace("_", " ")
            terminal.say(
                f"An ask in a study of {told} (trials x flags, how many may go): {ms['median']:.0f} ms, at most "
                f"{ms['max']:.0f} ms; {ms['first_ms']:.0f} ms the first time"
            )


def show_cell(summary: dict[str, float | None] | None) -> str:
    """``0.12 ± 0.03``; no deviation where there was one run."""
    if summary is None:
        return "-"
    return f"{summary['mean']:.2f}" + ("" if summary["sd"] is None else f" ± {summary['sd']:.2f}")
