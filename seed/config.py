"""What a study can be told: every option once, in the sections of ``search_spaces/*.toml``.

Presets, a file of the user's, flags and Python fill the same record. Nothing heavy is imported here, so that wrong input is
answered at once.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from seed.cli import (
    BYTES,
    LAYERS,
    NAMES,
    POSITIVE,
    SECONDS,
    SHARE,
    WHOLE,
    Kind,
    check_values,
    choose_from,
    collect_options,
    entry,
    is_number,
    option,
    parse_count,
    spell_flag,
    typed,
)
from seed.errors import SeedError
from seed.optimize.space import SAMPLERS
from seed.optimize.urls import check_storage_url
from seed.records import GGML_TYPES
from seed.recovery import DEFAULT_LORA_RANK, RECOVERIES, Recovery

DTYPES = ("float32", "bfloat16", "float16")
PROXIES = ("closed-form", "short-distillation")
DEFAULT_TEXT = "wikitext2"  # of models of the hub
RATIO_ABOVE = replace(
    POSITIVE, allows=lambda ratio: is_number(ratio) and ratio > 1, wanted="a ratio above 1, such as 1.1"
)
RATIO_BELOW = replace(
    POSITIVE, allows=lambda ratio: is_number(ratio) and 0 < ratio < 1, wanted="a ratio below 1, such as 0.9"
)
TIME = replace(SECONDS, allows=POSITIVE.allows, wanted="a time above 0, such as 45m or 3h")
RATES = Kind(tuple, lambda rates: all(map(POSITIVE.allows, rates)) and len(rates) > 0, "one or more numbers above 0")
PART_KINDS = {"attention": "attn", "mlp": "mlp"}  # as candidates spell them
CHOICES = ({"layer"}, {"attention"}, {"mlp"}, {"attention", "mlp"}, {"layer", "attention", "mlp"})
PARTS = replace(
    NAMES,
    allows=lambda parts: set(parts) in CHOICES,
    wanted="layer; attention or mlp, or both; or layer,attention,mlp",
    metavar="PARTS",
)
BITS = Kind(
    lambda text: tuple(map(parse_count, filter(None, map(str.strip, text.split(","))))),
    lambda bits: bool(bits) and all(one in GGML_TYPES for one in bits),
    f"some of {', '.join(map(str, GGML_TYPES))}, such as 8,4",
    "N,N",
)
FLOORS = Kind(
    lambda text: tuple(filter(None, map(str.strip, text.split(",")))),
    lambda floors: bool(floors) and all(0 < float(one.partition("=")[2]) <= 1 for one in floors),
    "tasks with a share of the dense model's score, such as arc_easy=0.95,hellaswag=0.9",
    "NAME=SHARE",
)
Value = TypeVar("Value")


@dataclass(frozen=True)
class ModelSection:
    """Model."""

    model: str = typed("a name listed below, a hub id, a directory or a GGUF file (default: demo)", "demo")
    _: KW_ONLY
    hub_id: str | None = entry(key="name")
    revision: str | None = option("revision of a hub model", metavar="COMMIT")
    num_layers: int | None = entry()
    num_params: int | None = entry()  # tied weights count once
    license: str | None = entry()
    trust_remote_code: bool = typed("run code that the model brings along", False)
    dtype: str | None = option(
        "float32 (default on the CPU), bfloat16 (default on GPUs) or float16", kind=choose_from(DTYPES)
    )


@dataclass(frozen=True, kw_only=True)
class SpaceSection:
    """Space: which layers may go."""

    space: Path | None = typed("options in a TOML file like search_spaces/gpt2.toml", metavar="FILE")
    parts: tuple[str, ...] = option(
        "layer (default), attention, mlp, or layer,attention,mlp: what may go", ("layer",), kind=PARTS
    )
    min_dropped: int | None = option("drop at least N layers (default: 1)")
    max_dropped: int | None = option("drop at most N layers (default: the model's, or a third)")
    droppable_layers: tuple[int, ...] | None = entry(kind=LAYERS)  # None: all
    max_ppl_ratio: float | None = option("keep candidates up to this PPL ratio (by the proxy)", kind=RATIO_ABOVE)
    max_latency_ratio: float | None = option("keep candidates up to this latency ratio", kind=RATIO_BELOW)
    max_memory: float | None = option("weights and KV cache of the timed workload, such as 1.8GB", kind=BYTES)
    start: Path | None = typed("go on from a model that Seed exported; its original stays the teacher")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Data (demo, wikitext2, hub:NAME[:CONFIG], a text or JSONL file, a directory of them, self:PROMPTS)."""

    recovery_text: str | None = option(
        "trains; validation and test are split off where not given", key="corpus", metavar="SOURCE"
    )
    validation_text: str | None = option("decides", metavar="SOURCE")
    test_text: str | None = option("is read once at the end, for the numbers in the table", metavar="SOURCE")
    window_tokens: int | None = option("length of the perplexity windows")
    calibration_tokens: int | None = option("recovery tokens that closed form is fitted on")
    validation_tokens: int | None = option("validation tokens a candidate is scored on")
    test_tokens: int | None = option("test tokens used (default: the model's, or all)")


