"""Ctrl-C and SIGTERM end a run between two updates, so that the weights which are saved are those of a whole step."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType


class Interrupted(Exception):
    """Raised where a run may be left: its last finished step is what is saved."""


def how_to_go_on(output: Path) -> str:
    return f"interrupted; the same command with --output {shlex.quote(str(output))} goes on"


class Interrupts:
    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.asked, self.say = False, say

    def check(self) -> None:
        if self.asked:
            raise Interrupted

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.asked = True
        with suppress(RuntimeError):  # the signal came in the middle of a line that was being written
            self.say("the run ends as soon as it can be saved; Ctrl-C again ends it at once")


@contextmanager
def interrupts(say: Callable[[str], None]) -> Iterator[Interrupts]:
    """Outside the main thread Python gives no signals to handle."""
    state = Interrupts(say)
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, state._ask) for number in numbers]
    try:
        yield state
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
