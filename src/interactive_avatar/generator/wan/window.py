# SPDX-License-Identifier: Apache-2.0
"""A clip's blocks all at once, with exactly the visibility of the stream: for training, and the
yardstick of streaming.

The sequence holds every block twice: finished (what the commit writes to the cache) and noisy
(what is denoised). A block sees the reference, the frames of the adjacent queue, memory entries
and its own frames, as a stream whose cache holds these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interactive_avatar.generator.wan.network import KeysValues, WanTransformer, attend
from interactive_avatar.generator.wan.rope import (
    cache_times,
    chunk_table,
    entry_slots_table,
    rotate,
)


def still_layers(network: WanTransformer, tokens: Tensor, text: Sequence[KeysValues],
                 reference: Sequence[KeysValues] | None) -> list[KeysValues]:
    """Keys (not rotated) and values [B, n, H, hw] per layer of a picture that stands by itself:
    the reference or a memory entry, run at level 0 under the empty prompt without sound.

    Args:
        tokens: [B, n, width], embedded. text: of the empty prompt, [B or 1, tokens, H, hw].
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
        made.append((k, v))
        k = rotate(k, cos, sin)
        if reference is not None:
            before, values = reference[index]
            k, v = torch.cat([rotate(before, *first), k], 1), torch.cat([values, v], 1)
        return attend(rotate(q, cos, sin), k, v), None

    x = tokens[:, None]
    for index in range(len(network.blocks)):
        prompt = tuple(t.expand(tokens.shape[0], -1, -1, -1) for t in text[index])
        x = network.layer(index, x, network.of_layer(index, shared), self_attention,
                          (prompt[0], prompt[1]), None)
    return made


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

    for index in range(len(network.blocks)):
        x = network.layer(index, x, network.of_layer(index, shared), self_attention, text[index],
                          None if audio is None else twice(audio[index]))
    return network.velocity(x, embedded, noisy.shape[-2])[:, frames:]
