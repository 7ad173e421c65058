# SPDX-License-Identifier: Apache-2.0
"""Runs the transformer on one block of latent frames, again and again, as fast as a GPU allows.

All that changes lies in fixed buffers: once the memory is full, one CUDA graph serves every step
and the commit. Between attentions, layers run as two compiled regions that all layers share; those
of a picture that stands by itself run as one. The context is rotated once per block, not once per
forward. What can be run in several ways is timed on the device (`BlockRunner.tune`,
`quickest_products`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.wan.attention import (
    AttentionPlan,
    Pieces,
    attention_kernel,
    join,
    join_and_add,
    plans,
    split_attention,
)
from interactive_avatar.generator.wan.cache import Entry, WanCache
from interactive_avatar.generator.wan.fp8 import WAYS, Fp8Linear
from interactive_avatar.generator.wan.network import (
    Block,
    KeysValues,
    WanTransformer,
    attend,
)
from interactive_avatar.generator.wan.rope import (
    cache_times,
    chunk_table,
    entry_slots_table,
    frame_slots_table,
    rotate,
)
from interactive_avatar.generator.wan.timing import Timed, capture, device_ms, quickest

FP8_LINEARS = ('qkv', 'q', 'o', 'up', 'down')
"""Layers of a block that may run in 8 bits with precision fp8: all that run every step."""
COMPILED_VARIANTS = 64
"""Of one region, beyond which PyTorch would silently run it uncompiled."""
TOLERANCE = 0.02
"""Relative difference in bf16 beyond which a way to attend is not the same function."""


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


def close_split(block: Block, x: Tensor, m: Tensor, pieces: Pieces, remembered: Tensor | None,
                text: KeysValues, audio: KeysValues | None) -> Tensor:
    """`close_layer` after `split_attention`: joining the pieces is fused with what reads them."""
    return close_layer(block, x, m, join(*pieces), remembered, text, audio)


def place(k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_out: Tensor, v_out: Tensor) -> None:
    """Turn keys [L, n, H, hw] and put them and their values where attention reads them."""
    k_out.copy_(rotate(k, cos, sin))
    v_out.copy_(v)


def still_layer(block: Block, x: Tensor, m: Tensor, cos: Tensor, sin: Tensor, text: KeysValues,
                before: tuple[Tensor, Tensor, Tensor, Tensor] | None
                ) -> tuple[Tensor, Tensor, Tensor]:
    """A layer of `BlockRunner.still`.

    Args:
        before: keys (not rotated), values [1, n, H, hw], cos and sin of the reference, or None.

    Returns:
        the next layer's x; keys (not rotated) and values [1, n, H, hw].
    """
    q, k, v = block.project(x, m)
    seen_k, seen_v = rotate(k, cos, sin), v
    if before is not None:
        first_k, first_v, first_cos, first_sin = before
        seen_k = torch.cat([rotate(first_k, first_cos, first_sin), seen_k], 1)
        seen_v = torch.cat([first_v, seen_v], 1)
    attended = attend(rotate(q, cos, sin), seen_k, seen_v)
    return close_layer(block, x, m, attended, None, text, None), k, v


@dataclass(frozen=True)
class Span:
    """The tokens of a block that one pass works on: the same rows of every latent frame's grid.

    Attributes:
        rows: of the grid. tokens: where their keys and values lie among the block's, [F · n].
        cos, sin: their positions, [F · n, pairs].
    """

    rows: slice
    tokens: slice
    cos: Tensor
    sin: Tensor

    @property
    def count(self) -> int:
        """Tokens of all its frames."""
        return int(self.tokens.stop - self.tokens.start)


class BlockRunner:
    """Streaming forwards of one network; see the module.

    Args:
        network: in its final dtype and on its device.
        compiled: fuse layers with torch.compile.
        graphs: replay a CUDA graph once the context is full (CUDA only).

    Attributes:
        memory_on: whether any memory gate is open; while none is, entries cost nothing.
        plan: how self-attention is run.
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
            ('frames', frame_slots_table(c)), ('entries', entry_slots_table(c)),
            ('still', chunk_table(n, [0], c.grid_side, c.grid_side)),
            ('entry', entry_slots_table(c, 0.0)),
            ('reference', chunk_table(n, cache_times(c)['reference'], c.grid_side,
                                      c.grid_side)))}
        self._x = torch.zeros((1, c.chunk_latents, *c.latent_shape), device=self.device)
        self._embedded = torch.zeros((1, 1, n.width), device=self.device)
        self._m = torch.zeros((n.layers, 1, 6, 1, 1, n.width), device=self.device)
        self._levels: dict[float, tuple[Tensor, Tensor]] = {}
        self._frame_tokens = self._entry_tokens = 0
        self._open: Callable[..., Tensor] = open_layer
        self._close: Callable[..., Tensor] = close_layer
        self._close_split: Callable[..., Tensor] = close_split
        self._still: Callable[..., tuple[Tensor, Tensor, Tensor]] = still_layer
        self._rotate: Callable[..., Tensor] = rotate
        self._place: Callable[..., None] | None = None
        self._compiled = compiled
        if compiled:
            # A region is compiled once for each shape, precision and card in the process.
            from torch._dynamo import config as dynamo
            dynamo.cache_size_limit = max(dynamo.cache_size_limit, COMPILED_VARIANTS)
            # Whole blocks and a card's share of one are shapes of their own: never one for both.
            self._open = torch.compile(open_layer, dynamic=False)
            self._close = torch.compile(close_layer, dynamic=False)
            self._close_split = torch.compile(close_split, dynamic=False)
            # A reference's tokens and an entry's are two shapes, each worth its own kernels.
            self._still = torch.compile(still_layer, dynamic=False)
            # Slots fill once, and stay full: kernels of that shape, and one set for all others.
            self._rotate = torch.compile(rotate, dynamic=True)
            self._place = torch.compile(place, dynamic=False)
        self._graphs = graphs and self.device.type == 'cuda'
        self._graph: Any = None
        self._out: Tensor | None = None
        self.plan = AttentionPlan()
        self._whole = self.span(slice(0, c.grid_side), 0)

    def span(self, rows: slice, start: int) -> Span:
        """Some rows of every frame of a block, whose keys lie from token ``start`` on."""
        c = self.config
        picked = slice(rows.start * c.grid_side, rows.stop * c.grid_side)
        cos, sin = (t.unflatten(0, (c.chunk_latents, -1))[:, picked].flatten(0, 1).contiguous()
                    for t in self._tables['own'])
        return Span(rows, slice(start, start + cos.shape[0]), cos, sin)

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

    @torch.no_grad()
    def see(self, cache: WanCache) -> None:
        """Rotate a cache's filled slots to their times; the forwards that follow attend to them.

        Call once per block, and after the cache has changed.
        """
        frames, entries = cache.frame_tokens, cache.entry_tokens if self.memory_on else 0
        own = self._own
        for count, kept, (cos, sin), k_out, v_out in (
                (frames, cache.frames, self._tables['frames'], self._k[:, 0, own:],
                 self._v[:, 0, own:]),
                (entries, cache.entries, self._tables['entries'], self._entry_k[:, 0],
                 self._entry_v[:, 0])):
            if count and count == k_out.shape[1] and self._place is not None:
                self._place(*kept, cos, sin, k_out, v_out)
            elif count:
                k_out[:, :count] = self._rotate(kept[0][:, :count], cos[:count], sin[:count])
                v_out[:, :count] = kept[1][:, :count]
        self._frame_tokens, self._entry_tokens = frames, entries

    @property
    def remembers(self) -> bool:
        """Whether there are memory entries to attend to."""
        return self._entry_tokens > 0

    @property
    def full(self) -> bool:
        """Whether every slot that is attended to is filled, so that shapes stay as they are."""
        room = self._entry_k.shape[2] if self.memory_on else 0
        return (self._own + self._frame_tokens == self._k.shape[2]
                and self._entry_tokens == room)

    # Forwards -------------------------------------------------------------------------------

    def set_pass(self, latents: Tensor, level: float) -> None:
        """Put a pass's latents [1, F, C, h, w] and noise level where the layers read them."""
        embedded, m = self._level(level)
        self._x.copy_(latents)
        self._embedded.copy_(embedded)
        self._m.copy_(m)

    def enter(self, span: Span) -> Tensor:
        """Tokens [1, F, n, width] of the pass's latents."""
        patch = self.config.network.patch
        rows = self._x[:, :, :, span.rows.start * patch:span.rows.stop * patch]
        return self.network.embed(rows.to(self.dtype))

    def open(self, i: int, x: Tensor, span: Span) -> Tensor:
        """Layer i to self-attention: rotated queries [1, F · n, H, hw]; keys and values go to
        their place among those that attention reads, keys before rotation to a place aside."""
        return self._open(self.network.layers[i], x, self._m[i], span.cos, span.sin,
                          self._raw[i, :, :span.count], self._k[i, :, span.tokens],
                          self._v[i, :, span.tokens])

    def remember(self, i: int, q: Tensor) -> Tensor | None:
        """What layer i's queries find in the memory's entries, [1, F · n, width]; None without
        any."""
        if not self.remembers:
            return None
        return attend(q, self._entry_k[i, :, :self._entry_tokens],
                      self._entry_v[i, :, :self._entry_tokens])

    def close(self, i: int, x: Tensor, q: Tensor, remembered: Tensor | None,
              plan: AttentionPlan) -> Tensor:
        """Layer i from self-attention on; the next layer's x."""
        seen, block, m = self._own + self._frame_tokens, self.network.layers[i], self._m[i]
        k, v = self._k[i, :, :seen], self._v[i, :, :seen]
        conditions = ((self._text[0][i], self._text[1][i]),
                      None if self._audio is None else (self._audio[0][i], self._audio[1][i]))
        if plan.fits(seen):
            return self._close_split(block, x, m, split_attention(q, k, v, plan), remembered,
                                     *conditions)
        return self._close(block, x, m, attend(q, k, v), remembered, *conditions)

    def leave(self, x: Tensor, span: Span) -> Tensor:
        """Velocity float32 [1, F, C, rows · patch, w] of the last layer's x."""
        height = (span.rows.stop - span.rows.start) * self.config.network.patch
        return self.network.velocity(x, self._embedded, height).float()

    def _run(self) -> Tensor:
        x = self.enter(self._whole)
        for i in range(len(self.network.layers)):
            q = self.open(i, x, self._whole)
            x = self.close(i, x, q, self.remember(i, q), self.plan)
        return self.leave(x, self._whole)

    @torch.no_grad()
    def forward(self, latents: Tensor, level: float) -> Tensor:
        """Velocity [1, F, C, h, w] float32 of the block's latents at one noise level.

        The result is overwritten by the next forward when a CUDA graph runs.
        """
        self.set_pass(latents, level)
        with attention_kernel(self.plan.kernel):
            if not (self._graphs and self.full):
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

        As `window.still_layers`, which training uses, without gradient.

        Args:
            tokens: [1, n, width], embedded. text: of the empty prompt, as in `condition`.
            reference: the reference's, for a memory entry, which attends to it too.
        """
        cos, sin = self._tables['still' if reference is None else 'entry']
        _, modulations = self._level(0.0)
        x, keys, values = tokens[:, None], [], []
        for i, block in enumerate(self.network.layers):
            before = None if reference is None else (
                reference[0][i][None], reference[1][i][None], *self._tables['reference'])
            x, k, v = self._still(block, x, modulations[i], cos, sin, (text[0][i], text[1][i]),
                                  before)
            keys.append(k[0])
            values.append(v[0])
        return torch.stack(keys), torch.stack(values)

    # Choices ----------------------------------------------------------------------------------

    @torch.no_grad()
    def tune(self) -> dict[str, Any]:
        """Choose the quickest of equal ways at the full context; returns what was found."""
        if self.device.type != 'cuda':
            return {}
        with torch.cuda.device(self.device):
            self.plan, attention = self.choose_plan(self._own)
            opening = self._choose_opening()
        return {'attention': str(self.plan), 'attention_ms': attention, 'opening_ms': opening}

    def choose_plan(self, queries: int) -> tuple[AttentionPlan, dict[str, float]]:
        """The quickest plan for so many queries, and milliseconds of each plan by its name, the
        merging of its pieces (and an addition, which whole results are given too) included where
        a split was worth it."""
        q, other = torch.randn_like(self._k[0, :, :queries]), torch.randn_like(
            self._x.new_empty((1, queries, self.config.network.width)), dtype=self.dtype)
        best = AttentionPlan()
        k, v = torch.randn_like(self._k[0]), torch.randn_like(self._v[0])
        joined: Callable[..., Tensor] = (torch.compile(join_and_add, dynamic=False)
                                         if self._compiled else join_and_add)

        def trial(plan: AttentionPlan, whole: bool) -> Callable[[], Any]:
            def run() -> Any:
                with attention_kernel(plan.kernel):
                    if not plan.queries:
                        made = attend(q, k, v)
                        return made + other if whole else made
                    pieces = split_attention(q, k, v, plan)
                    return joined(*pieces, other) if whole else pieces
            return run

        known = {str(plan): plan for plan in plans(
            ('flash', 'cudnn'), q.shape[1], k.shape[1], q.shape[2],
            torch.cuda.get_device_properties(self.device).multi_processor_count)}
        found = quickest({name: trial(plan, False) for name, plan in known.items()
                          if not plan.queries})
        wholes = list(found)[:1]
        kernel = known[wholes[0]].kernel if wholes else ''
        found |= quickest({name: trial(plan, False) for name, plan in known.items()
                           if plan.queries and plan.kernel == kernel})
        # A merge's kernels are compiled for each shape: only for what may win.
        splits = [name for name in found
                  if known[name].queries and found[name] < found[wholes[0]]][:2]
        if wholes and splits:
            expected = trial(known[wholes[0]], True)().float()
            runs = {}
            for name in splits:
                run = trial(known[name], True)
                try:
                    wrong = float((run().float() - expected).norm() / expected.norm())
                except RuntimeError:  # its merge cannot be compiled here
                    continue
                # A kernel that means something else by its sums is none of these.
                if wrong < TOLERANCE:
                    runs[name] = run
            final = quickest({wholes[0]: trial(known[wholes[0]], True), **runs})
            best = known[next(iter(final), wholes[0])]
            found |= {f'{name}, merged': value for name, value in final.items()}
        elif wholes:
            best = known[wholes[0]]
        return best, found

    def _choose_opening(self) -> dict[str, float]:
        """Set how layers are opened; milliseconds of each way."""
        if not self._compiled:
            return {}
        try:
            from interactive_avatar.generator.wan.kernels import turn_heads
        except ImportError:  # no Triton here
            return {}
        packed = torch.compile(packed_layer, dynamic=False)

        def opened(block: Block, x: Tensor, m: Tensor, cos: Tensor, sin: Tensor, raw: Tensor,
                   k_out: Tensor, v_out: Tensor) -> Tensor:
            return turn_heads(packed(block, x, m), block.norm_q.weight, block.norm_k.weight, cos,
                              sin, raw, k_out, v_out)

        c, block = self.config, self.network.layers[0]
        x = torch.randn((1, c.chunk_latents, c.frame_tokens, c.network.width),
                        device=self.device, dtype=self.dtype)
        _, m = self._level(c.sampler.levels[0])
        cos, sin = self._tables['own']
        raw, k, v = (torch.empty_like(self._raw[0]) for _ in range(3))

        def trial(way: Callable[..., Tensor]) -> Callable[[], Tensor]:
            return lambda: way(block, x, m[0], cos, sin, raw, k, v)

        compiled = self._open
        made = trial(compiled)()
        expected = [t.float() for t in (made, raw, k, v)]
        ways = {'compiled': compiled}
        try:
            made = trial(opened)()
            if all(float((t.float() - e).norm() / e.norm()) < TOLERANCE
                   for t, e in zip((made, raw, k, v), expected)):
                ways['kernel'] = opened
        except Exception:  # Triton's own errors have no common kind; the other way is there
            pass
        found = quickest({name: trial(way) for name, way in ways.items()})
        self._open = ways[next(iter(found), 'compiled')]
        return found


def packed_layer(block: Block, x: Tensor, m: Tensor) -> Tensor:
    """`Block.packed`, for a region of its own."""
    return block.packed(x, m)


def _trial_qkv(block: Block, x: Tensor, wide: Tensor, m: Tensor) -> Any:
    return block.project(x, m)


def _trial_q(block: Block, x: Tensor, wide: Tensor, m: Tensor) -> Any:
    return block.text.query(x)


def _trial_o(block: Block, x: Tensor, wide: Tensor, m: Tensor) -> Any:
    return x + block.text.o(x)


def _trial_up(block: Block, x: Tensor, wide: Tensor, m: Tensor) -> Any:
    return F.gelu(block.widen(x, m), approximate='tanh')


def _trial_down(block: Block, x: Tensor, wide: Tensor, m: Tensor) -> Any:
    return block.narrow(x, m, wide)


PRODUCT_TRIALS: dict[str, Callable[..., Any]] = {
    'qkv': _trial_qkv, 'q': _trial_q, 'o': _trial_o, 'up': _trial_up, 'down': _trial_down}
"""Each of `FP8_LINEARS` between what comes before and after it, with which it is fused."""


@torch.no_grad()
def quickest_products(network: WanTransformer, compiled: bool, timed: Timed = device_ms
                      ) -> dict[str, dict[str, float]]:
    """Milliseconds of each of `FP8_LINEARS` in its own dtype ('wide') and in each way to run it in
    8 bits, for a block's tokens, the quickest first; without what the device cannot run.

    The network, in its final dtype and on its device, is left as it was.
    """
    c, block = network.config, network.layers[0]
    like = network.patch_embedding.weight
    x = torch.randn((1, c.chunk_latents, c.frame_tokens, c.network.width), device=like.device,
                    dtype=like.dtype)
    wide = torch.randn((1, c.block_tokens, c.network.ffn_width), device=like.device,
                       dtype=like.dtype)
    m = torch.randn((1, 6, 1, 1, c.network.width), device=like.device)
    found = {}
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        for name in FP8_LINEARS:
            owner: nn.Module = block.text if name in ('q', 'o') else block
            linear = cast(nn.Linear, getattr(owner, name))
            trial = PRODUCT_TRIALS[name]
            run = torch.compile(trial, dynamic=False) if compiled else trial

            def way(layer: nn.Module, run: Callable[..., Any] = run, owner: nn.Module = owner,
                    name: str = name) -> Callable[[], Any]:
                def call() -> Any:
                    setattr(owner, name, layer)
                    return run(block, x, wide, m)
                return call

            candidates = {'wide': way(linear)}
            for kind in WAYS:
                layer = Fp8Linear(linear, kind)
                try:  # a reference's tokens take the same way
                    layer((wide if name == 'down' else x.flatten(1, 2))[:, :c.frame_tokens])
                except RuntimeError:
                    continue
                candidates[kind] = way(layer)
            try:
                found[name] = quickest(candidates, timed)
            finally:
                setattr(owner, name, linear)
    return found
