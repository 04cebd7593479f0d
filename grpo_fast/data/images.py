"""References to images, however a data set holds them, as picklable callables that open the image when asked.

DICOM and NIfTI files, folders of slices or frames, and videos stand wherever a picture's path may: alone they give
their middle slice or frame, with a choice behind the path (see `volumes.choice`) several.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from grpo_fast.data.decode import decode
from grpo_fast.data.volumes.choice import Choice, split
from grpo_fast.errors import BadData, BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True)
class ImageFile:
    path: Path
    where: str  # the record, for messages

    def __call__(self) -> Image:
        return _shown(self.found(), f"{self.where}: image {self.path}")

    def found(self) -> Path:
        """The path, once it is known to be a file or folder with something in it."""
        return found_at(self.path, f"{self.where}: image {self.path}")


@dataclass(frozen=True, slots=True)
class Slice:
    """One of the pictures that a choice takes from a volume or clip."""

    path: Path
    where: str
    choice: Choice
    number: int  # among those taken

    def __call__(self) -> Image:
        from grpo_fast.data.volumes.opening import pictures, stamp

        path = self.found()
        try:
            return pictures(path, stamp(path), self.choice)[self.number].copy()
        except (BadImage, OSError, IndexError) as error:  # an index: the file has changed since it was counted
            raise BadImage(f"{self.where}: image {self.path} {told(error)}") from error

    def found(self) -> Path:
        return found_at(self.path, f"{self.where}: image {self.path}")


@dataclass(frozen=True, slots=True, repr=False)
class ImageBytes:
    data: bytes
    where: str

    def __call__(self) -> Image:
        return _shown(self.data, f"{self.where}: the embedded image")


@dataclass(frozen=True, slots=True)
class ImageHeld:
    image: Image
    where: str

    def __call__(self) -> Image:
        return self.image


Loader = ImageFile | Slice | ImageBytes | ImageHeld


def loaders(reference: Any, folder: Path, where: str) -> tuple[Loader, ...]:
    """One, or as many as the choice behind a path takes: to know how many, the file's headers are read here."""
    found = loader(reference, folder, where)
    if not isinstance(found, Slice) or (found.choice.slices, found.choice.frames, found.choice.fps) == (None,) * 3:
        return (found,)
    from grpo_fast.data.volumes.opening import image_indices, stamp

    try:
        path = found.found()
    except BadImage as error:
        raise BadData(str(error)) from error
    try:
        count = len(image_indices(path, stamp(path), found.choice))
    except (BadImage, OSError) as error:
        raise BadData(f"{where}: image {found.path} {told(error)}") from error
    return tuple(Slice(found.path, where, found.choice, number) for number in range(count))


def loader(reference: Any, folder: Path, where: str) -> Loader:
    """From a path, file:// URL, data URI, bytes, {"bytes", "path"} or PIL image; of several pictures, the first."""
    if hasattr(reference, "getexif"):  # a PIL image, without importing PIL to ask
        return ImageHeld(reference, where)
    if isinstance(reference, str):
        return _from_text(reference, folder, where)
    if isinstance(reference, Mapping) and reference.keys() & {"bytes", "path"}:
        held = reference.get("bytes")
        if held is None:
            held = reference.get("path")
        if held is None:
            raise BadData(f"{where}: an image has neither bytes nor a path")
        if isinstance(held, str) and held is reference.get("bytes"):
            return ImageBytes(_base64(held, where), where)  # JSON has no bytes
        return loader(held, folder, where)
    if isinstance(reference, bytes | bytearray | memoryview):
        if not len(reference):
            raise BadData(f"{where}: an embedded image has no bytes")
        return ImageBytes(bytes(reference), where)
    raise BadData(
        f'{where}: an image is a {_kind(reference)}; known are a path, a URL, bytes, {{"bytes", "path"}} and PIL images'
    )


def _from_text(reference: str, folder: Path, where: str) -> Loader:
    if not reference.strip():
        raise BadData(f"{where}: an image path is empty")
    scheme, colon, rest = reference.partition(":")
    if colon and scheme.lower() == "data":
        return ImageBytes(_data_uri(rest, where), where)
    if colon and scheme.lower() in ("http", "https", "s3", "gs"):
        raise BadData(f"{where}: image {reference} is not fetched: download it and give its path")
    if len(reference) > LONGEST_PATH:
        raise BadData(
            f"{where}: an image path of {len(reference)} characters; before base64 stands data:image/png;base64,"
        )
    if "\x00" in reference:
        raise BadData(f"{where}: an image path holds a NUL character")
    if colon and scheme.lower() == "file":
        reference = rest.removeprefix("//").removeprefix("localhost")
        if not reference.strip("/"):
            raise BadData(f"{where}: a file:// URL without a path")
    path, choice = split(reference, where)
    return ImageFile(folder / path, where) if choice is None else Slice(folder / path, where, choice, 0)


def _data_uri(rest: str, where: str) -> bytes:
    head, comma, payload = rest.partition(",")
    if not comma:
        raise BadData(f"{where}: a data URI without a comma before its data")
    kind = head.split(";")[0].strip().lower()
    if kind and not kind.startswith("image/"):
        raise BadData(f"{where}: a data URI of {kind}, not of an image")
    if not head.lower().endswith(";base64"):
        raise BadData(f"{where}: a data URI that is not base64")
    return _base64(payload, where)


def _base64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadData(f"{where}: an embedded image is not valid base64: {error}") from error
    if not data:
        raise BadData(f"{where}: an embedded image has no bytes")
    return data


def found_at(path: Path, what: str) -> Path:
    try:
        if not path.exists() and "%" in str(path):  # a file:// URL may or may not be quoted
            path = Path(unquote(str(path)))
        if not path.exists():
            raise BadImage(f"{what} does not exist; image folders are set by --image-folders")
        if path.is_dir():
            if not any(path.iterdir()):
                raise BadImage(f"{what} is an empty folder")
        elif not path.is_file():
            raise BadImage(f"{what} is neither a file nor a folder")
        elif path.stat().st_size == 0:
            raise BadImage(f"{what} is an empty file")
    except OSError as error:
        raise BadImage(f"{what} cannot be read: {error.strerror or error}") from error
    return path


def _shown(source: Path | bytes, what: str) -> Image:
    from grpo_fast.data.volumes.opening import single

    try:
        return single(source) or decode(source)
    except (BadImage, OSError) as error:
        raise BadImage(f"{what} {told(error)}") from error


def told(error: Exception) -> str:
    """What follows the name of the image."""
    if isinstance(error, BadImage):
        return str(error)
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
