"""A finished model is checked by the hashes of its files: whatever is damaged is named."""

import json
import os
import shutil
from pathlib import Path

import pytest

from seed.errors import ModelError
from seed.models.files import add_hashes, find_damage, hash_file, refuse_damaged
from tests.conftest import MakeCheckpoint


def overwrite(path: Path) -> None:
    """Write 64 bytes over the middle of a file."""
    content = bytearray(path.read_bytes())
    begin = len(content) // 2
    content[begin : begin + 64] = bytes(byte ^ 0xFF for byte in content[begin : begin + 64])
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = [
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
    (path / "seed.json").write_text('{"kept_layers": [0, 2]}')
    return path, add_hashes(path)


@pytest.mark.parametrize(("name", "harm", "said"), DAMAGES)
def test_whatever_is_damaged_is_named(finished: tuple[Path, str], name: str, harm, said: str) -> None:
    path, sha256 = finished
    assert find_damage(path) is None
    assert find_damage(path, provenance_sha256=sha256) is None
    refuse_damaged(path, place="there")
    harm(path / name)
    assert find_damage(path) == find_damage(path, provenance_sha256=sha256) == f"{name} {said}"
    with pytest.raises(ModelError, match=f"^there: damaged: {name} {said}. Copy it or export it again"):
        refuse_damaged(path, place="there")


def test_every_file_but_seed_json_has_its_hash(finished: tuple[Path, str]) -> None:
    path, sha256 = finished
    said = json.loads((path / "seed.json").read_bytes())
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert set(said["files"]) == names - {"seed.json"}
    assert said["kept_layers"] == [0, 2]
    assert add_hashes(path) == sha256  # once more changes nothing
    (path / "notes.txt").write_text("a further file does no harm")
    assert find_damage(path, provenance_sha256=sha256) is None


def test_a_study_s_word_covers_seed_json_and_a_card_is_the_user_s_to_edit(finished: tuple[Path, str]) -> None:
    path, sha256 = finished
    for edit in (lambda card: card.write_text("# A card that its user edits before publishing"), Path.unlink):
        edit(path / "README.md")
        assert find_damage(path) is None
        assert find_damage(path, provenance_sha256=sha256) is None
        refuse_damaged(path, place="there")
    said = json.loads((path / "seed.json").read_bytes())
    (path / "seed.json").write_text(json.dumps(said | {"kept_layers": [0, 3]}))
    assert find_damage(path) is None
    assert find_damage(path, provenance_sha256=sha256) == "seed.json is not as it was written"


@pytest.mark.parametrize(
    "content",
    ["", "7", "{}", '{"files": 7}', '{"files": {"config.json": 7}}', '{"files": {"../x": "0"}}', "[" * 200_000],
)
def test_a_damaged_seed_json_is_said_so_and_left_to_others_where_it_may_be_no_seed_s(
    finished: tuple[Path, str], content: str
) -> None:
    path, _ = finished
    (path / "seed.json").write_text(content)
    assert find_damage(path) == "seed.json is damaged"
    refuse_damaged(path, place="there")
    (path / "seed.json").unlink()
    os.mkfifo(path / "seed.json")  # nobody will write to it
    assert find_damage(path) == "seed.json is missing"
    refuse_damaged(path, place="there")


def test_a_file_is_read_again_only_when_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = hash_file(path)
    about = path.stat()
    path.write_text("two")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert hash_file(path) == first
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert hash_file(path) != first
