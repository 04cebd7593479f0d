"""What becomes of a job whose model cannot be read, and of one whose process is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from evaluate.conftest import make_checkpoint

from grpo_fast.errors import BadCheckpoint, BadSettings, RunFailed
from grpo_fast.matrix.jobs import Done, Job, ask_settings
from grpo_fast.matrix.workers import Workers, workers
from grpo_fast.train.resolved import changed
from grpo_fast.train.settings import Settings
from grpo_fast.train.settings_file import to_yaml


class Killer:
    """Kills whoever says that it is asking."""

    pool: Workers
    armed = False

    def at(self, job: str, doing: str, done: int, total: int) -> None:
        if self.armed and doing == "asking":
            os.kill(self.pool._workers[0].pid, signal.SIGKILL)

    def ended(self, job: str, done: Done | None) -> None: ...

    def note(self, text: str) -> None: ...


def test_a_bad_model_is_an_error_and_a_killed_process_a_failure(tmp_path: Path) -> None:
    settings = changed(Settings(), prompt="no-think", max_completion_length=4, device="cpu")
    asking = {"questions": to_yaml(settings), "samples": 200, "ask": ask_settings(settings) | {"batch": 2}}
    (tmp_path / "nothing").mkdir()
    bad = Job(name="bad", model=str(tmp_path / "nothing"), answers=str(tmp_path / "answers"), **asking)
    good = Job(name="good", model=str(make_checkpoint(tmp_path / "m")), answers=str(tmp_path / "answers"), **asking)
    watch = Killer()
    with workers(1, tmp_path, watch, None) as watch.pool:
        with pytest.raises(BadCheckpoint, match=r"^bad: .*nothing"):
            watch.pool.run([bad])
        watch.armed = True
        with pytest.raises(RunFailed, match=r"^good: its process was killed \(signal 9\).*goes on"):
            watch.pool.run([good])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_at_least_one_process(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="--jobs must be at least 1, got -1"):
        Workers(-1, tmp_path, Killer())
