"""Scores are written as they come, measured once, read back as they were, and judged beside the dense model."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from seed.errors import ResourceError, StudyError
from seed.evaluation.perplexity import DocumentLosses, judge, logits_of, measure_losses
from seed.proxy import sweep as sweeps
from seed.proxy.instruments import exported_losses, make_walker, start_student
from seed.proxy.subset_walker import measure_unrecovered
from seed.proxy.sweep import Sweep
from seed.records import ScoreRow
from seed.scores import ScoreStore
from tests.proxy.opened import CPU, CUT, DENSE, drop, keep, open_grafted, open_instruments

CANDIDATES = [keep(0, 1, 3), keep(0, 3), keep(2)]


def open_sweep(directory: Path) -> Sweep:
    return Sweep(open_instruments(), ScoreStore(directory / "scores.sqlite"))


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


def test_scores_are_written_at_once_and_measured_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = tmp_path / "new" / "study"
    instruments, first = open_instruments(), open_sweep(place)
    [row] = read_rows(place)
    dense = instruments.dense_validation
    assert (row.key, row.proxy, row.sums, row.counts) == ("dense", "dense", dense.sums.tolist(), dense.counts.tolist())
    recovered = []
    for count, candidate in enumerate(CANDIDATES, 1):
        recovered.append(first.measure(candidate))
        assert open_sweep(place).known(candidate) == {"closed-form": recovered[-1]}  # while the first is still at work
        assert read_rows(place)[count].sums == first.rows[candidate.key]["closed-form"].sums
    raw = first.measure_unrecovered(CANDIDATES)
    rows = read_rows(place)
    keys = [candidate.key for candidate in CANDIDATES]
    wanted = [("dense", "dense"), *(("closed-form", key) for key in keys), *(("none", key) for key in keys)]
    assert list_keys(place) == wanted
    assert all((row.seconds or 0) > 0 and row.counts is None for row in rows[1:])
    request.getfixturevalue("nothing_is_measured")
    for sweep in (first, open_sweep(place)):
        assert [sweep.measure(candidate) for candidate in CANDIDATES] == recovered
        assert sweep.measure_unrecovered(CANDIDATES[::-1]) == raw[::-1]
        assert [sweep.known(candidate) for candidate in CANDIDATES] == [
            {"closed-form": one, "none": other} for one, other in zip(recovered, raw, strict=True)
        ]
    assert read_rows(place) == rows


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


def test_a_score_is_what_is_judged_of_the_losses_of_the_student_it_stands_for(tmp_path: Path) -> None:
    instruments, sweep = open_instruments(), open_sweep(tmp_path)
    dense = instruments.dense_validation
    losses, refit = make_walker(instruments).measure(CUT)
    assert sweep.measure(CUT) == judge(losses, dense, document_losses_path=f"scores.sqlite#closed-form/{CUT.key}")
    [raw] = measure_unrecovered(instruments.anatomy, [CUT], instruments.validation, micro_batch=4)
    [quality] = sweep.measure_unrecovered([CUT])
    assert quality == judge(raw, dense, document_losses_path=f"scores.sqlite#none/{CUT.key}")
    assert quality.loss > losses.loss > dense.loss  # the text is the dense model's own
    found = [
        exported_losses(instruments, start_student(instruments, CUT, maps), instruments.validation).loss
        for maps in (None, refit)
    ]
    assert found == [raw.loss, pytest.approx(losses.loss, abs=1e-5)]
    for quality in (sweep.measure(DENSE), *sweep.measure_unrecovered([DENSE])):
        assert (quality.ppl_ratio, quality.ppl_ratio_standard_error) == (1.0, 0.0)


def test_maps_can_be_had_again_without_a_second_row(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    sweep.measure(CUT)
    first, again = sweep.recover(CUT), open_sweep(tmp_path).recover(CUT)
    assert first.keys() == again.keys() == {0, 3}
    assert all(torch.equal(correction.weight, again[layer].weight) for layer, correction in first.items())
    assert list_keys(tmp_path) == [("dense", "dense"), ("closed-form", CUT.key)]


def test_scores_of_other_proxies_are_kept_even_where_they_are_no_number(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path)
    dense, proxy = sweep.instruments.dense_validation, "short-distillation"
    losses = DocumentLosses(sums=dense.sums + 0.25 * dense.counts, counts=dense.counts)
    kept = sweep.keep(CUT, proxy, losses, seconds=12.34567)
    assert kept.ppl_ratio == pytest.approx(math.exp(0.25))
    sweep.keep(CUT, proxy, dense, seconds=1.0)  # what is known stays
    broken = DocumentLosses(sums=np.where(np.arange(len(dense.sums)) == 1, math.nan, dense.sums), counts=dense.counts)
    assert not math.isfinite(sweep.keep(DENSE, proxy, broken, seconds=1.0).ppl_ratio)
    again = open_sweep(tmp_path)
    assert again.known(CUT) == {proxy: kept}
    assert (again.is_known(CUT, proxy), again.is_known(keep(1), proxy), again.known(keep(1))) == (True, False, {})
    assert again.rows[CUT.key][proxy].seconds == 12.3457
    assert not math.isfinite(again.known(DENSE)[proxy].ppl_ratio)


def test_a_grafted_model_is_scored_beside_the_dense_one() -> None:
    instruments, recovered = open_grafted()
    sweep = Sweep(instruments)
    dense = open_instruments().dense_validation.loss
    whole = measure_losses(logits_of(recovered), instruments.validation, micro_batch=4, device=CPU).loss
    [raw] = sweep.measure_unrecovered([drop(1)])
    assert (raw.loss, sweep.measure(drop(1)).loss) == (whole, whole)
    assert raw.ppl_ratio == pytest.approx(math.exp(whole - dense))


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
