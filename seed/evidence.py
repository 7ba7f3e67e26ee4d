"""Records of what a search found beside its trials and models, and of what was measured about searching itself. Losses are nats per token."""

from typing import Annotated

import msgspec

from seed.plans import Environment, SearchPlan
from seed.records import (
    Candidate,
    CurvePoint,
    DenseResult,
    DistillResult,
    Estimate,
    Frontier,
    PackedByKey,
    Record,
    SearchSpace,
    TaskScore,
    TrialRecord,
    WidthCut,
)


class Replication(Record, frozen=True, kw_only=True):
    """What several distillations of a model reached together, on test text."""

    rng_seeds: tuple[int, ...]
    ppl_ratio: Estimate  # mean over replicas, with its 95 % interval as documents and distillations vary
    spread: float | None  # standard deviation of the replicas' PPL ratios


class Equivalence(Record, frozen=True, kw_only=True):
    """Two models of one depth beside each other: are they the same but for a margin?"""

    one: str  # key of the model
    other: str
    excess: Estimate  # PPL of ``one`` over that of ``other``, less 1, with its 95 % interval
    verdict: str  # "equivalent", "lower", "higher" or "cannot tell"


class Agreement(Record, frozen=True, kw_only=True):
    """Does the proxy order candidates as full distillation does? Counted within structures, never pooled across."""

    proxy: str
    concordant: int
    discordant: int
    verdict: str  # a sentence for people

    @property
    def kendall_tau(self) -> float | None:
        """(concordant - discordant) / pairs; None without pairs."""
        pairs = self.concordant + self.discordant
        return (self.concordant - self.discordant) / pairs if pairs else None


class BaselinePick(Record, frozen=True, kw_only=True):
    """What a baseline would have dropped, beside the search's best candidate of the same depth, on validation text."""

    candidate: Candidate
    best: Candidate  # the search's
    ppl_ratio: (
        float | None
    )  # PPL of the baseline's pick over that of the search's; None: not scored by the frontier's proxy
    standard_error: float | None


class Baseline(Record, frozen=True, kw_only=True):
    """A simpler way to choose, played on the study's own scores. ``cost`` is what it would have paid by itself."""

    strategy: str
    title: str
    cost: float  # layer-tokens
    num_scores: int
    picks: tuple[BaselinePick, ...]
    is_whole: bool  # False: it needs scores that the search did not make, and stopped there


class SearchGain(Record, frozen=True, kw_only=True):
    """What a search added over simpler ways to choose, and what it cost."""

    proxy: str
    solver: str  # how candidates were chosen, in a few words
    cost: float  # layer-tokens: one layer applied to one token
    num_scores: int
    baselines: tuple[Baseline, ...]


class Sensitivity(Record, frozen=True, kw_only=True):
    """What each layer costs, by one proxy, on validation text. ``None``: not scored."""

    proxy: str
    singles: tuple[float | None, ...]  # PPL ratio without this layer alone, of shape (num_layers,)


class StudyRecord(Record, frozen=True, kw_only=True):
    """All that a report shows, gathered from a study's folder."""

    plan: SearchPlan
    environment: Environment
    space: SearchSpace
    dense: DenseResult
    trials: tuple[TrialRecord, ...]
    frontier: Frontier
    distilled: tuple[DistillResult, ...]
    agreement: Agreement
    gain: SearchGain | None = None  # None: the search goes on
    width_baselines: tuple[DistillResult, ...] = ()  # of uniform width
    replications: dict[str, Replication] = msgspec.field(default_factory=dict)  # by key, of several distillations
    equivalences: tuple[Equivalence, ...] = ()  # of those, within a depth
    sensitivities: tuple[Sensitivity, ...] = ()  # those without recovery first
    is_running: bool = False  # the search goes on, and all this may change
    packed: PackedByKey = msgspec.field(default_factory=dict)  # with weights of fewer bits
    tasks: dict[str, tuple[TaskScore, ...]] = msgspec.field(default_factory=dict)  # by key
    floors: dict[str, float] = msgspec.field(default_factory=dict)  # of tasks: see TaskRecord


