# SPDX-License-Identifier: Apache-2.0
"""Pictures that are decoded beside the next chunk: the same pixels, and failures that stay put."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import open_stream

from interactive_avatar.generator.backends.base import CacheState
from interactive_avatar.generator.backends.onnx import OnnxBackend
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.recache import Recacher
from interactive_avatar.generator.resilient import ResilientStream
from interactive_avatar.generator.stream import AvatarStream, Chunk, Snapshot
from interactive_avatar.media.clock import CHUNK_SAMPLES


def blocks(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        -8000, 8000, (count, CHUNK_SAMPLES)).astype(np.int16)


class GatedBackend(OnnxBackend):
    """Decodes when it is let, and fails when it is told to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.refused = 0

    def _decode(self, *args: Any) -> Any:
        assert self.gate.wait(10.0)
        if self.refused:
            self.refused -= 1
            raise RuntimeError('the pictures are gone')
        return super()._decode(*args)


def assert_same_past(one: Snapshot, other: Snapshot) -> None:
    for name in CacheState.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one.memory.cache, name),
                                      getattr(other.memory.cache, name), err_msg=name)
    assert (one.index, one.prompt) == (other.index, other.prompt)
    np.testing.assert_array_equal(one.heard, other.heard)


def assert_same_chunk(one: Chunk, other: Chunk) -> None:
    assert (one.index, one.prompt, set(one.seconds)) == (
        other.index, other.prompt, set(other.seconds))
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_array_equal(one.audio, other.audio)


@pytest.mark.parametrize(('threads', 'overlap'), [(1, True), (2, True), (4, True), (2, False)])
def test_overlap_changes_no_bit(model: Path, threads: int, overlap: bool) -> None:
    """Long enough for every memory to fill; prompts change, a snapshot is taken on the way."""
    files, sound = ModelFiles.open(model), blocks(100)
    plain = open_stream(OnnxBackend(files, threads=1))
    ahead = open_stream(OnnxBackend(files, threads=threads, overlap=overlap))
    assert (plain.overlaps, ahead.overlaps) == (False, overlap and threads > 1)
    wanted: list[Chunk] = []
    coming: list[Future[Chunk]] = []
    shown: list[Chunk] = []
    middle: list[Snapshot] = []
    for index, block in enumerate(sound):
        for stream in (plain, ahead):
            if index % 17 == 5:
                stream.switch(f'prompt {index}')
            if index == 41:
                stream.prepare('prompt 39')
        wanted.append(plain.step(block))
        coming.append(ahead.submit(block, shown.append))
        if index == 70:
            # The last pictures are on their way: the state has to wait for them.
            middle = [plain.snapshot(), ahead.snapshot()]
    for expected, future in zip(wanted, coming, strict=True):
        assert_same_chunk(future.result(), expected)
    for expected, early in zip(wanted, shown, strict=True):
        np.testing.assert_array_equal(early.frames, expected.frames)
    assert_same_past(*middle)
    assert_same_past(plain.snapshot(), ahead.snapshot())
    ahead.restore(middle[0])
    again = [ahead.submit(block) for block in sound[71:]]
    for index, future in enumerate(again, 71):
        # Under the prompt that reigned then, not those that came after it.
        if index < 73:
            np.testing.assert_array_equal(future.result().frames, wanted[index].frames)


def test_step_and_submit_may_be_mixed(model: Path) -> None:
    files, sound = ModelFiles.open(model), blocks(12)
    plain, mixed = (open_stream(OnnxBackend(files)) for _ in range(2))
    for index, block in enumerate(sound):
        expected = plain.step(block).frames
        if index % 3:
            mixed.submit(block)
        else:
            np.testing.assert_array_equal(mixed.step(block).frames, expected)
    assert_same_past(plain.snapshot(), mixed.snapshot())


def test_one_chunk_is_on_its_way_and_no_more(model: Path) -> None:
    backend = GatedBackend(ModelFiles.open(model))
    stream, twin = open_stream(backend), open_stream(OnnxBackend(ModelFiles.open(model)))
    sound = blocks(3)
    wanted = [twin.step(block).frames for block in sound]
    backend.gate.clear()
    coming = [stream.submit(sound[0])]
    assert not coming[0].done()
    begun = threading.Thread(target=lambda: coming.append(stream.submit(sound[1])))
    begun.start()
    begun.join(0.3)
    assert begun.is_alive() and len(coming) == 1  # it waits for the first one's last frame
    backend.gate.set()
    begun.join(10.0)
    coming.append(stream.submit(sound[2]))
    for future, frames in zip(coming, wanted, strict=True):
        np.testing.assert_array_equal(future.result().frames, frames)


def test_pictures_that_fail_are_lost_alone(model: Path) -> None:
    backend = GatedBackend(ModelFiles.open(model))
    stream, twin = open_stream(backend), open_stream(OnnxBackend(ModelFiles.open(model)))
    sound = blocks(8)
    for block in sound[:3]:
        stream.submit(block)
        twin.step(block)
    before = stream.snapshot()
    backend.refused = 1
    broken = stream.submit(sound[3])
    # It does not come up again in the next call, which has its own pictures.
    whole = stream.submit(sound[4])
    with pytest.raises(RuntimeError, match='pictures are gone'):
        broken.result()
    assert whole.result().index == 4
    twin.step(sound[3])
    twin.step(sound[4])
    for name in ('k', 'v', 'mask', 'previous'):
        np.testing.assert_array_equal(getattr(stream.snapshot().memory.cache, name),
                                      getattr(twin.snapshot().memory.cache, name))
    # And from the snapshot of before all of it comes out as if nothing had been.
    stream.restore(before)
    other = open_stream(OnnxBackend(ModelFiles.open(model)))
    other.restore(before)
    for block in sound[3:]:
        np.testing.assert_array_equal(stream.submit(block).result().frames,
                                      other.step(block).frames)


