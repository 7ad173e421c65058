# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of chunk, memory entries and cache slots, in numpy; shared by all backends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.config import GeneratorConfig

Table = tuple[NDArray[np.float32], NDArray[np.float32]]


def _table(positions: NDArray[np.float64], config: GeneratorConfig) -> Table:
    """cos and signed sin, float32 [n, head_width], of tokens at (time, row, column) [n, 3].

    `rotate` needs one multiply with each: x · cos + swap(x) · sin, where swap exchanges the
    halves of a head and sin is negated in the first half.
    """
    d = config.denoiser
    angles = np.concatenate([
        positions[:, axis:axis + 1] * d.rope_theta ** (-np.arange(split // 2) / (split // 2))
        for axis, split in enumerate(d.rope_split)], axis=1)
    cos, sin = np.cos(angles), np.sin(angles)
    return (np.concatenate([cos, cos], 1).astype(np.float32),
            np.concatenate([-sin, sin], 1).astype(np.float32))


def _grid(side: int, scale: float) -> NDArray[np.float64]:
    axis = (np.arange(side) + 0.5) * scale - 0.5
    rows, columns = np.meshgrid(axis, axis, indexing='ij')
    return np.stack([np.zeros(side * side), rows.ravel(), columns.ravel()], axis=1)


def chunk_table(config: GeneratorConfig) -> Table:
    """The chunk being made: time 0, the patch grid."""
    return _table(_grid(round(config.chunk_tokens ** 0.5), 1.0), config)


def entry_table(config: GeneratorConfig) -> Table:
    """A memory entry while it is computed: time 0, a coarse grid over the same picture."""
    side = config.memory.entry_side
    return _table(_grid(side, round(config.chunk_tokens ** 0.5) / side), config)


def cache_table(config: GeneratorConfig) -> Table:
    """Every cache slot: its own fixed time before the chunk, so positions never grow."""
    total = sum(count for _, count, _ in config.context_slots)
    patch_side = round(config.chunk_tokens ** 0.5)
    parts, time = [], -total
    for _, count, tokens in config.context_slots:
        side = round(tokens ** 0.5)
        for _ in range(count):
            grid = _grid(side, patch_side / side)
            grid[:, 0] = time
            parts.append(grid)
            time += 1
    return _table(np.concatenate(parts), config)


def clip_table(config: GeneratorConfig, frames: int) -> Table:
    """Frames of a clip denoised as a whole: times 0, 1, … on the patch grid.

    Frame 0 stands where the stream's next chunk stands, so that reference and memory entries keep
    the times they have in `cache_table`.
    """
    grid = _grid(round(config.chunk_tokens ** 0.5), 1.0)
    clip = np.tile(grid, (frames, 1))
    clip[:, 0] = np.repeat(np.arange(frames), len(grid))
    return _table(clip, config)


def rotate(x: NDArray[np.float32], table: Table) -> NDArray[np.float32]:
    """Rotary embedding of x [..., n, head_width] by ``table`` [n, head_width] each."""
    half = x.shape[-1] // 2
    swapped = np.concatenate([x[..., half:], x[..., :half]], axis=-1)
    return x * table[0] + swapped * table[1]
