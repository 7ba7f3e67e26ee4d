"""A dry run: what a search would do and take, said from the shape of its model. No weights, no network, nothing written.

A few layers of the shape with random weights are timed in place of the model, or a device that is not here is asked for and
its published rates are taken. Texts that are at hand are read; of the others the published size is taken.
"""

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from seed import cost, protocols, resolve, sessions, time_budget
from seed.assumed_speed import Device, assume_speed, find_device
from seed.cli import spell_flag
from seed.config import StudyConfig, fill_by_size, known
from seed.console import UNSURE, format_seconds, format_span
from seed.cost import Cost, Estimator, Shape
from seed.data.corpus import CorpusRequest, has_own_splits, open_streams, read_source
from seed.data.documents import SPLITS
from seed.errors import ModelError, ResourceError, first_line
from seed.models.anatomy import Anatomy, count_params, text_config
from seed.models.checks import open_tokenizer
from seed.models.files import check_files, has_tokenizer, is_gguf
from seed.models.gguf import find_converted, read_gguf_config
from seed.models.loader import ModelSource, check_source, choose_device, choose_dtype, explain_failure, find_auto_class
from seed.models.surgery import list_needed, refuse_unfit, repair_config
from seed.optimize.space import list_parts
from seed.plans import Protocol, SearchPlan, StreamRecord
from seed.protocols import Original, Reference
from seed.records import SearchSpace
from seed.reporting.wording import count_things, describe_gguf, format_bytes, format_count
from seed.resolve import list_presets, name_base, read_preset
from seed.speed import Speed
from seed.stages.budgets import measure_free_bytes

# WikiText-2's published words (arXiv 1609.07843, table 1) at 1.3 tokens each: GPT-2's tokenizer makes 1.17, Llama 2's 1.39.
WIKITEXT2_TOKENS = {"recovery": 2_715_000, "validation": 283_000, "test": 319_000}
CHARACTERS_PER_TOKEN = 4
UNREAD_TOKENS = 262_144  # of a text that nobody capped and that cannot be read here

