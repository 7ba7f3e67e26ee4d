"""What a model says to each claim about dropping layers: holds, does not hold, or cannot tell, with the numbers.

The claims are those that Seed grew from and those of Shortened LLaMA (arXiv 2402.02834). Each is a statement about
estimates with intervals, so that a verdict is never a matter of taste: a claim holds where the whole interval says so, does
not hold where the whole interval says otherwise, and else the evidence cannot tell.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

from seed.evidence import ClaimsEvidence, Measure, Verdict
from seed.optimize.replication import is_paired, list_ratios, stack_losses
from seed.optimize.testimony import (
    FAILS,
    HOLDS,
    compare_runs,
    estimate_cost,
    estimate_latency,
    estimate_ratio,
    name_best_rung,
    select_model,
    select_runs,
    show,
    tell,
    tell_all,
    tell_beyond,
)
from seed.stats import (
    CANNOT_TELL,
    EQUIVALENT,
    HIGHER,
    LOWER,
    MARGIN,
    NOTHING,
    estimate_excess,
    estimate_mean,
    judge_difference,
)

SEED_REPORT = "the report that Seed grew from"
SHORTENED = "Shortened LLaMA, arXiv 2402.02834"
ABOUT_FASTER = 1.15  # "about 1.2 times faster" begins here
FEWEST_LAYERS = 5  # the ends, and three between them
NEGLIGIBLE_SPEEDUP = 0.03  # of decoding: nobody would cut a model for it


def judge_claims(evidence: ClaimsEvidence) -> tuple[Verdict, ...]:
    """Return a verdict on every claim, in the order of the report's table; claims whose evidence is missing cannot be told."""
    return tuple(judge(evidence) for judge in CLAIMS)


def judge_quality(evidence: ClaimsEvidence) -> Verdict:
    """A quarter of the layers can go for a PPL ratio of at most 1.13 (GPT-2, 12 to 10 or 9)."""
    measures = []
    for role in ("middle", "deep"):
        if runs := select_runs(evidence, role):
            share = 1 - runs[0].num_params / evidence.ledger.dense_num_params
            name = (
                f"{runs[0].num_dropped} of {evidence.num_layers} layers dropped ({100 * share:.1f} % fewer parameters)"
            )
            measures.append(Measure(name=f"PPL ratio, {name}", estimate=estimate_ratio(evidence, runs)))
    return Verdict(
        key="quality",
        claim="A sixth and a quarter of the layers can go for a PPL ratio of at most 1.13.",
        source=SEED_REPORT,
        reported="GPT-2, 12 to 10 / 9 layers: 11 to 17 % fewer parameters, PPL +9 to +13 %",
        verdict=tell_all([tell(measure.estimate, below=1.13) for measure in measures], needed=2),
        found="; ".join(f"{measure.name}: {show(measure.estimate)}" for measure in measures) or "not trained",
        measures=tuple(measures),
    )


def judge_speed(evidence: ClaimsEvidence) -> Verdict:
    """Decoding is about 1.2 times faster then."""
    latency = evidence.latencies.get(f"{evidence.roles.get('deep')}, batch 1")
    measures = [Measure(name="latency ratio at batch 1", estimate=estimate_latency(latency))] if latency else []
    return Verdict(
        key="speed",
        claim="Without a quarter of the layers, decoding is about 1.2 times faster (at least 1.15).",
        source=SEED_REPORT,
        reported="GPT-2, 12 to 10 / 9 layers: about 1.2 times faster decode",
        verdict=tell_all([tell(measure.estimate, below=1 / ABOUT_FASTER) for measure in measures]),
        found=f"{1 / latency.ratio:.2f} times faster ({latency.workload})" if latency else "not timed",
        measures=tuple(measures),
    )


def judge_light(evidence: ClaimsEvidence) -> Verdict:
    """A tenth of the layers can go for a PPL ratio of at most 1.057 (TinyLlama, 22 to 20)."""
    runs = select_runs(evidence, "light")
    measures = [Measure(name="PPL ratio", estimate=estimate_ratio(evidence, runs))] if runs else []
    return Verdict(
        key="light",
        claim="An eleventh of the layers can go for a PPL ratio of at most 1.057.",
        source=SEED_REPORT,
        reported="TinyLlama 1.1B, 22 to 20 layers: 8.0 % smaller, ratio 1.057",
        verdict=tell_all([tell(measure.estimate, below=1.057) for measure in measures]),
        found=f"{runs[0].num_dropped} of {evidence.num_layers} layers dropped ({runs[0].key}): {show(measures[0].estimate)}"
        if runs
        else "not trained",
        measures=tuple(measures),
    )


