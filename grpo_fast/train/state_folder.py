"""A folder that is there whole or not at all, at whatever moment its writer is killed or the disk is full.

It is written under another name beside its place, brought to the disk, and renamed. An older folder of that name keeps
its own bytes under a third name until the new one stands.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from grpo_fast.errors import GRPOFastError

T = TypeVar("T")
WRITING, REPLACED, REMOVING = ".writing-", ".replaced-", ".removing-"


def writing_place(target: Path) -> Path:
    return target.with_name(WRITING + target.name)


def begin(target: Path) -> None:
    """An empty folder to write into. What a killed writer of that name left is put in order first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target.parent, glob.escape(target.name))
    writing_place(target).mkdir()


def recover(folder: Path, names: str = "*") -> None:
    for left in (*folder.glob(REMOVING + names), *folder.glob(WRITING + names)):
        shutil.rmtree(left)
    for old in folder.glob(REPLACED + names):
        place = old.with_name(old.name.removeprefix(REPLACED))
        if place.exists():
            remove(old)
        else:
            old.rename(place)


def put_in_place(target: Path) -> None:
    new, old = writing_place(target), target.with_name(REPLACED + target.name)
    for path in (*new.rglob("*"), new):
        _to_disk(path)
    if target.exists():
        target.rename(old)
    new.rename(target)
    _to_disk(target.parent)
    if old.exists():
        remove(old)


def remove(folder: Path) -> None:
    """Half removed it has another name, and is not taken for what it was."""
    gone = folder.with_name(REMOVING + folder.name)
    folder.rename(gone)
    shutil.rmtree(gone)


def on_first_rank(act: Callable[[], T]) -> T:
    """What `act` gives on rank 0 is everyone's, and so is an error that it raises for the user to read."""
    if not (dist.is_available() and dist.is_initialized()):
        return act()
    outcome: list[T | OSError | GRPOFastError | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [act()]
        except (OSError, GRPOFastError) as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], OSError | GRPOFastError):
        raise outcome[0]
    return outcome[0]  # pyright: ignore[reportReturnType]


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