FEW_WORDS, FEW_TOKENS = 1024, 16  # suffice where nothing is timed
GPU_BYTES = 24e9  # a card of 24 GiB has 25.8e9; the rest is for CUDA itself and for gaps between tensors


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a search would do and take. ``elsewhere``: the device, where it is not one of this machine."""

    settings: StudyConfig
    source: ModelSource
    estimator: Estimator
    plan: SearchPlan
    cost: Cost
    device: torch.device
    elsewhere: Device | None

    def describe(self) -> list[str]:
        """Say it in lines."""
        settings, shape, protocol, plan = self.settings, self.estimator.shape, self.plan.protocol, self.plan
        lines = [
            f"dry run for {self.source.location}: {shape.num_layers} layers, {format_count(shape.num_params)} parameters; no "
            "weights are read, nothing is written"
        ]
        if protocol.gguf_types:
            lines.append(f"from {describe_gguf(protocol.gguf_types)}")
        lines += cost.describe_plan(plan, self.cost)
        lines += time_budget.describe_time(settings, self.estimator, plan, self.cost, spent=0.0)
        lines += describe_depths(shape, protocol)
        if self.elsewhere is not None:
            lines.append(self.elsewhere.describe())
        else:
            threads = "" if shape.gpu_bytes else f" with {count_things(torch.get_num_threads(), 'thread')}"
            lines.append(f"times are of {protocol.device}{threads}, from a few layers and the head with random weights")
        if self.elsewhere is None or shape.gpu_bytes:
            lines.append(describe_fit(self.on_gpu, trains=self.trains))
        return lines

    @property
    def trains(self) -> bool:
        """Are students trained, for good or for a score?"""
        return self.settings.distill or self.plan.protocol.proxy == "short-distillation"

    @property
    def on_gpu(self) -> Estimator:
        """The same on the GPU that is asked for, or on one of 24 GB."""
        if self.elsewhere is not None:
            return self.estimator
        shape = self.estimator.shape
        number_bytes = {None: shape.stored_bytes, "float32": 4}.get(self.settings.dtype, 2)
        return replace(self.estimator, shape=replace(shape, gpu_bytes=int(GPU_BYTES), number_bytes=number_bytes))

    def require_resources(self) -> None:
        """Refuse what the search would refuse, and a time that is too short for it.

        Raises:
            ResourceError: memory, disk or ``--time`` do not suffice.
        """
        settings, elsewhere = self.settings, self.elsewhere
        cost.require_resources(
            self.cost,
            root=settings.studies_dir / self.plan.name if elsewhere is None else None,
            free_bytes=measure_free_bytes(self.device) if elsewhere is None else elsewhere.num_bytes,
            device=str(self.device) if elsewhere is None else known(settings.device),
        )
        if settings.is_given("time") and UNSURE[0] * self.cost.seconds > known(settings.time):
            raise ResourceError(
                f"--time {format_seconds(known(settings.time))}: even so little takes {format_span(self.cost.seconds)} on "
                f"{self.plan.protocol.device}. Give more time, or choose a smaller model."
            )


def run(settings: StudyConfig, *, name: str, say: Callable[[str], None]) -> None:
    """Say what the search would do and take."""
    planned = plan_search(settings, name=name)
    for line in planned.describe():
        say(line)
    planned.require_resources()
    there, command = ("", settings) if planned.elsewhere is None else (" there", settings.change(device=None))
    say(f"run it{there}: {resolve.typed_command(command)}")


def plan_search(settings: StudyConfig, *, name: str) -> DryRun:
    """Plan a search and estimate its cost, on this machine or on a device that is not here.

    Raises:
        SeedError: the search would refuse it; or the model's shape is not known here.
    """
    elsewhere = find_device(settings.device)
    device = choose_device(settings.device) if elsewhere is None else torch.device("cpu")
    source = protocols.find_source(settings)
    config = read_config(source, settings)
    refuse_unfit(config, place=f"--model {source.location}")
    whole = build(config, device=torch.device("meta"), trust_remote_code=source.trust_remote_code)
    text: Any = text_config(whole)
    settings = fill_by_size(
        settings,
        num_layers=text.num_hidden_layers,
        num_params=count_params(whole),
        max_positions=getattr(text, "max_position_embeddings", None) or 1024,
    )
    named = config.get_text_config().dtype or config.dtype or torch.float32
    stored = getattr(torch, named) if isinstance(named, str) else named
    if elsewhere is None:
        reference = protocols.describe_reference(device)
    else:
        reference = Reference(type=elsewhere.kind, name=elsewhere.name, computes_bfloat16=elsewhere.kind == "cuda")
    dtype = choose_dtype(settings.dtype, device=torch.device(reference.type), stored=stored)
    space = resolve.find_space(settings, num_layers=text.num_hidden_layers, needed=list_needed(config))
    is_timed = elsewhere is None
    small = Anatomy(
        build(
            shorten(config, is_timed=is_timed),
            device=device,
            dtype=dtype if is_timed else torch.float32,
            trust_remote_code=source.trust_remote_code,
        )
    )
    shape, speed, (gains, by_sublayers) = measure(
        small,
        whole,
        space=space,
        elsewhere=elsewhere,
        dtype=dtype,
        stored_dtype=stored,
        window_tokens=known(settings.window_tokens),
    )
    original = Original(
        source=source,
        config=text,
        space=space,
        gains=gains,
        by_sublayers=by_sublayers,
        dtype=dtype,
        device=reference.name,
        mixed_precision=reference.computes_bfloat16,
    )
    settings = time_budget.fit_opened(settings, original, shape=shape, speed=speed)
    streams = describe_text(protocols.request_text(settings, text), source)
    protocol = protocols.fix_protocol(settings, original, streams)
    estimator = Estimator(protocol=protocol, shape=shape, speed=speed)
    settings = time_budget.fit_work(settings, estimator, spent=0.0)
    plan = estimator.draft_plan(settings, name=name)
    return DryRun(
        settings=settings,
        source=source,
        estimator=estimator,
        plan=plan,
        cost=estimator.estimate_cost(plan, distill=settings.distill),
        device=device,
        elsewhere=elsewhere,
    )


def measure(
    small: Anatomy,
    whole: nn.Module,
    *,
    space: SearchSpace,
    elsewhere: Device | None,
    dtype: torch.dtype,
    stored_dtype: torch.dtype,
    window_tokens: int,
) -> tuple[Shape, Speed, tuple[dict[int, float] | None, bool]]:
    """A model's shape, how fast its parts are (timed on its few layers, or assumed), and what ``find_gains`` finds."""
    few = torch.arange(64 if elsewhere is None else FEW_TOKENS, device=small.device)
    tokens_BT = few.remainder(small.config.vocab_size)[None]
    found = sessions.find_gains(space, small, tokens_BT)
    gains, _ = found
    asked: dict[str, Any] = {"whole": whole, "dtype": dtype, "stored_dtype": stored_dtype, "for_gpu": True}
    if elsewhere is None:
        shape, speed = cost.measure_parts(small, window_tokens=window_tokens, gains=gains, trains=False, **asked)
        return shape, speed, found
    gpu_bytes = int(elsewhere.num_bytes) if elsewhere.kind == "cuda" else 0
    shape = cost.measure_shape(small, tokens_BT, closed_form=gains is not None, gpu_bytes=gpu_bytes, **asked)
    return shape, assume_speed(elsewhere, shape, window_tokens=window_tokens), found


