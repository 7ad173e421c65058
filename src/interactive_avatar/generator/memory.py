# SPDX-License-Identifier: Apache-2.0
"""Long-Short Visual Memory: which past latents the denoiser sees, bounded for ever.

adjacent (last latents, raw) → pending group → short memory (compressed, first in first out)
→ long memory (a fixed number of slots, chosen). InteractiveAvatar, arXiv 2606.22905; the formula
of the redundancy is not given there, mean pairwise cosine similarity is the plain reading.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import Backend, CacheState, MemoryJob

Feature = NDArray[np.float32]


def redundancy(features: Sequence[Feature]) -> float:
    """Mean pairwise cosine similarity of ``n`` feature vectors [d]; 0 for fewer than two."""
    if len(features) < 2:
        return 0.0
    stacked = np.stack(features).astype(np.float64)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    unit = stacked / np.maximum(norms, 1e-12)
    similarity = unit @ unit.T
    n = len(features)
    return float((similarity.sum() - np.trace(similarity)) / (n * (n - 1)))


class KeyFramePolicy(Protocol):
    """Decides which slot of the full long memory a candidate takes; None forgets it."""

    def slot(self, held: Sequence[Feature], candidate: Feature) -> int | None:
        """Index of the slot to replace, or None."""
        ...


class DynamicKeyFrames:
    """Takes the slot whose replacement lowers the redundancy most, if any lowers it (R′ < R)."""

    def slot(self, held: Sequence[Feature], candidate: Feature) -> int | None:
        """See `KeyFramePolicy.slot`."""
        best, best_value = None, redundancy(held)
        for index in range(len(held)):
            trial = [*held[:index], candidate, *held[index + 1:]]
            value = redundancy(trial)
            if value < best_value - 1e-9:
                best, best_value = index, value
        return best


class FirstInFirstOut:
    """Baseline: always the oldest entry (round robin over the slots)."""

    def __init__(self) -> None:
        self._next = 0

    def slot(self, held: Sequence[Feature], candidate: Feature) -> int | None:
        """See `KeyFramePolicy.slot`."""
        index = self._next % len(held)
        self._next += 1
        return index


class RandomKeyFrames:
    """Baseline: reservoir sampling, every past entry is kept with the same probability."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._seen = 0

    def slot(self, held: Sequence[Feature], candidate: Feature) -> int | None:
        """See `KeyFramePolicy.slot`."""
        self._seen += 1
        index = int(self._random.integers(0, len(held) + self._seen))
        return index if index < len(held) else None


KEY_FRAME_POLICIES: dict[str, Callable[[], KeyFramePolicy]] = {
    'dynamic': DynamicKeyFrames, 'fifo': FirstInFirstOut, 'random': RandomKeyFrames}


def frame_feature(latent: NDArray[np.float32], reference: NDArray[np.float32]) -> Feature:
    """Image feature of a latent: how it differs from the reference, pooled to 4×4.

    Args:
        latent: float32 [C, 16, 16]. reference: the same of the reference picture.

    Returns:
        float32 [C · 16].
    """
    channels, side, _ = latent.shape
    cell = side // 4
    pooled = (latent - reference).reshape(channels, 4, cell, 4, cell).mean(axis=(2, 4))
    return pooled.astype(np.float32).reshape(-1)


class VisualMemory:
    """The past of one stream: says what enters and leaves a backend's cache as chunks are made.

    Args:
        backend: owns the cache's arrays.
        cache: what the networks see; `CacheState.begin` for a new stream.
        reference: latent of the reference picture, float32 [C, 16, 16].
        policy: which long-term entry a candidate replaces once all slots are full.
    """

    def __init__(self, backend: Backend, cache: CacheState, reference: NDArray[np.float32],
                 policy: KeyFramePolicy | None = None) -> None:
        self._reference = reference
        self._policy = policy or DynamicKeyFrames()
        self._sizes = backend.config.memory
        self.cache = backend.open_cache(cache)
        self._adjacent: list[NDArray[np.float32]] = []
        self._pending: list[NDArray[np.float32]] = []
        self._short: list[Feature] = []
        self.long_features: list[Feature] = []

    def commit(self, latent: NDArray[np.float32]) -> MemoryJob | None:
        """Take in a finished chunk, float32 [C, 16, 16], that the backend has committed.

        Returns:
            What is to be compressed and remembered now, for `Backend.remember`; mostly nothing.
        """
        self._adjacent.append(latent)
        if len(self._adjacent) <= self._sizes.adjacent:
            return None
        self._pending.append(self._adjacent.pop(0))
        if len(self._pending) < self._sizes.group:
            return None
        group = np.stack(self._pending)
        self._pending = []
        slot = None
        if len(self._short) == self._sizes.short:
            slot = self._long_slot(self._short.pop(0))
        self._short.append(frame_feature(group.mean(axis=0), self._reference))
        return MemoryJob(group, self.cache, slot)

    def _long_slot(self, feature: Feature) -> int | None:
        """Where an entry that leaves the short memory goes."""
        if len(self.long_features) < self._sizes.long:
            self.long_features.append(feature)
            return len(self.long_features) - 1
        slot = self._policy.slot(self.long_features, feature)
        if slot is not None:
            self.long_features[slot] = feature
        return slot

    @property
    def redundancy(self) -> float:
        """Redundancy R of the long memory now."""
        return redundancy(self.long_features)

    def snapshot(self) -> MemorySnapshot:
        """An independent copy, of no backend; latents are never written to and are shared."""
        return MemorySnapshot(self.cache.state(), self._reference, copy.deepcopy(self._policy),
                              list(self._adjacent), list(self._pending), list(self._short),
                              list(self.long_features))

    @classmethod
    def restore(cls, backend: Backend, snapshot: MemorySnapshot) -> VisualMemory:
        """A memory in ``backend`` that goes on from a snapshot."""
        memory = cls(backend, snapshot.cache, snapshot.reference, copy.deepcopy(snapshot.policy))
        memory._adjacent, memory._pending = list(snapshot.adjacent), list(snapshot.pending)
        memory._short, memory.long_features = list(snapshot.short), list(snapshot.long)
        return memory


@dataclass(frozen=True)
class MemorySnapshot:
    """A `VisualMemory` between two chunks, in host memory."""

    cache: CacheState
    reference: NDArray[np.float32]
    policy: KeyFramePolicy
    adjacent: list[NDArray[np.float32]]
    pending: list[NDArray[np.float32]]
    short: list[Feature]
    long: list[Feature]
