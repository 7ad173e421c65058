# SPDX-License-Identifier: Apache-2.0
"""When the avatar blinks, and that the stream does what it is told."""

from pathlib import Path

import numpy as np
import pytest
from tiny import TINY, encode_text, reference

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.blinking import LONGEST_S, SHORTEST_S, BlinkSchedule
from interactive_avatar.generator.config import BLINK_CHUNKS
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.stream import AvatarStream
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES

TEN_MINUTES = 600_000 // CHUNK_MS
SILENCE = np.zeros(CHUNK_SAMPLES, np.int16)


@pytest.mark.parametrize('seed', range(5))
def test_blinks_come_as_people_blink(seed: int) -> None:
    schedule = BlinkSchedule(seed)
    phases = np.array([schedule.phase(chunk) for chunk in range(TEN_MINUTES)])
    starts = np.flatnonzero(phases == 1)
    assert 12 <= len(starts) / 10 <= 25  # per minute
    gaps_s = np.diff(starts) * CHUNK_MS / 1000
    step_s = CHUNK_MS / 1000
    assert gaps_s.min() >= SHORTEST_S - step_s and gaps_s.max() <= LONGEST_S + step_s
    for phase in range(1, BLINK_CHUNKS + 1):
        np.testing.assert_array_equal(np.flatnonzero(phases == phase), starts + phase - 1)


def test_a_schedule_is_a_function_of_its_seed() -> None:
    forward = [BlinkSchedule(3).phase(chunk) for chunk in range(200)]
    schedule = BlinkSchedule(3)
    assert [schedule.phase(chunk) for chunk in reversed(range(200))][::-1] == forward
    assert forward != [BlinkSchedule(4).phase(chunk) for chunk in range(200)]


@pytest.mark.parametrize('backend', ['onnx', 'torch'])
def test_a_stream_blinks_in_the_chunks_of_its_schedule(model: Path, backend: str) -> None:
    opened = open_backend(backend, ModelFiles.open(model))
    schedule = BlinkSchedule(0)
    first = next(chunk for chunk in range(100) if schedule.phase(chunk))
    blinking, still = (AvatarStream(opened, reference(), 'a person', encode_text, blinks=blinks)
                       for blinks in (True, False))
    for _ in range(first):
        np.testing.assert_array_equal(blinking.step(SILENCE).frames, still.step(SILENCE).frames)
    before = blinking.snapshot()
    shut = blinking.step(SILENCE).frames
    assert (shut != still.step(SILENCE).frames).any()
    blinking.restore(before)
    np.testing.assert_array_equal(blinking.step(SILENCE).frames, shut)
    assert TINY.denoiser.blink_rows
