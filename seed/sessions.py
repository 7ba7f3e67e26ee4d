"""What a study needs in memory, opened once: the dense model, its streams, and the instruments.

Commands share it: ``search`` makes a plan with it, ``distill`` and ``evaluate`` reopen it from a plan.
"""

import functools
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from seed import __version__
from seed.config import StudyConfig, fill_by_size, spell_parts
from seed.console import Terminal
from seed.data.answers import read_prompts, write_answers
from seed.data.corpus import CorpusRequest, TokenStream, open_streams, require_windows
from seed.distillation.memory import measure_recompute
from seed.errors import CorpusError, ModelError, ResourceError, SpaceError
from seed.evaluation.latency import Workload
from seed.evaluation.perplexity import DocumentLosses, choose_micro_batch, logits_of, measure_losses
from seed.models.anatomy import Anatomy, SublayerAnatomy, agree, count_params, prove_sublayers, text_config
from seed.models.checkpoint import load_checkpoint, prove_round_trip, write_checkpoint
from seed.models.checks import refuse_ids
from seed.models.files import is_local
from seed.models.loader import ModelSource, Teacher, check_source, choose_device, open_teacher
from seed.models.provenance import read_start
from seed.models.surgery import graft, list_needed, view_layers
from seed.optimize.space import drop_parts, list_parts
from seed.plans import Environment, Protocol, read_plan
from seed.protocols import (
    Original,
    Reference,
    choose_precision,
    find_source,
    fix_protocol,
    hash_weights,
    make_request,
    name_device,
    request_text,
    require_same_weights,
    require_window,
    resolve_location,
)
from seed.proxy.closed_form import measure_gains
from seed.proxy.instruments import Instruments, make_walker, start_student
from seed.proxy.shared_maps import shares_maps
from seed.records import Candidate, SearchSpace
from seed.resolve import SELF, find_space, list_presets
from seed.study_dir import StudyFolder

# What closed form is proven on: so much of calibration and of validation text, and a cut among so many of the last layers.
PROVEN_WINDOWS, PROVEN_TOKENS, CUT_FROM = 2, 128, 4
LONGEST_CHAT = 2048  # tokens, of models that set no bound
QUIET = Terminal(quiet=True)


@dataclass(frozen=True, kw_only=True)
class Session:
    """An opened study: where it lies, what it measures, and with what."""

    folder: StudyFolder
    protocol: Protocol
    teacher: Teacher
    anatomy: Anatomy
    streams: dict[str, TokenStream]
    device: torch.device
    micro_batch: int
    gains: dict[int, float] | None  # what closed form needs; None: not available for this family
    grafted: Anatomy | None = None  # what candidates are cut from instead of the dense model

    @property
    def dtype(self) -> torch.dtype:
        """What the dense model computes in."""
        return self.teacher.dtype

    @functools.cached_property
    def recomputes(self) -> bool:
        """Must training run layers again on the way back, since memory is short? Measured when first asked: not all train."""
        return self.protocol.lora_rank is None and measure_recompute(
            self.anatomy,
            window_tokens=self.protocol.window_tokens,
            mixed_precision=self.protocol.mixed_precision,
        )

    @property
    def has_parts(self) -> bool:
        """Do attention and MLP go alone?"""
        return bool(self.protocol.space.kinds)

    @property
    def recovered_proxy(self) -> str:
        """The proxy of scores with recovery that need no training: closed form, or none where the family has no place for it."""
        return "none" if self.gains is None else "closed-form"

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

    def measure_losses(self, model: nn.Module, stream: TokenStream) -> DocumentLosses:
        """What a model loses on a stream, by document."""
        return measure_losses(logits_of(model), stream, micro_batch=self.micro_batch, device=self.device)

    def write_checkpoint(self, model: nn.Module, path: Path) -> None:
        """Write a model as it is exported."""
        teacher = self.teacher
        write_checkpoint(
            model, path, tokenizer=teacher.tokenizer, original=teacher.directory, dtype=teacher.stored_dtype
        )


