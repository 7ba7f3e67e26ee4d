"""What a search added: simpler ways to choose, played on its own scores.

A rival reads what the search remembers and is charged as if it had measured by itself. One-shot ranking is scored where it
has to be, unless that were more work than the search's own; greedy removal goes as far as the search's scores tell.
"""

import math
from collections.abc import Callable, Sequence

from seed.evidence import Rival, RivalPick, SearchGain
from seed.optimize.space import contains, enumerate_candidates
from seed.optimize.strategies import STRATEGIES, BudgetSpent, run_strategy
from seed.plans import SearchPlan
from seed.proxy.layer_tokens import BudgetedScorer
from seed.proxy.sweep import Sweep
from seed.records import Candidate, SearchSpace, TrialRecord
from seed.sessions import Session
from seed.stages.budgets import short_settings

RIVALS = ("perplexity", "greedy_recovered")  # greedy removal without recovery stands in where there is none


class Remembered:
    """Scores with recovery come from memory only; of those without, as many are made as the search made."""

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
            if len(self._unrecovered) > self.most_unrecovered:
                raise BudgetSpent
        if proxy != "none" and not all(self.sweep.is_known(candidate, proxy) for candidate in candidates):
            raise BudgetSpent


def measure_gain(
    session: Session,
    sweep: Sweep,
    space: SearchSpace,
    trials: Sequence[TrialRecord],
    *,
    plan: SearchPlan,
    solver: str,
    on_rival: Callable[[str], None],
) -> SearchGain:
    """Play the rivals, and compare their picks with the search's best of each depth."""
    proxy = session.protocol.proxy
    scored = [trial.evaluation.candidate for trial in trials if contains(space, trial.evaluation.candidate)]
    best: dict[int, tuple[float, Candidate]] = {}
    for candidate in scored:
        quality = sweep.known(candidate).get(proxy)
        if quality is not None and math.isfinite(quality.loss):
            count = len(candidate.dropped_layers)
            best[count] = min(
                best.get(count, (math.inf, candidate)), (quality.loss, candidate), key=lambda pair: pair[0]
            )
    remembered = Remembered(sweep, most_unrecovered=math.inf if plan.covers_space else plan.trials)
    rivals = []
    for name in RIVALS if session.gains is not None else ("perplexity", "greedy"):
        strategy, account = STRATEGIES[name], BudgetedScorer(sweep, check=remembered.check)
        picks = run_strategy(strategy, account, space, proxy=session.recovered_rung, rng_seed=0)
        rivals.append(
            Rival(
                strategy=name,
                title=strategy.title,
                cost=account.spent,
                num_scores=account.num_scores,
                picks=tuple(
                    compare_pick(sweep, pick, best[count][1], proxy=proxy)
                    for count, pick in picks.items()
                    if count in best
                ),
                is_whole=max(picks, default=0) == space.max_dropped,
            )
        )
        on_rival(strategy.title)
    cost, num_scores = price_search(session, sweep, space, scored)
    return SearchGain(proxy=proxy, solver=solver, cost=cost, num_scores=num_scores, rivals=tuple(rivals))


def compare_pick(sweep: Sweep, pick: Candidate, best: Candidate, *, proxy: str) -> RivalPick:
    """A rival's pick beside the search's; it is scored where that costs no training."""
    if pick == best:
        return RivalPick(candidate=pick, best=best, ppl_ratio=1.0, standard_error=0.0)
    if proxy == "closed-form":
        sweep.measure(pick)
    elif proxy == "none":
        sweep.measure_unrecovered([pick])
    if not sweep.is_known(pick, proxy):
        return RivalPick(candidate=pick, best=best, ppl_ratio=None, standard_error=None)
    quality = sweep.compare(pick, best, proxy=proxy)
    if not math.isfinite(quality.ppl_ratio):
        return RivalPick(candidate=pick, best=best, ppl_ratio=None, standard_error=None)
    return RivalPick(
        candidate=pick, best=best, ppl_ratio=quality.ppl_ratio, standard_error=quality.ppl_ratio_standard_error
    )


def price_search(session: Session, sweep: Sweep, space: SearchSpace, scored: Sequence[Candidate]) -> tuple[float, int]:
    """Layer-tokens that the search's scores cost, and how many they are: a sweep as one batch, trials one by one."""
    account, cheaper = BudgetedScorer(sweep), session.recovered_rung
    batches = [[candidate] for candidate in scored]
    if space.size <= len(sweep.rows) and all(
        sweep.is_known(candidate, cheaper) for candidate in enumerate_candidates(space)
    ):
        batches = [list(enumerate_candidates(space))]
    for batch in batches:
        if sweep.is_known(batch[0], cheaper):
            account.score(batch, proxy=cheaper)
    cost = account.spent
    if session.protocol.proxy == "short-distillation":
        for candidate in scored:
            if sweep.is_known(candidate, session.protocol.proxy):
                settings = short_settings(session, candidate)
                tokens = settings.steps * session.batch_windows * session.protocol.window_tokens
                cost += account.prices.distill(len(candidate.kept_layers), tokens=tokens)
                if cheaper != "none":  # a look at the candidate as it stands comes first
                    cost += account.price([candidate], proxy="none")
    return cost, account.num_scores
