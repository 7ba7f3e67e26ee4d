"""Notes, figures and cards in a study: written once, replaced when they change, and people's own words left alone."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna_dashboard import get_note, save_note

from seed.errors import StudyError
from seed.optimize import storage as storages
from seed.optimize import study as studies
from seed.optimize.display import show_note, show_study
from seed.optimize.viewing import find_study_id, view_storage
from seed.records import hash_text

FIGURE = '{"data":[{"type":"scatter","x":[%s]}],"layout":{}}'


def make_study(place: Path, *, url: str | None = None) -> optuna.Study:
    storage = storages.open_storage(url, journal=place / "journal.log")
    study = studies.open_study(storage, name="here", rung="none", fingerprint="one")
    for value in (1.0, 2.0, 3.0):
        study.add_trial(optuna.trial.create_trial(values=[value, value]))
    return study


def show(study: optuna.Study, place: Path, **changed: Any) -> int:
    shown: dict[str, Any] = {
        "note": "# Hello",
        "trial_notes": {0: "first", 2: "third"},
        "figures": {"seed-1": FIGURE % 1},
        "cards": {0: "# Card"},
    }
    return show_study(study, **(shown | changed), artifacts=place / "artifacts")


def read_attributes(study: optuna.Study) -> dict[str, Any]:
    return study._storage.get_study_system_attrs(study._study_id)


def read_artifacts(study: optuna.Study) -> list[dict[str, Any]]:
    found = [json.loads(v) for k, v in read_attributes(study).items() if k.startswith("dashboard:artifacts:")]
    return [one for one in found if one]


@pytest.mark.parametrize("is_sqlite", [False, True])
def test_what_is_unchanged_is_not_written_again(tmp_path: Path, is_sqlite: bool) -> None:
    url = f"sqlite:///{tmp_path}/studies.db" if is_sqlite else None
    study = make_study(tmp_path, url=url)
    assert show(study, tmp_path) == 5
    before = read_attributes(study)
    content = (tmp_path / "journal.log").read_bytes() if not is_sqlite else b""
    assert show(study, tmp_path) == 0
    assert read_attributes(study) == before
    assert is_sqlite or (tmp_path / "journal.log").read_bytes() == content
    study._storage.remove_session()


def test_what_changed_is_replaced_and_what_is_gone_taken_away(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    show(study, tmp_path)
    long = FIGURE % ", ".join(map(str, range(2000)))
    assert show(study, tmp_path, figures={"seed-1": long}) == 1
    assert show(study, tmp_path, note="# Other", trial_notes={0: "first"}, cards={0: "# New card"}) == 4
    attributes = read_attributes(study)
    pieces = [v for k, v in attributes.items() if k.startswith("dashboard:plot_data:seed-1:")]
    assert "".join(pieces) == FIGURE % 1
    assert get_note(study) == "# Other"
    notes = [v for k, v in attributes.items() if k == f"dashboard:{study.trials[2]._trial_id}:note_str:0"]
    assert notes == [""]
    [artifact] = read_artifacts(study)
    [file] = (tmp_path / "artifacts").iterdir()
    assert (file.name, file.read_text()) == (artifact["artifact_id"], "# New card")
    show(study, tmp_path, figures={}, cards={})
    assert read_artifacts(study) == []
    assert not list((tmp_path / "artifacts").iterdir())
    pieces = [v for k, v in read_attributes(study).items() if k.startswith("dashboard:plot_data:seed-1:")]
    assert json.loads("".join(pieces)) == {"data": [], "layout": {}}


def test_a_lost_card_is_made_up(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    show(study, tmp_path)
    next((tmp_path / "artifacts").iterdir()).unlink()
    assert show(study, tmp_path) == 1
    assert len(read_artifacts(study)) == 1


def test_a_note_that_people_wrote_stays(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    show(study, tmp_path)
    save_note(study, "my own words")
    assert show(study, tmp_path, note="# New answer") == 0
    assert get_note(study) == "my own words"
    other = make_study(tmp_path / "other", url=f"sqlite:///{tmp_path}/other.db")
    save_note(other, "before Seed")
    assert not show_note(other, "# Hello")
    other._storage.remove_session()


def test_a_note_that_a_killed_writer_left_half_written_is_written_again(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    show(study, tmp_path)
    study._storage.set_study_system_attr(study._study_id, "seed:shown:note", "")
    save_note(study, "half of")
    assert show(study, tmp_path) == 1
    assert get_note(study) == "# Hello"
    assert read_attributes(study)["seed:shown:note"] == hash_text("# Hello")


def test_a_storage_that_takes_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path)

    def refuse(*words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study._storage, "set_study_system_attr", refuse)
    with pytest.raises(StudyError, match=r"study here: .*No space left.*python -m seed\.report"):
        show(study, tmp_path)


def test_looking_neither_repairs_nor_fails_nor_creates(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.ask()
    journal = tmp_path / "journal.log"
    torn = journal.read_bytes() + b'{"op_code":8,"worker'
    journal.write_bytes(torn)
    storage = view_storage(None, journal=journal)
    trials = storage.get_all_trials(find_study_id(storage, "here"))
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3 + ["RUNNING"]
    assert journal.read_bytes() == torn
    with pytest.raises(StudyError, match=r"study there: not in the storage"):
        find_study_id(storage, "there")
    for url in (None, f"sqlite:///{tmp_path}/none.db"):
        with pytest.raises(StudyError, match=r"missing|no such file"):
            view_storage(url, journal=tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
