"""A GGUF file is made into an ordinary directory once, by transformers, and read from there ever after.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import fcntl
import importlib.util
import json
import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import constants
from torch import nn

from seed import study_dir
from seed.errors import ModelError, ResourceError, SeedError, first_line
from seed.models.anatomy import count_params
from seed.models.files import CARD, check_files, is_gguf
from seed.models.provenance import hash_file
from seed.reporting.wording import GGUF_FLOATS, describe_gguf, is_quantized

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
NEEDED = ("gguf", "accelerate")
AGAIN = "Download it again, or give a directory that save_pretrained wrote."


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of its weights."""

    types: dict[str, int]  # how many tensors are stored in each of ggml's types
    num_params: int  # numbers in all tensors
    licence: dict[str, str]  # in the hub's words
    num_bytes: int = field(repr=False)  # that the file has at least

    @property
    def dtype_name(self) -> str:
        """The type that its weights are put into: quantized ones into bfloat16, others stay as most of them are."""
        floats = [name for name in self.types if name in GGUF_FLOATS and name != "F32"]  # whose norms are F32
        return "bfloat16" if is_quantized(self.types) else GGUF_FLOATS[floats[0] if floats else "F32"]


class Cursor:
    """Reads one value after another; what lies beyond the end of the file is a ``struct.error``."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def read(self, code: str) -> Any:
        """The next number, by its letter in ``struct``."""
        [value] = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def read_string(self) -> str:
        """The next string."""
        length = self.read("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def read_value(self, kind: int) -> Any:
        """The next value of the metadata; of an array its length alone."""
        if kind == STRING:
            return self.read_string()
        if kind != ARRAY:
            return self.read(SCALARS[kind])
        element, count = self.read("I"), self.read("Q")
        if element in SCALARS:
            self.at += count * struct.calcsize(f"<{SCALARS[element]}")
        else:
            for _ in range(count):
                length = self.read("Q")
                self.at += length
        return count


def read_header(file: Path) -> GgufHeader:
    """Read what a GGUF file says, and refuse what cannot be opened before much is read.

    Raises:
        ModelError: a package is missing; it is damaged, a part of a model, or without a tokenizer.
    """
    place = f"--model {file}"
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ModelError(
            f"{place}: a GGUF file, and to read those {' and '.join(missing)} must be installed: pip install 'seed-search[gguf]'."
        )
    study_dir.require_readable(file)
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, header = _parse(Cursor(data))
    except (struct.error, OverflowError) as error:
        raise ModelError(f"{place}: no whole GGUF file (it ends within its header). {AGAIN}") from error
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"{place}: no whole GGUF file ({first_line(error)}). {AGAIN}") from error
    except OSError as error:
        raise ModelError(f"{place}: cannot be read ({error.strerror or error}).") from error
    if (parts := metadata.get("split.count", 1)) not in (0, 1):
        raise ModelError(
            f"{place}: one of {parts} parts of a model, and transformers opens whole ones only. Put them together first: "
            "llama-gguf-split --merge FIRST-PART WHOLE.gguf"
        )
    if (found := file.stat().st_size) < header.num_bytes:
        raise ModelError(f"{place}: {found:,} bytes, and its header tells of {header.num_bytes:,}. {AGAIN}")
    if "tokenizer.ggml.tokens" not in metadata:
        raise ModelError(f"{place}: no tokenizer in it. Give a file that was converted with its tokenizer.")
    return header


def _parse(cursor: Cursor) -> tuple[dict[str, Any], GgufHeader]:
    """The metadata of a file, and what its table of tensors says."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.at = 4
    if (version := cursor.read("I")) not in (2, 3):
        raise ValueError(f"of version {version}, where 2 and 3 are known")
    num_tensors, num_values = cursor.read("Q"), cursor.read("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        name = cursor.read_string()
        metadata[name] = cursor.read_value(cursor.read("I"))
    types: Counter[str] = Counter()
    num_params, end = 0, 0
    for _ in range(num_tensors):
        cursor.read_string()
        shape = [cursor.read("Q") for _ in range(cursor.read("I"))]
        kind = GGMLQuantizationType(cursor.read("I"))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        types[kind.name] += 1
        num_params += math.prod(shape)
        end = max(end, cursor.read("Q") + math.prod(shape) // block * block_bytes)
    alignment = metadata.get("general.alignment", 32)
    licence = {
        name: value
        for name, key in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link"))
        if isinstance(value := metadata.get(f"general.{key}"), str)
    }
    begin = -(-cursor.at // alignment) * alignment
    return metadata, GgufHeader(
        types=dict(types.most_common()), num_params=num_params, licence=licence, num_bytes=begin + end
    )


def list_types(location: str) -> dict[str, int]:
    """How many tensors a GGUF file stores in each of ggml's types; none where a model is no such file."""
    return read_header(Path(location)).types if is_gguf(location) else {}


def tell_of_gguf(location: str, model: nn.Module) -> list[str]:
    """What a user should know of a model that came out of a GGUF file; nothing where it did not."""
    if not is_gguf(location):
        return []
    header, num_read = read_header(Path(location)), count_params(model)
    told = [f"from {describe_gguf(header.types)}"]
    if num_read != header.num_params:
        told.append(f"transformers reads {num_read:,} of the {header.num_params:,} numbers in this GGUF file")
    return told


def read_gguf_config(file: Path) -> Any:
    """The config that transformers makes of a GGUF file, with the type that its weights are put into; no weights are read.

    Raises:
        ModelError: it cannot be opened.
    """
    header = read_header(file)
    try:
        return _read_config(file, header)
    except Exception as error:  # files of anyone fail in ways of their own
        raise _explain(file, error) from error


def find_converted(file: Path) -> Path | None:
    """The directory that a GGUF file was made into before; None: it was not."""
    target = _place(file)
    return target if target.is_dir() else None


def convert(file: Path) -> Path:
    """Make a GGUF file into a directory among the hub's assets, unless it was before; return that directory.

    Raises:
        ModelError: it cannot be opened.
        ResourceError: there is no room for it, on the disk or in memory.
    """
    header, target = read_header(file), _place(file)
    cure = "Name a place with HF_ASSETS_CACHE=DIRECTORY."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_suffix(".lock").open("a")
    except OSError as error:
        if target.is_dir():
            return target
        raise ResourceError(
            f"{target.parent}: cannot be written ({error.strerror or error}), and GGUF files are made into directories there. {cure}"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one converts, and the others wait
        if not target.is_dir():
            width = 4 if header.dtype_name == "float32" else 2
            needed, purpose = header.num_params * width, f"{file.name}, made into a directory,"
            study_dir.require_room(target.parent, needed_bytes=needed, purpose=purpose, cure=cure)
            with study_dir.explain_resource_errors(target), study_dir.replace_directory(target) as aside:
                _write(file, header, aside)
    return target


def _place(file: Path) -> Path:
    """Where a GGUF file's directory lies: by its content, and by the version that converts it."""
    folder = f"transformers-{transformers.__version__}"
    return Path(constants.HF_ASSETS_CACHE) / "seed" / "gguf" / folder / hash_file(file)


def _write(file: Path, header: GgufHeader, directory: Path) -> None:
    """Write config, tokenizer and weights as transformers reads them from a GGUF file."""
    try:
        config = _read_config(file, header)
        config.save_pretrained(directory)
        transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
        check_files(directory)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=config.dtype,
            quantization_config=transformers.GgufConfig(dequantize=True),
            use_safetensors=True,
            output_loading_info=True,
        )
        if wrong := {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}:
            raise ModelError(f"--model {file}: its weights do not match its config ({str(wrong)[:500]}). {AGAIN}")
        model.save_pretrained(directory)
    except SeedError:
        raise
    except Exception as error:
        if study_dir.is_out_of_memory(error) or getattr(error, "errno", None) is not None:
            raise
        raise _explain(file, error) from error
    said = "".join(f"{name}: {json.dumps(value)}\n" for name, value in header.licence.items())
    (directory / CARD).write_text(f"---\n{said}---\n", encoding="utf-8")


def _read_config(file: Path, header: GgufHeader) -> Any:
    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.dtype = header.dtype_name
    return config


def _explain(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"--model {file}: transformers {transformers.__version__} does not open this GGUF file "
        f"({type(error).__name__}: {first_line(error)}). Give the directory that it was made from."
    )
