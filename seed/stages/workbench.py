"""What a study needs in memory, opened once: the dense model, its streams, and the instruments.

Commands share it: ``search`` makes a plan with it, ``distill`` and ``evaluate`` reopen it from a plan.
"""

import hashlib
import importlib.metadata
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seed import __version__, demo, folder
from seed.errors import CorpusError, ModelError, ResourceError, SpaceError
from seed.folder import StudyFolder
from seed.models.anatomy import Anatomy
from seed.models.checkpoint import agree, load_checkpoint, prove_round_trip
from seed.models.grafting import graft
from seed.models.teacher import ModelSource, Teacher, check_source, choose_device, open_teacher
from seed.optimize.space import Preset, default_preset, drop_more, list_presets, make_space
from seed.records import Environment, Protocol, SearchPlan, StreamRecord
from seed.scoring.corpus import CorpusRequest, TokenStream, open_streams
from seed.scoring.instruments import Instruments, make_walker, start_student
from seed.scoring.latency import Workload
from seed.scoring.memory import measure_recompute
from seed.scoring.quality import choose_micro_batch, logits_of, measure_losses
from seed.scoring.refit import measure_gains
from seed.stages.planning import RUNG_NAMES, SearchSettings, check_dropped, go_on_from
from seed.stages.recoveries import DEFAULT_LORA_RANK
from seed.stages.starts import Start, read_start

