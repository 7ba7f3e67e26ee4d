"""What a search would do and take, said from the shape of its model: the work of ``--dry-run``.

Two layers of the shape with random weights are timed in place of the model, and the search's own formulas do the rest.
No weights are read, nothing is fetched, and nothing is written. Texts that are at hand are read; of the others the
published size is taken.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from seed import demo, resolve
from seed.config import StudyConfig, list_presets, read_preset
from seed.console import format_span
from seed.errors import ModelError, ResourceError, first_line
from seed.models.anatomy import Anatomy, text_config
from seed.models.checkpoint import measure_size
from seed.models.checks import find_stored_dtype, open_tokenizer
from seed.models.classes import find_auto_class
from seed.models.files import check_files
from seed.models.stored import read_tensors
from seed.models.surgery import list_needed, refuse_unfit, repair_config
from seed.models.teacher import ModelSource, check_source, choose_device, choose_dtype, explain_failure
from seed.plans import Protocol, StreamRecord
from seed.reporting.wording import count_things, format_bytes, format_count
from seed.resolve import fill_by_size, find_space
from seed.scoring.corpus import CorpusRequest, has_own_splits, open_streams, read_source
from seed.scoring.documents import SPLITS
from seed.scoring.lora import count_update_params
from seed.scoring.memory import count_kept_bytes, count_usable_bytes
from seed.scoring.quality import choose_micro_batch
from seed.scoring.refit import measure_gains
from seed.stages import costs, protocols
from seed.stages.peaks import estimate_peak
from seed.stages.shapes import Shape, measure_mlp_width

# Words of WikiText-2 (Merity et al. 2016, arXiv 1609.07843, table 1). GPT-2's tokenizer makes 287,644 tokens of the
# test text, 1.17 a word; Llama 2's, with its 32,000 tokens, 341,469, which is 1.39.
WIKITEXT2_WORDS = {"recovery": 2_088_628, "validation": 217_646, "test": 245_569}
TOKENS_PER_WORD, TOKENS_PER_WORD_SMALL_VOCABULARY = 1.2, 1.4
SMALL_VOCABULARY = 40_000
CHARACTERS_PER_TOKEN = 4
UNREAD_TOKENS = 262_144  # of a test text that nobody capped and that cannot be read here

TIMED_MULTIPLY_ADDS = 2e10  # of a layer and the head on the CPU: a second or less of one core
TIMED_FIT_WIDTH = 512
GPU_BYTES = 24e9  # a card of 24 GiB has 25.8e9; the rest is for CUDA itself and for gaps between tensors
GPU_FLOPS, GPU_PRECISE_FLOPS = 50e12, 1e12  # what such a card sustains, and in float64; a multiply-add is two
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def rehearse(settings: StudyConfig, *, name: str, say: Callable[[str], None]) -> None:
    """Say what the search would do and take.

    Raises:
        SeedError: what the search itself would refuse, as far as it can be seen without weights; or the model's shape is
            not known here.
    """
    load, device = costs.describe_load(), choose_device(settings.device)
    source = protocols.find_source(settings)
    whole_config = read_config(source, settings)
    refuse_unfit(whole_config, place=f"--model {source.location}")
    whole = build_without_weights(whole_config, trust_remote_code=source.trust_remote_code)
    config: Any = text_config(whole)
    num_params = sum(weight.numel() for weight in whole.parameters())
    settings = fill_by_size(
        settings,
        num_layers=config.num_hidden_layers,
        num_params=num_params,
        max_positions=getattr(config, "max_position_embeddings", None) or 1024,
    )
    space = find_space(settings, num_layers=config.num_hidden_layers, needed=list_needed(whole_config))
    request = protocols.request_text(settings, config)
    streams = describe_text(request, source, vocabulary=config.vocab_size)
    stored = find_stored(source, whole_config)
    dtype = choose_dtype(settings.dtype, device=device, stored=stored)
    small = Anatomy(build_small(whole_config, dtype=dtype, device=device, trust_remote_code=source.trust_remote_code))
    layers = Anatomy(whole).layers
    layer_params = sum(weight.numel() for weight in layers.parameters()) // len(layers)
    tokens = choose_tokens(config, layer_params=layer_params, window_tokens=request.window_tokens, device=device)
    gains = measure_gains(small, small.trace(tokens[:, :64]))
    protocol = protocols.fix_protocol(
        settings,
        source,
        request,
        space,
        config=config,
        commit=None,
        weights_sha256=None,
        streams=streams,
        gains=gains,
        mixed_precision=protocols.computes_bfloat16(device),
        device=protocols.name_device(device),
        dtype=dtype,
    )
    kept_bytes, kept_copies = count_kept_bytes(small, tokens, mixed_precision=True)
    shape = Shape(
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        mlp_width=0 if gains is None else measure_mlp_width(small),
        vocabulary=config.vocab_size,
        num_params=num_params,
        layer_params=layer_params,
        update_params=count_update_params(whole),
        cache_bytes=measure_size(small.model, dtype=dtype).kv_bytes_per_token
        * config.num_hidden_layers
        // small.num_layers,
        number_bytes=dtype.itemsize,
        stored_bytes=min(dtype.itemsize, stored.itemsize),
        kept_bytes=kept_bytes,
        kept_copies=kept_copies,
        gpu_bytes=count_usable_bytes(device) if device.type == "cuda" else 0,
        calibration_tokens=protocol.calibration_tokens,
        validation_tokens=streams["validation"].tokens,
        test_tokens=streams["test"].tokens,
        recovery_windows=streams["recovery"].tokens // protocol.window_tokens,
    )
    fit_width = None if shape.on_gpu else TIMED_FIT_WIDTH
    speed = costs.time_parts(small, shape, tokens, fit_width=fit_width)
    plan = costs.draft_plan(settings, protocol, name=name, shape=shape, speed=speed)
    cost = costs.estimate_cost(shape, protocol, plan, speed, distill=settings.distill)
    say(
        f"dry run for {source.location}: {shape.num_layers} layers, {format_count(num_params)} parameters; no weights are "
        "read, nothing is written"
    )
    for line in costs.describe_plan(protocol, plan, cost):
        say(line)
    gpu_type = choose_dtype(settings.dtype, device=torch.device("cuda"), stored=stored)
    gpu = dataclasses.replace(shape, gpu_bytes=int(GPU_BYTES), number_bytes=gpu_type.itemsize)
    trains, climbs = settings.distill or protocol.rung == "short_distillation", protocol.rung == "short_distillation"
    for line in describe_depths(shape, gpu, protocol, trains=trains, climbs=climbs):
        say(line)
    say(f"time: estimated on {describe_device(device)}, from one layer and the head with random weights")
    if load is not None:
        say(f"  {load}")
    if not shape.on_gpu:
        plain, precise = (
            costs.estimate_cost(shape, protocol, plan, parts, distill=settings.distill)
            for parts in costs.count_parts(small, shape, window_tokens=protocol.window_tokens)
        )
        say(
            "  "
            + describe_work(
                plain.search_seconds + plain.distill_seconds, precise.search_seconds + precise.distill_seconds
            )
        )
    say(describe_fit(gpu, protocol, trains=trains, climbs=climbs))
    try:
        costs.require_resources(
            cost, root=settings.studies_dir / name, free_bytes=costs.measure_free_bytes(device), device=str(device)
        )
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

    location = str(demo.MODEL_DIRECTORY) if source.location == "demo" else source.location
    if Path(location).is_dir():
        if not (Path(location) / "config.json").is_file():
            raise ModelError(f"{location}: config.json is missing. Give a directory that save_pretrained wrote.")
        check_files(Path(location))
    else:
        check_source(source, presets=list_presets())
        own = {"hub_id": settings.hub_id, "shape": settings.shape}
        for one in [] if settings.is_given("revision") else [own, *map(read_preset, list_presets())]:
            if one["hub_id"] == location and one.get("shape") is not None:
                return make_config(one["shape"], name=location)
    options: dict[str, Any] = {"trust_remote_code": source.trust_remote_code, "local_files_only": True}
    if source.revision:
        options["revision"] = source.revision
    try:
        return transformers.AutoConfig.from_pretrained(location, **options)
    except Exception as error:  # configs of anyone fail in ways of their own
        if Path(location).is_dir():
            raise explain_failure(source, error) from error
        raise ModelError(
            f"--model {location}: its shape is not known offline: no preset has a [config] for it, and its config.json is not "
            f"in the local cache. Fetch it (hf download {location} config.json), give a local directory, or choose a known "
            f"name: {', '.join(list_presets())}."
        ) from error


def find_stored(source: ModelSource, config: Any) -> torch.dtype:
    """The type that a model's weights are stored in: as their headers say where all lie here, else as its config says."""
    with contextlib.suppress(ModelError):  # weights that are missing or damaged, which a dry run does not need
        return find_stored_dtype(read_tensors(protocols.resolve_location(source.location)))
    stored = config.get_text_config().dtype or config.dtype or torch.float32
    return getattr(torch, stored) if isinstance(stored, str) else stored


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


