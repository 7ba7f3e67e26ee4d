"""What a search added: simpler ways to choose, played on its own scores.

A baseline reads what the search remembers and is charged as if it had measured by itself. One-shot ranking is scored where
it has to be, unless that were more work than the search's own; greedy removal goes as far as the search's scores tell.
"""

import math
from collections.abc import Callable, Sequence

from seed.evidence import Baseline, BaselinePick, SearchGain
from seed.optimize.space import contains, enumerate_candidates
from seed.optimize.strategies import STRATEGIES, BudgetSpent, run_strategy
from seed.plans import SearchPlan
from seed.proxy.layer_tokens import BudgetedScorer
from seed.proxy.sweep import Sweep
from seed.records import Candidate, SearchSpace, TrialRecord
from seed.sessions import Session

BASELINES = ("perplexity", "greedy_recovered")  # greedy removal without recovery stands in where there is none


class Remembered:
    """Scores with recovery come from memory only; of those without, at most so many are made."""

    def __init__(self, sweep: Sweep, *, most_unrecovered: float) -> None:
        self.sweep = sweep
        self.most_unrecovered = most_unrecovered
        self._unrecovered: set[Candidate] = set()

    def check(self, candidates: Sequence[Candidate], proxy: str) -> None:
        """Let pass what can be told.

        Raises:
            BudgetSpent: a score with recovery is not known, or those without are too many.
        """
        if proxy == "none":
            self._unrecovered.update(candidates)
            can_tell = len(self._unrecovered) <= self.most_unrecovered
        else:
            can_tell = all(self.sweep.is_known(candidate, proxy) for candidate in candidates)
        if not can_tell:
            raise BudgetSpent


def compare_baselines(
    session: Session,
    sweep: Sweep,
    space: SearchSpace,
    trials: Sequence[TrialRecord],
    *,
    plan: SearchPlan,
    solver: str,
    on_baseline: Callable[[str], None],
) -> SearchGain:
    """Play the baselines, and compare their picks with the search's best of each depth."""
    proxy = session.protocol.proxy
    scored = [trial.evaluation.candidate for trial in trials if contains(space, trial.evaluation.candidate)]
    whole = [one for one in scored if one.num_dropped % 1 == 0]  # as picks are: as much is gone of all of a depth
    losses = {one: sweep.known(one)[proxy].loss for one in whole if sweep.is_known(one, proxy)}
    best: dict[float, Candidate] = {}
    for candidate in sorted((one for one, loss in losses.items() if math.isfinite(loss)), key=lambda one: losses[one]):
        best.setdefault(candidate.num_dropped, candidate)
    remembered = Remembered(sweep, most_unrecovered=math.inf if plan.covers_space else plan.trials)
    played = []
    names = BASELINES if session.gains is not None else ("perplexity", "greedy")
    for strategy in (STRATEGIES[name] for name in names if STRATEGIES[name].plays_in(space)):
        scorer = BudgetedScorer(sweep, check=remembered.check)
        picks = run_strategy(strategy, scorer, space, proxy=session.recovered_proxy, rng_seed=0)
        played.append(
            Baseline(
                strategy=strategy.name,
                title=strategy.title,
                cost=scorer.spent,
                num_scores=scorer.num_scores,
                picks=tuple(
                    compare_pick(sweep, pick, best[count], proxy=proxy)
                    for count, pick in picks.items()
                    if count in best
                ),
                is_whole=max(picks, default=0) == space.max_dropped,
            )
        )
        on_baseline(strategy.title)
    cost, num_scores = price_search(session, sweep, space, scored)
    return SearchGain(proxy=proxy, solver=solver, cost=cost, num_scores=num_scores, baselines=tuple(played))


def compare_pick(sweep: Sweep, pick: Candidate, best: Candidate, *, proxy: str) -> BaselinePick:
    """A baseline's pick beside the search's; it is scored where that costs no training."""
    if pick == best:
        return BaselinePick(candidate=pick, best=best, ppl_ratio=1.0, standard_error=0.0)
    if proxy == "closed-form":
        sweep.measure(pick)
    quality = sweep.compare(pick, best, proxy=proxy) if sweep.is_known(pick, proxy) else None
    if quality is None or not math.isfinite(quality.ppl_ratio):
        return BaselinePick(candidate=pick, best=best, ppl_ratio=None, standard_error=None)
    return BaselinePick(
        candidate=pick, best=best, ppl_ratio=quality.ppl_ratio, standard_error=quality.ppl_ratio_standard_error
    )


def price_search(session: Session, sweep: Sweep, space: SearchSpace, scored: Sequence[Candidate]) -> tuple[float, int]:
    """Layer-tokens that the search's scores cost, and how many they are: a sweep as one batch, trials one by one."""
    scorer, cheaper, proxy = BudgetedScorer(sweep), session.recovered_proxy, session.protocol.proxy
    batches = [[candidate] for candidate in scored]
    if space.size <= len(sweep.rows) and all(sweep.is_known(one, cheaper) for one in enumerate_candidates(space)):
        batches = [list(enumerate_candidates(space))]
    for batch in batches:
        if sweep.is_known(batch[0], cheaper):
            scorer.score(batch, proxy=cheaper)
    cost = scorer.spent
    for candidate in scored if proxy == "short-distillation" else []:
        if sweep.is_known(candidate, proxy):
            tokens = session.protocol.short_steps * session.protocol.step_tokens
            num_kept = len(scorer.anatomy.spell(candidate).kept_layers)
            cost += scorer.unit * scorer.prices.distill(num_kept, tokens=tokens)
            if cheaper != "none":  # the candidate is scored as it stands first
                cost += scorer.unit * scorer.price([candidate], proxy="none")
    return cost, scorer.num_scores
