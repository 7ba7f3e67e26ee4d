"""Depths that are timed when they are met keep the order of those that were timed before."""

import pytest
from msgspec.structs import replace

from seed.records import Latency
from seed.stages.latency_table import keep_order
from tests.proxy.opened import CUT, time_candidate


def make_latency(structure: str, ratio: float) -> Latency:
    low, high = ratio - 0.01, ratio + 0.01
    return replace(time_candidate(CUT), structure=structure, ratio=ratio, ratio_low=low, ratio_high=high)


@pytest.mark.parametrize(("found", "kept"), [(0.6, 0.6), (0.9, 0.8), (0.4, 0.5)])
def test_noise_deletes_no_depth_that_is_timed_later(found: float, kept: float) -> None:
    table = {one.structure: one for one in (make_latency("12 layers", 0.8), make_latency("9 layers", 0.5))}
    latency = keep_order(make_latency("10 layers", found), table)
    assert latency.ratio == kept
    assert latency.ratio_low <= kept <= latency.ratio_high
    assert keep_order(make_latency("10 layers", found), {}).ratio == found
