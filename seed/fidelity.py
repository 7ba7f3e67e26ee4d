"""Does the cheap score order candidates as full distillation does? python -m seed.fidelity studies/demo

Candidates of a finished study, half of them near the best of their depth, are scored at every rung and distilled in
full under two random seeds or more. Within each depth: rank correlation of each score with the final test loss, with
intervals, beside how well two finals of the same candidate agree. Everything finished is kept; run again to go on.
"""

import argparse
from pathlib import Path

from seed import folder
from seed.console import Terminal, run_command
from seed.evidence import (
    FidelityStudy,
    FidelitySummary,
)
from seed.optimize.fidelity import summarize_study
from seed.records import (
    DenseResult,
)
from seed.reporting.wording import count_things
from seed.stages import options, planning


def measure_fidelity(
    path: Path,
    *,
    terminal: Terminal,
    depths: tuple[int, ...] | None = None,
    per_depth: int = 20,
    near_margin: float = 0.03,
    short_steps: tuple[int, ...] = (10, 30),
    distill_tokens: int | None = None,
    learning_rate: float | None = None,
    rng_seeds: tuple[int, ...] = (1, 2),
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[FidelityStudy, FidelitySummary]:
    """Run a fidelity study, or what is left of it, and write its page.

    Args:
        path: the folder of a finished search.
        terminal: where progress and the result are written.
        depths: numbers of dropped layers; None: the two deepest with enough candidates.
        per_depth: candidates of each depth.
        near_margin: 0.03 counts PPL ratios up to 3 % above the depth's best as near.
        short_steps: lengths of short distillations, each a score of its own.
        distill_tokens: recovery tokens of a final; None: four times the study's.
        learning_rate: of the finals; None: as tuned in the study, or the preset's middle one.
        rng_seeds: of the finals.
        device: default: as chosen for the search.
        trust_remote_code: run the code that the study's model brings along.

    Raises:
        SeedError: anything a user can mend.
    """
    study, plan, protocol = planning.open_planned(path, trust_remote_code=trust_remote_code)
    planning.quiet_libraries()
    from seed.reporting.fidelity import write_fidelity_page
    from seed.reporting.summary import show_fidelity
    from seed.scores import ScoreStore
    from seed.scoring.sweep import Sweep
    from seed.stages import searching, trust, workbench
    from seed.stages.gathering import find_learning_rate, gather_record

    with folder.lock(study), ScoreStore(study.scores) as store:
        record = gather_record(study)
        terminal.say(f"opening {protocol.model}")
        bench = workbench.reopen(study, protocol, device_name=device)
        sweep = Sweep(workbench.prepare_instruments(bench), store)
        scored = trust.list_scored(bench, sweep, plan, record.trials)
        settings = trust.FidelitySettings(
            depths=depths or trust.choose_depths(scored, per_depth=per_depth),
            per_depth=per_depth,
            near_margin=near_margin,
            short_steps=short_steps,
            distill_tokens=distill_tokens or 4 * plan.distill_tokens,
            learning_rate=learning_rate or find_learning_rate(record.distilled) or protocol.short_learning_rate,
            rng_seeds=rng_seeds,
        )
        dense = folder.read_record(study.dense, DenseResult)
        fidelity = trust.start_study(bench, scored, settings, dense)
        total, done = trust.count_units(bench, fidelity, settings)
        terminal.say(
            f"plan: {count_things(len(fidelity.rows), 'candidate')} with {' or '.join(map(str, settings.depths))} {'layer' if settings.depths == (1,) else 'layers'} dropped; scores, and "
            f"{count_things(len(rng_seeds), 'final')} of {planning.say_tokens(protocol, settings.distill_tokens)} each; {total - done:,} of {total:,} steps to go"
        )
        if total > done:
            steps = trust.count_longest(bench, settings)
            searching.store_states(
                terminal, bench, sweep, steps=steps, rng_seeds=sorted({protocol.rng_seed, *rng_seeds})
            )
            with terminal.stage("fidelity", total=total - done) as advance:
                fidelity = trust.run_study(bench, sweep, fidelity, settings, on_step=lambda key: advance(1, key))
    summary = summarize_study(fidelity)
    asked = {
        "depths": depths,
        "per_depth": per_depth,
        "near_margin": near_margin,
        "short_steps": short_steps,
        "distill_tokens": distill_tokens,
        "learning_rate": learning_rate,
        "rng_seeds": rng_seeds,
    }
    command = options.spell_command("seed.fidelity", asked, str(path))
    write_fidelity_page(fidelity, summary, study.fidelity_page, command=command)
    show_fidelity(terminal, fidelity, summary, page=study.fidelity_page)
    return fidelity, summary


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.CommandParser(
        prog="python -m seed.fidelity",
        description="Measure whether the cheap scores order candidates as full distillation does.",
        epilog="The same command again continues a stopped study.",
        argument_default=argparse.SUPPRESS,
    )
    options.add_study(parser)
    parser.add_argument(
        "--depths",
        type=options.positive_int,
        nargs="+",
        metavar="N",
        help="numbers of dropped layers (default: the two deepest)",
    )
    parser.add_argument("--per-depth", type=options.positive_int, metavar="N", help="candidates a depth (default: 20)")
    parser.add_argument(
        "--near-margin",
        type=options.positive_float,
        metavar="X",
        help="0.03: half of them within 3 %% of the depth's best (default)",
    )
    parser.add_argument(
        "--short-steps", type=options.positive_int, nargs="+", metavar="N", help="short distillations (default: 10 30)"
    )
    options.add_trainings(
        parser,
        distill_tokens="of each final (default: four times the study's)",
        rng_seeds="of the finals (default: 1 2)",
        learning_rate="of the finals (default: the study's)",
    )
    options.add_trust(parser)
    return parser


def main() -> None:
    """Read the command line and measure."""
    words = options.read_words(make_parser())
    measure_fidelity(words.pop("path"), terminal=Terminal(), **words)


if __name__ == "__main__":
    run_command(main)
