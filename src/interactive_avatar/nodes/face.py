# SPDX-License-Identifier: Apache-2.0
"""The face node: the camera's pictures in; who is there, where they look and what they do out.

A thin adapter over `perception.FaceTracker`, which runs in a thread of its own and sees only the
newest picture. The models are loaded with the first picture, so that without a camera the node
costs next to nothing; without mediapipe it says so and the rest of the avatar lives on.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from avatar_bringup.msg import UserPerception
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from interactive_avatar.media.picture import PictureError
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.base import AvatarNode, be_nice, run_node
from interactive_avatar.nodes.diagnostics import WARN
from interactive_avatar.nodes.messages import picture_of, to_ns, to_time
from interactive_avatar.nodes.options import option
from interactive_avatar.perception import (
    ENGAGEMENT_SHARE,
    Camera,
    Face,
    FaceOptions,
    FaceTracker,
    PerceptionError,
    Sight,
    distance_in_box,
    mesh_missing,
)

SOURCE = 'camera'
CHECK_PERIOD_S = 1.0
# Clouds are read so often, and an older one says nothing of the picture.
CLOUD_PERIOD_S = 0.25
CLOUD_MOST_AGE_NS = 500_000_000
# A source without a clock stamps with 0: then the time of arrival counts.
NO_STAMP_NS = 0


@dataclass(frozen=True)
class FaceNodeOptions:
    """Parameters of the face node."""

    autostart: bool = option(True, 'configure and activate without being asked')
    rate_hz: float = option(10.0, 'pictures looked at per second; nods need 8 or more',
                            minimum=0.5, maximum=60.0)
    keep_telling_s: float = option(0.5, 'time between messages while nothing changes, s',
                                   minimum=0.05, maximum=60.0)
    horizontal_fov_deg: float = option(62.0, 'horizontal field of view of a camera that sends no '
                                             'user/camera_info, degrees',
                                       minimum=10.0, maximum=170.0)
    max_faces: int = option(3, 'people told apart at most', minimum=1, maximum=16)
    look_deg: float = option(16.0, 'a line of sight this close to the camera is a look at the '
                                   'avatar, degrees', minimum=1.0, maximum=90.0)
    look_away_deg: float = option(23.0, 'one further off than this is not, degrees; between both '
                                        'nothing changes', minimum=1.0, maximum=90.0)
    engaged_s: float = option(1.0, 'looking for so long is being engaged, s',
                              minimum=0.3, maximum=60.0)
    disengaged_s: float = option(3.5, 'looking away for so long ends it, s',
                                 minimum=1.0, maximum=600.0)
    lost_s: float = option(1.5, 'a person who is not seen for so long has left, s',
                           minimum=0.1, maximum=60.0)
    silent_s: float = option(3.0, 'without a picture for so long, nothing is known of the user, s',
                             minimum=0.5, maximum=600.0)
    nice: int = option(10, 'scheduling priority of the seeing thread, 19 is lowest',
                       minimum=-20, maximum=19)


def find_cloud_reader() -> Callable[..., Any] | None:
    """``sensor_msgs_py``'s reader of clouds (ROS 2 from apt), None where it is not installed."""
    try:
        from sensor_msgs_py.point_cloud2 import read_points_numpy
    except ImportError:
        return None
    return read_points_numpy  # type: ignore[no-any-return]


