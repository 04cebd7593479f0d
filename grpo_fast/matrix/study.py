"""The folder of several trainings that belong together: what it was begun with, and that one process has it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.train.resolved import flat
from grpo_fast.train.settings import Settings

STUDY, LOCK = "study.json", ".lock"
# settings that move where and how fast, not what is found
ANY_VALUE = ("output", "threads", "resume", "keep", "save_every", "tensorboard", "wandb", "name", "samples_every")
PATIENCE = 60.0  # seconds that workers of a killed process have to save and leave


def identity(settings: Settings, **others: Any) -> dict[str, Any]:
    """All that what is found depends on."""
    return others | {name: value for name, value in flat(settings).items() if name not in ANY_VALUE}


@contextmanager
def study(folder: Path, known: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[int | None]:
    """The folder to oneself, begun now or earlier with the same settings.

    Yields a handle for child processes to inherit: the folder is free when the last of them has left too.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "wb") as lock:
            held = _locked(lock.fileno(), folder, say)
            _begin(folder, json.loads(json.dumps(known)))
            yield held
    except OSError as error:
        raise RunFailed(f"{folder} cannot be written: {error}") from error


def write(path: Path, text: str) -> None:
    """Old or new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _begin(folder: Path, known: dict[str, Any]) -> None:
    file = folder / STUDY
    if not file.is_file():
        if others := sorted(one.name for one in folder.iterdir() if one.name != LOCK):
            raise BadSettings(f"--output {folder} holds something else ({others[0]}): name a new folder")
        write(file, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadSettings(f"{file} cannot be read ({error}): name a new --output") from error
    differing = [name for name in {**before, **known} if before.get(name) != known.get(name)]
    if differing:
        named = "; ".join(f"{name} was {before.get(name)!r}, is {known.get(name)!r}" for name in differing[:4])
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise BadSettings(f"--output {folder} was begun with other settings ({named}{more}): name a new folder")


def _locked(handle: int, folder: Path, say: Callable[[str], None]) -> int | None:
    try:
        import fcntl
    except ImportError:  # a system without it: the run folders' own locks are all there is
        return None
    end, said = time.monotonic() + PATIENCE, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.set_inheritable(handle, True)
            return handle
        except BlockingIOError:
            if time.monotonic() > end:
                raise BadSettings(f"--output {folder}: another process is at work there; name another folder") from None
        if not said:
            said = True
            say(f"{folder}: waiting for processes that are still at work there")
        time.sleep(0.2)
