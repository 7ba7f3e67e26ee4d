"""Evidence for claims about dropping layers, on the model of a finished search: who plays which role, trainings, scores, times.

Which claims there are, and what the evidence says to each, is ``optimize.claims``' business. Everything finished is
written as it comes; a stopped run goes on.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from seed import folder
from seed.errors import ModelError
from seed.evidence import ClaimsEvidence, Ledger, RoleMember, TrainedRun
from seed.optimize.space import drop_layers
from seed.records import Candidate, Latency, read_dropped
from seed.scoring.sweep import Sweep
from seed.stages import latencies, narrowing, planning, schooling, staging, training
from seed.stages.schooling import Member
from seed.stages.training import TrainingSettings, Wanted
from seed.stages.workbench import Workbench

LATENCY_BATCHES = (1, 8)
RECOVERY_CLAIM = ("pretraining", "lora-pretraining")


@dataclass(frozen=True, kw_only=True)
class Depths:
    """How many layers go in each role: an eleventh, a sixth, a quarter and a half, as far as the model has them."""

    light: int
    middle: int
    deep: int
    severe: int


def choose_depths(num_layers: int) -> Depths:
    """The depths of a model; 22 layers: 2, 4, 6, 11; 12 layers: 1, 2, 3, 6."""
    most = num_layers - 1
    light = max(1, round(num_layers / 11))
    middle = min(most, max(light + 1, round(num_layers / 6)))
    deep = min(most, max(middle + 1, round(num_layers / 4)))
    return Depths(light=light, middle=middle, deep=deep, severe=min(most, max(deep + 1, round(num_layers / 2))))


def choose_members(bench: Workbench, sweep: Sweep, *, on_scored: Callable[[str], None]) -> dict[str, Member]:
    """Who plays which role: the best of each depth as far as scores tell, the best pairs, widths of the same sizes."""
    depths = choose_depths(bench.anatomy.num_layers)
    members: dict[str, Member] = {}
    best: Candidate | None = None
    for role in ("light", "middle", "deep", "severe"):
        best = find_best(bench, sweep, getattr(depths, role), at_least=best)
        members[role] = Member(candidate=best)
        on_scored(role)
    if depths.severe > 1:
        pairs = list_shallow(bench.anatomy.num_layers, 2)
        raw = [quality.loss for quality in sweep.measure_unrecovered(pairs)]
        members["raw pair"] = Member(candidate=pairs[staging.find_lowest(raw)])
        members["pair"] = Member(candidate=staging.choose_best(sweep, pairs))
    on_scored("pairs")
    try:
        for role in ("middle", "deep"):
            [width] = narrowing.plan_widths(sweep.instruments, [members[role].candidate])
            whole = drop_layers(bench.anatomy.num_layers, [])
            members[f"width {role}"] = Member(candidate=whole, width=width)
    except ModelError:
        pass  # verdicts on width say that this family's cannot be cut
    return members


def find_best(bench: Workbench, sweep: Sweep, depth: int, *, at_least: Candidate | None) -> Candidate:
    """The best candidate of a depth: of all up to pairs, else of those that the study scored, else one grown from a shallower one."""
    num_layers, rung = bench.anatomy.num_layers, bench.recovered_rung
    known = list_shallow(num_layers, depth) or [
        candidate for candidate in list_scored(sweep, num_layers, rung=rung) if len(candidate.dropped_layers) == depth
    ]
    if known:
        return staging.choose_best(sweep, known)
    return staging.grow(sweep, at_least or drop_layers(num_layers, []), num_dropped=depth, layers=range(num_layers))


def list_shallow(num_layers: int, depth: int) -> list[Candidate]:
    """Every candidate of a depth, in the order that shares most work; none past pairs, which are scored here in any case."""
    if depth > 2:
        return []
    sets = [drop_layers(num_layers, dropped) for dropped in itertools.combinations(range(num_layers), depth)]
    return sorted(sets, key=lambda candidate: candidate.kept_layers)


def list_scored(sweep: Sweep, num_layers: int, *, rung: str) -> list[Candidate]:
    """Candidates that the sweep knows at a rung."""
    found = []
    for key, rows in sweep.rows.items():
        dropped = read_dropped(key)
        if rung in rows and dropped is not None:
            candidate = drop_layers(num_layers, dropped)
            if candidate.key == key:  # a hash may be all digits
                found.append(candidate)
    return found


def list_wanted(members: dict[str, Member], settings: TrainingSettings) -> list[Wanted]:
    """Every training that the claims rest on, but for staged ones; seed by seed, so that an early stop leaves whole claims."""
    roles: list[str] = [
        role
        for role in ("light", "middle", "deep", "pair", "raw pair", "width middle", "width deep")
        if role in members
    ]
    named = [(role, "distillation") for role in roles]
    named += [(role, recovery) for role in ("middle", "severe") for recovery in RECOVERY_CLAIM]
    wanted = [
        Wanted(member=members[role], recovery=recovery, tokens=settings.distill_tokens, rng_seed=rng_seed)
        for rng_seed in settings.rng_seeds
        for role, recovery in named
    ]
    return list(dict.fromkeys(wanted))


def read_evidence(bench: Workbench, settings: TrainingSettings) -> ClaimsEvidence | None:
    """Read back what was begun, if anything was.

    Raises:
        StudyError: it was begun with other settings.
    """
    path = bench.folder.claims
    if not path.exists():
        return None
    known = folder.read_record(path, ClaimsEvidence)
    planning.require_same_settings(known.ledger.settings, training.describe_settings(bench, settings), place=path)
    return known


def recall_members(evidence: ClaimsEvidence) -> dict[str, Member]:
    """Who plays which role, as it was settled when the evidence was begun: later scores change nothing."""
    return {role: Member(candidate=one.candidate, width=one.width) for role, one in evidence.members.items()}


def start_evidence(
    bench: Workbench, sweep: Sweep, members: dict[str, Member], settings: TrainingSettings
) -> ClaimsEvidence:
    """Begin: settle the roles, and score every single removal; written down."""
    described = training.describe_settings(bench, settings)
    num_layers, dense = bench.anatomy.num_layers, sweep.instruments.dense_validation
    singles = [drop_layers(num_layers, [layer]) for layer in range(num_layers)]
    rungs = ["none"] if bench.gains is None else ["none", "closed_form"]
    sweep.measure_unrecovered(singles)
    if bench.gains is not None:
        for single in singles:
            sweep.measure(single)
    evidence = ClaimsEvidence(
        ledger=training.open_ledger(bench, described),
        num_layers=num_layers,
        roles={role: member.key for role, member in members.items()},
        members={role: RoleMember(candidate=member.candidate, width=member.width) for role, member in members.items()},
        singles={
            rung: {str(single.dropped_layers[0]): read_sums(sweep, single, rung) for single in singles}
            for rung in rungs
        },
        dense_validation_sums=dense.sums.tolist(),
        validation_counts=dense.counts.tolist(),
        pairs={
            role: {rung: read_sums(sweep, members[role].candidate, rung) for rung in rungs}
            for role in ("pair", "raw pair")
            if role in members
        },
        latencies={},
    )
    return keep(bench, evidence)


def read_sums(sweep: Sweep, candidate: Candidate, rung: str) -> list[float | None]:
    """Summed validation losses by document; None where a score is no number."""
    return sweep.rows[candidate.key][rung].sums


def measure_latencies(
    bench: Workbench,
    sweep: Sweep,
    evidence: ClaimsEvidence,
    members: dict[str, Member],
    *,
    on_timed: Callable[[str], None],
) -> ClaimsEvidence:
    """Time the deep cut and the width of its size beside the dense model, at batch 1 and 8."""
    found: dict[str, Latency] = dict(evidence.latencies)
    for role in ("deep", "width deep"):
        for batch in LATENCY_BATCHES:
            if role not in members:
                continue
            member = members[role]
            name = f"{member.key}, batch {batch}"
            if name not in found:
                there = replace(bench, protocol=msgspec.structs.replace(bench.protocol, latency_batch=batch))
                found[name] = (
                    latencies.measure_latency(there, member.candidate)
                    if member.width is None
                    else narrowing.measure_width_latency(there, sweep.instruments, member.width)
                )
                evidence = keep(bench, msgspec.structs.replace(evidence, latencies=dict(found)))
            on_timed(name)
    return evidence


def keep(bench: Workbench, evidence: ClaimsEvidence, *, ledger: Ledger | None = None) -> ClaimsEvidence:
    """Write the evidence down."""
    evidence = msgspec.structs.replace(evidence, ledger=ledger or evidence.ledger)
    folder.write_record(bench.folder.claims, evidence)
    return evidence


def train_alike(
    bench: Workbench,
    sweep: Sweep,
    evidence: ClaimsEvidence,
    members: dict[str, Member],
    settings: TrainingSettings,
    *,
    rng_seed: int,
    rates: dict[tuple[str, str], float],
    on_step: Callable[[str], None],
    on_run: Callable[[TrainedRun], None] = lambda run: None,
) -> ClaimsEvidence:
    """Do the trainings of one random seed that are missing, the staged one last."""
    ledger = training.train_wanted(
        bench,
        sweep,
        evidence.ledger,
        [one for one in list_wanted(members, settings) if one.rng_seed == rng_seed],
        rates=rates,
        keep=lambda ledger: keep(bench, evidence, ledger=ledger),
        on_step=on_step,
        on_run=on_run,
    )
    if rng_seed in list_staged(evidence, settings):
        run = train_in_stages(bench, sweep, members, settings, rng_seed=rng_seed, rates=rates, on_step=on_step)
        ledger = training.add_run(ledger, run)
        on_run(run)
    return keep(bench, evidence, ledger=ledger)


def train_in_stages(
    bench: Workbench,
    sweep: Sweep,
    members: dict[str, Member],
    settings: TrainingSettings,
    *,
    rng_seed: int,
    rates: dict[tuple[str, str], float],
    on_step: Callable[[str], None],
) -> TrainedRun:
    """Reach the deep cut by way of the middle one, half of the tokens in each stage."""
    first, deep = members["middle"], len(members["deep"].candidate.dropped_layers)
    batch_tokens = bench.batch_windows * bench.protocol.window_tokens
    half = max(1, schooling.count_steps(bench, settings.distill_tokens) // 2) * batch_tokens  # whole steps
    _, trained = training.train_one(
        bench,
        sweep,
        Wanted(member=first, recovery="distillation", tokens=half, rng_seed=rng_seed),
        learning_rate=rates[first.key, "distillation"],
        on_step=lambda: on_step(f"{first.key}, first stage"),
    )
    stage = staging.enter_stage(bench, sweep, first.candidate, trained.student)
    best = staging.choose_next(stage, bench.protocol.space, first.candidate, num_dropped=deep)
    further = Wanted(
        member=Member(candidate=best),
        recovery="distillation",
        tokens=settings.distill_tokens,
        rng_seed=rng_seed,
        stages=(first.key,),
    )
    run, _ = training.train_one(
        bench,
        stage,
        further,
        learning_rate=rates[members["deep"].key, "distillation"],  # as at once: the same depth
        spent_tokens=half,
        on_step=lambda: on_step(f"{best.key}, second stage"),
    )
    return run


def list_staged(evidence: ClaimsEvidence, settings: TrainingSettings) -> list[int]:
    """Random seeds whose staged training is still to be done."""
    done = {run.rng_seed for run in evidence.ledger.runs if run.stages}
    return [rng_seed for rng_seed in settings.rng_seeds if rng_seed not in done]
