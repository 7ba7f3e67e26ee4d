"""The study of claims: verdicts on the published record and on that record changed by hand, its page, and a run that is stopped."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from seed import study_dir
from seed.console import Terminal
from seed.errors import StudyError
from seed.evidence import TrainedRun
from seed.experiments import runner
from seed.experiments.runner import FinishedSearch
from seed.records import Estimate
from seed.reporting.document import render_findings
from seed.scores import ScoreStore
from studies.claims import __main__ as claims
from studies.claims.page import tell_claims
from studies.claims.verdicts import CANNOT_TELL, FAILS, HOLDS, Evidence, estimate_cost, judge_claims, tell, tell_all
from tests.interrupting import interrupting
from tests.proxy.opened import drop
from tests.stages.opened import make_plan, open_session, open_sweep

RECORD = Path(__file__).parent.parent / "studies" / "claims" / "record"
PUBLISHED = study_dir.read_record(RECORD / "claims.json", Evidence)
VERDICTS = {
    **dict.fromkeys(("quality", "speed", "light", "ends", "places", "order"), HOLDS),
    **dict.fromkeys(("stages", "width", "pretraining"), FAILS),
    **dict.fromkeys(("stability", "decoding"), CANNOT_TELL),
}
COUNTS = PUBLISHED.ledger.test_counts
TOKENS = 1024
QUIET = Terminal(quiet=True)
HOSTILE = "<script>alert(1)</script>"
Change = Callable[[Evidence], Evidence]


def judge(evidence: Evidence) -> dict[str, str]:
    return {claim.key: finding.verdict for claim, finding in judge_claims(evidence)}


def change_runs(change: Callable[[TrainedRun], TrainedRun | None]) -> Change:
    """Every run as ``change`` has it; None: it is left out."""

    def apply(evidence: Evidence) -> Evidence:
        runs = tuple(run for run in map(change, evidence.ledger.runs) if run is not None)
        return structs.replace(evidence, ledger=structs.replace(evidence.ledger, runs=runs))

    return apply


def move(factors: dict[tuple[str, str], float]) -> Change:
    """Perplexities times a factor, by role and recovery; "stages": of staged runs."""

    def change(run: TrainedRun) -> TrainedRun:
        roles = ["stages"] if run.stages else [role for role, key in PUBLISHED.roles.items() if key == run.key]
        factor = math.prod(factors.get((role, run.recovery), 1.0) for role in roles)
        sums = [loss + count * math.log(factor) for loss, count in zip(run.test_sums, COUNTS, strict=True)]
        return structs.replace(run, test_sums=sums)

    return change_runs(change)


def spread(share: float) -> Change:
    """Replicas that differ in nothing but by this share of perplexity."""
    firsts = {run.key: run.test_sums for run in PUBLISHED.ledger.runs[::-1] if run.recovery == "distillation"}

    def change(run: TrainedRun) -> TrainedRun:
        first = firsts.get(run.key, run.test_sums)
        sums = [loss + count * run.rng_seed * math.log1p(share) for loss, count in zip(first, COUNTS, strict=True)]
        return structs.replace(run, test_sums=sums)

    return change_runs(change)


def time(role: str, ratio: float) -> Change:
    """The latency ratio of a role's model at batch 1, known to one in a hundred."""
    name = f"{PUBLISHED.roles[role]}, batch 1"
    latency = structs.replace(PUBLISHED.latencies[name], ratio=ratio, ratio_low=ratio - 0.01, ratio_high=ratio + 0.01)
    return lambda evidence: structs.replace(evidence, latencies={**evidence.latencies, name: latency})


def cost(*layers: int, by: float) -> Change:
    """Single removals that cost more, nats per token, by closed form."""
    singles = dict(PUBLISHED.singles["closed-form"])
    for layer in map(str, layers):
        counted = zip(singles[layer], PUBLISHED.validation_counts, strict=True)
        singles[layer] = [loss + count * by for loss, count in counted if loss is not None]
    return lambda evidence: structs.replace(evidence, singles={"closed-form": singles})