WIDTH = "uniform_width"  # beside strategies: all layers kept, each cut evenly to the size of a depth


class FinalScore(Record, frozen=True, kw_only=True):
    """One full distillation of a candidate in a fidelity study, judged with the best weights it reached."""

    rng_seed: int
    validation_loss: float
    test_loss: float
    best_step: int
    seconds: float


class FidelityRow(Record, frozen=True, kw_only=True):
    """One candidate of a fidelity study: its score by every proxy (validation text), and what distillation made of it."""

    candidate: Candidate
    near_best: bool  # within the stated margin of its depth's best by closed form, or spread over the rest
    losses: dict[str, float]  # by proxy, nats per token
    seconds: dict[str, float]  # by proxy
    finals: tuple[FinalScore, ...]


class FidelityStudy(Record, frozen=True, kw_only=True):
    """Does the cheap score order candidates as full distillation does? The raw numbers."""

    study: str
    model: str
    dense_validation_loss: float
    dense_test_loss: float
    near_margin: float  # PPL ratios up to (1 + this) times the depth's best count as near
    settings: dict[str, str | int | float]  # of the finals and of short distillation, as they were run
    rows: tuple[FidelityRow, ...]


class ProxyFidelity(Record, frozen=True, kw_only=True):
    """How one proxy orders the candidates of one depth, and what it costs.

    For ``full-distillation`` it says how a final orders them as judged by the final of another ``rng_seed``.
    """

    proxy: str
    tau: Estimate  # Kendall's tau-b with the final test loss, averaged over the finals' rng_seeds
    near_tau: Estimate  # the same among the candidates near the depth's best
    top1_regret: float | None  # PPL of the proxy's pick after distillation / best distilled PPL - 1
    recovery: float | None  # median share of the damage to the validation loss that is undone
    seconds: float | None  # median for one candidate


class ProxyDifference(Record, frozen=True, kw_only=True):
    """Kendall's tau of ``one`` minus that of ``other`` on the same candidates of one depth."""

    num_dropped: int | float
    one: str
    other: str
    tau: Estimate  # interval from the same resamples for both

    @property
    def favours(self) -> str | None:
        """The proxy that orders better; None when the interval holds zero or there is none."""
        if self.tau.low is None or self.tau.high is None:
            return None
        return self.one if self.tau.low > 0 else self.other if self.tau.high < 0 else None


class DepthFidelity(Record, frozen=True, kw_only=True):
    """What a fidelity study says about the candidates with ``num_dropped`` layers gone."""

    num_dropped: int | float
    num_candidates: int
    num_near: int
    num_left_out: int  # rows that lack a proxy or a final which others of their depth have
    num_rng_seeds: int  # finals of each candidate
    proxies: tuple[ProxyFidelity, ...]
    ceiling: ProxyFidelity  # of "full-distillation"
    differences: tuple[ProxyDifference, ...]  # of each pair of proxies


class FidelitySummary(Record, frozen=True, kw_only=True):
    """The statistics of a fidelity study, within each depth and never pooled over depths."""

    bootstrap_draws: int
    depths: tuple[DepthFidelity, ...]


class StrategyRun(Record, frozen=True, kw_only=True):
    """What one strategy chose within its budget, and what that cost."""

    strategy: str
    rng_seed: int | None  # None: nothing in it is random
    cost: float  # layer-tokens: one layer applied to one token
    num_scores: int  # candidates that it scored on all validation text
    picks: tuple[Candidate, ...]  # at most one of each depth, fewest dropped first; none: it drops no layers


class ComparedFinal(Record, frozen=True, kw_only=True):
    """One full distillation of a pick, judged with the best weights it reached.

    With ``width`` it is of all layers cut to that width, as many parameters as ``like_dropped`` dropped layers leave.
    """

    candidate: Candidate
    width: WidthCut | None = None
    like_dropped: int | float | None = None
    rng_seed: int
    validation_loss: float | None
    test_sums: list[float | None]  # summed losses of each document of the test text; None: not a number, as above
    seconds: float


