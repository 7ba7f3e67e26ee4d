"""The data of all trials: every trial once, numbers that JSON knows, and nothing that ends the script element."""

import json
import re
from typing import Any

import msgspec

from seed.findings import StudyRecord
from seed.records import TrialRecord
from seed.reporting.trials import render_data, render_trials

from . import factory


def read(record: StudyRecord, **facts: Any) -> dict[str, Any]:
    """Read back what the page's script reads."""
    [text] = re.findall(r"<script[^>]*>(.*)</script>", render_data(record, facts), re.S)
    assert not set("<>&") & set(text)
    return json.loads(text)


def test_every_trial_is_there_once(record: StudyRecord) -> None:
    data = read(record)
    rows = [dict(zip(data["fields"], values, strict=True)) for values in data["table"]]
    assert [row["number"] for row in rows] == [trial.number for trial in record.trials]
    for row, trial in zip(rows, record.trials, strict=True):
        evaluation = trial.evaluation
        assert row["id"] == "-".join(evaluation.candidate.dropped_parts)
        assert data["structures"][row["structure"]]["count"] == len(evaluation.candidate.dropped_layers)
        assert data["structures"][row["structure"]]["params"] == evaluation.size.num_params
        quality = evaluation.qualities.get(record.frontier.rung)
        assert row["ratio"] == (None if quality is None else round(quality.ppl_ratio, 4))
    assert {row["state"] for row in rows} == {"complete", "pruned", "fail"}
    assert [row["note"] for row in rows if row["note"]] == ["closed form shows it to be hopeless"]
    assert len(data["distilled"]) == len(record.distilled)
    known = {*data["fields"], *data["structures"][0], "distilled"}
    assert {column["key"] for column in data["columns"]} <= known


def test_numbers_that_json_does_not_know_are_absent(record: StudyRecord) -> None:
    [trial] = record.trials[:1]
    quality = factory.make_quality(1.1)
    broken = msgspec.structs.replace(quality, ppl_ratio=float("inf"), ppl_ratio_standard_error=float("nan"))
    evaluation = msgspec.structs.replace(trial.evaluation, qualities={factory.RUNG: broken})
    lost = TrialRecord(number=0, state="PRUNED", evaluation=evaluation)
    [row] = read(msgspec.structs.replace(record, trials=(lost,)))["table"]
    assert row[3:6] == [None, None, None]


def test_hostile_words_do_not_end_the_script(record: StudyRecord) -> None:
    hostile = "</script><script>alert(1)</script>&\u2028"
    data = read(record, **{"1": (hostile, [(hostile, hostile)])})
    assert data["models"]["1"] == {"name": hostile, "facts": [[hostile, hostile]]}


def test_the_frame_names_each_column_and_depth(record: StudyRecord) -> None:
    html = render_trials(record)
    assert len(re.findall(r'data-sort="', html)) == len(read(record)["columns"])
    for depth in (1, 2, 3):
        assert f'<option value="{depth}">' in html
    assert render_trials(msgspec.structs.replace(record, trials=())) == ""
