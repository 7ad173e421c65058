# SPDX-License-Identifier: Apache-2.0
"""PyTorch: the reference for the other backends, and the backend of data-centre cards.

Streams live in the rows of one pool of tensors, so that a chunk of many streams is one batch. On
a card, all that a batch of chunks does (encoding the sound, sampling, decoding, committing) is
recorded once as a CUDA graph per batch size, and so is remembering; a chunk is then one copy in,
one launch and one copy out.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interactive_avatar.generator.autoencoder import Sight, as_input, as_pixels
from interactive_avatar.generator.backends.base import (
    MASKED,
    STAGES,
    BackendLostError,
    BackendMemoryError,
    CacheState,
    ChunkJob,
    ChunkResult,
    MemoryJob,
    pad_text,
)
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.denoiser import rotate
from interactive_avatar.generator.graph_modules import graph_module
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.networks import Generator
from interactive_avatar.generator.sampler import check_levels
from interactive_avatar.generator.signatures import graph_signatures

LOG = logging.getLogger(__name__)
DTYPES: Final = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
BATCH_SIZES: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256)
"""Batches that graphs are recorded for; a batch in between is filled up with a spare row."""

WARM_UP_RUNS: Final = 2
FLOAT32_BUFFERS: Final = ('latent_mean', 'latent_std', 'axis', 'chunk_cos', 'chunk_sin',
                          'entry_cos', 'entry_sin', 'cache_cos', 'cache_sin')
"""Tables that lose too much in half precision: positions and the axis of the sampling grid."""


class TorchText:
    """A prompt's keys and values [L, H, n, hw] and masks [1 + `BLINK_CHUNKS`, n] on the device."""

    def __init__(self, k: Tensor, v: Tensor, masks: Tensor) -> None:
        self.k, self.v, self.masks = k, v, masks


class _Pool:
    """The pasts of all streams, one row each; the last row is spare and belongs to nobody."""

    def __init__(self, config: GeneratorConfig, rows: int, device: torch.device,
                 dtype: torch.dtype) -> None:
        a, d = config.autoencoder, config.denoiser

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros((rows + 1, *shape), device=device, dtype=kind)

        kv = (d.layers, d.heads, config.context_tokens, d.head_width)
        latent = (a.latent_channels, a.latent_px, a.latent_px)
        picture = (a.picture_px, a.picture_px, 3)
        self.k, self.v = zeros(*kv), zeros(*kv)
        self.mask = zeros(config.context_tokens).fill_(float(MASKED))
        self.previous = zeros(*latent, kind=torch.float32)
        self.reference = zeros(*latent, kind=torch.float32)
        self.last, self.picture = (zeros(*picture, kind=torch.uint8) for _ in range(2))
        text = (d.layers, d.heads, d.text_rows, d.head_width)
        self.text_k, self.text_v = zeros(*text), zeros(*text)
        self.text_mask = zeros(d.text_rows)
        self.free = list(range(rows - 1, -1, -1))
        self.spare = rows


STATE_FIELDS: Final = ('k', 'v', 'mask', 'previous', 'reference', 'last', 'picture')


class TorchCache:
    """One row of the pool."""

    def __init__(self, pool: _Pool, state: CacheState) -> None:
        self._pool, self.row = pool, pool.free.pop()
        self.text: TorchText | None = None
        self.blink = 0
        for name in STATE_FIELDS:
            target: Tensor = getattr(pool, name)[self.row]
            target.copy_(torch.from_numpy(np.ascontiguousarray(getattr(state, name))))

    def show(self, text: TorchText, blink: int) -> None:
        """Use a prompt, and what it has of a blink, from the next chunk on."""
        fresh = self.text is not text
        if fresh:
            for name in ('k', 'v'):
                getattr(self._pool, f'text_{name}')[self.row].copy_(getattr(text, name))
        if fresh or self.blink != blink:
            self._pool.text_mask[self.row].copy_(text.masks[blink])
        self.text, self.blink = text, blink

    def state(self) -> CacheState:
        """See `Cache.state`."""
        arrays = {}
        for name in STATE_FIELDS:
            value: Tensor = getattr(self._pool, name)[self.row]
            arrays[name] = (value.float() if value.is_floating_point() else value).cpu().numpy()
        return CacheState(**{name: np.array(value) for name, value in arrays.items()})

    def close(self) -> None:
        """See `Cache.close`."""
        if self.row != self._pool.spare:
            self._pool.free.append(self.row)
            self.row = self._pool.spare


