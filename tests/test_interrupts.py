"""The first signal ends the work in order, the second the process."""

import os
import signal
from collections.abc import Iterator

import pytest

from seed import interrupts


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_the_first_signal_raises_and_the_second_is_not_heard(number: signal.Signals) -> None:
    with pytest.raises(interrupts.Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == 128 + number
    assert {signal.getsignal(one) for one in interrupts.SIGNALS} == {signal.SIG_DFL}


def test_what_is_not_to_be_torn_ends_first() -> None:
    done: list[str] = []

    def work() -> None:
        with interrupts.hold() as is_asked, interrupts.hold():
            assert not is_asked()
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("whole")
            assert is_asked()
        done.append("more")

    with pytest.raises(interrupts.Stopped):
        work()
    assert done == ["whole"]
