# SPDX-License-Identifier: Apache-2.0
"""The face node on real topics, with its real eyes and the rendered film."""

from __future__ import annotations

import json
import math
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

from avatar_bringup.msg import UserPerception
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from interactive_avatar.media.picture import PictureError
from interactive_avatar.media.video import VideoReader
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.face import FaceNode
from interactive_avatar.nodes.messages import picture_of, to_time
from interactive_avatar.perception.mesh import mesh_missing

DATA = Path(__file__).parents[1] / 'data' / 'perception'
TRUTH = json.loads((DATA / 'users.json').read_text(encoding='utf-8'))
FRAME = 'user_camera_optical_frame'
needs_mesh = pytest.mark.skipif(bool(mesh_missing()), reason=mesh_missing())


def image(picture: NDArray[np.uint8], stamp_ns: int, encoding: str = 'bgr8') -> Image:
    """A camera's message."""
    message = Image(height=picture.shape[0], width=picture.shape[1], encoding=encoding,
                    step=picture.shape[1] * picture.shape[2])
    message.data = array('B', picture[..., ::-1].tobytes())
    message.header.stamp, message.header.frame_id = to_time(stamp_ns), FRAME
    return message


def cloud(face_m: float, stamp_ns: int, frame_id: str = FRAME) -> PointCloud2:
    """A wall 4 m away, with something nearer in the middle of the picture."""
    v, u = np.mgrid[0:192:4, 0:192:4]
    depth = np.full(u.shape, 4.0)
    depth[(abs(u - 96) < 40) & (abs(v - 96) < 60)] = face_m
    focal = TRUTH['focal_px']
    points = np.stack([(u - 96) / focal * depth, (v - 96) / focal * depth, depth], -1)
    message = PointCloud2(height=1, width=points.size // 3, point_step=12,
                          row_step=points.size * 4, is_dense=True)
    message.fields = [PointField(name=name, offset=4 * at, datatype=PointField.FLOAT32, count=1)
                      for at, name in enumerate('xyz')]
    message.data = array('B', points.astype('<f4').tobytes())
    message.header.stamp, message.header.frame_id = to_time(stamp_ns), frame_id
    return message


class Rig:
    """A face node and a friend that plays the camera."""

    def __init__(self, context: Any, **parameters: Any) -> None:
        self.node = FaceNode(context=context, namespace='eye',
                             parameters={'nice': 0, **parameters})
        self.friend = Node('friend', context=context, namespace='eye')
        self.heard: list[UserPerception] = []
        self.friend.create_subscription(UserPerception, 'perception', self.heard.append, 50)
        self.camera = self.friend.create_publisher(Image, 'user/image_raw', qos.IMAGE)
        self.info = self.friend.create_publisher(CameraInfo, 'user/camera_info', qos.IMAGE)
        self.points = self.friend.create_publisher(PointCloud2, 'user/points', qos.IMAGE)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.friend)

    def until(self, done: Callable[[], Any], timeout_s: float = 15.0) -> bool:
        """Spin until something is true."""
        deadline_s = time.monotonic() + timeout_s
        while not done() and time.monotonic() < deadline_s:
            self.executor.spin_once(timeout_sec=0.01)
        return bool(done())

    def show(self, picture: NDArray[np.uint8], stamp_ns: int) -> None:
        """Show a picture and wait until it has been looked at."""
        before = self.node.diagnostics.status().values
        seen = self.count(before)
        self.camera.publish(image(picture, stamp_ns))
        assert self.until(lambda: self.count(self.node.diagnostics.status().values) > seen)
        assert self.until(lambda: self.node._newest is None)

    @staticmethod
    def count(values: Any) -> int:
        return next((int(one.value) for one in values if one.key == 'pictures'), 0)

    def message(self) -> str:
        return str(self.node.diagnostics.status().message)

    def close(self) -> None:
        self.node.close()
        self.executor.shutdown()
        self.node.destroy_node()
        self.friend.destroy_node()


