"""Files of text: which of a folder's are read, what is in them, and the text of a row."""

import csv
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from seed.errors import CorpusError, first_line
from seed.untrusted import is_utf8

TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".py", ".text", ".tex", ".html"})
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
# In a folder these are read where no text is: beside texts they hold settings and figures.
ARROW_SUFFIXES = frozenset({".parquet", ".arrow"})  # where there are some, JSON beside them tells what they are
TABLE_SUFFIXES = frozenset({".json", ".csv", ".tsv"})
COMPRESSED = ".gz"
JSON_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
}


def read_files(source: str, tokenizer: Any, *, as_prompts: bool = False) -> tuple[list[str], tuple[str, ...]]:
    """Return the documents of a file or a folder, and in words which of the folder's files they are from.

    ``as_prompts``: of chats what comes before the last answer, and the words that ask for one.

    Raises:
        CorpusError: it is not there, or something in it is no text.
    """
    place = Path(os.path.expanduser(source))
    if not is_utf8(source):
        raise CorpusError(f"{name_path(place)}: its name is not UTF-8, so that no plan could hold it. Rename it.")
    if os.path.isfile(place):
        return list(_read_file(place, tokenizer, as_prompts=as_prompts)), ()
    if os.path.isdir(place):
        files, note = list_files(place)
        return [text for file in files for text in _read_file(file, tokenizer, as_prompts=as_prompts)], (note,)
    if os.path.exists(place):
        raise CorpusError(f"{place}: a pipe, a socket or a device, not a file. Save its text in a file, and give that.")
    raise CorpusError(
        f"{source}: no such file or directory{', but a broken link' * os.path.islink(place)}, nor a known corpus. Use demo, "
        "wikitext2, hub:NAME[:CONFIG], a text or JSONL file, or a directory of them."
    )


def list_files(place: Path) -> tuple[list[Path], str]:
    """The files of a folder that are read, in the order of their names, and in words how many are and are not.

    Hidden ones are not, nor what is no file; rows of Parquet or Arrow are where there is no text, and tables where there is
    neither.

    Raises:
        CorpusError: none is.
    """
    found = [path for path in sorted(place.rglob("*")) if path.is_symlink() or not path.is_dir()]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(place).parts)]
    groups = (
        [path for path in shown if path.is_file() and kind_of(path) in kinds]
        for kinds in (TEXT_SUFFIXES | JSONL_SUFFIXES, ARROW_SUFFIXES, TABLE_SUFFIXES)
    )
    files = next(filter(None, groups), [])
    passed_over = len(found) - len(files)
    said = f", {passed_over:,} passed over" if passed_over else ""
    if not files:
        raise CorpusError(f"{place}: no text there{said}. Wanted: files ending in .txt, .md, .py, .jsonl or the like.")
    kinds = ", ".join(sorted({kind_of(file) for file in files}))
    return files, f"{len(files):,} file{'s' * (len(files) > 1)} read ({kinds}){said}"


