"""Measure what a cut buys on this machine: time of a workload beside the dense model's, taken in turns.

A structure is measured in pairs (dense, cut, cut, dense ...), until the 95 % interval of their ratio is narrow enough
or the time is spent.
"""

import functools
import math
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from msgspec.structs import replace
from scipy.optimize import isotonic_regression
from torch import nn

from seed.errors import CommandError
from seed.models.anatomy import Anatomy, cache_of
from seed.records import Candidate, Latency
from seed.stats import FEWEST_PAIRS, estimate_pairs

FIRST_PAIRS = 24  # settle how many are needed
NARROW = 0.01  # of the ratio, on each side: differences of a per cent are told apart
MOST_SECONDS = 60.0  # of one structure, where no number of pairs is asked for
# What a quiet machine stays below: share of all cores taken by others, p90 over p10 of the dense model's times, drift of the ratio.
FOREIGN_SHARE, SPREAD, DRIFT = 0.15, 1.25, 0.02
COMPILED_WARM_UPS = 3  # prefill and decoding, with the cache empty and filled, are graphs of their own


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is timed: reading ``prompt_tokens``, then writing ``new_tokens`` one by one with a KV cache."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    repeats: int | None = None  # pairs; None: as many as the interval needs
    compiled: bool = False

    def describe(self) -> str:
        """One phrase for tables."""
        how = "compiled, static cache" if self.compiled else "eager, KV cache"
        return f"decode {self.new_tokens} tokens after {self.prompt_tokens}, batch {self.batch}, {how}"


RunOnce = Callable[[], float]  # milliseconds of decoding


def name_structure(anatomy: Anatomy, candidate: Candidate) -> str:
    """Name what decides a candidate's latency: how many layers of each kind it keeps."""
    kinds = dict.fromkeys(anatomy.layer_kinds, 0)
    for layer in candidate.kept_layers:
        kinds[anatomy.layer_kind(layer)] += 1
    if len(kinds) == 1:
        return f"{len(candidate.kept_layers)} layers"
    return " + ".join(f"{count} {kind}" for kind, count in kinds.items())


@torch.inference_mode()
def decode_once(model: Any, prompt_BT: torch.Tensor, *, new_tokens: int, cache: Any = None) -> float:
    """Read the prompt, then decode greedily, and return the milliseconds of decoding.

    ``cache`` is a static cache for compiled models, used again and again.
    """
    if cache is not None:
        cache.reset()
    output = model(input_ids=prompt_BT, past_key_values=cache, use_cache=True)
    token = output.logits[:, -1:].argmax(-1)
    begin = _now(prompt_BT.device)
    for _ in range(new_tokens):
        output = model(input_ids=token, use_cache=True, **cache_of(output))
        token = output.logits[:, -1:].argmax(-1)
    return 1e3 * (_now(prompt_BT.device) - begin)


