"""Budgets and data of the distillations of a study: their settings, the windows they see, the dense model's states on them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from seed.records import Candidate
from seed.scoring.distillation import DistillSettings, draw_windows
from seed.scoring.instruments import Instruments
from seed.scoring.targets import STORED_BYTES, count_bytes, store_states
from seed.stages.workbench import Workbench

TRAINED_TOKENS = 2048  # through the layers at once, with gradients


def distill_settings(
    bench: Workbench, candidate: Candidate, *, steps: int, learning_rate: float, looks: int, rng_seed: int | None = None
) -> DistillSettings:
    """Settings of a distillation of this study: its batch, its kind of recovery, its random seed."""
    protocol = bench.protocol
    first_cut = min(candidate.dropped_layers, default=0)
    return DistillSettings(
        steps=steps,
        batch_windows=bench.batch_windows,
        micro_batch=max(1, TRAINED_TOKENS // protocol.window_tokens),
        learning_rate=learning_rate,
        rng_seed=protocol.rng_seed if rng_seed is None else rng_seed,
        looks=looks,
        mixed_precision=protocol.mixed_precision,
        frozen_layers=min(first_cut, len(candidate.kept_layers) - 1) if protocol.freeze_prefix else 0,
        lora_rank=protocol.lora_rank,
    )


def short_settings(bench: Workbench, candidate: Candidate) -> DistillSettings:
    """Budget of the short distillation inside a score."""
    return distill_settings(
        bench,
        candidate,
        steps=bench.protocol.short_steps,
        learning_rate=bench.protocol.short_learning_rate,
        looks=1,
    )


def store_teacher_states(
    bench: Workbench,
    instruments: Instruments,
    *,
    steps: int,
    rng_seeds: Sequence[int],
    on_window: Callable[[int], None] = lambda count: None,
) -> Instruments:
    """Instruments that remember the dense model's last hidden states on the windows of so many steps.

    Past ``STORED_BYTES`` they stay as they are, and every step runs the dense model.
    """
    windows = list_windows(bench, steps=steps, rng_seeds=rng_seeds)
    size = count_bytes(
        num_windows=len(windows),
        window_tokens=bench.protocol.window_tokens,
        width=bench.anatomy.config.hidden_size,
        dtype=bench.dtype,
    )
    if size > STORED_BYTES:
        return replace(instruments, recall=None)
    recall = store_states(
        bench.anatomy,
        instruments.recovery,
        windows,
        directory=bench.folder.work,
        identity=f"{bench.protocol.weights_sha256 or bench.protocol.commit}/{bench.protocol.streams['recovery'].sha256}",
        micro_batch=bench.micro_batch,
        on_window=on_window,
    )
    return replace(instruments, recall=recall)


def list_windows(bench: Workbench, *, steps: int, rng_seeds: Sequence[int]) -> list[int]:
    """The recovery windows that distillations of so many steps see, each once."""
    pool, count = len(bench.streams["recovery"].tokens_NT), steps * bench.batch_windows
    found: set[int] = set()
    for rng_seed in rng_seeds:
        found.update(draw_windows(range(count), num_windows=pool, rng_seed=rng_seed).tolist())
    return sorted(found)
