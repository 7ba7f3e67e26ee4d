"""What is computed on stored states are the losses of the models it stands for, whatever the order, at the stated cost."""

import gc
import itertools
import random
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seed.data.corpus import TokenStream
from seed.evaluation.perplexity import DocumentLosses, logits_of, measure_losses
from seed.models.anatomy import Anatomy
from seed.models.surgery import cast_weights, graft, make_student
from seed.optimize.space import enumerate_candidates
from seed.proxy import subset_walker
from seed.proxy.closed_form import ProjectionFit, count_fit_bytes, fold_refit, measure_gains
from seed.proxy.subset_walker import SubsetWalker, count_work, estimate_memory, measure_unrecovered
from seed.records import Candidate, SearchSpace
from tests.models.families import keep, make_model, scramble
from tests.proxy.streams import draw_stream, write_stream

CPU = torch.device("cpu")
MICRO_BATCH = 4
CANDIDATES = [
    Candidate.keep(num_layers=4, kept_layers=kept)
    for count in range(1, 5)
    for kept in itertools.combinations(range(4), count)
]
LEXICOGRAPHIC = sorted(CANDIDATES, key=lambda candidate: candidate.kept_layers)
DENSE = Candidate.keep(num_layers=4, kept_layers=(0, 1, 2, 3))
VALIDATION = draw_stream(6, 24, rng_seed=2)  # the last batch is smaller


def make_walker(
    anatomy: Anatomy, *, calibration: TokenStream | None = None, validation: TokenStream | None = None
) -> SubsetWalker:
    calibration = calibration or draw_stream(10, 48, rng_seed=1)
    gains = measure_gains(anatomy, anatomy.trace(calibration.tokens_NT[:2]))
    assert gains is not None
    return SubsetWalker(
        anatomy,
        calibration=calibration,
        validation=validation or VALIDATION,
        micro_batch=MICRO_BATCH,
        gains=gains,
    )


def measure_raw(
    anatomy: Anatomy, candidates: Sequence[Candidate], stream: TokenStream = VALIDATION
) -> list[DocumentLosses]:
    return measure_unrecovered(anatomy, candidates, stream, micro_batch=MICRO_BATCH)


def measure_model(model: nn.Module, stream: TokenStream = VALIDATION) -> DocumentLosses:
    return measure_losses(logits_of(model), stream, micro_batch=MICRO_BATCH, device=CPU)


def flatten(losses: DocumentLosses) -> tuple[list[float], list[int]]:
    return losses.sums.tolist(), losses.counts.tolist()


def spy_layers(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.Size]]:
    """Record the layer and the shape of every single layer's run."""
    runs: list[tuple[int, torch.Size]] = []
    run_layer = anatomy.run_layer

    def spy(layer: int, hidden_BTD: Tensor) -> Tensor:
        runs.append((layer, hidden_BTD.shape))
        return run_layer(layer, hidden_BTD)

    monkeypatch.setattr(anatomy, "run_layer", spy)
    return runs


# ---- as they stand


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.bfloat16), ("qwen2_moe", torch.bfloat16)],
    ids=str,
)
def test_every_subset_scores_as_the_student_does_to_the_bit(family: str, dtype: torch.dtype) -> None:
    anatomy = Anatomy(cast_weights(make_model(family), dtype))
    found = measure_raw(anatomy, CANDIDATES)
    for candidate, losses in zip(CANDIDATES, found, strict=True):
        assert flatten(losses) == flatten(measure_model(make_student(anatomy, candidate))), candidate.key
    assert flatten(found[-1]) == flatten(measure_model(anatomy.model))  # the last keeps every layer


def test_the_order_of_candidates_and_repetitions_change_nothing() -> None:
    anatomy = Anatomy(make_model("llama"))
    alone = {candidate.key: flatten(measure_raw(anatomy, [candidate])[0]) for candidate in CANDIDATES}
    assert len({tuple(sums) for sums, _ in alone.values()}) == len(CANDIDATES)
    shuffled = random.Random(0).sample(CANDIDATES, len(CANDIDATES))
    for order in (LEXICOGRAPHIC, LEXICOGRAPHIC[::-1], shuffled, shuffled + LEXICOGRAPHIC, [DENSE, DENSE]):
        found = measure_raw(anatomy, order)
        assert [flatten(losses) for losses in found] == [alone[candidate.key] for candidate in order]


