"""`grpo-fast …` in a process of its own, forked from one that has imported everything: all of a run but its imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["grpo_fast.train.program", "transformers.models.qwen2_vl.modeling_qwen2_vl"])


class Fork:
    """Such a process; what it says goes to files beside `folder`."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        names = (f"{folder.name} {os.urandom(4).hex()} {stream}" for stream in ("stdout", "stderr"))
        self._said = [folder.with_name(name) for name in names]
        self._process = FORKS.Process(target=_run, args=(self._said, arguments, environment))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid or 0, number)

    def wait(self) -> tuple[int | None, str, str]:
        """(exit code, stdout, stderr)"""
        self._process.join(300)
        self._process.kill()
        out, err = (file.read_text() for file in self._said)
        return self._process.exitcode, out, err


def _run(said: Sequence[Path], arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    for stream, file in enumerate(said, start=1):
        with open(file, "wb") as opened:
            os.dup2(opened.fileno(), stream)
    os.environ |= environment
    from grpo_fast.cli import main

    sys.exit(main(list(arguments)))
