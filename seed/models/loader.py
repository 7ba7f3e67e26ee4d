"""Open the original model: a preset's name, a hub id, a local directory or a GGUF file -> model and tokenizer."""

import difflib
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from seed import demo, study_dir
from seed.errors import ModelError, ResourceError, first_line, is_offline, name_kinds
from seed.models import checks
from seed.models.files import CARD, COMPANIONS, check_files, has_tokenizer, is_gguf
from seed.models.gguf import convert, tell_of_gguf
from seed.models.stored import INDEX, SINGLE, StoredTensor, list_shards, read_tensors
from seed.models.surgery import refuse_unfit
from seed.records import HUB_ID

BESIDE_WEIGHTS = ("config.json", "adapter_config.json", CARD, *COMPANIONS)  # all that is small
LICENCE_FIELDS = ("license", "license_name", "license_link")
OFFLINE_CURE = (
    "Connect to the hub or download the model beforehand (hf download NAME), give a local directory "
    "(--model ./my-checkpoint), or try the embedded model (--model demo)."
)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from: a directory, a GGUF file or a hub id, and a revision where one is pinned."""

    location: str
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The original model, ready for inference, with its tokenizer."""

    source: ModelSource
    model: nn.Module
    tokenizer: Any
    dtype: torch.dtype  # computed in
    stored_dtype: torch.dtype  # exported in: as the checkpoint stores it, or narrower where it is opened narrower
    directory: Path  # where its files lie: the user's own, one in the hub's cache, or what a GGUF file was made into
    commit: str | None  # of the hub
    notes: tuple[str, ...] = ()  # what its user is told before its numbers are believed


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where a model's files lie, and of which commit of the hub they are."""

    directory: Path
    commit: str | None  # None: of none, it is a directory of the user's own


def choose_device(name: str | None) -> torch.device:
    """Return the device asked for, or the best at hand.

    Raises:
        ResourceError: the device is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        have = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ResourceError(
            f"--device {name}: not available here. Available: {', '.join(have)}. A device by its memory, such as cuda:24GB, "
            "is for python -m seed.search --dry-run."
        ) from error
    return device


def choose_dtype(name: str | None, *, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float32 on the CPU, else as stored, so that no weight loses precision."""
    if name is None:
        return torch.float32 if device.type == "cpu" else stored
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def find_directory(location: str) -> Path | None:
    """The directory that a model's name stands for: the embedded model's, or the user's own. None: it is one of the hub.

    A GGUF file is made into one.
    """
    path = demo.MODEL_DIRECTORY if location == "demo" else Path(location).expanduser()
    if is_gguf(path):
        return convert(path)
    return path if path.is_dir() else None


