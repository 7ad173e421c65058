# SPDX-License-Identifier: Apache-2.0
"""One CUDA card through PyCUDA: context, stream, page-locked and device buffers, graphs.

Knows nothing of TensorRT, so that it runs, and is tested, wherever there is a card.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.signatures import TensorSpec

THREAD_LOCAL_CAPTURE: Final = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using the card."""


class DeviceError(RuntimeError):
    """The card cannot be used; says why."""


class DeviceMemoryError(DeviceError):
    """The card has too little memory left."""


def _driver() -> Any:
    """PyCUDA's driver interface, initialised.

    Raises:
        DeviceError: if PyCUDA or the card's driver is missing.
    """
    try:
        driver = importlib.import_module('pycuda.driver')
    except ImportError as error:
        raise DeviceError(f"PyCUDA cannot be imported ({error}); 'pip install pycuda' builds it "
                          f'where the CUDA toolkit is installed') from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise DeviceError(f"the CUDA driver says: {error}; look at 'nvidia-smi'") from error
    if count == 0:
        raise DeviceError('there is no CUDA card in this machine')
    return driver


def card_files() -> list[Path]:
    """Device files of NVIDIA's driver: of cards in a desktop or server, or of a Jetson's."""
    return [path for pattern in ('nvidia[0-9]*', 'nvhost-gpu', 'nvgpu', 'nvmap', 'dxg')
            for path in Path('/dev').glob(pattern)]


def compute_capability(index: int = 0) -> str:
    """Compute capability of a card, such as 8.7.

    Raises:
        DeviceError: if there is none.
    """
    major, minor = _driver().Device(index).compute_capability()
    return f'{major}.{minor}'


class Device:
    """A card's primary context, current inside ``with``, and one stream on it.

    The primary context is the one that CUDA's runtime uses, TensorRT and PyTorch among it, so all
    of them share buffers. PyCUDA's contexts belong to threads: every method that reaches the card
    is called inside ``with device``, in whichever thread.

    Args:
        index: of the card.

    Raises:
        DeviceError: if it cannot be used.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = _driver()
        card = self._driver.Device(index)
        self.name = str(card.name())
        self.compute_capability = '{}.{}'.format(*card.compute_capability())
        self._context = card.retain_primary_context()
        with self:
            self.stream = self._driver.Stream()

    def __enter__(self) -> Device:
        self._context.push()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._driver.Context.pop()
        # Only here are PyCUDA's exceptions known; above, they are the backend's.
        if isinstance(error, self._driver.MemoryError):
            raise DeviceMemoryError(f'{self.name} is out of memory: {error}') from error
        if isinstance(error, self._driver.Error):
            raise DeviceError(f'{self.name} failed: {error}') from error

    @property
    def stream_handle(self) -> int:
        """The stream as other libraries take it."""
        return int(self.stream.handle)

    def buffer(self, spec: TensorSpec) -> Buffer:
        """A device buffer, not initialised."""
        return Buffer(self._driver, self.stream, spec)

    def pinned(self, spec: TensorSpec) -> NDArray[Any]:
        """A page-locked host array, which copies to and from the card at full speed."""
        array: NDArray[Any] = self._driver.pagelocked_empty(spec.shape, np.dtype(spec.dtype))
        return array

    def synchronise(self) -> None:
        """Wait until the stream has done everything."""
        self.stream.synchronize()

    def event(self) -> Any:
        """Record a timing event on the stream."""
        event = self._driver.Event()
        event.record(self.stream)
        return event


class Buffer:
    """Memory on the card for one tensor."""

    def __init__(self, driver: Any, stream: Any, spec: TensorSpec) -> None:
        self._driver, self._stream, self.spec = driver, stream, spec
        self.nbytes = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
        self._memory = driver.mem_alloc(self.nbytes)

    def address(self, offset_bytes: int = 0) -> int:
        """Where it lies on the card."""
        return int(self._memory) + offset_bytes

    def upload(self, array: NDArray[Any]) -> None:
        """Copy a host array in, in the stream's order; only a page-locked one does not wait.

        Raises:
            ValueError: on another type or size.
        """
        if array.dtype != np.dtype(self.spec.dtype) or array.nbytes != self.nbytes:
            raise ValueError(f'{array.dtype} {list(array.shape)} does not fit {self.spec}')
        self._driver.memcpy_htod_async(self._memory, np.ascontiguousarray(array), self._stream)

    def download(self, array: NDArray[Any], offset_bytes: int = 0) -> None:
        """Copy out into a host array, in the stream's order; synchronise before reading it."""
        self._driver.memcpy_dtoh_async(array, self.address(offset_bytes), self._stream)

    def copy_from(self, other: Buffer) -> None:
        """Copy another buffer of the same size, on the card."""
        self._driver.memcpy_dtod_async(self._memory, other._memory, self.nbytes, self._stream)


class PingPong:
    """Two sets of buffers: one is read while the other is written, then they change places.

    A graph cannot write its cache in place; this way it need not be copied either.
    """

    def __init__(self, device: Device, specs: Mapping[str, TensorSpec]) -> None:
        self._device, self._specs = device, dict(specs)
        self._sets = [{name: device.buffer(spec) for name, spec in specs.items()}
                      for _ in range(2)]
        self.side = 0

    @property
    def now(self) -> dict[str, Buffer]:
        """What is true now."""
        return self._sets[self.side]

    @property
    def next(self) -> dict[str, Buffer]:
        """What is being written."""
        return self._sets[1 - self.side]

    def swap(self) -> None:
        """What was written becomes true."""
        self.side = 1 - self.side

    def copy(self) -> PingPong:
        """An independent copy of what is true now."""
        other = PingPong(self._device, self._specs)
        for name, buffer in other.now.items():
            buffer.copy_from(self.now[name])
        return other


class CudaGraph:
    """Work of a stream, recorded once and launched as one.

    PyCUDA does not wrap the driver's stream capture, so its five functions are called by name.

    Args:
        device: its stream is recorded.
        record: enqueues the work and waits for nothing.

    Raises:
        DeviceError: if something in it cannot be captured.
    """

    _library: ctypes.CDLL | None = None

    def __init__(self, device: Device, record: Callable[[], None]) -> None:
        self._stream = ctypes.c_void_p(device.stream_handle)
        self._execution = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        self._call('cuStreamBeginCapture_v2', self._stream, ctypes.c_int(THREAD_LOCAL_CAPTURE))
        try:
            record()
        finally:
            self._call('cuStreamEndCapture', self._stream, ctypes.byref(graph))
        try:
            self._call('cuGraphInstantiateWithFlags', ctypes.byref(self._execution), graph,
                       ctypes.c_ulonglong(0))
        finally:
            self._call('cuGraphDestroy', graph)

    @classmethod
    def _call(cls, name: str, *arguments: Any) -> None:
        if cls._library is None:
            cls._library = ctypes.CDLL('libcuda.so.1')
        status = getattr(cls._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            cls._library.cuGetErrorName(status, ctypes.byref(text))
            raise DeviceError(f'{name} failed: {(text.value or b"?").decode()}')

    def launch(self) -> None:
        """Enqueue everything that was recorded."""
        self._call('cuGraphLaunch', self._execution, self._stream)

    def close(self) -> None:
        """Free it; it must not be running."""
        if self._execution:
            self._call('cuGraphExecDestroy', self._execution)
            self._execution = ctypes.c_void_p()
