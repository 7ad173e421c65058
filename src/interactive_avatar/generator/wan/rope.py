# SPDX-License-Identifier: Apache-2.0
"""Wan2.1's rotary positions: neighbouring channels of a head are complex pairs that turn with
time, row and column (22, 21 and 21 of 64 pairs)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from interactive_avatar.generator.wan.config import WanConfig, WanNetworkConfig

Table = tuple[Tensor, Tensor]
"""cos and sin, float32 [tokens, pairs]."""


def table(positions: Tensor, config: WanNetworkConfig) -> Table:
    """cos and sin of tokens at (time, row, column), float64 [tokens, 3], fractions allowed."""
    angles = torch.cat([
        positions[:, axis:axis + 1] * config.rope_theta ** (
            -torch.arange(pairs, dtype=torch.float64) / pairs)
        for axis, pairs in enumerate(config.rope_pairs)], dim=1)
    return angles.cos().float(), angles.sin().float()


def _positions(times: Iterable[float], rows: int, columns: int, scale: float) -> Tensor:
    """[times · rows · columns, 3]; a coarse grid's cells lie at the centres of what they cover."""
    def axis(count: int) -> Tensor:
        return (torch.arange(count, dtype=torch.float64) + 0.5) * scale - 0.5

    grid = torch.meshgrid(torch.tensor([float(t) for t in times], dtype=torch.float64),
                          axis(rows), axis(columns), indexing='ij')
    return torch.stack([part.flatten() for part in grid], dim=1)


def chunk_table(config: WanNetworkConfig, times: Iterable[float], rows: int,
                columns: int) -> Table:
    """Latent frames at ``times``, each a grid of rows × columns tokens."""
    return table(_positions(times, rows, columns, 1.0), config)


def cache_times(config: WanConfig) -> dict[str, list[int]]:
    """Kind of slot -> time of each of its slots, before the block that starts at time 0.

    Fixed, so that positions never grow: reference, long, short and adjacent, oldest first.
    """
    memory = config.memory
    order = [('reference', 1), ('long', memory.long), ('short', memory.short),
             ('adjacent', memory.adjacent)]
    times, now = {}, -sum(count for _, count in order)
    for kind, count in order:
        times[kind] = list(range(now, now + count))
        now += count
    return times


def frame_slots_table(config: WanConfig) -> Table:
    """Slots that hold whole latent frames: the reference, then the adjacent ones, newest first
    (the order of `cache.WanCache`)."""
    times = cache_times(config)
    return chunk_table(config.network, [*times['reference'], *reversed(times['adjacent'])],
                       config.grid_side, config.grid_side)


def entry_slots_table(config: WanConfig, time: float | None = None) -> Table:
    """Slots that hold compressed entries: short, newest first, then long; or one at ``time``."""
    times = cache_times(config)
    side = config.memory.entry_side
    at = [*reversed(times['short']), *times['long']] if time is None else [time]
    return table(_positions(at, side, side, config.grid_side / side), config.network)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [..., tokens, H, hw] by a table's cos and sin [tokens, pairs]."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
