# SPDX-License-Identifier: Apache-2.0
"""Bags: what a session of the avatar said and showed, written and read without ROS.

Bags are MCAP with every message definition inside, so they open in rosbag2, Foxglove and the
`mcap` and `rosbags` tools on machines that do not know this package. Reading takes what rosbag2
writes (MCAP and SQLite, compressed by file or by message, or not)
under any namespace, and what is left of a damaged bag.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rosbags.interfaces import (
    Connection,
    MessageDefinitionFormat,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.serde import SerdeError
from rosbags.typesys import (
    Stores,
    TypesysError,
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
)
from rosbags.typesys.store import Typestore

from interactive_avatar.evaluation.recover import DAMAGE, BagError, OpenBag, open_bag
from interactive_avatar.media.audio import AudioFormat, AudioFormatError, samples_from_bytes
from interactive_avatar.paths import share_folders

MESSAGE_PACKAGE = 'avatar_bringup'
MESSAGE_NAMES = ('AudioChunk', 'AvatarIntent', 'AvatarState', 'UserPerception')
ROSBAG2_VERSION: Literal[9] = 9
NS_PER_S = 1_000_000_000
# Lateness of a loaded machine stays below this; a step of its clock does not.
CLOCK_JUMP_S = 2.0
# Relative names. image_raw itself is left out: its frames are in /compressed.
RECORDED_TOPICS: dict[str, str] = {
    'user/audio': 'avatar_bringup/msg/AudioChunk',
    'user/text': 'std_msgs/msg/String',
    'perception': 'avatar_bringup/msg/UserPerception',
    'intent': 'avatar_bringup/msg/AvatarIntent',
    'state': 'avatar_bringup/msg/AvatarState',
    'speech': 'avatar_bringup/msg/AudioChunk',
    'audio': 'avatar_bringup/msg/AudioChunk',
    'image_raw/compressed': 'sensor_msgs/msg/CompressedImage',
    'camera_info': 'sensor_msgs/msg/CameraInfo',
    '/diagnostics': 'diagnostic_msgs/msg/DiagnosticArray',
}
LATCHED_TOPICS = ('state',)
# Without these nothing can be measured of an avatar.
NEEDED_TOPICS = ('audio', 'image_raw/compressed')


def message_folder() -> Path:
    """Folder of this package's ``.msg`` files: the checkout's, or an installed package's.

    Raises:
        BagError: if neither exists.
    """
    folders = [folder / 'msg' for folder in share_folders()]
    for folder in folders:
        if all((folder / f'{name}.msg').is_file() for name in MESSAGE_NAMES):
            return folder
    raise BagError(f'the message definitions of {MESSAGE_PACKAGE} were found in none of '
                   f'{", ".join(map(str, folders))}: run `make build`, or source the workspace '
                   f'that holds the package')


def avatar_typestore() -> Typestore:
    """ROS 2 Jazzy's messages and this package's.

    Raises:
        BagError: if the definitions are not found.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    folder = message_folder()
    types: dict[str, Any] = {}
    for name in MESSAGE_NAMES:
        text = (folder / f'{name}.msg').read_text(encoding='utf-8')
        types.update(get_types_from_msg(text, f'{MESSAGE_PACKAGE}/msg/{name}'))
    store.register(types)
    return store


def _qos(latched: bool) -> Qos:
    unset = QosTime(9223372036, 854775807)  # rosbag2's "infinite"
    return Qos(QosHistory.KEEP_LAST, 1 if latched else 10, QosReliability.RELIABLE,
               QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
               unset, unset, QosLiveliness.AUTOMATIC, unset, False)


