"""chains.jsonl: what was sampled, a line a question, in the order they were answered. Nothing is judged in it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.rewards.accuracy import gold_of, question_of
from grpo_fast.types import Sample

CHAINS, SETTINGS, LOCK = "chains.jsonl", "settings.json", ".lock"


@dataclass(frozen=True, slots=True)
class Chain:
    text: str
    finished: bool  # False: cut at the limit


@dataclass(frozen=True, slots=True)
class Outcome:
    """A question's chains, or why it could not be asked."""

    place: int  # in the data
    chains: tuple[Chain, ...] = ()
    skipped: str = ""


class ChainFile:
    """Open in one process at a time. `settings`: all that a chain depends on."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder, self.path = folder, folder / CHAINS
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # tuples as lists
        self.fresh = fresh
        self._open = ExitStack()
        self._starts: dict[int, int] = {}  # place → byte

    def __enter__(self) -> ChainFile:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock(self._open.enter_context(open(self.folder / LOCK, "wb")), self.folder)
            if self.fresh or not self.path.exists() or not self.path.stat().st_size:
                replace(self.path, b"")  # before the settings: new ones never stand beside old chains
                replace(self.folder / SETTINGS, json.dumps(self.settings, indent=1).encode() + b"\n")
            else:
                self._check_settings()
            self._file = self._open.enter_context(self.path.open("r+b"))
            self._index()
        except OSError as error:
            self._open.close()
            raise RunFailed(f"{self.folder} cannot be written: {error}") from error
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, place: int) -> bool:
        return place in self._starts

    def chains(self, place: int, sample: Sample) -> list[Chain]:
        """Those of a question that is still the one that was asked."""
        self._file.seek(self._starts[place])
        line = json.loads(self._file.readline())
        asked = (line["id"], line["question"], line["gold"])
        if asked != _told(sample):
            raise BadSettings(
                f"{self.path}: question {place + 1} of the data was {line['id']!r}, is {sample.id!r} or asks something "
                "else: the data have changed; give another --output, or --fresh to start anew"
            )
        return [Chain(**chain) for chain in line["chains"]]

    def append(self, answered: Sequence[tuple[Sample, Outcome]]) -> None:
        """Safe on disk when it returns."""
        try:
            at = self._file.seek(0, os.SEEK_END)
            for sample, outcome in answered:
                raw = _line(sample, outcome)
                self._file.write(raw)
                self._starts[outcome.place] = at
                at += len(raw)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunFailed(f"{self.path} cannot be written: {error}") from error

    def _check_settings(self) -> None:
        try:
            before = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise BadSettings(
                f"{self.folder / SETTINGS} cannot be read, so nothing says how {CHAINS} was made; give another "
                "--output, or --fresh to start anew"
            ) from None
        names = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if names:
            changes = "; ".join(_change(name, before.get(name), self.settings.get(name)) for name in names)
            raise BadSettings(
                f"{self.folder} holds chains that were made otherwise ({changes}): give another --output, or --fresh "
                "to start anew"
            )

    def _index(self) -> None:
        """Of two lines of a question the last counts. What a crash left half written is cut off; a line that is no
        JSON leaves its question unasked."""
        at = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(at)
                return
            place = _place(line)
            if place is not None:
                self._starts[place] = at
            at += len(line)


def _place(line: bytes) -> int | None:
    try:
        made = json.loads(line)
        [Chain(**chain) for chain in made["chains"]]
        place = made["place"]
    except (ValueError, KeyError, TypeError):
        return None
    return place if isinstance(place, int) else None


def _told(sample: Sample) -> tuple[str, str, str]:
    return _plain(sample.id), _plain(question_of(sample)), _plain(gold_of(sample))


def _plain(text: str) -> str:
    """As it comes back from a file of UTF-8, which holds no half of a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _line(sample: Sample, outcome: Outcome) -> bytes:
    id, question, gold = _told(sample)
    chains = [asdict(chain) | {"text": _plain(chain.text)} for chain in outcome.chains]
    told = {"place": outcome.place, "id": id, "question": question, "gold": gold, "chains": chains}
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"


def _change(name: str, before: Any, now: Any) -> str:
    short = all(isinstance(one, str | int | float | None) and len(str(one)) < 80 for one in (before, now))
    return f"{name} was {before!r}, is {now!r}" if short else f"{name} has changed"


def replace(path: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def lock(file: BinaryIO, folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadSettings(f"another run is writing to {folder}: wait for it, or give another --output") from error
    except OSError:  # a file system without locks
        return
