"""Which way to recover is best? The same models are recovered in several ways: at equal tokens, then at equal time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs

from seed import stats
from seed.console import Advance
from seed.evidence import Ledger, RecoveredRow, RecoveryComparison, StudyRecord, TrainedRun
from seed.experiments import runner
from seed.experiments.runner import FinishedSearch
from seed.models.anatomy import count_params
from seed.optimize.analysis import is_paired, stack_losses
from seed.proxy.sweep import Sweep
from seed.records import Candidate, Estimate
from seed.recovery import RECOVERIES
from seed.reporting.document import Findings
from seed.reporting.experiment_page import tell_recoveries
from seed.reporting.wording import count_things
from seed.stages import students
from seed.stages.students import Member
from seed.stages.study_record import find_trial, gather_record

NAMES = {one.name: (one.title, one.source) for one in RECOVERIES.values()}
REFERENCE = "distillation"
AT = ("equal tokens", "equal time")
LIKE = 0.03  # times that differ by less are equal: nothing is trained again for so little
LOOKS = 8
RATE_FACTORS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that is wanted."""

    member: Member
    recovery: str
    tokens: int
    rng_seed: int


def compare_recoveries(
    search: FinishedSearch,
    *,
    trials: tuple[int, ...] = (),
    recoveries: tuple[str, ...] | None = None,
    distill_tokens: int | None = None,
    rng_seeds: tuple[int, ...] = (0, 1, 2),
    learning_rate: float | None = None,
) -> Findings:
    """Run a comparison, or what is left of it.

    Distillation always runs: the others get its time. None: the frontier's best of the deepest cut, every recovery, the
    search's own tokens, and learning rates tuned for each depth and recovery.

    Raises:
        SeedError: anything a user can mend.
    """
    candidates = choose_candidates(gather_record(search.folder), trials, search=search)
    path, protocol, rng_seeds = search.folder.recoveries, search.protocol, tuple(sorted(set(rng_seeds)))
    tokens = distill_tokens or search.plan.distill_tokens
    rates = list_rates(search) if learning_rate is None else (learning_rate,)
    settings = describe_settings(search, tokens=tokens, rng_seeds=rng_seeds, rates=rates)
    comparison = runner.read_begun(path, RecoveryComparison, settings) or RecoveryComparison(
        ledger=open_ledger(search, settings), reference=REFERENCE, equal_tokens=tokens, equal_time={}
    )
    names = tuple(dict.fromkeys((REFERENCE, *(recoveries or RECOVERIES))))
    equal = [
        Training(member=Member(candidate=candidate), recovery=name, tokens=tokens, rng_seed=rng_seed)
        for rng_seed in rng_seeds
        for candidate in candidates
        for name in names  # in turns, so that a machine's drift favours none
    ]
    search.terminal.say(
        f"plan: {count_things(len(equal), 'training')} of {protocol.describe_training(tokens)}, of "
        f"{', '.join(candidate.key for candidate in candidates)}; then as many again for the time that {REFERENCE} took"
    )
    for at in AT:
        wanted = equal
        if at == "equal time":
            comparison = runner.keep(path, structs.replace(comparison, equal_time=fit_times(comparison)))
            wanted = [replace(one, tokens=comparison.equal_time[one.member.key][one.recovery]) for one in equal]
        missing = list_missing(comparison.ledger, wanted)
        if missing:
            longest = protocol.count_steps(max(tokens, *(one.tokens for one in missing)))
            runner.store_states(search, steps=longest, rng_seeds=(protocol.rng_seed, *rng_seeds))
        with search.terminal.stage(at, total=len(missing)) as advance:
            for one in missing:
                rate = choose_rate(search, one, equal, rates=rates, advance=advance)
                run = train_one(search, one, learning_rate=rate, advance=advance)
                comparison = runner.keep(path, structs.replace(comparison, ledger=add_run(comparison.ledger, run)))
    trained = tuple(dict.fromkeys(run.recovery for run in comparison.ledger.runs))
    repeat = {"recoveries": None if set(trained) == set(RECOVERIES) else trained}
    return tell_recoveries(comparison, summarize_recoveries(comparison), names=NAMES, repeat=repeat)


