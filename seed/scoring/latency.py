"""Measure what a cut buys on this machine: time of a workload beside the dense model's, taken in turns.

Latency depends on structure only, so a structure is measured once, in pairs (dense, cut, dense, cut ...),
and given as the median ratio with a bootstrap interval. No model is judged here but for its speed.
"""

import math
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn

from seed.errors import CommandError
from seed.models.anatomy import Anatomy, cache_of
from seed.records import Candidate, Latency

COMPILED_WARM_UPS = 3  # prefill and decoding, with the cache empty and filled, are graphs of their own


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is timed: reading ``prompt_tokens``, then writing ``new_tokens`` one by one with a KV cache."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    compiled: bool = False

    def describe(self) -> str:
        """One phrase for tables."""
        how = "compiled, static cache" if self.compiled else "eager, KV cache"
        return f"decode {self.new_tokens} tokens after {self.prompt_tokens}, batch {self.batch}, {how}"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one run of the workload."""

    prefill_ms: float
    decode_ms: float


RunOnce = Callable[[], Timing]


def name_structure(anatomy: Anatomy, candidate: Candidate) -> str:
    """Name what decides a candidate's latency: how many layers of each kind it keeps."""
    kinds = dict.fromkeys(anatomy.layer_kinds, 0)
    for layer in candidate.kept_layers:
        kinds[anatomy.layer_kind(layer)] += 1
    if len(kinds) == 1:
        return f"{len(candidate.kept_layers)} layers"
    return " + ".join(f"{count} {kind}" for kind, count in kinds.items())


@torch.inference_mode()
def decode_once(model: Any, prompt_BT: torch.Tensor, *, new_tokens: int, cache: Any = None) -> Timing:
    """Prefill and greedy decoding, timed apart. ``cache`` is a static cache for compiled models, used again and again."""
    if cache is not None:
        cache.reset()
    begin = _now(prompt_BT.device)
    output = model(input_ids=prompt_BT, past_key_values=cache, use_cache=True)
    token = output.logits[:, -1:].argmax(-1)
    middle = _now(prompt_BT.device)
    for _ in range(new_tokens):
        output = model(input_ids=token, use_cache=True, **cache_of(output))
        token = output.logits[:, -1:].argmax(-1)
    end = _now(prompt_BT.device)
    return Timing(prefill_ms=1e3 * (middle - begin), decode_ms=1e3 * (end - middle))


def prepare_run(model: nn.Module, workload: Workload, *, vocabulary: int) -> RunOnce:
    """Return a function that runs the workload once on ``model``, warmed up and, if asked, compiled."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, vocabulary, (workload.batch, workload.prompt_tokens), generator=generator).to(device)
    cache: Any = None
    runnable: Any = model
    if workload.compiled:
        from transformers import StaticCache

        # One graph a model; fullgraph turns a silent fall-back to eager into an error.
        runnable = torch.compile(model, fullgraph=True, dynamic=False)
        length = workload.prompt_tokens + workload.new_tokens + 1
        cache = StaticCache(config=model.config, max_cache_len=length)

    def run() -> Timing:
        return decode_once(runnable, prompt, new_tokens=workload.new_tokens, cache=cache)

    return run


def measure_pair(dense: RunOnce, cut: RunOnce, workload: Workload, *, structure: str, device: str) -> Latency:
    """Run both in turns, after warming up, and return the cut model's latency beside the dense one's."""
    for _ in range(COMPILED_WARM_UPS if workload.compiled else 1):
        dense(), cut()
    # a graph compiled anew inside a timed run would be most of its time: rather fail
    with torch.compiler.set_stance("fail_on_recompile" if workload.compiled else "default"):
        pairs = []
        for repeat in range(workload.repeats):
            if repeat % 2:  # swap who goes first, so that a drift of the machine favours neither
                second, first = cut(), dense()
                pairs.append((first, second))
            else:
                pairs.append((dense(), cut()))
    decode = np.array([[a.decode_ms, b.decode_ms] for a, b in pairs])
    prefill = np.array([[a.prefill_ms, b.prefill_ms] for a, b in pairs])
    return summarise_pairs(decode, prefill, structure=structure, workload=workload.describe(), device=device)


def summarise_pairs(
    decode_ms: np.ndarray, prefill_ms: np.ndarray | None, *, structure: str, workload: str, device: str
) -> Latency:
    """Turn (repeats, 2) times of dense and cut into a ``Latency``; the interval is a bootstrap over pairs."""
    ratios = decode_ms[:, 1] / decode_ms[:, 0]
    rng = np.random.default_rng(0)
    medians = np.median(ratios[rng.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Latency(
        structure=structure,
        workload=workload,
        device=device,
        repeats=len(ratios),
        median_ms=float(np.median(decode_ms[:, 1])),
        p10_ms=float(np.quantile(decode_ms[:, 1], 0.1)),
        p90_ms=float(np.quantile(decode_ms[:, 1], 0.9)),
        dense_median_ms=float(np.median(decode_ms[:, 0])),
        ratio=float(np.median(ratios)),
        ratio_low=float(low),
        ratio_high=float(high),
        prefill_median_ms=None if prefill_ms is None else float(np.median(prefill_ms[:, 1])),
        prefill_ratio=None if prefill_ms is None else float(np.median(prefill_ms[:, 1] / prefill_ms[:, 0])),
    )


def run_command(command: str, directory: Path) -> float:
    """Run a user's command with a checkpoint's directory as its last argument; return the last number it prints.

    Raises:
        CommandError: it cannot be started, fails, or prints no number.
    """
    try:
        done = subprocess.run([*shlex.split(command), str(directory)], capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{command}: cannot be started ({error}). Give a command as you would type it in a shell."
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise CommandError(
            f"{command} {directory}: exit code {done.returncode} ({last}). It must succeed on any checkpoint directory."
        )
    for word in reversed(done.stdout.split()):
        try:
            number = float(word)
        except ValueError:
            continue
        if not math.isfinite(number):
            break
        return number
    raise CommandError(f"{command} {directory}: printed no number. Its last number on standard output is what counts.")


def smooth_over_depth(latencies: Sequence[Latency], num_kept: Sequence[int]) -> list[Latency]:
    """Make ratios rise with the number of layers (pool-adjacent-violators), so that noise cannot delete a depth.

    Only for structures nested in one another: models with one kind of layer.
    """
    blocks: list[list[int]] = []
    for index in sorted(range(len(latencies)), key=lambda i: num_kept[i]):
        blocks.append([index])
        while len(blocks) > 1 and _mean(latencies, blocks[-2]) > _mean(latencies, blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    result = list(latencies)
    for block in blocks:
        if len(block) > 1:
            ratio = _mean(latencies, block)
            for index in block:
                old = latencies[index]
                result[index] = replace(
                    old, ratio=ratio, ratio_low=min(old.ratio_low, ratio), ratio_high=max(old.ratio_high, ratio)
                )
    return result


def _mean(latencies: Sequence[Latency], block: Sequence[int]) -> float:
    return sum(latencies[index].ratio for index in block) / len(block)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
