"""Which way to recover is best? python -m seed.recoveries studies/demo

Recovers models of a finished search in several ways, each under several random seeds: first for the same number of tokens,
then for as long as distillation took. Everything finished is kept; run again to go on.
"""

import argparse
import functools
from pathlib import Path

from seed import folder
from seed.console import Terminal, format_seconds, run_command
from seed.errors import SeedError
from seed.evidence import RecoveredRow, RecoveryComparison
from seed.reporting.wording import count_things
from seed.stages import options, planning
from seed.stages.recoveries import RECOVERIES

TITLES = {name: recovery.title for name, recovery in RECOVERIES.items()}
SOURCES = {name: recovery.source for name, recovery in RECOVERIES.items()}
REFERENCE = "distillation"


def compare_recoveries(
    path: Path,
    *,
    terminal: Terminal,
    trials: tuple[int, ...] = (),
    recoveries: tuple[str, ...] | None = None,
    distill_tokens: int | None = None,
    rng_seeds: tuple[int, ...] = (0, 1, 2),
    learning_rate: float | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[RecoveryComparison, tuple[RecoveredRow, ...]]:
    """Run a comparison, or what is left of it, and write its page.

    Args:
        path: the folder of a finished search.
        terminal: where progress and the result are written.
        trials: numbers of the trials whose models are recovered; none: the frontier's best of the deepest cut.
        recoveries: names of ``RECOVERIES``; None: all. Distillation always runs: the others get its time.
        distill_tokens: recovery tokens of each at equal tokens; None: the study's.
        rng_seeds: each model is recovered once under each.
        learning_rate: None: tuned for each depth and recovery.
        device: default: as chosen for the search.
        trust_remote_code: run the code that the study's model brings along.

    Raises:
        SeedError: anything a user can mend.
    """
    if unknown := sorted(set(recoveries or ()) - set(RECOVERIES)):
        raise SeedError(f"--recoveries {' '.join(unknown)}: unknown. Choose from {', '.join(RECOVERIES)}.")
    study, plan, protocol = planning.open_planned(path, trust_remote_code=trust_remote_code)
    planning.quiet_libraries()
    from seed.optimize.recovered import summarize_recoveries
    from seed.reporting.findings import show_recoveries
    from seed.reporting.recoveries import write_recoveries_page
    from seed.scores import ScoreStore
    from seed.scoring.sweep import Sweep
    from seed.stages import restoring, schooling, training, workbench
    from seed.stages.gathering import gather_record

    with folder.lock(study), ScoreStore(study.scores) as store:
        candidates = restoring.choose_candidates(gather_record(study), trials)
        terminal.say(f"opening {protocol.model}")
        bench = workbench.reopen(study, protocol, device_name=device)
        sweep = Sweep(workbench.prepare_instruments(bench), store)
        settings = restoring.RestoreSettings(
            candidates=candidates,
            recoveries=tuple(dict.fromkeys((REFERENCE, *(recoveries or RECOVERIES)))),
            distill_tokens=distill_tokens or plan.distill_tokens,
            rng_seeds=tuple(sorted(set(rng_seeds))),
            rates=training.list_rates(bench) if learning_rate is None else (learning_rate,),
        )
        comparison = restoring.start_comparison(bench, settings, reference=REFERENCE)
        wanted = restoring.list_equal_tokens(settings)
        terminal.say(
            f"plan: {count_things(len(wanted), 'training')} of {planning.say_tokens(protocol, settings.distill_tokens)}, {len(settings.recoveries)} {'recovery' if len(settings.recoveries) == 1 else 'recoveries'} of "
            + ", ".join(candidate.key for candidate in candidates)
            + "; then as many again for the time that distillation took"
        )
        training.store_states(terminal, bench, sweep, settings, tokens=settings.distill_tokens)
        rates = training.tune_rates(terminal, bench, sweep, wanted, settings)
        for name in ("equal tokens", "equal time"):
            if name == "equal time":
                comparison = restoring.settle_times(bench, comparison)
                wanted = restoring.list_equal_time(settings, comparison)
            missing = training.list_missing(comparison.ledger, wanted)
            total = sum(schooling.count_steps(bench, one.tokens) for one in missing)
            if not missing:
                continue
            longest = max(settings.distill_tokens, *(one.tokens for one in missing))
            training.store_states(terminal, bench, sweep, settings, tokens=longest)
            with terminal.stage(name, total=total) as advance:
                ledger = training.train_wanted(
                    bench,
                    sweep,
                    comparison.ledger,
                    missing,
                    rates=rates,
                    keep=functools.partial(restoring.keep, bench, comparison),
                    on_step=functools.partial(advance, 1),
                    on_run=lambda run: terminal.say(
                        f"  {run.key}, {run.recovery}, random seed {run.rng_seed}: {run.tokens:,} tokens in {format_seconds(run.seconds)}"
                    ),
                )
            comparison = restoring.keep(bench, comparison, ledger)
    rows = summarize_recoveries(comparison)
    asked = {
        "trials": trials or None,
        "recoveries": recoveries,
        "distill_tokens": distill_tokens,
        "rng_seeds": rng_seeds,
        "learning_rate": learning_rate,
    }
    command = options.spell_command("seed.recoveries", asked, str(path))
    write_recoveries_page(comparison, rows, study.recoveries_page, command=command, titles=TITLES, sources=SOURCES)
    show_recoveries(terminal, comparison, rows, page=study.recoveries_page, titles=TITLES)
    return comparison, rows


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.CommandParser(
        prog="python -m seed.recoveries",
        description="Recover models of a finished search in several ways, at equal tokens and at equal time.",
        epilog="The same command again continues a stopped comparison.",
        argument_default=argparse.SUPPRESS,
    )
    options.add_study(parser)
    parser.add_argument(
        "--trials",
        type=options.whole_number,
        nargs="+",
        metavar="N",
        help="whose models, as numbered in the report (default: the frontier's best of the deepest cut)",
    )
    parser.add_argument(
        "--recoveries", nargs="+", metavar="NAME", help=f"any of {', '.join(RECOVERIES)} (default: all)"
    )
    options.add_trainings(
        parser,
        distill_tokens="of each training (default: the study's)",
        rng_seeds="each model is recovered under each (default: 0 1 2)",
        learning_rate="of training all weights; low-rank updates get four times that (default: tuned for each depth and recovery)",
    )
    options.add_trust(parser)
    return parser


def main() -> None:
    """Read the command line and compare."""
    words = options.read_words(make_parser())
    compare_recoveries(words.pop("path"), terminal=Terminal(), **words)


if __name__ == "__main__":
    run_command(main)