def choose_candidates(record: StudyRecord, trials: Sequence[int], *, search: FinishedSearch) -> tuple[Candidate, ...]:
    """The candidates of these trials, or without any the frontier's best of the deepest cut.

    Raises:
        StudyError: there is no such trial.
    """
    if trials:
        found = [find_trial(record, number, place=search.folder.root) for number in trials]
        return tuple(dict.fromkeys(trial.evaluation.candidate for trial in found))
    best = [member.evaluation.candidate for member in record.frontier.members if member.rank == 0]
    return (max(best, key=lambda candidate: candidate.num_dropped),)


def fit_times(comparison: RecoveryComparison) -> dict[str, dict[str, int]]:
    """For each model and recovery how many tokens take as long as the reference's; settled once, since times vary."""
    found = {key: dict(known) for key, known in comparison.equal_time.items()}
    runs = [run for run in comparison.ledger.runs if run.tokens == comparison.equal_tokens]
    for key in dict.fromkeys(run.key for run in runs):
        seconds = {
            name: float(np.median([run.seconds for run in runs if (run.key, run.recovery) == (key, name)]))
            for name in dict.fromkeys(run.recovery for run in runs if run.key == key)
        }
        for name, took in seconds.items():
            ratio = seconds[comparison.reference] / took
            tokens = comparison.equal_tokens if abs(ratio - 1) < LIKE else round(ratio * comparison.equal_tokens)
            found.setdefault(key, {}).setdefault(name, tokens)
    return found


# ---- trainings and their learning rates


def describe_settings(
    search: FinishedSearch, *, tokens: int, rng_seeds: Sequence[int], rates: Sequence[float]
) -> runner.Settings:
    """What decides the numbers of trainings."""
    return {
        **runner.describe_training(search, distill_tokens=tokens, rng_seeds=rng_seeds),
        "learning_rates": ", ".join(f"{rate:g}" for rate in rates),
    }


def open_ledger(search: FinishedSearch, settings: runner.Settings) -> Ledger:
    """An empty ledger, with the dense model's losses on test text."""
    dense = runner.judge_dense(search)
    return Ledger(
        study=search.folder.name,
        model=search.protocol.model,
        settings=settings,
        dense_num_params=count_params(search.session.teacher.model),
        dense_test_sums=dense.sums.tolist(),
        test_counts=dense.counts.tolist(),
    )


def list_missing(ledger: Ledger, wanted: Sequence[Training]) -> list[Training]:
    """The wanted trainings that are not done, each once."""
    done = {(run.key, run.recovery, run.tokens, run.rng_seed) for run in ledger.runs if not run.stages}
    return [
        one for one in dict.fromkeys(wanted) if (one.member.key, one.recovery, one.tokens, one.rng_seed) not in done
    ]


def add_run(ledger: Ledger, run: TrainedRun) -> Ledger:
    """The ledger with one more run."""
    return structs.replace(ledger, runs=(*ledger.runs, run))


def train_one(
    search: FinishedSearch, wanted: Training, *, learning_rate: float, advance: Advance, sweep: Sweep | None = None
) -> TrainedRun:
    """Train a model as wanted, and judge it on test text. ``sweep``: as in ``runner.train``."""
    trained = runner.train(
        search,
        wanted.member,
        tokens=wanted.tokens,
        learning_rate=learning_rate,
        rng_seed=wanted.rng_seed,
        looks=LOOKS,
        advance=advance,
        recovery=RECOVERIES[wanted.recovery],
        sweep=sweep,
    )
    return TrainedRun(
        key=wanted.member.key,
        num_dropped=wanted.member.candidate.num_dropped,
        num_params=count_params(trained.student),
        recovery=wanted.recovery,
        tokens=wanted.tokens,
        learning_rate=learning_rate,
        rng_seed=wanted.rng_seed,
        start=trained.start,
        curve=trained.outcome.curve,
        validation_loss=students.finite(trained.outcome.best_loss),
        test_sums=students.list_sums(trained.test),
        seconds=trained.seconds,
    )


