"""What signals do to a run: a scheduler may repeat SIGTERM, a second Ctrl-C is meant."""

from __future__ import annotations

import signal

import pytest

from grpo_fast.train.interrupts import Interrupted, interrupts

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def test_only_a_second_ctrl_c_does_not_wait_for_the_step() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with interrupts() as state:
        state.check()
        signal.raise_signal(signal.SIGTERM)
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            pytest.fail("a second SIGTERM did not wait")
        with pytest.raises(Interrupted):
            state.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in NUMBERS] == before
