"""How an order moves is counted over the layers that two stages have in common."""

import pytest

from seed.evidence import StageRecord
from seed.optimize.movement import measure_movements
from tests.reporting.factory import make_record


def make_stage(name: str, singles: dict[str, float]) -> StageRecord:
    result = make_record().distilled[0]
    return StageRecord(name=name, gone_layers=(), result=result, tokens=1, singles=singles, rung="closed_form")


@pytest.mark.parametrize(
    ("after", "num_layers", "tau"),
    [
        ({"0": 0.5, "2": 0.1, "3": 0.2}, 3, 1.0),
        ({"0": 0.1, "2": 0.5, "3": 0.2}, 3, -1.0),
        ({"10": 0.1, "2": 0.1}, 1, None),
        ({"0": 0.3, "2": 0.3, "3": 0.3}, 3, None),
    ],
)
def test_the_order_of_common_layers_is_compared(after: dict[str, float], num_layers: int, tau: float | None) -> None:
    stages = [make_stage("stage-1", {"0": 0.9, "1": 0.2, "2": 0.1, "3": 0.3}), make_stage("stage-2", after)]
    [movement] = measure_movements(stages)
    assert (movement.before, movement.after, movement.num_layers) == ("stage-1", "stage-2", num_layers)
    assert movement.tau == (None if tau is None else pytest.approx(tau))


def test_one_stage_has_not_moved() -> None:
    assert measure_movements([make_stage("stage-1", {"0": 0.9})]) == ()