def open_for_search(
    settings: StudyConfig,
    *,
    study: StudyFolder,
    device: torch.device,
    reference: Reference,
    terminal: Terminal = QUIET,
    fit: Callable[[StudyConfig, Original, Teacher, Anatomy], StudyConfig] = lambda settings, *_: settings,
) -> tuple[Session, StudyConfig]:
    """Open model and text as the settings say, and fix the protocol; return the settings too, filled by the model's size.

    Args:
        settings: of the search.
        study: the folder.
        device: where the model is put.
        reference: the device that it is measured on, perhaps by others (see ``move``).
        terminal: says what takes seconds.
        fit: chooses what text there is time for, once the model is opened.
    """
    source = find_source(settings)
    location = source.location
    if location != "demo":
        check_source(source, presets=list_presets())
    teacher = open_teacher(source, device=device, dtype_name=settings.dtype, computes_on=reference.type)
    anatomy = Anatomy(teacher.model)
    settings = fill_by_size(
        settings,
        num_layers=anatomy.num_layers,
        num_params=count_params(teacher.model),
        max_positions=getattr(anatomy.config, "max_position_embeddings", None) or 1024,
    )
    space = find_space(settings, num_layers=anatomy.num_layers, needed=list_needed(anatomy.model.config))
    gains, by_sublayers = find_gains(space, anatomy, make_few(anatomy))
    local = location == "demo" or is_local(location)
    original = Original(
        source=source,
        config=anatomy.config,
        space=space,
        gains=gains,
        by_sublayers=by_sublayers,
        dtype=teacher.dtype,
        device=reference.name,
        mixed_precision=choose_precision(study, reference),
        commit=None if local else teacher.commit,
        weights_sha256=hash_weights(resolve_location(location)) if local else None,
    )
    settings = fit(settings, original, teacher, anatomy)
    request = request_text(settings, anatomy.config)
    terminal.say(f"reading {request.recovery}")
    streams = _open_streams(request, teacher, terminal=terminal)
    protocol = fix_protocol(settings, original, {name: stream.describe() for name, stream in streams.items()})
    return _make_session(study, protocol, teacher, anatomy, streams, original.gains), settings


def reopen(study: StudyFolder, protocol: Protocol, *, device_name: str | None = None) -> Session:
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
        location=protocol.location,
        revision=protocol.commit or protocol.revision,
        trust_remote_code=protocol.trust_remote_code,
    )
    teacher = open_teacher(source, device=device, dtype_name=protocol.dtype)
    anatomy = Anatomy(teacher.model)
    if protocol.weights_sha256:
        require_same_weights(protocol.location, protocol.weights_sha256, study=study)
    streams = _open_streams(make_request(protocol, bos_each_window=protocol.bos_each_window), teacher)
    for name, stream in streams.items():
        if stream.describe().sha256 != protocol.streams[name].sha256:
            raise CorpusError(
                f"{stream.source}: the {name} text changed since {study.root} was planned "
                f"({stream.num_tokens:,} tokens now, {protocol.streams[name].tokens:,} then). Restore it, or start a study of another name."
            )
    if protocol.start is not None:
        require_same_weights(protocol.start, protocol.start_sha256, study=study)
    is_trusted = read_plan(study).trusts_closed_form
    gains = measure_gains_by(anatomy, make_few(anatomy), protocol.by_sublayers) if is_trusted else None
    return _make_session(study, protocol, teacher, anatomy, streams, gains)


def move(session: Session, device: torch.device, *, study: StudyFolder) -> Session:
    """The opened study on another device; its weights go there. ``study``: whose scratch folder is ours to use."""
    models = [anatomy.model for anatomy in (session.anatomy, session.grafted) if anatomy is not None]
    anatomy, *grafted = (Anatomy(model.to(device)) for model in models)
    gains = session.gains
    if gains is not None:  # whether there are any is decided; ``prove_closed_form`` says whether that holds here
        gains = measure_gains_by(anatomy, make_few(anatomy), session.protocol.by_sublayers) or gains
    return replace(
        session,
        folder=study,
        anatomy=anatomy,
        grafted=grafted[0] if grafted else None,
        device=device,
        micro_batch=choose_micro_batch(session.protocol.window_tokens, anatomy.config.vocab_size, device=device),
        gains=gains,
    )


