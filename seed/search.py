"""Find the layers a model can live without: python -m seed.search --model tinyllama --trials 200

One pass, top to bottom (``pipeline``): plan, latency, study, frontier, distillation, report. Everything finished is in the
study's folder, so the same command continues a stopped run. From Python: ``find_frontier``.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from seed.console import Terminal, answer_in_json, run_command
from seed.errors import SeedError
from seed.findings import StudyRecord
from seed.folder import StudyFolder
from seed.stages import planning
from seed.stages.arguments import make_parser
from seed.stages.settings import SearchSettings
from seed.stages.starts import describe_original

if TYPE_CHECKING:
    from seed.evidence import StagedSearch
    from seed.reporting.result_line import SearchLine, StagedLine


def find_frontier(model: str = "demo", *, quiet: bool = True, **settings: Any) -> StudyRecord:
    """Search, distill and export; return everything that the report shows, as records.

    Args:
        model: a preset's name, a hub id or a directory.
        quiet: show no progress.
        settings: the fields of ``SearchSettings``; the command line's options with underscores.

    Raises:
        SeedError: anything a caller can mend.
    """
    known = {field.name for field in dataclasses.fields(SearchSettings)}
    if unknown := sorted(set(settings) - known):
        raise SeedError(f"find_frontier: unknown setting {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    wanted = SearchSettings(model=model, **settings)
    if wanted.stages:
        raise SeedError("find_frontier: searches at once; seed.search.search_in_stages takes settings with stages.")
    return search(wanted, Terminal(quiet=quiet))


def search(settings: SearchSettings, terminal: Terminal) -> StudyRecord:
    """Run the whole pass, or what is left of it."""
    from seed.stages import finished

    if (known := finished.recall(settings, terminal)) is not None:  # told without opening torch
        return known
    from seed import pipeline

    return pipeline.run(settings, terminal)


def search_in_stages(settings: SearchSettings, terminal: Terminal) -> "StagedSearch":
    """Search stage by stage, and write the page of the whole."""
    planning.quiet_libraries()
    from seed import staged as stages
    from seed.reporting.staged import show_staged, write_staged_page

    staged, root = stages.search_in_stages(settings, terminal, search=search), stages.name_root(settings)
    write_staged_page(staged, StudyFolder(root).report)
    show_staged(terminal, staged, root=root)
    return staged


def main() -> None:
    """Read the command line and search, or say what a search would take."""
    words = vars(make_parser().parse_args())
    is_dry, is_json = words.pop("dry_run", False), words.pop("json", False)
    settings = SearchSettings(**words)
    if is_dry and (settings.stages or settings.start):
        raise SeedError("--dry-run: plans one search of an original model. Leave --stages and --start out.")
    if is_dry and is_json:
        raise SeedError("--dry-run: says its plan in sentences, and has no result for --json. Leave one out.")
    if is_dry:
        plan_only(settings, Terminal())
    elif is_json:
        answer_in_json(functools.partial(search_for_script, settings))
    elif settings.stages:
        search_in_stages(settings, Terminal())
    else:
        search(settings, Terminal())


def search_for_script(settings: SearchSettings, terminal: Terminal) -> "SearchLine | StagedLine":
    """Search, at once or in stages, and return what ``--json`` prints."""
    from seed.reporting.result_line import describe_search, describe_staged
    from seed.staged import name_root

    if settings.stages:
        return describe_staged(search_in_stages(settings, terminal), name_root(settings))
    record = search(settings, terminal)
    return describe_search(record, StudyFolder(settings.studies_dir / record.plan.name))


def plan_only(settings: SearchSettings, terminal: Terminal) -> None:
    """Say what the search would do and take, without weights, network or a study's folder."""
    settings, preset = planning.start_from_preset(settings)
    name = planning.name_study(settings)
    planning.quiet_libraries()
    from seed import dry_run

    if (said := describe_original(settings.model)) is not None:
        terminal.say(said)
    dry_run.run(settings, preset, name=name, say=functools.partial(terminal.say, wrap=False))


if __name__ == "__main__":
    run_command(main)
