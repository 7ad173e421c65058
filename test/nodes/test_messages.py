# SPDX-License-Identifier: Apache-2.0
from array import array

import numpy as np
import pytest

pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

from avatar_bringup.msg import AudioChunk

from interactive_avatar.media.audio import AudioFormatError
from interactive_avatar.nodes.messages import (
    ImageWriter,
    audio_message,
    samples_of,
    to_ns,
    to_time,
)


def test_time_survives_the_way_there_and_back() -> None:
    assert to_ns(to_time(1_795_427_104_952_617_779)) == 1_795_427_104_952_617_779


def test_sound_survives_the_way_there_and_back() -> None:
    samples = np.array([0, 1, -1, 32767, -32768], np.int16)
    message = audio_message(samples, 5, sequence=9, turn_id=2, last=True)
    assert (samples_of(message) == samples).all()
    assert (message.sequence, message.turn_id, message.last) == (9, 2, True)


@pytest.mark.parametrize('changes, told', [
    ({'sample_rate': 44100}, '44100'),
    ({'channels': 2}, '2 channels'),
    ({'encoding': 'F32LE'}, 'F32LE'),
    ({'encoding': ''}, 'not declared'),
    ({'data': array('B', b'abc')}, '3 bytes'),
    ({'data': array('B')}, 'no samples'),
])
def test_unsupported_sound_is_refused_with_its_value(changes: dict, told: str) -> None:
    fields = {'sample_rate': 16000, 'channels': 1, 'encoding': 'S16LE',
              'data': array('B', b'\0\0')}
    with pytest.raises(AudioFormatError, match=told):
        samples_of(AudioChunk(**{**fields, **changes}))


def test_an_empty_last_piece_is_accepted() -> None:
    message = AudioChunk(sample_rate=16000, channels=1, encoding='S16LE', last=True)
    assert samples_of(message).size == 0


def test_the_image_is_written_in_place_and_follows_a_new_size() -> None:
    writer = ImageWriter()
    first = writer.write(np.full((2, 3, 3), 7, np.uint8), 10)
    buffer = first.data
    second = writer.write(np.full((2, 3, 3), 9, np.uint8), 20)
    assert second.data is buffer and set(second.data) == {9}
    assert (second.height, second.width, second.step, second.encoding) == (2, 3, 9, 'rgb8')
    assert to_ns(second.header.stamp) == 20
    assert len(writer.write(np.zeros((4, 4, 3), np.uint8), 30).data) == 48
