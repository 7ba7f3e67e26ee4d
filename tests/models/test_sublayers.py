"""Attention and MLP go alone: what is walked is the student, what is exported is plain, and what cannot is refused."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from seed.data.corpus import TokenStream
from seed.evaluation.perplexity import DocumentLosses, logits_of, measure_losses
from seed.models.anatomy import Absent, Anatomy, SublayerAnatomy, prove_sublayers
from seed.models.checkpoint import load_checkpoint, measure_size, prove_round_trip
from seed.models.surgery import make_student, remove_parts, restore_parts, view_layers
from seed.optimize.space import draw_candidate
from seed.proxy.closed_form import fold_refit, measure_gains
from seed.proxy.subset_walker import SubsetWalker, measure_unrecovered
from seed.records import KINDS, Candidate, SearchSpace
from tests.models.families import compute_logits, make_model, make_tokens
from tests.proxy.streams import draw_stream, write_stream

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2", "gemma3_text", "qwen2_moe", "granite", "olmo2")
SPACE = SearchSpace(num_layers=4, droppable_layers=(0, 1, 2, 3), min_dropped=1, max_dropped=3, kinds=KINDS)
TEXT = draw_stream(6, 24, rng_seed=2)


def drop(*parts: str) -> Candidate:
    return Candidate.drop(4, parts)


def draw_candidates(count: int) -> list[Candidate]:
    rng = random.Random(0)
    return list(dict.fromkeys(draw_candidate(SPACE, rng) for _ in range(count)))


def measure_model(model: nn.Module, stream: TokenStream = TEXT) -> DocumentLosses:
    return measure_losses(logits_of(model), stream, micro_batch=4, device=CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_whose_mlp_reads_what_attention_wrote_are_proven(family: str, tmp_path: Path) -> None:
    anatomy = Anatomy(make_model(family))
    assert prove_sublayers(anatomy, make_tokens()) is None
    prove_round_trip(anatomy, make_tokens(), scratch=tmp_path, dtype=torch.float32, by_sublayers=True)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("falcon", "attention and MLP of layer 0, one after the other, do not give what the layer gives"),
        ("bloom", "attention and MLP of layer 0, one after the other, do not give what the layer gives"),
        ("mamba", "layer 0 has no attention that Seed knows"),
        ("opt", "layer 0 has no MLP that Seed knows"),
    ],
)
def test_others_are_refused_with_the_reason(family: str, reason: str) -> None:
    assert prove_sublayers(Anatomy(make_model(family)), make_tokens()) == reason


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_student_to_the_bit_and_of_its_plain_checkpoint(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    walked = SublayerAnatomy(anatomy.model)
    candidates = [*draw_candidates(16), drop("1.attn", "1.mlp"), drop("0.mlp", "3.attn")]
    spelled = [walked.spell(candidate) for candidate in candidates]
    found = measure_unrecovered(walked, spelled, TEXT, micro_batch=4)
    assert len({losses.loss for losses in found}) > 10
    for candidate, losses in zip(candidates, found, strict=True):
        student = make_student(anatomy, candidate)
        assert sum(isinstance(module, Absent) for module in student.modules()) == len(candidate.lacking)
        assert losses.sums.tolist() == measure_model(student).sums.tolist(), candidate.key
        restore_parts(student, anatomy, candidate)
        assert not any(isinstance(module, Absent) for module in student.modules())
        assert losses.sums.tolist() == measure_model(student).sums.tolist(), candidate.key
    assert candidates[-2].parts == ("1",)
    assert not any(isinstance(module, Absent) for module in anatomy.model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "granite"])
def test_closed_form_is_the_folded_student(family: str) -> None:
    model = make_model(family)
    anatomy, walked = Anatomy(model), SublayerAnatomy(model)
    text = write_stream(model, 16, 48)
    gains = measure_gains(walked, walked.trace(text.tokens_NT[:2]))
    assert gains is not None
    assert sorted(gains) == list(range(8))
    walker = SubsetWalker(walked, calibration=text, validation=text, micro_batch=4, gains=gains)
    for candidate in (drop("1.attn"), drop("1.mlp"), drop("0.mlp", "2", "3.attn"), drop("1", "2.mlp")):
        losses, refit = walker.measure(walked.spell(candidate))
        student = make_student(anatomy, candidate)
        fold_refit(student, candidate, refit, by_sublayers=True)
        assert losses.loss == pytest.approx(measure_model(student, text).loss, abs=1e-4), candidate.key
        [raw] = measure_unrecovered(walked, [walked.spell(candidate)], text, micro_batch=4)
        assert losses.loss < raw.loss


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_that_are_gone_weigh_and_cache_nothing(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    sizes = {}
    for candidate in (drop(), drop("1"), drop("1.attn"), drop("1.mlp"), drop("0.attn", "1.attn")):
        with view_layers(anatomy, candidate) as view:
            sizes[candidate.parts] = measure_size(view, dtype=torch.float32)
    dense, whole, attention, mlp = (sizes[parts] for parts in ((), ("1",), ("1.attn",), ("1.mlp",)))
    layer = dense.kv_bytes_per_token - whole.kv_bytes_per_token
    assert layer > 0
    assert attention.kv_bytes_per_token == whole.kv_bytes_per_token
    assert mlp.kv_bytes_per_token == dense.kv_bytes_per_token
    assert sizes["0.attn", "1.attn"].kv_bytes_per_token < whole.kv_bytes_per_token
    assert whole.num_params < min(attention.num_params, mlp.num_params) < dense.num_params


def test_parts_taken_out_of_a_loaded_checkpoint_give_the_same_logits(tmp_path: Path) -> None:
    anatomy, candidate, tokens = Anatomy(make_model("llama")), drop("0.attn", "2", "3.mlp"), make_tokens()
    student = make_student(anatomy, candidate)
    expected = compute_logits(student, tokens)
    restore_parts(student, anatomy, candidate)
    student.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path, device=CPU, dtype=torch.float32)
    assert torch.equal(compute_logits(loaded, tokens), expected)
    remove_parts(loaded, candidate)
    assert torch.equal(compute_logits(loaded, tokens), expected)
    assert sum(isinstance(module, Absent) for module in loaded.modules()) == 2
