# SPDX-License-Identifier: Apache-2.0
"""The avatar's eyes: geometry against known poses, hysteresis over time, and the real mesh."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from transforms3d.euler import euler2mat

from interactive_avatar.evaluation.bench_face import photograph
from interactive_avatar.media.video import VideoReader
from interactive_avatar.perception import PerceptionError
from interactive_avatar.perception.face import (
    FACING,
    Camera,
    Engagement,
    EngagementLevels,
    Expressions,
    FaceOptions,
    FaceTracker,
    HeadGestures,
    Measures,
    Sight,
    load_template,
    measure_face,
    shrink,
)
from interactive_avatar.perception.mesh import LANDMARKS, FaceMesh, mesh_missing

DATA = Path(__file__).parents[1] / 'data' / 'perception'
TENTH_NS = 100_000_000
CAMERA = Camera(500.0, 500.0, 320.0, 240.0)
BLANK = np.zeros((480, 640, 3), np.uint8)
needs_mesh = pytest.mark.skipif(bool(mesh_missing()), reason=mesh_missing())


def landmarks(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0,
              position_m: tuple[float, float, float] = (0.0, 0.0, 0.8),
              eye_yaw: float = 0.0, smile_m: float = 0.0) -> NDArray[np.float64]:
    """A face as the mesh would see it: a parallel projection along the ray, pixels."""
    face = np.zeros((LANDMARKS, 3))
    for index, place in load_template().items():
        face[index] = place
    face[[468, 473], 1] += 0.012 * math.sin(eye_yaw)
    # Lids, lips and brows lie outside the template: a face at rest.
    for lid, eye, height in ((159, 33, .005), (145, 33, -.005), (386, 263, .005),
                             (374, 263, -.005)):
        face[lid] = face[eye] + [0.0, 0.0, height]
    for corner, side in ((61, -1), (291, 1)):
        face[corner] = [0.0, side * .026, -.065 + .0029 + smile_m]
    face[13], face[14] = [0, 0, -.0645], [0, 0, -.0655]
    face[[105, 334], 2] = .02
    rotation = FACING @ euler2mat(roll, pitch, yaw, 'sxyz')
    place = np.array(position_m)
    direction = place / np.linalg.norm(place)
    # The mesh sees the face turned against the ray on which it lies.
    axis = np.cross([0.0, 0.0, 1.0], direction)
    angle = math.acos(direction[2])
    if angle > 1e-9:
        axis /= np.linalg.norm(axis)
        k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        ray = np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k
    else:
        ray = np.eye(3)
    seen = face @ (ray.T @ rotation).T * CAMERA.fx / place[2]
    seen[:, 0] += CAMERA.cx + CAMERA.fx * place[0] / place[2]
    seen[:, 1] += CAMERA.cy + CAMERA.fy * place[1] / place[2]
    return seen


class Scripted:
    """Finds the faces that the test puts into it."""

    def __init__(self) -> None:
        self.now: list[NDArray[np.float64]] = []
        self.several: list[bool] = []

    def faces(self, frame: NDArray[np.uint8], several: bool) -> list[NDArray[np.float64]]:
        self.several.append(several)
        return self.now if several else self.now[:1]

    def close(self) -> None:
        self.now = []


class Watched:
    """A tracker on a clock of its own, ten pictures a second."""

    def __init__(self, **options: float) -> None:
        self.finder = Scripted()
        self.tracker = FaceTracker(replace(FaceOptions(), **options),  # type: ignore[arg-type]
                                   lambda _: self.finder, CAMERA)
        self.stamp_ns = 1_000_000_000

    def see(self, seconds: float, *faces: NDArray[np.float64]) -> list[Sight]:
        """Show faces for a while."""
        sights = []
        for _ in range(round(seconds * 10)):
            self.finder.now = list(faces)
            self.stamp_ns += TENTH_NS
            sights.append(self.tracker.update(BLANK, self.stamp_ns))
        return sights


# --- geometry ------------------------------------------------------------------------------------

@pytest.mark.parametrize('yaw, pitch, roll, place', [
    (0.0, 0.0, 0.0, (0.0, 0.0, 0.8)), (0.4, 0.0, 0.0, (0.0, 0.0, 0.8)),
    (-0.3, 0.2, 0.1, (0.2, -0.1, 1.1)), (0.1, -0.3, -0.2, (-0.4, 0.2, 0.7))])
def test_pose_is_what_it_was_made_from(yaw: float, pitch: float, roll: float,
                                       place: tuple[float, float, float]) -> None:
    pose = measure_face(landmarks(yaw, pitch, roll, place), CAMERA).pose
    assert pose.roll_pitch_yaw_rad == pytest.approx((roll, pitch, yaw), abs=1e-6)
    assert pose.position_m == pytest.approx(np.array(place), rel=1e-6)
    assert np.linalg.norm(pose.quaternion_xyzw) == pytest.approx(1.0)


def test_axes_are_those_of_rep_103_and_ros4hri() -> None:
    # x out of the face against the camera's z, y to the person's left (the picture's right), z up.
    rotation = measure_face(landmarks(), CAMERA).pose.rotation
    assert rotation @ [1, 0, 0] == pytest.approx(np.array([0, 0, -1]), abs=1e-6)
    assert rotation @ [0, 1, 0] == pytest.approx(np.array([1, 0, 0]), abs=1e-6)
    assert rotation @ [0, 0, 1] == pytest.approx(np.array([0, -1, 0]), abs=1e-6)


def test_line_of_sight_is_head_and_eyes_together() -> None:
    assert measure_face(landmarks(), CAMERA).off_camera_rad < 0.01
    turned = measure_face(landmarks(yaw=0.3), CAMERA)
    assert turned.off_camera_rad == pytest.approx(0.3, abs=0.01)
    # The head is turned away and the eyes come back to the camera.
    assert measure_face(landmarks(yaw=0.3, eye_yaw=-0.3), CAMERA).off_camera_rad < 0.05
    # At the edge of the picture, one who looks into the lens is turned by the ray.
    aside = math.atan2(0.4, 0.8)
    at_camera = landmarks(yaw=-aside, position_m=(0.4, 0.0, 0.8))
    assert measure_face(at_camera, CAMERA).off_camera_rad < 0.02


def test_camera_from_field_of_view() -> None:
    camera = Camera.from_field_of_view(640, 480, 90.0)
    assert (camera.fx, camera.cx, camera.cy) == pytest.approx((320.0, 320.0, 240.0))
    assert camera.scaled(0.5).fx == pytest.approx(160.0)


def test_large_pictures_are_made_smaller() -> None:
    small, factor = shrink(np.zeros((1080, 1920, 3), np.uint8), 640)
    assert small.shape == (360, 640, 3) and factor == pytest.approx(1 / 3)
    same, factor = shrink(BLANK, 640)
    assert same is BLANK and factor == 1.0


@pytest.mark.parametrize('option, value', [
    ('horizontal_fov_deg', 0.0), ('max_faces', 0), ('look_deg', 0.0), ('lost_s', 0.0)])
def test_options_that_cannot_work_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f'{option} is {value}, need'):
        FaceOptions(**{option: value})  # type: ignore[arg-type]


def test_look_angles_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r'look_away_deg 10\.0 is less'):
        FaceOptions(look_away_deg=10.0)


# --- over time -----------------------------------------------------------------------------------

def levels_of(script: list[tuple[float, float]]) -> list[Engagement]:
    """Levels while the line of sight is off by so many degrees for so many seconds."""
    levels, now_s = EngagementLevels(FaceOptions()), 0.0
    told = []
    for seconds, off_deg in script:
        for _ in range(round(seconds * 10)):
            now_s += 0.1
            told.append(levels.push(now_s, math.radians(off_deg)))
    return told


def distinct(levels: list[Engagement]) -> list[str]:
    """Each level once in a row, by name."""
    return [level.name for at, level in enumerate(levels) if not at or level != levels[at - 1]]


def test_engagement_goes_through_the_levels_of_rep_155() -> None:
    assert distinct(levels_of([(1.0, 60.0), (2.0, 5.0), (6.0, 60.0)])) == [
        'DISENGAGED', 'ENGAGING', 'ENGAGED', 'DISENGAGING', 'DISENGAGED']
    # Looking back while turning away is being engaged again.
    assert distinct(levels_of([(2.0, 5.0), (1.6, 60.0), (0.3, 5.0)]))[-2:] == [
        'DISENGAGING', 'ENGAGED']


def test_engagement_does_not_flicker() -> None:
    # A glance, and a line of sight that wavers between the two limits, change nothing.
    assert distinct(levels_of([(1.0, 60.0), (0.2, 5.0), (1.0, 60.0)])) == ['DISENGAGED']
    wavering = [(2.0, 5.0), *[(0.1, off) for off in (15.0, 22.0) * 20]]
    assert distinct(levels_of(wavering))[-1] == 'ENGAGED'
    assert distinct(levels_of([(2.0, 5.0), (0.8, 60.0), (1.0, 5.0)]))[-1] == 'ENGAGED'


def gestures_in(pitch: Callable[[float], float], yaw: Callable[[float], float],
                seconds: float = 4.0, rate_hz: float = 10.0) -> list[str]:
    """Gestures in a motion given in degrees over seconds."""
    told, gestures = [], HeadGestures()
    for at in range(int(seconds * rate_hz)):
        now_s = at / rate_hz
        told.append(gestures.push(now_s, math.radians(pitch(now_s)), math.radians(yaw(now_s))))
    return [gesture for gesture in told if gesture]


def swing(amplitude_deg: float, rate_hz: float, begin_s: float = 1.0, cycles: float = 2.5
          ) -> Callable[[float], float]:
    """A few swings from `begin_s` on."""
    def angle(now_s: float) -> float:
        inside = begin_s <= now_s <= begin_s + cycles / rate_hz
        return amplitude_deg * math.sin(2 * math.pi * rate_hz * (now_s - begin_s)) * inside
    return angle


def still(_: float) -> float:
    return 0.0


@pytest.mark.parametrize('rate_hz', [1.3, 1.8, 2.5])
@pytest.mark.parametrize('amplitude_deg', [4.0, 10.0])
def test_nods_and_shakes_are_told_apart(rate_hz: float, amplitude_deg: float) -> None:
    moved = swing(amplitude_deg, rate_hz)
    assert gestures_in(moved, still) == ['nod']
    assert gestures_in(still, moved) == ['shake']


def test_one_dip_of_the_head_is_a_nod_and_a_look_down_is_none() -> None:
    def dip(now_s: float) -> float:
        return 9.0 * math.sin(math.pi * (now_s - 1.0) / 0.6) * (1.0 <= now_s <= 1.6)

    assert gestures_in(dip, still) == ['nod']
    assert gestures_in(lambda now_s: 20.0 * (now_s >= 1.0), still) == []
    assert gestures_in(still, lambda now_s: 30.0 * (1.0 <= now_s <= 2.0)) == []
    # Slow rocking, a circle, and the tremble of the measurement.
    assert gestures_in(swing(6.0, 0.4, 0.0, 2.0), still) == []
    assert gestures_in(swing(6.0, 1.5), lambda now_s: swing(6.0, 1.5)(now_s + 0.17)) == []
    rng = np.random.default_rng(0)
    assert gestures_in(lambda _: float(rng.normal(0, 0.4)), lambda _: float(rng.normal(0, 0.4)),
                       60.0) == []


def test_a_gap_in_the_pictures_makes_no_gesture() -> None:
    gestures = HeadGestures()
    told = [gestures.push(at * 0.6, math.radians(8.0 * (-1) ** at), 0.0) for at in range(10)]
    assert not any(told)


def face(lift_m: float = 0.0029, gap_m: float = 0.001, brow_m: float = 0.022,
         yaw: float = 0.0) -> Measures:
    """Measures of a face with this mouth and these brows."""
    return replace(measure_face(landmarks(yaw=yaw), CAMERA), corner_lift_m=lift_m,
                   lip_gap_m=gap_m, brow_height_m=brow_m)


def expressions_of(*script: tuple[float, Measures]) -> list[str]:
    """The expression at the end of each part of a script."""
    expressions, now_s, told = Expressions(), 0.0, []
    for seconds, measures in script:
        for _ in range(round(seconds * 10)):
            now_s += 0.1
            name = expressions.push(now_s, measures)
        told.append(name)
    return told


def test_expressions_are_told_from_the_face_at_rest() -> None:
    assert expressions_of((2.0, face()), (1.0, face(lift_m=0.007)), (1.0, face())) == [
        'neutral', 'smile', 'neutral']
    assert expressions_of((2.0, face()), (1.0, face(brow_m=0.025, gap_m=0.01)),
                          (1.0, face(lift_m=0.0))) == ['neutral', 'surprise', 'frown']
    # Somebody whose mouth droops at rest does not frown; who comes in smiling smiles, and goes on.
    assert expressions_of((2.0, face(lift_m=0.0021))) == ['neutral']
    assert expressions_of((0.5, face(lift_m=0.008)), (30.0, face(lift_m=0.008))) == [
        'smile', 'smile']
    # An open mouth alone is talk, and of a face that is turned away nothing is said.
    assert expressions_of((2.0, face()), (1.0, face(gap_m=0.012))) == ['neutral', 'neutral']
    assert expressions_of((2.0, face()), (0.5, face(yaw=0.7)))[-1] == ''


# --- people --------------------------------------------------------------------------------------

def test_who_comes_is_told_once_and_who_leaves_too() -> None:
    watched = Watched()
    sights = watched.see(3.0, landmarks())
    assert [sight.arrived for sight in sights if sight.arrived] == [(1,)]
    assert sights[0].main is None, 'one picture is no person'
    main = sights[-1].main
    assert main is not None and main.person == 1 and main.engagement is Engagement.ENGAGED
    assert main.distance_m == pytest.approx(0.8, rel=0.01)
    gone = watched.see(3.0)
    assert [sight.left for sight in gone if sight.left] == [(1,)]
    # For a moment out of sight is not gone.
    assert gone[10].main is not None and gone[-1].main is None


def test_a_face_seen_for_one_picture_is_nobody() -> None:
    watched = Watched()
    sights = watched.see(1.0) + watched.see(0.1, landmarks()) + watched.see(3.0)
    assert not any(sight.arrived or sight.left or sight.faces for sight in sights)


def test_two_people_keep_their_numbers_and_the_engaged_one_is_attended_to() -> None:
    watched = Watched()
    left, right = (-0.25, 0.0, 0.9), (0.25, 0.0, 0.9)
    away = landmarks(yaw=0.6, position_m=left)
    engaged = landmarks(yaw=-math.atan2(0.25, 0.9), position_m=right)
    watched.see(2.0, away)
    # Found in another order each time.
    watched.see(1.2, away, engaged)
    sights = watched.see(2.0, engaged, away)
    assert {face.person for face in sights[-1].faces} == {1, 2}
    main = sights[-1].main
    assert main is not None and main.person == 2 and main.looking
    assert sights[-1].faces[1].engagement is Engagement.DISENGAGED
    # Both look: the one the avatar attends to stays the same.
    both = watched.see(3.0, landmarks(yaw=math.atan2(0.25, 0.9), position_m=left), engaged)
    assert both[-1].main is not None and both[-1].main.person == 2
    assert watched.see(3.0, landmarks(yaw=math.atan2(0.25, 0.9), position_m=left))[-1].left == ()
    assert len(watched.see(0.5, away)[-1].faces) == 1


def test_further_people_are_looked_for_now_and_then_only() -> None:
    watched = Watched()
    watched.see(5.0, landmarks())
    assert watched.finder.several.count(True) <= 6
    watched.finder.several.clear()
    watched.see(3.0, landmarks(), landmarks(position_m=(0.4, 0.0, 0.9)))
    assert watched.finder.several[-10:] == [True] * 10


def test_a_pause_or_a_stamp_from_the_past_starts_anew() -> None:
    watched = Watched()
    watched.see(1.0, landmarks())
    watched.stamp_ns += 60 * 1_000_000_000
    first, *rest = watched.see(1.0, landmarks())
    assert first.left == (1,) and rest[-1].main is not None and rest[-1].main.person == 2
    watched.stamp_ns -= 30 * 1_000_000_000
    assert watched.see(0.1, landmarks())[0].left == (2,)


# --- the real mesh -------------------------------------------------------------------------------

@needs_mesh
def test_the_rendered_person_is_seen_as_they_are() -> None:
    truth = json.loads((DATA / 'users.json').read_text(encoding='utf-8'))
    tracker = FaceTracker(camera=Camera(truth['focal_px'], truth['focal_px'], 96.0, 96.0))
    told: dict[str, dict[str, list[object]]] = {}
    errors = []
    frames = list(VideoReader(DATA / 'users.mp4'))
    begun_s = time.process_time()
    for at, (frame, true) in enumerate(zip(frames, truth['pictures'], strict=True)):
        main = tracker.update(frame, (at + 1) * TENTH_NS).main
        clip = told.setdefault(true['clip'], {'gesture': [], 'expression': [], 'looking': []})
        if main is None:
            continue
        roll, pitch, yaw = main.measures.pose.roll_pitch_yaw_rad
        errors.append(np.degrees(np.abs(np.array([yaw, -pitch, -roll])
                                        - true['yaw_pitch_roll_rad'])))
        clip['gesture'] += [main.gesture] * bool(main.gesture)
        clip['expression'].append(main.expression)
        clip['looking'].append(main.looking)
    share = 10.0 * (time.process_time() - begun_s) / len(frames)
    tracker.close()
    mean = np.mean(errors, axis=0)
    print(f'pose, mean absolute error, degrees: {mean.round(2)}; {100 * share:.1f} % of a core')
    assert len(errors) >= len(frames) - 4
    assert mean[0] < 5.0 and mean[1] < 6.0 and mean[2] < 3.0, mean
    gestures = {name: clip['gesture'] for name, clip in told.items()}
    assert gestures['nod'] == ['nod'] and 'shake' in gestures['shake']
    assert gestures['still'] == gestures['smile'] == gestures['look away'] == []
    assert told['smile']['expression'][-8:] == ['smile'] * 8
    assert 'smile' not in told['still']['expression']
    assert all(told['still']['looking'][5:]) and not any(told['look away']['looking'][-8:])


@needs_mesh
def test_the_photograph_shows_one_smiling_person() -> None:
    picture = photograph()
    if picture is None:
        pytest.skip('scikit-image is not installed: pip install scikit-image')
    tracker = FaceTracker(FaceOptions(horizontal_fov_deg=20.0))
    for at in range(6):
        sight = tracker.update(picture, (at + 1) * TENTH_NS)
    tracker.close()
    assert len(sight.faces) == 1 and sight.main is not None
    assert sight.main.expression == 'smile' and sight.main.looking
    assert max(map(abs, sight.main.measures.pose.roll_pitch_yaw_rad)) < math.radians(15)


@needs_mesh
def test_two_real_people_are_two() -> None:
    picture = photograph()
    if picture is None:
        pytest.skip('scikit-image is not installed: pip install scikit-image')
    rendered = next(iter(VideoReader(DATA / 'users.mp4')))
    both = np.zeros((256, 512, 3), np.uint8)
    both[:, :256] = picture[:256, 96:352]
    both[32:224, 288:480] = rendered
    tracker = FaceTracker()
    for at in range(20):
        sight = tracker.update(both, (at + 1) * TENTH_NS)
    assert len(sight.faces) == 2
    for at in range(20, 45):
        sight = tracker.update(np.zeros_like(both), (at + 1) * TENTH_NS)
    tracker.close()
    assert not sight.faces


@needs_mesh
def test_noise_is_nobody_and_other_arrays_are_refused() -> None:
    rng = np.random.default_rng(0)
    tracker = FaceTracker()
    for at in range(20):
        grain = (1, 4, 16)[at % 3]
        noise = rng.integers(0, 256, (480 // grain, 640 // grain, 3), np.uint8)
        sight = tracker.update(noise.repeat(grain, 0).repeat(grain, 1), (at + 1) * TENTH_NS)
        assert not sight.faces
    with pytest.raises(PerceptionError, match=r'shape \(480, 640\).*uint8 \[H, W, 3\]'):
        tracker.update(BLANK[..., 0], 3_000_000_000)
    tracker.close()


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('interactive_avatar.perception.mesh.importlib.util.find_spec',
                        lambda name: None)
    with pytest.raises(PerceptionError, match=r'mediapipe.*pip install|make PYTHON'):
        FaceMesh()
