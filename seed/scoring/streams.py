"""Token streams in a folder, tokenized by one process and mapped into the memory of others on its host.

Files are named by the hash of the tokens and carry a digest. Whether they are what a study wants, its protocol says.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from seed import sealed
from seed.folder import refuse_write
from seed.plans import StreamRecord
from seed.scoring.corpus import TokenStream


def store_streams(directory: Path, streams: Mapping[str, TokenStream]) -> None:
    """Write streams where other processes find them; those that are there already, and whole, stay.

    Raises:
        ResourceError: the disk does not take them.
    """
    for stream in streams.values():
        record = stream.describe()
        for part, array in (("tokens", stream.tokens_NT.numpy()), ("documents", stream.documents_NT)):
            path = _locate(directory, record, part)
            if not sealed.is_sealed(path):
                try:
                    with sealed.write_sealed(path) as file:
                        np.lib.format.write_array(file, array, allow_pickle=False)
                except OSError as error:
                    raise refuse_write(path, error) from error


def load_streams(directory: Path, records: Mapping[str, StreamRecord]) -> dict[str, TokenStream] | None:
    """Map stored streams into memory; None where one is missing or damaged. Pages are shared until somebody writes on them."""
    found = {}
    for name, record in records.items():
        paths = [_locate(directory, record, part) for part in ("tokens", "documents")]
        if not all(map(sealed.is_sealed, paths)):
            return None
        tokens, documents = (np.load(path, mmap_mode="c", allow_pickle=False) for path in paths)
        found[name] = TokenStream(
            tokens_NT=torch.from_numpy(tokens),
            documents_NT=documents,
            num_documents=record.documents,
            source=record.source,
            notes=record.notes,
        )
    return found


def _locate(directory: Path, record: StreamRecord, part: str) -> Path:
    return directory / f"{record.sha256}.{part}.npy"
