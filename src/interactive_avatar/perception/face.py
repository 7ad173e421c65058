# SPDX-License-Identifier: Apache-2.0
"""The avatar's eyes: who is there, where they look, what their faces do; no ROS.

`FaceTracker` takes pictures one by one and says what it saw. Frames of reference follow REP-103:
the camera's is optical (x to the picture's right, y down, z away from the camera), a face's is
that of ROS4HRI's ``face_<id>`` (origin between the eyes, x out of the face, y to the person's
left, z to the crown). The angles of `HeadPose` are zero for a face that is turned straight
against the camera's viewing direction.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from transforms3d.euler import mat2euler
from transforms3d.quaternions import mat2quat

from interactive_avatar.perception.mesh import FaceFinder, FaceMesh

Floats = NDArray[np.float64]

NS_PER_S: Final = 1_000_000_000
TEMPLATE: Final = Path(__file__).with_name('face_template.json')
# Distance of the outer corners of the eyes in adults (biectocanthal breadth; Poston 2000,
# NATICK/TR-00: mean 90 mm in men, 86 mm in women).
EYE_SPAN_M: Final = 0.088
# Radius of the eyeball (Bekerman et al. 2014: mean axial length 24 mm).
EYE_RADIUS_M: Final = 0.012
# Up and down, lids and iris are too close for full trust in what the mesh says.
EYE_PITCH_TRUST: Final = 0.6
# Turned further than this, the irises say nothing and the head alone counts.
IRIS_MOST_YAW_RAD: Final = math.radians(35.0)
# Turned further than this, expressions are not read.
EXPRESSION_MOST_YAW_RAD: Final = math.radians(32.0)
EXPRESSION_MOST_PITCH_RAD: Final = math.radians(24.0)
# Axes of a face that looks straight into the camera, as columns in the optical frame.
FACING: Final = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]])

# Landmarks of MediaPipe's canonical face mesh. "Right" is the person's right.
SELLION: Final = 168
EYE_OUTER: Final = (33, 263)
EYE_INNER: Final = (133, 362)
LID_TOP: Final = (159, 386)
LID_BOTTOM: Final = (145, 374)
IRIS: Final = (468, 473)
MOUTH_CORNERS: Final = (61, 291)
INNER_LIPS: Final = (13, 14)
BROWS: Final = (105, 334)
# What keeps its place when the face moves: forehead, bridge and sides of the nose, corners of the
# eyes, temples, cheekbones.
RIGID: Final = (10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 129, 358, 33, 133, 263, 362,
                109, 338, 67, 297, 103, 332, 127, 356, 234, 454, 116, 345, 143, 372, 122, 351, 193,
                417)


class Engagement(IntEnum):
    """How far a person is engaged with the avatar: the levels of REP-155, with its numbers."""

    UNKNOWN = 0
    DISENGAGED = 1
    ENGAGING = 2
    ENGAGED = 3
    DISENGAGING = 4


# The levels as one number from 0 to 1; UNKNOWN has none.
ENGAGEMENT_SHARE: Final[Mapping[int, float]] = {
    Engagement.DISENGAGED: 0.0, Engagement.DISENGAGING: 0.25, Engagement.ENGAGING: 0.5,
    Engagement.ENGAGED: 1.0}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        fx, fy: focal lengths, pixels.
        cx, cy: principal point, pixels.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def from_field_of_view(cls, width: int, height: int, horizontal_deg: float) -> Camera:
        """A camera of which only the horizontal field of view is known, in degrees."""
        focal = width / 2.0 / math.tan(math.radians(horizontal_deg) / 2.0)
        return cls(focal, focal, width / 2.0, height / 2.0)

    def scaled(self, factor: float) -> Camera:
        """The same camera for a picture of other size."""
        return Camera(self.fx * factor, self.fy * factor, self.cx * factor, self.cy * factor)


@dataclass(frozen=True)
class FaceOptions:
    """How the tracker decides.

    Attributes:
        horizontal_fov_deg: of a camera that has no calibration.
        max_faces: how many people are told apart at most.
        max_side_px: larger pictures are made smaller first.
        look_deg: a line of sight this close to the camera is a look at the avatar.
        look_away_deg: one further off than this is not; between both nothing changes.
        engaging_s: looking for so long begins an engagement.
        engaged_s: looking for so long completes it.
        away_s: looking away for so long begins to end it.
        disengaged_s: looking away for so long, in all, ends it.
        appear_s: a face must be seen for so long to be a person.
        lost_s: a person who is not seen for so long has left.
        several_s: how often one looks for further people while one face is followed.
    """

    horizontal_fov_deg: float = 62.0
    max_faces: int = 3
    max_side_px: int = 640
    look_deg: float = 16.0
    look_away_deg: float = 23.0
    engaging_s: float = 0.3
    engaged_s: float = 1.0
    away_s: float = 1.0
    disengaged_s: float = 3.5
    appear_s: float = 0.3
    lost_s: float = 1.5
    several_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ValueError: naming the option, its value and its range.
        """
        for name, low, high in (
                ('horizontal_fov_deg', 10.0, 170.0), ('max_faces', 1, 16),
                ('max_side_px', 64, 4096), ('look_deg', 1.0, 90.0), ('look_away_deg', 1.0, 90.0),
                ('engaging_s', 0.0, 60.0), ('engaged_s', 0.0, 60.0), ('away_s', 0.0, 60.0),
                ('disengaged_s', 0.0, 600.0), ('appear_s', 0.0, 60.0), ('lost_s', 0.1, 60.0),
                ('several_s', 0.0, 60.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f'{name} is {value}, need {low} to {high}')
        if self.look_away_deg < self.look_deg:
            raise ValueError(f'look_away_deg {self.look_away_deg} is less than look_deg '
                             f'{self.look_deg}: need look_deg <= look_away_deg')
        if self.disengaged_s < self.away_s or self.engaged_s < self.engaging_s:
            raise ValueError(f'need engaging_s <= engaged_s and away_s <= disengaged_s, got '
                             f'{self.engaging_s}, {self.engaged_s}, {self.away_s}, '
                             f'{self.disengaged_s}')

    @classmethod
    def names(cls) -> list[str]:
        """Names of all options."""
        return [item.name for item in fields(cls)]


@dataclass(frozen=True)
class HeadPose:
    """Where a head is and where it is turned.

    Attributes:
        position_m: float64 [3], origin of the face frame in the camera's optical frame, metres.
        rotation: float64 [3, 3], axes of the face frame as columns in the optical frame.
    """

    position_m: Floats
    rotation: Floats

    @property
    def roll_pitch_yaw_rad(self) -> tuple[float, float, float]:
        """REP-103 angles, zero when the face is turned straight against the viewing direction.

        Roll is positive when the crown tips to the person's right, pitch when the nose goes
        down, yaw when the person turns to their left (the picture's right).
        """
        roll, pitch, yaw = mat2euler(FACING.T @ self.rotation, 'sxyz')
        return float(roll), float(pitch), float(yaw)

    @property
    def quaternion_xyzw(self) -> tuple[float, float, float, float]:
        """The rotation as ROS writes it."""
        w, x, y, z = mat2quat(self.rotation)
        return float(x), float(y), float(z), float(w)


@dataclass(frozen=True)
class Measures:
    """One face in one picture, as measured.

    Attributes:
        pose: of the head.
        gaze: float64 [3], unit vector along the line of sight in the optical frame.
        off_camera_rad: angle between the line of sight and the direction to the camera.
        eye_opening_m: mean height of the eyes.
        corner_lift_m: height of the mouth's corners above the middle of the inner lips.
        lip_gap_m: distance of the inner lips.
        brow_height_m: mean height of the brows above the corners of the eyes.
        box: left, top, right, bottom in pixels.
    """

    pose: HeadPose
    gaze: Floats
    off_camera_rad: float
    eye_opening_m: float
    corner_lift_m: float
    lip_gap_m: float
    brow_height_m: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Face:
    """A person as the tracker knows them now.

    Attributes:
        person: number of the person, from 1; one who comes back is a new one.
        measures: of the newest picture in which the face was seen.
        looking: whether they look at the avatar.
        engagement: see `Engagement`.
        expression: neutral, smile, frown or surprise; '' while it cannot be told.
        gesture: nod or shake if one was recognised with this picture, else ''.
        distance_m: from the camera, estimated from the size of the face.
        seen_s: how long the person has been there.
    """

    person: int
    measures: Measures
    looking: bool
    engagement: Engagement
    expression: str
    gesture: str
    distance_m: float
    seen_s: float


@dataclass(frozen=True)
class Sight:
    """What one picture showed.

    Attributes:
        stamp_ns: of the picture.
        faces: the people present, whom the avatar should attend to first.
        arrived: numbers of those who came with this picture.
        left: numbers of those who left with it.
    """

    stamp_ns: int
    faces: tuple[Face, ...]
    arrived: tuple[int, ...] = ()
    left: tuple[int, ...] = ()

    @property
    def main(self) -> Face | None:
        """The person to attend to; None if nobody is there."""
        return self.faces[0] if self.faces else None


# --- geometry ------------------------------------------------------------------------------------

@lru_cache(maxsize=1)
def load_template() -> Mapping[int, Floats]:
    """Mean places of landmarks in the face frame, metres, by landmark.

    ``avatar bench face --make-template`` measures them on rendered people at rest.
    """
    data = json.loads(TEMPLATE.read_text(encoding='utf-8'))
    return {int(name): np.array(place, np.float64) / 1000.0
            for name, place in data['points_mm'].items()}


@lru_cache(maxsize=1)
def _rigid_points() -> tuple[Floats, Floats]:
    template = load_template()
    points = np.array([template[index] for index in RIGID])
    middle = points.mean(axis=0)
    return points - middle, middle


def fit_face(points: Floats) -> tuple[float, Floats, Floats]:
    """Lay the template over landmarks (Umeyama 1991: similarity by least squares).

    Args:
        points: float64 [478, 3] pixels, see `FaceMesh.faces`.

    Returns:
        Scale in pixels per metre, rotation [3, 3] (face axes as columns), and the place of the
        face frame's origin in pixels [3].
    """
    template, template_middle = _rigid_points()
    seen = points[list(RIGID)]
    middle = seen.mean(axis=0)
    u, spread, vt = np.linalg.svd((seen - middle).T @ template)
    flip = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    rotation = (u * flip) @ vt
    scale = float((spread * flip).sum() / (template ** 2).sum())
    return scale, rotation, middle - scale * rotation @ template_middle


def _turn_to(direction: Floats) -> Floats:
    """The smallest rotation that takes the optical axis to a unit vector, [3, 3]."""
    x, y, z = direction
    cross = np.array([[0.0, 0.0, x], [0.0, 0.0, y], [-x, -y, 0.0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1.0 + z))


def measure_face(points: Floats, camera: Camera) -> Measures:
    """Measure one face.

    The mesh is close to a parallel projection along the ray on which the face lies, so the
    rotation found in the picture is turned by that ray.

    Args:
        points: float64 [478, 3] pixels, see `FaceMesh.faces`.
        camera: of the picture.
    """
    scale, seen_rotation, origin = fit_face(points)
    ray = np.array([(origin[0] - camera.cx) / camera.fx, (origin[1] - camera.cy) / camera.fy, 1.0])
    depth_m = math.sqrt(camera.fx * camera.fy) / scale
    direction = ray / np.linalg.norm(ray)
    rotation = _turn_to(direction) @ seen_rotation
    pose = HeadPose(ray * depth_m, rotation)
    # From here on in the face frame, metres: x out of the face, y to the person's left, z up.
    face = (points - origin) @ seen_rotation / scale
    template = load_template()

    def middle_of(pairs: tuple[tuple[int, int], ...]) -> Floats:
        return np.asarray(face[[index for pair in pairs for index in pair]].mean(axis=0))

    rest = (np.mean([template[index] for index in IRIS], axis=0)
            - np.mean([template[index] for index in EYE_OUTER + EYE_INNER], axis=0))
    off = middle_of((IRIS,)) - middle_of((EYE_OUTER, EYE_INNER)) - rest
    opening_m = float(np.mean([np.linalg.norm(face[top] - face[bottom])
                               for top, bottom in zip(LID_TOP, LID_BOTTOM)]))
    yaw = math.asin(float(np.clip(off[1] / EYE_RADIUS_M, -0.9, 0.9)))
    pitch = EYE_PITCH_TRUST * math.asin(float(np.clip(off[2] / EYE_RADIUS_M, -0.9, 0.9)))
    head_yaw = pose.roll_pitch_yaw_rad[2]
    if abs(head_yaw) > IRIS_MOST_YAW_RAD:
        yaw = pitch = 0.0
    sight = np.array([math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw),
                      math.sin(pitch)])
    gaze = rotation @ sight
    off_camera = math.acos(float(np.clip(-gaze @ direction, -1.0, 1.0)))
    corners, lips = face[list(MOUTH_CORNERS)], face[list(INNER_LIPS)]
    outline = points[:, :2]
    return Measures(
        pose=pose, gaze=gaze, off_camera_rad=off_camera, eye_opening_m=opening_m,
        corner_lift_m=float(corners[:, 2].mean() - lips[:, 2].mean()),
        lip_gap_m=float(np.linalg.norm(lips[0] - lips[1])),
        brow_height_m=float(face[list(BROWS), 2].mean() - face[list(EYE_OUTER), 2].mean()),
        box=(float(outline[:, 0].min()), float(outline[:, 1].min()),
             float(outline[:, 0].max()), float(outline[:, 1].max())))


# --- what happens over time ----------------------------------------------------------------------

class EngagementLevels:
    """REP-155 engagement from looks, with hysteresis in angle and time."""

    def __init__(self, options: FaceOptions) -> None:
        self._options = options
        self.looking = False
        self.level = Engagement.UNKNOWN
        self._since_s: float | None = None

    def push(self, now_s: float, off_camera_rad: float) -> Engagement:
        """Take the angle between the line of sight and the camera; returns the level."""
        options = self._options
        limit_deg = options.look_away_deg if self.looking else options.look_deg
        looking = math.degrees(off_camera_rad) <= limit_deg
        if self._since_s is None or looking != self.looking:
            self.looking, self._since_s = looking, now_s
        lasted_s = now_s - self._since_s
        level = self.level
        if looking:
            if level in (Engagement.ENGAGING, Engagement.DISENGAGING, Engagement.ENGAGED):
                # One who was engaged and looks back is so again at once.
                if level is Engagement.DISENGAGING or lasted_s >= options.engaged_s:
                    level = Engagement.ENGAGED
            elif lasted_s >= options.engaged_s:
                level = Engagement.ENGAGED
            elif lasted_s >= options.engaging_s:
                level = Engagement.ENGAGING
            elif level is Engagement.UNKNOWN:
                level = Engagement.DISENGAGED
        elif level is Engagement.ENGAGED and lasted_s >= options.away_s:
            level = Engagement.DISENGAGING
        elif level is Engagement.UNKNOWN or (
                level is Engagement.ENGAGING and lasted_s >= options.engaging_s) or (
                lasted_s >= options.disengaged_s):
            level = Engagement.DISENGAGED
        self.level = level
        return level


class HeadGestures:
    """Recognises nods and shakes in the angles of a head, sampled eight times a second or more.

    A gesture is three swings to and fro of `SWING_RAD` or more within `WINDOW_S`, about one axis
    clearly more than about the other; a single clear dip of the head is a nod as well.
    """

    WINDOW_S: Final = 1.7
    SWING_RAD: Final = math.radians(2.8)
    DIP_RAD: Final = math.radians(5.5)
    DIP_S: Final = 0.9
    # Slower movement, as while talking, is no gesture.
    SWING_MOST_S: Final = 0.5
    SWINGS: Final = 3
    # The other axis may move by this share of the main one.
    CROSS_SHARE: Final = 0.6
    # One gesture lasts until the head has been still for so long.
    STILL_S: Final = 0.45
    GAP_S: Final = 0.5

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, float]] = deque()
        self._goes_on = False

    def push(self, now_s: float, pitch_rad: float, yaw_rad: float) -> str:
        """Take the next angles; returns nod or shake when one is recognised, else ''."""
        samples = self._samples
        if samples and now_s - samples[-1][0] > self.GAP_S:
            samples.clear()
        samples.append((now_s, pitch_rad, yaw_rad))
        while now_s - samples[0][0] > self.WINDOW_S:
            samples.popleft()
        track = np.array(samples)
        if self._goes_on:
            last = track[track[:, 0] >= now_s - self.STILL_S - 1e-6]
            if last[-1, 0] - last[0, 0] < 0.7 * self.STILL_S or \
                    np.ptp(last[:, 1:], axis=0).max() >= self.SWING_RAD:
                return ''
            self._goes_on = False
            samples.clear()
            samples.extend(tuple(sample) for sample in last.tolist())
            return ''
        if len(samples) < 4:
            return ''
        pitch_range, yaw_range = np.ptp(track[:, 1]), np.ptp(track[:, 2])
        found = ''
        if yaw_range <= self.CROSS_SHARE * pitch_range:
            swings = self.swings(track[:, 0], track[:, 1])
            if self._is_series(swings) or self._is_dip(swings):
                found = 'nod'
        elif pitch_range <= self.CROSS_SHARE * yaw_range and \
                self._is_series(self.swings(track[:, 0], track[:, 2])):
            found = 'shake'
        self._goes_on = bool(found)
        return found

    def swings(self, times_s: Floats, angles_rad: Floats) -> list[tuple[float, float, float]]:
        """Movements between turning points, (begin s, end s, angle), of `SWING_RAD` or more."""
        turns: list[tuple[float, float]] = [(float(times_s[0]), float(angles_rad[0]))]
        direction = 0
        for at_s, angle in zip(times_s.tolist(), angles_rad.tolist()):
            last = turns[-1]
            if direction == 0:
                # Until the first movement is clear, its beginning is the latest opposite extreme.
                low = min((a, -t) for t, a in zip(times_s, angles_rad) if t <= at_s)
                high = max((a, t) for t, a in zip(times_s, angles_rad) if t <= at_s)
                if angle - low[0] >= self.SWING_RAD:
                    turns, direction = [(-low[1], low[0]), (at_s, angle)], 1
                elif high[0] - angle >= self.SWING_RAD:
                    turns, direction = [(high[1], high[0]), (at_s, angle)], -1
            elif (angle - last[1]) * direction >= 0:
                turns[-1] = (at_s, angle)
            elif abs(angle - last[1]) >= self.SWING_RAD:
                turns.append((at_s, angle))
                direction = -direction
        if direction == 0:
            return []
        return [(begin[0], end[0], end[1] - begin[1]) for begin, end in pairwise(turns)]

    def _is_series(self, swings: Sequence[tuple[float, float, float]]) -> bool:
        """Whether the last swings are quick enough, and enough of them."""
        last = swings[-self.SWINGS:]
        return len(last) == self.SWINGS and all(
            end_s - begin_s <= self.SWING_MOST_S for begin_s, end_s, _ in last)

    def _is_dip(self, swings: Sequence[tuple[float, float, float]]) -> bool:
        """Whether the head went down and came back at once (pitch is positive downward)."""
        if len(swings) != 2:
            return False
        (begin_s, _, down), (_, end_s, up) = swings
        return (down >= self.DIP_RAD and up <= -self.DIP_RAD and end_s - begin_s <= self.DIP_S
                and abs(down + up) <= 0.4 * down)


