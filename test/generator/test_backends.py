# SPDX-License-Identifier: Apache-2.0
"""All backends give torch's float32 answers, graph by graph and as streams."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tiny import TINY, encode_text, open_stream, reference

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.base import BackendMemoryError, CacheState, MemoryJob
from interactive_avatar.generator.backends.engine_graph import prepare_graph
from interactive_avatar.generator.backends.onnx import OnnxBackend, OnnxCache
from interactive_avatar.generator.backends.torch import TorchBackend
from interactive_avatar.generator.cpu_graphs import CPU_GRAPHS
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.signatures import (
    DEVICE_GRAPHS,
    STREAM_GRAPHS,
    TensorSpec,
    graph_signatures,
)
from interactive_avatar.generator.stream import AvatarStream
from interactive_avatar.generator.text import TextEncoder
from interactive_avatar.media.clock import CHUNK_SAMPLES

RELATIVE_FLOAT32 = 1e-3
RELATIVE_HALF = 2e-2
# Of random weights, whose rows are less alike than trained ones'.
RELATIVE_INT8 = 6e-2


def example(name: str, spec: TensorSpec, random: np.random.Generator) -> np.ndarray:
    if spec.dtype == 'uint8':
        return random.integers(0, 255, spec.shape).astype(np.uint8)
    if name in ('level', 'next_level'):
        return np.full(spec.shape, 0.7, np.float32)
    if name == 'long_slot':
        return np.eye(1, spec.shape[1], 1, dtype=np.float32)
    if name.endswith('mask'):
        return np.where(random.random(spec.shape) < 0.3, -1e4, 0.0).astype(np.float32)
    return random.standard_normal(spec.shape).astype(np.float32)


def examples(graph: str, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    signature = graph_signatures(TINY)[graph]
    return {name: example(name, spec, random) for name, spec in signature.inputs.items()}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def largest_error(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert found.keys() == wanted.keys()
    return max(relative(found[name], wanted[name]) for name in wanted)


@pytest.fixture(scope='module')
def float32(model: Path) -> TorchBackend:
    return TorchBackend(ModelFiles.open(model), device='cpu')


@pytest.mark.parametrize('graph', [*STREAM_GRAPHS, *DEVICE_GRAPHS])
def test_onnx_agrees_with_torch(model: Path, float32: TorchBackend, graph: str) -> None:
    onnx = OnnxBackend(ModelFiles.open(model), int8=False, graphs=(graph,))
    inputs = examples(graph)
    assert largest_error(onnx.run_graph(graph, inputs),
                         float32.run_graph(graph, inputs)) < RELATIVE_FLOAT32


@pytest.mark.parametrize('graph', CPU_GRAPHS)
def test_the_8_bit_graphs_are_near(model: Path, float32: TorchBackend, graph: str) -> None:
    onnx = OnnxBackend(ModelFiles.open(model), graphs=(graph,))
    inputs = examples(graph)
    error = largest_error(onnx.run_graph(graph, inputs), float32.run_graph(graph, inputs))
    assert 0 < error < RELATIVE_INT8


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
@pytest.mark.parametrize('graph', STREAM_GRAPHS)
def test_torch_in_half_precision_agrees(model: Path, float32: TorchBackend, graph: str,
                                        precision: str) -> None:
    half = TorchBackend(ModelFiles.open(model), device='cpu', precision=precision, streams=1)
    inputs = examples(graph)
    assert largest_error(half.run_graph(graph, inputs),
                         float32.run_graph(graph, inputs)) < RELATIVE_HALF


@pytest.mark.parametrize('graph', STREAM_GRAPHS)
def test_graphs_as_tensorrt_gets_them_agree(model: Path, float32: TorchBackend,
                                            graph: str) -> None:
    """The graph in fp16 that an engine is compiled from, run here by ONNX Runtime."""
    prepared = prepare_graph(ModelFiles.open(model).graph(graph), 'fp16')
    session = ort.InferenceSession(prepared.SerializeToString(),
                                   providers=['CPUExecutionProvider'])
    inputs = examples(graph)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, inputs), strict=True))
    assert largest_error(found, float32.run_graph(graph, inputs)) < RELATIVE_HALF


def random_state(seed: int) -> CacheState:
    random = np.random.default_rng(seed)
    a, d = TINY.autoencoder, TINY.denoiser
    kv = (d.layers, d.heads, TINY.context_tokens, d.head_width)
    latent = (a.latent_channels, a.latent_px, a.latent_px)
    k, v = (random.standard_normal(kv).astype(np.float32) for _ in range(2))
    return CacheState(k, v, np.zeros(TINY.context_tokens, np.float32),
                      *(random.standard_normal(latent).astype(np.float32) for _ in range(2)),
                      reference(seed), reference(seed + 1))


@pytest.mark.parametrize('graph, kind, slot', [
    ('push_adjacent', 'adjacent', None), ('push_memory', 'short', None),
    ('push_memory', 'short', 2)])
def test_caches_pushed_by_graphs_equal_those_pushed_in_place(model: Path, graph: str, kind: str,
                                                             slot: int | None) -> None:
    onnx = OnnxBackend(ModelFiles.open(model), graphs=(graph,))
    cache = OnnxCache(TINY, random_state(0))
    inputs = examples(graph)
    inputs |= {'cache_k': cache.k.copy(), 'cache_v': cache.v.copy(),
               'cache_mask': cache.mask.copy()}
    if graph == 'push_memory':
        inputs['long_slot'] = np.zeros_like(inputs['long_slot'])
        if slot is not None:
            inputs['long_slot'][0, slot] = 1.0
            cache.keep(slot)
    cache.push(kind, inputs['k'], inputs['v'])
    found = onnx.run_graph(graph, inputs)
    for name, wanted in (('next_k', cache.k), ('next_v', cache.v), ('next_mask', cache.mask),
                         ('next_rotated', cache.rotated)):
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)


@pytest.mark.parametrize('slot', [None, 0, 3])
def test_torch_remembers_as_onnx_does(model: Path, float32: TorchBackend,
                                      slot: int | None) -> None:
    onnx = OnnxBackend(ModelFiles.open(model), int8=False)
    a = TINY.autoencoder
    latents = np.random.default_rng(1).standard_normal(
        (TINY.memory.group, a.latent_channels, a.latent_px, a.latent_px)).astype(np.float32)
    states = []
    for backend in (onnx, float32):
        cache = backend.open_cache(random_state(3))
        backend.remember([MemoryJob(latents, cache, slot)])
        states.append(cache.state())
        cache.close()
    for name in ('k', 'v'):
        assert relative(getattr(states[1], name), getattr(states[0], name)) < RELATIVE_FLOAT32
    np.testing.assert_array_equal(states[1].mask, states[0].mask)


def sound(count: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(-8000, 8000, (count, CHUNK_SAMPLES)).astype(np.int16)


def test_streams_of_onnx_and_torch_stay_together(model: Path, float32: TorchBackend) -> None:
    streams = [open_stream(OnnxBackend(ModelFiles.open(model), int8=False)), open_stream(float32)]
    for index, block in enumerate(sound(45)):
        frames = [stream.step(block).frames.astype(float) for stream in streams]
        assert np.abs(frames[0] - frames[1]).mean() < 0.5, f'chunk {index}'
    streams[1].close()


def test_a_stream_goes_on_in_another_backend(model: Path, float32: TorchBackend) -> None:
    onnx = open_stream(OnnxBackend(ModelFiles.open(model), int8=False))
    torch = open_stream(float32)
    blocks = sound(45)
    for block in blocks[:40]:
        onnx.step(block)
    torch.restore(onnx.snapshot())
    for block in blocks[40:]:
        frames = [stream.step(block).frames.astype(float) for stream in (onnx, torch)]
        assert np.abs(frames[0] - frames[1]).mean() < 0.5
    torch.close()


def test_a_full_backend_refuses_and_the_streams_in_it_go_on(model: Path) -> None:
    backend = TorchBackend(ModelFiles.open(model), device='cpu', streams=1)
    stream = open_stream(backend)
    with pytest.raises(BackendMemoryError, match='all 1 places'):
        open_stream(backend)
    assert stream.step(sound(1)[0]).index == 0
    stream.close()
    open_stream(backend)


def test_opening_leaves_no_graph_to_the_first_chunk(
        model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextEncoder, 'load', lambda: SimpleNamespace(encode=encode_text))
    stream = AvatarStream.open(model, 'torch', reference(), 'a person', device='cpu', streams=1)
    backend = stream.backend
    assert isinstance(backend, TorchBackend)
    recorded = [list(backend._chunk_batches), list(backend._memory_batches)]
    assert recorded == [[1], [1]]
    for block in sound(6):
        stream.step(block)
    assert [list(backend._chunk_batches), list(backend._memory_batches)] == recorded


def test_an_unknown_backend_or_precision_is_named(model: Path) -> None:
    files = ModelFiles.open(model)
    with pytest.raises(ModelError, match='does not exist here'):
        open_backend('abacus', files)
    with pytest.raises(ValueError, match='fp7'):
        TorchBackend(files, device='cpu', precision='fp7')


def test_a_wrong_input_is_named(model: Path) -> None:
    onnx = OnnxBackend(ModelFiles.open(model), graphs=('encode_audio',))
    with pytest.raises(ValueError, match='mel must be float32'):
        onnx.run_graph('encode_audio', {'mel': np.zeros((1, 3, 3), np.float32)})
    wrong: Any = {'mel': np.zeros((1, TINY.audio.window_mels, TINY.audio.mel_bands))}
    with pytest.raises(ValueError, match='float64'):
        onnx.run_graph('encode_audio', wrong)


def test_a_chunk_that_fails_leaves_nothing_running_behind(model: Path) -> None:
    backend = OnnxBackend(ModelFiles.open(model), threads=2)
    whole, broken = open_stream(backend), open_stream(backend)
    block = np.zeros(CHUNK_SAMPLES, np.int16)
    expected = [whole.step(block).frames for _ in range(3)]

    def refuse(chunk: object) -> None:
        raise RuntimeError('nobody looks')

    for frames in expected:
        with pytest.raises(RuntimeError, match='nobody looks'):
            broken.step(block, refuse)
        np.testing.assert_array_equal(broken.step(block).frames, frames)
    backend.close()


@pytest.mark.slow
@pytest.mark.parametrize('graph', ['denoise', 'decode'])
def test_compiled_layers_agree(model: Path, float32: TorchBackend, graph: str) -> None:
    compiled = TorchBackend(ModelFiles.open(model), device='cpu', compiled=True)
    inputs = examples(graph)
    assert largest_error(compiled.run_graph(graph, inputs),
                         float32.run_graph(graph, inputs)) < RELATIVE_FLOAT32
