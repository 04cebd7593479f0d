"""Jobs over a few processes, each of which does one after the other."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from grpo_fast.errors import BadCheckpoint, BadSettings, GRPOFastError, RunFailed
from grpo_fast.evaluate.answers import Answer
from grpo_fast.matrix.jobs import Done, Job, failure

CORES_EACH = 4  # of a process that uses what there is: with fewer, a second one gains little


class Watch(Protocol):
    def at(self, job: str, doing: str, done: int, total: int) -> None: ...

    def ended(self, job: str, done: Done | None) -> None:
        """None: it failed."""
        ...

    def note(self, text: str) -> None: ...


class Workers:
    """`count` processes at most, started when there is something to do."""

    def __init__(self, count: int, folder: Path, watch: Watch, lock: int | None = None) -> None:
        if count < 1:
            raise BadSettings(f"--jobs must be at least 1, got {count}")
        self.count, self.folder, self.watch, self.lock = count, folder, watch, lock
        self._events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._workers: dict[int, subprocess.Popen[str]] = {}

    def run(
        self, jobs: Sequence[Job], *, skips: Callable[[Job, BadCheckpoint], bool] = lambda *_: False
    ) -> dict[str, Done]:
        """What became of each, by name. `skips`: whether a checkpoint that cannot be read leaves a gap and no error."""
        waiting, doing, found = list(jobs), dict[int, Job](), dict[str, Done]()
        for slot in range(min(self.count, len(waiting))):
            self._give(slot, waiting, doing)
        while doing:
            slot, told = self._events.get()
            if told is None:
                raise self._lost(slot, doing.get(slot))
            match told["event"]:
                case "at":
                    self.watch.at(told["job"], told["doing"], told["done"], told["total"])
                    continue
                case "note":
                    self.watch.note(f"{told['job']}: {told['text']}")
                    continue
                case "done":
                    found[told["job"]] = _done(told)
                    self.watch.ended(told["job"], found[told["job"]])
                case "failed":
                    self.watch.ended(told["job"], None)
                    error = failure(told)
                    if not (isinstance(error, BadCheckpoint) and skips(doing[slot], error)):
                        raise error
            del doing[slot]
            self._give(slot, waiting, doing)
        return found

    def close(self) -> None:
        """Without its stdin a worker saves and leaves."""
        for worker in self._workers.values():
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.close()
        for worker in self._workers.values():
            worker.wait()

    def _give(self, slot: int, waiting: list[Job], doing: dict[int, Job]) -> None:
        if not waiting:
            return
        if slot not in self._workers:
            self._workers[slot] = self._started(slot)
        doing[slot] = waiting.pop(0)
        stdin = self._workers[slot].stdin
        assert stdin is not None
        with suppress(BrokenPipeError):  # its end is told by its stdout
            stdin.write(doing[slot].line())
            stdin.flush()

    def _started(self, slot: int) -> subprocess.Popen[str]:
        with open(self._log(slot), "wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "grpo_fast.matrix.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, env=_environment(slot, self.count), text=True, encoding="utf-8",
                pass_fds=() if self.lock is None else (self.lock,),
            )  # fmt: skip
        threading.Thread(target=self._hear, args=(slot, worker), daemon=True).start()
        return worker

    def _hear(self, slot: int, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self._events.put((slot, json.loads(line)))
        self._events.put((slot, None))

    def _lost(self, slot: int, job: Job | None) -> GRPOFastError:
        code, log = self._workers[slot].wait(), self._log(slot)
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        how = f"was killed (signal {-code})" if code < 0 else f"ended with code {code}"
        name = job.name if job is not None else "a process"
        return RunFailed(f"{name}: its process {how}{said} ({log}); the same command goes on from what was finished")

    def _log(self, slot: int) -> Path:
        return self.folder / f"worker-{slot}.log"


@contextmanager
def workers(count: int, folder: Path, watch: Watch, lock: int | None) -> Iterator[Workers]:
    """SIGTERM is Ctrl-C here: both leave every training saved."""
    made = Workers(count, folder, watch, lock)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield made
    finally:
        made.close()
        if main:
            signal.signal(signal.SIGTERM, before)


def usual_count(threads: int) -> int:
    """`threads` of each: 0 where that is not said."""
    return len(_devices()) or max(1, (os.cpu_count() or 1) // (threads or CORES_EACH))


def _devices() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


def _environment(slot: int, count: int) -> Mapping[str, str]:
    cores = max(1, (os.cpu_count() or 1) // count)
    given = os.environ.get("OMP_NUM_THREADS", "")
    found = {**os.environ, "OMP_NUM_THREADS": str(min(int(given), cores) if given.isdigit() else cores)}
    if count > 1 and (devices := _devices()):
        found["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return found


def _done(told: Mapping[str, Any]) -> Done:
    answers = {source: [Answer(**one) for one in lines] for source, lines in told["answers"].items()}
    return Done(answers, told["summary"])
