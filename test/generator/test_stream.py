# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY, encode_text, open_stream, reference

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.onnx import OnnxBackend
from interactive_avatar.generator.memory import KEY_FRAME_POLICIES
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.prompts import WorldState, passing_prompt, stable_prompt
from interactive_avatar.generator.stream import AvatarStream, Chunk
from interactive_avatar.media.clock import CHUNK_SAMPLES


def sound(seconds: int) -> np.ndarray:
    random = np.random.default_rng(1)
    count = seconds * 16000 // CHUNK_SAMPLES
    return random.integers(-8000, 8000, (count, CHUNK_SAMPLES)).astype(np.int16)


def test_sound_comes_out_one_chunk_later_and_frames_have_the_right_form(model: Path) -> None:
    stream = open_stream(OnnxBackend(ModelFiles.open(model)))
    blocks = sound(1)
    chunks = [stream.step(block) for block in blocks]
    assert not chunks[0].audio.any()
    np.testing.assert_array_equal(chunks[3].audio, blocks[2])
    side = TINY.autoencoder.picture_px
    assert chunks[0].frames.shape == (4, side, side, 3)
    assert chunks[0].frames.dtype == np.uint8
    assert [chunk.index for chunk in chunks] == list(range(len(blocks)))
    assert set(chunks[0].seconds) == {'audio', 'denoise', 'decode', 'commit', 'memory', 'total'}


def test_sound_after_the_lookahead_does_not_change_a_chunk(model: Path) -> None:
    files = ModelFiles.open(model)
    blocks = sound(1)
    other = blocks.copy()
    other[4:] = 0
    a, b = open_stream(OnnxBackend(files)), open_stream(OnnxBackend(files))
    for index, (x, y) in enumerate(zip(blocks[:5], other[:5], strict=True)):
        first, second = a.step(x), b.step(y)
        assert (first.frames == second.frames).all() == (index < 4)


@pytest.mark.parametrize('lookahead_ms', [0, 40, 80])
def test_with_less_lookahead_the_sound_comes_out_sooner(model: Path, lookahead_ms: int) -> None:
    stream = AvatarStream(OnnxBackend(ModelFiles.open(model)), reference(), 'a person',
                          encode_text, lookahead_ms=lookahead_ms)
    blocks = sound(1)
    shown: list[Chunk] = []
    chunks = [stream.step(block, shown.append) for block in blocks]
    late = lookahead_ms * 16
    heard = np.concatenate([chunk.audio for chunk in chunks])
    np.testing.assert_array_equal(heard[late:], blocks.reshape(-1)[:heard.size - late])
    assert stream.lookahead_chunks == (lookahead_ms >= 80)
    for early, chunk in zip(shown, chunks, strict=True):
        np.testing.assert_array_equal(early.frames, chunk.frames)
        np.testing.assert_array_equal(early.audio, chunk.audio)


def test_speech_takes_the_place_of_the_silence_before_it(model: Path) -> None:
    files, blocks = ModelFiles.open(model), sound(1)
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    waiting, sooner = open_stream(OnnxBackend(files)), open_stream(OnnxBackend(files))
    for stream in (waiting, sooner):
        for _ in range(3):
            stream.step(silence)
    waiting.step(blocks[0])
    late = waiting.step(blocks[1])
    sooner.replace_silence(blocks[0])
    soon = sooner.step(blocks[1])
    np.testing.assert_array_equal(soon.audio, late.audio)
    assert (soon.index, late.index) == (3, 4) and (soon.audio == blocks[0]).all()
    with pytest.raises(ValueError, match='no chunk of silence'):
        sooner.replace_silence(blocks[2])


def test_a_lookahead_between_frames_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match='multiple of 40'):
        AvatarStream(OnnxBackend(ModelFiles.open(model)), reference(), 'a person', encode_text,
                     lookahead_ms=50)


