# SPDX-License-Identifier: Apache-2.0
"""Conversions between ROS messages and plain numpy, checked at the boundary."""

from __future__ import annotations

from array import array

import numpy as np
from avatar_bringup.msg import AudioChunk
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from interactive_avatar.media.audio import (
    AudioFormat,
    AudioFormatError,
    check_samples,
    samples_from_bytes,
)
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.media.picture import (
    CAMERA_ENCODINGS,
    PictureError,
    check_picture,
    picture_from_bytes,
)

NS_PER_S = 1_000_000_000
FRAME_ID = 'avatar_display'
# In the order of the constants of AvatarState.
PHASES = ('STABLE', 'ACTION')
ACTIVITIES = ('IDLE', 'LISTENING', 'THINKING', 'SPEAKING', 'GESTURING')


def to_time(stamp_ns: int) -> Time:
    """Nanoseconds since the epoch as a ROS time."""
    return Time(sec=stamp_ns // NS_PER_S, nanosec=stamp_ns % NS_PER_S)


def to_ns(stamp: Time) -> int:
    """A ROS time as nanoseconds since the epoch."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def samples_of(message: AudioChunk) -> NDArray[np.int16]:
    """Sound of a message as int16 [n].

    Raises:
        AudioFormatError: if the message is not whole samples of 16 kHz mono S16LE; an empty
            message is accepted only with ``last`` set.
    """
    if not message.data and not message.last:
        raise AudioFormatError('the message carries no samples: send data, or set "last" on the '
                               'empty message that ends a turn')
    declared = AudioFormat(message.sample_rate, message.channels, message.encoding)
    return samples_from_bytes(memoryview(message.data), declared)


def audio_message(samples: NDArray[np.int16], stamp_ns: int, *, sequence: int, turn_id: int = 0,
                  last: bool = False, source: str = '') -> AudioChunk:
    """Make a message of int16 [n] at 16 kHz mono.

    Args:
        samples: the sound.
        stamp_ns: presentation time of the first sample.
        sequence: position in the stream.
        turn_id: turn of dialogue, 0 for none.
        last: True on the last message of a turn.
        source: who made the sound (frame_id).
    """
    check_samples(samples)
    message = AudioChunk(turn_id=turn_id, sequence=sequence, sample_rate=SAMPLE_RATE_HZ,
                         channels=1, encoding='S16LE', last=last)
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = source
    # array('B') is taken as it is; any other type would be copied element by element.
    message.data = array('B', samples.astype('<i2', copy=False).tobytes())
    return message


def picture_of(message: Image) -> NDArray[np.uint8]:
    """Picture of a message as uint8 [H, W, 3] RGB.

    Encodings that this package does not know (such as Bayer patterns) are left to `cv_bridge`
    where it is installed.

    Raises:
        PictureError: if the message is not a picture that can be taken.
    """
    if message.encoding in CAMERA_ENCODINGS or not message.encoding:
        return picture_from_bytes(message.data, message.height, message.width, message.step,
                                  message.encoding)
    refused = PictureError(f'pictures encoded as {message.encoding!r} are not taken: send one of '
                           f'{", ".join(CAMERA_ENCODINGS)}')
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise refused from None
    try:
        picture = np.asarray(CvBridge().imgmsg_to_cv2(message, 'rgb8'))
    except Exception as error:
        # What it raises differs from release to release.
        raise refused from error
    return check_picture(picture)


class ImageWriter:
    """One `sensor_msgs/Image` that is filled again and again without a copy in Python.

    rclpy takes ``array('B')`` as it is, while it copies an ndarray or memoryview element by
    element, which is a hundred times slower. So the message keeps one array and numpy writes
    into its memory.

    Args:
        frame_id: of the messages.
    """

    def __init__(self, frame_id: str = FRAME_ID) -> None:
        self._message = Image(encoding='rgb8')
        self._message.header.frame_id = frame_id
        self._view: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def write(self, frame: NDArray[np.uint8], stamp_ns: int) -> Image:
        """Put a frame into the message.

        Args:
            frame: uint8 [H, W, 3] RGB.
            stamp_ns: presentation time.

        Returns:
            The message, valid until the next call.
        """
        height, width = frame.shape[:2]
        if self._view.shape != frame.shape:
            self._message.data = array('B', bytes(frame.nbytes))
            self._message.height, self._message.width = height, width
            self._message.step = width * 3
            # The setter may have copied the array, so the view is of what the message holds.
            held = memoryview(self._message.data)
            self._view = np.frombuffer(held, np.uint8).reshape(frame.shape)
        self._view[...] = frame
        self._message.header.stamp = to_time(stamp_ns)
        return self._message


def compressed_message(jpeg: bytes, stamp_ns: int) -> CompressedImage:
    """A JPEG picture as a message."""
    message = CompressedImage(format='rgb8; jpeg compressed bgr8')
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = FRAME_ID
    message.data = array('B', jpeg)
    return message


def camera_info(height: int, width: int, stamp_ns: int) -> CameraInfo:
    """Size of the picture; the matrices stay zero, which ROS reads as "not calibrated"."""
    message = CameraInfo(height=height, width=width)
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = FRAME_ID
    return message


def phase_name(number: int) -> str:
    """Name of an `AvatarState` phase; its number as text if it is none."""
    return PHASES[number] if number < len(PHASES) else str(number)


def activity_name(number: int) -> str:
    """Name of an `AvatarState` activity; its number as text if it is none."""
    return ACTIVITIES[number] if number < len(ACTIVITIES) else str(number)
