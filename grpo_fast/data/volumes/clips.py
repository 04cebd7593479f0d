"""Pictures in time: a folder of frames, an animated picture, a video file. Frames come as RGB."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.data.decode import decode, unreadable
from grpo_fast.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "pip install av (or opencv-python-headless)"
UNITS = ("frames",)


def is_video(start: bytes) -> bool:
    """MP4 and MOV, Matroska and WebM, AVI, MPEG, FLV, WMV, by a file's first bytes."""
    brands = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # pictures in the same container
    if start[4:8] == b"ftyp":
        return start[8:12] not in brands
    if start[:4] == b"RIFF":
        return start[8:12] == b"AVI "
    return start.startswith(
        (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV\x01", b"\x30\x26\xb2")
    )


class FrameFolder:
    """In the order of their names, numbers in them counted as numbers: 2.png before 10.png."""

    units: tuple[str, ...] = UNITS
    seconds: float | None = None

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = sorted(files, key=lambda path: [_natural(part) for part in re.split(r"(\d+)", path.name)])
        self.count = len(files)

    def pictures(self, indices: Sequence[int]) -> list[Image]:
        found = []
        for index in indices:
            path = self.files[index]
            try:
                found.append(decode(path))
            except BadImage as error:
                raise BadImage(f"is a folder of frames whose {path.name} {error}") from error
        return found


def _natural(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() else (-1, part)


class Animation:
    """GIF, WebP, APNG and whatever else PIL reads several frames of; a still picture is one frame."""

    units: tuple[str, ...] = UNITS

    def __init__(self, path: Path) -> None:
        self.path = path
        image: Any = decode(path)
        try:
            self.count = int(getattr(image, "n_frames", 1))
        except unreadable() as error:
            raise BadImage(f"is an animation whose frames cannot be counted: {error}") from error
        shown = sum(image.info.get("duration", 0) for _ in self._frames(image)) / 1000 if self.count > 1 else 0
        self.seconds: float | None = shown or None

    def pictures(self, indices: Sequence[int]) -> list[Image]:
        wanted, found = set(indices), {}
        for index, frame in enumerate(self._frames(decode(self.path))):
            if index in wanted:
                found[index] = frame.convert("RGBA" if frame.has_transparency_data else "RGB")
        return [found[index] for index in indices]

    def _frames(self, image: Any) -> Iterator[Any]:
        try:
            for index in range(self.count):
                image.seek(index)
                image.load()
                yield image
        except unreadable() as error:
            raise BadImage(f"is an animation whose frame {index} cannot be read: {error}") from error


class VideoFile:
    """Through PyAV where it is installed, else through OpenCV."""

    units: tuple[str, ...] = UNITS

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = _reader()
        self.count, self.seconds = self.reader.measured(path)
        if self.count < 1:
            raise BadImage("is a video without frames")

    def pictures(self, indices: Sequence[int]) -> list[Image]:
        from PIL import Image

        wanted, found = set(indices), {}
        for index, frame in enumerate(self.reader.frames(self.path)):
            if index in wanted:
                found[index] = Image.fromarray(frame())
            if len(found) == len(wanted):
                return [found[index] for index in indices]
        raise BadImage(f"is a video that ends before frame {max(wanted)} of the {self.count} it is said to have")


def _reader() -> Any:
    from importlib.util import find_spec

    if find_spec("av") is not None:
        return PyAV
    if find_spec("cv2") is not None:
        return OpenCV
    raise BadImage(f"is a video file, which needs PyAV or OpenCV: {INSTALL}; or give a folder of its frames")


class PyAV:
    @staticmethod
    def measured(path: Path) -> tuple[int, float | None]:
        import av  # pyright: ignore[reportMissingImports]

        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                lasts = stream.duration * stream.time_base if stream.duration is not None else None
                if lasts is None and container.duration is not None:
                    lasts = container.duration / av.time_base
                count = stream.frames or sum(1 for _ in container.decode(video=0))
        except (OSError, ValueError, IndexError, EOFError, RuntimeError) as error:  # av's errors are kinds of these
            raise BadImage(f"is no readable video: {error}") from error
        return count, float(lasts) if lasts else None

    @staticmethod
    def frames(path: Path) -> Iterator[Any]:
        import av  # pyright: ignore[reportMissingImports]

        try:
            with av.open(str(path)) as container:
                for frame in container.decode(video=0):
                    yield lambda frame=frame: frame.to_ndarray(format="rgb24")
        except (OSError, ValueError, IndexError, EOFError, RuntimeError) as error:
            raise BadImage(f"is a video that cannot be decoded: {error}") from error


class OpenCV:
    @staticmethod
    def measured(path: Path) -> tuple[int, float | None]:
        import cv2  # pyright: ignore[reportMissingImports]

        video = cv2.VideoCapture(str(path))
        try:
            if not video.isOpened():
                raise BadImage("is no video that OpenCV can read")
            count, rate = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
        finally:
            video.release()
        count = count if count > 0 else sum(1 for _ in OpenCV.frames(path))  # some containers do not say
        return count, count / rate if rate > 0 else None

    @staticmethod
    def frames(path: Path) -> Iterator[Any]:
        import cv2  # pyright: ignore[reportMissingImports]

        video = cv2.VideoCapture(str(path))
        try:
            while video.grab():
                yield lambda: cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)
        finally:
            video.release()
