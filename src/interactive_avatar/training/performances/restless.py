# SPDX-License-Identifier: Apache-2.0
"""Brows that move all the time, for an encoder to see.

In performances brows rise once a minute, and an encoder that is asked for pictures alone leaves
them out: off latents of the thirteenth release nobody can read them (docs/training.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from interactive_avatar.media.clock import FRAME_RATE_HZ
from interactive_avatar.training.performances.compose import Performance
from interactive_avatar.training.performances.motion import Track, spring
from interactive_avatar.training.units import UNITS

BROW_MOVES: Final = {'raised': ('browInnerUp', 'browOuterUp'), 'inner': ('browInnerUp',),
                     'outer': ('browOuterUp',), 'lowered': ('browDown',)}
"""Beginnings of the names of the units that move together."""
HELD_S: Final = (0.3, 1.2)
MOVED_S: Final = (0.12, 0.4)


def restless(performance: Performance, rng: np.random.Generator) -> Performance:
    """The same performance with brows that go up and down, whatever the prompt says."""
    units = performance.units.copy()
    tracks = {name: Track(performance.frames) for name in BROW_MOVES}

    def frames(span_s: tuple[float, float]) -> int:
        return round(float(rng.uniform(*span_s)) * FRAME_RATE_HZ)

    at = frames(HELD_S)
    while at < performance.frames:
        chosen = str(rng.choice(list(BROW_MOVES)))
        level = float(rng.uniform(0.2, 1.0))
        for name, track in tracks.items():
            track.move(at, frames(MOVED_S), level if name == chosen else 0.0, spring)
        at += frames(HELD_S)
    for name, parts in BROW_MOVES.items():
        for column, unit in enumerate(UNITS):
            if unit.startswith(parts):
                units[:, column] += tracks[name].values
    return replace(performance, units=np.clip(units, 0.0, 1.0))
