"""Every score of a study, by document, in ``sweep.jsonl``: measured once, remembered, compared in pairs.

A line is written as soon as a score is known, so that a stopped run loses at most the score it was working on.
Asked in lexicographic order of kept layers, neighbouring candidates share most of their work. Nothing is decided here.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from seed.errors import StudyError
from seed.records import Candidate, Quality, SweepRow
from seed.rows import RowFile
from seed.scoring.instruments import Instruments, make_walker
from seed.scoring.quality import DocumentLosses, judge
from seed.scoring.refit import Refit
from seed.scoring.subsets import SubsetWalker, measure_unrecovered

RELEASED_BYTES = 10**9
RUNGS = ("none", "closed_form", "short_distillation")
SCORED_AT_ONCE = 512  # candidates without recovery, whose losses are held by token meanwhile


class Sweep:
    """Scores candidates without recovery and with closed form, and remembers scores of every rung."""

    def __init__(self, instruments: Instruments, path: Path) -> None:
        self.instruments = instruments
        self.path = path
        self.rows: dict[str, dict[str, SweepRow]] = {}  # by key, then by rung
        self.file = RowFile(path, SweepRow)
        self.refresh()
        self._walker: SubsetWalker | None = None
        if "dense" not in self.rows:
            self._append(self._dense_row())

    def refresh(self) -> list[SweepRow]:
        """Take in what was scored since the last call, by other processes too, and return it.

        Raises:
            StudyError: a row is damaged, or of another text.
        """
        found = self.file.read_new()
        num_documents = len(self.instruments.dense_validation.sums)
        for row in found:
            if len(row.sums) != num_documents:
                raise StudyError(
                    f"{self.path}: the row of {row.key} ({row.rung}) is of {len(row.sums)} documents, and the validation text has "
                    f"{num_documents}. Remove that line, and the search of this study makes it up."
                )
            self.rows.setdefault(row.key, {}).setdefault(row.rung, row)
        return found

    def known(self, candidate: Candidate) -> dict[str, Quality]:
        """The candidate's qualities at the rungs where it was scored before."""
        return {rung: self._judge(row) for rung, row in self.rows.get(candidate.key, {}).items()}

    def is_known(self, candidate: Candidate, rung: str) -> bool:
        """Was the candidate scored at this rung?"""
        return rung in self.rows.get(candidate.key, {})

    def measure(self, candidate: Candidate) -> Quality:
        """Score with closed-form recovery."""
        if not self.is_known(candidate, "closed_form"):
            self.recover(candidate)
        return self._judge(self.rows[candidate.key]["closed_form"])

    def recover(self, candidate: Candidate) -> Refit:
        """Score with closed-form recovery, and return its maps."""
        began = time.perf_counter()
        if self._walker is None:
            self._walker = make_walker(self.instruments)
            began = time.perf_counter()  # the dense model's states are not this candidate's cost
        losses, refit = self._walker.measure(candidate)
        self.keep(candidate, "closed_form", losses, seconds=time.perf_counter() - began)
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
            for candidate, losses in zip(batch, measured, strict=True):
                self.keep(candidate, "none", losses, seconds=seconds)
        return [self._judge(self.rows[candidate.key]["none"]) for candidate in candidates]

    def keep(self, candidate: Candidate, rung: str, losses: DocumentLosses, *, seconds: float) -> Quality:
        """Remember a score, and judge it beside the dense model's."""
        is_finite = bool(np.isfinite(losses.sums).all())
        sums = losses.sums.tolist() if is_finite else [None] * len(losses.sums)  # JSON knows no other numbers
        row = SweepRow(key=candidate.key, rung=rung, sums=sums, seconds=round(seconds, 4))
        if not self.is_known(candidate, rung):
            self._append(row)
        return self._judge(row)

    def list_shared(self, candidate: Candidate) -> list[SweepRow]:
        """What other hosts need to compare a candidate: its rows, and the dense model's as measured here."""
        return [self._dense_row(), *self.rows.get(candidate.key, {}).values()]

    def adopt(self, rows: Sequence[SweepRow]) -> None:
        """Remember a candidate's scores from another host, whose text is the same.

        Losses are moved by what the dense model's differ by between the two hosts, so that differences of hardware are not
        taken for differences of candidates. What does not fit our text, or is no rung, is left out.
        """
        ours = self.instruments.dense_validation.sums
        dense = next((row.sums for row in rows if row.key == "dense"), None)
        theirs = (
            ours if dense is None or len(dense) != len(ours) or None in dense else np.array(dense, dtype=np.float64)
        )
        for row in rows:
            is_known = row.rung in self.rows.get(row.key, {})
            if row.key == "dense" or is_known or row.rung not in RUNGS or len(row.sums) != len(ours):
                continue
            if None in row.sums or np.array_equal(theirs, ours):
                self._append(row)
            else:
                moved = (np.array(row.sums, dtype=np.float64) + (ours - theirs)).tolist()
                self._append(msgspec.structs.replace(row, sums=moved))

    def compare(self, candidate: Candidate, other: Candidate, *, rung: str) -> Quality:
        """The candidate's quality beside that of another instead of the dense model's; both are known at the rung."""
        return judge(*(self._losses(self.rows[one.key][rung]) for one in (candidate, other)))

    def _dense_row(self) -> SweepRow:
        dense = self.instruments.dense_validation
        return SweepRow(key="dense", rung="dense", sums=dense.sums.tolist(), counts=dense.counts.tolist())

    def _append(self, row: SweepRow) -> None:
        self.file.append(row)
        self.rows.setdefault(row.key, {})[row.rung] = row

    def _judge(self, row: SweepRow) -> Quality:
        place = f"{self.path.name}#{row.rung}/{row.key}"
        return judge(self._losses(row), self.instruments.dense_validation, document_losses_path=place)

    def _losses(self, row: SweepRow) -> DocumentLosses:
        counts = self.instruments.dense_validation.counts
        return DocumentLosses(sums=np.array(row.sums, dtype=np.float64), counts=counts)
