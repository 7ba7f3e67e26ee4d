"""What a study is to be, written down before its first trial: its text, its protocol, its plan, and where it is measured.

A protocol decides what a study's numbers mean; what else a plan has are budgets, which may change when a study goes on.
"""

from typing import Any

import msgspec

from seed.records import Record, SearchSpace, hash_text


class StreamRecord(Record, frozen=True, kw_only=True):
    """Where a stream came from and what exactly was in it.

    Streams are compared without their notes, which say how its text was read.
    """

    source: str
    tokens: int
    documents: int
    sha256: str
    notes: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamRecord) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[str, int, int, str]:
        return self.source, self.tokens, self.documents, self.sha256


class Protocol(Record, frozen=True, kw_only=True):
    """What decides the meaning of a study's numbers; a study never mixes two of these."""

    model: str  # as the user named it
    location: str  # "demo", a hub id, or an absolute directory
    revision: str | None
    commit: str | None
    weights_sha256: str | None  # of a local directory's weights
    trust_remote_code: bool
    license: str | None
    space: SearchSpace
    recovery_text: str
    validation_text: str | None
    test_text: str | None
    window_tokens: int
    calibration_tokens: int
    validation_tokens: int
    test_tokens: int | None
    bos_each_window: bool
    streams: dict[str, StreamRecord]
    proxy: str
    short_steps: int
    batch_tokens: int
    short_learning_rate: float
    mixed_precision: bool  # distillation computes in bfloat16 around float32 weights
    start: str | None = None  # the recovered model that candidates are cut from; None: the original itself
    start_sha256: str | None = None  # of its weights
    start_tokens: int = 0  # that its recovery took
    recovery: str = "distillation"  # how students are trained
    temperature: float = 1.0  # of the divergence from the dense model
    ce_share: float = 0.0  # of cross-entropy in the objective
    lora_rank: int | None  # of recoveries that train low-rank updates only
    freeze_prefix: bool  # distillation leaves the layers before the first cut as they are
    latency_batch: int
    prompt_tokens: int
    new_tokens: int
    latency_repeats: int | None  # timed pairs; None: as many as the interval needs
    compiled: bool
    latency_command: str | None
    device: str
    dtype: str
    rng_seed: int

    @property
    def step_tokens(self) -> int:
        """Tokens of one step of distillation: whole windows."""
        return max(1, self.batch_tokens // self.window_tokens) * self.window_tokens

    def count_steps(self, distill_tokens: int) -> int:
        """Whole steps of distillation that come closest to so many tokens."""
        return max(1, round(distill_tokens / self.step_tokens))


class SearchPlan(Record, frozen=True, kw_only=True):
    """What a study does, decided before its first trial.

    ``identity`` decides what the numbers mean: a study never mixes two of them. The rest are budgets
    that may change when a study is continued.
    """

    name: str
    identity: dict[str, Any]
    trials: int  # candidates scored at the objective's proxy
    sweep_budget: float  # seconds
    covers_space: bool  # closed form scores the whole space
    trusts_closed_form: bool = True  # False: a student with it has not the loss that its score says
    frontier_size: int
    distill_tokens: int
    replicas: int = 1  # distillations of each frontier model, each under a random seed of its own
    width_baseline: bool = False  # for each depth, a model of all layers cut to the same size in width
    max_ppl_ratio: float | None
    storage: str | None  # where the Optuna study is shown; None: the study's folder
    command: str  # what was typed
    seed_version: str
    created: str

    @property
    def fingerprint(self) -> str:
        """A hash of the identity."""
        return hash_text(msgspec.json.encode(self.identity, order="deterministic").decode())


class Environment(Record, frozen=True, kw_only=True):
    """Where numbers were measured."""

    seed: str
    python: str
    platform: str
    processor: str
    num_threads: int
    device: str
    packages: dict[str, str]
