"""Times are paired and summarised as said; the workload really decodes; a user's command is taken at its word."""

import functools
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from msgspec.structs import replace

from seed.errors import CommandError
from seed.evaluation import latency
from seed.evaluation.latency import (
    FIRST_PAIRS,
    Decoder,
    Workload,
    count_foreign_seconds,
    cut_stretches,
    measure_pair,
    name_structure,
    pool_dense,
    prepare_decoder,
    run_in_turns,
    run_user_command,
    smooth_over_depth,
    summarise_pairs,
    take_pairs,
)
from seed.models.anatomy import Anatomy
from seed.models.surgery import view_layers
from seed.records import Latency
from seed.stats import FEWEST_PAIRS
from tests.models.families import keep, make_model, make_tokens
from tests.proxy.opened import CUT, time_candidate

WORKLOAD = Workload(batch=2, prompt_tokens=8, new_tokens=5, repeats=4)


def summarise(*pairs: tuple[float, float]) -> Latency:
    return summarise_pairs(pairs, structure="3 layers", workload="decode", device="cpu")


def make_latency(ratio: float) -> Latency:
    return replace(time_candidate(CUT), ratio=ratio, ratio_low=ratio - 0.01, ratio_high=ratio + 0.01)


def python(program: str) -> str:
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"


def test_known_times_give_known_numbers() -> None:
    found = summarise((10, 5), (20, 12), (40, 28))
    assert found.repeats == 3
    assert (found.median_ms, found.dense_median_ms) == (12.0, 20.0)
    assert found.p10_ms == pytest.approx(5 + 0.2 * 7)
    assert found.p90_ms == pytest.approx(12 + 0.8 * 16)
    assert found.ratio == pytest.approx(0.6)  # the median of ratios, not the ratio of medians of shuffled times
    assert (found.ratio_low, found.ratio_high) == (None, None)  # of three pairs none would cover what it says
    assert (found.structure, found.workload, found.device) == ("3 layers", "decode", "cpu")
    drifting = summarise(*((each, 0.5 * each) for each in (10.0, 20.0, 40.0, 80.0)))  # which cancels in pairs
    assert (drifting.ratio, drifting.ratio_low, drifting.ratio_high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.5, 0.6, 0.6, 0.9], [0.5, 0.6, 0.6, 0.9]),
        ([0.5, 0.4, 0.9], [0.45, 0.45, 0.9]),
        ([0.9, 0.6, 0.3], [0.6, 0.6, 0.6]),
        ([0.2, 0.8, 0.7, 0.6, 0.9], [0.2, 0.7, 0.7, 0.7, 0.9]),
    ],
)
def test_ratios_rise_with_depth_after_smoothing(ratios: list[float], expected: list[float]) -> None:
    latencies = [make_latency(ratio) for ratio in ratios]
    smoothed = smooth_over_depth(latencies, list(range(len(ratios))))
    assert [latency.ratio for latency in smoothed] == pytest.approx(expected)
    order = list(range(len(ratios)))[::-1]
    backwards = smooth_over_depth([latencies[i] for i in order], order)
    assert [backwards[i] for i in order] == smoothed
    for old, new in zip(latencies, smoothed, strict=True):
        assert new.ratio_low <= new.ratio <= new.ratio_high
        assert replace(new, ratio=0.0, ratio_low=0.0, ratio_high=0.0) == replace(
            old, ratio=0.0, ratio_low=0.0, ratio_high=0.0
        )


def test_kinds_of_layers_are_counted_apart() -> None:
    llama = Anatomy(make_model("llama"))
    assert name_structure(llama, keep(0, 2, 3)) == name_structure(llama, keep(0, 1, 2)) == "3 layers"
    anatomy = Anatomy(make_model("qwen2"))  # full, full, sliding, sliding
    full, sliding = anatomy.layer_kind(0), anatomy.layer_kind(2)
    assert name_structure(anatomy, keep(0, 2, 3)) == f"1 {full} + 2 {sliding}"
    assert name_structure(anatomy, keep(1, 2, 3)) == name_structure(anatomy, keep(0, 2, 3))
    assert name_structure(anatomy, keep(0, 1)) == f"2 {full} + 0 {sliding}"


