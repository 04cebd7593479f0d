"""One drawing for each modality, four anatomies each. Drawn from numbers: nothing here is a photograph, and no medical
truth follows from it; what a question asks for is really in the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from grpo_fast.data.phantom_canvas import Array, Canvas

DARK, BRIGHT, RING, MARKED = 1, 2, 3, 4  # kinds of lesion; 0: none; marked: under a tracer's colour
RADII = (0.10, 0.20, 0.33, 0.48)  # of a lesion, by grade
TRACERS = ((0.95, 0.10, 0.12), (0.98, 0.88, 0.10), (0.08, 0.75, 0.20), (0.12, 0.25, 0.95))  # red, yellow, green, blue


@dataclass(frozen=True, slots=True)
class Scene:
    modality: str
    anatomy: int = 0
    kind: int = 0
    grade: int = 2
    colour: int = 0  # of TRACERS, where the lesion is marked


def draw(scene: Scene, size: int, rng: np.random.Generator) -> Array:
    """[size, size, 3] bytes."""
    return DRAWINGS[scene.modality](scene, size, rng).bytes()


def lesion(c: Canvas, scene: Scene, tones: tuple[object, object, object], reach: tuple[float, float]) -> None:
    """In the upper left part, `reach` from the centre. `tones`: of a dark, of a bright, of a ring-shaped one."""
    if scene.kind == 0:
        return
    dx, dy, growth, squeeze = c.rng.uniform((-0.05, -0.05, 0.94, 0.88), (0.05, 0.05, 1.06, 1.0)).tolist()
    cx, cy = dx - reach[0], dy - reach[1]
    radius = RADII[scene.grade] * growth
    flat = radius * squeeze
    if scene.kind == RING:
        c.paint(c.ring(cx, cy, radius, flat, width=0.16), tones[2])
    else:
        tone = TRACERS[scene.colour] if scene.kind == MARKED else tones[scene.kind - 1]
        c.paint(c.disc(cx, cy, radius, flat), tone, 0.95)


def ct(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    c = Canvas(size, rng, 0.02)
    sx, sy = rng.uniform(-0.03, 0.03, 2).tolist()
    c.paint(c.band(0.84 - 0.1 * (1 - c.x**2), 0.88 - 0.1 * (1 - c.x**2)), 0.35)  # the table
    if scene.anatomy == 2:  # brain
        c.paint(c.disc(sx, sy, 0.68, 0.84), 0.95)
        c.paint(c.disc(sx, sy, 0.58, 0.74), 0.42 + 0.05 * c.texture(9))
        for side in (-1, 1):
            c.paint(c.disc(sx + side * 0.12, sy - 0.1, 0.08, 0.24, side * 0.35), 0.12)
        return _scanned(c, scene, 0.03, (0.35, 0.4))
    c.paint(c.disc(sx, sy, 0.92, 0.76), 0.28)  # fat below the skin
    c.paint(c.disc(sx, sy, 0.84, 0.68), 0.46 + 0.03 * c.texture(7))
    if scene.anatomy == 0:  # abdomen
        c.paint(c.disc(sx - 0.36, sy - 0.12, 0.42, 0.42), 0.56)
        c.paint(c.disc(sx + 0.42, sy - 0.2, 0.28, 0.3), 0.52)
        for side in (-1, 1):
            c.paint(c.disc(sx + side * 0.4, sy + 0.34, 0.14, 0.2, side * 0.3), 0.6)
        c.paint(c.disc(sx, sy + 0.1, 0.07), 0.68)
    elif scene.anatomy == 1:  # chest
        for side in (-1, 1):
            c.paint(c.disc(sx + side * 0.43, sy, 0.32, 0.5, side * 0.15), 0.06)
        c.paint(c.disc(sx + 0.08, sy - 0.1, 0.22, 0.28), 0.58)
    else:  # pelvis
        for side in (-1, 1):
            c.paint(c.ring(sx + side * 0.52, sy + 0.05, 0.24, 0.3, width=0.12), 0.92)
            c.paint(c.disc(sx + side * 0.52, sy + 0.05, 0.14), 0.85)
        c.paint(c.disc(sx, sy - 0.18, 0.26, 0.2), 0.66)
    c.paint(c.disc(sx, sy + 0.44, 0.14, 0.12), 0.95)  # a vertebra
    c.paint(c.disc(sx, sy + 0.58, 0.05, 0.1), 0.9)
    return _scanned(c, scene, 0.03, (0.42, 0.32))


def _scanned(c: Canvas, scene: Scene, noise: float, reach: tuple[float, float]) -> Canvas:
    lesion(c, scene, (0.06, 0.98, 0.98), reach)
    c.noise(noise)
    return c


def mri(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    c = Canvas(size, rng, 0.03)
    sx, sy = rng.uniform(-0.03, 0.03, 2).tolist()
    if scene.anatomy == 0:  # brain
        c.paint(c.disc(sx, sy, 0.76, 0.92), 0.75)
        c.paint(c.disc(sx, sy, 0.71, 0.87), 0.05)
        folds = np.sin(26 * c.radius(sx, sy) + 5 * c.texture(6) + 7 * np.arctan2(c.y - sy, c.x - sx))
        inner = c.disc(sx, sy, 0.5, 0.64)
        c.paint(c.disc(sx, sy, 0.65, 0.8), 0.38 + 0.1 * folds * (1 - inner))
        c.paint(inner, 0.52)
        for side in (-1, 1):
            c.paint(c.disc(sx + side * 0.1, sy, 0.06, 0.22, side * 0.3), 0.1)
        c.paint(c.line(sx, sy - 0.75, sx, sy + 0.75, 0.03), 0.12)
    elif scene.anatomy == 1:  # knee
        c.paint(c.disc(sx, sy, 0.7, 1.1), 0.3)
        c.paint(c.line(sx, -1.2, sx, sy - 0.42, 0.55), 0.72)
        c.paint(c.disc(sx, sy - 0.3, 0.52, 0.24), 0.74)
        c.paint(c.disc(sx, sy + 0.3, 0.52, 0.22), 0.7)
        c.paint(c.line(sx, sy + 0.42, sx, 1.2, 0.5), 0.7)
        c.paint(c.line(sx - 0.5, sy, sx + 0.5, sy, 0.07), 0.06)
    elif scene.anatomy == 2:  # spine
        c.paint(c.disc(sx, sy, 0.75, 1.3), 0.25 + 0.08 * c.texture(8))
        stack = np.clip(np.cos(np.float32(15) * (c.y - sy)) * 2 + 1.3, 0, 1)
        c.paint(c.soft(0.2 - np.abs(c.x - sx + 0.18 - 0.12 * c.y**2)) * stack, 0.68)
        c.paint(c.soft(0.07 - np.abs(c.x - sx - 0.22 - 0.12 * c.y**2)), 0.92)
    else:  # heart
        c.paint(c.disc(sx, sy, 0.92, 0.75), 0.3 + 0.06 * c.texture(8))
        for side in (-1, 1):
            c.paint(c.disc(sx + side * 0.6, sy - 0.1, 0.24, 0.45), 0.05)
        c.paint(c.disc(sx + 0.05, sy, 0.4, 0.36), 0.16)
        c.paint(c.disc(sx + 0.12, sy, 0.24), 0.95)
    lesion(c, scene, (0.02, 0.98, 0.95), (0.33, 0.36))
    across, down = rng.uniform(-0.2, 0.2, 2).tolist()
    c.shade(1 + across * c.x + down * c.y)  # the coil's uneven sensitivity
    c.noise(0.035)
    c.image = np.abs(c.image)
    return c


def x_ray(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    c = Canvas(size, rng, 0.08)
    sx, sy = rng.uniform(-0.03, 0.03, 2).tolist()
    if scene.anatomy == 0:  # chest
        c.paint(c.disc(sx, 0.25, 0.98, 1.2), 0.62)
        for side in (-1, 1):
            c.paint(c.disc(sx + side * 0.42, sy - 0.02, 0.36, 0.78), 0.38)
        for rib in np.arange(-0.75, 0.75, 0.24).tolist():
            arc = rib + 0.28 * (np.abs(c.x - sx) - 0.4) ** 2
            c.paint(c.band(arc - 0.03, arc + 0.03) * c.disc(sx, sy, 0.85, 0.85), 0.6, 0.5)
        c.paint(c.line(sx, -1, sx, 1, 0.16), 0.74)
        c.paint(c.disc(sx + 0.12, sy + 0.3, 0.24, 0.28), 0.7)
        c.paint(c.band(0.72 - 0.12 * np.cos(6 * (c.x - sx)), 2.0), 0.75)
    elif scene.anatomy == 1:  # hand
        c.paint(c.disc(sx, sy + 0.5, 0.5, 0.42), 0.35)
        tips = ((-0.75, -0.05), (-0.4, -0.7), (-0.05, -0.85), (0.28, -0.75), (0.58, -0.45))
        for k, (tx, ty) in enumerate(tips):
            bx, by = (k - 2) * 0.17, sy + 0.55
            c.paint(c.line(sx + bx, by, sx + tx, ty, 0.22), 0.35)
            for start, end in ((0.0, 0.42), (0.47, 0.72), (0.77, 0.98)):
                ends = [(bx + t * (tx - bx), by + t * (ty - by)) for t in (start, end)]
                c.paint(c.line(sx + ends[0][0], ends[0][1], sx + ends[1][0], ends[1][1], 0.11), 0.9)
        c.paint(c.line(sx - 0.1, 0.8, sx - 0.1, 1.2, 0.18), 0.88)
        c.paint(c.line(sx + 0.14, 0.8, sx + 0.14, 1.2, 0.16), 0.86)
    elif scene.anatomy == 2:  # skull
        c.paint(c.disc(sx + 0.08, sy - 0.15, 0.78, 0.68), 0.45 + 0.05 * c.texture(8))
        c.paint(c.ring(sx + 0.08, sy - 0.15, 0.76, 0.66, width=0.1), 0.9)
        c.paint(c.disc(sx - 0.5, sy + 0.05, 0.16), 0.18)
        c.paint(c.line(sx - 0.55, sy + 0.7, sx + 0.15, sy + 0.55, 0.22), 0.8)
        for tooth in np.arange(-0.55, 0.0, 0.11).tolist():
            c.paint(c.disc(sx + tooth, sy + 0.52, 0.04, 0.08), 0.98)
    else:  # leg
        c.paint(c.line(sx, -1.2, sx, 1.2, 1.0), 0.3)
        for side, width in ((-0.14, 0.28), (0.3, 0.14)):
            c.paint(c.line(sx + side, -0.5, sx + side, 1.2, width), 0.85)
            c.paint(c.line(sx + side, -0.4, sx + side, 1.2, width * 0.4), 0.55)
        c.paint(c.disc(sx, -0.55, 0.45, 0.2), 0.88)
        c.paint(c.line(sx, -1.2, sx, -0.85, 0.5), 0.85)
    lesion(c, scene, (0.03, 0.97, 0.97), (0.42, 0.36))
    c.noise(0.02)
    return c


def ultrasound(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    c = Canvas(size, rng, 0.36)
    sx, sy = rng.uniform(-0.04, 0.04, 2).tolist()
    if scene.anatomy == 0:  # liver
        c.paint(c.line(-0.9, 0.75, 0.9, 0.45, 0.07), 0.85)
        c.paint(c.disc(sx + 0.1, sy, 0.1, 0.05, 0.6), 0.06)
    elif scene.anatomy == 1:  # kidney
        c.paint(c.disc(sx, sy + 0.1, 0.62, 0.34, 0.2), 0.16)
        c.paint(c.disc(sx, sy + 0.1, 0.36, 0.13, 0.2), 0.85)
    elif scene.anatomy == 2:  # heart
        c.paint(c.disc(sx, sy + 0.1, 0.58, 0.66), 0.6)
        for px, py in ((-0.25, -0.14), (0.25, -0.14), (-0.22, 0.38), (0.22, 0.38)):
            c.paint(c.disc(sx + px, sy + py, 0.2, 0.22), 0.02)
    else:  # fetus
        c.paint(c.disc(sx, sy + 0.12, 0.72, 0.58), 0.03)
        c.paint(c.disc(sx - 0.3, sy, 0.25), 0.35)
        c.paint(c.ring(sx - 0.3, sy, 0.25, width=0.1), 0.98)
        c.paint(c.disc(sx + 0.2, sy + 0.2, 0.3, 0.2, 0.4), 0.6)
    lesion(c, scene, (0.01, 0.98, 0.95), (0.33, 0.3))
    depth, angle = c.radius(0, -1.25), np.arctan2(c.x, c.y + 1.25)
    speckle = rng.exponential(1.0, (size, size)).astype(np.float32)
    c.shade(0.45 + 0.5 * np.sqrt(speckle))
    fan = c.soft(0.62 - np.abs(angle)) * c.soft(depth - 0.42) * c.soft(2.12 - depth)
    c.shade(fan * (1.25 - 0.25 * depth))
    return c


def dermoscopy(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    skin = np.array([0.80, 0.57, 0.45], np.float32) + float(rng.uniform(-0.05, 0.05))
    c = Canvas(size, rng, skin)
    c.image += 0.05 * c.texture(12)[..., None]
    if scene.anatomy == 1:  # scalp
        c.image *= 0.8
    elif scene.anatomy == 2:  # palm: parallel ridges
        lean = float(rng.uniform(-0.5, 0.5))
        c.image += np.array((0.12, 0.2, 0.15), np.float32)
        c.image += (0.13 * np.sin(22 * (c.y + lean * c.x) + 2 * c.texture(4)))[..., None]
    elif scene.anatomy == 3:  # nail
        c.paint(c.disc(0, 0.95, 0.68, 1.15), (0.95, 0.80, 0.76))
        c.paint(c.ring(0, 0.95, 0.68, 1.15, width=0.09), (0.66, 0.38, 0.33))
        c.paint(c.disc(0, 1.0, 0.4, 0.35), (0.98, 0.92, 0.88))
    lesion(c, scene, ((0.2, 0.1, 0.08), (1.0, 0.97, 0.93), (0.75, 0.12, 0.14)), (0.36, 0.36))
    if scene.anatomy == 1:  # scalp: hair over everything
        for _ in range(14):
            x0, y0, turn = rng.uniform((-1, -1, -0.5), (1, 1, 0.5)).tolist()
            c.paint(c.line(x0 - 0.7, y0 - turn, x0 + 0.7, y0 + turn, 0.06), (0.15, 0.1, 0.08), 0.9)
    c.shade(1 - 0.9 * c.soft(c.radius(0, 0) - 1.08))  # the lens
    c.noise(0.025, coloured=True)
    return c


def fundus(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    c = Canvas(size, rng, 0.0)
    retina, vessel = np.array([0.80, 0.38, 0.16], np.float32), (0.45, 0.07, 0.06)
    disc_at = {0: 0.62, 1: 0.0, 2: 1.4, 3: 2.2}[scene.anatomy] * (1 if rng.random() < 0.5 else -1)
    tone = retina * (0.85 if scene.anatomy == 3 else 1) * (1 + 0.08 * c.texture(7)[..., None])
    c.image[:] = tone
    side = -1 if disc_at > 0 else 1
    if scene.anatomy == 3:  # periphery: parallel vessels, and the dark rim of the retina
        for k in range(4):
            c.paint(c.line(-1, -0.8 + 0.45 * k, 1, -0.7 + 0.5 * k, 0.06), vessel, 0.8)
        c.paint(c.soft(side * c.x - 0.35 - 0.15 * np.sin(9 * c.y)), (0.16, 0.10, 0.08))
    else:
        if scene.anatomy != 1:  # the macula, opposite to the disc
            at = 0.0 if scene.anatomy == 2 else -0.28 if disc_at > 0 else 0.28
            c.paint(c.disc(at, 0.0, 0.4 if scene.anatomy == 2 else 0.12), (0.42, 0.14, 0.06), 0.8)
        for arm in (-1, 1):
            for reach, width in ((0.55, 0.08), (0.85, 0.05)):
                bow = arm * reach * np.sqrt(np.clip(np.abs(c.x - disc_at), 0, 2) + 0.002)
                c.paint(c.soft(width / 2 - np.abs(c.y - bow) / 1.4), vessel, 0.75)
        size_of_disc = 0.42 if scene.anatomy == 1 else 0.2
        c.paint(c.disc(disc_at, 0.0, size_of_disc, size_of_disc * 1.1), (0.98, 0.82, 0.45))
        c.paint(c.disc(disc_at, 0.0, size_of_disc * 0.45), (1.0, 0.96, 0.78))
    lesion(c, scene, ((0.22, 0.01, 0.02), (1.0, 0.95, 0.55), (1.0, 0.95, 0.7)), (0.36, 0.38))
    c.shade(c.soft(0.95 - c.radius(0, 0)) * (1.05 - 0.3 * c.radius(0, 0) ** 2))
    c.noise(0.02, coloured=True)
    return c


def oct_scan(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    c = Canvas(size, rng, 0.05)
    shift, lean = rng.uniform((-0.05, -0.08), (0.05, 0.08)).tolist()
    level = shift + lean * c.x
    if scene.anatomy in (0, 1):  # retina with the fovea's pit, or cut through by the nerve's cup
        depth, width = (0.3, 0.22) if scene.anatomy == 0 else (1.1, 0.3)
        top = level - 0.62 + depth * np.exp(-((c.x / np.float32(width)) ** 2))
        edges = (0.0, 0.12, 0.34, 0.48, 0.72, 0.9, 0.98, 1.12, 1.4)
        tones = (0.8, 0.45, 0.62, 0.32, 0.5, 0.22, 0.95, 0.42)
        base = level - 0.62
        for above, below, tone in zip(edges, edges[1:], tones, strict=False):
            c.paint(c.band(base + above, base + below), tone)
        c.paint(c.soft(top - c.y), 0.04)
    elif scene.anatomy == 2:  # cornea: a bright dome
        dome = level - 0.55 + 0.75 * c.x**2
        c.paint(c.band(dome, dome + 0.34), 0.42)
        for at in (0.0, 0.34):
            c.paint(c.band(dome + at - 0.04, dome + at + 0.04), 0.95)
        c.paint(c.band(level + 0.62, level + 0.82) * c.soft(np.abs(c.x) - 0.25), 0.6)
    else:  # the angle between cornea and iris
        side = 1 if rng.random() < 0.5 else -1
        slope = side * c.x
        c.paint(c.band(-0.75 + 0.55 * slope + shift, -0.4 + 0.55 * slope + shift), 0.85)
        c.paint(c.band(0.55 - 0.35 * slope + shift, 0.85 - 0.35 * slope + shift), 0.6)
        c.paint(c.soft(slope - 0.7), 0.5)
    lesion(c, scene, (0.02, 1.0, 1.0), (0.45, 0.27))
    c.shade(0.72 + 0.28 * np.sqrt(rng.exponential(1.0, (size, size)).astype(np.float32)))
    c.noise(0.03)
    return c


def microscopy(scene: Scene, size: int, rng: np.random.Generator) -> Canvas:
    pink, purple = np.array(((0.93, 0.72, 0.82), (0.42, 0.22, 0.58)), np.float32)
    c = Canvas(size, rng, pink)
    c.image += 0.04 * c.texture(10)[..., None]
    if scene.anatomy == 0:  # liver: close cells, each with its nucleus
        away, drawn = c.scattered(9, 0.14)
        c.paint(c.soft((away - 0.46) / 4.5), (0.80, 0.50, 0.66))
        c.paint(c.soft((0.2 - away) / 4.5), purple + 0.1 * drawn[..., None])
    elif scene.anatomy == 1:  # blood: red discs, pale in the middle, apart from each other
        c.image[:] = 0.95
        away, drawn = c.scattered(6, 0.1)
        c.paint(c.soft((0.38 - away) / 3), (0.86, 0.36, 0.38))
        c.paint(c.soft((0.14 - away) / 3), (0.95, 0.66, 0.66))
        c.paint(c.soft((0.3 - away) / 3) * (drawn > 0.94), purple)
    elif scene.anatomy == 2:  # muscle: parallel fibres
        lean = float(rng.uniform(-0.4, 0.4))
        fibre = np.sin(13 * (c.y + lean * c.x) + c.texture(4))
        c.image[:] = np.array([0.85, 0.42, 0.55], np.float32) + (0.12 * fibre)[..., None]
        away, _ = c.scattered(7, 0.3)
        c.paint(c.soft((0.12 - away) / 3.5), purple)
    else:  # gland: rings of nuclei around a pale lumen
        away, _ = c.scattered(3, 0.06)
        c.paint(c.soft((0.44 - away) / 1.5), purple)
        c.paint(c.soft((0.28 - away) / 1.5), (0.99, 0.95, 0.97))
    lesion(c, scene, ((0.12, 0.03, 0.2), (1.0, 1.0, 0.9), (0.15, 0.02, 0.35)), (0.42, 0.42))
    c.noise(0.02, coloured=True)
    return c


DRAWINGS: dict[str, Callable[[Scene, int, np.random.Generator], Canvas]] = {
    "ct": ct,
    "mri": mri,
    "x-ray": x_ray,
    "ultrasound": ultrasound,
    "dermoscopy": dermoscopy,
    "fundus": fundus,
    "oct": oct_scan,
    "microscopy": microscopy,
}
