"""Replicas and widths in the report: means with intervals wherever a ratio is shown, equivalence in words, a curve of widths."""

import math

import msgspec
import pytest

from seed.findings import Equivalence, StudyRecord
from seed.optimize.replication import compare_replicated, summarize_replicas
from seed.records import DistillResult, Estimate, Replica, WidthCut
from seed.reporting.page import render_page
from seed.reporting.pareto import draw_pareto
from seed.reporting.replication import list_replications, name_model, say_equivalence, say_ratio
from seed.reporting.summary import distilled_table
from tests.reporting.factory import NUM_LAYERS, make_candidate, make_record

COUNTS = [100, 120, 90, 110]
DENSE = [2.4 * count for count in COUNTS]
CUT = WidthCut(num_layers=NUM_LAYERS, mlp_width=304, num_heads=3, num_kv_heads=3)


def replicate(result: DistillResult, ratios: list[float]) -> DistillResult:
    """The result with replicas that reach these ratios, a little different from document to document."""
    replicas = tuple(
        Replica(
            rng_seed=seed,
            validation_loss=2.5,
            test_sums=[
                dense + count * (math.log(ratio) + 0.001 * (-1) ** place)
                for place, (dense, count) in enumerate(zip(DENSE, COUNTS, strict=True))
            ],
            best_step=5,
            seconds=1.0,
        )
        for seed, ratio in enumerate(ratios)
    )
    return msgspec.structs.replace(result, replicas=replicas)


def make_replicated() -> StudyRecord:
    """Return a study whose first two models were distilled three times, and one width."""
    plain = make_record()
    dense = msgspec.structs.replace(plain.dense, test_sums=DENSE, test_counts=COUNTS)
    first, second, *rest = plain.distilled
    first, second = replicate(first, [1.05, 1.06, 1.055]), replicate(second, [1.1, 1.11, 1.12])
    width = msgspec.structs.replace(
        replicate(plain.distilled[0], [1.02, 1.021, 1.022]), candidate=make_candidate(), width=CUT
    )
    replicated = (first, second, width)
    return msgspec.structs.replace(
        plain,
        dense=dense,
        distilled=(first, second, *rest),
        baselines=(width,),
        replications={result.key: summarize_replicas(result.replicas, dense) for result in replicated},
        equivalences=compare_replicated([first, second], dense),
    )


@pytest.fixture
def record() -> StudyRecord:
    """The study with replicas."""
    return make_replicated()


def test_a_ratio_is_the_mean_of_replicas_with_its_interval(record: StudyRecord) -> None:
    first, third = record.distilled[0], record.distilled[2]
    replication = record.replications[first.key]
    assert replication.ppl_ratio.value == pytest.approx(math.exp(sum(map(math.log, (1.05, 1.06, 1.055))) / 3), rel=1e-4)
    said = say_ratio(first, replication)
    assert said.startswith("1.055 [")
    assert said.endswith("], mean of 3")
    assert "±" in say_ratio(third, record.replications.get(third.key))  # distilled once: its standard error
    page = render_page(record, command="x")
    assert page.count(said) == 2  # in the answer, and where the model is chosen
    assert any(
        say_ratio(first, replication, places=4) in row
        for row in distilled_table(record.distilled, record.dense, record.replications)[1]
    )


def test_the_page_lists_replicas_and_says_which_models_are_the_same(record: StudyRecord) -> None:
    rows = list_replications(record)
    assert [row[0] for row in rows] == [name_model(result) for result in (*record.distilled[:2], *record.baselines)]
    assert rows[0][1] == "3"
    assert rows[0][4] == "1.0499, 1.0599"  # the smallest and the largest, documents weighed by their tokens
    page = render_page(record, command="x")
    assert "Distilled more than once" in page
    assert "none; MLP 304, 3 heads" in page
    once = msgspec.structs.replace(record, replications={}, equivalences=())
    assert "Distilled more than once" not in render_page(once, command="x")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("equivalent", "equivalent within 0.5"), ("lower", "better"), ("higher", "worse"), ("cannot tell", "cannot tell")],
)
def test_equivalence_is_said_in_words(verdict: str, said: str) -> None:
    found = Equivalence(
        one="drop-1", other="drop-2", excess=Estimate(value=0.01, low=0.002, high=0.02), verdict=verdict
    )
    text = say_equivalence(found, {"drop-1": "1", "drop-2": "2"})
    assert text.startswith(f"without 1 against without 2: {said}")
    assert "+1.00 [+0.20, +2.00]" in text


def test_widths_are_a_curve_of_their_own(record: StudyRecord) -> None:
    traces = {trace.name: trace for trace in draw_pareto(record).data}
    widths = traces["uniform width, distilled"]
    mean = record.replications[CUT.key].ppl_ratio.value
    assert list(widths.y) == [pytest.approx(mean)]
    assert widths.mode == "lines+markers"
    assert mean not in traces["distilled, on test text"].y
    first = record.replications[record.distilled[0].key].ppl_ratio
    assert traces["distilled, on test text"].y[0] == pytest.approx(first.value)
    assert traces["distilled, on test text"].error_y.array[0] == pytest.approx(first.high - first.value)
    assert "uniform width, distilled" not in {trace.name for trace in draw_pareto(make_record()).data}
