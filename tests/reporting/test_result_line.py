"""The line of --json: what the records say, valid whatever the numbers are, and the same after a round trip."""

import json
from pathlib import Path

import msgspec
import pytest

from seed.findings import Replication, StudyRecord
from seed.folder import StudyFolder
from seed.records import Estimate
from seed.reporting.result_line import SearchLine, StagedLine, describe_one_more, describe_search, describe_staged

from .factory import make_record, without_distilled
from .test_staged import make_staged

STUDY = StudyFolder(Path("studies/demo"))


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return make_record()


def test_the_line_says_what_was_distilled_and_what_to_ship(record: StudyRecord) -> None:
    line = describe_search(record, STUDY)
    assert [model.key for model in line.models] == [result.key for result in record.distilled]
    for model, result in zip(line.models, record.distilled, strict=True):
        assert model.path == str(STUDY.model(result.key))
        assert model.ppl_ratio.value == result.test.ppl_ratio
        assert model.ppl_ratio.low < model.ppl_ratio.value < model.ppl_ratio.high
        assert model.unrecovered_ppl_ratio == result.test_unrecovered.ppl_ratio
        assert model.text == "test"
    assert [one.within_percent for one in line.recommended] == [2, 5, 10]
    assert {one.key for one in line.recommended} - {None} <= {model.key for model in line.models}
    assert line.dense.test_ppl == record.dense.test.perplexity
    assert line.report == "studies/demo/report.html"


def test_without_distillation_the_line_says_what_the_proxy_says(record: StudyRecord) -> None:
    bare = without_distilled(record)
    line = describe_search(bare, STUDY)
    assert [model.key for model in line.models] == [m.evaluation.candidate.key for m in bare.frontier.members]
    assert {(model.text, model.path) for model in line.models} == {("validation", None)}


def test_the_mean_of_replicas_is_what_counts(record: StudyRecord) -> None:
    first = record.distilled[0]
    ratio = Estimate(value=1.5, low=1.4, high=1.6)
    replication = Replication(rng_seeds=(0, 1), ppl_ratio=ratio, spread=0.01)
    replicated = msgspec.structs.replace(record, replications={first.key: replication})
    assert describe_search(replicated, STUDY).models[0].ppl_ratio == ratio
    assert describe_one_more(first, STUDY, replication).distilled.ppl_ratio == ratio


def test_a_line_is_one_line_and_comes_back_the_same(record: StudyRecord) -> None:
    line = describe_search(record, STUDY)
    text = msgspec.json.encode(line)
    assert b"\n" not in text
    assert msgspec.json.decode(text, type=SearchLine) == line


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_know_become_null(record: StudyRecord, number: float) -> None:
    def spoil(quality):
        return msgspec.structs.replace(
            quality, perplexity=number, ppl_ratio=number, ppl_ratio_standard_error=number, loss=number
        )

    broken = msgspec.structs.replace(
        record,
        distilled=tuple(
            msgspec.structs.replace(one, test=spoil(one.test), test_unrecovered=spoil(one.test_unrecovered))
            for one in record.distilled
        ),
        dense=msgspec.structs.replace(record.dense, test=spoil(record.dense.test)),
    )
    line = describe_search(broken, STUDY)
    found = json.loads(msgspec.json.encode(line), parse_constant=pytest.fail)
    assert found["models"][0]["ppl_ratio"] == {"value": None, "low": None, "high": None}
    assert found["models"][0]["unrecovered_ppl_ratio"] is None
    assert found["dense"]["test_ppl"] is None
    assert msgspec.json.decode(msgspec.json.encode(line), type=SearchLine) == line


def test_stages_have_a_line_of_their_own() -> None:
    staged = make_staged()
    root = Path("studies/demo-2-1")
    line = describe_staged(staged, root)
    last = staged.stages[-1]
    assert line.stages[-1].best.path == str(root / last.name / "models" / last.result.key)
    assert line.stages[-1].tokens == last.tokens
    assert line.excess == staged.excess
    assert msgspec.json.decode(msgspec.json.encode(line), type=StagedLine) == line
