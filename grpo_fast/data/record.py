"""One record's columns with its place: what every format needs to check and to build a `Sample`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from grpo_fast.data.context import CONTEXT_COLUMNS, worded
from grpo_fast.data.images import ImageFile, Loader, Slice, loaders
from grpo_fast.data.names import labels
from grpo_fast.data.videos import Clip, Video, video
from grpo_fast.errors import BadData
from grpo_fast.types import Sample

IMAGE_TAG = "<image>"
VIDEO_TAG = "<video>"
TAGS = re.compile(f"({IMAGE_TAG}|{VIDEO_TAG})")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
IMAGE_COLUMNS = ("image", "images")
VIDEO_COLUMNS = ("video", "videos")
OPTION_COLUMNS = ("options", "choices")
Turn = tuple[str, str]  # role, text with <image> and <video> tags
Part = dict[str, Any]


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
        return self._references(IMAGE_COLUMNS)

    def video_references(self) -> list[Any]:
        """What `video` or `videos` holds. `videos` is a list of videos, each of which may be a list of frames."""
        return self._references(VIDEO_COLUMNS)

    def _references(self, columns: tuple[str, str]) -> list[Any]:
        given = {name: self.columns[name] for name in columns if self.columns.get(name) is not None}
        if len(given) > 1:
            raise self.bad(f"both {' and '.join(columns)} are given; keep one of them")
        for value in given.values():
            return list(value) if isinstance(value, list | tuple) else [value]
        return []

    def sample(
        self,
        turns: Sequence[Turn],
        references: Sequence[Any],
        answer: str,
        *,
        videos: Sequence[Any] = (),
        response: str | None = None,
        reward_method: str | None = None,
    ) -> Sample:
        """Turns are given as text; every tag in a user turn becomes parts where it stands: one for a video or a
        picture, as many as are chosen of a volume."""
        last_role, question = turns[-1]
        if last_role != "user" or not TAGS.sub("", question).strip():
            raise self.bad("the question is empty")
        turns = [*turns[:-1], (last_role, question + self._options(question, answer))]
        groups = [loaders(reference, self.folder, self.place) for reference in references]
        images = tuple(image for group in groups for image in group)
        clips = tuple(video(reference, self.folder, self.place) for reference in videos)
        shown: dict[str, list[list[Part]]] = {
            IMAGE_TAG: [[{"type": "image"} for _ in group] for group in groups],
            VIDEO_TAG: [[{"type": "video", "fps": clip.fps}] for clip in clips],
        }
        leading: list[Part] = []  # without tags, images and videos come first
        for tag, parts in shown.items():
            tags = sum(text.count(tag) for role, text in turns if role == "user")
            if tags not in (0, len(parts)):
                kind = tag.strip("<>")
                raise self.bad(f"the text has {tags} {tag} tag(s), but the record has {len(parts)} {kind}(s)")
            if not tags:
                leading += [part for group in parts for part in group]
        pending = {tag: iter(parts) for tag, parts in shown.items()}
        messages: list[dict[str, Any]] = []
        for role, text in turns:
            if role != "user":
                messages.append({"role": role, "content": text})
                continue
            messages.append({"role": role, "content": leading + _parts(text, pending)})
            leading = []
        context = self._context()
        if context:
            parts = messages[-1]["content"]
            first = next(number for number, part in enumerate(parts) if part["type"] == "text")
            parts.insert(first, {"type": "text", "text": context})
        given = self.columns.get("id")
        return Sample(
            id=str(given) if isinstance(given, int | str) and given != "" else self.place,
            messages=messages,
            images=images,
            videos=clips,
            answer=answer,
            meta=self._meta(images, clips, context, response, reward_method),
        )

    def _options(self, question: str, answer: str) -> str:
        """Options in a column of their own, where the answer is the letter of one and the question lacks them."""
        given = next((found for name in OPTION_COLUMNS if (found := self.columns.get(name)) is not None), None)
        if isinstance(given, list):
            given = dict(zip(ascii_uppercase, given, strict=False))
        if not isinstance(given, Mapping):
            return ""
        options = {str(letter).upper(): text for letter, text in given.items() if text is not None}
        known = answer.strip("()[]. ").upper() in options and all(isinstance(text, str) for text in options.values())
        if not known or all(text in question for text in options.values()):
            return ""
        lettered = all(text[:1] == letter and text[1:2] in (".", ")", ":") for letter, text in options.items())
        return "".join(f"\n{text}" if lettered else f"\n{letter}) {text}" for letter, text in options.items())

    def _context(self) -> str:
        given = {name: self.columns[name] for name in CONTEXT_COLUMNS if self.columns.get(name) not in (None, "", [])}
        return worded({name: self.checked(value, name) for name, value in given.items()})

    def _meta(
        self,
        images: Iterable[Loader],
        clips: Iterable[Clip],
        context: str,
        response: str | None,
        reward_method: str | None,
    ) -> dict[str, Any]:
        paths = [str(image.path) for image in images if isinstance(image, ImageFile | Slice)]
        clip_paths = [str(clip.path) for clip in clips if isinstance(clip, Video)]
        meta: dict[str, Any] = labels(self.columns, paths or clip_paths, self.file)
        meta["source"] = self.place
        if response is not None:
            meta["response"] = response
        if reward_method is not None:
            meta["reward_method"] = reward_method
        if context:
            meta["context"] = context
        left_out = (*IMAGE_COLUMNS, *VIDEO_COLUMNS)
        meta["columns"] = {name: value for name, value in self.columns.items() if name not in left_out}
        meta["image_paths"] = paths
        return meta


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    columns: str  # those that matter, for messages
    recognise: Callable[[Mapping[str, Any]], bool]
    sample: Callable[[Record], Sample]


def _parts(text: str, shown: Mapping[str, Iterator[list[Part]]]) -> list[Part]:
    """Text and pictures in their order; blanks at either end, or alone between two pictures, say nothing."""
    pieces = TAGS.split(text)  # text, tag, text, …, text
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            parts += next(shown[piece])
            continue
        if not any("text" in part for part in parts):
            piece = piece.lstrip()
        if not any(rest.strip() for rest in pieces[number + 2 :: 2]):
            piece = piece.rstrip()
        if piece.strip():
            parts.append({"type": "text", "text": piece})
    return parts
