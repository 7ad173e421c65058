# SPDX-License-Identifier: Apache-2.0
"""The tensorrt backend's course of a chunk: which buffer goes where, and what changes places.

TensorRT runs on no machine that the tests have. Here its place is taken by ONNX Runtime and the
card's by host memory, at real addresses; where PyCUDA finds a card, the same course runs there on
real device buffers and a real CUDA graph, with PyTorch as what runs the graphs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tiny import open_stream

from interactive_avatar.generator.backends import device as device_module
from interactive_avatar.generator.backends.device import (
    CudaGraph,
    Device,
    DeviceError,
    DeviceMemoryError,
    PingPong,
)
from interactive_avatar.generator.backends.onnx import OnnxBackend
from interactive_avatar.generator.backends.tensorrt import TensorRTBackend
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.signatures import (
    DEVICE_GRAPHS,
    STREAM_GRAPHS,
    GraphSignature,
    TensorSpec,
)
from interactive_avatar.media.clock import CHUNK_SAMPLES

GRAPHS = (*STREAM_GRAPHS, *DEVICE_GRAPHS)


def array_at(address: int, spec: TensorSpec) -> np.ndarray:
    size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(raw, spec.dtype).reshape(spec.shape)


class HostBuffer:
    """`device.Buffer` in host memory."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        # What nobody wrote is not a number, so that reading it is seen.
        self.array = np.full(spec.shape, 255 if spec.dtype == 'uint8' else np.nan, spec.dtype)
        self.nbytes = self.array.nbytes

    def address(self, offset_bytes: int = 0) -> int:
        return self.array.ctypes.data + offset_bytes

    def upload(self, array: np.ndarray) -> None:
        assert array.dtype == self.spec.dtype and array.nbytes == self.nbytes
        self.array[:] = array.reshape(self.spec.shape)

    def download(self, array: np.ndarray, offset_bytes: int = 0) -> None:
        array[:] = self.array

    def copy_from(self, other: HostBuffer) -> None:
        self.array[:] = other.array


class HostDevice:
    """`device.Device` in host memory."""

    name, compute_capability, stream_handle = 'host', '0.0', 0

    def __enter__(self) -> HostDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        pass

    def buffer(self, spec: TensorSpec) -> HostBuffer:
        return HostBuffer(spec)

    def pinned(self, spec: TensorSpec) -> np.ndarray:
        return np.zeros(spec.shape, spec.dtype)

    def synchronise(self) -> None:
        pass


class HostRunner:
    """A graph on arrays at addresses, by ONNX Runtime."""

    capturable = False

    def __init__(self, path: Path, signature: GraphSignature) -> None:
        self._session = ort.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        self._signature = signature

    def enqueue(self, addresses: Mapping[str, int], stream_handle: int) -> None:
        signature = self._signature
        assert addresses.keys() == {*signature.inputs, *signature.outputs}
        read = {addresses[name] for name in signature.inputs}
        assert not read & {addresses[name] for name in signature.outputs}
        names = list(signature.outputs)
        results = self._session.run(names, {
            name: array_at(addresses[name], spec) for name, spec in signature.inputs.items()})
        for name, result in zip(names, results, strict=True):
            array_at(addresses[name], signature.outputs[name])[:] = result


@pytest.fixture
def backend(model: Path) -> TensorRTBackend:
    files = ModelFiles.open(model)
    runners = {name: HostRunner(files.graph(name), files.graphs[name]) for name in GRAPHS}
    card: Any = HostDevice()
    return TensorRTBackend(files, device=card, runners=runners)


