"""Realistic records of a finished study, and the same study at earlier or poorer stages. Deterministic; no files."""

import itertools
import math

import msgspec
import numpy as np

from seed.evidence import Agreement, Baseline, BaselinePick, Equivalence, SearchGain, Sensitivity, StudyRecord
from seed.optimize.analysis import compare_replicated, summarize_replicas
from seed.plans import Environment, Protocol, SearchPlan, StreamRecord
from seed.records import (
    Candidate,
    CurvePoint,
    DenseResult,
    DistillResult,
    Estimate,
    Evaluation,
    Frontier,
    FrontierMember,
    Latency,
    Quality,
    Replica,
    SearchSpace,
    Size,
    TrialRecord,
    WidthCut,
)

NUM_LAYERS = 12
PROXY = "short-distillation"
DENSE_LOSS = 2.683
LAYER_COSTS = (0.9, 0.022, 0.035, 0.04, 0.03, 0.018, 0.02, 0.038, 0.05, 0.045, 0.06, 0.4)
DEVICE = "cpu (2 threads)"
TEST_COUNTS = [100, 120, 90, 110]
WORKLOAD = "decode 64 tokens after 64, batch 1"


SPACE = SearchSpace(num_layers=NUM_LAYERS, droppable_layers=tuple(range(NUM_LAYERS)), min_dropped=1, max_dropped=3)


def make_candidate(*dropped: int, num_layers: int = NUM_LAYERS) -> Candidate:
    """Return the candidate without these layers."""
    return Candidate.keep(num_layers=num_layers, kept_layers=tuple(i for i in range(num_layers) if i not in dropped))


def make_quality(
    ratio: float, *, dense_loss: float = DENSE_LOSS, error: float = 0.003, kl: float | None = None
) -> Quality:
    """Return a quality at this PPL ratio."""
    loss = dense_loss + math.log(ratio)
    return Quality(
        loss=loss,
        perplexity=math.exp(loss),
        standard_error=0.031,
        tokens=65536,
        documents=48,
        effective_documents=48.0,
        ppl_ratio=ratio,
        ppl_ratio_standard_error=error,
        kl_divergence=kl,
        top1_agreement=None if kl is None else math.exp(-2.5 * kl),
    )


def make_latency(kept: int, *, num_layers: int = NUM_LAYERS, shift: float = 0.0, half: float = 0.006) -> Latency:
    """Return the latency of ``kept`` layers: a share of the time does not depend on depth."""
    ratio = 0.11 + 0.89 * kept / num_layers + shift
    return Latency(
        structure=f"{kept} layers",
        workload=WORKLOAD,
        device=DEVICE,
        repeats=40,
        median_ms=212.0 * ratio,
        p10_ms=205.0 * ratio,
        p90_ms=230.0 * ratio,
        dense_median_ms=212.0,
        ratio=ratio,
        ratio_low=ratio - half,
        ratio_high=ratio + half,
    )


def make_size(kept: int) -> Size:
    """Return the size of a Llama of width 128 with ``kept`` layers."""
    params = 1_050_000 + 196_864 * kept
    return Size(num_params=params, weight_bytes=2 * params, kv_bytes_per_token=512 * kept)


def score(dropped: tuple[int, ...], *, rng: np.random.Generator) -> float:
    """Return a PPL ratio that grows with each layer's cost and with neighbours lost together."""
    cost = sum(LAYER_COSTS[layer] for layer in dropped)
    cost += sum(0.015 for a, b in itertools.pairwise(dropped) if b == a + 1)
    return float(math.exp(cost + rng.normal(0, 0.003)))


def make_evaluation(dropped: tuple[int, ...], ratio: float) -> Evaluation:
    """Return an evaluation whose short distillation stands at ``ratio``."""
    candidate = make_candidate(*dropped)
    kept = len(candidate.kept_layers)
    qualities = {"none": make_quality(ratio**2.5), "closed-form": make_quality(ratio**1.2), PROXY: make_quality(ratio)}
    return Evaluation(
        candidate=candidate, qualities=qualities, latency=make_latency(kept), size=make_size(kept), seconds=6.1
    )