def prepare_run(model: nn.Module, workload: Workload, *, vocabulary: int) -> RunOnce:
    """Return a function that runs the workload once on ``model``, warmed up and, if asked, compiled."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, vocabulary, (workload.batch, workload.prompt_tokens), generator=generator).to(device)
    cache: Any = None
    runnable: Any = model
    if workload.compiled:
        # One graph a model; fullgraph turns a silent fall-back to eager into an error.
        runnable = torch.compile(model, fullgraph=True, dynamic=False)
        length = workload.prompt_tokens + workload.new_tokens + 1
        cache = transformers.StaticCache(config=model.config, max_cache_len=length)

    return functools.partial(decode_once, runnable, prompt, new_tokens=workload.new_tokens, cache=cache)


def measure_pair(dense: RunOnce, cut: RunOnce, workload: Workload, *, structure: str, device: str) -> Latency:
    """Run both in turns, after warming up, and return the cut model's latency beside the dense one's."""
    for _ in range(COMPILED_WARM_UPS if workload.compiled else 1):
        dense(), cut()
    # a graph compiled anew inside a timed run would be most of its time: rather fail
    with torch.compiler.set_stance("fail_on_recompile" if workload.compiled else "default"):
        began, before = time.monotonic(), count_foreign_seconds()
        pairs = take_pairs(dense, cut, repeats=workload.repeats)
        seconds, after = time.monotonic() - began, count_foreign_seconds()
    foreign = None
    # a GPU's clock does not care for what the cores do; and the kernel counts in hundredths
    if device == "cpu" and seconds >= 0.5 and before is not None and after is not None:
        foreign = (after - before) / seconds
    return summarise_pairs(pairs, structure=structure, workload=workload.describe(), device=device, foreign=foreign)


def take_pairs(dense: RunOnce, cut: RunOnce, *, repeats: int | None) -> list[tuple[float, float]]:
    """Run both in turns, and return the milliseconds of each pair.

    Without ``repeats`` the first ``FIRST_PAIRS`` settle how many are needed to be within ``NARROW``. Looking again
    after each would stop when chance makes the interval narrow, and it would hold the truth less often than it says.
    """
    began = time.monotonic()
    pairs: list[tuple[float, float]] = []

    def take(count: int) -> None:
        while len(pairs) < count:
            if repeats is None and len(pairs) >= FEWEST_PAIRS and time.monotonic() - began > MOST_SECONDS:
                return
            if len(pairs) % 2:  # swap who goes first, so that a drift of the machine favours neither
                second, first = cut(), dense()
                pairs.append((first, second))
            else:
                pairs.append((dense(), cut()))

    take(repeats or FIRST_PAIRS)
    if repeats is None:
        _, half = estimate_pairs(read_logs(pairs))
        assert half is not None, "there are enough pairs for an interval"
        take(math.ceil(len(pairs) * (half / NARROW) ** 2))
    return pairs


def read_logs(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    """Logarithms of how long the second of each pair decoded beside the first."""
    return np.log([cut_ms / dense_ms for dense_ms, cut_ms in pairs])


def summarise_pairs(
    pairs: Sequence[tuple[float, float]],
    *,
    structure: str,
    workload: str,
    device: str,
    foreign: float | None = None,
) -> Latency:
    """Turn milliseconds of dense and cut into a ``Latency``. ``foreign``: cores that other processes took, where that is known."""
    dense_ms, cut_ms = np.array(pairs).T
    log, half = estimate_pairs(read_logs(pairs))
    return Latency(
        structure=structure,
        workload=workload,
        device=device,
        repeats=len(pairs),
        median_ms=float(np.median(cut_ms)),
        p10_ms=float(np.quantile(cut_ms, 0.1)),
        p90_ms=float(np.quantile(cut_ms, 0.9)),
        dense_median_ms=float(np.median(dense_ms)),
        ratio=math.exp(log),
        ratio_low=None if half is None else math.exp(log - half),
        ratio_high=None if half is None else math.exp(log + half),
        disturbance=describe_disturbance(pairs, foreign=foreign),
    )


def describe_disturbance(pairs: Sequence[tuple[float, float]], *, foreign: float | None) -> str | None:
    """Say by what a busy machine shows; None where it is quiet, as far as can be told.

    Args:
        pairs: in the order they were taken.
        foreign: cores that other processes took.
    """
    told = []
    cores = os.cpu_count() or 1
    if foreign is not None and foreign > FOREIGN_SHARE * cores:
        told.append(f"other processes took {foreign:.1f} of {cores} cores")
    if len(pairs) >= FEWEST_PAIRS:  # of fewer neither spread nor drift can be told
        low, high = np.quantile([dense_ms for dense_ms, _ in pairs], [0.1, 0.9])
        if high > SPREAD * low:
            told.append(f"the dense model took {low:.1f} to {high:.1f} ms")
        first, last = np.array_split(read_logs(pairs), 2)
        chance = 3 * math.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
        if abs(last.mean() - first.mean()) > max(chance, DRIFT):
            told.append(f"the ratio drifted from {math.exp(first.mean()):.3f} to {math.exp(last.mean()):.3f}")
    return ", ".join(told) or None


def count_foreign_seconds() -> float | None:
    """Core seconds that other processes took since the machine began; None where the kernel does not say (Linux does)."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _waiting, *others = ticks
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def pool_dense(latencies: Collection[Latency]) -> Latency:
    """The dense model's own latency, one for a whole study: the median of what it took beside each structure."""
    one = next(iter(latencies))
    median_ms = float(np.median([latency.dense_median_ms for latency in latencies]))
    return replace(
        one,
        structure="dense",
        repeats=sum(latency.repeats for latency in latencies),
        median_ms=median_ms,
        p10_ms=median_ms,
        p90_ms=median_ms,
        dense_median_ms=median_ms,
        ratio=1.0,
        ratio_low=1.0,
        ratio_high=1.0,
        disturbance=next((latency.disturbance for latency in latencies if latency.disturbance), None),
    )


def run_user_command(command: str, directory: Path) -> float:
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
    """Make ratios rise with the number of layers (isotonic regression), so that noise cannot delete a depth.

    Only for structures nested in one another: models with one kind of layer.
    """
    order = sorted(range(len(latencies)), key=lambda i: num_kept[i])
    result = list(latencies)
    for index, ratio in zip(order, isotonic_regression([latencies[i].ratio for i in order]).x.tolist(), strict=True):
        old = latencies[index]
        if ratio != old.ratio:
            result[index] = replace(
                old,
                ratio=ratio,
                ratio_low=None if old.ratio_low is None else min(old.ratio_low, ratio),
                ratio_high=None if old.ratio_high is None else max(old.ratio_high, ratio),
            )
    return result


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