RECOVERY_POOL_TOKENS = 50_000_000  # at most this much recovery text is read and tokenized
DEFAULT_RUNG = 1
# Models of these families predict nonsense unless the first token they see is <bos> (Gemma: perplexity on
# WikiText-2 650 without, 21 with; Shortened LLaMA's repository, pull request 6).
NEED_BOS = ("gemma",)


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """An opened study: where it lies, what it measures, and with what."""

    folder: StudyFolder
    protocol: Protocol
    teacher: Teacher
    anatomy: Anatomy
    streams: dict[str, TokenStream]
    device: torch.device
    dtype: torch.dtype
    micro_batch: int
    gains: dict[int, float] | None  # what closed form needs; None: not available for this family
    recomputes: bool = False  # training runs layers again on the way back, since memory is short
    grafted: Anatomy | None = None  # what candidates are cut from instead of the dense model

    @property
    def recovered_rung(self) -> str:
        """The rung of scores with recovery that need no training: closed form, or none where the family has no place for it."""
        return "none" if self.gains is None else "closed_form"

    @property
    def batch_windows(self) -> int:
        """Windows in one step of distillation."""
        return max(1, self.protocol.batch_tokens // self.protocol.window_tokens)

    @property
    def workload(self) -> Workload:
        """What is timed."""
        return Workload(
            batch=self.protocol.latency_batch,
            prompt_tokens=self.protocol.prompt_tokens,
            new_tokens=self.protocol.new_tokens,
            repeats=self.protocol.latency_repeats,
            compiled=self.protocol.compiled,
        )


def locate_model(name: str, *, preset: Preset | None) -> str:
    """``demo``, an absolute directory, or a hub id."""
    if name == "demo":
        return "demo"
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    return preset.model.name if preset is not None and name in list_presets() else name


def find_source(settings: SearchSettings, preset: Preset | None) -> ModelSource:
    """Say where the model comes from, and which revision of it.

    Raises:
        ModelError: a revision of a model that has none.
    """
    location = locate_model(settings.model, preset=preset)
    revision = settings.revision or (preset.model.revision if preset and location == preset.model.name else None)
    if revision and (location == "demo" or Path(location).is_dir()):
        raise ModelError(
            f"--revision {revision}: only models of the hub have revisions. Leave it out for {settings.model}."
        )
    return ModelSource(location=location, revision=revision, trust_remote_code=settings.trust_remote_code)


def open_for_search(settings: SearchSettings, preset: Preset | None, *, study: StudyFolder) -> tuple[Workbench, Preset]:
    """Open model and text as the settings say, and fix the protocol.

    Raises:
        SeedError: anything a user can mend.
    """
    device = choose_device(settings.device)
    source = find_source(settings, preset)
    location = source.location
    if location != "demo":
        check_source(source, presets=list_presets())
    teacher, anatomy = _open_model(source, device=device, dtype_name=settings.dtype)
    if preset is None:
        preset = default_preset(
            settings.model,
            num_layers=anatomy.num_layers,
            num_params=sum(parameter.numel() for parameter in teacher.model.parameters()),
            max_positions=getattr(anatomy.config, "max_position_embeddings", None) or 1024,
        )
    preset = check_dropped(settings, preset, num_layers=anatomy.num_layers)
    request = request_text(settings, preset, anatomy.config)
    streams = open_streams(request, teacher.tokenizer)
    gains = _measure_gains(anatomy, streams["recovery"], device)
    local = location == "demo" or Path(location).is_dir()
    protocol = fix_protocol(
        settings,
        preset,
        source,
        request,
        config=anatomy.config,
        commit=None if local else teacher.commit,
        weights_sha256=hash_weights(resolve_location(location)) if local else None,
        streams={name: stream.describe() for name, stream in streams.items()},
        gains=gains,
        mixed_precision=choose_precision(study, device),
        device=device,
        dtype=teacher.dtype,
    )
    return _bench(study, protocol, teacher, anatomy, streams, device, gains), preset


def request_text(settings: SearchSettings, preset: Preset, config: Any) -> CorpusRequest:
    """Say which text a search of the model with this config wants.

    Raises:
        CorpusError: the model does not read windows of that length.
    """
    window = settings.window_tokens or preset.data.window_tokens
    longest = getattr(config, "max_position_embeddings", None) or window
    if window > longest or window < 2:
        raise CorpusError(
            f"--window-tokens {window}: the model reads 2 to {longest} tokens at once. Choose a number between."
        )
    return CorpusRequest(
        recovery=settings.recovery_text or preset.data.corpus,
        validation=settings.validation_text,
        test=settings.test_text,
        window_tokens=window,
        recovery_tokens=RECOVERY_POOL_TOKENS,
        validation_tokens=settings.validation_tokens or preset.data.validation_tokens,
        test_tokens=settings.test_tokens or preset.data.test_tokens,
        bos_each_window=config.model_type.startswith(NEED_BOS),
    )


def fix_protocol(
    settings: SearchSettings,
    preset: Preset,
    source: ModelSource,
    request: CorpusRequest,
    *,
    config: Any,
    commit: str | None,
    weights_sha256: str | None,
    streams: dict[str, StreamRecord],
    gains: dict[int, float] | None,
    mixed_precision: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Protocol:
    """Settle everything that scores depend on, for the model with this (text) config.

    Raises:
        SeedError: a setting does not fit the model.
    """
    place = "--max-dropped" if settings.max_dropped else str(settings.space or f"search space of {settings.model}")
    space = make_space(preset.space, num_layers=config.num_hidden_layers, place=place)
    start = None if settings.start is None else read_start(settings.start)
    if start is not None:
        check_base(start, source)
        space = go_on_from(space, start, settings)
    prompt = settings.prompt_tokens or preset.latency.prompt_tokens
    new = settings.new_tokens or preset.latency.new_tokens
    longest = getattr(config, "max_position_embeddings", None) or prompt + new
    if prompt + new > longest:
        raise SpaceError(
            f"--prompt-tokens {prompt} and --new-tokens {new}: together more than the {longest} tokens that the model "
            "holds. Choose fewer."
        )
    rung = choose_rung(settings.rung, gains=gains, family=config.model_type)
    if settings.short_steps and rung != "short_distillation":
        raise SpaceError("--short-steps: there is no short distillation at rung 1. Add --rung 2, or leave it out.")
    recovery = settings.chosen_recovery
    rates = [rate * recovery.rate_factor for rate in sorted(preset.recovery.learning_rates)]
    return Protocol(
        model=settings.model,
        location=source.location,
        revision=source.revision,
        commit=commit,
        weights_sha256=weights_sha256,
        trust_remote_code=settings.trust_remote_code,
        license=preset.model.license,
        space=space,
        recovery_text=request.recovery,
        validation_text=request.validation,
        test_text=request.test,
        window_tokens=request.window_tokens,
        calibration_tokens=settings.calibration_tokens or preset.data.calibration_tokens,
        validation_tokens=request.validation_tokens,
        test_tokens=request.test_tokens,
        bos_each_window=request.bos_each_window,
        streams=streams,
        rung=rung,
        short_steps=settings.short_steps or preset.recovery.short_steps,
        batch_tokens=max(request.window_tokens, preset.recovery.batch_tokens),
        short_learning_rate=rates[len(rates) // 2],
        mixed_precision=mixed_precision,
        start=None if start is None else str(start.path),
        start_sha256=None if start is None else hash_weights(start.path),
        start_tokens=0 if start is None else start.tokens,
        recovery=recovery.name,
        temperature=settings.temperature or 1.0,
        ce_share=settings.ce_share or 0.0,
        lora_rank=(settings.lora_rank or DEFAULT_LORA_RANK) if recovery.is_low_rank else None,
        freeze_prefix=settings.freeze_prefix,
        latency_batch=settings.latency_batch or preset.latency.batch,
        prompt_tokens=prompt,
        new_tokens=new,
        latency_repeats=settings.latency_repeats or preset.latency.repeats,
        compiled=settings.compiled,
        latency_command=settings.latency_command,
        device=name_device(device),
        dtype=str(dtype).removeprefix("torch."),
        rng_seed=settings.rng_seed,
    )


def reopen(study: StudyFolder, protocol: Protocol, *, device_name: str | None = None) -> Workbench:
    """Open the model and text of a study again, and verify that they are the same.

    Raises:
        SeedError: model or text changed since the study was planned.
    """
    device = choose_device(device_name)
    if name_device(device) != protocol.device:
        raise ResourceError(
            f"{study.root}: was measured on {protocol.device}, and this is {name_device(device)}. "
            "Continue on that device, or start a study of another name."
        )
    source = ModelSource(
        location=protocol.location, revision=protocol.revision, trust_remote_code=protocol.trust_remote_code
    )
    teacher, anatomy = _open_model(source, device=device, dtype_name=protocol.dtype)
    if protocol.weights_sha256 and hash_weights(resolve_location(protocol.location)) != protocol.weights_sha256:
        raise ModelError(
            f"{protocol.location}: its weights changed since {study.root} was planned. Start a study of another name."
        )
    request = CorpusRequest(
        recovery=protocol.recovery_text,
        validation=protocol.validation_text,
        test=protocol.test_text,
        window_tokens=protocol.window_tokens,
        recovery_tokens=RECOVERY_POOL_TOKENS,
        validation_tokens=protocol.validation_tokens,
        test_tokens=protocol.test_tokens,
        bos_each_window=protocol.bos_each_window,
    )
    streams = open_streams(request, teacher.tokenizer)
    for name, stream in streams.items():
        if stream.describe().sha256 != protocol.streams[name].sha256:
            raise CorpusError(
                f"{stream.source}: the {name} text changed since {study.root} was planned "
                f"({stream.num_tokens:,} tokens now, {protocol.streams[name].tokens:,} then). Restore it, or start a study of another name."
            )
    if protocol.start is not None and hash_weights(Path(protocol.start)) != protocol.start_sha256:
        raise ModelError(
            f"{protocol.start}: changed since {study.root} was planned from it. Start a study of another name."
        )
    is_trusted = folder.read_record(study.plan, SearchPlan).trusts_closed_form
    gains = _measure_gains(anatomy, streams["recovery"], device) if is_trusted else None
    return _bench(study, protocol, teacher, anatomy, streams, device, gains)


def check_base(start: Start, source: ModelSource) -> None:
    """Check that a recovered model comes from this original.

    Raises:
        ModelError: it comes from another.
    """
    if start.base_model != source.location:
        raise ModelError(
            f"--start {start.path}: was recovered from {start.base_model}, not from {source.location}. Leave --model out, or "
            "give a model that was recovered from it."
        )


def open_start(teacher: Teacher, anatomy: Anatomy, protocol: Protocol, device: torch.device) -> Anatomy | None:
    """The recovered model that candidates are cut from, its layers at their original places; None: the original."""
    if protocol.start is None:
        return None
    start = read_start(Path(protocol.start))
    recovered = load_checkpoint(start.path, device=device, dtype=teacher.dtype)
    return graft(anatomy, recovered, start.candidate)


def choose_rung(asked: int | None, *, gains: dict[int, float] | None, family: str) -> str:
    """Return the objective's rung: the one asked for, else the best that this family allows.

    Raises:
        ModelError: rung 1 was asked for, and the family has no place for closed-form recovery.
    """
    if asked == 1 and gains is None:
        raise ModelError(
            f"--rung 1: closed-form recovery is not available for {family} models (their MLP's output is not simply added "
            "to the residual stream, or has no single projection). Use --rung 2."
        )
    return RUNG_NAMES[asked or (DEFAULT_RUNG if gains is not None else 2)]


def prove(bench: Workbench) -> None:
    """Prove on this very model that cutting, saving, reloading and the layer walk are right.

    Raises:
        ModelError: this model is not understood well enough.
    """
    tokens = bench.streams["recovery"].tokens_NT[:2, : min(64, bench.protocol.window_tokens)].to(bench.device)
    states = bench.anatomy.trace(tokens)
    with torch.no_grad():
        expected = bench.teacher.model(input_ids=tokens, use_cache=False).logits
        hidden = states[0]
        for layer in range(bench.anatomy.num_layers):
            hidden = bench.anatomy.run_layer(layer, hidden)
        if not agree(bench.anatomy.compute_logits(hidden, tokens), expected):
            raise ModelError(
                f"{type(bench.teacher.model).__name__}: running its layers one by one does not give the model's own logits, "
                "so candidates cannot be scored correctly. Choose another model."
            )
    prove_round_trip(bench.anatomy, tokens, scratch=bench.folder.work, dtype=bench.dtype)


def prepare_instruments(bench: Workbench) -> Instruments:
    """Measure the dense model's validation losses and put the instruments together."""
    dense = measure_losses(
        logits_of(bench.teacher.model), bench.streams["validation"], micro_batch=bench.micro_batch, device=bench.device
    )
    return Instruments(
        anatomy=bench.anatomy,
        calibration=bench.streams["recovery"].take_evenly(bench.protocol.calibration_tokens),
        recovery=bench.streams["recovery"],
        validation=bench.streams["validation"],
        dense_validation=dense,
        gains=bench.gains,
        micro_batch=bench.micro_batch,
        stored_dtype=bench.teacher.stored_dtype,
        grafted=bench.grafted,
    )


def prove_closed_form(bench: Workbench, instruments: Instruments) -> str | None:
    """Compare the student with folded corrections with the loss that the walk found; say how they differ, or None."""
    space = bench.protocol.space
    layers = space.droppable_layers
    cut = sorted({layers[len(layers) // 4], layers[len(layers) // 2]})[-space.more_dropped[-1] :]
    candidate = drop_more(space, cut)
    losses, refit = make_walker(instruments).measure(candidate)
    student = start_student(instruments, candidate, refit)
    folded = measure_losses(
        logits_of(student), instruments.validation, micro_batch=instruments.micro_batch, device=bench.device
    )
    tolerance = 1e-4 if bench.dtype == torch.float32 else 2e-2
    if abs(folded.loss - losses.loss) <= tolerance:
        return None
    return (
        f"{type(bench.teacher.model).__name__}: a student with closed-form recovery has a validation loss of "
        f"{folded.loss:.5f}, but its score says {losses.loss:.5f}"
    )


def choose_precision(study: StudyFolder, device: torch.device) -> bool:
    """Whether distillation computes in bfloat16: as the study does, if it was planned before on another processor."""
    if study.plan.is_file():
        return bool(folder.read_record(study.plan, SearchPlan).identity.get("mixed_precision", False))
    return computes_bfloat16(device)


def computes_bfloat16(device: torch.device) -> bool:
    """Does this device multiply bfloat16 faster than float32? GPUs that we train on do, and CPUs with AVX-512 BF16.

    On two cores with AVX-512 BF16, a distillation step of the embedded model took 257 ms instead of 390.
    """
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def describe_environment(bench: Workbench) -> Environment:
    """Where this process measures."""
    names = ("torch", "transformers", "optuna", "numpy", "plotly", "datasets")
    return Environment(
        seed=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_name_processor(),
        num_threads=torch.get_num_threads(),
        device=name_device(bench.device),
        packages={name: importlib.metadata.version(name) for name in names},
    )


def name_device(device: torch.device) -> str:
    """``cpu``, or the GPU's product name: numbers of two kinds of GPU are not the same numbers."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def resolve_location(location: str) -> Path:
    """The directory of a local model."""
    return demo.MODEL_DIRECTORY if location == "demo" else Path(location)


def hash_weights(path: Path) -> str:
    """sha256 over the config and all safetensors files of a directory."""
    digest = hashlib.sha256()
    for file in [path / "config.json", *sorted(path.glob("*.safetensors"))]:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _open_model(source: ModelSource, *, device: torch.device, dtype_name: str | None) -> tuple[Teacher, Anatomy]:
    if source.location == "demo":
        source = replace(source, location=str(demo.MODEL_DIRECTORY))
    opened = open_teacher(source, device=device, dtype_name=dtype_name)
    return opened, Anatomy(opened.model)


def _bench(
    study: StudyFolder,
    protocol: Protocol,
    teacher: Teacher,
    anatomy: Anatomy,
    streams: dict[str, TokenStream],
    device: torch.device,
    gains: dict[int, float] | None,
) -> Workbench:
    micro_batch = choose_micro_batch(protocol.window_tokens, anatomy.config.vocab_size, device=device)
    return Workbench(
        folder=study,
        protocol=protocol,
        teacher=teacher,
        anatomy=anatomy,
        streams=streams,
        device=device,
        dtype=teacher.dtype,
        micro_batch=micro_batch,
        gains=gains,
        recomputes=protocol.lora_rank is None
        and measure_recompute(anatomy, window_tokens=protocol.window_tokens, mixed_precision=protocol.mixed_precision),
        grafted=open_start(teacher, anatomy, protocol, device),
    )


def _measure_gains(anatomy: Anatomy, stream: TokenStream, device: torch.device) -> dict[int, float] | None:
    tokens = stream.tokens_NT[:2, :64].to(device)
    return measure_gains(anatomy, anatomy.trace(tokens))


def _name_processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
