"""Every file that a user may hand in as text gives its text, or one error that says where, what and how to mend it."""

import gzip
import json
import os
import sys
from pathlib import Path

import datasets
import pytest

from seed.data.text_files import list_files, read_files, render_row
from seed.errors import CorpusError
from tests.conftest import make_tokenizer
from tests.data.test_corpus import TEMPLATE

TOKENIZER = make_tokenizer()
CHATS = make_tokenizer()
CHATS.chat_template = TEMPLATE
TEXTS = ["first, with a comma", "NA", "007", 'said "yes"\nand went', "caf\u00e9"]
ROWS = [{"text": text, "number": index} for index, text in enumerate(TEXTS)]


def write_table(delimiter: str) -> bytes:
    cells = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return "\r\n".join([f"number{delimiter}text", *[f"{i}{delimiter}{cell}" for i, cell in enumerate(cells)]]).encode()


BOM = b"\xef\xbb\xbf"
FILES = {
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "bom.json": BOM + json.dumps(ROWS).encode(),
    "lines.json": "\n".join(map(json.dumps, ROWS)).encode(),
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "bom.jsonl": BOM + "\r\n".join(map(json.dumps, ROWS)).encode(),
    "rows.csv": write_table(","),
    "bom.csv": BOM + write_table(","),
    "rows.tsv": write_table("\t"),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_the_same_in_every_container(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FILES[name]))
    for path in tmp_path.iterdir():
        assert read_files(str(path), TOKENIZER) == (TEXTS, ())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parquet_and_arrow_are_read_by_datasets(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(ROWS)
    made.to_parquet(tmp_path / "rows[1].parquet")
    assert read_files(str(tmp_path / "rows[1].parquet"), TOKENIZER)[0] == TEXTS
    made.save_to_disk(tmp_path / "saved")
    assert read_files(str(tmp_path / "saved"), TOKENIZER)[0] == TEXTS
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CorpusError, match=r"bad\.parquet: cannot be read as Parquet"):
        read_files(str(tmp_path / "bad.parquet"), TOKENIZER)


def test_plain_text_has_no_mark_at_its_head_and_one_kind_of_line_end(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(BOM + b"one\r\ntwo\rthree\n")
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(b"four"))
    assert read_files(str(tmp_path), TOKENIZER)[0] == ["one\ntwo\nthree\n", "four"]