class BagWriter:
    """Writes serialised messages into a new MCAP bag; use as a context manager.

    Args:
        path: folder to create.
        custom: texts for the bag's metadata, such as versions and commands.

    Raises:
        BagError: if the folder exists.
    """

    def __init__(self, path: str | Path, custom: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise BagError(f'{self.path} exists already: choose another name or remove it')
        self.typestore = avatar_typestore()
        self.counts: dict[str, int] = {}
        self._connections: dict[str, Connection] = {}
        self._writer = Writer(self.path, version=ROSBAG2_VERSION,
                              storage_plugin=StoragePlugin.MCAP)
        for key, value in (custom or {}).items():
            self._writer.set_custom_data(key, value)
        self._writer.open()

    def add_topic(self, topic: str, message_type: str, latched: bool = False) -> None:
        """Announce a topic, so that it is in the bag even if nothing comes.

        Args:
            topic: absolute name.
            message_type: such as ``std_msgs/msg/String``.
            latched: whether late subscribers of a replay get the last message.

        Raises:
            BagError: if the type is unknown.
        """
        if topic in self._connections:
            return
        if message_type not in self.typestore.fielddefs:
            raise BagError(f'no definition of {message_type} for topic {topic}: record a topic '
                           f'of ROS common interfaces or of {MESSAGE_PACKAGE}')
        self._connections[topic] = self._writer.add_connection(
            topic, message_type, typestore=self.typestore, offered_qos_profiles=[_qos(latched)])
        self.counts[topic] = 0

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        """Append one message.

        Args:
            topic: a name given to `add_topic`.
            time_ns: time of reception, nanoseconds since the epoch.
            data: the message as CDR.

        Raises:
            BagError: on an unknown topic.
        """
        if topic not in self._connections:
            raise BagError(f'topic {topic} was not announced: call add_topic first')
        self._writer.write(self._connections[topic], time_ns, data)
        self.counts[topic] += 1

    def write_message(self, topic: str, time_ns: int, message: Any) -> None:
        """Append one message of the typestore's classes (`self.typestore.types`)."""
        kind = self._connections[topic].msgtype
        self.write(topic, time_ns, bytes(self.typestore.serialize_cdr(message, kind)))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def __enter__(self) -> BagWriter:
        """The writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the file, also after an exception: half a session is worth keeping."""
        self.close()


@dataclass(frozen=True)
class Sound:
    """One AudioChunk.

    Attributes:
        stamp_ns: presentation time of the first sample.
        arrival_ns: time at which the recorder had it.
        turn_id: turn of dialogue, 0 for none.
        sequence: position in its stream.
        last: whether it ends a turn.
        samples: int16 [n], 16 kHz.
    """

    stamp_ns: int
    arrival_ns: int
    turn_id: int
    sequence: int
    last: bool
    samples: NDArray[np.int16]


@dataclass(frozen=True)
class Picture:
    """One frame of the avatar.

    Attributes:
        stamp_ns: presentation time.
        arrival_ns: time at which the recorder had it.
        data: JPEG or PNG bytes.
    """

    stamp_ns: int
    arrival_ns: int
    data: bytes

    def decode(self) -> NDArray[np.uint8]:
        """The picture, uint8 [H, W, 3] RGB."""
        return np.asarray(Image.open(io.BytesIO(self.data)).convert('RGB')).copy()


@dataclass(frozen=True)
class Event:
    """One intent, state, perception or text.

    Attributes:
        stamp_ns: time in the message's header, or of arrival where it has none.
        arrival_ns: time at which the recorder had it.
        fields: the other fields of the message by name.
    """

    stamp_ns: int
    arrival_ns: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Diagnostic:
    """One status of ``/diagnostics``: level 0 OK, 1 WARN, 2 ERROR, 3 STALE."""

    arrival_ns: int
    name: str
    level: int
    message: str
    values: dict[str, str]


@dataclass
class Recording:
    """A session read from a bag, each list in order of arrival.

    Attributes:
        path: the bag.
        namespace: prefix of the avatar's topics, with its slash at the end.
        counts: messages by absolute topic.
        custom: texts that the recorder left in the metadata.
        problems: what was missing or unreadable, in words.
    """

    path: Path
    namespace: str = '/'
    counts: dict[str, int] = field(default_factory=dict)
    custom: dict[str, str] = field(default_factory=dict)
    user_audio: list[Sound] = field(default_factory=list)
    speech: list[Sound] = field(default_factory=list)
    audio: list[Sound] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    perceptions: list[Event] = field(default_factory=list)
    intents: list[Event] = field(default_factory=list)
    states: list[Event] = field(default_factory=list)
    texts: list[Event] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Length of the avatar's stream by its stamps, seconds; 0 without one."""
        stamps = [item.stamp_ns for item in self.audio] + [p.stamp_ns for p in self.pictures]
        return (max(stamps) - min(stamps)) / NS_PER_S if stamps else 0.0


def _stamp_ns(message: Any) -> int:
    stamp = message.header.stamp
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _sound(message: Any, arrival_ns: int) -> Sound:
    declared = AudioFormat(int(message.sample_rate), int(message.channels), message.encoding)
    samples = samples_from_bytes(np.asarray(message.data, np.uint8).tobytes(), declared)
    return Sound(_stamp_ns(message), arrival_ns, int(message.turn_id), int(message.sequence),
                 bool(message.last), samples)


def _event(message: Any, arrival_ns: int) -> Event:
    names = [name for name in message.__dataclass_fields__ if name != '__msgtype__']
    # Constants are class attributes of the message, not part of what was said.
    fields = {name: _plain(getattr(message, name)) for name in names
              if name != 'header' and not name.isupper()}
    stamp_ns = _stamp_ns(message) if 'header' in names else arrival_ns
    return Event(stamp_ns, arrival_ns, fields)


def _picture(message: Any, arrival_ns: int) -> Picture:
    return Picture(_stamp_ns(message), arrival_ns, np.asarray(message.data, np.uint8).tobytes())


def _raw_picture(message: Any, arrival_ns: int) -> Picture:
    if message.encoding != 'rgb8':
        raise BagError(f'image encoding {message.encoding!r} is not rgb8: record '
                       f'image_raw/compressed, or publish rgb8')
    pixels = np.asarray(message.data, np.uint8).reshape(message.height, message.step)
    pixels = pixels[:, :3 * message.width].reshape(message.height, message.width, 3)
    buffer = io.BytesIO()
    # Lossless, and compressed little: the pictures are only kept in memory.
    Image.fromarray(pixels).save(buffer, 'PNG', compress_level=1)
    return Picture(_stamp_ns(message), arrival_ns, buffer.getvalue())


def _diagnostics(message: Any, arrival_ns: int) -> list[Diagnostic]:
    return [Diagnostic(arrival_ns, status.name, int(status.level), status.message,
                       {item.key: item.value for item in status.values})
            for status in message.status]


def find_namespace(topics: dict[str, str]) -> str:
    """Prefix of the avatar's topics in a bag, with a slash at its end.

    Args:
        topics: message type by absolute topic name.

    Raises:
        BagError: if no topic is the avatar's, or two avatars are in the bag.
    """
    marks = {'audio': 'avatar_bringup/msg/AudioChunk', 'state': 'avatar_bringup/msg/AvatarState',
             'image_raw/compressed': 'sensor_msgs/msg/CompressedImage',
             'image_raw': 'sensor_msgs/msg/Image'}
    # `user/` is part of the avatar's own names, never a namespace of another avatar.
    found = {topic[:-len(name)] for topic, kind in topics.items() for name, mark in marks.items()
             if topic.endswith('/' + name) and kind == mark and not topic.endswith('user/' + name)}
    if len(found) > 1:
        # A bag of a whole robot holds other cameras: the avatar is where its own types are.
        own = {n for n in found if topics.get(f'{n}state') == marks['state']
               or topics.get(f'{n}audio') == marks['audio']}
        found = own or found
    if not found:
        raise BagError(f'no topic of an avatar among {sorted(topics) or "none at all"}: record '
                       f'with `avatar record`, or check that this is the right bag')
    if len(found) > 1:
        raise BagError(f'avatars under {sorted(found)}: say which one with namespace=')
    return found.pop()


def read_bag(path: str | Path, namespace: str | None = None) -> Recording:
    """Read a session.

    Args:
        path: bag folder, or a single ``.mcap`` or ``.db3`` file.
        namespace: prefix of the avatar's topics; found by itself if None.

    Returns:
        Everything that could be read; what could not is named in ``problems``.

    Raises:
        BagError: if the bag is missing, damaged beyond use or holds no avatar.
    """
    path = Path(path)
    try:
        with open_bag(path) as bag:
            recording = _read(bag, path, namespace)
    except BagError:
        raise
    except DAMAGE as error:
        # The index was whole and the data is not.
        with open_bag(path, damage=error) as bag:
            recording = _read(bag, path, namespace)
    keep_longest_part(recording)
    return recording


class _Decoder:
    """Decodes a bag's messages by the definitions that the bag itself carries.

    A definition that differs from this package's is taken as it stands, and told: a bag of last
    year's package still gives the fields that it has.
    """

    def __init__(self, connections: Sequence[Connection], problems: list[str]) -> None:
        self._known = avatar_typestore()
        self._stores: dict[str, Typestore] = {}
        for connection in connections:
            kind, definition = str(connection.msgtype), connection.msgdef
            if definition.format == MessageDefinitionFormat.NONE or kind in self._stores:
                continue
            try:
                types = (get_types_from_msg(definition.data, kind)
                         if definition.format == MessageDefinitionFormat.MSG
                         else _types_of_idl(definition.data))
                store = get_typestore(Stores.EMPTY)
                store.register(types)
                self._stores[kind] = store
            except (TypesysError, ValueError, KeyError) as error:
                problems.append(f'the definition of {kind} in the bag cannot be read ({error}): '
                                f"this installation's own is used")
                continue
            if kind.startswith(MESSAGE_PACKAGE) and kind in self._known.fielddefs:
                theirs = {name: kinds for name, kinds in store.fielddefs[kind][1]}
                ours = {name: kinds for name, kinds in self._known.fielddefs[kind][1]}
                if theirs != ours:
                    lacks = sorted(set(ours) - set(theirs))
                    adds = sorted(set(theirs) - set(ours))
                    changed = sorted(n for n in set(ours) & set(theirs) if ours[n] != theirs[n])
                    what = '; '.join(f'{word} {", ".join(names)}' for word, names in (
                        ('lacks', lacks), ('adds', adds), ('changes the type of', changed))
                        if names) or 'orders its fields otherwise'
                    problems.append(f'{kind} was written by another version of this package '
                                    f'(it {what}): what both know is measured')

    def __call__(self, raw: bytes, kind: str) -> Any:
        """The message of CDR bytes.

        Raises:
            BagError: if the type is not known, neither to the bag nor here.
        """
        store = self._stores.get(kind, self._known)
        if kind not in store.fielddefs:
            raise BagError(f'no definition of {kind} in the bag or here')
        return store.deserialize_cdr(raw, kind)


def _types_of_idl(text: str) -> dict[str, Any]:
    mark = '=' * 80 + '\n'
    if not text.startswith(f'{mark}IDL: '):
        return dict(get_types_from_idl(text))
    types: dict[str, Any] = {}
    for part in text.split(mark)[1:]:
        types.update(get_types_from_idl(part.split('\n', 1)[1]))
    return types


def _read(bag: OpenBag, path: Path, namespace: str | None) -> Recording:
    kinds = {connection.topic: str(connection.msgtype) for connection in bag.connections}
    prefix = find_namespace(kinds) if namespace is None else f'/{namespace.strip("/")}/'
    prefix = prefix.replace('//', '/')
    recording = Recording(path, prefix, custom=bag.custom, problems=list(bag.problems))
    takers: dict[str, tuple[list[Any], Callable[[Any, int], Any]]] = {
        f'{prefix}user/audio': (recording.user_audio, _sound),
        f'{prefix}speech': (recording.speech, _sound),
        f'{prefix}audio': (recording.audio, _sound),
        f'{prefix}image_raw/compressed': (recording.pictures, _picture),
        f'{prefix}perception': (recording.perceptions, _event),
        f'{prefix}intent': (recording.intents, _event),
        f'{prefix}state': (recording.states, _event),
        f'{prefix}user/text': (recording.texts, _event),
        '/diagnostics': (recording.diagnostics, _diagnostics),
    }
    if f'{prefix}image_raw/compressed' not in kinds and f'{prefix}image_raw' in kinds:
        takers[f'{prefix}image_raw'] = (recording.pictures, _raw_picture)
    decode = _Decoder([c for c in bag.connections if c.topic in takers], recording.problems)
    recording.counts = {c.topic: int(c.msgcount) for c in bag.connections}
    failures: dict[str, tuple[int, Exception]] = {}
    others: set[str] = set()
    for connection, time_ns, raw in bag.messages(set(takers)):
        target, convert = takers[connection.topic]
        try:
            item = convert(decode(raw, str(connection.msgtype)), time_ns)
        except (AttributeError, AudioFormatError, BagError, SerdeError, TypesysError, ValueError,
                IndexError, struct.error) as error:
            count, first = failures.get(connection.topic, (0, error))
            failures[connection.topic] = (count + 1, first)
            continue
        if isinstance(item, list):
            # /diagnostics is one topic for the whole robot, and for other avatars beside this.
            own = [d for d in item if f'/{d.name.lstrip("/")}'.startswith(prefix)]
            others.update(d.name for d in item if d not in own)
            target.extend(own)
        else:
            target.append(item)
    for topic, (count, reason) in failures.items():
        recording.problems.append(f'{count} message(s) on {topic} could not be read, the first '
                                  f'because: {reason}')
    if others and not recording.diagnostics:
        recording.problems.append(f'/diagnostics holds nothing of {prefix}, only of '
                                  f'{", ".join(sorted(others))}: the nodes\' own figures are not '
                                  f'measured')
    for name in RECORDED_TOPICS:
        topic = name if name.startswith('/') else f'{prefix}{name}'
        stand_in = name == 'image_raw/compressed' and f'{prefix}image_raw' in kinds
        if topic not in kinds and not stand_in:
            recording.problems.append(f'topic {topic} is not in the bag: what depends on it is '
                                      f'not measured')
        elif not recording.counts.get(topic) and name in NEEDED_TOPICS and not stand_in:
            recording.problems.append(f'topic {topic} is in the bag without a message')
    for name, sounds in (('user/audio', recording.user_audio), ('audio', recording.audio)):
        empty = sum(not sound.samples.size and not sound.last for sound in sounds)
        if empty:
            recording.problems.append(f'{empty} message(s) on {prefix}{name} carry no samples: '
                                      f'they are left out')
            sounds[:] = [sound for sound in sounds if sound.samples.size or sound.last]
    return recording


def keep_longest_part(recording: Recording, tolerance_s: float = CLOCK_JUMP_S) -> None:
    """Cut a session to its longest part without a jump of a clock, and say so in ``problems``.

    A clock has jumped between two messages of the avatar's stream if the time between their
    stamps differs from that between their arrivals by more than the tolerance, or if stamps go
    back. Stamps that pause together with the arrivals (a generator that was stopped) are no jump.

    Args:
        recording: the session, changed in place.
        tolerance_s: difference that lateness does not explain, seconds.
    """
    stream: Sequence[Sound | Picture] = recording.audio or recording.pictures
    if len(stream) < 2:
        return
    stamps = np.array([item.stamp_ns for item in stream], np.int64)
    arrivals = np.array([item.arrival_ns for item in stream], np.int64)
    jump_ns = np.diff(stamps) - np.diff(arrivals)
    # A picture or chunk may overtake its neighbour; more than the tolerance back is a jump.
    jumps = np.flatnonzero((np.abs(jump_ns) > tolerance_s * NS_PER_S)
                           | (np.diff(stamps) < -tolerance_s * NS_PER_S)) + 1
    if not jumps.size:
        return
    edges = [0, *jumps.tolist(), len(stream)]
    start, stop = max(itertools.pairwise(edges), key=lambda part: part[1] - part[0])
    first = jumps[0]
    recording.problems.append(
        f"a clock jumps {jumps.size} time(s) in the avatar's stream, first by "
        f'{float(jump_ns[first - 1]) / NS_PER_S:+.1f} s at '
        f'{(arrivals[first] - arrivals[0]) / NS_PER_S:.1f} s of the bag: only the longest part '
        f'without a jump, {stop - start} of {len(stream)} chunks, is measured')
    margin_ns = int(tolerance_s * NS_PER_S / 2)
    low, high = int(stamps[start:stop].min()), int(stamps[start:stop].max())
    begin, end = int(arrivals[start]), int(arrivals[stop - 1])

    def inside(item: Any) -> bool:
        stamp_ns = getattr(item, 'stamp_ns', item.arrival_ns)
        return begin - margin_ns <= item.arrival_ns <= end + margin_ns and \
            low - margin_ns <= stamp_ns <= high + margin_ns

    for name in ('user_audio', 'speech', 'audio', 'pictures', 'perceptions', 'intents', 'states',
                 'texts'):
        part = getattr(recording, name)
        part[:] = [item for item in part if inside(item)]
    recording.diagnostics[:] = [d for d in recording.diagnostics
                                if begin - margin_ns <= d.arrival_ns <= end + margin_ns]
