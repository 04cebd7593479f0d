"""Checkpoints of a run: `checkpoints/step-000100/` with weights, optimizer state and the run's position.

Tensors are safetensors, written by torch's distributed checkpoint in its Hugging Face layout: each rank writes its
part, any number of ranks reads it, and nothing is unpickled. A checkpoint does not hold the base of an adapter and
learning rates (both come from the settings), and no random states: all that is random must follow from the seed and
the position. Ranks on several machines need one file system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.optim import Optimizer

from grpo_fast.errors import BadCheckpoint, RunFailed
from grpo_fast.train.state_folder import REPLACED, begin, on_first_rank, put_in_place, recover, remove, writing_place
from grpo_fast.train.state_tensors import bare, make_state, model_tensors, optimizer_tensors, take_numbers

POSITION, BEST = "position.json", "best"
FORMAT = 1
NAME = re.compile(rf"(?:{re.escape(REPLACED)})?(sft|step)-(\d+)")
FILE_BYTES = 2**31  # of a file, over all ranks; the writer holds a file twice in memory


@dataclass(slots=True)
class Position:
    """Where a run stands: all that going on needs besides tensors."""

    phase: str = "sft"  # sft, grpo, done
    step: int = 0  # finished steps of that phase
    owes: bool = False  # what follows that step, such as a look at the held-out questions, was not finished
    cursor: int = 0  # samples drawn so far in the phase; their order is a function of seed and epoch
    entropy_coef: float | None = None
    last_entropy: float | None = None  # of the adaptive entropy bonus
    accuracy: dict[str, float] = field(default_factory=dict)  # start, sft, grpo, best
    right: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # start, … → all, modality, … → [right, asked]
    skipped: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of metrics.jsonl, timing.jsonl, samples.jsonl here
    seconds: float = 0.0


def save(
    folder: Path,
    policy: nn.Module,
    optimizer: Optimizer,
    position: Position,
    *,
    keep: int,
    best: bool = False,
) -> Path:
    """Called by every rank. Afterwards the newest `keep` checkpoints are there, and the one that `best` links to."""
    target = folder / f"{'sft' if position.phase == 'sft' else 'step'}-{position.step:06d}"
    policy = bare(policy)
    tensors = model_tensors(policy)
    for state in optimizer_tensors(policy, optimizer).values():
        tensors |= state
    with _failing(folder, target):
        on_first_rank(partial(_begin, folder, target))
        _write(tensors, writing_place(target))
        on_first_rank(partial(_finish, folder, target, position, keep, best))
    return target


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def load(path: Path, policy: nn.Module, optimizer: Optimizer | None) -> Position:
    """Called by every rank; their number and wrapper may be others than when it was saved. Without an optimizer: the
    weights alone."""
    position = _read(path)
    policy = bare(policy)
    stored = _stored(path)
    tensors = model_tensors(policy)
    if optimizer is not None:
        make_state(optimizer)
        for parameter, state in optimizer_tensors(policy, optimizer).items():
            if stored.keys().isdisjoint(state):  # saved before its first gradient
                del optimizer.state[parameter]
            else:
                tensors |= state
    _check(
        path, tensors, {name: one for name, one in stored.items() if optimizer is not None or name.startswith("model.")}
    )
    try:
        with _without_ranks_silently():
            load_tensors(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
    except CheckpointException as error:
        raise BadCheckpoint(f"{path} cannot be read: {_reasons(error)}; go on from another checkpoint") from error
    if optimizer is not None:
        take_numbers(policy, optimizer, tensors)
    return position


def _begin(folder: Path, target: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    begin(target)


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    files, filled = {}, 0
    for name, tensor in tensors.items():
        files[name] = 1 + filled // FILE_BYTES
        filled += tensor.numel() * tensor.element_size()
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    with _without_ranks_silently():
        save_tensors(tensors, storage_writer=writer)


def _finish(folder: Path, target: Path, position: Position, keep: int, best: bool) -> None:
    place = writing_place(target)
    written = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
    text = json.dumps({"format": FORMAT, "position": asdict(position), "files": written}, indent=1)
    (place / POSITION).write_text(text, encoding="utf-8")
    put_in_place(target)
    if best:
        link = folder / f".{BEST}"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        os.replace(link, folder / BEST)
    for path in _complete(folder)[:-keep]:
        if path.name != _best(folder):
            remove(path)


def _best(folder: Path) -> str | None:
    link = folder / BEST
    return os.readlink(link) if link.is_symlink() else None


def _complete(folder: Path) -> list[Path]:
    """Oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            found.append((match[1] == "step", int(match[2]), not path.name.startswith(REPLACED), path))
    return [path for *_, path in sorted(found) if _is_complete(path)]


def _is_complete(path: Path) -> bool:
    try:
        _read(path)
    except BadCheckpoint:
        return False
    return True


def _read(path: Path) -> Position:
    try:
        said = json.loads((path / POSITION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} is not a checkpoint of a run: {POSITION} cannot be read: {error}") from error
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise BadCheckpoint(f"{path}: {POSITION} is not of format {FORMAT}: another version of grpo-fast wrote it")
    for name, size in said["files"].items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise BadCheckpoint(f"{file} {state}, {size} were written: go on from another checkpoint")
    known = {one.name for one in fields(Position)}
    return Position(**{name: value for name, value in said["position"].items() if name in known})


def _stored(path: Path) -> dict[str, Any]:
    try:
        return HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BadCheckpoint(f"{path}: its tensors cannot be read: {error}; go on from another checkpoint") from error


def _check(path: Path, wanted: dict[str, Tensor], stored: dict[str, Any]) -> None:
    if differing := sorted(wanted.keys() ^ stored.keys()):
        name = differing[0]
        whose = "the run has no such tensor" if name in stored else "it lacks what the run needs"
        raise BadCheckpoint(
            f"{path} was saved with another model, adapter or optimizer: {name}: {whose} "
            f"({len(differing)} tensors differ); go on with the settings it was saved with"
        )
    for name, tensor in wanted.items():
        there = (tuple(stored[name].size), stored[name].properties.dtype)
        here = (tuple(tensor.shape), tensor.dtype)
        if there != here:
            raise BadCheckpoint(
                f"{path} was saved with another model: {name} is {there[1]} of shape {there[0]} there and {here[1]} of "
                f"shape {here[0]} here; go on with the settings it was saved with"
            )


@contextmanager
def _failing(folder: Path, target: Path) -> Iterator[None]:
    """A full disk and its like, on any rank, end the run with a word; the half-written folder is removed."""
    try:
        yield
    except (OSError, CheckpointException) as error:
        causes = _causes(error)
        for cause in causes:
            if not isinstance(cause, OSError):  # Ctrl-C, out of memory: what they are, not what they came in
                raise cause from error
        on_first_rank(partial(shutil.rmtree, writing_place(target), ignore_errors=True))
        last = latest(folder)
        intact = "there is no earlier one" if last is None else f"the last one is intact: {last}"
        raise RunFailed(
            f"the checkpoint {target} could not be written: {'; '.join(map(str, causes))}. What was written of it is "
            f"removed, {intact}. Make room and start the same command again"
        ) from error


def _causes(error: BaseException) -> list[BaseException]:
    return [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]


def _reasons(error: CheckpointException) -> str:
    return "; ".join(f"{type(cause).__name__}: {cause}" for cause in _causes(error))


@contextmanager
def _without_ranks_silently() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
