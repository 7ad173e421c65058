# SPDX-License-Identifier: Apache-2.0
"""Opens bags, also damaged ones: what was written before the recorder was killed is worth having.

A recorder that is killed, or a disk that is full, leaves a bag without ``metadata.yaml`` and a
data file without its end. `open_bag` then copies every whole message into a temporary file and
opens that; the caller learns what was done in words.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError

STORAGE_SUFFIXES = ('.mcap', '.db3')
# What rosbags lets through on files whose bytes are not what they should be.
DAMAGE = (ReaderError, OSError, ValueError, AssertionError, KeyError, IndexError, TypeError,
          struct.error, sqlite3.Error, zlib.error, RuntimeError, EOFError, StopIteration)


class BagError(RuntimeError):
    """A bag that cannot be written or read; the message says why and what to do."""


@dataclass
class OpenBag:
    """A bag that is open for reading.

    Attributes:
        connections: its topics.
        custom: texts that the recorder put into the metadata.
        problems: what was damaged and how it was mended, in words.
    """

    connections: list[Connection]
    custom: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _readers: list[Any] = field(default_factory=list)

    def messages(self, topics: set[str]) -> Iterator[tuple[Connection, int, bytes]]:
        """Messages of some topics in order of time: (connection, nanoseconds, CDR bytes)."""
        for reader in self._readers:
            wanted = [c for c in reader.connections if c.topic in topics]
            if wanted:
                yield from reader.messages(wanted)


def storage_files(path: Path) -> list[Path]:
    """Data files of a bag: of its folder in order of their names, or the file itself."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in STORAGE_SUFFIXES)


def recover_mcap(source: Path, target: Path) -> int:
    """Copy every whole message of a damaged MCAP file.

    Args:
        source: the damaged file.
        target: file to write; complete and indexed, messages in order of time.

    Returns:
        How many messages were saved.
    """
    from mcap.records import Channel, Message, Schema
    from mcap.stream_reader import StreamReader
    from mcap.writer import CompressionType, Writer

    schemas: dict[int, Any] = {}
    channels: dict[int, Any] = {}
    messages: list[Any] = []
    # Any damage ends the copy; what came before it is kept.
    with open(source, 'rb') as stream, contextlib.suppress(Exception):
        for record in StreamReader(stream, record_size_limit=None).records:
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Message):
                messages.append(record)
    messages.sort(key=lambda message: message.log_time)
    with open(target, 'wb') as stream:
        writer = Writer(stream, compression=CompressionType.LZ4)
        writer.start(profile='ros2')
        new_schemas = {old: writer.register_schema(s.name, s.encoding, s.data)
                       for old, s in schemas.items()}
        new_channels = {old: writer.register_channel(
            c.topic, c.message_encoding, new_schemas.get(c.schema_id, 0), dict(c.metadata))
            for old, c in channels.items()}
        for message in messages:
            if message.channel_id in new_channels:
                writer.add_message(new_channels[message.channel_id], message.log_time,
                                   message.data, message.publish_time, message.sequence)
        writer.finish()
    return len(messages)


def recover_sqlite(source: Path, target: Path) -> int:
    """Copy every readable message of a damaged SQLite file; returns how many.

    Raises:
        sqlite3.Error: if not even the list of topics can be read.
    """
    saved = 0
    with contextlib.closing(sqlite3.connect(f'{source.resolve().as_uri()}?mode=ro', uri=True)) \
            as old, contextlib.closing(sqlite3.connect(target)) as new:
        # Without this SQLite refuses a file that is shorter than its header says.
        old.execute('PRAGMA writable_schema=ON')
        for table, sql in old.execute("SELECT name, sql FROM sqlite_master WHERE type='table' "
                                      "AND name NOT LIKE 'sqlite_%'").fetchall():
            new.execute(sql)
            marks = ','.join('?' * len(old.execute(f'PRAGMA table_info({table})').fetchall()))
            # Row by row: the first page that is broken ends the table, not the copy.
            with contextlib.suppress(sqlite3.DatabaseError):
                for row in old.execute(f'SELECT * FROM {table}'):
                    new.execute(f'INSERT INTO {table} VALUES ({marks})', row)
                    saved += table == 'messages'
        new.commit()
    return saved


def _open(reader: Any, stack: contextlib.ExitStack) -> Any:
    reader.open()
    stack.callback(reader.close)
    return reader


def _read_through(reader: Any) -> None:
    """Read everything once, so that damage shows before anything is measured."""
    for _ in reader.messages():
        pass


@contextlib.contextmanager
def open_bag(path: Path, damage: BaseException | None = None) -> Iterator[OpenBag]:
    """Open a bag for reading; a context manager.

    Args:
        path: bag folder, or a single ``.mcap`` or ``.db3`` file.
        damage: what went wrong when the bag was read; opens what can be recovered of it. Damage
            that shows at opening is found without this.

    Yields:
        The open bag; ``problems`` tells of damage that was mended.

    Raises:
        BagError: if the bag is missing, empty, or so damaged that no message is left.
    """
    if not path.exists():
        raise BagError(f'no bag at {path}: check the path (a rosbag2 bag is a folder with '
                       f'metadata.yaml)')
    with contextlib.ExitStack() as stack:
        reader = None
        if damage is None:
            try:
                # AnyReader would parse the definitions of every topic and fail on the first odd
                # one, of whatever robot; only the avatar's own are needed.
                reader = _open(Reader(path), stack)
            except DAMAGE as error:
                damage = error
        if reader is None:
            assert damage is not None
            yield _mended(path, damage, stack)
        else:
            yield OpenBag(list(reader.connections), dict(reader.storage.metadata.custom or {}),
                          _readers=[reader])


def _mended(path: Path, error: BaseException, stack: contextlib.ExitStack) -> OpenBag:
    """Open what is left of a bag that did not open."""
    reason = str(error).strip() or type(error).__name__
    files = storage_files(path)
    if not files:
        raise BagError(f'cannot read bag {path}: {reason}; the folder holds no '
                       f'{" or ".join(STORAGE_SUFFIXES)} file, so this is no bag of ROS 2'
                       ) from error
    folder = Path(tempfile.mkdtemp(prefix='avatar_bag_'))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    bag = OpenBag([])
    saved = 0
    for file in files:
        try:
            # Often only the metadata is missing, and the data file is whole.
            reader = _open(Reader(file), stack)
            _read_through(reader)
        except DAMAGE:
            target = folder / file.name
            try:
                recover = recover_mcap if file.suffix == '.mcap' else recover_sqlite
                if not recover(file, target):
                    continue
                reader = _open(Reader(target), stack)
            except DAMAGE:
                continue
        saved += sum(connection.msgcount for connection in reader.connections)
        bag._readers.append(reader)
        known = {connection.topic for connection in bag.connections}
        bag.connections += [c for c in reader.connections if c.topic not in known]
    if not saved:
        raise BagError(f'cannot read bag {path}: {reason}; no whole message is left in '
                       f'{", ".join(file.name for file in files)}: was the recorder killed '
                       f'before it wrote anything? Try `ros2 bag reindex`, or record again'
                       ) from error
    bag.problems.append(f'the bag is damaged ({reason}): {saved} whole messages were recovered, '
                        f'what came after them is lost')
    return bag
