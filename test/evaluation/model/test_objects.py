# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from interactive_avatar.evaluation.judges import EYE_OUTER
from interactive_avatar.evaluation.model import gauge, objects
from interactive_avatar.evaluation.model.objects import ObjectJudge


def test_a_crop_puts_the_eyes_in_their_place() -> None:
    frame = np.zeros((200, 200, 3), np.uint8)
    frame[95:106, 65:76] = 255, 0, 0
    frame[95:106, 125:136] = 0, 255, 0
    points = np.zeros((478, 3), np.float32)
    points[EYE_OUTER[0]], points[EYE_OUTER[1]] = (70, 100, 0), (130, 100, 0)
    crop = objects.head_crop(frame, points)
    assert crop.shape == (64, 64, 3)
    assert crop[40, 19].tolist() == [255, 0, 0]
    assert crop[40, 45].tolist() == [0, 255, 0]
    assert not crop[20].any()


def test_features_see_edges_and_not_brightness() -> None:
    rng = np.random.default_rng(0)
    crop = rng.integers(60, 120, (64, 64, 3)).astype(np.uint8)
    for name in objects.OBJECTS:
        plain = objects.features(crop, name)
        assert np.allclose(plain, objects.features(crop + 40, name), atol=1e-6)
        lined = crop.copy()
        lined[30:34] = 0
        assert np.abs(objects.features(lined, name) - plain).max() > 0.1


def test_logistic_regression_weighs_classes_equally() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(1.0, 1.0, (100, 1)), rng.normal(-1.0, 1.0, (900, 1))
    labels = np.arange(1000) < 100
    weights, means, scales = objects.fit_logistic(np.concatenate([few, many]), labels, 1e-6)
    border = -weights[1] / weights[0] * scales[0] + means[0]
    # Two equal Gaussians with equal weight part in the middle.
    assert border == pytest.approx(0.0, abs=0.25)
    with pytest.raises(ValueError, match='need both'):
        objects.fit_logistic(few, np.ones(100, bool), 1.0)


def test_a_fitted_judge_tells_bars_from_none() -> None:
    rng = np.random.default_rng(0)

    def crops(count: int) -> tuple[np.ndarray, np.ndarray]:
        made = rng.integers(90, 130, (count, 64, 64, 3)).astype(np.uint8)
        labels = rng.random((count, 2)) < 0.5
        for crop, (glasses, hat) in zip(made, labels, strict=True):
            if glasses:
                crop[40:42, 14:50] = 0
            if hat:
                crop[:18] = 30, 30, 160
        return made, labels

    judge = gauge.fit_objects(*crops(60), *crops(40))
    assert judge.accuracy == {'glasses': 1.0, 'hat': 1.0}
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    landmarks = np.full((2, 478, 3), np.nan, np.float32)
    assert np.isnan(judge.track(frames, landmarks, 'hat')).all()


def test_the_shipped_judge_was_measured_on_held_out_people() -> None:
    gauges, wears = gauge.load()
    assert isinstance(wears, ObjectJudge)
    assert wears.pictures > 100
    assert all(value > 0.9 for value in wears.accuracy.values()), wears.accuracy
    for name, one in gauges.items():
        assert one.trials >= 4, name
        # A judge that does not recognise the truth says nothing about a generator.
        assert one.right / one.trials >= 0.7, name
        assert one.false / one.others <= 0.2, name
