"""answers.jsonl: one line for each question asked, in their order, and nothing else. It can be cut anywhere: what
follows the last whole batch is asked again, so that an interrupted file ends as an uninterrupted one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from grpo_fast.errors import RunFailed

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    place: int  # in the data
    id: str
    question: str
    gold: str
    modality: str = ""
    question_type: str = ""
    answer_type: str = ""  # open or closed, where the data say so
    completion: str = ""
    tokens: int = 0
    finished: bool = False
    strict: bool = False
    lenient: bool = False
    formatted: bool = False
    skipped: str = ""  # why it could not be asked; it is in no table then

    @property
    def words(self) -> int:
        return len(self.completion.split())

    def line(self) -> bytes:
        """Half of a surrogate pair, which UTF-8 cannot hold, becomes the JSON escape that it came from."""
        return json.dumps(asdict(self), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


FIELDS = {one.name for one in fields(Answer)}


class AnswerFile:
    """The answers of one model to one source. `settings` are all that can change an answer."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / ANSWERS
        self.settings = dict(settings)

    def kept(self, batch: int) -> tuple[list[Answer], str]:
        """The answers that still hold, and a word on why others do not ("" where there is nothing to say)."""
        if not self.path.is_file():
            return [], ""
        changed = self._changed()
        if changed:
            return [], f"{self.folder}: {changed}: starting anew"
        answers = _whole_lines(self.path)
        total = self.settings["questions"]
        if len(answers) < total:
            answers = answers[: len(answers) // batch * batch]
        return answers[:total], ""

    def begin(self, answers: Sequence[Answer]) -> None:
        """The file holds exactly these from now on. It comes before its settings: cut off between the two, old
        settings stand beside no answers, never new ones beside old answers."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.path, b"".join(answer.line() for answer in answers))
            _replace(self.folder / SETTINGS, json.dumps(self.settings, indent=1).encode() + b"\n")
        except OSError as error:
            raise RunFailed(f"{self.folder} cannot be written: {error}") from error

    def append(self, answers: Sequence[Answer]) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(answer.line() for answer in answers))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFailed(f"{self.path} cannot be written: {error}; what it holds is kept") from error

    def _changed(self) -> str:
        try:
            before = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{SETTINGS} cannot be read"
        now = json.loads(json.dumps(self.settings))  # tuples as lists
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return "; ".join(_difference(name, before.get(name), now.get(name)) for name in differing)


def _difference(name: str, before: Any, now: Any) -> str:
    short = all(isinstance(one, str | int | float | None) and len(str(one)) < 80 for one in (before, now))
    return f"{name} was {before!r}, is {now!r}" if short else f"{name} has changed"


def _whole_lines(path: Path) -> list[Answer]:
    """Up to the first that is cut or is no answer."""
    found: list[Answer] = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            made = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(made, dict) or made.keys() != FIELDS:
            break
        found.append(Answer(**made))
    return found


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
