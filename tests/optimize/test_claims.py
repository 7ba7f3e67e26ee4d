"""Verdicts on claims: each holds, fails and cannot be told on evidence made so; missing evidence decides nothing."""

import math
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from seed.evidence import ClaimsEvidence, TrainedRun, Verdict
from seed.optimize import claims
from seed.optimize.claims import FAILS, HOLDS, judge_claims, show, tell, tell_all
from seed.optimize.replication import CANNOT_TELL
from seed.records import Estimate, Latency
from tests.reporting import trainings

KEYS = [
    "quality",
    "speed",
    "light",
    "stability",
    "stages",
    "ends",
    "places",
    "order",
    "width",
    "decoding",
    "pretraining",
]
SEVERE = trainings.ROLES["severe"]
STAGED = "drop-2-5-7"
WIDE = 0.2  # nats per token between documents: nothing can be told
Ratios = Mapping[tuple[str, str], float]


def judge(evidence: ClaimsEvidence, key: str) -> Verdict:
    """The verdict on one claim."""
    [verdict] = [verdict for verdict in judge_claims(evidence) if verdict.key == key]
    return verdict


def make(changed: Ratios | None = None, *, noise: float = 0.001, spread: float = 1e-4) -> ClaimsEvidence:
    """Whole evidence, with PPL ratios changed by model and recovery; ``spread``: between random seeds, in nats per token."""
    runs = []
    for run in trainings.make_runs():
        assert run.validation_loss is not None
        known = math.exp(run.validation_loss - trainings.DENSE_LOSS)
        ratio = (changed or {}).get((run.key, run.recovery), known)
        sums = trainings.make_sums(
            ratio, noise=noise, rng_seed=hash_run(run), shift=spread * (run.rng_seed - 1) * (1 + len(run.key) % 2)
        )
        runs.append(msgspec.structs.replace(run, test_sums=list(sums)))
    return trainings.make_evidence(runs)


def hash_run(run: TrainedRun) -> int:
    """A number of the run's own, the same in every process."""
    return run.rng_seed + 10 * sum(map(ord, run.key + run.recovery + "".join(run.stages)))


def with_latencies(depth: float, width: float | None = None, *, half: float = 0.01) -> ClaimsEvidence:
    """Evidence with these latency ratios at batch 1."""
    latencies: dict[str, Latency] = {"drop-3-5-7, batch 1": trainings.make_latency(depth, batch=1, half=half)}
    if width is not None:
        latencies["width-256-3, batch 1"] = trainings.make_latency(width, batch=1, half=half)
    return trainings.make_evidence([], latencies=latencies)


def with_singles(costs: Sequence[float], *, noise: float = 0.003) -> ClaimsEvidence:
    """Evidence with these log PPL ratios of single removals by closed form."""
    singles: dict[str, list[float | None]] = {
        str(layer): list(trainings.make_sums(math.exp(cost), rng_seed=layer, noise=noise))
        for layer, cost in enumerate(costs)
    }
    return msgspec.structs.replace(trainings.make_evidence([]), singles={"none": singles, "closed_form": singles})


FLAT = [0.05] * 10


def with_noisy_documents(costs: Sequence[float]) -> ClaimsEvidence:
    """The same with three documents so different, and layers so different on them, that nothing can be told."""
    singles: dict[str, list[float | None]] = {
        str(layer): [100 * (2.7 + cost + side * off) for off in (3.0, -3.0, 0.0)]
        for layer, cost in enumerate(costs)
        for side in [1 if layer in (0, 8, 9, 10, 11) else -1]
    }
    return msgspec.structs.replace(
        trainings.make_evidence([]),
        singles={"none": singles},
        validation_counts=[100] * 3,
        dense_validation_sums=[270.0] * 3,
    )


