"""Frames to the patches that Qwen's vision towers read, with PIL and NumPy alone.

Bit-equal to the PIL image processor of transformers; where torchvision does the resizing, pixels differ by rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from grpo_fast.errors import BadCheckpoint
from grpo_fast.types import VisionInput

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSettings:
    """What a checkpoint's (video_)preprocessor_config.json says; the defaults are Qwen2-VL's for images."""

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56  # of one image or frame; Qwen3-VL: of a whole clip
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rescale_factor: float = 1 / 255
    resample: int = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise BadCheckpoint(
                f"1 <= min_pixels <= max_pixels must hold, but they are {self.min_pixels} and {self.max_pixels}"
            )
        if min(self.patch_size, self.merge_size, self.temporal_patch_size) < 1:
            raise BadCheckpoint("patch_size, merge_size and temporal_patch_size must be at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise BadCheckpoint("image_mean and image_std need three values each, image_std none of them 0")

    @property
    def factor(self) -> int:
        """Pixels along one side of a merged patch, that is, of one token."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], **defaults: Any) -> VisionSettings:
        """Reads both spellings of the pixel limits: `min_pixels` beside, or inside, or as edges of `size`."""
        if raw.get("do_resize", True) is False or raw.get("do_convert_rgb", True) is False:
            raise BadCheckpoint("do_resize and do_convert_rgb cannot be switched off for Qwen's vision towers")
        if raw.get("cap_pixels_per_frame"):
            raise BadCheckpoint("cap_pixels_per_frame is not supported; set max_pixels instead")
        size = raw.get("size") or {}
        names = ("patch_size", "merge_size", "temporal_patch_size", "rescale_factor", "resample")
        given = {name: raw.get(name) for name in names}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            given[name] = raw.get(name) or size.get(edge) or size.get(name)
        for name in ("mean", "std"):
            values = raw.get(f"image_{name}")
            given[name] = None if values is None else tuple(values)
        if raw.get("do_rescale", True) is False:
            given["rescale_factor"] = 1.0
        if raw.get("do_normalize", True) is False:
            given["mean"], given["std"] = (0.0,) * 3, (1.0,) * 3
        return cls(**defaults | {name: value for name, value in given.items() if value is not None})


def resized(height: int, width: int, settings: VisionSettings, frames: int | None = None) -> tuple[int, int]:
    """Qwen's smart_resize: sides in multiples of the factor, area within the limits, side ratio kept.

    `frames` counts the frames of a clip whose limits hold for the clip as a whole (Qwen3-VL).
    """
    factor = settings.factor
    count = rounded_count = 1
    if frames is not None:
        count = max(frames, settings.temporal_patch_size)
        rounded_count = round(count / settings.temporal_patch_size) * settings.temporal_patch_size
        if min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    volume = rounded_count * new_height * new_width
    if volume > settings.max_pixels:
        shrink = math.sqrt(count * height * width / settings.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (count * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


@dataclass(frozen=True, slots=True)
class Clip:
    """Decoded frames and their size to be; the pixel work waits until the prompt is known to fit."""

    kind: Literal["image", "video"]
    frames: Sequence[Image.Image]  # RGB, all of one size
    height: int  # after resizing
    width: int
    settings: VisionSettings
    fps: float = 1.0  # video only

    @property
    def grid(self) -> tuple[int, int, int]:
        settings = self.settings
        steps = 1 if self.kind == "image" else -(-len(self.frames) // settings.temporal_patch_size)
        return steps, self.height // settings.patch_size, self.width // settings.patch_size

    @property
    def seconds_per_grid(self) -> float:
        return self.settings.temporal_patch_size / self.fps if self.kind == "video" else 1.0

    def patches(self) -> VisionInput:
        settings = self.settings
        size = (self.width, self.height)
        planes = [np.asarray(frame.resize(size, settings.resample)) for frame in self.frames]  # [height, width, 3] u8
        digest = hashlib.sha256(repr((settings, self.grid)).encode())
        for plane in planes:
            digest.update(np.ascontiguousarray(plane).data)
        pixels = normalised_patches(planes, self.grid, settings)
        return VisionInput(self.kind, torch.from_numpy(pixels), self.grid, digest.hexdigest(), self.seconds_per_grid)


def normalised_patches(
    planes: Sequence[np.ndarray], grid: tuple[int, int, int], settings: VisionSettings
) -> np.ndarray:
    """[patches, 3 * temporal_patch * patch * patch] fp32; patches of one merged token are neighbours.

    The reordering runs on bytes and the arithmetic on 256 levels per channel, so that fp32 is written only once.
    """
    steps, rows, columns = grid
    patch, merge, depth = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    if len(planes) == 1:  # a still is shown at every instant of the temporal patch
        given, stack = 1, planes[0][None]
    else:
        given, stack = depth, np.stack([*planes, *[planes[-1]] * (steps * depth - len(planes))])
    tiles = stack.reshape(steps, given, rows // merge, merge, patch, columns // merge, merge, patch, 3)
    tiles = np.ascontiguousarray(tiles.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)).reshape(-1, 3, given, patch * patch)
    pixels = np.empty((len(tiles), 3, depth, patch * patch), np.float32)
    for channel, levels in enumerate(normalised_levels(settings)):
        pixels[:, channel] = levels.take(tiles[:, channel])
    return pixels.reshape(len(tiles), -1)


@lru_cache
def normalised_levels(settings: VisionSettings) -> np.ndarray:
    """[3, 256] fp32: the value of each byte in each channel, rounded where transformers rounds."""
    rescaled = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    return (rescaled - mean[:, None]) / std[:, None]