@dataclass(frozen=True, kw_only=True)
class LatencySection:
    """Latency: the workload that is timed."""

    latency_batch: int = option("sequences decoded at once (default: 1)", 1, key="batch")
    prompt_tokens: int | None = option("tokens read before decoding (default: 128)")
    new_tokens: int | None = option("tokens decoded one by one (default: 64)")
    latency_repeats: int | None = option(
        "timed pairs of models (default: until the ratio is within 1 %)", key="repeats"
    )
    compiled: bool = option("time torch.compile with a static cache instead of eager decoding", False)
    latency_command: str | None = typed(
        "your own stopwatch: gets a model's directory, prints milliseconds", metavar="CMD"
    )


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """Tasks of lm-eval, beside the dense model (pip install 'seed-search[tasks]')."""

    tasks: tuple[str, ...] | None = option("such as arc_easy,hellaswag; lm-eval ls tasks lists them", kind=NAMES)
    task_limit: int | None = option("the first N documents of each task (default: all)")
    task_batch: int | None = option("requests at once (default: 8 on the CPU, as many as fit on a GPU)")
    include_path: Path | None = typed("task files of your own; functions that they name are run", metavar="DIR")
    confirm_unsafe_code: bool = typed("also tasks that run code which the model writes", False)

    def check_tasks(self) -> None:
        """Raise where something is said about tasks, and none is named.

        Raises:
            SeedError: naming it.
        """
        told = ("task_limit", "task_batch", "include_path", "confirm_unsafe_code", "min_task")
        for name in told:
            if not self.tasks and getattr(self, name, None) not in (None, False):
                raise SeedError(f"{spell_flag(name)}: no task is named. Add --tasks NAMES, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class RecoverySection:
    """Recovery: distillation, short and full."""

    short_steps: int | None = option("steps of --proxy short-distillation (default: the model's, or 10)")
    batch_tokens: int | None = entry()
    distill: bool = option("stop at the frontier by the proxy", True)
    distill_tokens: int | None = option("recovery tokens for each frontier model")
    learning_rates: tuple[float, ...] | None = entry(kind=RATES)  # tried briefly, the best is used
    learning_rate: float | None = typed("do not tune the learning rate, use this one")
    replicas: int = option("distil each frontier model under N random seeds (default: 1)", 1)
    recovery: str | None = option(
        "distillation (default), hidden-states, lora, ... (docs/guide.md)", kind=choose_from(RECOVERIES)
    )
    temperature: float = option("of both models' predictions (default: 1)", 1.0)
    ce_share: float = option("share of cross-entropy in the objective, 0 to 1 (default: 0)", 0.0, kind=SHARE)
    lora_rank: int | None = option("train low-rank updates only, for models too large to train whole (16)")
    freeze_prefix: bool = option("leave the layers before the first dropped one as they are", False)
    width_baseline: bool = option("also distil models of all layers, cut to the same sizes in width", False)
    bits: tuple[int, ...] | None = option(
        "judge final models also with weights of 8, 5 or 4 bits, as llama.cpp stores them", kind=BITS
    )
    eval_command: str | None = typed("your own judge: gets a model's directory, prints a number", metavar="CMD")
    min_task: tuple[str, ...] | None = option(
        "of --tasks: recommend no model that keeps less of the dense one's score", kind=FLOORS
    )


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """Search."""

    time: float | None = option("for the whole pass, such as 45m: what fits is chosen (docs/guide.md)", kind=TIME)
    trials: int | None = option("candidates that are scored (default: the model's, or all that a sweep scores)")
    sampler: str = option(f"{', '.join(SAMPLERS)}: when not all are scored", "subset", kind=choose_from(SAMPLERS))
    proxy: str | None = option(f"{' (default where it can) or '.join(PROXIES)}", kind=choose_from(PROXIES))
    sweep_budget: float = option("sweep the space by closed form within so long; 0: never (10m)", 600.0, kind=SECONDS)
    screen: bool = option("distill even candidates that closed form shows to be hopeless", True)
    rng_seed: int = option("seed of all random numbers (default: 0)", 0, kind=WHOLE)
    frontier_size: int = option("models that go on to distillation (default: 6)", 6)
    stages: str | None = option("drop N layers, recover, drop M more, ...; 1+... until a --max-*-ratio", metavar="N+M")
    one_shot: bool = option("with --stages, leave out the search at once for comparison", True)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Run: where and by whom."""

    study: str | None = typed("name of the study's folder (default: the model's name)", metavar="NAME")
    studies_dir: Path = typed("where studies lie (default: ./studies)", Path("studies"))
    storage: str | None = typed("a database that shows the study, such as postgresql://USER@HOST/DB", metavar="URL")
    device: str | None = typed("cpu, cuda, cuda:1 (default: cuda where there is one); for --dry-run cuda:24GB too")
    workers: int | None = typed("evaluators on this machine, run by Ray (default: one for each GPU)")
    ray: str | None = typed("evaluators of a Ray cluster: auto, or HOST:PORT of its head", metavar="ADDRESS")


SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "space": SpaceSection,
    "data": DataSection,
    "recovery": RecoverySection,
    "latency": LatencySection,
    "tasks": TaskSection,
    "search": SearchSection,
}


@dataclass(frozen=True, kw_only=True)
class Settings(
    ModelSection, SpaceSection, DataSection, RecoverySection, LatencySection, TaskSection, SearchSection, RunSection
):
    """All that can be told."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Settings):
    """What a study is told. ``None``: not told, so chosen for the model (``fill_by_size``).

    Numbers are tokens, ratios to the dense model, bytes (``max_memory``) and seconds (``sweep_budget``); text is read as on
    the command line.

    Raises:
        SeedError: a value is wrong, or contradicts another.
    """

    shape: Mapping[str, Any] | None = None  # [config], the part of the model's public config that its shape needs
    given: frozenset[str] = frozenset()  # what was typed, even where it is the default
    in_file: frozenset[str] = frozenset()  # what the user's file says, and neither was typed nor is the preset's
    is_settled: bool = False  # filled from files: what was told is ``given`` and ``in_file`` alone

    def __post_init__(self) -> None:
        check_values(self)
        if self.start is not None:
            object.__setattr__(self, "start", self.start.expanduser().absolute())
        if self.compiled and self.latency_command:
            raise SeedError("--compiled: says how Seed times, but --latency-command times by your own. Leave one out.")
        for name, is_given in (
            ("--eval-command", bool(self.eval_command)),
            ("--bits", bool(self.bits)),
            ("--tasks", bool(self.tasks)),
            (f"--replicas {self.replicas}", self.replicas > 1),
            ("--width-baseline", self.width_baseline),
        ):
            if is_given and not self.distill:
                raise SeedError(f"{name}: is about distilled models, but --no-distill makes none. Leave one out.")
        if self.width_baseline and self.start is not None:
            raise SeedError(
                "--width-baseline: is cut from the original and would get fewer tokens than a model that goes on from --start. "
                "Leave one out."
            )
        self.check_tasks()
        self._check_recovery()
        self._check_parts()
        self._check_stages()
        if self.storage:
            check_storage_url(self.storage)

    def is_typed(self, name: str) -> bool:
        """Was this told beside any file?"""
        return name in self.given or (not self.is_settled and getattr(self, name) != DEFAULTS[name])

    def is_given(self, name: str) -> bool:
        """Was this told, here or in the user's file, or does it come from a preset or a default?"""
        return name in self.in_file or self.is_typed(name)

    def list_typed(self) -> dict[str, Any]:
        """What was told beside any file, by option."""
        return {name: getattr(self, name) for name in DEFAULTS if self.is_typed(name)}

    def name_place(self, *names: str) -> str:
        """How an error about these options begins: with the user's file, where that says one of them."""
        return f"{self.space}: " if self.in_file.intersection(names) else ""

    def change(self, **options: Any) -> "StudyConfig":
        """Return the config as it would be if these had been told, too."""
        told = frozenset(name for name, value in options.items() if value != DEFAULTS[name])
        changed = options.keys()
        return replace(self, **options, given=self.given - changed | told, in_file=self.in_file - changed)

    def describe(self) -> dict[str, Any]:
        """Every option as JSON knows it."""
        options = {name: getattr(self, name) for name in DEFAULTS}
        return msgspec.json.decode(msgspec.json.encode(options, enc_hook=str), type=dict[str, Any])

    @property
    def chosen_recovery(self) -> Recovery:
        """How students are trained: as asked, by low-rank updates where a rank is given, else by distillation."""
        return RECOVERIES[self.recovery or ("distillation" if self.lora_rank is None else "lora")]

    @property
    def floors(self) -> dict[str, float]:
        """Shares of the dense model's score that a model must keep to be recommended, by task."""
        return {name.strip(): float(share) for name, _, share in (one.partition("=") for one in self.min_task or ())}

    @property
    def trains_all(self) -> bool:
        """Are students trained in all their weights?"""
        return self.distill and not self.chosen_recovery.is_low_rank

    @property
    def kinds(self) -> tuple[str, ...]:
        """Parts of layers that go alone, as candidates spell them; none: layers go whole."""
        return tuple(kind for part, kind in PART_KINDS.items() if part in self.parts)

    @property
    def tunes_rate(self) -> bool:
        """Is the best of several learning rates found out, rather than told?"""
        return self.learning_rate is None and len(known(self.learning_rates)) > 1

    def _check_parts(self) -> None:
        for name in ("start", "stages", "latency_command"):
            if self.kinds and getattr(self, name) is not None:
                raise SeedError(
                    f"--parts {','.join(self.parts)}: cannot be had with {spell_flag(name)}, which knows whole layers only. Leave one out."
                )

    def _check_stages(self) -> None:
        are_typed = self.is_typed("min_dropped") and self.is_typed("max_dropped")
        if are_typed and (self.min_dropped or 0) > (self.max_dropped or 0):
            raise SeedError(f"--min-dropped {self.min_dropped}: more than --max-dropped {self.max_dropped}.")
        if self.stages is None:
            if not self.one_shot:
                raise SeedError("--no-one-shot: there is no one-shot search to leave out without --stages.")
            return
        if parse_stages(self.stages).goes_on and self.max_ppl_ratio is None and self.max_latency_ratio is None:
            raise SeedError(
                f"--stages {self.stages}: goes on until a target is reached, and there is none. Add --max-ppl-ratio or "
                "--max-latency-ratio."
            )
        if parse_stages(self.stages).goes_on and self.time is not None:
            raise SeedError(
                f"--time: is shared by the stages, and nobody knows how many --stages {self.stages} are. Name them, such as 1+1+1."
            )
        for name in ("min_dropped", "max_dropped", "start", "storage", "max_memory"):
            if self.is_given(name) or (name == "max_memory" and self.max_memory is not None):
                raise SeedError(
                    f"{spell_flag(name)}: cannot be had with --stages, which decides that for each stage. Leave one out."
                )
        if not self.distill:
            raise SeedError("--no-distill: a stage goes on from what the one before distilled. Leave one out.")

    def _check_recovery(self) -> None:
        if self.bits and importlib.util.find_spec("gguf") is None:
            raise SeedError("--bits: needs gguf, which is not installed. Install it: pip install 'gguf>=0.19'.")
        chosen = self.chosen_recovery
        if self.lora_rank is not None and not chosen.is_low_rank:
            raise SeedError(
                f"--lora-rank {self.lora_rank}: {chosen.name} trains no low-rank updates. Leave it out, or use --recovery lora."
            )
        if chosen.is_low_rank and importlib.util.find_spec("peft") is None:
            raise SeedError(
                "--recovery lora, --lora-rank: need PEFT, which is not installed. Install it: pip install 'peft>=0.21'."
            )
        for name in ("temperature", "ce_share"):
            if self.is_given(name) and chosen.ce_share is not None:
                raise SeedError(
                    f"{spell_flag(name)} {getattr(self, name)}: {chosen.name} learns from the text alone. Leave it out, "
                    "or choose a recovery that distills."
                )


def spell_parts(kinds: Sequence[str]) -> str:
    """The value of ``--parts`` that lets these go alone."""
    return ",".join(part for part, kind in PART_KINDS.items() if kind in kinds) or "layer"


OPTIONS = collect_options(StudyConfig)
DEFAULTS = {name: getattr(StudyConfig, name) for name in OPTIONS}


def known(value: Value | None) -> Value:
    """Return a value that every config has once its model is opened."""
    assert value is not None
    return value


def fill_by_size(settings: StudyConfig, *, num_layers: int, num_params: int, max_positions: int) -> StudyConfig:
    """Return the config with what neither files nor the user say, chosen for the model's size; rates fall with it.

    ``max_positions``: tokens that the model reads at once.
    """
    rate = min(1e-3, 1e-4 * (1e9 / max(num_params, 1)) ** 0.5)
    chosen: dict[str, Any] = {
        "max_dropped": max(1, num_layers // 3),
        "recovery_text": DEFAULT_TEXT,
        "window_tokens": max(16, min(1024, max_positions)),
        "calibration_tokens": 16_384,
        "validation_tokens": 65_536,
        "prompt_tokens": min(128, max_positions // 2),
        "new_tokens": min(64, max_positions // 2),
        "short_steps": 10,
        "batch_tokens": 8192,
        "distill_tokens": max(200_000, min(40_000_000, num_params // 10)),
        "learning_rates": (rate / 3, rate, rate * 3),
        "recovery": settings.chosen_recovery.name,
        "lora_rank": DEFAULT_LORA_RANK if settings.chosen_recovery.is_low_rank else None,
        "trials": 100,
    }
    if settings.num_layers is None:  # no file knows the model, and all of a test text may be much
        chosen["test_tokens"] = 262_144
    return replace(settings, **{name: value for name, value in chosen.items() if getattr(settings, name) is None})


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How many layers each stage drops; with ``goes_on`` the last number is repeated until a target is reached."""

    counts: tuple[int, ...]
    goes_on: bool


def parse_stages(text: str) -> Stages:
    """``2+1``: two layers, then one more; ``2+1+...``: and so on, one at a time.

    Raises:
        SeedError: neither.
    """
    parts = text.replace(" ", "").split("+")
    goes_on = parts[-1] in ("...", "…")
    counts = parts[:-1] if goes_on else parts
    if not counts or not all(part.isdigit() and int(part) > 0 for part in counts):
        raise SeedError(
            f"--stages {text}: numbers of layers joined by +, such as 2+1; or 1+... to go on, one at a time, until "
            "--max-ppl-ratio or --max-latency-ratio is reached."
        )
    return Stages(counts=tuple(map(int, counts)), goes_on=goes_on)
