# SPDX-License-Identifier: Apache-2.0
"""``avatar bench face``: how well and at what cost the avatar sees its user.

Rendered people who were never used to make the tracker's template perform; the renderer knows
how their heads, eyes and faces truly are. Besides: pictures without anybody, noise, and one
photograph. The face model is MediaPipe's mesh, the same that judges the generator's pictures
(`evaluation.judges`); here it is measured against the truth, not against itself.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.report import number, table
from interactive_avatar.media.clock import FRAME_RATE_HZ
from interactive_avatar.media.picture import read_image
from interactive_avatar.perception.face import (
    EYE_INNER,
    EYE_OUTER,
    EYE_SPAN_M,
    FACING,
    IRIS,
    NS_PER_S,
    RIGID,
    SELLION,
    Camera,
    FaceOptions,
    FaceTracker,
    Sight,
    measure_face,
)
from interactive_avatar.perception.mesh import FaceMesh

if TYPE_CHECKING:
    from interactive_avatar.training.render.renderer import Renderer

RATE_HZ = 10.0
PICTURE_HEIGHT, PICTURE_WIDTH = 480, 640
PERSON_PX = 256
CPU_AIM_SHARE = 0.15
# What a clip is expected to show; '' for nothing but a face at rest.
CLIPS = ('still', 'talk', 'smile', 'frown', 'surprise', 'nod', 'small nod', 'shake', 'look away')
GESTURE_OF = {'nod': 'nod', 'small nod': 'nod', 'shake': 'shake'}
CLIP_S = 5.0
ACT_AT_S = 1.6
GAP_NS = 10 * NS_PER_S
FIXTURE_PERSON = 3


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        people: baked people.
        poses: how many single pictures with random heads and eyes.
        clips: how many clips of each kind.
        seed: of all that is random.
    """

    people: Path = Path('assets/people.npz')
    poses: int = 200
    clips: int = 12
    seed: int = 0


def canvas_camera(renderer: Renderer, side_px: int = PERSON_PX) -> Camera:
    """The renderer's camera for pictures of `on_canvas`: true focal length, centred."""
    from interactive_avatar.training.render.renderer import (
        CAMERA_DISTANCE_DM,
        CAMERA_HALF_HEIGHT_DM,
    )
    focal = side_px / 2.0 / (CAMERA_HALF_HEIGHT_DM / CAMERA_DISTANCE_DM)
    return Camera(focal, focal, PICTURE_WIDTH / 2.0, PICTURE_HEIGHT / 2.0)