class Expressions:
    """Tells smile, frown and surprise from a face at rest.

    What is at rest differs from person to person, so it is learned while the face is neutral,
    quickly at first, and hardly while it is not. The height of the mouth's corners is held within
    what faces at rest have (limits from rendered people), so that somebody who comes in smiling
    is seen to smile.
    """

    SMOOTHING_S: Final = 0.25
    # A face must have been seen for so long before a frown or surprise can be told.
    KNOWN_S: Final = 1.0
    # Time constants of learning: in the first second, neutral, and with an expression.
    LEARNING_S: Final = (1.0, 4.0, 60.0)
    REST_LIFT_M: Final = (0.0020, 0.0040)
    SMILE_M: Final = (0.0022, 0.0013)      # enter, leave: rise of the mouth's corners
    FROWN_M: Final = (0.0018, 0.0010)      # fall of the mouth's corners
    SURPRISE_BROW_M: Final = (0.0014, 0.0008)
    SURPRISE_GAP_M: Final = (0.0045, 0.0030)

    def __init__(self) -> None:
        self.name = ''
        self._smooth: Floats | None = None
        self._rest = np.zeros(2)
        self._last_s = self._first_s = 0.0

    def push(self, now_s: float, measures: Measures) -> str:
        """Take the next measures; returns the expression, '' while the face is turned away."""
        _, pitch, yaw = measures.pose.roll_pitch_yaw_rad
        if abs(yaw) > EXPRESSION_MOST_YAW_RAD or abs(pitch) > EXPRESSION_MOST_PITCH_RAD:
            self.name = ''
            return self.name
        values = np.array([measures.corner_lift_m, measures.brow_height_m, measures.lip_gap_m])
        if self._smooth is None:
            self._smooth, self._rest = values, values[:2].copy()
            self._first_s = self._last_s = now_s
        passed_s = max(now_s - self._last_s, 0.0)
        self._last_s = now_s
        self._smooth = self._smooth + (values - self._smooth) * (
            1.0 - math.exp(-passed_s / self.SMOOTHING_S))
        learning_s = self.LEARNING_S[0 if now_s - self._first_s < self.KNOWN_S else
                                     1 if self.name == 'neutral' else 2]
        self._rest = self._rest + (values[:2] - self._rest) * (
            1.0 - math.exp(-passed_s / learning_s))
        rest_lift = float(np.clip(self._rest[0], *self.REST_LIFT_M))
        rest_brow = float(self._rest[1])
        lift, brow, gap = (float(value) for value in self._smooth)
        certain = now_s - self._first_s >= self.KNOWN_S

        def above(value: float, limits: tuple[float, float], name: str) -> bool:
            return value >= limits[1 if self.name == name else 0]

        if above(lift - rest_lift, self.SMILE_M, 'smile'):
            self.name = 'smile'
        elif certain and above(brow - rest_brow, self.SURPRISE_BROW_M, 'surprise') and \
                above(gap, self.SURPRISE_GAP_M, 'surprise'):
            self.name = 'surprise'
        elif certain and above(rest_lift - lift, self.FROWN_M, 'frown'):
            self.name = 'frown'
        else:
            self.name = 'neutral'
        return self.name


