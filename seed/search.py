"""Find the layers a model can live without: python -m seed.search --model tinyllama --trials 200

One pass, top to bottom: plan, proofs, latency, study, frontier, distillation, report. Everything finished is
in the study's folder, so the same command continues a stopped run. From Python: ``find_frontier``.
"""

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from seed import folder
from seed.console import Terminal, format_seconds, run_command
from seed.errors import ModelError, SeedError
from seed.folder import StudyFolder
from seed.optimize.sampler import SAMPLERS
from seed.optimize.space import contains, list_presets
from seed.optimize.study import open_storage, open_study
from seed.records import DenseResult, Frontier, SearchPlan, SearchSpace, StudyRecord, TrialRecord
from seed.stages import planning
from seed.stages.options import parse_bytes, parse_seconds
from seed.stages.planning import DTYPES, SearchSettings
from seed.stages.recoveries import RECOVERIES

if TYPE_CHECKING:
    from seed.evidence import StagedSearch
    from seed.scoring.sweep import Sweep
    from seed.stages.workbench import Workbench


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
    settings, preset = planning.start_from_preset(settings)
    name = folder.name_study(settings.study or planning.name_default_study(settings.model))
    planning.quiet_libraries()
    from seed.scoring.sweep import Sweep
    from seed.stages import costs, judging, latencies, searching, workbench

    study = StudyFolder(settings.studies_dir / name)
    terminal.say(f"opening {settings.model}")
    bench, preset = workbench.open_for_search(settings, preset, study=study)
    space = bench.protocol.space
    factor = settings.chosen_recovery.rate_factor
    rates = tuple(factor * rate for rate in preset.recovery.learning_rates)
    rates = (settings.learning_rate,) if settings.learning_rate else rates
    shape = costs.describe_shape(bench)
    speed = costs.time_parts(bench.anatomy, shape, costs.take_micro_batch(bench))
    plan = costs.draft_plan(settings, preset, bench.protocol, name=name, shape=shape, speed=speed)
    if study.plan.exists():
        plan = planning.continue_plan(folder.read_record(study.plan, SearchPlan), plan, place=study.root)
    cost = costs.estimate_cost(shape, bench.protocol, plan, speed, distill=settings.distill)
    for line in costs.describe_plan(bench.protocol, plan, cost):
        terminal.say(line)
    costs.require_resources(cost, root=study.root, device=bench.device)
    folder.create(study.root)
    with folder.lock(study):
        if study.plan.exists():
            terminal.say(f"continuing the study in {study.root}")
        opened = open_study(
            open_storage(plan.storage, journal=study.journal),
            name=plan.name,
            rung=bench.protocol.rung,
            fingerprint=plan.fingerprint,
        )
        folder.write_record(study.plan, plan)
        folder.write_record(study.environment, workbench.describe_environment(bench))
        with terminal.stage("proofs", total=2) as advance:
            workbench.prove(bench)
            advance(1, "cut, saved, reloaded")
            instruments = workbench.prepare_instruments(bench)
            fault = workbench.prove_closed_form(bench, instruments) if bench.gains is not None else None
            if fault and bench.protocol.rung == "closed_form":
                raise ModelError(f"{fault}. Use --rung 2 with this model.")
            advance(1, "closed form equals its student")
        if fault:
            terminal.say(f"{fault}: this study does without closed form")
            bench, instruments = dataclasses.replace(bench, gains=None), dataclasses.replace(instruments, gains=None)
            plan = msgspec.structs.replace(plan, covers_space=False)
        plan = msgspec.structs.replace(plan, trusts_closed_form=not fault)
        folder.write_record(study.plan, plan)
        depths = space.max_dropped - space.min_dropped + 1
        with terminal.stage("latency", total=depths) as advance:
            table = latencies.measure_latencies(bench, space, on_structure=lambda structure: advance(1, structure))
        table = latencies.smooth_latencies(bench, table)
        bounded = latencies.bound_space(
            bench, instruments, table, max_latency_ratio=settings.max_latency_ratio, max_memory=settings.max_memory
        )
        sweep = Sweep(instruments, study.sweep)
        records = searching.score_space(terminal, bench, sweep, opened, plan, settings, bounded, table)
        frontier = select_members(bench, settings, bounded, records)
        solver = searching.name_solver(plan, settings, bounded, frontier)
        terminal.say(
            f"scored {frontier.num_scored} of {bounded.size} candidates ({solver}); {len(frontier.members)} go on"
        )
        from seed.stages import gains

        with terminal.stage("rivals", total=len(gains.RIVALS)) as advance:
            searching.score_singles(sweep, bounded)
            gains.measure_gain(bench, sweep, bounded, records, solver=solver, on_rival=functools.partial(advance, 1))

        reference = next(iter(table.values()))
        with terminal.stage("dense", total=1) as advance:
            dense = judging.judge_dense(bench, instruments, reference)
            dense = judging.score_dense_for_user(bench, dense, settings.eval_command)
            advance(1, "")
        if settings.distill:
            distill_frontier(
                terminal, bench, sweep, plan, dense, frontier, rates=rates, eval_command=settings.eval_command
            )
        return finish(terminal, study)


