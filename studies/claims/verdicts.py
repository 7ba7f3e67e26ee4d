"""What a model says to each claim about dropping layers: holds, does not hold, or cannot tell, with the numbers.

A claim holds where the whole 95 % interval of what was measured says so, does not hold where the whole interval says
otherwise, and else the evidence cannot tell.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seed import stats
from seed.evidence import Ledger, TrainedRun
from seed.optimize.analysis import is_paired, list_ratios, stack_losses
from seed.records import MARGIN, Estimate, Latency, Record
from seed.reporting.wording import format_change, format_interval
from seed.results import read_latency_ratio
from seed.stages.students import Member
from seed.stats import CANNOT_TELL, EQUIVALENT, HIGHER, LOWER, judge_difference

HOLDS, FAILS = "holds", "does not hold"
ABOUT_FASTER = 1.15  # "about 1.2 times faster" begins here
FEWEST_LAYERS = 5  # the ends, and three between them
NEGLIGIBLE_SPEEDUP = 0.03  # of decoding: nobody would cut a model for it
Runs = list[TrainedRun]
Sums = list[float | None]  # summed losses of each document; None where a score is no number


class Evidence(Record, frozen=True, kw_only=True):
    """All that verdicts rest on: roles of models, every training, scores of single removals, times."""

    ledger: Ledger
    num_layers: int
    roles: dict[str, str]  # role -> key of the model that plays it
    members: dict[str, Member]  # role -> the model itself, as it was chosen when the evidence was begun
    singles: dict[str, dict[str, Sums]]  # proxy -> dropped layer -> validation losses
    dense_validation_sums: list[float]
    validation_counts: list[int]
    pairs: dict[str, dict[str, Sums]]  # role -> proxy -> validation losses
    latencies: dict[str, Latency]  # "KEY, batch N"

    @property
    def settings(self) -> dict[str, str | int | float]:
        """What decides its numbers."""
        return self.ledger.settings


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that a verdict rests on."""

    name: str
    estimate: Estimate
    is_share: bool = False  # of perplexity, shown in per cent

    def __str__(self) -> str:
        """The estimate with its interval."""
        return format_change(self.estimate) if self.is_share else format_interval(self.estimate)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a model says to one claim."""

    verdict: str
    measures: Sequence[Measure] = ()
    remark: str = ""

    @property
    def found(self) -> str:
        """The remark, then every measure with its interval."""
        told = [f"{measure.name}: {measure}" for measure in self.measures]
        return "; ".join([self.remark, *told] if self.remark else told)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What was reported, and how it is judged; ``judge`` returns None where evidence is missing."""

    key: str
    text: str
    reported: str
    judge: Callable[[Evidence], Finding | None]
    missing: str = "not trained"
    source: str = "the report that Seed grew from"


def judge_claims(evidence: Evidence) -> list[tuple[Claim, Finding]]:
    """Return what the evidence says to every claim; claims whose evidence is missing cannot be told."""
    return [(claim, claim.judge(evidence) or Finding(verdict=CANNOT_TELL, remark=claim.missing)) for claim in CLAIMS]


# ---- what is measured


def select_runs(evidence: Evidence, role: str, *, recovery: str = "distillation") -> Runs:
    """The runs at once of the model that plays a role, by random seed."""
    tokens = evidence.ledger.settings["distill_tokens"]
    found = [
        run
        for run in evidence.ledger.runs
        if (run.key, run.recovery, run.tokens, run.stages) == (evidence.roles.get(role), recovery, tokens, ())
    ]
    return sorted(found, key=lambda run: run.rng_seed)


def estimate_ratio(evidence: Evidence, runs: Sequence[TrainedRun]) -> Estimate:
    """The PPL ratio to the dense model on test text, mean over runs, with its 95 % interval."""
    ledger = evidence.ledger
    return stats.estimate_ratio(stack_losses(runs), ledger.dense_test_sums, np.array(ledger.test_counts))


def estimate_mean(sums_D: np.ndarray, counts_D: np.ndarray) -> Estimate:
    """Mean by token of sums by document, with its 95 % interval."""
    if not np.isfinite(sums_D).all():
        return stats.NOTHING
    mean = float(sums_D.sum() / counts_D.sum())
    half = stats.measure_margin([stats.linearise_ratio(sums_D, counts_D) * len(counts_D) / counts_D.sum()])
    return Estimate(value=mean, low=mean - half, high=mean + half)


