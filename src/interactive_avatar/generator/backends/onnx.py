# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU: the embedded default. Needs neither torch nor a GPU.

Every graph reads and writes buffers that are bound once, so that a chunk allocates nothing but
what it hands out. With more than one thread pictures are decoded in a thread of their own: beside
the commit, and, where the caller lets a chunk go ahead, beside the sound and the sampling of the
next one, which need the latent and not its pictures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import (
    STAGES,
    CacheState,
    ChunkJob,
    ChunkResult,
    Decoded,
    MemoryJob,
    pad_text,
)
from interactive_avatar.generator.backends.onnx_sessions import kept_result, open_session
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.positions import cache_table, rotate
from interactive_avatar.generator.sampler import mix, sample
from interactive_avatar.generator.signatures import (
    INT8_SUFFIX,
    LAYERED,
    STREAM_GRAPHS,
    GraphSignature,
    cpu_signature,
    graph_signatures,
)

Made = TypeVar('Made')

REFERENCE_GRAPHS: Final = ('encode_image', 'embed_reference')
"""Graphs that are run once for a face, and opened only when a new one is seen."""

UNSHARED_GRAPHS: Final = ('encode_audio', 'compress')
"""Small graphs that take one thread: more would change how their floats are summed up."""


@dataclass(frozen=True)
class OnnxText:
    """A prompt: keys and values float32 [1, L, H, n, hw], and masks [1 + `BLINK_CHUNKS`, n]."""

    k: NDArray[np.float32]
    v: NDArray[np.float32]
    masks: NDArray[np.float32]


class OnnxCache:
    """A stream's past in host memory, written in place; a batch of one leads every shape.

    Keys are kept as they came; `rotated` holds them turned to the positions of their slots,
    refreshed where a slot changes, so that the forwards of a chunk share one rotation.

    A chunk's latent and last frame take the place of those before as new arrays: a decoder that
    still runs keeps what it was given.
    """

    def __init__(self, config: GeneratorConfig, state: CacheState) -> None:
        own = state.copy()
        self.k, self.v, self.mask = own.k[None], own.v[None], own.mask[None]
        self.previous, self.reference = own.previous[None], own.reference[None]
        self.last, self.picture = own.last[None], own.picture[None]
        self.decoding: Future[Decoded] | None = None
        self.rotated = np.zeros_like(self.k)
        self._cos, self._sin = cache_table(config)
        self._slots = config.cache_layout
        self._turn(slice(None))
        tokens = config.chunk_tokens
        # What compression reads: a slot that never changes, as the contiguous array it binds.
        self.reference_k = np.ascontiguousarray(self.k[..., :tokens, :])
        self.reference_v = np.ascontiguousarray(self.v[..., :tokens, :])

    def _turn(self, span: slice) -> None:
        self.rotated[..., span, :] = rotate(self.k[..., span, :],
                                            (self._cos[span], self._sin[span]))

    def push(self, kind: str, k: NDArray[np.float32], v: NDArray[np.float32]) -> None:
        """Shift the slots of ``kind`` by one (the oldest falls out) and fill the newest."""
        start, count, tokens = self._slots[kind]
        end = start + count * tokens
        for array, entry in ((self.k, k), (self.v, v)):
            # Slot by slot: source and target of a whole shift would overlap.
            for at in range(start, end - tokens, tokens):
                array[..., at:at + tokens, :] = array[..., at + tokens:at + 2 * tokens, :]
            array[..., end - tokens:end, :] = entry
        self.mask[:, start:end - tokens] = self.mask[:, start + tokens:end].copy()
        self.mask[:, end - tokens:end] = 0.0
        self._turn(slice(start, end))

    def keep(self, slot: int) -> None:
        """Copy the oldest short entry to slot ``slot`` of the long memory."""
        source, _, tokens = self._slots['short']
        start = self._slots['long'][0] + slot * tokens
        span = slice(start, start + tokens)
        for array in (self.k, self.v):
            array[..., span, :] = array[..., source:source + tokens, :]
        self.mask[:, span] = self.mask[:, source:source + tokens]
        self._turn(span)

    def settle(self) -> None:
        """Wait for the pictures that are being decoded; whoever made them hears how that went."""
        if self.decoding is not None:
            wait([self.decoding])
            self.decoding = None

    def state(self) -> CacheState:
        """See `Cache.state`."""
        self.settle()
        return CacheState(self.k[0], self.v[0], self.mask[0], self.previous[0], self.reference[0],
                          self.last[0], self.picture[0]).copy()

    def close(self) -> None:
        """See `Cache.close`; Python frees the arrays."""
        self.settle()


