# SPDX-License-Identifier: Apache-2.0
"""Does the face wear glasses, or a hat: a small classifier trained on renders of training people.

It is no general recogniser: it knows this project's rendered glasses and hats, on a head crop
that MediaPipe's landmarks put in place. Histograms of oriented gradients (Dalal and Triggs, CVPR
2005) of the luma, and coarse colour, go into a logistic regression. Its accuracy on renders of
held-out people is kept with its weights and printed with every figure that it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.judges import EYE_OUTER
from interactive_avatar.evaluation.metrics import luma

Floats = NDArray[np.float64]

OBJECTS: Final = ('glasses', 'hat')
CROP_PX: Final = 64
# Where the outer eye corners go in the crop, in pixels (x, y): forehead and crown lie above.
_EYE_LEFT_PX: Final = (19.0, 40.0)
_EYE_RIGHT_PX: Final = (45.0, 40.0)
# The part of the crop that tells of each object: rows, columns.
_WINDOWS: Final = {'glasses': (slice(28, 56), slice(8, 56)), 'hat': (slice(0, 36), slice(4, 60))}
_CELL_PX: Final = 4
_ORIENTATIONS: Final = 8


def head_crop(frame: NDArray[np.uint8], points: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The head with its eyes in a fixed place.

    Args:
        frame: uint8 [H, W, 3] RGB.
        points: float32 [478, 3] landmarks in pixels.

    Returns:
        uint8 [64, 64, 3]; what lies outside the frame repeats its edge.
    """
    left, right = (points[i, :2].astype(np.float64) for i in EYE_OUTER)
    goal_left, goal_right = np.array(_EYE_LEFT_PX), np.array(_EYE_RIGHT_PX)
    span, goal = right - left, goal_right - goal_left
    # As complex numbers: a turn and a scale are one factor.
    factor = complex(*span) / complex(*goal)
    columns, rows = np.meshgrid(np.arange(CROP_PX), np.arange(CROP_PX))
    at = ((columns - goal_left[0]) + 1j * (rows - goal_left[1])) * factor + complex(*left)
    # A crop pixel covers about two of the frame's: mean of four samples.
    height, width = frame.shape[:2]
    total = np.zeros((CROP_PX, CROP_PX, 3))
    for shift in (-0.25 - 0.25j, 0.25 - 0.25j, -0.25 + 0.25j, 0.25 + 0.25j):
        here = at + shift * factor
        x = np.clip(np.rint(here.real), 0, width - 1).astype(np.int64)
        y = np.clip(np.rint(here.imag), 0, height - 1).astype(np.int64)
        total += frame[y, x]
    return np.rint(total / 4.0).astype(np.uint8)


def blurred(crop: NDArray[np.uint8], sigma_px: float) -> NDArray[np.uint8]:
    """The crop as a softer generator would draw it (training's augmentation)."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(crop, (sigma_px, sigma_px, 0)), np.uint8)


def features(crop: NDArray[np.uint8], name: str) -> Floats:
    """Oriented gradients and coarse colours of the part of a crop that tells of an object.

    Args:
        crop: uint8 [64, 64, 3].
        name: one of `OBJECTS`.

    Returns:
        float64 [d].
    """
    window = crop[_WINDOWS[name]]
    grey = luma(window).astype(np.float64)
    down, across = np.gradient(grey)
    size = np.hypot(down, across)
    angle = np.mod(np.arctan2(down, across), np.pi) / np.pi * _ORIENTATIONS
    low = np.floor(angle).astype(np.int64)
    share = angle - low
    height, width = (side // _CELL_PX * _CELL_PX for side in grey.shape)
    cells = (height // _CELL_PX, width // _CELL_PX)
    histogram = np.zeros((*cells, _ORIENTATIONS))
    rows, columns = np.indices((height, width)) // _CELL_PX
    for index, weight in ((low, 1.0 - share), (low + 1, share)):
        np.add.at(histogram, (rows, columns, index[:height, :width] % _ORIENTATIONS),
                  (size * weight)[:height, :width])
    histogram /= np.sqrt((histogram ** 2).sum(axis=2, keepdims=True)
                         + 0.1 * (histogram ** 2).sum(axis=2).mean() + 1e-6)
    colour = window[:height, :width].astype(np.float64).reshape(
        cells[0], _CELL_PX, cells[1], _CELL_PX, 3).mean(axis=(1, 3)) / 255.0
    colour = colour - colour.mean(axis=(0, 1))
    return np.concatenate([histogram.ravel(), colour.ravel()])


@dataclass(frozen=True)
class ObjectJudge:
    """The classifier.

    Attributes:
        weights: by object, float32 [d + 1], the last one is the constant; features are
            standardised by `means` and `scales`, float32 [d] by object.
        accuracy: by object, share of right answers on true pictures of held-out people, both
            classes with equal weight.
        pictures: how many true pictures of held-out people that was measured on.
    """

    weights: dict[str, NDArray[np.float32]]
    means: dict[str, NDArray[np.float32]]
    scales: dict[str, NDArray[np.float32]]
    accuracy: dict[str, float]
    pictures: int

    def chance(self, crop: NDArray[np.uint8], name: str) -> float:
        """Probability that an object is worn, 0 to 1."""
        row = (features(crop, name) - self.means[name]) / self.scales[name]
        return float(1.0 / (1.0 + np.exp(-(row @ self.weights[name][:-1]
                                           + self.weights[name][-1]))))

    def track(self, frames: NDArray[np.uint8], landmarks: NDArray[np.float32],
              name: str) -> Floats:
        """Probability per frame, float64 [n], NaN in frames without a face."""
        return np.array([self.chance(head_crop(frame, points), name)
                         if np.isfinite(points[0, 0]) else np.nan
                         for frame, points in zip(frames, landmarks, strict=True)])


def fit_logistic(rows: Floats, labels: NDArray[np.bool_], penalty: float,
                 ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Logistic regression with both classes weighted equally.

    Args:
        rows: float64 [n, d].
        labels: bool [n].
        penalty: of the squared weights (of standardised features).

    Returns:
        Weights float32 [d + 1] (constant last), means and scales float32 [d].

    Raises:
        ValueError: if one class is missing.
    """
    from scipy.optimize import minimize

    if labels.all() or not labels.any():
        raise ValueError(f'all {labels.size} examples have the label {labels[:1]}: need both')
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    x = np.concatenate([(rows - mean) / scale, np.ones((len(rows), 1))], axis=1)
    sign = np.where(labels, 1.0, -1.0)
    weight = np.where(labels, 0.5 / labels.mean(), 0.5 / (1.0 - labels.mean())) / len(rows)

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sign * (x @ w)
        value = float(weight @ np.logaddexp(0.0, -margin))
        slope = -x.T @ (weight * sign / (1.0 + np.exp(np.clip(margin, -50, 50))))
        kept = np.append(w[:-1], 0.0)
        return value + 0.5 * penalty * float(kept @ kept), slope + penalty * kept

    best = minimize(loss, np.zeros(x.shape[1]), jac=True, method='L-BFGS-B').x
    return best.astype(np.float32), mean.astype(np.float32), scale.astype(np.float32)
