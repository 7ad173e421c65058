# SPDX-License-Identifier: Apache-2.0
"""What self-attention sees of the past, on the device: whole latent frames and memory entries.

Keys are kept before rotation; `runner.BlockRunner` turns them to the fixed times of their slots
once per block. Filled slots always lie at the front (adjacent and short memory newest first), so
attention runs over a prefix and needs no mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interactive_avatar.generator.wan.config import WanConfig

Entry = tuple[Tensor, Tensor]
"""Keys (not rotated) and values of one slot in every layer, [L, tokens, H, hw]."""


class WanCache:
    """Slots of one stream; satisfies `backends.base.Cache`.

    Attributes:
        frames: keys and values [L, (1 + adjacent) · n, H, hw]: the reference, then adjacent.
        entries: the same [L, (short + long) · side², H, hw]: short, then long memory.
    """

    def __init__(self, config: WanConfig, device: torch.device, dtype: torch.dtype) -> None:
        n, memory = config.network, config.memory
        self.config = config

        def room(slots: int, tokens: int) -> Entry:
            shape = (n.layers, slots * tokens, n.heads, n.head_width)
            return (torch.zeros(shape, device=device, dtype=dtype),
                    torch.zeros(shape, device=device, dtype=dtype))

        self.frames = room(1 + memory.adjacent, config.frame_tokens)
        self.entries = room(memory.short + memory.long, memory.entry_tokens)
        self._filled = {'reference': 0, 'adjacent': 0, 'short': 0, 'long': 0}
        self._room = {'reference': 1, 'adjacent': memory.adjacent, 'short': memory.short,
                      'long': memory.long}

    @property
    def frame_tokens(self) -> int:
        """Filled tokens of `frames`."""
        return ((self._filled['reference'] + self._filled['adjacent'])
                * self.config.frame_tokens)

    @property
    def entry_tokens(self) -> int:
        """Filled tokens of `entries`."""
        return (self._filled['short'] + self._filled['long']) * self.config.memory.entry_tokens

    def _place(self, kind: str, index: int) -> tuple[Entry, slice]:
        """The arrays and the tokens of slot ``index``, 0 the oldest of its kind."""
        room = self._room[kind]
        if not 0 <= index < room:
            raise IndexError(f'slot {index} of {kind!r} does not exist; it has {room}')
        if kind in ('reference', 'adjacent'):
            arrays, tokens = self.frames, self.config.frame_tokens
            slot = 0 if kind == 'reference' else 1 + (room - 1 - index)
        else:
            arrays, tokens = self.entries, self.config.memory.entry_tokens
            slot = room - 1 - index if kind == 'short' else self._room['short'] + index
        return arrays, slice(slot * tokens, (slot + 1) * tokens)

    def place(self, kind: str, index: int, entry: Entry) -> None:
        """See `Cache.place`.

        Raises:
            IndexError: if there is no such slot.
            ValueError: if slots before it are empty, which no mask hides here.
        """
        arrays, span = self._place(kind, index)
        filled = self._filled[kind]
        rank = index if kind in ('reference', 'long') else self._room[kind] - 1 - index
        if rank > filled or (kind == 'long' and self._filled['short'] < self._room['short']) or (
                kind == 'adjacent' and not self._filled['reference']):
            raise ValueError(f'slot {index} of {kind!r} cannot be filled before those in front of '
                             f'it')
        arrays[0][:, span], arrays[1][:, span] = entry
        self._filled[kind] = max(filled, rank + 1)

    def push(self, kind: str, entry: Entry) -> None:
        """See `Cache.push`."""
        room = self._room[kind]
        arrays, newest = self._place(kind, room - 1)
        tokens = newest.stop - newest.start
        end = newest.start + room * tokens
        for array in arrays:
            array[:, newest.stop:end] = array[:, newest.start:end - tokens].clone()
        filled = self._filled[kind]
        self.place(kind, room - 1, entry)
        self._filled[kind] = min(filled + 1, room)

    def take(self, kind: str, index: int) -> Entry:
        """See `Cache.take`."""
        arrays, span = self._place(kind, index)
        return arrays[0][:, span].clone(), arrays[1][:, span].clone()

    def follow(self, latent: NDArray[np.float32]) -> None:
        """See `Cache.follow`; Wan's network sees the latent before through attention alone."""

    def copy(self) -> Any:
        """See `Cache.copy`."""
        other = object.__new__(WanCache)
        other.__dict__.update(self.__dict__)
        other.frames = (self.frames[0].clone(), self.frames[1].clone())
        other.entries = (self.entries[0].clone(), self.entries[1].clone())
        other._filled = dict(self._filled)
        return other