def with_pairs(distilled: float, *, raw: float = 1.2, noise: float = 0.001) -> ClaimsEvidence:
    """Evidence in which the best pair when recovered reaches these ratios, beside 1.17 and 1.071 of the other."""
    evidence = make({("drop-5-7", "distillation"): distilled}, noise=noise)
    pairs = {**evidence.pairs, "pair": {"none": list(trainings.make_sums(raw))}}
    return msgspec.structs.replace(evidence, pairs=pairs)


def with_one_best_pair() -> ClaimsEvidence:
    """Evidence in which the best pair is the same with recovery and without."""
    return msgspec.structs.replace(make(), roles={**trainings.ROLES, "raw pair": "drop-5-7"})


DEEP, MIDDLE, LIGHT = ("drop-3-5-7", "distillation"), ("drop-5-7", "distillation"), ("drop-5", "distillation")
CASES = [
    ("quality", make(), HOLDS),
    ("quality", make({DEEP: 1.2}), FAILS),
    ("quality", make({DEEP: 1.13}, noise=WIDE), CANNOT_TELL),
    ("quality", make({DEEP: 1.13}), CANNOT_TELL),
    ("speed", with_latencies(0.78), HOLDS),
    ("speed", with_latencies(0.95), FAILS),
    ("speed", with_latencies(1 / 1.15), CANNOT_TELL),
    ("light", make(), HOLDS),
    ("light", make({LIGHT: 1.09}), FAILS),
    ("light", make({LIGHT: 1.056}, noise=WIDE), CANNOT_TELL),
    ("stability", make(), HOLDS),
    ("stability", make(spread=0.02), FAILS),
    ("stability", make(noise=WIDE), CANNOT_TELL),
    ("stages", make(), HOLDS),
    ("stages", make({(STAGED, "distillation"): 1.13}), FAILS),
    ("stages", make({(STAGED, "distillation"): 1.1041}), FAILS),  # level, and that is known
    ("stages", make({(STAGED, "distillation"): 1.1041}, noise=WIDE), CANNOT_TELL),
    ("ends", with_singles([1.0, *FLAT, 0.5]), HOLDS),
    ("ends", with_singles([1.0, *FLAT, 0.01]), FAILS),
    ("ends", with_singles([0.01, *FLAT, 0.5]), FAILS),
    ("ends", with_singles([1.0, *FLAT, 0.0501]), CANNOT_TELL),
    ("ends", with_noisy_documents([0.06, *FLAT, 0.06]), CANNOT_TELL),
    ("places", with_singles([1.0, *[0.03] * 7, *[0.1] * 3, 0.5]), HOLDS),
    ("places", with_singles([1.0, *[0.1] * 7, *[0.03] * 3, 0.5]), FAILS),
    ("places", with_noisy_documents([1.0, *FLAT, 0.5]), CANNOT_TELL),
    ("order", with_pairs(1.058), HOLDS),
    ("order", with_pairs(1.09), FAILS),
    ("order", with_pairs(1.071, noise=WIDE), CANNOT_TELL),
    ("order", with_one_best_pair(), FAILS),
    ("width", make(), HOLDS),
    ("width", make({("width-256-3", "distillation"): 1.05}), FAILS),
    ("width", make({("width-288-4", "distillation"): 1.0581}), FAILS),
    ("width", make(noise=0.5), CANNOT_TELL),
    ("decoding", with_latencies(0.78, 1.0), HOLDS),
    ("decoding", with_latencies(0.78, 1.1), HOLDS),
    ("decoding", with_latencies(0.78, 0.8), FAILS),
    ("decoding", with_latencies(1.1, 1.1), FAILS),
    ("decoding", with_latencies(0.995, 1.1), CANNOT_TELL),
    ("decoding", with_latencies(0.78), CANNOT_TELL),
    ("pretraining", make(), HOLDS),
    ("pretraining", make({(SEVERE, "lora-pretraining"): 1.5}), FAILS),
    ("pretraining", make({(SEVERE, "lora-pretraining"): 1.61}), FAILS),  # better, but by less at the severe ratio
    ("pretraining", make(noise=1.5), CANNOT_TELL),
]


