"""Logits -> losses by document -> a ``Quality`` with honest error bars.

Errors are clustered by document, since the tokens of one text are alike; ratios to the dense model come
from paired differences on the same tokens.

Shapes: B sequences, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seed.data.corpus import TokenStream
from seed.records import Quality
from seed.stats import clustered_standard_error, count_effective

# Float32 logits of one micro-batch. On the CPU, buffers past 32 MB go back to the kernel at every free, and the
# page faults cost 30 % of a score (0.88 s at 64 MB, 0.61 s at 16 MB, two cores, 4,096 words).
LOGITS_BYTES = {"cpu": 16 * 2**20}
# Positions that go through the head at once with gradients. Fewer, and its products are bound by reading its weights and
# writing their gradient, not by arithmetic.
HEAD_POSITIONS = {"cpu": 512}
DEFAULT_LOGITS_BYTES = 256 * 2**20
LARGEST_EXPONENT = 700.0  # a perplexity past this is no longer a float64

ComputeLogits = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class DocumentLosses:
    """Summed losses (nats) and scored tokens of each document of a stream."""

    sums: np.ndarray  # float64
    counts: np.ndarray  # int64

    @property
    def loss(self) -> float:
        """Mean loss, nats per token."""
        return float(self.sums.sum() / self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How near a model's predictions are to the dense model's."""

    kl_divergence: float
    top1_agreement: float
    acceptance: float