@pytest.fixture
def rig(context: Any) -> Iterator[Rig]:
    made = Rig(context, rate_hz=60.0, silent_s=1.0)
    assert made.until(lambda: made.node.state_label == 'active'
                      and made.camera.get_subscription_count()
                      and made.info.get_subscription_count())
    yield made
    made.close()


def calibration() -> CameraInfo:
    """The film's camera."""
    message = CameraInfo(height=192, width=192)
    focal = TRUTH['focal_px']
    message.k = [focal, 0.0, 96.0, 0.0, focal, 96.0, 0.0, 0.0, 1.0]
    return message


@needs_mesh
def test_a_person_comes_nods_looks_away_and_the_camera_stops(rig: Rig) -> None:
    rig.info.publish(calibration())
    rig.until(lambda: rig.node._calibration is not None)
    stamp_ns = time.time_ns()
    clips = [one['clip'] for one in TRUTH['pictures']]
    for at, frame in enumerate(VideoReader(DATA / 'users.mp4')):
        if clips[at] in ('nod', 'look away'):
            rig.show(frame, stamp_ns)
            # Within the second they follow each other; a cut is a pause.
            stamp_ns += 100_000_000
    assert rig.until(lambda: rig.heard and not rig.heard[-1].looking)
    heard = rig.heard
    assert all(message.source == 'camera' and message.event == UserPerception.NONE
               for message in heard)
    seen = [message for message in heard if message.face_present]
    assert [message.gesture for message in heard if message.gesture] == ['nod']
    levels = [message.engagement_level for message in seen]
    assert UserPerception.ENGAGED in levels and levels[-1] in (
        UserPerception.DISENGAGING, UserPerception.DISENGAGED)
    one = next(m for m in seen if m.engagement_level == UserPerception.ENGAGED)
    assert one.looking and one.engagement == 1.0 and one.people == 1
    assert one.user_id == 'person_1' and one.header.frame_id == FRAME
    # The renderer's camera stands 1.5 m before the head.
    assert one.distance_m == pytest.approx(1.45, abs=0.25)
    assert one.head_pose.position.z == pytest.approx(one.distance_m, abs=0.05)
    orientation = one.head_pose.orientation
    assert math.hypot(orientation.x, orientation.y, orientation.z,
                      orientation.w) == pytest.approx(1.0)
    # When the pictures stop, nothing is known: that is not "the user has left".
    assert rig.until(lambda: rig.heard[-1].engagement_level == UserPerception.ENGAGEMENT_UNKNOWN)
    assert math.isnan(rig.heard[-1].engagement) and not rig.heard[-1].face_present
    assert math.isnan(rig.heard[-1].head_pose.position.x)
    assert 'is the camera running?' in rig.message()


@needs_mesh
def test_who_leaves_is_told_and_bad_pictures_are_refused(rig: Rig) -> None:
    frame = next(iter(VideoReader(DATA / 'users.mp4')))
    stamp_ns = time.time_ns()
    for _ in range(6):
        rig.show(frame, stamp_ns)
        stamp_ns += 100_000_000
    assert rig.until(lambda: any(message.face_present for message in rig.heard))
    strange = image(frame, stamp_ns)
    strange.encoding = '32FC3'
    rig.camera.publish(strange)
    assert rig.until(lambda: "'32FC3' are not taken: send one of rgb8" in rig.message())
    short = image(frame, stamp_ns)
    short.height = 4000
    rig.camera.publish(short)
    assert rig.until(lambda: 'does not fit' in rig.message())
    for _ in range(20):
        rig.show(np.zeros_like(frame), stamp_ns)
        stamp_ns += 100_000_000
    assert rig.until(lambda: not rig.heard[-1].face_present)
    assert rig.heard[-1].engagement_level == UserPerception.DISENGAGED
    assert rig.heard[-1].people == 0 and rig.node.state_label == 'active'
    # Symmetric: down and up again, twice.
    for _ in range(2):
        rig.node.trigger_deactivate()
        rig.node.trigger_cleanup()
        assert rig.camera.get_subscription_count() == 0
        rig.node.trigger_configure()
        rig.node.trigger_activate()
        assert rig.node.state_label == 'active'


