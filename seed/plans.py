"""What a study is to be, written down before its first trial, read back, and compared with what is planned today.

A protocol decides what a study's numbers mean; what else a plan has are budgets, which may change when a study goes on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from seed import __version__, study_dir
from seed.errors import StudyError
from seed.records import Record, SearchSpace, hash_text
from seed.study_dir import StudyFolder

FEW_STEPS = 10  # below this many, training hardly recovers anything
MAX_COVERED = 20_000_000  # at a tenth of a millisecond each half an hour; real ones take a thousand times as long


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
    location: str  # "demo", a hub id, or an absolute directory or GGUF file
    revision: str | None
    commit: str | None
    weights_sha256: str | None  # of a local directory's weights, or of the GGUF file
    gguf_types: dict[str, int] | msgspec.UnsetType = (
        msgspec.UNSET
    )  # tensors of a GGUF file by ggml's type; else left out
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
    by_sublayers: bool = False  # closed form walks attention and MLP in turn, and fits both

    @property
    def cached_tokens(self) -> int:
        """Tokens of all timed sequences, which the KV cache holds in the end."""
        return self.latency_batch * (self.prompt_tokens + self.new_tokens)

    @property
    def step_tokens(self) -> int:
        """Tokens of one step of distillation: whole windows."""
        return max(1, self.batch_tokens // self.window_tokens) * self.window_tokens

    def count_steps(self, distill_tokens: int) -> int:
        """Whole steps of distillation that come closest to so many tokens."""
        return max(1, round(distill_tokens / self.step_tokens))

    def describe_training(self, distill_tokens: int) -> str:
        """How much a distillation will train: whole steps, which may be more or less than was asked for."""
        steps = self.count_steps(distill_tokens)
        trained = steps * self.step_tokens
        nearest = f", the nearest to {distill_tokens:,}" if trained != distill_tokens else ""
        return f"{trained:,} tokens ({steps:,} step{'s' * (steps != 1)} of {self.step_tokens:,}{nearest})"

    def warn_of_few_steps(self, distill_tokens: int) -> list[str]:
        """One line where a distillation is too short to mean anything."""
        steps = self.count_steps(distill_tokens)
        if steps >= FEW_STEPS:
            return []
        return [
            f"  {steps} step{'s' * (steps != 1)} of training can hardly recover anything: give --distill-tokens "
            f"{FEW_STEPS * self.step_tokens:,} or more"
        ]


class SearchPlan(Record, frozen=True, kw_only=True):
    """What a study does, decided before its first trial."""

    name: str
    protocol: Protocol
    trials: int  # candidates scored by the objective's proxy
    sweep_budget: float  # seconds
    covers_space: bool  # closed form scores the whole space
    trusts_closed_form: bool = True  # False: a student with it has not the loss that its score says
    frontier_size: int
    distill_tokens: int
    replicas: int = 1  # distillations of each frontier model, each under a random seed of its own
    width_baseline: bool = False  # for each depth, a model of all layers cut to the same size in width
    time: float | None = None  # seconds that the whole pass may take; None: as long as it takes
    max_ppl_ratio: float | None
    storage: str | None  # where the Optuna study is shown; None: the study's folder
    command: str  # what was typed
    seed_version: str
    created: str

    def __post_init__(self) -> None:
        if self.covers_space and self.protocol.space.size > MAX_COVERED:
            raise ValueError(
                f"all {self.protocol.space.size:,} candidates were scored, and no search scores more than {MAX_COVERED:,}"
            )

    @property
    def fingerprint(self) -> str:
        """A hash of the protocol."""
        return hash_text(msgspec.json.encode(self.protocol, order="deterministic").decode())

    def allows_singles(self, space: SearchSpace) -> bool:
        """May each layer's removal be scored beside the trials? Where that is no more work than they are."""
        return self.covers_space or len(space.droppable_layers) <= self.trials


