# SPDX-License-Identifier: Apache-2.0
"""Runs the transformer on one block of latent frames, again and again, as fast as a GPU allows.

All that changes lies in fixed buffers: once the memory is full, one CUDA graph serves every step
and the commit. Between attentions, layers run as two compiled regions that all layers share. The
context is rotated once per block, not once per forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from interactive_avatar.generator.wan.cache import Entry, WanCache
from interactive_avatar.generator.wan.network import (
    Block,
    KeysValues,
    WanTransformer,
    attend,
)
from interactive_avatar.generator.wan.rope import (
    chunk_table,
    entry_slots_table,
    frame_slots_table,
    rotate,
)
from interactive_avatar.generator.wan.window import still_layers

FP8_LINEARS = ('qkv', 'q', 'o', 'up', 'down')
"""Layers of a block that run in 8 bits with precision fp8: all that run every step."""


def open_layer(block: Block, x: Tensor, m: Tensor, cos: Tensor, sin: Tensor, raw: Tensor,
               k_out: Tensor, v_out: Tensor) -> Tensor:
    """First region of a layer: to self-attention.

    Args:
        raw: [B, n, H, hw], takes the keys before rotation. k_out, v_out: the same shape, take
            keys and values where attention reads them.

    Returns:
        rotated queries [B, n, H, hw].
    """
    q, k, v = block.project(x, m)
    raw.copy_(k)
    k_out.copy_(rotate(k, cos, sin))
    v_out.copy_(v)
    return rotate(q, cos, sin)


def close_layer(block: Block, x: Tensor, m: Tensor, attended: Tensor, remembered: Tensor | None,
                text: KeysValues, audio: KeysValues | None) -> Tensor:
    """Second region of a layer: from self-attention to the end of the FFN."""
    x, query = block.after_self(x, m, attended, remembered)
    x, heard = block.after_text(x, attend(query, *text))
    heard = None if audio is None else heard
    return block.after_audio(x, m, None if heard is None or audio is None
                             else attend(heard, *audio))


class BlockRunner:
    """Streaming forwards of one network; see the module.

    Args:
        network: in its final dtype and on its device.
        compiled: fuse layers with torch.compile.
        graphs: replay a CUDA graph once the context is full (CUDA only).

    Attributes:
        memory_on: whether any memory gate is open; while none is, entries cost nothing.
    """

    def __init__(self, network: WanTransformer, compiled: bool = False,
                 graphs: bool = False) -> None:
        self.network, self.config = network, network.config
        weight = network.patch_embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        c, n = self.config, self.config.network
        self.memory_on = any(bool(block.memory_gate.any()) for block in network.layers)
        self._own = c.block_tokens

        def room(tokens: int) -> Tensor:
            return torch.zeros((n.layers, 1, tokens, n.heads, n.head_width), device=self.device,
                               dtype=self.dtype)

        frames = (1 + c.memory.adjacent) * c.frame_tokens
        entries = (c.memory.short + c.memory.long) * c.memory.entry_tokens
        self._k, self._v, self._raw = room(self._own + frames), room(self._own + frames), room(
            self._own)
        self._entry_k, self._entry_v = room(entries), room(entries)
        self._text = (room(n.text_tokens), room(n.text_tokens))
        audio_shape = (n.layers, c.chunk_latents, c.audio.tokens, n.heads, n.head_width)
        self._audio = (tuple(torch.zeros(audio_shape, device=self.device, dtype=self.dtype)
                             for _ in range(2)) if c.audio.enabled else None)
        self._tables = {name: tuple(t.to(self.device) for t in table) for name, table in (
            ('own', chunk_table(n, range(c.chunk_latents), c.grid_side, c.grid_side)),
            ('frames', frame_slots_table(c)), ('entries', entry_slots_table(c)))}
        self._x = torch.zeros((1, c.chunk_latents, *c.latent_shape), device=self.device)
        self._embedded = torch.zeros((1, 1, n.width), device=self.device)
        self._m = torch.zeros((n.layers, 1, 6, 1, 1, n.width), device=self.device)
        self._levels: dict[float, tuple[Tensor, Tensor]] = {}
        self._frame_tokens = self._entry_tokens = 0
        self._open: Callable[..., Tensor] = open_layer
        self._close: Callable[..., Tensor] = close_layer
        self._rotate: Callable[..., Tensor] = rotate
        if compiled:
            self._open, self._close = torch.compile(open_layer), torch.compile(close_layer)
            self._rotate = torch.compile(rotate, dynamic=True)
        self._graphs = graphs and self.device.type == 'cuda'
        self._graph: Any = None
        self._out: Tensor | None = None
        self.attention_kernel = 'default'

    # Conditions and context -----------------------------------------------------------------

    def _level(self, level: float) -> tuple[Tensor, Tensor]:
        """Time embedding [1, 1, width] and every layer's modulation [L, 1, 6, 1, 1, width]."""
        if level not in self._levels:
            at = torch.full((1, 1), level, device=self.device)
            embedded, shared = self.network.modulate(at)
            self._levels[level] = (embedded, torch.stack([
                self.network.of_layer(i, shared) for i in range(len(self.network.blocks))]))
        return self._levels[level]

    def condition(self, text: tuple[Tensor, Tensor], audio: tuple[Tensor, Tensor] | None) -> None:
        """Set the block's prompt, [L, 1, tokens, H, hw] twice, and its audio, [L, latents,
        tokens, H, hw] twice or None; a copy of a few MB."""
        for own, given in zip(self._text, text, strict=True):
            own.copy_(given)
        if self._audio is not None:
            for own, sound in zip(self._audio, audio or (None, None), strict=True):
                if sound is None:
                    raise ValueError('this model has audio attention: give the block its audio')
                own.copy_(sound)

    def see(self, cache: WanCache) -> None:
        """Rotate a cache's filled slots to their times; the forwards that follow attend to them.

        Call once per block, and after the cache has changed.
        """
        frames, entries = cache.frame_tokens, cache.entry_tokens if self.memory_on else 0
        own = self._own
        if frames:
            cos, sin = self._tables['frames']
            self._k[:, 0, own:own + frames] = self._rotate(cache.frames[0][:, :frames],
                                                           cos[:frames], sin[:frames])
            self._v[:, 0, own:own + frames] = cache.frames[1][:, :frames]
        if entries:
            cos, sin = self._tables['entries']
            self._entry_k[:, 0, :entries] = self._rotate(cache.entries[0][:, :entries],
                                                         cos[:entries], sin[:entries])
            self._entry_v[:, 0, :entries] = cache.entries[1][:, :entries]
        self._frame_tokens, self._entry_tokens = frames, entries

    @property
    def _full(self) -> bool:
        room = self._entry_k.shape[2] if self.memory_on else 0
        return (self._own + self._frame_tokens == self._k.shape[2]
                and self._entry_tokens == room)

    # Forwards -------------------------------------------------------------------------------

    def _run(self) -> Tensor:
        network, (cos, sin) = self.network, self._tables['own']
        own, seen = self._own, self._own + self._frame_tokens
        x = network.embed(self._x.to(self.dtype))
        for i, block in enumerate(network.layers):
            m = self._m[i]
            q = self._open(block, x, m, cos, sin, self._raw[i], self._k[i, :, :own],
                           self._v[i, :, :own])
            attended = attend(q, self._k[i, :, :seen], self._v[i, :, :seen])
            remembered = None
            if self._entry_tokens:
                remembered = attend(q, self._entry_k[i, :, :self._entry_tokens],
                                    self._entry_v[i, :, :self._entry_tokens])
            x = self._close(block, x, m, attended, remembered,
                            (self._text[0][i], self._text[1][i]),
                            None if self._audio is None else (self._audio[0][i],
                                                              self._audio[1][i]))
        return network.velocity(x, self._embedded, self.config.latent_px).float()

    @torch.no_grad()
    def forward(self, latents: Tensor, level: float) -> Tensor:
        """Velocity [1, F, C, h, w] float32 of the block's latents at one noise level.

        The result is overwritten by the next forward when a CUDA graph runs.
        """
        embedded, m = self._level(level)
        self._x.copy_(latents)
        self._embedded.copy_(embedded)
        self._m.copy_(m)
        with self._kernels():
            if not (self._graphs and self._full):
                return self._run()
            if self._graph is None:
                self._graph, self._out = capture(self._run)
            self._graph.replay()
        return cast(Tensor, self._out)

    @torch.no_grad()
    def commit(self, latents: Tensor, level: float) -> list[Entry]:
        """Run the finished latents [1, F, C, h, w]; keys and values of each, for the cache."""
        self.forward(latents, level)
        n, frames = self.config.frame_tokens, self.config.chunk_latents
        raw, v = self._raw[:, 0], self._v[:, 0, :self._own]
        return [(raw[:, i * n:(i + 1) * n].clone(), v[:, i * n:(i + 1) * n].clone())
                for i in range(frames)]

    @torch.no_grad()
    def still(self, tokens: Tensor, text: tuple[Tensor, Tensor],
              reference: Entry | None) -> Entry:
        """Keys and values of a picture that stands by itself: the reference or a memory entry.

        Args:
            tokens: [1, n, width], embedded. text: of the empty prompt, as in `condition`.
            reference: the reference's, for a memory entry, which attends to it too.
        """
        pairs = still_layers(
            self.network, tokens, [(k, v) for k, v in zip(*text, strict=True)],
            None if reference is None else [
                (k[None], v[None]) for k, v in zip(*reference, strict=True)])
        return torch.stack([k[0] for k, _ in pairs]), torch.stack([v[0] for _, v in pairs])

    # Choice of attention kernel -------------------------------------------------------------

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        with attention_kernel(self.attention_kernel):
            yield

    @torch.no_grad()
    def tune(self, repeats: int = 5) -> dict[str, float]:
        """Choose the quickest attention kernel at the full context; returns ms of each."""
        if self.device.type != 'cuda':
            return {}
        q = torch.randn_like(self._k[0, :, :self._own])
        times = {}
        for name in ('flash', 'cudnn'):
            try:
                with attention_kernel(name):
                    attend(q, self._k[0], self._v[0])
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    for _ in range(repeats):
                        attend(q, self._k[0], self._v[0])
                    torch.cuda.synchronize()
                    times[name] = 1000.0 * (time.perf_counter() - start) / repeats
            except RuntimeError:  # this card or build has no such kernel
                continue
        if times:
            self.attention_kernel = min(times, key=lambda name: times[name])
        return times


def attention_kernel(name: str) -> Any:
    """A context in which scaled_dot_product_attention prefers a kernel: flash, cudnn, default."""
    if name == 'default':
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    first = SDPBackend.CUDNN_ATTENTION if name == 'cudnn' else SDPBackend.FLASH_ATTENTION
    return sdpa_kernel([first, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.MATH], set_priority=True)


def capture(run: Callable[[], Tensor], warm_up: int = 2) -> tuple[Any, Tensor]:
    """Record ``run`` as a CUDA graph; returns the graph and the tensor that a replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # PyTorch's own capture stream belongs to the card that captured first.
    with torch.cuda.graph(graph, stream=side):
        out = run()
    return graph, out