@dataclass
class _Person:
    """What is remembered of one person between pictures."""

    options: FaceOptions
    first_s: float
    seen_s: float
    measures: Measures
    number: int = 0
    gesture: str = ''
    eyes_open_m: float = 0.0
    off_camera_rad: float = math.pi
    engagement: EngagementLevels = field(init=False)
    gestures: HeadGestures = field(default_factory=HeadGestures)
    expressions: Expressions = field(default_factory=Expressions)

    def __post_init__(self) -> None:
        self.engagement = EngagementLevels(self.options)

    def take(self, now_s: float, measures: Measures) -> None:
        """Take what a picture showed of this person."""
        self.seen_s, self.measures = now_s, measures
        # A blink hides the irises: the line of sight stays what it was.
        self.eyes_open_m = max(measures.eye_opening_m, 0.995 * self.eyes_open_m)
        if measures.eye_opening_m >= 0.5 * self.eyes_open_m:
            self.off_camera_rad = measures.off_camera_rad
        self.engagement.push(now_s, self.off_camera_rad)
        _, pitch, yaw = measures.pose.roll_pitch_yaw_rad
        self.gesture = self.gestures.push(now_s, pitch, yaw)
        self.expressions.push(now_s, measures)

    def told(self) -> Face:
        """The person as the rest of the system sees them."""
        return Face(self.number, self.measures, self.engagement.looking, self.engagement.level,
                    self.expressions.name, self.gesture,
                    float(np.linalg.norm(self.measures.pose.position_m)),
                    self.seen_s - self.first_s)


