"""The standard library as text: one split everywhere, nothing held out that was trained on."""

import itertools
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from seed.demo import library
from seed.errors import CorpusError

CODE = "\n".join(f"value_{number} = compute({number})" for number in range(400))


def write_modules(root: Path, texts: dict[str, str]) -> None:
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def make_code(name: str, num_lines: int = 400) -> str:
    return "\n".join(f"{name}_{number} = compute({number})" for number in range(num_lines))


def remember_as_trained_on(text: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = library.sample_windows(library.line_windows(text))
    np.save(file, np.array(sorted(windows), dtype=np.uint32))
    monkeypatch.setattr(library, "TRAINING_WINDOWS_FILE", file)


@pytest.fixture(scope="module")
def documents() -> dict[str, list[str]]:
    """The real standard library of this interpreter."""
    return library.read_documents()


def test_splits_of_this_interpreter_are_disjoint_and_large_enough(documents: dict[str, list[str]]) -> None:
    assert tuple(documents) == library.PARTS
    for one, other in itertools.combinations(library.PARTS, 2):
        assert not set(documents[one]) & set(documents[other])
    sizes = {split: sum(map(len, texts)) for split, texts in documents.items()}
    assert sizes["training"] > 5_000_000
    assert min(sizes["validation"], sizes["test"]) > 300_000


def test_no_held_out_document_of_this_interpreter_repeats_training_text(documents: dict[str, list[str]]) -> None:
    trained = set().union(*(library.sample_windows(library.line_windows(text)) for text in documents["training"]))
    for split in ("validation", "test"):
        for text in documents[split]:
            windows = library.sample_windows(library.line_windows(text))
            assert len(windows & trained) <= library.LEAK_FRACTION * len(windows), f"{split}: {text[:200]}"


def test_a_held_out_file_that_repeats_the_demo_models_training_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, copied = make_code("fresh"), make_code("copied")
    write_modules(tmp_path, {"json/decoder.py": copied, "tarfile.py": fresh, "reprlib.py": copied})
    remember_as_trained_on(copied, tmp_path / "windows.npy", monkeypatch)
    assert library.read_documents(tmp_path) == {"training": [], "validation": [], "test": [fresh]}


def test_a_training_file_that_repeats_a_held_out_one_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, own = make_code("held_out"), make_code("own")
    write_modules(tmp_path, {"tarfile.py": held_out, "argparse.py": own, "os.py": "import os\n" + held_out})
    remember_as_trained_on("", tmp_path / "windows.npy", monkeypatch)
    assert library.split_of("os.py") == "training"
    documents = library.read_documents(tmp_path)
    assert documents["training"] == [own]
    assert documents["test"] == [held_out]


def test_modules_come_in_order_without_tests_or_packages_or_empty_files(tmp_path: Path) -> None:
    kept = {"b.py": "b = 1", "a/c.py": "c = 1", "a.py": "a = 1"}
    left_out = dict.fromkeys(
        ["test/t.py", "a/tests/t.py", "idlelib/idle_test/t.py", "site-packages/p/m.py", "ensurepip/_bundled/x.py"], "t"
    )
    write_modules(tmp_path, kept | left_out | {"empty.py": " \n", "notes.txt": "no module"})
    assert list(library.iterate_modules(tmp_path)) == [("a.py", "a = 1"), ("a/c.py", "c = 1"), ("b.py", "b = 1")]
    with_tests = [path for path, _ in library.iterate_modules(tmp_path, with_tests=True)]
    assert with_tests == sorted([*kept, "test/t.py", "a/tests/t.py", "idlelib/idle_test/t.py"])


def test_a_standard_library_without_sources_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    for call in (library.find_root, library.read_documents):
        with pytest.raises(CorpusError, match="no Python sources there") as caught:
            call()
        assert str(tmp_path) in str(caught.value)
        assert "--recovery-text FILE" in str(caught.value)