def on_canvas(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A square render in the middle of a camera's picture, its border carried on outward."""
    height, width = frame.shape[:2]
    top, left = (PICTURE_HEIGHT - height) // 2, (PICTURE_WIDTH - width) // 2
    return np.pad(frame, ((top, PICTURE_HEIGHT - height - top),
                          (left, PICTURE_WIDTH - width - left), (0, 0)), 'edge')


def _act(kind: str, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Units [n, 52] and head [n, 6] of a clip at 25 frames/s."""
    from interactive_avatar.training.performances.motion import (
        add,
        blinks,
        bob,
        ease,
        oscillation,
        sway,
    )
    from interactive_avatar.training.render.look import EXPRESSIONS, SOUNDS, units_of
    from interactive_avatar.training.units import UNITS, index

    n = int(CLIP_S * FRAME_RATE_HZ)
    units = np.zeros((n, len(UNITS)), np.float32)
    head = np.zeros((n, 6), np.float32)
    head[:, 0] = rng.uniform(-.08, .08) + sway(rng, n, .012)
    head[:, 1] = rng.uniform(-.06, .06) + sway(rng, n, .010)
    head[:, 2] = rng.uniform(-.05, .05) + sway(rng, n, .008)
    at = int(ACT_AT_S * FRAME_RATE_HZ)
    if kind in ('smile', 'frown', 'surprise'):
        up = np.zeros(n, np.float32)
        rise = ease(int(rng.integers(6, 12)))
        up[at:at + rise.size] = rise
        up[at + rise.size:] = 1.0
        units += rng.uniform(.7, 1.0) * up[:, None] * units_of(EXPRESSIONS[kind])[None]
    elif kind == 'talk':
        sounds = list(SOUNDS)
        for start in range(at, n, 3):
            units[start:start + 3] = rng.uniform(.5, 1.0) * units_of(
                SOUNDS[sounds[int(rng.integers(len(sounds)))]])
        for column in range(3):
            head[:, column] += sway(rng, n, .02, .2, .8)
    elif kind == 'nod':
        add(head[:, 1], at, bob(int(rng.integers(2, 5)), rng.uniform(1.4, 1.9),
                                rng.uniform(.2, .3)))
    elif kind == 'small nod':
        add(head[:, 1], at, bob(int(rng.integers(2, 4)), rng.uniform(1.4, 2.2),
                                rng.uniform(.1, .15)))
    elif kind == 'shake':
        add(head[:, 0], at, oscillation(int(rng.integers(2, 4)), rng.uniform(1.2, 1.7),
                                        rng.uniform(.2, .36)))
    elif kind == 'look away':
        side = float(rng.choice([-1.0, 1.0]))
        turn = np.concatenate([np.zeros(at, np.float32), ease(10)])
        turn = np.pad(turn, (0, n - turn.size), 'edge')
        head[:, 0] += side * rng.uniform(.4, .5) * turn
        for name in ('eyeLookOutLeft', 'eyeLookInRight') if side > 0 else (
                'eyeLookInLeft', 'eyeLookOutRight'):
            units[:, index(name)] = .6 * turn
    closed = blinks(rng, n, [])
    for name in ('eyeBlinkLeft', 'eyeBlinkRight'):
        units[:, index(name)] = np.maximum(units[:, index(name)], closed)
    return units.clip(0.0, 1.0), head


def perform(renderer: Renderer, person: int, kind: str, rng: np.random.Generator
            ) -> Iterator[NDArray[np.uint8]]:
    """A clip as a camera sees it ten times a second: uint8 [480, 640, 3] RGB each."""
    units, head = _act(kind, rng)
    picked = (np.arange(0.0, CLIP_S, 1.0 / RATE_HZ) * FRAME_RATE_HZ).astype(int)
    frames, _ = renderer.render(person, units[picked], head[picked])
    return (on_canvas(frame) for frame in frames)


def make_template(people: Path, path: Path, each: int = 60) -> Path:
    """Measure the tracker's template on people of the training split, at rest.

    Args:
        people: baked people.
        path: where to write the JSON.
        each: how many people.
    """
    from interactive_avatar.training.render.renderer import Renderer

    renderer = Renderer(people)
    known = renderer.people.split(held_out=False)
    faces = []
    mesh = FaceMesh(max_faces=1, tracking=False, min_confidence=0.3)
    for person in known[::max(1, len(known) // each)][:each]:
        found = mesh.faces(renderer.reference_view(person))
        if found:
            points = (found[0] - found[0][SELLION]) @ FACING
            span = np.linalg.norm(points[EYE_OUTER[0]] - points[EYE_OUTER[1]])
            faces.append(points / span * EYE_SPAN_M * 1000.0)
    mesh.close()
    renderer.close()
    mean = np.mean(faces, axis=0)
    kept = sorted({*RIGID, *IRIS, *EYE_OUTER, *EYE_INNER})
    data = {'made_by': 'avatar bench face --make-template', 'people': len(faces),
            'points_mm': {str(index): [round(float(value), 2) for value in mean[index]]
                          for index in kept}}
    path.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    return path


def make_fixture(people: Path, folder: Path, side_px: int = 192) -> Path:
    """Render the short film that the tests watch, with the truth beside it.

    Args:
        people: baked people.
        folder: where to write ``users.mp4`` (10 pictures a second, one held-out person who is
            still, smiles, nods, shakes the head and looks away) and ``users.json``.
        side_px: sides of the pictures.
    """
    from interactive_avatar.media.video import VideoWriter
    from interactive_avatar.training.render.renderer import Renderer

    renderer = Renderer(people, side_px)
    person = renderer.people.split(held_out=True)[FIXTURE_PERSON]
    rng = np.random.default_rng(4)
    picked = (np.arange(0.0, CLIP_S - 1.0, 1.0 / RATE_HZ) * FRAME_RATE_HZ).astype(int)
    truth: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(folder / 'users.mp4', side_px, side_px, int(RATE_HZ), crf=22) as film:
        for kind in ('still', 'smile', 'nod', 'shake', 'look away'):
            units, head = _act(kind, rng)
            film.write(renderer.render(person, units[picked], head[picked])[0])
            truth += [{'clip': kind, 'yaw_pitch_roll_rad': [round(float(x), 4) for x in row[:3]]}
                      for row in head[picked]]
    focal = canvas_camera(renderer, side_px).fx
    renderer.close()
    path = folder / 'users.json'
    path.write_text(json.dumps({
        'made_by': 'avatar bench face --make-fixture', 'person': int(person),
        'rate_hz': RATE_HZ, 'focal_px': round(focal, 2), 'act_at_s': ACT_AT_S,
        'axes': "yaw + to the picture's right, pitch + up, roll + crown to the picture's right",
        'pictures': truth}) + '\n', encoding='utf-8')
    return path


def _single_pictures(renderer: Renderer, options: Options) -> dict[str, Any]:
    """Presence, pose and line of sight in single pictures with random heads."""
    from interactive_avatar.training.performances.compose import (
        EYE_DOWN_RANGE_RAD,
        EYE_UP_RANGE_RAD,
        EYE_YAW_RANGE_RAD,
    )
    from interactive_avatar.training.units import UNITS, index

    rng = np.random.default_rng([options.seed, 1])
    n = options.poses
    who = rng.choice(renderer.people.split(held_out=True), n)
    head = np.zeros((n, 6), np.float32)
    head[:, :3] = rng.uniform(-1, 1, (n, 3)) * [math.radians(35), math.radians(20),
                                                math.radians(15)]
    head[:, 3:] = rng.uniform(-1, 1, (n, 3)) * [.04, .03, .05]
    eyes = rng.uniform(-.85, .85, (n, 2)).astype(np.float32)
    units = np.zeros((n, len(UNITS)), np.float32)
    for names, share in ((('eyeLookOutLeft', 'eyeLookInRight'), eyes[:, 0]),
                         (('eyeLookInLeft', 'eyeLookOutRight'), -eyes[:, 0]),
                         (('eyeLookUpLeft', 'eyeLookUpRight'), eyes[:, 1]),
                         (('eyeLookDownLeft', 'eyeLookDownRight'), -eyes[:, 1])):
        for name in names:
            units[:, index(name)] = share.clip(0, 1)
    frames, _ = renderer.render(who, units, head)
    mesh = FaceMesh(max_faces=1, tracking=False)
    camera = canvas_camera(renderer)
    errors, gaze_errors, distances = [], [], []
    for frame, turned, eye in zip(frames, head, eyes):
        found = mesh.faces(on_canvas(frame))
        if not found:
            continue
        measures = measure_face(found[0], camera)
        roll, pitch, yaw = measures.pose.roll_pitch_yaw_rad
        # The renderer's pitch is positive up and its roll positive to the picture's right.
        errors.append(np.degrees([yaw - turned[0], -pitch - turned[1], -roll - turned[2]]))
        up = eye[1] * (EYE_UP_RANGE_RAD if eye[1] > 0 else EYE_DOWN_RANGE_RAD)
        truth = turned[0] + eye[0] * EYE_YAW_RANGE_RAD, turned[1] + up
        seen = FACING.T @ measures.gaze
        gaze_errors.append(np.degrees([math.atan2(seen[1], seen[0]) - truth[0],
                                       math.asin(float(seen[2])) - truth[1]]))
        # The face is about 0.1 m before the axis about which the head turns.
        distances.append(float(np.linalg.norm(measures.pose.position_m)))
    mesh.close()
    error, gaze = np.abs(errors), np.abs(gaze_errors)
    return {'pictures': n, 'found': len(errors) / n,
            'pose_mean_abs_deg': dict(zip(('yaw', 'pitch', 'roll'), error.mean(0).tolist())),
            'pose_p95_abs_deg': dict(zip(('yaw', 'pitch', 'roll'),
                                         np.percentile(error, 95, axis=0).tolist())),
            'gaze_mean_abs_deg': dict(zip(('yaw', 'pitch'), gaze.mean(0).tolist())),
            'distance_median_m': float(np.median(distances))}


def _clips(renderer: Renderer, options: Options) -> dict[str, Any]:
    """What the tracker says of clips, and what it costs."""
    rng = np.random.default_rng([options.seed, 2])
    held_out = renderer.people.split(held_out=True)
    tracker = FaceTracker(camera=canvas_camera(renderer))
    result: dict[str, Any] = {}
    cpu_s, updates, stamp_ns = 0.0, 0, GAP_NS
    for kind in CLIPS:
        hits = wrong_gestures = wrong_expressions = present = looking = pictures = 0
        for clip in range(options.clips):
            person = int(held_out[(clip * 7 + CLIPS.index(kind)) % len(held_out)])
            frames = list(perform(renderer, person, kind, rng))
            stamp_ns += GAP_NS
            sights: list[Sight] = []
            for at, frame in enumerate(frames):
                begun_s = time.process_time()
                sights.append(tracker.update(frame, stamp_ns + int(at / RATE_HZ * NS_PER_S)))
                cpu_s += time.process_time() - begun_s
                updates += 1
            stamp_ns += int(CLIP_S * NS_PER_S)
            mains = [sight.main for sight in sights]
            known = mains[int(0.5 * RATE_HZ):]
            present += sum(face is not None for face in known)
            pictures += len(known)
            acted = [face for face in mains[int((ACT_AT_S + 0.6) * RATE_HZ):] if face is not None]
            looking += _mostly([face.looking for face in acted])
            gestures = [face.gesture for face in mains if face is not None and face.gesture]
            expressions = [face.expression for face in acted]
            wanted = GESTURE_OF.get(kind, '')
            if wanted:
                hits += wanted in gestures
            elif kind in ('smile', 'frown', 'surprise'):
                hits += _mostly([name == kind for name in expressions])
            elif kind == 'look away':
                hits += _mostly([not face.looking for face in acted])
            wrong_gestures += any(gesture != wanted for gesture in gestures)
            # A second, not a picture, of what is not there is a mistake.
            wrong_expressions += max((_longest(expressions, name)
                                      for name in ('smile', 'frown', 'surprise') if name != kind),
                                     default=0) >= RATE_HZ
        result[kind] = {'clips': options.clips, 'recognised': hits / options.clips,
                        'wrong_gestures': wrong_gestures / options.clips,
                        'wrong_expressions': wrong_expressions / options.clips,
                        'present': present / pictures, 'looking': looking / options.clips}
        print(f'face: {kind} done', file=sys.stderr, flush=True)
    tracker.close()
    return {'clips': result, 'cpu_ms_per_picture': 1000.0 * cpu_s / updates,
            'cpu_share_at_10_hz': cpu_s / updates * RATE_HZ, 'pictures_timed': updates}


def _mostly(values: list[bool]) -> bool:
    """Whether more than half are true; False of none."""
    return 2 * sum(values) > len(values)


def _longest(names: list[str], name: str) -> int:
    """Length of the longest run of a name."""
    longest = run = 0
    for one in names:
        run = run + 1 if one == name else 0
        longest = max(longest, run)
    return longest


def photograph() -> NDArray[np.uint8] | None:
    """The astronaut of scikit-image's data (NASA, public domain); None if it is not installed."""
    spec = importlib.util.find_spec('skimage')
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / 'data' / 'astronaut.png'
    return read_image(path) if path.is_file() else None


def _nobody(options: Options) -> dict[str, Any]:
    """People seen where nobody is: noise of several grains, and smooth gradients."""
    rng = np.random.default_rng([options.seed, 3])
    tracker = FaceTracker()
    wrong = pictures = 0
    for grain in (1, 4, 16, 60):
        tracker.reset()
        for at in range(25):
            small = rng.integers(0, 256, (-(-PICTURE_HEIGHT // grain), -(-PICTURE_WIDTH // grain),
                                          3), np.uint8)
            frame = small.repeat(grain, 0).repeat(grain, 1)[:PICTURE_HEIGHT, :PICTURE_WIDTH]
            wrong += tracker.update(frame, (at + 1) * NS_PER_S // 10).main is not None
            pictures += 1
    tracker.close()
    return {'pictures': pictures, 'wrong': wrong}


def run(options: Options) -> dict[str, Any]:
    """Measure the tracker.

    Raises:
        PerceptionError: without mediapipe.
        FileNotFoundError: without baked people.
    """
    from interactive_avatar.training.render.renderer import Renderer

    result: dict[str, Any] = {'benchmark': 'face', **_as_dict(options), 'nobody': _nobody(options)}
    picture = photograph()
    if picture is not None:
        # A portrait's lens is long, and where the picture was cut from is not known.
        tracker = FaceTracker(replace(FaceOptions(), appear_s=0.0, horizontal_fov_deg=20.0))
        face = tracker.update(picture, NS_PER_S).main
        tracker.close()
        result['photograph'] = None if face is None else {
            'expression': face.expression, 'looking': face.looking,
            'roll_pitch_yaw_deg': [round(math.degrees(angle), 1) for angle
                                   in face.measures.pose.roll_pitch_yaw_rad]}
    renderer = Renderer(options.people)
    try:
        result['single'] = _single_pictures(renderer, options)
        result |= _clips(renderer, options)
    finally:
        renderer.close()
    _print(result)
    return result


def _as_dict(options: Options) -> dict[str, Any]:
    return {'people': options.people.name, 'poses': options.poses,
            'clips_of_each': options.clips, 'seed': options.seed, 'rate_hz': RATE_HZ,
            'picture': [PICTURE_WIDTH, PICTURE_HEIGHT], 'person_px': PERSON_PX}


def _print(result: dict[str, Any]) -> None:
    rows = [[kind, '' if kind in ('still', 'talk') else number(100 * one['recognised'], '%', 0),
             *(number(100 * one[name], '%', 0) for name in
               ('wrong_gestures', 'wrong_expressions', 'looking', 'present'))]
            for kind, one in result['clips'].items()]
    print(table(['clip', 'recognised', 'wrong gesture', 'wrong expression', 'looking',
                 'present'], rows))
    single = result['single']
    for name, title in (('pose_mean_abs_deg', 'head pose, mean absolute error'),
                        ('pose_p95_abs_deg', 'head pose, 95th percentile'),
                        ('gaze_mean_abs_deg', 'line of sight, mean absolute error')):
        print(f'{title}: ' + ', '.join(f'{axis} {value:.1f}°'
                                       for axis, value in single[name].items()))
    print(f'face found in {100 * single["found"]:.1f} % of {single["pictures"]} pictures; '
          f'somebody seen in {result["nobody"]["wrong"]} of {result["nobody"]["pictures"]} of '
          'nobody')
    print(f'photograph: {result.get("photograph", "scikit-image is not installed")}')
    print(f'{result["cpu_ms_per_picture"]:.1f} ms of one core per picture of {PICTURE_WIDTH}x'
          f'{PICTURE_HEIGHT}: {100 * result["cpu_share_at_10_hz"]:.1f} % at {RATE_HZ:.0f} Hz '
          f'(aim {100 * CPU_AIM_SHARE:.0f} %), N={result["pictures_timed"]}')
