# SPDX-License-Identifier: Apache-2.0
"""Independent judges: learned face models that were never trained on this project's pictures.

MediaPipe's face mesh (lips, eyelids, head pose) and dlib's face network (identity). Both are
optional; what is missing is named with the command that installs it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.perception.mesh import MEDIAPIPE_COMMAND, FaceMesh
from interactive_avatar.perception.vad import PerceptionError

DLIB_COMMAND = 'pip install dlib-bin face-recognition-models==0.3.0'
# Landmarks of MediaPipe's canonical face mesh (468 points + 10 of the irises).
INNER_LIP_TOP, INNER_LIP_BOTTOM = 13, 14
MOUTH_LEFT, MOUTH_RIGHT = 61, 291
EYE_OUTER = (33, 263)
EYES = ((33, 133, 159, 145), (263, 362, 386, 374))  # outer corner, inner corner, top, bottom
FOREHEAD, NOSE_BASE = 10, 2
NOSE_TIP = 1
IDENTITY_WIDTH = 128


class JudgeMissing(RuntimeError):
    """A judge's package is not installed; the message has the command that installs it."""


def _require(module: str, command: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise JudgeMissing(f'the judge {module} cannot be used ({error}): {command}') from error


def available() -> dict[str, str]:
    """Judges by name: empty text if it can be used, else why not and what to do."""
    state: dict[str, str] = {}
    for name, modules, command in (
            ('mediapipe', ('mediapipe',), MEDIAPIPE_COMMAND),
            ('dlib', ('dlib', 'face_recognition_models'), DLIB_COMMAND)):
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state[name] = f'{", ".join(missing)} not installed: {command}' if missing else ''
    return state


@dataclass(frozen=True)
class FaceTrack:
    """What the face mesh saw, NaN in frames without a face.

    Attributes:
        lip_gap: float64 [n], distance of the inner lips over the distance of the outer eye
            corners (in space, so that turns of the head matter little).
        mouth_width: float64 [n], in the same unit.
        eye_opening: float64 [n], mean of both eyes' height over width.
        yaw: float64 [n] radians, positive to the picture's right.
        pitch: float64 [n] radians, positive up; its zero depends on the face.
        roll: float64 [n] radians, positive if the head's top goes to the picture's right.
        centre: float64 [n, 2], tip of the nose in shares of width and height.
    """

    lip_gap: NDArray[np.float64]
    mouth_width: NDArray[np.float64]
    eye_opening: NDArray[np.float64]
    yaw: NDArray[np.float64]
    pitch: NDArray[np.float64]
    roll: NDArray[np.float64]
    centre: NDArray[np.float64]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Frames with a face, bool [n]."""
        return np.isfinite(self.lip_gap)


def face_measures(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Measures of one face from its landmarks.

    Args:
        points: float64 [>=468, 3] in pixels: x to the right, y down, z away from the camera.

    Returns:
        float64 [8]: lip gap, mouth width, eye opening, yaw, pitch, roll, nose x, nose y; units as
        in `FaceTrack`, the nose in pixels.
    """
    def span(a: int, b: int) -> float:
        return float(np.linalg.norm(points[a] - points[b]))

    scale = span(*EYE_OUTER)
    opening = np.mean([span(top, bottom) / span(outer, inner)
                       for outer, inner, top, bottom in EYES])
    across = (points[EYE_OUTER[1]] - points[EYE_OUTER[0]]) / scale
    down = points[NOSE_BASE] - points[FOREHEAD]
    down = down / np.linalg.norm(down)
    # The axis out of the face: towards the camera (negative z) when the head looks straight.
    out = np.cross(down, across)
    out = out / np.linalg.norm(out)
    yaw = np.arctan2(out[0], -out[2])
    pitch = np.arctan2(-out[1], np.hypot(out[0], out[2]))
    # Image y points down, so a rising right eye means that the head's top goes to the left.
    roll = np.arctan2(across[1], across[0])
    return np.array([span(INNER_LIP_TOP, INNER_LIP_BOTTOM) / scale,
                     span(MOUTH_LEFT, MOUTH_RIGHT) / scale, opening, yaw, pitch, roll,
                     points[NOSE_TIP, 0], points[NOSE_TIP, 1]])


class MeshJudge:
    """MediaPipe's face mesh (Kartynnik et al. 2019; attention mesh, Grishchenko et al. 2020).

    Args:
        tracking: follow the face from frame to frame (faster) instead of finding it anew in each
            (no smoothing, no memory: the default for measuring).

    Raises:
        JudgeMissing: if mediapipe is not installed.
    """

    def __init__(self, tracking: bool = False) -> None:
        try:
            self._mesh = FaceMesh(max_faces=1, tracking=tracking, min_confidence=0.3)
        except PerceptionError as error:
            raise JudgeMissing(f'the judge mediapipe cannot be used: {error}') from error

    def landmarks(self, frame: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Landmarks of the face in uint8 [H, W, 3] RGB: float64 [478, 3] pixels, or None."""
        found = self._mesh.faces(frame)
        return found[0] if found else None

    def track(self, frames: Iterable[NDArray[np.uint8]]) -> FaceTrack:
        """Measure uint8 [H, W, 3] RGB frames, any number of them."""
        rows = []
        for frame in frames:
            points = self.landmarks(frame)
            row = np.full(8, np.nan) if points is None else face_measures(points)
            row[6:] /= np.array([frame.shape[1], frame.shape[0]])
            rows.append(row)
        table = np.array(rows).reshape(-1, 8)
        gap, width, opening, yaw, pitch, roll = table[:, :6].T
        return FaceTrack(gap, width, opening, yaw, pitch, roll, table[:, 6:])

    def close(self) -> None:
        """Free the graph."""
        self._mesh.close()

    def __enter__(self) -> MeshJudge:
        """The judge itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the graph."""
        self.close()


class IdentityJudge:
    """dlib's face network (King 2017): 128 numbers per face, compared by Euclidean distance.

    Raises:
        JudgeMissing: if dlib or its models are not installed.
    """

    def __init__(self) -> None:
        dlib = _require('dlib', DLIB_COMMAND)
        # Found, not imported: importing it needs pkg_resources, which newer setuptools lack.
        spec = importlib.util.find_spec('face_recognition_models')
        if spec is None or spec.origin is None:
            raise JudgeMissing(f'the models of dlib are not installed: {DLIB_COMMAND}')
        models = Path(spec.origin).parent / 'models'
        self._detect = dlib.get_frontal_face_detector()
        self._shape = dlib.shape_predictor(str(models / 'shape_predictor_5_face_landmarks.dat'))
        self._network = dlib.face_recognition_model_v1(
            str(models / 'dlib_face_recognition_resnet_model_v1.dat'))

    def embed(self, frame: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Embedding of the largest face in uint8 [H, W, 3] RGB: float64 [128], NaN without one."""
        image = np.ascontiguousarray(frame)
        # Once as it is, and enlarged only where that finds nothing: four times the work.
        boxes = self._detect(image, 0) or self._detect(image, 1)
        if not boxes:
            return np.full(IDENTITY_WIDTH, np.nan)
        box = max(boxes, key=lambda found: found.area())
        return np.asarray(self._network.compute_face_descriptor(image, self._shape(image, box)),
                          np.float64)

    def embed_all(self, frames: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Embeddings float64 [n, 128] of frames, NaN rows where there is no face."""
        return np.array([self.embed(frame) for frame in frames]).reshape(-1, IDENTITY_WIDTH)
