# SPDX-License-Identifier: Apache-2.0
"""A clip's blocks all at once, with exactly the visibility of the stream: for training, and the
yardstick of streaming.

The sequence holds every block twice: finished (what the commit writes to the cache) and noisy
(what is denoised). A block sees the reference, the frames of the adjacent queue, memory entries
and its own frames, as a stream whose cache holds these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from interactive_avatar.generator.wan.cache import WanCache
from interactive_avatar.generator.wan.network import (
    KeysValues,
    Source,
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


def still_layers(network: WanTransformer, tokens: Tensor, text: Sequence[Source],
                 reference: Sequence[KeysValues] | None) -> list[KeysValues]:
    """Keys (not rotated) and values [B, n, H, hw] per layer of a picture that stands by itself:
    the reference or a memory entry, run at level 0 under the empty prompt without sound.

    Args:
        tokens: [B, n, width], embedded. text: of the empty prompt, for B rows or one.
        reference: the reference's, for a memory entry, which attends to it too.
    """
    config = network.config
    n, side = config.network, config.grid_side
    device = tokens.device
    cos, sin = network.table(
        'frame' if reference is None else 'entry', device,
        lambda: (chunk_table(n, [0], side, side) if reference is None
                 else entry_slots_table(config, 0.0)))
    first = network.table('reference', device, lambda: chunk_table(
        n, cache_times(config)['reference'], side, side))
    _, shared = network.modulate(torch.zeros((tokens.shape[0], 1), device=device))
    made: list[KeysValues] = []

    def self_attention(index: int, q: Tensor, k: Tensor,
                       v: Tensor) -> tuple[Tensor, Tensor | None]:
        k = rotate(k, cos, sin)
        if reference is not None:
            before, values = reference[index]
            before, values = before.to(v.dtype), values.to(v.dtype)
            k, v = torch.cat([rotate(before, *first), k], 1), torch.cat([values, v], 1)
        return attend(rotate(q, cos, sin), k, v), None

    x = tokens[:, None]
    for index, block in enumerate(network.layers):
        x, k, v = block(x, shared, partial(self_attention, index),
                        expanded(text[index], tokens.shape[0]), None)
        made.append((k, v))
    return made


def expanded(source: Source, batch: int) -> Source:
    """What a layer is given, for each of ``batch`` rows."""
    if isinstance(source, Tensor):
        return source.expand(batch, -1, -1)
    k, v = source
    return k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)


@dataclass(frozen=True)
class Context:
    """What a block sees of its stream's past, keys rotated to the times of their slots.

    Attributes:
        frames: keys and values [L, n, H, hw] of the reference and the adjacent frames.
        entries: the same of the memory's entries; with none of them, or of frames, n is 0.
    """

    frames: KeysValues
    entries: KeysValues

    @classmethod
    def of(cls, network: WanTransformer, cache: WanCache) -> Context:
        """Copy and rotate the filled slots of a cache."""
        config, device = network.config, cache.frames[0].device
        pairs = []
        for (k, v), count, (cos, sin) in (
                (cache.frames, cache.frame_tokens, network.table(
                    'frame slots', device, lambda: frame_slots_table(config))),
                (cache.entries, cache.entry_tokens, network.table(
                    'entry slots', device, lambda: entry_slots_table(config)))):
            pairs.append((rotate(k[:, :count], cos[:count], sin[:count]), v[:, :count].clone()))
        return cls(pairs[0], pairs[1])


def block_velocity(network: WanTransformer, latents: Tensor, level: Tensor, context: Context,
                   text: Sequence[Source], audio: Sequence[Source] | None
                   ) -> tuple[Tensor, list[KeysValues]]:
    """`runner.BlockRunner.forward` and its keys, with gradient: one block as the stream sees it.

    Args:
        latents: [1, F, C, h, w] at ``level`` [1, 1]; F is a block.
        text, audio: as in `WanTransformer.forward`.

    Returns:
        velocity [1, F, C, h, w]; keys (not rotated) and values [1, F · n, H, hw] per layer.
    """
    config, frames = network.config, latents.shape[1]
    cos, sin = network.table(f'block of {frames}', latents.device, lambda: chunk_table(
        config.network, range(frames), config.grid_side, config.grid_side))

    def self_attention(index: int, q: Tensor, k: Tensor,
                       v: Tensor) -> tuple[Tensor, Tensor | None]:
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # A cache may be kept in another dtype than a pass runs in.
        seen_k, seen_v = (t[index][None].to(v.dtype) for t in context.frames)
        attended = attend(q, torch.cat([k, seen_k], 1), torch.cat([v, seen_v], 1))
        if not context.entries[0].shape[1]:
            return attended, None
        return attended, attend(q, *(t[index][None].to(v.dtype) for t in context.entries))

    embedded, shared = network.modulate(level)
    x = network.embed(latents.to(network.patch_embedding.weight.dtype))
    made: list[KeysValues] = []
    for index, block in enumerate(network.layers):
        x, k, v = block(x, shared, partial(self_attention, index), text[index],
                        None if audio is None else audio[index])
        made.append((k, v))
    return network.velocity(x, embedded, latents.shape[-2]), made


def window_mask(blocks: int, block: int, adjacent: int, tokens: int, dtype: torch.dtype,
                device: torch.device) -> Tensor:
    """What the window's queries see, added to scores: [2 F n, (blocks + 2 F) n], F = blocks ·
    block. Keys: a copy of the reference per block, finished frames, noisy frames."""
    frames = blocks * block
    frame = torch.arange(frames, device=device)
    start = (frame // block * block)[:, None]
    earlier = (frame[None] < start) & (frame[None] >= start - adjacent)
    same = start == start.T
    copies = (frame // block)[:, None] == torch.arange(blocks, device=device)[None]
    nothing = torch.zeros_like(same)
    seen = torch.cat([torch.cat([copies, earlier | same, nothing], 1),
                      torch.cat([copies, earlier, same], 1)])
    bias = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, float('-inf'))
    return bias.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


def window_velocity(network: WanTransformer, finished: Tensor, commit_level: float, noisy: Tensor,
                    level: Tensor, reference: Sequence[KeysValues], text: Sequence[KeysValues],
                    audio: Sequence[KeysValues] | None = None,
                    entries: Sequence[KeysValues] | None = None) -> Tensor:
    """Velocity of every noisy latent as the stream would see it.

    Args:
        finished: [B, F, C, h, w] as committed, at ``commit_level``.
        noisy: the same shape at ``level`` [B, F]; F is a multiple of the block.
        reference: of `still_layers`. text, audio: as in `WanTransformer.forward`; audio for the F
            frames. entries: memory entries of all filled slots per layer, in the cache's order.

    Returns:
        [B, F, C, h, w].

    Raises:
        ValueError: if F is no multiple of ``chunk_latents``.
    """
    config, n = network.config, network.config.network
    batch, frames = noisy.shape[:2]
    block, tokens = config.chunk_latents, config.frame_tokens
    if frames % block:
        raise ValueError(f'a window of {frames} latents does not divide into blocks of {block}')
    device, side, blocks = noisy.device, config.grid_side, frames // block
    before = cache_times(config)['reference'][0]

    def at(times: Sequence[int]) -> tuple[Tensor, Tensor]:
        cos, sin = chunk_table(n, times, side, side)
        return cos.to(device), sin.to(device)

    absolute = at([*range(frames), *range(frames)])
    first = at([before + block * index for index in range(blocks)])
    relative = at([index % block for index in [*range(frames), *range(frames)]])
    slots = tuple(t.to(device) for t in entry_slots_table(config))
    embedded, shared = network.modulate(torch.cat(
        [torch.full_like(level, commit_level), level], 1))
    x = network.embed(torch.cat([finished, noisy], 1))
    mask = window_mask(blocks, block, config.memory.adjacent, tokens, x.dtype, device)

    def self_attention(index: int, q: Tensor, k: Tensor,
                       v: Tensor) -> tuple[Tensor, Tensor | None]:
        old, values = reference[index]
        keys = torch.cat([rotate(old.repeat(1, blocks, 1, 1), *first), rotate(k, *absolute)], 1)
        attended = attend(rotate(q, *absolute), keys,
                          torch.cat([values.repeat(1, blocks, 1, 1), v], 1), mask)
        if entries is None:
            return attended, None
        kept, remembered = entries[index]
        count = kept.shape[1]
        return attended, attend(rotate(q, *relative), rotate(kept, slots[0][:count],
                                                             slots[1][:count]), remembered)

    def twice(pair: KeysValues) -> KeysValues:
        k, v = (t.unflatten(0, (batch, frames)).repeat(1, 2, 1, 1, 1).flatten(0, 1) for t in pair)
        return k, v

    for index, layer in enumerate(network.layers):
        x, _, _ = layer(x, shared, partial(self_attention, index), text[index],
                        None if audio is None else twice(audio[index]))
    return network.velocity(x, embedded, noisy.shape[-2])[:, frames:]
