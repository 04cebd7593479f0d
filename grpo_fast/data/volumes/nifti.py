"""NIfTI volumes as pictures: slices along an axis of the canonical (RAS) orientation, the way radiologists hold them.

Axial and coronal slices have the patient's right on the left, sagittal ones the front on the left; the head is up, or
on axial slices the front. Pixels are shown as square, whatever the spacing.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_fast.data.volumes.choice import Choice
from grpo_fast.data.volumes.dicom import INSTALL, images
from grpo_fast.data.volumes.grey import Plane, between, windowed
from grpo_fast.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

GZIP = b"\x1f\x8b"
MOST_PACKED = 1032  # bytes that gzip makes one of, at best
HEADER = 540  # bytes of the longer of the two kinds
RGB = ("R", "G", "B")

log = logging.getLogger(__name__)


def version(start: bytes) -> int:
    """1 or 2 by a file's first bytes, unpacked; 0: no NIfTI."""
    if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and start[344:348] in (b"n+1\0", b"ni1\0"):
        return 1
    return 2 if start[4:8] in (b"n+2\0", b"ni2\0") else 0


class NiftiFile:
    units: tuple[str, ...] = ("slices",)
    seconds: float | None = None

    def __init__(self, source: Path | bytes, choice: Choice) -> None:
        self.source = source
        self.choice = choice
        with _opened(source) as image:
            self.shape: tuple[int, ...] = image.shape
            said = math.prod(self.shape) * image.get_data_dtype().itemsize
            if said > MOST_PACKED * (len(source) if isinstance(source, bytes) else source.stat().st_size):
                raise BadImage(f"is no readable NIfTI volume: {self.shape} voxels are more than such a file can hold")
            self.axes, self.flips = _canonical(image.affine)
        spatial, rest = (*self.shape[:3], 1, 1)[:3], [length for length in self.shape[3:] if length != 1]
        if len(rest) > 1:
            raise BadImage(f"is a volume of {len(self.shape)} dimensions {self.shape}; three and time can be shown")
        if 0 in self.shape:
            raise BadImage(f"is an empty volume of {' x '.join(map(str, self.shape))} voxels")
        self.times = rest[0] if rest else 1
        self.axis = 2 if choice.axis is None else choice.axis
        self.count = spatial[self.axes[self.axis]]

    def pictures(self, indices: Sequence[int]) -> list[Image]:
        time = self._time()
        with _opened(self.source) as image:
            return images([self._slice(image, index, time) for index in indices])

    def _time(self) -> int:
        chosen = self.choice.time
        if chosen is None:
            if self.times > 1:
                _say_once(str(self.source) if isinstance(self.source, Path) else "an embedded volume", self.times)
            return self.times // 2
        if chosen >= self.times:
            raise BadImage(f"holds {self.times} time point(s), from 0: #{self.choice.text} wants number {chosen}")
        return chosen

    def _slice(self, image: Any, index: int, time: int) -> Plane:
        own = self.axes[self.axis]  # the file's axis
        at: list[Any] = [slice(None)] * len(self.shape)
        if own < len(at):
            at[own] = self.count - 1 - index if self.flips[own] else index
        for extra in range(3, len(at)):
            at[extra] = time if self.shape[extra] > 1 else 0
        values = np.asarray(image.dataobj[tuple(at)])
        # What is left are the two other axes, in the file's order; a volume of one slice has lost a third.
        left = [axis for axis in range(3) if axis != own]
        values = values.reshape([(*self.shape, 1, 1)[axis] for axis in left])
        across, down = [axis for axis in range(3) if axis != self.axis]  # canonical: x or y, and y or z
        if left != [self.axes[across], self.axes[down]]:
            values = values.T
            left.reverse()
        # Canonical axes run to the right, the front and the head: seen from the other side, both are turned.
        steps = [1 if self.flips[axis] else -1 for axis in left]
        return self._plane(values[:: steps[0], :: steps[1]].T, image.header)

    def _plane(self, values: np.ndarray, header: Any) -> Plane:
        if values.dtype.names is not None:
            return Plane(np.stack([values[name] for name in RGB], -1).astype(np.uint8))
        if values.dtype.kind == "c":
            raise BadImage("is a volume of complex numbers; save their magnitude")
        finite = np.isfinite(values)
        if not finite.all():
            bad = values.size - int(finite.sum())
            raise BadImage(f"holds NaN or infinite values ({bad} of the {values.size} in one slice); replace them")
        if self.choice.window is not None:
            return Plane(windowed(values, *self.choice.window))
        low, high = float(header["cal_min"]), float(header["cal_max"])
        if np.isfinite([low, high]).all() and low < high:
            return Plane(between(values, low, high))
        return Plane(values.astype(np.float64))


@lru_cache(maxsize=1024)
def _say_once(name: str, times: int) -> None:
    log.warning(
        "%s holds %d time points: the middle one, %d, is shown; #time=N behind its path chooses another",
        name, times, times // 2,
    )  # fmt: skip


def _canonical(affine: np.ndarray) -> tuple[list[int], list[bool]]:
    """The file's axis for each canonical one, and for each of the file's whether it runs the other way."""
    from nibabel.orientations import io_orientation

    if not np.isfinite(affine).all():
        raise BadImage("is a NIfTI volume whose orientation is NaN")
    found = io_orientation(affine)
    if np.isnan(found).any():
        raise BadImage("is a NIfTI volume without an orientation: an axis of its affine is empty")
    own = [int(axis) for axis in found[:, 0]]
    return [own.index(axis) for axis in range(3)], [bool(turn < 0) for turn in found[:, 1]]


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Any]:
    try:
        import nibabel
        from nibabel.spatialimages import HeaderDataError
        from nibabel.wrapstruct import WrapStructError
    except ImportError as error:
        raise BadImage(f"is a NIfTI volume, which needs nibabel: {INSTALL}") from error
    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(io.BytesIO(source) if isinstance(source, bytes) else source.open("rb"))
            packed = file.read(2) == GZIP
            file.seek(0)
            if packed:
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            start = file.read(HEADER)
            file.seek(0)
            if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
                raise BadImage("is the header of a volume in two files (.hdr and .img); save it as one .nii")
            yield (nibabel.Nifti1Image if version(start) == 1 else nibabel.Nifti2Image).from_stream(file)
    except BadImage:
        raise
    except (
        OSError, EOFError, ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError, zlib.error,
        HeaderDataError, WrapStructError,
    ) as error:  # fmt: skip
        raise BadImage(f"is no readable NIfTI volume: {str(error) or type(error).__name__}") from error