class _Batch:
    """Static inputs and outputs of one batch size, on both sides, and what runs on them."""

    def __init__(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor],
                 pinned: bool) -> None:
        self.inputs, self.outputs = dict(inputs), dict(outputs)

        def host(tensor: Tensor) -> Tensor:
            return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)

        self.host_in = {name: host(tensor) for name, tensor in inputs.items()}
        self.host_out = {name: host(tensor) for name, tensor in outputs.items()}
        self.arrays_in = {name: tensor.numpy() for name, tensor in self.host_in.items()}
        self.arrays_out = {name: tensor.numpy() for name, tensor in self.host_out.items()}
        self.launches: list[tuple[str, Callable[[], None]]] = []


class TorchBackend:
    """Runs the networks themselves.

    Args:
        files: the checked model.
        device: cuda or cpu; cuda where there is one by default.
        precision: of weights, activations and caches: fp32, fp16 or bf16. Latents, positions,
            norms' statistics and pictures stay float32. By default fp16 on a card, fp32 without.
        streams: the most streams that can be open at once.
        graphs: record CUDA graphs; on a card by default.
        profile: one graph per stage instead of one per chunk, so that stages can be timed.
        compiled: fuse the layers and the decoder with torch.compile, for each batch size: opening
            takes a minute more (less where PyTorch's compile cache has been filled before).

    Raises:
        ValueError: on an unknown precision.
        BackendMemoryError: if the card has no room for the model and the streams.
    """

    name = 'torch'
    overlaps = False

    def __init__(self, files: ModelFiles, device: str | None = None,
                 precision: str | None = None, streams: int = 8, graphs: bool | None = None,
                 profile: bool = False, compiled: bool = False) -> None:
        generator = Generator(files.config)
        generator.load(files.weights)
        self._bind(generator, device, precision, streams, graphs, profile)
        if compiled:
            self._compile()

    @classmethod
    def of(cls, generator: Generator, device: str = 'cpu', precision: str = 'fp32',
           streams: int = 8) -> TorchBackend:
        """A backend over networks in memory."""
        self = object.__new__(cls)
        self._bind(generator, device, precision, streams, None, False)
        return self

    def _bind(self, generator: Generator, device: str | None, precision: str | None,
              streams: int, graphs: bool | None, profile: bool) -> None:
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        on_card = self.device.type == 'cuda'
        precision = precision or ('fp16' if on_card else 'fp32')
        if precision not in DTYPES:
            raise ValueError(f'precision {precision!r} does not exist; use one of '
                             f'{", ".join(DTYPES)}')
        self.config, self.precision, self.dtype = generator.config, precision, DTYPES[precision]
        check_levels(self.config.sampler.levels)
        self._graphs = on_card if graphs is None else graphs and on_card
        self._profile = profile
        kept = {name: buffer.clone() for name, buffer in generator.named_buffers()
                if name.rsplit('.', 1)[-1] in FLOAT32_BUFFERS}
        try:
            self._networks = generator.to(self.device, self.dtype).eval()
            for name, buffer in kept.items():
                parent, _, leaf = name.rpartition('.')
                setattr(self._networks.get_submodule(parent), leaf, buffer.to(self.device))
            self._pool = _Pool(self.config, streams, self.device, self.dtype)
        except torch.OutOfMemoryError as error:
            raise BackendMemoryError(f'{self._card()} has no room for the model and {streams} '
                                     f'streams: {error}') from error
        self._chunk_batches: dict[int, _Batch] = {}
        self._memory_batches: dict[int, _Batch] = {}
        self._graph_memory: Any = None
        self._side = torch.cuda.Stream(self.device) if on_card else None

    def _compile(self) -> None:
        """Compile what a chunk runs: one layer for all of them, and the decoder."""
        denoiser, autoencoder = self._networks.denoiser, self._networks.autoencoder
        # Beyond it a batch size would run uncompiled, with no more than a warning.
        limits: Any = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 2 * len(BATCH_SIZES))
        layer: Any = torch.compile(type(denoiser)._chunk_layer, dynamic=False)
        decode: Any = torch.compile(type(autoencoder).decode, dynamic=False)
        for owner, name, function in ((denoiser, '_chunk_layer', layer),
                                      (autoencoder, 'decode', decode)):
            setattr(owner, name, MethodType(function, owner))

    def _card(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else 'the CPU'

    # Graphs of the model, one by one ---------------------------------------------------------

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)[None]

    @staticmethod
    def _array(tensor: Tensor) -> NDArray[np.float32]:
        array: NDArray[np.float32] = tensor[0].float().cpu().numpy()
        return array

    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.encode_image`."""
        def work() -> NDArray[np.float32]:
            x = as_input(torch.from_numpy(frames[None]).to(self.device)).to(self.dtype)
            return self._array(self._networks.autoencoder.encode(x))

        return self._guarded(work)

    def embed_reference(
            self, latent: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.embed_reference`."""
        def work() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            k, v = self._networks.denoiser.reference(self._tensor(latent))
            return self._array(k), self._array(v)

        return self._guarded(work)

    def encode_text(self, tokens: NDArray[np.float32]) -> TorchText:
        """See `Backend.encode_text`."""
        padded, masks = pad_text(tokens, self.config)

        def work() -> TorchText:
            k, v = self._networks.denoiser.text_cache(self._tensor(padded))
            return TorchText(k[0], v[0], self._tensor(masks)[0])

        return self._guarded(work)

    def run_graph(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Backend.run_graph`."""
        return self._guarded(lambda: self._run_graph(name, inputs))

    def _run_graph(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = []
        for key, array in inputs.items():
            value = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            tensors.append(value.to(self.dtype) if value.is_floating_point()
                           and key not in ('level', 'next_level') else value)
        outputs = graph_module(self._networks, name)(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {key: (value.float() if value.is_floating_point() else value).cpu().numpy()
                for key, value in zip(graph_signatures(self.config)[name].outputs, outputs,
                                      strict=True)}

    # Streams ---------------------------------------------------------------------------------

    def open_cache(self, state: CacheState) -> TorchCache:
        """See `Backend.open_cache`."""
        if not self._pool.free:
            raise BackendMemoryError(f'all {self._pool.spare} places for streams are taken; close '
                                     f"one, or open the backend with more ('streams')")
        return self._guarded(lambda: TorchCache(self._pool, state))

    def chunks(self, jobs: Sequence[ChunkJob]) -> list[ChunkResult]:
        """See `Backend.chunks`; one batch."""
        return self._guarded(lambda: self._chunks(jobs))

    def remember(self, jobs: Sequence[MemoryJob]) -> None:
        """See `Backend.remember`; one batch."""
        if jobs:
            self._guarded(lambda: self._remember(jobs))

    def warm_up(self, streams: int = 1) -> None:
        """Record the graphs for up to ``streams`` streams at once, so that no chunk waits."""
        for size in self._sizes_to(streams):
            self._guarded(partial(self._chunk_batch, size))
            self._guarded(partial(self._memory_batch, size))

    def close(self) -> None:
        """See `Backend.close`."""
        self._chunk_batches.clear()
        self._memory_batches.clear()
        del self._networks, self._pool
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run device work; the device's own errors become the backend's."""
        try:
            # Everything goes through one stream, so that it happens in the order it was asked for.
            with torch.no_grad(), torch.cuda.stream(self._side):
                return work()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise BackendMemoryError(f'{self._card()} is out of memory: {error}') from error
        except RuntimeError as error:
            # CUDA's errors are sticky: whatever follows on this context fails as well.
            if 'CUDA' in str(error):
                raise BackendLostError(f'the card failed: {error}') from error
            raise

    def _sizes_to(self, count: int) -> list[int]:
        largest = self._size_of(count)
        return [*(size for size in BATCH_SIZES if size < largest), largest]

    def _size_of(self, count: int) -> int:
        """The batch that ``count`` jobs run in."""
        if not self._graphs:
            return count
        at = bisect.bisect_left(BATCH_SIZES, count)
        return BATCH_SIZES[at] if at < len(BATCH_SIZES) else count

    # A batch of chunks -----------------------------------------------------------------------

    def _chunks(self, jobs: Sequence[ChunkJob]) -> list[ChunkResult]:
        batch = self._chunk_batch(self._size_of(len(jobs)))
        rows, mel, noise = (batch.arrays_in[name] for name in ('rows', 'mel', 'noise'))
        rows[:] = self._pool.spare
        for i, job in enumerate(jobs):
            job.cache.show(job.text, job.blink)
            rows[i], mel[i], noise[i] = job.cache.row, job.mel, job.noise
        seconds = self._launch(batch)
        latents, frames = batch.arrays_out['latents'], batch.arrays_out['frames']
        return [ChunkResult(latents[i].copy(), frames[i].copy(), seconds)
                for i in range(len(jobs))]

    def _launch(self, batch: _Batch) -> dict[str, float]:
        """Copy in, run, copy out, wait; seconds by stage, all under the first if not profiled."""
        if self.device.type != 'cuda':
            marks = [time.perf_counter()]
            for name, tensor in batch.host_in.items():
                batch.inputs[name].copy_(tensor)
            for _, launch in batch.launches:
                launch()
                marks.append(time.perf_counter())
            for name, tensor in batch.host_out.items():
                tensor.copy_(batch.outputs[name])
            return dict(zip([name for name, _ in batch.launches], np.diff(marks).tolist(),
                            strict=True))
        started_s = time.perf_counter()
        for name, tensor in batch.host_in.items():
            batch.inputs[name].copy_(tensor, non_blocking=True)
        events = [torch.cuda.Event(enable_timing=True)
                  for _ in range(len(batch.launches) + 1 if self._profile else 0)]
        for i, (_, launch) in enumerate(batch.launches):
            if events:
                events[i].record()
            launch()
        if events:
            events[-1].record()
        for name, tensor in batch.host_out.items():
            tensor.copy_(batch.outputs[name], non_blocking=True)
        assert self._side is not None
        self._side.synchronize()
        if not events:
            return {'denoise': time.perf_counter() - started_s}
        return {name: events[i].elapsed_time(events[i + 1]) / 1000
                for i, (name, _) in enumerate(batch.launches)}

    def _chunk_batch(self, size: int) -> _Batch:
        if size not in self._chunk_batches:
            c, a = self.config, self.config.autoencoder
            latent = (a.latent_channels, a.latent_px, a.latent_px)

            def on_device(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
                return torch.zeros((size, *shape), device=self.device, dtype=kind)

            batch = _Batch(
                {'rows': on_device(kind=torch.int64).fill_(self._pool.spare),
                 'mel': on_device(c.audio.window_mels, c.audio.mel_bands),
                 'noise': on_device(len(c.sampler.levels) + 1, *latent)},
                {'latents': on_device(*latent),
                 'frames': on_device(a.frames, a.picture_px, a.picture_px, 3, kind=torch.uint8)},
                self._graphs)
            self._record(batch, self._chunk_stages(batch))
            self._chunk_batches[size] = batch
        return self._chunk_batches[size]

    def _chunk_stages(self, batch: _Batch) -> list[tuple[str, Callable[[], None]]]:
        """What a batch of chunks does, in `STAGES`, on static tensors."""
        denoiser, pool, sampler = self._networks.denoiser, self._pool, self.config.sampler
        inputs, outputs = batch.inputs, batch.outputs
        rows, noise = inputs['rows'], inputs['noise']
        kept: dict[str, Any] = {}

        def audio() -> None:
            kept['audio'] = denoiser.audio_cache(self._networks.audio(inputs['mel']))

        def forward(latent: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
            at = torch.full((len(rows),), level, device=self.device)
            return denoiser.chunk(latent, at, kept['previous'], *kept['audio'], *kept['text'],
                                  *kept['context'])

        def denoise() -> None:
            def of_rows(*names: str) -> list[Tensor]:
                return [getattr(pool, name).index_select(0, rows) for name in names]

            k, v, mask = of_rows('k', 'v', 'mask')
            kept['context'] = (rotate(k, denoiser.cache_cos, denoiser.cache_sin), v, mask)
            kept['k'] = k
            kept['text'] = of_rows('text_k', 'text_v', 'text_mask')
            kept['previous'], kept['reference'] = of_rows('previous', 'reference')
            x = clean = noise[:, 0]
            for i, level in enumerate(sampler.levels):
                clean = x - level * forward(x, level)[0].float()
                if i + 1 < len(sampler.levels):
                    following = sampler.levels[i + 1]
                    x = (1.0 - following) * clean + following * noise[:, i + 1]
            outputs['latents'].copy_(clean)

        def decode() -> None:
            last, picture = (as_input(getattr(pool, name).index_select(0, rows))
                             for name in ('last', 'picture'))
            outputs['frames'].copy_(as_pixels(self._networks.autoencoder.decode(
                outputs['latents'],
                Sight(kept['previous'], last, kept['reference'], picture)).float()))

        def commit() -> None:
            clean, level = outputs['latents'], sampler.commit_level
            mixed = (1.0 - level) * clean + level * noise[:, len(sampler.levels)]
            _, k, v = forward(mixed, level)
            start, count, tokens = self.config.cache_layout['adjacent']
            for name, old, new in (('k', kept['k'], k), ('v', kept['context'][1], v)):
                shifted = old[..., start + tokens:start + count * tokens, :]
                getattr(pool, name)[..., start:start + count * tokens, :].index_copy_(
                    0, rows, torch.cat([shifted, new.to(old.dtype)], 3))
            mask = kept['context'][2]
            pool.mask[:, start:start + count * tokens].index_copy_(0, rows, torch.cat(
                [mask[:, start + tokens:start + count * tokens],
                 torch.zeros_like(mask[:, :tokens])], 1))
            pool.previous.index_copy_(0, rows, clean)
            pool.last.index_copy_(0, rows, outputs['frames'][:, -1])

        return list(zip(STAGES, (audio, denoise, decode, commit), strict=True))

    # A batch of memories ---------------------------------------------------------------------

    def _remember(self, jobs: Sequence[MemoryJob]) -> None:
        batch = self._memory_batch(self._size_of(len(jobs)))
        rows, latents, slots = (batch.arrays_in[name] for name in ('rows', 'latents', 'slots'))
        rows[:], slots[:] = self._pool.spare, -1
        for i, job in enumerate(jobs):
            rows[i], latents[i] = job.cache.row, job.latents
            slots[i] = -1 if job.long_slot is None else job.long_slot
        self._launch(batch)

    def _memory_batch(self, size: int) -> _Batch:
        if size not in self._memory_batches:
            a, m = self.config.autoencoder, self.config.memory
            batch = _Batch(
                {'rows': torch.full((size,), self._pool.spare, device=self.device),
                 'slots': torch.full((size,), -1, device=self.device),
                 'latents': torch.zeros((size, m.group, a.latent_channels, a.latent_px,
                                         a.latent_px), device=self.device)}, {}, self._graphs)
            self._record(batch, [('memory', lambda: self._push_memory(batch))])
            self._memory_batches[size] = batch
        return self._memory_batches[size]

    def _push_memory(self, batch: _Batch) -> None:
        pool, layout = self._pool, self.config.cache_layout
        rows, slots = batch.inputs['rows'], batch.inputs['slots']
        (start, long, tokens), (middle, short, _) = layout['long'], layout['short']
        end = middle + short * tokens
        k, v = (getattr(pool, name).index_select(0, rows) for name in ('k', 'v'))
        mask = pool.mask.index_select(0, rows)
        reference = self.config.chunk_tokens
        entry = self._networks.denoiser.entry(
            batch.inputs['latents'].to(self.dtype), k[..., :reference, :], v[..., :reference, :])
        # Token by token of the long memory: does its slot take the oldest short entry?
        takes = (torch.arange(long, device=self.device) == slots[:, None]).repeat_interleave(
            tokens, 1)
        for name, old, new in (('k', k, entry[0]), ('v', v, entry[1])):
            oldest = old[..., middle:middle + tokens, :].repeat(1, 1, 1, long, 1)
            kept = torch.where(takes[:, None, None, :, None], oldest, old[..., start:middle, :])
            getattr(pool, name)[..., start:end, :].index_copy_(0, rows, torch.cat(
                [kept, old[..., middle + tokens:end, :], new.to(old.dtype)], 3))
        oldest = mask[:, middle:middle + tokens].repeat(1, long)
        pool.mask[:, start:end].index_copy_(0, rows, torch.cat(
            [torch.where(takes, oldest, mask[:, start:middle]), mask[:, middle + tokens:end],
             torch.zeros_like(mask[:, :tokens])], 1))

    # Recording -------------------------------------------------------------------------------

    def _record(self, batch: _Batch, stages: list[tuple[str, Callable[[], None]]]) -> None:
        """Make a batch's launches: CUDA graphs, or the stages as they are.

        While recording, and before it, the stages run on the spare row, which is nobody's.
        """
        if not self._graphs:
            batch.launches = stages
            return
        started_s = time.monotonic()
        assert self._side is not None
        for _ in range(WARM_UP_RUNS):
            for _, stage in stages:
                stage()
        self._side.synchronize()
        parts = stages if self._profile else [('denoise', lambda: [s() for _, s in stages])]
        for name, work in parts:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._graph_memory, stream=self._side):
                work()
            self._graph_memory = self._graph_memory or graph.pool()
            batch.launches.append((name, graph.replay))
        LOG.debug('recorded %s for %d rows in %.2f s', [name for name, _ in parts],
                  len(batch.inputs['rows']), time.monotonic() - started_s)
