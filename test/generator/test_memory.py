# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from interactive_avatar.generator.memory import (
    DynamicKeyFrames,
    FirstInFirstOut,
    RandomKeyFrames,
    frame_feature,
    redundancy,
)


def features(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


def test_redundancy_is_the_mean_pairwise_cosine() -> None:
    assert redundancy(features([1, 0], [0, 2])) == pytest.approx(0.0)
    assert redundancy(features([1, 0], [3, 0], [0, 1])) == pytest.approx(1 / 3)
    assert redundancy(features([1, 0])) == 0.0


def test_key_frame_selection_replaces_the_most_redundant_or_nothing() -> None:
    held = features([1, 0, 0], [1, 0.1, 0], [0, 1, 0])
    slot = DynamicKeyFrames().slot(held, np.array([0, 0, 1], np.float32))
    assert slot in (0, 1)
    apart = features([1, 0, 0], [0, 1, 0], [0, 0, 1])
    assert DynamicKeyFrames().slot(apart, np.array([1, 1, 1], np.float32)) is None


def test_baselines() -> None:
    held = features([1, 0], [0, 1])
    fifo = FirstInFirstOut()
    assert [fifo.slot(held, held[0]) for _ in range(3)] == [0, 1, 0]
    chosen = [RandomKeyFrames(seed).slot(held, held[0]) for seed in range(30)]
    assert {0, 1, None} == set(chosen)


def test_the_reference_itself_has_no_feature() -> None:
    latent = np.random.default_rng(0).standard_normal((8, 16, 16)).astype(np.float32)
    assert not frame_feature(latent, latent).any()
    assert frame_feature(latent, latent * 0).shape == (8 * 16,)
