# SPDX-License-Identifier: Apache-2.0
"""How far a mouth is open, from its face units: the ground truth of all lip metrics."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.training.units import UNITS

# Gap between the inner lips per unit (of a pair: both sides together), in multiples of the 34 mm
# that a full jawOpen gives; measured on the base mesh's mid-lip vertices, whose deltas are linear.
GAP: Final = {
    'jawOpen': 1.0, 'mouthClose': -1.0, 'mouthFunnel': .35, 'mouthPucker': -.09,
    'mouthUpperUp': .148, 'mouthLowerDown': .119, 'mouthPress': -.066, 'mouthRollLower': -.056,
    'mouthRollUpper': -.036, 'mouthShrugLower': -.154, 'mouthShrugUpper': .104,
    'mouthSmile': -.083, 'mouthRight': -.04, 'mouthLeft': -.04, 'jawForward': .04}


def mouth_opening(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gap between the lips relative to a fully open jaw.

    Args:
        units: float32 [n, 52] in the order of `UNITS`.

    Returns:
        float32 [n], 0 is closed.
    """
    weights = np.zeros(len(UNITS), np.float32)
    for name, gap in GAP.items():
        for column, unit in enumerate(UNITS):
            if unit == name:
                weights[column] = gap
            elif unit in (f'{name}Left', f'{name}Right'):
                weights[column] = 0.5 * gap
    return np.maximum(units @ weights, 0.0).astype(np.float32)
