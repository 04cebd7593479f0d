"""A sample's pictures as a server and a data file want them: PNG bytes, data URIs, paths that stay valid."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.data.images import ImageFile
from grpo_fast.errors import BadData, RunFailed
from grpo_fast.policy.images import check_sides, decoded, to_rgb
from grpo_fast.synth.chains import replace
from grpo_fast.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


def pictures(sample: Sample) -> list[Image]:
    """Upright RGB, or BadImage naming the sample."""
    if sample.videos:
        raise BadData(f"sample {sample.id!r} shows a video, which has no place here: give its frames as images")
    found = []
    for number, load in enumerate(sample.images):
        where = f"sample {sample.id!r}, image {number}"
        image = decoded(load, where)
        check_sides(image, where)
        found.append(to_rgb(image, where))
    return found


def as_png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_uri(image: Image, max_pixels: int | None = None) -> str:
    """Made smaller, sides in proportion, where its area is over the limit."""
    area = image.width * image.height
    if max_pixels is not None and area > max_pixels:
        scale = math.sqrt(max_pixels / area)
        image = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    return "data:image/png;base64," + base64.b64encode(as_png(image)).decode()


def digest(image: Image) -> bytes:
    """Of the pixels: the same picture in another file format, if that loses nothing, has the same one."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()


def references(sample: Sample, place: int, root: Path, folder: Path) -> list[str]:
    """A path for each picture: relative where it lies below `root`. Pictures without a file get one in `folder`."""
    found = []
    drawn = None
    for number, load in enumerate(sample.images):
        if isinstance(load, ImageFile):
            path = load.found()
        else:
            path = folder / f"{place:06d}-{number}.png"
            if not path.exists():
                drawn = drawn or pictures(sample)
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    replace(path, as_png(drawn[number]))
                except OSError as error:
                    raise RunFailed(f"{path} cannot be written: {error}") from error
        found.append(reference(path, root))
    return found


def reference(path: Path, root: Path) -> str:
    absolute, base = path.resolve(), root.resolve()
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else str(absolute)
