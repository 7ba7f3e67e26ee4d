"""Tensors where they lie in safetensors files, read from the headers and copied from file to file, a piece at a time."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from seed.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHUNK_BYTES = 16 * 2**20
POINTER = b"version https://git-lfs.github.com/"  # how a file begins that stands for one that Git LFS keeps elsewhere


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor as it lies on disk."""

    name: str
    dtype: str  # by the format's names: BF16, F32
    shape: tuple[int, ...]
    path: Path
    begin: int  # of its bytes in the file
    num_bytes: int

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_tensors(source: Path) -> list[StoredTensor]:
    """Return where each tensor of a checkpoint lies, in the order of the files; only headers are read.

    Raises:
        ModelError: files are missing or damaged, or two hold a tensor of one name.
    """
    tensors = [tensor for path in list_weights(source) for tensor in _read_header(path)]
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise ModelError(f"{tensor.path}: {tensor.name} lies in another file too. Save the checkpoint again.")
        names.add(tensor.name)
    return tensors


def list_weights(source: Path) -> list[Path]:
    """Return the files that a checkpoint's weights are read from, as transformers chooses them, each where it lies.

    Whatever reads, hashes or copies weights takes these.

    Raises:
        ModelError: there are none, one is missing, or the index is damaged or names files that lie elsewhere.
    """
    if (source / SINGLE).is_file():  # as in transformers, before the index
        return [source / SINGLE]
    files = [source / name for name in list_shards(source)]
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"{source}: {file.relative_to(source)}, which {INDEX} names, does not lie there. Save or download the "
                "checkpoint again."
            )
    return files


def list_shards(source: Path) -> list[str]:
    """Return a checkpoint's files of weights as its index names them, whether they lie there or not.

    They may lie in folders of the checkpoint, and be links, as in the hub's cache; names that lead out of it are refused.

    Raises:
        ModelError: there is no index, or it is damaged, or names files that lie elsewhere.
    """
    try:
        weight_map = json.loads((source / INDEX).read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
        strays = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    except FileNotFoundError as error:
        raise ModelError(
            f"{source}: no safetensors weights there ({SINGLE}, or {INDEX} with its files). Seed reads nothing else: "
            "convert them first."
        ) from error
    except OSError as error:
        raise ModelError(f"{source / INDEX}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{source / INDEX}: damaged ({error}). Save or download the checkpoint again.") from error
    if not names:
        raise ModelError(f"{source / INDEX}: names no weights. Save or download the checkpoint again.")
    if strays:
        raise ModelError(
            f"{source / INDEX}: names weights outside its folder ({strays[0]}), and Seed reads a model from one folder only. "
            "Put them into it, and name them so."
        )
    return names


def _read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file in the order of their bytes."""
    try:
        with path.open("rb") as handle:
            if handle.read(len(POINTER)) == POINTER:
                raise ModelError(
                    f"{path}: not the weights, but a pointer that Git LFS left in their place. Fetch them: git lfs pull, in "
                    "that directory."
                )
            with safe_open(
                path, framework="np"
            ):  # says whether types, shapes and ranges are right and make up the file
                pass
            handle.seek(0)
            begin = 8 + int.from_bytes(handle.read(8), "little")
            header: dict[str, Any] = json.loads(handle.read(begin - 8))
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged ({error}). Save or download the checkpoint again.") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    header.pop("__metadata__", None)
    tensors = [
        StoredTensor(
            name=name,
            dtype=about["dtype"],
            shape=tuple(about["shape"]),
            path=path,
            begin=begin + about["data_offsets"][0],
            num_bytes=about["data_offsets"][1] - about["data_offsets"][0],
        )
        for name, about in header.items()
    ]
    return sorted(tensors, key=lambda tensor: (tensor.begin, tensor.num_bytes))


def have_same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Do two tensors hold the same numbers in the same type? A piece of each is read at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.path.open("rb") as ours, other.path.open("rb") as theirs:
        ours.seek(one.begin)
        theirs.seek(other.begin)
        sizes = [min(CHUNK_BYTES, one.num_bytes - done) for done in range(0, one.num_bytes, CHUNK_BYTES)]
        return all(ours.read(size) == theirs.read(size) for size in sizes)


def write_shard(path: Path, tensors: Sequence[StoredTensor], *, on_bytes: Callable[[int], None] | None = None) -> None:
    """Write one safetensors file; wider types first, so that each tensor lies as its type wants it."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.num_bytes / max(1, tensor.numel))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        offsets = [end, end := end + tensor.num_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("xb") as target:
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in ordered:
            with tensor.path.open("rb") as source:
                source.seek(tensor.begin)
                for done in range(0, tensor.num_bytes, CHUNK_BYTES):
                    piece = source.read(min(CHUNK_BYTES, tensor.num_bytes - done))
                    target.write(piece)
                    if on_bytes is not None:
                        on_bytes(len(piece))
                if source.tell() != tensor.begin + tensor.num_bytes:
                    raise ModelError(f"{tensor.path}: became shorter while it was read. Run the same command again.")
