"""What hosts of one study must have alike, what they may differ in, and who may lead."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import optuna
import pytest

from seed.console import Terminal
from seed.errors import ResourceError, SeedError, StudyError
from seed.optimize.leadership import LEADER, read_shared, write_shared
from seed.optimize.space import drop_deepest
from seed.optimize.study import LOSSES, read_shared_rows, read_trials, spell_rows
from seed.plans import Protocol
from seed.records import SweepRow
from seed.rows import read_rows
from seed.scoring.latency import name_structure
from seed.scoring.sweep import Sweep
from seed.stages import hosts, joining, judging, latencies, planning, workbench
from seed.stages.hosts import ORDER, Circle, HostOrder
from seed.stages.posts import Post, open_post
from seed.stages.settings import SearchSettings
from seed.stages.workbench import Workbench
from tests.scoring.opened import drop
from tests.stages.opened import PROTOCOL, SPACE, make_plan, make_table, open_bench, open_trials

SETTINGS = SearchSettings(model="tiny", storage="sqlite:///x.db", trials=4, sampler="random", distill=False)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give hosts up after a moment instead of a minute."""
    monkeypatch.setitem(hosts.Leadership.__init__.__kwdefaults__, "beat_seconds", 0.05)
    monkeypatch.setitem(hosts.Leadership.__init__.__kwdefaults__, "settle_seconds", 0.05)


def open_host(
    place: Path, name: str, opened: optuna.Study | None = None, *, family: str = "llama", **changes: object
) -> tuple[Circle, Workbench, Post]:
    """A host with a folder of its own."""
    bench = open_bench(place / name, family=family)
    post = open_post(bench.folder, leads=True)
    settings = change_settings(SETTINGS, **changes)
    plan = make_plan(bench, settings, trials=settings.trials or 4, covers_space=False)
    return hosts.open_circle(opened or open_trials(bench), bench, plan, settings, post=post), bench, post


def lead_or_help(circle: Circle, bench: Workbench, post: Post, *, quiet: bool = True, **changes: object) -> bool:
    settings = change_settings(SETTINGS, **changes)
    plan = make_plan(bench, settings, trials=settings.trials or 4, covers_space=False)
    return joining.lead_or_help(circle, bench, plan, settings, post, Terminal(quiet=quiet))


def change_settings(settings: SearchSettings, **changes: object) -> SearchSettings:
    return SearchSettings(**{**settings.describe(), **changes})


def give_order(circle: Circle, bench: Workbench, **changes: object) -> HostOrder:
    """Write down what the host of this circle would have others do."""
    loss = workbench.prepare_instruments(bench).dense_validation.loss
    order = HostOrder(
        leader=circle.leadership.ours.name,
        settings=circle.settings,
        plan=make_plan(bench, SETTINGS, trials=4, covers_space=False),
        space=SPACE,
        latencies=make_table(),
        reference=circle.hardware,
        dense_loss=loss,
    )
    order = msgspec.structs.replace(order, **changes)
    write_shared(circle.opened, ORDER, order)
    return order


def help_one(
    place: Path, *, family: str = "llama", ours: dict[str, object] | None = None, **changes: object
) -> Workbench:
    """Help a host at work whose order differs as told; return our bench."""
    leader, bench, _ = open_host(place, "leader", family=family)
    assert leader.leadership.take()
    with leader.leadership.lead():
        give_order(leader, bench, **changes)
        circle, own, post = open_host(place, "helper", leader.opened, family=family, **(ours or {}))
        assert not lead_or_help(circle, own, post, **(ours or {}))
    return own


