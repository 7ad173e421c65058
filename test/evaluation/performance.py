# SPDX-License-Identifier: Apache-2.0
"""A made-up performance of a held-out set, for tests of what reads one."""

from __future__ import annotations

import numpy as np

from interactive_avatar.evaluation.held_out import HeldOut


def performance(name: str, seed: int, lag: int = 0) -> tuple[HeldOut, np.ndarray]:
    """A performance with speech in its first half, and a gap that follows it late by ``lag``."""
    rng = np.random.default_rng(seed)
    frames = 200
    audio = np.zeros(frames * 640, np.int16)
    audio[:frames * 320] = rng.integers(-4000, 4000, frames * 320)
    opening = np.zeros(frames, np.float32)
    opening[5:95] = np.convolve(rng.uniform(0, 1, 92), np.ones(3) / 3, 'valid')
    gap = np.roll(opening, lag).astype(float) * 0.3 + 0.02
    item = HeldOut(name, np.full((8, 8, 3), seed, np.uint8), audio, opening,
                   ('talk',) * 25 + ('rest',) * 25, gap.astype(np.float32), np.zeros((0, 128)))
    return item, gap
