"""The standard library of this interpreter as three disjoint sets of documents.

A module belongs to a split by a hash of its path, so the split is the same on every machine, and
the demo model was trained on the first set only. Test packages are no part of it: many distributions leave
them out. Other Python versions move code between files, so a held-out file is left out when it
repeats what the demo model was trained on; ``training_windows.npy`` remembers that as hashes.

No tokens and no model here; only text.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from seed.errors import CorpusError

PARTS = ("training", "validation", "test")
TEST_DIRECTORIES = frozenset({"test", "tests", "idle_test"})
SKIPPED_DIRECTORIES = frozenset({"site-packages", "dist-packages", "__pycache__", "_bundled"})
WINDOW_LINES = 4
LEAK_FRACTION = 0.05
LEAK_WINDOWS = 40
SAMPLED_ONE_IN = 16
TRAINING_WINDOWS_FILE = Path(__file__).parent / "training_windows.npy"


def split_of(relative_path: str) -> str:
    """Name the split of a module by its posix path below the standard library's root."""
    digit = hashlib.sha256(relative_path.encode()).digest()[0] % 10
    return {8: "validation", 9: "test"}.get(digit, "training")


def find_root() -> Path:
    """Return the folder that holds the standard library's sources, or explain why there is none."""
    root = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "argparse.py").is_file():
        raise CorpusError(
            f"{root}: no Python sources there (a zipped or bytecode-only standard library), but the "
            "demo's text is the standard library's source. Use an interpreter that ships sources, or "
            "give your own text: --recovery-text FILE --validation-text FILE --test-text FILE."
        )
    return root


def iterate_modules(root: Path, *, with_tests: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (posix path below root, text) of every module, in sorted order of the paths."""
    skipped = SKIPPED_DIRECTORIES if with_tests else SKIPPED_DIRECTORIES | TEST_DIRECTORIES
    for relative in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
        if skipped.isdisjoint(relative.split("/")):
            text = (root / relative).read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield relative, text


def line_windows(text: str) -> set[int]:
    """Hash every run of four code lines (stripped; blank lines and comments do not count)."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return {
        int.from_bytes(
            hashlib.blake2b("\n".join(lines[i : i + WINDOW_LINES]).encode(), digest_size=8).digest(), "little"
        )
        for i in range(len(lines) - WINDOW_LINES + 1)
    }


def sample_windows(windows: set[int]) -> set[int]:
    """Keep one window in sixteen, the same ones in every file, as 32-bit numbers."""
    return {window >> 32 for window in windows if window % SAMPLED_ONE_IN == 0}


def repeats(windows: set[int], held_out: set[int]) -> bool:
    """Does a training file repeat held-out ones: more than 40 of its windows, or more than 5 %?"""
    shared = len(windows & held_out)
    return shared > LEAK_WINDOWS or shared > LEAK_FRACTION * len(windows)


def drop_repeated(held_out: list[str], trained_on: set[int]) -> list[str]:
    """Leave out held-out files of which more than 5 % of the sampled windows were trained on."""
    kept = []
    for text in held_out:
        windows = sample_windows(line_windows(text))
        if len(windows & trained_on) <= LEAK_FRACTION * len(windows):
            kept.append(text)
    return kept


def read_documents(root: Path | None = None) -> dict[str, list[str]]:
    """Return the documents of each split, in the order of their paths, without those that repeat across splits.

    Raises:
        CorpusError: the interpreter has no readable standard library sources.
    """
    documents: dict[str, list[str]] = {split: [] for split in PARTS}
    for path, text in iterate_modules(root or find_root()):
        documents[split_of(path)].append(text)
    held_out = set().union(*(line_windows(text) for split in PARTS[1:] for text in documents[split]))
    trained_on = set(np.load(TRAINING_WINDOWS_FILE).tolist())
    training = []
    for text in documents["training"]:
        windows = line_windows(text)
        if not repeats(windows, held_out):
            training.append(text)
            trained_on |= sample_windows(windows)
    return {"training": training, **{split: drop_repeated(documents[split], trained_on) for split in PARTS[1:]}}
