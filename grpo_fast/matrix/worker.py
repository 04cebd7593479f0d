"""One of the processes that train and ask: jobs come on stdin, what happens goes to stdout, a JSON line each.

When stdin closes while a job is under way, whoever sent it is gone: the training is saved, and the process leaves.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from grpo_fast.errors import GRPOFastError
from grpo_fast.evaluate.run import AskSettings, evaluate_model
from grpo_fast.evaluate.sources import Source
from grpo_fast.matrix.jobs import Job, sources
from grpo_fast.train import flags
from grpo_fast.train.fields import build
from grpo_fast.train.interrupts import Interrupted
from grpo_fast.train.program import train
from grpo_fast.train.settings_file import from_yaml
from grpo_fast.train.view import Lines

Tell = Callable[..., None]
_busy = threading.Event()


def main() -> int:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as told:
        os.dup2(2, 1)  # what a library prints is no event
        jobs: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
        tell = _teller(told)
        while (line := jobs.get()) is not None:
            if not _done(Job(**json.loads(line)), tell):
                return 1
    return 0


def _listen(jobs: queue.Queue[str | None]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    jobs.put(None)
    if _busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _done(job: Job, tell: Tell) -> bool:
    """False where it was interrupted."""
    _busy.set()
    try:
        summary = _trained(job, tell)
        answers = _asked(job, tell)
    except Interrupted:
        return False
    except GRPOFastError as error:
        tell("failed", job=job.name, kind=type(error).__name__, message=str(error))
    else:
        tell("done", job=job.name, summary=summary, answers=answers)
    finally:
        _busy.clear()
    return True


def _trained(job: Job, tell: Tell) -> dict[str, Any]:
    if not job.training:
        return {}
    settings = build(from_yaml(job.training, f"the training of {job.name}"))
    folder = Path(settings.run.output)
    summary = folder / "summary.json"  # it is written last
    if summary.is_file():
        return json.loads(summary.read_text(encoding="utf-8"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.log"), "a", encoding="utf-8") as log, _Watched(log, job, tell) as view:
        view.start(flags.describe(settings, command=job.command))
        view.done(train(settings, view, command=job.command))
    return json.loads(summary.read_text(encoding="utf-8"))


class _Watched(Lines):
    """Lines for the log; where it stands for whoever waits."""

    def __init__(self, log: TextIO, job: Job, tell: Tell) -> None:
        super().__init__(log)
        self._job, self._tell = job.name, tell

    def phase(self, name: str, total_steps: int, start: int = 0) -> None:
        super().phase(name, total_steps, start)
        self._at(start)

    def step(self, step: int, values: Mapping[str, float], timing: Mapping[str, float]) -> None:
        super().step(step, values, timing)
        self._at(step)

    def _at(self, step: int) -> None:
        self._tell("at", job=self._job, doing=self.progress.title, done=step, total=self.progress.total)


def _asked(job: Job, tell: Tell) -> dict[str, list[dict[str, Any]]]:
    asked = _sources(job.questions, tuple(job.benchmarks), job.samples)
    total = sum(map(len, asked))
    done: dict[str, int] = {}

    def progress(source: str, answered: int, found: int) -> None:
        done[source] = answered
        tell("at", job=job.name, doing="asking", done=sum(done.values()), total=total)

    result = evaluate_model(
        job.model, asked, AskSettings(**job.ask), Path(job.answers), name=job.name, progress=progress,
        say=lambda word: tell("note", job=job.name, text=word),
    )  # fmt: skip
    return {source: [asdict(answer) for answer in answers] for source, answers in result.answers.items()}


@lru_cache(maxsize=1)
def _sources(questions: str, benchmarks: tuple[str, ...], samples: int) -> list[Source]:
    """Opened once for all models that are asked the same."""
    return sources(Job(name="", model="", questions=questions, benchmarks=list(benchmarks), samples=samples))


def _teller(out: TextIO) -> Tell:
    def tell(event: str, **values: Any) -> None:
        out.write(json.dumps({"event": event, **values}) + "\n")
        out.flush()

    return tell


if __name__ == "__main__":
    sys.exit(main())
