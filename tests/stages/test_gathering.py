"""Losses by document are found among the scores by what a quality says of itself, or their lack is told."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from seed.errors import StudyError
from seed.folder import StudyFolder
from seed.scores import ScoreStore
from seed.stages.gathering import read_losses
from tests.scoring.opened import CUT, keep
from tests.stages.opened import open_bench, open_sweep


def test_losses_are_those_that_were_judged(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    sweep = open_sweep(bench)
    qualities = [sweep.measure(CUT), sweep.measure(keep(0, 1)), *sweep.measure_unrecovered([CUT])]
    find = read_losses(bench.folder)
    for quality in qualities:
        sums, counts = find(quality)
        assert sums.sum() / counts.sum() == quality.loss
        assert (int(counts.sum()), len(counts)) == (quality.tokens, quality.documents)
    assert not np.array_equal(find(qualities[0])[0], find(qualities[2])[0])  # one candidate, two rungs


@pytest.mark.parametrize("path", [None, "scores.sqlite#closed_form/drop-3", "losses/none/drop-1-2.npz"])
def test_a_quality_without_a_row_is_named(tmp_path: Path, path: str | None) -> None:
    bench = open_bench(tmp_path)
    quality = msgspec.structs.replace(open_sweep(bench).measure(CUT), document_losses_path=path)
    with pytest.raises(StudyError, match=rf"scores\.sqlite: has no row for {path}.*--study NAME"):
        read_losses(bench.folder)(quality)


def test_scores_without_the_dense_model_is_told(tmp_path: Path) -> None:
    ScoreStore(StudyFolder(tmp_path).scores).close()
    with pytest.raises(StudyError, match=r"scores\.sqlite: has no row for scores\.sqlite#dense/dense"):
        read_losses(StudyFolder(tmp_path))


def test_missing_scores_are_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"scores\.sqlite: missing.*Restore it from a copy"):
        read_losses(StudyFolder(tmp_path))
