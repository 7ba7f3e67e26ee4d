"""Which claims about dropping layers hold for your model? python -m seed.claims studies/demo

Goes through what was reported when Seed began, and by Shortened LLaMA, on the model of a finished search: trains what each
claim rests on under several random seeds, times what has to be timed, and gives a verdict on each with its numbers.
Everything finished is kept; run again to go on.
"""

import argparse
import functools
from pathlib import Path

from seed import folder
from seed.console import Terminal, format_seconds, run_command
from seed.errors import StudyError
from seed.evidence import ClaimsEvidence, TrainedRun, Verdict
from seed.stages import options, planning

BUDGET = 4  # times the search's own distillations, unless told otherwise


def check_claims(
    path: Path,
    *,
    terminal: Terminal,
    distill_tokens: int | None = None,
    rng_seeds: tuple[int, ...] = (0, 1, 2),
    learning_rate: float | None = None,
    device: str | None = None,
    latency_command: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[ClaimsEvidence, tuple[Verdict, ...]]:
    """Gather the evidence, or what is left of it, and write the page.

    Args:
        path: the folder of a finished search.
        terminal: where progress and the result are written.
        distill_tokens: recovery tokens of every training; None: four times those of the search's distillations.
        rng_seeds: every model is trained once under each.
        learning_rate: None: tuned for each depth and each way to recover.
        device: default: as chosen for the search.
        latency_command: that of the search, if it had one, typed again.
        trust_remote_code: run the code that the study's model brings along.

    Raises:
        SeedError: anything a user can mend.
    """
    study, plan, protocol = planning.open_planned(path, trust_remote_code=trust_remote_code)
    planning.require_command(protocol, latency_command, place=study.root)
    if protocol.start is not None:
        raise StudyError(
            f"{study.root}: goes on from a recovered model, and claims are about dropping layers of an original one. Give the "
            "study of a search that began with the original."
        )
    planning.quiet_libraries()
    from seed.optimize.claims import judge_claims
    from seed.optimize.testimony import estimate_cost, estimate_ratio
    from seed.reporting.claims import write_claims_page
    from seed.reporting.findings import show_claims
    from seed.scores import ScoreStore
    from seed.scoring.sweep import Sweep
    from seed.stages import claiming, schooling, training, workbench

    with folder.lock(study), ScoreStore(study.scores) as store:
        terminal.say(f"opening {protocol.model}")
        bench = workbench.reopen(study, protocol, device_name=device)
        sweep = Sweep(workbench.prepare_instruments(bench), store)
        settings = training.TrainingSettings(
            distill_tokens=distill_tokens or BUDGET * plan.distill_tokens,
            rng_seeds=tuple(sorted(set(rng_seeds))),
            rates=training.list_rates(bench) if learning_rate is None else (learning_rate,),
        )
        evidence = claiming.read_evidence(bench, settings)
        if evidence is None:
            with terminal.stage("roles", total=5) as advance:
                members = claiming.choose_members(bench, sweep, on_scored=lambda role: advance(1, role))
            evidence = claiming.start_evidence(bench, sweep, members, settings)
        members = claiming.recall_members(evidence)
        with terminal.stage("latency", total=4) as advance:
            evidence = claiming.measure_latencies(
                bench, sweep, evidence, members, on_timed=lambda name: advance(1, name)
            )
        wanted = claiming.list_wanted(members, settings)
        steps = schooling.count_steps(bench, settings.distill_tokens)
        missing = training.list_missing(evidence.ledger, wanted)
        staged = claiming.list_staged(evidence, settings)
        terminal.say(
            f"plan: {len(missing) + len(staged)} of {len(wanted) + len(settings.rng_seeds)} trainings to go, each of "
            f"{planning.say_tokens(protocol, settings.distill_tokens)}; random seeds {', '.join(map(str, settings.rng_seeds))}"
        )
        if missing or staged:
            training.store_states(terminal, bench, sweep, settings, tokens=settings.distill_tokens)
            rates = training.tune_rates(terminal, bench, sweep, wanted, settings)
            with terminal.stage("train", total=(len(missing) + len(staged)) * steps) as advance:

                def on_run(run: TrainedRun) -> None:
                    terminal.say(
                        f"  {run.key}, {run.recovery}, random seed {run.rng_seed}: {format_seconds(run.seconds)}"
                    )

                for rng_seed in settings.rng_seeds:  # an early stop leaves whole claims
                    evidence = claiming.train_alike(
                        bench,
                        sweep,
                        evidence,
                        members,
                        settings,
                        rng_seed=rng_seed,
                        rates=rates,
                        on_step=functools.partial(advance, 1),
                        on_run=on_run,
                    )
    verdicts = judge_claims(evidence)
    asked = {
        "distill_tokens": distill_tokens,
        "rng_seeds": rng_seeds,
        "learning_rate": learning_rate,
        "latency_command": latency_command,
    }
    command = options.spell_command("seed.claims", asked, str(path))
    write_claims_page(
        evidence,
        verdicts,
        study.claims_page,
        command=command,
        estimate_ratio=estimate_ratio,
        estimate_cost=estimate_cost,
    )
    show_claims(terminal, evidence, verdicts, page=study.claims_page)
    return evidence, verdicts


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.CommandParser(
        prog="python -m seed.claims",
        description="Test what was reported about dropping layers on the model of a finished search.",
        epilog="The same command again continues a stopped run.",
        argument_default=argparse.SUPPRESS,
    )
    options.add_study(parser)
    options.add_trainings(
        parser,
        distill_tokens=f"recovery tokens of every training (default: {BUDGET} times the study's)",
        rng_seeds="every model is trained under each (default: 0 1 2)",
        learning_rate="of training all weights; low-rank updates get four times that (default: tuned for each depth and recovery)",
    )
    parser.add_argument(
        "--latency-command", metavar="CMD", help="your own stopwatch, where the search had one: the same words again"
    )
    options.add_trust(parser)
    return parser


def main() -> None:
    """Read the command line and check."""
    words = options.read_words(make_parser())
    check_claims(words.pop("path"), terminal=Terminal(), **words)


if __name__ == "__main__":
    run_command(main)
