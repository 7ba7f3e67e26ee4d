"""A plan from anyone opens nothing by itself; one's own goes on without more typing."""

import importlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import folder, report
from seed.console import Terminal
from seed.dashboard import find_study
from seed.errors import SeedError, StudyError
from seed.folder import StudyFolder
from seed.plans import Protocol, SearchPlan
from seed.stages import helping, planning, vouching, workbench
from seed.stages.gathering import open_searched
from seed.stages.posts import open_post
from seed.stages.settings import SearchSettings
from seed.stages.vouching import find_memory, list_doors, list_storage, require_word, vouch
from tests.stages.test_planning import PROTOCOL, make_plan

DEMO_RECORD = Path(__file__).parents[2] / "studies" / "demo.record"


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has typed nothing yet, in a process that has heard nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    forget(monkeypatch)
    found = find_memory()
    assert found is not None
    return found


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process is."""
    monkeypatch.setattr(vouching, "_typed_here", set())


def change(**fields: Any) -> Protocol:
    return msgspec.structs.replace(PROTOCOL, **fields)


def write_study(root: Path, protocol: Protocol = PROTOCOL, *, storage: str | None = None) -> Path:
    """A folder that somebody sent."""
    root.mkdir()
    plan = make_plan(protocol)
    folder.write_record(StudyFolder(root).plan, msgspec.structs.replace(plan, storage=storage))
    return root


HARMFUL = {
    "model": {"location": "/home/someone/model"},
    "model-home": {"location": "~/model"},
    "model-up": {"location": "../model"},
    "model-deep": {"location": "a/b/c"},
    "start": {"start": "/home/someone/models/drop-1", "start_sha256": "ab"},
    "recovery": {"recovery_text": "/home/someone/.ssh/id_rsa"},
    "validation": {"validation_text": "notes.txt"},
    "test": {"test_text": "hub:/home/someone/data"},
    "test-hub": {"test_text": "hub:pandas"},
    "command": {"latency_command": "sh -c 'touch /tmp/owned'"},
    "code": {"location": "owner/name", "trust_remote_code": True},
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_a_foreign_plan_names_is_shown_and_not_opened(name: str, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", change(**HARMFUL[name]))
    with pytest.raises(StudyError) as found:
        planning.open_planned(study)
    said = str(found.value)
    assert said.startswith(f"{study}: its plan would open what was not typed by you on this machine: ")
    value = next(str(value) for value in HARMFUL[name].values())
    assert value in said
    assert ("--trust-remote-code" in said) == (name == "code")
    assert ("--trust-study" in said) == (name != "code")


@pytest.mark.parametrize("name", HARMFUL)
def test_whichever_way_leads_to_the_model_it_stays_closed(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="was not typed by you"):
        workbench.reopen(StudyFolder(tmp_path), change(**HARMFUL[name]))


def test_harmless_plans_need_no_word(tmp_path: Path) -> None:
    for index, fields in enumerate(
        (
            {},
            {"location": "HuggingFaceTB/SmolLM2-135M", "revision": "93efa2f0", "recovery_text": "wikitext2"},
            {"location": "gpt2", "recovery_text": "hub:Salesforce/wikitext:wikitext-2-raw-v1"},
        )
    ):
        planning.open_planned(write_study(tmp_path / f"study-{index}", change(**fields)))
    assert list_doors(planning.read_protocol(make_plan(), place=tmp_path)) == []


def test_the_published_study_is_usable_as_it_is() -> None:
    planning.open_planned(DEMO_RECORD)


def test_a_name_of_the_hub_that_is_a_folder_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list_doors(change(location="evil/model", recovery_text="hub:evil/text")) == []
    (tmp_path / "evil" / "model").mkdir(parents=True)
    (tmp_path / "evil" / "text").mkdir()
    assert [door.kind for door in list_doors(change(location="evil/model", recovery_text="hub:evil/text"))] == [
        "model",
        "text",
    ]


def test_a_word_once_given_is_remembered_and_no_more_than_that(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path / "study", change(location="/somewhere/model"))
    planning.open_planned(study, trust_study=True)
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    assert [json.loads(line) for line in memory.read_text().splitlines()] == [["model", "/somewhere/model"]]
    forget(monkeypatch)
    planning.open_planned(study)
    other = write_study(tmp_path / "other", change(location="/somewhere/model", recovery_text="/etc/passwd"))
    with pytest.raises(StudyError, match=r"machine: text /etc/passwd\. "):
        planning.open_planned(other)


def test_trust_in_a_study_is_never_trust_in_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path / "study", change(location="/somewhere/model", trust_remote_code=True))
    with pytest.raises(StudyError, match=r"add --trust-study --trust-remote-code \(once"):
        planning.open_planned(study)
    with pytest.raises(StudyError, match=r"add --trust-remote-code \(once"):
        planning.open_planned(study, trust_study=True)
    forget(monkeypatch)
    with pytest.raises(StudyError, match=r"add --trust-study \(once"):
        planning.open_planned(study, trust_remote_code=True)
    planning.open_planned(study, trust_study=True, trust_remote_code=True)


def test_code_of_another_revision_is_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    vouch(list_doors(change(location="owner/name", revision="aaaa", trust_remote_code=True)))
    forget(monkeypatch)
    require_word(
        list_doors(change(location="owner/name", revision="aaaa", trust_remote_code=True)), place=Path("studies/x")
    )
    with pytest.raises(StudyError, match="remote code owner/name@bbbb"):
        require_word(
            list_doors(change(location="owner/name", revision="bbbb", trust_remote_code=True)), place=Path("studies/x")
        )


def test_a_foreign_storage_is_opened_by_no_command_without_a_word(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/victim.db"
    study, other = write_study(tmp_path / "study", storage=url), write_study(tmp_path / "other")
    for act in (
        lambda: planning.open_planned(study),
        lambda: find_study(study),
        lambda: report.report_study(study, Terminal(quiet=True)),
        lambda: report.compare_studies([study, other], Terminal(quiet=True), output=None),
        lambda: open_searched(StudyFolder(study)),
    ):
        with pytest.raises(StudyError, match=r"storage sqlite:///.*victim.db \(study .*--trust-study"):
            act()
    assert not (tmp_path / "victim.db").exists()
    assert find_study(study, trust_study=True).root == study
    assert list_storage(None, name="x") == []


def test_a_storage_typed_for_one_study_is_not_open_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    vouch(list_storage("postgresql://me@host/db", name="mine"))
    forget(monkeypatch)
    require_word(list_storage("postgresql://me@host/db", name="mine"), place=Path("studies/mine"))
    with pytest.raises(StudyError):
        require_word(list_storage("postgresql://me@host/db", name="other"), place=Path("studies/mine"))


def test_without_a_home_the_process_knows_what_was_typed_and_says_that_nobody_else_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    study = write_study(tmp_path / "study", change(location="/somewhere/model"))
    with pytest.raises(StudyError, match=r"--trust-study \(every time: no home here"):
        planning.open_planned(study)
    planning.open_planned(study, trust_study=True)
    workbench_doors = list_doors(change(location="/somewhere/model"))
    require_word(workbench_doors, place=study)
    forget(monkeypatch)
    with pytest.raises(StudyError):
        planning.open_planned(study)

    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setattr(Path, "home", no_home)
    assert find_memory() is None
    with pytest.raises(StudyError, match="every time"):
        planning.open_planned(study)
    planning.open_planned(study, trust_study=True)


def test_a_memory_that_others_can_write_is_not_believed(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doors = list_doors(change(location="/somewhere/model"))
    vouch(doors)
    forget(monkeypatch)
    require_word(doors, place=Path("studies/x"))
    os.chmod(memory, 0o666)
    with pytest.raises(StudyError):
        require_word(doors, place=Path("studies/x"))


def test_a_value_cannot_pretend_to_be_another_line(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vouch(list_doors(change(latency_command='x\n["model", "/evil"]')))
    forget(monkeypatch)
    with pytest.raises(StudyError, match="model /evil"):
        require_word(list_doors(change(location="/evil")), place=Path("studies/x"))


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


@pytest.mark.parametrize("command", ["distill", "fidelity", "compare", "claims", "recoveries", "evaluate"])
def test_every_command_that_opens_a_model_asks_and_takes_the_users_word(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the word a command goes on to what is not there: the model, or the trials."""
    fields = {"location": "/somewhere/model", "trust_remote_code": True, "model": "theirs"}
    study = write_study(tmp_path / "study", change(**fields))
    (study / "models" / "drop-1").mkdir(parents=True)
    module = importlib.import_module(f"seed.{command}")
    words = {"distill": [str(study), "--trial=1"], "evaluate": [str(study / "models" / "drop-1")]}.get(
        command, [str(study)]
    )

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [command, *words, *more])
        with pytest.raises(SeedError) as found:
            module.main()
        return str(found.value)

    assert "model /somewhere/model; remote code /somewhere/model" in run()
    assert "add --trust-remote-code (once" in run("--trust-study")
    assert "add --trust-study (once" in run("--trust-remote-code")
    assert "not typed" not in run("--trust-study", "--trust-remote-code")
    assert "not typed" not in run()
    capsys.readouterr()


def test_who_helps_a_search_opens_no_storage_that_only_the_folder_names(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/victim.db"
    study = StudyFolder(write_study(tmp_path / "study", storage=url))
    with pytest.raises(StudyError, match=r"keeps its trials in sqlite.*To help it, add the same --storage"):
        helping._open(SearchSettings(), None, study, folder.read_record(study.plan, SearchPlan))
    assert not (tmp_path / "victim.db").exists()


def test_nobody_takes_a_post_in_a_folder_that_leads_elsewhere(tmp_path: Path) -> None:
    study = StudyFolder(write_study(tmp_path / "study"))
    (tmp_path / "precious").mkdir()
    study.work.symlink_to(tmp_path / "precious")
    with pytest.raises(StudyError, match="leads out of the study's folder"):
        open_post(study, leads=True)
