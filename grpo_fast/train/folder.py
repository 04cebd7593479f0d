"""The run folder: what a run leaves behind, whole at any moment.

metrics.jsonl and samples.jsonl hold nothing that a clock or the machine had a say in, so that an interrupted run that
was resumed ends with the same bytes as one that was not; the rest goes to timing.jsonl. A line reaches the operating
system in one piece; what follows the last checkpoint is cut by `rewind`. Power loss can cost lines since the last
`sizes()`, which waits for the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from grpo_fast.errors import BadCheckpoint, BadImage, BadSettings, RunFailed
from grpo_fast.train.cases import case, completion_of, completions_of, number, small
from grpo_fast.train.scrub import scrubbed, scrubbed_text
from grpo_fast.train.trackers import Tracker
from grpo_fast.types import Group, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_fast.evaluate.ask import Asked

METRICS, TIMING, SAMPLES = FILES = ("metrics.jsonl", "timing.jsonl", "samples.jsonl")
PICTURES = "samples"
GROUPS_PER_STEP = 4


class RunFolder:
    """Rank 0's alone. Refuses a folder that holds something else, or that a living run writes to."""

    def __init__(self, path: Path, *, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.trackers = Path(path), tuple(trackers)
        with ExitStack() as opened:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                _check_ours(self.path)
                self._files: dict[str, BinaryIO] = {
                    name: opened.enter_context(open(self.path / name, "ab", buffering=0)) for name in FILES
                }
                _lock(opened.enter_context(open(self.path / ".lock", "wb")), self.path)
            except OSError as error:
                raise BadSettings(f"--output {self.path} cannot be written: {error.strerror}") from error
            for tracker in self.trackers:
                tracker.open(self.path)
                opened.callback(tracker.close)
            self._opened = opened.pop_all()

    @classmethod
    def default_path(cls) -> Path:
        wanted = Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
        path, number = wanted, 1
        while path.exists():
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        return path

    def log(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._numbers(METRICS, step, phase, values)

    def timing(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._numbers(TIMING, step, phase, values)

    def samples(
        self,
        step: int,
        phase: str,
        groups: Sequence[Group],
        texts: Sequence[Sequence[str]],
        rewards: Sequence[Mapping[str, Tensor]],  # per group: name → [G]
        advantages: Sequence[Tensor | None] | None,  # [G] each
        correct: Sequence[Sequence[bool] | None] | None,  # [G] each
        *,
        totals: Sequence[Tensor] | None = None,  # [G] each, rewards by weight; None: their plain sum
    ) -> None:
        """The first four groups of a step, one line each, and their pictures."""
        for index, group in enumerate(groups[:GROUPS_PER_STEP]):
            sample = group.prompt.sample
            assert sample is not None
            told = completions_of(
                group,
                texts[index],
                rewards[index],
                None if totals is None else totals[index],
                None if advantages is None else advantages[index],
                None if correct is None else correct[index],
            )
            self._write(SAMPLES, case(step, phase, sample, told, self._pictures(sample)))

    def answers(self, step: int, asked: Sequence[Asked]) -> None:
        """Held-out questions and what was answered."""
        for one in asked:
            self._write(SAMPLES, case(step, "eval", one.sample, [completion_of(one)], self._pictures(one.sample)))

    def sizes(self) -> dict[str, int]:
        """For a checkpoint: what `rewind` goes back to. On disk once this returns."""
        for name, file in self._files.items():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise RunFailed(f"{self.path / name} cannot be written: {error.strerror}") from error
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Cuts off what was written after `sizes()`; a file that is not named starts again."""
        for name, file in self._files.items():
            size, found = sizes.get(name, 0), os.fstat(file.fileno()).st_size
            if size > found or (size and not _ends_a_line(self.path / name, size)):
                raise BadCheckpoint(
                    f"{self.path / name} is not the file that the checkpoint was saved with ({found} bytes, {size} "
                    "expected): start again in a new folder, or with --resume off in this one"
                )
        for name, file in self._files.items():
            file.truncate(sizes.get(name, 0))
        for tracker in self.trackers:
            tracker.rewind(row for name in (METRICS, TIMING) for row in rows(self.path / name))

    def write_settings(self, yaml: str) -> None:
        import yaml as parser

        settings = parser.safe_load(yaml) or {}
        clean = scrubbed(settings)
        text = yaml if clean == settings else parser.safe_dump(clean, sort_keys=False, allow_unicode=True)
        self._replace("settings.yaml", scrubbed_text(text).encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._replace("summary.json", summary_text(summary).encode())

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _numbers(self, name: str, step: int, phase: str, values: Mapping[str, float]) -> None:
        line = {"step": int(step), "phase": phase, **{key: number(value) for key, value in values.items()}}
        self._write(name, line)
        finite = {key: float(value) for key, value in values.items() if line[key] is not None}
        for tracker in self.trackers:
            tracker.log(int(step), phase, finite)

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        """One write call for a line; where it does not fit on the disk, no part of it stays."""
        file = self._files[name]
        data = memoryview(json.dumps(line, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n")
        before = os.fstat(file.fileno()).st_size
        try:
            while data:
                data = data[file.write(data) or 0 :]
        except OSError as error:
            file.truncate(before)
            raise RunFailed(f"{self.path / name} cannot be written: {error.strerror}; what it held is kept") from error

    def _replace(self, name: str, data: bytes, durable: bool = True) -> None:
        """Old or new, never a part; `durable`: not even after power loss."""
        target = self.path / name
        beside = target.with_name(f".{target.name}.new")
        try:
            target.parent.mkdir(exist_ok=True)
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(beside, target)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise RunFailed(f"{target} cannot be written: {error.strerror}") from error

    def _pictures(self, sample: Sample) -> list[str]:
        """Named by the digest of what they show, so that each is there once."""
        found = []
        for load in sample.images:
            try:
                picture = small(load, f"sample {sample.id}")
            except BadImage:  # gone since the model saw it: the line is worth more than the picture
                continue
            shown = repr(picture.size).encode() + picture.tobytes()
            name = f"{PICTURES}/{hashlib.sha256(shown).hexdigest()[:24]}.png"
            if not (self.path / name).is_file():
                data = BytesIO()
                picture.save(data, "PNG")
                self._replace(name, data.getvalue(), durable=False)
            found.append(name)
        return found


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a run's file; half a line at its end, from a run that is writing or was killed, is not one."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def summary_text(summary: Mapping[str, Any]) -> str:
    return json.dumps(_jsonable(scrubbed(summary)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _jsonable(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return scrubbed_text(str(value))


def _check_ours(path: Path) -> None:
    if not any(path.iterdir()):
        return
    metrics = path / METRICS
    try:
        first = next(rows(metrics), {"step": 0, "phase": ""}) if metrics.is_file() else None
    except ValueError:
        first = None
    if not isinstance(first, dict) or not {"step", "phase"} <= first.keys():
        raise BadSettings(f"--output {path} is not empty and holds no run: name a new folder, or a run to go on with")


def _ends_a_line(path: Path, size: int) -> bool:
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _lock(file: BinaryIO, path: Path) -> None:
    """Held until this process ends, however it ends; children do not inherit it. Without fcntl there is none."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BadSettings(f"--output {path}: another process is writing this run; name another folder") from error
    except OSError:  # a file system without locks
        return