class Comparison(Record, frozen=True, kw_only=True):
    """Strategies at equal cost on one model: what each chose, and what distillation made of it. The raw numbers."""

    study: str
    model: str
    proxy: str  # of scores with recovery
    budget: float  # layer-tokens that each strategy may spend; one that needs less spends less
    num_candidates: int  # of the space
    dense_test_sums: list[float]
    test_counts: list[int]  # scored tokens of each document of the test text
    settings: dict[str, str | int | float]
    runs: tuple[StrategyRun, ...]
    finals: tuple[ComparedFinal, ...]


class Reached(Record, frozen=True, kw_only=True):
    """What a strategy's picks of one depth reached, beside those of the strategy that all are compared with."""

    strategy: str
    num_dropped: int | float
    picks: tuple[Candidate, ...]  # one of each run that chose something of this depth; none: it drops no layers
    num_runs: int
    num_without: int  # runs that chose nothing of this depth
    cost: float  # mean of the runs, layer-tokens
    ppl_ratio: Estimate  # to the dense model, on test text
    excess: Estimate  # PPL divided by that of the reference's picks, less 1; same documents, same random seeds


class ComparisonSummary(Record, frozen=True, kw_only=True):
    """The statistics of a comparison, depth by depth; within one, best first."""

    reference: str
    rows: tuple[Reached, ...]


class TrainedRun(Record, frozen=True, kw_only=True):
    """One recovery of one model, judged with the best weights it reached, as it would be exported."""

    key: str  # of the model: which layers are gone, or which width all have
    num_dropped: int | float
    num_params: int
    recovery: str
    tokens: int  # recovery tokens, those of earlier stages included
    learning_rate: float
    rng_seed: int
    start: str  # "none", "closed-form"
    stages: tuple[str, ...] = ()  # keys of the models of earlier stages
    curve: tuple[CurvePoint, ...]
    validation_loss: float | None
    test_sums: list[float | None]  # summed losses of each document of the test text; None: not a number
    seconds: float  # of training, looks at validation text included


class Ledger(Record, frozen=True, kw_only=True):
    """What was trained for a question about one model, and the dense model on the same text. The raw numbers."""

    study: str
    model: str
    settings: dict[str, str | int | float]
    dense_num_params: int
    dense_test_sums: list[float]
    test_counts: list[int]  # scored tokens of each document of the test text
    runs: tuple[TrainedRun, ...] = ()


class RecoveryComparison(Record, frozen=True, kw_only=True):
    """Ways to recover the same models, at equal tokens and at equal time. ``tokens``: of each model by each recovery."""

    ledger: Ledger
    reference: str  # the recovery whose time at equal tokens the others get
    equal_tokens: int
    equal_time: dict[str, dict[str, int]]  # model -> recovery -> tokens that take as long as the reference's

    @property
    def settings(self) -> dict[str, str | int | float]:
        """What decides its numbers."""
        return self.ledger.settings


class RecoveredRow(Record, frozen=True, kw_only=True):
    """What one recovery reached on one model."""

    key: str
    num_dropped: int | float
    recovery: str
    at: str  # "equal tokens" or "equal time"
    tokens: int
    seconds: float  # mean of the runs
    ppl_ratio: Estimate  # to the dense model, on test text
    excess: Estimate  # PPL over that of the reference recovery, less 1; same documents, same random seeds
    verdict: str  # of stats.judge_difference


class StageRecord(Record, frozen=True, kw_only=True):
    """One stage of a staged search, or the search at once that it is compared with."""

    # of its study's folder, below the search's
    name: Annotated[str, msgspec.Meta(pattern=r"^(stage-[0-9]{1,4}|one-shot)$")]
    result: DistillResult  # what goes on, or is the end
    tokens: int  # recovery tokens in all, earlier stages included
    replication: Replication | None = None  # where it was distilled more than once


class StagedSearch(Record, frozen=True, kw_only=True):
    """Removal in stages with recovery between, beside removal at once for the same tokens."""

    study: str
    model: str
    stopped_because: str | None  # where a target ended it
    dense: DenseResult
    stages: tuple[StageRecord, ...]
    one_shot: StageRecord | None
    excess: Estimate  # PPL in stages over at once, less 1
    verdict: str  # of stats.judge_difference
    command: str
