"""seed.json: what a checkpoint that Seed wrote says of where it comes from, and the hashes by which it is known to be whole.

Layers go by their index in the original throughout, however often a model was cut. Nothing heavy is imported here, so that a
wrong start is answered at once.
"""

import functools
import hashlib
import importlib.metadata
import platform
import shlex
from pathlib import Path
from typing import Any

import msgspec

from seed import __version__, study_dir, untrusted
from seed.errors import ModelError, SeedError, StudyError
from seed.models.files import CARD, PROVENANCE
from seed.plans import Protocol
from seed.records import Candidate, DistillResult, Quality, check_layers

PACKAGES = ("torch", "transformers", "safetensors")
# Formats that other runtimes alone read: MLX, and llama.cpp's converter.
GGUF_READY = "gguf-ready"
FORMATS = ("mlx", GGUF_READY)
CURE = "Give a model that Seed exported, such as studies/demo/models/drop-1-7."


class CutFrom(msgspec.Struct, frozen=True, kw_only=True):
    """A model that lacked layers before, from which another was cut."""

    path: str
    sha256: str | None
    tokens: int  # that its recovery took


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The content of seed.json. What has a default, earlier versions or other commands do not say."""

    seed: str = ""
    base_model: str  # the original: "demo", a hub id, a directory or a GGUF file
    base_revision: str | None = None
    base_sha256: str | None = None
    gguf_types: dict[str, int] = {}  # tensors of the original's GGUF file by ggml's types
    source_stamp: str | None = (
        None  # of a directory that was cut without a study, or written in another format: sizes and times of its weights
    )
    start: CutFrom | None = None
    window_tokens: int | None = None  # of all PPLs
    licence: dict[str, str] = {}
    num_layers: int
    kept_layers: tuple[int, ...]
    dropped_layers: tuple[int, ...]
    lacking: dict[int, str] = {}  # kept layers without their attention (attn) or MLP (mlp)
    width: Any = None  # a width cut
    format: str | None = None  # one of FORMATS; None: a plain checkpoint
    study: str | None = None
    trial: int | None = None
    recovered: bool = True
    settings: dict[str, Any]
    streams: dict[str, Any] | None = None  # the texts with their hashes
    versions: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, str] = {}  # all others of the directory, with their hashes

    def __post_init__(self) -> None:
        check_layers(self.kept_layers, num_layers=self.num_layers, name="kept_layers")
        if (self.candidate.kept_layers, self.candidate.dropped_layers) != (self.kept_layers, self.dropped_layers):
            raise ValueError("kept and dropped layers do not make up the original's")
        if not self.kept_layers:
            raise ValueError("it keeps no layer")
        if not isinstance(self.settings.get("distill_tokens"), int):
            raise ValueError("it does not say how many tokens its recovery took")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in self.files):
            raise ValueError("it names files elsewhere")

    @property
    def candidate(self) -> Candidate:
        """What is there."""
        gone = [str(layer) for layer in range(self.num_layers) if layer not in set(self.kept_layers)]
        return Candidate.drop(self.num_layers, [*gone, *(f"{layer}.{kind}" for layer, kind in self.lacking.items())])

    @property
    def tokens(self) -> int:
        """Recovery tokens in all, those of the model that it was cut from included."""
        return int(self.settings["distill_tokens"]) + int(self.settings.get("earlier_tokens", 0))

    @property
    def is_narrow(self) -> bool:
        """Are all its layers there, cut in width?"""
        return self.width is not None

    @property
    def test_text(self) -> str | None:
        """The source of the text that it was judged on last; None: not known."""
        test = (self.streams or {}).get("test")
        source = test.get("source") if isinstance(test, dict) else None
        return source if isinstance(source, str) else None


class Start(Provenance, frozen=True, kw_only=True):
    """A model that Seed wrote, as it is found: what it says, and where it lies."""

    path: Path = Path()


# ---- written


def describe_model(candidate: Candidate, **said: Any) -> Provenance:
    """What a model says of itself: its layers, what wrote it, and fields of ``Provenance``."""
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    return Provenance(
        seed=__version__,
        num_layers=candidate.num_layers,
        kept_layers=candidate.kept_layers,
        dropped_layers=candidate.dropped_layers,
        lacking=candidate.lacking,
        versions=versions,
        **said,
    )


def describe_origin(protocol: Protocol) -> dict[str, Any]:
    """The original of a study, the model that its candidates were cut from where that is another, and the windows of all PPLs."""
    start = None
    if protocol.start is not None:
        start = CutFrom(path=protocol.start, sha256=protocol.start_sha256, tokens=protocol.start_tokens)
    return {
        "base_model": protocol.location,
        "base_revision": protocol.commit or protocol.revision,
        "base_sha256": protocol.weights_sha256,
        "gguf_types": protocol.gguf_types or {},
        "start": start,
        "window_tokens": protocol.window_tokens,
    }


def describe_recovered(protocol: Protocol, result: DistillResult, *, study: str, licence: dict[str, str]) -> Provenance:
    """What a distilled model says of itself."""
    return describe_model(
        result.candidate,
        **describe_origin(protocol),
        licence=licence,
        width=result.width,
        study=study,
        trial=result.trial_number,
        settings=result.settings,
        streams=protocol.streams,
        metrics={
            "validation": leave_study(result.validation),
            "test": leave_study(result.test),
            "test_unrecovered": leave_study(result.test_unrecovered),
            "latency": result.latency,
            "size": result.size,
        },
    )


def leave_study(quality: Quality) -> Quality:
    """A quality without the place of its row in a study."""
    return msgspec.structs.replace(quality, document_losses_path=None)


def write_provenance(directory: Path, said: Provenance) -> str:
    """Write a finished model's seed.json, with the hashes of all other files; return the hash of seed.json itself."""
    path = directory / PROVENANCE
    files = sorted(file for file in directory.rglob("*") if file.is_file() and file != path)
    hashes = {file.relative_to(directory).as_posix(): hash_file(file) for file in files}
    content = msgspec.json.encode(msgspec.structs.replace(said, files=hashes))
    study_dir.write_bytes(path, msgspec.json.format(content, indent=1) + b"\n")
    return hash_file(path)