class FaceTracker:
    """Follows the people in a stream of pictures. One thread at a time may call.

    Args:
        options: how it decides.
        open_finder: makes what finds faces, at the first picture; MediaPipe's mesh if None.
        camera: calibration for the size of pictures that come; from the field of view if None.

    Raises:
        ValueError: on options that cannot work.
    """

    # A longer pause between pictures, or a stamp from the past, starts the tracker anew.
    PAUSE_S: Final = 3.0

    def __init__(self, options: FaceOptions | None = None,
                 open_finder: Callable[[FaceOptions], FaceFinder] | None = None,
                 camera: Camera | None = None) -> None:
        self.options = options or FaceOptions()
        self.camera = camera
        self._open = open_finder or (lambda chosen: FaceMesh(chosen.max_faces))
        self._finder: FaceFinder | None = None
        self._numbers = 0
        self.reset()

    def reset(self) -> None:
        """Forget everybody."""
        self._people: list[_Person] = []
        self._main: int | None = None
        self._last_s: float | None = None
        self._several_s = -math.inf
        self._crowd = False

    def close(self) -> None:
        """Free what finds faces; the next picture opens it again."""
        if self._finder is not None:
            self._finder.close()
            self._finder = None

    def update(self, frame: NDArray[np.uint8], stamp_ns: int) -> Sight:
        """Look at the next picture.

        Args:
            frame: uint8 [H, W, 3] RGB.
            stamp_ns: when it was taken.

        Returns:
            Who is there and what they do.

        Raises:
            PerceptionError: if the frame is of another kind, or the finder does not start.
        """
        now_s = stamp_ns / NS_PER_S
        left: list[int] = []
        if self._last_s is not None and not 0.0 <= now_s - self._last_s <= self.PAUSE_S:
            left = [person.number for person in self._people if person.number]
            self.reset()
        self._last_s = now_s
        if self._finder is None:
            self._finder = self._open(self.options)
        small, factor = shrink(frame, self.options.max_side_px)
        several = self._crowd or now_s - self._several_s >= self.options.several_s
        found = self._finder.faces(small, several and self.options.max_faces > 1)
        if several:
            self._several_s, self._crowd = now_s, len(found) > 1
        camera = self.camera or Camera.from_field_of_view(
            frame.shape[1], frame.shape[0], self.options.horizontal_fov_deg)
        arrived = self._match([measure_face(points / factor, camera) for points in found], now_s)
        for person in list(self._people):
            away_s = now_s - person.seen_s
            if away_s > (self.options.lost_s if person.number else self.options.appear_s):
                self._people.remove(person)
                if person.number:
                    left.append(person.number)
        faces = [person.told() for person in self._people if person.number]
        faces.sort(key=self._rank, reverse=True)
        self._main = faces[0].person if faces else None
        return Sight(stamp_ns, tuple(faces), tuple(arrived), tuple(left))

    def _rank(self, face: Face) -> tuple[float, float]:
        """Whom to attend to: the most engaged; the present one if equal; the nearest."""
        share = ENGAGEMENT_SHARE.get(face.engagement, 0.0)
        return share + 0.3 * (face.person == self._main), -face.distance_m

    def _match(self, seen: list[Measures], now_s: float) -> list[int]:
        """Give each face to the person who was nearest to its place; returns who has come."""
        def apart(person: _Person, measures: Measures) -> float:
            a, b = person.measures.box, measures.box
            size = max(a[2] - a[0], b[2] - b[0], 1.0)
            return math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2.0 / size

        for person in self._people:
            person.gesture = ''
        pairs = sorted(((apart(person, measures), p, m)
                        for p, person in enumerate(self._people)
                        for m, measures in enumerate(seen)))
        known: set[int] = set()
        taken: set[int] = set()
        for distance, p, m in pairs:
            # Further than its own width a face does not get from one picture to the next.
            if distance <= 1.0 and p not in known and m not in taken:
                known.add(p)
                taken.add(m)
                self._people[p].take(now_s, seen[m])
        for m, measures in enumerate(seen):
            if m not in taken:
                person = _Person(self.options, now_s, now_s, measures)
                person.take(now_s, measures)
                self._people.append(person)
        arrived = []
        for person in self._people:
            if not person.number and person.seen_s - person.first_s >= self.options.appear_s:
                self._numbers += 1
                person.number = self._numbers
                arrived.append(person.number)
        return arrived


def shrink(frame: NDArray[np.uint8], max_side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Make a large picture smaller; returns it and the factor of its sides."""
    longest = max(frame.shape[:2])
    if longest <= max_side_px:
        return frame, 1.0
    import cv2
    factor = max_side_px / longest
    size = (max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor)))
    resized: Any = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8), factor
