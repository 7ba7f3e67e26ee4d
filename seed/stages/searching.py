"""Scoring a space: all of it by closed form where that fits the budget, else what a sampler proposes; then the climb.

The order in which candidates are scored is chosen here; how one is scored is ``scoring.proxy``'s business, and what
Optuna keeps of it ``optimize.study``'s.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from optuna import Study

from seed.console import Terminal
from seed.optimize.screening import Screen
from seed.optimize.space import contains, drop_more, enumerate_candidates
from seed.optimize.study import LOSSES, read_shared_rows, read_trials, spell_rows
from seed.optimize.trials import add_trials, run_trials
from seed.plans import SearchPlan
from seed.records import Candidate, Frontier, Latency, Quality, SearchSpace, TrialRecord
from seed.reporting.readings import read_reach
from seed.reporting.wording import count_things
from seed.scoring.latency import name_structure
from seed.scoring.proxy import Proxy
from seed.scoring.sweep import Sweep
from seed.sharing import Shares
from seed.stages import latencies, recovering
from seed.stages.posts import Post
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench

BEST_NOTE = "best PPL ratios by layers dropped (without which)"
RECOVERY_SAMPLE = 16  # sets of a sweep that are scored without recovery too, to say what closed form recovers


def score_space(
    terminal: Terminal,
    bench: Workbench,
    sweep: Sweep,
    study: Study,
    plan: SearchPlan,
    settings: SearchSettings,
    space: SearchSpace,
    table: dict[str, Latency],
    *,
    post: Post,
    on_trial: Callable[[], None] = lambda: None,
) -> tuple[TrialRecord, ...]:
    """Score our share of candidates at the objective's rung until the budget is spent or the space is exhausted.

    ``on_trial`` hears of each as it is finished, whoever scored it.
    """
    rung = bench.protocol.rung
    before = [trial for trial in read_trials(study) if contains(space, trial.evaluation.candidate)]
    is_whole = plan.covers_space and rung == "closed_form"  # then a trial costs nothing beyond its share of the sweep
    target = space.size if is_whole else min(plan.trials, space.size)
    scored = [trial.evaluation.candidate for trial in before if trial.state == "COMPLETE"]

    def list_lost(trials: Iterable[TrialRecord]) -> list[Candidate]:
        """Scored candidates whose losses are not here, where all are compared; other hosts' are fetched."""
        found = [
            trial
            for trial in trials
            if trial.state == "COMPLETE" and contains(space, trial.evaluation.candidate) and post.leads
        ]

        def keep_unknown() -> None:
            found[:] = [trial for trial in found if not sweep.is_known(trial.evaluation.candidate, rung)]

        keep_unknown()
        if found:
            sweep.refresh()
            keep_unknown()
        if found and plan.storage is not None:
            for rows in read_shared_rows(study, {trial.number: trial.evaluation.candidate.key for trial in found}):
                sweep.adopt(rows)
            keep_unknown()
        return [trial.evaluation.candidate for trial in found]

    def attach_losses(candidate: Candidate) -> dict[str, str]:
        return {LOSSES: spell_rows(sweep.list_shared(candidate))}

    lost = list_lost(before)
    num_taken = len({trial.evaluation.candidate for trial in before}) if settings.screen else len(scored)
    if scored and post.leads:
        terminal.say(f"{say_were(len(scored))} scored before")
    if (len(scored) >= target or num_taken >= space.size) and not lost:
        return read_trials(study)
    screen = Screen(keep=plan.frontier_size)
    screen.learn(before)

    def latency_of(candidate: Candidate) -> Latency:
        structure = name_structure(bench.anatomy, candidate)
        if structure not in table:
            latencies.measure_when_met(bench, candidate, table)
        return table[structure]

    def judge(candidate: Candidate, quality: Quality) -> str | None:
        is_lost = candidate in lost  # a damaged line that was taken out of the sweep is made up
        if not settings.screen or is_lost:
            return None
        return screen.judge(candidate, quality, structure=name_structure(bench.anatomy, candidate))

    proxy = Proxy(
        sweep,
        rung=rung,
        short=lambda candidate: recovering.short_settings(bench, candidate),
        latency_of=latency_of,
        screen=judge,
    )
    order = list(enumerate_candidates(space)) if plan.covers_space or space.size <= plan.trials else []
    sample = order[:: math.ceil(len(order) / RECOVERY_SAMPLE)] if plan.covers_space and post.leads else []
    sweep.measure_unrecovered(sample)
    swept: dict[Candidate, Quality] = {}
    if plan.covers_space and not is_whole:
        swept = sweep_space(terminal, sweep, order, shares=post.share("sweep"))
        order = rank_candidates(swept) if space.size <= plan.trials else []
    if rung == "short_distillation":
        store_states(terminal, bench, sweep, steps=bench.protocol.short_steps)
    for candidate in lost:
        proxy.evaluate(candidate)
    skipped = failed = 0
    best = Best()
    for trial in before:
        best.learn(trial, rung=rung)
    with terminal.stage("search", total=target) as advance:
        if scored:
            advance(len(scored), BEST_NOTE, best.list_cells())

        def show(trial: TrialRecord) -> None:
            nonlocal skipped, failed
            list_lost([trial])
            screen.learn([trial])
            skipped += trial.evaluation.skipped_because is not None
            failed += trial.evaluation.explain_failure(rung) is not None
            best.learn(trial, rung=rung)
            advance(int(trial.state == "COMPLETE"), BEST_NOTE, best.list_cells())
            on_trial()

        if order and plan.storage is None:
            add_trials(
                study,
                space,
                order,
                trials=target,
                rung=rung,
                evaluate=proxy.evaluate,
                retry_skipped=not settings.screen,
                shares=post.share("search"),
                on_trial=show,
            )
        else:
            run_trials(
                study,
                space,
                trials=target,
                sampler=settings.sampler,
                rng_seed=bench.protocol.rng_seed,
                rung=rung,
                evaluate=proxy.evaluate,
                order=order,
                worker=post.worker,
                prior=(lambda candidate: swept[candidate].ppl_ratio) if swept else None,
                retry_skipped=not settings.screen,
                attach=attach_losses if plan.storage is not None else lambda candidate: {},
                on_trial=show,
            )
    records = read_trials(study)
    lost = list_lost(records)  # what others finished while we were not looking, as before the first trial
    for candidate in lost:
        proxy.evaluate(candidate)
    if skipped:
        terminal.say(f"{say_were(skipped)} not worth {rung.replace('_', ' ')} and skipped; their trials say why")
    if failed:
        terminal.say(
            f"{say_were(failed)} left without a value, since their loss is not a finite number; their trials say so"
        )
    if sample:
        terminal.say(say_recovery([sweep.known(candidate) for candidate in sample], space.size))
    return records


