# SPDX-License-Identifier: Apache-2.0
"""Judges: geometry by hand, and what they say when they are not installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from interactive_avatar.evaluation import judges


def head(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, gap: float = 0.1,
         opening: float = 0.3) -> np.ndarray:
    """Landmarks of a simple head, 478 x 3, turned about its centre; unit is the eye distance."""
    points = np.zeros((478, 3))
    left_out, right_out = judges.EYE_OUTER
    points[left_out], points[right_out] = (-0.5, -0.3, 0.0), (0.5, -0.3, 0.0)
    for outer, inner, top, bottom in judges.EYES:
        side = np.sign(points[outer, 0])
        points[inner] = points[outer] - (0.3 * side, 0.0, 0.0)
        middle = (points[outer] + points[inner]) / 2
        half = np.array([0.0, 0.15 * opening, 0.0])
        points[top], points[bottom] = middle - half, middle + half
    points[judges.FOREHEAD], points[judges.NOSE_BASE] = (0, -1, 0), (0, 0.2, 0)
    points[judges.NOSE_TIP] = (0, 0.1, -0.2)
    points[judges.INNER_LIP_TOP], points[judges.INNER_LIP_BOTTOM] = (0, 0.5, 0), (0, 0.5 + gap, 0)
    points[judges.MOUTH_LEFT], points[judges.MOUTH_RIGHT] = (-0.25, 0.55, 0), (0.25, 0.55, 0)
    cy, sy, cp, sp, cr, sr = (np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch),
                              np.cos(roll), np.sin(roll))
    # x right, y down, z away: a turn to the picture's right takes the nose (-z) to +x.
    turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tip = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return points @ (tip @ turn @ nod).T * 100


def test_measures_of_a_straight_head() -> None:
    gap, width, opening, yaw, pitch, roll, x, y = judges.face_measures(head())
    assert (gap, width, opening) == pytest.approx((0.1, 0.5, 0.3))
    assert (yaw, pitch, roll) == pytest.approx((0.0, 0.0, 0.0))
    assert (x, y) == pytest.approx((0.0, 10.0))


def test_signs_of_the_pose() -> None:
    assert judges.face_measures(head(yaw=0.3))[3] == pytest.approx(0.3)
    assert judges.face_measures(head(pitch=0.2))[4] == pytest.approx(0.2)
    assert judges.face_measures(head(roll=0.2))[5] == pytest.approx(0.2)
    # The nose of a head that looks up is higher, that of one turned right farther right.
    assert judges.face_measures(head(pitch=0.2))[7] < 10.0
    assert judges.face_measures(head(yaw=0.3))[6] > 0.0


def test_the_gap_does_not_depend_on_the_pose() -> None:
    assert judges.face_measures(head(yaw=0.4, pitch=-0.2, roll=0.1))[0] == pytest.approx(0.1)


def test_a_missing_judge_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    state = judges.available()
    assert 'pip install --no-deps mediapipe==0.10.21' in state['mediapipe']
    assert 'dlib-bin' in state['dlib']
    with pytest.raises(judges.JudgeMissing, match='pip install'):
        judges._require('no_such_judge', 'pip install it')


@pytest.mark.skipif(bool(judges.available()['mediapipe']),
                    reason=judges.available()['mediapipe'] or 'installed')
def test_no_face_is_nan() -> None:
    with judges.MeshJudge() as judge:
        track = judge.track([np.zeros((64, 64, 3), np.uint8)] * 2)
    assert not track.found.any()
    assert track.centre.shape == (2, 2)


@pytest.mark.skipif(bool(judges.available()['dlib']),
                    reason=judges.available()['dlib'] or 'installed')
def test_no_identity_is_nan() -> None:
    embeddings = judges.IdentityJudge().embed_all([np.zeros((64, 64, 3), np.uint8)])
    assert embeddings.shape == (1, judges.IDENTITY_WIDTH)
    assert np.isnan(embeddings).all()
