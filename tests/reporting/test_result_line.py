"""The line for scripts: one line, valid JSON whatever the numbers, the record's own models and recommendations."""

import json
from pathlib import Path

import msgspec

from seed.findings import StudyRecord
from seed.reporting.answers import recommend
from seed.reporting.result_line import describe_evaluation, describe_study, spell_line

from . import factory


def test_a_study_is_one_line_with_every_exported_model(record: StudyRecord) -> None:
    line = spell_line(describe_study(record, root=Path("studies/demo")))
    assert "\n" not in line
    told = json.loads(line)
    assert [model["key"] for model in told["models"]] == [result.key for result in record.distilled]
    first, result = told["models"][0], record.distilled[0]
    assert first["path"] == f"studies/demo/models/{result.key}"
    assert first["ppl_ratio"]["value"] == result.test.ppl_ratio
    assert first["ppl_ratio"]["low"] < result.test.ppl_ratio < first["ppl_ratio"]["high"]
    assert first["latency_ratio"] == {
        "value": result.latency.ratio,
        "low": result.latency.ratio_low,
        "high": result.latency.ratio_high,
    }
    chosen = {str(one.margin): one.contender.key if one.contender else None for one in recommend(record)}
    assert told["fastest_within"] == chosen
    assert (told["num_scored"], told["space_size"]) == (178, 298)


def test_without_distillation_there_are_no_models(undistilled: StudyRecord) -> None:
    told = json.loads(spell_line(describe_study(undistilled, root=Path("studies/demo"))))
    assert told["models"] == []
    assert told["fastest_within"].keys() == {"2", "5", "10"}


def test_numbers_that_json_does_not_know_are_null(record: StudyRecord) -> None:
    test = msgspec.structs.replace(factory.make_quality(1.1), perplexity=float("inf"), loss=float("nan"))
    size, latency = record.dense.size, record.dense.latency
    told = json.loads(spell_line(describe_evaluation("m", test=test, latency=latency, size=size, is_beside=False)))
    assert (told["test_perplexity"], told["loss"], told["ppl_ratio"]) == (None, None, None)
    assert told["num_params"] == size.num_params