DISTILLED, LORA = "distillation", "lora-pretraining"
CASES: list[tuple[str, Change, str]] = [
    ("quality", move({("deep", DISTILLED): 1.2}), FAILS),
    ("quality", move({("deep", DISTILLED): 1.05}), CANNOT_TELL),
    ("quality", change_runs(lambda run: None if run.num_dropped == 3 else run), CANNOT_TELL),
    ("light", move({("light", DISTILLED): 1.1}), FAILS),
    ("speed", time("deep", 0.95), FAILS),
    ("speed", time("deep", 1 / 1.15), CANNOT_TELL),
    ("stability", spread(0.0), HOLDS),
    ("stability", spread(0.02), FAILS),
    ("stability", change_runs(lambda run: run if run.rng_seed == 0 else None), CANNOT_TELL),
    ("stages", move({("stages", DISTILLED): 0.95}), HOLDS),
    ("stages", move({("stages", DISTILLED): 0.98}), CANNOT_TELL),
    ("ends", cost(11, by=-0.2), FAILS),
    ("places", cost(8, 9, 10, by=-0.1), FAILS),
    ("order", move({("middle", DISTILLED): 1.1}), FAILS),  # that model is the best pair by closed form too
    ("order", lambda evidence: structs.replace(evidence, roles={**evidence.roles, "raw pair": "drop-1-7"}), FAILS),
    ("width", move({("width middle", DISTILLED): 1.1, ("width deep", DISTILLED): 1.2}), HOLDS),
    ("decoding", time("width deep", 1.0), HOLDS),
    ("decoding", time("width deep", 0.8), FAILS),
    ("decoding", lambda evidence: structs.replace(evidence, latencies={}), CANNOT_TELL),
    ("pretraining", move({("middle", LORA): 1.05, ("severe", LORA): 1.2}), HOLDS),
]


def test_the_published_record_yields_the_published_verdicts() -> None:
    assert judge(PUBLISHED) == VERDICTS
    found = {claim.key: finding.found for claim, finding in judge_claims(PUBLISHED)}
    assert "3 of 12 layers dropped (20.5 % fewer parameters): 1.074 [1.059, 1.088]" in found["quality"]
    assert "+2.07 [+1.11, +3.05]" in found["stages"]
    page = render_findings(
        tell_claims(PUBLISHED, judge_claims(PUBLISHED)), command="python -m studies.claims studies/demo"
    )
    assert "Of 11 claims 6 hold, 3 do not hold, 2 cannot be told. Model: demo." in page
    assert "Farther off: layer 0 with no recovery (6.593 [6.285, 6.900])" in page


@pytest.mark.parametrize(("key", "change", "wanted"), CASES, ids=[f"{case[0]}, {case[2]}" for case in CASES])
def test_a_claim_is_judged_by_its_intervals(key: str, change: Change, wanted: str) -> None:
    assert judge(change(PUBLISHED))[key] == wanted


def test_missing_numbers_decide_nothing_and_names_are_escaped() -> None:
    ledger = structs.replace(PUBLISHED.ledger, runs=(), model=HOSTILE, study=HOSTILE)
    empty = structs.replace(PUBLISHED, ledger=ledger, latencies={}, num_layers=3)
    broken = change_runs(lambda run: structs.replace(run, test_sums=[None] * len(COUNTS)))(PUBLISHED)
    assert set(judge(empty).values()) == {CANNOT_TELL}
    assert {judge(broken)[key] for key in set(VERDICTS) - {"speed", "ends", "places"}} == {CANNOT_TELL}
    assert HOSTILE not in render_findings(tell_claims(empty, judge_claims(empty)), command=HOSTILE)


def test_a_cost_has_the_interval_of_its_documents() -> None:
    singles = {"none": {"0": [21.0, 22.0, 23.0]}}
    counts, dense = [10, 10, 10], [20.0, 20.0, 20.0]
    evidence = structs.replace(PUBLISHED, singles=singles, validation_counts=counts, dense_validation_sums=dense)
    found = estimate_cost(evidence, {0: 1.0}, proxy="none")
    half = 4.3026527 * 0.1 / math.sqrt(3)  # Student's t with two degrees of freedom, standard deviation 0.1
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert tell(Estimate(value=1.0, low=1.01, high=1.02), below=1.0) == FAILS
    assert tell(Estimate(value=1.0, low=0.9, high=1.1), above=1.0) == CANNOT_TELL
    assert tell_all([HOLDS, CANNOT_TELL, FAILS]) == FAILS
    assert tell_all([HOLDS, CANNOT_TELL]) == tell_all([]) == CANNOT_TELL


