"""A dry run: what a search would do and take, said from the shape of its model. No weights, no network, nothing written.

A few layers of the shape with random weights are timed in place of the model. Texts that are at hand are read; of the
others the published size is taken.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from seed import cost, protocols, resolve, time_budget
from seed.config import StudyConfig, fill_by_size, known
from seed.cost import Shape
from seed.data.corpus import CorpusRequest, has_own_splits, open_streams, read_source
from seed.data.documents import SPLITS
from seed.errors import ModelError, ResourceError, first_line
from seed.models.anatomy import Anatomy, count_params, text_config
from seed.models.checks import open_tokenizer
from seed.models.files import check_files, has_tokenizer, is_gguf
from seed.models.gguf import find_converted, read_gguf_config
from seed.models.loader import ModelSource, check_source, choose_device, choose_dtype, explain_failure, find_auto_class
from seed.models.surgery import list_needed, refuse_unfit, repair_config
from seed.plans import Protocol, StreamRecord
from seed.proxy.closed_form import measure_gains
from seed.reporting.wording import count_things, describe_gguf, format_bytes, format_count
from seed.resolve import list_presets, name_base, read_preset

# WikiText-2's published words (arXiv 1609.07843, table 1) at 1.3 tokens each: GPT-2's tokenizer makes 1.17, Llama 2's 1.39.
WIKITEXT2_TOKENS = {"recovery": 2_715_000, "validation": 283_000, "test": 319_000}
CHARACTERS_PER_TOKEN = 4
UNREAD_TOKENS = 262_144  # of a text that nobody capped and that cannot be read here

GPU_BYTES = 24e9  # a card of 24 GiB has 25.8e9; the rest is for CUDA itself and for gaps between tensors


def run(settings: StudyConfig, *, name: str, say: Callable[[str], None]) -> None:
    """Say what the search would do and take.

    Raises:
        SeedError: what the search itself would refuse, as far as it can be seen without weights; or the model's shape is
            not known here.
    """
    device = choose_device(settings.device)
    source = protocols.find_source(settings)
    config = read_config(source, settings)
    refuse_unfit(config, place=f"--model {source.location}")
    whole = build(config, device=torch.device("meta"), trust_remote_code=source.trust_remote_code)
    text: Any = text_config(whole)
    num_params = count_params(whole)
    settings = fill_by_size(
        settings,
        num_layers=text.num_hidden_layers,
        num_params=num_params,
        max_positions=getattr(text, "max_position_embeddings", None) or 1024,
    )
    space = resolve.find_space(settings, num_layers=text.num_hidden_layers, needed=list_needed(config))
    named = config.get_text_config().dtype or config.dtype or torch.float32
    stored = getattr(torch, named) if isinstance(named, str) else named
    dtype = choose_dtype(settings.dtype, device=device, stored=stored)
    small = Anatomy(build(shorten(config), device=device, dtype=dtype, trust_remote_code=source.trust_remote_code))
    gains = measure_gains(small, small.trace(torch.arange(64, device=device).remainder(text.vocab_size)[None]))
    shape, speed = cost.measure_parts(
        small,
        whole=whole,
        window_tokens=known(settings.window_tokens),
        gains=gains,
        dtype=dtype,
        stored_dtype=stored,
        for_gpu=True,
        trains=settings.trains_all,
    )
    settings = time_budget.fit_opened(
        settings, source, space, config=text, gains=gains, dtype=dtype, device=device, parts=(shape, speed)
    )
    request = protocols.request_text(settings, text)
    protocol = protocols.fix_protocol(
        settings,
        source,
        request,
        space,
        config=text,
        commit=None,
        weights_sha256=None,
        streams=describe_text(request, source),
        gains=gains,
        mixed_precision=protocols.computes_bfloat16(device),
        device=protocols.name_device(device),
        dtype=dtype,
    )
    settings = time_budget.fit_work(settings, protocol, shape, speed, spent=0.0)
    plan = cost.draft_plan(settings, protocol, name=name, shape=shape, speed=speed)
    estimate = cost.estimate_cost(shape, protocol, plan, speed, distill=settings.distill)
    timed = time_budget.describe_time(settings, protocol, plan, estimate, speed, spent=0.0)
    say(
        f"dry run for {source.location}: {shape.num_layers} layers, {format_count(num_params)} parameters; no weights are "
        "read, nothing is written"
    )
    if protocol.gguf_types:
        say(f"from {describe_gguf(protocol.gguf_types)}")
    for line in [*cost.describe_plan(protocol, plan, estimate), *timed, *describe_depths(shape, protocol)]:
        say(line)
    threads = "" if shape.gpu_bytes else f" with {count_things(torch.get_num_threads(), 'thread')}"
    say(f"times are of {protocol.device}{threads}, from a few layers and the head with random weights")
    gpu_dtype = choose_dtype(settings.dtype, device=torch.device("cuda"), stored=stored)
    gpu = replace(shape, gpu_bytes=int(GPU_BYTES), number_bytes=gpu_dtype.itemsize)
    say(describe_fit(gpu, protocol, trains=settings.distill or protocol.proxy == "short-distillation"))
    try:
        root, free_bytes = settings.studies_dir / name, cost.measure_free_bytes(device)
        cost.require_resources(estimate, root=root, free_bytes=free_bytes, device=str(device))
    except ResourceError as error:
        say(f"here it would be refused: {error}")
    say(f"run it: {resolve.typed_command(settings)}")


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
    """The transformers config of a preset's [config].

    Raises:
        ModelError: it is not one.
    """
    import transformers

    try:
        return transformers.AutoConfig.for_model(**shape)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(
            f"[config] of {name}: not a config that transformers knows ({error}). Compare it with the model's "
            "config.json."
        ) from error


def shorten(config: Any) -> Any:
    """The config of a model of its first, middle and last layers alone."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    last = text.num_hidden_layers - 1
    repair_config(text, sorted({0, text.num_hidden_layers // 2, max(0, last - 1), last}))
    return config


def build(
    config: Any, *, device: torch.device, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> nn.Module:
    """A model with random weights; on the meta device with none, shapes only.

    Raises:
        ModelError: transformers cannot build it.
    """
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
    lines = []
    space = protocol.space
    for dropped in range(space.min_dropped, space.max_dropped + 1):
        left = shape.num_params - dropped * shape.layer_params
        candidates = count_things(math.comb(len(space.droppable_layers), dropped), "candidate")
        lines.append(
            f"  {shape.num_layers - dropped} of {shape.num_layers} layers: {candidates}, {format_count(left)} parameters, "
            f"-{100 * (1 - left / shape.num_params):.1f} %, {format_bytes(left * shape.stored_bytes)} of weights"
        )
    return lines


def describe_fit(gpu: Shape, protocol: Protocol, *, trains: bool) -> str:
    """Does the search fit a GPU of 24 GB, and which options, added one after another until it does, make it fit?"""
    memory = cost.estimate_peak(gpu, protocol, trains=trains)
    parts = f"{format_bytes(memory.num_bytes)} there: {memory}"
    if memory.num_bytes <= GPU_BYTES:
        return f"fits one GPU of 24 GB, at most {parts}"
    found = f"does not fit one GPU of 24 GB, up to {parts}"
    validation = protocol.streams["validation"]
    fewer = protocol.streams | {"validation": msgspec.structs.replace(validation, tokens=validation.tokens // 2)}
    lighter: dict[str, dict[str, Any]] = {
        "--lora-rank 16": {"lora_rank": 16} if trains and not protocol.lora_rank else {},
        "--dtype bfloat16": {"dtype": "bfloat16"} if gpu.number_bytes > 2 else {},
        f"--validation-tokens {protocol.validation_tokens // 2}": {"streams": fewer},
    }
    chosen: list[str] = []
    for flag, changes in lighter.items():
        if changes:
            chosen.append(flag)
            protocol = msgspec.structs.replace(protocol, **changes)
            gpu = replace(gpu, number_bytes=2) if "dtype" in changes else gpu
        memory = cost.estimate_peak(gpu, protocol, trains=trains)
        if memory.num_bytes <= GPU_BYTES:
            return f"{found}. With {' '.join(chosen)} at most {format_bytes(memory.num_bytes)}"
    return found
