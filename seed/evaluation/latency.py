"""Measure what a cut buys on this machine: time of a workload beside the dense model's, taken in turns.

A structure is measured in pairs (dense, cut, cut, dense ...), until the 95 % interval of their ratio is narrow enough
or the time is spent. Both read the prompt, and then decode a stretch of the workload at each turn: one reading serves
many pairs, and what disturbs the machine meets both.
"""

import contextlib
import itertools
import math
import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
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
from seed.records import KINDS, Candidate, Latency
from seed.stats import FEWEST_PAIRS, estimate_pairs

FIRST_PAIRS = 24  # settle how many are needed
NARROW = 0.01  # of the ratio, on each side: differences of a per cent are told apart
MOST_SECONDS = 20.0  # of one structure, where no number of pairs is asked for
MOST_TURNS = FIRST_PAIRS  # stretches that a workload is cut into, so that the first pairs are all of it
SHORTEST_TURN_MS = 50.0  # of the dense model: less is mostly the noise of the clock and of the turns themselves
PROBE_TOKENS = 4  # that settle how long a stretch is
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


Pair = tuple[float, float]  # milliseconds of the workload, dense and cut


def name_structure(anatomy: Anatomy, candidate: Candidate) -> str:
    """Name what decides a candidate's latency: how many layers of each kind it keeps, or attentions and MLPs."""
    if candidate.lacking:
        attentions, mlps = candidate.count_kept()
        if len(anatomy.layer_kinds) == 1:
            return f"{attentions} layers" if attentions == mlps else f"{attentions} attentions + {mlps} MLPs"
        kept = [
            (layer, kind) for layer in candidate.kept_layers for kind in KINDS if candidate.lacking.get(layer) != kind
        ]
        found = Counter(f"{kind} of {anatomy.layer_kind(layer)}" for layer, kind in kept)
        return " + ".join(f"{found[name]} {name}" for name in sorted(found))
    kinds = dict.fromkeys(anatomy.layer_kinds, 0)
    for layer in candidate.kept_layers:
        kinds[anatomy.layer_kind(layer)] += 1
    if len(kinds) == 1:
        return f"{len(candidate.kept_layers)} layers"
    return " + ".join(f"{count} {kind}" for kind, count in kinds.items())


