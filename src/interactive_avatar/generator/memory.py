# SPDX-License-Identifier: Apache-2.0
"""Long-Short Visual Memory: which past latents the denoiser sees, bounded for ever.

adjacent (last latents, raw) → pending group → short memory (compressed, first in first out)
→ long memory (a fixed number of slots, chosen). InteractiveAvatar, arXiv 2606.22905; the formula
of the redundancy is not given there, mean pairwise cosine similarity is the plain reading.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import Backend

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


class VisualMemory:
    """The past of one stream: fills a backend's cache as chunks are committed.

    Args:
        backend: compresses groups of latents to entries and owns the cache's arrays.
        reference: latent of the reference picture, float32 [C, 16, 16].
        picture: the reference picture, uint8 [H, W, 3].
        policy: which long-term entry a candidate replaces once all slots are full.
    """

    def __init__(self, backend: Backend, reference: NDArray[np.float32],
                 picture: NDArray[np.uint8], policy: KeyFramePolicy | None = None) -> None:
        self._backend, self._reference = backend, reference
        self._policy = policy or DynamicKeyFrames()
        self._sizes = backend.config.memory
        self.cache = backend.new_cache()
        self.cache.open(picture, reference)
        self.cache.place('reference', 0, backend.embed_reference(reference))
        self._adjacent: list[NDArray[np.float32]] = []
        self._pending: list[NDArray[np.float32]] = []
        self._short: list[Feature] = []
        self.long_features: list[Feature] = []

    def commit(self, latent: NDArray[np.float32], entry: object) -> None:
        """Take in a finished chunk.

        Args:
            latent: float32 [C, 16, 16]. entry: its keys and values from `Backend.commit`.
        """
        self.cache.push('adjacent', entry)
        self.cache.follow(latent)
        self._adjacent.append(latent)
        if len(self._adjacent) <= self._sizes.adjacent:
            return
        past = self._adjacent.pop(0)
        if isinstance(self._policy, WindowOnly):
            return
        self._pending.append(past)
        if len(self._pending) < self._sizes.group:
            return
        group = np.stack(self._pending)
        self._pending = []
        compressed = self._backend.compress(group, self.cache)
        if len(self._short) == self._sizes.short:
            self._remember(self._short.pop(0), self.cache.take('short', 0))
        self._short.append(frame_feature(group.mean(axis=0), self._reference))
        self.cache.push('short', compressed)

    def _remember(self, feature: Feature, entry: object) -> None:
        if isinstance(self._policy, NoKeyFrames):
            return
        if len(self.long_features) < self._sizes.long:
            slot: int | None = len(self.long_features)
            self.long_features.append(feature)
        else:
            slot = self._policy.slot(self.long_features, feature)
            if slot is not None:
                self.long_features[slot] = feature
        if slot is not None:
            self.cache.place('long', slot, entry)

    @property
    def redundancy(self) -> float:
        """Redundancy R of the long memory now."""
        return redundancy(self.long_features)

    def copy(self) -> VisualMemory:
        """An independent copy; the latents themselves are never written to and are shared."""
        other = copy.copy(self)
        other.cache = self.cache.copy()
        other._policy = copy.deepcopy(self._policy)
        for name in ('_adjacent', '_pending', '_short', 'long_features'):
            setattr(other, name, list(getattr(self, name)))
        return other
