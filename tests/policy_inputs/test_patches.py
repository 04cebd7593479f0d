"""Sizes and pixels against the PIL image processor of transformers, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as sampling
from hypothesis import strategies as st
from PIL import Image
from policy_inputs.make import picture
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_clip

from grpo_fast.errors import BadCheckpoint
from grpo_fast.policy.images import load_image, load_video
from grpo_fast.policy.patches import VisionSettings, resized

SMALL = VisionSettings(max_pixels=112 * 112)
SIDES = st.integers(1, 4000)


@sampling(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.sampled_from([14, 16]), st.sampled_from([56**2, 1, 28**2]), st.sampled_from([56**2, 10**6]))
def test_sizes(height, width, patch, low, high):
    if max(height, width) > 200 * min(height, width):
        return
    settings = VisionSettings(patch_size=patch, min_pixels=low, max_pixels=high)
    assert resized(height, width, settings) == smart_resize(height, width, patch * 2, low, high)


@sampling(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.integers(2, 9), st.sampled_from([4096, 128 * 32 * 32]), st.sampled_from([32 * 32 * 768, 10**8]))
def test_sizes_with_a_budget_for_the_whole_clip(height, width, frames, low, high):
    settings = VisionSettings(patch_size=16, min_pixels=low, max_pixels=high)
    try:
        wanted = smart_resize_clip(frames, height, width, 2, 32, low, high)
    except ValueError:  # side ratio
        return
    assert resized(height, width, settings, frames) == wanted


# Enlarged from one pixel, kept, shrunk, thin, prime sides, side ratio exactly 200.
@pytest.mark.parametrize("size", [(1, 1), (56, 84), (640, 480), (3, 211), (101, 97), (200, 1)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_pixels_equal_transformers(size, mode):
    image = picture(*size, mode="RGBA").convert("LA") if mode == "LA" else picture(*size, mode=mode)
    check_equal(image, SMALL)


def test_pixels_of_a_palette_with_a_transparent_entry():
    image = picture(60, 60, mode="P")
    image.info["transparency"] = int(np.bincount(np.asarray(image).ravel()).argmax())
    check_equal(image, SMALL)


def test_pixels_with_other_sizes_and_statistics():
    settings = VisionSettings(
        patch_size=16, temporal_patch_size=3, merge_size=1, mean=(0.1, 0.2, 0.3), std=(0.3, 0.6, 0.9), max_pixels=10**4
    )
    check_equal(picture(130, 70), settings)


def check_equal(image, settings):
    theirs = Qwen2VLImageProcessorPil(
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        patch_size=settings.patch_size,
        merge_size=settings.merge_size,
        temporal_patch_size=settings.temporal_patch_size,
        image_mean=list(settings.mean),
        image_std=list(settings.std),
    )(images=[image], return_tensors="pt")
    ours = load_image(lambda: image, settings, "image").patches()
    assert [list(ours.grid)] == theirs["image_grid_thw"].tolist()
    assert ours.pixels.dtype == torch.float32 and torch.equal(ours.pixels, theirs["pixel_values"])


@pytest.mark.parametrize("count", [1, 2, 5])  # one frame, a full instant, a last instant to be filled up
def test_video_patches_interleave_the_frames_of_an_instant(count):
    frames = [picture(70, 50, seed) for seed in range(count)]
    video = load_video(lambda: frames, SMALL, 2.0, False, "video").patches()
    stills = [load_image(lambda frame=frame: frame, SMALL, "frame").patches() for frame in frames]
    steps, rows, columns = video.grid
    assert steps == (count + 1) // 2 and video.seconds_per_grid == 1.0
    pixels = video.pixels.view(steps, rows * columns, 3, 2, 14 * 14)
    for instant in range(steps * 2):
        still = stills[min(instant, count - 1)].pixels.view(rows * columns, 3, 2, 14 * 14)
        assert torch.equal(pixels[instant // 2, :, :, instant % 2], still[:, :, instant % 2])


def key(image, settings=SMALL):
    return load_image(lambda: image, settings, "image").patches().key


def test_keys_name_the_pixels():
    image, equal, other = picture(56, 56), picture(56, 56), picture(56, 56)
    other.putpixel((3, 3), (1, 2, 3))
    assert key(image) == key(equal)
    assert len({key(image), key(other), key(image, replace(SMALL, mean=(0.5,) * 3))}) == 3


def test_keys_tell_a_grid_from_its_transpose():
    wide, tall = Image.new("RGB", (112, 56), "grey"), Image.new("RGB", (56, 112), "grey")
    assert wide.tobytes() == tall.tobytes() and key(wide) != key(tall)


@pytest.mark.parametrize(
    "raw, limits",
    [
        ({}, (56 * 56, 28 * 28 * 1280)),
        ({"min_pixels": 100, "max_pixels": 200}, (100, 200)),
        ({"size": {"shortest_edge": 100, "longest_edge": 200}}, (100, 200)),
        ({"size": {"min_pixels": 100, "max_pixels": 200}}, (100, 200)),
        ({"size": {"shortest_edge": 5, "longest_edge": 6}, "min_pixels": 100, "max_pixels": 200}, (100, 200)),
    ],
)
def test_settings_read_every_spelling_of_the_limits(raw, limits):
    settings = VisionSettings.from_dict(raw)
    assert (settings.min_pixels, settings.max_pixels) == limits


def test_settings_without_rescaling_or_normalising():
    raw = {"do_rescale": False, "do_normalize": False, "max_pixels": 112 * 112}
    image = picture(30, 60)
    theirs = Qwen2VLImageProcessorPil(**raw)(images=[image], return_tensors="pt")["pixel_values"]
    ours = load_image(lambda: image, VisionSettings.from_dict(raw), "image").patches().pixels
    assert torch.equal(ours, theirs.float()) and ours.max() > 200


@pytest.mark.parametrize(
    "raw",
    [
        {"min_pixels": 200, "max_pixels": 100},
        {"do_resize": False},
        {"cap_pixels_per_frame": True},
        {"patch_size": 0, "size": None},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_mean": [0.5]},
    ],
)
def test_settings_that_cannot_be(raw):
    with pytest.raises(BadCheckpoint):
        VisionSettings.from_dict(raw)