def take_test_text(session: Session, *, window_tokens: int, test_tokens: int | None) -> TokenStream:
    """The study's test text in windows of this length; with ``test_tokens`` no more of it, and else as much as the study has.

    Raises:
        SeedError: the model does not read such windows, or the limit is below one of them.
    """
    stream, protocol = session.streams["test"], session.protocol
    require_window(window_tokens, session.anatomy.config)
    require_windows(test_tokens, window_tokens=window_tokens, option="--test-tokens")
    has_all = protocol.test_tokens is None or (test_tokens or 0) <= stream.num_tokens
    if window_tokens == protocol.window_tokens and has_all:
        return stream.take_evenly(test_tokens)
    wanted = replace(
        make_request(protocol, bos_each_window=protocol.bos_each_window),
        window_tokens=window_tokens,
        test_tokens=test_tokens or protocol.test_tokens,
    )
    return open_streams(wanted, session.teacher.tokenizer)["test"]


def prove(session: Session) -> None:
    """Prove on this very model that cutting, saving, reloading and the layer walk are right.

    Raises:
        ModelError: this model is not understood well enough.
    """
    tokens = session.streams["recovery"].tokens_NT[:2, : min(64, session.protocol.window_tokens)].to(session.device)
    anatomy, last = session.anatomy, session.anatomy.num_layers - 1
    first_state = anatomy.trace(tokens)[0]
    # all layers; and some, since a layer may be called with what an earlier one made
    for kept in dict.fromkeys([tuple(range(last + 1)), tuple(sorted({0, last // 2 + 1, last}))]):
        hidden = first_state
        with torch.no_grad():
            with view_layers(anatomy, Candidate.keep(num_layers=last + 1, kept_layers=kept)) as view:
                expected = view(input_ids=tokens, use_cache=False).logits
            for layer in kept:
                hidden = anatomy.run_layer(layer, hidden)
            if not expected.isfinite().all():
                raise ModelError(
                    f"--model {session.protocol.model}: its logits of layers {', '.join(map(str, kept))} are NaN or infinite in "
                    f"{str(session.dtype).removeprefix('torch.')}, though its weights are not. Choose another --dtype, or another model."
                )
            if not agree(anatomy.compute_logits(hidden, tokens), expected):
                raise ModelError(
                    f"{type(session.teacher.model).__name__}: running its layers one by one does not give the model's own logits, "
                    "so candidates cannot be scored correctly. Choose another model."
                )
    prove_round_trip(
        session.anatomy,
        tokens,
        scratch=session.folder.work,
        dtype=session.dtype,
        by_sublayers=session.has_parts,
    )


def prepare_instruments(session: Session) -> Instruments:
    """Measure the dense model's validation losses and put the instruments together."""
    return Instruments(
        anatomy=session.anatomy,
        calibration=session.streams["recovery"].take_evenly(session.protocol.calibration_tokens),
        recovery=session.streams["recovery"],
        validation=session.streams["validation"],
        dense_validation=session.measure_losses(session.teacher.model, session.streams["validation"]),
        gains=session.gains,
        micro_batch=session.micro_batch,
        stored_dtype=session.teacher.stored_dtype,
        grafted=session.grafted,
        by_sublayers=session.protocol.by_sublayers,
    )


def prove_closed_form(session: Session, instruments: Instruments) -> str | None:
    """Compare the student with folded corrections with the loss that the walk found; say how they differ, or None.

    On a little text, and without some of the last layers: each layer behind a cut takes a fit, and each is corrected alike.
    """
    space = session.protocol.space
    parts = list_parts(space)
    few = parts[len(parts) // 4 :][-CUT_FROM * max(1, len(space.kinds)) :]
    cut = list(dict.fromkeys([few[0], few[len(few) // 2]]))[-space.more_dropped[-1] :]
    candidate = drop_parts(space, cut[:1] if shares_maps(instruments.walked) else cut)
    instruments = replace(
        instruments,
        calibration=instruments.calibration.take_first(PROVEN_WINDOWS, tokens=PROVEN_TOKENS),
        validation=instruments.validation.take_first(PROVEN_WINDOWS, tokens=PROVEN_TOKENS),
    )
    walker = make_walker(instruments)
    if walker.maps is not None:  # which so little text would leave out
        walker.maps.or_none = False
    losses, refit = walker.measure(instruments.walked.spell(candidate))
    student = start_student(instruments, candidate, refit)
    folded = session.measure_losses(student, instruments.validation)
    tolerance = 1e-4 if session.dtype == torch.float32 else 2e-2
    if abs(folded.loss - losses.loss) <= tolerance:
        return None
    return (
        f"{type(session.teacher.model).__name__}: a student with closed-form recovery has a validation loss of "
        f"{folded.loss:.5f}, but its score says {losses.loss:.5f}"
    )


def describe_environment(session: Session) -> Environment:
    """Where this process measures."""
    names = ("torch", "transformers", "optuna", "numpy", "plotly", "datasets")
    return Environment(
        seed=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_name_processor(),
        num_threads=torch.get_num_threads(),
        device=name_device(session.device),
        packages={name: importlib.metadata.version(name) for name in names},
    )


def _open_streams(request: CorpusRequest, teacher: Teacher, *, terminal: Terminal = QUIET) -> dict[str, TokenStream]:
    recovery = request.recovery
    if recovery.startswith(SELF):
        request = replace(request, recovery=str(_answer(recovery.removeprefix(SELF), teacher, terminal)))
    streams = {
        name: replace(stream, source=recovery if stream.source == request.recovery else stream.source)
        for name, stream in open_streams(request, teacher.tokenizer).items()
    }
    for stream in streams.values():
        refuse_ids(stream.tokens_NT, teacher.model, source=stream.source)
    return streams


def _answer(prompts: str, teacher: Teacher, terminal: Terminal) -> Path:
    """Let the model answer a file of prompts, and return the file with its answers."""
    longest = getattr(text_config(teacher.model), "max_position_embeddings", None) or LONGEST_CHAT
    tokens = read_prompts(prompts, teacher.tokenizer, longest=longest)
    with terminal.stage("own answers", total=len(tokens)) as advance:
        return write_answers(
            teacher.model,
            teacher.tokenizer,
            tokens,
            version=teacher.commit or hash_weights(teacher.directory),
            longest=longest,
            on_answers=lambda count: advance(count, ""),
        )


def _make_session(
    study: StudyFolder,
    protocol: Protocol,
    teacher: Teacher,
    anatomy: Anatomy,
    streams: dict[str, TokenStream],
    gains: dict[int, float] | None,
) -> Session:
    device, grafted = anatomy.device, None
    if protocol.start is not None:  # the recovered model, its layers at their original places
        start = read_start(Path(protocol.start))
        recovered = load_checkpoint(start.path, device=device, dtype=teacher.dtype)
        grafted = graft(anatomy, recovered, start.candidate)
    return Session(
        folder=study,
        protocol=protocol,
        teacher=teacher,
        anatomy=anatomy,
        streams=streams,
        device=device,
        micro_batch=choose_micro_batch(protocol.window_tokens, anatomy.config.vocab_size, device=device),
        gains=gains,
        grafted=grafted,
    )


def make_few(anatomy: Anatomy) -> torch.Tensor:
    """Tokens enough to see how a model is made (B, T)."""
    return torch.arange(64, device=anatomy.device).remainder(anatomy.config.vocab_size)[None]


def find_gains(space: SearchSpace, anatomy: Anatomy, tokens_BT: torch.Tensor) -> tuple[dict[int, float] | None, bool]:
    """What closed form needs to know of a model (``measure_gains``), and whether by attention and MLP in turn, which recovers more.

    Raises:
        SpaceError: attention and MLP are to go alone, and cannot in this model.
    """
    if space.gone_layers:  # of which nothing is left that could be walked so
        return measure_gains_by(anatomy, tokens_BT, False), False
    reason = prove_sublayers(anatomy, tokens_BT.to(anatomy.device))
    if space.kinds and reason:
        raise SpaceError(
            f"--parts {spell_parts(space.kinds)}: cannot go alone in this {anatomy.config.model_type} model, since {reason}. Leave --parts out: "
            "whole layers can."
        )
    gains = None if reason else measure_gains_by(anatomy, tokens_BT, True)
    if gains is None and not space.kinds:
        return measure_gains_by(anatomy, tokens_BT, False), False
    return gains, True


def measure_gains_by(anatomy: Anatomy, tokens_BT: torch.Tensor, by_sublayers: bool) -> dict[int, float] | None:
    """What closed form needs to know of a model, by attention and MLP in turn or by whole layers: see ``measure_gains``."""
    walked = SublayerAnatomy(anatomy.model) if by_sublayers else anatomy
    return measure_gains(walked, walked.trace(tokens_BT.to(anatomy.device)))


def _name_processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
