"""Find the layers a model can live without: python -m seed.search --model tinyllama --trials 200

One pass, top to bottom (``pipeline``): plan, latency, study, frontier, distillation, report. Everything finished is in the
study's folder, so the same command continues a stopped run. From Python: ``find_frontier``.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seed import resolve
from seed.cli import json_option, make_parser, option, quiet_libraries
from seed.config import OPTIONS, StudyConfig
from seed.console import Terminal, answer_in_json, run_command
from seed.errors import SeedError
from seed.evidence import StudyRecord
from seed.models.provenance import describe_original
from seed.resolve import list_presets
from seed.study_dir import StudyFolder

if TYPE_CHECKING:
    from seed.evidence import StagedSearch
    from seed.reporting.result_line import SearchLine, StagedLine


@dataclass(frozen=True, kw_only=True)
class Output:
    """Output."""

    dry_run: bool = option("only say what the search would do and take: no weights, nothing written", False)
    json: bool = json_option()


class SearchCommand(StudyConfig, Output):
    """Find the layers a language model can live without, and hand back the models worth keeping."""


def find_frontier(model: str = "demo", *, quiet: bool = True, **settings: Any) -> StudyRecord:
    """Search, distill and export; return everything that the report shows, as records.

    Args:
        model: a preset's name, a hub id or a directory.
        quiet: show no progress.
        settings: the fields of ``StudyConfig``; the command line's options with underscores.

    Raises:
        SeedError: anything a caller can mend.
    """
    if unknown := sorted(settings.keys() - OPTIONS.keys()):
        known = sorted(name for name, (said, _) in OPTIONS.items() if said.help is not None)
        raise SeedError(f"find_frontier: unknown setting {', '.join(unknown)}. Known: {', '.join(known)}.")
    wanted = resolve.fill_from_files(StudyConfig(model=model, **settings, given=frozenset(settings)))
    if wanted.stages:
        raise SeedError("find_frontier: searches at once; seed.search.search_in_stages takes settings with stages.")
    return search(wanted, Terminal(quiet=quiet))


def search(settings: StudyConfig, terminal: Terminal) -> StudyRecord:
    """Run the whole pass, or what is left of it."""
    began = time.monotonic()
    from seed.stages import study_record

    if (known := study_record.load_finished(settings, terminal)) is not None:  # told without opening torch
        return known
    from seed import pipeline

    return pipeline.run(settings, terminal, began=began)


def search_in_stages(settings: StudyConfig, terminal: Terminal) -> "StagedSearch":
    """Search stage by stage, and write the page of the whole."""
    quiet_libraries()
    from seed import staged as stages
    from seed.reporting.document import write_findings
    from seed.reporting.staged_page import show_staged, tell_staged

    staged, root = stages.search_in_stages(settings, terminal, search=search), stages.name_root(settings)
    write_findings(tell_staged(staged), StudyFolder(root).report, command=staged.command)
    show_staged(terminal, staged, root=root)
    return staged


def read_words(words: Sequence[str] | None = None) -> dict[str, Any]:
    """What was typed, by option."""
    epilog = f"Names of models: {', '.join(list_presets())}. The same command again continues a stopped search."
    return dict(vars(make_parser(SearchCommand, epilog=epilog).parse_args(words)))


def main() -> None:
    """Read the command line and search, or say what a search would take."""
    words = read_words()
    is_dry, is_json = words.pop("dry_run", False), words.pop("json", False)
    settings = resolve.fill_from_files(StudyConfig(**words, given=frozenset(words)))
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


def search_for_script(settings: StudyConfig, terminal: Terminal) -> "SearchLine | StagedLine":
    """Search, at once or in stages, and return what ``--json`` prints."""
    from seed.reporting.result_line import describe_search, describe_staged
    from seed.staged import name_root

    if settings.stages:
        return describe_staged(search_in_stages(settings, terminal), name_root(settings))
    record = search(settings, terminal)
    return describe_search(record, StudyFolder(settings.studies_dir / record.plan.name))


def plan_only(settings: StudyConfig, terminal: Terminal) -> None:
    """Say what the search would do and take, without weights, network or a study's folder."""
    settings = resolve.resolve_config(settings)
    name = resolve.name_study(settings)
    quiet_libraries()
    from seed import dry_run

    if (said := describe_original(settings.model)) is not None:
        terminal.say(said)
    dry_run.run(settings, name=name, say=functools.partial(terminal.say, wrap=False))


if __name__ == "__main__":
    run_command(main)