def sound(count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    return random.integers(-8000, 8000, (count, CHUNK_SAMPLES)).astype(np.int16)


def stay_together(backend: TensorRTBackend, model: Path, chunks: int,
                  tolerance: float = 0.5) -> None:
    own = open_stream(backend)
    other = open_stream(OnnxBackend(ModelFiles.open(model), int8=False))
    for index, block in enumerate(sound(chunks)):
        if index == chunks // 2:
            own.switch('somebody else altogether')
            other.switch('somebody else altogether')
        frames = [stream.step(block).frames.astype(float) for stream in (own, other)]
        assert np.abs(frames[0] - frames[1]).mean() < tolerance, f'chunk {index}'
    states = [stream.snapshot().memory.cache for stream in (own, other)]
    np.testing.assert_array_equal(states[0].mask, states[1].mask)


def test_a_stream_is_that_of_the_onnx_backend(backend: TensorRTBackend, model: Path) -> None:
    # Long enough for entries to reach the long memory.
    stay_together(backend, model, 45)


def test_two_streams_on_one_card_do_not_meet(backend: TensorRTBackend, model: Path) -> None:
    alone = open_stream(OnnxBackend(ModelFiles.open(model), int8=False), seed=3)
    first, second = open_stream(backend, seed=3), open_stream(backend, seed=4)
    for block in sound(4):
        second.step(block[::-1].copy())
        frames = [stream.step(block).frames.astype(float) for stream in (first, alone)]
        assert np.abs(frames[0] - frames[1]).mean() < 0.5
    second.close()


def test_without_a_card_the_reason_is_given(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f'No module named {name!r}')

    monkeypatch.setattr(device_module.importlib, 'import_module', refuse)
    with pytest.raises(ModelError, match='pip install pycuda'):
        TensorRTBackend(ModelFiles.open(model))


# On a real card ------------------------------------------------------------------------------


@pytest.fixture
def card() -> Device:
    try:
        return Device()
    except DeviceError as error:
        pytest.skip(f'no card for PyCUDA: {error}')


def test_buffers_carry_what_is_put_into_them(card: Device) -> None:
    spec = TensorSpec('float32', (3, 5))
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    with card:
        first, second, host = card.buffer(spec), card.buffer(spec), card.pinned(spec)
        host[:] = values
        first.upload(host)
        second.copy_from(first)
        found = np.empty_like(values)
        second.download(found)
        card.synchronise()
        np.testing.assert_array_equal(found, values)
        with pytest.raises(ValueError, match='does not fit'):
            first.upload(values.astype(np.float64))


def test_a_pair_changes_places_and_its_copy_is_apart(card: Device) -> None:
    spec = TensorSpec('float32', (4,))
    with card:
        pair = PingPong(card, {'x': spec})
        pair.next['x'].upload(np.full(4, 7, np.float32))
        pair.swap()
        other = pair.copy()
        pair.now['x'].upload(np.zeros(4, np.float32))
        found = np.empty(4, np.float32)
        other.now['x'].download(found)
        card.synchronise()
    np.testing.assert_array_equal(found, 7)


def test_a_recorded_copy_runs_again_on_new_values(card: Device) -> None:
    spec = TensorSpec('float32', (1024,))
    with card:
        source, target = card.buffer(spec), card.buffer(spec)
        graph = CudaGraph(card, lambda: target.copy_from(source))
        for value in (1.0, 2.0):
            source.upload(np.full(1024, value, np.float32))
            graph.launch()
            found = np.empty(1024, np.float32)
            target.download(found)
            card.synchronise()
            np.testing.assert_array_equal(found, value)
        graph.close()


def test_too_large_a_buffer_is_a_memory_error(card: Device) -> None:
    with pytest.raises(DeviceMemoryError, match='out of memory'), card:
        card.buffer(TensorSpec('float32', (1 << 40,)))


class TorchRunner:
    """A graph on device buffers of PyCUDA, by PyTorch, on PyCUDA's stream."""

    capturable = True

    def __init__(self, module: Any, signature: GraphSignature) -> None:
        self._module, self._signature = module, signature

    @staticmethod
    def _tensor(address: int, spec: TensorSpec) -> Any:
        import torch

        class View:
            __cuda_array_interface__ = {  # noqa: RUF012
                'shape': spec.shape, 'typestr': np.dtype(spec.dtype).str,
                'data': (address, False), 'version': 3}
        return torch.as_tensor(View(), device='cuda')

    def enqueue(self, addresses: Mapping[str, int], stream_handle: int) -> None:
        import torch
        signature = self._signature
        with torch.no_grad(), torch.cuda.stream(torch.cuda.ExternalStream(stream_handle)):
            outputs = self._module(*(self._tensor(addresses[name], spec)
                                     for name, spec in signature.inputs.items()))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for (name, spec), value in zip(signature.outputs.items(), outputs, strict=True):
                self._tensor(addresses[name], spec).copy_(value)


@pytest.mark.parametrize('capture', [False, True])
def test_the_course_of_a_chunk_on_a_card(card: Device, model: Path, capture: bool) -> None:
    import torch

    from interactive_avatar.generator.graph_modules import graph_module
    from interactive_avatar.generator.networks import Generator
    files = ModelFiles.open(model)
    generator = Generator(files.config)
    generator.load(files.weights)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    generator = generator.cuda().eval()
    runners = {name: TorchRunner(graph_module(generator, name).cuda(), files.graphs[name])
               for name in GRAPHS}
    backend = TensorRTBackend(files, device=card, runners=runners, capture=capture)
    stay_together(backend, model, 45)
