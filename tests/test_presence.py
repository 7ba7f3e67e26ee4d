"""Names of processes come from files and storages that anyone may have written: none of them leads out of the folder."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seed.presence import Presence


def test_a_process_is_there_until_it_is_not(tmp_path: Path) -> None:
    ours, other = Presence(tmp_path), Presence(tmp_path)
    with other.be_there():
        assert ours.is_there(other.name) is True
        assert ours.count_others() == 1
    assert ours.is_there(other.name) is False
    assert ours.is_there(f"elsewhere:{other.name.partition(':')[2]}") is None


@pytest.mark.parametrize("name", ["x/../../victim", "1:aaaaaaaaaaaa/../../victim", "1:x/../../victim"])
def test_a_name_that_is_a_path_is_nobodys_and_nothing_is_removed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim.lock"
    victim.write_text("precious")
    presence = Presence(tmp_path / "present")
    hostile = f"{presence.place}:{name}"
    # the folder that a study can bring along, so that the way up begins somewhere
    (tmp_path / "present" / hostile.replace(":", "+").partition("/")[0]).mkdir(parents=True)
    assert presence._locate(hostile).resolve() == victim
    assert presence.is_there(hostile) is False
    assert victim.read_text() == "precious"


def test_folders_that_look_alike_are_told_apart_and_a_copy_is_known(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    ours = Presence(one)
    assert Presence(one).place == ours.place
    assert Presence(other).place != ours.place
    assert Presence(other).is_there(ours.name) is None
    assert [path.name for path in one.iterdir()] == [".place"]
    shutil.copytree(one, tmp_path / "copy")
    assert Presence(tmp_path / "copy").word == ours.word


def test_processes_that_come_at_once_agree_on_the_place(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        words = set(pool.map(lambda _: Presence(tmp_path / "present").word, range(40)))
    assert len(words) == 1
