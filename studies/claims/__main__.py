"""Which claims about dropping layers hold for your model? python -m studies.claims studies/demo

Goes through what was reported when Seed began, and by Shortened LLaMA, on the model of a finished search: trains what each
claim rests on under several random seeds, times what has to be timed, and gives a verdict on each with its numbers.
Everything finished is kept; run again to go on.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from msgspec import structs
from torch import nn

from seed.cli import WHOLE, device_option, option, read_command, spell_command, study_argument, trust_option
from seed.console import Advance, Terminal, run_command
from seed.errors import ModelError, StudyError
from seed.evidence import TrainedRun
from seed.experiments import recoveries, runner
from seed.experiments.recoveries import Training
from seed.experiments.runner import FinishedSearch
from seed.models.surgery import cast_weights, graft
from seed.optimize.space import drop_layers
from seed.proxy.sweep import Sweep
from seed.records import Candidate, read_dropped
from seed.recovery import RECOVERIES
from seed.reporting.document import show_findings, write_findings
from seed.sessions import Session, make_few, measure_gains_by
from seed.stages import latency_table, students
from seed.stages.students import Member
from studies.claims.page import tell_claims
from studies.claims.verdicts import Evidence, judge_claims

BUDGET = 4  # times the search's own distillations, unless told otherwise
LATENCY_BATCHES = (1, 8)
COUNTED_SETS = 2000  # past this many, layers are chosen one at a time


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A finished search, and how to train its models. ``rates``: learning rates to choose from."""

    search: FinishedSearch
    distill_tokens: int
    rng_seeds: tuple[int, ...]
    rates: tuple[float, ...]

    @property
    def session(self) -> Session:
        """Model and text."""
        return self.search.session

    @property
    def sweep(self) -> Sweep:
        """Scores."""
        return self.search.sweep

    @property
    def num_layers(self) -> int:
        """Of the dense model."""
        return self.session.anatomy.num_layers

    @property
    def path(self) -> Path:
        """Where the evidence lies."""
        return self.search.folder.root / "claims.json"

    @property
    def settings(self) -> runner.Settings:
        """What decides the numbers."""
        return recoveries.describe_settings(
            self.search, tokens=self.distill_tokens, rng_seeds=self.rng_seeds, rates=self.rates
        )


