"""One record's columns with its place: what every format needs to check and to build a `Sample`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_fast.data.images import ImageFile, Loader, loader
from grpo_fast.data.names import labels
from grpo_fast.errors import BadData
from grpo_fast.types import Sample

IMAGE_TAG = "<image>"
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
IMAGE_COLUMNS = ("image", "images")
Turn = tuple[str, str]  # role, text with <image> tags


@dataclass(frozen=True, slots=True)
class Record:
    columns: Mapping[str, Any]
    place: str  # "file:line"
    folder: Path  # where relative image paths start
    file: str

    def bad(self, reason: str) -> BadData:
        return BadData(f"{self.place}: {reason}")

    def text(self, column: str) -> str:
        return self.checked(self.columns.get(column), column)

    def checked(self, value: Any, what: str) -> str:
        if value is None:
            raise self.bad(f"{what} is missing")
        if not isinstance(value, str):
            raise self.bad(f"{what} is of type {type(value).__name__}, not text")
        if not value.strip():
            raise self.bad(f"{what} is empty")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.bad(f"{what} holds half of a surrogate pair, which is no character") from error
        return value

    def gold(self, value: Any, what: str) -> str:
        """The answer as text: what stands between answer tags, else all of it. Numbers and boxes are answers too."""
        if isinstance(value, list) and value:
            numbers = [self._number(item, f"{what}[{index}]") for index, item in enumerate(value)]
            return json.dumps(numbers)
        if isinstance(value, int | float):
            return str(self._number(value, what))
        text = self.checked(value, what)
        found = ANSWER.search(text)
        if found is None and ("<answer>" in text or "</answer>" in text):
            raise self.bad(f"{what} has an answer tag without its other half")
        answer = (found[1] if found else text).strip()
        if not answer:
            raise self.bad(f"{what} has an empty answer tag")
        if answer.lower() == "nan":
            raise self.bad(f"{what} is NaN")
        return answer

    def _number(self, value: Any, what: str) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(f"{what} is of type {type(value).__name__}; an answer is text or a number")
        if not math.isfinite(value):
            raise self.bad(f"{what} is {'NaN' if math.isnan(value) else 'infinite'}")
        return value

    def image_references(self) -> list[Any]:
        """What `image` or `images` holds, as a list; absent, null and [] mean no image."""
        for column in ("video", "videos"):
            if self.columns.get(column):
                raise self.bad(f"{column}: videos are not read; give frames as images")
        given = {name: self.columns[name] for name in IMAGE_COLUMNS if self.columns.get(name) is not None}
        if len(given) > 1:
            raise self.bad("both image and images are given; keep one of them")
        for value in given.values():
            return list(value) if isinstance(value, list | tuple) else [value]
        return []

    def sample(
        self,
        turns: Sequence[Turn],
        references: Sequence[Any],
        answer: str,
        *,
        response: str | None = None,
        reward_method: str | None = None,
    ) -> Sample:
        """Turns are given as text; every <image> in a user turn becomes an image part where it stands."""
        last_role, question = turns[-1]
        if last_role != "user" or not question.replace(IMAGE_TAG, "").strip():
            raise self.bad("the question is empty")
        images = tuple(loader(reference, self.folder, self.place) for reference in references)
        tags = sum(text.count(IMAGE_TAG) for role, text in turns if role == "user")
        if tags not in (0, len(images)):
            raise self.bad(f"the text has {tags} <image> tag(s), but the record has {len(images)} image(s)")
        leading = 0 if tags else len(images)  # without tags, images come first
        messages: list[dict[str, Any]] = []
        for role, text in turns:
            if role != "user":
                messages.append({"role": role, "content": text})
                continue
            messages.append({"role": role, "content": [{"type": "image"}] * leading + _parts(text)})
            leading = 0
        given = self.columns.get("id")
        return Sample(
            id=str(given) if isinstance(given, int | str) and given != "" else self.place,
            messages=messages,
            images=images,
            answer=answer,
            meta=self._meta(images, response, reward_method),
        )

    def _meta(self, images: Iterable[Loader], response: str | None, reward_method: str | None) -> dict[str, Any]:
        paths = [str(image.path) for image in images if isinstance(image, ImageFile)]
        meta: dict[str, Any] = labels(self.columns, paths, self.file)
        meta["source"] = self.place
        if response is not None:
            meta["response"] = response
        if reward_method is not None:
            meta["reward_method"] = reward_method
        meta["columns"] = {name: value for name, value in self.columns.items() if name not in IMAGE_COLUMNS}
        meta["image_paths"] = paths
        return meta


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    columns: str  # those that matter, for messages
    recognise: Callable[[Mapping[str, Any]], bool]
    sample: Callable[[Record], Sample]


def _parts(text: str) -> list[dict[str, Any]]:
    """Text and images in their order; blanks at either end, or alone between two images, say nothing."""
    pieces = text.split(IMAGE_TAG)
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if not any("text" in part for part in parts):
            piece = piece.lstrip()
        if not any(rest.strip() for rest in pieces[number + 1 :]):
            piece = piece.rstrip()
        if piece.strip():
            parts.append({"type": "text", "text": piece})
    return parts