def check_source(source: ModelSource, *, presets: list[str]) -> None:
    """Check what can be checked without opening anything.

    Raises:
        ModelError: the directory lacks weights, config or tokenizer, or they are damaged; the name cannot be one.
    """
    location, path = source.location, find_directory(source.location)
    if path is not None:
        check_files(path)
        read_tensors(path)
        if not has_tokenizer(path):
            raise ModelError(
                f"{path}: a tokenizer (tokenizer.json, tokenizer.model or vocab.json) is missing. Give a directory that "
                "save_pretrained wrote, with its tokenizer."
            )
        return
    if Path(location).expanduser().exists():
        raise ModelError(
            f"--model {location}: is a file, and its name does not end with .gguf. Give the directory of the original model, "
            "with its config.json, tokenizer and safetensors, or a GGUF file."
        )
    if location.startswith((".", "/", "~")) or location.count("/") > 1 or location.endswith(".gguf"):
        raise ModelError(
            f"--model {location}: no such directory or GGUF file. Give a directory with config.json and weights."
        )
    if not HUB_ID.fullmatch(location):
        near = difflib.get_close_matches(location.lower(), presets, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known names: {', '.join(presets)}."
        raise ModelError(
            f"--model {location}: neither a known name, nor a directory, nor a hub id (OWNER/NAME). {hint}"
        )


def open_teacher(
    source: ModelSource,
    *,
    device: torch.device,
    dtype_name: str | None,
    will_cut: bool = True,
    computes_on: str | None = None,
) -> Teacher:
    """Load model and tokenizer, ready for inference.

    Args:
        source: where it comes from.
        device: where its weights are put.
        dtype_name: the type to compute in; None: as ``choose_dtype`` says.
        will_cut: layers are to be removed, so unfit families are refused.
        computes_on: the type of the device that it will be moved to before it computes; None: it stays.

    Raises:
        ModelError: nothing there, no network and nothing cached, a form Seed does not read, an unfit family.
    """
    place, trusted = f"--model {source.location}", {"trust_remote_code": source.trust_remote_code}
    located = _locate_companions(source)
    directory = located.directory
    check_files(directory)
    try:
        config = open_config(directory, **trusted)
        refuse_unfit(config, place=place, will_cut=will_cut)
        _fetch_weights(source, located)
        tensors = read_tensors(directory)
        stored_dtype = checks.find_stored_dtype(tensors)
        dtype = choose_dtype(dtype_name, device=torch.device(computes_on or device), stored=stored_dtype)
        tokenizer, told = checks.open_tokenizer(directory, place=place, **trusted)
        model, unread = load_model(
            directory, tensors, config=config, dtype=dtype, device=device, place=place, may_leave_out=True, **trusted
        )
        checks.refuse_words(tokenizer, model, place=place)
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"{place}: does not fit into the memory of {device}. Use a smaller model or --device cpu."
        ) from error
    except Exception as error:  # configs and tokenizers of anyone fail in ways of their own
        if study_dir.is_out_of_memory(error):
            raise
        raise explain_failure(source, error) from error
    made = tell_of_gguf(source.location, model)
    notes = (*made, told, checks.settle_ties(model), *checks.tell_of(tensors, unread, stored_dtype))
    return Teacher(
        source=source,
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        stored_dtype=dtype if torch.finfo(dtype).bits < torch.finfo(stored_dtype).bits else stored_dtype,
        directory=directory,
        commit=located.commit,
        notes=tuple(filter(None, notes)),
    )


def open_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """A directory's config, as transformers reads it."""
    return transformers.AutoConfig.from_pretrained(directory, **checks.allow_code(trust_remote_code))


def load_model(
    directory: Path,
    tensors: Sequence[StoredTensor],
    *,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    place: str,
    may_leave_out: bool = False,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, list[str]]:
    """Let transformers load a directory's model, ready for inference; return it with the names of tensors that it did not read.

    Args:
        directory: whose files ``check_files`` has seen.
        tensors: that lie there.
        config: of the directory.
        dtype: to compute in.
        device: where its weights are put.
        place: of the model, as the user named it.
        may_leave_out: tensors that transformers does not expect may lie there.
        trust_remote_code: the model's own code may run.

    Raises:
        ModelError: weights are missing, of another shape, quantized, an adapter's or not finite.
    """
    model, report = find_auto_class(config).from_pretrained(
        directory,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        **checks.allow_code(trust_remote_code),
    )
    unread = checks.list_unread(tensors, model, report["unexpected_keys"])
    checks.refuse_tensors(tensors, model, unread, place=place)
    kinds = ("missing_keys", "mismatched_keys", "error_msgs", *(() if may_leave_out else ("unexpected_keys",)))
    if wrong := {kind: sorted(map(str, report[kind])) for kind in kinds if report.get(kind)}:
        raise ModelError(
            f"{place}: weights do not match its config ({wrong}). Seed does not make weights up: download or save the "
            "checkpoint again; if Seed wrote it, remove it and run the same command again."
        )
    result: nn.Module = model.to(device).eval().requires_grad_(False)
    checks.refuse_not_finite(result, place=place, stored=checks.find_stored_dtype(tensors))
    return result, unread


def locate_checkpoint(source: ModelSource) -> Located:
    """Say where a model's config, weights and companions lie; those of the hub are downloaded where the cache lacks them.

    Raises:
        ModelError: no such model, or no network and not all of it cached.
    """
    if (path := find_directory(source.location)) is not None:
        return Located(directory=path, commit=None)
    located = _fetch(source, source.revision, (*BESIDE_WEIGHTS, SINGLE, INDEX))
    _fetch_weights(source, located)
    return located


