"""Every score of a study, by document: measured once, written as soon as it is known, compared in pairs."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from seed.evaluation.perplexity import DocumentLosses
from seed.proxy.closed_form import Refit
from seed.proxy.instruments import Instruments, make_walker
from seed.proxy.score_cache import PLACE, ScoreCache
from seed.proxy.subset_walker import SubsetWalker, measure_unrecovered
from seed.records import Candidate, Quality, ScoreRow
from seed.scores import ScoreStore

RELEASED_BYTES = 10**9
SCORED_AT_ONCE = 512  # candidates without recovery, whose losses are held by token meanwhile


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
        losses, refit = self._walker.measure(candidate)
        self.keep(candidate, "closed-form", losses, seconds=time.perf_counter() - began)
        return refit

    def release_states(self) -> None:
        """Let go of stored states before a long training where they take much memory; they are computed anew when needed."""
        if self._walker is not None and self._walker.count_bytes() > RELEASED_BYTES:
            self._walker = None

    def shrink(self) -> bool:
        """Let half as many windows go through a model at once, after it ran out of memory; False: it is one already."""
        self._walker = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = max(1, self.instruments.micro_batch // 2)
        is_smaller = smaller < self.instruments.micro_batch
        self.instruments = replace(self.instruments, micro_batch=smaller)
        return is_smaller

    def measure_unrecovered(self, candidates: Sequence[Candidate]) -> list[Quality]:
        """Score candidates as they stand, many at once."""
        new = [candidate for candidate in candidates if not self.is_known(candidate, "none")]
        for batch in (new[begin : begin + SCORED_AT_ONCE] for begin in range(0, len(new), SCORED_AT_ONCE)):
            began = time.perf_counter()
            measured = measure_unrecovered(
                self.instruments.source,
                batch,
                self.instruments.validation,
                micro_batch=self.instruments.micro_batch,
            )
            seconds = (time.perf_counter() - began) / len(batch)
            found = zip(batch, measured, strict=True)
            self._keep([_make_row(candidate, "none", losses, seconds=seconds) for candidate, losses in found])
        return [self._judge(self.rows[candidate.key]["none"]) for candidate in candidates]

    def keep(self, candidate: Candidate, proxy: str, losses: DocumentLosses, *, seconds: float) -> Quality:
        """Remember a score, and judge it beside the dense model's."""
        row = _make_row(candidate, proxy, losses, seconds=seconds)
        self._keep([row])
        return self._judge(row)

    def _keep(self, rows: Sequence[ScoreRow]) -> None:
        """Remember the rows that are not known, and write them where there is a store, all or none."""
        new: dict[tuple[str, str], ScoreRow] = {}
        for row in rows:
            if row.proxy not in self.rows.get(row.key, {}):
                new.setdefault((row.key, row.proxy), row)
        if self.store is not None and new:
            self.store.keep(list(new.values()))
        for row in new.values():
            self.rows.setdefault(row.key, {})[row.proxy] = row


def _make_row(candidate: Candidate, proxy: str, losses: DocumentLosses, *, seconds: float) -> ScoreRow:
    is_finite = bool(np.isfinite(losses.sums).all())
    sums = (
        losses.sums.tolist() if is_finite else [None] * len(losses.sums)
    )  # of what is no number at all, nothing counts
    return ScoreRow(key=candidate.key, proxy=proxy, sums=sums, seconds=round(seconds, 4))