def estimate_cost(evidence: Evidence, weights: dict[int, float], *, proxy: str) -> Estimate:
    """A weighted sum of the log PPL ratios of single removals by a proxy, with its interval over documents."""
    dense_D = np.array(evidence.dense_validation_sums)
    sums_LD = np.array([evidence.singles[proxy][str(layer)] for layer in weights], dtype=float)
    off_D = np.array(list(weights.values())) @ (sums_LD - dense_D)
    return estimate_mean(off_D, np.array(evidence.validation_counts))


def find_latency(evidence: Evidence, role: str) -> Latency | None:
    """The latency of the model that plays a role, at batch 1."""
    return evidence.latencies.get(f"{evidence.roles.get(role)}, batch 1")


# ---- what that tells


def tell(estimate: Estimate, *, above: float | None = None, below: float | None = None) -> str:
    """Does the whole interval lie above (or below) a number?"""
    if estimate.low is None or estimate.high is None:
        return CANNOT_TELL
    if above is not None:
        return HOLDS if estimate.low > above else FAILS if estimate.high < above else CANNOT_TELL
    assert below is not None
    return HOLDS if estimate.high < below else FAILS if estimate.low > below else CANNOT_TELL


def tell_all(verdicts: Sequence[str]) -> str:
    """All must hold; one that does not hold is enough to say that the claim does not."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) == {HOLDS} else CANNOT_TELL


def judge_ratio(evidence: Evidence, *, roles: Sequence[str], limit: float) -> Finding | None:
    """Is the PPL ratio of every role's model at most this?"""
    measures, verdicts = [], []
    for role in roles:
        if runs := select_runs(evidence, role):
            share = 1 - runs[0].num_params / evidence.ledger.dense_num_params
            name = (
                f"{runs[0].num_dropped} of {evidence.num_layers} layers dropped ({100 * share:.1f} % fewer parameters)"
            )
            measures.append(Measure(name=f"PPL ratio, {name}", estimate=estimate_ratio(evidence, runs)))
        verdicts.append(tell(measures[-1].estimate, below=limit) if runs else CANNOT_TELL)
    return Finding(verdict=tell_all(verdicts), measures=measures) if measures else None


def judge_excess(evidence: Evidence, compared: Mapping[str, tuple[Runs, Runs]], *, claimed: str) -> Finding | None:
    """Is the PPL of each of these over another's, by name, lower or higher as claimed? Random seeds are paired."""
    measures, verdicts = [], []
    for name, (ours, theirs) in compared.items():
        if not is_paired(ours, theirs):
            verdicts.append(CANNOT_TELL)
            continue
        counts_D = np.array(evidence.ledger.test_counts)
        excess, verdict = judge_difference(stack_losses(ours), stack_losses(theirs), counts_D)
        verdicts.append({claimed: HOLDS, CANNOT_TELL: CANNOT_TELL}.get(verdict, FAILS))
        measures.append(Measure(name=f"PPL of {name}", estimate=excess, is_share=True))
    return Finding(verdict=tell_all(verdicts), measures=measures) if measures else None


def judge_speed(evidence: Evidence) -> Finding | None:
    """Is the deep cut about 1.2 times faster?"""
    if (latency := find_latency(evidence, "deep")) is None:
        return None
    measure = Measure(name="latency ratio", estimate=read_latency_ratio(latency))
    return Finding(
        verdict=tell(measure.estimate, below=1 / ABOUT_FASTER),
        measures=[measure],
        remark=f"{1 / latency.ratio:.2f} times faster ({latency.workload})",
    )


def judge_stability(evidence: Evidence) -> Finding | None:
    """Do distillations under different random seeds end alike?"""
    verdicts, spreads = [], []
    counts_D = np.array(evidence.ledger.test_counts)
    roles = [role for role in ("light", "middle", "deep") if role in evidence.roles]
    models = {evidence.roles[role]: select_runs(evidence, role) for role in roles}
    replicated = {key: runs for key, runs in models.items() if len(runs) > 1}
    for key, runs in replicated.items():
        ratios_S = list_ratios(stack_losses(runs), evidence.ledger.dense_test_sums, counts_D)
        spreads.append(f"{ratios_S.std(ddof=1):.4f} ({key})")
        for one, other in itertools.combinations(runs, 2):
            excess, verdict = judge_difference(
                stack_losses([one]), stack_losses([other]), counts_D, between_replicas=True
            )
            is_beyond = FAILS in (tell(excess, below=MARGIN), tell(excess, above=1 / (1 + MARGIN) - 1))
            verdicts.append(HOLDS if verdict == EQUIVALENT else FAILS if is_beyond else CANNOT_TELL)
    if not verdicts:
        return None
    unknown = [CANNOT_TELL] * (len(models) - len(replicated))
    return Finding(
        verdict=tell_all([*verdicts, *unknown]),
        remark=f"{verdicts.count(HOLDS)} of {len(verdicts)} pairs of replicas are equivalent; standard deviation of the PPL ratio "
        + ", ".join(spreads),
    )


