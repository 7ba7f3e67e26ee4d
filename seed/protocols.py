"""A study's protocol and plan, settled from a config and the model's config; ``sessions`` opens model and text as they say."""

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from seed import __version__, demo
from seed.cli import spell_flag
from seed.config import PROXIES, StudyConfig, known
from seed.data.corpus import CorpusRequest, require_windows
from seed.errors import CorpusError, ModelError, SpaceError
from seed.models.checks import spell_dtype
from seed.models.files import is_gguf, is_local
from seed.models.gguf import list_types
from seed.models.loader import ModelSource
from seed.models.provenance import hash_file, read_start
from seed.models.stored import list_weights
from seed.plans import Protocol, SearchPlan, StreamRecord, read_plan
from seed.records import SearchSpace
from seed.recovery import DEFAULT_LORA_RANK
from seed.resolve import locate_model, typed_command
from seed.study_dir import StudyFolder

RECOVERY_POOL_TOKENS = 50_000_000  # at most this much recovery text is read and tokenized
# Models of these families predict nonsense unless the first token they see is <bos> (Gemma: perplexity on
# WikiText-2 650 without, 21 with; Shortened LLaMA's repository, pull request 6).
NEED_BOS = ("gemma",)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The device that a study is measured on, which may be another process's or machine's."""

    type: str  # "cpu" or "cuda"
    name: str  # see name_device
    computes_bfloat16: bool


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a protocol must know of the model that is searched, whether its weights are there or not."""

    source: ModelSource
    config: Any  # of its text
    space: SearchSpace
    gains: dict[int, float] | None  # what closed form needs; None: it is not available for this family
    by_sublayers: bool  # are these of attention and MLP in turn, rather than of whole layers?
    dtype: torch.dtype
    device: str  # the name of that which it is measured on
    mixed_precision: bool
    commit: str | None = None
    weights_sha256: str | None = None


def find_source(settings: StudyConfig) -> ModelSource:
    """Say where the model comes from, and which revision of it.

    Raises:
        ModelError: a revision of a model that has none.
    """
    location = locate_model(settings.model, settings.hub_id)
    if settings.revision and (location == "demo" or is_local(location)):
        raise ModelError(
            f"{settings.name_place('revision')}--revision {settings.revision}: only models of the hub have revisions. Leave it out for {settings.model}."
        )
    return ModelSource(location=location, revision=settings.revision, trust_remote_code=settings.trust_remote_code)


def request_text(settings: StudyConfig, config: Any) -> CorpusRequest:
    """Say which text a search of the model with this config wants.

    Raises:
        CorpusError: the model does not read windows of that length, or a limit leaves too few of them.
    """
    window = known(settings.window_tokens)
    require_window(window, config, place=settings.name_place("window_tokens"))
    for name in ("calibration_tokens", "validation_tokens", "test_tokens"):
        require_windows(
            getattr(settings, name), window_tokens=window, option=settings.name_place(name) + spell_flag(name)
        )
    return make_request(settings, bos_each_window=needs_bos(config))


def require_window(tokens: int, config: Any, *, place: str = "") -> None:
    """Raise CorpusError unless a model with this config reads so many tokens at once."""
    longest = getattr(config, "max_position_embeddings", None) or tokens
    if not 2 <= tokens <= longest:
        raise CorpusError(
            f"{place}--window-tokens {tokens}: the model reads 2 to {longest} tokens at once. Choose a number between."
        )


def require_workload(prompt_tokens: int, new_tokens: int, config: Any, *, place: str = "") -> None:
    """Raise SpaceError unless a model with this config holds what is timed."""
    longest = getattr(config, "max_position_embeddings", None) or prompt_tokens + new_tokens
    if prompt_tokens + new_tokens > longest:
        raise SpaceError(
            f"{place}--prompt-tokens {prompt_tokens} and --new-tokens {new_tokens}: together more than the {longest} tokens that "
            "the model holds. Choose fewer."
        )


def make_request(told: StudyConfig | Protocol, *, bos_each_window: bool) -> CorpusRequest:
    """The text of a study, by what it was told or by its protocol."""
    return CorpusRequest(
        recovery=known(told.recovery_text),
        validation=told.validation_text,
        test=told.test_text,
        window_tokens=known(told.window_tokens),
        recovery_tokens=RECOVERY_POOL_TOKENS,
        validation_tokens=known(told.validation_tokens),
        test_tokens=told.test_tokens,
        bos_each_window=bos_each_window,
    )


def needs_bos(config: Any) -> bool:
    """Does a model of this kind predict nonsense unless the first token that it sees is ``<bos>``?"""
    return bool(config.model_type.startswith(NEED_BOS))