def judge_stability(evidence: ClaimsEvidence) -> Verdict:
    """Distillations under different random seeds end alike."""
    measures, verdicts, spreads = [], [], []
    counts_D = np.array(evidence.ledger.test_counts)
    roles = list(dict.fromkeys(evidence.roles[role] for role in ("light", "middle", "deep") if role in evidence.roles))
    replicated = {key: select_model(evidence, key) for key in roles}
    replicated = {key: runs for key, runs in replicated.items() if len(runs) > 1}
    for key, runs in replicated.items():
        ratios_S = list_ratios(stack_losses(runs), evidence.ledger.dense_test_sums, counts_D)
        spreads.append(f"{ratios_S.std(ddof=1):.4f} ({key})")
        for one, other in itertools.combinations(runs, 2):
            excess, verdict = judge_difference(
                stack_losses([one]), stack_losses([other]), counts_D, between_replicas=True
            )
            name = f"{key}, random seed {one.rng_seed} against {other.rng_seed}"
            measures.append(Measure(name=name, estimate=excess, unit="%"))
            verdicts.append(HOLDS if verdict == EQUIVALENT else tell_beyond(excess))
    return Verdict(
        key="stability",
        claim=f"Results are the same over random seeds, within {100 * MARGIN:g} % of perplexity.",
        source=SEED_REPORT,
        reported="TinyLlama: test PPL 9.72 +- 0.01 and 9.94 +- 0.01 over three random seeds",
        verdict=tell_all(verdicts) if len(replicated) == len(roles) else tell_all([*verdicts, CANNOT_TELL]),
        found=f"{verdicts.count(HOLDS)} of {len(verdicts)} pairs of replicas are equivalent; standard deviation of the PPL ratio "
        + ", ".join(spreads)
        if verdicts
        else "nothing was trained twice",
        measures=tuple(measures),
    )


def judge_stages(evidence: ClaimsEvidence) -> Verdict:
    """Removing in stages, with recovery between, beats removing at once for the same tokens."""
    staged, once = select_runs(evidence, "deep", staged=True), select_runs(evidence, "deep")
    are_paired = is_paired(staged, once)
    excess, verdict = compare_runs(evidence, staged, once) if are_paired else (NOTHING, CANNOT_TELL)
    measures = [
        Measure(name=f"PPL ratio, {name}", estimate=estimate_ratio(evidence, runs))
        for name, runs in (("staged", staged), ("at once", once))
        if runs
    ]
    sets = ", ".join(dict.fromkeys(run.key for run in staged))
    return Verdict(
        key="stages",
        claim="Removing in stages, with recovery between them, ends better than at once for the same tokens.",
        source=SEED_REPORT,
        reported="TinyLlama 1.1B, 22 to 19 layers in stages: 12.0 % smaller, PPL 9.94 +- 0.01, ratio 1.081",
        verdict={LOWER: HOLDS, HIGHER: FAILS, EQUIVALENT: FAILS}.get(verdict, CANNOT_TELL),
        found=f"staged {sets}, at once {once[0].key}: PPL {show(excess, unit='%')}, {verdict}"
        if are_paired
        else "not trained",
        measures=(*measures, Measure(name="staged over at once", estimate=excess, unit="%")),
    )


def judge_ends(evidence: ClaimsEvidence) -> Verdict:
    """The first and the last layer are critical: each costs more than the layers between them do on average."""
    rung, inner = name_best_rung(evidence), range(1, evidence.num_layers - 1)
    claim = "The first and the last layer are critical: each costs more than the layers between them on average."
    if not has_singles(evidence, rung):
        return leave_open("ends", claim, "first and last are almost always critical")
    measures = []
    for name, layer in (("first", 0), ("last", evidence.num_layers - 1)):
        weights = dict.fromkeys(inner, -1 / len(inner)) | {layer: 1.0}
        measures.append(
            Measure(
                name=f"log PPL ratio of the {name} layer, less the inner ones' mean",
                estimate=estimate_cost(evidence, weights, rung=rung),
            )
        )
    costs = {layer: estimate_cost(evidence, {layer: 1.0}, rung=rung).value for layer in inner}
    dearest = max(inner, key=lambda layer: math.inf if costs[layer] is None else costs[layer] or 0.0)
    return Verdict(
        key="ends",
        claim=claim,
        source=SEED_REPORT,
        reported="first and last are almost always critical",
        verdict=tell_all([tell(measure.estimate, above=0.0) for measure in measures]),
        found=f"after {rung.replace('_', ' ')}: first {show(measures[0].estimate)}, last {show(measures[1].estimate)}; "
        f"the dearest inner layer is {dearest}",
        measures=tuple(measures),
    )


