"""What a model is read from beside its weights, looked at before transformers reads it: files that end, a config of a model."""

import json
import stat
from pathlib import Path

from seed import untrusted
from seed.errors import ModelError
from seed.models.companions import COMPANIONS
from seed.models.stored import INDEX

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
