"""Values of any range to the 256 greys of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (0.5, 99.5)  # black and white of what has no window


@dataclass(frozen=True, slots=True)
class Plane:
    """One slice: bytes to show as they are, or values that still want black and white."""

    values: np.ndarray  # [h, w] or [h, w, 3] uint8; or [h, w] float
    inverted: bool = False  # MONOCHROME1: low values are white
    counted: np.ndarray | None = None  # [h, w] bool: what percentiles are taken over; None: everything


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, to uint8."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    elif width <= 1:
        share = (values > centre - 0.5).astype(np.float64)
    else:
        share = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint(((values.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)


def finished(planes: Sequence[Plane]) -> list[np.ndarray]:
    """uint8, [h, w] or [h, w, 3]. Those without a window share one: the same value is the same grey in all of them."""
    low, high = 0.0, 0.0
    raw = [plane for plane in planes if plane.values.dtype != np.uint8]
    if raw:
        told = [plane.values if plane.counted is None else plane.values[plane.counted] for plane in raw]
        values = np.concatenate([one.ravel() for one in told])
        if not len(values):
            values = np.concatenate([plane.values.ravel() for plane in raw])
        low, high = (float(value) for value in np.percentile(values, PERCENTILES))
        if low == high:  # a thin structure on an even ground
            low, high = float(values.min()), float(values.max())
    shown = [plane.values if plane.values.dtype == np.uint8 else between(plane.values, low, high) for plane in planes]
    return [255 - values if plane.inverted else values for plane, values in zip(planes, shown, strict=True)]
