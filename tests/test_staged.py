"""A search in stages hands its best model on, keeps original indices, and ends where a target says."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from seed import staged as stages
from seed.config import StudyConfig
from seed.console import Terminal
from seed.errors import StudyError
from seed.evidence import StagedSearch, StudyRecord
from seed.study_dir import StudyFolder
from tests.reporting.factory import make_candidate, make_record

SILENT = Terminal(quiet=True)


class Searches:
    """Stands for searches: writes down what was asked, and answers with models of rising PPL ratios."""

    def __init__(self, ratios: list[float]) -> None:
        self.ratios = ratios
        self.asked: list[StudyConfig] = []

    def __call__(self, settings: StudyConfig, terminal: Terminal) -> StudyRecord:
        self.asked.append(settings)
        assert settings.study is not None
        assert settings.min_dropped == settings.max_dropped
        record = make_record()
        dropped = tuple(range(1, 1 + (settings.max_dropped or 0)))
        result = msgspec.structs.replace(
            record.distilled[0],
            candidate=make_candidate(*dropped),
            settings={
                **record.distilled[0].settings,
                "distill_tokens": (settings.distill_tokens or 0) if settings.is_given("distill_tokens") else 1000,
            }
            | ({"earlier_tokens": 1000 * (len(self.asked) - 1)} if settings.start else {}),
            validation=msgspec.structs.replace(
                record.distilled[0].validation, ppl_ratio=self.ratios[len(self.asked) - 1]
            ),
        )
        dense = msgspec.structs.replace(record.dense, test_counts=[10, 10], test_sums=[10.0, 20.0])
        return msgspec.structs.replace(record, distilled=(result,), dense=dense)


def search(directory: Path, ratios: list[float], **settings: Any) -> tuple[StagedSearch, Searches]:
    searches = Searches(ratios)
    wanted = StudyConfig(studies_dir=directory, **settings)
    return stages.search_in_stages(wanted, SILENT, search=searches), searches


def test_each_stage_goes_on_from_the_best_of_the_one_before(tmp_path: Path) -> None:
    staged, searches = search(tmp_path, [1.02, 1.05, 1.06], stages="2+1")
    first, second, at_once = searches.asked
    root = tmp_path / "demo-2-1"
    assert (first.study, first.start, first.max_dropped) == ("stage-1", None, 2)
    assert (second.study, second.max_dropped) == ("stage-2", 3)
    assert second.start == root / "stage-1" / "models" / "drop-1-2"
    assert (at_once.study, at_once.start, at_once.max_dropped) == ("one-shot", None, 3)
    assert at_once.distill_tokens == 2000  # of both stages
    assert [stage.tokens for stage in staged.stages] == [1000, 2000]
    assert StudyFolder(root).stages.is_file()
    for settings in searches.asked:
        assert settings.stages is None
        assert settings.frontier_size == stages.STAGED_SIZE


def test_stages_go_on_until_perplexity_is_spent_and_keep_the_last_that_was_within(tmp_path: Path) -> None:
    staged, searches = search(
        tmp_path, [1.02, 1.05, 1.2], stages="1+...", max_ppl_ratio=1.1, one_shot=False, study="mine"
    )
    assert len(searches.asked) == 3
    assert [len(stage.result.candidate.dropped_layers) for stage in staged.stages] == [1, 2]
    assert "1.200" in (staged.stopped_because or "")
    assert (staged.one_shot, staged.verdict) == (None, "cannot tell")
    assert all(settings.max_ppl_ratio is None for settings in searches.asked)
    assert (tmp_path / "mine" / "stages.json").is_file()


def test_stages_end_where_the_model_is_fast_enough(tmp_path: Path) -> None:
    reached = make_record().distilled[0].latency.ratio
    staged, _ = search(tmp_path, [1.0] * 9, stages="1+...", max_latency_ratio=reached + 0.001, one_shot=False)
    assert len(staged.stages) == 1
    assert "latency ratio" in (staged.stopped_because or "")


def test_stages_end_with_the_layers(tmp_path: Path) -> None:
    staged, searches = search(tmp_path, [1.0] * 40, stages="5+...", max_latency_ratio=0.001, one_shot=False)
    assert "may go" in (staged.stopped_because or "")
    assert len(searches.asked) == len(staged.stages) == (make_record().space.num_layers - 1) // 5


def test_a_first_stage_beyond_the_limit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"--max-ppl-ratio 1\.1: the first stage ends at 1\.300"):
        search(tmp_path, [1.3], stages="4+1", max_ppl_ratio=1.1)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"stages": "2+1"}, "demo-2-1"),
        ({"stages": "1+...", "max_ppl_ratio": 1.1}, "demo-1-on"),
        ({"stages": "2 + 1", "study": "mine"}, "mine"),
        ({"stages": "2+1", "model": "tinyllama"}, "tinyllama-2-1"),
    ],
)
def test_the_folder_says_what_it_holds(settings: dict[str, Any], name: str) -> None:
    assert stages.name_root(StudyConfig(**settings)).name == name


@pytest.mark.parametrize(
    "change", [{"distill_tokens": 5000}, {"learning_rate": 1e-2}, {"stages": "2+2"}, {"recovery": "pretraining"}]
)
def test_other_settings_are_refused_before_any_stage_runs(tmp_path: Path, change: dict[str, Any]) -> None:
    search(tmp_path, [1.02, 1.05, 1.06], stages="2+1", study="mine")
    searches = Searches([1.02, 1.05, 1.06])
    wanted = StudyConfig(**{"studies_dir": tmp_path, "stages": "2+1", "study": "mine"} | change)
    with pytest.raises(StudyError, match="was begun with other settings"):
        stages.search_in_stages(wanted, SILENT, search=searches)
    assert not searches.asked
    more = StudyConfig(studies_dir=tmp_path, stages="2+1", study="mine", replicas=3)
    stages.search_in_stages(more, SILENT, search=searches)  # more replicas are only more of the same


def test_a_folder_of_a_search_at_once_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").write_text("{}")
    with pytest.raises(StudyError, match="holds a search at once"):
        search(tmp_path, [1.02], stages="2+1", study="mine")


def test_widths_stand_where_they_get_as_many_tokens(tmp_path: Path) -> None:
    _, searches = search(tmp_path, [1.02, 1.05, 1.06], stages="2+1", width_baseline=True)
    assert [settings.width_baseline for settings in searches.asked] == [True, False, True]


def test_a_file_of_options_speaks_of_the_whole_and_not_of_each_stage(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[search]\nstages = "2+1"\none_shot = false\nfrontier_size = 3\n[space]\nmax_ppl_ratio = 1.04\n')
    staged, searches = search(tmp_path, [1.02, 1.05], space=file, model="gpt2")
    assert staged.stopped_because == "a further stage ends at a validation PPL ratio of 1.050, above 1.04"
    assert [(one.frontier_size, one.max_ppl_ratio, one.stages) for one in searches.asked] == [(3, None, None)] * 2
    assert [one.is_given("max_dropped") for one in searches.asked] == [True, True]