class _Graph:
    """A session with its outputs bound to buffers of its own, and inputs bound as they come.

    Args:
        session: of the graph, or of its variant for CPUs.
        signature: of the graph.
        layered: whether it is the variant.
    """

    def __init__(self, session: Any, signature: GraphSignature, layered: bool) -> None:
        self._layered = LAYERED if layered else ()
        self._session = session
        self._binding = session.io_binding()
        self._signature = signature
        self._bound: dict[str, NDArray[Any]] = {}
        self.outputs = {name: np.empty(spec.shape, spec.dtype)
                        for name, spec in signature.outputs.items()}
        for name, array in self.outputs.items():
            self._binding.bind_output(name, 'cpu', 0, array.dtype, array.shape, array.ctypes.data)

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run; the outputs are overwritten by the next call.

        Raises:
            ValueError: on an input of another type or shape.
        """
        for name, array in inputs.items():
            # An array that is bound already is read again as it is now.
            if self._bound.get(name) is array:
                continue
            spec = self._signature.inputs[name]
            if array.dtype != spec.dtype or array.shape != spec.shape:
                raise ValueError(f'{name} must be {spec}, got {array.dtype} {list(array.shape)}')
            array = np.ascontiguousarray(array)
            if name in self._layered:
                for layer, part in enumerate(array[0]):
                    self._bind(f'{name}.{layer}', part)
            else:
                self._bind(name, array)
            self._bound[name] = array
        self._session.run_with_iobinding(self._binding)
        return self.outputs

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        self._binding.bind_input(name, 'cpu', 0, array.dtype, array.shape, array.ctypes.data)


class OnnxBackend:
    """Runs a model's graphs with ONNX Runtime's CPU provider.

    Args:
        files: the checked model.
        threads: of a chunk, shared out between the decoder and what runs beside it; 0 takes
            every core, 1 lets nothing run beside the decoder.
        overlap: decode a chunk beside the next one, where the caller lets it. Without, every
            graph has all threads: a single chunk is there sooner (0.85 times the time on two
            cores), but the next one waits for it, and the processor works more.
        int8: take the 8-bit variant of a graph where the model has one.
        graphs: which graphs to load at once; all others when they are first used. Of the default
            those that encode a face wait too.

    Raises:
        ModelError: if a graph cannot be loaded.
    """

    name = 'onnx'

    def __init__(self, files: ModelFiles, threads: int = 2, int8: bool = True,
                 graphs: tuple[str, ...] = STREAM_GRAPHS, overlap: bool = True) -> None:
        self.config = files.config
        self._files, self._int8 = files, int8
        threads = threads or _cores()
        self.overlaps = overlap and threads > 1
        self._threads, self._graph_threads = threads, dict.fromkeys(UNSHARED_GRAPHS, 1)
        if self.overlaps:
            # A graph's hundreds of small operators gain little from a second thread: two graphs
            # beside each other, each on cores of its own, gain far more.
            self._graph_threads['decode'] = threads // 2
            self._threads -= threads // 2
        self._graphs: dict[str, _Graph] = {}
        for name in graphs:
            if name not in REFERENCE_GRAPHS:
                self._graph(name)
        self._decoder = ThreadPoolExecutor(1, 'decoder') if threads > 1 else None

    def _graph(self, name: str) -> _Graph:
        """A graph, opened now if it is not open yet."""
        if name not in self._graphs:
            signature, variant = graph_signatures(self.config)[name], f'{name}{INT8_SUFFIX}'
            layered = self._int8 and self._files.graph(variant).is_file()
            session = open_session(self._files, variant if layered else name,
                                   cpu_signature(signature) if layered else signature,
                                   self._graph_threads.get(name, self._threads))
            self._graphs[name] = _Graph(session, signature, layered)
        return self._graphs[name]

    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.encode_image`; kept on disk by what is in the picture."""
        return self._kept('encode_image', frames=frames[None])['latent'][0]

    def embed_reference(
            self, latent: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.embed_reference`; kept as `encode_image`'s."""
        out = self._kept('embed_reference', latent=latent[None])
        return out['k'][0], out['v'][0]

    def _kept(self, name: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`run_graph`, or what it gave for the same inputs before: a face is encoded once, and a
        stream of a known face opens without these graphs."""
        variant = f'{name}{INT8_SUFFIX}'
        if not self._int8 or not self._files.graph(variant).is_file():
            variant = name
        return kept_result(self._files, variant, inputs, lambda: self.run_graph(name, inputs))

    def encode_text(self, tokens: NDArray[np.float32]) -> OnnxText:
        """See `Backend.encode_text`; longer prompts are cut, shorter ones masked."""
        padded, masks = pad_text(tokens, self.config)
        out = self._graph('encode_text')(text=padded[None])
        return OnnxText(out['text_k'].copy(), out['text_v'].copy(), masks)

    def open_cache(self, state: CacheState) -> OnnxCache:
        """See `Backend.open_cache`."""
        return OnnxCache(self.config, state)

    def chunks(self, jobs: Sequence[ChunkJob]) -> list[ChunkResult]:
        """See `Backend.chunks`; one after the other, but for the decoding.

        A job that is alone and does not go ahead leaves its cache as it was if it fails.
        """
        ahead = self.overlaps and (len(jobs) > 1 or any(job.ahead for job in jobs))
        results = [self._chunk(job, ahead) for job in jobs]
        return [result if ahead and job.ahead else _complete(result)
                for job, result in zip(jobs, results, strict=True)]

    def _chunk(self, job: ChunkJob, ahead: bool) -> ChunkResult:
        cache, levels = job.cache, self.config.sampler.levels
        marks = [time.perf_counter()]
        audio = self._graph('encode_audio')(mel=job.mel[None])
        marks.append(time.perf_counter())

        def forward(latent: NDArray[np.float32], level: float) -> dict[str, NDArray[Any]]:
            return self._graph('denoise')(
                latent=latent[None], level=np.array([level], np.float32), previous=cache.previous,
                audio_k=audio['audio_k'], audio_v=audio['audio_v'], text_k=job.text.k,
                text_v=job.text.v, text_mask=job.text.masks[job.blink, None],
                cache_k=cache.rotated, cache_v=cache.v, cache_mask=cache.mask)

        latent = sample(lambda x, level: forward(x, level)['velocity'][0], job.noise, levels)
        marks.append(time.perf_counter())
        level = self.config.sampler.commit_level
        noised = mix(latent, level, job.noise[len(levels)])
        # No more than one of a stream is on its way; this one needs the last frame of that one.
        cache.settle()
        last, latents = cache.last, (latent[None], cache.previous)
        decoding = self._in_decoder(lambda: self._decode(job, *latents))
        begun_s = time.perf_counter()
        try:
            out = forward(noised, level)
            forwarded_s = time.perf_counter()
            if not ahead:
                decoding.result()
        except BaseException:
            wait([decoding])
            cache.last = last
            raise
        waited_s = time.perf_counter()
        cache.push('adjacent', out['k'], out['v'])
        cache.previous, cache.decoding = latents[0], decoding
        seconds = dict(zip(STAGES, np.diff(marks).tolist()))
        seconds['commit'] = time.perf_counter() - waited_s + forwarded_s - begun_s
        return ChunkResult(latent, None, seconds, decoding)

    def _decode(self, job: ChunkJob, latent: NDArray[np.float32],
                previous: NDArray[np.float32]) -> Decoded:
        """Draw a chunk's pictures and leave the last for the next chunk's; in the decoder's
        thread. latent, previous: float32 [1, C, 16, 16]."""
        begun_s, cache = time.perf_counter(), job.cache
        frames = self._graph('decode')(
            latent=latent, previous=previous, reference=cache.reference, last=cache.last,
            picture=cache.picture)['frames'][0].copy()
        decoded = Decoded(frames, time.perf_counter() - begun_s)
        if job.shown is not None:
            job.shown(frames)
        cache.last = frames[-1:]
        return decoded

    def _in_decoder(self, work: Callable[[], Made]) -> Future[Made]:
        """Begin ``work`` in the decoder's thread; without one, do it."""
        if self._decoder is not None:
            return self._decoder.submit(work)
        done: Future[Made] = Future()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        return done

    def remember(self, jobs: Sequence[MemoryJob]) -> None:
        """See `Backend.remember`."""
        for job in jobs:
            out = self._graph('compress')(latents=job.latents[None],
                                          reference_k=job.cache.reference_k,
                                          reference_v=job.cache.reference_v)
            if job.long_slot is not None:
                job.cache.keep(job.long_slot)
            job.cache.push('short', out['k'], out['v'])

    def run_graph(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Backend.run_graph`."""
        def run() -> dict[str, NDArray[Any]]:
            return {key: value.copy() for key, value in self._graph(name)(**inputs).items()}

        # A chunk that went ahead may use the decoder's buffers still.
        return self._in_decoder(run).result() if name == 'decode' else run()

    def warm_up(self, streams: int = 1) -> None:
        """See `Backend.warm_up`; the graphs of a stream are open from the beginning."""

    def close(self) -> None:
        """See `Backend.close`."""
        if self._decoder is not None:
            self._decoder.shutdown()
        self._graphs.clear()


def _complete(result: ChunkResult) -> ChunkResult:
    """The result with its frames, waited for."""
    assert result.decoding is not None
    decoded = result.decoding.result()
    seconds = {stage: decoded.seconds if stage == 'decode' else result.seconds[stage]
               for stage in STAGES}
    return ChunkResult(result.latent, decoded.frames, seconds)


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') \
        else os.cpu_count() or 1