def test_a_step_that_fails_can_be_tried_again(model: Path) -> None:
    backend = GatedBackend(ModelFiles.open(model))
    stream, twin = open_stream(backend), open_stream(OnnxBackend(ModelFiles.open(model)))
    for block in blocks(4):
        backend.refused = 1
        with pytest.raises(RuntimeError, match='pictures are gone'):
            stream.step(block)
        np.testing.assert_array_equal(stream.step(block).frames, twin.step(block).frames)


def test_a_commit_that_fails_leaves_the_stream_before_its_chunk(
        model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OnnxBackend(ModelFiles.open(model))
    stream, twin = open_stream(backend), open_stream(OnnxBackend(ModelFiles.open(model)))
    sound = blocks(4)
    stream.submit(sound[0])
    twin.step(sound[0])
    denoise, calls = backend._graph('denoise'), []

    def failing(**inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError('no commit')
        return denoise(**inputs)

    with monkeypatch.context() as patched:
        patched.setitem(backend._graphs, 'denoise', failing)
        with pytest.raises(RuntimeError, match='no commit'):
            stream.submit(sound[1])
    assert_same_past(stream.snapshot(), twin.snapshot())
    for block in sound[1:]:
        np.testing.assert_array_equal(stream.submit(block).result().frames,
                                      twin.step(block).frames)


def test_closing_waits_for_pictures_on_their_way(model: Path) -> None:
    backend = GatedBackend(ModelFiles.open(model))
    stream = open_stream(backend)
    backend.gate.clear()
    coming = stream.submit(blocks(1)[0])
    threading.Timer(0.2, backend.gate.set).start()
    stream.close()
    assert coming.done() and coming.result().frames.any()
    backend.gate.clear()
    other = open_stream(backend)
    coming = other.submit(blocks(1)[0])
    threading.Timer(0.2, backend.gate.set).start()
    backend.close()
    assert coming.result().index == 0


def test_recaching_and_single_graphs_wait_for_pictures_on_their_way(model: Path) -> None:
    files, sound = ModelFiles.open(model), blocks(8)
    streams = [open_stream(OnnxBackend(files)) for _ in range(2)]
    encode = np.random.default_rng(0).standard_normal(
        (5, files.config.denoiser.text_width)).astype(np.float32)
    for block in sound[:5]:
        streams[0].step(block)
        last = streams[1].submit(block)
    state = streams[0].snapshot().memory.cache
    inputs = {name: getattr(state, name)[None] for name in ('previous', 'reference', 'last',
                                                            'picture')}
    inputs['latent'] = state.previous[None]
    one, other = (stream.backend.run_graph('decode', inputs)['frames'] for stream in streams)
    np.testing.assert_array_equal(one, other)
    assert last.result().index == 4
    for stream in streams:
        Recacher(stream, lambda text: encode).switch('somebody else')
    for block in sound[5:]:
        np.testing.assert_array_equal(streams[1].submit(block).result().frames,
                                      streams[0].step(block).frames)


def test_a_group_overlaps_its_streams_and_changes_no_bit(model: Path) -> None:
    backend = OnnxBackend(ModelFiles.open(model))
    together = [open_stream(backend, seed) for seed in range(3)]
    alone = [open_stream(OnnxBackend(ModelFiles.open(model), threads=1), seed)
             for seed in range(3)]
    for block in blocks(7):
        begun = [stream.begin(block) for stream in together]
        results = backend.chunks([item.job for item in begun])
        for stream, item, result, other in zip(together, begun, results, alone, strict=True):
            chunk, work = stream.finish(item, result)
            backend.remember([work] if work else [])
            assert_same_chunk(chunk, other.step(block))


def test_a_stream_without_overlap_answers_at_once(model: Path) -> None:
    stream = open_stream(OnnxBackend(ModelFiles.open(model), threads=1))
    coming = stream.submit(blocks(1)[0])
    assert isinstance(coming, Future) and coming.done()
    assert AvatarStream.overlaps is False
    with pytest.raises(ValueError, match='int16'):
        stream.submit(np.zeros(3, np.int16))


def test_after_a_lost_card_chunks_may_overlap(model: Path) -> None:
    from test_resilient import FailingBackend

    files, sound = ModelFiles.open(model), blocks(12)
    stream = ResilientStream(open_stream(FailingBackend(files)),
                             lambda: open_stream(OnnxBackend(files)), lambda text: None, 3)
    assert not stream.overlaps
    coming = [stream.submit(block) for block in sound]
    assert stream.overlaps and stream.backend_name == 'onnx'
    # Sound and numbers go on; what the memory forgot is its own.
    assert [future.result().index for future in coming] == [*range(12)]
