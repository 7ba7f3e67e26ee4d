"""Tensors where they lie in safetensors files, read from the headers and copied from file to file, a piece at a time."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from seed.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Bytes of a number, by the format's names of types.
ITEM_BYTES = (
    dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 2)
    | dict.fromkeys(("U32", "I32", "F32"), 4)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 8)
)
NARROW = ("F4", "F6", "F8", "I4", "U4")  # how other types begin, which quantized weights have
CHUNK_BYTES = 16 * 2**20
HEADER_BYTES = 100 * 10**6  # the format's own limit
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


def split_shards(tensors: Iterable[StoredTensor], *, shard_bytes: int) -> list[list[StoredTensor]]:
    """Return tensors in groups of at most ``shard_bytes``, in their order; one that is larger is a group of its own."""
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.num_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    return shards


def list_weights(source: Path) -> list[Path]:
    """Return the files that a checkpoint's weights are read from, as transformers chooses them, each where it lies.

    Whatever reads, hashes or copies weights takes these.

    Raises:
        ModelError: there are none, one is missing, the index is damaged or names files that lie elsewhere, or the config
            names other files.
    """
    if other := _find_other_weights(source):
        raise ModelError(
            f"{source / 'config.json'}: names its weights itself (transformers_weights = {other}), and Seed reads {SINGLE}, or "
            f"{INDEX} with its files. Rename them so, and take the field out."
        )
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


def _find_other_weights(source: Path) -> Any:
    """What a config has transformers read in place of the usual files; a config that cannot be read is left to its reader."""
    try:
        return json.loads((source / "config.json").read_bytes()).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file in the order of their bytes; where the ranges do not make up the file, it is damaged."""
    refuse_pointer(path)
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= HEADER_BYTES:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        begin = 8 + length
        tensors = [
            StoredTensor(
                name=name,
                dtype=str(about["dtype"]),
                shape=tuple(map(int, about["shape"])),
                path=path,
                begin=begin + int(about["data_offsets"][0]),
                num_bytes=int(about["data_offsets"][1]) - int(about["data_offsets"][0]),
            )
            for name, about in header.items()
        ]
        tensors.sort(key=lambda tensor: (tensor.begin, tensor.num_bytes))
        for tensor in tensors:
            if tensor.dtype not in ITEM_BYTES and tensor.dtype.startswith(NARROW):
                raise ModelError(
                    f"{path}: {tensor.name} is stored as {tensor.dtype}, a type of quantized weights. Seed opens unquantized ones "
                    "only: dequantize them first, or give the model that it was made from."
                )
            if tensor.begin != begin or tensor.num_bytes < 0 or min(tensor.shape, default=0) < 0:
                raise ValueError(f"{tensor.name} does not lie where it should")
            if tensor.num_bytes != tensor.numel * ITEM_BYTES[tensor.dtype]:
                raise ValueError(
                    f"{tensor.name} has {tensor.num_bytes:,} bytes for {tensor.numel:,} numbers of {tensor.dtype}"
                )
            begin += tensor.num_bytes
        if begin != path.stat().st_size:
            raise ValueError(f"{path.stat().st_size:,} bytes, and its header says {begin:,}")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: damaged ({error}). Save or download the checkpoint again.") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return tensors


def have_same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    """Do two tensors hold the same numbers in the same type? A piece of each is read at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.path.open("rb") as ours, other.path.open("rb") as theirs:
        ours.seek(one.begin)
        theirs.seek(other.begin)
        sizes = [min(CHUNK_BYTES, one.num_bytes - done) for done in range(0, one.num_bytes, CHUNK_BYTES)]
        return all(ours.read(size) == theirs.read(size) for size in sizes)


def refuse_pointer(path: Path) -> None:
    """Raise where a file of weights only says where Git LFS keeps it; one that cannot be read is left to its reader.

    Raises:
        ModelError: with the cure.
    """
    try:
        with path.open("rb") as handle:
            is_pointer = handle.read(len(POINTER)) == POINTER
    except OSError:
        return
    if is_pointer:
        raise ModelError(
            f"{path}: not the weights, but a pointer that Git LFS left in their place. Fetch them: git lfs pull, in that directory."
        )


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
        opened: BinaryIO | None = None
        try:
            for tensor in ordered:
                if opened is None or opened.name != str(tensor.path):
                    if opened is not None:
                        opened.close()
                    opened = tensor.path.open("rb")
                for num_bytes in _copy_range(opened, target, begin=tensor.begin, num_bytes=tensor.num_bytes):
                    if on_bytes is not None:
                        on_bytes(num_bytes)
        finally:
            if opened is not None:
                opened.close()


def _copy_range(source: BinaryIO, target: BinaryIO, *, begin: int, num_bytes: int) -> Iterator[int]:
    """Copy bytes from one file to the end of another, a piece at a time; yield how many each piece had."""
    source.seek(begin)
    while num_bytes > 0:
        piece = source.read(min(CHUNK_BYTES, num_bytes))
        if not piece:
            raise ModelError(f"{source.name}: became shorter while it was read. Run the same command again.")
        target.write(piece)
        num_bytes -= len(piece)
        yield len(piece)