def build_without_weights(config: Any, *, trust_remote_code: bool = False) -> nn.Module:
    """The whole model on the meta device: shapes only.

    Raises:
        ModelError: transformers cannot build it.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = find_auto_class(config).from_config(
                copy.deepcopy(config), trust_remote_code=trust_remote_code
            )
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(
            f"{config.model_type}: no language model can be built from this config ({first_line(error)}). Choose another model."
        ) from error
    return model


def build_small(config: Any, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> nn.Module:
    """A model of the first and the middle layer, with the whole embedding and head and random weights."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    repair_config(text, sorted({0, text.num_hidden_layers // 2}))
    with device:
        model: Any = find_auto_class(config).from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    result: nn.Module = model.eval().requires_grad_(False)
    return result


def choose_tokens(config: Any, *, layer_params: int, window_tokens: int, device: torch.device) -> torch.Tensor:
    """Random tokens (B, T) to time on: a micro-batch as the search has them, on the CPU no more than a second's work."""
    rows = choose_micro_batch(window_tokens, config.vocab_size, device=device)
    columns = window_tokens
    if device.type == "cpu":
        most = max(64, int(TIMED_MULTIPLY_ADDS / (layer_params + config.vocab_size * config.hidden_size)))
        rows, columns = max(1, min(rows, most // window_tokens)), min(window_tokens, most)
    return torch.randint(0, config.vocab_size, (rows, columns), generator=torch.Generator().manual_seed(0)).to(device)


def describe_text(request: CorpusRequest, source: ModelSource, *, vocabulary: int) -> dict[str, StreamRecord]:
    """How many tokens each stream would hold: read where text and tokenizer are at hand, else estimated.

    Estimated streams have no documents and no hash. Raises CorpusError for text that is missing or too short.
    """
    texts = {
        "recovery": request.recovery,
        "validation": request.validation or request.recovery,
        "test": request.test or request.recovery,
    }
    directory = demo.MODEL_DIRECTORY if source.location == "demo" else Path(source.location)
    has_tokenizer = any((directory / name).is_file() for name in TOKENIZER_FILES)
    if has_tokenizer and all(_is_at_hand(text) for text in texts.values()):
        tokenizer, _ = open_tokenizer(
            directory,
            directory=directory,
            place=f"--model {source.location}",
            local_files_only=True,
            trust_remote_code=source.trust_remote_code,
        )
        return {name: stream.describe() for name, stream in open_streams(request, tokenizer).items()}
    most = {"recovery": request.recovery_tokens, "validation": request.validation_tokens, "test": request.test_tokens}
    found = {}
    for split in SPLITS:
        text, cap = texts[split], most[split]
        is_whole = list(texts.values()).count(text) == 1 and not has_own_splits(text)
        tokens, basis = _estimate_tokens(text, split, cap=cap, is_whole=is_whole, vocabulary=vocabulary)
        windows = max(1, min(tokens, cap or tokens) // request.window_tokens)
        found[split] = StreamRecord(
            source=f"{text}, {basis}", tokens=windows * request.window_tokens, documents=0, sha256=""
        )
    return found


def _is_at_hand(text: str) -> bool:
    return text == "demo" or not has_own_splits(text)


def _estimate_tokens(text: str, split: str, *, cap: int | None, is_whole: bool, vocabulary: int) -> tuple[int, str]:
    """Tokens of a stream's text, and what they are estimated by."""
    if text == "wikitext2":
        rate = TOKENS_PER_WORD_SMALL_VOCABULARY if vocabulary < SMALL_VOCABULARY else TOKENS_PER_WORD
        return int(WIKITEXT2_WORDS[split] * rate), f"by its published {WIKITEXT2_WORDS[split]:,} words"
    if not _is_at_hand(text):
        return cap or UNREAD_TOKENS, "of unknown size, taken as large enough"
    found = read_source(text, None)
    chosen = found.whole if is_whole else found.documents[split]
    characters = sum(map(len, chosen))
    return characters // CHARACTERS_PER_TOKEN, f"by its {characters:,} characters"


def describe_depths(shape: Shape, gpu: Shape, protocol: Protocol, *, trains: bool, climbs: bool) -> list[str]:
    """A line for each depth: candidates, what is left of the model, and what it takes to distill on a GPU."""
    lines = []
    space = protocol.space
    for dropped in range(space.min_dropped, space.max_dropped + 1):
        left = shape.num_params - dropped * shape.layer_params
        line = (
            f"  {shape.num_layers - dropped} of {shape.num_layers} layers: {count_things(math.comb(len(space.droppable_layers), dropped), 'candidate')}, "
            f"{format_count(left)} parameters, -{100 * (1 - left / shape.num_params):.1f} %, "
            f"{format_bytes(left * shape.stored_bytes)} of weights"
        )
        if trains:
            alone = dataclasses.replace(gpu, mlp_width=0)  # without a sweep
            peak = estimate_peak(alone, protocol, trains=True, climbs=climbs, num_dropped=dropped)
            line += f"; distilled in {format_bytes(peak.num_bytes)} of a GPU"
        lines.append(line)
    return lines


def describe_device(device: torch.device) -> str:
    """The device, and how much of it."""
    if device.type == "cuda":
        return protocols.name_device(device)
    return f"{device.type} with {count_things(torch.get_num_threads(), 'thread')}"


def describe_work(plain: float, precise: float) -> str:
    """Multiply-adds in words, and hours at a GPU's rate."""
    seconds = 2 * plain / GPU_FLOPS + 2 * precise / GPU_PRECISE_FLOPS
    in_float64 = f" ({precise:.0e} of them in float64)" if precise else ""
    return (
        f"a GPU is far faster: about {plain + precise:.1e} multiply-adds{in_float64} take "
        f"{format_span(seconds)} at {GPU_FLOPS / 1e12:.0f} TFLOP/s ({GPU_PRECISE_FLOPS / 1e12:.0f} in float64)"
    ).replace("e+", "e")


def describe_fit(gpu: Shape, protocol: Protocol, *, trains: bool, climbs: bool) -> str:
    """Does the search fit a GPU of 24 GB, and which options make it fit?"""
    peak = estimate_peak(gpu, protocol, trains=trains, climbs=climbs)
    parts = f"{format_bytes(peak.num_bytes)} there: {peak.describe(in_detail=False)}"
    if peak.num_bytes <= GPU_BYTES:
        return f"fits one GPU of 24 GB, at most {parts}"
    found = f"does not fit one GPU of 24 GB, up to {parts}"
    halved = f"--validation-tokens {protocol.validation_tokens // 2}"
    for names in ([1], [2], [3], [1, 3], [2, 3], [1, 2], [1, 2, 3]):
        smaller, lighter = gpu, protocol
        words: list[str] = []
        if 1 in names and trains and not protocol.lora_rank:
            lighter, words = msgspec.structs.replace(lighter, lora_rank=16), [*words, "--lora-rank 16"]
        if 2 in names and gpu.number_bytes > 2:
            smaller, words = dataclasses.replace(smaller, number_bytes=2), [*words, "--dtype bfloat16"]
        if 3 in names:
            smaller, words = (
                dataclasses.replace(smaller, validation_tokens=gpu.validation_tokens // 2),
                [*words, halved],
            )
        less = estimate_peak(smaller, lighter, trains=trains, climbs=climbs)
        if less.num_bytes <= GPU_BYTES:
            return f"{found}. With {' '.join(words)} at most {format_bytes(less.num_bytes)}"
    return found