def test_a_helper_scores_the_budget_and_the_leader_gets_every_loss(tmp_path: Path) -> None:
    leader, bench, _ = open_host(tmp_path, "leader")
    circle, helper, post = open_host(tmp_path, "other", leader.opened)
    assert leader.leadership.take()
    with leader.leadership.lead():
        give_order(leader, bench)
        assert not lead_or_help(circle, helper, post)
    complete = leader.opened.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len(complete) == 4
    sweep = Sweep(workbench.prepare_instruments(bench), bench.folder.sweep)
    keys = {
        record.number: record.evaluation.candidate.key
        for record in read_trials(leader.opened)
        if record.state == "COMPLETE"
    }
    for rows in read_shared_rows(leader.opened, keys):
        sweep.adopt(rows)
    theirs = Sweep(workbench.prepare_instruments(helper), helper.folder.sweep)
    closed = {key: rows["closed_form"].sums for key, rows in sweep.rows.items() if "closed_form" in rows}
    assert len(closed) == 4
    assert closed == {key: theirs.rows[key]["closed_form"].sums for key in closed}
    assert not helper.folder.frontier.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": msgspec.structs.replace(SPACE, max_dropped=3)}, "is of another model"),
        ({"latencies": {}}, "is of another model"),
        ({"dense_loss": 1.0}, "validation loss is .* here and 1.00000 on .*same versions of torch"),
        ({"settings": {"trials": 9}}, r"otherwise than asked for here \(.*trials: 9 there, 4 here"),
    ],
)
def test_a_host_that_differs_is_told_in_what(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        help_one(tmp_path, **changes)


def test_a_host_of_another_version_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "__version__", "99")
    with pytest.raises(StudyError, match=r"\(seed .* there, 99 here\)"):
        help_one(tmp_path)


OTHER = hosts.Hardware(device="NVIDIA H100", processor=None)


def test_other_hardware_helps_but_does_not_lead(tmp_path: Path) -> None:
    own = help_one(tmp_path, reference=OTHER)
    assert latencies.read_latencies(own.folder) == make_table()
    circle, bench, post = open_host(tmp_path, "late")
    give_order(circle, bench, reference=OTHER)
    with pytest.raises(
        ResourceError, match=r"latency was measured on NVIDIA H100, and this is cpu \(.*can help it while it runs"
    ):
        lead_or_help(circle, bench, post)


def test_other_hardware_cannot_help_where_sets_are_timed_as_they_are_met(tmp_path: Path) -> None:
    anatomy = open_bench(tmp_path, family="qwen2").anatomy
    table = {name_structure(anatomy, drop_deepest(SPACE, count)): make_table()["3 layers"] for count in (1, 2)}
    with pytest.raises(ResourceError, match=r"2 kinds of layers.*only NVIDIA H100 may do"):
        help_one(tmp_path, family="qwen2", reference=OTHER, latencies=table)


