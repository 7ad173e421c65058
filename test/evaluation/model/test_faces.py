# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from interactive_avatar.evaluation import judges
from interactive_avatar.evaluation.model import faces


def face() -> np.ndarray:
    """A flat face, 100 px between the outer eye corners, looking straight."""
    points = np.zeros((faces.LANDMARKS, 3))
    for index, at in {
            33: (50, 100), 133: (80, 100), 362: (120, 100), 263: (150, 100), 159: (65, 95),
            145: (65, 105), 386: (135, 95), 374: (135, 105), 468: (65, 100), 473: (135, 100),
            10: (100, 40), 2: (100, 150), 1: (100, 140), 13: (100, 170), 14: (100, 180),
            61: (80, 175), 291: (120, 175), 55: (85, 80), 285: (115, 80), 105: (60, 78),
            334: (140, 78)}.items():
        points[index, :2] = at
    return points


def named(points: np.ndarray) -> dict[str, float]:
    return dict(zip(faces.MEASURES, faces.measure(points, 200, 250), strict=True))


def test_measures_by_hand() -> None:
    found = named(face())
    assert found['lip_gap'] == pytest.approx(0.1)
    assert found['mouth_width'] == pytest.approx(0.4)
    assert found['corner_lift'] == pytest.approx(0.0)
    assert found['brow_inner'] == pytest.approx(0.2)
    assert found['brow_outer'] == pytest.approx(0.22)
    assert found['eye_opening'] == pytest.approx(1 / 3)
    assert (found['gaze_x'], found['gaze_y'], found['yaw'], found['roll']) == \
        pytest.approx((0, 0, 0, 0))
    assert (found['size'], found['x'], found['y']) == pytest.approx((0.5, 0.5, 0.56))


def test_gaze_and_smile_have_the_right_sign() -> None:
    points = face()
    points[[468, 473], 0] += 7.5
    points[[468, 473], 1] -= 3.0
    points[[61, 291], 1] -= 5.0
    found = named(points)
    assert found['gaze_x'] == pytest.approx(0.5)
    assert found['gaze_y'] == pytest.approx(0.2)
    assert found['corner_lift'] == pytest.approx(0.05)


def test_a_rolled_head_keeps_its_measures() -> None:
    points = face()
    turn = np.deg2rad(20)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    rolled = points.copy()
    rolled[:, :2] = (points[:, :2] - 100) @ matrix.T + 100
    straight, turned = named(points), named(rolled)
    for name in ('lip_gap', 'mouth_width', 'corner_lift', 'brow_inner', 'gaze_x', 'size'):
        assert turned[name] == pytest.approx(straight[name], abs=1e-9)
    assert turned['roll'] == pytest.approx(turn)


@pytest.mark.skipif(bool(judges.available()['mediapipe']), reason='mediapipe is not installed')
def test_an_empty_picture_has_no_face() -> None:
    with judges.MeshJudge() as mesh:
        watched = faces.watch(np.zeros((2, 64, 64, 3), np.uint8), mesh)
    assert watched.measures.shape == (2, len(faces.MEASURES))
    assert not watched.found.any()