def count_live(anatomy: Anatomy, stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> int:
    """Most layer outputs alive at once while all subsets are scored."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0
    run_layer = anatomy.run_layer

    def spy(layer: int, hidden_BTD: Tensor) -> Tensor:
        nonlocal most
        result = run_layer(layer, hidden_BTD)
        alive.add(result)
        most = max(most, len(alive))
        return result

    gc.collect()
    monkeypatch.setattr(anatomy, "run_layer", spy)
    measure_raw(anatomy, CANDIDATES, stream)
    return most


def test_states_do_not_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = Anatomy(make_model("llama"))
    short, long = (count_live(anatomy, draw_stream(windows, 8), monkeypatch) for windows in (4, 40))
    assert short == 4  # one path of the trie
    assert long <= short + 1  # a batch's last path is let go when the next begins


# ---- in closed form


def test_the_order_of_recovered_candidates_and_what_siblings_share_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anatomy = Anatomy(make_model("gpt2"))
    alone = {candidate.key: flatten(make_walker(anatomy).measure(candidate)[0]) for candidate in CANDIDATES}
    assert len({tuple(sums) for sums, _ in alone.values()}) == len(CANDIDATES)
    shuffled = random.Random(0).sample(CANDIDATES, len(CANDIDATES))
    for order in (LEXICOGRAPHIC, LEXICOGRAPHIC[::-1], shuffled + shuffled):
        walker = make_walker(anatomy)
        for candidate in order:
            assert flatten(walker.measure(candidate)[0]) == alone[candidate.key], candidate.key
    for bound in (0, max(run.count_bytes() for run in walker.runs.values())):
        monkeypatch.setattr(subset_walker, "SIBLING_BYTES", bound)
        for candidate in LEXICOGRAPHIC:
            assert flatten(walker.measure(candidate)[0]) == alone[candidate.key]
            assert sum(run.count_bytes() for run in walker.runs.values()) <= bound


def test_a_bfloat16_model_is_recovered_as_its_folded_student() -> None:
    model = cast_weights(make_model("llama"), torch.bfloat16)
    anatomy = Anatomy(model)
    text = write_stream(model, 16, 48)
    walker = make_walker(anatomy, calibration=text, validation=text)
    for candidate in CANDIDATES:
        losses, refit = walker.measure(candidate)
        student = cast_weights(make_student(anatomy, candidate), torch.float32)
        fold_refit(student, candidate, refit)
        folded = measure_model(cast_weights(student, torch.bfloat16), text)
        assert losses.loss == pytest.approx(folded.loss, abs=5e-3), candidate.key
        assert all(correction.weight.dtype == torch.float64 for correction in refit.values())


def test_maps_stand_at_and_behind_the_first_cut_only() -> None:
    walker = make_walker(Anatomy(make_model("llama")))
    grafted = make_walker(make_grafted("llama", 1)[0])
    for one, kept, mapped in (
        (walker, (0, 1, 2, 3), set()),
        (walker, (0, 1, 3), {1, 3}),
        (walker, (0, 1, 2), {2}),
        (walker, (1, 2, 3), {1, 2, 3}),
        (walker, (0, 2), {0, 2}),
        (grafted, (0, 2, 3), set()),
        (grafted, (0, 2), {2}),
        (grafted, (0, 3), {0, 3}),
        (grafted, (2, 3), {2, 3}),
    ):
        assert set(one.measure(keep(*kept))[1]) == mapped, kept
    one, other = (walker.measure(candidate)[1] for candidate in (keep(0, 2, 3), keep(0, 2)))
    assert one[0] is other[0]  # a node that is shared keeps its map: from 0 to 2 in both
    assert not torch.equal(one[2].weight, other[2].weight)  # to 3, and to the end


def test_memory_stays_within_the_estimate() -> None:
    calibration = draw_stream(10, 48, rng_seed=1)
    walker = make_walker(Anatomy(make_model("llama")), calibration=calibration)
    tokens = {"calibration_tokens": calibration.num_tokens, "validation_tokens": VALIDATION.num_tokens}
    sizes = {"num_layers": 4, "width": 32, "mlp_width": 64, "number_bytes": 4}
    path = 5 * (2 * calibration.num_tokens + VALIDATION.num_tokens) * 32 * 4
    siblings = 4 * ((calibration.num_tokens + VALIDATION.num_tokens) * (32 + 64) * 4 + count_fit_bytes(64))
    assert estimate_memory(**sizes, **tokens) == path + siblings
    most_path, most_siblings = 0, 0
    for candidate in CANDIDATES:
        walker.measure(candidate)
        shared = sum(run.count_bytes() for run in walker.runs.values())
        most_path, most_siblings = max(most_path, walker.count_bytes() - shared), max(most_siblings, shared)
        for run in walker.runs.values():
            held = [*run.calibration, *run.validation, *run.validation_inputs, *run.fit.inputs]
            for sums in (run.fit.fitted, run.fit.held_out, run.fit.everything):
                held += [sums.gram, *(factor for factor in sums.factors.values() if factor is not None)]
            assert 0.8 * run.count_bytes() < sum(tensor.nbytes for tensor in held) <= 1.01 * run.count_bytes()
    assert 0.6 * path < most_path <= path
    assert 0.6 * siblings < most_siblings <= siblings


# ---- work, counted


SPACES = [
    SearchSpace(num_layers=4, droppable_layers=(0, 1, 2, 3), min_dropped=0, max_dropped=3),
    SearchSpace(num_layers=4, droppable_layers=(1, 3), min_dropped=1, max_dropped=2),
    SearchSpace(num_layers=4, droppable_layers=(0, 2, 3), min_dropped=1, max_dropped=3, gone_layers=(1,)),
]


@pytest.mark.parametrize("space", SPACES)
def test_the_counted_work_is_what_the_walker_does(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = make_grafted("llama", *space.gone_layers)[0] if space.gone_layers else Anatomy(make_model("llama"))
    walker = make_walker(anatomy)  # three batches of calibration text, two of validation text
    fits, solutions = [], []
    begin, solve = ProjectionFit.__init__, ProjectionFit.solve

    def count_fit(self: ProjectionFit, inputs: Sequence[Tensor], *, has_bias: bool) -> None:
        fits.append(self)
        begin(self, inputs, has_bias=has_bias)

    def count_solution(self: ProjectionFit, gaps: Sequence[Tensor]) -> Any:
        solutions.append(self)
        return solve(self, gaps)

    monkeypatch.setattr(ProjectionFit, "__init__", count_fit)
    monkeypatch.setattr(ProjectionFit, "solve", count_solution)
    runs = spy_layers(anatomy, monkeypatch)
    heads = 0
    compute_logits = anatomy.compute_logits

    def count_head(*args: Any) -> Tensor:
        nonlocal heads
        heads += 1
        return compute_logits(*args)

    monkeypatch.setattr(anatomy, "compute_logits", count_head)
    for candidate in enumerate_candidates(space):
        walker.measure(candidate)
    work = count_work(enumerate_candidates(space), closed_form=True, gone_layers=space.gone_layers)
    assert len(fits) == work.run_layers
    assert len(solutions) == work.solved_layers
    assert sum(shape[1] == 48 for _, shape in runs) == 3 * work.run_layers
    assert sum(shape[1] == 24 for _, shape in runs) == 2 * (work.run_layers + work.plain_layers)
    assert heads == 2 * work.heads == 2 * space.size
    runs.clear()
    measure_raw(anatomy, list(enumerate_candidates(space)))
    plain = count_work(enumerate_candidates(space), closed_form=False)
    assert len(runs) == 2 * plain.plain_layers
    assert (plain.run_layers, plain.solved_layers, plain.heads) == (0, 0, space.size)


# ---- cut again: a recovered model, grafted


def make_grafted(family: str, *gone: int) -> tuple[Anatomy, nn.Module]:
    """A model whose gone layers are gaps and whose other weights are all others than the dense model's; and it alone."""
    anatomy = Anatomy(make_model(family))
    candidate = keep(*(layer for layer in range(4) if layer not in gone))
    recovered = scramble(make_student(anatomy, candidate), rng_seed=1)
    return graft(anatomy, recovered, candidate), recovered


def list_further(*gone: int) -> list[Candidate]:
    return [candidate for candidate in LEXICOGRAPHIC if set(gone) <= set(candidate.dropped_layers)]


@pytest.mark.parametrize(("family", "gone"), [("gpt2", ()), ("granite", ()), ("llama", (1,)), ("qwen2_moe", (0, 2))])
def test_subsets_score_as_their_students_do_raw_and_folded(family: str, gone: tuple[int, ...]) -> None:
    grafted, recovered = make_grafted(family, *gone)
    walker = make_walker(grafted)
    candidates = list_further(*gone)
    raw = measure_raw(grafted, candidates)
    for candidate, losses in zip(candidates, raw, strict=True):
        assert flatten(losses) == flatten(measure_model(make_student(grafted, candidate))), candidate.key
    for candidate in [*candidates, *reversed(candidates)]:
        losses, refit = walker.measure(candidate)
        student = make_student(grafted, candidate)
        fold_refit(student, candidate, refit)
        assert losses.loss == pytest.approx(measure_model(student).loss, abs=1e-6), candidate.key
        if candidate.dropped_layers == gone:
            assert refit == {}
            assert flatten(losses) == flatten(raw[candidates.index(candidate)]) == flatten(measure_model(recovered))


def test_a_grafted_model_is_recovered_as_the_same_model_without_gaps() -> None:
    grafted, recovered = make_grafted("llama", 1)
    text = draw_stream(10, 48, rng_seed=1)
    alone = make_walker(Anatomy(recovered), calibration=text, validation=text)
    walker = make_walker(grafted, calibration=text, validation=text)
    for kept, theirs in [((0, 2, 3), (0, 1, 2)), ((0, 3), (0, 2)), ((2, 3), (1, 2)), ((2,), (1,))]:
        losses, _ = walker.measure(keep(*kept))
        expected, _ = alone.measure(Candidate.keep(num_layers=3, kept_layers=theirs))
        assert flatten(losses) == flatten(expected), kept
