"""Members are trained side by side, once for each random seed; the first is exported; what is finished is never done twice."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from seed import study_dir
from seed.console import Advance
from seed.errors import StudyError
from seed.models.checkpoint import load_checkpoint
from seed.models.provenance import find_damage
from seed.records import DenseResult, DistillResult
from seed.stages import budgets, finals
from seed.stages.finals import distill_members
from seed.stages.students import Budget, Member, choose_learning_rate
from seed.study_dir import StudyFolder
from tests.finished import Heard, forget_times
from tests.interrupting import interrupting
from tests.models.test_provenance import DAMAGES, halve
from tests.proxy.opened import drop, time_candidate
from tests.stages.opened import TinyStudy, make_plan

BUDGET = Budget(distill_tokens=2048, learning_rate=3e-3, rng_seeds=(0, 1))
RATES = {"lora-pretraining": 1e-2}
MEMBERS = [
    Member(candidate=drop(1), latency=time_candidate(drop(1))),
    Member(candidate=drop(2), latency=time_candidate(drop(2))),
]


class Finals:
    """A tiny study whose original is judged, with members distilled again and again as separate commands would."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.study = TinyStudy(directory, **changes)
        self.session, self.folder = self.study.session, self.study.session.folder
        with self.study.open() as opened:
            self.dense: DenseResult = opened.executor.call("judge_dense", time_candidate(drop(1)))
        study_dir.write_record(self.folder.dense, self.dense)
        plan = make_plan(self.session.protocol, trials=1, covers_space=True)
        study_dir.write_record(self.folder.plan, plan)

    def run(self, members: list[Member] = MEMBERS, budget: Budget = BUDGET) -> list[DistillResult]:
        self.terminal = Watched()
        with self.study.open() as opened:
            return distill_members(
                opened.executor, self.session, members, budget, terminal=self.terminal, store=opened.store
            )


class Watched(Heard):
    """A terminal that checks that a stage does all of its work, neither more nor less."""

    @contextlib.contextmanager
    def stage(self, name: str, *, total: float, is_share: bool = False) -> Iterator[Advance]:
        done: list[float] = []
        yield lambda amount, note, cells=(): done.append(amount)
        assert sum(done) == pytest.approx(total)


def change_budget(**changes: object) -> Budget:
    return Budget(**{**vars(BUDGET), **changes})


def test_rates_are_tried_upwards_until_one_is_worse_and_the_choice_is_remembered(tmp_path: Path) -> None:
    losses, tried = {1e-4: 3.0, 3e-4: 2.5, 1e-3: 2.2, 3e-3: 2.4, 1e-2: 1.0}, list[float]()

    def try_it(rate: float) -> float:
        tried.append(rate)
        return losses[rate]

    for member in (*MEMBERS, MEMBERS[0]):  # whichever was the hardest then
        rates = (1e-2, 1e-4, 3e-3, 3e-4, 1e-3)
        best = choose_learning_rate(StudyFolder(tmp_path), member, rates=rates, distill_tokens=1000, try_it=try_it)
        assert best == 1e-3
        assert tried == [1e-4, 3e-4, 1e-3, 3e-3]


def test_each_member_is_distilled_under_every_seed_and_the_first_is_exported(tmp_path: Path) -> None:
    opened = Finals(tmp_path)
    results = opened.run()
    session, dense = opened.session, opened.dense
    assert [result.key for result in results] == ["drop-1", "drop-2"]
    assert any(result.best_step for result in results)
    for result in results:
        assert [replica.rng_seed for replica in result.replicas] == [0, 1]
        first, second = (sum(replica.test_sums) for replica in result.replicas)
        assert first / sum(dense.test_counts) == pytest.approx(result.test.loss, abs=1e-6)
        assert (first != second) == (result.best_step > 0)  # where training helps, its data matter
        assert result.settings["rng_seed"] == 0
        assert find_damage(session.folder.model(result.key)) is None
        exported = load_checkpoint(session.folder.model(result.key), device=session.device, dtype=session.dtype)
        assert sum(weight.numel() for weight in exported.parameters()) == result.size.num_params
        assert len(result.continuations) == len(dense.continuations) == len(dense.prompts) == 3
        assert all(result.continuations)
        assert result.replicas[0].validation_loss == pytest.approx(result.validation.loss, abs=1e-5)
    assert not list((tmp_path / "work").glob("*.pt"))


def test_members_together_end_as_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Finals(tmp_path / "together").run()
    monkeypatch.setattr(budgets, "MOST_TOGETHER", 1)
    alone = Finals(tmp_path / "alone").run()
    assert list(map(forget_times, together)) == list(map(forget_times, alone))


def test_a_stopped_run_goes_on_and_nothing_finished_is_done_again(tmp_path: Path) -> None:
    expected = Finals(tmp_path / "unbroken").run()
    opened = Finals(tmp_path / "stopped")
    for name in ("keep_first", "keep_replica"):
        with interrupting(finals, name, after=1):
            opened.run()
        first, second = map(opened.folder.result, ("drop-1", "drop-2"))
        assert first.exists()
        assert second.exists() == (name == "keep_replica")
    written = first.stat().st_mtime_ns
    results = opened.run()
    assert list(map(forget_times, results)) == list(map(forget_times, expected))
    assert first.stat().st_mtime_ns == written
    assert opened.run() == results
    assert first.stat().st_mtime_ns == written