def stand_in_for_sensor_msgs_py() -> ModuleType:
    """``read_points_numpy`` as ROS documents it, for machines without ROS 2 from apt."""
    module = ModuleType('sensor_msgs_py.point_cloud2')

    def read_points_numpy(cloud: PointCloud2, field_names: list[str] | None = None,
                          skip_nans: bool = False) -> NDArray[np.float32]:
        assert all(field.datatype == PointField.FLOAT32 for field in cloud.fields), \
            'All fields need to have the same datatype.'
        table = np.frombuffer(cloud.data, '<f4').reshape(-1, cloud.point_step // 4)
        names = [field.name for field in cloud.fields]
        picked = table[:, [names.index(name) for name in field_names or names]]
        return picked[np.isfinite(picked).all(axis=1)] if skip_nans else picked

    module.read_points_numpy = read_points_numpy  # type: ignore[attr-defined]
    return module


@needs_mesh
def test_a_depth_camera_gives_the_distance(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import sensor_msgs_py.point_cloud2  # noqa: F401
    except ImportError:
        monkeypatch.setitem(sys.modules, 'sensor_msgs_py', ModuleType('sensor_msgs_py'))
        monkeypatch.setitem(sys.modules, 'sensor_msgs_py.point_cloud2',
                            stand_in_for_sensor_msgs_py())
    monkeypatch.setattr('interactive_avatar.nodes.face.CLOUD_PERIOD_S', 0.0)
    rig = Rig(context, rate_hz=60.0, keep_telling_s=0.05)
    try:
        assert rig.until(lambda: rig.node.state_label == 'active'
                         and rig.points.get_subscription_count()
                         and rig.camera.get_subscription_count())
        rig.info.publish(calibration())
        frame = next(iter(VideoReader(DATA / 'users.mp4')))
        stamp_ns = time.time_ns()

        def look(distance_m: float, frame_id: str = FRAME) -> None:
            nonlocal stamp_ns
            for _ in range(8):
                rig.points.publish(cloud(distance_m, stamp_ns, frame_id))
                rig.until(lambda: False, 0.05)
                rig.show(frame, stamp_ns)
                stamp_ns += 100_000_000

        look(1.1)
        assert rig.until(lambda: rig.heard
                         and rig.heard[-1].distance_m == pytest.approx(1.1, abs=0.05))
        look(1.1, 'another_frame')
        assert rig.until(lambda: rig.heard[-1].distance_m > 1.2)
        assert "user/points is in frame 'another_frame'" in rig.message()
    finally:
        rig.close()


def test_without_mediapipe_the_node_says_so_and_lives(context: Any,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('interactive_avatar.nodes.face.mesh_missing',
                        lambda: 'faces cannot be seen: pip install mediapipe')
    rig = Rig(context)
    try:
        assert rig.until(lambda: rig.node.state_label == 'active'
                         and rig.camera.get_subscription_count())
        rig.camera.publish(image(np.zeros((64, 64, 3), np.uint8), time.time_ns()))
        assert rig.until(lambda: 'pip install mediapipe' in rig.message())
        assert rig.node.state_label == 'active' and not rig.heard
    finally:
        rig.close()


def test_pictures_of_unknown_encodings_go_through_cv_bridge() -> None:
    pytest.importorskip('cv_bridge')
    message = Image(height=4, width=4, encoding='bayer_rggb8', step=4)
    message.data = array('B', bytes([200]) * 16)
    assert picture_of(message).shape == (4, 4, 3)
    message.encoding = 'no_such_encoding'
    with pytest.raises(PictureError, match='no_such_encoding'):
        picture_of(message)
