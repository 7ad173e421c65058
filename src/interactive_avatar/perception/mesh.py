# SPDX-License-Identifier: Apache-2.0
"""MediaPipe's face mesh behind two calls; no other part of the project imports mediapipe.

Kartynnik et al. 2019 (arXiv 1907.06724) and the attention mesh of Grishchenko et al. 2020
(arXiv 2006.10962), with BlazeFace (Bazarevsky et al. 2019, arXiv 1907.05047) as the detector.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.perception.vad import PerceptionError

# mediapipe declares a second OpenCV that needs a display, and JAX, and uses neither here.
MEDIAPIPE_COMMAND = ('pip install --no-deps mediapipe==0.10.21 && '
                     'pip install absl-py attrs flatbuffers matplotlib "opencv-python-headless<5" '
                     '"protobuf>=6.31,<7"')
LANDMARKS = 478
MIN_SIDE_PX = 16


class FaceFinder(Protocol):
    """Anything that finds faces and their landmarks in pictures that follow each other."""

    def faces(self, frame: NDArray[np.uint8], several: bool) -> list[NDArray[np.float64]]:
        """Landmarks float64 [478, 3] of each face in uint8 [H, W, 3] RGB; see `FaceMesh.faces`."""

    def close(self) -> None:
        """Free what it holds."""


def mesh_missing() -> str:
    """Why the face mesh cannot be used and what to do; '' if it can. Imports nothing heavy."""
    missing = [name for name in ('mediapipe', 'cv2') if importlib.util.find_spec(name) is None]
    if not missing:
        return ''
    if sys.version_info >= (3, 13) and 'mediapipe' in missing:
        return ('faces cannot be seen: mediapipe==0.10.21 exists for Python 3.10 to 3.12 only '
                f'and this is {sys.version_info[0]}.{sys.version_info[1]}; use `make distclean; '
                'make PYTHON=python3.12`')
    return f'faces cannot be seen ({", ".join(missing)} not installed): {MEDIAPIPE_COMMAND}'


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence the C++ logs of a library's start, which would look like errors of ours."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


class FaceMesh:
    """Finds faces and their 478 landmarks, following them from frame to frame.

    While one face is followed, neither detector nor second network runs. Asked for several, it
    looks for new faces in every frame. Both modes keep their own memory of where faces were.

    Args:
        max_faces: how many faces are found at most.
        tracking: follow faces from frame to frame; else find them anew in each (no memory).
        min_confidence: of the detector, 0 to 1.

    Raises:
        PerceptionError: if mediapipe is missing or does not start.
    """

    def __init__(self, max_faces: int = 3, tracking: bool = True,
                 min_confidence: float = 0.5) -> None:
        missing = mesh_missing()
        if missing:
            raise PerceptionError(missing)
        os.environ.setdefault('GLOG_minloglevel', '3')
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
        try:
            with quiet_stderr():
                self._module: Any = importlib.import_module('mediapipe').solutions.face_mesh
        except Exception as error:
            raise PerceptionError(f'mediapipe does not start ({type(error).__name__}: {error}): '
                                  f'{MEDIAPIPE_COMMAND}') from error
        self._max_faces = max_faces
        self._tracking = tracking
        self._confidence = min_confidence
        self._graphs: dict[bool, Any] = {}
        self._started: set[bool] = set()

    def faces(self, frame: NDArray[np.uint8], several: bool = False
              ) -> list[NDArray[np.float64]]:
        """Landmarks of the faces in a picture.

        Args:
            frame: uint8 [H, W, 3] RGB.
            several: look for up to `max_faces`; only for one otherwise.

        Returns:
            float64 [478, 3] pixels per face: x to the right, y down, z away from the camera (its
            zero is in the middle of the head; one unit is as long as in x). The points are those
            of MediaPipe's canonical face mesh (468) and of the irises (10).

        Raises:
            PerceptionError: on an array of another kind.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or \
                min(frame.shape[:2]) < MIN_SIDE_PX:
            raise PerceptionError(f'picture of shape {frame.shape} and type {frame.dtype}: need '
                                  f'uint8 [H, W, 3] RGB with sides of {MIN_SIDE_PX} or more')
        graph = self._graphs.get(several)
        with quiet_stderr() if several not in self._started else contextlib.nullcontext():
            if graph is None:
                graph = self._graphs[several] = self._module.FaceMesh(
                    static_image_mode=not self._tracking, refine_landmarks=True,
                    max_num_faces=self._max_faces if several else 1,
                    min_detection_confidence=self._confidence)
            found = graph.process(np.ascontiguousarray(frame)).multi_face_landmarks or []
        if found:
            # The first face starts the rest of the graph, which logs as well.
            self._started.add(several)
        height, width = frame.shape[:2]
        # MediaPipe gives x and z in shares of the width, y in shares of the height.
        return [np.array([[p.x * width, p.y * height, p.z * width] for p in face.landmark])
                for face in found]

    def close(self) -> None:
        """Free the graphs."""
        while self._graphs:
            self._graphs.popitem()[1].close()