def read_config(source: ModelSource, settings: StudyConfig) -> Any:
    """The model's config: from its directory, from a preset, or from the hub's local cache.

    A revision that was asked for may have another shape than the preset says, so only the cache knows it.

    Raises:
        ModelError: none of them has it.
    """
    import transformers

    location = source.location if source.location != "demo" else str(protocols.resolve_location("demo"))
    if is_gguf(location):
        if (made := find_converted(Path(location))) is None:
            return read_gguf_config(Path(location))
        location = str(made)
    is_local = Path(location).is_dir()
    if is_local:
        check_files(Path(location))
    else:
        check_source(source, presets=list_presets())
        own = settings.shape if settings.hub_id == location else None
        shape = own or read_preset(name_base(location)).get("shape")
        if shape is not None and not settings.is_typed("revision"):
            return make_config(shape, name=location)
    options: dict[str, Any] = {"trust_remote_code": source.trust_remote_code, "local_files_only": True}
    if source.revision:
        options["revision"] = source.revision
    try:
        return transformers.AutoConfig.from_pretrained(location, **options)
    except Exception as error:  # configs of anyone fail in ways of their own
        if is_local:
            raise explain_failure(source, error) from error
        raise ModelError(
            f"--model {location}: its shape is not known offline: no preset has a [config] for it, and its config.json is not "
            f"in the local cache. Fetch it (hf download {location} config.json), give a local directory, or choose a known "
            f"name: {', '.join(list_presets())}."
        ) from error


def make_config(shape: Mapping[str, Any], *, name: str) -> Any:
    """The transformers config of a preset's [config]."""
    import transformers

    try:
        return transformers.AutoConfig.for_model(**shape)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(
            f"[config] of {name}: not a config that transformers knows ({error}). Compare it with the model's "
            "config.json."
        ) from error


