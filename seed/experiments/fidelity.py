"""Does the cheap score order candidates as full distillation does? Candidates are scored by every proxy, and distilled.

Everything is counted within a depth (a number of dropped layers) and never pooled over depths: that a model without
four layers is worse than one without two every score knows, and pooling would credit it for that.

Shapes: C candidates of a depth, S random seeds of the finals, B bootstrap draws, of which the first is the study itself.
"""

import functools
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from msgspec import structs

from seed import stats, study_dir
from seed.errors import StudyError
from seed.evidence import (
    DepthFidelity,
    FidelityRow,
    FidelityStudy,
    FidelitySummary,
    FinalScore,
    ProxyDifference,
    ProxyFidelity,
)
from seed.experiments import runner
from seed.experiments.runner import FinishedSearch
from seed.optimize.space import contains, enumerate_candidates
from seed.proxy.proxy import distill_shortly
from seed.records import Candidate, DenseResult, TrialRecord
from seed.reporting.document import Findings
from seed.reporting.experiment_page import tell_fidelity
from seed.reporting.wording import count_things
from seed.stages import budgets, students
from seed.stages.students import Member
from seed.stages.study_record import find_learning_rate, gather_record

DOUBLED = 2  # finals that are run again with twice the budget, to see whether it has plateaued
DOUBLING = "doubling_the_budget"
FULL_DISTILLATION = "full-distillation"  # beside the proxies: one final judged by another
BOOTSTRAP_DRAWS = 2000


def measure_fidelity(
    search: FinishedSearch,
    *,
    depths: tuple[int, ...] | None = None,
    per_depth: int = 20,
    near_margin: float = 0.03,
    short_steps: tuple[int, ...] = (10, 30),
    distill_tokens: int | None = None,
    learning_rate: float | None = None,
    rng_seeds: tuple[int, ...] = (1, 2),
) -> Findings:
    """Run a fidelity study, or what is left of it.

    None: the two deepest depths with enough candidates, four times the search's tokens, its own learning rate.

    Raises:
        SeedError: anything a user can mend.
    """
    record, protocol, path = gather_record(search.folder), search.protocol, search.folder.fidelity
    scored = list_scored(search, record.trials)
    asked: tuple[float, ...] = depths or choose_depths(scored, per_depth=per_depth)
    wanted = tuple(dict.fromkeys(asked))
    short_steps, rng_seeds = tuple(dict.fromkeys(short_steps)), tuple(dict.fromkeys(rng_seeds))
    tokens = distill_tokens or 4 * search.plan.distill_tokens
    rate = learning_rate or find_learning_rate(record.distilled) or protocol.short_learning_rate
    settings = {
        **runner.describe_training(search, distill_tokens=tokens, rng_seeds=rng_seeds),
        "learning_rate": rate,
        "depths": ", ".join(map("{:g}".format, wanted)),
        "candidates_per_depth": per_depth,
        "near_margin": near_margin,
        "short_steps": ", ".join(map(str, short_steps)),
        "short_rng_seed": protocol.rng_seed,
    }
    study = runner.read_begun(path, FidelityStudy, settings)
    if study is None:
        chosen = choose_candidates(scored, depths=wanted, per_depth=per_depth, near_margin=near_margin)
        study = start_study(search, chosen, settings, near_margin=near_margin)
    search.terminal.say(
        f"plan: {count_things(len(study.rows), 'candidate')}, {settings['depths']} layers dropped; scores, and "
        f"{count_things(len(rng_seeds), 'final')} of {protocol.describe_training(tokens)} each"
    )
    shorts = [
        (row.candidate, steps) for row in study.rows for steps in short_steps if name_short(steps) not in row.losses
    ]
    finals = [
        (row.candidate, rng_seed)
        for row in study.rows
        for rng_seed in rng_seeds
        if all(final.rng_seed != rng_seed for final in row.finals)
    ]
    is_doubled = DOUBLING in study.settings
    if shorts or finals or not is_doubled:
        longest = max(protocol.count_steps(2 * tokens), *short_steps)
        runner.store_states(search, steps=longest, rng_seeds=(protocol.rng_seed, *rng_seeds))
    study = score_shortly(search, study, shorts, path=path)
    train = functools.partial(runner.train, search, learning_rate=rate)
    study = distill_candidates(search, study, finals, functools.partial(train, tokens=tokens), path=path)
    if not is_doubled:
        twice = functools.partial(train, tokens=2 * tokens, rng_seed=rng_seeds[0])
        told = double_budget(search, study, wanted[-DOUBLED:], twice, rng_seed=rng_seeds[0])
        study = runner.keep(path, structs.replace(study, settings=study.settings | {DOUBLING: told}))
    return tell_fidelity(study, summarize_fidelity(study))


