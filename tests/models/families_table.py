"""Write docs/FAMILIES.md from the proofs of all families: python -m tests.models.families_table"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers

from tests.models.families import EVERY_FAMILY, UNPROVEN
from tests.models.proofs import Proof, prove_family

TABLE = Path(__file__).parents[2] / "docs" / "FAMILIES.md"

HEAD = """\
# Families of models

What Seed can remove layers from, proven family by family on tiny random models (4 layers, 32 wide, float32 on the CPU).
`make families` writes this page from the proofs; `make test-all` compares every row with them. Written with transformers {version}:
{proven} rows proven.

**Proven** means, for several sets of layers: running the kept layers one by one, the resident model cut for a moment, the
standalone student and the student saved and loaded again have the same logits, to the bit; no weight is missing or left
over when loading; cached generation writes the same tokens as uncached; the losses that a search would give the set are
the student's own, to the bit; the head stays tied to the embedding, or untied. With closed form, a student with the
corrections folded in has the loss that the search says; where a norm follows the MLP its weight is changed too, and the loss is
the same to the bit.
**Config fields** change with the layers, besides their number. **Always stay** are layers that transformers takes for
granted in the family; a search leaves them alone. **Closed form** is the score that needs no training; without it a
search scores without recovery first, and short distillation decides as everywhere. **Attention, MLP alone** (`--parts`): all of
this holds for sets in which some layers lack the one or the other, too; the saved checkpoint writes zeros there. A study proves its own model again when it starts, so
families that are not listed can work too, and stop with the reason where they do not.

Models that see too are opened whole and lose layers of their text part; what they make of images is neither measured nor
recovered. Refused as well, whatever the family: quantized weights (bitsandbytes, GPTQ, AWQ), encoder-decoders, models that
attend to what comes after a token, and adapters that are not merged.

These language models of transformers are in neither list: {unproven}.

| architecture | model type | proven | config fields | always stay | closed form | tied | attention, MLP alone |
|---|---|---|---|---|---|---|---|"""


def write_row(family: str, proof: Proof) -> str:
    """One line of the table; a family that stands there twice is told apart by what is special about it."""
    special = family.removeprefix(proof.model_type.removesuffix("_text")).strip("_").replace("_", " ")
    kind = proof.model_type if family == proof.model_type else f"{proof.model_type} ({special})"
    cells = (
        proof.architecture,
        kind,
        proof.proven,
        proof.trimmed,
        proof.needed,
        proof.closed_form,
        proof.tied,
        proof.alone,
    )
    return f"| {' | '.join(cells)} |"


def read_rows() -> list[str]:
    """The table's rows as they stand in the file."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return lines[2:]


def write_table() -> None:
    """Prove all families and write what was found."""
    rows = []
    for family in sorted(EVERY_FAMILY):
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(write_row(family, prove_family(family, Path(scratch))))
    TABLE.parent.mkdir(exist_ok=True)
    num_proven = sum("| yes |" in row for row in rows)
    text = HEAD.format(
        version=transformers.__version__, proven=num_proven, unproven=", ".join(f"`{name}`" for name in UNPROVEN)
    )
    TABLE.write_text("\n".join([text, *rows]) + "\n", encoding="utf-8")
    print(f"{TABLE}: {num_proven} proven, {len(rows) - num_proven} refused")


if __name__ == "__main__":
    write_table()
