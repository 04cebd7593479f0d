"""What volumes and clips have in common: pictures in an order, of which some are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from grpo_fast.data.volumes.choice import CLIP_FPS, CLIP_FRAMES, Choice
from grpo_fast.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image


class Stack(Protocol):
    """Its errors are BadImages that begin with a verb: whoever opened it says where, and what."""

    units: tuple[str, ...]  # by which it may be counted: slices, frames
    count: int
    seconds: float | None  # that it lasts, where that is known

    def pictures(self, indices: Sequence[int]) -> list[Image]: ...


def evenly(count: int, wanted: int) -> tuple[int, ...]:
    """The middles of equal parts: of one part, the middle."""
    parts = max(1, min(count, wanted))
    return tuple((2 * part + 1) * count // (2 * parts) for part in range(parts))


def as_images(stack: Stack, choice: Choice) -> tuple[int, ...]:
    for unit in ("slices", "frames"):
        if getattr(choice, unit) is not None and unit not in stack.units:
            raise BadImage(f"is counted in {stack.units[0]}: #{choice.text} says {unit}")
    if choice.fps is not None:
        return _sampled(stack, choice.fps, choice.frames or stack.count)[0]
    return evenly(stack.count, choice.slices or choice.frames or 1)


def as_video(stack: Stack, choice: Choice) -> tuple[tuple[int, ...], float]:
    """(frames, how many of them a second holds)."""
    if "frames" not in stack.units:
        raise BadImage("is a volume, not a video: give it as image, with #slices=N behind its path")
    if choice.slices is not None:
        raise BadImage(f"is given as a video, which is counted in frames: #{choice.text} says slices")
    return _sampled(stack, choice.fps or CLIP_FPS, choice.frames or CLIP_FRAMES)


def _sampled(stack: Stack, fps: float, most: int) -> tuple[tuple[int, ...], float]:
    if "frames" not in stack.units:
        raise BadImage("is a volume and has no frames a second: say slices=N")
    wanted = stack.count if stack.seconds is None else max(1, round(stack.seconds * fps))
    indices = evenly(stack.count, min(wanted, most))
    if stack.seconds is None:
        return indices, fps * len(indices) / stack.count
    return indices, len(indices) / stack.seconds
