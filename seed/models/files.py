"""What a model's folder holds beside its weights: looked at before transformers reads it, and kept along with cut weights."""

import json
import stat
from pathlib import Path

from seed import study_dir, untrusted
from seed.errors import ModelError
from seed.models.stored import INDEX, SINGLE

PROVENANCE = "seed.json"
CARD = "README.md"
# Patterns of paths, as the hub and pathlib both read them: the words of tokenizers of all kinds; what else stands beside
# weights: how to generate, how pictures are prepared, and what a licence wants to go along.
VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")
COMPANIONS = (
    *VOCABULARIES,
    "tokenizer*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
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


def is_gguf(name: str | Path) -> bool:
    """Is this a GGUF file?"""
    path = Path(name).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def is_local(name: str) -> bool:
    """Does a model's name stand for something of the user's own: a directory, or a GGUF file?"""
    return Path(name).expanduser().is_dir() or is_gguf(name)


def read_companions(original: Path) -> dict[str, bytes]:
    """The files that stand beside an original's weights, its config with them, by their path; links are followed."""
    found = {path for pattern in ("config.json", *COMPANIONS) for path in original.glob(pattern) if path.is_file()}
    return {path.relative_to(original).as_posix(): path.read_bytes() for path in sorted(found)}


def has_tokenizer(directory: Path) -> bool:
    """Do a tokenizer's words stand beside a model's weights?"""
    return any(path.is_file() for pattern in VOCABULARIES for path in directory.glob(pattern))


CONFIG_BYTES = 16 * 2**20  # the largest configs have some hundred kB
TEXT_BYTES = 512 * 2**20  # the largest tokenizers have 35 MB; libraries take ten times as much memory for them
READ_WHOLE = ("config.json", CARD, INDEX, *COMPANIONS)  # others lie beside them, of any size


def check_files(directory: Path) -> None:
    """The door of every model's directory: raise before a library reads what it must not, or what it would misread.

    Raises:
        ModelError: there is no config, or a wrong one; an adapter; or a file that would not end, or fill the memory.
        ResourceError: a file may not be read, which libraries take for missing.
    """
    study_dir.require_readable(directory)
    if (directory / "adapter_config.json").exists():  # transformers would apply it, and open the model that it names
        raise ModelError(
            f"{directory}: a LoRA adapter lies there (adapter_config.json), and Seed reads whole models only. Merge it into "
            "its base model first (merge_and_unload)."
        )
    whole = {path for pattern in READ_WHOLE for path in directory.glob(pattern)}
    for path in sorted(whole.union(directory.glob("*.safetensors"))):
        study_dir.require_readable(path)
        if not path.exists():  # a link to nowhere
            continue
        found = path.stat()
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
        said = json.loads(config.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{config}: is missing. Give a directory that save_pretrained wrote.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config}: not valid JSON ({error}). Download or save the model again.") from error
    if excess := untrusted.find_excess(said):
        raise ModelError(f"{config}: {excess}. Mend that number, or download the model again.")
    if isinstance(said, dict) and (other := said.get("transformers_weights")):
        raise ModelError(
            f"{config}: names its weights itself (transformers_weights = {other}), and Seed reads {SINGLE}, or {INDEX} with "
            "its files. Rename them so, and take the field out."
        )