# ---- whom to ask


def list_scored(search: FinishedSearch, trials: Sequence[TrialRecord]) -> list[tuple[Candidate, float]]:
    """Candidates that the search scored by closed form, or where the family has none at its own proxy, with their losses."""
    space, candidates = search.protocol.space, [trial.evaluation.candidate for trial in trials]
    if search.plan.covers_space:
        candidates += enumerate_candidates(space)
    proxy = "closed-form" if search.session.gains is not None else search.protocol.proxy
    known = {one: search.sweep.known(one).get(proxy) for one in dict.fromkeys(candidates) if contains(space, one)}
    return [
        (one, quality.loss) for one, quality in known.items() if quality is not None and math.isfinite(quality.loss)
    ]


def choose_depths(scored: Sequence[tuple[Candidate, float]], *, per_depth: int) -> tuple[float, ...]:
    """The two deepest cuts of which enough candidates are scored; else the two with most."""
    counts = Counter(candidate.num_dropped for candidate, _ in scored)
    enough = sorted(depth for depth, count in counts.items() if count >= per_depth)
    if len(enough) < 2:
        enough = sorted(sorted(counts, key=lambda depth: counts[depth])[-2:])
    return tuple(enough[-2:])


def choose_candidates(
    scored: Sequence[tuple[Candidate, float]], *, depths: Iterable[float], per_depth: int, near_margin: float
) -> list[tuple[Candidate, bool]]:
    """Candidates and whether each is near its depth's best: half near, half spread over the rest; by depth, then by loss.

    Near the best an order is hard and matters; over the rest it is easy, and tells whether a score sees disasters.
    Both halves are spread evenly by rank, from their first (so the best is always in) to their last (so the worst is
    in). A half that is short of candidates is filled up from the other.

    Raises:
        StudyError: a depth has no candidate.
    """
    chosen = []
    for depth in sorted(set(depths)):
        ranked = sorted((loss, one.key, one) for one, loss in scored if one.num_dropped == depth)
        if not ranked:
            found = ", ".join(map(str, sorted({one.num_dropped for one, _ in scored}))) or "none"
            raise StudyError(
                f"no candidate with {count_things(depth, 'layer')} dropped was scored; there are: {found}. Use these."
            )
        num_near = sum(math.exp(loss - ranked[0][0]) <= 1 + near_margin for loss, *_ in ranked)
        num_rest = len(ranked) - num_near
        wanted = min(per_depth, len(ranked))
        take_rest = min(num_rest, max(wanted // 2, wanted - num_near))
        ranks = spread_ranks(num_near, count=wanted - take_rest)
        if take_rest == 1:
            ranks.append(len(ranked) - 1)  # the worst says more than the one just outside the margin
        else:
            ranks += [num_near + rank for rank in spread_ranks(num_rest, count=take_rest)]
        chosen += [(ranked[rank][2], rank < num_near) for rank in ranks]
    return chosen


def spread_ranks(total: int, *, count: int) -> list[int]:
    """Return ``count`` different ranks below ``total``, evenly spread from the first to the last; one is the first."""
    if count <= 1:
        return [0][:count]
    return [step * (total - 1) // (count - 1) for step in range(count)]


# ---- scores and finals


def start_study(
    search: FinishedSearch,
    chosen: Sequence[tuple[Candidate, bool]],
    settings: runner.Settings,
    *,
    near_margin: float,
) -> FidelityStudy:
    """The chosen candidates with the scores that need no training, in an order that an early stop leaves fair."""
    dense = study_dir.read_record(search.folder.dense, DenseResult)
    sweep = search.sweep
    sweep.measure_unrecovered([candidate for candidate, _ in chosen])
    proxies = ["none"]
    if search.session.gains is not None:
        proxies.append("closed-form")
        for candidate, _ in chosen:
            sweep.measure(candidate)
    known = {candidate: sweep.known(candidate) for candidate, _ in chosen}
    rows = [
        FidelityRow(
            candidate=candidate,
            near_best=near,
            losses={proxy: known[candidate][proxy].loss for proxy in proxies},
            seconds={proxy: sweep.rows[candidate.key][proxy].seconds or 0.0 for proxy in proxies},
            finals=(),
        )
        for candidate, near in chosen
    ]
    random.Random(0).shuffle(rows)
    return FidelityStudy(
        study=search.folder.name,
        model=search.protocol.model,
        dense_validation_loss=dense.validation.loss,
        dense_test_loss=dense.judged.loss,
        near_margin=near_margin,
        settings=settings,
        rows=tuple(rows),
    )


def score_shortly(
    search: FinishedSearch, study: FidelityStudy, shorts: Sequence[tuple[Candidate, int]], *, path: Path
) -> FidelityStudy:
    """Score candidates by as many steps of distillation, as a search would."""
    rows, rate = {row.candidate: row for row in study.rows}, search.protocol.short_learning_rate
    with search.terminal.stage("scores", total=len(shorts)) as advance:
        for candidate, steps in shorts:
            search.sweep.measure_unrecovered([candidate])  # it starts from the better start, which it must know
            if search.session.gains is not None:
                search.sweep.measure(candidate)
            began, name, row = time.perf_counter(), name_short(steps), rows[candidate]
            settings = budgets.distill_settings(search.session, candidate, steps=steps, learning_rate=rate, looks=1)
            loss = distill_shortly(search.sweep, candidate, settings).loss
            seconds = row.seconds | {name: time.perf_counter() - began}
            rows[candidate] = structs.replace(row, losses=row.losses | {name: loss}, seconds=seconds)
            advance(1, candidate.key)
            study = runner.keep(path, structs.replace(study, rows=tuple(rows.values())))
    return study


def name_short(steps: int) -> str:
    """The proxy of a short distillation of so many steps."""
    return f"short-distillation-{steps}"


def distill_candidates(
    search: FinishedSearch,
    study: FidelityStudy,
    finals: Sequence[tuple[Candidate, int]],
    train: Callable[..., students.Trained],
    *,
    path: Path,
) -> FidelityStudy:
    """Distill candidates in full, each under a random seed."""
    rows = {row.candidate: row for row in study.rows}
    with search.terminal.stage("finals", total=len(finals)) as advance:
        for candidate, rng_seed in finals:
            trained = train(Member(candidate=candidate), rng_seed=rng_seed, advance=advance)
            final = FinalScore(
                rng_seed=rng_seed,
                validation_loss=trained.outcome.best_loss,
                test_loss=trained.test.loss,
                best_step=trained.outcome.best_step,
                seconds=trained.whole_seconds,
            )
            rows[candidate] = structs.replace(rows[candidate], finals=(*rows[candidate].finals, final))
            study = runner.keep(path, structs.replace(study, rows=tuple(rows.values())))
    return study


def double_budget(
    search: FinishedSearch,
    study: FidelityStudy,
    depths: Sequence[float],
    train: Callable[..., students.Trained],
    *,
    rng_seed: int,
) -> str:
    """Say what twice the budget makes of the best candidates: what is left of it says how far from a plateau it is."""
    losses = {
        row.candidate: final.test_loss for row in study.rows for final in row.finals if final.rng_seed == rng_seed
    }
    told = []
    with search.terminal.stage("twice the budget", total=len(depths)) as advance:
        for depth in depths:
            best = min((one for one in losses if one.num_dropped == depth), key=lambda one: losses[one])
            trained = train(Member(candidate=best), advance=advance)
            once, twice = (math.exp(loss - study.dense_test_loss) for loss in (losses[best], trained.test.loss))
            told.append(f"{best.key}: test PPL ratio {once:.4f} to {twice:.4f}")
    return "; ".join(told)


# ---- what the numbers say


def summarize_fidelity(study: FidelityStudy) -> FidelitySummary:
    """The statistics of every depth that has at least one complete row, least dropped first.

    Proxies are compared on the same candidates, so rows that lack a proxy or a final of another row of their depth are
    left out, and counted.

    The noise ceiling is what one final says about another. It is where a score can be expected to end, not a bound:
    a score without noise of its own may agree with a noisy final better than a second noisy final does. Its regret is
    judged by single finals, the proxies' by the mean over finals, which is steadier.

    Regret has no interval: the bootstrap fails for extremes such as the best of a depth.
    """
    ordered, depths = sorted(study.rows, key=lambda row: row.candidate.sublayers.dropped_layers), []
    for depth in sorted({row.candidate.num_dropped for row in ordered}):
        rows = [row for row in ordered if row.candidate.num_dropped == depth]
        proxies = {proxy for row in rows for proxy in row.losses}
        rng_seeds = {final.rng_seed for row in rows for final in row.finals}
        complete = [
            row
            for row in rows
            if rng_seeds and row.losses.keys() == proxies and {final.rng_seed for final in row.finals} == rng_seeds
        ]
        if complete:
            depths.append(summarize_depth(complete, study, num_left_out=len(rows) - len(complete)))
    return FidelitySummary(bootstrap_draws=BOOTSTRAP_DRAWS, depths=tuple(depths))


def summarize_depth(rows: Sequence[FidelityRow], study: FidelityStudy, *, num_left_out: int) -> DepthFidelity:
    """The statistics of complete rows of one depth."""
    losses = {proxy: np.array([row.losses[proxy] for row in rows]) for proxy in rows[0].losses}
    finals_SC = np.array(
        [[final.test_loss for final in sorted(row.finals, key=lambda final: final.rng_seed)] for row in rows]
    ).T
    near_C = np.array([row.near_best for row in rows])
    # near ones and the others are resampled apart, as they were chosen
    counts_BC = np.vstack([np.ones(len(rows)), stats.draw_counts(near_C, draws=BOOTSTRAP_DRAWS)])
    # Mean of tau over the seeds' finals, not tau with their mean: one noisy final each, as in the ceiling.
    pairs = {proxy: [(losses_C, final_C) for final_C in finals_SC] for proxy, losses_C in losses.items()}
    pairs[FULL_DISTILLATION] = list(itertools.combinations(finals_SC, 2))
    taus = {proxy: stats.average_tau(found, counts_BC) for proxy, found in pairs.items()}
    near_taus = {proxy: stats.average_tau(found, counts_BC * near_C) for proxy, found in pairs.items()}

    def describe(proxy: str, *, regret: float | None, validation_C: np.ndarray, seconds: list[float]) -> ProxyFidelity:
        return ProxyFidelity(
            proxy=proxy,
            tau=stats.put_interval(taus[proxy], num_candidates=len(rows)),
            near_tau=stats.put_interval(near_taus[proxy], num_candidates=int(near_C.sum())),
            top1_regret=regret,
            recovery=take_median_recovery(losses.get("none"), validation_C, dense=study.dense_validation_loss),
            seconds=float(np.median(seconds)) if seconds else None,
        )

    regrets = [measure_regret(one_C, judged_C=by_C) for one_C, by_C in itertools.permutations(finals_SC, 2)]
    return DepthFidelity(
        num_dropped=rows[0].candidate.num_dropped,
        num_candidates=len(rows),
        num_near=int(near_C.sum()),
        num_left_out=num_left_out,
        num_rng_seeds=len(finals_SC),
        proxies=tuple(
            describe(
                proxy,
                regret=measure_regret(losses_C, judged_C=finals_SC.mean(axis=0)),
                validation_C=losses_C,
                seconds=[row.seconds[proxy] for row in rows if proxy in row.seconds],
            )
            for proxy, losses_C in losses.items()
        ),
        ceiling=describe(
            FULL_DISTILLATION,
            regret=float(np.mean(regrets)) if regrets else None,
            validation_C=np.array([np.mean([final.validation_loss for final in row.finals]) for row in rows]),
            seconds=[final.seconds for row in rows for final in row.finals],
        ),
        differences=tuple(
            ProxyDifference(
                num_dropped=rows[0].candidate.num_dropped,
                one=one,
                other=other,
                tau=stats.put_interval(taus[one] - taus[other], num_candidates=len(rows)),
            )
            for one, other in itertools.combinations(losses, 2)
        ),
    )


def measure_regret(losses_C: np.ndarray, *, judged_C: np.ndarray) -> float:
    """How much higher the PPL of a score's first choice is after distillation than that of the best."""
    return math.exp(float(judged_C[np.argmin(losses_C)] - judged_C.min())) - 1


def take_median_recovery(raw_C: np.ndarray | None, losses_C: np.ndarray, *, dense: float) -> float | None:
    """The median share of the damage to the validation loss that is undone."""
    if raw_C is None or not (hurt_C := raw_C > dense).any():
        return None  # where dropping layers did no damage, there is none to undo
    return float(np.median((raw_C - losses_C)[hurt_C] / (raw_C - dense)[hurt_C]))