def logits_of(model: nn.Module) -> ComputeLogits:
    """Return tokens (B, T) -> logits (B, T, V) of a causal LM."""

    def compute(tokens_BT: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
        return logits

    return compute


def choose_micro_batch(window_tokens: int, vocabulary: int, *, device: torch.device) -> int:
    """How many windows go through at once so that their float32 logits stay small; at most 16."""
    most = LOGITS_BYTES.get(device.type, DEFAULT_LOGITS_BYTES)
    return max(1, min(16, most // (4 * window_tokens * vocabulary)))


def split_for_head(tokens_BT: Tensor, *, vocabulary: int) -> Iterator[tuple[slice, slice]]:
    """Yield (rows, columns) of parts whose float32 logits stay small: whole windows, or parts of one."""
    positions = max(1, DEFAULT_LOGITS_BYTES // (4 * vocabulary))
    return split_positions(tokens_BT, min(positions, HEAD_POSITIONS.get(tokens_BT.device.type, positions)))


def split_positions(batch: Tensor, positions: int) -> Iterator[tuple[slice, slice]]:
    """Yield (rows, columns) of parts of a batch (B, T, ...) of so many positions at most: whole windows, or parts of one."""
    num_windows, window_tokens = batch.shape[:2]
    rows, columns = max(1, positions // window_tokens), min(window_tokens, positions)
    for first in range(0, num_windows, rows):
        for start in range(0, window_tokens, columns):
            yield slice(first, first + rows), slice(start, start + columns)


def iterate_batches(stream: TokenStream, *, micro_batch: int, device: torch.device) -> Iterator[Tensor]:
    """Yield a stream's windows on the device, in order, so many at a time."""
    for tokens_BT in stream.tokens_NT.split(micro_batch):
        yield tokens_BT.to(device)


def token_losses(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Loss of every token but the first of each window, float32 (B, T - 1), nats."""
    flat = nn.functional.cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none"
    )
    return flat.view(tokens_BT.shape[0], -1)


def sum_by_document(losses_NT: np.ndarray, stream: TokenStream) -> DocumentLosses:
    """Add up per-token losses (N, T - 1) by the document of the predicted token."""
    owners = stream.documents_NT[:, 1:].ravel()
    return DocumentLosses(
        sums=np.bincount(owners, weights=losses_NT.ravel(), minlength=stream.num_documents),
        counts=np.bincount(owners, minlength=stream.num_documents),
    )


@torch.no_grad()
def measure_losses(
    compute: ComputeLogits, stream: TokenStream, *, micro_batch: int, device: torch.device
) -> DocumentLosses:
    """Losses of a model on a stream."""
    rows = measure_token_losses(compute, stream.tokens_NT, micro_batch=micro_batch, device=device)
    return sum_by_document(rows, stream)


@torch.no_grad()
def measure_token_losses(
    compute: ComputeLogits, tokens_NT: Tensor, *, micro_batch: int, device: torch.device
) -> np.ndarray:
    """Losses of a model on windows of tokens, nats, float32 (N, T - 1)."""
    batches = [tokens.to(device) for tokens in tokens_NT.split(micro_batch)]
    return np.concatenate([token_losses(compute(tokens), tokens).cpu().numpy() for tokens in batches])


@torch.no_grad()
def compare_models(
    dense: ComputeLogits,
    others: Sequence[ComputeLogits],
    stream: TokenStream,
    *,
    micro_batch: int,
    device: torch.device,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[DocumentLosses, list[tuple[DocumentLosses, Closeness]]]:
    """Losses of the dense model and of others, and how near each of them is to it, in one pass."""
    dense_rows: list[np.ndarray] = []
    rows: list[list[np.ndarray]] = [[] for _ in others]
    divergences, agreeing, accepted, total = [0.0] * len(others), [0] * len(others), [0.0] * len(others), 0
    for tokens in iterate_batches(stream, micro_batch=micro_batch, device=device):
        reference = dense(tokens).float()
        dense_rows.append(token_losses(reference, tokens).cpu().numpy())
        reference = reference[:, :-1]
        total += reference.shape[0] * reference.shape[1]
        for i, other in enumerate(others):
            logits = other(tokens).float()
            rows[i].append(token_losses(logits, tokens).cpu().numpy())
            divergences[i] += forward_kl(reference, logits[:, :-1]).sum().item()
            accepted[i] += measure_acceptance(reference, logits[:, :-1]).sum().item()
            agreeing[i] += int((reference.argmax(-1) == logits[:, :-1].argmax(-1)).sum().item())
        on_batch()
    results = [
        (
            sum_by_document(np.concatenate(rows[i]), stream),
            Closeness(
                kl_divergence=divergences[i] / total,
                top1_agreement=agreeing[i] / total,
                acceptance=accepted[i] / total,
            ),
        )
        for i in range(len(others))
    ]
    return sum_by_document(np.concatenate(dense_rows), stream), results


def forward_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(teacher || student) at every position, nats; logits (..., V) -> (...)."""
    teacher = nn.functional.log_softmax(teacher_logits, dim=-1)
    student = nn.functional.log_softmax(student_logits, dim=-1)
    return nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def measure_acceptance(dense_logits: Tensor, draft_logits: Tensor) -> Tensor:
    """Probability that the dense model accepts what a draft draws (Leviathan et al., arXiv 2211.17192); logits (..., V) -> (...)."""
    return torch.minimum(dense_logits.softmax(-1), draft_logits.softmax(-1)).sum(-1)


def judge(
    losses: DocumentLosses,
    dense: DocumentLosses,
    *,
    closeness: Closeness | None = None,
    document_losses_path: str | None = None,
) -> Quality:
    """Turn losses into a ``Quality`` beside the dense model's losses on the same tokens."""
    ratio = math.exp(min(losses.loss - dense.loss, LARGEST_EXPONENT))
    return Quality(
        loss=losses.loss,
        perplexity=math.exp(min(losses.loss, LARGEST_EXPONENT)),
        standard_error=float(clustered_standard_error(losses.sums, losses.counts)),
        tokens=int(losses.counts.sum()),
        documents=len(losses.counts),
        effective_documents=count_effective(losses.counts),
        ppl_ratio=ratio,
        ppl_ratio_standard_error=ratio * float(clustered_standard_error(losses.sums - dense.sums, losses.counts)),
        kl_divergence=closeness.kl_divergence if closeness else None,
        top1_agreement=closeness.top1_agreement if closeness else None,
        acceptance=closeness.acceptance if closeness else None,
        document_losses_path=document_losses_path,
    )