def say_were(count: int) -> str:
    """``1 candidate was``, ``2 candidates were``."""
    return f"{count_things(count, 'candidate')} {'was' if count == 1 else 'were'}"


def score_singles(sweep: Sweep, space: SearchSpace) -> None:
    """Score what each further layer costs alone, whether or not the space holds such sets: the report shows it."""
    singles = [drop_more(space, [layer]) for layer in space.droppable_layers]
    sweep.measure_unrecovered(singles)
    if sweep.instruments.gains is not None:
        for single in sorted(singles, key=lambda single: single.kept_layers):
            sweep.measure(single)


def name_solver(plan: SearchPlan, settings: SearchSettings, space: SearchSpace, frontier: Frontier) -> str:
    """How the scored candidates were chosen, in a few words."""
    if frontier.num_scored >= space.size or space.size <= plan.trials:
        return "enumerated"
    swept = ", a sweep of all of them as its prior" if plan.covers_space and settings.sampler == "subset" else ""
    return f"searched with {settings.sampler}{swept}"


def sweep_space(
    terminal: Terminal, sweep: Sweep, order: Sequence[Candidate], *, shares: Shares
) -> dict[Candidate, Quality]:
    """Score our share of candidates by closed form, in the order given; return the qualities of all."""
    found: dict[Candidate, Quality] = {}
    named = {candidate.key: candidate for candidate in order}
    best = Best()
    with terminal.stage("sweep", total=len(order)) as advance:

        def take(candidates: Iterable[Candidate]) -> None:
            for candidate in candidates:
                found[candidate] = sweep.measure(candidate)
                best.compare(candidate, found[candidate])
                advance(1, BEST_NOTE, best.list_cells())

        def learn() -> None:
            rows = [row for row in sweep.refresh() if row.rung == "closed_form"]
            take(named[row.key] for row in rows if row.key in named and named[row.key] not in found)

        take(candidate for candidate in order if sweep.is_known(candidate, "closed_form"))
        for piece in shares.walk(len(order), is_done=lambda piece: order[piece] in found, refresh=learn):
            sweep.measure(order[piece])
        learn()
    return found


