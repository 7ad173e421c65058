# SPDX-License-Identifier: Apache-2.0
"""A card that fails in the middle of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny import open_stream

from interactive_avatar.generator.backends.base import BackendLostError, ChunkJob, ChunkResult
from interactive_avatar.generator.backends.onnx import OnnxBackend
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.resilient import ResilientStream
from interactive_avatar.media.clock import CHUNK_SAMPLES


class FailingBackend(OnnxBackend):
    """Fails from a given chunk on, as a card does that fell off the bus."""

    name = 'failing'
    left = 7

    def chunks(self, jobs: Sequence[ChunkJob]) -> list[ChunkResult]:
        self.left -= 1
        if self.left < 0:
            raise BackendLostError('the card failed: CUDA error: unspecified launch failure')
        return super().chunks(jobs)


def test_the_stream_goes_on_from_its_snapshot(model: Path) -> None:
    files, told = ModelFiles.open(model), []
    stream = ResilientStream(open_stream(FailingBackend(files)),
                             lambda: open_stream(OnnxBackend(files)), told.append, 3)
    twin = open_stream(OnnxBackend(files))
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    for _ in range(7):
        np.testing.assert_array_equal(stream.step(silence).frames, twin.step(silence).frames)
    assert not told
    stream.switch('somebody else')
    chunk = stream.step(silence)
    assert (chunk.index, chunk.prompt) == (7, 'somebody else')
    assert [stream.step(silence).index for _ in range(3)] == [8, 9, 10]
    assert stream.backend_name == 'onnx'
    assert len(told) == 1 and "'failing' was lost" in told[0] and '1 chunks ago' in told[0]


def test_no_sound_is_lost_and_none_is_heard_again(model: Path) -> None:
    files = ModelFiles.open(model)
    stream = ResilientStream(open_stream(FailingBackend(files)),
                             lambda: open_stream(OnnxBackend(files)), lambda text: None, 3)
    twin = open_stream(OnnxBackend(files))
    rng = np.random.default_rng(0)
    for _ in range(12):
        speech = rng.integers(-9000, 9000, CHUNK_SAMPLES).astype(np.int16)
        ours, theirs = stream.step(speech), twin.step(speech)
        np.testing.assert_array_equal(ours.audio, theirs.audio)
        assert ours.index == theirs.index
    assert stream.backend_name == 'onnx'


def test_a_second_loss_is_not_hidden(model: Path) -> None:
    files = ModelFiles.open(model)
    stream = ResilientStream(open_stream(FailingBackend(files)),
                             lambda: open_stream(FailingBackend(files)), lambda text: None)
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    with pytest.raises(BackendLostError, match='launch failure'):
        for _ in range(20):
            stream.step(silence)
