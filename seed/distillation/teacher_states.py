"""The dense model's last hidden states on the recovery windows of a study, computed once and kept in a mapped file.

Logits are rebuilt from the states by the family's own head.

Shapes: B sequences, T tokens, D hidden width.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from seed import study_dir, untrusted
from seed.data.corpus import TokenStream
from seed.models.anatomy import Anatomy
from seed.records import hash_text

TeacherStates = Callable[[Tensor], Tensor]  # indices of windows (B) -> last hidden states (B, T, D)
STORED_BYTES = 8 * 10**9  # past this the states are computed anew in every step


def count_bytes(*, num_windows: int, window_tokens: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of the states of some windows: W * T * D numbers."""
    return num_windows * window_tokens * width * (torch.finfo(dtype).bits // 8)


def run_teacher(anatomy: Anatomy, stream: TokenStream) -> TeacherStates:
    """Return states that are computed by the dense model each time."""

    @torch.no_grad()
    def run(windows: Tensor) -> Tensor:
        return anatomy.run_layers(stream.tokens_NT[windows].to(anatomy.device))

    return run


@torch.no_grad()
def store_states(
    anatomy: Anatomy,
    stream: TokenStream,
    windows: Sequence[int],
    *,
    directory: Path,
    source: str,
    micro_batch: int,
    on_window: Callable[[int], None] = lambda count: None,
) -> TeacherStates:
    """Compute the states of some windows, or find them computed, and return what reads them.

    One set of states is kept; those of other windows go.

    Args:
        anatomy: the dense model.
        stream: the recovery stream.
        windows: indices of the windows that will be asked for; repetitions do not matter.
        directory: where the file lies; it is safe to delete.
        source: what the states depend on besides windows and type: model and text.
        micro_batch: windows that go through the model at once.
        on_window: called with the number of windows that are done.

    Raises:
        ResourceError: the disk does not take them.
    """
    chosen = sorted(set(windows))
    window_tokens, width = stream.tokens_NT.shape[1], anatomy.config.hidden_size
    dtype = next(anatomy.model.parameters()).dtype
    size = len(chosen) * window_tokens * width
    name = hash_text(f"{source}/{dtype}/{window_tokens}/{chosen}")[:16]
    path = directory / f"teacher-{name}.states"
    directory.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.stat().st_size != size * dtype.itemsize:
        for other in directory.glob("teacher-*.states"):  # of another budget
            other.unlink(missing_ok=True)
        study_dir.require_room(directory, needed_bytes=size * dtype.itemsize, purpose="the dense model's states")
        own = path.with_suffix(f".{os.getpid()}")  # evaluators of one node may be at it at once
        with untrusted.replace_file(own) as file:  # not mapped: a full disk is then an error, not a dead process
            for start in range(0, len(chosen), micro_batch):
                tokens = stream.tokens_NT[chosen[start : start + micro_batch]].to(anatomy.device)
                states = anatomy.run_layers(tokens).to(dtype).cpu().contiguous()
                file.write(states.view(torch.uint8).numpy().data)
                on_window(len(tokens))
        own.replace(path)
    stored = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(-1, window_tokens, width)
    return StoredStates(stored, chosen, num_windows=len(stream.tokens_NT), device=anatomy.device)


class StoredStates:
    """Reads stored states. ``stored``: the states (W, T, D) of these windows, of so many that there are."""

    def __init__(self, stored: Tensor, windows: Sequence[int], *, num_windows: int, device: torch.device) -> None:
        self.stored, self.device = stored, device
        self.rows = torch.full((num_windows,), -1)
        self.rows[list(windows)] = torch.arange(len(windows))

    def __call__(self, windows: Tensor) -> Tensor:
        found = self.rows[windows]
        assert (found >= 0).all(), "only stored windows are asked for"
        return self.stored[found].to(self.device, non_blocking=True)