def judge_places(evidence: ClaimsEvidence) -> Verdict:
    """Early and middle layers drop more easily than late ones."""
    rung, inner = name_best_rung(evidence), list(range(1, evidence.num_layers - 1))
    claim = "Early and middle layers drop more easily than late ones (ends left aside)."
    if not has_singles(evidence, rung):
        return leave_open("places", claim, "early and middle layers drop most easily")
    early, middle, late = (part.tolist() for part in np.array_split(np.array(inner), 3))
    weights = {layer: 1 / len(late) for layer in late} | {
        layer: -1 / len(early + middle) for layer in (*early, *middle)
    }
    estimate = estimate_cost(evidence, weights, rung=rung)
    parts = [
        estimate_cost(evidence, {layer: 1 / len(part) for layer in part}, rung=rung) for part in (early, middle, late)
    ]
    names = [f"{part[0]} to {part[-1]}" for part in (early, middle, late)]
    return Verdict(
        key="places",
        claim=claim,
        source=SEED_REPORT,
        reported="early and middle layers drop most easily",
        verdict=tell(estimate, above=0.0),
        found=f"mean log PPL ratio of one dropped layer after {rung.replace('_', ' ')}: "
        + ", ".join(f"layers {name} {show(part)}" for name, part in zip(names, parts, strict=True)),
        measures=(
            *(
                Measure(name=f"log PPL ratio, layers {name}", estimate=part)
                for name, part in zip(names, parts, strict=True)
            ),
            Measure(name="late less early and middle", estimate=estimate),
        ),
    )


def judge_order(evidence: ClaimsEvidence) -> Verdict:
    """The best pair before recovery is not the best one after it."""
    ours, theirs = evidence.roles.get("pair"), evidence.roles.get("raw pair")
    after, before = select_runs(evidence, "pair"), select_runs(evidence, "raw pair")
    measures: list[Measure] = []
    verdict, found = CANNOT_TELL, "not trained"
    if ours == theirs and ours is not None:
        verdict, found = FAILS, f"{ours} is the best pair before recovery and by closed form"
    elif after and before:
        counts_D = np.array(evidence.validation_counts)
        raw = estimate_mean(
            np.array(evidence.pairs["pair"]["none"], dtype=float)
            - np.array(evidence.pairs["raw pair"]["none"], dtype=float),
            counts_D,
        )
        excess, judged = compare_runs(evidence, after, before)
        measures = [
            Measure(name=f"log PPL of {ours} over {theirs}, without recovery", estimate=raw),
            Measure(name=f"PPL of {ours} over {theirs}, distilled", estimate=excess, unit="%"),
        ]
        verdict = tell_all(
            [tell(raw, above=0.0), {LOWER: HOLDS, HIGHER: FAILS, EQUIVALENT: FAILS}.get(judged, CANNOT_TELL)], needed=2
        )
        found = (
            f"{theirs} is best as it stands, {ours} by closed form; distilled, PPL of {ours} over {theirs} is "
            f"{show(excess, unit='%')}, {judged}"
        )
    return Verdict(
        key="order",
        claim="The best pair of layers changes with recovery.",
        source=SEED_REPORT,
        reported="the best pair changes after pruning and recovery",
        verdict=verdict,
        found=found,
        measures=tuple(measures),
    )


def judge_width(evidence: ClaimsEvidence) -> Verdict:
    """Uniform width pruning is worse at equal parameters."""
    measures, verdicts, found = [], [], []
    for role in ("middle", "deep"):
        depth, width = select_runs(evidence, role), select_runs(evidence, f"width {role}")
        if not is_paired(depth, width):
            continue
        excess, verdict = compare_runs(evidence, width, depth)
        name = f"{width[0].key} over {depth[0].key}"
        measures += [
            Measure(name=f"PPL ratio, {run[0].key}", estimate=estimate_ratio(evidence, run)) for run in (depth, width)
        ]
        measures.append(Measure(name=f"PPL of {name}", estimate=excess, unit="%"))
        verdicts.append({HIGHER: HOLDS, LOWER: FAILS, EQUIVALENT: FAILS}.get(verdict, CANNOT_TELL))
        found.append(
            f"{name} ({width[0].num_params:,} and {depth[0].num_params:,} parameters): {show(excess, unit='%')}"
        )
    return Verdict(
        key="width",
        claim="At equal parameters, cutting all layers evenly in width ends worse than dropping layers.",
        source=SEED_REPORT,
        reported="uniform width pruning is worse at equal parameters",
        verdict=tell_all(verdicts, needed=2),
        found="; ".join(found) or "not trained, or this family's width cannot be cut",
        measures=tuple(measures),
    )


