"""Find the layers a model can live without: python -m seed.search --model tinyllama --trials 200

One pass, top to bottom: plan, proofs, latency, study, frontier, distillation, report. Everything finished is
in the study's folder, so the same command continues a stopped run. From Python: ``find_frontier``.
"""

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

from seed import __version__, folder
from seed.console import Terminal, answer_in_json, run_command
from seed.errors import SeedError, StudyError
from seed.findings import StudyRecord
from seed.folder import StudyFolder
from seed.optimize.space import Preset
from seed.optimize.storage import open_storage
from seed.optimize.study import open_study
from seed.optimize.teamwork import clear_study
from seed.stages import planning
from seed.stages.arguments import make_parser
from seed.stages.settings import SearchSettings
from seed.stages.starts import describe_original

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from seed.evidence import StagedSearch
    from seed.optimize.leadership import Leader
    from seed.reporting.result_line import HelpedLine, SearchLine, StagedLine
    from seed.stages.workbench import Workbench


def find_frontier(model: str = "demo", *, quiet: bool = True, **settings: Any) -> StudyRecord:
    """Search, distill and export; return everything that the report shows, as records.

    Args:
        model: a preset's name, a hub id or a directory.
        quiet: show no progress.
        settings: the fields of ``SearchSettings``; the command line's options with underscores.

    Raises:
        SeedError: anything a caller can mend; or another host leads the search, and has its result.
    """
    known = {field.name for field in dataclasses.fields(SearchSettings)}
    if unknown := sorted(set(settings) - known):
        raise SeedError(f"find_frontier: unknown setting {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    wanted = SearchSettings(model=model, **settings)
    if wanted.stages:
        raise SeedError("find_frontier: searches at once; seed.search.search_in_stages takes settings with stages.")
    return search_to_end(wanted, Terminal(quiet=quiet))


def search_to_end(settings: SearchSettings, terminal: Terminal) -> StudyRecord:
    """Search, and return the result, which has to be on this host.

    Raises:
        StudyError: another host leads the search.
    """
    found = search(settings, terminal)
    if isinstance(found, StudyRecord):
        return found
    raise StudyError(f"this host helped the search that {found.host} leads, which has its result in {found.folder}")


def search(settings: SearchSettings, terminal: Terminal) -> "StudyRecord | Leader":
    """Run the whole pass, or what is left of it; with several workers, by processes of their own.

    Returns:
        What was found; or the host that leads the search and has found it, where that is another one.
    """
    from seed.stages import finished

    if (known := finished.recall(settings, terminal)) is not None:
        return known
    from seed.stages import crew

    num_workers = crew.count_workers(settings)
    if num_workers == 1:
        return search_here(settings, terminal)
    crew.run_crew(settings, terminal, num_workers=num_workers)
    from seed.stages.gathering import gather_record
    from seed.stages.hosts import find_other_leader

    settings, _ = planning.start_from_preset(settings)
    study = StudyFolder(settings.studies_dir / planning.name_study(settings))
    return find_other_leader(settings, study) or gather_record(study)


def search_here(settings: SearchSettings, terminal: Terminal, *, num_workers: int = 1) -> "StudyRecord | Leader":
    """Search in this process, of so many on this host; where a search of this study runs already, help it."""
    settings, preset = planning.start_from_preset(settings)
    name = planning.name_study(settings)
    planning.quiet_libraries()
    from seed.scoring.streams import store_streams
    from seed.stages import costs, helping, hosts, joining, leading, leftovers, orders, shapes
    from seed.stages.gathering import gather_record
    from seed.stages.posts import open_post

    load = costs.describe_load()
    study = StudyFolder(settings.studies_dir / name)
    folder.require_writable(study.root)
    if study.stages_plan.exists() or StudyFolder(study.root / "stage-1").plan.exists():
        raise StudyError(
            f"{study.root}: holds a staged search. Repeat it with --stages, or take another name with --study NAME."
        )
    post = open_post(study, leads=True, num_workers=num_workers)
    if helping.join_search(settings, preset, dataclasses.replace(post, leads=False), terminal):
        return hosts.find_other_leader(settings, study) or gather_record(study)
    storage = open_storage(settings.storage, journal=study.journal, complain=terminal.say) if settings.storage else None
    hosts.require_moved(settings, storage, study=study)
    terminal.say(f"opening {settings.model}")
    if (said := describe_original(settings.model)) is not None:
        terminal.say(said)
    bench, preset = open_bench(settings, preset, storage, study=study)
    for note in bench.teacher.notes:
        terminal.say(f"{settings.model}: {note}")
    shape = shapes.describe_shape(bench)
    speed = costs.time_parts(bench.anatomy, shape, shapes.take_micro_batch(bench))
    plan = costs.draft_plan(settings, preset, bench.protocol, name=name, shape=shape, speed=speed)
    if study.plan.exists():
        plan = leftovers.continue_or_replace(study, plan, say=terminal.say)
    cost = costs.estimate_cost(shape, bench.protocol, plan, speed, distill=settings.distill)
    for line in costs.describe_plan(bench.protocol, plan, cost, num_workers=num_workers):
        terminal.say(line)
    if load is not None:
        terminal.say(load)
    costs.require_resources(cost, root=study.root, device=bench.device, num_workers=num_workers)
    folder.create(study.root)
    with folder.lock(study), orders.lead(study, post.presence, settings, pid=os.getpid()):
        if num_workers > 1:
            store_streams(study.streams, bench.streams)
        opened = open_study(
            storage or open_storage(None, journal=study.journal),
            name=plan.name,
            rung=bench.protocol.rung,
            fingerprint=plan.study_fingerprint,
            identity=None if storage is None else hosts.describe_identity(bench.protocol),
        )
        if storage is None:
            if not post.presence.count_others():
                clear_study(opened)
            return leading.lead_search(terminal, bench, preset, opened, plan, settings, post=post, circle=None)
        circle = hosts.open_circle(opened, bench, plan, settings, post=post)
        if joining.lead_or_help(circle, bench, plan, settings, post, terminal):
            with circle.leadership.lead():
                return leading.lead_search(terminal, bench, preset, opened, plan, settings, post=post, circle=circle)
    return circle.leadership.find() or circle.leadership.ours


def open_bench(
    settings: SearchSettings, preset: Preset | None, storage: "BaseStorage | None", *, study: StudyFolder
) -> "tuple[Workbench, Preset]":
    """Open model and text; what a host would choose by its device is the study's, where another host began it before us.

    Raises:
        SeedError: anything a user can mend; or the study in the storage is another one, with every difference.
    """
    from seed.stages import hosts, workbench

    if storage is None:
        return workbench.open_for_search(settings, preset, study=study)
    while True:
        known = hosts.find_identity(storage, name=study.name)
        wanted = planning.adopt_dtype(settings, known or {})
        bench, found = workbench.open_for_search(wanted, preset, study=study, identity=known)
        now = hosts.find_identity(storage, name=study.name)
        if known is not None and now is not None:
            hosts.require_same_study(now, bench.protocol, name=study.name)
        if known is not None or now in (None, hosts.describe_identity(bench.protocol)):
            return bench, found


def search_in_stages(settings: SearchSettings, terminal: Terminal) -> "StagedSearch":
    """Search stage by stage, and write the page of the whole."""
    planning.quiet_libraries()
    from seed.reporting.staged import show_staged, write_staged_page
    from seed.stages import relay

    staged = relay.search_in_stages(settings, terminal, search=search_to_end)
    root = relay.name_root(settings)
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
        rehearse(settings, Terminal())
    elif is_json:
        answer_in_json(functools.partial(search_for_script, settings))
    elif settings.stages:
        search_in_stages(settings, Terminal())
    else:
        search(settings, Terminal())


def search_for_script(settings: SearchSettings, terminal: Terminal) -> "SearchLine | StagedLine | HelpedLine":
    """Search, at once or in stages, and return what ``--json`` prints."""
    from seed.reporting.result_line import HelpedLine, describe_search, describe_staged
    from seed.stages.relay import name_root

    if settings.stages:
        return describe_staged(search_in_stages(settings, terminal), name_root(settings))
    record = search(settings, terminal)
    if not isinstance(record, StudyRecord):
        return HelpedLine(seed_version=__version__, study=record.folder, host=record.host)
    return describe_search(record, StudyFolder(settings.studies_dir / record.plan.name))


def rehearse(settings: SearchSettings, terminal: Terminal) -> None:
    """Say what the search would do and take, without weights, network or a study's folder."""
    settings, preset = planning.start_from_preset(settings)
    name = planning.name_study(settings)
    planning.quiet_libraries()
    from seed.stages import rehearsal

    if (said := describe_original(settings.model)) is not None:
        terminal.say(said)
    rehearsal.rehearse(settings, preset, name=name, say=functools.partial(terminal.say, wrap=False))


if __name__ == "__main__":
    run_command(main)