def make_trials() -> tuple[TrialRecord, ...]:
    """Return 12 + 66 + 100 complete trials, a pruned one and a failed one."""
    rng = np.random.default_rng(7)
    subsets = [subset for depth in (1, 2) for subset in itertools.combinations(range(NUM_LAYERS), depth)]
    triples = list(itertools.combinations(range(NUM_LAYERS), 3))
    subsets += [triples[i] for i in sorted(rng.choice(len(triples), 100, replace=False).tolist())]
    trials = [
        TrialRecord(number=number, state="COMPLETE", evaluation=make_evaluation(subset, score(subset, rng=rng)))
        for number, subset in enumerate(subsets)
    ]
    hopeless = make_evaluation((0, 1, 11), 3.9)
    hopeless = msgspec.structs.replace(
        hopeless, qualities={"none": hopeless.qualities["none"]}, skipped_because="closed form shows it to be hopeless"
    )
    trials.append(TrialRecord(number=len(trials), state="PRUNED", evaluation=hopeless))
    failed = make_evaluation((0, 2, 11), 1.001)  # a number from a trial that failed must not show up anywhere
    trials.append(TrialRecord(number=len(trials), state="FAIL", evaluation=failed))
    return tuple(trials)


def make_frontier(trials: tuple[TrialRecord, ...], *, runners_up: int = 1) -> Frontier:
    """Return the best of each depth and ``runners_up`` more."""
    members = []
    for depth in (1, 2, 3):
        here = [t for t in trials if t.state == "COMPLETE" and len(t.evaluation.candidate.dropped_layers) == depth]
        here.sort(key=lambda t: t.evaluation.qualities[PROXY].loss)
        for rank, trial in enumerate(here[: 1 + runners_up]):
            ties = tuple(t.evaluation.candidate.key for t in here[: 1 + runners_up] if t is not trial)
            members.append(
                FrontierMember(
                    trial_number=trial.number,
                    evaluation=trial.evaluation,
                    rank=rank,
                    probability_best=0.63 if rank == 0 else 0.22,
                    tied_with=ties,
                )
            )
    return Frontier(proxy=PROXY, members=tuple(members), num_scored=178, space=SPACE)


def make_distilled(member: FrontierMember, *, order: int) -> DistillResult:
    """Return the distillation of a member: it takes back about half of what the proxy lost."""
    evaluation = member.evaluation
    kept = len(evaluation.candidate.kept_layers)
    start = evaluation.qualities["closed-form"].ppl_ratio
    final = 1 + 0.5 * (evaluation.qualities[PROXY].ppl_ratio - 1) + 0.001 * order
    steps = (0, 100, 200, 300, 400)
    curve = tuple(
        CurvePoint(
            step=step,
            tokens=step * 8192,
            validation_loss=DENSE_LOSS + math.log(final + (start - final) * math.exp(-step / 90)),
            kl_divergence=None if step == 0 else 0.3 * math.exp(-step / 150),
        )
        for step in steps
    )
    return DistillResult(
        candidate=evaluation.candidate,
        trial_number=member.trial_number,
        settings={"learning_rate": 0.001, "batch_tokens": 8192, "steps": 400, "temperature": 1.0},
        curve=curve,
        start="closed-form",
        best_step=400,
        validation=make_quality(final),
        test=make_quality(final + 0.002, dense_loss=2.803, error=0.004, kl=0.4 * (final - 1)),
        test_unrecovered=make_quality(evaluation.qualities["none"].ppl_ratio + 0.01, dense_loss=2.803),
        latency=make_latency(kept, shift=0.004 * (-1) ** order),
        size=evaluation.size,
        seconds=231.4,
        continuations=("self, other):", " sys"),
    )


