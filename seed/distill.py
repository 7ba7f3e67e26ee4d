"""Distill one more model out of a finished study: python -m seed.distill studies/gpt2-small --trial 17

The same loop, data and judge as the search's own finals; the report is written again.
"""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed import folder
from seed.console import Terminal, answer_in_json, run_command
from seed.errors import StudyError
from seed.findings import StudyRecord
from seed.records import DenseResult, DistillResult
from seed.stages import options, planning

if TYPE_CHECKING:
    from seed.reporting.result_line import DistillLine


def distill_trial(
    path: Path,
    *,
    trial: int,
    terminal: Terminal,
    distill_tokens: int | None = None,
    learning_rate: float | None = None,
    replicas: int | None = None,
    eval_command: str | None = None,
    device: str | None = None,
    trust_study: bool = False,
    trust_remote_code: bool = False,
) -> tuple[DistillResult, StudyRecord]:
    """Distill, export and judge the candidate of a trial; return its record, and the study with it.

    Raises:
        SeedError: no such study or trial, or model or text changed since.
    """
    study, plan, protocol = planning.open_planned(path, trust_study=trust_study, trust_remote_code=trust_remote_code)
    planning.quiet_libraries()
    from seed.scoring.sweep import Sweep
    from seed.stages import finals, schooling, workbench
    from seed.stages.gathering import find_learning_rate, gather_record
    from seed.stages.publishing import refresh_report

    with folder.lock(study):
        record = gather_record(study)
        chosen = {known.number: known for known in record.trials}
        if trial not in chosen:
            raise StudyError(
                f"--trial {trial}: {study.root} has no such finished trial; its trials are numbered "
                f"{min(chosen)} to {max(chosen)}. The report's table and Optuna Dashboard list them."
            )
        terminal.say(f"opening {protocol.model}")
        bench = workbench.reopen(study, protocol, device_name=device)
        instruments = workbench.prepare_instruments(bench)
        evaluation = chosen[trial].evaluation
        budget = finals.Budget(
            distill_tokens=distill_tokens or plan.distill_tokens,
            learning_rate=learning_rate or find_learning_rate(record.distilled) or protocol.short_learning_rate,
            rng_seeds=finals.list_rng_seeds(bench, replicas or plan.replicas),
        )
        folder.require_room(
            study.root,
            needed_bytes=evaluation.size.weight_bytes + 32 * evaluation.size.num_params,
            purpose="this distillation",
        )
        dense = folder.read_record(study.dense, DenseResult)
        member = schooling.Member(candidate=evaluation.candidate, latency=evaluation.latency, trial_number=trial)
        work = len(budget.rng_seeds) * finals.count_work(bench, schooling.count_steps(bench, budget.distill_tokens))
        with terminal.stage("distill", total=work, is_share=True) as advance:
            [result] = finals.distill_members(
                bench,
                Sweep(instruments, study.sweep),
                plan,
                dense,
                [member],
                budget,
                eval_command=eval_command,
                on_work=advance,
            )
        record = refresh_report(study, complain=terminal.say)
    terminal.say(
        f"{result.candidate.key}: test PPL ratio {result.test.ppl_ratio:.4f} ± {result.test.ppl_ratio_standard_error:.4f} "
        f"(without recovery {result.test_unrecovered.ppl_ratio:.4f}), latency ratio {result.latency.ratio:.3f}"
    )
    terminal.say(f"model:  {study.model(result.candidate.key)}", wrap=False)
    terminal.say(f"report: {study.report}", wrap=False)
    return result, record


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m seed.distill", description="Distill and export one more candidate of a finished study."
    )
    parser.add_argument("study", type=Path, help="the study's folder, such as studies/demo")
    parser.add_argument("--trial", type=int, required=True, metavar="N", help="number of the trial, as in the report")
    parser.add_argument(
        "--distill-tokens", type=options.positive_int, metavar="N", help="recovery tokens (default: the study's)"
    )
    parser.add_argument(
        "--learning-rate", type=options.positive_float, metavar="R", help="peak rate (default: the study's)"
    )
    parser.add_argument(
        "--replicas", type=options.positive_int, metavar="N", help="under N random seeds (default: the study's)"
    )
    parser.add_argument(
        "--eval-command", metavar="CMD", help="your own judge: gets the model's directory, prints a number"
    )
    parser.add_argument("--device", help="default: as chosen for the search")
    options.add_trust(parser)
    options.add_json(parser)
    return parser


def main() -> None:
    """Read the command line and distill."""
    words = vars(make_parser().parse_args())
    path, is_json = words.pop("study"), words.pop("json")
    if is_json:
        answer_in_json(functools.partial(distill_for_script, path, **words))
    else:
        distill_trial(path, terminal=Terminal(), **words)


def distill_for_script(path: Path, terminal: Terminal, **words: Any) -> "DistillLine":
    """Distill, and return what ``--json`` prints. ``words``: as for ``distill_trial``."""
    from seed.reporting.result_line import describe_one_more

    result, record = distill_trial(path, terminal=terminal, **words)
    return describe_one_more(result, folder.StudyFolder(path), record.replications.get(result.key))


if __name__ == "__main__":
    run_command(main)
