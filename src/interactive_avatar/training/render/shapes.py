# SPDX-License-Identifier: Apache-2.0
"""Things made here and not taken from a library: glasses, two hats, backgrounds.

Lengths are decimetres in the head's frame: origin midway between the eyes, x to the picture's
right, y up, z toward the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """Triangles with one texture coordinate per vertex.

    Attributes:
        vertices: float32 [g, 3] dm.
        uvs: float32 [g, 2].
        triangles: int32 [t, 3].
    """

    vertices: np.ndarray
    uvs: np.ndarray
    triangles: np.ndarray


@dataclass(frozen=True)
class HeadFit:
    """What an accessory must know of a head.

    Attributes:
        pupil: float32 [3] person's left pupil (x > 0), dm.
        lens_z: depth at which lenses clear the lashes and brows, dm.
        ear_x: half width of the head above the ears, dm.
        ear_z: depth of the ears, dm.
        skull: float32 [2, 3] lower and upper corner of the skull above the eyes, dm.
    """

    pupil: np.ndarray
    lens_z: float
    ear_x: float
    ear_z: float
    skull: np.ndarray


def join(meshes: list[Mesh]) -> Mesh:
    """Put meshes side by side into one."""
    base = np.cumsum([0] + [len(m.vertices) for m in meshes])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]).astype(np.float32),
        np.concatenate([m.uvs for m in meshes]).astype(np.float32),
        np.concatenate([m.triangles + b for m, b in zip(meshes, base)]).astype(np.int32),
    )


def grid(points: np.ndarray, wrap: bool = False, flip: bool = False) -> Mesh:
    """Make triangles of a grid of points.

    Args:
        points: float [rows, columns, 3].
        wrap: whether the last column meets the first.
        flip: turn the triangles over.

    Returns:
        The mesh, with uv = (column, row) in 0..1.
    """
    rows, columns = points.shape[:2]
    right = np.roll(np.arange(columns), -1) if wrap else np.arange(1, columns)
    left = np.arange(columns) if wrap else np.arange(columns - 1)
    r = np.arange(rows - 1)[:, None] * columns
    a, b = (r + left).ravel(), (r + right).ravel()
    c, d = a + columns, b + columns
    triangles = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    if flip:
        triangles = triangles[:, ::-1]
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing='ij')
    return Mesh(points.reshape(-1, 3).astype(np.float32),
                np.stack([u, v], -1).reshape(-1, 2).astype(np.float32),
                triangles.astype(np.int32))


def tube(path: np.ndarray, radius: Sequence[float] | float, sides: int, closed: bool) -> Mesh:
    """Sweep a circle along a path.

    Args:
        path: float [k, 3] centre line.
        radius: dm, one value or [2] for the two cross directions.
        sides: corners of the circle.
        closed: whether the path is a loop.

    Returns:
        The mesh.
    """
    step = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    forward = step / np.linalg.norm(step, axis=1, keepdims=True)
    out = np.cross(forward, [0.0, 0.0, 1.0])
    weak = np.linalg.norm(out, axis=1, keepdims=True) < 0.3
    out = np.where(weak, np.cross(forward, [1.0, 0.0, 0.0]), out)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    up = np.cross(out, forward)
    radii = np.broadcast_to(np.asarray(radius, np.float64), (2,))
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = (np.cos(angle)[None, :, None] * out[:, None] * radii[0]
            + np.sin(angle)[None, :, None] * up[:, None] * radii[1])
    points = path[:, None] + ring
    if closed:
        points = np.concatenate([points, points[:1]])
    return grid(points, wrap=True)


GLASSES_KINDS = ('round', 'square', 'oval')


def glasses(kind: str, fit: HeadFit) -> tuple[Mesh, Mesh]:
    """Make a pair of glasses that fits.

    Args:
        kind: one of GLASSES_KINDS.
        fit: the head.

    Returns:
        Frame and lenses.
    """
    width, height, power, wire = {
        'round': (0.235, 0.225, 2.0, 0.014),
        'square': (0.265, 0.195, 4.5, 0.026),
        'oval': (0.260, 0.180, 2.6, 0.019),
    }[kind]
    # lenses scale with the distance of the eyes, so that no frame is lost on a wide face
    scale = float(np.clip(fit.pupil[0] / 0.31, 0.9, 1.15))
    width, height = width * scale, height * scale
    centre = np.array([fit.pupil[0] * 1.02, -0.03, fit.lens_z])
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ca, sa = np.cos(angle), np.sin(angle)
    x = np.sign(ca) * np.abs(ca) ** (2 / power) * width
    y = np.sign(sa) * np.abs(sa) ** (2 / power) * height
    # the outer edge bends back around the face
    z = -0.35 * np.clip(x + 0.1, 0, None) ** 1.5
    rim = np.stack([x, y, z], 1) + centre
    frame, lens = [tube(rim, [wire, wire * 1.2], 6, True)], []
    rings = np.stack([centre + (rim - centre) * r for r in (0.02, 0.5, 1.0)])
    rings[0, :, 2] += 0.02
    rings[1, :, 2] += 0.015
    lens.append(grid(rings, wrap=True))
    outer = rim[np.argmax(rim[:, 0] + 0.15 * rim[:, 1])]
    hinge = outer + np.array([0.015, 0.0, -0.02])
    ear = np.array([fit.ear_x + 0.01, 0.06, fit.ear_z])
    bend = np.array([max(hinge[0] + 0.03, ear[0] * 0.9), hinge[1], hinge[2] - 0.15])
    s = np.linspace(0, 1, 9)[:, None]
    temple = np.concatenate([hinge + (bend - hinge) * s[::4], bend + (ear - bend) * s[1:]])
    frame.append(tube(temple, [wire * 0.7, wire * 1.3], 5, False))
    mirror = np.array([-1, 1, 1])
    frame += [Mesh(m.vertices * mirror, m.uvs, m.triangles[:, ::-1]) for m in frame]
    lens += [Mesh(m.vertices * mirror, m.uvs, m.triangles[:, ::-1]) for m in lens]
    inner = rim[np.argmin(rim[:, 0] - 0.3 * rim[:, 1])]
    t = np.linspace(-1, 1, 9)[:, None]
    bridge = np.concatenate([inner[0] * t, inner[1] + 0.04 * (1 - t * t) + 0.01,
                             inner[2] + 0.05 * (1 - t * t)], axis=1)
    frame.append(tube(bridge, wire * 1.1, 6, False))
    return join(frame), join(lens)


HAT_KINDS = ('beanie', 'cap')


def hat(kind: str, fit: HeadFit) -> tuple[Mesh, tuple[float, float]]:
    """Make a knitted beanie or a baseball cap that fits over the hair.

    Args:
        kind: one of HAT_KINDS.
        fit: the head.

    Returns:
        The mesh and the plane (a, b) of its edge: hair above y = a + b z is under the hat.
    """
    low, high = fit.skull
    radius = (high - low) / 2 + np.array([0.17, 0.0, 0.20])
    mid = (high + low) / 2
    edge_front, edge_back = (0.52, 0.10) if kind == 'beanie' else (0.56, 0.28)
    slope = (edge_front - edge_back) / (2 * radius[2])
    base = edge_front - slope * (mid[2] + radius[2])
    top = high[1] + (0.28 if kind == 'beanie' else 0.22)
    around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    rows = []
    for u in np.linspace(0, 1, 14):
        # a superellipse in profile: steep at the edge, flat on top
        shrink = (1 - u ** 2.6) ** (1 / 2.2)
        x = mid[0] + radius[0] * shrink * np.sin(around)
        z = mid[2] + radius[2] * shrink * np.cos(around)
        y = (base + slope * z) * (1 - u) + top * u
        rows.append(np.stack([x, y, z], 1))
    dome = grid(np.array(rows), wrap=True, flip=False)
    uvs = dome.uvs * np.array([1.0, 0.75]) + np.array([0.0, 0.25])
    parts = [Mesh(dome.vertices, uvs.astype(np.float32), dome.triangles)]
    if kind == 'beanie':
        fold = []
        for u, grow in ((0.0, 0.0), (-0.04, 0.05), (0.0, 0.085), (0.12, 0.085), (0.25, 0.08),
                        (0.30, 0.05), (0.31, 0.0)):
            x = mid[0] + (radius[0] + grow) * np.sin(around)
            z = mid[2] + (radius[2] + grow) * np.cos(around)
            fold.append(np.stack([x, base + slope * z + u, z], 1))
        band = grid(np.array(fold), wrap=True)
        parts.append(Mesh(band.vertices, band.uvs * np.array([1.0, 0.22], np.float32),
                          band.triangles))
    else:
        sweep = np.linspace(-1.12, 1.12, 25)
        visor = []
        for u in np.linspace(0, 1, 7):
            reach = 0.62 * u * np.cos(sweep * 0.95) ** 0.6
            x = mid[0] + (radius[0] + 0.01 + 0.02 * u) * np.sin(sweep)
            z = mid[2] + (radius[2] + 0.01) * np.cos(sweep) + reach
            y = base + slope * z + 0.03 - 0.24 * u * u - 0.28 * u * np.sin(sweep) ** 2
            visor.append(np.stack([x, y - slope * reach, z], 1))
        sheet = grid(np.array(visor))
        flat = sheet.uvs * np.array([1.0, 0.2], np.float32)
        parts.append(Mesh(sheet.vertices, flat, sheet.triangles))
        under: np.ndarray = sheet.vertices - np.array([0, 0.025, 0], np.float32)
        parts.append(Mesh(under, flat, sheet.triangles[:, ::-1]))
    return join(parts), (float(base + 0.01), float(slope))


def hat_texture(kind: str, size: int = 256) -> np.ndarray:
    """Draw the cloth of a hat, nearly white so that a tint colours it.

    Args:
        kind: one of HAT_KINDS.
        size: edge in pixels.

    Returns:
        uint8 [size, size, 4] RGBA.
    """
    v, u = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing='ij')
    if kind == 'beanie':
        ribs = 0.5 + 0.5 * np.cos(2 * np.pi * u * 48)
        rows = 0.5 + 0.5 * np.cos(2 * np.pi * v * 40)
        shade = 0.72 + 0.22 * ribs ** 0.7 + 0.06 * rows
        shade = np.where(v < 0.22, shade * 1.06, shade)
    else:
        seams = np.abs(((u * 6 + 0.5) % 1) - 0.5) < 0.012
        shade = np.full_like(u, 0.92) - 0.22 * (seams & (v > 0.25))
    grey = (np.clip(shade, 0, 1) * 255).astype(np.uint8)
    return np.dstack([grey, grey, grey, np.full_like(grey, 255)])


def background(rng: np.random.Generator, style: str, size: int = 256) -> np.ndarray:
    """Draw a background: plain wall, gradient, or an out-of-focus room.

    Args:
        rng: decides colours and furniture.
        style: `plain`, `gradient` or `room`.
        size: edge in pixels.

    Returns:
        uint8 [size, size, 3] RGB.

    Raises:
        ValueError: unknown style.
    """
    y, x = np.mgrid[0:size, 0:size] / (size - 1.0)
    hue, value = rng.random(), rng.uniform(0.35, 0.85)
    wall = _hsv(hue, rng.uniform(0.03, 0.3), value)
    if style == 'plain':
        centre = rng.uniform(0.3, 0.7)
        glow = 1.06 - 0.35 * ((x - centre) ** 2 + (y - 0.4) ** 2)
        picture = wall * glow[..., None]
    elif style == 'gradient':
        other = _hsv((hue + rng.uniform(-0.12, 0.12)) % 1, rng.uniform(0.05, 0.4),
                     rng.uniform(0.2, 0.9))
        turn = rng.uniform(0, 2 * np.pi)
        mix = np.clip(0.5 + (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn), 0, 1)[..., None]
        picture = wall * (1 - mix) + other * mix
    elif style == 'room':
        picture = np.ones((size, size, 3)) * wall
        floor = rng.uniform(0.68, 0.9)
        picture[y > floor] = _hsv(rng.uniform(0.03, 0.12), 0.45, rng.uniform(0.25, 0.5))
        for _ in range(rng.integers(3, 7)):
            x0, y0 = rng.uniform(-0.1, 0.9), rng.uniform(0.0, 0.7)
            box = (x > x0) & (x < x0 + rng.uniform(0.1, 0.35))
            box &= (y > y0) & (y < y0 + rng.uniform(0.1, 0.5))
            picture[box] = _hsv(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.2, 0.8))
        if rng.random() < 0.7:
            x0, y0 = rng.choice([rng.uniform(-0.1, 0.15), rng.uniform(0.65, 0.85)]), 0.08
            window = (x > x0) & (x < x0 + 0.28) & (y > y0) & (y < 0.55)
            picture[window] = _hsv(rng.uniform(0.5, 0.6), 0.15, 0.97)
        for _ in range(rng.integers(1, 3)):
            x0, y0, r = rng.random(), rng.uniform(0.1, 0.5), rng.uniform(0.04, 0.08)
            lamp = np.exp(-(((x - x0) / r) ** 2 + ((y - y0) / r) ** 2))
            picture += lamp[..., None] * np.array([0.5, 0.42, 0.28])
        picture = _blur(picture, size / rng.uniform(14, 26))
    else:
        raise ValueError(f'background style {style!r} is unknown; use plain, gradient or room')
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Turn hue, saturation and value (0..1) into RGB float64 [3]."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


def _blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian, edges repeated."""
    reach = int(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        wide = np.pad(picture, pad, mode='edge')
        picture = np.apply_along_axis(lambda line: np.convolve(line, kernel, 'valid'), axis, wide)
    return picture