def test_a_training_that_diverges_keeps_its_start_and_is_told_of(tmp_path: Path) -> None:
    opened, budget = Finals(tmp_path), change_budget(learning_rate=1e9, rng_seeds=(0,))
    [result] = opened.run(MEMBERS[:1], budget)
    assert opened.terminal.lines == [
        "drop-1: training diverged at step 1 of 8 and ended there; the weights of step 0 are kept. Lower --learning-rate "
        "(1e+09)."
    ]
    assert result.best_step == 0
    assert [point.step for point in result.curve] == [0]
    assert find_damage(opened.folder.model("drop-1")) is None
    assert opened.run(MEMBERS[:1], budget) == [result]
    assert opened.terminal.lines == []


def test_a_model_whose_record_cannot_be_written_is_not_left_behind(tmp_path: Path) -> None:
    opened = Finals(tmp_path)
    assert MEMBERS[0].latency is not None
    latency = msgspec.structs.replace(MEMBERS[0].latency, ratio=math.nan)
    with pytest.raises(StudyError, match=r"drop-1\.json: not written, since a number in it is not finite"):
        opened.run([Member(candidate=drop(1), latency=latency)], change_budget(rng_seeds=(0,)))
    assert not opened.folder.model("drop-1").exists()
    assert not opened.folder.result("drop-1").exists()


def test_more_replicas_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    opened = Finals(tmp_path)
    [one] = opened.run(MEMBERS[:1], change_budget(rng_seeds=(0,)))
    [three] = opened.run(MEMBERS[:1], change_budget(rng_seeds=(0, 1, 2)))
    assert three.replicas[:1] == one.replicas
    assert [replica.rng_seed for replica in three.replicas] == [0, 1, 2]
    assert msgspec.structs.replace(three, replicas=one.replicas) == one


@pytest.mark.parametrize(("name", "harm", "said"), [DAMAGES[0], ("seed.json", halve, "is not as it was written")])
def test_a_model_that_is_damaged_is_made_again(tmp_path: Path, name: str, harm: Callable, said: str) -> None:
    opened, budget = Finals(tmp_path), change_budget(distill_tokens=512, rng_seeds=(0,))
    [before] = opened.run(MEMBERS[:1], budget)
    study = opened.folder
    (study.model("drop-1") / "README.md").write_text("# A card that its user edited")
    assert opened.run(MEMBERS[:1], budget) == [before]
    harm(study.model("drop-1") / name)
    [after] = opened.run(MEMBERS[:1], budget)
    assert opened.terminal.lines == [f"{study.model('drop-1')}: damaged: {name} {said}; it is made again"]
    assert find_damage(study.model("drop-1")) is None
    assert finals.describe_damage(study, "drop-1") is None
    assert forget_times(after) == forget_times(before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_width_of_the_same_size_is_distilled_and_exported_like_a_member(tmp_path: Path, family: str) -> None:
    tiny = Finals(tmp_path, family=family)
    session = tiny.session
    with tiny.study.open() as opened:
        candidates = [member.candidate for member in MEMBERS]  # both have one size
        [baseline] = opened.executor.call("make_width_baselines", candidates, known={})
        again = opened.executor.call("make_width_baselines", candidates, known={baseline.key: baseline.latency})
    assert again == [baseline]
    assert baseline.latency.structure == baseline.key
    [cut, width] = tiny.run([MEMBERS[0], baseline])
    assert width.candidate.dropped_layers == ()
    assert width.key.startswith("width-")
    assert width.size.num_params == pytest.approx(cut.size.num_params, rel=0.02)
    assert width.test.loss <= width.test_unrecovered.loss
    exported = load_checkpoint(session.folder.model(width.key), device=session.device, dtype=session.dtype)
    assert sum(weight.numel() for weight in exported.parameters()) == width.size.num_params
    assert exported.config.num_hidden_layers == 4
    assert study_dir.read_record(session.folder.result(width.key), DistillResult) == width
    assert f"MLP {width.width.mlp_width}" in (session.folder.model(width.key) / "README.md").read_text()


@pytest.mark.parametrize("recovery", ["hidden-states", "lora-pretraining", "last-layers"])
def test_every_recovery_trains_what_it_says(tmp_path: Path, recovery: str) -> None:
    pytest.importorskip("peft") if "lora" in recovery else None
    opened = Finals(tmp_path, recovery=recovery, lora_rank=4 if "lora" in recovery else None)
    [result] = opened.run(MEMBERS[:1], change_budget(rng_seeds=(0,), learning_rate=RATES.get(recovery, 1e-3)))
    assert result.curve[-1].validation_loss < result.curve[0].validation_loss
    is_text = recovery in ("pretraining", "lora-pretraining")
    assert (result.curve[-1].kl_divergence is None) == is_text
    assert ("cross-entropy" in result.settings["loss"]) == is_text
    assert ("LoRA of rank 4" in result.settings["trained"]) == ("lora" in recovery)
