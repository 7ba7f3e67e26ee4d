"""Records of what a searched study found: what a report shows beside the trials and models themselves.

Frozen like all records. PPL ratios are to the dense model unless said otherwise.
"""

import msgspec

from seed.plans import Environment, SearchPlan
from seed.records import Candidate, DenseResult, DistillResult, Estimate, Frontier, Record, SearchSpace, TrialRecord


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

    rung: str
    concordant: int
    discordant: int
    verdict: str  # a sentence for people

    @property
    def kendall_tau(self) -> float | None:
        """(concordant - discordant) / pairs; None without pairs."""
        pairs = self.concordant + self.discordant
        return (self.concordant - self.discordant) / pairs if pairs else None


class RivalPick(Record, frozen=True, kw_only=True):
    """What a rival would have dropped, beside the search's best candidate of the same depth, on validation text."""

    candidate: Candidate
    best: Candidate  # the search's
    ppl_ratio: (
        float | None
    )  # PPL of the rival's pick over that of the search's; None: not scored at the frontier's rung
    standard_error: float | None


class Rival(Record, frozen=True, kw_only=True):
    """A simpler way to choose, played on the study's own scores. ``cost`` is what it would have paid by itself."""

    strategy: str
    title: str
    cost: float  # layer-tokens
    num_scores: int
    picks: tuple[RivalPick, ...]
    is_whole: bool  # False: it needs scores that the search did not make, and stopped there


class SearchGain(Record, frozen=True, kw_only=True):
    """What a search added over simpler ways to choose, and what it cost."""

    rung: str
    solver: str  # how candidates were chosen, in a few words
    cost: float  # layer-tokens: one layer applied to one token
    num_scores: int
    rivals: tuple[Rival, ...]


class Sensitivity(Record, frozen=True, kw_only=True):
    """What each layer and each pair of layers costs, by one rung, on validation text. ``None``: not scored."""

    rung: str
    base: float | None  # PPL ratio before any of them goes: 1, unless the search went on from a recovered model
    singles: tuple[float | None, ...]  # PPL ratio without this layer alone, of shape (num_layers,)
    pairs: tuple[tuple[int, int, float], ...]  # two layers, the lower first, and the PPL ratio without both


class Progress(Record, frozen=True, kw_only=True):
    """How the hypervolume of the frontier grew: the area of (PPL ratio, latency ratio) that scored candidates dominate."""

    reference: tuple[float, float]  # PPL ratio and latency ratio of the corner that the area is measured from
    num_trials: int
    steps: tuple[tuple[int, float], ...]  # trial number and hypervolume, where it grew


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
    gain: SearchGain | None = None  # studies of earlier versions have none
    baselines: tuple[DistillResult, ...] = ()  # of uniform width
    replications: dict[str, Replication] = msgspec.field(
        default_factory=dict
    )  # by key, of models that were distilled more than once
    equivalences: tuple[Equivalence, ...] = ()  # of those, within a depth
    sensitivities: tuple[Sensitivity, ...] = ()  # those without recovery first
    progress: Progress | None = None
    is_running: bool = False  # the search goes on, and all this may change
