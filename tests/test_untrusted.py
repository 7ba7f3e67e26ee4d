"""A folder from anyone: nothing in it leads out, nothing in it eats the memory, and it chooses no code, command or storage."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import optuna
import pytest

from seed import plans, study_dir, untrusted
from seed.dashboard import make_app
from seed.errors import ResourceError, StudyError
from seed.optimize.storage import open_storage, view_storage
from seed.optimize.study import FINGERPRINT
from seed.plans import Protocol, SearchPlan, read_plan
from seed.records import Candidate, Record, SearchSpace, WidthCut
from seed.stages.publishing import open_shown
from seed.study_dir import StudyFolder
from tests.running import error_of, run_seed
from tests.stages.opened import PROTOCOL, make_plan


class Loose(Record, frozen=True, kw_only=True):
    """A record with room for anything."""

    content: dict[str, object]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder, and beside it what must not be touched."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    root = tmp_path / "study"
    root.mkdir()
    (root / "plan.json").write_text("{}")
    return root


# ---- links


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("models", "../precious"),
        (".lock", "../precious/file"),
        ("scores.sqlite", "../precious/file"),
        ("work/distill-drop-1.pt", "/etc/passwd"),
        ("report.html", "../precious/nothing-there-yet"),
    ],
)
def test_a_link_that_leads_out_is_refused_before_anything_is_read_or_written(
    study: Path, name: str, target: str
) -> None:
    (study / name).parent.mkdir(exist_ok=True)
    (study / name).symlink_to(target)
    for act in (study_dir.open_existing, study_dir.create):
        with pytest.raises(StudyError, match=r"leads out of the study's folder.*Put a copy in its place"):
            act(study)
    assert (study.parent / "precious" / "file").read_text() == "precious"
    assert not list(study.rglob(".write*"))


def test_links_within_the_folder_and_to_the_folder_are_fine_and_pipes_are_not(study: Path) -> None:
    (study / "models").mkdir()
    (study / "best").symlink_to("models")
    (study.parent / "alias").symlink_to("study")
    assert study_dir.open_existing(study.parent / "alias").root.name == "alias"
    os.mkfifo(study / "frontier.json")
    with pytest.raises(StudyError, match=r"frontier\.json: neither a file nor a folder"):
        study_dir.open_existing(study)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_writing_never_follows_a_link_that_waits_in_its_place(study: Path, link: Callable[[Path, Path], None]) -> None:
    precious = study.parent / "precious" / "file"
    link(study / ".report.html.new", precious)
    link(study / "report.html", precious)
    study_dir.write_bytes(study / "report.html", b"a page")
    assert precious.read_text() == "precious"
    assert (study / "report.html").read_bytes() == b"a page"
    assert not (study / "report.html").is_symlink()
    (study / ".drop-1.new").symlink_to(precious.parent)
    with pytest.raises(ResourceError), study_dir.replace_directory(study / "drop-1") as aside:
        (aside / "file").write_text("overwritten")
    assert precious.read_text() == "precious"


# ---- contents


def test_a_record_of_ten_gigabytes_is_not_read(study: Path) -> None:
    with (study / "plan.json").open("wb") as handle:
        handle.truncate(10 * 2**30)  # takes no room on the disk, but would in memory
    with pytest.raises(StudyError, match=r"plan.json: 10,240 MB, and what a search writes there is below 128 MB"):
        study_dir.read_record(study / "plan.json", SearchPlan)


@pytest.mark.parametrize(
    "content",
    [
        b'{"content": {"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}}",
        b'{"content": {"a": NaN}}',
        b'{"content": {"a": 1e999}}',
        b'{"content": {"a": ' + b"9" * 100_000 + b"}}",
    ],
    ids=["nested", "nan", "huge-float", "huge-int"],
)
def test_strange_json_is_refused_in_one_sentence(study: Path, content: bytes) -> None:
    path = study / "strange.json"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"strange.json: cannot be read .* Remove this file"):
        study_dir.read_record(path, Loose)


FOUR: dict[str, Any] = {"num_layers": 4, "min_dropped": 1, "max_dropped": 2}


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (Candidate, {"num_layers": 10**9, "parts": ["0"]}, "num_layers = 1000000000; wanted 1 to 10,000"),
        (Candidate, {"num_layers": 0, "parts": []}, "num_layers = 0"),
        (Candidate, {"num_layers": 4, "parts": ["0", "4"]}, "parts = 0, 4; wanted layers from 0 to 3"),
        (
            Candidate,
            {"num_layers": 4, "parts": ["2", "03"]},
            "parts = 2, 03; wanted layers, such as 4, or parts of them",
        ),
        (Candidate, {"num_layers": 4, "parts": ["1", "1"]}, "rising, each once"),
        (WidthCut, {"num_layers": 4, "mlp_width": -3, "num_heads": 1, "num_kv_heads": 1}, "wanted widths"),
        (SearchSpace, FOUR | {"droppable_layers": [0, 7]}, "droppable_layers = 0, 7"),
        (SearchSpace, FOUR | {"droppable_layers": [0], "max_dropped": 10**12}, "bounds 1 and 1000000000000"),
        (SearchSpace, FOUR | {"droppable_layers": [0, 1], "gone_layers": [1]}, "name the same layer"),
    ],
)
def test_layers_that_no_model_has_are_refused_with_place_and_cure(
    tmp_path: Path, kind: type[Record], content: dict[str, Any], said: str
) -> None:
    path = tmp_path / "frontier.json"
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(StudyError) as found:
        study_dir.read_record(path, kind)
    assert said in str(found.value)
    assert str(found.value).startswith(f"{path}: cannot be read")
    assert "Remove this file and run the command again" in str(found.value)


@pytest.mark.parametrize("open_it", [view_storage, open_storage])
def test_a_journal_that_is_too_large_or_nested_without_end_is_told(tmp_path: Path, open_it: Callable[..., Any]) -> None:
    journal = tmp_path / "journal.log"
    journal.write_bytes(b"[" * 200_000 + b"]" * 200_000 + b"\n{}\n")
    with pytest.raises(StudyError, match=r"journal\.log: damaged"):
        open_it(None, journal=journal)
    with journal.open("r+b") as handle:
        handle.truncate(50 * 2**30)
    with pytest.raises(StudyError, match=r"journal\.log: 51,200 MB"):
        open_it(None, journal=journal)


def test_a_config_of_more_layers_than_any_model_has_is_excessive_and_one_of_wide_layers_is_not() -> None:
    for name in ("num_hidden_layers", "n_layer", "encoder_layers"):
        wide = {"text": [{"intermediate_size_per_layer": 14_336, name: 10_000}]}
        assert untrusted.find_excess(wide) is None
        said = untrusted.find_excess({"text": [{name: 10_001}]})
        assert said == f"{name} = 10001, and no model has more than 10,000 layers"


# ---- code, commands and storages are typed again


def change(**fields: Any) -> Protocol:
    return msgspec.structs.replace(PROTOCOL, **fields)


def write_study(root: Path, protocol: Protocol = PROTOCOL, *, storage: str | None = None) -> StudyFolder:
    """A folder that somebody sent."""
    root.mkdir()
    study_dir.write_record(StudyFolder(root).plan, msgspec.structs.replace(make_plan(protocol), storage=storage))
    return StudyFolder(root)


def test_code_runs_only_where_it_is_typed_again_and_all_else_is_data(tmp_path: Path) -> None:
    fields = {"location": "/somewhere/model", "recovery_text": "/home/someone/notes.txt", "start": "/models/drop-1"}
    study = write_study(tmp_path / "study", change(**fields))
    assert plans.open_planned(study.root)[1].protocol.location == "/somewhere/model"
    study = write_study(tmp_path / "code", change(location="owner/name", revision="aaaa", trust_remote_code=True))
    said = r"code: its model owner/name@aaaa brings its own code.*add --trust-remote-code"
    with pytest.raises(StudyError, match=said):
        plans.open_planned(study.root)
    assert plans.open_planned(study.root, trust_remote_code=True)[0].root == study.root
    assert plans.read_planned(study.root)[0].root == study.root


@pytest.mark.parametrize("command", ["distill", "experiment", "evaluate"])
def test_every_command_that_opens_a_model_wants_the_word_and_takes_it(command: str, tmp_path: Path) -> None:
    """With the word a command goes on to what is not there: the model, or the trials."""
    study = write_study(tmp_path / "study", change(location="/somewhere/model", trust_remote_code=True))
    (study.root / "models" / "drop-1").mkdir(parents=True)
    words = {
        "distill": ["study", "--trial=1"],
        "evaluate": ["study/models/drop-1"],
        "experiment": ["fidelity", "study"],
    }[command]
    words = [f"seed.{command}", *words]
    for _ in range(2):  # nothing is remembered
        assert "add --trust-remote-code" in error_of(run_seed(*words, cwd=tmp_path, code=2))
        said = error_of(run_seed(*words, "--trust-remote-code", cwd=tmp_path, code=2))
        assert "trust-remote-code" not in said


def fill(url: str | None, study: StudyFolder) -> optuna.Study:
    plan = read_plan(study)
    storage = open_storage(url, journal=study.journal)
    opened = optuna.create_study(storage=storage, study_name=plan.name, directions=["minimize", "minimize"])
    opened.set_user_attr(FINGERPRINT, plan.fingerprint)
    return opened


def test_a_storage_is_opened_only_where_it_is_typed_and_nothing_is_made_there(tmp_path: Path) -> None:
    url, file = f"sqlite:///{tmp_path}/victim.db", tmp_path / "victim.db"
    study = write_study(tmp_path / "study", storage=url)
    told: list[str] = []
    assert open_shown(study, read_plan(study), storage=None, on_warning=told.append) is None
    assert told == [
        f"Optuna Dashboard: shows what it showed, since {url} is opened only where you type it. Add --storage URL to show "
        "this too."
    ]
    with pytest.raises(StudyError, match=r"victim\.db shows this study.*add it as --storage URL"):
        make_app(study)
    for act in (
        lambda: open_shown(study, read_plan(study), storage=url, on_warning=told.append),
        lambda: make_app(study, storage=url),
    ):
        with pytest.raises(StudyError, match="no such file"):
            act()
    assert not file.exists()
    filled = fill(url, study)
    assert open_shown(study, read_plan(study), storage=url, on_warning=told.append) is not None
    assert make_app(study, storage=url)[1].startswith("/dashboard/studies/")
    filled.set_user_attr(FINGERPRINT, "another")
    with pytest.raises(StudyError, match="holds a study of this name with another plan"):
        open_shown(study, read_plan(study), storage=url, on_warning=told.append)
    assert len(told) == 1
    said = error_of(run_seed("seed.report", "study", "study", "--storage=sqlite:///x.db", cwd=tmp_path, code=2))
    assert "--storage: is for one study, and 2 were given" in said


def test_a_journal_is_the_folders_own_and_its_lack_costs_no_report(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    told: list[str] = []
    assert open_shown(study, read_plan(study), storage=None, on_warning=told.append) is None
    assert not study.journal.exists()
    assert told == [
        f"Optuna Dashboard: {study.journal}: missing. Restore it from a copy, or run the search of this study again."
    ]
    fill(None, study)
    assert open_shown(study, read_plan(study), storage=None, on_warning=told.append) is not None
    assert len(told) == 1
