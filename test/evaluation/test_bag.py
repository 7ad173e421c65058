# SPDX-License-Identifier: Apache-2.0
"""Bags are written, read back, and refused with a reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from interactive_avatar.evaluation.bag import (
    RECORDED_TOPICS,
    BagError,
    BagWriter,
    avatar_typestore,
    find_namespace,
    read_bag,
)


def test_round_trip(session_bag: Path) -> None:
    recording = read_bag(session_bag)
    assert recording.namespace == '/avatar/'
    assert recording.counts['/avatar/audio'] == 50
    assert len(recording.pictures) == 200
    assert recording.pictures[0].decode().shape == (32, 32, 3)
    assert recording.audio[20].samples.dtype == np.int16
    assert np.abs(recording.audio[20].samples).max() == 8000
    assert recording.intents[0].fields['intent'] == 'nod'
    assert recording.perceptions[0].fields['text'] == 'please nod'
    assert recording.states[1].fields['phase'] == 1
    assert recording.seconds == pytest.approx(49 * 0.16 + 0.12)
    assert not recording.problems


def test_bags_carry_their_message_definitions(session_bag: Path) -> None:
    # No typestore given: a tool that has never heard of this package can read the bag.
    with AnyReader([session_bag]) as reader:
        assert 'avatar_bringup/msg/AudioChunk' in reader.typestore.fielddefs
        connection = next(c for c in reader.connections if c.topic == '/avatar/intent')
        _, _, raw = next(reader.messages([connection]))
        message = reader.deserialize(raw, connection.msgtype)
        assert message.speech == 'Of course.'


def test_missing_topics_are_named(make_bag: Callable[..., Path], tmp_path: Path) -> None:
    bag = make_bag(tmp_path / 'bag', skip_topics=('intent', 'image_raw/compressed'))
    problems = ' '.join(read_bag(bag).problems)
    assert '/avatar/intent is not in the bag' in problems
    assert '/avatar/image_raw/compressed is not in the bag' in problems


def test_unsupported_sound_is_reported_not_guessed(make_bag: Callable[..., Path],
                                                   tmp_path: Path) -> None:
    recording = read_bag(make_bag(tmp_path / 'bag', encoding='F32'))
    assert not recording.audio
    assert any('50 message(s) on /avatar/audio' in p and 'F32' in p for p in recording.problems)


def test_namespaces() -> None:
    sound, image = 'avatar_bringup/msg/AudioChunk', 'sensor_msgs/msg/Image'
    assert find_namespace({'/a/b/audio': sound, '/a/b/user/audio': sound}) == '/a/b/'
    assert find_namespace({'/face/audio': sound, '/head_camera/image_raw': image}) == '/face/'
    with pytest.raises(BagError, match='no topic of an avatar'):
        find_namespace({'/scan': 'sensor_msgs/msg/LaserScan'})
    with pytest.raises(BagError, match="'/x/', '/y/'"):
        find_namespace({'/x/audio': sound, '/y/audio': sound})


def test_bad_bags_are_refused_with_a_reason(session_bag: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match='no bag at'):
        read_bag(tmp_path / 'nothing')
    broken = tmp_path / 'broken'
    shutil.copytree(session_bag, broken)
    data = next(broken.glob('*.mcap'))
    data.write_bytes(data.read_bytes()[:2000])
    with pytest.raises(BagError, match='reindex'):
        read_bag(broken)


def test_writer_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'bag') as writer:
        with pytest.raises(BagError, match='robot_msgs/msg/Odd'):
            writer.add_topic('/odd', 'robot_msgs/msg/Odd')
        with pytest.raises(BagError, match='not announced'):
            writer.write('/never', 0, b'')
    with pytest.raises(BagError, match='exists already'):
        BagWriter(tmp_path / 'bag')


def test_typestore_knows_the_messages() -> None:
    fields = avatar_typestore().fielddefs['avatar_bringup/msg/AvatarState'][1]
    assert 'next_prompt' in [field[0] for field in fields]


def test_the_foxglove_layout_asks_for_what_bags_hold() -> None:
    text = (Path(__file__).parents[2] / 'config' / 'foxglove_layout.json').read_text()
    json.loads(text)
    types = avatar_typestore()
    recorded = {name if name.startswith('/') else f'/avatar/{name}': kind
                for name, kind in RECORDED_TOPICS.items()}
    asked = set(re.findall(r'"(/[a-z_/]+)(?:\.([a-z_]+))?', text))
    assert {topic for topic, _ in asked} <= set(recorded)
    assert len(asked) >= 6
    for topic, field in asked:
        names = [name for name, _ in types.fielddefs[recorded[topic]][1]]
        assert not field or field in names, f'{topic}.{field}'
