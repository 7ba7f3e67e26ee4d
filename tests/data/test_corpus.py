"""Streams are disjoint by document, the same every time, and made of whole windows of the text given."""

import hashlib
import json
import random
import sysconfig
from pathlib import Path

import datasets
import numpy as np
import pytest

from seed.data import corpus, documents
from seed.data.corpus import CorpusRequest, TokenStream, open_streams, open_test_stream
from seed.demo import library
from seed.errors import CorpusError
from tests.conftest import make_tokenizer

TOKENIZER = make_tokenizer()
END = TOKENIZER.eos_token_id
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"


def request(recovery: str | Path, **changes: object) -> CorpusRequest:
    fields: dict[str, object] = {
        "recovery": str(recovery),
        "validation": None,
        "test": None,
        "window_tokens": 32,
        "recovery_tokens": 10**9,
        "validation_tokens": 10**9,
        "test_tokens": None,
    }
    fields |= {name: str(value) if isinstance(value, Path) else value for name, value in changes.items()}
    return CorpusRequest(**fields)


def read_back(stream: TokenStream) -> list[str]:
    """Return the stream's documents as text; the last may be cut at the last window's end."""
    tokens, owners = stream.tokens_NT.numpy().ravel(), stream.documents_NT.ravel()
    return [
        TOKENIZER.decode([token for token in tokens[owners == document] if token != END])
        for document in range(stream.num_documents)
    ]


def make_texts(num_texts: int, *, rng_seed: int = 0) -> list[str]:
    rng = random.Random(rng_seed)
    return ["".join(rng.choices("abcdefgh ", k=rng.randint(100, 400))) for _ in range(num_texts)]


def write_folder(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    return folder


def tokenize(texts: list[str], **changes: object) -> TokenStream:
    options: dict[str, object] = {
        "window_tokens": 16,
        "source": "notes.txt",
        "purpose": "test",
    }
    return corpus.tokenize(texts, TOKENIZER, **options | changes)


def test_splits_share_no_document(tmp_path: Path) -> None:
    texts = make_texts(80)
    streams = open_streams(request(write_folder(tmp_path / "texts", texts)), TOKENIZER)
    assert tuple(streams) == documents.SPLITS
    seen: dict[str, str] = {}
    for split, stream in streams.items():
        assert stream.num_documents > 2
        for text in read_back(stream)[:-1]:  # the last is cut
            assert text in texts
            assert seen.setdefault(text, split) == split
            digit = hashlib.sha256(text.encode()).digest()[0] % 10
            assert split == {8: "validation", 9: "test"}.get(digit, "recovery")
    assert len(seen) == 80 - 3


def test_a_single_text_gives_its_passages_in_blocks(text_file: Path) -> None:
    streams = open_streams(request(text_file), TOKENIZER)
    passages = documents.cut_passages(text_file.read_text())
    shares = {split: set(read_back(stream)[:-1]) for split, stream in streams.items()}
    assert shares["recovery"] <= set(passages[: int(len(passages) * 0.8)])
    assert shares["validation"] <= set(passages[int(len(passages) * 0.8) : int(len(passages) * 0.9)])
    assert shares["test"] <= set(passages[int(len(passages) * 0.9) :])
    assert all(shares.values())


def test_a_text_of_ones_own_is_used_whole_and_one_for_validation_and_test_is_shared_out(
    text_file: Path, tmp_path: Path
) -> None:
    texts = make_texts(200, rng_seed=3)
    own = write_folder(tmp_path / "own", texts)
    streams = open_streams(request(text_file, test=own), TOKENIZER)
    total = sum(len(text) + 1 for text in texts)
    assert streams["test"].num_tokens == total // 32 * 32
    judged = open_test_stream(str(own), TOKENIZER, window_tokens=32, bos_each_window=False)
    assert judged.describe() == streams["test"].describe()
    streams = open_streams(request(text_file, validation=own, test=own), TOKENIZER)
    assert not set(read_back(streams["validation"])) & set(read_back(streams["test"]))


def test_a_source_with_splits_of_its_own_gives_its_test_split_only(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {f"module_{number}.py": text for number, text in enumerate(make_texts(120))}
    (write_folder(tmp_path / "stdlib", []) / "argparse.py").write_text("a = 1")
    for name, text in texts.items():
        (tmp_path / "stdlib" / name).write_text(text)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "stdlib")})
    streams = open_streams(request(text_file, test="demo"), TOKENIZER)
    judged = open_test_stream("demo", TOKENIZER, window_tokens=32, bos_each_window=False)
    held_out = {text for name, text in texts.items() if library.split_of(name) == "test"}
    assert set(read_back(judged)[:-1]) <= held_out
    assert streams["test"].describe() == judged.describe()


