"""Findings in the terminal: which recovery is best."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from seed.console import Terminal
from seed.evidence import RecoveredRow, RecoveryComparison
from seed.reporting.recoveries import count_wins, list_cells, list_columns, say_best, say_others, split_rows, title_of
from seed.reporting.trained import name_key


def show_recoveries(
    terminal: Terminal,
    comparison: RecoveryComparison,
    rows: Sequence[RecoveredRow],
    *,
    page: Path,
    titles: Mapping[str, str],
) -> None:
    """Print what each recovery reached on each model at each budget, best first, and what that means."""
    for (key, at), group in split_rows(rows).items():
        cells = [[title_of(row.recovery, titles), *list_cells(row, comparison=comparison)] for row in group]
        terminal.show_table(
            list_columns(comparison, titles=titles), cells, title=f"{name_key(key)}, {at}; on test text"
        )
        terminal.say(say_best(group, reference=comparison.reference, titles=titles))
        terminal.say(say_others(group, reference=comparison.reference, titles=titles))
    if rows:
        terminal.say(count_wins(rows, reference=comparison.reference, titles=titles))
    terminal.say(f"page: {page}")