@pytest.mark.parametrize(("key", "evidence", "wanted"), CASES, ids=[f"{c[0]}, {c[2]}" for c in CASES])
def test_a_claim_is_judged_by_its_intervals(key: str, evidence: ClaimsEvidence, wanted: str) -> None:
    verdict = judge(evidence, key)
    assert verdict.verdict == wanted, (verdict.found, verdict.measures)
    assert verdict.found
    assert verdict.claim
    assert verdict.source
    assert verdict.reported


def test_all_claims_are_judged_in_one_order() -> None:
    verdicts = judge_claims(trainings.make_evidence())
    assert [verdict.key for verdict in verdicts] == KEYS
    assert {verdict.verdict for verdict in verdicts} <= {HOLDS, FAILS, CANNOT_TELL}


def test_nothing_trained_and_nothing_timed_decides_nothing() -> None:
    verdicts = {verdict.key: verdict for verdict in judge_claims(trainings.make_evidence([], latencies={}))}
    for key in set(KEYS) - {"ends", "places"}:
        assert verdicts[key].verdict == CANNOT_TELL, key


def test_a_family_whose_width_cannot_be_cut_decides_nothing_on_width() -> None:
    evidence = trainings.make_evidence()
    roles = {role: key for role, key in evidence.roles.items() if not role.startswith("width")}
    evidence = msgspec.structs.replace(evidence, roles=roles)
    for key in ("width", "decoding"):
        verdict = judge(evidence, key)
        assert verdict.verdict == CANNOT_TELL
        assert "this family's width cannot be cut" in verdict.found


def test_one_random_seed_says_nothing_on_stability() -> None:
    verdict = judge(trainings.make_evidence(trainings.make_runs(rng_seeds=(0,))), "stability")
    assert (verdict.verdict, verdict.found, verdict.measures) == (CANNOT_TELL, "nothing was trained twice", ())


def test_runs_under_different_random_seeds_are_not_compared() -> None:
    runs = [run for run in trainings.make_runs() if not (run.stages and run.rng_seed == 2)]
    verdict = judge(trainings.make_evidence(runs), "stages")
    assert (verdict.verdict, verdict.found) == (CANNOT_TELL, "not trained")


def test_runs_of_other_budgets_do_not_count() -> None:
    runs = [msgspec.structs.replace(run, tokens=run.tokens // 10) for run in trainings.make_runs()]
    assert judge(trainings.make_evidence(runs), "quality").verdict == CANNOT_TELL


def test_losses_that_are_no_numbers_tell_nothing() -> None:
    runs = [msgspec.structs.replace(run, test_sums=[None] * len(trainings.COUNTS)) for run in trainings.make_runs()]
    for verdict in judge_claims(trainings.make_evidence(runs, latencies={})):
        if verdict.key not in ("ends", "places"):
            assert verdict.verdict == CANNOT_TELL, verdict


def test_measures_are_those_that_were_made() -> None:
    evidence = make()
    quality = judge(evidence, "quality")
    assert [measure.estimate.value for measure in quality.measures] == pytest.approx([1.058, 1.104], abs=2e-3)
    assert "2 of 12 layers dropped (12.0 % fewer parameters)" in quality.found
    stages = judge(evidence, "stages")
    assert stages.measures[-1].unit == "%"
    assert stages.measures[-1].estimate.value == pytest.approx(1.092 / 1.104 - 1, abs=1e-3)
    width = judge(evidence, "width")
    assert width.measures[2].estimate.value == pytest.approx(1.12 / 1.058 - 1, abs=1e-3)
    pretraining = judge(evidence, "pretraining")
    assert pretraining.measures[-1].estimate.value == pytest.approx((1.9 / 1.6) / (1.11 / 1.09) - 1, abs=1e-3)
    ends = judge(with_singles([1.0, *FLAT, 0.5]), "ends")
    assert [measure.estimate.value for measure in ends.measures] == pytest.approx([0.95, 0.45], abs=1e-6)


def test_ends_and_places_are_judged_with_recovery_where_there_is_one() -> None:
    evidence = with_singles([1.0, *FLAT, 0.5])
    assert "after closed form" in judge(evidence, "ends").found
    without = msgspec.structs.replace(evidence, singles={"none": evidence.singles["none"]})
    assert "after none" in judge(without, "ends").found


def test_a_cost_has_the_interval_of_its_documents() -> None:
    counts, dense = [10, 10, 10], [20.0, 20.0, 20.0]
    singles: dict[str, dict[str, list[float | None]]] = {"none": {"0": [21.0, 22.0, 23.0]}}
    evidence = msgspec.structs.replace(
        trainings.make_evidence([]), singles=singles, validation_counts=counts, dense_validation_sums=dense
    )
    estimate = claims.estimate_cost(evidence, {0: 1.0}, rung="none")
    half = 4.3026527 * 0.1 / math.sqrt(3)  # Student's t with two degrees of freedom, standard deviation 0.1
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.01, 1.02, FAILS), (0.9, 0.99, HOLDS), (0.9, 1.1, CANNOT_TELL), (None, None, CANNOT_TELL)],
)
def test_a_whole_interval_tells(low: float | None, high: float | None, verdict: str) -> None:
    estimate = Estimate(value=1.0, low=low, high=high)
    assert tell(estimate, below=1.0) == verdict
    assert tell(estimate, above=1.0) == {HOLDS: FAILS, FAILS: HOLDS}.get(verdict, CANNOT_TELL)


