"""A study's folder may come from anyone: it chooses no model's code, no command and no storage; they are typed again."""

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec
import optuna
import pytest

from seed import folder
from seed.dashboard import make_app
from seed.errors import SeedError, StudyError
from seed.folder import StudyFolder
from seed.optimize.storage import open_storage
from seed.optimize.study import FINGERPRINT
from seed.plans import Protocol, SearchPlan
from seed.report import ReportCommand, check_words
from seed.stages import planning
from seed.stages.publishing import open_shown
from tests.stages.test_planning import PROTOCOL, make_plan


def change(**fields: Any) -> Protocol:
    return msgspec.structs.replace(PROTOCOL, **fields)


def write_study(root: Path, protocol: Protocol = PROTOCOL, *, storage: str | None = None) -> StudyFolder:
    """A folder that somebody sent."""
    root.mkdir()
    folder.write_record(StudyFolder(root).plan, msgspec.structs.replace(make_plan(protocol), storage=storage))
    return StudyFolder(root)


# ---- a model's code


def test_code_runs_only_where_it_is_typed_again_and_all_else_is_data(tmp_path: Path) -> None:
    fields = {"location": "/somewhere/model", "recovery_text": "/home/someone/notes.txt", "start": "/models/drop-1"}
    study = write_study(tmp_path / "study", change(**fields))
    assert planning.open_planned(study.root)[2].location == "/somewhere/model"
    study = write_study(tmp_path / "code", change(location="owner/name", revision="aaaa", trust_remote_code=True))
    with pytest.raises(
        StudyError, match=r"code: its model owner/name@aaaa brings its own code.*add --trust-remote-code"
    ):
        planning.open_planned(study.root)
    assert planning.open_planned(study.root, trust_remote_code=True)[0].root == study.root
    assert planning.read_planned(study.root)[0].root == study.root


