"""Scores are written as they come, measured once, read back as they were, and judged beside the dense model."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from seed.errors import ResourceError, StudyError
from seed.evaluation.perplexity import DocumentLosses, judge, logits_of, measure_losses
from seed.proxy import sweep as sweeps
from seed.proxy.instruments import make_walker, start_student, validation_losses
from seed.proxy.subset_walker import measure_unrecovered
from seed.proxy.sweep import Sweep
from seed.records import ScoreRow
from seed.scores import ScoreStore
from tests.proxy.opened import CPU, CUT, DENSE, drop, keep, open_grafted, open_instruments

CANDIDATES = [keep(0, 1, 3), keep(0, 3), keep(2)]


def open_sweep(directory: Path, *, family: str = "llama") -> Sweep:
    return Sweep(open_instruments(family), ScoreStore(directory / "scores.sqlite"))


def read_rows(directory: Path) -> list[ScoreRow]:
    with ScoreStore(directory / "scores.sqlite", read_only=True) as store:
        return store.read_rows()


def list_keys(directory: Path) -> list[tuple[str, str]]:
    return [(row.proxy, row.key) for row in read_rows(directory)]


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring anything fails the test."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sweeps, "measure_unrecovered", fail)
    monkeypatch.setattr(sweeps, "make_walker", fail)


def test_scores_are_written_at_once_behind_the_dense_model(tmp_path: Path) -> None:
    instruments = open_instruments()
    one = open_sweep(tmp_path / "new" / "study")
    [row] = read_rows(tmp_path / "new" / "study")
    assert (row.key, row.proxy) == ("dense", "dense")
    assert row.sums == instruments.dense_validation.sums.tolist()
    assert row.counts == instruments.dense_validation.counts.tolist()
    for count, candidate in enumerate(CANDIDATES, 1):
        quality = one.measure(candidate)
        other = open_sweep(tmp_path / "new" / "study")  # while the first is still at work
        assert other.known(candidate) == {"closed-form": quality}
        row = read_rows(tmp_path / "new" / "study")[count]
        assert sum(row.sums) / quality.tokens == pytest.approx(quality.loss, rel=1e-12)
        assert row.sums == one.rows[candidate.key]["closed-form"].sums
        assert len(row.sums) == quality.documents
    raw = one.measure_unrecovered(CANDIDATES)
    other = open_sweep(tmp_path / "new" / "study")
    assert [other.known(candidate)["none"] for candidate in CANDIDATES] == raw
    assert list_keys(tmp_path / "new" / "study") == [
        ("dense", "dense"),
        *(("closed-form", candidate.key) for candidate in CANDIDATES),
        *(("none", candidate.key) for candidate in CANDIDATES),
    ]
    assert all((row.seconds or 0) > 0 and row.counts is None for row in read_rows(tmp_path / "new" / "study")[1:])


def test_a_second_sweep_measures_nothing_anew(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    first = open_sweep(tmp_path)
    recovered = [first.measure(candidate) for candidate in CANDIDATES]
    raw = first.measure_unrecovered(CANDIDATES)
    rows = read_rows(tmp_path)
    request.getfixturevalue("nothing_is_measured")
    for sweep in (first, open_sweep(tmp_path)):
        assert [sweep.measure(candidate) for candidate in CANDIDATES] == recovered
        assert sweep.measure_unrecovered(CANDIDATES) == raw
        assert sweep.measure_unrecovered(CANDIDATES[::-1]) == raw[::-1]
        assert [sweep.known(candidate) for candidate in CANDIDATES] == [
            {"closed-form": one, "none": other} for one, other in zip(recovered, raw, strict=True)
        ]
    assert read_rows(tmp_path) == rows


def test_only_new_candidates_are_measured_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = open_sweep(tmp_path)
    asked: list[list[str]] = []

    def spy(anatomy, candidates, stream, *, micro_batch):
        asked.append([candidate.key for candidate in candidates])
        return measure_unrecovered(anatomy, candidates, stream, micro_batch=micro_batch)

    monkeypatch.setattr(sweeps, "measure_unrecovered", spy)
    first = sweep.measure_unrecovered(CANDIDATES[:2])
    both = sweep.measure_unrecovered(CANDIDATES)
    assert asked == [[candidate.key for candidate in CANDIDATES[:2]], [CANDIDATES[2].key]]
    assert both[:2] == first
    assert sweep.measure_unrecovered([]) == []
    monkeypatch.setattr(sweeps, "SCORED_AT_ONCE", 2)
    assert open_sweep(tmp_path / "other").measure_unrecovered(CANDIDATES) == both
    assert list(map(len, asked)) == [2, 1, 2, 1]


def test_a_score_is_what_is_judged_of_the_losses(tmp_path: Path) -> None:
    instruments, sweep = open_instruments(), open_sweep(tmp_path)
    dense = instruments.dense_validation
    losses, _ = make_walker(instruments).measure(CUT)
    path = f"scores.sqlite#closed_form/{CUT.key}"
    assert sweep.measure(CUT) == judge(losses, dense, document_losses_path=path)
    [raw] = measure_unrecovered(instruments.anatomy, [CUT], instruments.validation, micro_batch=4)
    [quality] = sweep.measure_unrecovered([CUT])
    assert quality == judge(raw, dense, document_losses_path=f"scores.sqlite#none/{CUT.key}")
    assert quality.loss > sweep.measure(CUT).loss > dense.loss  # the text is the dense model's own


def test_qualities_are_those_of_the_students_they_stand_for(tmp_path: Path) -> None:
    instruments, sweep = open_instruments(), open_sweep(tmp_path)
    [raw] = sweep.measure_unrecovered([CUT])
    assert validation_losses(instruments, start_student(instruments, CUT, None)).loss == raw.loss
    refit = sweep.recover(CUT)
    folded = start_student(instruments, CUT, refit)
    assert validation_losses(instruments, folded).loss == pytest.approx(sweep.measure(CUT).loss, abs=1e-5)


def test_keeping_every_layer_is_the_dense_model(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    for quality in (sweep.measure(DENSE), *sweep.measure_unrecovered([DENSE])):
        assert (quality.ppl_ratio, quality.ppl_ratio_standard_error) == (1.0, 0.0)
    assert set(sweep.known(DENSE)) == {"dense", "closed-form", "none"}


def test_maps_can_be_had_again_without_a_second_row(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    sweep.measure(CUT)
    first, again = sweep.recover(CUT), open_sweep(tmp_path).recover(CUT)
    assert first.corrections.keys() == again.corrections.keys() == {0, 3}
    for layer, correction in first.corrections.items():
        assert torch.equal(correction.weight, again.corrections[layer].weight)
    assert list_keys(tmp_path) == [("dense", "dense"), ("closed-form", CUT.key)]


def test_scores_of_other_rungs_are_kept_and_known(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    dense = sweep.instruments.dense_validation
    losses = DocumentLosses(sums=dense.sums + 0.25 * dense.counts, counts=dense.counts)
    assert not sweep.is_known(CUT, "short-distillation")
    kept = sweep.keep(CUT, "short-distillation", losses, seconds=12.34567)
    assert kept.ppl_ratio == pytest.approx(math.exp(0.25))
    sweep.keep(CUT, "short-distillation", dense, seconds=1.0)  # what is known stays
    sweep.measure(CUT)
    sweep.measure_unrecovered([CUT])
    again = open_sweep(tmp_path)
    assert set(again.known(CUT)) == {"none", "closed-form", "short-distillation"}
    assert again.known(CUT)["short-distillation"] == kept
    assert again.is_known(CUT, "short-distillation")
    assert not again.is_known(keep(1), "short-distillation")
    assert again.known(keep(1)) == {}
    assert again.rows[CUT.key]["short-distillation"].seconds == 12.3457


def test_a_score_that_is_no_number_can_be_read_back(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    dense = sweep.instruments.dense_validation
    losses = DocumentLosses(sums=np.where(np.arange(len(dense.sums)) == 1, math.nan, dense.sums), counts=dense.counts)
    kept = sweep.keep(CUT, "closed-form", losses, seconds=1.0)
    assert not math.isfinite(kept.ppl_ratio)
    again = open_sweep(tmp_path).known(CUT)["closed-form"]
    assert not math.isfinite(again.ppl_ratio)


def test_a_grafted_model_is_scored_beside_the_dense_one(tmp_path: Path) -> None:
    instruments, recovered = open_grafted()
    sweep = Sweep(instruments, ScoreStore(tmp_path / "scores.sqlite"))
    dense = open_instruments().dense_validation.loss
    whole = measure_losses(logits_of(recovered), instruments.validation, micro_batch=4, device=CPU).loss
    [raw, cut] = sweep.measure_unrecovered([drop(1), drop(1, 2)])
    assert (raw.loss, sweep.measure(drop(1)).loss) == (whole, whole)
    assert raw.ppl_ratio == pytest.approx(math.exp(whole - dense))
    for candidate, quality, refit in [(drop(1, 2), cut, None), (drop(1, 2), None, sweep.recover(drop(1, 2)))]:
        found = validation_losses(instruments, start_student(instruments, candidate, refit)).loss
        assert found == pytest.approx((quality or sweep.measure(candidate)).loss, abs=1e-5)


@pytest.mark.parametrize("sums", [[], [1.0] * 1000])
def test_a_row_of_another_text_is_refused(tmp_path: Path, sums: list[float]) -> None:
    sweep = open_sweep(tmp_path)
    assert sweep.store is not None
    sweep.store.keep([ScoreRow(key=CUT.key, proxy="none", sums=list(sums))])
    said = rf"scores\.sqlite: the score of {CUT.key} .none. is of {len(sums)} documents.*Restore the file"
    with pytest.raises(StudyError, match=said):
        open_sweep(tmp_path)


def test_without_a_store_scores_are_listed_for_whoever_keeps_them(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ours, theirs = open_sweep(tmp_path), Sweep(open_instruments())
    raw = theirs.measure_unrecovered(CANDIDATES)
    recovered = theirs.measure(CUT)
    listed = theirs.list_rows([CUT, *CANDIDATES])
    assert {row.proxy for row in listed} == {"closed-form", "none"}
    ours.learn(listed)
    ours.learn([ScoreRow(key=CANDIDATES[0].key, proxy="none", sums=[0.0] * raw[0].documents)])  # known already
    request.getfixturevalue("nothing_is_measured")
    assert ours.measure_unrecovered(CANDIDATES) == raw
    assert ours.known(CUT)["closed-form"] == recovered
    assert list_keys(tmp_path) == [("dense", "dense")]


def test_a_score_that_the_disk_does_not_take_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = open_sweep(tmp_path)

    def fail(*args: object) -> None:
        raise ResourceError("full")

    monkeypatch.setattr(sweep.store, "keep", fail)
    with pytest.raises(ResourceError, match="full"):
        sweep.measure(CUT)
    assert sweep.known(CUT) == {}
