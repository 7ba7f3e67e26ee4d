"""Text that a stream shares with one that is judged later, found by runs of words (n-grams).

The field's measure of contamination: runs of 13 words, whatever their case and whatever stands between them, of down to
8 where documents are shorter (GPT-3: Brown et al. 2020, appendix C). Only runs of the judged text are kept in memory.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np

from seed.data.documents import identify_text

RUN_WORDS = 13
LEAST_RUN_WORDS = 8
SHORT_DOCUMENTS = 20  # one in so many is as short as the runs, or shorter
SAMPLED_DOCUMENTS = 200  # of each stream; their first characters say whether they are short
SAMPLED_CHARACTERS = 1000
LEAST_SHARE = 0.1  # a stretch with fewer of its runs in judged text stays: quotations, common phrases
# A document that shares runs is looked at in stretches: up to the first line or sentence end past 200 characters, 400 at most.
STRETCH = re.compile(r"(?s).{200,400}?(?:\n|[.!?]\s|[。！？])|.{1,400}")
# Where documents are as short as a run, one of them is a small part of that: lines and sentences are looked at.
SENTENCE = re.compile(STRETCH.pattern.replace("200", "1", 1))
# Copies of documents are out by then: runs in more than so many judged documents are a form, such as a licence or a prompt.
PHRASE_DOCUMENTS = 2
PHRASE_SHARE = 0.01  # and in more than this share of them
BATCH_DOCUMENTS = 64
# Chinese characters and Japanese kana are words of their own: nothing stands between words there.
SINGLES = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{SINGLES}]|[^\W{SINGLES}]+")
BETWEEN = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))  # odd, of random bits: what hashes multiply by


@dataclass(kw_only=True)
class LeftOut:
    """What was left out of a stream so far because a judged one has it."""

    stretches: int = 0
    characters: int = 0
    read_characters: int = 0
    run_words: int = RUN_WORDS

    def describe(self) -> tuple[str, ...]:
        """Say how much and by which rule; nothing where nothing was left out."""
        if not self.stretches:
            return ()
        return (
            f"{self.stretches:,} stretch{'es' * (self.stretches > 1)} of text left out ({100 * self.share:.1f} % of it): "
            f"{100 * LEAST_SHARE:.0f} % or more of their {self.run_words}-grams are in text judged later",
        )

    @property
    def share(self) -> float:
        """Of the characters that were read."""
        return self.characters / max(1, self.read_characters)


@dataclass(kw_only=True)
class _Stream:
    """The runs of a judged stream, as sorted hashes."""

    runs: np.ndarray
    counts: np.ndarray
    is_phrase: np.ndarray
    is_seen: np.ndarray  # in the text that was marked
    whole: set[bytes]

    def find(self, runs: np.ndarray) -> np.ndarray:
        """Where each run is among ours; -1 where it is not."""
        if not len(self.runs):
            return np.full(len(runs), -1)
        places = np.minimum(np.searchsorted(self.runs, runs), len(self.runs) - 1)
        return np.where(self.runs[places] == runs, places, -1)


class JudgedText:
    """The streams that are judged, by name, and which of their runs other text has."""

    def __init__(self, *, run_words: int = RUN_WORDS) -> None:
        self.run_words = run_words
        self._ids: dict[str, int] = {}
        self._streams: dict[str, _Stream] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def add(self, name: str, documents: Sequence[str]) -> None:
        """Take in a stream; what was seen until now was judged itself, and is forgotten."""
        for stream in self._streams.values():
            stream.is_seen[:] = False
        for text in documents:
            for word in split_words(text):
                self._ids.setdefault(word, len(self._ids) + 1)
        hashes, owners, _ = self._list_runs(documents)
        runs, places, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        holders = np.bincount(
            np.unique(places * len(documents) + owners) // max(1, len(documents)), minlength=len(runs)
        )
        self._streams[name] = _Stream(
            runs=runs,
            counts=counts,
            is_phrase=holders > max(PHRASE_DOCUMENTS, PHRASE_SHARE * len(documents)),
            is_seen=np.zeros(len(runs), bool),
            whole=set(map(identify_text, documents)),
        )

    def keep_apart(self, documents: Iterable[str], left_out: LeftOut, *, names: Sequence[str]) -> Iterator[str]:
        """Yield documents without the stretches that share text with the named streams; count what is ``left_out``.

        A document that any stream holds as it is leaves in any case. What is yielded counts as seen.
        """
        waiting, pattern = iter(documents), STRETCH if self.run_words == RUN_WORDS else SENTENCE
        while batch := list(islice(waiting, BATCH_DOCUMENTS)):
            for text, share, is_touched in zip(batch, *self._compare(batch, names), strict=True):
                left_out.read_characters += len(text)
                is_copy = any(identify_text(text) in stream.whole for stream in self._streams.values())
                stretches = pattern.findall(text) if share or is_copy else [text]
                shares = self._compare(stretches, names)[0] if share else [0.0] * len(stretches)
                kept = [part for part, one in zip(stretches, shares, strict=True) if one < LEAST_SHARE and not is_copy]
                rest = "".join(kept)
                left_out.stretches += len(stretches) - len(kept)
                left_out.characters += len(text) - len(rest)
                if is_touched:
                    self._mark(rest)
                if rest.strip():
                    yield rest

    def measure_seen(self, name: str) -> float:
        """The share of a stream's runs that the text has which was yielded."""
        stream = self._streams[name]
        return float(stream.counts[stream.is_seen].sum() / max(1, stream.counts.sum()))

    def _compare(self, texts: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The share of each text's runs that the named streams have, phrases aside; and whether any stream has any of them."""
        if not self._streams:
            return np.zeros(len(texts)), np.zeros(len(texts), bool)
        hashes, owners, totals = self._list_runs(texts)
        is_shared, is_found = np.zeros(len(hashes), bool), np.zeros(len(hashes), bool)
        for name, stream in self._streams.items():
            places = stream.find(hashes)
            is_found |= places >= 0
            if name in names and len(stream.runs):
                is_shared |= (places >= 0) & ~stream.is_phrase[places]
        count = len(texts)
        return np.bincount(owners[is_shared], minlength=count) / np.maximum(1, totals), np.bincount(
            owners[is_found], minlength=count
        ) > 0

    def _mark(self, text: str) -> None:
        hashes, _, _ = self._list_runs([text])
        for stream in self._streams.values():
            places = stream.find(hashes)
            stream.is_seen[places[places >= 0]] = True

    def _list_runs(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes of the runs made of known words, the text that each is of, and how many runs each text has in all."""
        ids: list[int] = []
        lengths = []
        for text in texts:
            words = split_words(text)
            ids += map(self._ids.get, words, repeat(0))
            ids.append(0)  # no run goes on into the next text
            lengths.append(len(words))
        totals = np.maximum(0, np.array(lengths, int) - self.run_words + 1)
        if len(ids) < self.run_words:
            return np.zeros(0, np.uint64), np.zeros(0, int), totals
        known = np.array(ids, np.uint64)
        mixed = known * FACTORS[0]
        mixed ^= mixed >> np.uint64(29)
        count = len(ids) - self.run_words + 1
        hashes = np.zeros(count, np.uint64)
        for place in range(self.run_words):
            hashes = hashes * FACTORS[1] + mixed[place : place + count]
        unknown = np.concatenate([[0], np.cumsum(known == 0)])
        is_known = unknown[self.run_words :] == unknown[:count]
        owners = np.repeat(np.arange(len(texts)), np.array(lengths, int) + 1)[:count]
        return hashes[is_known], owners[is_known], totals


def choose_run_words(streams: Iterable[Sequence[str]]) -> int:
    """How many words the runs have, so that nearly all documents of each stream have one."""
    shortest = RUN_WORDS
    for documents in streams:
        sample = documents[:: max(1, len(documents) // SAMPLED_DOCUMENTS)]
        lengths = sorted(len(split_words(text[:SAMPLED_CHARACTERS])) for text in sample)
        if len(lengths) > 1:  # a single short one may be the rest of a text
            shortest = min(shortest, lengths[max(1, len(lengths) // SHORT_DOCUMENTS)])
    return max(LEAST_RUN_WORDS, shortest)


def split_words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    if text.isascii():  # the same, three times as fast
        return text.lower().translate(BETWEEN).split()
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())
