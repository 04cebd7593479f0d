"""Ctrl-C at moments that no test could hit from outside: what was cut off is done when the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from train.small import SMALL

from grpo_fast.cli import parser
from grpo_fast.rollout import RolloutStats
from grpo_fast.train import flags, program
from grpo_fast.train.interrupts import Interrupted, Interrupts
from grpo_fast.train.view import Lines

# one early look ends the warm start; two looks follow in GRPO
FLAGS = [*SMALL, "--warm-start-until", "0", "--sft-steps", "12", "--steps", "3", "--eval-every", "2"]


class Watched(Lines):
    """Calls `cut` once while held-out questions are asked or the policy is updated after `step` of `phase`, having let
    it go on `passed` times."""

    passed = 0
    out: StringIO

    def __init__(self, doing: str, phase: str, step: int, cut: Any) -> None:
        super().__init__(StringIO())
        self.moment, self.cut = (doing, phase, step), cut

    def _now(self, doing: str) -> None:
        if (doing, self.progress.phase, self.progress.step) == self.moment:
            self.passed -= 1
            if self.passed < 0:
                self.moment = ("", "", -1)
                self.cut()

    def asking(self, stats: RolloutStats) -> None:
        self._now("asking")

    def update(self, done: int, total: int) -> None:
        self._now("update")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Interrupts:
    state = Interrupts()

    @contextmanager
    def given(_: Any) -> Iterator[Interrupts]:
        state.asked = False
        yield state

    monkeypatch.setattr(program, "interrupts", given)
    return state


def run(output: Path, view: Lines, *more: str) -> dict[str, Any]:
    given = parser().parse_args(["train", "--output", str(output), *FLAGS, *more])
    return program.train(flags.settings_of(given, command="train"), view)


def bytes_of(output: Path) -> tuple[bytes, bytes]:
    return (output / "metrics.jsonl").read_bytes(), (output / "samples.jsonl").read_bytes()


def test_a_look_that_was_cut_off_is_had_when_the_run_goes_on(asked: Interrupts, tmp_path: Path) -> None:
    """At the start, at the end of the warm start, between two steps, and at the end of the run."""
    nothing = Watched("", "", -1, None)
    straight = run(tmp_path / "straight", nothing)
    for phase, step in (("", 0), ("sft", 5), ("grpo", 2), ("grpo", 3)):
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", Watched("asking", phase, step, lambda: setattr(asked, "asked", True)))
    summary = run(tmp_path / "cut", nothing)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "straight")
    for name in ("accuracy", "best_accuracy", "by_modality"):
        assert summary[name] == straight[name]


def test_a_second_ctrl_c_in_an_update_saves_no_half_step(asked: Interrupts, tmp_path: Path) -> None:
    """Two optimizer updates make a step here: between them the weights are nobody's."""
    nothing, halves = Watched("", "", -1, None), ("--minibatches", "2", "--save-every", "1")

    def twice() -> None:
        raise KeyboardInterrupt

    run(tmp_path / "straight", nothing, *halves)
    second = Watched("update", "grpo", 1, twice)
    second.passed = 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", second, *halves)
    assert "goes on" in second.out.getvalue()
    run(tmp_path / "cut", nothing, *halves)
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "straight")
