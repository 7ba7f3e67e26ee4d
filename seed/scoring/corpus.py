"""Text sources -> three disjoint token streams: recovery trains, validation decides, test is read last.

Disjoint means by document. Perplexity follows the field's protocol: text is concatenated and cut into
non-overlapping windows; the first token of a window is context only. No model here, only its tokenizer.

Shapes: N windows, T tokens in a window.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seed.demo import library
from seed.errors import CorpusError, first_line
from seed.plans import StreamRecord

SPLITS = ("recovery", "validation", "test")
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".py", ".text", ".tex", ".html"})
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
MIN_WINDOWS = 4  # of each stream; fewer give no error bars worth the name
PASSAGE_CHARACTERS = 2000  # a single long text is cut at blank lines into passages of at least this length
LONGEST_PASSAGE = 10 * PASSAGE_CHARACTERS  # a longer one is cut at something finer
SEPARATORS = ("\n\n", "\n", " ")
NAMED_SOURCES = {"wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1")}


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Whole windows of one stream, and which document each token belongs to."""

    tokens_NT: Tensor  # int64, on the CPU
    documents_NT: np.ndarray  # int32, 0 .. num_documents - 1
    num_documents: int
    source: str

    @property
    def num_tokens(self) -> int:
        """Tokens in whole windows."""
        return self.tokens_NT.numel()

    def describe(self) -> StreamRecord:
        """Say what the stream holds, with a hash of its tokens."""
        digest = hashlib.sha256(self.tokens_NT.numpy().tobytes()).hexdigest()
        return StreamRecord(source=self.source, tokens=self.num_tokens, documents=self.num_documents, sha256=digest)

    def take_evenly(self, max_tokens: int | None) -> "TokenStream":
        """Return at most ``max_tokens`` tokens, as whole windows spread evenly over the stream."""
        num_windows, window_tokens = self.tokens_NT.shape
        wanted = num_windows if max_tokens is None else min(num_windows, max(1, max_tokens // window_tokens))
        chosen = np.unique(np.linspace(0, num_windows - 1, wanted).round().astype(int))
        documents = self.documents_NT[chosen]
        names, renumbered = np.unique(documents, return_inverse=True)
        return TokenStream(
            tokens_NT=self.tokens_NT[torch.from_numpy(chosen)],
            documents_NT=renumbered.reshape(documents.shape).astype(np.int32),
            num_documents=len(names),
            source=self.source,
        )


@dataclass(frozen=True, kw_only=True)
class CorpusRequest:
    """Which text each stream comes from and how much of it is wanted. Sources as on the command line."""

    recovery: str
    validation: str | None
    test: str | None
    window_tokens: int
    recovery_tokens: int
    validation_tokens: int
    test_tokens: int | None
    bos_each_window: bool = False  # for families that predict nonsense without


def open_streams(request: CorpusRequest, tokenizer: Any) -> dict[str, TokenStream]:
    """Read, split and tokenize; return one stream for each of ``SPLITS``.

    Raises:
        CorpusError: a source is missing, unreadable or holds too little text for its stream.
    """
    sources = {"recovery": request.recovery}
    sources["validation"] = request.validation or request.recovery
    sources["test"] = request.test or request.recovery
    documents_of: dict[str, dict[str, list[str]]] = {}
    for split, source in sources.items():
        if source not in documents_of:
            documents_of[source] = read_source(source, tokenizer, option=f"--{split}-text")
    given = {"recovery": True, "validation": request.validation is not None, "test": request.test is not None}
    documents: dict[str, list[str]] = {}
    for split in SPLITS:
        own = documents_of[sources[split]]
        is_for_this_alone = given[split] and list(sources.values()).count(sources[split]) == 1
        is_whole = is_for_this_alone and not has_own_splits(sources[split])
        documents[split] = [text for name in SPLITS for text in own[name]] if is_whole else own[split]
    _remove_shared(documents)
    for split in ("validation", "test"):
        documents[split] = part_single(documents[split])
    random.Random(0).shuffle(documents["recovery"])
    budgets = {"recovery": request.recovery_tokens, "validation": None, "test": None}
    caps = {"recovery": None, "validation": request.validation_tokens, "test": request.test_tokens}
    begin = tokenizer.bos_token_id if request.bos_each_window else None
    streams = {}
    for split in SPLITS:
        stream = tokenize(
            documents[split],
            tokenizer,
            window_tokens=request.window_tokens,
            max_tokens=budgets[split],
            separate=sources[split] not in NAMED_SOURCES,
            begin=begin,
            source=sources[split],
            purpose=split,
        )
        streams[split] = stream.take_evenly(caps[split])
    return streams


def open_test_stream(
    source: str, tokenizer: Any, *, window_tokens: int, bos_each_window: bool, max_tokens: int | None = None
) -> TokenStream:
    """Return a source to be judged on: the test split where it has splits of its own, else all of it, up to ``max_tokens``.

    Raises:
        CorpusError: it is missing, unreadable or too short, or the limit is too low.
    """
    require_windows(max_tokens, window_tokens=window_tokens, option="--test-tokens")
    documents = read_source(source, tokenizer, option="--test-text")
    chosen = documents["test"] if has_own_splits(source) else [text for split in SPLITS for text in documents[split]]
    return tokenize(
        part_single(chosen),
        tokenizer,
        window_tokens=window_tokens,
        max_tokens=None,
        separate=source not in NAMED_SOURCES,
        begin=tokenizer.bos_token_id if bos_each_window else None,
        source=source,
        purpose="test",
    ).take_evenly(max_tokens)


def require_windows(max_tokens: int | None, *, window_tokens: int, option: str) -> None:
    """Raise when a limit on a stream leaves fewer than ``MIN_WINDOWS`` windows of it; None is no limit.

    Spread evenly, that many hold the first document of a stream and the last, so that errors have their two clusters.

    Raises:
        CorpusError: naming the option that sets the limit.
    """
    if max_tokens is not None and max_tokens < MIN_WINDOWS * window_tokens:
        raise CorpusError(
            f"{option} {max_tokens}: less than {MIN_WINDOWS} windows of {window_tokens} tokens, which a stream needs at least. Use "
            f"{option} {MIN_WINDOWS * window_tokens} or more, or lower --window-tokens."
        )


def has_own_splits(source: str) -> bool:
    """Does a source say itself what trains and what is held out? A user's files do not."""
    return source == "demo" or source in NAMED_SOURCES or source.startswith("hub:")


def read_source(source: str, tokenizer: Any, *, option: str = "--recovery-text") -> dict[str, list[str]]:
    """Return the documents of a source by split; its own splits where it has them.

    ``demo`` is the standard library; ``wikitext2`` and ``hub:NAME[:CONFIG]`` come from the hub; else a
    text file, a JSONL file, or a directory of them. ``option`` is by which another source can be given.
    """
    if source == "demo":
        found = library.read_documents()
        return {"recovery": found["training"], "validation": found["validation"], "test": found["test"]}
    if source in NAMED_SOURCES:
        return _read_hub(*NAMED_SOURCES[source], source=source, tokenizer=tokenizer, option=option)
    if source.startswith("hub:"):
        name, _, config = source.removeprefix("hub:").partition(":")
        return _read_hub(name, config or None, source=source, tokenizer=tokenizer, option=option)
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES | JSONL_SUFFIXES)
        if not files:
            raise CorpusError(f"{path}: no text there. Wanted: files ending in .txt, .md, .py, .jsonl or the like.")
        return split_documents([text for file in files for text in _read_file(file, tokenizer)])
    if path.is_file():
        return split_documents(list(_read_file(path, tokenizer)))
    raise CorpusError(
        f"{source}: no such file or directory, nor a known corpus. Use demo, wikitext2, hub:NAME[:CONFIG], "
        "a text or JSONL file, or a directory of them."
    )


def split_documents(documents: list[str]) -> dict[str, list[str]]:
    """Split documents 8 : 1 : 1 by a hash of their text; fewer than thirty are cut into passages first.

    Passages of one text go to the streams in blocks (first 80 %, then 10 and 10 %), since neighbours are alike.
    """
    if len(documents) >= 30:
        split: dict[str, list[str]] = {name: [] for name in SPLITS}
        for text in documents:
            digit = hashlib.sha256(text.encode()).digest()[0] % 10
            split[{8: "validation", 9: "test"}.get(digit, "recovery")].append(text)
        return split
    passages = [passage for text in documents for passage in cut_passages(text)]
    first, second = int(len(passages) * 0.8), int(len(passages) * 0.9)
    return {"recovery": passages[:first], "validation": passages[first:second], "test": passages[second:]}


def part_single(documents: list[str]) -> list[str]:
    """The passages of a document that is alone; several documents as they are."""
    return documents if len(documents) != 1 else cut_passages(documents[0])


def cut_passages(text: str, separators: Sequence[str] = SEPARATORS) -> list[str]:
    """Cut a text at blank lines into passages of ``PASSAGE_CHARACTERS`` or more.

    Where none is blank it is cut at lines, else at spaces, else anywhere; so is a passage longer than ``LONGEST_PASSAGE``.
    """
    passages: list[str] = []
    current: list[str] = []
    length = 0
    separator, *finer = [one for one in separators if one in text] or [""]
    for paragraph in text.split(separator) if separator else text:
        current.append(paragraph)
        length += len(paragraph)
        if length >= PASSAGE_CHARACTERS:
            passages.append(separator.join(current))
            current, length = [], 0
    if current and "".join(current).strip():
        passages.append(separator.join(current))
    return [
        part
        for passage in passages
        for part in (cut_passages(passage, finer) if separator and len(passage) > LONGEST_PASSAGE else [passage])
    ]


def tokenize(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    window_tokens: int,
    max_tokens: int | None,
    separate: bool,
    begin: int | None = None,
    source: str,
    purpose: str,
) -> TokenStream:
    """Tokenize documents into whole windows; ``separate`` ends each with the tokenizer's end-of-text token.

    ``begin`` is a token that every window starts with, in the place of a token of text.

    Raises:
        CorpusError: there are fewer than ``MIN_WINDOWS`` windows.
    """
    end = tokenizer.eos_token_id if separate else None
    pieces: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    total = 0
    for start in range(0, len(documents), 64):
        encoded = tokenizer(list(documents[start : start + 64]), add_special_tokens=False, verbose=False)["input_ids"]
        for offset, ids in enumerate(encoded):
            piece = np.array([*ids, end] if end is not None else ids, dtype=np.int64)
            pieces.append(piece)
            owners.append(np.full(len(piece), start + offset, dtype=np.int32))
            total += len(piece)
        if max_tokens is not None and total >= max_tokens:
            break
    text_tokens = window_tokens - (begin is not None)
    num_windows = total // text_tokens
    if num_windows < MIN_WINDOWS:
        raise CorpusError(
            f"{source}: the {purpose} stream holds {total:,} tokens, but needs at least {MIN_WINDOWS * window_tokens:,} "
            f"({MIN_WINDOWS} windows of {window_tokens}). Give more text, give --{purpose}-text FILE of its own, "
            "or lower --window-tokens."
        )
    tokens = np.concatenate(pieces)[: num_windows * text_tokens].reshape(num_windows, text_tokens)
    owner = np.concatenate(owners)[: num_windows * text_tokens].reshape(num_windows, text_tokens)
    if begin is not None:
        tokens = np.insert(tokens, 0, begin, axis=1)
        owner = np.insert(owner, 0, owner[:, 0], axis=1)
    names, renumbered = np.unique(owner, return_inverse=True)
    if len(names) < 2 and purpose != "recovery":
        raise CorpusError(
            f"{source}: the {purpose} stream is a single document, and its error bars need at least two. Give a JSONL file "
            "with a text in each line, a directory of files, or a text with blank lines between its parts."
        )
    return TokenStream(
        tokens_NT=torch.from_numpy(tokens),
        documents_NT=renumbered.reshape(num_windows, window_tokens).astype(np.int32),
        num_documents=len(names),
        source=source,
    )


def _remove_shared(documents: dict[str, list[str]]) -> None:
    """Take every document out of a stream that a later-judged one holds too: test first, then validation."""
    taken: set[bytes] = set()
    for split in ("test", "validation", "recovery"):
        digests = [hashlib.sha256(text.strip().encode()).digest() for text in documents[split]]
        documents[split] = [
            text for text, digest in zip(documents[split], digests, strict=True) if digest not in taken and text.strip()
        ]
        taken.update(digests)


def _read_file(path: Path, tokenizer: Any) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read as UTF-8 text ({error}). Convert it or leave it out.") from error
    if path.suffix.lower() not in JSONL_SUFFIXES:
        yield text
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines, which cuts inside JSON strings
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}:{number}: not JSON ({error.msg}). Each line must be one JSON object.") from error
        yield render_row(row, tokenizer, place=f"{path}:{number}")


