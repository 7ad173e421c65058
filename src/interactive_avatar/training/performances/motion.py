# SPDX-License-Identifier: Apache-2.0
"""Building blocks of motion at 25 frames/s: eased moves, oscillations, idle sway, blinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.blinking import FIRST_S, blink_interval_s
from interactive_avatar.media.clock import FRAME_RATE_HZ

Floats = NDArray[np.float32]

# Lid closure per frame of a blink: shut within two frames, fully closed for two, slower to open.
BLINK: Final = np.array([.45, 1.0, 1.0, .72, .35, .1], np.float32)
BLINK_MIN_GAP_FRAMES: Final = 20


def ease(count: int) -> Floats:
    """Minimum-jerk rise from just above 0 to 1 in `count` frames, float32 [count]."""
    x = (np.arange(count, dtype=np.float32) + 1.0) / max(count, 1)
    return np.asarray(x * x * x * (10.0 - 15.0 * x + 6.0 * x * x), np.float32)


def spring(count: int) -> Floats:
    """Rise that is well under way in its first frames, as faces move (heads have inertia, `ease`),
    and lands softly: the mean of 1 - (1 - x)^2 and the cubic smooth step, float32 [count]."""
    x = (np.arange(count, dtype=np.float32) + 1.0) / max(count, 1)
    return np.asarray(0.5 * x * (2.0 - x) + 0.5 * x * x * (3.0 - 2.0 * x), np.float32)


class Track:
    """One value over time, changed by eased moves made in chronological order."""

    def __init__(self, frames: int, value: float = 0.0) -> None:
        """Hold `value` for all `frames`."""
        self.values: Floats = np.full(frames, value, np.float32)

    def move(self, start: int, duration: int, value: float,
             rise: Callable[[int], Floats] = ease) -> None:
        """Go to `value` from wherever the track is at `start`, in `duration` frames; stay there.

        Moves outside the performance are cut off. `rise` gives their course (`ease`, `spring`).
        """
        if start >= self.values.size:
            return
        start = max(start, 0)
        from_value = float(self.values[max(start - 1, 0)])
        end = min(start + duration, self.values.size)
        self.values[start:] = value
        self.values[start:end] = from_value + (value - from_value) * rise(duration)[:end - start]

    def pulse(self, start: int, rise: int, hold: int, fall: int, value: float) -> None:
        """Go to `value` and back to where the track was."""
        if start >= self.values.size:
            return
        before = float(self.values[max(start - 1, 0)])
        self.move(start, rise, value)
        self.move(start + rise + hold, fall, before)


def oscillation(cycles: float, frequency_hz: float, amplitude: float) -> Floats:
    """A few swings that start and end at rest, the first toward +, float32 [n]."""
    count = max(round(cycles / frequency_hz * FRAME_RATE_HZ), 2)
    phase = np.arange(1, count + 1, dtype=np.float32) / count
    window = np.minimum(1.0, np.minimum(phase, 1.0 - phase) * 2.0 * max(cycles, 1.0))
    return np.asarray(amplitude * window * np.sin(2.0 * np.pi * cycles * phase), np.float32)


def bob(cycles: int, frequency_hz: float, depth: float) -> Floats:
    """Nods: down from 0 to about -depth and back, later ones smaller, float32 [n]."""
    count = round(cycles / frequency_hz * FRAME_RATE_HZ)
    phase = np.arange(1, count + 1, dtype=np.float32) / count
    dip = 0.5 - 0.5 * np.cos(2.0 * np.pi * cycles * phase)
    return np.asarray(-depth * (1.0 - 0.35 * phase) * dip, np.float32)


def add(target: Floats, start: int, values: Floats) -> None:
    """Add `values` into `target` from `start`, cut at the end."""
    if start < target.size:
        end = min(start + values.size, target.size)
        target[start:end] += values[:end - start]


def sway(rng: np.random.Generator, frames: int, amplitude: float, low_hz: float = 0.06,
         high_hz: float = 0.35) -> Floats:
    """Smooth aimless motion about 0: four sines with random rates, float32 [frames]."""
    rates_hz = rng.uniform(low_hz, high_hz, 4)
    phases = rng.uniform(0.0, 2.0 * np.pi, 4)
    weights = amplitude * (low_hz / rates_hz) ** 0.5
    times_s = np.arange(frames) / FRAME_RATE_HZ
    waves = np.sin(2.0 * np.pi * times_s[:, None] * rates_hz + phases)
    return np.asarray(waves @ weights, np.float32)


def blinks(rng: np.random.Generator, frames: int, shifts: list[int]) -> Floats:
    """Lid closure 0 to 1, float32 [frames].

    Args:
        rng: source of the intervals, see `blink_interval_s`.
        frames: length.
        shifts: frames at which gaze moves far; most such moves come with a blink.
    """
    starts = []
    frame = rng.uniform(*FIRST_S) * FRAME_RATE_HZ
    while frame < frames:
        starts.append(int(frame))
        if rng.random() < 0.08:
            starts.append(int(frame) + 9)
        frame += blink_interval_s(rng) * FRAME_RATE_HZ
    starts += [shift + 1 for shift in shifts if rng.random() < 0.7]
    closure = np.zeros(frames, np.float32)
    last = -BLINK_MIN_GAP_FRAMES
    for start in sorted(starts):
        if start >= frames or start - last < 9:
            continue
        last = start
        end = min(start + BLINK.size, frames)
        closure[start:end] = np.maximum(closure[start:end], BLINK[:end - start])
    return closure