@pytest.mark.parametrize(
    ("num_layers", "depths"), [(2, [1, 1, 1, 1]), (4, [1, 2, 3, 3]), (12, [1, 2, 3, 6]), (22, [2, 4, 6, 11])]
)
def test_depths_are_shares_of_the_model(num_layers: int, depths: list[int]) -> None:
    assert list(claims.choose_depths(num_layers).values()) == depths


def open_study(place: Path, *, tokens: int = TOKENS) -> claims.Opened:
    session = open_session(place)
    plan = make_plan(session.protocol, trials=1, covers_space=False)
    with ScoreStore(session.folder.scores) as store:
        search = FinishedSearch(
            terminal=QUIET, folder=session.folder, plan=plan, protocol=session.protocol, store=store, device="cpu"
        )
    vars(search).update(session=session, sweep=open_sweep(session))  # as if they were opened
    return claims.Opened(search=search, distill_tokens=tokens, rng_seeds=(0,), rates=(1e-3,))


def test_roles_go_to_the_best_that_scores_tell(tmp_path: Path) -> None:
    opened = open_study(tmp_path)
    members = dict(claims.choose_members(opened))
    pairs = claims.list_sets(drop(), num_dropped=2)
    raw = [quality.loss for quality in opened.sweep.measure_unrecovered(pairs)]
    assert members["light"].candidate == min(map(drop, range(4)), key=lambda one: opened.sweep.measure(one).loss)
    assert members["pair"].candidate == min(pairs, key=lambda pair: opened.sweep.measure(pair).loss)
    assert members["raw pair"].candidate == pairs[raw.index(min(raw))]
    assert len(members["deep"].candidate.dropped_layers) == 3
    assert members["width deep"].width is not None


@pytest.mark.parametrize("droppable", [(0, 1, 2, 3), (0, 1, 2)])
def test_scores_of_a_study_that_may_not_drop_all_layers_choose_no_cut(
    droppable: tuple[int, ...], tmp_path: Path
) -> None:
    opened = open_study(tmp_path)
    space = structs.replace(opened.session.protocol.space, droppable_layers=droppable)
    protocol = structs.replace(opened.session.protocol, space=space)
    vars(opened.search)["session"] = replace(opened.session, protocol=protocol)
    whole, sets = drop(), claims.list_sets(drop(), num_dropped=3)
    grown = claims.grow(open_sweep(open_study(tmp_path / "other").session), whole, num_dropped=3)
    scored = next(one for one in sets if one != grown)
    opened.sweep.measure(scored)
    found = claims.find_best(opened, whole, num_dropped=3)
    assert found == (scored if len(droppable) == 4 else grown)


def gather(place: Path, *, tokens: int = TOKENS) -> Evidence:
    """Everything, or what is left of it."""
    opened = open_study(place, tokens=tokens)
    evidence = runner.read_begun(opened.path, Evidence, opened.settings) or claims.start_evidence(opened, QUIET)
    return claims.train_missing(opened, claims.measure_latencies(opened, evidence, QUIET), QUIET)


def test_a_stopped_run_goes_on_to_the_same_evidence(tmp_path: Path) -> None:
    whole = gather(tmp_path / "whole" / "tiny")
    with interrupting(runner, "train", after=4):
        gather(tmp_path / "stopped" / "tiny")
    resumed = gather(tmp_path / "stopped" / "tiny")
    forget = change_runs(lambda run: structs.replace(run, seconds=0.0))
    assert structs.replace(forget(resumed), latencies={}) == structs.replace(forget(whole), latencies={})
    assert gather(tmp_path / "whole" / "tiny") == whole  # nothing is done twice
    staged = [run for run in whole.ledger.runs if run.stages]
    assert [(run.stages, run.tokens) for run in staged] == [((whole.roles["middle"],), TOKENS)]
    assert {name.rpartition(", ")[2] for name in whole.latencies} == {"batch 1", "batch 8"}
    assert len(claims.list_wanted(open_study(tmp_path / "whole" / "tiny"), whole)) == len(whole.ledger.runs) - len(
        staged
    )
    assert len(tell_claims(whole, judge_claims(whole)).answers) == 1 + len(VERDICTS)
    with pytest.raises(StudyError, match="distill_tokens: 1024 there, 2048 now"):
        gather(tmp_path / "whole" / "tiny", tokens=2048)
    (tmp_path / "whole" / "tiny" / "claims.json").write_text("{torn")
    with pytest.raises(StudyError, match="Remove this file and run the command again"):
        gather(tmp_path / "whole" / "tiny")