def render_row(row: Any, tokenizer: Any, *, place: str) -> str:
    """Return the text of one row: its ``text``, or its chat ``messages`` through the model's chat template.

    Raises:
        CorpusError: neither is there, or there are messages and no template.
    """
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return str(row["text"])
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        if not getattr(tokenizer, "chat_template", None):
            raise CorpusError(
                f"{place}: chat messages, but this model's tokenizer has no chat template. Give plain text in a field 'text'."
            )
        try:
            return str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
        except Exception as error:  # templates are the model author's programs and raise what they like
            raise CorpusError(f"{place}: the model's chat template refuses these messages ({error}).") from error
    found = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
    raise CorpusError(f"{place}: found {found}; wanted an object with a string 'text' or a list 'messages'.")


def _read_hub(name: str, config: str | None, *, source: str, tokenizer: Any, option: str) -> dict[str, list[str]]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, config)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{source}: this data set cannot be loaded from the hub ({first_line(error)}). Connect to the hub, check the name "
            f"(hub:NAME[:CONFIG]), or give your own text: {option} FILE."
        ) from error
    splits = {"recovery": "train", "validation": "validation", "test": "test"}
    rows = {
        ours: [
            render_row(row, tokenizer, place=f"{source} ({theirs}, row {i})") for i, row in enumerate(loaded[theirs])
        ]
        for ours, theirs in splits.items()
        if theirs in loaded
    }
    if "recovery" not in rows:
        raise CorpusError(f"{source}: no split called train; it has {', '.join(loaded)}. Choose another data set.")
    if source == "wikitext2":
        rows = {split: join_articles(lines) for split, lines in rows.items()}
    if len(rows) == len(SPLITS):
        return rows
    return split_documents([text for texts in rows.values() for text in texts])


def join_articles(lines: Sequence[str]) -> list[str]:
    r"""Join WikiText's lines as papers do (two line ends between lines), one document for each article.

    The documents' concatenation is the text that papers score: "\\n\\n".join(lines), then a last "\\n\\n".
    """
    articles: list[list[str]] = [[]]
    for line in lines:
        is_title = line.startswith(" = ") and not line.startswith(" = = ") and line.rstrip().endswith(" =")
        if is_title and any(articles[-1]):
            articles.append([])
        articles[-1].append(line)
    return ["\n\n".join(article) + "\n\n" for article in articles if any(article)]
