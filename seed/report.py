"""Write a study's report again, or set studies side by side: python -m seed.report studies/demo

Needs neither model nor text, only the studies' folders.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seed import study_dir, untrusted
from seed.cli import argument, json_option, option, read_command, storage_option
from seed.console import Terminal, answer, run_command
from seed.errors import StudyError
from seed.evidence import StagedSearch, StudyRecord
from seed.plans import read_plan
from seed.records import Frontier

if TYPE_CHECKING:
    from seed.reporting.result_line import SearchLine, StagedLine


def report_study(path: Path, terminal: Terminal, *, storage: str | None = None) -> StudyRecord:
    """Write the report of one study; return what it shows.

    ``storage``: the database that shows the study, where its search was given one.

    Raises:
        SeedError: there is no such study.
    """
    study = study_dir.open_existing(path)
    from seed.reporting.result_text import show_result
    from seed.stages.publishing import open_shown, refresh_report

    with study_dir.lock(study):
        plan = read_plan(study)
        study_dir.read_record(study.frontier, Frontier)  # before a journal is mended: the lack of it says how to go on
        opened = open_shown(study, plan, storage=storage, on_warning=terminal.say)
        result = refresh_report(study, opened=opened, on_warning=terminal.say)
    show_result(terminal, result, study=study)
    return result.record


def report_stages(path: Path, terminal: Terminal) -> StagedSearch:
    """Write the page of a search in stages again; return what it shows."""
    from seed.reporting.document import write_findings
    from seed.reporting.staged_page import show_staged, tell_staged

    untrusted.refuse_strays(path)
    study = study_dir.StudyFolder(path)
    for stage in sorted(path.glob("*/plan.json")):
        read_plan(study_dir.StudyFolder(stage.parent))  # of another version? That says so
    staged = study_dir.read_record(study.stages, StagedSearch)
    write_findings(tell_staged(staged), study.report, command=staged.command)
    show_staged(terminal, staged, root=path)
    return staged


def compare_studies(paths: Sequence[Path], terminal: Terminal, *, output: Path | None) -> Path:
    """Write the page that sets the frontiers of several studies side by side; return where it is.

    Raises:
        SeedError: one of them is no study, or the same as another.
    """
    from seed.reporting.document import write_findings
    from seed.reporting.studies import name_page, name_studies, tell_studies
    from seed.results import compute_result
    from seed.stages.study_record import gather_record

    if len({path.resolve() for path in paths}) < len(paths):
        raise StudyError(f"{' '.join(map(str, paths))}: the same study more than once. Name each of them once.")
    results = []
    for study in [study_dir.open_existing(path) for path in paths]:
        with study_dir.lock(study):
            results.append(compute_result(gather_record(study)))
    named = dict(zip(name_studies(paths), results, strict=True))
    page = output or paths[0].resolve().parent / name_page(paths)
    findings = tell_studies(named)
    command = "\n\n".join(f"# {name}\n{result.record.plan.command}" for name, result in named.items())
    write_findings(findings, page, command=command)
    for line in findings.answers:
        terminal.say(line)
    terminal.say(f"page: {page}", wrap=False)
    return page


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write report.html of a study again; of several studies, one page that sets their frontiers side by side."""

    study: tuple[Path, ...] = argument("a study's folder, such as studies/demo", metavar="STUDY", many=True)
    output: Path | None = option("where the page of several studies goes", metavar="FILE")
    storage: str | None = storage_option()
    json: bool = json_option()


def report_one(args: ReportCommand, terminal: Terminal) -> "SearchLine | StagedLine":
    """Write what the command line asks for of one study or staged search, and return it as ``--json`` prints it."""
    from seed.reporting.result_line import describe_search, describe_staged

    [path] = args.study
    if study_dir.StudyFolder(path).stages.is_file() and not args.storage:
        return describe_staged(report_stages(path, terminal), path)
    return describe_search(report_study(path, terminal, storage=args.storage), study_dir.StudyFolder(path))


def main() -> None:
    """Read the command line, write what is asked for, and print the result."""
    args = read_command(ReportCommand)
    check_options(args)
    if len(args.study) > 1:
        compare_studies(args.study, Terminal(), output=args.output)
    else:
        answer(functools.partial(report_one, args), as_json=args.json)


def check_options(args: ReportCommand) -> None:
    """Refuse what cannot be honoured.

    Raises:
        StudyError: with what to type instead.
    """
    for_one = [*["json"] * args.json, *["storage"] * bool(args.storage)]
    if len(args.study) > 1 and for_one:
        raise StudyError(
            f"--{for_one[0]}: is for one study, and {len(args.study)} were given. Name one, or leave it out."
        )
    if args.output and (args.output.is_dir() or not args.output.name or not args.output.parent.is_dir()):
        raise StudyError(f"--output {args.output}: is no file in a folder that is there. Name one, such as both.html.")
    if len(args.study) == 1 and args.output:
        raise StudyError("--output: is for several studies; the report of one lies in its folder. Leave it out.")
    if args.output and args.output.suffix not in (".html", ".htm"):
        raise StudyError(
            f"--output {args.output}: a page is an HTML file, and this might be another. Give a name that ends in .html."
        )


if __name__ == "__main__":
    run_command(main)