def kind_of(file: Path) -> str:
    """A file's suffix in small letters; of a compressed one, the suffix of what is in it."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix == COMPRESSED else suffix


def name_path(path: Path) -> str:
    """A path that can be printed, whatever bytes are in it."""
    return str(path).encode(errors="backslashreplace").decode()


def _read_file(path: Path, tokenizer: Any, *, as_prompts: bool) -> Iterator[str]:
    kind, place = kind_of(path), name_path(path)
    if kind in ARROW_SUFFIXES:
        rows: Iterable[tuple[str, Any]] = _read_arrow(path, kind=kind)
    elif kind in JSONL_SUFFIXES:
        rows = _read_lines(_read_text(path), place=place)
    elif kind == ".json":
        rows = _read_json(_read_text(path), place=place)
    elif kind in TABLE_SUFFIXES:
        rows = _read_table(_read_text(path), place=place, delimiter="\t" if kind == ".tsv" else ",")
    else:
        yield _read_text(path)
        return
    for where, row in rows:
        yield render_row(row, tokenizer, place=where, as_prompt=as_prompts)


def _read_text(path: Path) -> str:
    place = name_path(path)
    try:
        with gzip.open(path) if path.suffix.lower() == COMPRESSED else path.open("rb") as handle:
            content = handle.read()
        text = content.decode("utf-8-sig")
        if "\0" in text:
            raise CorpusError(f"{place}: holds zero bytes, so it is no UTF-8 text. Convert it or leave it out.")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "LATIN1"
        raise CorpusError(
            f"{place}: cannot be read as UTF-8 text ({error.reason} at byte {error.start:,}). Convert it (iconv -f {encoding} "
            "-t UTF-8 OLD > NEW, where that is its encoding) or leave it out."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{place}: cannot be read ({first_line(error)}). Mend it or leave it out.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_lines(text: str, *, place: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines, which cuts inside JSON strings
        if line.strip():
            yield (
                f"{place}:{number}",
                _parse_json(line, place=f"{place}:{number}", wanted="Each line must be one JSON object."),
            )


def _read_json(text: str, *, place: str) -> Iterable[tuple[str, Any]]:
    """An array of rows, one row, or a row in each line."""
    first, _, rest = text.strip().partition("\n")
    if first.startswith("{") and first.endswith("}") and rest:
        return _read_lines(text, place=place)
    whole = _parse_json(text, place=place, wanted="It must be an array of objects, or an object in each line.")
    rows = whole if isinstance(whole, list) else [whole]
    return ((f"{place} (row {index})", row) for index, row in enumerate(rows))


def _parse_json(text: str, *, place: str, wanted: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorpusError(f"{place}: not JSON ({first_line(error)}). {wanted}") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise CorpusError(
            f"{place}: a number there has too many digits. Put it in quotes, or leave the row out."
        ) from error


def _read_table(text: str, *, place: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    for row in reader:
        yield f"{place}:{reader.line_num}", row


def _read_arrow(path: Path, *, kind: str) -> Iterator[tuple[str, Any]]:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the error says it
    try:
        rows = datasets.load_dataset(kind[1:], data_files=glob.escape(str(path)), split="train", streaming=True)
        for index, row in enumerate(rows):
            yield f"{name_path(path)} (row {index})", row
    except Exception as error:  # readers of files raise what they like
        raise CorpusError(
            f"{name_path(path)}: cannot be read as {kind[1:].capitalize()} ({first_line(error)}). Mend it or leave it out."
        ) from error


def render_row(row: Any, tokenizer: Any, *, place: str, as_prompt: bool = False) -> str:
    """Return the text of one row: its ``text``, or its chat ``messages`` through the model's chat template.

    ``as_prompt``: what a model is to answer, so without answers that stand at the end of the messages.

    Raises:
        CorpusError: neither is there, or what is there is no text, or there are messages and no template.
    """
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        text = str(row["text"])
    elif isinstance(row, dict) and isinstance(row.get("messages"), list):
        if not getattr(tokenizer, "chat_template", None):
            raise CorpusError(
                f"{place}: chat messages, but this model's tokenizer has no chat template. Give plain text in a field 'text'."
            )
        messages = [
            check_message(message, place=f"{place}, message {i}") for i, message in enumerate(row["messages"], 1)
        ]
        while as_prompt and messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if as_prompt and not messages:
            raise CorpusError(f"{place}: nothing but answers. Give the message that is to be answered.")
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=as_prompt))
        except Exception as error:  # templates are the model author's programs and raise what they like
            raise CorpusError(f"{place}: the model's chat template refuses these messages ({error}).") from error
    else:
        found = ", ".join(sorted(map(str, row))) if isinstance(row, dict) else name_kind(row)
        found += f" ('text' is {name_kind(row['text'])})" if isinstance(row, dict) and "text" in row else ""
        raise CorpusError(f"{place}: found {found}; wanted an object with a string 'text' or a list 'messages'.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("ascii", "backslashreplace").decode()
        raise CorpusError(
            f"{place}: holds {half}, one half of a character written as two. Write the whole character, or leave the row out."
        ) from error
    return text


def check_message(message: Any, *, place: str) -> dict[str, Any]:
    """Return a chat message whose content is a string: parts of text are joined, fields that are null are left out.

    Raises:
        CorpusError: it has no role, or its content is not text alone.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        found = f"an object with {', '.join(map(str, message))}" if isinstance(message, dict) else name_kind(message)
        raise CorpusError(f"{place}: found {found}; wanted an object with a string 'role' and a string 'content'.")
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    ]
    if isinstance(content, list) and len(texts) == len(content):
        content = "".join(texts)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        found = name_kind(content) + " with other parts than text" * isinstance(content, list)
        raise CorpusError(
            f'{place}: its content is {found}; wanted a string, or a list of parts {{"type": "text", "text": ...}}.'
        )
    return {name: value for name, value in message.items() if value is not None} | {"content": content}


def name_kind(value: Any) -> str:
    """What JSON calls a value."""
    return JSON_KINDS.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
