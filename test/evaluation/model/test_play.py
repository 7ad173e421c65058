# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from scripted import ScriptedStream

from interactive_avatar.evaluation.model.play import Setup, run
from interactive_avatar.media.clock import CHUNK_SAMPLES


def test_frames_are_in_step_with_prompts_and_sound() -> None:
    stream = ScriptedStream('a')
    sound = np.repeat(np.array([10, 20, 30], np.int16), CHUNK_SAMPLES)
    frames = run(stream, ['a', 'b', 'b'], sound)
    assert frames.shape == (12, 32, 32, 3)
    assert frames[::4, 5, 5, 0].tolist() == [10, 20, 30]
    # The first chunk is the stream's lookahead; each sound is drawn under its own prompt.
    assert stream.prompts == ['a', 'a', 'b', 'b']


def test_silence_loses_no_chunk() -> None:
    stream = ScriptedStream('a')
    assert run(stream, ['a', 'b'])[::4, 0, 0, 0].tolist() == [0, 1]
    assert run(stream, ['b'])[::4, 0, 0, 0].tolist() == [2]


def test_sound_that_goes_on_is_late_by_the_lookahead() -> None:
    stream = ScriptedStream('a')
    sound = np.repeat(np.array([10, 20], np.int16), CHUNK_SAMPLES)
    assert run(stream, ['a', 'a'], sound, lookahead=0)[::4, 5, 5, 0].tolist() == [0, 10]
    assert run(stream, ['a'], sound[:100], lookahead=0)[::4, 5, 5, 0].tolist() == [20]


def test_a_setup_names_what_differs() -> None:
    assert Setup().name == 'models/compact'
    assert Setup(key_frames='fifo', levels=(1.0, 0.5)).name == \
        'models/compact; key frames fifo; levels 1, 0.5'