def hash_file(path: Path) -> str:
    """Return a file's sha256 in hexadecimal; unless it was written meanwhile, it is read once in a process.

    Raises:
        OSError: it cannot be read.
    """
    about = path.stat()
    return _hash_file(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_file(path: Path, _num_bytes: int, _written_ns: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# ---- read


def read_provenance(path: Path, *, place: str) -> Start:
    """Read what an exported model says of where it comes from. ``place`` begins what errors say.

    Raises:
        ModelError: it is not a model that Seed exported.
    """
    try:
        found = msgspec.json.decode(untrusted.read_bounded(path / PROVENANCE), type=Start)
    except OSError as error:
        raise ModelError(f"{place}: no {PROVENANCE} there. {CURE}") from error
    except (ValueError, RecursionError, StudyError) as error:
        raise ModelError(f"{place}: its {PROVENANCE} is damaged ({error}). {CURE}") from error
    return msgspec.structs.replace(found, path=path.resolve())


def read_export(path: Path, *, place: str) -> Start:
    """Read what a plain checkpoint that Seed exported says of where it comes from; it is as it was written.

    Raises:
        ModelError: it is none, or damaged.
    """
    found = read_provenance(path, place=place)
    if found.format is not None:
        raise ModelError(
            f"{place}: is written as {found.format}, and only its runtime reads it. Give the model that it was made from."
        )
    refuse_damaged(path, place=place)
    return found


def read_start(path: Path) -> Start:
    """Read the recovered model that a search goes on from.

    Raises:
        ModelError: it is not a model that Seed exported, or no longer as that was, or has all its layers.
    """
    place = f"--start {path}"
    start = read_export(path, place=place)
    if start.lacking:
        raise ModelError(
            f"{place}: lacks attention or MLP of some layers, and a search goes on from whole layers. {CURE}"
        )
    if start.is_narrow or not start.dropped_layers:
        raise ModelError(f"{place}: has all its layers, cut in width, and a search goes on from fewer layers. {CURE}")
    return start


def find_origin(model: str) -> Start | None:
    """What a model's directory says of where it comes from, where Seed made it; None: it did not, or nothing can be read."""
    try:
        return read_provenance(Path(model).expanduser(), place=model)
    except SeedError:  # none, or a file of that name that is not ours: the model opens without
        return None


def describe_original(model: str) -> str | None:
    """Say what a search takes for its original, where that is a model which Seed made from another; None: it is not.

    Raises:
        ModelError: it is damaged.
    """
    made = find_origin(model)
    if made is None:
        return None
    refuse_damaged(made.path, place=f"--model {model}")
    cut = (
        "all its layers, cut in width" if made.is_narrow else f"{len(made.kept_layers)} of its {made.num_layers} layers"
    )
    if made.lacking:
        cut += f", {len(made.lacking)} of them without attention or MLP, which writes zeros there"
    state = "recovered" if made.recovered else "not recovered since they were cut"
    said = (
        f"{model}: is not an original, but what Seed made of {made.base_model} ({cut}, {state}). This search takes it for the "
        "original: it is the teacher, and ratios are to it as it stands."
    )
    if made.is_narrow or made.lacking or not made.dropped_layers:
        return said
    return f"{said} To keep {made.base_model} as teacher and base of every ratio, give --start {shlex.quote(model)} instead of --model."


def find_damage(directory: Path, *, provenance_sha256: str | None = None) -> str | None:
    """Say what of a finished model is not as it was written; None: nothing. Further files and another card do no harm.

    Args:
        directory: where it lies.
        provenance_sha256: of its seed.json, as the model's record in a study has it.
    """
    try:
        if provenance_sha256 is not None and hash_file(directory / PROVENANCE) != provenance_sha256:
            return f"{PROVENANCE} is not as it was written"
        for name, sha256 in _read_hashes(directory).items():
            if not (directory / name).is_file():
                return f"{name} is missing"
            if hash_file(directory / name) != sha256:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return f"{PROVENANCE} is missing"
    except OSError as error:
        return f"{error.filename or directory} cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError, StudyError):
        return f"{PROVENANCE} is damaged"
    return None


def refuse_damaged(directory: Path, *, place: str) -> None:
    """Raise when a model that names the hashes of its files is not as it was written; others are left to their opening.

    Raises:
        ModelError: with the file's name.
    """
    try:
        _read_hashes(directory)
    except (OSError, ValueError, RecursionError, StudyError):
        return
    if damage := find_damage(directory):
        raise ModelError(
            f"{place}: damaged: {damage}. Copy it or export it again; if you changed it yourself, remove its {PROVENANCE}."
        )


def _read_hashes(directory: Path) -> dict[str, str]:
    """The hashes that a model names, by the paths of files below it but its card, which people edit before they publish.

    Raises:
        OSError: seed.json cannot be read.
        ValueError: it is damaged, or names none.
    """
    said = msgspec.json.decode(untrusted.read_bounded(directory / PROVENANCE), type=Provenance)
    if not said.files:
        raise ValueError("no hashes of files")
    return {name: sha256 for name, sha256 in said.files.items() if name != CARD}
