"""Members are trained side by side, once for each random seed; the first is exported; what is finished is never done twice."""

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from seed import folder
from seed.errors import StudyError
from seed.models.checkpoint import load_checkpoint
from seed.models.integrity import find_damage
from seed.records import DenseResult, DistillResult
from seed.scoring.distillation import Distilled
from seed.scoring.sweep import Sweep
from seed.stages import finals, judging, recovering, schooling
from seed.stages.finals import Budget, distill_members
from seed.stages.schooling import Member
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench
from tests.models.test_integrity import DAMAGES, halve
from tests.scoring.opened import drop, time_candidate
from tests.stages.opened import make_plan, open_bench, open_sweep

BUDGET = Budget(distill_tokens=2048, learning_rate=3e-3, rng_seeds=(0, 1))
RATES = {"lora": 1e-2, "lora-pretraining": 1e-2}
MEMBERS = [
    Member(candidate=drop(1), latency=time_candidate(drop(1))),
    Member(candidate=drop(2), latency=time_candidate(drop(2))),
]


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def open_finals(directory: Path, **changes: object) -> tuple[Workbench, Sweep, DenseResult]:
    bench = open_bench(directory, **changes)
    sweep = open_sweep(bench)
    return bench, sweep, judging.judge_dense(bench, sweep.instruments, time_candidate(drop(1)))


def run(
    opened: tuple[Workbench, Sweep, DenseResult],
    members: list[Member] = MEMBERS,
    budget: Budget = BUDGET,
    *,
    on_work: Callable[[float, str], None] = lambda amount, key: None,
    complain: Callable[[str], None] = lambda said: None,
) -> list[DistillResult]:
    bench, sweep, dense = opened
    plan = make_plan(bench, SearchSettings(), trials=1, covers_space=True)
    return distill_members(bench, sweep, plan, dense, members, budget, on_work=on_work, complain=complain)


def change_budget(**changes: object) -> Budget:
    return Budget(**{**vars(BUDGET), **changes})


def forget_times(result: DistillResult) -> DistillResult:
    replicas = tuple(msgspec.structs.replace(replica, seconds=0.0) for replica in result.replicas)
    return msgspec.structs.replace(result, seconds=0.0, replicas=replicas, provenance_sha256=None)


def test_each_member_is_distilled_under_every_seed_and_the_first_is_exported(tmp_path: Path) -> None:
    opened = open_finals(tmp_path)
    work: list[float] = []
    results = run(opened, on_work=lambda amount, key: work.append(amount))
    bench, _, dense = opened
    assert [result.key for result in results] == ["drop-1", "drop-2"]
    steps = schooling.count_steps(bench, 2048)
    assert any(result.best_step for result in results)
    assert sum(work) == pytest.approx(4 * finals.count_work(bench, steps))
    for result in results:
        assert [replica.rng_seed for replica in result.replicas] == [0, 1]
        first, second = (sum(replica.test_sums) for replica in result.replicas)
        assert first / sum(dense.test_counts) == pytest.approx(result.test.loss, abs=1e-6)
        assert (first != second) == (result.best_step > 0)  # where training helps, its data matter
        assert result.settings["rng_seed"] == 0
        assert find_damage(bench.folder.model(result.key)) is None
        exported = load_checkpoint(bench.folder.model(result.key), device=bench.device, dtype=bench.dtype)
        assert sum(weight.numel() for weight in exported.parameters()) == result.size.num_params
        assert result.replicas[0].validation_loss == pytest.approx(result.validation.loss, abs=1e-5)
    assert not list((tmp_path / "work").glob("*.pt"))


def test_members_together_end_as_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = run(open_finals(tmp_path / "together"))
    monkeypatch.setattr(recovering, "MOST_TOGETHER", 1)
    alone = run(open_finals(tmp_path / "alone"))
    assert list(map(forget_times, together)) == list(map(forget_times, alone))


def test_a_stopped_run_goes_on_and_nothing_finished_is_done_again(tmp_path: Path) -> None:
    expected = run(open_finals(tmp_path / "unbroken"))
    opened = open_finals(tmp_path / "stopped")
    bench = opened[0]

    def stop_when(is_time: Callable[[], bool]) -> Callable[[float, str], None]:
        def stop(amount: float, key: str) -> None:
            if is_time():
                raise StoppedError

        return stop

    with pytest.raises(StoppedError):
        run(opened, on_work=stop_when(lambda: bench.folder.result("drop-1").exists()))
    assert not bench.folder.result("drop-2").exists()
    with pytest.raises(StoppedError):  # the second's first replica is there, the first's second is not
        run(opened, on_work=stop_when(lambda: bench.folder.result("drop-2").exists()))
    results = run(opened)
    assert list(map(forget_times, results)) == list(map(forget_times, expected))
    again = bench.folder.result("drop-1").stat().st_mtime_ns
    assert run(opened) == results
    assert bench.folder.result("drop-1").stat().st_mtime_ns == again


def test_a_training_that_diverges_keeps_its_start_and_is_told_of(tmp_path: Path) -> None:
    opened, budget = open_finals(tmp_path), change_budget(learning_rate=1e9, rng_seeds=(0,))
    said: list[str] = []
    [result] = run(opened, MEMBERS[:1], budget, complain=said.append)
    assert said == [
        "drop-1: training diverged at step 1 of 8 and ended there; the weights of step 0 are kept. Lower --learning-rate "
        "(1e+09)."
    ]
    assert result.best_step == 0
    assert [point.step for point in result.curve] == [0]
    assert find_damage(opened[0].folder.model("drop-1")) is None
    assert run(opened, MEMBERS[:1], budget, complain=said.append) == [result]
    assert len(said) == 1