def check_claims(
    path: Path,
    *,
    terminal: Terminal,
    distill_tokens: int | None = None,
    rng_seeds: tuple[int, ...] = (0, 1, 2),
    learning_rate: float | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Evidence:
    """Gather the evidence on a finished search's model, or what is left of it, judge it, and write the page.

    Raises:
        SeedError: anything a user can mend.
    """
    with runner.open_search(path, terminal=terminal, device=device, trust_remote_code=trust_remote_code) as search:
        study = search.folder
        if search.protocol.start is not None:
            raise StudyError(
                f"{study.root}: goes on from a recovered model, and claims are about dropping layers of an original one. Give the "
                "study of a search that began with the original."
            )
        opened = Opened(
            search=search,
            distill_tokens=distill_tokens or BUDGET * search.plan.distill_tokens,
            rng_seeds=tuple(sorted(set(rng_seeds))),
            rates=recoveries.list_rates(search) if learning_rate is None else (learning_rate,),
        )
        evidence = runner.read_begun(opened.path, Evidence, opened.settings) or start_evidence(opened, terminal)
        evidence = measure_latencies(opened, evidence, terminal)
        evidence = train_missing(opened, evidence, terminal)
    asked = {"distill_tokens": distill_tokens, "rng_seeds": rng_seeds, "learning_rate": learning_rate}
    findings, page = tell_claims(evidence, judge_claims(evidence)), study.root / "claims.html"
    write_findings(findings, page, command=spell_command("studies.claims", asked, str(path)))
    show_findings(terminal, findings, page=page)
    return evidence


# ---- who plays which role


def choose_depths(num_layers: int) -> dict[str, int]:
    """How many layers go in each role: an eleventh, a sixth, a quarter and a half, as far as the model has them."""
    depths, least = {}, 1
    for role, share in (("light", 11), ("middle", 6), ("deep", 4), ("severe", 2)):
        depths[role] = min(num_layers - 1, max(least, round(num_layers / share)))
        least = depths[role] + 1
    return depths


def choose_members(opened: Opened) -> Iterable[tuple[str, Member]]:
    """Yield role and model: the best of each depth as far as scores tell, the best pairs, widths of the same sizes."""
    sweep, num_layers = opened.sweep, opened.num_layers
    best = whole = drop_layers(num_layers, [])
    cuts = {}
    for role, depth in choose_depths(num_layers).items():
        best = cuts[role] = find_best(opened, best, num_dropped=depth)
        yield role, Member(candidate=best)
    if num_layers > 2:
        pairs = list_sets(whole, num_dropped=2)
        raw = [quality.loss for quality in sweep.measure_unrecovered(pairs)]
        yield "raw pair", Member(candidate=pairs[find_lowest(raw)])
        yield "pair", Member(candidate=choose_best(sweep, pairs))
    try:
        for role in ("middle", "deep"):
            [width] = students.plan_widths(sweep.instruments, [cuts[role]])
            yield f"width {role}", Member(candidate=whole, width=width)
    except ModelError:
        pass  # verdicts on width say that this family's cannot be cut


def find_best(opened: Opened, shallower: Candidate, *, num_dropped: int) -> Candidate:
    """The best candidate of a depth: of all up to pairs, else of those that the study scored, else grown from a shallower one.

    Of any layers, as in stages: scores of a study that may not drop all of them do not count.
    """
    sweep, num_layers = opened.sweep, opened.num_layers
    if num_dropped <= 2:
        return choose_best(sweep, list_sets(drop_layers(num_layers, []), num_dropped=num_dropped))
    scored = []
    has_all = len(opened.session.protocol.space.droppable_layers) == num_layers
    for key, rows in sweep.rows.items() if has_all else ():
        dropped = read_dropped(key)
        if opened.session.recovered_proxy in rows and dropped is not None and len(dropped) == num_dropped:
            candidate = Candidate.drop(num_layers, dropped)
            scored += [candidate] if candidate.key == key else []  # a hash may be all digits
    return choose_best(sweep, scored) if scored else grow(sweep, shallower, num_dropped=num_dropped)


def list_sets(gone: Candidate, *, num_dropped: int) -> list[Candidate]:
    """Every set with so many layers gone in all, those of ``gone`` among them, in the order that shares most work."""
    more = itertools.combinations(gone.kept_layers, num_dropped - len(gone.dropped_layers))
    sets = [drop_layers(gone.num_layers, (*gone.dropped_layers, *dropped)) for dropped in more]
    return sorted(sets, key=lambda candidate: candidate.kept_layers)


def grow(sweep: Sweep, candidate: Candidate, *, num_dropped: int) -> Candidate:
    """Drop the layer that costs least until so many are gone in all."""
    while (gone := len(candidate.dropped_layers)) < num_dropped:
        candidate = choose_best(sweep, list_sets(candidate, num_dropped=gone + 1))
    return candidate


def choose_best(sweep: Sweep, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate of lowest validation loss: with closed-form recovery where the family allows it, else as it stands."""
    if sweep.instruments.gains is not None:
        losses = [sweep.measure(candidate).loss for candidate in candidates]
    else:
        losses = [quality.loss for quality in sweep.measure_unrecovered(candidates)]
    return candidates[find_lowest(losses)]


def find_lowest(losses: Sequence[float]) -> int:
    """Index of the lowest loss; those that are no number come last."""
    return min(range(len(losses)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)


# ---- evidence


def start_evidence(opened: Opened, terminal: Terminal) -> Evidence:
    """Begin: settle the roles, for later scores change nothing, and score every single removal; written down."""
    session, sweep, num_layers = opened.session, opened.sweep, opened.num_layers
    members = {}
    with terminal.stage("roles", total=8) as advance:
        for role, member in choose_members(opened):
            members[role] = member
            advance(1, role)
    dense, singles = sweep.instruments.dense_validation, list_sets(drop_layers(num_layers, []), num_dropped=1)
    proxies = ["none"] if session.gains is None else ["none", "closed-form"]
    sweep.measure_unrecovered(singles)
    if session.gains is not None:
        for single in singles:
            sweep.measure(single)
    singles.sort(key=lambda single: single.dropped_layers)
    evidence = Evidence(
        ledger=recoveries.open_ledger(opened.search, opened.settings),
        num_layers=num_layers,
        roles={role: member.key for role, member in members.items()},
        members=members,
        singles={
            proxy: {str(single.dropped_layers[0]): sweep.rows[single.key][proxy].sums for single in singles}
            for proxy in proxies
        },
        dense_validation_sums=dense.sums.tolist(),
        validation_counts=dense.counts.tolist(),
        pairs={
            role: {proxy: sweep.rows[members[role].key][proxy].sums for proxy in proxies}
            for role in ("pair", "raw pair")
            if role in members
        },
        latencies={},
    )
    return runner.keep(opened.path, evidence)


def measure_latencies(opened: Opened, evidence: Evidence, terminal: Terminal) -> Evidence:
    """Time the deep cut and the width of its size beside the dense model, by Seed's own workload, never by a command."""
    members = [evidence.members[role] for role in ("deep", "width deep") if role in evidence.members]
    with terminal.stage("latency", total=len(members) * len(LATENCY_BATCHES)) as advance:
        for member, batch in itertools.product(members, LATENCY_BATCHES):
            name = f"{member.key}, batch {batch}"
            if name not in evidence.latencies:
                protocol = structs.replace(opened.session.protocol, latency_batch=batch, latency_command=None)
                session = replace(opened.session, protocol=protocol)
                latency = (
                    latency_table.measure_latency(session, member.candidate)
                    if member.width is None
                    else students.measure_width_latency(session, opened.sweep.instruments, member.width)
                )
                evidence = structs.replace(evidence, latencies={**evidence.latencies, name: latency})
                runner.keep(opened.path, evidence)
            advance(1, name)
    return evidence


# ---- trainings


def list_wanted(opened: Opened, evidence: Evidence) -> list[Training]:
    """Every training that the claims rest on, but for staged ones; seed by seed, so that an early stop leaves whole claims."""
    roles = ("light", "middle", "deep", "pair", "raw pair", "width middle", "width deep")
    named = [(role, "distillation") for role in roles if role in evidence.members]
    named += itertools.product(("middle", "severe"), ("pretraining", "lora-pretraining"))
    wanted = [
        Training(member=evidence.members[role], recovery=recovery, tokens=opened.distill_tokens, rng_seed=rng_seed)
        for rng_seed in opened.rng_seeds
        for role, recovery in named
    ]
    return list(dict.fromkeys(wanted))


def train_missing(opened: Opened, evidence: Evidence, terminal: Terminal) -> Evidence:
    """Do the trainings that are missing, seed by seed, the staged one of each last; each is written as it comes."""
    search, protocol = opened.search, opened.search.protocol
    wanted = list_wanted(opened, evidence)
    missing = recoveries.list_missing(evidence.ledger, wanted)
    done = {run.rng_seed for run in evidence.ledger.runs if run.stages}
    cells: list[Training | int] = []  # a number: the staged training of that random seed
    for rng_seed in opened.rng_seeds:
        cells += [one for one in missing if one.rng_seed == rng_seed]
        cells += [rng_seed] if rng_seed not in done else []
    terminal.say(
        f"plan: {len(cells)} of {len(wanted) + len(opened.rng_seeds)} trainings to go, each of "
        f"{protocol.describe_training(opened.distill_tokens)}; random seeds {', '.join(map(str, opened.rng_seeds))}"
    )
    if cells:
        runner.store_states(
            search,
            steps=protocol.count_steps(opened.distill_tokens),
            rng_seeds=(protocol.rng_seed, *opened.rng_seeds),
        )
    with terminal.stage("train", total=len(cells)) as advance:
        for cell in cells:
            if isinstance(cell, Training):
                rate = recoveries.choose_rate(search, cell, wanted, rates=opened.rates, advance=advance)
                run = recoveries.train_one(search, cell, learning_rate=rate, advance=advance)
            else:
                run = train_in_stages(opened, evidence, wanted, rng_seed=cell, advance=advance)
            ledger = recoveries.add_run(evidence.ledger, run)
            evidence = runner.keep(opened.path, structs.replace(evidence, ledger=ledger))
    return evidence


def train_in_stages(
    opened: Opened, evidence: Evidence, wanted: Sequence[Training], *, rng_seed: int, advance: Advance
) -> TrainedRun:
    """Reach the deep cut by way of the middle one, half of the tokens in each stage, at the rates of each depth at once."""
    search, tokens = opened.search, opened.distill_tokens
    first, deep = (
        Training(member=evidence.members[role], recovery="distillation", tokens=tokens, rng_seed=rng_seed)
        for role in ("middle", "deep")
    )
    first_rate, deep_rate = (
        recoveries.choose_rate(search, one, wanted, rates=opened.rates, advance=advance) for one in (first, deep)
    )
    half = max(1, search.protocol.count_steps(tokens) // 2) * search.protocol.step_tokens  # whole steps

    def tell(amount: float, note: str, cells: Sequence[str] = ()) -> None:
        advance(amount / 2, f"{note}, in stages", cells)

    middle = runner.train(
        search,
        first.member,
        tokens=half,
        learning_rate=first_rate,
        rng_seed=rng_seed,
        looks=recoveries.LOOKS,
        recovery=RECOVERIES["distillation"],
        advance=tell,
    )
    stage = enter_stage(opened, first.member.candidate, middle.student)
    best = choose_next(stage, first.member.candidate, num_dropped=len(deep.member.candidate.dropped_layers))
    last = replace(deep, member=Member(candidate=best), tokens=tokens - half)
    run = recoveries.train_one(search, last, learning_rate=deep_rate, advance=tell, sweep=stage)
    return structs.replace(run, tokens=tokens, stages=(first.member.key,))


def enter_stage(opened: Opened, candidate: Candidate, recovered: nn.Module) -> Sweep:
    """A sweep whose candidates are cut from the recovered model of ``candidate``, as it would be exported.

    The original stays the teacher and the base of every ratio. Scores are held in memory: they are of other weights.
    """
    exported = cast_weights(recovered, opened.session.teacher.stored_dtype)
    anatomy, instruments = opened.session.anatomy, opened.sweep.instruments
    gains = instruments.gains and measure_gains_by(anatomy, make_few(anatomy), False)  # of whole layers: some are gone
    return Sweep(replace(instruments, grafted=graft(anatomy, exported, candidate), gains=gains, by_sublayers=False))


def choose_next(stage: Sweep, gone: Candidate, *, num_dropped: int) -> Candidate:
    """The best set with so many layers gone in all by the stage's scores: of all of them, or one more layer at a time."""
    num_sets = math.comb(len(gone.kept_layers), num_dropped - len(gone.dropped_layers))
    if num_sets > COUNTED_SETS:
        return grow(stage, gone, num_dropped=num_dropped)
    return choose_best(stage, list_sets(gone, num_dropped=num_dropped))


@dataclass(frozen=True, kw_only=True)
class ClaimsCommand:
    """Test what was reported about dropping layers on the model of a finished search.

    The same command again continues a stopped run.
    """

    study: Path = study_argument()
    distill_tokens: int | None = option(f"recovery tokens of every training (default: {BUDGET} times the study's)")
    rng_seeds: tuple[int, ...] = option(
        "every model is trained under each (default: 0 1 2)", (0, 1, 2), kind=WHOLE, many=True
    )
    learning_rate: float | None = option(
        "of training all weights, low-rank updates get four times that (default: tuned for each depth and recovery)"
    )
    device: str | None = device_option()
    trust_remote_code: bool = trust_option()


def main() -> None:
    """Read the command line and check."""
    words = asdict(read_command(ClaimsCommand))
    check_claims(words.pop("study"), terminal=Terminal(), **words)


if __name__ == "__main__":
    run_command(main)
