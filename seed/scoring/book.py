"""Scores by document, looked up by candidate and judged beside the dense model's. Nothing is scored here."""

from collections.abc import Iterable

import numpy as np

from seed.records import Candidate, Quality, SweepRow
from seed.scoring.quality import DocumentLosses, judge

FILE = "scores.sqlite"


class ScoreBook:
    """Rows of scores by candidate and rung. ``dense``: the dense model's losses on the same text."""

    def __init__(self, dense: DocumentLosses, rows: Iterable[SweepRow] = ()) -> None:
        self.dense = dense
        self.rows: dict[str, dict[str, SweepRow]] = {}  # by key, then by rung
        self.learn(rows)

    @staticmethod
    def write_dense(dense: DocumentLosses) -> SweepRow:
        """The dense model's own row, with the tokens counted."""
        return SweepRow(key="dense", rung="dense", sums=dense.sums.tolist(), counts=dense.counts.tolist())

    def learn(self, rows: Iterable[SweepRow]) -> None:
        """Take rows in; what is known stays."""
        for row in rows:
            self.rows.setdefault(row.key, {}).setdefault(row.rung, row)

    def list_rows(self, candidates: Iterable[Candidate]) -> list[SweepRow]:
        """All that is known of candidates."""
        return [row for candidate in candidates for row in self.rows.get(candidate.key, {}).values()]

    def known(self, candidate: Candidate) -> dict[str, Quality]:
        """The candidate's qualities at the rungs where it was scored."""
        return {rung: self.judge(row) for rung, row in self.rows.get(candidate.key, {}).items()}

    def is_known(self, candidate: Candidate, rung: str) -> bool:
        """Was the candidate scored at this rung?"""
        return rung in self.rows.get(candidate.key, {})

    def compare(self, candidate: Candidate, other: Candidate, *, rung: str) -> Quality:
        """The candidate's quality beside that of another instead of the dense model's; both are known at the rung."""
        return judge(*(self._losses(self.rows[one.key][rung]) for one in (candidate, other)))

    def judge(self, row: SweepRow) -> Quality:
        """A score beside the dense model's."""
        return judge(self._losses(row), self.dense, document_losses_path=f"{FILE}#{row.rung}/{row.key}")

    def _losses(self, row: SweepRow) -> DocumentLosses:
        return DocumentLosses(sums=np.array(row.sums, dtype=np.float64), counts=self.dense.counts)
