"""Scores by document, looked up by candidate and judged beside the dense model's."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seed.errors import StudyError
from seed.evaluation.perplexity import DocumentLosses, judge
from seed.records import Candidate, Quality, ScoreRow

PLACE = Path("scores.sqlite")  # where qualities say that their losses by document are


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
