"""DICOM files as pictures: decoded, rescaled, windowed as the file says, low values dark, colours as RGB."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_fast.data.volumes.choice import Choice
from grpo_fast.data.volumes.grey import Plane, finished, windowed
from grpo_fast.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom import Dataset

INSTALL = 'pip install "grpo-fast[medical]"'
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR: a list of files, no image
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def unreadable() -> tuple[type[Exception], ...]:
    """Everything that pydicom and its plugins raise on files that are broken or of a kind that they do not know."""
    from pydicom.errors import BytesLengthException

    return (
        AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError, OSError, EOFError, OverflowError,
        struct.error, zlib.error, BytesLengthException,
    )  # fmt: skip


class DicomFile:
    units: tuple[str, ...] = ("slices", "frames")

    def __init__(self, source: Path | bytes, choice: Choice) -> None:
        if choice.axis is not None or choice.time is not None:
            raise BadImage(f"is a DICOM file: #{choice.text}: axis and time are for NIfTI volumes")
        self.source = source
        self.window = choice.window
        header = read(source, pixels=False)
        with named("has a header that cannot be read"):
            self.order = in_order(header)
            self.count = len(self.order)
            self.seconds = duration(header, self.count)

    def pictures(self, indices: Sequence[int]) -> list[Image]:
        dataset = read(self.source)
        return images([plane(dataset, self.order[index], self.window) for index in indices])


@contextmanager
def named(what: str) -> Iterator[None]:
    try:
        yield
    except BadImage:
        raise
    except unreadable() as error:
        raise BadImage(f"{what}: {_first_line(error)}") from error


def images(planes: Sequence[Plane]) -> list[Image]:
    from PIL import Image

    return [Image.fromarray(values) for values in finished(planes)]


def read(source: Path | bytes, *, pixels: bool = True) -> Dataset:
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise BadImage(f"is a DICOM file, which needs pydicom: {INSTALL}") from error
    try:
        dataset = dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, stop_before_pixels=not pixels)
    except unreadable() as error:
        raise BadImage(f"is no readable DICOM file: {_first_line(error)}") from error
    return dataset


def is_directory(header: Dataset) -> bool:
    return getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID") == DIRECTORY


def plane(dataset: Dataset, frame: int, window: tuple[float, float] | None) -> Plane:
    values = decoded(dataset, frame)
    with named("cannot be shown"):
        return _shown(dataset, frame, values, window)


def decoded(dataset: Dataset, frame: int) -> np.ndarray:
    """[h, w], or [h, w, 3] RGB, as stored."""
    from pydicom.pixels import pixel_array  # pyright: ignore[reportPrivateImportUsage]

    if not any(name in dataset for name in PIXELS):
        if "EncryptedAttributesSequence" in dataset:
            raise BadImage("has encrypted attributes and no pixels: decrypt it first")
        if is_directory(dataset):
            raise BadImage("is a DICOMDIR, a list of files: name one of them, or the folder of a series")
        raise BadImage(f"has no pixels (it is of modality {dataset.get('Modality') or 'unknown'})")
    try:
        values = pixel_array(dataset, index=frame)
    except unreadable() as error:
        raise BadImage(_why_not(dataset, error)) from error
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadImage("holds values that are NaN or infinite")
    return values


def _why_not(dataset: Dataset, error: Exception) -> str:
    from pydicom.pixels import get_decoder  # pyright: ignore[reportPrivateImportUsage]
    from pydicom.uid import UID

    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        return "does not say how its pixels are encoded: it has no transfer syntax"
    name = UID(syntax).name
    try:
        decoder = get_decoder(UID(syntax))
    except NotImplementedError:
        return f"holds pixels encoded or encrypted as {name}, which pydicom does not know"
    if not decoder.is_available:
        needs = " or ".join(" ".join(one.split()) for one in decoder.missing_dependencies)
        return f"is compressed as {name}; to decode it, install one of: {needs}"
    said = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
    return f"holds pixels ({name}) that cannot be decoded: {said}"


def _shown(dataset: Dataset, frame: int, values: np.ndarray, window: tuple[float, float] | None) -> Plane:
    from pydicom.pixels import apply_color_lut  # pyright: ignore[reportPrivateImportUsage]

    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if values.ndim == 3:
        return Plane(_in_bytes(values, int(dataset.BitsStored)))
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(values, dataset)[..., :3]
        return Plane(_in_bytes(colours, 8 * colours.dtype.itemsize))
    if not kind.startswith("MONOCHROME"):
        raise BadImage(f"has the photometric interpretation {kind} and one value a pixel, which has no defined look")
    inverted = kind == "MONOCHROME1"
    padding = dataset.get("PixelPaddingValue")
    counted = values != padding if isinstance(padding, int | float) else None
    rescaled, as_stored = _rescaled(dataset, frame, values)
    lookup = None if window is not None else _voi_lookup(dataset, rescaled)
    if lookup is not None:
        return Plane(lookup, inverted)
    found = (*window, "LINEAR") if window is not None else _own_window(dataset, frame)
    if found is not None:
        return Plane(windowed(rescaled, *found), inverted)
    bits = int(dataset.get("BitsStored", 32))
    if as_stored and bits <= 8 and values.dtype.kind == "u":
        return Plane(_in_bytes(values, bits), inverted)
    return Plane(rescaled.astype(np.float64), inverted, counted)


def _in_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    if bits >= 8:
        return (values >> (bits - 8)).astype(np.uint8)
    return np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)


def _rescaled(dataset: Dataset, frame: int, values: np.ndarray) -> tuple[np.ndarray, bool]:
    """In the modality's units (HU, …), and whether these are the stored values."""
    from pydicom.pixels import apply_modality_lut  # pyright: ignore[reportPrivateImportUsage]

    if "ModalityLUTSequence" in dataset:
        return apply_modality_lut(values, dataset), False
    holder = of_frame(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    if slope is None or intercept is None or (float(slope), float(intercept)) == (1.0, 0.0):
        return values, True
    return values * float(slope) + float(intercept), False


def _voi_lookup(dataset: Dataset, values: np.ndarray) -> np.ndarray | None:
    from pydicom.pixels import apply_voi  # pyright: ignore[reportPrivateImportUsage]

    tables = dataset.get("VOILUTSequence")
    if not tables or tables[0].get("LUTData") is None:
        return None
    bits = int(tables[0].LUTDescriptor[2])
    looked_up = apply_voi(np.rint(values).astype(np.int64), dataset, index=0).astype(np.float64)
    return np.rint(looked_up * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _own_window(dataset: Dataset, frame: int) -> tuple[float, float, str] | None:
    """The first one that the file gives."""
    holder = of_frame(dataset, frame, "FrameVOILUTSequence") or dataset
    centre, width = _first(holder.get("WindowCenter")), _first(holder.get("WindowWidth"))
    if centre is None or width is None or not np.isfinite([centre, width]).all() or width <= 0:
        return None
    return centre, width, str(holder.get("VOILUTFunction") or "LINEAR")


def _first(value: Any) -> float | None:
    values = [value] if isinstance(value, str | int | float) else list(value or ())
    return float(values[0]) if values and values[0] != "" else None


def of_frame(dataset: Dataset, frame: int, group: str) -> Dataset | None:
    """The functional group of a frame (enhanced CT and MR), its own before the one that all share."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    for holder in (*own[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or ())):
        if found := holder.get(group):
            return found[0]
    return None


def in_order(header: Dataset) -> list[int]:
    """Frames along the normal of their plane where the file gives each a place of its own, else as they stand."""
    try:
        count = max(1, int(header.get("NumberOfFrames") or 1))
    except (TypeError, ValueError) as error:
        raise BadImage(f"has {header.get('NumberOfFrames')!r} as its number of frames") from error
    places = []
    for frame in range(count):
        position = of_frame(header, frame, "PlanePositionSequence")
        orientation = of_frame(header, frame, "PlaneOrientationSequence")
        if position is None or orientation is None:
            return list(range(count))
        place = along_normal(position.get("ImagePositionPatient"), orientation.get("ImageOrientationPatient"))
        if place is None:
            return list(range(count))
        places.append(round(place, 3))
    return sorted(range(count), key=places.__getitem__) if len(set(places)) == count else list(range(count))


def along_normal(position: Any, orientation: Any) -> float | None:
    """mm; for axial slices, from the feet to the head."""
    if position is None or orientation is None or len(position) != 3 or len(orientation) != 6:
        return None
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    return float(np.cross(row, column) @ np.array(position, float))


def duration(header: Dataset, count: int) -> float | None:
    step = _first(header.get("FrameTime"))  # ms
    if step and step > 0:
        return count * step / 1000
    rate = _first(header.get("CineRate")) or _first(header.get("RecommendedDisplayFrameRate"))
    return count / rate if rate and rate > 0 else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
