"""What is judged is nowhere in what trains, whatever it comes in, and counts once."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from seed.data import contamination, documents
from seed.data.contamination import JudgedText, LeftOut
from seed.data.corpus import TokenStream, open_streams, open_test_stream
from seed.errors import CorpusError
from tests.conftest import make_tokenizer
from tests.data.test_corpus import read_back, request
from tests.running import ROOT

TOKENIZER = make_tokenizer()
WORDS = ["".join(random.Random(i).choices("abcdefghij", k=5)) for i in range(500)]


def write_paragraphs(count: int, *, rng_seed: int, num_words: int = 60) -> list[str]:
    rng = random.Random(rng_seed)
    return [" ".join(rng.choices(WORDS, k=num_words)).capitalize() + "." for _ in range(count)]


def measure_leak(streams: dict[str, TokenStream], *, words: int = 24) -> float:
    """The share of the test stream's runs of words that the recovery stream has, measured on what the model sees."""

    def list_runs(split: str) -> list[tuple[str, ...]]:
        found = [text.casefold().split() for text in read_back(streams[split])]
        return [tuple(text[i : i + words]) for text in found for i in range(len(text) - words + 1)]

    recovery, test = set(list_runs("recovery")), list_runs("test")
    return sum(run in recovery for run in test) / len(test)


ORIGINAL = [text for number in range(60) for text in write_paragraphs(1, rng_seed=100 + number, num_words=150)]
CONTAINERS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "rows": ("rows.jsonl", lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts)),
    "one line": ("notes.txt", " ".join),
    "other line ends": ("notes.txt", "\r\n\r\n".join),
    "other case and order": ("notes.txt", lambda texts: "\n\n".join(reversed(texts)).upper()),
    "wrapped": ("notes.txt", lambda texts: "\n\n".join(text.replace(" ", "\n") for text in texts)),
    "table": ("rows.csv", lambda texts: "text\n" + "\n".join(texts)),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_documents_are_found_again_in_whatever_holds_them(container: str, tmp_path: Path) -> None:
    name, write = CONTAINERS[container]
    recovery, test = tmp_path / name, tmp_path / "test.jsonl"
    recovery.write_text(write(ORIGINAL), newline="")
    test.write_text("".join(json.dumps({"text": text}) + "\n" for text in ORIGINAL[10:40:3]))
    streams = open_streams(request(recovery, test=test), TOKENIZER)
    assert measure_leak(streams, words=13) < 0.02
    documents = " ".join(" ".join(read_back(streams["recovery"])).casefold().split())
    kept = [text for text in ORIGINAL if text not in ORIGINAL[10:40:3] and text.casefold()[200:600] in documents]
    assert len(kept) > 30  # of fifty, of which a tenth are validation


def test_copies_count_once_in_every_stream(tmp_path: Path) -> None:
    texts = write_paragraphs(60, rng_seed=0)
    once, thrice, varied = tmp_path / "once.jsonl", tmp_path / "thrice.jsonl", tmp_path / "varied.jsonl"
    rows = [json.dumps({"text": text}) + "\n" for text in texts]
    once.write_text("".join(rows))
    thrice.write_text("".join(rows * 3))
    varied.write_text(
        "".join(rows + [json.dumps({"text": text.upper() + "\r\n"}) + "\n" for text in texts] + ['{"text": " "}\n'])
    )
    wanted = open_streams(request(once), TOKENIZER)
    for path in (thrice, varied):
        found = open_streams(request(path), TOKENIZER)
        assert {split: stream.describe().sha256 for split, stream in found.items()} == {
            split: stream.describe().sha256 for split, stream in wanted.items()
        }
    assert (
        "120 of 180 documents left out as copies of others"
        in open_streams(request(thrice), TOKENIZER)["recovery"].notes
    )
    assert found["recovery"].notes == ("60 of 120 documents left out as copies of others", "1 empty document left out")
    judged = open_test_stream(str(thrice), TOKENIZER, window_tokens=32, bos_each_window=False)
    assert judged.num_documents == 60


