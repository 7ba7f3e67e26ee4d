"""Search spaces: every preset fits its model, wrong files get one useful error, and a space holds what its size says."""

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from seed.errors import SpaceError
from seed.optimize import space as spaces
from seed.optimize.space import Preset, SpaceSection
from seed.records import Candidate, SearchSpace

WHOLE = """\
[model]
name = "someone/model"
num_layers = 12

[space]
max_dropped = 4
min_dropped = 1
droppable_layers = [1, 2, 3, 4, 5, 6]

[data]
corpus = "wikitext2"
window_tokens = 64
calibration_tokens = 1024
validation_tokens = 2048
test_tokens = 4096

[recovery]
batch_tokens = 512
distill_tokens = 10000
learning_rates = [1e-4, 3e-4]
short_steps = 5

[latency]
batch = 1
prompt_tokens = 16
new_tokens = 8

[search]
trials = 50
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes the whole file with one place changed, which must be there."""

    def write_file(old: str = "", new: str = "", *, then: str = "") -> Path:
        assert old in WHOLE
        path = tmp_path / "mine.toml"
        path.write_text(WHOLE.replace(old, new, 1) + then if old else WHOLE + then)
        return path

    return write_file


def refuse(path: Path) -> str:
    """Load a wrong file; return the only line it was refused with, which must name the file."""
    with pytest.raises(SpaceError) as caught:
        spaces.load_preset(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# ---- presets


@pytest.mark.parametrize("name", spaces.list_presets())
def test_every_preset_fits_its_model(name: str) -> None:
    preset = spaces.load_preset(spaces.presets_directory() / f"{name}.toml")
    space = spaces.make_space(preset.space, num_layers=preset.model.num_layers, place=name)
    assert space.size > 0
    assert space.max_dropped <= preset.model.num_layers // 2  # deeper, nothing useful is left
    assert preset.model.revision is None or re.fullmatch(r"[0-9a-f]{40}", preset.model.revision)
    assert preset.recovery.batch_tokens % preset.data.window_tokens == 0
    assert list(preset.recovery.learning_rates) == sorted(preset.recovery.learning_rates)


def test_presets_are_found_by_name_and_the_demo_is_among_them() -> None:
    names = spaces.list_presets()
    assert names == sorted(names)
    assert len(names) >= 19
    assert "demo" in names
    assert all((spaces.presets_directory() / f"{name}.toml").is_file() for name in names)


def test_the_demo_enumerates_its_space() -> None:
    preset = spaces.load_preset(spaces.presets_directory() / "demo.toml")
    space = spaces.make_space(preset.space, num_layers=preset.model.num_layers, place="demo.toml")
    assert space.size == 298 <= preset.search.trials


def test_a_whole_file_is_read_as_it_stands(write: Write) -> None:
    preset = spaces.load_preset(write())
    assert preset.model.name == "someone/model"
    assert preset.space == SpaceSection(max_dropped=4, min_dropped=1, droppable_layers=(1, 2, 3, 4, 5, 6))
    assert preset.data.test_tokens == 4096
    assert preset.recovery.learning_rates == (1e-4, 3e-4)
    assert preset.latency.new_tokens == 8
    assert preset.search.trials == 50


def test_sections_with_defaults_may_be_left_out(write: Write) -> None:
    preset = spaces.load_preset(write(WHOLE[WHOLE.index("[latency]") :], ""))
    assert (preset.latency.batch, preset.latency.prompt_tokens, preset.latency.new_tokens) == (1, 128, 64)
    assert preset.search.trials == 100


def test_the_shape_of_the_model_may_be_given(write: Write) -> None:
    assert spaces.load_preset(write()).config is None
    preset = spaces.load_preset(write(then='[config]\nmodel_type = "llama"\nhidden_size = 32\n'))
    assert preset.config == {"model_type": "llama", "hidden_size": 32}
    assert "config" in refuse(write("[model]", "config = 3\n[model]"))
    assert "model.num_params = 0" in refuse(write("num_layers = 12", "num_layers = 12\nnum_params = 0"))


# ---- wrong files


def test_an_unknown_section_is_refused_with_the_nearest(write: Write) -> None:
    message = refuse(write("[latency]", "[latencies]"))
    assert "unknown key latencies" in message
    assert "Did you mean latency?" in message
    assert "Allowed: model, space, data, recovery, latency, search, config." in message


@pytest.mark.parametrize(
    ("section", "key", "typed"),
    [
        ("model", "num_layers", "num_layer"),
        ("space", "max_dropped", "max_droped"),
        ("data", "validation_tokens", "validation_token"),
        ("recovery", "learning_rates", "learning_rate"),
        ("latency", "new_tokens", "newtokens"),
        ("search", "trials", "trails"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(write: Write, section: str, key: str, typed: str) -> None:
    message = refuse(write(f"\n{key} =", f"\n{typed} ="))
    assert f"[{section}]" in message
    assert f"unknown key {typed}" in message
    assert f"Did you mean {key}?" in message
    assert all(allowed in message for allowed in spaces.SECTIONS[section].__struct_fields__)


def test_a_key_unlike_all_others_gets_no_suggestion(write: Write) -> None:
    message = refuse(write("[search]", "[search]\nzzz = 1"))
    assert "unknown key zzz" in message
    assert "Did you mean" not in message
    assert "Allowed: trials." in message


@pytest.mark.parametrize(
    ("old", "new", "key", "wanted"),
    [
        ("max_dropped = 4", 'max_dropped = "four"', "space.max_dropped", "int"),
        ("trials = 50", "trials = true", "search.trials", "int"),
        ("trials = 50", "trials = 2.5", "search.trials", "int"),
        ('corpus = "wikitext2"', "corpus = 5", "data.corpus", "str"),
        ("learning_rates = [1e-4, 3e-4]", "learning_rates = 1e-4", "recovery.learning_rates", "array"),
        ("learning_rates = [1e-4, 3e-4]", 'learning_rates = ["x"]', "recovery.learning_rates", "float"),
        ("[1, 2, 3, 4, 5, 6]", '["1"]', "space.droppable_layers", "int"),
        ("test_tokens = 4096", 'test_tokens = "all"', "data.test_tokens", "int"),
    ],
)
def test_a_wrong_type_is_refused_with_the_right_one(write: Write, old: str, new: str, key: str, wanted: str) -> None:
    message = refuse(write(old, new))
    assert message.startswith(key)
    assert wanted in message


def test_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("model = 5\n" + WHOLE[WHOLE.index("[space]") :])
    assert refuse(path).startswith("model: Expected object")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("model", "num_layers = 12\n"),
        ("space", "max_dropped = 4\n"),
        ("data", "window_tokens = 64\n"),
        ("recovery", "batch_tokens = 512\n"),
    ],
)
def test_a_missing_key_is_named_with_its_section(write: Write, section: str, line: str) -> None:
    message = refuse(write(line, ""))
    assert f"[{section}] lacks {line.split(' ')[0]}." in message
    assert "gpt2.toml" in message  # where every key can be seen


def test_a_missing_section_is_named(write: Write) -> None:
    start, end = WHOLE.index("[recovery]"), WHOLE.index("[latency]")
    assert refuse(write(WHOLE[start:end], "")).startswith("lacks recovery.")


def test_bad_toml_is_refused_with_its_line(write: Write) -> None:
    message = refuse(write("max_dropped = 4", "max_dropped = "))
    assert "not valid TOML" in message
    assert "line 6" in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in refuse(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("num_layers = 1000000000", "num_layers = 1000000000, and no model has more than 10,000 layers"),
        ("[config]\nnum_hidden_layers = 1000000000", "num_hidden_layers = 1000000000"),
        ("[config.text_config]\nn_layer = 99999", "n_layer = 99999"),
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("x = " + "9" * 6000, "not valid TOML"),
        ("#" * 1_000_001, "larger than 1 MB"),
    ],
    ids=["layers", "config", "nested config", "nested", "digits", "large"],
)
def test_what_no_search_space_holds_is_refused_at_once(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(content)
    with pytest.raises(SpaceError) as caught:
        spaces.load_preset(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_file_without_end_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero")):
        with pytest.raises(SpaceError, match=r"cannot be read .a pipe or a device, and no file"):
            spaces.load_preset(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refuse(tmp_path / "nowhere.toml")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refuse(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "window_tokens = 64",
        "calibration_tokens = 1024",
        "validation_tokens = 2048",
        "test_tokens = 4096",
        "batch_tokens = 512",
        "distill_tokens = 10000",
        "short_steps = 5",
        "batch = 1",
        "prompt_tokens = 16",
        "new_tokens = 8",
        "trials = 50",
    ],
)
def test_counts_below_one_are_refused(write: Write, line: str) -> None:
    key = line.split(" ")[0]
    message = refuse(write(f"\n{line}\n", f"\n{key} = 0\n"))
    assert f".{key} = 0" in message
    assert "1 or more" in message


@pytest.mark.parametrize("rates", ["[]", "[0.0]", "[1e-4, -1e-4]", "[nan]", "[1e-4, nan]", "[inf]"])
def test_learning_rates_that_cannot_train_are_refused(write: Write, rates: str) -> None:
    assert "recovery.learning_rates" in refuse(write("[1e-4, 3e-4]", rates))


# ---- bounds


@pytest.mark.parametrize(
    ("old", "new", "found", "cure"),
    [
        ("max_dropped = 4", "max_dropped = 7", "max_dropped = 7", "Use 6 or fewer"),
        ("min_dropped = 1", "min_dropped = 5", "min_dropped = 5", "min_dropped <= max_dropped"),
        ("min_dropped = 1", "min_dropped = 0", "min_dropped = 0", "1 <= min_dropped"),
        ("max_dropped = 4", "max_dropped = -1", "max_dropped = -1", "min_dropped <= max_dropped"),
        ("[1, 2, 3, 4, 5, 6]", "[1, 2, 3, 12]", "[12]", "0 to 11"),
        ("[1, 2, 3, 4, 5, 6]", "[-1, 2, 3, 4]", "[-1]", "0 to 11"),
        ("[1, 2, 3, 4, 5, 6]", "[1, 2, 2, 3, 4]", "twice", "Name each once"),
    ],
)
def test_bounds_outside_the_model_are_refused(write: Write, old: str, new: str, found: str, cure: str) -> None:
    message = refuse(write(old, new))
    assert found in message
    assert cure in message


def test_one_layer_has_to_stay() -> None:
    with pytest.raises(SpaceError, match="Use 11 or fewer"):
        spaces.make_space(SpaceSection(max_dropped=12), num_layers=12, place="here")
    assert spaces.make_space(SpaceSection(max_dropped=11), num_layers=12, place="here").size == 2**12 - 2


def test_droppable_layers_are_sorted_and_default_to_all() -> None:
    some = spaces.make_space(SpaceSection(max_dropped=2, droppable_layers=(5, 1, 3)), num_layers=8, place="here")
    assert some.droppable_layers == (1, 3, 5)
    every = spaces.make_space(SpaceSection(max_dropped=2), num_layers=8, place="here")
    assert every.droppable_layers == tuple(range(8))


@pytest.mark.parametrize("num_layers", [2, 12, 80])
def test_a_model_without_a_preset_gets_one_that_fits(num_layers: int) -> None:
    preset = make_default(num_layers)
    space = spaces.make_space(preset.space, num_layers=num_layers, place="here")
    assert space.size >= num_layers
    assert preset.recovery.batch_tokens >= preset.data.window_tokens


def test_a_model_of_one_layer_is_refused_without_an_impossible_cure() -> None:
    with pytest.raises(SpaceError) as caught:
        spaces.make_space(make_default(1).space, num_layers=1, place="here")
    assert "Use 0 or fewer" not in str(caught.value)  # min_dropped is 1 at least, so 0 would be refused next


def test_no_droppable_layer_is_refused_without_an_impossible_cure(write: Write) -> None:
    message = refuse(write("[1, 2, 3, 4, 5, 6]", "[]"))
    assert "droppable" in message
    assert "Use 0 or fewer" not in message


def make_default(num_layers: int) -> Preset:
    return spaces.default_preset(
        "someone/model", num_layers=num_layers, num_params=10_000_000 * num_layers, max_positions=2048
    )


def test_a_default_preset_could_be_a_file(tmp_path: Path) -> None:
    builtins = msgspec.to_builtins(make_default(12))
    assert msgspec.convert(builtins, Preset) == make_default(12)
    assert make_default(12).data.window_tokens == 1024
    short = spaces.default_preset("m", num_layers=4, num_params=10**6, max_positions=128)
    assert short.data.window_tokens == 128


def test_default_rates_fall_with_size_and_budgets_rise() -> None:
    small, large = (spaces.default_preset("m", num_layers=8, num_params=n, max_positions=64) for n in (10**8, 10**10))
    assert small.recovery.learning_rates[1] > large.recovery.learning_rates[1]
    assert small.recovery.distill_tokens < large.recovery.distill_tokens


# ---- candidates

SPACES = [
    SearchSpace(num_layers=2, droppable_layers=(0, 1), min_dropped=1, max_dropped=1),
    SearchSpace(num_layers=6, droppable_layers=tuple(range(6)), min_dropped=1, max_dropped=5),
    SearchSpace(num_layers=12, droppable_layers=tuple(range(12)), min_dropped=1, max_dropped=3),
    SearchSpace(num_layers=12, droppable_layers=(1, 4, 5, 10), min_dropped=2, max_dropped=4),
    SearchSpace(num_layers=80, droppable_layers=(7, 70), min_dropped=1, max_dropped=2),
    SearchSpace(num_layers=12, droppable_layers=(0, 4, 5, 10), min_dropped=3, max_dropped=5, gone_layers=(1, 7)),
]


@pytest.mark.parametrize("space", SPACES)
def test_enumeration_is_complete_unique_and_lexicographic(space: SearchSpace) -> None:
    found = list(spaces.enumerate_candidates(space))
    kept = [candidate.kept_layers for candidate in found]
    assert len(found) == space.size
    assert len(set(kept)) == space.size
    assert kept == sorted(kept)
    assert all(spaces.contains(space, candidate) for candidate in found)


@pytest.mark.parametrize("space", SPACES)
def test_layers_that_may_not_go_always_stay(space: SearchSpace) -> None:
    fixed = set(range(space.num_layers)) - {*space.droppable_layers, *space.gone_layers}
    assert all(fixed <= set(candidate.kept_layers) for candidate in spaces.enumerate_candidates(space))


def test_sizes_counted_by_hand() -> None:
    assert SPACES[0].size == 2
    assert SPACES[2].size == 12 + 66 + 220
    assert SPACES[3].size == 6 + 4 + 1
    assert SPACES[5].size == 4 + 6 + 4


@pytest.mark.parametrize("space", [SPACES[3], SPACES[5]])
def test_random_candidates_lie_in_the_space_and_reach_all_of_it(space: SearchSpace) -> None:
    rng = random.Random(0)
    drawn = [spaces.draw_candidate(space, rng) for _ in range(400)]
    assert all(spaces.contains(space, candidate) for candidate in drawn)
    assert {candidate.key for candidate in drawn} == {c.key for c in spaces.enumerate_candidates(space)}


@pytest.mark.parametrize("dropped", [(), (1,), (1, 4, 5, 10, 11), (0, 1), (1, 2)])
def test_candidates_outside_are_told_from_those_inside(dropped: tuple[int, ...]) -> None:
    space = SPACES[3]
    candidate = spaces.drop_layers(12, dropped)
    assert candidate.dropped_layers == dropped
    assert not spaces.contains(space, candidate)
    assert spaces.contains(space, spaces.drop_layers(12, {10, 4}))


def test_dropping_nothing_keeps_everything() -> None:
    assert spaces.drop_layers(3, []) == Candidate(num_layers=3, kept_layers=(0, 1, 2))


# ---- layers that are gone


def test_what_is_gone_is_gone_from_every_candidate_and_counts() -> None:
    space = SPACES[5]
    for candidate in spaces.enumerate_candidates(space):
        assert {1, 7} < set(candidate.dropped_layers)
        assert 3 <= len(candidate.dropped_layers) <= 5
    assert spaces.drop_more(space, [4]).dropped_layers == (1, 4, 7)


@pytest.mark.parametrize("dropped", [(1, 7), (0, 4, 5), (1, 4, 5), (1, 2, 7), (0, 1, 4, 5, 7, 10)])
def test_candidates_that_keep_what_is_gone_are_outside(dropped: tuple[int, ...]) -> None:
    assert not spaces.contains(SPACES[5], spaces.drop_layers(12, dropped))
    assert spaces.contains(SPACES[5], spaces.drop_layers(12, {1, 4, 7}))


def test_the_deepest_candidate_lacks_the_last_layers_that_may_go() -> None:
    assert [spaces.drop_deepest(SPACES[2], count).dropped_layers for count in (1, 3)] == [(11,), (9, 10, 11)]
    assert [spaces.drop_deepest(SPACES[5], count).dropped_layers for count in (2, 3, 5)] == [
        (1, 7),
        (1, 7, 10),
        (1, 4, 5, 7, 10),
    ]


def test_a_narrowed_space_is_what_is_left_without_the_layers() -> None:
    first = spaces.narrow_space(SPACES[2], gone_layers=[7, 1], min_dropped=3, max_dropped=4, place="here")
    assert first.gone_layers == (1, 7)
    assert first.droppable_layers == (0, 2, 3, 4, 5, 6, 8, 9, 10, 11)
    assert first.size == 10 + 45
    inside = {
        candidate for candidate in spaces.enumerate_candidates(SPACES[2]) if {1, 7} <= set(candidate.dropped_layers)
    }
    assert {c for c in spaces.enumerate_candidates(first) if len(c.dropped_layers) == 3} <= inside
    again = spaces.narrow_space(first, gone_layers=[6], min_dropped=4, max_dropped=4, place="here")
    assert again.gone_layers == (1, 6, 7)
    assert again.size == 9


@pytest.mark.parametrize(
    ("gone", "least", "most", "found"),
    [
        ([2], 2, 2, r"layers \[2\] are to be gone, but only \[1, 4, 5, 10\] may go"),
        ([1, 1], 3, 3, "each once"),
        ([1, 4], 2, 3, r"with layers \[1, 4\] gone; wanted 3 <= min_dropped <= max_dropped <= 4"),
        ([1, 4], 4, 3, "wanted 3 <= min_dropped"),
        ([1, 4], 3, 5, "max_dropped <= 4"),
    ],
)
def test_a_space_that_cannot_be_narrowed_so_is_refused(gone: list[int], least: int, most: int, found: str) -> None:
    with pytest.raises(SpaceError, match=f"here: .*{found}"):
        spaces.narrow_space(SPACES[3], gone_layers=gone, min_dropped=least, max_dropped=most, place="here")