class Environment(Record, frozen=True, kw_only=True):
    """Where numbers were measured."""

    seed: str
    python: str
    platform: str
    processor: str
    num_threads: int
    device: str
    packages: dict[str, str]


def read_plan(study: StudyFolder) -> SearchPlan:
    """The plan of a study.

    Raises:
        StudyError: there is none, it is damaged, or a version of Seed wrote it that plans otherwise.
    """
    found = study_dir.read_record(study.plan, dict[str, Any])
    try:
        return msgspec.convert(found, SearchPlan)
    except msgspec.ValidationError as error:
        if (version := found.get("seed_version")) != __version__:
            raise StudyError(
                f"{study.root}: a study of Seed {version}, and this is {__version__}, which does not go on with it ({error}). "
                f"Use Seed {version}, or search again under another name (--study NAME)."
            ) from error
        raise StudyError(
            f"{study.plan}: damaged ({error}). Restore it from a copy, or search again under another name (--study NAME)."
        ) from error


def read_planned(path: Path) -> tuple[StudyFolder, SearchPlan]:
    """The study in a folder, and its plan."""
    study = study_dir.open_existing(path)
    return study, read_plan(study)


def open_planned(path: Path, *, trust_remote_code: bool = False) -> tuple[StudyFolder, SearchPlan]:
    """What ``read_planned`` returns, to open the model: that is data, but its code runs only where the user says so again.

    Raises:
        SeedError: there is no such study, another version of Seed planned it, or its model's code wants the user's word.
    """
    study, plan = read_planned(path)
    protocol = plan.protocol
    if protocol.trust_remote_code and not trust_remote_code:
        model = protocol.location + (f"@{protocol.revision}" if protocol.revision else "")
        raise StudyError(
            f"{study.root}: its model {model} brings its own code, and a study's folder does not choose what runs. If you trust "
            "its authors, add --trust-remote-code."
        )
    return study, plan


def continue_plan(found: SearchPlan, wanted: SearchPlan, *, place: Path) -> SearchPlan:
    """Return the wanted plan, with what was settled when the study began; unless the sweep's budget changed, the sweep too.

    Raises:
        StudyError: a study of this name was planned otherwise, with the first eight differences.
    """
    if found.protocol != wanted.protocol:
        differences = compare_protocols(found.protocol, wanted.protocol)
        shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
        raise StudyError(
            f"{place}: holds a study of another plan ({shown}). Numbers of the two cannot be mixed: "
            "use the same settings to continue it, or another name with --study NAME."
        )
    is_settled = found.sweep_budget == wanted.sweep_budget  # estimates of one machine differ from day to day
    return msgspec.structs.replace(
        wanted,
        protocol=found.protocol,  # whose notes may be others
        trusts_closed_form=found.trusts_closed_form,
        covers_space=found.covers_space if is_settled else wanted.covers_space,
    )


def compare_protocols(found: Protocol, wanted: Protocol) -> list[str]:
    """Say, field by field, how a new protocol differs from the study's."""
    old, new = (flatten(msgspec.to_builtins(protocol), separator=".") for protocol in (found, wanted))
    return [
        f"{name}: {old.get(name)} in the study, {new.get(name)} now"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and not name.endswith(".notes")
    ]


def flatten(value: Mapping[str, Any], *, separator: str, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level, named ``outer``, separator, ``inner``."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        found |= (
            flatten(item, separator=separator, prefix=name + separator) if isinstance(item, Mapping) else {name: item}
        )
    return found


def require_same_settings(known: Mapping[str, Any], wanted: Mapping[str, Any], *, place: Path) -> None:
    """Raise StudyError when what was begun at ``place`` had other settings; settings that only it knows are its results."""
    changed = [
        f"{name}: {known.get(name)} there, {value} now" for name, value in wanted.items() if known.get(name) != value
    ]
    if changed:
        raise StudyError(
            f"{place}: was begun with other settings ({', '.join(changed)}). Repeat them to go on, or move the file away to "
            "begin anew."
        )
