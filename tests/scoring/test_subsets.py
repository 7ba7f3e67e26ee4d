"""The walker's shortcut gives the losses of the models it stands for, in whatever order it is asked."""

import itertools
import random

import pytest
import torch
from torch import nn

from seed.models.anatomy import Anatomy
from seed.models.surgery import make_student
from seed.records import Candidate
from seed.scoring.corpus import TokenStream
from seed.scoring.quality import DocumentLosses, logits_of, measure_losses
from seed.scoring.refit import fit_correction, fold_refit, measure_gains
from seed.scoring.subsets import SubsetWalker, estimate_memory
from tests.models.families import make_model
from tests.scoring.streams import draw_stream, write_stream

CPU = torch.device("cpu")
MICRO_BATCH = 4
CANDIDATES = [
    Candidate(num_layers=4, kept_layers=kept)
    for count in range(1, 5)
    for kept in itertools.combinations(range(4), count)
]
DENSE = Candidate(num_layers=4, kept_layers=(0, 1, 2, 3))


def make_walker(
    anatomy: Anatomy, *, refit: bool, calibration: TokenStream | None = None, validation: TokenStream | None = None
) -> SubsetWalker:
    calibration = calibration or draw_stream(10, 48, rng_seed=1)
    gains = measure_gains(anatomy, anatomy.trace(calibration.tokens_NT[:2])) if refit else None
    assert not refit or gains is not None
    return SubsetWalker(
        anatomy,
        calibration=calibration,
        validation=validation or draw_stream(6, 24, rng_seed=2),  # the last batch is smaller
        micro_batch=MICRO_BATCH,
        fit=fit_correction if refit else None,
        gains=gains,
    )


def measure_model(model: nn.Module, stream: TokenStream) -> DocumentLosses:
    return measure_losses(logits_of(model), stream, micro_batch=MICRO_BATCH, device=CPU)


def flatten(losses: DocumentLosses) -> tuple[list[float], list[int]]:
    return losses.sums.tolist(), losses.counts.tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "bloom", "mixtral"])
def test_every_subset_scores_as_the_student_does_to_the_bit(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    walker = make_walker(anatomy, refit=False)
    for candidate in CANDIDATES:
        losses, refit = walker.measure(candidate)
        student = make_student(anatomy, candidate)
        assert flatten(losses) == flatten(measure_model(student, walker.validation)), candidate.key
        assert not refit.corrections


@pytest.mark.parametrize("refit", [False, True])
def test_the_order_of_candidates_changes_nothing(refit: bool) -> None:
    anatomy = Anatomy(make_model("llama"))
    alone = {
        candidate.key: flatten(make_walker(anatomy, refit=refit).measure(candidate)[0]) for candidate in CANDIDATES
    }
    assert len({tuple(sums) for sums, _ in alone.values()}) == len(CANDIDATES)
    lexicographic = sorted(CANDIDATES, key=lambda candidate: candidate.kept_layers)
    shuffled = random.Random(0).sample(CANDIDATES, len(CANDIDATES))
    for order in (lexicographic, lexicographic[::-1], shuffled, shuffled + shuffled):
        walker = make_walker(anatomy, refit=refit)
        for candidate in order:
            assert flatten(walker.measure(candidate)[0]) == alone[candidate.key], candidate.key


def test_a_shared_beginning_is_not_run_again() -> None:
    anatomy = Anatomy(make_model("llama"))
    walker = make_walker(anatomy, refit=False)
    runs = [0] * 4
    for index, layer in enumerate(anatomy.layers):

        def count(*_: object, index: int = index) -> None:
            runs[index] += 1

        layer.register_forward_hook(count)
    walker.measure(Candidate(num_layers=4, kept_layers=(0, 1, 2)))
    first = list(runs)
    walker.measure(Candidate(num_layers=4, kept_layers=(0, 1, 3)))
    batches = first[0]
    assert first == [batches, batches, batches, 0]
    assert [after - before for after, before in zip(runs, first, strict=True)] == [0, batches, 0, batches]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "granite"])
def test_recovered_losses_are_those_of_the_folded_student(family: str) -> None:
    anatomy = Anatomy(make_model(family))
    walker = make_walker(anatomy, refit=True)
    raw = make_walker(anatomy, refit=False)
    for candidate in CANDIDATES:
        losses, refit = walker.measure(candidate)
        student = make_student(anatomy, candidate)
        fold_refit(student, candidate, refit)
        assert losses.loss == pytest.approx(measure_model(student, walker.validation).loss, abs=1e-5), candidate.key
        if candidate != DENSE:
            assert abs(losses.loss - raw.measure(candidate)[0].loss) > 1.5e-5, candidate.key


def test_maps_stand_at_and_behind_the_first_cut_only() -> None:
    walker = make_walker(Anatomy(make_model("llama")), refit=True)

    def mapped(*kept: int) -> set[int]:
        return set(walker.measure(Candidate(num_layers=4, kept_layers=kept))[1].corrections)

    assert mapped(0, 1, 2, 3) == set()
    assert mapped(0, 1, 3) == {1, 3}
    assert mapped(0, 1, 2) == {2}
    assert mapped(1, 2, 3) == {1, 2, 3}
    assert mapped(0, 2) == {0, 2}


def test_closed_form_helps_on_the_text_it_was_fitted_to() -> None:
    model = make_model("llama")
    anatomy = Anatomy(model)
    text = write_stream(model, 32, 64)
    raw = make_walker(anatomy, refit=False, calibration=text, validation=text)
    recovered = make_walker(anatomy, refit=True, calibration=text, validation=text)
    dense = raw.measure(DENSE)[0].loss
    assert recovered.measure(DENSE)[0].loss == dense
    pairs = [
        (raw.measure(candidate)[0].loss - dense, recovered.measure(candidate)[0].loss - dense)
        for candidate in CANDIDATES
        if candidate != DENSE
    ]
    before, after = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    assert before > 0.005  # the cuts do hurt
    assert after < 0.9 * before


@pytest.mark.parametrize("refit", [False, True])
def test_memory_stays_within_the_estimate(refit: bool) -> None:
    calibration, validation = draw_stream(10, 48, rng_seed=1), draw_stream(6, 24, rng_seed=2)
    walker = make_walker(Anatomy(make_model("llama")), refit=refit, calibration=calibration, validation=validation)
    allowed = estimate_memory(
        num_layers=4,
        width=32,
        calibration_tokens=calibration.num_tokens if refit else 0,
        validation_tokens=validation.num_tokens,
        number_bytes=4,
    )
    for candidate in CANDIDATES:
        walker.measure(candidate)
        stored = [state for states in walker.teacher_states for state in states]
        for node in (walker.start, *walker.path):
            stored += [*node.calibration, *node.validation]
        assert sum({state.data_ptr(): state.nbytes for state in stored}.values()) <= allowed