BROKEN = {
    "utf16.txt": ("no".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "utf16.jsonl": ('{"text": "no"}'.encode("utf-16-le"), "holds zero bytes"),
    "latin.csv": (b"text\ncaf\xe9", "iconv -f LATIN1 -t UTF-8"),
    "cut.txt.gz": (gzip.compress(b"text" * 100)[:-12], "cannot be read"),
    "no.jsonl.gz": (b"not compressed", "Not a gzipped file"),
    "half.jsonl": (b'\n{"text": "a\\ud800"}', r":2: holds \ud800"),
    "half.json": (b'[{"text": "a"}, {"text": "\\ud800"}]', r"(row 1): holds \ud800"),
    "deep.jsonl": (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", ":1: not JSON (maximum recursion depth"),
    "deep.json": (b'[{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]", "not JSON (maximum recursion depth"),
    "digits.jsonl": (
        b'{"text": "a", "n": ' + b"1" * 6000 + b"}",
        ":1: a number there has too many digits. Put it in quotes, or leave the row out.",
    ),
    "cut.jsonl": (b'{"text": "broken', ":1: not JSON"),
    "row.jsonl": (b'["text"]', ":1: found a list; wanted"),
    "chat.jsonl": (
        b'{"text": "a"}\n\n{"messages": [{"role": "user"}]}',
        ":3: chat messages, but this model's tokenizer",
    ),
    "null.jsonl": (b'{"text": "a"}\n{"text": null}', ":2: found text ('text' is null)"),
    "list.jsonl": (b'{"text": ["a", "b"]}', ":1: found text ('text' is a list)"),
    "broken.json": (b'[{"text": "a"}\n{', "not JSON (Expecting ',' delimiter: line 2"),
    "number.json": (b"5", "(row 0): found a number"),
    "columns.csv": (b"body,author\nx,y", ":2: found author, body"),
    "ragged.csv": (b"body,author\nx,y,z,u", ":2: found None, author, body"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_text_is_named_by_its_place(name: str, tmp_path: Path) -> None:
    content, wanted = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        read_files(str(tmp_path / name), TOKENIZER)
    assert str(caught.value).startswith(f"{tmp_path / name}")
    assert wanted in str(caught.value)


def test_a_folder_says_which_of_its_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("read")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.txt" / "rows.jsonl").write_text('{"text": "read too"}')
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("hidden")
    (tmp_path / ".notes.txt").write_text("hidden")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "linked.md").symlink_to("notes.txt")
    os.mkfifo(tmp_path / "pipe.txt")  # opening it would wait for ever
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "data.parquet").write_bytes(b"no text of the user's")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "folder.txt")
    (tmp_path / "model.bin").write_bytes(b"\xff")
    texts, notes = read_files(str(tmp_path), TOKENIZER)
    assert texts == ["read too", "read", "read"]
    assert notes == ("3 files read (.jsonl, .md, .txt), 8 passed over",)
    for name in ("notes.txt", "linked.md", "folder.txt/rows.jsonl", "pipe.txt"):
        (tmp_path / name).unlink()
    assert [file.name for file in list_files(tmp_path)[0]] == ["data.parquet"]
    (tmp_path / "data.parquet").unlink()
    assert [file.name for file in list_files(tmp_path)[0]] == ["settings.json"]
    (tmp_path / "settings.json").unlink()
    with pytest.raises(CorpusError, match="no text there, 5 passed over"):
        read_files(str(tmp_path), TOKENIZER)


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    for place in (tmp_path / "pipe.txt", "/dev/zero"):
        with pytest.raises(CorpusError, match="a pipe, a socket or a device, not a file"):
            read_files(str(place), TOKENIZER)
    with pytest.raises(CorpusError, match=r"gone\.txt: no such file or directory, but a broken link"):
        read_files(str(tmp_path / "gone.txt"), TOKENIZER)
    for name in ("~nobody-of-this-name/notes.txt", "x" * 5000, "a\0b"):
        with pytest.raises(CorpusError, match="no such file"):
            read_files(name, TOKENIZER)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    Path(path).write_text('{"text": "fine"}')
    assert read_files(str(tmp_path), TOKENIZER)[0] == ["fine"]  # the folder's own name is what a plan holds
    with pytest.raises(CorpusError, match=r"caf\\udce9\.jsonl: its name is not UTF-8"):
        read_files(path, TOKENIZER)
    Path(path).write_text("{")
    with pytest.raises(CorpusError, match=r"caf\\udce9\.jsonl:1: not JSON"):
        read_files(str(tmp_path), TOKENIZER)


def test_parts_of_text_are_joined_and_null_fields_are_as_if_absent() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo", "image": None}]
    messages = [{"role": "user", "content": parts, "name": None}, {"role": "assistant", "content": "hi"}]
    assert render_row({"text": None, "messages": messages}, CHATS, place="x") == "[user] hello\n[assistant] hi\n"
    calls = make_tokenizer()
    calls.chat_template = "{% for m in messages %}{{ m.tool_calls[0].id }} {{ 'name' in m }}{% endfor %}"
    calling = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "name": None}
    assert render_row({"messages": [calling]}, calls, place="x") == "1 False"


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ([{"role": "user", "content": "nested"}], "found a list; wanted"),
        ({"content": "hi"}, "found an object with content; wanted"),
        ({"role": "user", "content": None}, "its content is null"),
        (
            {"role": "user", "content": [{"type": "image", "url": "x"}]},
            "its content is a list with other parts than text",
        ),
    ],
)
def test_a_message_that_is_no_text_is_refused(message: object, wanted: str) -> None:
    good = {"role": "user", "content": "hi"}
    with pytest.raises(CorpusError) as caught:
        render_row({"messages": [good, message]}, CHATS, place="chats.jsonl:7")
    assert str(caught.value).startswith(f"chats.jsonl:7, message 2: {wanted}")