def judge_stages(evidence: Evidence) -> Finding | None:
    """Does removing in stages, with recovery between, beat removing at once for the same tokens?"""
    staged = sorted((run for run in evidence.ledger.runs if run.stages), key=lambda run: run.rng_seed)
    name = f"{', '.join(dict.fromkeys(run.key for run in staged))} in stages over {evidence.roles.get('deep')} at once"
    return judge_excess(evidence, {name: (staged, select_runs(evidence, "deep"))}, claimed=LOWER)


def choose_proxy(evidence: Evidence) -> str | None:
    """The proxy by which single removals are judged, with recovery where there is one; None where layers are too few."""
    if evidence.num_layers < FEWEST_LAYERS or not evidence.singles:
        return None
    return "closed-form" if "closed-form" in evidence.singles else "none"


def judge_ends(evidence: Evidence) -> Finding | None:
    """Does the first layer, and the last, cost more than the layers between them do on average?"""
    if (proxy := choose_proxy(evidence)) is None:
        return None
    inner = range(1, evidence.num_layers - 1)
    measures = [
        Measure(
            name=f"log PPL ratio of the {name} layer, less the inner ones' mean",
            estimate=estimate_cost(evidence, {layer: 1.0, **dict.fromkeys(inner, -1 / len(inner))}, proxy=proxy),
        )
        for name, layer in (("first", 0), ("last", evidence.num_layers - 1))
    ]
    verdict = tell_all([tell(measure.estimate, above=0.0) for measure in measures])
    return Finding(verdict=verdict, measures=measures, remark=f"after {proxy}")


def judge_places(evidence: Evidence) -> Finding | None:
    """Do early and middle layers drop more easily than late ones?"""
    if (proxy := choose_proxy(evidence)) is None:
        return None
    early, middle, late = (part.tolist() for part in np.array_split(np.arange(1, evidence.num_layers - 1), 3))
    rest = [*early, *middle]
    difference = dict.fromkeys(late, 1 / len(late)) | dict.fromkeys(rest, -1 / len(rest))
    weighted = {f"layers {part[0]} to {part[-1]}": dict.fromkeys(part, 1 / len(part)) for part in (early, middle, late)}
    measures = [
        Measure(name=name, estimate=estimate_cost(evidence, weights, proxy=proxy))
        for name, weights in {**weighted, "late less early and middle": difference}.items()
    ]
    return Finding(
        verdict=tell(measures[-1].estimate, above=0.0),
        measures=measures,
        remark=f"mean log PPL ratio of one dropped layer after {proxy}",
    )


def judge_order(evidence: Evidence) -> Finding | None:
    """Is the best pair before recovery another than after it?"""
    ours, theirs = evidence.roles.get("pair"), evidence.roles.get("raw pair")
    if ours == theirs and ours is not None:
        return Finding(verdict=FAILS, remark=f"{ours} is the best pair before recovery and by closed form")
    runs = select_runs(evidence, "pair"), select_runs(evidence, "raw pair")
    distilled = judge_excess(evidence, {f"{ours} over {theirs}, distilled": runs}, claimed=LOWER)
    if distilled is None:
        return None
    sums_RD = np.array([evidence.pairs[role]["none"] for role in ("pair", "raw pair")], dtype=float)
    raw = estimate_mean(sums_RD[0] - sums_RD[1], np.array(evidence.validation_counts))
    return Finding(
        verdict=tell_all([tell(raw, above=0.0), distilled.verdict]),
        measures=[Measure(name=f"log PPL of {ours} over {theirs}, as they stand", estimate=raw), *distilled.measures],
        remark=f"{theirs} is best as it stands, {ours} by closed form",
    )


def judge_width(evidence: Evidence) -> Finding | None:
    """Is uniform width pruning worse at equal parameters?"""
    compared = {
        f"{evidence.roles.get(f'width {role}')} over {evidence.roles.get(role)}": (
            select_runs(evidence, f"width {role}"),
            select_runs(evidence, role),
        )
        for role in ("middle", "deep")
    }
    return judge_excess(evidence, compared, claimed=HIGHER)


def judge_decoding(evidence: Evidence) -> Finding | None:
    """Does dropping layers speed up decoding at batch 1, and width pruning of the same size not?"""
    depth, width = find_latency(evidence, "deep"), find_latency(evidence, "width deep")
    if depth is None or width is None:
        return None
    measures = [
        Measure(name=f"latency ratio at batch 1, {name}", estimate=read_latency_ratio(latency))
        for name, latency in (("without layers", depth), ("in width", width))
    ]
    faster, as_fast = measures
    verdicts = [tell(faster.estimate, below=1.0), tell(as_fast.estimate, above=1 - NEGLIGIBLE_SPEEDUP)]
    return Finding(verdict=tell_all(verdicts), measures=measures)


