"""Processes for slow rewards: what takes too long is killed with its process, and a fresh one takes its place.

Processes are spawned, since forking one that holds CUDA or threads is not safe. Each builds the rewards from their
names and runs one job at a time; the clock of a job starts when its process takes it, not while the process starts.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler

from grpo_fast import errors
from grpo_fast.errors import BadReward, GRPOFastError, RunFailed
from grpo_fast.rewards.base import Ask, Reward, score

Build = Callable[[], Sequence[Reward]]  # a picklable one


@dataclass(slots=True, eq=False)
class Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    job: int | None = None
    deadline: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    reward: int  # place among the rewards
    name: str
    ask: Ask


class RewardPool:
    def __init__(self, build: Build, workers: int, timeout: float) -> None:
        self._build, self._size, self._timeout = build, workers, timeout
        self._workers: list[Worker] = []

    def run(self, jobs: Sequence[Job]) -> list[list[float] | None]:
        """The rewards of each job in the order given; None for one that took longer than the timeout."""
        done: list[list[float] | None] = [None] * len(jobs)
        waiting = deque(range(len(jobs)))
        while len(self._workers) < min(self._size, len(jobs)):
            self._workers.append(self._spawned())
        try:
            while waiting or any(w.job is not None for w in self._workers):
                for worker in self._workers:
                    if worker.ready and worker.job is None and waiting:
                        self._send(worker, waiting.popleft(), jobs)
                for pipe in wait([w.pipe for w in self._workers], self._patience()):
                    self._receive(next(w for w in self._workers if w.pipe is pipe), jobs, done)
                for late in [w for w in self._workers if w.job is not None and time.monotonic() >= w.deadline]:
                    self._kill(late)
                    if waiting or len(self._workers) == 0:
                        self._workers.append(self._spawned())
        finally:
            for worker in [w for w in self._workers if w.job is not None]:  # its answer would meet the next call
                self._kill(worker)
        return done

    def close(self) -> None:
        for worker in list(self._workers):
            self._kill(worker)

    def _spawned(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        pipe, far_end = context.Pipe()
        process = context.Process(target=_work, args=(far_end, self._build), name="grpo-fast reward", daemon=True)
        process.start()
        far_end.close()
        return Worker(process, pipe)

    def _send(self, worker: Worker, index: int, jobs: Sequence[Job]) -> None:
        job = jobs[index]
        try:
            message = ForkingPickler.dumps((job.reward, job.ask))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise BadReward(
                f"reward {job.name}: sample {job.ask.sample.id} cannot be handed to another process ({error}); "
                "set reward_workers to 0"
            ) from error
        worker.job, worker.deadline = index, time.monotonic() + self._timeout
        try:
            worker.pipe.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died(worker, jobs) from error

    def _receive(self, worker: Worker, jobs: Sequence[Job], done: list[list[float] | None]) -> None:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died(worker, jobs) from error
        if kind == "ready":
            worker.ready = True
        elif kind == "rewards" and worker.job is not None:
            done[worker.job], worker.job = content, None
        else:
            worker.job = None
            name, message = content
            raise getattr(errors, name)(message)

    def _died(self, worker: Worker, jobs: Sequence[Job]) -> GRPOFastError:
        worker.process.join(1.0)
        code = worker.process.exitcode
        index = worker.job
        self._kill(worker)
        if index is None:
            return RunFailed(f"a reward process ended before it was ready (exit code {code})")
        return RunFailed(
            f"reward {jobs[index].name} ended its process (exit code {code}) with sample {jobs[index].ask.sample.id}"
        )

    def _kill(self, worker: Worker) -> None:
        self._workers.remove(worker)
        if hasattr(os, "killpg") and worker.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # it leads no group before it works
                os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        worker.process.close()

    def _patience(self) -> float | None:
        deadlines = [w.deadline for w in self._workers if w.job is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _work(pipe: Connection, build: Build) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    # A reward may start processes of its own, as it could in a program of its own, and they end with this one.
    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method(None, force=True)  # pyright: ignore[reportArgumentType]  # spawn was inherited
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    import torch

    torch.set_num_threads(1)
    try:
        rewards = build()
    except GRPOFastError as error:
        pipe.send(("error", (type(error).__name__, str(error))))
        return
    pipe.send(("ready", None))
    while True:
        try:
            index, ask = pipe.recv()
        except EOFError:  # the parent is gone
            return
        try:
            pipe.send(("rewards", score(rewards[index], ask)))
        except GRPOFastError as error:
            pipe.send(("error", (type(error).__name__, str(error))))
