"""The records that the stages hand to one another and write into the study's folder.

Frozen and keyword-only; to change one is to make another (``msgspec.structs.replace``). ``None``
means absent. Losses are nats per token; sizes are bytes; latencies are milliseconds. Layers are
always named by their index in the original model.
"""

import hashlib
import itertools
import math
import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

MAX_LAYERS = 10_000  # ten times as many as the deepest model has; ranges over more would cost memory
MAX_WIDTH = 2**31  # likewise for widths
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")  # OWNER/NAME
MARGIN = 0.005  # of perplexity: what nobody would choose a model for


Edge = tuple[int, int]  # a kept layer, and the next one that is kept
KINDS = ("attn", "mlp")  # of the parts of a layer, in the order in which they run
KIND_WORDS = {"attn": "attention", "mlp": "MLP"}
DENSE = "dense"  # the key of the candidate that has all layers
GGML_TYPES = {8: "Q8_0", 5: "Q5_0", 4: "Q4_0"}  # by bits of a weight, as llama.cpp names them
PART = re.compile(r"(0|[1-9][0-9]{0,4})(?:\.(attn|mlp))?")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record: immutable, compared by value, written as JSON."""


class Candidate(Record, frozen=True, kw_only=True):
    """The parts that go of a model with ``num_layers`` layers: ``4`` is a whole layer, ``4.attn`` its attention, ``4.mlp`` its MLP."""

    num_layers: int
    parts: tuple[str, ...]  # in the model's order

    def __post_init__(self) -> None:
        found = [PART.fullmatch(part) for part in self.parts]
        if not all(found):
            raise ValueError(
                f"parts = {', '.join(self.parts)}; wanted layers, such as 4, or parts of them: 4.attn, 4.mlp"
            )
        check_layers([split_part(part)[0] for part in self.parts], num_layers=self.num_layers, name="parts")

    @classmethod
    def keep(cls, *, num_layers: int, kept_layers: Sequence[int]) -> "Candidate":
        """The candidate of these whole layers.

        Raises:
            ValueError: they are no layers of such a model, in order, each once.
        """
        check_layers(kept_layers, num_layers=num_layers, name="kept_layers")
        kept = set(kept_layers)
        return cls(num_layers=num_layers, parts=tuple(str(layer) for layer in range(num_layers) if layer not in kept))

    @classmethod
    def drop(cls, num_layers: int, parts: Iterable[str]) -> "Candidate":
        """The candidate without these parts, in any order: a layer without attention and MLP is gone.

        Raises:
            ValueError: they are no parts of such a model.
        """
        gone: dict[int, set[str | None]] = defaultdict(set)
        for layer, kind in map(split_part, parts):
            gone[layer].add(kind)
        is_whole = {layer: None in kinds or len(kinds) == len(KINDS) for layer, kinds in gone.items()}
        named = [str(layer) if is_whole[layer] else f"{layer}.{next(iter(gone[layer]))}" for layer in sorted(gone)]
        return cls(num_layers=num_layers, parts=tuple(named))

    @property
    def dropped_layers(self) -> tuple[int, ...]:
        """The layers of which nothing is left, in order."""
        return tuple(layer for layer, kind in map(split_part, self.parts) if kind is None)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers of which something is left, in order."""
        dropped = set(self.dropped_layers)
        return tuple(layer for layer in range(self.num_layers) if layer not in dropped)

    @property
    def lacking(self) -> dict[int, str]:
        """What kept layers lack: ``attn`` or ``mlp``."""
        return {layer: kind for layer, kind in map(split_part, self.parts) if kind is not None}

    @property
    def sublayers(self) -> "Candidate":
        """The same of a model whose layers are this one's attention and MLP in turn: 8 and 9 are those of layer 4."""
        gone = [
            2 * layer + at
            for layer, kind in map(split_part, self.parts)
            for at, own in enumerate(KINDS)
            if kind in (None, own)
        ]
        return Candidate(num_layers=2 * self.num_layers, parts=tuple(map(str, gone)))

    def count_kept(self) -> tuple[int, int]:
        """How many attentions are left, and how many MLPs."""
        whole, lacking = len(self.kept_layers), list(self.lacking.values())
        return whole - lacking.count("attn"), whole - lacking.count("mlp")

    @property
    def num_dropped(self) -> float:
        """How many layers are gone; attention and MLP count as half a layer each."""
        return len(self.dropped_layers) + (len(self.lacking) / 2 if len(self.lacking) % 2 else len(self.lacking) // 2)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Each kept layer with the next one, the last with the end."""
        kept = self.kept_layers
        return tuple(zip(kept, (*kept[1:], self.num_layers), strict=True))

    @property
    def key(self) -> str:
        """A name fit for folders: ``dense``, ``drop-4-11``; long lists end in a hash."""
        if not self.parts:
            return DENSE
        name = f"drop-{'-'.join(self.parts)}"
        return name if len(name) <= 64 else f"drop-{len(self.parts)}-{hash_text(name)[:12]}"


class WidthCut(Record, frozen=True, kw_only=True):
    """All ``num_layers`` layers of a model, each with fewer MLP neurons and attention heads: the baseline of a candidate."""

    num_layers: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int

    def __post_init__(self) -> None:
        if not all(1 <= width <= MAX_WIDTH for width in (self.mlp_width, self.num_heads, self.num_kv_heads)):
            raise ValueError(f"{self.key}: wanted widths from 1 to {MAX_WIDTH:,}")

    @property
    def key(self) -> str:
        """A name fit for folders: ``width-304-3``, or ``width-304-12-4`` where heads share keys and values."""
        name = f"width-{self.mlp_width}-{self.num_heads}"
        return name if self.num_kv_heads == self.num_heads else f"{name}-{self.num_kv_heads}"


class Estimate(Record, frozen=True, kw_only=True):
    """A statistic with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class SearchSpace(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Which layers may go, and how many of them. Layers that are gone already are never droppable, but they count.

    Without any, it is written as before there were such spaces, so that studies planned then go on.
    """

    num_layers: int
    droppable_layers: tuple[int, ...]
    min_dropped: int  # gone layers included, as in max_dropped
    max_dropped: int
    gone_layers: tuple[int, ...] = ()  # every candidate lacks them
    kinds: tuple[str, ...] = ()  # of parts of layers that go alone; none: layers go whole

    def __post_init__(self) -> None:
        check_layers(self.droppable_layers, num_layers=self.num_layers, name="droppable_layers")
        check_layers(self.gone_layers, num_layers=self.num_layers, name="gone_layers")
        if set(self.droppable_layers) & set(self.gone_layers):
            raise ValueError("droppable_layers and gone_layers name the same layer; wanted each in one of them")
        if not all(0 <= bound <= self.num_layers for bound in (self.min_dropped, self.max_dropped)):
            raise ValueError(f"bounds {self.min_dropped} and {self.max_dropped}; wanted 0 to {self.num_layers}")
        if self.kinds not in ((), ("attn",), ("mlp",), KINDS) or (self.kinds and self.gone_layers):
            raise ValueError(f"kinds = {', '.join(self.kinds)}; wanted attn, mlp or both, and no layer gone before")

    @property
    def more_dropped(self) -> range:
        """How many of the droppable parts a candidate may lack; attention and MLP are half a layer each."""
        least, most = self.min_dropped - len(self.gone_layers), self.max_dropped - len(self.gone_layers)
        if not self.kinds:
            return range(least, most + 1)
        return range(2 * least if least > 1 else least, min(2 * most, len(self.kinds) * len(self.droppable_layers)) + 1)

    @property
    def size(self) -> int:
        """How many candidates there are."""
        num_parts = len(self.droppable_layers) * max(1, len(self.kinds))
        return sum(math.comb(num_parts, count) for count in self.more_dropped)


class Quality(Record, frozen=True, kw_only=True):
    """How well a model predicts one stream, beside the dense model on the same tokens.

    Standard errors are clustered by document; those of ratios come from paired differences.
    """

    loss: float
    perplexity: float
    standard_error: float  # of the loss
    tokens: int
    documents: int
    effective_documents: float  # of one length, that tell as much
    ppl_ratio: float
    ppl_ratio_standard_error: float
    kl_divergence: float | None = None  # KL(dense || this), nats per token
    top1_agreement: float | None = None  # share of tokens whose most likely next token is the dense model's
    acceptance: float | None = None  # share of its draws that the dense model would accept, at temperature 1
    document_losses_path: str | None = None  # FILE#PROXY/KEY: the score of the study's that holds them


class TaskScore(Record, frozen=True, kw_only=True):
    """One metric of one task on a model, and on the dense model where that ran it too."""

    task: str
    metric: str
    num_fewshot: int | None  # examples before each question; None: tasks of a group differ
    documents: int
    higher_is_better: bool | None  # None: not known
    value: float
    standard_error: float | None  # None, here and below: not known
    dense_value: float | None = None
    dense_standard_error: float | None = None
    difference: float | None = None  # value less dense_value
    difference_standard_error: float | None = None  # paired by document


class MetricScore(Record, frozen=True, kw_only=True):
    """One metric of one task on one model, with each document's share where the metric is their mean."""

    score: TaskScore
    by_document: tuple[float, ...] | None


class TaskRun(Record, frozen=True, kw_only=True):
    """What a name that lm-eval knows, of a task or of several, gave on one checkpoint."""

    name: str
    limit: int | None  # documents of each task; None: all
    files_sha256: str | None  # of the user's own task files; None: there were none
    provenance_sha256: str | None  # of the checkpoint; None: the dense model
    scores: tuple[MetricScore, ...]


class TaskRecord(Record, frozen=True, kw_only=True):
    """Tasks on the dense model and the final ones."""

    floors: dict[str, float]  # by task: the share of the dense model's score that a model must keep to be recommended
    runs: dict[str, tuple[TaskRun, ...]]  # by the model's key


class ScoreRow(Record, frozen=True, kw_only=True):
    """A score by document. The first of a study is the dense model's, with the tokens counted."""

    key: str
    proxy: str
    sums: list[float | None]  # summed losses of each document, nats; None throughout where one is no number
    counts: list[int] | None = None  # scored tokens of each document
    seconds: float | None = None


class Latency(Record, frozen=True, kw_only=True):
    """Time of one workload, measured in turn with the dense model; ``ratio`` is to that. Of no repeats: predicted from other structures."""

    structure: str
    workload: str
    device: str
    repeats: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    dense_median_ms: float
    ratio: float
    ratio_low: float | None  # 95 % interval of the ratio; None: too few pairs for one
    ratio_high: float | None
    disturbance: str | None = None  # what else the machine did meanwhile, in words; None: nothing that was noticed


class DraftTiming(Record, frozen=True, kw_only=True):
    """Greedy decoding of the dense model with a draft, measured in turn with the dense model alone."""

    tokens_ahead: int  # drafted at a time
    new_tokens: int  # of each prompt
    prompts: int
    same: int  # prompts after which both wrote the same tokens; rounding may part them
    speedup: Estimate


class Size(Record, frozen=True, kw_only=True):
    """What a model weighs, in the type that its checkpoint stores."""

    num_params: int
    weight_bytes: int
    kv_bytes_per_token: int


class Packed(Record, frozen=True, kw_only=True):
    """A model whose weights are stored in fewer bits, beside the dense model as it is, on test text."""

    bits: int  # of a weight, scales of blocks left out
    weight_bytes: int  # scales and what is not packed included
    quality: Quality
    provenance_sha256: str | None  # of the checkpoint that was packed; None: the dense model


PackedByKey = dict[str, tuple[Packed, ...]]  # by the model's


class Evaluation(Record, frozen=True, kw_only=True):
    """Everything measured on one candidate in one trial. ``qualities`` is by proxy."""

    candidate: Candidate
    qualities: dict[str, Quality]
    latency: Latency
    size: Size
    seconds: float
    skipped_because: str | None = None

    def has_value(self, proxy: str) -> bool:
        """Was the candidate not skipped at a proxy, and is its loss a finite number?"""
        is_finite = proxy in self.qualities and math.isfinite(self.qualities[proxy].ppl_ratio)
        return is_finite and not self.skipped_because

    def explain_failure(self, proxy: str) -> str | None:
        """Why there is no value at a proxy for which the candidate was not skipped; None: there is one."""
        if self.skipped_because or self.has_value(proxy):
            return None
        return f"the loss of this set ({proxy}) is not a finite number"


class TrialRecord(Record, frozen=True, kw_only=True):
    """A trial of the study as others see it."""

    number: int
    state: str  # "COMPLETE", "PRUNED", "FAIL" or "RUNNING"
    evaluation: Evaluation


class Scored(Record, frozen=True, kw_only=True):
    """What an evaluator makes of one candidate: its evaluation, or why there can be none, and its scores by document."""

    candidate: Candidate
    evaluation: Evaluation | None
    failure: str | None = None
    rows: tuple[ScoreRow, ...] = ()


class FrontierMember(Record, frozen=True, kw_only=True):
    """A candidate worth distilling. ``rank`` counts from 0, the best, within its structure."""

    trial_number: int
    evaluation: Evaluation
    rank: int
    probability_best: float  # of its structure, by bootstrap over validation documents
    tied_with: tuple[str, ...]  # keys of its structure; the 95 % interval of the paired difference holds zero


class Frontier(Record, frozen=True, kw_only=True):
    """The nondominated candidates, one per structure, and their runners-up, least dropped first."""

    proxy: str
    members: tuple[FrontierMember, ...]
    num_scored: int
    space: SearchSpace  # as limits on latency and memory bound it


class CurvePoint(Record, frozen=True, kw_only=True):
    """One look at a distillation in progress. ``kl_divergence`` is the mean since the last look."""

    step: int
    tokens: int
    validation_loss: float
    kl_divergence: float | None


class Replica(Record, frozen=True, kw_only=True):
    """One of several distillations of a model, under a random seed of its own, judged as it would be exported."""

    rng_seed: int
    validation_loss: float | None  # None: not a number, which JSON does not know
    test_sums: list[float | None]  # summed test losses of each document, nats
    best_step: int
    seconds: float


class DistillResult(Record, frozen=True, kw_only=True):
    """A finished distillation of one candidate, judged on the exported checkpoint.

    With ``width`` it is a baseline: all layers kept, and each cut to that width. Of several replicas the first is
    exported, and ``validation`` and ``test`` are its own.
    """

    candidate: Candidate
    width: WidthCut | None = None
    trial_number: int | None
    settings: dict[str, str | int | float]
    curve: tuple[CurvePoint, ...]
    start: str  # the start that measured better: "none" or "closed-form"
    best_step: int
    validation: Quality
    test: Quality
    test_unrecovered: Quality
    latency: Latency
    size: Size
    seconds: float
    user_score: float | None = None  # what --eval-command printed
    user_command: str | None = None
    replicas: tuple[Replica, ...] = ()  # the exported one first
    # of the model's seed.json, which holds those of its other files; None: it is not written yet
    provenance_sha256: str | None = None
    continuations: tuple[str, ...] = ()  # of the dense model's prompts, greedily

    @property
    def key(self) -> str:
        """A name fit for folders: of the width where it is cut, else of the layers that are gone."""
        return self.candidate.key if self.width is None else self.width.key


class DenseResult(Record, frozen=True, kw_only=True):
    """The original model, judged by the same protocol."""

    validation: Quality
    test: Quality | None  # None: while candidates are scored
    latency: Latency
    size: Size
    test_sums: list[float] = []  # summed test losses of each document, nats
    test_counts: list[int] = []  # scored tokens of each
    user_score: float | None = None
    user_command: str | None = None
    prompts: tuple[str, ...] = ()  # from validation text
    continuations: tuple[str, ...] = ()  # of each, greedily

    @property
    def judged(self) -> Quality:
        """On test text, which a search that has ended has read."""
        assert self.test is not None, "the search has ended"
        return self.test


def check_layers(layers: Sequence[int], *, num_layers: int, name: str) -> None:
    """Raise unless these are layers of such a model, in order, each once. Readers add the place and the cure.

    Raises:
        ValueError: what was found and wanted.
    """
    if not 1 <= num_layers <= MAX_LAYERS:
        raise ValueError(f"num_layers = {num_layers}; wanted 1 to {MAX_LAYERS:,}")
    if layers and not (
        layers[0] >= 0 and layers[-1] < num_layers and all(map(operator.lt, layers, itertools.islice(layers, 1, None)))
    ):
        shown = f"{', '.join(map(str, layers[:12]))}{', ...' if len(layers) > 12 else ''}"
        raise ValueError(f"{name} = {shown}; wanted layers from 0 to {num_layers - 1}, rising, each once")


def split_part(part: str) -> tuple[int, str | None]:
    """The layer and the kind of a part: ``4.attn`` is (4, "attn"), ``4`` is (4, None)."""
    layer, _, kind = part.partition(".")
    return int(layer), kind or None


def read_dropped(key: str) -> tuple[str, ...] | None:
    """Return the dropped parts that a candidate's key names; None where it names something else, or ends in a hash."""
    begin, _, rest = key.partition("-")
    parts = tuple(rest.split("-"))
    if begin != "drop" or not all(map(PART.fullmatch, parts)):
        return None
    layers = [split_part(part)[0] for part in parts]
    return parts if all(one < other for one, other in itertools.pairwise(layers)) else None


def find_runs(layers: Sequence[int]) -> list[list[int]]:
    """Return layers as runs of neighbours: 0, 2, 3, 4 as [0] and [2, 3, 4]."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def hash_text(text: str) -> str:
    """Return the sha256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
