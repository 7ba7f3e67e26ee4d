"""A note, figures and cards in a study: written once, replaced when they change, and people's own words left alone."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna_dashboard import get_note, save_note

from seed.errors import ResourceError
from seed.optimize import display
from seed.optimize.display import SHOWN, show_note, show_study
from seed.optimize.storage import open_storage

FIGURE = '{"data":[{"type":"scatter","x":[%s]}],"layout":{}}'


def make_study(place: Path, *, url: str | None = None) -> optuna.Study:
    storage = open_storage(url, journal=place / "journal.log")
    study = optuna.create_study(storage=storage, study_name="here", directions=["minimize", "minimize"])
    for value in (1.0, 2.0, 3.0):
        study.add_trial(optuna.trial.create_trial(values=[value, value]))
    return study


def show(study: optuna.Study, place: Path, **changed: Any) -> int:
    shown: dict[str, Any] = {
        "note": "# Hello",
        "figures": {"seed-1": FIGURE % 1},
        "cards": {"drop-1.md": "# Card"},
    }
    return show_study(study, **(shown | changed), artifacts=place / "artifacts")


def read_cards(study: optuna.Study, place: Path) -> dict[str, str]:
    """Texts of the study's artifacts, by name."""
    return {
        meta.filename: (place / "artifacts" / meta.artifact_id).read_text() for meta in get_all_artifact_meta(study)
    }


def read_figure(place: Path, name: str) -> str:
    """What a figure's pieces in the journal are, the last of each."""
    pieces: dict[str, str] = {}
    for line in (place / "journal.log").read_text().splitlines():
        pieces |= {k: v for k, v in json.loads(line).get("system_attr", {}).items() if f":plot_data:{name}:" in k}
    return "".join(pieces[key] for key in sorted(pieces, key=lambda key: int(key.rpartition(":")[2])))


@pytest.mark.parametrize("is_sqlite", [False, True])
def test_what_is_unchanged_is_not_written_again(tmp_path: Path, is_sqlite: bool) -> None:
    study = make_study(tmp_path, url=f"sqlite:///{tmp_path}/studies.db" if is_sqlite else None)
    assert show(study, tmp_path) == 3
    assert get_note(study) == "# Hello"
    assert read_cards(study, tmp_path) == {"drop-1.md": "# Card"}
    before = study.user_attrs
    content = (tmp_path / "journal.log").read_bytes() if not is_sqlite else b""
    assert show(study, tmp_path) == 0
    assert study.user_attrs == before
    assert is_sqlite or (tmp_path / "journal.log").read_bytes() == content


def test_what_changed_is_replaced_and_what_is_gone_is_blank(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    show(study, tmp_path)
    long = FIGURE % ", ".join(map(str, range(2000)))
    assert show(study, tmp_path, figures={"seed-1": long}) == 1
    assert read_figure(tmp_path, "seed-1") == long
    assert show(study, tmp_path, note="# Other", cards={"drop-1.md": "# New"}) == 3
    assert read_figure(tmp_path, "seed-1") == FIGURE % 1
    assert get_note(study) == "# Other"
    assert read_cards(study, tmp_path) == {"drop-1.md": "# New"}
    assert show(study, tmp_path, note="# Other", figures={}, cards={"drop-2.md": "# Second"}) == 3
    assert read_figure(tmp_path, "seed-1") == display.BLANK
    assert read_cards(study, tmp_path) == {"drop-1.md": display.GONE, "drop-2.md": "# Second"}
    assert show(study, tmp_path, note="# Other", figures={}, cards={"drop-2.md": "# Second"}) == 0


def test_a_note_that_people_wrote_stays(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    show(study, tmp_path)
    save_note(study, "my own words")
    assert show(study, tmp_path, note="# New answer") == 0
    assert get_note(study) == "my own words"
    other = make_study(tmp_path / "other", url=f"sqlite:///{tmp_path}/other.db")
    save_note(other, "before Seed")
    assert not show_note(other, "# Hello", artifacts=tmp_path / "artifacts")


def test_what_a_killed_writer_left_half_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path)
    show(study, tmp_path)

    def die(study: optuna.Study, name: str, content: str, *, artifacts: Path) -> None:
        save_note(study, content[:3])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(display, "_write_one", die)
        with pytest.raises(KeyboardInterrupt):
            show(study, tmp_path, note="# Other")
    assert get_note(study) == "# O"
    assert show(study, tmp_path, note="# Other") == 1
    assert get_note(study) == "# Other"


def test_a_foreign_journal_chooses_no_file_that_is_written(tmp_path: Path) -> None:
    place = tmp_path / "study"
    place.mkdir()
    study = make_study(place)
    (tmp_path / "precious.md").write_text("precious")

    class Elsewhere(FileSystemArtifactStore):
        def write(self, artifact_id: str, content_body: Any) -> None:
            return

    upload_artifact(
        artifact_store=Elsewhere(place), file_path=str(tmp_path / "precious.md"), study_or_trial=study
    )  # then given another id
    journal = place / "journal.log"
    [meta] = get_all_artifact_meta(study)
    journal.write_text(journal.read_text().replace(meta.artifact_id, "../../precious.md"))
    study = optuna.load_study(storage=open_storage(None, journal=journal), study_name="here")
    assert [meta.artifact_id for meta in get_all_artifact_meta(study)] == ["../../precious.md"]
    study.set_user_attr(SHOWN, {"card:../../precious.md": "x", "figure: <b>": "x", "other": 5})
    show(study, place, cards={"precious.md": "overwritten"})
    assert (tmp_path / "precious.md").read_text() == "precious"
    assert set(study.user_attrs[SHOWN]) == {"note", "figure:seed-1", "card:precious.md"}


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    (tmp_path / "artifacts").write_text("a file, where the artifacts should go")
    with pytest.raises(ResourceError, match="artifacts: cannot be written"):
        show(study, tmp_path)
