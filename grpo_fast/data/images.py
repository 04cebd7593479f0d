"""References to images, however a data set holds them, as picklable callables that open the image when asked."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from grpo_fast.errors import BadData, BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True)
class ImageFile:
    path: Path
    where: str  # the record, for messages

    def __call__(self) -> Image:
        return _decoded(self.found(), f"{self.where}: image {self.path}")

    def found(self) -> Path:
        """The path, once it is known to be a file with something in it."""
        what = f"{self.where}: image {self.path}"
        try:
            path = self.path
            if not path.exists() and "%" in str(path):  # a file:// URL may or may not be quoted
                path = Path(unquote(str(path)))
            if not path.exists():
                raise BadImage(f"{what} does not exist; image folders are set by --image-folders")
            if not path.is_file():
                raise BadImage(f"{what} is a folder, not a file")
            if path.stat().st_size == 0:
                raise BadImage(f"{what} is an empty file")
        except OSError as error:
            raise BadImage(f"{what} cannot be read: {error.strerror or error}") from error
        return path


@dataclass(frozen=True, slots=True, repr=False)
class ImageBytes:
    data: bytes
    where: str

    def __call__(self) -> Image:
        return _decoded(io.BytesIO(self.data), f"{self.where}: the embedded image")


@dataclass(frozen=True, slots=True)
class ImageHeld:
    image: Image
    where: str

    def __call__(self) -> Image:
        return self.image


Loader = ImageFile | ImageBytes | ImageHeld


def loader(reference: Any, folder: Path, where: str) -> Loader:
    """From a path, file:// URL, data URI, bytes, {"bytes", "path"} or PIL image."""
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
    return ImageFile(folder / reference, where)


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


def _decoded(file: Path | io.BytesIO, what: str) -> Image:
    """With its pixels in memory: a truncated file fails here, where its record is known."""
    from PIL import Image as images

    try:
        image = images.open(file)
        image.load()
    except (
        OSError, EOFError, SyntaxError, ValueError, IndexError, OverflowError, RuntimeError, struct.error, zlib.error,
        images.DecompressionBombError,
    ) as error:  # fmt: skip
        reason = "no image format that PIL knows" if isinstance(error, images.UnidentifiedImageError) else error
        raise BadImage(f"{what} cannot be read: {reason}") from error
    return image


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
