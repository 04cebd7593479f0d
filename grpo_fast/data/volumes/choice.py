"""What to show of a volume or a clip, written behind its path: `scan.nii.gz#slices=8,axis=2,window=40/400`.

slices=8      of a volume (NIfTI, DICOM series, multi-frame DICOM): that many at most, evenly spaced; `slices=all`
              every one; without it, the middle one
axis=2        of a NIfTI volume in canonical orientation: 0 sagittal, 1 coronal, 2 axial (without it: 2)
time=0        of a NIfTI volume with several time points (without it: the middle one)
window=40/400 centre and width, in the units of the file after its rescaling; without it, the file's own, and where it
              has none, the 0.5th to 99.5th percentile of the slices shown
frames=8      of a clip (a folder of frames, an animated picture, a video, multi-frame DICOM): that many at most, evenly
              spaced; `frames=all`; without it, as an image the middle one (of an animated picture the first, which it
              shows where nothing moves), and as a video 32 at most
fps=2         of a clip: frames to take for each second (as a video: 2), where its rate is known; a clip without one, as
              a folder of frames, is taken to have been sampled at this rate

What stands in `image` or `images` becomes images: as many as the choice gives, at the place of its one <image> tag.
What stands in `video` or `videos` becomes a video.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from dataclasses import dataclass

from grpo_fast.errors import BadData

ALL = sys.maxsize
FRAGMENT = re.compile(r"#(\w+=[^#]*)$")
CLIP_FPS = 2.0  # at which GMAI's key frames are taken, and Qwen samples
CLIP_FRAMES = 32


@dataclass(frozen=True, slots=True)
class Choice:
    slices: int | None = None
    frames: int | None = None
    axis: int | None = None
    time: int | None = None
    window: tuple[float, float] | None = None  # centre, width
    fps: float | None = None
    text: str = ""  # as it was written


def split(reference: str, where: str) -> tuple[str, Choice | None]:
    """The path, and the choice written behind it."""
    found = FRAGMENT.search(reference)
    if found is None:
        return reference, None
    return reference[: found.start()], _parsed(found[1], where)


def _parsed(text: str, where: str) -> Choice:
    given: dict[str, object] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name not in READERS:
            near = difflib.get_close_matches(name, READERS, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise BadData(f"{where}: #{text}: {name!r} is none of {', '.join(READERS)}{hint}")
        if name in given:
            raise BadData(f"{where}: #{text}: {name} stands twice")
        read, wanted = READERS[name]
        try:
            given[name] = read(value)
        except ValueError as error:
            raise BadData(f"{where}: #{text}: {name} is {value!r}, not {wanted}") from error
    if "slices" in given and given.keys() & {"frames", "fps"}:
        raise BadData(f"{where}: #{text}: a volume has slices, a clip has frames; give one of them")
    return Choice(**given, text=text)  # pyright: ignore[reportArgumentType]


def _count(text: str) -> int:
    count = ALL if text == "all" else int(text)
    if count < 1:
        raise ValueError
    return count


def _axis(text: str) -> int:
    return ("0", "1", "2").index(text)


def _time(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


def _window(text: str) -> tuple[float, float]:
    centre, width = (float(part) for part in text.split("/"))
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        raise ValueError
    return centre, width


def _rate(text: str) -> float:
    rate = float(text)
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError
    return rate


READERS = {
    "slices": (_count, "a number from 1, or all"),
    "frames": (_count, "a number from 1, or all"),
    "axis": (_axis, "0, 1 or 2"),
    "time": (_time, "a number from 0"),
    "window": (_window, "CENTRE/WIDTH, such as 40/400"),
    "fps": (_rate, "a number above 0"),
}