class FaceNode(AvatarNode):
    """Publishes what is seen of the user; see the module."""

    options_class = FaceNodeOptions
    options: FaceNodeOptions

    def __init__(self, **arguments: Any) -> None:
        super().__init__('face', **arguments)
        self._tracker: FaceTracker | None = None
        self._thread: threading.Thread | None = None
        self._check_timer: Any = None
        self._arrived = threading.Condition()
        self._stopping = False

    def configure(self) -> None:
        """Make the topics."""
        options = self.options
        self._tracker = FaceTracker(FaceOptions(
            horizontal_fov_deg=options.horizontal_fov_deg, max_faces=options.max_faces,
            look_deg=options.look_deg, look_away_deg=options.look_away_deg,
            engaged_s=options.engaged_s, disengaged_s=options.disengaged_s,
            lost_s=options.lost_s))
        self._missing = mesh_missing()
        self._newest: Image | None = None
        self._cloud: PointCloud2 | None = None
        self._calibration: CameraInfo | None = None
        self._seen_s: float | None = None
        self._told: tuple[Any, ...] | None = None
        self._told_s = -math.inf
        self._cloud_read_s = -math.inf
        self._cloud_distance_m = math.nan
        self._read_cloud = find_cloud_reader()
        self._perception = self.publish_to(UserPerception, 'perception', qos.EVENT)
        self.listen_to(Image, 'user/image_raw', self._on_image, qos.SENSOR_IMAGE)
        self.listen_to(CameraInfo, 'user/camera_info', self._on_camera_info, qos.SENSOR_IMAGE)
        if self._read_cloud is not None:
            self.listen_to(PointCloud2, 'user/points', self._on_cloud, qos.SENSOR_IMAGE)

    def activate(self) -> None:
        """Start to look."""
        self._stopping = False
        self._thread = threading.Thread(target=self._look, name='eyes', daemon=True)
        self._thread.start()
        self._check_timer = self.create_timer(CHECK_PERIOD_S, self._check)

    def deactivate(self) -> None:
        """Stop looking."""
        if self._check_timer is not None:
            self.destroy_timer(self._check_timer)
            self._check_timer = None
        with self._arrived:
            self._stopping = True
            self._arrived.notify_all()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None

    def cleanup(self) -> None:
        """Release the models."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    # What arrives -----------------------------------------------------------------------------

    def _on_image(self, message: Image) -> None:
        self.diagnostics.count('pictures')
        with self._arrived:
            if self._newest is not None:
                self.diagnostics.count('pictures_skipped')
            # Only the newest picture is looked at: an old one shows a user of the past.
            self._newest = message
            self._arrived.notify_all()

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._calibration = message if message.k[0] > 0.0 and message.width else None

    def _on_cloud(self, message: PointCloud2) -> None:
        self._cloud = message

    def _check(self) -> None:
        """Say what is missing, and that nothing is known when the pictures have stopped."""
        if self._missing:
            self.report('mediapipe', self._missing, WARN)
        seen_s = self._seen_s
        if seen_s is not None and time.monotonic() - seen_s > self.options.silent_s:
            self._seen_s = None
            self.report('silent', f'user/image_raw: no picture for {self.options.silent_s:g} s; '
                                  f'is the camera running?', WARN)
            self._publish(UserPerception(), self.get_clock().now().nanoseconds)

    # Looking ----------------------------------------------------------------------------------

    def _look(self) -> None:
        be_nice(self, self.options.nice)
        period_s = 1.0 / self.options.rate_hz
        next_s = time.monotonic()
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._stopping or self._newest is not None)
                if self._stopping:
                    return
            # The pause is spent before the newest picture is taken, so that it is the newest.
            wait_s = next_s - time.monotonic()
            if wait_s > 0.0:
                with self._arrived:
                    if self._arrived.wait_for(lambda: self._stopping, wait_s):
                        return
            next_s = max(next_s + period_s, time.monotonic())
            with self._arrived:
                message, self._newest = self._newest, None
            if message is None or self._missing:
                continue
            try:
                self._see(message)
            except (PictureError, PerceptionError) as error:
                self.report('refused', f'user/image_raw: {error}', WARN)
            except Exception as error:
                self.report('look', f'looking failed: {type(error).__name__}: {error}')

    def _see(self, message: Image) -> None:
        tracker = self._tracker
        assert tracker is not None
        frame = picture_of(message)
        stamp_ns = to_ns(message.header.stamp)
        if stamp_ns == NO_STAMP_NS:
            stamp_ns = self.get_clock().now().nanoseconds
        begun_s = time.thread_time()
        tracker.camera = self._camera(frame.shape[1], frame.shape[0])
        sight = tracker.update(frame, stamp_ns)
        self._seen_s = time.monotonic()
        self.diagnostics.values['see_ms'] = 1000.0 * (time.thread_time() - begun_s)
        self.diagnostics.values['people'] = len(sight.faces)
        main = sight.main
        distance_m = math.nan if main is None else main.distance_m
        if main is not None:
            measured_m = self._measured_distance(main, tracker.camera, message)
            if not math.isnan(measured_m):
                distance_m = measured_m
        else:
            self._cloud_distance_m = math.nan
        self._tell(sight, distance_m, message.header.frame_id)

    def _camera(self, width: int, height: int) -> Camera:
        info = self._calibration
        if info is None:
            return Camera.from_field_of_view(width, height, self.options.horizontal_fov_deg)
        return Camera(info.k[0], info.k[4], info.k[2], info.k[5]).scaled(width / info.width)

    def _measured_distance(self, face: Face, camera: Camera, picture: Image) -> float:
        """Distance from the depth camera's cloud; NaN without one."""
        cloud, read, now_s = self._cloud, self._read_cloud, time.monotonic()
        if cloud is None or read is None or now_s - self._cloud_read_s < CLOUD_PERIOD_S:
            return self._cloud_distance_m
        self._cloud_read_s = now_s
        self._cloud_distance_m = math.nan
        if abs(to_ns(cloud.header.stamp) - to_ns(picture.header.stamp)) > CLOUD_MOST_AGE_NS:
            return math.nan
        if cloud.header.frame_id != picture.header.frame_id:
            self.report('cloud_frame', f'user/points is in frame {cloud.header.frame_id!r} and '
                        f'user/image_raw in {picture.header.frame_id!r}: send the cloud that is '
                        f'registered to the colour picture', WARN)
            return math.nan
        try:
            points: NDArray[np.floating] = np.asarray(read(
                cloud, field_names=['x', 'y', 'z'], skip_nans=True)).reshape(-1, 3)
        except Exception as error:
            # The reader asserts, or raises what numpy raises, on a cloud of another kind.
            self.report('cloud', f'user/points cannot be read ({type(error).__name__}: {error}): '
                        f'send x, y and z as float32', WARN)
            return math.nan
        self._cloud_distance_m = distance_in_box(points, face.measures.box, camera)
        return self._cloud_distance_m

    # What leaves ------------------------------------------------------------------------------

    def _tell(self, sight: Sight, distance_m: float, frame_id: str) -> None:
        """Publish on change, and now and then."""
        main = sight.main
        state = (len(sight.faces), *(
            (main.person, main.looking, main.engagement, main.expression) if main else ()))
        now_s = time.monotonic()
        # A gesture may be made by any of the people who are there.
        moved = next((face for face in sight.faces if face.gesture), None)
        if state == self._told and moved is None and \
                now_s - self._told_s < self.options.keep_telling_s:
            return
        self._told, self._told_s = state, now_s
        message = UserPerception(people=min(len(sight.faces), 255), face_present=bool(main))
        message.header.frame_id = frame_id
        if main is not None:
            message.user_id = f'person_{main.person}'
            message.looking, message.expression = main.looking, main.expression
            message.engagement_level = int(main.engagement)
            message.gesture = moved.gesture if moved is not None else ''
            message.engagement = ENGAGEMENT_SHARE.get(main.engagement, math.nan)
            message.distance_m = distance_m
            pose = main.measures.pose
            place, turn = message.head_pose.position, message.head_pose.orientation
            place.x, place.y, place.z = (float(value) for value in pose.position_m)
            turn.x, turn.y, turn.z, turn.w = pose.quaternion_xyzw
        else:
            message.engagement_level = UserPerception.DISENGAGED
        self._publish(message, sight.stamp_ns, known=True)

    def _publish(self, message: UserPerception, stamp_ns: int, known: bool = False) -> None:
        message.source = SOURCE
        message.confidence = math.nan
        if not message.face_present:
            message.engagement = 0.0 if known else math.nan
            message.distance_m = math.nan
            place = message.head_pose.position
            place.x = place.y = place.z = math.nan
        message.header.stamp = to_time(max(stamp_ns, 0))
        self._perception.publish(message)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    return run_node(FaceNode, args)


if __name__ == '__main__':
    sys.exit(main())
