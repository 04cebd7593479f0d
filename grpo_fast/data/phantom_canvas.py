"""What phantom draws with: soft shapes on a square of [-1, 1] × [-1, 1], x to the right and y down."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Array, Array]:
    steps = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    return np.broadcast_to(steps, (size, size)).copy(), np.broadcast_to(steps[:, None], (size, size)).copy()


@lru_cache(maxsize=32)
def _upsampling(size: int, cells: int) -> Array:
    """[size, cells] linear interpolation of `cells` knots over `size` pixels."""
    place = np.linspace(0, cells - 1, size)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


class Canvas:
    def __init__(self, size: int, rng: np.random.Generator, background: Any = 0.0) -> None:
        self.size, self.rng = size, rng
        self.x, self.y = _grid(size)
        self.image = np.empty((size, size, 3), np.float32)
        self.image[:] = background

    def paint(self, mask: Array, colour: Any, opacity: float = 1.0) -> None:
        """Blend a grey level or an RGB colour, of one tone or of one a pixel, over the picture."""
        tone = np.asarray(colour, np.float32)
        tone = tone[..., None] if tone.shape == mask.shape else tone
        self.image += (opacity * mask)[..., None] * (tone - self.image)

    def shade(self, factor: Array) -> None:
        self.image *= factor[..., None]

    def radius(self, cx: float, cy: float, rx: float = 1.0, ry: float | None = None, angle: float = 0.0) -> Array:
        """Distance from a centre in units of an ellipse's half axes."""
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        if angle:
            cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        return np.hypot(dx / np.float32(rx), dy / np.float32(rx if ry is None else ry))

    def disc(self, cx: float, cy: float, rx: float, ry: float | None = None, angle: float = 0.0) -> Array:
        """Soft mask of a filled ellipse."""
        small = min(rx, rx if ry is None else ry)
        return self.soft((1 - self.radius(cx, cy, rx, ry, angle)) * np.float32(small))

    def ring(self, cx: float, cy: float, rx: float, ry: float | None = None, width: float = 0.06) -> Array:
        small = min(rx, rx if ry is None else ry)
        return self.soft(np.float32(width / 2) - np.abs(self.radius(cx, cy, rx, ry) - 1) * np.float32(small))

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float) -> Array:
        """Soft mask of a straight stroke with round ends."""
        dx, dy = x1 - x0, y1 - y0
        along = ((self.x - x0) * dx + (self.y - y0) * dy) / max(dx * dx + dy * dy, 1e-9)
        along = np.clip(along, 0, 1)
        return self.soft(np.float32(width / 2) - np.hypot(self.x - x0 - along * dx, self.y - y0 - along * dy))

    def band(self, top: Any, bottom: Any) -> Array:
        """Soft mask of what lies between two heights, numbers or one for each pixel."""
        return self.soft(self.y - top) * self.soft(bottom - self.y)

    def soft(self, inside: Array) -> Array:
        """A signed distance (positive inside) to a mask whose edge is two pixels wide."""
        return np.clip(inside * np.float32(self.size / 4) + np.float32(0.5), 0, 1)

    def texture(self, cells: int) -> Array:
        """Smooth noise in [-1, 1] with `cells` knots a side."""
        knots = self.rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        up = _upsampling(self.size, cells)
        return up @ knots @ up.T

    def scattered(self, cells: int, spread: float = 0.25) -> tuple[Array, Array]:
        """Distance of each pixel to the point of its own cell in a jittered lattice, in cells, and a random number
        in [0, 1) that belongs to that cell."""
        u, v = (self.x + 1) * np.float32(cells / 2), (self.y + 1) * np.float32(cells / 2)
        i, j = np.minimum(u.astype(np.intp), cells - 1), np.minimum(v.astype(np.intp), cells - 1)
        jitter = self.rng.uniform(-spread, spread, (2, cells, cells)).astype(np.float32) + np.float32(0.5)
        drawn = self.rng.random((cells, cells), dtype=np.float32)
        du, dv = u - i.astype(np.float32) - jitter[0][j, i], v - j.astype(np.float32) - jitter[1][j, i]
        return np.hypot(du, dv), drawn[j, i]

    def noise(self, strength: float, *, coloured: bool = False) -> None:
        shape = (self.size, self.size, 3 if coloured else 1)
        self.image += np.float32(strength) * self.rng.standard_normal(shape, dtype=np.float32)

    def bytes(self) -> Array:
        return (np.clip(self.image, 0, 1) * 255 + 0.5).astype(np.uint8)
