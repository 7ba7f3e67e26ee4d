"""A candidate climbs to the rung asked for; what was measured on the way is kept, and is true of the student."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seed.models.anatomy import Anatomy
from seed.models.checkpoint import load_checkpoint, write_checkpoint
from seed.records import Candidate, Latency, Quality
from seed.scoring.distillation import DistillSettings
from seed.scoring.proxy import Instruments, Proxy, choose_start, size_of, start_student, validation_losses
from seed.scoring.quality import judge, logits_of, measure_losses
from seed.scoring.refit import measure_gains
from tests.conftest import make_tokenizer
from tests.models.families import compute_logits, make_model, make_tokens
from tests.scoring.streams import write_stream

CUT = Candidate(num_layers=4, kept_layers=(0, 3))
DENSE = Candidate(num_layers=4, kept_layers=(0, 1, 2, 3))
SHORT = DistillSettings(steps=12, batch_windows=8, micro_batch=4, learning_rate=3e-3, rng_seed=0, looks=3)


def make_instruments(directory: Path, *, family: str = "llama", stored: torch.dtype = torch.float32) -> Instruments:
    model = make_model(family)
    anatomy = Anatomy(model)
    calibration = write_stream(model, 12, 64, rng_seed=1)
    validation = write_stream(model, 12, 32, rng_seed=2)
    return Instruments(
        anatomy=anatomy,
        calibration=calibration,
        recovery=calibration,
        validation=validation,
        dense_validation=measure_losses(logits_of(model), validation, micro_batch=4, device=torch.device("cpu")),
        gains=measure_gains(anatomy, anatomy.trace(calibration.tokens_NT[:4])),
        micro_batch=4,
        stored_dtype=stored,
        losses_directory=directory / "losses",
    )


def time_candidate(candidate: Candidate) -> Latency:
    """A latency as the study's table would hold it."""
    ratio = len(candidate.kept_layers) / candidate.num_layers
    return Latency(
        structure=f"{len(candidate.kept_layers)} layers",
        workload="decode",
        device="cpu",
        repeats=5,
        median_ms=10 * ratio,
        p10_ms=9 * ratio,
        p90_ms=11 * ratio,
        dense_median_ms=10.0,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
    )


def make_proxy(instruments: Instruments, rung: str) -> Proxy:
    return Proxy(instruments, rung=rung, short=SHORT, latency_of=time_candidate)


@pytest.mark.parametrize(
    ("rung", "expected"),
    [
        ("none", ["none"]),
        ("closed_form", ["closed_form"]),
        ("short_distillation", ["none", "closed_form", "short_distillation"]),
    ],
)
def test_each_rung_fills_its_qualities_and_stores_their_losses(rung: str, expected: list[str], tmp_path: Path) -> None:
    instruments = make_instruments(tmp_path)
    evaluation = make_proxy(instruments, rung).evaluate(CUT)
    assert list(evaluation.qualities) == expected
    assert evaluation.candidate == CUT
    assert evaluation.latency == time_candidate(CUT)
    assert evaluation.skipped_because is None
    assert evaluation.seconds > 0
    for name, quality in evaluation.qualities.items():
        assert quality.document_losses_path == f"losses/{name}/{CUT.key}.npz"
        with np.load(tmp_path / quality.document_losses_path) as stored:
            sums, counts = stored["sums"], stored["counts"]
        assert sums.sum() / counts.sum() == quality.loss
        assert (int(counts.sum()), len(counts)) == (quality.tokens, quality.documents) == (12 * 31, 6)
        assert quality.ppl_ratio == pytest.approx(np.exp(quality.loss - instruments.dense_validation.loss))
    assert sorted(path.parent.name for path in (tmp_path / "losses").rglob("*.npz")) == sorted(expected)


def test_qualities_are_those_of_the_students_they_stand_for(tmp_path: Path) -> None:
    instruments = make_instruments(tmp_path)
    proxy = make_proxy(instruments, "short_distillation")
    qualities = proxy.evaluate(CUT).qualities
    raw = start_student(instruments, CUT, None)
    assert validation_losses(instruments, raw).loss == qualities["none"].loss
    folded = start_student(instruments, CUT, proxy.closed_form.measure(CUT)[1])
    assert validation_losses(instruments, folded).loss == pytest.approx(qualities["closed_form"].loss, abs=1e-5)
    assert qualities["none"].loss > instruments.dense_validation.loss  # the text is the dense model's own


