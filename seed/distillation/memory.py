"""What training takes of a GPU's memory, counted before it begins, and whether layers must be run again on the way back."""

import torch

from seed.evaluation.perplexity import DEFAULT_LOGITS_BYTES
from seed.models.anatomy import Anatomy
from seed.models.surgery import cast_weights

TRAINED_TOKENS = 2048  # through the layers at once, with gradients
# Float32 weight, gradient and two moments; the best weights so far lie on the host.
GPU_BYTES_PER_WEIGHT = 16
# Parts of the vocabulary's logits that a training step holds at once: both models', their logarithms, the
# probabilities and the gradient.
LOGITS_PARTS = 6
USABLE_SHARE = 0.93  # of a GPU's memory; the rest is for CUDA itself and for gaps between tensors


def count_logits_bytes(vocabulary: int) -> int:
    """Bytes of the logits that a training step holds at once."""
    return LOGITS_PARTS * min(DEFAULT_LOGITS_BYTES, 4 * TRAINED_TOKENS * vocabulary)


def fit_way_back(
    *, num_layers: int, tokens: int, width: int, kept_bytes: int, kept_copies: int, free_bytes: float
) -> tuple[int, bool]:
    """Bytes that a pass keeps for the way back, and whether layers must be run again then, which takes a third more time.

    It keeps all of every layer; where that is more than is free, each layer's float32 inputs and all of one.
    """
    one = tokens * kept_bytes + kept_copies
    recomputes = num_layers * one > free_bytes
    return num_layers * tokens * width * 4 + one if recomputes else num_layers * one, recomputes


def measure_recompute(anatomy: Anatomy, *, window_tokens: int, mixed_precision: bool) -> bool:
    """Whether students of this model must run layers again on the way back, on the GPU that it lies on."""
    if anatomy.device.type != "cuda":
        return False
    vocabulary, params = anatomy.config.vocab_size, list(anatomy.model.parameters())
    sample = torch.zeros(1, min(128, window_tokens), dtype=torch.long, device=anatomy.device)
    kept_bytes, kept_copies = count_kept_bytes(anatomy, sample, mixed_precision=mixed_precision)
    held = sum(weight.nbytes for weight in params) + GPU_BYTES_PER_WEIGHT * sum(weight.numel() for weight in params)
    _, recomputes = fit_way_back(
        num_layers=anatomy.num_layers,
        tokens=max(1, TRAINED_TOKENS // window_tokens) * window_tokens,
        width=anatomy.config.hidden_size,
        kept_bytes=kept_bytes,
        kept_copies=kept_copies,
        free_bytes=count_usable_bytes(anatomy.device) - held - count_logits_bytes(vocabulary),
    )
    return recomputes


def count_usable_bytes(device: torch.device) -> int:
    """Bytes of a GPU that tensors can have."""
    return int(USABLE_SHARE * torch.cuda.get_device_properties(device).total_memory)


def count_kept_bytes(anatomy: Anatomy, tokens_BT: torch.Tensor, *, mixed_precision: bool) -> tuple[int, int]:
    """What training the middle layer keeps for the way back: bytes for each token, and bytes whatever the tokens.

    Counted in a real pass over few tokens and over twice as many, with float32 weights as a student has them. Weights
    themselves do not count. Attention that keeps its weights grows with the square of a window, and is counted too low.
    """
    middle, found = anatomy.num_layers // 2, []
    layer = anatomy.layers[middle]
    few = max(1, min(64, tokens_BT.shape[1] // 2))
    traced = {count: anatomy.trace(tokens_BT[:1, :count]) for count in (few, 2 * few)}
    as_they_are = [weight.data for weight in layer.parameters()]
    cast_weights(layer, torch.float32)
    own = {weight.untyped_storage().data_ptr() for weight in layer.parameters()}
    layer.requires_grad_(True)
    try:
        for states in traced.values():
            kept: dict[int, torch.UntypedStorage] = {}

            def keep(saved: torch.Tensor, kept: dict[int, torch.UntypedStorage] = kept) -> torch.Tensor:
                storage = saved.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage
                return saved

            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
                torch.autocast(anatomy.device.type, dtype=torch.bfloat16, enabled=mixed_precision),
            ):
                anatomy.run_layer(middle, states[middle].float().requires_grad_(True))
            found.append(sum(storage.nbytes() for storage in kept.values()))
    finally:
        layer.requires_grad_(False)
        for weight, data in zip(layer.parameters(), as_they_are, strict=True):
            weight.data = data
    per_token = (found[1] - found[0]) // few
    return per_token, max(0, found[0] - few * per_token)
