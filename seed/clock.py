"""How much of a study's time is spent: seconds of work, remembered from one run of it to the next."""

import math
import time

from seed import study_dir
from seed.study_dir import StudyFolder

SAVE_SECONDS = 5.0  # what a killed process forgets


class TimeIsUpError(Exception):
    """The search's share of the time is spent; what is scored is kept."""


class Clock:
    """Runs while a study is worked on.

    Args:
        study: its folder.
        began: ``time.monotonic()`` when this run began.
    """

    def __init__(self, study: StudyFolder, *, began: float) -> None:
        self.study, self.began = study, began
        self.seconds: float | None = None  # that all runs together may take; None: there is no bound
        self.search_end = math.inf  # how much may be spent when the search ends
        known = study_dir.read_record(study.time, dict[str, float]) if study.time.exists() else {}
        self.before, self._saved = known.get("spent_seconds", 0.0), -math.inf

    @property
    def spent(self) -> float:
        """Seconds of work so far, in this run and those before."""
        return self.before + time.monotonic() - self.began

    def has_room(self, seconds: float) -> bool:
        """Is there time for most of some work, so that the end is nearest to what was asked for?"""
        return self.seconds is None or self.seconds - self.spent > seconds / 2

    def check_search(self) -> None:
        """One more candidate is scored.

        Raises:
            TimeIsUpError: it was the last that there is time for.
        """
        self.save(at_once=False)
        if self.spent > self.search_end:
            raise TimeIsUpError

    def save(self, *, at_once: bool = True) -> None:
        """Write down what is spent, where there is a bound; not ``at_once``: if the last time was long enough ago."""
        if self.seconds is not None and (at_once or time.monotonic() - self._saved >= SAVE_SECONDS):
            study_dir.write_record(self.study.time, {"spent_seconds": round(self.spent, 3)})
            self._saved = time.monotonic()