def test_rows_with_text_and_chats_are_read_through_the_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    path = tmp_path / "rows.jsonl"
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    text = "one\u2028two\u0085three\x0bfour\x1cfive"  # as it is, not escaped: JSON allows that
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n\n" + json.dumps(chat) + "\n")
    assert corpus.read_source(str(path), tokenizer).whole == [text, "[user] hi\n[assistant] hello\n"]
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(CorpusError, match=r"rows\.jsonl:3: .*roles must alternate"):
        corpus.read_source(str(path), tokenizer)


def test_too_little_text_says_how_much_was_found_and_wanted(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("x" * 3000)
    with pytest.raises(CorpusError, match=r"short\.txt: the test stream holds"):
        open_streams(request(path, validation=path, test=path, window_tokens=1024), TOKENIZER)
    said = r"notes\.txt: the test stream holds 50 tokens, but needs at least 64 \(4 windows of 16\).*--test-text FILE"
    with pytest.raises(CorpusError, match=said):
        tokenize(["x" * 49], window_tokens=16)  # and an end: 50 tokens, 3 windows
    assert tokenize(["x" * 31, "x" * 31], window_tokens=16).num_tokens == 64
    with pytest.raises(CorpusError, match="single document"):  # no error bars
        tokenize(["x" * 63], window_tokens=16)


def test_wikitext_articles_join_to_the_text_that_papers_score() -> None:
    lines = [
        "",
        " = First = \n",
        "",
        " Some text . \n",
        " = = Part = = \n",
        " more \n",
        "",
        " = Second = \n",
        "",
        " x \n",
    ]
    articles = documents.join_articles(lines)
    assert len(articles) == 2
    assert articles[0].strip().startswith("= First =")
    assert articles[1].startswith(" = Second = ")
    assert "".join(articles) == "\n\n".join(lines) + "\n\n"
    assert documents.join_articles(["", ""]) == []


def test_every_window_can_begin_with_a_token_of_its_own(text_file: Path) -> None:
    texts = ["abc" * 40, "defg" * 30]
    stream = tokenize(texts, bos_each_window=True, source="wikitext2")
    assert (stream.tokens_NT[:, 0] == TOKENIZER.bos_token_id).all()
    assert TOKENIZER.decode(stream.tokens_NT[:, 1:].ravel().tolist()) == "".join(texts)[: 15 * len(stream.tokens_NT)]
    assert (stream.documents_NT[:, 0] == stream.documents_NT[:, 1]).all()
    for stream in open_streams(request(text_file, bos_each_window=True), TOKENIZER).values():
        assert (stream.tokens_NT[:, 0] == TOKENIZER.bos_token_id).all()
        assert not (stream.tokens_NT[:, 1] == TOKENIZER.bos_token_id).all()


@pytest.mark.parametrize("wanted", [16, 160, None])
def test_taking_evenly_keeps_whole_windows_from_end_to_end(wanted: int | None) -> None:
    stream = tokenize(make_texts(12))
    taken = stream.take_evenly(wanted)
    rows = [tuple(row) for row in stream.tokens_NT.tolist()]
    positions = [rows.index(tuple(row)) for row in taken.tokens_NT.tolist()]
    assert positions == sorted(positions)
    expected = len(rows) if wanted is None else min(len(rows), wanted // 16)
    assert len(positions) == expected
    if len(positions) > 1:
        assert (positions[0], positions[-1]) == (0, len(rows) - 1)
        steps = np.diff(positions)
        assert steps.max() - steps.min() <= 1
    assert set(taken.documents_NT.ravel()) == set(range(taken.num_documents))
    originals = stream.documents_NT[positions]
    assert len({*zip(originals.ravel(), taken.documents_NT.ravel(), strict=True)}) == taken.num_documents


def test_a_limit_of_few_windows_is_refused_and_the_lowest_keeps_two_documents(tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    path.write_text("".join(json.dumps({"text": text * 100}) + "\n" for text in make_texts(2)))
    for limit in (1, 32, 127):
        with pytest.raises(CorpusError, match=f"--test-tokens {limit}: less than 4 windows of 32.*128 or more"):
            open_test_stream(str(path), TOKENIZER, window_tokens=32, bos_each_window=False, max_tokens=limit)
    few = open_test_stream(str(path), TOKENIZER, window_tokens=32, bos_each_window=False, max_tokens=128)
    assert (few.num_tokens, few.num_documents) == (128, 4)


@pytest.mark.parametrize("joint", ["\n", ""])
def test_one_very_long_text_has_error_bars_however_it_is_written(joint: str, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    words = joint.join(text.replace(" ", joint and "-") for text in make_texts(400))
    path.write_text("A Book\n\n" + words)  # a title, and nothing else that is set off
    streams = open_streams(request(path, validation_tokens=128, test_tokens=128), TOKENIZER)
    assert all(stream.num_documents > 3 for stream in streams.values())
    assert (streams["validation"].num_tokens, streams["test"].num_tokens) == (128, 128)
    passages = documents.cut_passages(path.read_text())
    assert "".join(passages).replace(joint, "").replace("\n", "") == path.read_text().replace(joint, "").replace(
        "\n", ""
    )
    assert max(map(len, passages)) <= documents.LONGEST_PASSAGE
    judged = open_test_stream(str(path), TOKENIZER, window_tokens=32, bos_each_window=False, max_tokens=128)
    assert judged.num_documents > 3


def test_a_judged_split_of_one_document_is_cut_into_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = ["\n\n".join(make_texts(40, rng_seed=number)) for number in range(3)]
    rows = dict(zip(documents.SPLITS, ([book] for book in books), strict=True))
    monkeypatch.setattr(corpus, "_read_hub", lambda *_, **__: rows)
    streams = open_streams(request("hub:books"), TOKENIZER)
    assert streams["recovery"].num_documents == 1
    assert streams["validation"].num_documents > 3
    assert streams["test"].num_documents > 3


def write_data_set(folder: Path, **splits: list[str]) -> Path:
    folder.mkdir()
    for split, texts in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep data sets that tests load out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("own_cache")
def test_a_data_set_keeps_its_own_splits(tmp_path: Path) -> None:
    splits = {"train": make_texts(3), "validation": make_texts(2, rng_seed=1), "test": make_texts(2, rng_seed=2)}
    found = corpus.read_source(f"hub:{write_data_set(tmp_path / 'set', **splits)}", TOKENIZER).documents
    assert found == {"recovery": splits["train"], "validation": splits["validation"], "test": splits["test"]}
    folder = write_data_set(tmp_path / "other", test=make_texts(3))
    with pytest.raises(CorpusError, match="no split called train; it has test"):
        corpus.read_source(f"hub:{folder}", TOKENIZER)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", ["wikitext2", "hub:nobody/nothing"])
def test_a_data_set_without_network_gives_the_cures(source: str) -> None:
    with pytest.raises(CorpusError, match="cannot be loaded from the hub") as caught:
        corpus.read_source(source, TOKENIZER)
    assert str(caught.value).startswith(f"{source}: ")
    assert "--recovery-text FILE" in str(caught.value)
