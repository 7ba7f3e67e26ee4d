"""What is measured, pinned: shapes of models, windows of text, blocks of neighbouring candidates.

Shapes are stated, since a tiny vocabulary or a narrow layer would flatter shared prefixes. Weights and tokens may be
random where only time counts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from seed import resolve, sessions
from seed.cli import quiet_libraries
from seed.config import StudyConfig
from seed.data.corpus import TokenStream
from seed.models.anatomy import Anatomy
from seed.optimize.space import enumerate_candidates
from seed.protocols import describe_reference
from seed.proxy.instruments import Instruments
from seed.records import Candidate, SearchSpace
from seed.study_dir import StudyFolder

WIDTH, MLP_WIDTH, HEADS = 128, 352, 4  # the demo's
WINDOW_TOKENS = 256
DEMO_LAYERS, DEMO_VOCABULARY = 12, 4096
# TinyLlama's head has 1.5 times the parameters of one of its layers; so has a head of so many words at this width.
TINYLLAMA_LAYERS, TINYLLAMA_VOCABULARY = 22, 2355


def make_llama(num_layers: int, *, vocabulary: int = DEMO_VOCABULARY) -> Anatomy:
    """A randomly initialised Llama of the demo's width, float32, ready to be measured."""
    quiet_libraries()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=MLP_WIDTH,
        num_hidden_layers=num_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2 * WINDOW_TOKENS,
        tie_word_embeddings=True,
    )
    return Anatomy(LlamaForCausalLM(config).eval().requires_grad_(False))


def count_head_layers(anatomy: Anatomy) -> float:
    """How many layers the head is worth, by parameters."""
    head = anatomy.model.get_output_embeddings().weight.numel()
    return float(head / sum(weight.numel() for weight in anatomy.layers[0].parameters()))


def make_stream(num_windows: int, *, vocabulary: int = DEMO_VOCABULARY) -> TokenStream:
    """Windows of random tokens, each a document."""
    tokens = torch.randint(vocabulary, (num_windows, WINDOW_TOKENS), generator=torch.Generator().manual_seed(0))
    documents = np.repeat(np.arange(num_windows, dtype=np.int32)[:, None], WINDOW_TOKENS, axis=1)
    return TokenStream(tokens_NT=tokens, documents_NT=documents, num_documents=num_windows, source="random")


def open_session(directory: Path, **settings: int) -> sessions.Session:
    """The embedded model as a search with these settings opens it, on the CPU."""
    quiet_libraries()
    wanted, device = StudyConfig(**settings), torch.device("cpu")
    session, _ = sessions.open_for_search(
        resolve.resolve_config(wanted),
        study=StudyFolder(directory),
        device=device,
        reference=describe_reference(device),
    )
    return session


def open_demo(directory: Path, **settings: int) -> tuple[sessions.Session, Instruments]:
    """The embedded model opened, and what scores it."""
    session = open_session(directory, **settings)
    return session, sessions.prepare_instruments(session)


def list_candidates(num_layers: int, *, max_dropped: int) -> list[Candidate]:
    """All candidates with 1 to ``max_dropped`` layers gone, neighbours in the trie side by side."""
    space = SearchSpace(
        num_layers=num_layers, droppable_layers=tuple(range(num_layers)), min_dropped=1, max_dropped=max_dropped
    )
    return list(enumerate_candidates(space))


def cut_blocks(candidates: Sequence[Candidate], *, size: int, count: int | None) -> list[list[Candidate]]:
    """Contiguous blocks of about ``size`` neighbours, ``count`` of them spread evenly over the order; None: all."""
    num_blocks = max(1, round(len(candidates) / size))
    edges = np.linspace(0, len(candidates), num_blocks + 1).round().astype(int)
    count = num_blocks if count is None else min(count, num_blocks)
    chosen = ((np.arange(count) + 0.5) * num_blocks / count).astype(int)
    return [list(candidates[edges[i] : edges[i + 1]]) for i in chosen]