def fix_protocol(settings: StudyConfig, original: Original, streams: dict[str, StreamRecord]) -> Protocol:
    """Settle everything that scores depend on.

    Raises:
        SeedError: a setting does not fit the model.
    """
    config, location = original.config, original.source.location
    start = None if settings.start is None else read_start(settings.start)
    if start is not None and start.base_model != location:
        raise ModelError(
            f"--start {start.path}: was recovered from {start.base_model}, not from {location}. Leave --model out, or "
            "give a model that was recovered from it."
        )
    place = settings.name_place("prompt_tokens", "new_tokens")
    require_workload(known(settings.prompt_tokens), known(settings.new_tokens), config, place=place)
    proxy = choose_proxy(settings.proxy, gains=original.gains, family=config.model_type)
    if settings.is_given("short_steps") and proxy != "short-distillation":
        raise SpaceError(
            f"{settings.name_place('short_steps')}--short-steps: the proxy is closed form, and distils nothing. "
            "Add --proxy short-distillation, or leave it out."
        )
    recovery = settings.chosen_recovery
    if (settings.lora_rank or 0) > config.hidden_size:
        raise SpaceError(
            f"{settings.name_place('lora_rank')}--lora-rank {settings.lora_rank}: more than the model's width of {config.hidden_size}, where updates are no longer of low "
            f"rank. Give {config.hidden_size} or less; {DEFAULT_LORA_RANK} is usual."
        )
    rates = [rate * recovery.rate_factor for rate in sorted(known(settings.learning_rates))]
    settled = {
        "location": location,
        "commit": original.commit,
        "weights_sha256": original.weights_sha256,
        "gguf_types": list_types(location),
        "space": original.space,
        "bos_each_window": needs_bos(config),
        "streams": streams,
        "proxy": proxy,
        "batch_tokens": max(known(settings.window_tokens), known(settings.batch_tokens)),
        "short_learning_rate": rates[len(rates) // 2],
        "mixed_precision": original.mixed_precision,
        "start": None if start is None else str(start.path),
        "start_sha256": None if start is None else hash_weights(start.path),
        "start_tokens": 0 if start is None else start.tokens,
        "recovery": recovery.name,
        "device": original.device,
        "dtype": spell_dtype(original.dtype),
        "by_sublayers": original.by_sublayers,
    }
    told = {name: getattr(settings, name) for name in Protocol.__struct_fields__ if name not in settled}
    protocol = msgspec.convert(told | settled, Protocol)
    return protocol if protocol.gguf_types else msgspec.structs.replace(protocol, gguf_types=msgspec.UNSET)


def choose_proxy(proxy: str | None, *, gains: dict[int, float] | None, family: str) -> str:
    """Return the objective's proxy: what was asked for, else closed form where this family allows it.

    Raises:
        ModelError: closed form was asked for, and the family has no place for it.
    """
    if proxy == "closed-form" and gains is None:
        raise ModelError(
            f"--proxy closed-form: not available for {family} models (their MLP's output is not simply added to the residual "
            "stream, or has no single projection). Use --proxy short-distillation."
        )
    return proxy or PROXIES[gains is None]


def make_plan(
    settings: StudyConfig, protocol: Protocol, *, name: str, trials: int, distill_tokens: int, covers_space: bool
) -> SearchPlan:
    """Return the plan of a study."""
    return SearchPlan(
        name=name,
        protocol=protocol,
        trials=trials,
        sweep_budget=settings.sweep_budget,
        time=settings.time,
        covers_space=covers_space,
        frontier_size=settings.frontier_size,
        distill_tokens=distill_tokens,
        replicas=settings.replicas,
        width_baseline=settings.width_baseline,
        max_ppl_ratio=settings.max_ppl_ratio,
        storage=settings.storage,
        command=typed_command(settings),
        seed_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def settle_trials(plan: SearchPlan, settings: StudyConfig) -> SearchPlan:
    """The plan with as many candidates as are scored, where it says whether a sweep fits its budget, and swept if that is of use.

    Without a number of ``--trials`` a space that closed form sweeps within its budget is scored whole.
    """
    proxy, size = plan.protocol.proxy, plan.protocol.space.size
    trials = min(known(settings.trials), size)
    if proxy != "closed-form":
        is_swept = plan.covers_space and (settings.sampler == "subset" or trials == size)
    elif not settings.is_given("trials"):
        is_swept, trials = plan.covers_space, size if plan.covers_space else trials
    else:
        is_swept = plan.covers_space and trials == size
    return msgspec.structs.replace(plan, trials=trials, covers_space=is_swept)


def choose_precision(study: StudyFolder, reference: Reference) -> bool:
    """Whether distillation computes in bfloat16: as the study does, if it was planned before on another processor."""
    if study.plan.is_file():
        return read_plan(study).protocol.mixed_precision
    return reference.computes_bfloat16


def computes_bfloat16(device: torch.device) -> bool:
    """Does this device multiply bfloat16 faster than float32? GPUs that we train on do, and CPUs with AVX-512 BF16."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def describe_reference(device: torch.device) -> Reference:
    """This process's device, as a study knows it."""
    return Reference(type=device.type, name=name_device(device), computes_bfloat16=computes_bfloat16(device))


def name_device(device: torch.device) -> str:
    """``cpu``, or the GPU's product name: numbers of two kinds of GPU are not the same numbers."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def resolve_location(location: str) -> Path:
    """The directory of a local model, or its GGUF file."""
    return demo.MODEL_DIRECTORY if location == "demo" else Path(location)


def hash_weights(path: Path) -> str:
    """sha256 over the config and all files of weights that a directory's model is read from; of a GGUF file its own.

    The tokenizer is known by the tokens that it makes, which a study keeps hashes of.

    Raises:
        ModelError: weights are missing, or lie elsewhere.
    """
    if is_gguf(path):
        return hash_file(path)
    digest = hashlib.sha256()
    for file in [path / "config.json", *list_weights(path)]:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def require_same_weights(location: str, sha256: str | None, *, study: StudyFolder) -> None:
    """Raise ModelError unless a local model is what it was when a study was planned. ``sha256``: of its weights then."""
    path = resolve_location(location)
    if hash_weights(path) != sha256:
        raise ModelError(
            f"{path}: its weights changed since {study.root} was planned. Restore them, or start a study of another name."
        )