def test_a_copy_of_the_recovery_text_is_no_test_text(tmp_path: Path) -> None:
    texts = write_paragraphs(100, rng_seed=0)
    (tmp_path / "recovery.txt").write_text("\n\n".join(texts))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(CorpusError) as caught:
        open_streams(request(tmp_path / "recovery.txt", test=tmp_path / "test.jsonl"), TOKENIZER)
    assert str(caught.value).startswith(f"{tmp_path}/recovery.txt: the validation stream holds 0 tokens")
    for said in (
        "(100.0 % of it): 10 % or more of their 13-grams are in text judged later",
        "give --validation-text FILE",
    ):
        assert said in str(caught.value)


def test_phrases_of_all_documents_are_told_and_those_of_few_are_taken_out(tmp_path: Path) -> None:
    phrases = write_paragraphs(12, rng_seed=0, num_words=30)
    rng = random.Random(0)
    texts = [" ".join(rng.sample(phrases, 3)) for _ in range(400)]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    streams = open_streams(request(tmp_path / "same.jsonl"), TOKENIZER)  # a form that they all have: told, not refused
    assert float(streams["test"].notes[-1].split()[0]) > 80
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in phrases))
    with pytest.raises(CorpusError, match=r"same\.jsonl: .* stretches of text left out \(100\.0 % of it\)"):
        open_streams(request(tmp_path / "same.jsonl", test=tmp_path / "test.jsonl"), TOKENIZER)


def sift(documents: list[str], held_out: list[str]) -> tuple[list[str], LeftOut, JudgedText]:
    judged, left_out = JudgedText(), LeftOut()
    judged.add("test", held_out)
    return list(judged.keep_apart(documents, left_out, names=["test"])), left_out, judged


def test_only_what_is_shared_leaves_a_long_document() -> None:
    book, other = write_paragraphs(100, rng_seed=0), write_paragraphs(40, rng_seed=1)
    (kept,), left_out, judged = sift(["\n\n".join(book)], [*other, book[50]])
    gone = [paragraph for paragraph in book if paragraph not in kept]
    assert book[50] in gone
    assert len(gone) <= 3
    assert left_out.characters == len("\n\n".join(book)) - len(kept)
    assert judged.measure_seen("test") == 0


def test_a_form_that_many_documents_have_is_no_copy_and_is_told_all_the_same() -> None:
    licence = " ".join(WORDS[:40])
    held_out = [f"{licence}\n{text}" for text in write_paragraphs(20, rng_seed=0)]
    documents = [f"{licence}\n{text}" for text in write_paragraphs(20, rng_seed=1)]
    kept, left_out, judged = sift(documents, held_out)
    assert kept == documents
    assert left_out.describe() == ()
    assert judged.measure_seen("test") == pytest.approx(28 / (40 + 60 - 12))
    prompts = write_paragraphs(20, rng_seed=0, num_words=80)
    rows = [f"{prompts[number % 20]}\n{text}" for number, text in enumerate(write_paragraphs(500, rng_seed=1))]
    kept, left_out, judged = sift(rows[200:], rows[:200])  # each prompt is in 5 % of them
    assert kept == rows[200:]
    assert left_out.describe() == ()
    assert judged.measure_seen("test") > 0.5


@pytest.mark.parametrize("is_reversed", [False, True])
def test_short_documents_are_found_in_long_text_and_long_text_in_them(is_reversed: bool, tmp_path: Path) -> None:
    lines = write_paragraphs(400, rng_seed=0, num_words=9)
    rows, book = tmp_path / "rows.jsonl", tmp_path / "book.txt"
    given, other = (lines, lines[::2]) if not is_reversed else (lines[::2], lines)
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
    book.write_text("\n".join(other))
    recovery, test = (book, rows) if is_reversed else (rows, book)
    streams = open_streams(request(recovery, test=test), TOKENIZER)
    assert measure_leak(streams, words=9) == 0
    assert streams["recovery"].num_tokens > 5000
    assert streams["test"].notes[-2:] == (
        "0.0 % of its 9-grams are in the recovery text",
        "documents of fewer than 9 words are compared whole only",
    )


def test_text_without_spaces_is_compared_by_its_characters() -> None:
    rng = random.Random(0)
    pages = ["".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(300)) for _ in range(6)]
    kept, _, judged = sift(["。".join(pages)], [pages[2]])
    assert pages[4] in kept[0]
    assert judged.measure_seen("test") < 0.1


