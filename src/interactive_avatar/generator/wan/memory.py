# SPDX-License-Identifier: Apache-2.0
"""Visual memory of a wan stream: the decisions of `History`, carried out on a `WanCache`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.memory import History, KeyFramePolicy
from interactive_avatar.generator.wan.cache import Entry, WanCache

if TYPE_CHECKING:
    from interactive_avatar.generator.wan.backend import WanBackend


class WanMemory:
    """The past of one stream.

    Args:
        backend: compresses groups of latents to entries and makes the cache.
        reference: latent of the reference picture, float32 [C, h, w].
        policy: which long-term entry a candidate replaces once all slots are full.
    """

    def __init__(self, backend: WanBackend, reference: NDArray[np.float32],
                 policy: KeyFramePolicy | None = None) -> None:
        self._backend = backend
        self.history = History(backend.config.memory, reference, policy)
        self.cache: WanCache = backend.new_cache()
        self.cache.place('reference', 0, backend.embed_reference(reference))

    def commit(self, latent: NDArray[np.float32], entry: Entry) -> None:
        """Take in a finished latent float32 [C, h, w] and its keys and values."""
        self.cache.push('adjacent', entry)
        leaving = self.history.follow(latent)
        if leaving is None:
            return
        compressed = self._backend.compress(leaving.latents, self.cache)
        if leaving.long_slot is not None:
            self.cache.place('long', leaving.long_slot, self.cache.take('short', 0))
        self.cache.push('short', compressed)

    def copy(self) -> WanMemory:
        """An independent copy."""
        other = copy.copy(self)
        other.history, other.cache = self.history.copy(), self.cache.copy()
        return other