def test_restoring_a_snapshot_repeats_the_stream_bit_for_bit(model: Path) -> None:
    stream = open_stream(OnnxBackend(ModelFiles.open(model)))
    blocks = np.concatenate([sound(6)] * 2)
    for block in blocks[:40]:
        stream.step(block)
    snapshot = stream.snapshot()
    first = [stream.step(block).frames for block in blocks[40:60]]
    stream.switch('somebody else')
    stream.step(blocks[0])
    stream.restore(snapshot)
    second = [stream.step(block).frames for block in blocks[40:60]]
    np.testing.assert_array_equal(first, second)
    assert stream.prompt == 'a person'


def test_memory_fills_and_stays_bounded(model: Path) -> None:
    stream = open_stream(OnnxBackend(ModelFiles.open(model)))
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    sizes = []
    for index in range(120):
        stream.step(silence)
        if index in (90, 119):
            cache = stream.memory.cache
            sizes.append((cache.k.nbytes, len(stream.memory.history.long_features)))
            assert (cache.mask == 0).all()
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == TINY.memory.long


def test_a_prompt_switch_takes_effect_in_the_next_chunk(model: Path) -> None:
    files = ModelFiles.open(model)
    a, b = open_stream(OnnxBackend(files)), open_stream(OnnxBackend(files))
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    np.testing.assert_array_equal(a.step(silence).frames, b.step(silence).frames)
    b.switch('a very different prompt')
    assert (a.step(silence).frames != b.step(silence).frames).any()


def test_the_end_of_a_smile_is_told_in_one_chunk_alone(model: Path) -> None:
    smile, rest = (stable_prompt(WorldState(expression=name)) for name in ('smile', 'neutral'))
    told: list[str] = []

    def encode(text: str) -> np.ndarray:
        told.append(text)
        return encode_text(text)

    stream = AvatarStream(OnnxBackend(ModelFiles.open(model)), reference(), smile, encode)
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    stream.step(silence)
    stream.prepare(rest)
    assert told == [smile, passing_prompt(smile, rest), rest]
    stream.switch(rest)
    assert stream.prompt == rest
    before = stream.snapshot()
    ended = stream.step(silence)
    then = stream.step(silence)
    assert ended.prompt == rest == then.prompt and len(told) == 3
    # What is told once more in a restored stream is the moment too, and afterwards rest alone.
    stream.restore(before)
    np.testing.assert_array_equal(stream.step(silence).frames, ended.frames)
    np.testing.assert_array_equal(stream.step(silence).frames, then.frames)
    stream.restore(before)
    stream.switch(rest)  # from rest, there is no such moment
    assert (stream.step(silence).frames != ended.frames).any()


def test_bad_input_is_refused_with_its_value(model: Path, tmp_path: Path) -> None:
    files = ModelFiles.open(model)
    stream = open_stream(OnnxBackend(files))
    with pytest.raises(ValueError, match='float32'):
        stream.step(np.zeros(CHUNK_SAMPLES, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='empty'):
        stream.switch(' ')
    with pytest.raises(ModelError, match='no model directory'):
        ModelFiles.open(tmp_path / 'nowhere')
    with pytest.raises(ModelError, match='does not exist here'):
        open_backend('abacus', files)


def test_a_corrupt_weights_file_is_named(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / 'model.safetensors').read_bytes())
    weights[-1] ^= 1
    (tmp_path / 'model.safetensors').write_bytes(weights)
    with pytest.raises(ModelError, match='is corrupt'):
        ModelFiles.open(tmp_path)
    (tmp_path / 'decode.onnx').unlink()
    with pytest.raises(ModelError, match='missing'):
        ModelFiles.open(tmp_path, verify=False)


@pytest.mark.parametrize(('policy', 'filled'), [
    ('dynamic', (True, True)), ('none', (True, False)), ('window', (False, False))])
def test_ablations_leave_memories_empty(model: Path, policy: str,
                                        filled: tuple[bool, bool]) -> None:
    stream = open_stream(OnnxBackend(ModelFiles.open(model)))
    stream.memory.history._policy = KEY_FRAME_POLICIES[policy]()
    for _ in range(45):
        stream.step(np.zeros(CHUNK_SAMPLES, np.int16))
    mask = stream.memory.cache.state().mask
    for kind, expected in zip(('short', 'long'), filled):
        start, count, tokens = TINY.cache_layout[kind]
        assert (mask[start:start + count * tokens] == 0).any() == expected, kind
