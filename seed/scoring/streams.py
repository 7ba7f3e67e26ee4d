"""Token streams in a folder, tokenized by one process and mapped into the memory of others on its host.

Files are named by the hash of what they hold. Whether it is what a study wants, its protocol says.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from seed import folder
from seed.plans import StreamRecord
from seed.scoring.corpus import TokenStream


def store_streams(directory: Path, streams: Mapping[str, TokenStream]) -> None:
    """Write streams where other processes find them; those that are there already stay.

    Raises:
        ResourceError: the disk does not take them.
    """
    for stream in streams.values():
        record = stream.describe()
        for part, array in (("tokens", stream.tokens_NT.numpy()), ("documents", stream.documents_NT)):
            path = _locate(directory, record, part)
            if not path.is_file():
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                folder.write_bytes(path, content.getbuffer())


def load_streams(directory: Path, records: Mapping[str, StreamRecord]) -> dict[str, TokenStream] | None:
    """Map stored streams into memory; None where one of them is missing. Pages are shared until somebody writes on them."""
    found = {}
    for name, record in records.items():
        paths = [_locate(directory, record, part) for part in ("tokens", "documents")]
        if not all(path.is_file() for path in paths):
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