def select_members(
    bench: "Workbench",
    settings: SearchSettings,
    space: SearchSpace,
    records: tuple[TrialRecord, ...],
) -> Frontier:
    """Choose what is worth distilling, and write it down."""
    from seed.optimize.frontier import select_frontier
    from seed.stages.gathering import read_losses

    found = select_frontier(
        [record for record in records if contains(space, record.evaluation.candidate)],
        rung=bench.protocol.rung,
        size=settings.frontier_size or planning.FRONTIER_SIZE,
        space_size=space.size,
        load_losses=read_losses(bench.folder),
        max_ppl_ratio=settings.max_ppl_ratio,
        max_latency_ratio=settings.max_latency_ratio,
    )
    frontier = msgspec.structs.replace(found, space=space)
    folder.write_record(bench.folder.frontier, frontier)
    return frontier


def distill_frontier(
    terminal: Terminal,
    bench: "Workbench",
    sweep: "Sweep",
    plan: SearchPlan,
    dense: DenseResult,
    frontier: Frontier,
    *,
    rates: tuple[float, ...],
    eval_command: str | None,
) -> None:
    """Distill and export every member; the learning rate is tuned on the hardest first."""
    from seed.stages import finals, searching

    members = finals.list_members(frontier.members)
    hardest = min(frontier.members, key=lambda member: (member.evaluation.size.num_params, member.rank))
    steps, rng_seeds = finals.count_steps(bench, plan.distill_tokens), finals.list_rng_seeds(bench, plan.replicas)
    searching.store_states(terminal, bench, sweep, steps=steps, rng_seeds=rng_seeds)
    rate = rates[0]
    if len(rates) > 1:
        tuned_steps = finals.count_steps(bench, plan.distill_tokens // finals.TUNING_SHARE)
        with terminal.stage("tuning", total=len(rates) * tuned_steps) as advance:
            rate = finals.choose_learning_rate(
                bench,
                sweep,
                members[frontier.members.index(hardest)],
                rates=rates,
                distill_tokens=plan.distill_tokens,
                on_step=lambda step: advance(1, "learning rate"),
            )
        terminal.say(f"learning rate {rate:g}")
    if plan.width_baseline:
        members += finals.list_baselines(bench, sweep.instruments, members)
    budget = finals.Budget(distill_tokens=plan.distill_tokens, learning_rate=rate, rng_seeds=rng_seeds)
    total = len(members) * len(rng_seeds) * finals.count_work(bench, steps)
    with terminal.stage("distill", total=total) as advance:
        results = finals.distill_members(
            bench, sweep, plan, dense, members, budget, eval_command=eval_command, on_work=advance
        )
    for result in results:
        terminal.say(
            f"  {result.key}: test PPL ratio {result.test.ppl_ratio:.4f} "
            f"(without recovery {result.test_unrecovered.ppl_ratio:.4f}), {format_seconds(result.seconds)}"
        )


def search_in_stages(settings: SearchSettings, terminal: Terminal) -> "StagedSearch":
    """Search stage by stage, and write the page of the whole."""
    planning.quiet_libraries()
    from seed.reporting.staged import show_staged, write_staged_page
    from seed.stages import relay

    staged = relay.search_in_stages(settings, terminal, search=search)
    root = relay.name_root(settings)
    write_staged_page(staged, StudyFolder(root).report)
    show_staged(terminal, staged, root=root)
    return staged


def finish(terminal: Terminal, study: StudyFolder) -> StudyRecord:
    """Write the report and print what matters."""
    from seed.reporting.summary import show_result
    from seed.stages.gathering import refresh_report

    record = refresh_report(study)
    show_result(
        terminal, record, report=study.report, models=study.models, storage=record.plan.storage or str(study.journal)
    )
    return record


def make_parser() -> argparse.ArgumentParser:
    """The command line; a setting that is not given comes from the model's preset."""
    parser = argparse.ArgumentParser(
        prog="python -m seed.search",
        description="Find the layers a language model can live without, and hand back the models worth keeping.",
        epilog="The same command again continues a stopped search.",
        argument_default=argparse.SUPPRESS,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="MODEL", help=f"{', '.join(list_presets())}; a hub id; or a directory (default: demo)"
    )
    model.add_argument("--revision", metavar="COMMIT", help="revision of a hub model")
    model.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings along")
    model.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    model.add_argument(
        "--dtype", choices=DTYPES, help="type to compute in (default: float32 on the CPU, else bfloat16)"
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="candidates scored at the objective's rung, where a sweep does not score all",
    )
    search.add_argument(
        "--sweep-budget",
        type=_seconds,
        metavar="TIME",
        help="score the whole space by closed form when that takes at most so long, such as 90s, 10m, 2h; 0: never "
        "(default: 10m)",
    )
    search.add_argument(
        "--no-screen",
        dest="screen",
        action="store_false",
        help="distill even candidates that closed form shows to be hopeless",
    )
    search.add_argument("--sampler", choices=SAMPLERS, help="when the space is larger than --trials (default: subset)")
    search.add_argument(
        "--rung", type=int, choices=(1, 2), help="objective: 1 closed-form recovery, 2 short distillation"
    )
    search.add_argument("--short-steps", type=int, metavar="N", help="steps of short distillation at rung 2")
    search.add_argument("--rng-seed", type=int, metavar="N", help="seed of all random numbers (default: 0)")
    search.add_argument(
        "--space",
        type=Path,
        metavar="FILE",
        help="a search space of your own, a TOML file like search_spaces/gpt2.toml",
    )
    search.add_argument("--min-dropped", type=int, metavar="N", help="drop at least N layers (default: 1)")
    search.add_argument("--max-dropped", type=int, metavar="N", help="drop at most N layers")
    search.add_argument(
        "--max-ppl-ratio",
        type=float,
        metavar="R",
        help="keep candidates up to this PPL ratio (by the proxy), such as 1.1",
    )
    search.add_argument(
        "--max-latency-ratio", type=float, metavar="R", help="keep candidates up to this latency ratio, such as 0.9"
    )
    search.add_argument(
        "--max-memory", type=_bytes, metavar="SIZE", help="weights and KV cache of the timed workload, such as 1.8GB"
    )
    search.add_argument(
        "--stages",
        metavar="N+M",
        help="drop N layers, recover, drop M more from what was recovered, and so on; 1+... goes on until --max-ppl-ratio or "
        "--max-latency-ratio",
    )
    search.add_argument(
        "--no-one-shot",
        dest="one_shot",
        action="store_false",
        help="with --stages, leave out the search at once that it is compared with",
    )
    search.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="go on from a model that Seed exported; its original stays the teacher",
    )
    search.add_argument("--frontier-size", type=int, metavar="N", help="models that go on to distillation (default: 6)")
    text = parser.add_argument_group(
        "text (demo, wikitext2, hub:NAME[:CONFIG], a text or JSONL file, or a directory of them)"
    )
    text.add_argument(
        "--recovery-text", metavar="SOURCE", help="trains; validation and test are split off where not given"
    )
    text.add_argument("--validation-text", metavar="SOURCE", help="decides")
    text.add_argument("--test-text", metavar="SOURCE", help="is read once at the end, for the numbers in the table")
    text.add_argument("--window-tokens", type=int, metavar="N", help="length of the perplexity windows")
    text.add_argument(
        "--calibration-tokens", type=int, metavar="N", help="recovery tokens that closed form is fitted on"
    )
    text.add_argument("--validation-tokens", type=int, metavar="N", help="validation tokens a candidate is scored on")
    text.add_argument("--test-tokens", type=int, metavar="N", help="test tokens used (default: the preset's, or all)")
    recovery = parser.add_argument_group("distillation")
    recovery.add_argument("--distill-tokens", type=int, metavar="N", help="recovery tokens for each frontier model")
    recovery.add_argument(
        "--learning-rate", type=float, metavar="R", help="do not tune the learning rate, use this one"
    )
    recovery.add_argument(
        "--replicas", type=int, metavar="N", help="distil each frontier model under N random seeds (default: 1)"
    )
    recovery.add_argument(
        "--recovery", choices=list(RECOVERIES), help="what is trained, and towards what (default: distillation)"
    )
    recovery.add_argument("--temperature", type=float, metavar="T", help="of both models' predictions (default: 1)")
    recovery.add_argument(
        "--ce-share", type=float, metavar="A", help="share of cross-entropy in the objective, 0 to 1 (default: 0)"
    )
    recovery.add_argument(
        "--lora-rank",
        type=int,
        metavar="N",
        help="train low-rank updates only (--recovery lora), for models too large to train whole (default: 16)",
    )
    recovery.add_argument(
        "--width-baseline",
        action="store_true",
        help="for each depth also distil a model of all layers, cut to the same size in width",
    )
    recovery.add_argument(
        "--freeze-prefix", action="store_true", help="leave the layers before the first dropped one as they are"
    )
    recovery.add_argument(
        "--no-distill", dest="distill", action="store_false", help="stop at the frontier by the proxy"
    )
    recovery.add_argument(
        "--eval-command", metavar="CMD", help="your own judge: gets a model's directory, prints a number"
    )
    speed = parser.add_argument_group("latency")
    speed.add_argument("--latency-batch", type=int, metavar="N", help="sequences decoded at once")
    speed.add_argument("--prompt-tokens", type=int, metavar="N", help="tokens read before decoding")
    speed.add_argument("--new-tokens", type=int, metavar="N", help="tokens decoded one by one")
    speed.add_argument("--latency-repeats", type=int, metavar="N", help="timed pairs of dense and cut model")
    speed.add_argument(
        "--compiled", action="store_true", help="time torch.compile with a static cache instead of eager decoding"
    )
    speed.add_argument(
        "--latency-command", metavar="CMD", help="your own stopwatch: gets a model's directory, prints milliseconds"
    )
    place = parser.add_argument_group("study")
    place.add_argument("--study", metavar="NAME", help="name of the study's folder (default: the model's name)")
    place.add_argument("--studies-dir", type=Path, metavar="DIR", help="where studies lie (default: ./studies)")
    place.add_argument(
        "--storage",
        metavar="URL",
        help="any Optuna storage, such as postgresql://USER@HOST/DB (default: a file in the study)",
    )
    place.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what the search would do and take, from the model's shape: no weights, no network, nothing written",
    )
    return parser


def _bytes(text: str) -> float:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 6GB, 800MB or a number of bytes") from error


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write 90s, 10m, 2h or a number of seconds"
        ) from error


def main() -> None:
    """Read the command line and search, or say what a search would take."""
    words = vars(make_parser().parse_args())
    is_dry = words.pop("dry_run", False)
    settings = SearchSettings(**words)
    if is_dry and (settings.stages or settings.start):
        raise SeedError("--dry-run: plans one search of an original model. Leave --stages and --start out.")
    if is_dry:
        rehearse(settings, Terminal())
    elif settings.stages:
        search_in_stages(settings, Terminal())
    else:
        search(settings, Terminal())


def rehearse(settings: SearchSettings, terminal: Terminal) -> None:
    """Say what the search would do and take, without weights, network or a study's folder."""
    settings, preset = planning.start_from_preset(settings)
    name = folder.name_study(settings.study or planning.name_default_study(settings.model))
    planning.quiet_libraries()
    from seed.stages import rehearsal

    rehearsal.rehearse(settings, preset, name=name, say=terminal.say)


if __name__ == "__main__":
    run_command(main)
