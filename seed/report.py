"""Write a study's report again: python -m seed.report studies/demo

Needs neither model nor text, only the study's folder.
"""

import argparse
from pathlib import Path

from seed import folder
from seed.console import Terminal, run_command
from seed.evidence import StagedSearch
from seed.reporting.staged import show_staged, write_staged_page
from seed.reporting.summary import show_result


def main() -> None:
    """Read the command line, write report.html and print the result."""
    parser = argparse.ArgumentParser(prog="python -m seed.report", description="Write report.html of a study again.")
    parser.add_argument("study", type=Path, help="the study's folder, such as studies/demo")
    path = parser.parse_args().study
    staged = folder.StudyFolder(path)
    if staged.stages.is_file():
        found = folder.read_record(staged.stages, StagedSearch)
        write_staged_page(found, staged.report)
        show_staged(Terminal(), found, root=path)
        return
    study = folder.open_existing(path)
    from seed.stages.publishing import refresh_report

    terminal = Terminal()
    with folder.lock(study):
        record = refresh_report(study, complain=terminal.say)
    show_result(
        terminal, record, report=study.report, models=study.models, storage=record.plan.storage or str(study.journal)
    )


if __name__ == "__main__":
    run_command(main)
