"""Find the layers a model can live without: python -m seed.search --model tinyllama --trials 200

One pass, top to bottom (``pipeline``): plan, latency, study, frontier, distillation, report. Everything finished is in the
study's folder, so the same command continues a stopped run. From Python: ``find_frontier``.
"""

import functools
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from seed import resolve
from seed.cli import json_option, make_parser, option, quiet_libraries
from seed.config import OPTIONS, Settings, StudyConfig
from seed.console import Terminal, answer, run_command
from seed.errors import SeedError
from seed.evidence import StudyRecord
from seed.models.provenance import describe_original
from seed.resolve import list_presets
from seed.study_dir import StudyFolder

if TYPE_CHECKING:
    from seed.evidence import StagedSearch
    from seed.reporting.result_line import SearchLine, StagedLine

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Output."""

    dry_run: bool = option("only say what the search would do and take: no weights, nothing written", False)
    json: bool = json_option()


class SearchCommand(StudyConfig, Output):
    """Find the layers a language model can live without, and hand back the models worth keeping."""


@dataclass(frozen=True, kw_only=True)
class PythonSettings(Settings):
    """What ``find_frontier`` takes."""

    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model that a search found. Ratios are to the dense model: of PPL on test text, or on validation text if it is not distilled."""

    parts: tuple[str, ...]  # that are gone: 4 is a layer of the original, 4.attn its attention, 4.mlp its MLP
    dropped_layers: tuple[int, ...]  # by their index in the original
    path: Path | None  # of the checkpoint; None: not distilled, so not exported
    speedup: float
    ppl_ratio: float
    num_params: int

    def load(self, **options: Any) -> Any:
        """Open the model with transformers, in the type that it is stored in; ``options``: of its ``from_pretrained``.

        Attentions and MLPs that it lacks are truly gone.

        Raises:
            SeedError: it is not distilled.
        """
        if self.path is None:
            raise SeedError(f"the model without {', '.join(self.parts)}: is not distilled. Search with distill=True.")
        quiet_libraries()
        from transformers import AutoConfig

        from seed.models.loader import find_auto_class
        from seed.models.provenance import read_provenance
        from seed.models.surgery import remove_parts

        auto = find_auto_class(
            AutoConfig.from_pretrained(self.path, trust_remote_code=options.get("trust_remote_code", False))
        )
        model = auto.from_pretrained(self.path, **{"dtype": "auto"} | options)
        remove_parts(model, read_provenance(self.path, place=str(self.path)).candidate)
        return model


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found; shown, it is the table of its models."""

    report: Path
    models: tuple[FoundModel, ...]  # as in the table, the least dropped first
    shipped: FoundModel | None  # what the table says to ship; None: none is distilled, or faster within 10 % PPL
    record: StudyRecord  # all that the report shows

    def __repr__(self) -> str:
        from seed.reporting.result_text import write_result
        from seed.results import compute_result

        return write_result(compute_result(self.record), study=StudyFolder(self.report.parent))


def take_settings(settings: Callable[P, Settings]) -> Callable[[Callable[..., Found]], Callable[P, Found]]:
    """Give a function the fields of ``settings`` as its parameters, with types and completion."""

    def give(function: Callable[..., Found]) -> Callable[P, Found]:
        signature = inspect.signature(settings).replace(return_annotation=Found)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return give


@take_settings(PythonSettings)
def find_frontier(model: str = "demo", *, quiet: bool = False, **settings: Any) -> Found:
    """Search, distill and export, or go on where that was stopped; return what was found.

    Args:
        model: a preset's name, a hub id, a directory or a GGUF file.
        quiet: show no progress.
        settings: the command line's options with underscores (``python -m seed.search --help`` says what each is).

    Raises:
        SeedError: anything a caller can mend.
    """
    if unknown := sorted(settings.keys() - OPTIONS.keys()):
        known = sorted(name for name, (said, _) in OPTIONS.items() if said.help is not None)
        raise SeedError(f"find_frontier: unknown setting {', '.join(unknown)}. Known: {', '.join(known)}.")
    wanted = resolve.fill_from_files(StudyConfig(model=model, **settings, given=frozenset(settings)))
    if wanted.stages:
        raise SeedError("find_frontier: searches at once; seed.search.search_in_stages takes settings with stages.")
    return describe_found(search(wanted, Terminal(quiet=quiet)), wanted)


def describe_found(record: StudyRecord, settings: StudyConfig) -> Found:
    """Return what a search found, as Python shows it."""
    from seed.results import compute_result

    result, study = compute_result(record), StudyFolder(settings.studies_dir / record.plan.name)
    models = {
        model.key: FoundModel(
            parts=model.candidate.parts,
            dropped_layers=model.candidate.dropped_layers,
            path=study.model(model.key) if model.is_distilled else None,
            speedup=1 / model.latency.ratio,
            ppl_ratio=math.nan if model.ppl_ratio.value is None else model.ppl_ratio.value,
            num_params=model.size.num_params,
        )
        for model in result.distilled or result.frontier
    }
    chosen = result.shipped if result.distilled else None
    return Found(
        report=study.report,
        models=tuple(models.values()),
        shipped=None if chosen is None else models[chosen.key],
        record=record,
    )


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
    else:
        answer(functools.partial(search_as_told, settings), as_json=is_json)


def search_as_told(settings: StudyConfig, terminal: Terminal) -> "SearchLine | StagedLine":
    """Search, at once or in stages, print what was found, and return it as ``--json`` prints it."""
    if settings.stages:
        from seed.reporting.result_line import describe_staged
        from seed.staged import name_root

        return describe_staged(search_in_stages(settings, terminal), name_root(settings))
    record = search(settings, terminal)
    from seed.reporting.result_line import describe_search
    from seed.reporting.result_text import show_result
    from seed.results import compute_result

    study = StudyFolder(settings.studies_dir / record.plan.name)
    show_result(terminal, compute_result(record), study=study)
    return describe_search(record, study)


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