class Best:
    """The best candidate of each depth so far, for people who watch; what is chosen, ``optimize.frontier`` decides."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, Candidate]] = {}

    def compare(self, candidate: Candidate, quality: Quality) -> None:
        """Take note of a candidate where it beats its depth."""
        depth = len(candidate.dropped_layers)
        if math.isfinite(quality.ppl_ratio) and (depth not in self._found or quality.ppl_ratio < self._found[depth][0]):
            self._found[depth] = (quality.ppl_ratio, candidate)

    def learn(self, trial: TrialRecord, *, rung: str) -> None:
        """Take note of a trial's candidate, if the trial is complete."""
        if trial.state == "COMPLETE":
            self.compare(trial.evaluation.candidate, trial.evaluation.qualities[rung])

    def list_cells(self) -> list[str]:
        """Return ``-2: 1.107 (1, 7)`` for each depth: PPL ratio without which layers."""
        return [
            f"-{depth}: {ratio:.3f} ({', '.join(candidate.dropped_parts)})"
            for depth, (ratio, candidate) in sorted(self._found.items())
        ]


def rank_candidates(qualities: dict[Candidate, Quality]) -> list[Candidate]:
    """The best of every depth, then the second best of every depth, and so on."""
    by_depth: dict[int, list[Candidate]] = defaultdict(list)

    def order(candidate: Candidate) -> tuple[float, str]:
        loss = qualities[candidate].loss
        return (math.inf if math.isnan(loss) else loss), candidate.key

    for candidate in sorted(qualities, key=order):
        by_depth[len(candidate.dropped_layers)].append(candidate)
    rank = {candidate: i for group in by_depth.values() for i, candidate in enumerate(group)}
    return sorted(qualities, key=lambda candidate: (rank[candidate], len(candidate.dropped_layers)))


def store_states(
    terminal: Terminal,
    bench: Workbench,
    sweep: Sweep,
    *,
    steps: int,
    rng_seeds: Sequence[int] | None = None,
) -> None:
    """Compute the dense model's last hidden states for distillations of so many steps, or find them computed."""
    if not recovering.uses_stored_states(bench):
        return
    seeds = [bench.protocol.rng_seed] if rng_seeds is None else rng_seeds
    total = len(recovering.list_windows(bench, steps=steps, rng_seeds=seeds))
    with terminal.stage("dense states", total=total) as advance:  # windows of text
        sweep.instruments = recovering.store_teacher_states(
            bench, sweep.instruments, steps=steps, rng_seeds=seeds, on_window=lambda count: advance(count, "")
        )
    if sweep.instruments.recall is None:
        terminal.say("  they would take too much disk: the dense model runs in every step instead")


def say_recovery(sample: Sequence[dict[str, Quality]], num_swept: int) -> str:
    """One line on how much of the loss of cutting closed form wins back."""
    shares = sorted(share for share in map(measure_recovery, sample) if share is not None)
    if not shares:
        return "what closed form recovers cannot be told: what cutting costs is within the noise of the validation text"
    return (
        f"closed form recovers {statistics.median(shares):.0%} of what cutting costs in loss "
        f"(median of {count_things(len(shares), 'set')} out of {num_swept}; {shares[0]:.0%} to {shares[-1]:.0%})"
    )


def measure_recovery(qualities: dict[str, Quality]) -> float | None:
    """Share of the loss of cutting that closed form wins back; None where cutting costs nothing that could be measured."""
    raw = qualities["none"]
    lost = math.log(raw.ppl_ratio)
    reach = read_reach(raw)
    if reach is None or lost <= reach * raw.ppl_ratio_standard_error / raw.ppl_ratio:
        return None
    return 1 - math.log(qualities["closed_form"].ppl_ratio) / lost
