# SPDX-License-Identifier: Apache-2.0
"""The distance of a face in a cloud of points."""

from __future__ import annotations

import math

import numpy as np
import pytest

from interactive_avatar.perception import Camera, distance_in_box

CAMERA = Camera(500.0, 500.0, 320.0, 240.0)
BOX = (280.0, 180.0, 360.0, 300.0)


def scene(face_m: float, wall_m: float = 4.0) -> np.ndarray:
    """A wall and, before it, a face-sized patch in the middle: float64 [n, 3]."""
    v, u = np.mgrid[0:480:8, 0:640:8]
    depth = np.full(u.shape, wall_m)
    depth[(abs(u - 320) < 40) & (abs(v - 240) < 60)] = face_m
    return np.stack([(u - 320) / 500 * depth, (v - 240) / 500 * depth, depth], -1).reshape(-1, 3)


def test_the_face_is_measured_and_not_the_wall() -> None:
    assert distance_in_box(scene(1.3), BOX, CAMERA) == pytest.approx(1.3, abs=0.02)


def test_holes_and_stray_points_do_not_matter() -> None:
    points = scene(1.3)
    points[::3] = np.nan
    stray = np.array([[0.0, 0.0, 0.4]] * 3 + [[0.0, 0.0, -1.0]] * 3 + [[0.0, 0.0, 0.0]])
    found = distance_in_box(np.concatenate([stray, points]), BOX, CAMERA)
    assert found == pytest.approx(1.3, abs=0.02)


def test_an_empty_box_has_no_distance_and_other_arrays_are_refused() -> None:
    assert math.isnan(distance_in_box(scene(1.3)[:4], BOX, CAMERA))
    assert math.isnan(distance_in_box(np.zeros((0, 3)), BOX, CAMERA))
    with pytest.raises(ValueError, match=r'shape \(5, 2\)'):
        distance_in_box(np.zeros((5, 2)), BOX, CAMERA)
