# SPDX-License-Identifier: Apache-2.0
"""What travels between the page and its server over one WebSocket.

Binary, server to page, little endian: ``u8 kind=1``, ``u8 frame count``, ``u16 zero``,
``f64 stamp in ms``, ``u32 sample count``, then per frame ``u32 bytes`` and ``f32 ms after the
stamp``, then the samples (int16), then the frames (JPEG). Samples and frames that travel
together belong together; either may be absent.

Binary, page to server: ``u8 kind=2``, three zero bytes, then int16 samples at 16 kHz, mono.

Binary, page to server: ``u8 kind=3``, three zero bytes, then a JPEG picture of the user's camera.

Text, both ways: JSON objects with a ``type``. A page tells with ``microphone`` or ``camera`` and
``on`` that it turned it on or off. The server tells a page with ``taken`` that another one's has
taken the place of its own, and takes no more from it before it says ``on`` again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.audio import AudioFormatError, check_samples, samples_from_bytes
from interactive_avatar.media.clock import FRAME_NS

KIND_MEDIA = 1
KIND_MICROPHONE = 2
KIND_CAMERA = 3
MEDIA_HEADER = struct.Struct('<BBHdI')
FRAME_HEADER = struct.Struct('<If')
MICROPHONE_HEADER_BYTES = 4
# A page sends blocks of 20 ms; a second at once is more than any honest page has waiting.
MAX_MICROPHONE_BYTES = 32_000 + MICROPHONE_HEADER_BYTES
# A page sends 320×240 pixels, about 15 kB.
CAMERA_HEADER_BYTES = 4
MAX_CAMERA_BYTES = 250_000 + CAMERA_HEADER_BYTES
JPEG_START = b'\xff\xd8\xff'
MAX_TEXT_CHARS = 1000


class ProtocolError(ValueError):
    """A message of the page that cannot be used; the text says why."""


def pack_media(stamp_ns: int, frames: Sequence[bytes], audio: NDArray[np.int16] | None,
               frame_ns: int = FRAME_NS) -> bytes:
    """Pack frames and the sound that belongs to them.

    Args:
        stamp_ns: presentation time of the first frame and the first sample.
        frames: JPEG pictures, the first at the stamp and the others `frame_ns` apart.
        audio: int16 [n] at 16 kHz, or None.
        frame_ns: time between frames.

    Raises:
        ValueError: on more than 255 frames.
        AudioFormatError: on an array of another kind.
    """
    if len(frames) > 255:
        raise ValueError(f'{len(frames)} frames in one message, at most 255 fit: send them in '
                         f'several')
    sound = b''
    if audio is not None:
        check_samples(audio)
        sound = audio.astype('<i2', copy=False).tobytes()
    head = MEDIA_HEADER.pack(KIND_MEDIA, len(frames), 0, stamp_ns / 1e6, len(sound) // 2)
    index = b''.join(FRAME_HEADER.pack(len(frame), at * frame_ns / 1e6)
                     for at, frame in enumerate(frames))
    return b''.join([head, index, sound, *frames])


def unpack_microphone(data: bytes) -> NDArray[np.int16]:
    """Samples of a page's microphone message, int16 [n].

    Raises:
        ProtocolError: if the message is of another kind, too long, or ends inside a sample.
    """
    if len(data) < MICROPHONE_HEADER_BYTES or data[0] != KIND_MICROPHONE:
        raise ProtocolError(f'unknown binary message of {len(data)} bytes: reload the page, its '
                            f"version may differ from the server's")
    if len(data) > MAX_MICROPHONE_BYTES:
        raise ProtocolError(f'microphone message of {len(data)} bytes, at most '
                            f'{MAX_MICROPHONE_BYTES} are accepted: send smaller blocks')
    try:
        return samples_from_bytes(data[MICROPHONE_HEADER_BYTES:])
    except AudioFormatError as error:
        raise ProtocolError(str(error)) from error


def unpack_camera(data: bytes) -> bytes:
    """The JPEG picture of a page's camera message; that it can be decoded is not checked.

    Raises:
        ProtocolError: if the message is too long or holds no JPEG.
    """
    if len(data) > MAX_CAMERA_BYTES:
        raise ProtocolError(f'camera message of {len(data)} bytes, at most {MAX_CAMERA_BYTES} are '
                            f'accepted: send smaller pictures')
    picture = data[CAMERA_HEADER_BYTES:]
    if not picture.startswith(JPEG_START):
        raise ProtocolError('the camera message holds no JPEG picture: reload the page, its '
                            "version may differ from the server's")
    return picture
