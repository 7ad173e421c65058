# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.onnx import OnnxBackend
from interactive_avatar.generator.backends.torch import TorchBackend
from interactive_avatar.generator.export import export
from interactive_avatar.generator.memory import KEY_FRAME_POLICIES
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.networks import Generator
from interactive_avatar.generator.stream import AvatarStream
from interactive_avatar.media.clock import CHUNK_SAMPLES

RELATIVE_FLOAT32 = 1e-3
RELATIVE_INT8 = 6e-2


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    generator = Generator(TINY)
    for parameter in generator.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    root = tmp_path_factory.mktemp('model')
    export(generator, root)
    return root


def open_stream(backend: object, seed: int = 0) -> AvatarStream:
    def encode(text: str) -> np.ndarray:
        random = np.random.default_rng(len(text))
        return random.standard_normal((5, TINY.denoiser.text_width)).astype(np.float32)

    side = TINY.autoencoder.picture_px
    reference = np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8)
    return AvatarStream(backend, reference, 'a person', encode, seed)  # type: ignore[arg-type]


def sound(seconds: int) -> np.ndarray:
    random = np.random.default_rng(1)
    count = seconds * 16000 // CHUNK_SAMPLES
    return random.integers(-8000, 8000, (count, CHUNK_SAMPLES)).astype(np.int16)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_onnx_agrees_with_torch_graph_by_graph(model: Path) -> None:
    files = ModelFiles.open(model)
    onnx, reference = OnnxBackend(files, int8=False), TorchBackend(files, device='cpu')
    whole = OnnxBackend(files, int8=True, graphs=('denoise',))
    random = np.random.default_rng(0)
    a = TINY.autoencoder
    latent = random.standard_normal((a.latent_channels, a.latent_px, a.latent_px), np.float32)
    frames = random.integers(0, 255, (4, a.picture_px, a.picture_px, 3)).astype(np.uint8)
    mel = random.standard_normal((TINY.audio.window_mels, TINY.audio.mel_bands), np.float32)
    text = random.standard_normal((7, TINY.denoiser.text_width), np.float32)
    assert relative(onnx.encode_image(frames), reference.encode_image(frames)) < RELATIVE_FLOAT32
    decoded = []
    for backend in (onnx, reference):
        cache = backend.new_cache()
        cache.open(frames[0], latent * 0.3)
        backend.decode(latent * 0.8, cache)
        cache.follow(latent * 0.8)
        decoded.append(backend.decode(latent, cache).astype(int))
    assert np.abs(decoded[0] - decoded[1]).max() <= 2
    caches, entries = [], []
    for backend in (onnx, reference):
        cache = backend.new_cache()
        cache.place('reference', 0, backend.embed_reference(latent))
        cache.push('short', backend.compress(np.stack([latent] * TINY.memory.group), cache))
        audio, prompt = backend.encode_audio(mel), backend.encode_text(text)
        cache.push('adjacent', backend.commit(latent, 0.1, audio, prompt, cache))
        cache.push('adjacent', backend.commit(latent * 0.5, 0.1, audio, prompt, cache))
        caches.append(cache)
        entries.append((audio, prompt))
    velocities = [backend.denoise(latent, 0.7, *entry, cache) for backend, entry, cache in
                  zip((onnx, reference), entries, caches, strict=True)]
    assert relative(velocities[0], velocities[1]) < RELATIVE_FLOAT32
    rough = whole.denoise(latent, 0.7, *entries[0], caches[0])
    assert 0 < relative(rough, velocities[1]) < RELATIVE_INT8


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
    assert set(chunks[0].seconds) == {'audio', 'denoise', 'decode', 'commit', 'total'}


def test_sound_after_the_lookahead_does_not_change_a_chunk(model: Path) -> None:
    files = ModelFiles.open(model)
    blocks = sound(1)
    other = blocks.copy()
    other[4:] = 0
    a, b = open_stream(OnnxBackend(files)), open_stream(OnnxBackend(files))
    for index, (x, y) in enumerate(zip(blocks[:5], other[:5], strict=True)):
        first, second = a.step(x), b.step(y)
        assert (first.frames == second.frames).all() == (index < 4)


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
            sizes.append((cache.k.nbytes, len(stream.memory.long_features)))
            assert (cache.mask == 0).all()
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == TINY.memory.long


@pytest.mark.parametrize(('policy', 'filled'), [
    ('dynamic', (True, True)), ('none', (True, False)), ('window', (False, False))])
def test_ablations_leave_memories_empty(model: Path, policy: str,
                                        filled: tuple[bool, bool]) -> None:
    backend = OnnxBackend(ModelFiles.open(model))
    stream = open_stream(backend)
    stream.memory._policy = KEY_FRAME_POLICIES[policy]()
    for _ in range(45):
        stream.step(np.zeros(CHUNK_SAMPLES, np.int16))
    mask = stream.memory.cache.mask[0]
    for kind, expected in zip(('short', 'long'), filled):
        start, count, tokens = TINY.cache_layout[kind]
        assert (mask[start:start + count * tokens] == 0).any() == expected, kind


def test_a_prompt_switch_takes_effect_in_the_next_chunk(model: Path) -> None:
    files = ModelFiles.open(model)
    a, b = open_stream(OnnxBackend(files)), open_stream(OnnxBackend(files))
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    np.testing.assert_array_equal(a.step(silence).frames, b.step(silence).frames)
    b.switch('a very different prompt')
    assert (a.step(silence).frames != b.step(silence).frames).any()


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
