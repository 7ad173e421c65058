# SPDX-License-Identifier: Apache-2.0
"""TensorRT (Jetson, data centre) and TensorRT-RTX (desktop), with PyCUDA.

A stream's past stays on the card, in pairs of buffers that change places instead of being copied.
A chunk is one copy in, a fixed sequence of engines on one stream, and one copy out; the sequence
is recorded as a CUDA graph where the engines allow it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import (
    BackendLostError,
    BackendMemoryError,
    CacheState,
    ChunkJob,
    ChunkResult,
    MemoryJob,
    pad_text,
)
from interactive_avatar.generator.backends.device import (
    Buffer,
    CudaGraph,
    Device,
    DeviceError,
    DeviceMemoryError,
    PingPong,
)
from interactive_avatar.generator.backends.engines import (
    PORTABLE,
    Api,
    EngineCache,
    EngineError,
    EngineSpec,
    engine_signature,
    ensure_engine,
    load_api,
    make_logger,
)
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.positions import cache_table, rotate
from interactive_avatar.generator.sampler import check_levels
from interactive_avatar.generator.signatures import (
    DEVICE_GRAPHS,
    STREAM_GRAPHS,
    GraphSignature,
    graph_signatures,
)

LOG = logging.getLogger(__name__)
CONTEXT_FIELDS: Final = {'k': 'cache_k', 'v': 'cache_v', 'mask': 'cache_mask'}


class GraphRunner(Protocol):
    """One graph, ready to run on a card."""

    @property
    def capturable(self) -> bool:
        """Whether it may be part of a CUDA graph."""
        ...

    def enqueue(self, addresses: Mapping[str, int], stream_handle: int) -> None:
        """Run on a stream with every input and output at a device address; waits for nothing."""
        ...


class EngineRunner:
    """A deserialised engine with one execution context.

    Args:
        api: TensorRT.
        runtime: its runtime.
        plan: the engine as bytes.
        signature: what it must take and give.
        name: of the graph, for messages.

    Raises:
        EngineError: if it cannot be deserialised, or is of another graph.
    """

    def __init__(self, api: Api, runtime: Any, plan: bytes, signature: GraphSignature,
                 name: str) -> None:
        self._name = name
        self._engine = runtime.deserialize_cuda_engine(plan)
        # TensorRT reports failure by returning nothing.
        if self._engine is None:
            raise EngineError(f'{api.name} {api.version} cannot load the engine of {name!r} on '
                              f"this card; 'avatar engine clean --all', then 'avatar engine "
                              f"build'")
        difference = signature.difference(engine_signature(api.trt, self._engine))
        if difference:
            raise EngineError(f'the engine of {name!r} does not fit the model: {difference}; '
                              f"'avatar engine clean --all', then 'avatar engine build'")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f'{api.name} has no memory for running {name!r}; close other '
                              f'programs on the card')
        # Only TensorRT-RTX answers this; elsewhere capture is tried.
        self._ask = getattr(self._context, 'is_stream_capturable', None)

    @property
    def capturable(self) -> bool:
        """Whether it may be part of a CUDA graph."""
        if self._ask is None:
            return True
        return bool(self._ask() if callable(self._ask) else self._ask)

    def enqueue(self, addresses: Mapping[str, int], stream_handle: int) -> None:
        """See `GraphRunner.enqueue`."""
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f'engine {self._name!r} refused the address of {name!r}')
        if not self._context.execute_async_v3(stream_handle):
            raise BackendLostError(f'engine {self._name!r} could not be started on the card')


class TensorRTText:
    """A prompt on the card."""

    def __init__(self, k: Buffer, v: Buffer, masks: Sequence[Buffer]) -> None:
        self.k, self.v, self.masks = k, v, masks


class TensorRTCache:
    """A stream's past on the card.

    ``context`` and ``shown`` are pairs of buffers: a chunk reads one side and writes the other.
    """

    def __init__(self, device: Device, config: GeneratorConfig, state: CacheState) -> None:
        signatures = graph_signatures(config)
        denoise, decode = signatures['denoise'].inputs, signatures['decode']
        self.device, self.config = device, config
        kv, latent, picture = denoise['cache_k'], denoise['latent'], decode.inputs['picture']
        self.context = PingPong(device, {'k': kv, 'rotated': kv, 'v': kv,
                                         'mask': denoise['cache_mask']})
        self.shown = PingPong(device, {'latent': latent, 'frames': decode.outputs['frames']})
        self.reference, self.picture = device.buffer(latent), device.buffer(picture)
        chunk = signatures['embed_reference'].outputs['k']
        self.reference_k, self.reference_v = device.buffer(chunk), device.buffer(chunk)
        self.graphs: dict[tuple[int, int], CudaGraph] = {}
        tokens = config.chunk_tokens
        frames = np.repeat(state.last[None], config.autoencoder.frames, axis=0)
        for buffer, array in (
                (self.context.now['k'], state.k), (self.context.now['v'], state.v),
                (self.context.now['mask'], state.mask),
                (self.context.now['rotated'], rotate(state.k, cache_table(config))),
                (self.shown.now['latent'], state.previous), (self.shown.now['frames'], frames),
                (self.reference, state.reference), (self.picture, state.picture),
                (self.reference_k, state.k[:, :, :tokens]),
                (self.reference_v, state.v[:, :, :tokens])):
            buffer.upload(np.ascontiguousarray(array))
        device.synchronise()

    @property
    def last(self) -> int:
        """Address of the frame shown last: the fourth of the frames made last."""
        frames = self.shown.now['frames']
        count = self.config.autoencoder.frames
        return frames.address(frames.nbytes // count * (count - 1))

    def context_addresses(self) -> dict[str, int]:
        """The cache as the engines that push read it."""
        return {name: self.context.now[field].address()
                for field, name in CONTEXT_FIELDS.items()}

    def pushed_addresses(self) -> dict[str, int]:
        """The cache as the engines that push write it."""
        return {f'next_{field}': buffer.address()
                for field, buffer in self.context.next.items()}

    def state(self) -> CacheState:
        """See `Cache.state`."""
        with self.device:
            def fetched(buffer: Buffer) -> NDArray[Any]:
                array = np.empty(buffer.spec.shape, buffer.spec.dtype)
                buffer.download(array)
                self.device.synchronise()
                return array[0]

            now = self.context.now
            return CacheState(fetched(now['k']), fetched(now['v']), fetched(now['mask']),
                              fetched(self.shown.now['latent']), fetched(self.reference),
                              fetched(self.shown.now['frames'])[-1].copy(), fetched(self.picture))

    def close(self) -> None:
        """See `Cache.close`; the buffers go with their last reference, inside the context."""
        with self.device:
            for graph in self.graphs.values():
                graph.close()
            self.graphs.clear()
            del self.context, self.shown, self.reference, self.picture
            del self.reference_k, self.reference_v


class TensorRTBackend:
    """Runs a model's engines on one card.

    Args:
        files: the checked model.
        precision: of products and convolutions: fp32, fp16 or bf16.
        api: tensorrt or tensorrt_rtx; empty takes the first that is installed.
        build: build engines that cannot be used; False refuses with the command instead.
        log: told what is being built.
        capture: record a chunk as a CUDA graph where the engines allow it.
        device: the card; the first one by default.
        runners: what runs the graphs; TensorRT's engines by default.

    Raises:
        ModelError: if TensorRT, PyCUDA, the card or an engine cannot be used.
    """

    name = 'tensorrt'
    overlaps = False

    def __init__(self, files: ModelFiles, precision: str = 'fp16', api: str = '',
                 build: bool = True, log: Callable[[str], None] = LOG.info, capture: bool = True,
                 device: Device | None = None,
                 runners: Mapping[str, GraphRunner] | None = None) -> None:
        self.config = files.config
        check_levels(self.config.sampler.levels)
        self._signatures = graph_signatures(files.config)
        try:
            self.device = device or Device()
            with self.device:
                self._runners = runners or self._load(files, precision, api, build, log)
                self._make_buffers()
        except DeviceMemoryError as error:
            raise BackendMemoryError(str(error)) from error
        except DeviceError as error:
            raise ModelError(f'the tensorrt backend cannot be used: {error}') from error
        self._capture = capture and all(runner.capturable for runner in self._runners.values())

    def _load(self, files: ModelFiles, precision: str, api_name: str, build: bool,
              log: Callable[[str], None]) -> dict[str, GraphRunner]:
        api = load_api(api_name)
        complaints: list[str] = []
        self._runtime = api.trt.Runtime(make_logger(api.trt, complaints))
        cache = EngineCache()
        runners: dict[str, GraphRunner] = {}
        for graph in (*STREAM_GRAPHS, *DEVICE_GRAPHS):
            spec = EngineSpec.of(files, graph, api, self.device.compute_capability, precision)
            portable = EngineSpec.of(files, graph, api, PORTABLE, precision)
            if not api.needs_gpu_to_build and not cache.path(spec).is_file() \
                    and cache.path(portable).is_file():
                spec = portable
            plan = ensure_engine(spec, files, api, cache, build, log)
            try:
                runners[graph] = EngineRunner(api, self._runtime, plan, spec.signature, graph)
            except EngineError as error:
                detail = '; '.join(complaints[-2:])
                raise EngineError(f'{error} ({detail})' if detail else str(error)) from error
        return runners

    def _make_buffers(self) -> None:
        """Scratch shared by all streams: they take turns on the one stream of the card."""
        device, sampler = self.device, self.config.sampler
        denoise = self._signatures['denoise']
        latent, scalar = denoise.inputs['latent'], denoise.inputs['level']
        steps = len(sampler.levels)
        scratch = {**self._signatures['encode_audio'].outputs,
                   'mel': self._signatures['encode_audio'].inputs['mel'],
                   **denoise.outputs, 'mixed': latent,
                   **{name: denoise.inputs[name] for name in ('text_k', 'text_v', 'text_mask')},
                   **{f'noise{i}': latent for i in range(steps + 1)},
                   **{f'level{i}': scalar for i in range(steps + 1)},
                   'latents': self._signatures['compress'].inputs['latents'],
                   'entry_k': self._signatures['compress'].outputs['k'],
                   'entry_v': self._signatures['compress'].outputs['v'],
                   'long_slot': self._signatures['push_memory'].inputs['long_slot']}
        self._scratch = {name: device.buffer(spec) for name, spec in scratch.items()}
        self._host = {name: device.pinned(scratch[name])
                      for name in ('mel', *(f'noise{i}' for i in range(steps + 1)))}
        self._host |= {'latent': device.pinned(latent),
                       'frames': device.pinned(self._signatures['decode'].outputs['frames'])}
        for i, level in enumerate([*sampler.levels, sampler.commit_level]):
            self._scratch[f'level{i}'].upload(np.array([level], np.float32))
        device.synchronise()

    # One graph at a time ---------------------------------------------------------------------

    def run_graph(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Backend.run_graph`."""
        signature = self._signatures[name]

        def work() -> dict[str, NDArray[Any]]:
            buffers = {key: self.device.buffer(spec)
                       for key, spec in {**signature.inputs, **signature.outputs}.items()}
            for key, array in inputs.items():
                buffers[key].upload(array)
            self._runners[name].enqueue({key: buffer.address() for key, buffer in buffers.items()},
                                        self.device.stream_handle)
            outputs = {key: np.empty(spec.shape, spec.dtype)
                       for key, spec in signature.outputs.items()}
            for key, array in outputs.items():
                buffers[key].download(array)
            self.device.synchronise()
            return outputs

        return self._guarded(work)

    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.encode_image`."""
        latent: NDArray[np.float32] = self.run_graph('encode_image', {'frames': frames[None]}
                                                     )['latent'][0]
        return latent

    def embed_reference(
            self, latent: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.embed_reference`."""
        out = self.run_graph('embed_reference', {'latent': latent[None]})
        return out['k'][0], out['v'][0]

    def encode_text(self, tokens: NDArray[np.float32]) -> TensorRTText:
        """See `Backend.encode_text`."""
        padded, masks = pad_text(tokens, self.config)
        out = self.run_graph('encode_text', {'text': padded[None]})

        def work() -> TensorRTText:
            inputs = self._signatures['denoise'].inputs
            text = TensorRTText(
                self.device.buffer(inputs['text_k']), self.device.buffer(inputs['text_v']),
                [self.device.buffer(inputs['text_mask']) for _ in masks])
            for buffer, array in ((text.k, out['text_k']), (text.v, out['text_v']),
                                  *zip(text.masks, masks, strict=True)):
                buffer.upload(array)
            self.device.synchronise()
            return text

        return self._guarded(work)

    # Streams ---------------------------------------------------------------------------------

    def open_cache(self, state: CacheState) -> TensorRTCache:
        """See `Backend.open_cache`."""
        return self._guarded(lambda: TensorRTCache(self.device, self.config, state))

    def chunks(self, jobs: Sequence[ChunkJob]) -> list[ChunkResult]:
        """See `Backend.chunks`; one after the other on one stream."""
        return [self._guarded(partial(self._chunk, job)) for job in jobs]

    def _chunk(self, job: ChunkJob) -> ChunkResult:
        started_s = time.perf_counter()
        scratch, host, cache = self._scratch, self._host, job.cache
        np.copyto(host['mel'][0], job.mel)
        for i, noise in enumerate(job.noise):
            np.copyto(host[f'noise{i}'][0], noise)
        # The prompt is copied on the card, so that a recorded chunk finds it where it was.
        for name, buffer in (('k', job.text.k), ('v', job.text.v),
                             ('mask', job.text.masks[job.blink])):
            scratch[f'text_{name}'].copy_from(buffer)
        self._run_recorded(cache)
        self.device.synchronise()
        cache.context.swap()
        cache.shown.swap()
        return ChunkResult(host['latent'][0].copy(), host['frames'][0].copy(),
                           {'denoise': time.perf_counter() - started_s})

    def _run_recorded(self, cache: TensorRTCache) -> None:
        """Enqueue a chunk, as a CUDA graph from the second time on that its buffers lie so."""
        sides = (cache.context.side, cache.shown.side)
        if sides in cache.graphs:
            cache.graphs[sides].launch()
            return
        # The first run is plain: TensorRT prepares kernels then, which cannot be recorded.
        self._enqueue_chunk(cache)
        if not self._capture:
            return
        self.device.synchronise()
        try:
            cache.graphs[sides] = CudaGraph(self.device, lambda: self._enqueue_chunk(cache))
        except DeviceError as error:
            LOG.warning('chunks are not recorded as CUDA graphs: %s', error)
            self._capture = False

    def _enqueue_chunk(self, cache: TensorRTCache) -> None:
        """Copies in, engines, copies out, on the card's stream."""
        scratch, steps = self._scratch, len(self.config.sampler.levels)
        now, following = cache.shown.now, cache.shown.next
        for name in ('mel', *(f'noise{i}' for i in range(steps + 1))):
            scratch[name].upload(self._host[name])
        at = {name: buffer.address() for name, buffer in scratch.items()}
        self._enqueue('encode_audio', {name: at[name] for name in ('mel', 'audio_k', 'audio_v')})
        fixed = {name: at[name] for name in ('audio_k', 'audio_v', 'text_k', 'text_v', 'text_mask',
                                             'velocity', 'k', 'v')}
        fixed |= {'previous': now['latent'].address(),
                  'cache_k': cache.context.now['rotated'].address(),
                  'cache_v': cache.context.now['v'].address(),
                  'cache_mask': cache.context.now['mask'].address()}
        latent = at['noise0']
        for i in range(steps):
            self._enqueue('denoise', {**fixed, 'latent': latent, 'level': at[f'level{i}']})
            # x0, and x0 with the noise of what comes next: a step, or after the last the commit.
            self._enqueue('sample_step', {
                'latent': latent, 'velocity': at['velocity'], 'noise': at[f'noise{i + 1}'],
                'level': at[f'level{i}'], 'next_level': at[f'level{i + 1}'],
                'clean': following['latent'].address(), 'mixed': self._mixed(latent, at)})
            latent = self._mixed(latent, at)
        self._enqueue('decode', {
            'latent': following['latent'].address(), 'previous': now['latent'].address(),
            'reference': cache.reference.address(), 'last': cache.last,
            'picture': cache.picture.address(), 'frames': following['frames'].address()})
        self._enqueue('denoise', {**fixed, 'latent': latent, 'level': at[f'level{steps}']})
        self._enqueue('push_adjacent', {**cache.context_addresses(), 'k': at['k'], 'v': at['v'],
                                        **cache.pushed_addresses()})
        following['latent'].download(self._host['latent'])
        following['frames'].download(self._host['frames'])

    @staticmethod
    def _mixed(latent: int, at: Mapping[str, int]) -> int:
        """Where a step writes: never where it reads."""
        return at['noise0'] if latent == at['mixed'] else at['mixed']

    def _enqueue(self, name: str, addresses: Mapping[str, int]) -> None:
        self._runners[name].enqueue(addresses, self.device.stream_handle)

    def remember(self, jobs: Sequence[MemoryJob]) -> None:
        """See `Backend.remember`."""
        for job in jobs:
            self._guarded(partial(self._remember, job))

    def _remember(self, job: MemoryJob) -> None:
        scratch, cache = self._scratch, job.cache
        at = {name: scratch[name].address()
              for name in ('latents', 'entry_k', 'entry_v', 'long_slot')}
        slots = np.zeros(self.config.memory.long, np.float32)
        if job.long_slot is not None:
            slots[job.long_slot] = 1.0
        scratch['latents'].upload(job.latents)
        scratch['long_slot'].upload(slots)
        self._enqueue('compress', {
            'latents': at['latents'], 'reference_k': cache.reference_k.address(),
            'reference_v': cache.reference_v.address(), 'k': at['entry_k'], 'v': at['entry_v']})
        self._enqueue('push_memory', {**cache.context_addresses(), 'k': at['entry_k'],
                                      'v': at['entry_v'], 'long_slot': at['long_slot'],
                                      **cache.pushed_addresses()})
        self.device.synchronise()
        cache.context.swap()

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run work in the card's context; its errors become the backend's."""
        try:
            with self.device:
                return work()
        except DeviceMemoryError as error:
            raise BackendMemoryError(str(error)) from error
        except DeviceError as error:
            raise BackendLostError(str(error)) from error

    def warm_up(self, streams: int = 1) -> None:
        """See `Backend.warm_up`; chunks are recorded where their buffers stand, by the first."""

    def close(self) -> None:
        """See `Backend.close`."""
        with self.device:
            self._runners = {}
            self._scratch.clear()
            self._host.clear()
            self._runtime = None

    _runtime: Any = None
