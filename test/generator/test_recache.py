# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
from tiny import encode_text, open_stream

from interactive_avatar.generator.backends.onnx import OnnxBackend
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.recache import Recacher
from interactive_avatar.media.clock import CHUNK_SAMPLES


def test_rebuilding_the_window_under_its_own_prompt_changes_nothing(model: Path) -> None:
    stream = open_stream(OnnxBackend(ModelFiles.open(model), int8=False))
    random = np.random.default_rng(0)
    for _ in range(2):
        stream.step(random.integers(-8000, 8000, CHUNK_SAMPLES).astype(np.int16))
    before = stream.memory.cache.state()
    found = Recacher(stream, encode_text).switch(stream.prompt)
    after = stream.memory.cache.state()
    assert found.passes == 2
    np.testing.assert_allclose(after.k, before.k, atol=1e-4)
    np.testing.assert_allclose(after.v, before.v, atol=1e-4)
    np.testing.assert_array_equal(after.mask, before.mask)


def test_another_prompt_changes_the_window_and_nothing_else(model: Path) -> None:
    stream = open_stream(OnnxBackend(ModelFiles.open(model)))
    for _ in range(9):
        stream.step(np.zeros(CHUNK_SAMPLES, np.int16))
    before = stream.memory.cache.state()
    Recacher(stream, encode_text).switch('a person in quite another mood')
    after = stream.memory.cache.state()
    start = stream.config.cache_layout['adjacent'][0]
    np.testing.assert_array_equal(after.k[..., :start, :], before.k[..., :start, :])
    assert (after.k[..., start:, :] != before.k[..., start:, :]).any()
    assert stream.prompt == 'a person in quite another mood'
    assert stream.step(np.zeros(CHUNK_SAMPLES, np.int16)).index == 9
