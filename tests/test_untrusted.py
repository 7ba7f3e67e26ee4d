"""A folder from anyone: nothing in it leads out, and nothing in it eats the memory."""

import os
from pathlib import Path

import msgspec
import pytest

from seed import folder, untrusted
from seed.errors import ResourceError, StudyError
from seed.optimize.storage import open_storage
from seed.optimize.viewing import view_storage
from seed.plans import Environment, SearchPlan
from seed.records import Candidate, Record, SearchSpace, WidthCut


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


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("models", "../precious"),
        ("distilled", "../precious"),
        (".lock", "../precious/file"),
        ("scores.sqlite", "../precious/file"),
        ("work/distill-drop-1.pt", "/etc/passwd"),
        ("report.html", "../precious/nothing-there-yet"),
    ],
)
def test_a_link_that_leads_out_is_refused_before_anything_is_read_or_written(study, name, target):
    (study / name).parent.mkdir(exist_ok=True)
    (study / name).symlink_to(target)
    for act in (folder.open_existing, folder.create):
        with pytest.raises(StudyError, match=r"leads out of the study's folder.*Put a copy in its place"):
            act(study)
    assert (study.parent / "precious" / "file").read_text() == "precious"
    assert sorted(path.name for path in study.rglob("*") if path.name.startswith(".write")) == []


def test_links_within_the_folder_and_to_the_folder_are_fine(study):
    (study / "models").mkdir()
    (study / "best").symlink_to("models")
    (study.parent / "alias").symlink_to("study")
    (study / "journal.log.lock").symlink_to("/somewhere/else/journal.log")  # as Optuna leaves it behind
    assert folder.open_existing(study.parent / "alias").root.name == "alias"


def test_what_is_neither_file_nor_folder_is_refused(study):
    os.mkfifo(study / "frontier.json")
    with pytest.raises(StudyError, match=r"frontier\.json: neither a file nor a folder"):
        folder.open_existing(study)


def test_writing_never_follows_a_link_that_waits_in_its_place(study):
    precious = study.parent / "precious" / "file"
    (study / ".report.html.new").symlink_to(precious)
    (study / "report.html").symlink_to(precious)
    folder.write_bytes(study / "report.html", b"a page")
    assert precious.read_text() == "precious"
    assert (study / "report.html").read_bytes() == b"a page"
    assert not (study / "report.html").is_symlink()


def test_a_hard_link_that_waits_is_not_written_over_either(study):
    precious = study.parent / "precious" / "file"
    (study / ".report.html.new").hardlink_to(precious)
    folder.write_bytes(study / "report.html", b"a page")
    assert precious.read_text() == "precious"


def test_a_directory_is_not_written_through_a_link(study):
    precious = study.parent / "precious"
    (study / "models").mkdir()
    (study / "models" / ".drop-1.new").symlink_to(precious)
    with (
        pytest.raises(ResourceError),
        folder.replace_directory(study / "models" / "drop-1") as aside,
    ):
        (aside / "file").write_text("overwritten")
    assert (precious / "file").read_text() == "precious"


def test_a_record_of_ten_gigabytes_is_not_read(study):
    with (study / "plan.json").open("wb") as handle:
        handle.truncate(10 * 2**30)  # takes no room on the disk, but would in memory
    with pytest.raises(StudyError, match=r"plan.json: 10,240 MB, and what a search writes there is below 128 MB"):
        folder.read_record(study / "plan.json", SearchPlan)


@pytest.mark.parametrize(
    "content",
    [
        b'{"content": {"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}}",
        b'{"content": {"a": NaN}}',
        b'{"content": {"a": Infinity}}',
        b'{"content": {"a": 1e999}}',
        b'{"content": {}, "more": 1}',
        b'{"content": {"a": ' + b"9" * 100_000 + b"}}",
        b"\xff\xfe",
    ],
    ids=["nested", "nan", "infinity", "huge-float", "unknown-field", "huge-int", "not-utf8"],
)
def test_strange_json_is_refused_in_one_sentence(study, content):
    path = study / "strange.json"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"strange.json: cannot be read .* Remove this file"):
        folder.read_record(path, Loose)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (Candidate, {"num_layers": 10**9, "kept_layers": [0]}, "num_layers = 1000000000; wanted 1 to 10,000"),
        (Candidate, {"num_layers": 0, "kept_layers": []}, "num_layers = 0"),
        (Candidate, {"num_layers": 4, "kept_layers": [0, 4]}, "kept_layers = 0, 4; wanted layers from 0 to 3"),
        (Candidate, {"num_layers": 4, "kept_layers": [-1, 2]}, "kept_layers = -1, 2"),
        (Candidate, {"num_layers": 4, "kept_layers": [2, 1]}, "rising, each once"),
        (Candidate, {"num_layers": 4, "kept_layers": [1, 1]}, "rising, each once"),
        (WidthCut, {"num_layers": 4, "mlp_width": -3, "num_heads": 1, "num_kv_heads": 1}, "wanted widths"),
        (
            SearchSpace,
            {"num_layers": 4, "droppable_layers": [0, 7], "min_dropped": 1, "max_dropped": 2},
            "droppable_layers = 0, 7",
        ),
        (
            SearchSpace,
            {"num_layers": 4, "droppable_layers": [0], "min_dropped": 1, "max_dropped": 10**12},
            "bounds 1 and 1000000000000",
        ),
        (
            SearchSpace,
            {"num_layers": 4, "droppable_layers": [0, 1], "gone_layers": [1], "min_dropped": 1, "max_dropped": 2},
            "name the same layer",
        ),
    ],
)
def test_layers_that_no_model_has_are_refused_with_place_and_cure(tmp_path, kind, content, said):
    path = tmp_path / "frontier.json"
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(StudyError) as found:
        folder.read_record(path, kind)
    assert said in str(found.value)
    assert str(found.value).startswith(f"{path}: cannot be read")
    assert "Remove this file and run the search" in str(found.value)


def test_a_record_of_the_usual_size_is_read(tmp_path):
    about = Environment(
        seed="1", python="3", platform="x", processor="y", num_threads=1, device="cpu", packages={"a": "b" * 100_000}
    )
    folder.write_record(tmp_path / "environment.json", about)
    assert folder.read_record(tmp_path / "environment.json", Environment) == about


@pytest.mark.parametrize("open_it", [view_storage, open_storage])
def test_a_journal_that_is_too_large_or_nested_without_end_is_told(tmp_path, open_it):
    journal = tmp_path / "journal.log"
    journal.write_bytes(b"[" * 200_000 + b"]" * 200_000 + b"\n{}\n")
    with pytest.raises(StudyError, match=r"journal\.log: line 1 is damaged"):
        open_it(None, journal=journal)
    with journal.open("r+b") as handle:
        handle.truncate(50 * 2**30)
    with pytest.raises(StudyError, match=r"journal\.log: 51,200 MB"):
        open_it(None, journal=journal)


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "encoder_layers"])
def test_a_config_of_more_layers_than_any_model_has_is_excessive_and_one_of_wide_layers_is_not(name: str) -> None:
    config = {"text": [{"intermediate_size_per_layer": 14_336, name: 10_000}]}
    assert untrusted.find_excess(config) is None
    assert (
        untrusted.find_excess({"text": [{name: 10_001}]}) == f"{name} = 10001, and no model has more than 10,000 layers"
    )