def test_a_model_whose_record_cannot_be_written_is_not_left_behind(tmp_path: Path) -> None:
    opened = open_finals(tmp_path)
    assert MEMBERS[0].latency is not None
    latency = msgspec.structs.replace(MEMBERS[0].latency, ratio=math.nan)
    with pytest.raises(StudyError, match=r"drop-1\.json: not written, since a number in it is not finite"):
        run(opened, [Member(candidate=drop(1), latency=latency)], change_budget(rng_seeds=(0,)))
    assert not opened[0].folder.model("drop-1").exists()
    assert not opened[0].folder.result("drop-1").exists()


def test_a_training_without_any_finite_loss_is_refused_with_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_finals(tmp_path)
    nothing = Distilled(curve=(), best_step=0, diverged_at=1)  # what such a training gives back
    monkeypatch.setattr(finals, "train_together", lambda *args, **kwargs: [nothing])
    with pytest.raises(StudyError, match=r"drop-1: no loss of the training.*Lower --learning-rate .0\.003."):
        run(opened, MEMBERS[:1], change_budget(rng_seeds=(0,)))
    assert not opened[0].folder.model("drop-1").exists()


def test_a_rate_that_diverges_is_a_bad_rate(tmp_path: Path) -> None:
    bench, sweep, _ = open_finals(tmp_path)
    rate = schooling.choose_learning_rate(
        bench, sweep, MEMBERS[0], rates=(0.3, 1e9), distill_tokens=20480, on_step=lambda step: None
    )
    assert rate == 0.3  # worse than its start, which is where the other ends


def test_more_replicas_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    opened = open_finals(tmp_path)
    [one] = run(opened, MEMBERS[:1], change_budget(rng_seeds=(0,)))
    [three] = run(opened, MEMBERS[:1], change_budget(rng_seeds=(0, 1, 2)))
    assert three.replicas[:1] == one.replicas
    assert [replica.rng_seed for replica in three.replicas] == [0, 1, 2]
    assert msgspec.structs.replace(three, replicas=one.replicas) == one


def test_a_longer_distillation_is_not_undone_by_a_shorter_one(tmp_path: Path) -> None:
    opened = open_finals(tmp_path)
    [longer] = run(opened, MEMBERS[:1], change_budget(distill_tokens=4096, rng_seeds=(0,)))
    assert run(opened, MEMBERS[:1]) == [longer]


@pytest.mark.parametrize(("name", "harm", "said"), [DAMAGES[0], ("seed.json", halve, "is not as it was written")])
def test_a_model_that_is_damaged_is_made_again(tmp_path: Path, name: str, harm: Callable, said: str) -> None:
    opened, budget = open_finals(tmp_path), change_budget(distill_tokens=512, rng_seeds=(0,))
    [before] = run(opened, MEMBERS[:1], budget)
    study = opened[0].folder
    lines: list[str] = []
    finals.say_damaged(study, MEMBERS, say=lines.append)
    assert lines == []
    (study.model("drop-1") / "README.md").write_text("# A card that its user edited")
    assert run(opened, MEMBERS[:1], budget) == [before]
    harm(study.model("drop-1") / name)
    finals.say_damaged(study, MEMBERS, say=lines.append)
    assert lines == [f"{study.model('drop-1')}: damaged: {name} {said}; it is made again"]
    [after] = run(opened, MEMBERS[:1], budget)
    assert find_damage(study.model("drop-1")) is None
    assert finals.describe_damage(study, "drop-1") is None
    assert forget_times(after) == forget_times(before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_width_of_the_same_size_is_distilled_and_exported_like_a_member(tmp_path: Path, family: str) -> None:
    bench = open_bench(tmp_path, family=family)
    sweep = open_sweep(bench)
    dense = judging.judge_dense(bench, sweep.instruments, time_candidate(drop(1)))
    [baseline] = finals.list_baselines(bench, sweep.instruments, MEMBERS)  # both members have one size
    assert baseline.latency.structure == baseline.key
    [cut, width] = run((bench, sweep, dense), [MEMBERS[0], baseline])
    assert width.candidate.dropped_layers == ()
    assert width.key.startswith("width-")
    assert width.size.num_params == pytest.approx(cut.size.num_params, rel=0.02)
    assert width.test.loss <= width.test_unrecovered.loss
    exported = load_checkpoint(bench.folder.model(width.key), device=bench.device, dtype=bench.dtype)
    assert sum(weight.numel() for weight in exported.parameters()) == width.size.num_params
    assert exported.config.num_hidden_layers == 4
    assert folder.read_record(bench.folder.result(width.key), DistillResult) == width
    assert f"MLP {width.width.mlp_width}" in (bench.folder.model(width.key) / "README.md").read_text()


@pytest.mark.parametrize("recovery", ["hidden-states", "lora", "pretraining", "lora-pretraining", "last-layers"])
def test_every_recovery_trains_what_it_says(tmp_path: Path, recovery: str) -> None:
    pytest.importorskip("peft") if "lora" in recovery else None
    opened = open_finals(tmp_path, recovery=recovery, lora_rank=4 if "lora" in recovery else None)
    [result] = run(opened, MEMBERS[:1], change_budget(rng_seeds=(0,), learning_rate=RATES.get(recovery, 1e-3)))
    assert result.curve[-1].validation_loss < result.curve[0].validation_loss
    is_text = recovery in ("pretraining", "lora-pretraining")
    assert (result.curve[-1].kl_divergence is None) == is_text
    assert ("cross-entropy" in result.settings["loss"]) == is_text
    assert ("LoRA of rank 4" in result.settings["trained"]) == ("lora" in recovery)
