"""Open the original model: a preset's name, a hub id or a local directory -> model and tokenizer."""

import difflib
import functools
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from seed import study_dir
from seed.errors import ModelError, ResourceError, first_line, is_offline, name_kinds
from seed.models import checks
from seed.models.files import COMPANIONS, check_files
from seed.models.stored import INDEX, SINGLE, list_shards, list_weights, read_tensors, refuse_pointer
from seed.models.surgery import refuse_other_kinds, refuse_unfit

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|[A-Za-z0-9][\w.-]*")
CARD = "README.md"
BESIDE_WEIGHTS = ("config.json", CARD, *COMPANIONS)  # all that is small
LICENCE_FIELDS = ("license", "license_name", "license_link")
OFFLINE_CURE = (
    "Connect to the hub or download the model beforehand (hf download NAME), give a local directory "
    "(--model ./my-checkpoint), or try the embedded model (--model demo)."
)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from: a directory or a hub id, and a revision where one is pinned."""

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
    directory: Path  # where its files lie: the user's own, or one in the hub's cache
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
        raise ResourceError(f"--device {name}: not available here. Available: {', '.join(have)}.") from error
    return device


def choose_dtype(name: str | None, *, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float32 on the CPU, else as stored, so that no weight loses precision."""
    if name is None:
        return torch.float32 if device.type == "cpu" else stored
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def check_source(source: ModelSource, *, presets: list[str]) -> None:
    """Check what can be checked without opening anything.

    Raises:
        ModelError: the directory is missing or lacks weights, config or tokenizer; the name cannot be one.
    """
    path = Path(source.location).expanduser()
    if path.is_dir():
        _check_directory(path)
        return
    if path.exists():
        raise _refuse_file(source.location)
    near = difflib.get_close_matches(source.location.lower(), presets, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else f" Known names: {', '.join(presets)}."
    if source.location.startswith((".", "/", "~")) or source.location.count("/") > 1:
        raise ModelError(
            f"--model {source.location}: no such directory. Give a directory with config.json and weights."
        )
    if "/" not in source.location or not HUB_ID.fullmatch(source.location):
        raise ModelError(
            f"--model {source.location}: neither a known name, nor a directory, nor a hub id (OWNER/NAME).{hint}"
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
    options: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    location, place = source.location, f"--model {source.location}"
    path = Path(location).expanduser()
    if path.is_dir():
        refuse_adapter(path)
        location = str(path)
        options["local_files_only"] = True
        located = Located(directory=path, commit=None)
    else:
        located = _locate_companions(source)
        options["revision"] = located.commit  # all further files are of the same, whatever is pushed meanwhile
    check_files(located.directory)
    try:
        config = transformers.AutoConfig.from_pretrained(location, **options)
        if will_cut:
            refuse_unfit(config, place=place)
        else:
            refuse_other_kinds(config, place=place)
        if located.commit is not None:
            _fetch_weights(source, located)
        tensors = read_tensors(located.directory)
        stored_dtype = checks.find_stored_dtype(tensors)
        dtype = choose_dtype(dtype_name, device=torch.device(computes_on or device), stored=stored_dtype)
        tokenizer, told = checks.open_tokenizer(location, directory=located.directory, place=place, **options)
        model, report = find_auto_class(config).from_pretrained(
            location, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        unread = checks.list_unread(tensors, model, report["unexpected_keys"])
        checks.refuse_tensors(tensors, model, unread, place=place)
        if report["missing_keys"] or report["mismatched_keys"]:
            wrong = sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))
            raise ModelError(
                f"{place}: {len(wrong)} weights are missing or of another shape, such as {wrong[0]}. "
                "Seed does not make weights up: download or save the checkpoint again."
            )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise _refuse_adapter(source.location)
        checks.refuse_words(tokenizer, model, place=place)
        model = model.to(device)
        checks.refuse_not_finite(model, place=place, stored=stored_dtype)
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
    model.eval().requires_grad_(False)
    notes = (told, checks.settle_ties(model), *checks.tell_of(tensors, unread, stored_dtype))
    if torch.finfo(dtype).bits < torch.finfo(stored_dtype).bits:
        stored_dtype = dtype
    return Teacher(
        source=source,
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        stored_dtype=stored_dtype,
        directory=located.directory,
        commit=located.commit,
        notes=tuple(filter(None, notes)),
    )


def locate_checkpoint(source: ModelSource) -> Located:
    """Say where a model's config, weights and companions lie; those of the hub are downloaded where the cache lacks them.

    Raises:
        ModelError: no such model, or no network and not all of it cached.
    """
    path = Path(source.location).expanduser()
    if path.is_dir():
        _require_readable(path)
        return Located(directory=path, commit=None)
    located = _fetch(source, (*BESIDE_WEIGHTS, SINGLE, INDEX))
    _fetch_weights(source, located)
    return located


def _fetch_weights(source: ModelSource, located: Located) -> None:
    """Download the files of weights of a commit of the hub, where the cache lacks them.

    Raises:
        ModelError: there are none that Seed reads, or no network and not all of them cached.
    """
    source = replace(source, revision=located.commit)
    _fetch(source, (SINGLE, INDEX))
    if not (located.directory / SINGLE).is_file() and (located.directory / INDEX).is_file():
        # shards are called what the index calls them: of Qwen3.5, model.safetensors-00001-of-00002.safetensors
        _fetch(source, tuple(map(glob.escape, list_shards(located.directory))))


def _locate_companions(source: ModelSource) -> Located:
    """What a model of the hub has beside its weights; without network, as much of it as the cache holds.

    Raises:
        ModelError: no such model, or no network and nothing cached.
    """
    try:
        return _fetch(source, BESIDE_WEIGHTS)
    except ModelError as error:
        incomplete = getattr(error.__cause__, "snapshot_path", None)
        if incomplete is None:
            raise
        return Located(directory=Path(incomplete), commit=Path(incomplete).name)


def _fetch(source: ModelSource, patterns: Sequence[str]) -> Located:
    """Download files of the hub by patterns of their paths, where the cache lacks them."""
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(source.location, revision=source.revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise explain_failure(source, error) from error
    return Located(directory=found, commit=found.name)


def find_licence(source: ModelSource, *, named: str | None) -> dict[str, str]:
    """Return a model's licence in the hub's words: ``named`` where it is known, else what the model's own card says.

    The hub is asked for a card that its cache lacks; nothing is returned where there is none.
    """
    return {"license": named} if named else dict(_read_licence(source))


@functools.cache  # where the network is blocked, asking takes long
def _read_licence(source: ModelSource) -> dict[str, str]:
    from huggingface_hub import ModelCard, hf_hub_download

    path = Path(source.location).expanduser()
    try:
        if not path.is_dir():
            path = Path(hf_hub_download(source.location, CARD, revision=source.revision)).parent
        card = ModelCard((path / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
        about = {name: getattr(card.data, name, None) for name in LICENCE_FIELDS}
    except Exception:  # no card, no network, or what is no YAML, which fails in ways of its own
        return {}
    return {name: value for name, value in about.items() if isinstance(value, str)}


def refuse_adapter(path: Path) -> None:
    """Raise when an adapter lies in a model's directory: transformers would apply it, and open the model that it names.

    Raises:
        ModelError: with the cure.
    """
    if (path / "adapter_config.json").exists():
        raise _refuse_adapter(path)


def _refuse_adapter(place: Path | str) -> ModelError:
    return ModelError(
        f"{place}: a LoRA adapter lies there (adapter_config.json), and Seed reads whole models only. Merge it into its base "
        "model first (merge_and_unload)."
    )


def _require_readable(path: Path) -> None:
    """Raise where a model's directory or something in it may not be read: libraries take what they cannot read for missing."""
    study_dir.require_readable(path)
    for file in path.iterdir():
        if file.suffix in (".json", ".model", ".safetensors", ".txt"):
            study_dir.require_readable(file)


def _check_directory(path: Path) -> None:
    _require_readable(path)
    wanted = {
        "config.json": ["config.json"],
        "weights (model.safetensors, or model.safetensors.index.json with its shards)": [
            "model.safetensors",
            "model.safetensors.index.json",
        ],
        "a tokenizer (tokenizer.json, tokenizer.model or vocab.json)": [
            "tokenizer.json",
            "tokenizer.model",
            "vocab.json",
        ],
    }
    refuse_adapter(path)
    for what, names in wanted.items():
        if not any((path / name).is_file() for name in names):
            other = next(iter([*path.glob("pytorch_model*.bin"), *path.glob("*.pt"), *path.glob("*.gguf")]), None)
            cure = "Give a directory that save_pretrained wrote, with its tokenizer."
            if what.startswith("weights") and other is not None:
                cure = f"{other.name} is not safetensors, which is all that Seed reads: convert it first."
            raise ModelError(f"{path}: {what} is missing. {cure}")
    for weights in list_weights(path):
        refuse_pointer(weights)


def _refuse_file(location: str) -> ModelError:
    """Say what to give in place of a single file."""
    what = (
        "GGUF, which Seed does not read yet"
        if location.lower().endswith(".gguf")
        else "no directory, and Seed reads none alone"
    )
    return ModelError(
        f"--model {location}: is a file ({what}). Give the directory of the original model, with its config.json, tokenizer and "
        "safetensors."
    )


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
