"""Losses are cross entropy and nothing else, and their error bars hold against a bootstrap over documents."""

import math

import numpy as np
import pytest
import torch

from seed.data.corpus import TokenStream
from seed.evaluation import perplexity
from seed.evaluation.perplexity import DocumentLosses, clustered_standard_error, judge, logits_of, measure_losses
from tests.conftest import make_model

CPU = torch.device("cpu")


def make_stream(num_windows: int = 7, window_tokens: int = 16, num_documents: int = 5) -> TokenStream:
    """Random tokens; documents change within windows."""
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(0, num_documents, num_windows * window_tokens))
    owners = np.unique(owners, return_inverse=True)[1].reshape(num_windows, window_tokens)
    return TokenStream(
        tokens_NT=torch.from_numpy(rng.integers(1, 257, (num_windows, window_tokens))),
        documents_NT=owners.astype(np.int32),
        num_documents=num_documents,
        source="random",
    )


def make_losses(num_documents: int, *, rng_seed: int = 0) -> DocumentLosses:
    """Documents of very different lengths, each with a level of its own."""
    rng = np.random.default_rng(rng_seed)
    counts = rng.integers(5, 400, num_documents)
    levels = rng.normal(3, 0.6, num_documents)
    return DocumentLosses(sums=counts * levels + rng.normal(0, np.sqrt(counts)), counts=counts)


def test_losses_are_cross_entropy_added_up_by_the_document_of_the_predicted_token() -> None:
    stream = make_stream()
    stream.documents_NT[1:, 0] = 4  # of a window's first token nothing counts
    model = make_model("llama")
    found = measure_losses(logits_of(model), stream, micro_batch=3, device=CPU)
    whole = measure_losses(logits_of(model), stream, micro_batch=16, device=CPU)
    assert found.sums.tolist() == pytest.approx(whole.sums.tolist(), rel=1e-6)
    sums, counts = [0.0] * 5, [0] * 5
    for window, owners in zip(stream.tokens_NT, stream.documents_NT, strict=True):
        log_probs = model(input_ids=window[None]).logits[0].double().log_softmax(-1)
        for position in range(1, len(window)):
            sums[owners[position]] -= log_probs[position - 1, window[position]].item()
            counts[owners[position]] += 1
    assert found.counts.tolist() == counts
    assert found.sums.tolist() == pytest.approx(sums, rel=1e-5)
    assert found.loss == pytest.approx(sum(sums) / sum(counts), rel=1e-6)
    assert sum(counts) == 7 * 15  # the first token of a window is context only


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (1, 15),  # one position at a time
        (2, 9),  # the last part of each window is smaller
        (9, 3),  # room for less than two windows
        (10, 2),  # two windows, then the last
        (1000, 1),
    ],
)
def test_parts_for_the_head_cover_every_position_once_and_stay_small(
    positions: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(perplexity.HEAD_POSITIONS, "cpu", positions)
    tokens = torch.arange(15).view(3, 5)
    parts = list(perplexity.split_for_head(tokens, vocabulary=257))
    assert len(parts) == expected
    assert torch.cat([tokens[part].flatten() for part in parts]).sort().values.tolist() == list(range(15))
    assert all(tokens[part].numel() <= max(1, positions) for part in parts)
    assert all(rows.stop - rows.start == 1 for rows, columns in parts) or all(
        columns == slice(0, 5) for _, columns in parts
    )


def test_standard_errors_of_hand_computed_cases() -> None:
    def error_of(sums: list[float], counts: list[int]) -> float:
        return clustered_standard_error(np.array(sums), np.array(counts))

    assert error_of([1.0, 5.0], [1, 1]) == pytest.approx(2.0)  # two numbers: their standard error of the mean
    # mean 3; residuals 0, -2, 2; sqrt(3 / 2 * 8) / 4
    assert error_of([3.0, 1.0, 8.0], [1, 1, 2]) == pytest.approx(math.sqrt(12) / 4)
    assert error_of([2.0, 6.0], [1, 3]) == 0.0  # both documents at the mean


@pytest.mark.parametrize("paired", [False, True], ids=["loss", "ratio"])
def test_standard_errors_agree_with_a_bootstrap_over_documents(paired: bool) -> None:
    losses, dense = make_losses(200), make_losses(200)
    rng = np.random.default_rng(1)
    dense = DocumentLosses(sums=losses.sums - losses.counts * rng.normal(0.1, 0.05, 200), counts=losses.counts)
    found = judge(losses, dense)
    estimates = []
    for _ in range(2000):
        chosen = rng.integers(0, 200, 200)
        counts = losses.counts[chosen].sum()
        mean = losses.sums[chosen].sum() / counts
        estimates.append(math.exp(mean - dense.sums[chosen].sum() / counts) if paired else mean)
    expected = found.ppl_ratio_standard_error if paired else found.standard_error
    assert expected == pytest.approx(float(np.std(estimates)), rel=0.15)
    alone = judge(losses, losses)
    assert (alone.ppl_ratio, alone.ppl_ratio_standard_error, alone.kl_divergence) == (1.0, 0.0, None)


def test_the_distance_of_two_models_is_the_mean_divergence_from_the_first() -> None:
    stream = make_stream()
    models = [make_model("llama"), make_model("llama", rng_seed=1), make_model("llama", rng_seed=2)]
    computes = [logits_of(model) for model in models]
    batches: list[None] = []
    dense, results = perplexity.compare_models(
        computes[0], computes[1:], stream, micro_batch=3, device=CPU, on_batch=lambda: batches.append(None)
    )
    assert len(batches) == 3
    logits = [compute(stream.tokens_NT)[:, :-1].double() for compute in computes]
    for i, (losses, closeness) in enumerate(results, 1):
        teacher, student = logits[0].log_softmax(-1), logits[i].log_softmax(-1)
        assert closeness.kl_divergence == pytest.approx(
            (teacher.exp() * (teacher - student)).sum(-1).mean().item(), rel=1e-5
        )
        assert closeness.top1_agreement == (logits[0].argmax(-1) == logits[i].argmax(-1)).double().mean().item()
        alone = measure_losses(computes[i], stream, micro_batch=3, device=CPU)
        assert losses.sums.tolist() == alone.sums.tolist()
    _, [(_, same)] = perplexity.compare_models(computes[0], computes[:1], stream, micro_batch=3, device=CPU)
    assert (same.kl_divergence, same.top1_agreement) == (pytest.approx(0.0, abs=1e-7), 1.0)
    alone = measure_losses(computes[0], stream, micro_batch=3, device=CPU)
    assert dense.sums.tolist() == alone.sums.tolist()
    assert results[0][1] != results[1][1]
