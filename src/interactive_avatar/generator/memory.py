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
from interactive_avatar.generator.config import MemoryConfig

Feature = NDArray[np.float32]


def redundancy(features: Sequence[Feature]) -> float:
    """Mean pairwise cosine similarity of ``n`` feature vectors [d]; 0 for fewer than two."""
    if len(features) < 2:
        return 0.0
    stacked = np.stack(features).astype(np.float64)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    unit = stacked / np.maximum(norms, 1e-12)
    # By einsum, as in `media.mel`, for the sake of the other core.
    similarity = np.einsum('if,jf->ij', unit, unit)
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


class NoKeyFrames:
    """Ablation: the long memory stays empty."""

    def slot(self, held: Sequence[Feature], candidate: Feature) -> int | None:
        """See `KeyFramePolicy.slot`."""
        return None


class WindowOnly(NoKeyFrames):
    """Ablation: the short memory stays empty too; the reference and the adjacent latents only."""


KEY_FRAME_POLICIES: dict[str, Callable[[], KeyFramePolicy]] = {
    'dynamic': DynamicKeyFrames, 'fifo': FirstInFirstOut, 'random': RandomKeyFrames,
    'none': NoKeyFrames, 'window': WindowOnly}


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


@dataclass(frozen=True)
class Leaving:
    """Latents that leave a stream's adjacent queue together.

    Attributes:
        latents: float32 [group, C, 16, 16], to be compressed into one entry of the short memory.
        long_slot: slot of the long memory that takes the oldest short entry, which this one
            pushes out; None forgets that entry, if there is one.
    """

    latents: NDArray[np.float32]
    long_slot: int | None


class History:
    """Which past latents are remembered, and where: the decisions of a stream's memory, without
    the arrays of any backend.

    Args:
        sizes: how many entries of each kind there are.
        reference: latent of the reference picture, float32 [C, 16, 16].
        policy: which long-term entry a candidate replaces once all slots are full.
    """

    def __init__(self, sizes: MemoryConfig, reference: NDArray[np.float32],
                 policy: KeyFramePolicy | None = None) -> None:
        self._sizes, self._reference = sizes, reference
        self._policy = policy or DynamicKeyFrames()
        # The latent that the oldest of the queue followed, and the queue itself.
        self.followed = reference
        self._adjacent: list[NDArray[np.float32]] = []
        self._pending: list[NDArray[np.float32]] = []
        self._short: list[Feature] = []
        self.long_features: list[Feature] = []

    def follow(self, latent: NDArray[np.float32]) -> Leaving | None:
        """Take in a finished latent, float32 [C, 16, 16]; what leaves the queue now, mostly
        nothing."""
        self._adjacent.append(latent)
        if len(self._adjacent) <= self._sizes.adjacent:
            return None
        past = self.followed = self._adjacent.pop(0)
        if isinstance(self._policy, WindowOnly):
            return None
        self._pending.append(past)
        if len(self._pending) < self._sizes.group:
            return None
        group = np.stack(self._pending)
        self._pending = []
        slot = None
        if len(self._short) == self._sizes.short:
            slot = self._long_slot(self._short.pop(0))
        self._short.append(frame_feature(group.mean(axis=0), self._reference))
        return Leaving(group, slot)

    def _long_slot(self, feature: Feature) -> int | None:
        """Where an entry that leaves the short memory goes."""
        if isinstance(self._policy, NoKeyFrames):
            return None
        if len(self.long_features) < self._sizes.long:
            self.long_features.append(feature)
            return len(self.long_features) - 1
        slot = self._policy.slot(self.long_features, feature)
        if slot is not None:
            self.long_features[slot] = feature
        return slot

    @property
    def adjacent(self) -> tuple[NDArray[np.float32], ...]:
        """Latents of the adjacent queue, oldest first, float32 [C, 16, 16] each."""
        return tuple(self._adjacent)

    @property
    def redundancy(self) -> float:
        """Redundancy R of the long memory now."""
        return redundancy(self.long_features)

    def copy(self) -> History:
        """An independent copy; the latents themselves are never written to and are shared."""
        other = copy.copy(self)
        other._policy = copy.deepcopy(self._policy)
        for name in ('_adjacent', '_pending', '_short', 'long_features'):
            setattr(other, name, list(getattr(self, name)))
        return other


class VisualMemory:
    """The past of one stream: says what enters and leaves a backend's cache as chunks are made.

    Args:
        backend: owns the cache's arrays.
        cache: what the networks see; `CacheState.begin` for a new stream.
        history: of this stream so far.
    """

    def __init__(self, backend: Backend, cache: CacheState, history: History) -> None:
        self.history = history
        self.cache = backend.open_cache(cache)

    def commit(self, latent: NDArray[np.float32]) -> MemoryJob | None:
        """Take in a finished chunk, float32 [C, 16, 16], that the backend has committed.

        Returns:
            What is to be compressed and remembered now, for `Backend.remember`; mostly nothing.
        """
        leaving = self.history.follow(latent)
        if leaving is None:
            return None
        return MemoryJob(leaving.latents, self.cache, leaving.long_slot)

    @property
    def redundancy(self) -> float:
        """Redundancy R of the long memory now."""
        return self.history.redundancy

    def snapshot(self) -> MemorySnapshot:
        """An independent copy, of no backend."""
        return MemorySnapshot(self.cache.state(), self.history.copy())

    @classmethod
    def restore(cls, backend: Backend, snapshot: MemorySnapshot) -> VisualMemory:
        """A memory in ``backend`` that goes on from a snapshot."""
        return cls(backend, snapshot.cache, snapshot.history.copy())


@dataclass(frozen=True)
class MemorySnapshot:
    """A `VisualMemory` between two chunks, in host memory."""

    cache: CacheState
    history: History
