"""The journal in a study's folder, in Optuna's own form, fit for many processes of one host of which any may be killed.

Who appends holds the file itself, which the kernel lets go of when the process ends, and first cuts off a torn last line.
What the lines mean is Optuna's business.
"""

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from seed import untrusted
from seed.errors import StudyError
from seed.rows import append_lines, hold


class Journal(JournalFileBackend):
    """Optuna's journal file, without a lock file that a killed process would leave behind."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        append_lines(Path(self._file_path), lines.encode(), sync=True)


def repair_journal(path: Path) -> None:
    """Cut a torn last line, which a killed writer leaves, and what else at the end is not what Optuna writes.

    Others may be at work: they are kept waiting. A lock that a killed writer of Optuna's own kind left goes too.

    Raises:
        StudyError: a line before the last is not what Optuna writes, or there is more of it than a search writes.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        leftover.unlink(missing_ok=True)
    if not path.exists():
        return
    untrusted.require_size(path, limit=untrusted.JOURNAL_BYTES)
    with path.open("r+b") as handle, hold(handle):
        content = handle.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    whole = whole[: len(whole) - len(line) - 1]
                    break
                raise StudyError(
                    f"{path}: line {number} is damaged. Restore the file from a copy, or start a study of another name "
                    "(--study NAME)."
                ) from error
        if whole != content:
            handle.truncate(len(whole))
            os.fsync(handle.fileno())
