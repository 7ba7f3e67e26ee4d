"""Cut a checkpoint on disk: what stays of it is copied from file to file, however large the model is.

How transformers would load the result is rehearsed on names and shapes before a byte is written.
"""

import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from seed import study_dir
from seed.errors import ModelError, SeedError, first_line
from seed.models import checks
from seed.models.anatomy import count_params, find_layers
from seed.models.checkpoint import finish_export
from seed.models.files import check_files
from seed.models.loader import find_class, open_config
from seed.models.provenance import Provenance, write_provenance
from seed.models.stored import INDEX, StoredTensor, have_same_bytes, read_tensors, write_shard
from seed.models.surgery import list_needed, refuse_unfit, repair_config
from seed.records import check_layers

SHARD_BYTES = 5 * 10**9  # what the hub recommends, and one transfer can be repeated


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A checkpoint that is to be written: its config, and its tensors by their new names, where they lie now."""

    source: Path
    config: Any
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    left_out: tuple[str, ...] = ()  # names of tensors that transformers does not read, whichever layers are kept

    @property
    def num_params(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def dtype(self) -> str | None:
        """The type of all tensors by its name in transformers; None: they have several, or one without such a name."""
        found = {checks.FLOATS.get(tensor.dtype) for tensor in self.tensors}
        dtype = found.pop() if len(found) == 1 else None
        return None if dtype is None else checks.spell_dtype(dtype)


def plan_cut(source: Path, kept_layers: Sequence[int]) -> Cut:
    """Say what of a checkpoint stays when only these layers are kept, and prove that transformers would load it.

    Args:
        source: a directory with config.json, safetensors, and a tokenizer's files.
        kept_layers: by their index in this checkpoint.

    Raises:
        ModelError: files are missing or damaged, the family is unfit, there are no such layers, or what would be
            written were no whole checkpoint to transformers.
    """
    config, kind = _read_config(source)
    num_layers = int(config.get_text_config().num_hidden_layers)
    try:
        check_layers(kept_layers, num_layers=num_layers, name="kept layers")
    except ValueError as error:
        raise ModelError(f"{source}: {error}. Name layers that this checkpoint has.") from error
    if not kept_layers:
        raise ModelError(f"{source}: no layer would be kept. Keep one or more of its {num_layers}.")
    if missing := sorted(set(list_needed(config)) - set(kept_layers)):
        raise ModelError(
            f"{source}: {'layer' if len(missing) == 1 else 'layers'} {', '.join(map(str, missing))} would go, without which "
            f"transformers builds or decodes no right {config.get_text_config().model_type} model. Keep it too."
        )
    tensors = read_tensors(source)
    with torch.device("meta"):
        model = kind(copy.deepcopy(config))
    place, cure = f"{source}: its weights do not match its config", "Save or download the checkpoint again."
    found, wanted = sum(one.numel for one in tensors), count_params(model)
    if found < wanted:  # what is missing would be made up, in memory
        raise ModelError(f"{place} ({found:,} parameters, where that says {wanted:,}). {cure}")
    unread = _rehearse(tensors, kind, config, place=place, cure=cure)
    checks.refuse_tensors(tensors, model, checks.list_unread(tensors, model, unread), place=str(source))
    prefix = _find_prefix(source, tensors, model, num_layers=num_layers)
    read = [tensor for tensor in tensors if tensor.name not in unread]
    twice, is_tied = _find_tied(read, model)
    if is_tied:
        read = [tensor for tensor in read if tensor not in twice]
    else:
        config = copy.deepcopy(config)
        checks.untie(config)
    new_index = {layer: position for position, layer in enumerate(kept_layers)}
    kept = tuple(_rename(read, prefix=prefix, new_index=new_index))
    cut_config = _cut_config(source, config, kept_layers)
    place = f"{source}: transformers would not load layers {', '.join(map(str, kept_layers))} alone"
    if homeless := _rehearse(kept, kind, cut_config, place=place, cure="Keep other layers."):
        raise ModelError(f"{place} (there is no place for {min(homeless)}). Keep other layers.")
    return Cut(
        source=source,
        config=cut_config,
        tensors=kept,
        left_out=tuple(sorted(unread)),
    )


def write_cut(
    cut: Cut,
    target: Path,
    *,
    documents: Mapping[str, str] | None = None,
    provenance: Provenance | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Write a cut checkpoint aside and rename it; one tensor's bytes at a time, a piece of them at once.

    Args:
        cut: what is written.
        target: the directory; what was there is replaced.
        documents: texts to write beside it, by their file's name.
        provenance: what its seed.json says, besides the hashes of its files.
        shard_bytes: at most so many bytes of tensors in one file, unless one alone is larger.
        on_bytes: is told how many bytes each piece had that was copied.

    Raises:
        ResourceError: the disk does not take it.
    """
    tensors = {tensor.name: tensor for tensor in cut.tensors}
    shards = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    with study_dir.explain_resource_errors(target), study_dir.replace_directory(target) as aside:
        cut.config.save_pretrained(aside)
        for file, names in shards.filename_to_tensors.items():
            write_shard(aside / file, [tensors[name] for name in names], on_bytes=on_bytes)
        if shards.is_sharded:
            metadata = shards.metadata | {"total_parameters": cut.num_params}
            index = {"metadata": metadata, "weight_map": shards.tensor_to_filename}
            (aside / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        finish_export(aside, original=cut.source)
        for name, content in (documents or {}).items():
            (aside / name).write_text(content, encoding="utf-8")
        if provenance is not None:
            write_provenance(aside, provenance)


def count_layers(source: Path) -> int:
    """How many layers a checkpoint's config says that its decoder has.

    Raises:
        ModelError: there is no config, or none that transformers reads, or the family is unfit.
    """
    return int(_read_config(source)[0].get_text_config().num_hidden_layers)


def _read_config(source: Path) -> tuple[Any, Any]:
    """The checkpoint's config, and the class of transformers' own that reads it."""
    check_files(source)
    try:
        config = open_config(source)
        refuse_unfit(config, place=str(source))
        kind = find_class(config)
    except SeedError:
        raise
    except Exception as error:  # configs of anyone fail in ways of their own
        raise ModelError(
            f"{source}: its config cannot be read ({first_line(error)}). Seed exports only what plain transformers loads."
        ) from error
    if kind is None:
        raise ModelError(
            f"{source}: transformers has no class of its own that writes text with a whole {config.model_type} model. Seed exports only "
            "what plain transformers loads."
        )
    return config, kind


def _find_prefix(source: Path, tensors: Sequence[StoredTensor], model: Any, *, num_layers: int) -> str:
    """The name under which a checkpoint keeps the decoder's layers: as in the model, or without its outermost name."""
    owner, attribute = find_layers(model)
    path = next(name for name, module in model.named_modules() if module is owner)
    whole = f"{path}.{attribute}" if path else attribute
    pattern = re.compile(rf"((?:.*?\.)?{re.escape(attribute)})\.(\d+)\.")
    layers: dict[str, set[int]] = {}
    for tensor in tensors:
        if found := pattern.match(tensor.name):
            layers.setdefault(found[1], set()).add(int(found[2]))
    complete = [place for place, indices in layers.items() if indices >= set(range(num_layers))]
    for place in (whole, whole.removeprefix(f"{model.base_model_prefix}.")):
        if place in complete:
            return place
    if len(complete) > 1:  # those of a model that sees too
        wanted = count_params(getattr(owner, attribute))
        complete = [
            place for place in complete if wanted == sum(t.numel for t in tensors if t.name.startswith(f"{place}."))
        ]
    if len(complete) != 1:
        raise ModelError(
            f"{source}: {len(complete)} groups of tensors are called like the {num_layers} layers of {type(model).__name__} "
            f"({whole}), where Seed expects one. Open the model with transformers and save it again."
        )
    return complete[0]


def _find_tied(tensors: Sequence[StoredTensor], model: Any) -> tuple[list[StoredTensor], bool]:
    """Tensors that are stored beside those which they are tied to, and whether all of them hold the same numbers.

    As long as they do, transformers ties them; otherwise it takes each as it is stored, whatever the config says.
    """
    by_name = {spelled: tensor for tensor in tensors for spelled in checks.spell_names(tensor.name, model)}
    tied = model.all_tied_weights_keys.items()
    pairs = [(by_name[name], by_name[other]) for name, other in tied if name in by_name and other in by_name]
    return [one for one, _ in pairs], all(have_same_bytes(one, other) for one, other in pairs)


def _rename(tensors: Iterable[StoredTensor], *, prefix: str, new_index: Mapping[int, int]) -> Iterable[StoredTensor]:
    """Leave out what belongs to other layers; layers beyond the decoder's, that predict further tokens, are such too."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.*)", re.S)
    for tensor in tensors:
        found = pattern.fullmatch(tensor.name)
        if found is None:
            yield tensor
        elif int(found[1]) in new_index:
            yield replace(tensor, name=f"{prefix}.{new_index[int(found[1])]}.{found[2]}")


def _cut_config(source: Path, config: Any, kept_layers: Sequence[int]) -> Any:
    """The config of the cut checkpoint as whoever loads it will read it: transformers checks and completes it on the way.

    Raises:
        ModelError: transformers refuses it.
    """
    cut = copy.deepcopy(config)
    repair_config(cut.get_text_config(), kept_layers)
    cut.architectures = [find_class(config).__name__]
    try:
        with tempfile.TemporaryDirectory() as directory:
            cut.save_pretrained(directory)
            return type(config).from_pretrained(directory, local_files_only=True)
    except Exception as error:  # each family's config has checks of its own
        raise ModelError(
            f"{source}: transformers accepts no config of layers {', '.join(map(str, kept_layers))} alone ({first_line(error)}). Keep "
            "other layers."
        ) from error


class _Hollow(torch.Tensor):
    """A name and a shape where transformers expects a weight: it lies nowhere, and stays there."""

    def to(self, *_args: Any, **_kwargs: Any) -> "_Hollow":
        """Itself: there is nothing to move or to convert."""
        return self


def _rehearse(tensors: Sequence[StoredTensor], kind: Any, config: Any, *, place: str, cure: str) -> frozenset[str]:
    """Let transformers load tensors that lie nowhere; return names that it does not read.

    Raises:
        ModelError: something is missing or of another shape.
    """
    hollow = {
        tensor.name: torch.empty(tensor.shape, dtype=torch.float32, device="meta").as_subclass(_Hollow)
        for tensor in tensors
    }
    try:
        _, report = kind.from_pretrained(
            None, config=copy.deepcopy(config), state_dict=hollow, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{place} ({first_line(error)}). {cure}") from error
    unread = frozenset(report.pop("unexpected_keys"))
    if wrong := {name: sorted(map(str, keys)) for name, keys in report.items() if keys}:
        raise ModelError(f"{place} ({str(wrong)[:500]}). {cure}")
    return unread
