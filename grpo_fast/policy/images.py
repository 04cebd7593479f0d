"""A sample's lazy images and videos to upright RGB frames, or a named error.

EXIF rotation is applied (transformers does so only for images that it opens itself), transparent pixels are composited
onto white (as transformers does), 16-bit greys keep their high byte instead of saturating. What has no defined look
(float pixels, side ratios over 200, empty images) is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from grpo_fast.errors import BadImage, GRPOFastError
from grpo_fast.policy.patches import Clip, VisionSettings, resized

MAX_SIDE_RATIO = 200
EXIF_ORIENTATION = 0x0112
UPRIGHT = {  # what undoes each orientation; others leave the picture as it is
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Everything that PIL's decoders raise on broken bytes.
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    IndexError,
    OverflowError,
    RuntimeError,  # AVIF
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_image(load: Callable[[], Image.Image], settings: VisionSettings, where: str) -> Clip:
    image = decoded(load, where)
    check_sides(image, where)
    frame = to_rgb(image, where)
    return Clip("image", [frame], *resized(frame.height, frame.width, settings), settings)


def load_video(
    load: Callable[[], Sequence[Image.Image]], settings: VisionSettings, fps: float, whole_clip: bool, where: str
) -> Clip:
    """Every frame given is used: sampling frames belongs to the loader. `whole_clip`: limits hold for the clip."""
    given = opened(load, where)
    if not isinstance(given, Sequence) or len(given) == 0:
        raise BadImage(f"{where}: the loader gave no frames; a video is a sequence of at least one PIL image")
    frames = []
    for index, frame in enumerate(given):
        place = f"{where}, frame {index}"
        frame = decoded(lambda frame=frame: frame, place)
        check_sides(frame, place)
        frames.append(to_rgb(frame, place))
        if frames[-1].size != frames[0].size:
            raise BadImage(f"{place} is {frames[-1].size} pixels, frame 0 is {frames[0].size}; resize them to one size")
    height, width = frames[0].height, frames[0].width
    size = resized(height, width, settings, len(frames) if whole_clip else None)
    return Clip("video", frames, *size, settings, fps)


def opened(load: Callable[[], Any], where: str) -> Any:
    try:
        return load()
    except GRPOFastError:
        raise
    except UNREADABLE as error:
        raise BadImage(f"{where} cannot be read: {type(error).__name__}: {error}") from error


def decoded(load: Callable[[], Image.Image], where: str) -> Image.Image:
    """The image upright, with its pixels in memory, so that a truncated file fails here and by name."""
    image = opened(load, where)
    if not isinstance(image, Image.Image):
        raise BadImage(f"{where}: the loader gave a {type(image).__name__} where a PIL image is wanted")
    try:
        image.load()
        return upright(image)
    except (*UNREADABLE, TypeError) as error:
        raise BadImage(f"{where} cannot be read: {type(error).__name__}: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """As `ImageOps.exif_transpose` turns it, which writes all other tags anew and fails on a single malformed one."""
    turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def check_sides(image: Image.Image, where: str) -> None:
    short, long = sorted(image.size)
    if short == 0:
        raise BadImage(f"{where} is empty ({image.width} x {image.height} pixels); remove it or the sample")
    if long > MAX_SIDE_RATIO * short:
        raise BadImage(
            f"{where} is {image.width} x {image.height} pixels: Qwen's vision tower takes no image with one side more "
            f"than {MAX_SIDE_RATIO} times the other; crop or pad it"
        )


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = to_bytes(image, where)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise BadImage(f"{where} has mode {image.mode!r}, which PIL cannot turn into RGB; convert it first") from error


def to_bytes(image: Image.Image, where: str) -> Image.Image:
    """8-bit grey of a deeper one. PIL would clip at 255 and show any 16-bit picture as white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 0xFFFF:
        raise BadImage(
            f"{where} has mode {image.mode!r} with values from {low} to {high}, which have no fixed black and white; "
            "scale it to 8 bits first"
        )
    deep = image.mode.startswith("I;16") or high > 0xFF  # older PIL opens 16-bit greys as 32-bit "I"
    return Image.fromarray((values >> 8 if deep else values).astype(np.uint8))