@pytest.mark.parametrize("command", ["distill", "fidelity", "compare", "claims", "recoveries", "evaluate"])
def test_every_command_that_opens_a_model_wants_the_word_and_takes_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the word a command goes on to what is not there: the model, or the trials."""
    study = write_study(tmp_path / "study", change(location="/somewhere/model", trust_remote_code=True))
    (study.root / "models" / "drop-1").mkdir(parents=True)
    module = importlib.import_module(f"seed.{command}")
    words = {"distill": [str(study.root), "--trial=1"], "evaluate": [str(study.root / "models" / "drop-1")]}.get(
        command, [str(study.root)]
    )

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [command, *words, *more])
        with pytest.raises(SeedError) as found:
            module.main()
        return str(found.value)

    assert "add --trust-remote-code" in run()
    assert "trust-remote-code" not in run("--trust-remote-code")
    assert "add --trust-remote-code" in run()  # nothing is remembered
    capsys.readouterr()


# ---- a command


def test_a_command_that_times_is_typed_again_word_for_word(tmp_path: Path) -> None:
    command = "sh -c 'touch /tmp/owned'"
    planned = change(latency_command=command)
    for typed in (None, "sh -c true"):
        with pytest.raises(StudyError, match="was timed by a command") as found:
            planning.require_command(planned, typed, place=tmp_path)
        assert str(found.value).endswith(f"add --latency-command {shlex.quote(command)}.")
    planning.require_command(planned, command, place=tmp_path)
    planning.require_command(PROTOCOL, None, place=tmp_path)
    with pytest.raises(StudyError, match=r"was timed by Seed itself\. Leave it out"):
        planning.require_command(PROTOCOL, command, place=tmp_path)


def test_claims_time_and_want_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path / "study", change(location="/somewhere/model", latency_command="time-it"))
    claims = importlib.import_module("seed.claims")
    for words, said in (([], "add --latency-command time-it"), (["--latency-command=time-it"], "/somewhere/model")):
        monkeypatch.setattr(sys, "argv", ["claims", str(study.root), *words])
        with pytest.raises(SeedError, match=said):
            claims.main()
    capsys.readouterr()


# ---- a storage


def read_plan(study: StudyFolder) -> SearchPlan:
    return folder.read_record(study.plan, SearchPlan)


def fill(url: str | None, study: StudyFolder, **attributes: str) -> None:
    plan = read_plan(study)
    opened = optuna.create_study(
        storage=open_storage(url, journal=study.journal), study_name=plan.name, directions=["minimize", "minimize"]
    )
    opened.set_user_attr(FINGERPRINT, plan.fingerprint)
    for name, value in attributes.items():
        opened.set_user_attr(name, value)


def test_a_storage_that_only_the_folder_names_is_not_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/victim.db"
    study = write_study(tmp_path / "study", storage=url)
    told: list[str] = []
    assert open_shown(study, read_plan(study), storage=None, complain=told.append) is None
    with pytest.raises(StudyError, match=r"victim\.db shows this study.*add it as --storage URL"):
        make_app(study)
    assert not (tmp_path / "victim.db").exists()
    assert told == [
        f"Optuna Dashboard: shows what it showed, since {url} is opened only where you type it. Add --storage URL to show "
        "this too."
    ]


def test_a_storage_that_is_typed_is_opened_and_nothing_is_made_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    study = write_study(tmp_path / "study", storage=url)
    told: list[str] = []
    for act in (
        lambda: open_shown(study, read_plan(study), storage=url, complain=told.append),
        lambda: make_app(study, storage=url),
    ):
        with pytest.raises(StudyError, match="no such file"):
            act()
    assert not (tmp_path / "studies.db").exists()
    fill(url, study, here="yes")
    opened = open_shown(study, read_plan(study), storage=url, complain=told.append)
    assert opened is not None
    assert opened.user_attrs["here"] == "yes"
    assert make_app(study, storage=url)[1].startswith("/dashboard/studies/")
    opened.set_user_attr(FINGERPRINT, "another")
    with pytest.raises(StudyError, match="holds a study of this name with another plan"):
        open_shown(study, read_plan(study), storage=url, complain=told.append)
    assert told == []


def test_a_journal_is_the_folders_own_and_its_lack_costs_no_report(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    told: list[str] = []
    assert open_shown(study, read_plan(study), storage=None, complain=told.append) is None
    assert not study.journal.exists()
    assert told == [
        f"Optuna Dashboard: {study.journal}: missing. Restore it from a copy, or run the search of this study again."
    ]
    fill(None, study)
    assert open_shown(study, read_plan(study), storage=None, complain=told.append) is not None
    assert len(told) == 1


def test_a_storage_is_for_one_study(tmp_path: Path) -> None:
    command = ReportCommand(study=(tmp_path / "one", tmp_path / "two"), storage="sqlite:///x.db")
    with pytest.raises(StudyError, match="--storage: is for one study, and 2 were given"):
        check_words(command)


# ---- a search takes everything from its command line


def test_a_plan_that_claims_to_have_scored_an_endless_space_is_refused(tmp_path: Path) -> None:
    space = msgspec.structs.replace(PROTOCOL.space, num_layers=200, droppable_layers=tuple(range(200)), max_dropped=100)
    plan = make_plan(change(space=space), covers_space=True)
    with pytest.raises(StudyError, match=r"no search scores more than 20,000,000\. Restore plan.json"):
        planning.read_protocol(plan, place=tmp_path)
    planning.read_protocol(msgspec.structs.replace(plan, covers_space=False), place=tmp_path)


OPENED = ("location", "revision", "trust_remote_code", "recovery_text", "validation_text", "test_text", "start")


def test_a_search_that_goes_on_opens_what_was_typed_and_not_what_the_plan_names(tmp_path: Path) -> None:
    typed = make_plan()
    foreign = msgspec.structs.replace(typed, storage="sqlite:////victim.db", name="other", command="rm", trials=9)
    going = planning.continue_plan(foreign, typed, place=tmp_path)
    assert (going.storage, going.name, going.command, going.trials) == (None, typed.name, typed.command, typed.trials)
    for field in (*OPENED, "latency_command"):
        value = True if field == "trust_remote_code" else "/evil"
        with pytest.raises(StudyError, match=f"holds a study of another plan .*{field}"):
            planning.continue_plan(make_plan(change(**{field: value})), typed, place=tmp_path)


def test_a_search_does_not_enumerate_a_space_because_the_plan_says_so(tmp_path: Path) -> None:
    space = msgspec.structs.replace(PROTOCOL.space, num_layers=200, droppable_layers=tuple(range(200)), max_dropped=100)
    typed = make_plan(change(space=space), covers_space=False)
    with pytest.raises(StudyError, match="no search scores more than"):
        planning.continue_plan(msgspec.structs.replace(typed, covers_space=True), typed, place=tmp_path)
