"""Every family is proven or refused, and docs/FAMILIES.md says which."""

from pathlib import Path

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_LMS

from seed.errors import ModelError
from seed.models.surgery import refuse_unfit
from tests.models.families import EVERY_FAMILY, KINDS, MODEL_TYPES, UNPROVEN
from tests.models.families_table import read_rows, write_row
from tests.models.proofs import prove_family

OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in EVERY_FAMILY if family not in KINDS]


@pytest.mark.parametrize("family", [*KINDS, *OTHERS])
def test_a_family_is_what_the_table_says(family: str, tmp_path: Path) -> None:
    assert write_row(family, prove_family(family, tmp_path)) in read_rows(), "make families writes the table anew"


def test_no_language_model_of_transformers_is_passed_over() -> None:
    listed = {MODEL_TYPES.get(family, family) for family in EVERY_FAMILY}
    assert not listed & set(UNPROVEN)
    for model_type in sorted(set(CAUSAL_LMS) - listed - set(UNPROVEN)):
        with pytest.raises(ModelError):
            refuse_unfit(transformers.AutoConfig.for_model(model_type), place="there")


def test_the_table_has_a_row_for_each_family_and_no_other() -> None:
    rows = read_rows()
    assert len(rows) == len(set(rows)) == len(EVERY_FAMILY)
    assert sum("| yes |" in row for row in rows) >= 40
