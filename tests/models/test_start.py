"""A model that a search goes on from is what its folder says, or refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from seed.config import StudyConfig
from seed.errors import ModelError, SpaceError
from seed.models.start import Start, describe_original, read_start
from seed.optimize.space import drop_layers
from seed.records import SearchSpace
from seed.resolve import go_on_from

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


def test_a_start_is_what_its_folder_says(tmp_path: Path) -> None:
    start = read_start(write_start(tmp_path / "drop-1-7", base_sha256="0123"))
    assert start == Start(
        path=(tmp_path / "drop-1-7").resolve(),
        candidate=drop_layers(12, [1, 7]),
        base_model="demo",
        base_revision=None,
        base_sha256="0123",
        tokens=130,
        is_narrow=False,
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ["10 of its 12 layers, recovered", "--start"]),
        ({"recovered": True}, ["10 of its 12 layers, recovered", "--start"]),
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


def test_an_original_is_not_spoken_of(tmp_path: Path) -> None:
    assert describe_original("demo") is None
    assert describe_original(str(tmp_path)) is None
    (tmp_path / "seed.json").write_text('{"seed": 42}')  # of somebody else's program
    assert describe_original(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dropped_layers": [], "kept_layers": list(range(12))}, "has all its layers"),
        ({"dropped_layers": [0, 5]}, "damaged"),
        ({"dropped_layers": [-1, 77]}, "damaged"),
        ({"width": {"mlp_width": 3}}, "cut in width"),
        ({"dropped_layers": "x"}, "damaged"),
        ({"settings": {}}, "damaged"),
        ({"num_layers": None}, "damaged"),
    ],
)
def test_what_no_search_can_go_on_from_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_start(write_start(tmp_path / "m", **changes))
    assert "Give a model that Seed exported" in str(caught.value)


def test_a_folder_without_provenance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no seed\.json"):
        read_start(tmp_path)
    (tmp_path / "seed.json").write_text("{torn")
    with pytest.raises(ModelError, match="damaged"):
        read_start(tmp_path)


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [({}, (3, 3)), ({"max_dropped": 5}, (3, 5)), ({"min_dropped": 4, "max_dropped": 4}, (4, 4))],
)
def test_bounds_count_the_layers_that_are_gone(
    tmp_path: Path, settings: dict[str, Any], bounds: tuple[int, int]
) -> None:
    start = read_start(write_start(tmp_path / "m"))
    space = go_on_from(SPACE, start, StudyConfig(**settings))
    assert (space.min_dropped, space.max_dropped) == bounds
    assert space.gone_layers == (1, 7)
    assert not {1, 7} & set(space.droppable_layers)


def test_a_start_of_another_depth_or_with_nothing_left_is_refused(tmp_path: Path) -> None:
    deeper = {"num_layers": 22, "kept_layers": [layer for layer in range(22) if layer not in (1, 7)]}
    start = read_start(write_start(tmp_path / "m", **deeper))
    with pytest.raises(ModelError, match="22 layers"):
        go_on_from(SPACE, start, StudyConfig())
    with pytest.raises(SpaceError, match="min_dropped = 2"):
        go_on_from(SPACE, read_start(write_start(tmp_path / "m")), StudyConfig(min_dropped=2, max_dropped=3))
