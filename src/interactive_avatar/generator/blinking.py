# SPDX-License-Identifier: Apache-2.0
"""When the avatar blinks: a reflex of the stream, which no prompt asks for.

People at rest blink some twenty times a minute, at intervals that are roughly log-normal. A
generator of few steps keeps what its prompts, its sound and its past make likely, and lids that
fall at a moment of their own choosing are never that: it stares. So the moment is chosen here, and
carried out by keys and values that the generator has for it (`DenoiserConfig.blink_rows`).
"""

from __future__ import annotations

import bisect
from typing import Final

import numpy as np

from interactive_avatar.generator.config import BLINK_CHUNKS
from interactive_avatar.media.clock import CHUNK_MS

STREAM_KEY: Final = 0xB11
"""Keeps the draws apart from the sampler's, which have the same seed."""
FIRST_S: Final = (0.4, 3.0)
MEDIAN_LN_S: Final = 1.15
SPREAD_LN: Final = 0.5
SHORTEST_S: Final = 1.2
LONGEST_S: Final = 8.0
CALM_CHUNKS: Final = 6
"""So long after a switch of the prompt nobody blinks."""


def blink_interval_s(rng: np.random.Generator) -> float:
    """From a blink to the next: log-normal about 3.2 s, between 1.2 and 8 s."""
    return float(np.clip(rng.lognormal(MEDIAN_LN_S, SPREAD_LN), SHORTEST_S, LONGEST_S))


class BlinkSchedule:
    """Blinks of one stream: a function of its seed alone, so that streams can be gone back in.

    Intervals are as in the performances that the generator is trained on (`blink_interval_s`).
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, STREAM_KEY])
        self._next_s = float(self._rng.uniform(*FIRST_S))
        self._starts: list[int] = []

    def told(self, chunk: int, since: int, there: bool, last: int) -> int:
        """What the stream is told of a blink in a chunk.

        While something happens lids stay up: a blink in the chunks in which somebody came back
        disturbed what they were remembered to wear.

        Args:
            chunk: its number. since: number of the first chunk under its prompt.
            there: whether somebody is in view all the time.
            last: what the stream was told in the chunk before.

        Returns:
            which chunk of a blink it is, from 1; 0 for none.
        """
        phase = self.phase(chunk)
        if phase > 1:  # who has not closed the eyes does not open them
            return phase if last == phase - 1 else 0
        return phase if there and chunk - since >= CALM_CHUNKS else 0

    def phase(self, chunk: int) -> int:
        """Which chunk of a blink the chunk of this number is by the schedule, from 1; 0 for none.
        """
        while not self._starts or self._starts[-1] <= chunk:
            self._starts.append(round(self._next_s * 1000.0 / CHUNK_MS))
            self._next_s += blink_interval_s(self._rng)
        since = chunk - self._starts[bisect.bisect_right(self._starts, chunk) - 1]
        return since + 1 if 0 <= since < BLINK_CHUNKS else 0
