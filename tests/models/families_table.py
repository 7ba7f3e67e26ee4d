"""Write docs/FAMILIES.md from the proofs of all families: python -m tests.models.families_table"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers

from tests.models.families import EVERY_FAMILY
from tests.models.proofs import Proof, prove_family

TABLE = Path(__file__).parents[2] / "docs" / "FAMILIES.md"


def write_row(family: str, proof: Proof) -> str:
    """One line of the table; a family that stands there twice is told apart by its name in the tests."""
    kind = proof.model_type if family == proof.model_type else f"{proof.model_type} ({family})"
    cells = (proof.architecture, kind, proof.proven, proof.trimmed, proof.needed, proof.closed_form, proof.tied)
    return f"| {' | '.join(cells)} |"


def read_rows() -> list[str]:
    """The table's rows as they stand in the file."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return lines[2:]


if __name__ == "__main__":
    rows = []
    for family in EVERY_FAMILY:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(write_row(family, prove_family(family, Path(scratch))))
    print(*rows, sep="\n")
