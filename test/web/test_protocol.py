# SPDX-License-Identifier: Apache-2.0
"""The binary messages between page and server."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from interactive_avatar.media import AudioFormatError, encode_jpeg
from interactive_avatar.web import ProtocolError, pack_media, unpack_camera, unpack_microphone
from interactive_avatar.web.protocol import MAX_CAMERA_BYTES, MAX_MICROPHONE_BYTES


def test_media_layout_is_what_the_page_reads() -> None:
    sound = np.array([1, -2, 300], np.int16)
    data = pack_media(1_500_000_000, [b'abc', b'de'], sound)
    assert struct.unpack_from('<BBHdI', data) == (1, 2, 0, 1500.0, 3)
    assert struct.unpack_from('<IfIf', data, 16) == (3, 0.0, 2, 40.0)
    assert data[32:38] == sound.astype('<i2').tobytes()
    assert data[38:] == b'abcde'


def test_sound_or_frames_may_be_absent() -> None:
    assert len(pack_media(0, [], np.zeros(2560, np.int16))) == 16 + 5120
    assert len(pack_media(0, [b'abcd'], None)) == 16 + 8 + 4


def test_stamps_of_today_keep_microseconds() -> None:
    stamp_ns = 1_795_000_000_123_456_000
    stamp_ms = struct.unpack_from('<d', pack_media(stamp_ns, [], None), 4)[0]
    assert abs(stamp_ms * 1e6 - stamp_ns) < 1_000


def test_what_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match='256 frames'):
        pack_media(0, [b''] * 256, None)
    with pytest.raises(AudioFormatError):
        pack_media(0, [], np.zeros(4, np.float32))  # type: ignore[arg-type]


def test_microphone() -> None:
    assert unpack_microphone(b'\x02\0\0\0\x01\x00\xff\xff').tolist() == [1, -1]
    assert unpack_microphone(b'\x02\0\0\0').size == 0


@pytest.mark.parametrize(('data', 'why'), [
    (b'', 'unknown'), (b'\x02\0', 'unknown'), (b'\x07\0\0\0\0\0', 'unknown'),
    (b'\x02\0\0\0\x01', 'odd number'),
    (b'\x02' + bytes(MAX_MICROPHONE_BYTES), 'smaller blocks'),
])
def test_bad_microphone_messages_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        unpack_microphone(data)


def test_a_camera_message_is_a_jpeg_of_bounded_size() -> None:
    jpeg = encode_jpeg(np.zeros((24, 32, 3), np.uint8))
    assert unpack_camera(b'\x03\0\0\0' + jpeg) == jpeg
    for bad in (b'\x03\0\0\0', b'\x03\0\0\0GIF89a', b'\x03'):
        with pytest.raises(ProtocolError, match='no JPEG'):
            unpack_camera(bad)
    with pytest.raises(ProtocolError, match='smaller pictures'):
        unpack_camera(b'\x03\0\0\0' + jpeg + bytes(MAX_CAMERA_BYTES))