def test_hosts_may_keep_model_and_text_elsewhere_and_nothing_else_differs(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    moved = {"model": "./x", "location": "/x", "recovery_text": "/y", "start": "/z", "device": "NVIDIA H100"}
    streams = {name: msgspec.structs.replace(stream, source="/y") for name, stream in PROTOCOL.streams.items()}
    known = hosts.describe_identity(PROTOCOL)
    hosts.require_same_study(known, msgspec.structs.replace(PROTOCOL, **moved, streams=streams), name="tiny")
    ours = make_plan(bench, SETTINGS, trials=4, covers_space=False)
    theirs = msgspec.structs.replace(ours, identity={**ours.identity, **moved})
    assert theirs.study_fingerprint == ours.study_fingerprint != theirs.fingerprint


CHANGES: list[Callable[[Protocol], Protocol]] = [
    lambda known: msgspec.structs.replace(known, weights_sha256="cd" * 32),
    lambda known: msgspec.structs.replace(known, commit="abc"),
    lambda known: msgspec.structs.replace(known, dtype="bfloat16"),
    lambda known: msgspec.structs.replace(known, prompt_tokens=9),
    lambda known: msgspec.structs.replace(known, space=msgspec.structs.replace(SPACE, max_dropped=1)),
    lambda known: msgspec.structs.replace(
        known, streams=known.streams | {"test": msgspec.structs.replace(known.streams["test"], sha256="d" * 64)}
    ),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_numbers_must_be_alike(change: Callable[[Protocol], Protocol]) -> None:
    known = hosts.describe_identity(PROTOCOL)
    with pytest.raises(StudyError, match=r"in the study, .* now"):
        hosts.require_same_study(known, change(PROTOCOL), name="tiny")


def test_the_type_that_the_study_computes_in_is_taken_over() -> None:
    known = hosts.describe_identity(PROTOCOL)
    assert planning.adopt_dtype(SETTINGS, known).dtype == "float32"
    assert planning.adopt_dtype(change_settings(SETTINGS, dtype="bfloat16"), known).dtype == "bfloat16"
    assert planning.adopt_dtype(SETTINGS, {"dtype": "int3"}).dtype is None


def test_the_reference_stays_the_first_and_its_latencies_count(tmp_path: Path) -> None:
    circle, bench, _ = open_host(tmp_path, "leader")
    order = give_order(circle, bench)
    other, own, _ = open_host(tmp_path, "second", circle.opened)
    plan = make_plan(own, SETTINGS, trials=4, covers_space=True)
    assert not hosts.take_over(other, plan, study=own.folder).covers_space
    assert latencies.read_latencies(own.folder) == order.latencies
    instruments = workbench.prepare_instruments(own)
    dense = judging.judge_dense(own, instruments, next(iter(order.latencies.values())))
    other.give_order(order.plan, SPACE, order.latencies, dense)
    changed = msgspec.structs.replace(order, leader=other.leadership.ours.name)
    assert other.find_order() == changed
    give_order(circle, bench, reference=OTHER)
    other.give_order(order.plan, SPACE, order.latencies, dense)
    assert other.find_order() == msgspec.structs.replace(changed, reference=OTHER)


def test_a_search_that_another_host_finished_is_not_done_again_unless_more_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, bench, _ = open_host(tmp_path, "leader")
    assert leader.leadership.take()
    with leader.leadership.lead():
        give_order(leader, bench)
    circle, own, post = open_host(tmp_path, "late", leader.opened)
    assert not lead_or_help(circle, own, post, quiet=False)
    assert f"the report and the models are in {bench.folder.root} on" in capsys.readouterr().out.replace("\n", " ")
    assert not own.folder.plan.exists()
    circle, own, post = open_host(tmp_path, "late", leader.opened, trials=5)
    assert lead_or_help(circle, own, post, trials=5)


def test_losses_of_another_host_are_moved_by_what_the_dense_model_differs(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    sweep = Sweep(workbench.prepare_instruments(bench), bench.folder.sweep)
    dense, rows = sweep.list_shared(drop(1))[0], [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert len(dense.sums) == len(rows)
    theirs = msgspec.structs.replace(dense, sums=[loss + 0.25 for loss in dense.sums])
    sweep.adopt([theirs, SweepRow(key="drop-1", rung="none", sums=rows)])
    sweep.adopt([dense, SweepRow(key="drop-2", rung="none", sums=rows)])
    sweep.adopt([dense, SweepRow(key="drop-3", rung="none", sums=rows[1:])])
    sweep.adopt([dense, SweepRow(key="drop-3", rung="other", sums=rows)])
    found = {row.key: row.sums for row in read_rows(sweep.path, SweepRow) if row.key != "dense"}
    assert found == {"drop-1": pytest.approx([loss - 0.25 for loss in rows]), "drop-2": rows}


def test_a_trial_speaks_for_its_own_candidate_alone(tmp_path: Path) -> None:
    bench = open_bench(tmp_path)
    opened = open_trials(bench)
    rows = [SweepRow(key=key, rung="none", sums=[1.0]) for key in ("drop-1", "drop-2", "dense")]
    trial = optuna.trial.create_trial(values=[1.0, 1.0], system_attrs={LOSSES: spell_rows(rows)})
    opened.add_trial(trial)
    assert read_shared_rows(opened, {0: "drop-2"}) == [rows[1:]]
    assert read_shared_rows(opened, {1: "drop-2"}) == []


def test_a_damaged_order_is_an_error(tmp_path: Path) -> None:
    circle, _, _ = open_host(tmp_path, "leader")
    circle.opened._storage.set_study_system_attr(circle.opened._study_id, ORDER, {"leader": "x"})
    with pytest.raises(SeedError, match="Use the same version of Seed on all hosts"):
        circle.find_order()
    assert read_shared(circle.opened, LEADER, HostOrder) is None
