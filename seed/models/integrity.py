"""Is a finished model as it was written? Hashes of its files stand in its seed.json; that file's own in a study's record."""

import functools
import hashlib
import json
from pathlib import Path

from seed import study_dir, untrusted
from seed.errors import ModelError, StudyError

PROVENANCE = "seed.json"
CARD = "README.md"


def add_hashes(directory: Path) -> str:
    """Write the hashes of all other files of a finished model into its seed.json, and return that file's own."""
    said = json.loads((directory / PROVENANCE).read_bytes())
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / PROVENANCE)
    said["files"] = {path.relative_to(directory).as_posix(): hash_file(path) for path in files}
    study_dir.write_bytes(directory / PROVENANCE, json.dumps(said, indent=1).encode() + b"\n")
    return hash_file(directory / PROVENANCE)


def find_damage(directory: Path, *, provenance_sha256: str | None = None) -> str | None:
    """Say what of a finished model is not as it was written; None: nothing. Further files and another card do no harm.

    Args:
        directory: where it lies.
        provenance_sha256: of its seed.json, as the model's record in a study has it.
    """
    try:
        if provenance_sha256 is not None and hash_file(directory / PROVENANCE) != provenance_sha256:
            return f"{PROVENANCE} is not as it was written"
        hashes = _read_hashes(directory)
        for name in hashes:
            if not (directory / name).is_file():
                return f"{name} is missing"
        for name, sha256 in hashes.items():
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


def _read_hashes(directory: Path) -> dict[str, str]:
    """The hashes that a model names, by the paths of files below it but its card.

    Raises:
        OSError: seed.json cannot be read.
        ValueError: it is damaged, or names none.
    """
    path = directory / PROVENANCE
    if not path.is_file():  # opening what is no file may wait for ever
        raise FileNotFoundError(path)
    said = json.loads(untrusted.read_bounded(path))
    hashes = said.get("files") if isinstance(said, dict) else None
    if not isinstance(hashes, dict) or not all(isinstance(sha256, str) for sha256 in hashes.values()):
        raise ValueError("no hashes of files")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in hashes):
        raise ValueError("hashes of files elsewhere")
    return {name: sha256 for name, sha256 in hashes.items() if name != CARD}  # people edit it before they publish
