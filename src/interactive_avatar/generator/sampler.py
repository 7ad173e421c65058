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


def check_levels(levels: Sequence[float]) -> None:
    """Refuse noise levels that do not start at 1 and fall.

    Raises:
        ValueError: with the levels.
    """
    if not levels or levels[0] != 1.0 or levels[-1] <= 0.0 \
            or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f'noise levels {tuple(levels)} must start at 1, fall and stay above 0')


def levels_of(text: str) -> tuple[float, ...]:
    """Noise levels as they are written, '1,0.5'; none for an empty text.

    Raises:
        ValueError: if they are no numbers, or do not start at 1 and fall.
    """
    try:
        levels = tuple(float(level) for level in text.split(',') if level)
        if levels:
            check_levels(levels)
    except ValueError as error:
        raise ValueError(f'levels {text!r}: {error}; give falling numbers from 1, as 1,0.5'
                         ) from error
    return levels


def sample(velocity: Callable[[Latent, float], Latent], noise: Latent,
           levels: Sequence[float]) -> Latent:
    """Sample x0 in ``len(levels)`` steps (Self-Forcing's sampler).

    Args:
        velocity: (x_t, t) -> noise − x0, all float32 [C, h, w].
        noise: float32 [at least len(levels), C, h, w]: where it starts, and what is put back
            between the steps.
        levels: falling noise levels, the first 1.

    Returns:
        float32 [C, h, w].

    Raises:
        ValueError: if the levels do not start at 1 and fall.
    """
    check_levels(levels)
    x = clean = noise[0]
    for index, level in enumerate(levels):
        clean = x - np.float32(level) * velocity(x, level)
        if index + 1 < len(levels):
            x = mix(clean, levels[index + 1], noise[index + 1])
    return clean
