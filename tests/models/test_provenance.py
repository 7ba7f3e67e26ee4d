"""What a finished model says of itself is believed where it is whole; whatever is damaged is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seed.config import StudyConfig
from seed.errors import ModelError, SpaceError
from seed.models.provenance import (
    describe_model,
    describe_original,
    find_damage,
    hash_file,
    read_start,
    refuse_damaged,
    write_provenance,
)
from seed.optimize.space import drop_layers
from seed.records import SearchSpace
from seed.resolve import go_on_from
from tests.conftest import MakeCheckpoint

CONTENT: dict[str, Any] = {
    "base_model": "demo",
    "num_layers": 12,
    "kept_layers": [0, 2, 3, 4, 5, 6, 8, 9, 10, 11],
    "dropped_layers": [1, 7],
    "width": None,
    "settings": {"distill_tokens": 100, "earlier_tokens": 30},
}
SPACE = SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=3)


def write_start(path: Path, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "seed.json").write_text(json.dumps(CONTENT | changes))
    return path


def overwrite(path: Path) -> None:
    """Write 64 bytes over the middle of a file."""
    content = bytearray(path.read_bytes())
    begin = len(content) // 2
    content[begin : begin + 64] = bytes(byte ^ 0xFF for byte in content[begin : begin + 64])
    path.write_bytes(content)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("model.safetensors", overwrite, "is not as it was written"),
    ("config.json", halve, "is not as it was written"),
    ("tokenizer.json", Path.unlink, "is missing"),
    ("additional_chat_templates/tool.jinja", overwrite, "is not as it was written"),
]


@pytest.fixture
def finished(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> tuple[Path, str]:
    """A finished model, and the hash of its seed.json."""
    path = shutil.copytree(make_checkpoint(), tmp_path / "model")
    (path / "README.md").write_text("# A card")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    said = describe_model(drop_layers(4, [1, 3]), base_model="demo", settings={"distill_tokens": 1})
    return path, write_provenance(path, said)


@pytest.mark.parametrize(("name", "harm", "said"), DAMAGES)
def test_whatever_is_damaged_is_named(finished: tuple[Path, str], name: str, harm, said: str) -> None:
    path, sha256 = finished
    content = json.loads((path / "seed.json").read_bytes())
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert set(content["files"]) == names - {"seed.json"}
    (path / "notes.txt").write_text("a further file does no harm")
    for edit in (lambda card: card.write_text("# A card that its user edits before publishing"), Path.unlink):
        edit(path / "README.md")
        assert find_damage(path, provenance_sha256=sha256) is None
        refuse_damaged(path, place="there")
    harm(path / name)
    assert find_damage(path) == find_damage(path, provenance_sha256=sha256) == f"{name} {said}"
    with pytest.raises(ModelError, match=f"^there: damaged: {name} {said}. Copy it or export it again"):
        refuse_damaged(path, place="there")


def test_a_study_s_word_covers_seed_json(finished: tuple[Path, str]) -> None:
    path, sha256 = finished
    said = json.loads((path / "seed.json").read_bytes())
    (path / "seed.json").write_text(json.dumps(said | {"trial": 7}))
    assert find_damage(path) is None
    assert find_damage(path, provenance_sha256=sha256) == "seed.json is not as it was written"


@pytest.mark.parametrize("content", ["", "7", "{}", '{"files": 7}', '{"files": {"../x": "0"}}', "[" * 200_000, None])
def test_a_damaged_seed_json_is_said_so_and_left_to_others_where_it_may_be_no_seed_s(
    tmp_path: Path, content: str | None
) -> None:
    if content is None:
        os.mkfifo(tmp_path / "seed.json")  # nobody will write to it
    else:
        (tmp_path / "seed.json").write_text(content)
    assert str(find_damage(tmp_path)).endswith("seed.json is damaged" if content is not None else "and no file)")
    refuse_damaged(tmp_path, place="there")
    assert describe_original(str(tmp_path)) is None
    with pytest.raises(ModelError, match=r"seed\.json .*Give a model that Seed exported"):
        read_start(tmp_path)


def test_a_file_is_read_again_only_when_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first, about = hash_file(path), path.stat()
    path.write_text("two")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert hash_file(path) == first
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert hash_file(path) != first


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ["10 of its 12 layers, recovered", "--start"]),
        ({"recovered": False}, ["10 of its 12 layers, not recovered", "--start"]),
        ({"width": {"mlp_width": 3}}, ["all its layers, cut in width"]),
    ],
)
def test_what_seed_made_is_told_from_an_original(tmp_path: Path, changes: dict[str, Any], wanted: list[str]) -> None:
    path = write_start(tmp_path / "a model", **changes)
    said = describe_original(str(path)) or ""
    assert said.startswith(f"{path}: is not an original, but what Seed made of demo (")
    assert all(text in said for text in wanted)
    assert (f"To keep demo as teacher and base of every ratio, give --start '{path}'" in said) == ("--start" in wanted)
    assert describe_original("demo") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dropped_layers": [], "kept_layers": list(range(12))}, "has all its layers"),
        ({"dropped_layers": [0, 5]}, "damaged"),
        ({"dropped_layers": [-1, 77]}, "damaged"),
        ({"width": {"mlp_width": 3}}, "cut in width"),
        ({"settings": {}}, "damaged"),
        ({"num_layers": None}, "damaged"),
    ],
)
def test_what_no_search_can_go_on_from_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_start(write_start(tmp_path / "m", **changes))
    assert "Give a model that Seed exported" in str(caught.value)


def test_bounds_count_from_the_original_of_a_start(tmp_path: Path) -> None:
    start = read_start(write_start(tmp_path / "m"))
    assert (start.path, start.candidate, start.tokens) == ((tmp_path / "m").resolve(), drop_layers(12, [1, 7]), 130)
    for settings, bounds in (
        ({}, (3, 3)),
        ({"max_dropped": 5}, (3, 5)),
        ({"min_dropped": 4, "max_dropped": 4}, (4, 4)),
    ):
        space = go_on_from(SPACE, start, StudyConfig(**settings))
        assert (space.min_dropped, space.max_dropped) == bounds
        assert space.gone_layers == (1, 7)
        assert not {1, 7} & set(space.droppable_layers)
    with pytest.raises(SpaceError, match="min_dropped = 2"):
        go_on_from(SPACE, start, StudyConfig(min_dropped=2, max_dropped=3))
    deeper = {"num_layers": 22, "kept_layers": [layer for layer in range(22) if layer not in (1, 7)]}
    with pytest.raises(ModelError, match="22 layers"):
        go_on_from(SPACE, read_start(write_start(tmp_path / "m", **deeper)), StudyConfig())
