"""Peaks: memory at most, counted by hand."""

from dataclasses import replace

import msgspec

from seed.records import SearchSpace
from seed.scoring.refit import count_fit_bytes
from seed.stages.peaks import estimate_peak
from seed.stages.shapes import Shape
from tests.stages.opened import PROTOCOL

GPU = Shape(  # TinyLlama's, as the preset has it
    num_layers=22,
    width=2048,
    mlp_width=5632,
    vocabulary=32_000,
    num_params=1_100_048_384,
    layer_params=44_044_288,
    update_params=22 * (4 * 2048 + 2 * (2048 + 256) + 3 * (2048 + 5632)),
    cache_bytes=22 * 2 * 256 * 4,
    number_bytes=4,
    stored_bytes=4,
    kept_bytes=108_168,
    kept_copies=88_080_384,
    gpu_bytes=80 * 10**9,
    calibration_tokens=16_384,
    validation_tokens=32_768,
    test_tokens=344_064,
    recovery_windows=1427,
)


def test_memory_of_a_gpu_counted_by_hand() -> None:
    protocol = msgspec.structs.replace(
        PROTOCOL,
        window_tokens=2048,
        space=SearchSpace(num_layers=22, droppable_layers=tuple(range(22)), min_dropped=1, max_dropped=7),
    )
    dense, logits = 4 * 1_100_048_384, 6 * 4 * 2048 * 32_000
    peak = estimate_peak(GPU, protocol, trains=True, climbs=False, num_dropped=2)
    left = 1_100_048_384 - 2 * 44_044_288
    training = 16 * left + 20 * (2048 * 108_168 + 88_080_384)
    assert peak.num_bytes == dense + training + logits
    assert "20 layers" in peak.describe(in_detail=True)
    assert peak.remark
    again = estimate_peak(replace(GPU, gpu_bytes=24 * 10**9), protocol, trains=True, climbs=False, num_dropped=2)
    inputs = 20 * 2048 * 2048 * 4
    assert again.num_bytes == dense + 16 * left + inputs + 2048 * 108_168 + 88_080_384 + logits < 24e9
    assert "run again" in again.describe(in_detail=True)
    largest = estimate_peak(GPU, protocol, trains=True, climbs=False)
    assert largest.num_bytes - peak.num_bytes == 16 * 44_044_288 + 2048 * 108_168 + 88_080_384
    swept = estimate_peak(GPU, protocol, trains=False, climbs=False)
    states = 4 * 23 * (2 * 16_384 + 32_768) * 2048
    siblings = 4 * (16_384 + 32_768) * (2048 + 5632) + count_fit_bytes(5632)
    assert swept.num_bytes == dense + states + siblings + logits < 24e9
    assert not swept.remark
    low_rank = estimate_peak(
        GPU, msgspec.structs.replace(protocol, lora_rank=16), trains=True, climbs=False, num_dropped=2
    )
    updates = 16 * 16 * GPU.update_params  # four float32 numbers for each of rank 16
    assert low_rank.num_bytes in (peak.num_bytes - (16 - 8) * left + updates, swept.num_bytes)


def test_what_is_timed_counts_where_it_is_most() -> None:
    many = msgspec.structs.replace(PROTOCOL, latency_batch=1000, prompt_tokens=2000, new_tokens=500)
    peak = estimate_peak(GPU, many, trains=False, climbs=False)
    cache = 1000 * 2500 * GPU.cache_bytes
    passing = 1000 * 2000 * (4 * (32_000 + 4 * 2048 + 2 * 4 * 2048) + 8)
    assert peak.num_bytes == 4 * GPU.num_params + cache + passing
    assert "1,000 sequences that are timed" in peak.describe(in_detail=True)
    assert peak.cure == "lower --latency-batch and --prompt-tokens"
    compiled = msgspec.structs.replace(many, compiled=True)  # the dense and the cut model keep a cache each
    assert estimate_peak(GPU, compiled, trains=False, climbs=False).num_bytes == peak.num_bytes + cache
