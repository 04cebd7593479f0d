"""Bytes to a PIL image, or the reason why not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image


def unreadable() -> tuple[type[Exception], ...]:
    """Everything that PIL raises on pictures that are broken."""
    from PIL.Image import DecompressionBombError

    return (
        OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, RuntimeError, struct.error,
        zlib.error, DecompressionBombError,
    )  # fmt: skip


def decode(source: Path | bytes) -> Image:
    """With its pixels in memory: a truncated file fails here, where its record is known."""
    from PIL import Image as images

    try:
        image = images.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
    except unreadable() as error:
        reason: object = error
        if isinstance(error, images.UnidentifiedImageError):
            dicom = isinstance(source, Path) and source.suffix.lower() in (".dcm", ".dicom")
            reason = "no DICM stands at byte 128, as in a DICOM file" if dicom else "no image format that is known"
        raise BadImage(f"cannot be read: {reason}") from error
    return image
