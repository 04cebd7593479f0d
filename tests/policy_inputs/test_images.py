"""Files as they come: rotated, deep, broken, empty. Each gives the right picture or a named error."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from exif import malformed_exif
from PIL import Image
from policy_inputs.make import picture

from grpo_fast.errors import BadImage
from grpo_fast.policy.images import load_image, load_video
from grpo_fast.policy.patches import VisionSettings

SMALL = VisionSettings(max_pixels=112 * 112)


def bytes_of(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def opener(data: bytes):
    return lambda: Image.open(io.BytesIO(data))


def rgb(load) -> np.ndarray:
    return np.asarray(load_image(load, SMALL, "sample 's1', image 0").frames[0])


# Value: what must be done to the stored picture for a viewer to see it upright, as the EXIF standard defines it.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_rotation(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = bytes_of(picture(31, 17), format, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(rgb(opener(data)), UPRIGHT[orientation](stored))


def test_a_malformed_tag_beside_the_rotation():
    data = bytes_of(picture(31, 17), "JPEG", exif=malformed_exif(6))
    stored = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(rgb(opener(data)), UPRIGHT[6](stored))


def test_the_callers_image_is_left_alone():
    image = picture(31, 17)
    image.getexif()[0x0112] = 6
    before = np.array(image)
    assert rgb(lambda: image).shape == (31, 17, 3)
    assert np.array_equal(np.array(image), before) and image.getexif()[0x0112] == 6


def test_alpha_is_composited_onto_white():
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 20, 40))
    seen = rgb(lambda: image)
    assert (seen[:, :20] == [0, 0, 255]).all() and (seen[:, 20:] == 255).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_keeps_its_contrast(mode):
    deep = np.linspace(0, 65535, 60 * 40).reshape(40, 60)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (60, 40), deep.astype(dtype).tobytes())
    assert np.array_equal(rgb(lambda: image)[..., 1], (deep.astype(int) // 256).astype(np.uint8))


def test_sixteen_bit_png_from_a_file():
    deep = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    seen = rgb(opener(bytes_of(Image.fromarray(deep), "PNG")))
    assert seen.max() == 255 and len(np.unique(seen)) == 256


def test_int32_image_of_bytes_is_taken_as_bytes():
    image = picture(20, 20, mode="L")
    assert np.array_equal(rgb(lambda: image.convert("I")), rgb(lambda: image))


@pytest.mark.parametrize("values", [np.full((9, 9), 0.5, np.float32), np.full((9, 9), -5, np.int32)])
def test_values_without_a_fixed_black_and_white(values):
    with pytest.raises(BadImage, match=r"sample 's1', image 0 has mode .* scale it to 8 bits"):
        rgb(lambda: Image.fromarray(values))


def test_cmyk_and_grey_jpeg_files():
    for mode in ("CMYK", "L"):
        data = bytes_of(picture(30, 30, mode=mode), "JPEG")
        assert np.array_equal(rgb(opener(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_broken_files_raise_nothing_but_bad_image(format):
    data = bytes_of(picture(64, 64), format)
    random = np.random.default_rng(7)
    refused = 0
    for trial in range(60):
        broken = bytearray(data[: random.integers(0, len(data))] if trial % 2 else data)
        for place in random.integers(0, max(len(broken), 1), 1 + trial % 8 if broken else 0):
            broken[place] = random.integers(0, 256)
        try:
            rgb(opener(bytes(broken)))
        except BadImage as error:
            refused += 1
            assert "sample 's1', image 0" in str(error)
    assert refused > 10


def test_truncated_jpeg_is_named():
    data = bytes_of(picture(64, 64), "JPEG")
    with pytest.raises(BadImage, match=r"sample 's1', image 0 cannot be read: OSError: .*truncated"):
        rgb(opener(data[: len(data) // 2]))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(BadImage, match=r"image 0 cannot be read: FileNotFoundError"):
        rgb(lambda: Image.open(tmp_path / "absent.png"))


def test_a_loaders_own_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        rgb(lambda: 1 // 0)


def test_something_else_than_an_image():
    with pytest.raises(BadImage, match="gave a ndarray where a PIL image is wanted"):
        rgb(lambda: np.zeros((9, 9, 3)))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 201)])
def test_side_ratio(size):
    with pytest.raises(BadImage, match=rf"image 0 is {size[0]} x {size[1]} pixels: .* crop or pad"):
        rgb(lambda: Image.new("RGB", size))


@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0)])
def test_empty_image(size):
    with pytest.raises(BadImage, match="image 0 is empty"):
        rgb(lambda: Image.new("RGB", size))


def video(frames: Any):
    return load_video(lambda: frames, SMALL, 2.0, False, "sample 's1', video 0")


def test_bad_videos():
    with pytest.raises(BadImage, match="video 0: the loader gave no frames"):
        video([])
    with pytest.raises(BadImage, match=r"video 0, frame 1 is \(30, 40\) pixels, frame 0 is \(40, 30\)"):
        video([picture(40, 30), picture(30, 40)])
    with pytest.raises(BadImage, match="video 0, frame 1: the loader gave a NoneType"):
        video([picture(40, 30), None])
    with pytest.raises(BadImage, match="video 0, frame 0 is 1 x 300 pixels"):
        video([picture(1, 300)])
    with pytest.raises(BadImage, match="video 0: the loader gave no frames"):
        video(picture(9, 9))
