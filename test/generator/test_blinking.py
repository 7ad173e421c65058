# SPDX-License-Identifier: Apache-2.0
"""When the avatar blinks, and that the stream does what it is told."""

from pathlib import Path

import numpy as np
import pytest
from tiny import TINY, encode_text, reference

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.blinking import (
    CALM_CHUNKS,
    LONGEST_S,
    SHORTEST_S,
    BlinkSchedule,
)
from interactive_avatar.generator.config import BLINK_CHUNKS
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.prompts import (
    WorldState,
    action_prompt,
    somebody_there,
    stable_prompt,
)
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


@pytest.mark.parametrize(('switched', 'prompt', 'blinks'), [
    (2, 'another', False), (CALM_CHUNKS, 'another', True),
    (CALM_CHUNKS, stable_prompt(WorldState(in_view=False)), False)])
def test_nobody_blinks_who_is_not_there_or_has_just_been_told_something(
        model: Path, switched: int, prompt: str, blinks: bool) -> None:
    opened = open_backend('onnx', ModelFiles.open(model))
    seed = next(seed for seed in range(100) if BlinkSchedule(seed).phase(CALM_CHUNKS + 2) == 1)
    blinking, still = (AvatarStream(opened, reference(), 'a person', encode_text, seed, blinks=on)
                       for on in (True, False))
    changed = []
    for index in range(CALM_CHUNKS + 4):
        for stream in (blinking, still):
            if index == CALM_CHUNKS + 2 - switched:
                stream.switch(prompt)
        pair = [stream.step(SILENCE).frames for stream in (blinking, still)]
        changed.append(bool((pair[0] != pair[1]).any()))
    # Who has not closed the eyes does not open them.
    assert changed == [False] * (CALM_CHUNKS + 2) + [blinks] * 2


def test_people_are_there_but_for_those_who_leave_and_return() -> None:
    there, gone = WorldState(), WorldState(in_view=False)
    assert somebody_there(stable_prompt(there)) and somebody_there(action_prompt('nod', there))
    assert somebody_there('A person in words of their own.')
    assert not any(map(somebody_there, (
        stable_prompt(gone), action_prompt('step_out', there), action_prompt('come_back', gone))))
