# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance between generated and true pictures, in a fixed feature space of our own.

The space is *Gabor energies*: the mean response of twelve Gabor filters (three scales, four
orientations) to the luma, its logarithm, and the mean colour, in each cell of a 4×4 grid. It sees
blur, ringing, texture, layout and colour. It is not the Inception feature space of FID, and its
values compare only with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.metrics import luma, srgb_to_lab
from interactive_avatar.evaluation.model.figures import Figure, bootstrap

Floats = NDArray[np.float64]

GRID: Final = 4
WAVELENGTHS_PX: Final = (4.0, 8.0, 16.0)
ORIENTATIONS: Final = 4
FEATURES: Final = GRID * GRID * (len(WAVELENGTHS_PX) * ORIENTATIONS + 3)
COMPONENTS: Final = 32
"""Principal components of the true pictures that are compared: fewer than the pictures by far."""
FEW_RESAMPLES: Final = 200


@cache
def _filters(height: int, width: int) -> NDArray[np.float32]:
    """Transfer functions of the filters, float32 [12, height, width]: one-sided Gaussians."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    made = []
    for wavelength in WAVELENGTHS_PX:
        centre, spread = 1.0 / wavelength, 0.4 / wavelength
        for turn in range(ORIENTATIONS):
            angle = np.pi * turn / ORIENTATIONS
            x, y = centre * np.cos(angle), centre * np.sin(angle)
            made.append(np.exp(-((fx - x) ** 2 + (fy - y) ** 2) / (2 * spread ** 2)))
    return np.array(made, np.float32)


def _cells(values: NDArray[np.floating]) -> Floats:
    """Mean in each cell of the grid, [..., H, W] to [..., GRID²]."""
    height, width = (side // GRID * GRID for side in values.shape[-2:])
    cut = values[..., :height, :width]
    split = cut.reshape(*cut.shape[:-2], GRID, height // GRID, GRID, width // GRID)
    return np.asarray(split.mean(axis=(-3, -1)).reshape(*cut.shape[:-2], GRID * GRID))


def features(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of a picture.

    Args:
        frame: uint8 [H, W, 3] RGB, at least 16 by 16.

    Returns:
        float32 [FEATURES].
    """
    grey = luma(frame)
    spectrum = np.fft.fft2(grey - grey.mean())
    energy = np.abs(np.fft.ifft2(spectrum * _filters(*grey.shape)))
    colour = srgb_to_lab(frame[::4, ::4]).transpose(2, 0, 1)
    return np.concatenate([np.log1p(_cells(energy)).ravel(),
                           _cells(colour).ravel() / 10.0]).astype(np.float32)


def distance(a: Floats, b: Floats) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian.

    ``|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)``.

    Source: Dowson and Landau, The Fréchet distance between multivariate normal distributions,
    1982.

    Args:
        a: float64 [n, d]; b: float64 [m, d].

    Returns:
        0 for equal means and covariances; biased upwards for small n and m.
    """
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (Σa Σb)^½ through the symmetric root of Σa: real and stable.
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cb @ root), 0.0)).sum()
    gap = a.mean(axis=0) - b.mean(axis=0)
    return float(gap @ gap + np.trace(ca) + np.trace(cb) - 2.0 * cross)


class Space:
    """Standardised principal components of true pictures.

    Args:
        true: features of true pictures, float [n, FEATURES] of each performance.
    """

    def __init__(self, true: Sequence[NDArray[np.floating]]) -> None:
        rows = np.concatenate(true).astype(np.float64)
        self._mean, self._scale = rows.mean(axis=0), rows.std(axis=0) + 1e-3
        _, _, directions = np.linalg.svd((rows - self._mean) / self._scale, full_matrices=False)
        self._directions = directions[:COMPONENTS].T

    def place(self, rows: NDArray[np.floating]) -> Floats:
        """Coordinates of pictures, float64 [n, COMPONENTS]."""
        return ((rows.astype(np.float64) - self._mean) / self._scale) @ self._directions


def compare(drawn: Sequence[NDArray[np.floating]], true: Sequence[NDArray[np.floating]],
            space: Space) -> Figure:
    """Distance of generated to true pictures with an interval over performances.

    Args:
        drawn: features of generated pictures of each performance; true: of true ones.
        space: to compare them in.
    """
    a, b = ([space.place(rows) for rows in side] for side in (drawn, true))

    def of(index: NDArray[np.int64]) -> float:
        return distance(np.concatenate([a[i] for i in index]),
                        np.concatenate([b[i] for i in index]))

    return bootstrap(of, len(a), 'performances', digits=1, resamples=FEW_RESAMPLES)


def floor(true: Sequence[NDArray[np.floating]], space: Space) -> Figure:
    """Distance of the even to the odd pictures of the truth: what equality gives."""
    return compare([rows[::2] for rows in true], [rows[1::2] for rows in true], space)
