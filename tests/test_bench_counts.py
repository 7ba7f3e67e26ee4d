"""What benchmarks count and interpolate, on numbers that can be checked by hand."""

import pytest

from tests.bench import starts, trainer


def test_one_student_without_stored_states_has_nothing_to_share() -> None:
    bound = trainer.count_bound([10], num_layers=12, head_layers=2.5, is_stored=False)
    assert bound == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kept", "is_stored", "bound"),
    [
        ([10], True, (14 + 36) / (2 + 36)),  # 12 + 2 for the dense model, 3 (10 + 2) for the student
        ([11, 10, 9], True, (3 * 14 + 39 + 36 + 33) / (2 + 39 + 36 + 33)),
        ([11, 10, 9], False, (3 * 14 + 39 + 36 + 33) / (14 + 39 + 36 + 33)),
    ],
)
def test_the_dense_models_part_counts_once_for_all(kept: list[int], is_stored: bool, bound: float) -> None:
    assert trainer.count_bound(kept, num_layers=12, head_layers=2, is_stored=is_stored) == pytest.approx(bound)


def test_rates_compare_with_the_trainer_on_the_same_students() -> None:
    row = {"drop-1": 3.0, "drop-1-7": 2.0, "drop-1-6-7": 1.0}
    row |= {"three students, live teacher": 4.0, "one student, live teacher": 4.0}
    assert trainer.compare_seconds([row], "three students, live teacher").tolist() == [1.5]
    assert trainer.compare_seconds([row], "one student, live teacher").tolist() == [0.5]


LINE = [(0.0, 4.0), (100.0, 3.0), (200.0, 2.8)]


@pytest.mark.parametrize(
    ("loss", "tokens"),
    [(5.0, 0.0), (4.0, 0.0), (3.5, 50.0), (3.0, 100.0), (2.9, 150.0), (2.8, 200.0), (2.79, None)],
)
def test_tokens_to_a_loss_lie_on_the_line(loss: float, tokens: float | None) -> None:
    assert starts.find_tokens(LINE, loss) == (None if tokens is None else pytest.approx(tokens))


def test_a_line_that_rises_first_is_met_where_it_falls() -> None:
    assert starts.find_tokens([(0.0, 3.0), (100.0, 3.5), (200.0, 2.5)], 2.75) == pytest.approx(175.0)


def test_shares_are_of_the_raw_starts_tokens() -> None:
    lines = {"raw": [[(0.0, 9.0), (200.0, 3.5)], [(0.0, 9.0), (200.0, 1.0)]], "closed form": [LINE, LINE]}
    shares = starts.find_shares(lines)
    assert shares == [pytest.approx(0.25), None]
    summary = starts.summarize_shares(shares)
    assert (summary["never"], summary["reached"], summary["mean"]) == (1, 1, pytest.approx(0.25))


def test_where_no_start_gets_there_shares_have_no_mean() -> None:
    assert starts.summarize_shares([None, None]) == {"never": 2, "reached": 0, "mean": None, "spread": None}
