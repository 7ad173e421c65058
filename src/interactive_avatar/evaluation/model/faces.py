# SPDX-License-Identifier: Apache-2.0
"""What a face does in a clip, as a few numbers per frame: from MediaPipe's landmarks alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.judges import (
    EYE_OUTER,
    FOREHEAD,
    INNER_LIP_BOTTOM,
    INNER_LIP_TOP,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    NOSE_BASE,
    NOSE_TIP,
    MeshJudge,
    face_measures,
)

Floats = NDArray[np.float64]

LANDMARKS: Final = 478
# Landmarks of the canonical mesh: brows and irises, picture left first.
BROW_INNER: Final = (55, 285)
BROW_MIDDLE: Final = (105, 334)
EYE_INNER: Final = (133, 362)
IRIS: Final = (468, 473)
# Corners of each eye from picture left to picture right.
EYE_CORNERS: Final = ((33, 133), (362, 263))

MEASURES: Final = (
    'lip_gap', 'mouth_width', 'corner_lift', 'brow_inner', 'brow_outer', 'eye_opening', 'gaze_x',
    'gaze_y', 'yaw', 'pitch', 'roll', 'size', 'x', 'y')
"""Columns of `Watched.measures`. Lengths are in distances of the outer eye corners, in the frame
of the head (so that turns matter little): `corner_lift` of the mouth's corners above the middle of
the lips, `brow_*` of the brows above the eyes. `eye_opening` is height over width. `gaze_*` is the
place of the iris between the corners and lids of the eye, -1 to 1, + picture right and up. Angles
in radians, + picture right, up, crown to picture right. `size` is the distance of the outer eye
corners in picture widths; `x`, `y` the tip of the nose in picture widths and heights, y down."""


@dataclass(frozen=True)
class Watched:
    """What the face mesh saw of a clip.

    Attributes:
        landmarks: float32 [n, 478, 3] pixels, NaN in frames without a face.
        measures: float64 [n, len(MEASURES)], NaN in frames without a face.
    """

    landmarks: NDArray[np.float32]
    measures: Floats

    @property
    def found(self) -> NDArray[np.bool_]:
        """Frames with a face, bool [n]."""
        return np.isfinite(self.measures[:, 0])

    def of(self, name: str) -> Floats:
        """One measure, float64 [n]."""
        return self.measures[:, MEASURES.index(name)]

    def part(self, frames: slice) -> Watched:
        """The same of a part of the clip."""
        return Watched(self.landmarks[frames], self.measures[frames])


def measure(points: Floats, width_px: int, height_px: int) -> Floats:
    """Measures of one face.

    Args:
        points: float64 [478, 3] landmarks in pixels: x right, y down, z away from the camera.
        width_px: of the picture.
        height_px: of the picture.

    Returns:
        float64 [len(MEASURES)].
    """
    scale = float(np.linalg.norm(points[EYE_OUTER[0]] - points[EYE_OUTER[1]]))
    across = (points[EYE_OUTER[1]] - points[EYE_OUTER[0]]) / scale
    down = points[NOSE_BASE] - points[FOREHEAD]
    down = down - across * float(down @ across)
    down = down / np.linalg.norm(down)

    def above(upper: int, lower: int) -> float:
        return float((points[lower] - points[upper]) @ down) / scale

    lip_gap, mouth_width, eye_opening, yaw, pitch, roll, _, _ = face_measures(points)
    middle = 0.5 * (points[INNER_LIP_TOP] + points[INNER_LIP_BOTTOM])
    corners = 0.5 * (points[MOUTH_LEFT] + points[MOUTH_RIGHT])
    gaze_x, gaze_y = [], []
    for iris, (left, right) in zip(IRIS, EYE_CORNERS, strict=True):
        centre = 0.5 * (points[left] + points[right])
        half = 0.5 * float((points[right] - points[left]) @ across)
        gaze_x.append(float((points[iris] - centre) @ across) / half)
        # Against the corners, not the lids: those follow the iris.
        gaze_y.append(-float((points[iris] - centre) @ down) / half)
    return np.array([
        lip_gap, mouth_width, float((middle - corners) @ down) / scale,
        np.mean([above(brow, eye) for brow, eye in zip(BROW_INNER, EYE_INNER, strict=True)]),
        np.mean([above(brow, eye) for brow, eye in zip(BROW_MIDDLE, EYE_OUTER, strict=True)]),
        eye_opening, np.mean(gaze_x), np.mean(gaze_y), yaw, pitch, roll, scale / width_px,
        points[NOSE_TIP, 0] / width_px, points[NOSE_TIP, 1] / height_px])


def watch(frames: Iterable[NDArray[np.uint8]], mesh: MeshJudge) -> Watched:
    """Look at uint8 [H, W, 3] RGB frames, each for itself."""
    landmarks, measures = [], []
    for frame in frames:
        points = mesh.landmarks(frame)
        if points is None:
            landmarks.append(np.full((LANDMARKS, 3), np.nan, np.float32))
            measures.append(np.full(len(MEASURES), np.nan))
        else:
            landmarks.append(points.astype(np.float32))
            measures.append(measure(points, frame.shape[1], frame.shape[0]))
    return Watched(np.array(landmarks, np.float32).reshape(-1, LANDMARKS, 3),
                   np.array(measures).reshape(-1, len(MEASURES)))
