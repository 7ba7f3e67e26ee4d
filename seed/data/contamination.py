"""Text that a stream shares with one that is judged later, found by runs of words (n-grams).

The field's measure of contamination: runs of 13 words, whatever their case and whatever stands between them, of down to
8 where documents are shorter (GPT-3: Brown et al. 2020, appendix C). Only runs of the judged text are kept in memory.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
# Chinese characters and Japanese kana are words of their own: nothing stands between words there.
SINGLES = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{SINGLES}]|[^\W{SINGLES}]+")
BETWEEN = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}


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
        places = np.searchsorted(self.runs, runs).clip(max=len(self.runs) - 1)
        return np.where(self.runs[places] == runs, places, -1)


class JudgedText:
    """The streams that are judged, by name, and which of their runs other text has."""

    def __init__(self, *, run_words: int = RUN_WORDS) -> None:
        self.run_words = run_words
        self._streams: dict[str, _Stream] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def add(self, name: str, documents: Sequence[str]) -> None:
        """Take in a stream; what was seen until now was judged itself, and is forgotten."""
        for stream in self._streams.values():
            stream.is_seen[:] = False
        found = [np.zeros(0, np.int64), *map(self._list_runs, documents)]
        runs, counts = np.unique(np.concatenate(found), return_counts=True)
        _, holders = np.unique(np.concatenate([np.unique(of_document) for of_document in found]), return_counts=True)
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
        pattern = STRETCH if self.run_words == RUN_WORDS else SENTENCE
        for text in documents:
            left_out.read_characters += len(text)
            places, rest = self._find_runs([text])[0], text
            is_copy = any(identify_text(text) in stream.whole for stream in self._streams.values())
            if is_copy or self._is_shared(places, names).any():
                stretches = pattern.findall(text)
                inside, ends = self._find_runs(stretches)
                shares = [part.mean() if part.size else 0 for part in np.split(self._is_shared(inside, names), ends)]
                kept = [
                    part for part, share in zip(stretches, shares, strict=False) if share < LEAST_SHARE and not is_copy
                ]
                rest = "".join(kept)
                left_out.stretches += len(stretches) - len(kept)
                left_out.characters += len(text) - len(rest)
                places = self._find_runs([rest])[0]
            for name, found in places.items():
                self._streams[name].is_seen[found[found >= 0]] = True
            if rest.strip():
                yield rest

    def measure_seen(self, name: str) -> float:
        """The share of a stream's runs that the text has which was yielded."""
        stream = self._streams[name]
        return float(stream.counts[stream.is_seen].sum() / max(1, stream.counts.sum()))

    def _find_runs(self, texts: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Where each run of some texts is among those of each stream, and where each text's runs end."""
        runs = [self._list_runs(text) for text in texts] if self._streams else []
        joined = np.concatenate([np.zeros(0, np.int64), *runs])
        return {name: stream.find(joined) for name, stream in self._streams.items()}, np.cumsum(list(map(len, runs)))

    def _is_shared(self, places: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
        """Which runs the named streams have, phrases aside."""
        found = [
            (places[name] >= 0) & ~self._streams[name].is_phrase[places[name]]
            for name in names
            if len(self._streams[name].runs)
        ]
        return np.any(found, axis=0) if found else np.zeros(0, bool)

    def _list_runs(self, text: str) -> np.ndarray:
        words = split_words(text)
        runs = zip(*(words[place:] for place in range(self.run_words)), strict=False)
        return np.fromiter(map(hash, runs), np.int64)


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
