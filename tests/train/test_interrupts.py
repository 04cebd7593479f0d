"""What signals do to a run: a scheduler may repeat SIGTERM, a second Ctrl-C is meant."""

from __future__ import annotations

import signal

import pytest

from grpo_fast.train.interrupts import Interrupted, interrupts

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def test_only_a_second_ctrl_c_does_not_wait_for_the_step() -> None:
    said: list[str] = []
    before = [signal.getsignal(number) for number in NUMBERS]
    with interrupts(said.append) as state:
        state.check()
        signal.raise_signal(signal.SIGTERM)
        assert len(said) == 1 and "Ctrl-C again" in said[0]
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            pytest.fail("a second SIGTERM did not wait")
        with pytest.raises(Interrupted):
            state.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_signal_in_the_middle_of_a_line() -> None:
    def busy(_: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with interrupts(busy) as state:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            state.check()