def shorten(config: Any, *, is_timed: bool = True) -> Any:
    """The config of a model of its first, middle and last layers alone; of few words where its head is not timed."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if not is_timed:
        text.vocab_size, text.pad_token_id = min(text.vocab_size, FEW_WORDS), None
    last = text.num_hidden_layers - 1
    repair_config(text, sorted({0, text.num_hidden_layers // 2, max(0, last - 1), last}))
    return config


def build(
    config: Any, *, device: torch.device, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> nn.Module:
    """A model with random weights; on the meta device with none, shapes only."""
    try:
        with device:
            model: Any = find_auto_class(config).from_config(
                copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
            )
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(
            f"{config.model_type}: no language model can be built from this config ({first_line(error)}). Choose another model."
        ) from error
    result: nn.Module = model.eval().requires_grad_(False)
    return result


def describe_text(request: CorpusRequest, source: ModelSource) -> dict[str, StreamRecord]:
    """How many tokens each stream would hold: read where text and tokenizer are at hand, else estimated.

    Estimated streams have no documents and no hash. Raises CorpusError for text that is missing or too short.
    """
    wanted = (request.recovery, request.validation or request.recovery, request.test or request.recovery)
    directory = protocols.resolve_location(source.location)
    if is_gguf(directory):  # one that was not opened before has its tokenizer inside
        directory = find_converted(directory) or directory
    if has_tokenizer(directory) and all(text == "demo" or not has_own_splits(text) for text in wanted):
        place = f"--model {source.location}"
        tokenizer, _ = open_tokenizer(directory, place=place, trust_remote_code=source.trust_remote_code)
        return {name: stream.describe() for name, stream in open_streams(request, tokenizer).items()}
    caps = (request.recovery_tokens, request.validation_tokens, request.test_tokens)
    found = {}
    for split, text, cap in zip(SPLITS, wanted, caps, strict=True):
        if text == "wikitext2":
            tokens, basis = WIKITEXT2_TOKENS[split], "by its published words"
        elif text != "demo" and has_own_splits(text):
            tokens, basis = cap or UNREAD_TOKENS, "of unknown size, taken as large enough"
        else:
            read = read_source(text, None)
            is_whole = wanted.count(text) == 1 and text != "demo"
            characters = sum(map(len, read.whole if is_whole else read.documents[split]))
            tokens, basis = characters // CHARACTERS_PER_TOKEN, f"by its {characters:,} characters"
        windows = max(1, min(tokens, cap or tokens) // request.window_tokens)
        found[split] = StreamRecord(
            source=f"{text}, {basis}", tokens=windows * request.window_tokens, documents=0, sha256=""
        )
    return found


def describe_depths(shape: Shape, protocol: Protocol) -> list[str]:
    """A line for each depth: candidates, and what is left of the model."""
    lines, space = [], protocol.space
    for dropped in range(space.min_dropped, space.max_dropped + 1):
        if space.kinds:  # attention and MLP weigh differently
            counts = [count for count in (2 * dropped - 1, 2 * dropped) if count in space.more_dropped]
            candidates = sum(math.comb(len(list_parts(space)), count) for count in counts)
            lines.append(
                f"  up to {count_things(2 * dropped, 'part')} of {2 * shape.num_layers}: {count_things(candidates, 'candidate')}"
            )
            continue
        left = shape.num_params - dropped * shape.layer_params
        candidates = math.comb(len(space.droppable_layers), dropped)
        lines.append(
            f"  {shape.num_layers - dropped} of {shape.num_layers} layers: {count_things(candidates, 'candidate')}, {format_count(left)} parameters, "
            f"-{100 * (1 - left / shape.num_params):.1f} %, {format_bytes(left * shape.stored_bytes)} of weights"
        )
    return lines


def describe_fit(gpu: Estimator, *, trains: bool) -> str:
    """Does the search fit this GPU, and which options make it fit?"""
    memory, size = gpu.estimate_peak(trains=trains), f"{gpu.shape.gpu_bytes / 1e9:g} GB"
    options = choose_lighter(gpu, trains=trains)
    if options == {}:
        return f"fits one GPU of {size}, at most {format_bytes(memory.num_bytes)} there: {memory}"
    found = f"does not fit one GPU of {size}, up to {format_bytes(memory.num_bytes)} there: {memory}"
    if options is None:
        return found
    flags = " ".join(f"{spell_flag(name)} {value}" for name, value in options.items())
    return (
        f"{found}. With {flags} at most {format_bytes(_lighten(gpu, options).estimate_peak(trains=trains).num_bytes)}"
    )


def choose_lighter(gpu: Estimator, *, trains: bool) -> dict[str, Any] | None:
    """The fewest options that make a search fit this GPU: none where it fits; None: it does not."""
    possible: dict[str, Any] = {"lora_rank": 16} if trains and not gpu.protocol.lora_rank else {}
    possible |= {"dtype": "bfloat16"} if gpu.shape.number_bytes > 2 else {}
    possible |= {"validation_tokens": gpu.protocol.validation_tokens // 2}
    for count in range(len(possible) + 1):
        for chosen in itertools.combinations(possible.items(), count):
            if _lighten(gpu, dict(chosen)).estimate_peak(trains=trains).num_bytes <= gpu.shape.gpu_bytes:
                return dict(chosen)
    return None


def _lighten(gpu: Estimator, options: Mapping[str, Any]) -> Estimator:
    """The same search with these options."""
    streams = gpu.protocol.streams
    tokens = min(gpu.validation_tokens, options.get("validation_tokens", gpu.validation_tokens))
    fewer = msgspec.structs.replace(streams["validation"], tokens=tokens)
    lighter = gpu.with_protocol(
        streams=streams | {"validation": fewer}, lora_rank=options.get("lora_rank", gpu.protocol.lora_rank)
    )
    number_bytes = 2 if "dtype" in options else gpu.shape.number_bytes
    return replace(lighter, shape=replace(gpu.shape, number_bytes=number_bytes))
