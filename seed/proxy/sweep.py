"""Every score of a study, by document: measured once, written as soon as it is known, compared in pairs."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from seed.errors import StudyError
from seed.evaluation.perplexity import DocumentLosses, judge
from seed.proxy.closed_form import Refit
from seed.proxy.instruments import Instruments, make_walker
from seed.proxy.subset_walker import SubsetWalker, measure_unrecovered
from seed.records import Candidate, Quality, ScoreRow
from seed.scores import ScoreStore

PLACE = Path("scores.sqlite")  # where qualities say that their losses by document are
RELEASED_BYTES = 10**9
SCORED_AT_ONCE = 512  # candidates without recovery, whose losses are held by token meanwhile


class ScoreCache:
    """Rows of scores by candidate and proxy.

    Args:
        dense: the dense model's losses on the same text.
        rows: that are known.
        place: where they come from, for people.

    Raises:
        StudyError: a row is of another text.
    """

    def __init__(self, dense: DocumentLosses, rows: Iterable[ScoreRow] = (), *, place: Path = PLACE) -> None:
        self.dense, self.place = dense, place
        self.rows: dict[str, dict[str, ScoreRow]] = {}  # by key, then by proxy
        self.learn(rows)

    def learn(self, rows: Iterable[ScoreRow]) -> None:
        """Take in scores that were measured elsewhere. What is known stays as it is.

        Raises:
            StudyError: a row is of another text.
        """
        num_documents = len(self.dense.sums)
        for row in rows:
            if len(row.sums) != num_documents:
                raise StudyError(
                    f"{self.place}: the score of {row.key} ({row.proxy}) is of {len(row.sums)} documents, and the validation text "
                    f"has {num_documents}. Restore the file from a copy, or start a study of another name (--study NAME)."
                )
            self.rows.setdefault(row.key, {}).setdefault(row.proxy, row)

    def list_rows(self, candidates: Iterable[Candidate]) -> list[ScoreRow]:
        """All that is known of candidates."""
        return [row for candidate in candidates for row in self.rows.get(candidate.key, {}).values()]

    def known(self, candidate: Candidate) -> dict[str, Quality]:
        """The candidate's qualities at the proxies where it was scored before."""
        return {proxy: self._judge(row) for proxy, row in self.rows.get(candidate.key, {}).items()}

    def is_known(self, candidate: Candidate, proxy: str) -> bool:
        """Was the candidate scored at this proxy?"""
        return proxy in self.rows.get(candidate.key, {})

    def compare(self, candidate: Candidate, other: Candidate, *, proxy: str) -> Quality:
        """The candidate's quality beside that of another instead of the dense model's; both are known at the proxy."""
        return judge(*(self._losses(self.rows[one.key][proxy]) for one in (candidate, other)))

    def describe_dense(self) -> ScoreRow:
        """The dense model's own row, with the tokens counted."""
        return ScoreRow(key="dense", proxy="dense", sums=self.dense.sums.tolist(), counts=self.dense.counts.tolist())

    def _judge(self, row: ScoreRow) -> Quality:
        return judge(self._losses(row), self.dense, document_losses_path=f"{PLACE}#{row.proxy}/{row.key}")

    def _losses(self, row: ScoreRow) -> DocumentLosses:
        return DocumentLosses(sums=np.array(row.sums, dtype=np.float64), counts=self.dense.counts)


class Sweep(ScoreCache):
    """Scores candidates without recovery and with closed form, and remembers scores of every proxy.

    Args:
        instruments: what scores.
        store: where scores are and go; None: they are held in memory.

    Raises:
        StudyError: the store is damaged, or of another text.
    """

    def __init__(self, instruments: Instruments, store: ScoreStore | None = None) -> None:
        known = [] if store is None else store.read_rows()
        super().__init__(instruments.dense_validation, known, place=PLACE if store is None else store.path)
        self.instruments = instruments
        self.store = store
        self._walker: SubsetWalker | None = None
        self._keep([self.describe_dense()])

    def measure(self, candidate: Candidate) -> Quality:
        """Score with closed-form recovery."""
        if not self.is_known(candidate, "closed-form"):
            self.recover(candidate)
        return self._judge(self.rows[candidate.key]["closed-form"])

    def recover(self, candidate: Candidate) -> Refit:
        """Score with closed-form recovery, and return its maps."""
        began = time.perf_counter()
        if self._walker is None:
            self._walker = make_walker(self.instruments)
            began = time.perf_counter()  # the dense model's states are not this candidate's cost
        losses, refit = self._walker.measure(self.instruments.walked.spell(candidate))
        self.keep(candidate, "closed-form", losses, seconds=time.perf_counter() - began)
        return refit

    def release_states(self) -> None:
        """Let go of stored states before a long training where they take much memory; they are computed anew when needed."""
        if self._walker is not None and self._walker.count_bytes() > RELEASED_BYTES:
            self._walker.release()
        if self._walker is not None and self._walker.count_bytes() > RELEASED_BYTES:
            self._walker = None

    def shrink(self) -> bool:
        """Let half as many windows go through a model at once, after it ran out of memory; False: it is one already."""
        self._walker = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before = self.instruments.micro_batch
        self.instruments = replace(self.instruments, micro_batch=max(1, before // 2))
        return before > 1

    def measure_unrecovered(self, candidates: Sequence[Candidate]) -> list[Quality]:
        """Score candidates as they stand, many at once."""
        new = [candidate for candidate in candidates if not self.is_known(candidate, "none")]
        for batch in (new[begin : begin + SCORED_AT_ONCE] for begin in range(0, len(new), SCORED_AT_ONCE)):
            began = time.perf_counter()
            found = self.instruments
            spelled = [found.walked.spell(candidate) for candidate in batch]
            measured = measure_unrecovered(found.walked, spelled, found.validation, micro_batch=found.micro_batch)
            seconds = (time.perf_counter() - began) / len(batch)
            scored = zip(batch, measured, strict=True)
            self._keep([_make_row(candidate, "none", losses, seconds=seconds) for candidate, losses in scored])
        return [self._judge(self.rows[candidate.key]["none"]) for candidate in candidates]

    def keep(self, candidate: Candidate, proxy: str, losses: DocumentLosses, *, seconds: float) -> Quality:
        """Remember a score, and judge it beside the dense model's."""
        row = _make_row(candidate, proxy, losses, seconds=seconds)
        self._keep([row])
        return self._judge(row)

    def _keep(self, rows: Sequence[ScoreRow]) -> None:
        """Remember the rows that are not known; where there is a store they are written first, all or none."""
        if self.store is not None:
            self.store.keep(rows)
        self.learn(rows)


def _make_row(candidate: Candidate, proxy: str, losses: DocumentLosses, *, seconds: float) -> ScoreRow:
    # where one is no number, nothing counts
    sums = losses.sums.tolist() if np.isfinite(losses.sums).all() else [None] * len(losses.sums)
    return ScoreRow(key=candidate.key, proxy=proxy, sums=sums, seconds=round(seconds, 4))
