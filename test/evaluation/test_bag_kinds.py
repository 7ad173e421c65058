# SPDX-License-Identifier: Apache-2.0
"""Bags as other recorders leave them: other storages, compressed, cut off, of other versions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from interactive_avatar.evaluation import bag as bags
from interactive_avatar.evaluation.bag import BagError, avatar_typestore, read_bag
from interactive_avatar.evaluation.session import measure

KINDS = [(plugin, mode) for plugin in StoragePlugin for mode in CompressionMode
         # SQLite has no compression of its own.
         if (plugin, mode) != (StoragePlugin.SQLITE3, CompressionMode.STORAGE)]


def rewrite(source: Path, target: Path, plugin: StoragePlugin = StoragePlugin.MCAP,
            mode: CompressionMode = CompressionMode.NONE, version: int = 9,
            change: Callable[[str, int, bytes], tuple[int, bytes]] | None = None) -> Path:
    """Write a bag anew in another storage."""
    store = avatar_typestore()
    writer = Writer(target, version=version, storage_plugin=plugin)
    if mode is not CompressionMode.NONE:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with Reader(source) as reader, writer:
        made = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=store)
                for c in reader.connections}
        for connection, time_ns, raw in reader.messages():
            if change is not None:
                time_ns, raw = change(connection.topic, time_ns, raw)
            writer.write(made[connection.id], time_ns, raw)
    return target


@pytest.mark.parametrize('plugin, mode', KINDS, ids=lambda value: value.name)
def test_every_storage_and_compression_reads_the_same(
        session_bag: Path, tmp_path: Path, plugin: StoragePlugin, mode: CompressionMode) -> None:
    path = rewrite(session_bag, tmp_path / 'bag', plugin, mode)
    expected, found = read_bag(session_bag), read_bag(path)
    assert not found.problems
    assert found.counts == expected.counts
    assert [p.data for p in found.pictures] == [p.data for p in expected.pictures]
    assert [(s.stamp_ns, s.samples.tobytes()) for s in found.audio] \
        == [(s.stamp_ns, s.samples.tobytes()) for s in expected.audio]
    assert found.states == expected.states


@pytest.mark.parametrize('plugin', StoragePlugin, ids=lambda value: value.name)
def test_a_bag_without_metadata_is_read(session_bag: Path, tmp_path: Path,
                                        plugin: StoragePlugin) -> None:
    path = rewrite(session_bag, tmp_path / 'bag', plugin)
    (path / 'metadata.yaml').unlink()
    found = read_bag(path)
    assert len(found.audio) == 50
    assert 'metadata' in found.problems[0] and 'recovered' in found.problems[0]
    assert len(read_bag(next(file for file in path.iterdir())).audio) == 50


@pytest.mark.parametrize('plugin', StoragePlugin, ids=lambda value: value.name)
def test_a_truncated_bag_gives_what_it_has(session_bag: Path, tmp_path: Path,
                                           plugin: StoragePlugin) -> None:
    path = rewrite(session_bag, tmp_path / 'bag', plugin)
    (path / 'metadata.yaml').unlink()
    data = next(path.iterdir())
    whole = data.read_bytes()
    # Chunks of MCAP are large beside this bag: cut inside the last one.
    share = 0.97 if plugin is StoragePlugin.MCAP else 0.5
    data.write_bytes(whole[:int(share * len(whole))])
    if plugin is StoragePlugin.MCAP and not _chunks(whole) > 1:
        # One chunk only: nothing whole is left, and that is said.
        with pytest.raises(BagError, match='no whole message is left'):
            read_bag(path)
        return
    found = read_bag(path)
    assert 0 < len(found.audio) < 50
    assert 'is damaged' in found.problems[0] and 'what came after them is lost' \
        in found.problems[0]
    assert measure(found)['stream']['seconds'] > 0


def _chunks(data: bytes) -> int:
    """Chunks in an MCAP file, by walking its records."""
    at, count = 8, 0
    while at + 9 <= len(data) - 8:
        count += data[at] == 6
        at += 9 + int.from_bytes(data[at + 1:at + 9], 'little')
    return count


def test_a_truncated_mcap_of_several_chunks_keeps_the_whole_ones(
        session_bag: Path, tmp_path: Path) -> None:
    from mcap.writer import Writer as McapWriter

    store = avatar_typestore()
    target = tmp_path / 'cut.mcap'
    with Reader(session_bag) as reader, open(target, 'wb') as stream:
        writer = McapWriter(stream, chunk_size=20_000)
        writer.start(profile='ros2')
        channels = {}
        for c in reader.connections:
            text, _ = store.generate_msgdef(c.msgtype, ros_version=2)
            schema = writer.register_schema(c.msgtype, 'ros2msg', text.encode())
            channels[c.topic] = writer.register_channel(c.topic, 'cdr', schema)
        for c, time_ns, raw in reader.messages():
            writer.add_message(channels[c.topic], time_ns, bytes(raw), time_ns)
        writer.finish()
    whole = target.read_bytes()
    assert _chunks(whole) > 4
    assert len(read_bag(target).audio) == 50
    target.write_bytes(whole[:len(whole) // 2])
    found = read_bag(target)
    assert 5 < len(found.audio) < 50
    assert found.audio[0].samples.size == 2560
    assert 'is damaged' in found.problems[0]


def test_other_versions_of_the_messages_are_named(session_bag: Path, tmp_path: Path) -> None:
    """An AudioChunk without turn_id and with a gain; the state as it is."""
    text = (bags.message_folder() / 'AudioChunk.msg').read_text()
    lines = [line for line in text.splitlines() if 'turn_id' not in line]
    old = get_typestore(Stores.ROS2_JAZZY)
    old.register(get_types_from_msg('\n'.join([*lines, 'float32 gain']),
                                    'avatar_bringup/msg/AudioChunk'))
    known = avatar_typestore()
    with Reader(session_bag) as reader, Writer(tmp_path / 'bag', version=9,
                                               storage_plugin=StoragePlugin.MCAP) as writer:
        made: dict[str, Any] = {}
        for connection, time_ns, raw in reader.messages():
            changed = connection.msgtype == 'avatar_bringup/msg/AudioChunk'
            if connection.topic not in made:
                made[connection.topic] = writer.add_connection(
                    connection.topic, connection.msgtype, typestore=old if changed else known)
            if changed:
                message = known.deserialize_cdr(raw, connection.msgtype)
                fields = {k: v for k, v in vars(message).items()
                          if k in [f[0] for f in old.fielddefs[connection.msgtype][1]]}
                raw = bytes(old.serialize_cdr(
                    old.types[connection.msgtype](**fields, gain=1.0), connection.msgtype))
            writer.write(made[connection.topic], time_ns, raw)
    found = read_bag(tmp_path / 'bag')
    told = ' '.join(found.problems)
    assert 'AudioChunk was written by another version' in told
    assert 'lacks turn_id' in told and 'adds gain' in told
    # What needs turn_id is not guessed; pictures and states are measured.
    assert not found.audio and 'could not be read' in told
    assert len(found.pictures) == 200 and len(found.states) == 3


def test_bags_of_other_robots_are_refused_by_name(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    kind = 'std_msgs/msg/String'
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection('/scan_name', kind, typestore=store)
        writer.write(connection, 1, bytes(store.serialize_cdr(store.types[kind]('x'), kind)))
    with pytest.raises(BagError, match=r"no topic of an avatar among \['/scan_name'\]"):
        read_bag(tmp_path / 'bag')


def test_odd_definitions_of_other_topics_do_no_harm(session_bag: Path, tmp_path: Path) -> None:
    from mcap.writer import Writer as McapWriter

    store = avatar_typestore()
    with Reader(session_bag) as reader, open(tmp_path / 'odd.mcap', 'wb') as stream:
        writer = McapWriter(stream)
        writer.start(profile='ros2')
        odd = writer.register_schema('robot_msgs/msg/Odd', 'ros2msg', b'not a !! definition')
        channel = writer.register_channel('/odd', 'cdr', odd)
        writer.add_message(channel, 1, b'\x00', 1)
        for c in reader.connections:
            text, _ = store.generate_msgdef(c.msgtype, ros_version=2)
            schema = writer.register_schema(c.msgtype, 'ros2msg', text.encode())
            channel = writer.register_channel(c.topic, 'cdr', schema)
            for _, time_ns, raw in reader.messages([c]):
                writer.add_message(channel, time_ns, bytes(raw), time_ns)
        writer.finish()
    assert len(read_bag(tmp_path / 'odd.mcap').audio) == 50


def shifted(session_bag: Path, target: Path, after: int, shift_ns: int, stamps: bool) -> Path:
    """The session with a clock that is set by ``shift_ns`` after ``after`` chunks of sound."""
    store, seen = avatar_typestore(), [0]

    def change(topic: str, time_ns: int, raw: bytes) -> tuple[int, bytes]:
        if topic.endswith('/avatar/audio') or topic == '/avatar/audio':
            seen[0] += 1
            if stamps and seen[0] > after:
                kind = 'avatar_bringup/msg/AudioChunk'
                message = store.deserialize_cdr(raw, kind)
                moved = message.header.stamp.sec * bags.NS_PER_S + message.header.stamp.nanosec \
                    + shift_ns
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(
                    moved, bags.NS_PER_S)
                raw = bytes(store.serialize_cdr(message, kind))
        return time_ns, raw

    return rewrite(session_bag, target, change=change)


@pytest.mark.parametrize('shift_s', [-3600, 3600])
def test_a_jump_of_the_clock_is_named_and_the_longest_part_measured(
        session_bag: Path, tmp_path: Path, shift_s: int) -> None:
    path = shifted(session_bag, tmp_path / 'bag', after=30, shift_ns=shift_s * bags.NS_PER_S,
                   stamps=True)
    found = read_bag(path)
    told = ' '.join(found.problems)
    assert f'first by {shift_s:+.1f} s' in told and '30 of 50 chunks' in told
    assert len(found.audio) == 30
    assert found.seconds == pytest.approx(30 * 0.16, abs=1.5)
    assert measure(found)['stream']['audio']['lost'] == 0


def test_zero_length_sound_is_named(make_bag: Callable[..., Path], tmp_path: Path) -> None:
    store = avatar_typestore()
    kind = 'avatar_bringup/msg/AudioChunk'

    def change(topic: str, time_ns: int, raw: bytes) -> tuple[int, bytes]:
        if topic == '/avatar/user/audio':
            message = store.deserialize_cdr(raw, kind)
            message.data = np.zeros(0, np.uint8)
            raw = bytes(store.serialize_cdr(message, kind))
        return time_ns, raw

    path = rewrite(make_bag(tmp_path / 'plain'), tmp_path / 'bag', change=change)
    found = read_bag(path)
    assert any('50 message(s) on /avatar/user/audio carry no samples' in p
               for p in found.problems)
    result = measure(found)
    assert result['turns'] == [] and result['stream']['audio']['received'] == 50


def test_a_damaged_index_is_mended(session_bag: Path, tmp_path: Path) -> None:
    broken = tmp_path / 'broken'
    shutil.copytree(session_bag, broken)
    (broken / 'metadata.yaml').write_text('rosbag2_bagfile_information: {version: 99}')
    found = read_bag(broken)
    assert len(found.audio) == 50
    assert 'version 99' in found.problems[0].lower()