@pytest.mark.parametrize("kind", ["grown", "static"])
def test_decoding_feeds_each_greedy_token_back_through_the_cache(kind: str) -> None:
    model = make_model("llama")
    prompt = make_tokens(2, 8)
    fed: list[torch.Tensor] = []
    lengths: list[int] = []

    def look(_module: object, _args: object, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs["use_cache"]:
            fed.append(kwargs["input_ids"].clone())
            lengths.append(int(output.past_key_values.get_seq_length()))

    model.register_forward_hook(look, with_kwargs=True)
    cache = transformers.StaticCache(config=model.config, max_cache_len=14) if kind == "static" else None
    decoder = Decoder(model, prompt, cache=cache)
    decoder.read_prompt()
    milliseconds = decoder.decode(3) + decoder.decode(2)  # stretches go on from one another
    assert [tuple(tokens.shape) for tokens in fed] == [(2, 8)] + [(2, 1)] * 5
    assert lengths == [8, 9, 10, 11, 12, 13]
    assert milliseconds > 0
    text = prompt
    for tokens in fed[1:]:
        with torch.no_grad():
            expected = model(input_ids=text, use_cache=False).logits[:, -1:].argmax(-1)
        assert torch.equal(tokens, expected)
        text = torch.cat([text, tokens], dim=1)
    decoder.read_prompt()  # used again, a cache begins anew
    decoder.decode(5)
    assert lengths[6:] == lengths[:6]
    assert all(torch.equal(again, first) for again, first in zip(fed[6:], fed[:6], strict=True))


def test_a_view_and_the_whole_model_decode_in_turns_each_through_its_own_layers() -> None:
    anatomy = Anatomy(make_model("qwen2"))
    calls = [0] * 4
    for index, layer in enumerate(anatomy.layers):

        def count(*_: object, index: int = index) -> None:
            calls[index] += 1

        layer.register_forward_hook(count)
    view = functools.partial(view_layers, anatomy, keep(1, 3))
    cut = prepare_decoder(anatomy.model, WORKLOAD, vocabulary=257, within=view)
    cut.read_prompt()
    cut.decode(5)
    assert calls == [0, 6, 0, 6]  # a prompt and five tokens
    dense = prepare_decoder(anatomy.model, WORKLOAD, vocabulary=257)
    dense.read_prompt()
    for num_tokens in (2, 3):
        dense.decode(num_tokens)
        cut.decode(num_tokens)
    assert calls == [6, 17, 6, 17]


class Told:
    """A decoder whose times are known, a token; it tells what it is asked for."""

    def __init__(self, name: str, order: list[str], *, token_ms: float) -> None:
        self.name, self.order, self.token_ms = name, order, token_ms

    def read_prompt(self) -> None:
        self.order.append(f"{self.name} reads")

    def decode(self, num_tokens: int) -> float:
        self.order.append(f"{self.name} {num_tokens}")
        return num_tokens * self.token_ms


def test_dense_and_cut_take_turns_after_a_warm_up_each() -> None:
    order: list[str] = []
    dense, cut = Told("dense", order, token_ms=20.0), Told("cut", order, token_ms=10.0)
    found = measure_pair(dense, cut, WORKLOAD, structure="2 layers", device="cpu")
    warm_up = ["cut reads", "cut 1", "cut 4", "dense reads", "dense 1", "dense 4"]
    once = ["dense reads", "cut reads", "dense 3", "cut 3", "cut 2", "dense 2"]
    assert order == warm_up + once * 2  # four pairs
    assert found.repeats == 4
    assert (found.ratio, found.ratio_low, found.ratio_high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.dense_median_ms, found.median_ms) == (100.0, 50.0)  # of the whole workload
    assert found.workload == "decode 5 tokens after 8, batch 2, eager, KV cache"


@pytest.mark.parametrize(
    ("token_ms", "wanted"), [(0.1, [64]), (2.0, [32, 32]), (30.0, [3] * 16 + [2] * 8), (900.0, [3] * 16 + [2] * 8)]
)
def test_a_slow_model_decodes_the_workload_in_short_stretches(token_ms: float, wanted: list[int]) -> None:
    assert cut_stretches(64, token_ms=token_ms) == wanted


class Clock:
    """Runs whose times are drawn: the cut model takes half the dense one's, each with noise of its own."""

    def __init__(self, noise: float) -> None:
        self.rng, self.noise, self.runs = np.random.default_rng(0), noise, 0

    def draw(self, median_ms: float) -> float:
        self.runs += 1
        return median_ms * float(np.exp(self.noise * self.rng.standard_normal()))

    def take(self, repeats: int | None = None) -> list[tuple[float, float]]:
        return take_pairs(run_in_turns(lambda: self.draw(100.0), lambda: self.draw(50.0)), repeats=repeats)


def test_the_first_pairs_settle_how_many_are_taken_so_that_intervals_are_narrow_and_hold_the_truth() -> None:
    assert len(Clock(0.002).take()) == FIRST_PAIRS
    noisy = Clock(0.06).take()
    assert len(noisy) > 3 * FIRST_PAIRS
    found = summarise_pairs(noisy, structure="2 layers", workload="decode", device="cpu")
    assert found.ratio == pytest.approx(0.5, rel=0.03)
    assert found.ratio_high / found.ratio_low < 1.05  # it was aimed at 1 % on each side
    clock, held = Clock(0.014), 0
    for _ in range(300):
        found = summarise_pairs(clock.take(), structure="2 layers", workload="decode", device="cpu")
        held += found.ratio_low <= 0.5 <= found.ratio_high
    assert held / 300 > 0.94 - 3 * (0.95 * 0.05 / 300) ** 0.5


def test_no_more_pairs_are_taken_when_the_time_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MOST_SECONDS", 0.0)
    assert len(Clock(0.03).take()) == FEWEST_PAIRS
    assert len(Clock(0.03).take(repeats=7)) == 7  # as asked for


@pytest.mark.parametrize(
    ("dense_ms", "ratios", "foreign_share", "wanted"),
    [
        ([100.0, 101.0] * 6, [0.5, 0.502] * 6, 0.01, None),
        ([100.0, 101.0] * 6, [0.5, 0.502] * 6, 0.5, r"other processes took [\d.]+ of \d+ cores"),
        ([100.0, 180.0] * 6, [0.5, 0.502] * 6, None, r"the dense model took 100.0 to 180.0 ms"),
        ([100.0, 101.0] * 6, [*[0.5, 0.502] * 3, *[0.6, 0.602] * 3], None, "drifted from 0.501 to 0.601"),
        ([100.0, 180.0, 100.0], [0.5, 0.5, 0.7], None, None),  # of three pairs nothing can be told
    ],
)
def test_what_disturbed_a_measurement_is_said(
    dense_ms: list[float], ratios: list[float], foreign_share: float | None, wanted: str | None
) -> None:
    foreign = None if foreign_share is None else foreign_share * (os.cpu_count() or 1)
    pairs = [(dense, dense * ratio) for dense, ratio in zip(dense_ms, ratios, strict=True)]
    found = summarise_pairs(pairs, structure="2 layers", workload="decode", device="cpu", foreign=foreign)
    if wanted is None:
        assert found.disturbance is None
    else:
        assert re.search(wanted, found.disturbance or "")


def test_other_processes_are_counted_and_our_own_work_is_not() -> None:
    before, began, own = count_foreign_seconds(), time.monotonic(), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    after, seconds = count_foreign_seconds(), time.monotonic() - began
    if before is not None and after is not None:  # the kernel says what its cores do: others have what we leave them
        assert after - before < (os.cpu_count() or 1) * seconds - 0.3 + 0.1


def test_the_dense_model_has_one_latency_in_a_study() -> None:
    one, other = make_latency(0.5), replace(make_latency(0.7), dense_median_ms=20.0, disturbance="busy")
    dense = pool_dense([one, other])
    assert (dense.median_ms, dense.ratio, dense.structure, dense.repeats) == (15.0, 1.0, "dense", 10)
    assert dense.disturbance == "busy"


def test_the_last_number_that_a_command_prints_counts(tmp_path: Path) -> None:
    (directory := tmp_path / "a model").mkdir()
    (directory / "config.json").write_text("{}")
    program = (
        "import sys, pathlib; print('7 on the other stream', file=sys.stderr); "
        "print('1 of 3 done'); print('score:', len(list(pathlib.Path(sys.argv[-1]).iterdir())), '1.5e-3 points')"
    )
    assert run_user_command(python(program), directory) == 1.5e-3


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (python("import sys; print('out of paper', file=sys.stderr); sys.exit(3)"), r"exit code 3 \(out of paper\)"),
        ("false", r"exit code 1 \(no output\)"),
        (python("print('score of 10 texts: nan')"), "printed no number"),
        ("no-such-command-here --fast", "cannot be started"),
        ("unbalanced 'quote", "cannot be started"),
        ("", "cannot be started"),
    ],
)
def test_a_command_that_gives_no_number_is_an_error(command: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=wanted) as caught:
        run_user_command(command, tmp_path)
    assert command in str(caught.value)
