"""The two files, in GMAI-Reasoning10K's layout, which is VLM-R1's: what is asked, and an answer to learn from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from grpo_fast.data.record import IMAGE_TAG
from grpo_fast.errors import RunFailed
from grpo_fast.rewards.accuracy import gold_of
from grpo_fast.types import Sample

SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
LABELS = ("modality", "question_type")


class Writer:
    """`…_rl.jsonl` has direct answers, `…_sft.jsonl` chains. Both appear when they are whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self.paths = [folder / f"{name}_{kind}.jsonl" for kind in ("rl", "sft")]
        self.lines = [0, 0]
        self._open = ExitStack()

    def __enter__(self) -> Writer:
        try:
            self._files: list[IO[str]] = [
                self._open.enter_context(_part(path).open("w", encoding="utf-8", errors="backslashreplace"))
                for path in self.paths
            ]
        except OSError as error:
            self._open.close()
            raise RunFailed(f"{self.paths[0].parent} cannot be written: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                for file in self._files:
                    file.flush()
                    os.fsync(file.fileno())
            self._open.close()
            for path in self.paths:
                if kind is None:
                    os.replace(_part(path), path)
                else:
                    _part(path).unlink(missing_ok=True)
        except OSError as wrong:
            raise RunFailed(f"{self.paths[0].parent} cannot be written: {wrong}") from wrong

    def answer(self, sample: Sample, images: Sequence[str]) -> None:
        self._write(0, line(sample, images, gold_of(sample), _id(sample)))

    def chain(self, sample: Sample, images: Sequence[str], text: str, number: int) -> None:
        """`number`: of the chain among those sampled; ids stay distinct."""
        id = _id(sample)
        self._write(1, line(sample, images, text.strip(), id and f"{id}#{number}"))

    def _write(self, which: int, told: Mapping[str, Any]) -> None:
        try:
            self._files[which].write(json.dumps(told, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunFailed(f"{self.paths[which]} cannot be written: {error}") from error
        self.lines[which] += 1


def line(sample: Sample, images: Sequence[str], answer: str, id: str = "") -> dict[str, Any]:
    """`image` and `conversations`, then what else is known of the question."""
    turns = [{"from": SPEAKERS[turn["role"]], "value": _tagged(turn["content"])} for turn in sample.messages]
    told: dict[str, Any] = {"image": images[0] if len(images) == 1 else list(images)} if images else {}
    told["conversations"] = [*turns, {"from": "gpt", "value": answer}]
    told |= {"id": id} if id else {}
    told |= {name: sample.meta[name] for name in LABELS if sample.meta.get(name)}
    method = sample.meta.get("reward_method")
    return told | ({"accu_reward_method": method} if method else {})


def _tagged(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Images in their places; those before the text on lines of their own."""
    if isinstance(content, str):
        return content
    pieces = [IMAGE_TAG if part["type"] == "image" else part["text"] for part in content]
    leading = next((n for n, part in enumerate(content) if part["type"] != "image"), len(content))
    return "".join(f"{piece}\n" for piece in pieces[:leading]) + "".join(pieces[leading:])


def _id(sample: Sample) -> str:
    return "" if sample.id == sample.meta.get("source") else sample.id


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