def make_protocol(space: SearchSpace) -> Protocol:
    """Return what decides the study's numbers."""
    source, contaminated = "Python 3.11 standard library", "0.9 % of its 13-grams are in the recovery text"
    return Protocol(
        model="demo",
        location="demo",
        revision="1f0c" * 10,
        commit=None,
        weights_sha256="ab" * 32,
        trust_remote_code=False,
        license="apache-2.0",
        space=space,
        recovery_text="demo",
        validation_text=None,
        test_text=None,
        window_tokens=512,
        calibration_tokens=4096,
        validation_tokens=65536,
        test_tokens=65536,
        bos_each_window=False,
        streams={
            "recovery": StreamRecord(source=source, tokens=3_276_800, documents=512, sha256="a3" * 32),
            "validation": StreamRecord(source=source, tokens=65536, documents=48, sha256="b4" * 32),
            "test": StreamRecord(source=source, tokens=65536, documents=48, sha256="c5" * 32, notes=(contaminated,)),
        },
        proxy=PROXY,
        short_steps=30,
        batch_tokens=1024,
        short_learning_rate=5e-4,
        mixed_precision=False,
        lora_rank=None,
        freeze_prefix=False,
        latency_batch=1,
        prompt_tokens=64,
        new_tokens=32,
        latency_repeats=None,
        compiled=False,
        latency_command=None,
        device="cpu",
        dtype="float32",
        rng_seed=0,
    )


def make_record() -> StudyRecord:
    """Return a finished study with six distilled models."""
    trials = make_trials()
    frontier = make_frontier(trials)
    dense = make_latency(NUM_LAYERS, half=0.0)
    return StudyRecord(
        plan=SearchPlan(
            name="demo",
            protocol=make_protocol(SPACE),
            trials=180,
            sweep_budget=600.0,
            covers_space=False,
            frontier_size=6,
            distill_tokens=3_276_800,
            max_ppl_ratio=None,
            storage="postgresql://someone:secret-password@host/studies",
            command="python -m seed.search --model demo",
            seed_version="0.1.0",
            created="2026-11-22T10:00:00+00:00",
        ),
        environment=Environment(
            seed="0.1.0",
            python="3.11.9",
            platform="Linux-6.1-x86_64",
            processor="x86_64, 2 cores",
            num_threads=2,
            device=DEVICE,
            packages={"torch": "2.13.0", "transformers": "5.23.0", "optuna": "5.0.0"},
        ),
        space=SPACE,
        dense=DenseResult(
            validation=make_quality(1.0, error=0.0),
            test=make_quality(1.0, dense_loss=2.803, error=0.0),
            latency=dense,
            size=make_size(NUM_LAYERS),
            test_sums=[2.4 * count for count in TEST_COUNTS],
            test_counts=TEST_COUNTS,
            prompts=("def first(", "import"),
            continuations=("self):", " os"),
        ),
        trials=trials,
        frontier=frontier,
        distilled=tuple(make_distilled(member, order=order) for order, member in enumerate(frontier.members)),
        agreement=Agreement(
            proxy=PROXY,
            concordant=2,
            discordant=1,
            verdict="Within depths, 2 of 3 pairs keep their order after distillation.",
        ),
        equivalences=make_equivalences(frontier),
        sensitivities=make_sensitivities(trials),
    )


def make_equivalences(frontier: Frontier) -> tuple[Equivalence, ...]:
    """Return what each runner-up, distilled, is to the best of its depth: worse, tied and better on test text."""
    keys = [member.evaluation.candidate.key for member in frontier.members]
    verdicts = (("higher", 0.012), ("cannot tell", 0.001), ("lower", -0.02))
    return tuple(
        Equivalence(
            one=one, other=other, excess=Estimate(value=value, low=value - 0.005, high=value + 0.005), verdict=verdict
        )
        for other, one, (verdict, value) in zip(keys[::2], keys[1::2], verdicts, strict=True)
    )