def list_rates(search: FinishedSearch) -> tuple[float, ...]:
    """Learning rates to choose from: half, once, twice and four times the search's middle one, by distillation of all weights."""
    middle = search.protocol.short_learning_rate / RECOVERIES[search.protocol.recovery].rate_factor
    return tuple(factor * middle for factor in RATE_FACTORS)


def choose_rate(
    search: FinishedSearch, one: Training, wanted: Sequence[Training], *, rates: Sequence[float], advance: Advance
) -> float:
    """The learning rate of a training: tuned on a tenth of its tokens, and remembered in the study.

    Rates are tuned for the first wanted model of a depth, and a recovery's rates are its own multiple of those given. A
    single rate is taken as it is.
    """
    recovery, depth = RECOVERIES[one.recovery], one.member.candidate.num_dropped
    own = tuple(rate * recovery.rate_factor for rate in rates)
    if len(own) == 1:
        return own[0]
    alike = [other for other in wanted if other.recovery == one.recovery]
    first = next(other for other in alike if other.member.candidate.num_dropped == depth)

    def try_rate(rate: float) -> float:
        advance(0, f"which learning rate suits {first.member.key}, {recovery.title}")
        return students.try_rate(
            search.session,
            search.sweep,
            first.member,
            rate=rate,
            distill_tokens=first.tokens,
            on_step=lambda step: None,
            recovery=recovery,
        )

    return students.choose_learning_rate(
        search.folder, first.member, rates=own, distill_tokens=first.tokens, try_it=try_rate, recovery=recovery
    )


# ---- what the numbers say


def summarize_recoveries(comparison: RecoveryComparison) -> tuple[RecoveredRow, ...]:
    """A row for each model, budget and recovery; within a model and a budget best first."""
    ledger, counts_D = comparison.ledger, np.array(comparison.ledger.test_counts)
    rows: list[RecoveredRow] = []
    for key in dict.fromkeys(run.key for run in ledger.runs):
        names = dict.fromkeys(run.recovery for run in ledger.runs if run.key == key)
        for at in AT:
            groups = {name: find_runs(comparison, key, name, at=at) for name in names}
            theirs = groups.get(comparison.reference, [])
            found = []
            for name, runs in groups.items():
                if not runs:
                    continue
                ours_RSD = stack_losses(runs)
                excess, verdict = stats.NOTHING, stats.CANNOT_TELL
                if name == comparison.reference:
                    excess, verdict = Estimate(value=0.0, low=0.0, high=0.0), stats.EQUIVALENT
                elif is_paired(runs, theirs):
                    excess, verdict = stats.judge_difference(ours_RSD, stack_losses(theirs), counts_D)
                found.append(
                    RecoveredRow(
                        key=key,
                        num_dropped=runs[0].num_dropped,
                        recovery=name,
                        at=at,
                        tokens=runs[0].tokens,
                        seconds=float(np.mean([run.seconds for run in runs])),
                        ppl_ratio=stats.estimate_ratio(ours_RSD, ledger.dense_test_sums, counts_D),
                        excess=excess,
                        verdict=verdict,
                    )
                )
            rows += sorted(found, key=lambda row: (row.ppl_ratio.value or np.inf, row.recovery))
    return tuple(rows)


def find_runs(comparison: RecoveryComparison, key: str, recovery: str, *, at: str) -> list[TrainedRun]:
    """The runs of a recovery on a model at a budget, by random seed."""
    tokens = comparison.equal_tokens
    if at == "equal time" and recovery != comparison.reference:
        tokens = comparison.equal_time.get(key, {}).get(recovery, -1)
    found = [run for run in comparison.ledger.runs if (run.key, run.recovery, run.tokens) == (key, recovery, tokens)]
    return sorted(found, key=lambda run: run.rng_seed)
