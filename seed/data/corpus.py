"""Text sources -> three disjoint token streams: recovery trains, validation decides, test is read last.

Disjoint means by document, and by runs of words. Text is concatenated and cut into non-overlapping windows; the first
token of a window is context only.

Shapes: N windows, T tokens in a window.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seed.data.contamination import RUN_WORDS, JudgedText, LeftOut, choose_run_words
from seed.data.documents import SPLITS, join_articles, keep_distinct, part_single, split_documents, thin_judged
from seed.data.text_files import read_files, render_row
from seed.demo import library
from seed.errors import CorpusError, first_line
from seed.plans import StreamRecord

MIN_WINDOWS = 4  # of each stream; fewer give no error bars worth the name
NAMED_SOURCES = {"wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1")}
BATCH_DOCUMENTS = 64


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Whole windows of one stream, and which document each token belongs to."""

    tokens_NT: Tensor  # int64, on the CPU
    documents_NT: np.ndarray  # int32, 0 .. num_documents - 1
    num_documents: int
    source: str
    notes: tuple[str, ...] = ()  # what was read and left out, and what text it still shares

    @property
    def num_tokens(self) -> int:
        """Tokens in whole windows."""
        return self.tokens_NT.numel()

    def describe(self) -> StreamRecord:
        """Say what the stream holds, with a hash of its tokens."""
        digest = hashlib.sha256(self.tokens_NT.numpy().tobytes()).hexdigest()
        return StreamRecord(
            source=self.source, tokens=self.num_tokens, documents=self.num_documents, sha256=digest, notes=self.notes
        )

    def take_evenly(self, max_tokens: int | None) -> "TokenStream":
        """Return at most ``max_tokens`` tokens, as whole windows spread evenly over the stream."""
        num_windows, window_tokens = self.tokens_NT.shape
        wanted = num_windows if max_tokens is None else min(num_windows, max(1, max_tokens // window_tokens))
        chosen = np.unique(np.linspace(0, num_windows - 1, wanted).round().astype(int))
        return self._cut(self.tokens_NT[torch.from_numpy(chosen)], self.documents_NT[chosen])

    def take_first(self, num_windows: int, *, tokens: int) -> "TokenStream":
        """Return the first windows, each at most so many tokens of it."""
        return self._cut(self.tokens_NT[:num_windows, :tokens], self.documents_NT[:num_windows, :tokens])

    def _cut(self, tokens_NT: Tensor, documents_NT: np.ndarray) -> "TokenStream":
        names, renumbered = np.unique(documents_NT, return_inverse=True)
        return dataclasses.replace(
            self,
            tokens_NT=tokens_NT,
            documents_NT=renumbered.reshape(documents_NT.shape).astype(np.int32),
            num_documents=len(names),
        )


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """The documents of a source by split, and in words what was read and left out of it."""

    documents: dict[str, list[str]]
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> list[str]:
        """The documents of all splits."""
        return [text for split in SPLITS for text in self.documents[split]]


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

    Validation text keeps nothing that test text has, recovery text nothing that either has.

    Raises:
        CorpusError: a source is missing, unreadable or holds too little text for its stream.
    """
    sources = {
        "recovery": request.recovery,
        "validation": request.validation or request.recovery,
        "test": request.test or request.recovery,
    }
    texts: dict[str, SourceText] = {}
    for split, source in sources.items():
        if source not in texts:
            texts[source] = read_source(source, tokenizer, option=f"--{split}-text")
    caps = {"recovery": None, "validation": request.validation_tokens, "test": request.test_tokens}
    documents: dict[str, list[str]] = {}
    thinned: dict[str, tuple[str, ...]] = {}
    for split, source in sources.items():
        # A source given for this stream alone is this stream's whole, unless it has splits of its own.
        is_whole = list(sources.values()).count(source) == 1 and not has_own_splits(source)
        found = texts[source].whole if is_whole else texts[source].documents[split]
        documents[split], thinned[split] = thin_judged(found, caps[split]) if split != "recovery" else (list(found), ())
    random.Random(0).shuffle(documents["recovery"])
    judged = JudgedText(run_words=choose_run_words(documents.values()))
    streams: dict[str, TokenStream] = {}
    for split in ("test", "validation", "recovery"):
        source, left_out = sources[split], LeftOut(run_words=judged.run_words)
        copies: tuple[str, ...] = ()
        # The library keeps the demo's splits apart itself, and the embedded model was trained on the first as it is.
        names = [name for name in judged if source != "demo" or sources[name] != "demo"]
        apart: Iterable[str] = judged.keep_apart(documents[split], left_out, names=names)  # no further than it is used
        if split != "recovery":
            passages, copies = part_single(list(apart))
            judged.add(split, passages)
            apart = passages
        stream = tokenize(
            apart,
            tokenizer,
            source=source,
            purpose=split,
            window_tokens=request.window_tokens,
            max_tokens=request.recovery_tokens if split == "recovery" else None,
            bos_each_window=request.bos_each_window,
            notes=(*texts[source].notes, *thinned[split], *copies),
            left_out=left_out,
        )
        streams[split] = stream.take_evenly(caps[split])
    return {split: _add_notes(split, streams, sources, judged) for split in SPLITS}


def _add_notes(split: str, streams: dict[str, TokenStream], sources: dict[str, str], judged: JudgedText) -> TokenStream:
    """Say of a judged stream what trains of it; what holds for a source is said with its first stream only."""
    earlier = SPLITS[: SPLITS.index(split)]
    told = {note for name in earlier if sources[name] == sources[split] for note in streams[name].notes}
    notes = [note for note in streams[split].notes if note not in told]
    if split in judged:
        notes.append(
            f"{100 * judged.measure_seen(split):.1f} % of its {judged.run_words}-grams are in the recovery text"
        )
        if judged.run_words < RUN_WORDS:
            notes.append(f"documents of fewer than {judged.run_words} words are compared whole only")
    return dataclasses.replace(streams[split], notes=tuple(notes))


def open_test_stream(
    source: str, tokenizer: Any, *, window_tokens: int, bos_each_window: bool, max_tokens: int | None = None
) -> TokenStream:
    """Return a source to be judged on: the test split where it has splits of its own, else all of it, up to ``max_tokens``.

    Raises:
        CorpusError: it is missing, unreadable or too short, or the limit is too low.
    """
    require_windows(max_tokens, window_tokens=window_tokens, option="--test-tokens")
    text = read_source(source, tokenizer, option="--test-text")
    documents, thinned = thin_judged(text.documents["test"] if has_own_splits(source) else text.whole, max_tokens)
    documents, copies = part_single(documents)
    return tokenize(
        documents,
        tokenizer,
        source=source,
        purpose="test",
        window_tokens=window_tokens,
        bos_each_window=bos_each_window,
        notes=(*text.notes, *thinned, *copies),
    ).take_evenly(max_tokens)


def require_windows(max_tokens: int | None, *, window_tokens: int, option: str) -> None:
    """Raise CorpusError when a limit on a stream leaves fewer than ``MIN_WINDOWS`` windows of it; None is no limit.

    Spread evenly, that many hold the first document of a stream and the last, so that errors have their two clusters.
    """
    if max_tokens is not None and max_tokens < MIN_WINDOWS * window_tokens:
        raise CorpusError(
            f"{option} {max_tokens}: less than {MIN_WINDOWS} windows of {window_tokens} tokens, which a stream needs at least. Use "
            f"{option} {MIN_WINDOWS * window_tokens} or more, or lower --window-tokens."
        )


def has_own_splits(source: str) -> bool:
    """Does a source say itself what trains and what is held out? A user's files do not."""
    return source == "demo" or source in NAMED_SOURCES or source.startswith("hub:")


def read_source(source: str, tokenizer: Any, *, option: str = "--recovery-text") -> SourceText:
    """Return the documents of a source by split, copies once; its own splits where it has them.

    ``demo`` is the standard library; ``wikitext2`` and ``hub:NAME[:CONFIG]`` come from the hub; else a
    text file, a JSONL file or the like, or a directory of them. ``option`` is by which another source can be given.

    Raises:
        CorpusError: it is missing or unreadable.
    """
    if source == "demo":
        return SourceText(documents=dict(zip(SPLITS, library.read_documents().values(), strict=True)))
    files: tuple[str, ...] = ()
    if has_own_splits(source):
        rows = _read_hub(source, tokenizer, option=option)
        if len(rows) == len(SPLITS):
            found_of = {split: keep_distinct(rows[split]) for split in SPLITS}
            return SourceText(
                documents={split: distinct for split, (distinct, _) in found_of.items()},
                notes=tuple(f"{split}: {note}" for split, (_, copies) in found_of.items() for note in copies),
            )
        documents = [text for texts in rows.values() for text in texts]
    else:
        documents, files = read_files(source, tokenizer)
    distinct, copies = keep_distinct(documents)
    split, copied = split_documents(distinct)
    return SourceText(documents=split, notes=(*files, *copies, *copied))


def tokenize(
    documents: Iterable[str],
    tokenizer: Any,
    *,
    source: str,
    purpose: str,
    window_tokens: int,
    max_tokens: int | None = None,
    bos_each_window: bool = False,
    notes: tuple[str, ...] = (),
    left_out: LeftOut | None = None,
) -> TokenStream:
    """Tokenize documents into whole windows, each document ended by the end-of-text token, but for WikiText's.

    With ``bos_each_window`` every window starts with that token, in the place of a token of text. ``notes`` and ``left_out``,
    which is complete when the documents are read, are told with the stream and where there is too little of it.

    Raises:
        CorpusError: there are fewer than ``MIN_WINDOWS`` windows.
    """
    end = tokenizer.eos_token_id if source not in NAMED_SOURCES else None
    pieces: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    total = 0
    waiting = iter(documents)
    while batch := list(islice(waiting, BATCH_DOCUMENTS)):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            piece = np.array([*ids, end] if end is not None else ids, dtype=np.int64)
            owners.append(np.full(len(piece), len(pieces), dtype=np.int32))
            pieces.append(piece)
            total += len(piece)
        if max_tokens is not None and total >= max_tokens:
            break
    text_tokens = window_tokens - bos_each_window
    num_windows = total // text_tokens
    notes = (*notes, *left_out.describe()) if left_out is not None else notes
    why = f" ({'; '.join(notes)})" if notes else ""
    if num_windows < MIN_WINDOWS:
        raise CorpusError(
            f"{source}: the {purpose} stream holds {total:,} tokens, but needs at least {MIN_WINDOWS * window_tokens:,} "
            f"({MIN_WINDOWS} windows of {window_tokens}){why}. Give more text, give --{purpose}-text FILE of its own, "
            "or lower --window-tokens."
        )
    tokens = np.concatenate(pieces)[: num_windows * text_tokens].reshape(num_windows, text_tokens)
    owner = np.concatenate(owners)[: num_windows * text_tokens].reshape(num_windows, text_tokens)
    if bos_each_window:
        tokens = np.insert(tokens, 0, tokenizer.bos_token_id, axis=1)
        owner = np.insert(owner, 0, owner[:, 0], axis=1)
    names, renumbered = np.unique(owner, return_inverse=True)
    if len(names) < 2 and purpose != "recovery":
        raise CorpusError(
            f"{source}: the {purpose} stream is a single document, and its error bars need at least two{why}. Give more text, "
            f"give --{purpose}-text FILE of its own, or lower --window-tokens."
        )
    return TokenStream(
        tokens_NT=torch.from_numpy(tokens),
        documents_NT=renumbered.reshape(num_windows, window_tokens).astype(np.int32),
        num_documents=len(names),
        source=source,
        notes=notes,
    )


def _read_hub(source: str, tokenizer: Any, *, option: str) -> dict[str, list[str]]:
    import datasets

    name, _, config = source.removeprefix("hub:").partition(":")
    name, config = NAMED_SOURCES.get(source, (name, config))
    try:
        loaded = datasets.load_dataset(name, config or None)
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
    return rows