def judge_pretraining(evidence: Evidence) -> Finding | None:
    """Does continued pretraining beat LoRA, and by more at severe ratios?"""
    low_rank, whole = (
        [select_runs(evidence, role, recovery=recovery) for role in ("middle", "severe")]
        for recovery in ("lora-pretraining", "pretraining")
    )
    names = [f"LoRA over continued pretraining, {evidence.roles.get(role)}" for role in ("middle", "severe")]
    finding = judge_excess(evidence, dict(zip(names, zip(low_rank, whole, strict=True), strict=True)), claimed=HIGHER)
    if finding is None or len(finding.measures) < 2:
        return finding
    gaps = [stack_losses(ours) - stack_losses(theirs) for ours, theirs in zip(low_rank, whole, strict=True)]
    growth = stats.estimate_excess(gaps[1], gaps[0], np.array(evidence.ledger.test_counts))
    more = Measure(name="how much more at the severe ratio", estimate=growth, is_share=True)
    return Finding(verdict=tell_all([finding.verdict, tell(growth, above=0.0)]), measures=[*finding.measures, more])


SHORTENED = "Shortened LLaMA, arXiv 2402.02834"
TOO_FEW = f"not measured, or fewer than {FEWEST_LAYERS} layers"
CLAIMS = (
    Claim(
        key="quality",
        text="A sixth and a quarter of the layers can go for a PPL ratio of at most 1.13.",
        reported="GPT-2, 12 to 10 / 9 layers: 11 to 17 % fewer parameters, PPL +9 to +13 %",
        judge=functools.partial(judge_ratio, roles=("middle", "deep"), limit=1.13),
    ),
    Claim(
        key="speed",
        text=f"Without a quarter of the layers, decoding is about 1.2 times faster (at least {ABOUT_FASTER}).",
        reported="GPT-2, 12 to 10 / 9 layers: about 1.2 times faster decode",
        judge=judge_speed,
        missing="not timed",
    ),
    Claim(
        key="light",
        text="An eleventh of the layers can go for a PPL ratio of at most 1.057.",
        reported="TinyLlama 1.1B, 22 to 20 layers: 8.0 % smaller, ratio 1.057",
        judge=functools.partial(judge_ratio, roles=("light",), limit=1.057),
    ),
    Claim(
        key="stability",
        text=f"Results are the same over random seeds, within {100 * MARGIN:g} % of perplexity.",
        reported="TinyLlama: test PPL 9.72 +- 0.01 and 9.94 +- 0.01 over three random seeds",
        judge=judge_stability,
        missing="nothing was trained twice",
    ),
    Claim(
        key="stages",
        text="Removing in stages, with recovery between them, ends better than at once for the same tokens.",
        reported="TinyLlama 1.1B, 22 to 19 layers in stages: 12.0 % smaller, PPL 9.94 +- 0.01, ratio 1.081",
        judge=judge_stages,
    ),
    Claim(
        key="ends",
        text="The first and the last layer are critical: each costs more than the layers between them on average.",
        reported="first and last are almost always critical",
        judge=judge_ends,
        missing=TOO_FEW,
    ),
    Claim(
        key="places",
        text="Early and middle layers drop more easily than late ones (ends left aside).",
        reported="early and middle layers drop most easily",
        judge=judge_places,
        missing=TOO_FEW,
    ),
    Claim(
        key="order",
        text="The best pair of layers changes with recovery.",
        reported="the best pair changes after pruning and recovery",
        judge=judge_order,
    ),
    Claim(
        key="width",
        text="At equal parameters, cutting all layers evenly in width ends worse than dropping layers.",
        reported="uniform width pruning is worse at equal parameters",
        judge=judge_width,
        missing="not trained, or this family's width cannot be cut",
    ),
    Claim(
        key="decoding",
        text="Dropping layers speeds up decoding at batch 1; width pruning of the same size does not (by less than "
        f"{100 * NEGLIGIBLE_SPEEDUP:.0f} %).",
        reported="depth pruning speeds up small-batch decoding where width pruning does not",
        judge=judge_decoding,
        source=SHORTENED,
        missing="not timed, or this family's width cannot be cut",
    ),
    Claim(
        key="pretraining",
        text="Continued pretraining beats LoRA on the same text, and by more at severe ratios.",
        reported="continued pretraining beats LoRA, most at severe ratios",
        judge=judge_pretraining,
        source=SHORTENED,
    ),
)
