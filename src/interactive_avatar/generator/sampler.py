# SPDX-License-Identifier: Apache-2.0
"""Few-step sampler of flow matching: predict x0, put fresh noise back, predict again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Latent = NDArray[np.float32]


def mix(clean: Latent, level: float, noise: Latent) -> Latent:
    """x_t = (1 − t) x0 + t noise at noise level t in [0, 1]."""
    return ((1.0 - level) * clean + level * noise).astype(np.float32)


def sample(velocity: Callable[[Latent, float], Latent], shape: Sequence[int],
           levels: Sequence[float], random: np.random.Generator) -> Latent:
    """Sample x0 in ``len(levels)`` steps (Self-Forcing's sampler).

    Args:
        velocity: (x_t, t) -> noise − x0, all float32 of ``shape``.
        shape: of the latent, [C, h, w].
        levels: falling noise levels, the first 1.

    Returns:
        float32 of ``shape``.

    Raises:
        ValueError: if the levels do not start at 1 and fall.
    """
    if not levels or levels[0] != 1.0 or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f'noise levels {tuple(levels)} must start at 1 and fall')
    x = random.standard_normal(tuple(shape), np.float32)
    clean = x
    for index, level in enumerate(levels):
        clean = x - np.float32(level) * velocity(x, level)
        if index + 1 < len(levels):
            x = mix(clean, levels[index + 1], random.standard_normal(tuple(shape), np.float32))
    return clean
