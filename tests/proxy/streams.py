"""Token streams without a tokenizer: random ones, and ones that a model itself wrote."""

import numpy as np
import torch
from torch import nn

from seed.data.corpus import TokenStream


def make_stream(tokens_NT: torch.Tensor) -> TokenStream:
    """Every two windows are one document."""
    num_windows, window_tokens = tokens_NT.shape
    owners = np.repeat(np.arange(num_windows) // 2, window_tokens).reshape(num_windows, window_tokens)
    return TokenStream(
        tokens_NT=tokens_NT,
        documents_NT=owners.astype(np.int32),
        num_documents=(num_windows + 1) // 2,
        source="made up",
    )


def draw_stream(num_windows: int, window_tokens: int, *, rng_seed: int = 0) -> TokenStream:
    """Random tokens."""
    generator = torch.Generator().manual_seed(rng_seed)
    return make_stream(torch.randint(1, 257, (num_windows, window_tokens), generator=generator))


def write_stream(model: nn.Module, num_windows: int, window_tokens: int, *, rng_seed: int = 0) -> TokenStream:
    """Text sampled from a model: no other model can predict it better."""
    generator = torch.Generator().manual_seed(rng_seed)
    tokens = torch.randint(1, 257, (num_windows, 1), generator=generator)
    with torch.no_grad():
        while tokens.shape[1] < window_tokens:
            probabilities = model(input_ids=tokens, use_cache=False).logits[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return make_stream(tokens)