def test_one_part_that_fails_is_enough_and_all_must_hold() -> None:
    assert tell_all([HOLDS, CANNOT_TELL, FAILS]) == FAILS
    assert tell_all([HOLDS, CANNOT_TELL]) == tell_all([]) == CANNOT_TELL
    assert tell_all([HOLDS, HOLDS]) == HOLDS


def test_estimates_are_shown_with_their_intervals() -> None:
    assert show(Estimate(value=1.055, low=1.05, high=1.06)) == "1.055 [1.050, 1.060]"
    assert show(Estimate(value=0.012, low=0.009, high=0.015), unit="%") == "+1.20 [+0.90, +1.50] %"
    assert show(Estimate(value=None, low=None, high=None)) == "not known"


@pytest.mark.parametrize(
    ("key", "left_out"),
    [
        ("quality", ["drop-3-5-7"]),
        ("quality", ["drop-5-7"]),
        ("width", ["width-256-3"]),
        ("width", ["width-288-4"]),
        ("stability", ["drop-3-5-7"]),
        ("pretraining", [SEVERE]),
    ],
)
def test_half_of_the_evidence_makes_no_claim_hold(key: str, left_out: list[str]) -> None:
    whole = make()
    assert judge(whole, key).verdict == HOLDS
    runs = tuple(run for run in whole.ledger.runs if run.key not in left_out)
    half = msgspec.structs.replace(whole, ledger=msgspec.structs.replace(whole.ledger, runs=runs))
    assert judge(half, key).verdict == CANNOT_TELL


def test_not_knowing_whether_a_width_is_faster_is_no_proof_that_it_is_not() -> None:
    unknown = with_latencies(0.8, 1.0)
    wide = trainings.make_latency(1.0, batch=1, half=0.3)
    latencies = {**unknown.latencies, "width-256-3, batch 1": wide}
    assert judge(msgspec.structs.replace(unknown, latencies=latencies), "decoding").verdict == CANNOT_TELL


@pytest.mark.parametrize("num_layers", [2, 3, 4])
def test_models_too_small_for_ends_and_thirds_decide_nothing(num_layers: int) -> None:
    evidence = with_singles([0.1] * num_layers)
    small = msgspec.structs.replace(evidence, num_layers=num_layers)
    for key in ("ends", "places"):
        assert judge(small, key).verdict == CANNOT_TELL
    assert judge(msgspec.structs.replace(evidence, singles={}), "ends").verdict == CANNOT_TELL