def make_sensitivities(trials: tuple[TrialRecord, ...]) -> tuple[Sensitivity, ...]:
    """Return what layers cost by two proxies, as the trials have it."""
    found = []
    for proxy in ("none", PROXY):
        ratios = {
            trial.evaluation.candidate.dropped_layers: trial.evaluation.qualities[proxy].ppl_ratio
            for trial in trials
            if trial.state == "COMPLETE"
        }
        singles = tuple(ratios.get((layer,)) for layer in range(NUM_LAYERS))
        found.append(Sensitivity(proxy=proxy, singles=singles))
    return tuple(found)


def without_distilled(record: StudyRecord) -> StudyRecord:
    """Return the study as a run that distils nothing leaves it."""
    nothing = Agreement(
        proxy=PROXY, concordant=0, discordant=0, verdict="Nothing was distilled, so the proxy stands unchecked."
    )
    return msgspec.structs.replace(record, distilled=(), agreement=nothing, equivalences=())


def replicate(result: DistillResult, *ratios: float, counts: list[int]) -> DistillResult:
    """Return the result with replicas that reach these ratios, a little different from document to document."""
    replicas = tuple(
        Replica(
            rng_seed=seed,
            validation_loss=2.5,
            test_sums=[count * (2.4 + math.log(ratio) + 0.001 * (-1) ** place) for place, count in enumerate(counts)],
            best_step=5,
            seconds=1.0,
        )
        for seed, ratio in enumerate(ratios)
    )
    return msgspec.structs.replace(result, replicas=replicas)


def make_full() -> StudyRecord:
    """Return the study with two models distilled three times, a uniform width, baselines, and a machine that was busy."""
    replace, plain = msgspec.structs.replace, make_record()
    dense, counts = plain.dense, TEST_COUNTS
    first, second, *rest = plain.distilled
    first = replicate(first, 1.05, 1.06, 1.055, counts=counts)
    second = replicate(second, 1.1, 1.11, 1.12, counts=counts)
    width = replace(
        replicate(plain.distilled[0], 1.02, 1.021, 1.022, counts=counts),
        candidate=make_candidate(),
        width=WidthCut(num_layers=NUM_LAYERS, mlp_width=304, num_heads=3, num_kv_heads=3),
    )
    unhelped = replace(rest[-1], test_unrecovered=make_quality(1.0))
    picks = tuple(
        BaselinePick(candidate=make_candidate(*pick), best=make_candidate(*best), ppl_ratio=ratio, standard_error=error)
        for pick, best, ratio, error in (
            ((7,), (7,), 1.0, 0.0),
            ((1, 7), (1, 5), 1.013, 0.002),
            ((2, 3), (1, 5), 0.994, 0.002),
            ((2, 4, 6), (1, 5, 7), None, None),
        )
    )
    baselines = [
        Baseline(strategy=name, title=name, cost=2e5, num_scores=23, picks=chosen, is_whole=is_whole)
        for name, chosen, is_whole in (
            ("greedy", picks, True),
            ("the same", (picks[0], picks[0]), True),
            ("short", picks[1:2], False),
            ("nowhere", (), False),
        )
    ]
    busy = replace(unhelped.latency, disturbance="other processes took 0.9 of 2 cores")
    return replace(
        plain,
        dense=dense,
        distilled=(first, second, *rest[:-1], replace(unhelped, latency=busy)),
        width_baselines=(width,),
        replications={one.key: summarize_replicas(one.replicas, dense) for one in (first, second, width)},
        equivalences=(*compare_replicated([first, second], dense), *plain.equivalences[1:]),
        gain=SearchGain(
            proxy=PROXY, solver="searched with subset", cost=8e5, num_scores=57, baselines=tuple(baselines)
        ),
    )
