"""What a model's folder holds beside its weights: looked at before transformers reads it, kept along with cut weights, hashed."""

import functools
import hashlib
import json
import shutil
import stat
from pathlib import Path

from seed import study_dir, untrusted
from seed.errors import ModelError, StudyError
from seed.models.stored import INDEX

# Tokenizers of all kinds, how to generate, how pictures are prepared, and what a licence wants to go along; patterns of
# paths, as the hub and pathlib both read them.
TOKENIZERS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "tekken.json",
)
COMPANIONS = (
    *TOKENIZERS,
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)


def copy_companions(original: Path, target: Path) -> None:
    """Copy what stands beside an original's weights byte for byte, over what lies in ``target``; links are followed."""
    for pattern in COMPANIONS:
        for path in original.glob(pattern):
            copy = target / path.relative_to(original)
            if path.is_file():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)


def read_companions(original: Path) -> dict[str, bytes]:
    """The files that stand beside an original's weights, its config with them, by their name."""
    found = [path for pattern in ("config.json", *COMPANIONS) for path in original.glob(pattern) if path.is_file()]
    return {path.relative_to(original).as_posix(): path.read_bytes() for path in found}


def has_tokenizer(original: Path) -> bool:
    """Do a tokenizer's files stand beside an original's weights?"""
    return any(path.is_file() for pattern in TOKENIZERS for path in original.glob(pattern))


CONFIG_BYTES = 16 * 2**20  # the largest configs have some hundred kB
TEXT_BYTES = 512 * 2**20  # the largest tokenizers have 35 MB; libraries take ten times as much memory for them
READ_WHOLE = ("config.json", "README.md", INDEX, *COMPANIONS)  # others lie beside them, of any size


def check_files(directory: Path) -> None:
    """Raise where reading a model's directory would not end, or fill the memory, before its weights are looked at.

    What is missing or may not be read, its opening says.

    Raises:
        ModelError: with the file, what is wrong with it, and the cure.
    """
    whole = {path for pattern in READ_WHOLE for path in directory.glob(pattern)}
    for path in sorted(whole.union(directory.glob("*.safetensors"))):
        try:
            found = path.stat()
        except OSError:
            continue
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise ModelError(
                f"{path}: a pipe or a device, and a model is made of files. Remove it, or put a file there."
            )
        limit = CONFIG_BYTES if path.name == "config.json" else TEXT_BYTES
        if path in whole and found.st_size > limit:
            raise ModelError(
                f"{path}: {found.st_size / 2**20:,.0f} MB, and such a file has less than {limit / 2**20:,.0f} MB. Download or "
                "save the model again."
            )
    config = directory / "config.json"
    try:
        excess = untrusted.find_excess(json.loads(config.read_bytes()))
    except OSError:
        return
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{config}: not valid JSON ({error}). Download or save the model again.") from error
    if excess is not None:
        raise ModelError(f"{config}: {excess}. Mend that number, or download the model again.")


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
