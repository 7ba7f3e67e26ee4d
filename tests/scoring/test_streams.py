"""What one process tokenized, others of its host read as it is, without a copy of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from seed.scoring.corpus import CorpusRequest, open_streams
from seed.scoring.streams import load_streams, store_streams
from tests.conftest import make_tokenizer
from tests.scoring.streams import draw_stream


def test_stored_streams_are_the_same_and_mapped(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = CorpusRequest(
        recovery=str(text_file),
        validation=None,
        test=None,
        window_tokens=64,
        recovery_tokens=10**6,
        validation_tokens=2048,
        test_tokens=None,
    )
    streams = open_streams(request, make_tokenizer())
    records = {name: stream.describe() for name, stream in streams.items()}
    assert load_streams(tmp_path, records) is None
    store_streams(tmp_path, streams)
    monkeypatch.setattr(np.lib.format, "write_array", None)  # what is there is not written again
    store_streams(tmp_path, streams)
    loaded = load_streams(tmp_path, records)
    assert loaded is not None
    assert {name: stream.describe() for name, stream in loaded.items()} == records
    for name, stream in loaded.items():
        assert np.array_equal(stream.documents_NT, streams[name].documents_NT)
        assert isinstance(stream.documents_NT, np.memmap)
        stream.tokens_NT[0] += 1  # ours alone
    again = load_streams(tmp_path, records)
    assert again is not None
    assert {name: stream.describe() for name, stream in again.items()} == records
    assert not list(tmp_path.glob(".*"))
    (tmp_path / f"{records['test'].sha256}.tokens.npy").unlink()
    assert load_streams(tmp_path, records) is None


@pytest.mark.parametrize("part", ["tokens", "documents"])
def test_a_stored_stream_whose_bytes_changed_is_not_read_and_written_again(tmp_path: Path, part: str) -> None:
    streams = {"test": draw_stream(6, 16, rng_seed=0)}
    records = {name: stream.describe() for name, stream in streams.items()}
    store_streams(tmp_path, streams)
    path = tmp_path / f"{records['test'].sha256}.{part}.npy"
    content = bytearray(path.read_bytes())
    content[-60] ^= 1
    path.write_bytes(content)
    assert load_streams(tmp_path, records) is None
    store_streams(tmp_path, streams)
    loaded = load_streams(tmp_path, records)
    assert loaded is not None
    assert torch.equal(loaded["test"].tokens_NT, streams["test"].tokens_NT)
    assert np.array_equal(loaded["test"].documents_NT, streams["test"].documents_NT)
