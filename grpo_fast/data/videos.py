"""References to videos: files, folders of frames or lists of pictures, as picklable callables that give the frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.data.images import Loader, found_at, loader, told
from grpo_fast.data.volumes.choice import CLIP_FPS, Choice, split
from grpo_fast.errors import BadData, BadImage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Video:
    path: Path
    where: str
    choice: Choice
    fps: float  # of the frames that are shown

    def __call__(self) -> list[Image]:
        from grpo_fast.data.volumes.opening import frames, stamp

        path = self.found()
        try:
            return frames(path, stamp(path), self.choice)
        except (BadImage, OSError, IndexError) as error:
            raise BadImage(f"{self.where}: video {self.path} {told(error)}") from error

    def found(self) -> Path:
        return found_at(self.path, f"{self.where}: video {self.path}")


@dataclass(frozen=True, slots=True)
class FrameList:
    frames: tuple[Loader, ...]
    fps: float = CLIP_FPS

    def __call__(self) -> list[Image]:
        return [load() for load in self.frames]


Clip = Video | FrameList


def video(reference: Any, folder: Path, where: str) -> Clip:
    """From a path, a file:// URL or a list of pictures, all of which are shown. A file's header is read here."""
    if isinstance(reference, list | tuple):
        if not reference:
            raise BadData(f"{where}: a video without frames")
        return FrameList(tuple(loader(one, folder, where) for one in reference))
    if not isinstance(reference, str):
        raise BadData(f"{where}: a video is of type {type(reference).__name__}; known are a path and a list of frames")
    text, choice = split(reference, where)
    named = loader(text, folder, where)
    if not hasattr(named, "path"):
        raise BadData(f"{where}: a video in a data URI is not read; write it to a file and give its path")
    return _opened(named.path, where, choice or Choice())  # pyright: ignore[reportAttributeAccessIssue]


def _opened(given: Path, where: str, choice: Choice) -> Video:
    from grpo_fast.data.volumes.opening import stamp, video_indices

    try:
        path = found_at(given, f"{where}: video {given}")
    except BadImage as error:
        raise BadData(str(error)) from error
    try:
        return Video(given, where, choice, video_indices(path, stamp(path), choice)[1])
    except (BadImage, OSError) as error:
        raise BadData(f"{where}: video {given} {told(error)}") from error
