"""A draft changes nothing of what the dense model writes, and what is expected of it is the formula's."""

import pytest
import torch

from seed.evaluation.drafting import time_draft
from seed.evaluation.perplexity import measure_acceptance
from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student
from seed.records import Candidate
from seed.results import expect_drafting
from tests.models.families import make_model, make_tokens
from tests.proxy.opened import time_candidate


def test_acceptance_is_what_sampling_by_rejection_accepts() -> None:
    dense, draft = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    assert measure_acceptance(dense.log(), draft.log()).item() == pytest.approx(0.2 + 0.3 + 0.2)
    assert measure_acceptance(dense.log(), dense.log()).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("accepted", "kept", "ahead", "speedup"),
    [
        (0.8, 1, 5, (1 - 0.8**6) / (0.2 * (5 * 0.125 + 1))),  # an eighth of the time; with 4 it is 2.24, with 6 2.26
        (0.9, 7, 1, 1.9 / 1.875),
        (0.5, 7, 0, 1.0),
    ],
)
def test_the_best_number_of_tokens_is_chosen(accepted: float, kept: int, ahead: int, speedup: float) -> None:
    latency = time_candidate(Candidate.drop(8, [str(layer) for layer in range(kept, 8)]))
    found = expect_drafting(accepted, latency)
    assert found is not None
    assert (found.tokens_ahead, found.speedup) == (ahead, pytest.approx(speedup))
    assert expect_drafting(None, latency) is None


@pytest.mark.parametrize("parts", [["2"], ["1.attn", "3.mlp"]])
def test_the_dense_model_writes_the_same_with_a_draft(parts: list[str]) -> None:
    dense = make_model("llama")
    draft = make_student(Anatomy(dense), Candidate.drop(4, parts))
    found = time_draft(dense, draft, make_tokens()[:2, :8], new_tokens=12, tokens_ahead=3)
    assert (found.prompts, found.same, found.tokens_ahead, found.new_tokens) == (2, 2, 3, 12)
    assert found.speedup.value is not None
