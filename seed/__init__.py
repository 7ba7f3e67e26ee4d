"""Seed finds the transformer layers a language model can live without on your hardware.

Start at ``seed.search``: it is the command, and ``find_frontier`` is the same pass for scripts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__version__ = "0.2.0"


def load(path: str | Path, *, device: str = "cpu", dtype: "torch.dtype | None" = None) -> "torch.nn.Module":
    """Open a model that Seed exported, in eval mode: attentions and MLPs that it lacks are truly gone, and cost next to no time and memory.

    Any other program opens the same directory, too: there what is gone writes zeros. A model of whole layers is the same either way.

    Args:
        path: of the exported directory.
        device: where it is put.
        dtype: of its weights; None: as they are stored.

    Raises:
        SeedError: it is not a model that Seed exported, or it is damaged.
    """
    import torch

    from seed.models.checkpoint import load_export

    return load_export(Path(path).expanduser(), device=torch.device(device), dtype=dtype)
