"""A folder of DICOM files as one volume, its slices ordered by where they lie in the patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from grpo_fast.data.volumes.choice import Choice
from grpo_fast.data.volumes.dicom import along_normal, images, in_order, is_directory, named, plane, read
from grpo_fast.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom import Dataset

SHARED = ("Rows", "Columns", "PhotometricInterpretation")
TURN = 0.01  # by which the direction cosines of one series may differ


class Slice(NamedTuple):
    path: Path
    header: Dataset


class Series:
    """Without positions, `InstanceNumber` orders the slices."""

    units: tuple[str, ...] = ("slices",)
    seconds: float | None = None

    def __init__(self, files: Sequence[Path], choice: Choice) -> None:
        if choice.axis is not None or choice.time is not None:
            raise BadImage(f"is a DICOM series: #{choice.text}: axis and time are for NIfTI volumes")
        self.window = choice.window
        with named("is a series with a header that cannot be read"):
            self.slices = _ordered(files)
        self.count = len(self.slices)

    def pictures(self, indices: Sequence[int]) -> list[Image]:
        planes = []
        for index in indices:
            path = self.slices[index].path
            try:
                planes.append(plane(read(path), 0, self.window))
            except BadImage as error:
                raise BadImage(f"is a series whose slice {path.name} {error}") from error
        return images(planes)


def _ordered(files: Sequence[Path]) -> list[Slice]:
    slices = []
    for path in files:
        try:
            header = read(path, pixels=False)
        except BadImage as error:
            raise BadImage(f"is a series whose file {path.name} {error}") from error
        if not is_directory(header):
            slices.append(Slice(path, header))
    if not slices:
        raise BadImage("is a folder with a DICOMDIR and no slices beside it; name the folder of a series")
    _check_alike(slices)
    places = [
        along_normal(one.header.get("ImagePositionPatient"), one.header.get("ImageOrientationPatient"))
        for one in slices
    ]
    if all(place is not None for place in places):
        keys = [round(place, 3) for place in places if place is not None]
        return _sorted(slices, keys, "lie at the same position")
    numbers = [one.header.get("InstanceNumber") for one in slices]
    missing = next((one.path.name for one, number in zip(slices, numbers, strict=True) if number is None), None)
    if missing is not None:
        raise BadImage(f"is a series that cannot be ordered: {missing} has neither a position nor an instance number")
    return _sorted(slices, [int(number) for number in numbers if number is not None], "have the same instance number")


def _sorted(slices: Sequence[Slice], keys: Sequence[float], clash: str) -> list[Slice]:
    order = sorted(range(len(slices)), key=keys.__getitem__)
    for one, other in pairwise(order):
        if keys[one] == keys[other]:
            names = " and ".join(sorted((slices[one].path.name, slices[other].path.name)))
            raise BadImage(f"is a series in which {names} {clash} ({keys[one]:g}); give each time point its own folder")
    return [slices[index] for index in order]


def _check_alike(slices: Sequence[Slice]) -> None:
    series = Counter(str(one.header.get("SeriesInstanceUID", "")) for one in slices)
    if len(series) > 1:
        raise BadImage(f"is a folder with slices of {len(series)} series; give each series its own folder")
    first = slices[0]
    for one in slices:
        if len(slices) > 1 and len(in_order(one.header)) > 1:
            raise BadImage(f"is a series in which {one.path.name} holds several frames; name that file alone")
        for name in SHARED:
            if one.header.get(name) != first.header.get(name):
                raise BadImage(
                    f"is a series of mixed slices: {name} is {first.header.get(name)} in {first.path.name} and "
                    f"{one.header.get(name)} in {one.path.name}"
                )
        turned, wanted = (x.header.get("ImageOrientationPatient") or () for x in (one, first))
        if any(abs(float(a) - float(b)) > TURN for a, b in zip(turned, wanted, strict=False)):
            raise BadImage(
                f"is a series of mixed slices: {first.path.name} and {one.path.name} are cut in different directions"
            )
