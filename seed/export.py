"""Checkpoints out of a study, or out of any model: python -m seed.export studies/demo --trial 17 --no-recovery

With --no-recovery the candidate of a trial is written as it was cut, with its card, its provenance and a mergekit recipe;
without, it is said where the distilled model lies, and --out copies it. With --keep any model is cut:

    python -m seed.export ./llama-70b --keep 0-39,48-79 --out ./llama-63b

No weight is loaded: tensors are copied from file to file, so that a model may be larger than memory. With --format a model that
Seed exported is written for a runtime that runs layers without their attention or MLP:

    python -m seed.export studies/demo/models/MODEL --format mlx --out ./model-mlx
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seed import plans, study_dir
from seed.cli import (
    LAYERS,
    WHOLE,
    argument,
    choose_from,
    json_option,
    option,
    quiet_libraries,
    read_command,
    spell_command,
)
from seed.console import Terminal, answer, run_command
from seed.errors import StudyError
from seed.models.provenance import FORMATS

if TYPE_CHECKING:
    from seed.reporting.result_line import ExportLine


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write a candidate of a study, or layers of any model, as an ordinary checkpoint; or an exported model for another runtime.

    Tensors are copied from file to file: the model may be larger than memory.
    """

    source: str = argument(
        "the study's folder, or a model: for --keep a directory, GGUF file or hub id", metavar="STUDY"
    )
    trial: int | None = option("number of the trial, as in the report", kind=WHOLE)
    recovery: bool = option("write the candidate as it was cut, with a recipe for mergekit", True)
    keep: tuple[int, ...] | None = option("no study: keep these layers of a model, such as 0-3,6,8-21", kind=LAYERS)
    revision: str | None = option("with --keep, revision of a hub model", metavar="COMMIT")
    format: str | None = option(
        "no study: an exported model for MLX (mlx) or llama.cpp (gguf-ready)", kind=choose_from(FORMATS)
    )
    out: Path | None = option("where it is written (default: in the study's folder; else needed)")
    json: bool = json_option()


def export(args: ExportCommand, terminal: Terminal) -> "ExportLine":
    """Export as told on the command line, and return what ``--json`` prints.

    Raises:
        SeedError: no such study, trial, model or distilled model, none that Seed can cut, or weights changed since.
    """
    if args.format is not None:
        quiet_libraries()
        from seed.stages import exporting

        assert args.out is not None  # see check_words
        terminal.say(f"writing {args.source} as {args.format}")
        line = exporting.convert_model(Path(args.source).expanduser(), runtime=args.format, target=args.out)
        say_line(terminal, line)
        return line
    if args.keep is not None:
        quiet_libraries()
        from seed.stages import exporting

        terminal.say(f"cutting {args.source}")
        order = exporting.order_layers(args.source, args.keep, revision=args.revision)
        assert args.out is not None  # see check_words
        line = exporting.write_order(order, args.out, terminal=terminal)
        say_line(terminal, line)
        return line
    line = export_trial(Path(args.source), args, terminal)
    say_line(terminal, line)
    if not args.recovery:
        words = spell_command("seed.distill", {"trial": args.trial}, args.source)
        terminal.say(f"to recover it: {words}", wrap=False)
    return line


def export_trial(path: Path, args: ExportCommand, terminal: Terminal) -> "ExportLine":
    """Write the candidate of a trial without recovery, or find its distilled model, and copy it where it is to go."""
    study, plan = plans.read_planned(path)
    protocol = plan.protocol
    quiet_libraries()
    from seed.stages import exporting
    from seed.stages.study_record import find_trial, gather_record

    with study_dir.lock(study):
        record = gather_record(study)
        assert args.trial is not None  # see check_words
        chosen = find_trial(record, args.trial, place=study.root)
        if args.recovery:
            line = exporting.find_recovered(study, protocol, chosen, record.distilled)
            return line if args.out is None else exporting.copy_recovered(line, args.out)
        terminal.say(f"cutting {protocol.model}")
        order = exporting.order_trial(study, plan, chosen, record.distilled)
        return exporting.write_order(
            order, args.out or study.unrecovered / chosen.evaluation.candidate.key, terminal=terminal
        )


def say_line(terminal: Terminal, line: "ExportLine") -> None:
    """Say what lies where."""
    from seed.reporting.wording import format_bytes

    state = "recovered" if line.is_recovered else "not recovered"
    ratio = "" if line.ppl_ratio is None else f"; PPL ratio {line.ppl_ratio:.4f} on test text"
    if line.unrecovered_ppl_ratio is not None:
        ratio += f"; PPL ratio without recovery {line.unrecovered_ppl_ratio:.4f} on {line.text} text"
    terminal.say(
        f"{len(line.kept_layers)} of {line.num_layers} layers, {line.num_params:,} parameters, "
        f"{format_bytes(line.weight_bytes)} of weights, {state}{ratio}"
    )
    if line.left_out:
        more = f" and {len(line.left_out) - 1} more" if len(line.left_out) > 1 else ""
        terminal.say(f"left out, since transformers does not read it: {line.left_out[0]}{more}")
    terminal.say(f"model:  {line.path}", wrap=False)
    if line.recipe is not None:
        terminal.say(f"recipe: {line.recipe}", wrap=False)


def check_words(args: ExportCommand) -> None:
    """Check that what was typed goes together."""
    if args.format is not None:
        if args.trial is not None or args.keep is not None or args.revision is not None or not args.recovery:
            raise StudyError(
                "--format: writes a model that Seed exported as it is. Leave out --trial, --no-recovery, --keep and --revision."
            )
        if args.out is None:
            raise StudyError("--format: where to? Add --out DIRECTORY.")
        return
    if args.keep is None:
        if args.trial is None:
            raise StudyError(
                f"{args.source}: which one? Add --trial N, a trial's number in the report; or --keep LAYERS to cut a model."
            )
        if args.revision is not None:
            raise StudyError(f"--revision {args.revision}: a study has its own. Leave it out.")
        return
    if args.trial is not None or not args.recovery:
        raise StudyError(
            "--keep: names layers of a model, not of a study. Leave out --trial and --no-recovery, or --keep."
        )
    if args.out is None:
        raise StudyError("--keep: where to? Add --out DIRECTORY.")
    if (Path(args.source) / "plan.json").is_file():
        raise StudyError(
            f"{args.source}: is a study, and --keep names layers of a model. Add --trial N instead, with --no-recovery."
        )


def main() -> None:
    """Read the command line and export."""
    args = read_command(ExportCommand)
    check_words(args)
    answer(functools.partial(export, args), as_json=args.json)


if __name__ == "__main__":
    run_command(main)
