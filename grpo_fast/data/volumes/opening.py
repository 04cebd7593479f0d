"""From a path or bytes to a volume or clip, recognised by content; what was shown last is kept decoded."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.data.volumes import nifti
from grpo_fast.data.volumes.choice import Choice
from grpo_fast.data.volumes.clips import Animation, FrameFolder, VideoFile, is_video
from grpo_fast.data.volumes.dicom import DicomFile
from grpo_fast.data.volumes.nifti import GZIP, HEADER, NiftiFile
from grpo_fast.data.volumes.series import Series
from grpo_fast.data.volumes.stack import Stack, as_images, as_video
from grpo_fast.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

PLAIN = Choice()
Stamp = tuple[int, int]  # of a file: when it was written, and its size


def stack_of(source: Path | bytes, choice: Choice) -> Stack | None:
    """None: a still picture, PIL's affair; but with a number of frames asked for, that is a clip of one."""
    if isinstance(source, Path) and source.is_dir():
        return _folder(source, choice)
    start = _start(source)
    if start[128:132] == b"DICM":
        return DicomFile(source, choice)
    if nifti.version(start):
        return NiftiFile(source, choice)
    clip = None
    if isinstance(source, Path):
        if is_video(start):
            clip = VideoFile(source)
        elif choice.text:
            clip = Animation(source)
    if clip is not None:
        _no_volume(choice)
    return clip


def is_picture(path: Path) -> bool:
    """Whether it is a still picture's file, or one that nothing here knows."""
    if path.is_dir():
        return False
    start = _start(path)
    return start[128:132] != b"DICM" and not nifti.version(start) and not is_video(start)


def _no_volume(choice: Choice) -> None:
    if choice.window is not None or choice.axis is not None or choice.time is not None:
        raise BadImage(f"is no volume: #{choice.text}: window, axis and time are for DICOM and NIfTI")


def _folder(folder: Path, choice: Choice) -> Stack:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        slices = [path for path in files if _start(path)[128:132] == b"DICM"]
    except OSError as error:
        raise BadImage(f"is a folder that cannot be read: {error.strerror or error}") from error
    if len(slices) == 1:
        return DicomFile(slices[0], choice)
    if slices:
        return Series(slices, choice)
    frames = [path for path in files if path.suffix.lower() in _picture_suffixes()]
    if frames:
        _no_volume(choice)
        return FrameFolder(frames)
    raise BadImage("is a folder without a DICOM slice or a picture in it")


@lru_cache(maxsize=1)
def _picture_suffixes() -> frozenset[str]:
    from PIL import Image

    return frozenset(Image.registered_extensions())


def _start(source: Path | bytes) -> bytes:
    """Unpacked, where that is needed to tell."""
    if isinstance(source, bytes):
        start = source[: 4 * HEADER]
    else:
        with open(source, "rb") as file:
            start = file.read(4 * HEADER)
    if not start.startswith(GZIP):
        return start
    try:
        return zlib.decompressobj(wbits=31).decompress(start, HEADER)
    except zlib.error:
        return start


def stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4096)
def image_indices(path: Path, written: Stamp, choice: Choice) -> tuple[int, ...]:
    """Which pictures the choice takes; only headers are read."""
    stack = stack_of(path, choice)
    return (0,) if stack is None else as_images(stack, choice)


@lru_cache(maxsize=4096)
def video_indices(path: Path, written: Stamp, choice: Choice) -> tuple[tuple[int, ...], float]:
    return as_video(_clip(path, choice), choice)


# The slices of a question are asked for one after another: the second of them finds the volume open.
@lru_cache(maxsize=2)
def pictures(path: Path, written: Stamp, choice: Choice) -> Sequence[Image]:
    stack = stack_of(path, choice)
    assert stack is not None
    return stack.pictures(image_indices(path, written, choice))


def frames(path: Path, written: Stamp, choice: Choice) -> list[Image]:
    return _clip(path, choice).pictures(video_indices(path, written, choice)[0])


def _clip(path: Path, choice: Choice) -> Stack:
    return stack_of(path, choice) or Animation(path)


def single(source: Path | bytes) -> Image | None:
    """The middle slice or frame; None where PIL is to open it."""
    stack = stack_of(source, PLAIN)
    return None if stack is None else stack.pictures(as_images(stack, PLAIN))[0]
