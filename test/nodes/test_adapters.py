# SPDX-License-Identifier: Apache-2.0
"""The adapters against plain objects with the fields of the messages, which are not on PyPI."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

from avatar_bringup.msg import UserPerception
from std_msgs.msg import Bool, Header

from interactive_avatar.nodes.adapters import AudioCommonAdapter, HriAdapter, find_messages

HRI = SimpleNamespace(IdsList='IdsList', LiveSpeech='LiveSpeech', Expression='Expression',
                      EngagementLevel='EngagementLevel', Gaze='Gaze')
AUDIO = SimpleNamespace(AudioInfo='AudioInfo', AudioDataStamped='AudioDataStamped')


class Topics:
    """Keeps the subscriptions by topic, and delivers to them."""

    def __init__(self) -> None:
        self.live: dict[str, Callable[[Any], None]] = {}

    def create_subscription(self, kind: Any, topic: str, callback: Callable[[Any], None],
                            profile: Any) -> str:
        assert topic not in self.live
        self.live[topic] = callback
        return topic

    def destroy_subscription(self, topic: str) -> None:
        del self.live[topic]

    def send(self, topic: str, **fields: Any) -> None:
        self.live[topic](SimpleNamespace(**fields))


def test_a_package_that_is_missing_is_none() -> None:
    assert find_messages('no_such_msgs') is None


def test_subscriptions_follow_the_ids() -> None:
    topics = Topics()
    adapter = HriAdapter(topics, HRI, lambda message: None)
    resting = set(topics.live)
    topics.send('/humans/voices/tracked', ids=['a', 'b'])
    topics.send('/humans/faces/tracked', ids=['f'])
    assert '/humans/voices/a/speech' in topics.live and '/humans/faces/f/expression' in topics.live
    topics.send('/humans/voices/tracked', ids=['b'])
    assert '/humans/voices/a/speech' not in topics.live
    assert '/humans/voices/b/is_speaking' in topics.live
    topics.send('/humans/voices/tracked', ids=[])
    topics.send('/humans/faces/tracked', ids=[])
    assert set(topics.live) == resting
    adapter.close()
    assert not topics.live


def test_speech_becomes_events() -> None:
    topics, heard = Topics(), []
    HriAdapter(topics, HRI, heard.append)
    topics.send('/humans/voices/tracked', ids=['a'])
    topics.live['/humans/voices/a/is_speaking'](Bool(data=True))
    topics.send('/humans/voices/a/speech', incremental='please', final='', confidence=0.0)
    topics.live['/humans/voices/a/is_speaking'](Bool(data=False))
    topics.send('/humans/voices/a/speech', incremental='', final='please nod', confidence=0.9)
    assert [(message.event, message.text) for message in heard] == [
        (UserPerception.SPEECH_STARTED, ''), (UserPerception.PARTIAL, 'please'),
        (UserPerception.SPEECH_ENDED, ''), (UserPerception.FINAL, 'please nod')]
    assert heard[-1].confidence == pytest.approx(0.9) and heard[-1].user_id == 'a'


def test_a_voice_that_is_lost_has_stopped_speaking() -> None:
    topics, heard = Topics(), []
    HriAdapter(topics, HRI, heard.append)
    topics.send('/humans/voices/tracked', ids=['a'])
    topics.live['/humans/voices/a/is_speaking'](Bool(data=True))
    topics.send('/humans/voices/tracked', ids=[])
    assert heard[-1].event == UserPerception.SPEECH_ENDED and not heard[-1].speaking


@pytest.mark.parametrize('given, told', [('happy', 'smile'), (2, 'frown'), ('puzzled', '')])
def test_face_engagement_and_gaze_are_reported_once(given: str | int, told: str) -> None:
    topics, heard = Topics(), []
    HriAdapter(topics, HRI, heard.append)
    topics.send('/humans/faces/tracked', ids=['f'])
    topics.send('/humans/persons/tracked', ids=['p'])
    for _ in range(3):
        topics.send('/humans/faces/f/expression', expression=given)
        topics.send('/humans/persons/p/engagement_status', level=3)
        topics.send('/humans/interactions/gazing', sender='p', receiver='')
    # A face has come; then expression, engagement and gaze, each once.
    assert len(heard) == (4 if told else 3)
    assert heard[0].face_present and heard[0].source == 'hri'
    last = heard[-1]
    assert (last.expression, last.engagement, last.looking) == (told, 1.0, True)
    assert last.face_present and math.isnan(last.distance_m)
    assert (last.people, last.engagement_level) == (1, UserPerception.ENGAGED)
    topics.send('/humans/faces/tracked', ids=[])
    assert not heard[-1].face_present and heard[-1].people == 0


def test_sound_without_a_declared_format_is_refused() -> None:
    topics, heard, told = Topics(), [], []
    adapter = AudioCommonAdapter(topics, AUDIO, lambda samples, stamp: heard.append(samples),
                                 told.append)
    data = {'header': Header(), 'audio': SimpleNamespace(data=array('B', b'\1\0\2\0'))}
    topics.send('user/audio_stamped', **data)
    assert not heard and 'nobody has declared its format' in told[0]
    info = {'channels': 1, 'sample_format': 'S16LE', 'coding_format': 'WAVE', 'bitrate': 0}
    topics.send('user/audio_info', sample_rate=44100, **info)
    topics.send('user/audio_stamped', **data)
    assert not heard and '44100' in told[1]
    topics.send('user/audio_info', sample_rate=16000, **info)
    topics.send('user/audio_stamped', **data)
    assert np.array_equal(heard[0], [1, 2])
    adapter.close()
    assert not topics.live
