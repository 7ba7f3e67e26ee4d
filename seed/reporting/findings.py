"""Findings in the terminal: what claims are worth."""

from collections.abc import Sequence
from pathlib import Path

from seed.console import Terminal
from seed.evidence import ClaimsEvidence, Verdict
from seed.reporting.claims import count_verdicts


def show_claims(terminal: Terminal, evidence: ClaimsEvidence, verdicts: Sequence[Verdict], *, page: Path) -> None:
    """Print the verdict on each claim with what was found, in the order given, then how many hold."""
    if verdicts:
        rows = [[verdict.verdict, verdict.claim, verdict.found or "nothing yet"] for verdict in verdicts]
        title = f"What {evidence.ledger.model} says to each claim"
        terminal.show_table(["verdict", "claim", "found"], rows, title=title, num_words=3)
        terminal.say(count_verdicts(verdicts))
    terminal.say(f"page: {page}")