def judge_decoding(evidence: ClaimsEvidence) -> Verdict:
    """Dropping layers speeds up small-batch decoding, width pruning of the same size does not."""
    depth = evidence.latencies.get(f"{evidence.roles.get('deep')}, batch 1")
    width = evidence.latencies.get(f"{evidence.roles.get('width deep')}, batch 1")
    measures = [
        Measure(name=f"latency ratio, {key}", estimate=estimate_latency(latency))
        for key, latency in sorted(evidence.latencies.items())
    ]
    if depth is None or width is None:
        verdict, found = CANNOT_TELL, "not timed, or this family's width cannot be cut"
    else:
        verdict = tell_all(
            [
                tell(estimate_latency(depth), below=1.0),
                tell(estimate_latency(width), above=1 - NEGLIGIBLE_SPEEDUP),
            ],
            needed=2,
        )
        found = (
            f"at batch 1 without layers {1 / depth.ratio:.2f} times faster, in width {1 / width.ratio:.2f} times "
            f"({show(estimate_latency(depth))} and {show(estimate_latency(width))})"
        )
    return Verdict(
        key="decoding",
        claim=f"Dropping layers speeds up decoding at batch 1; width pruning of the same size does not (by less than "
        f"{100 * NEGLIGIBLE_SPEEDUP:.0f} %).",
        source=SHORTENED,
        reported="depth pruning speeds up small-batch decoding where width pruning does not",
        verdict=verdict,
        found=found,
        measures=tuple(measures),
    )


def judge_pretraining(evidence: ClaimsEvidence) -> Verdict:
    """Continued pretraining beats LoRA, and by more at severe ratios."""
    measures, verdicts, found, gaps = [], [], [], []
    for role in ("middle", "severe"):
        whole = select_runs(evidence, role, recovery="pretraining")
        low_rank = select_runs(evidence, role, recovery="lora-pretraining")
        if not is_paired(whole, low_rank):
            continue
        excess, verdict = compare_runs(evidence, low_rank, whole)
        measures.append(
            Measure(name=f"PPL of LoRA over continued pretraining, {whole[0].key}", estimate=excess, unit="%")
        )
        verdicts.append({HIGHER: HOLDS, LOWER: FAILS, EQUIVALENT: FAILS}.get(verdict, CANNOT_TELL))
        found.append(f"{whole[0].num_dropped} dropped: LoRA {show(excess, unit='%')} PPL")
        gaps.append(stack_losses(low_rank) - stack_losses(whole))
    if len(gaps) == 2:
        growth = estimate_excess(gaps[1], gaps[0], np.array(evidence.ledger.test_counts))
        measures.append(Measure(name="how much more at the severe ratio", estimate=growth, unit="%"))
        verdicts.append(tell(growth, above=0.0))
    return Verdict(
        key="pretraining",
        claim="Continued pretraining beats LoRA on the same text, and by more at severe ratios.",
        source=SHORTENED,
        reported="continued pretraining beats LoRA, most at severe ratios",
        verdict=tell_all(verdicts, needed=3),
        found="; ".join(found) or "not trained",
        measures=tuple(measures),
    )


def has_singles(evidence: ClaimsEvidence, rung: str) -> bool:
    """Are there single removals enough to speak of ends and thirds?"""
    return evidence.num_layers >= FEWEST_LAYERS and len(evidence.singles.get(rung, {})) == evidence.num_layers


def leave_open(key: str, claim: str, reported: str) -> Verdict:
    """A verdict where the model is too small, or nothing was measured."""
    found = f"not measured, or fewer than {FEWEST_LAYERS} layers"
    return Verdict(
        key=key, claim=claim, source=SEED_REPORT, reported=reported, verdict=CANNOT_TELL, found=found, measures=()
    )


CLAIMS: tuple[Callable[[ClaimsEvidence], Verdict], ...] = (
    judge_quality,
    judge_speed,
    judge_light,
    judge_stability,
    judge_stages,
    judge_ends,
    judge_places,
    judge_order,
    judge_width,
    judge_decoding,
    judge_pretraining,
)