def test_short_distillation_never_ends_worse_than_its_better_start(tmp_path: Path) -> None:
    proxy = make_proxy(make_instruments(tmp_path), "short_distillation")
    for kept in ((0, 3), (0, 1, 3), (2,)):
        qualities = proxy.evaluate(Candidate(num_layers=4, kept_layers=kept)).qualities
        start = choose_start(qualities)
        assert qualities[start].loss == min(qualities["none"].loss, qualities["closed_form"].loss)
        assert qualities["short_distillation"].loss <= qualities[start].loss + 1e-5
    assert qualities["short_distillation"].loss < qualities["none"].loss - 1e-3


def test_short_distillation_starts_from_the_better_start(tmp_path: Path) -> None:
    instruments = make_instruments(tmp_path)
    still = replace(SHORT, learning_rate=1e-12)  # what comes back is what it started from
    proxy = Proxy(instruments, rung="short_distillation", short=still, latency_of=time_candidate)
    losses = {name: quality.loss for name, quality in proxy.evaluate(CUT).qualities.items()}
    assert losses["closed_form"] < losses["none"] - 1e-3
    assert losses["short_distillation"] == pytest.approx(losses["closed_form"], abs=1e-5)


def test_keeping_every_layer_is_the_dense_model(tmp_path: Path) -> None:
    for rung in ("none", "closed_form"):
        quality = make_proxy(make_instruments(tmp_path), rung).evaluate(DENSE).qualities[rung]
        assert (quality.ppl_ratio, quality.ppl_ratio_standard_error) == (1.0, 0.0)


def test_scoring_leaves_the_teacher_as_it_was_and_repeats_itself(tmp_path: Path) -> None:
    instruments = make_instruments(tmp_path)
    tokens = make_tokens()
    before = compute_logits(instruments.teacher, tokens)
    proxy = make_proxy(instruments, "short_distillation")
    first = proxy.evaluate(CUT)
    proxy.evaluate(Candidate(num_layers=4, kept_layers=(0, 1, 2)))
    assert proxy.evaluate(CUT).qualities == first.qualities
    assert torch.equal(compute_logits(instruments.teacher, tokens), before)
    assert not any(parameter.requires_grad for parameter in instruments.teacher.parameters())


def test_a_family_without_closed_form_climbs_past_it(tmp_path: Path) -> None:
    instruments = make_instruments(tmp_path, family="gemma2")
    assert instruments.gains is None
    assert list(make_proxy(instruments, "short_distillation").evaluate(CUT).qualities) == ["none", "short_distillation"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_the_size_is_that_of_the_exported_student(family: str, tmp_path: Path) -> None:
    instruments = make_instruments(tmp_path, family=family, stored=torch.bfloat16)
    size = size_of(instruments, CUT)
    student = start_student(instruments, CUT, None)
    assert size.num_params == sum(parameter.numel() for parameter in student.parameters())
    write_checkpoint(
        student, tmp_path / "out", tokenizer=make_tokenizer(), dtype=torch.bfloat16, card="", provenance={}
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert size.num_params == sum(tensor.numel() for tensor in tensors)
    assert size.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert size.kv_bytes_per_token == size_of(instruments, DENSE).kv_bytes_per_token / 2
    assert make_proxy(instruments, "none").evaluate(CUT).size == size


def test_a_student_is_validated_as_it_is_exported(tmp_path: Path) -> None:
    instruments = make_instruments(tmp_path, stored=torch.bfloat16)
    student = start_student(instruments, CUT, None)
    found = validation_losses(instruments, student).loss
    write_checkpoint(
        student, tmp_path / "out", tokenizer=make_tokenizer(), dtype=torch.bfloat16, card="", provenance={}
    )
    exported = load_checkpoint(tmp_path / "out", device=torch.device("cpu"), dtype=torch.float32)
    losses = measure_losses(logits_of(exported), instruments.validation, micro_batch=4, device=torch.device("cpu"))
    assert losses.loss == found


def test_the_start_is_the_one_with_the_lower_loss(tmp_path: Path) -> None:
    losses = make_instruments(tmp_path).dense_validation

    def quality_of(loss: float) -> Quality:
        return judge(type(losses)(sums=losses.counts * loss, counts=losses.counts), losses)

    assert choose_start({"none": quality_of(3.0), "closed_form": quality_of(2.0)}) == "closed_form"
    assert choose_start({"none": quality_of(2.0), "closed_form": quality_of(3.0)}) == "none"
    assert choose_start({"none": quality_of(2.0)}) == "none"
    assert choose_start({"none": quality_of(2.0), "short_distillation": quality_of(1.0)}) == "none"
