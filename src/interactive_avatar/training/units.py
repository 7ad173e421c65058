# SPDX-License-Identifier: Apache-2.0
"""The 52 face units (ARKit names) that performances are written in and renders are drawn from."""

from __future__ import annotations

UNITS: tuple[str, ...] = (
    'browDownLeft',
    'browDownRight',
    'browInnerUp',
    'browOuterUpLeft',
    'browOuterUpRight',
    'cheekPuff',
    'cheekSquintLeft',
    'cheekSquintRight',
    'eyeBlinkLeft',
    'eyeBlinkRight',
    'eyeLookDownLeft',
    'eyeLookDownRight',
    'eyeLookInLeft',
    'eyeLookInRight',
    'eyeLookOutLeft',
    'eyeLookOutRight',
    'eyeLookUpLeft',
    'eyeLookUpRight',
    'eyeSquintLeft',
    'eyeSquintRight',
    'eyeWideLeft',
    'eyeWideRight',
    'jawForward',
    'jawLeft',
    'jawOpen',
    'jawRight',
    'mouthClose',
    'mouthDimpleLeft',
    'mouthDimpleRight',
    'mouthFrownLeft',
    'mouthFrownRight',
    'mouthFunnel',
    'mouthLeft',
    'mouthLowerDownLeft',
    'mouthLowerDownRight',
    'mouthPressLeft',
    'mouthPressRight',
    'mouthPucker',
    'mouthRight',
    'mouthRollLower',
    'mouthRollUpper',
    'mouthShrugLower',
    'mouthShrugUpper',
    'mouthSmileLeft',
    'mouthSmileRight',
    'mouthStretchLeft',
    'mouthStretchRight',
    'mouthUpperUpLeft',
    'mouthUpperUpRight',
    'noseSneerLeft',
    'noseSneerRight',
    'tongueOut',
)

_INDEX = {name: i for i, name in enumerate(UNITS)}


def index(name: str) -> int:
    """Give the column of a unit.

    Args:
        name: ARKit name, as `jawOpen`.

    Returns:
        Column in 0..51.

    Raises:
        KeyError: the name is not one of the 52 units.
    """
    try:
        return _INDEX[name]
    except KeyError:
        raise KeyError(
            f'{name!r} is no ARKit face unit; use one of interactive_avatar.training.units.UNITS'
        ) from None
