"""Everything a search can be told, refused at once where it is wrong or contradicts itself.

Nothing heavy is imported here, so that wrong input is answered at once.
"""

import importlib.util
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from seed.errors import SeedError
from seed.optimize.sampler import SAMPLERS
from seed.optimize.urls import check_storage_url
from seed.plain import is_utf8
from seed.stages.options import RNG_SEEDS
from seed.stages.recoveries import RECOVERIES, Recovery

RUNG_NAMES = {1: "closed_form", 2: "short_distillation"}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Everything a search can be told. ``None`` means: from the model's preset, or chosen for the model.

    Token counts are tokens, ratios are to the dense model, ``max_memory`` is bytes of weights and KV cache,
    ``sweep_budget`` is seconds.
    """

    model: str = "demo"
    revision: str | None = None
    trust_remote_code: bool = False
    space: Path | None = None
    study: str | None = None
    studies_dir: Path = Path("studies")
    storage: str | None = None
    workers: int | None = None
    ray: str | None = None
    trials: int | None = None
    sampler: str = "subset"
    rung: int | None = None
    sweep_budget: float = 600.0
    screen: bool = True
    rng_seed: int = 0
    device: str | None = None
    dtype: str | None = None
    recovery_text: str | None = None
    validation_text: str | None = None
    test_text: str | None = None
    window_tokens: int | None = None
    calibration_tokens: int | None = None
    validation_tokens: int | None = None
    test_tokens: int | None = None
    short_steps: int | None = None
    min_dropped: int | None = None
    max_dropped: int | None = None
    start: Path | None = None
    stages: str | None = None
    one_shot: bool = True
    max_ppl_ratio: float | None = None
    max_latency_ratio: float | None = None
    max_memory: float | None = None
    frontier_size: int | None = None
    distill: bool = True
    distill_tokens: int | None = None
    replicas: int = 1
    width_baseline: bool = False
    recovery: str | None = None
    temperature: float | None = None
    ce_share: float | None = None
    learning_rate: float | None = None
    lora_rank: int | None = None
    freeze_prefix: bool = False
    latency_batch: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    latency_repeats: int | None = None
    compiled: bool = False
    latency_command: str | None = None
    eval_command: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, flag = getattr(self, field.name), "--" + field.name.replace("_", "-")
            if isinstance(value, str) and not value.strip():
                raise SeedError(f"{flag}: is empty. Give a value, or leave it out.")
            if isinstance(value, (str, Path)) and not is_utf8(str(value)):
                raise SeedError(f"{flag} {value}: is not UTF-8, as all that Seed writes down is. Rename it.")
        object.__setattr__(self, "studies_dir", Path(self.studies_dir))
        object.__setattr__(self, "space", None if self.space is None else Path(self.space))
        object.__setattr__(self, "start", None if self.start is None else Path(self.start).expanduser().absolute())
        if self.compiled and self.latency_command:
            raise SeedError("--compiled: says how Seed times, but --latency-command times by your own. Leave one out.")
        for name, is_given in (
            ("--eval-command", bool(self.eval_command)),
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
        for field in fields(self):
            value = getattr(self, field.name)
            flag = "--" + field.name.replace("_", "-")
            if (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and field.name not in ("rng_seed", "rung", "sweep_budget", "ce_share")
            ) and (not value > 0 or not math.isfinite(value)):
                raise SeedError(f"{flag} {value}: must be above 0.")
        if self.rung is not None and self.rung not in RUNG_NAMES:
            raise SeedError(
                f"--rung {self.rung}: the objective is 1 (closed-form recovery) or 2 (short distillation). "
                "Rung 0, no recovery, ranks candidates wrongly and is only reported."
            )
        if not 0 <= self.sweep_budget < math.inf:
            raise SeedError(f"--sweep-budget {self.sweep_budget}: seconds, 0 or more; or write 10m, 2h.")
        if self.rng_seed not in RNG_SEEDS:
            raise SeedError(f"--rng-seed {self.rng_seed}: must be 0 or more, and below {RNG_SEEDS.stop:,}.")
        if self.sampler not in SAMPLERS:
            raise SeedError(f"--sampler {self.sampler}: unknown. Choose from {', '.join(SAMPLERS)}.")
        if self.dtype not in (None, *DTYPES):
            raise SeedError(f"--dtype {self.dtype}: unknown. Choose from {', '.join(DTYPES)}.")
        if self.max_ppl_ratio is not None and self.max_ppl_ratio <= 1:
            raise SeedError(f"--max-ppl-ratio {self.max_ppl_ratio}: a ratio to the dense model, above 1. Try 1.1.")
        if self.max_latency_ratio is not None and self.max_latency_ratio >= 1:
            raise SeedError(
                f"--max-latency-ratio {self.max_latency_ratio}: a ratio to the dense model, below 1. Try 0.9."
            )
        self._check_recovery()
        self._check_stages()
        if self.storage:
            check_storage_url(self.storage)

    def describe(self) -> dict[str, Any]:
        """Every setting as JSON knows it; ``SearchSettings(**described)`` is the same again."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @property
    def chosen_recovery(self) -> Recovery:
        """How students are trained: as asked, by low-rank updates where a rank is given, else by distillation."""
        return RECOVERIES[self.recovery or ("distillation" if self.lora_rank is None else "lora")]

    def _check_stages(self) -> None:
        if self.min_dropped and self.max_dropped and self.min_dropped > self.max_dropped:
            raise SeedError(f"--min-dropped {self.min_dropped}: more than --max-dropped {self.max_dropped}.")
        if self.stages is None:
            if not self.one_shot:
                raise SeedError("--no-one-shot: there is no one-shot search to leave out without --stages.")
            return
        stages = parse_stages(self.stages)
        if stages.goes_on and self.max_ppl_ratio is None and self.max_latency_ratio is None:
            raise SeedError(
                f"--stages {self.stages}: goes on until a target is reached, and there is none. Add --max-ppl-ratio or "
                "--max-latency-ratio."
            )
        for name in ("min_dropped", "max_dropped", "start", "storage", "max_memory"):
            if getattr(self, name) is not None:
                raise SeedError(
                    f"--{name.replace('_', '-')}: cannot be had with --stages, which decides that for each stage. Leave one out."
                )
        if not self.distill:
            raise SeedError("--no-distill: a stage goes on from what the one before distilled. Leave one out.")

    def _check_recovery(self) -> None:
        if self.recovery not in (None, *RECOVERIES):
            raise SeedError(f"--recovery {self.recovery}: unknown. Choose from {', '.join(RECOVERIES)}.")
        chosen = self.chosen_recovery
        if self.lora_rank is not None and not chosen.is_low_rank:
            raise SeedError(
                f"--lora-rank {self.lora_rank}: {chosen.name} trains no low-rank updates. Leave it out, or use --recovery lora."
            )
        if chosen.is_low_rank and importlib.util.find_spec("peft") is None:
            raise SeedError(
                "--recovery lora, --lora-rank: need PEFT, which is not installed. Install it: pip install 'peft>=0.21'."
            )
        if self.ce_share is not None and not 0 <= self.ce_share <= 1:
            raise SeedError(f"--ce-share {self.ce_share}: a share of the objective, from 0 to 1.")
        for name in ("temperature", "ce_share"):
            if getattr(self, name) is not None and chosen.ce_share is not None:
                raise SeedError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: {chosen.name} learns from the text alone. Leave it out, "
                    "or choose a recovery that distills."
                )


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