class Decoder:
    """Decodes a workload with one model, greedily, a stretch at a time.

    Args:
        model: or what ``torch.compile`` made of it.
        prompt_BT: that is read first.
        cache: a static one for compiled models, used again and again.
        within: what the model is to be within while it runs, such as ``view_layers``; it is not timed.
    """

    def __init__(
        self,
        model: Any,
        prompt_BT: torch.Tensor,
        *,
        cache: Any = None,
        within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.model, self.prompt_BT, self.cache, self.within = model, prompt_BT, cache, within
        self._output: Any = None

    @torch.inference_mode()
    def read_prompt(self) -> None:
        """Begin anew, with the prompt read."""
        if self.cache is not None:
            self.cache.reset()
        with self.within():
            self._output = self.model(input_ids=self.prompt_BT, past_key_values=self.cache, use_cache=True)

    @torch.inference_mode()
    def decode(self, num_tokens: int) -> float:
        """Decode some more tokens, and return the milliseconds that they took."""
        device, output = self.prompt_BT.device, self._output
        with self.within():
            begin = _now(device)
            for _ in range(num_tokens):
                token = output.logits[:, -1:].argmax(-1)
                output = self.model(input_ids=token, use_cache=True, **cache_of(output))
            milliseconds = 1e3 * (_now(device) - begin)
        self._output = output
        return milliseconds


def prepare_decoder(
    model: nn.Module,
    workload: Workload,
    *,
    vocabulary: int,
    within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Decoder:
    """Return what decodes the workload with ``model``; if asked, compiled."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, vocabulary, (workload.batch, workload.prompt_tokens), generator=generator).to(device)
    if not workload.compiled:
        return Decoder(model, prompt, within=within)
    # One graph a model; fullgraph turns a silent fall-back to eager into an error.
    length = workload.prompt_tokens + workload.new_tokens + 1
    cache = transformers.StaticCache(config=model.config, max_cache_len=length)
    return Decoder(torch.compile(model, fullgraph=True, dynamic=False), prompt, cache=cache, within=within)


def measure_pair(dense: Decoder, cut: Decoder, workload: Workload, *, structure: str, device: str) -> Latency:
    """Decode with both in turns, after warming up, and return the cut model's latency beside the dense one's."""
    dense_ms = 0.0  # of one token
    for _ in range(COMPILED_WARM_UPS if workload.compiled else 1):
        for decoder in (cut, dense):
            decoder.read_prompt()
            decoder.decode(1)
            dense_ms = decoder.decode(num_tokens := min(PROBE_TOKENS, workload.new_tokens)) / num_tokens
    # a graph compiled anew inside a timed run would be most of its time: rather fail
    with torch.compiler.set_stance("fail_on_recompile" if workload.compiled else "default"):
        began, before = time.monotonic(), count_foreign_seconds()
        turns = decode_in_turns(
            dense, cut, cut_stretches(workload.new_tokens, token_ms=dense_ms, most=workload.repeats)
        )
        pairs = take_pairs(turns, repeats=workload.repeats)
        seconds, after = time.monotonic() - began, count_foreign_seconds()
    foreign = None
    # a GPU's clock does not care for what the cores do; and the kernel counts in hundredths
    if device == "cpu" and seconds >= 0.5 and before is not None and after is not None:
        foreign = (after - before) / seconds
    return summarise_pairs(pairs, structure=structure, workload=workload.describe(), device=device, foreign=foreign)


def cut_stretches(new_tokens: int, *, token_ms: float, most: int | None = None) -> list[int]:
    """Cut the tokens that are decoded into stretches of nearly equal length, none too short to be timed, ``most`` of them."""
    most = min(MOST_TURNS, new_tokens, most or MOST_TURNS, int(new_tokens * token_ms / SHORTEST_TURN_MS))
    return [len(part) for part in np.array_split(np.arange(new_tokens), max(1, most))]


def decode_in_turns(dense: Decoder, cut: Decoder, stretches: Sequence[int]) -> Iterator[Pair]:
    """Decode the workload with both again and again, in turns, and yield how long it would take at the pace of each stretch."""
    new_tokens, is_dense_first = sum(stretches), True
    while True:
        dense.read_prompt()
        cut.read_prompt()
        for num_tokens in stretches:
            if is_dense_first:
                pair = dense.decode(num_tokens), cut.decode(num_tokens)
            else:
                pair = (cut.decode(num_tokens), dense.decode(num_tokens))[::-1]
            yield pair[0] * new_tokens / num_tokens, pair[1] * new_tokens / num_tokens
            is_dense_first = not is_dense_first  # so that a drift of the machine favours neither


def run_in_turns(dense: Callable[[], float], cut: Callable[[], float]) -> Iterator[Pair]:
    """Run both in turns, again and again, and yield the milliseconds of each pair."""
    for number in itertools.count():
        yield (dense(), cut()) if number % 2 == 0 else (cut(), dense())[::-1]


def take_pairs(turns: Iterator[Pair], *, repeats: int | None) -> list[Pair]:
    """Take timed pairs, until there are enough.

    Without ``repeats`` the first ``FIRST_PAIRS`` settle how many are needed to be within ``NARROW``. Looking again
    after each would stop when chance makes the interval narrow, and it would hold the truth less often than it says.
    """
    began = time.monotonic()
    pairs: list[Pair] = []

    def take(count: int) -> None:
        while len(pairs) < count:
            if repeats is None and len(pairs) >= FEWEST_PAIRS and time.monotonic() - began > MOST_SECONDS:
                return
            pairs.append(next(turns))

    take(repeats or FIRST_PAIRS)
    if repeats is None:
        _, half = estimate_pairs(read_logs(pairs))
        assert half is not None, "there are enough pairs for an interval"
        take(math.ceil(len(pairs) * (half / NARROW) ** 2))
    return pairs


def read_logs(pairs: Sequence[Pair]) -> np.ndarray:
    """Logarithms of how long the second of each pair decoded beside the first."""
    return np.log([cut_ms / dense_ms for dense_ms, cut_ms in pairs])


def summarise_pairs(
    pairs: Sequence[Pair],
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


def describe_disturbance(pairs: Sequence[Pair], *, foreign: float | None) -> str | None:
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


def count_kept(structure: str) -> tuple[int, int]:
    """How many attentions and MLPs a structure keeps, by its name."""
    attentions = mlps = 0
    for kinds in structure.split(" + "):
        count, _, kind = kinds.partition(" ")
        attentions += 0 if kind == "MLPs" or kind.startswith("mlp of ") else int(count)
        mlps += 0 if kind == "attentions" or kind.startswith("attn of ") else int(count)
    return attentions, mlps


def predict_latency(structure: str, measured: Collection[Latency], *, num_layers: int) -> Latency:
    """What a structure is expected to take: attention and MLP each save the same, wherever they go. Of no timed pair."""
    gone = np.array([np.subtract(num_layers, count_kept(one.structure)) for one in measured], dtype=float)
    saved = np.array([1 - one.ratio for one in measured])
    each, *_ = np.linalg.lstsq(gone, saved, rcond=None)
    errors = np.abs(gone @ each - saved)
    ratio = float(1 - np.subtract(num_layers, count_kept(structure)) @ each)
    dense = pool_dense(measured)
    return replace(
        dense,
        structure=structure,
        repeats=0,
        median_ms=ratio * dense.median_ms,
        p10_ms=ratio * dense.median_ms,
        p90_ms=ratio * dense.median_ms,
        ratio=ratio,
        ratio_low=ratio - float(errors.max()),
        ratio_high=ratio + float(errors.max()),
        disturbance=None,
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


def measure_by_command(
    command: str, dense: Path, cut: Path, *, structure: str, device: str, repeats: int | None
) -> Latency:
    """Let a user's command time two checkpoints in turns.

    Raises:
        CommandError: it fails, or prints no time.
    """

    def run(path: Path) -> float:
        milliseconds = run_user_command(command, path)
        if milliseconds <= 0:
            raise CommandError(f"--latency-command {command}: printed a time of 0 or less. It must print milliseconds.")
        return milliseconds

    run(dense), run(cut)  # warm-up
    pairs = take_pairs(run_in_turns(lambda: run(dense), lambda: run(cut)), repeats=repeats)
    return summarise_pairs(pairs, structure=structure, workload=command, device=device)


def smooth_over_depth(latencies: Sequence[Latency], num_kept: Sequence[int]) -> list[Latency]:
    """Make ratios rise with the number of layers (isotonic regression), so that noise cannot delete a depth.

    Only for structures nested in one another: models with one kind of layer.
    """
    order = sorted(range(len(latencies)), key=lambda i: num_kept[i])
    result = list(latencies)
    for index, ratio in zip(order, isotonic_regression([latencies[i].ratio for i in order]).x.tolist(), strict=True):
        result[index] = move_ratio(latencies[index], ratio)
    return result


def move_ratio(latency: Latency, ratio: float) -> Latency:
    """A latency with another ratio, which its interval holds."""
    if ratio == latency.ratio:
        return latency
    return replace(
        latency,
        ratio=ratio,
        ratio_low=None if latency.ratio_low is None else min(latency.ratio_low, ratio),
        ratio_high=None if latency.ratio_high is None else max(latency.ratio_high, ratio),
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