def _locate_companions(source: ModelSource) -> Located:
    """A model's directory, with what stands beside its weights; without network, as much of it as the cache holds.

    Raises:
        ModelError: no such model, or no network and nothing cached.
    """
    if (path := find_directory(source.location)) is not None:
        return Located(directory=path, commit=None)
    code = ("*.py",) if source.trust_remote_code else ()
    try:
        return _fetch(source, source.revision, (*BESIDE_WEIGHTS, *code))
    except ModelError as error:
        incomplete = getattr(error.__cause__, "snapshot_path", None)
        if incomplete is None or not Path(incomplete, "config.json").is_file():
            raise
        return Located(directory=Path(incomplete), commit=Path(incomplete).name)


def _fetch_weights(source: ModelSource, located: Located) -> None:
    """Download the files of weights of a commit of the hub, where the cache lacks them.

    Raises:
        ModelError: there are none that Seed reads, or no network and not all of them cached.
    """
    if located.commit is None:
        return
    _fetch(source, located.commit, (SINGLE, INDEX))
    if not (located.directory / SINGLE).is_file() and (located.directory / INDEX).is_file():
        # shards are called what the index calls them: of Qwen3.5, model.safetensors-00001-of-00002.safetensors
        _fetch(source, located.commit, tuple(map(glob.escape, list_shards(located.directory))))


def _fetch(source: ModelSource, revision: str | None, patterns: Sequence[str]) -> Located:
    """Download files of the hub by patterns of their paths, where the cache lacks them."""
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(source.location, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise explain_failure(source, error) from error
    return Located(directory=found, commit=found.name)


def find_licence(directory: Path, *, named: str | None) -> dict[str, str]:
    """Return a model's licence in the hub's words: ``named`` where it is known, else what the model's own card says, if anything."""
    from huggingface_hub import ModelCard

    if named:
        return {"license": named}
    try:
        card = ModelCard((directory / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except Exception:  # no card, or what is no YAML, which fails in ways of its own
        return {}
    about = {name: getattr(card.data, name, None) for name in LICENCE_FIELDS}
    return {name: value for name, value in about.items() if isinstance(value, str)}


def explain_failure(source: ModelSource, error: BaseException) -> ModelError:
    """Say in one sentence what went wrong while loading."""
    named = f"--model {source.location}" + (f" (revision {source.revision})" if source.revision else "")
    kinds, message = name_kinds(error), first_line(error)
    if kinds & {"GatedRepoError"}:
        return ModelError(
            f"{named}: the hub asks you to accept this model's licence first. Accept it on its page, then run: hf auth login"
        )
    if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        return ModelError(
            f"{named}: the hub knows no such model or revision. Check the name (OWNER/NAME) and --revision."
        )
    if is_offline(error):
        return ModelError(f"{named}: not in the local cache, and the hub cannot be reached. {OFFLINE_CURE}")
    if any(kind.startswith("StrictDataclass") for kind in kinds):
        return ModelError(f"{named}: its config.json is wrong ({message}). Mend it, or download the model again.")
    if "Unrecognized configuration class" in message:
        return ModelError(
            f"{named}: transformers opens no language model from it (AutoModelForCausalLM, AutoModelForImageTextToText). Of a "
            "model that does more, save the language model on its own and give that."
        )
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{named}: this model brings its own code. If you trust its authors, add --trust-remote-code."
        )
    return ModelError(
        f"{named}: cannot be loaded ({type(error).__name__}: {message}). Check that transformers can open it."
    )


def find_auto_class(config: Any) -> Any:
    """The class of transformers whose ``from_pretrained`` and ``from_config`` open a model of this config whole."""
    causal, whole = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    return whole if _is_read_whole(whole, config) and not _is_read_whole(causal, config) else causal


def find_class(config: Any) -> Any:
    """The class of transformers' own that such a model is of; None: it has none, or only one for the text part of it."""
    auto = find_auto_class(config)
    return auto._model_mapping[type(config)] if _is_read_whole(auto, config) else None


def reads_images(config: Any) -> bool:
    """Has a model of this config a part that sees?"""
    return getattr(config, "vision_config", None) is not None


def _is_read_whole(auto: Any, config: Any) -> bool:
    mapping, kind = auto._model_mapping, type(config)
    return kind in mapping and mapping[kind].config_class is not config.sub_configs.get("text_config")
