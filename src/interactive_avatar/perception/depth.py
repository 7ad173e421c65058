# SPDX-License-Identifier: Apache-2.0
"""How far away a face is, from the points of a depth camera; no ROS."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.perception.face import Camera

# Points on a face, at least, and how far they may lie apart in depth.
LEAST_POINTS: Final = 8
FACE_DEPTH_M: Final = 0.25
# The box of a face holds background at its corners: its inner part is taken.
INNER_SHARE: Final = 0.6


def distance_in_box(points_m: NDArray[np.floating], box: tuple[float, float, float, float],
                    camera: Camera) -> float:
    """Distance of the nearest surface inside a face's box.

    Args:
        points_m: float [n, 3] in the optical frame of the camera (x right, y down, z away),
            metres; rows with NaN or behind the camera are left out.
        box: left, top, right, bottom of the face in that camera's picture, pixels.
        camera: of the picture.

    Returns:
        Metres from the camera; NaN if too few points lie in the box.

    Raises:
        ValueError: if the array is not [n, 3].
    """
    points = np.asarray(points_m, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f'points have shape {points.shape}: give [n, 3], x, y and z in metres')
    points = points[np.isfinite(points).all(axis=1) & (points[:, 2] > 0.05)]
    u = camera.fx * points[:, 0] / points[:, 2] + camera.cx
    v = camera.fy * points[:, 1] / points[:, 2] + camera.cy
    left, top, right, bottom = box
    half_x, half_y = INNER_SHARE * (right - left) / 2.0, INNER_SHARE * (bottom - top) / 2.0
    inside = points[(np.abs(u - (left + right) / 2.0) <= half_x)
                    & (np.abs(v - (top + bottom) / 2.0) <= half_y)]
    if len(inside) < LEAST_POINTS:
        return math.nan
    ranges_m = np.sort(np.linalg.norm(inside, axis=1))
    # A few stray points before the face must not stand for it.
    nearest_m = ranges_m[min(len(ranges_m) - 1, LEAST_POINTS // 2)]
    surface = ranges_m[(ranges_m >= nearest_m) & (ranges_m <= nearest_m + FACE_DEPTH_M)]
    return float(np.median(surface)) if len(surface) >= LEAST_POINTS else math.nan