def test_words_are_the_same_whatever_else_a_text_holds() -> None:
    text = "".join(map(chr, range(128))) * 2 + " It's a_b, X-9."
    assert contamination.split_words(text) == contamination.split_words(text + "\u00a0\u2014")
    assert contamination.split_words("\ufb01n STRASSE stra\u00dfe cafe\u0301 \u4e2d\u6587") == [
        "fin",
        "strasse",
        "strasse",
        "caf\u00e9",
        "\u4e2d",
        "\u6587",
    ]


def test_no_more_is_compared_than_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, test = tmp_path / "much.jsonl", tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in write_paragraphs(1500, rng_seed=0)))
    test.write_text("".join(json.dumps({"text": text}) + "\n" for text in write_paragraphs(40, rng_seed=1)))
    looked_at = []
    split_words = contamination.split_words
    monkeypatch.setattr(contamination, "split_words", lambda text: looked_at.append(text) or split_words(text))
    assert list(JudgedText().keep_apart(["one", "two"], LeftOut(), names=[])) == ["one", "two"]
    assert looked_at == []  # the first judged text is compared with nothing
    open_streams(request(path, validation=test, test=test, recovery_tokens=10_000), TOKENIZER)
    assert len(looked_at) < 400


def test_much_judged_text_is_thinned_evenly_and_little_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = [*write_paragraphs(300, rng_seed=0), " ".join(write_paragraphs(200, rng_seed=1))]
    total = sum(map(len, texts))
    assert documents.thin_judged(texts, 100) == (texts, ())
    monkeypatch.setattr(documents, "JUDGED_CHARACTERS", 50_000)
    monkeypatch.setattr(documents, "UNLIMITED_CHARACTERS", 80_000)
    for max_tokens, most in ((100, 50_000), (4_000, 64_000), (None, 80_000)):
        kept, (note,) = documents.thin_judged(texts, max_tokens)
        characters = sum(map(len, kept))
        assert 0.95 * most < characters <= most
        assert len(kept) >= documents.THINNED_DOCUMENTS
        assert all(any(whole.startswith(text) for whole in texts) for text in kept)
        assert note.startswith(f"{len(kept):,} of its 301 documents judged")
        assert note.endswith(f"{characters:,} of {total:,} characters")
    assert sum(map(len, documents.thin_judged([texts[-1]], 100)[0])) <= 50_000
    path, test = tmp_path / "much.jsonl", tmp_path / "test.jsonl"
    for place, number in ((path, 2), (test, 3)):
        rows = write_paragraphs(400, rng_seed=number)
        place.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    streams = open_streams(request(path, test=test, test_tokens=1000), TOKENIZER)
    judged = open_test_stream(str(test), TOKENIZER, window_tokens=32, bos_each_window=False, max_tokens=1000)
    assert judged.describe().sha256 == streams["test"].describe().sha256
    assert judged.notes == streams["test"].notes[:1]
    assert "of its 400 documents judged" in judged.notes[0]


def test_the_documentation_tells_the_rule_that_holds() -> None:
    rule = " ".join((ROOT / "docs/method.md").read_text().split())
    assert contamination.STRETCH.pattern.startswith("(?s).{200,400}?")
    for number in (
        f"{documents.PASSAGE_CHARACTERS:,} characters or more",
        f"more than {documents.LONGEST_PASSAGE:,} again",
        f"one of more than {2 * documents.PASSAGE_CHARACTERS:,};",
        f"beyond {documents.JUDGED_CHARACTERS // 10**6} million characters, {documents.JUDGED_TOKEN_CHARACTERS} for each",
        f"{documents.UNLIMITED_CHARACTERS // 10**6} million without a limit",
        f"a paragraph of {documents.LONG_PARAGRAPH} or more",
        f"a {contamination.RUN_WORDS}-gram of words",
        f"{100 * contamination.LEAST_SHARE:.0f} % or more of the {contamination.RUN_WORDS}-grams",
        f"the shortest {100 // contamination.SHORT_DOCUMENTS} % of a stream, {contamination.LEAST_RUN_WORDS} words at least",
        f"more than two and more than {100 * contamination.PHRASE_SHARE:.0f} % of the judged",
    ):
        assert number in rule
    numbers = (
        contamination.PHRASE_DOCUMENTS,
        contamination.PHRASE_SHARE,
        documents.MANY_DOCUMENTS,
        documents.FEW_PASSAGES,
        documents.THINNED_DOCUMENTS,
    )
    assert numbers == (2, 0.01, 30, 20, 100)
