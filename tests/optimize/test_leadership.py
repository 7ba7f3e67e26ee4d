"""Of several hosts one leads: whoever is first, whoever is left, and nobody that was taken for dead."""

import threading
import time

import msgspec
import optuna
import pytest

from seed.errors import StudyError
from seed.optimize import leadership as leaderships
from seed.optimize.leadership import LEADER, Leader, Leadership, read_shared, write_shared

BEAT_SECONDS = 0.02


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["minimize", "minimize"], study_name="here")


def make_leadership(study: optuna.Study, host: str = "one", *, settle_seconds: float = 0.0) -> Leadership:
    ours = Leader(place=f"{host}@1", name=f"{host}@1:7:abc", host=host, pid=7, folder=f"/{host}/studies/here")
    return Leadership(study, ours, beat_seconds=BEAT_SECONDS, settle_seconds=settle_seconds)


def test_of_hosts_that_start_at_once_one_leads(study: optuna.Study) -> None:
    barrier = threading.Barrier(6)
    won: list[str] = []

    def stand(host: str) -> None:
        leadership = make_leadership(study, host, settle_seconds=0.5)
        barrier.wait()
        if leadership.find() is None and leadership.take():
            won.append(host)

    threads = [threading.Thread(target=stand, args=(f"host-{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = make_leadership(study).find()
    assert found is not None
    assert won == [found.host]


def test_a_leader_at_work_is_found_and_a_silent_one_is_not(study: optuna.Study) -> None:
    one, other = make_leadership(study), make_leadership(study, "other")
    heard: list[str] = []
    assert other.find_at_work() is None
    assert one.take()
    with one.lead():
        assert other.find_at_work(on_silence=lambda leader: heard.append(leader.host)) == one.ours
        assert one.find_at_work() is None
    assert heard == []
    write_shared(study, LEADER, one.ours)  # as one leaves it that is killed
    began = time.monotonic()
    assert other.find_at_work(on_silence=lambda leader: heard.append(leader.host)) is None
    assert time.monotonic() - began >= (leaderships.SILENT_BEATS - 1) * BEAT_SECONDS
    assert heard == ["one"]
    assert other.take()


def test_who_has_led_to_the_end_is_found_without_waiting(study: optuna.Study) -> None:
    one, other = make_leadership(study), make_leadership(study, "other")
    assert one.take()
    with one.lead():
        pass
    assert other.find_at_work() == msgspec.structs.replace(one.ours, is_done=True)


def test_who_fails_leads_no_more(study: optuna.Study) -> None:
    one, other = make_leadership(study), make_leadership(study, "other")
    assert one.take()
    with pytest.raises(KeyboardInterrupt), one.lead():
        raise KeyboardInterrupt
    assert other.find_at_work() is None
    assert other.find() is None


def test_who_was_taken_for_dead_is_told_and_takes_nothing_back(study: optuna.Study) -> None:
    one, other = make_leadership(study), make_leadership(study, "other")
    assert one.take()
    one.require()

    def be_taken_for_dead() -> None:
        with one.lead():
            assert other.take()
            one.require()

    with pytest.raises(StudyError, match=r"other \(pid 7\) leads the search by now"):
        be_taken_for_dead()
    assert other.find() == other.ours


def test_a_process_that_is_started_again_leads_again(study: optuna.Study) -> None:
    one, again = make_leadership(study), make_leadership(study)
    again.ours = msgspec.structs.replace(again.ours, name="one@1:8:def", pid=8)
    assert one.take()
    assert again.find_at_work() is None
    assert again.take()


def test_a_copy_of_the_folder_on_another_host_does_not_lead_beside_it(study: optuna.Study) -> None:
    one, copied = make_leadership(study), make_leadership(study)
    copied.ours = msgspec.structs.replace(copied.ours, host="other", name="other@1:7:abc")
    assert one.take()
    with one.lead():
        assert copied.find_at_work() == one.ours
    assert copied.find_at_work() is None  # all of it is in the copy


def test_who_was_suspended_to_the_end_leaves_its_successor_alone(study: optuna.Study) -> None:
    one, other = make_leadership(study), make_leadership(study, "other")
    assert one.take()
    with one.lead():
        assert other.take()
    assert other.find() == other.ours


def test_what_another_version_wrote_is_an_error(study: optuna.Study) -> None:
    study._storage.set_study_system_attr(study._study_id, LEADER, {"place": 1})
    with pytest.raises(StudyError, match=r"study here: .*Use the same version of Seed on all hosts"):
        read_shared(study, LEADER, Leader)
