# SPDX-License-Identifier: Apache-2.0
"""Optional inputs: microphones of ``audio_common`` and perception of ROS4HRI (REP-155).

Both message packages come with ROS 2 from apt and are not on PyPI. Where one is missing, its
adapter is simply not made.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from avatar_bringup.msg import UserPerception
from numpy.typing import NDArray
from std_msgs.msg import Bool

from interactive_avatar.media.audio import AudioFormat, AudioFormatError, samples_from_bytes
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.messages import to_ns
from interactive_avatar.perception import ENGAGEMENT_SHARE, Engagement

# Expressions of REP-155 in the words of UserPerception; older releases number them.
EXPRESSIONS = {
    'neutral': 'neutral', 'happy': 'smile', 'happiness': 'smile', 'sad': 'frown',
    'sadness': 'frown', 'angry': 'frown', 'anger': 'frown', 'disgusted': 'frown',
    'disgust': 'frown', 'scared': 'surprise', 'fear': 'surprise', 'surprised': 'surprise',
    'surprise': 'surprise'}
NUMBERED_EXPRESSIONS = (
    'neutral', 'happy', 'sad', 'anger', 'surprise', 'disgust', 'fear')


class Subscriber(Protocol):
    """The part of a node that the adapters use."""

    def create_subscription(self, msg_type: Any, topic: str, callback: Callable[[Any], None],
                            qos_profile: Any) -> Any: ...

    def destroy_subscription(self, subscription: Any) -> Any: ...


def find_messages(package: str) -> Any | None:
    """The ``msg`` module of a message package, or None where it is not installed."""
    try:
        return importlib.import_module(f'{package}.msg')
    except ImportError:
        return None


class AudioCommonAdapter:
    """Takes ``AudioDataStamped`` once its ``AudioInfo`` has declared a format that is accepted."""

    def __init__(self, node: Subscriber, messages: Any,
                 on_audio: Callable[[NDArray[np.int16], int], None],
                 complain: Callable[[str], None]) -> None:
        """Subscribe.

        Args:
            node: node to subscribe with.
            messages: module ``audio_common_msgs.msg``.
            on_audio: called with int16 [n] and the stamp of the first sample, ns.
            complain: called with a sentence when sound is refused.
        """
        self._node = node
        self._on_audio = on_audio
        self._complain = complain
        self._format: AudioFormat | None = None
        self._subscriptions = [
            node.create_subscription(messages.AudioInfo, 'user/audio_info', self._info,
                                     qos.STATE),
            node.create_subscription(messages.AudioDataStamped, 'user/audio_stamped', self._data,
                                     qos.SENSOR_AUDIO)]

    def close(self) -> None:
        """Unsubscribe."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _info(self, message: Any) -> None:
        coding = message.coding_format.lower()
        encoding = message.sample_format if coding in ('wave', 'wav', 'raw', '') else coding
        self._format = AudioFormat(message.sample_rate, message.channels, encoding)

    def _data(self, message: Any) -> None:
        if self._format is None:
            self._complain('user/audio_stamped is refused: nobody has declared its format on '
                           'user/audio_info; publish audio_common_msgs/AudioInfo there')
            return
        try:
            samples = samples_from_bytes(memoryview(message.audio.data), self._format)
        except AudioFormatError as error:
            self._complain(f'user/audio_stamped is refused: {error}')
            return
        self._on_audio(samples, to_ns(message.header.stamp))


@dataclass
class _Kind:
    """Subscriptions for each tracked id of one kind of entity."""

    tracked: str
    topics: list[tuple[Any, str, Callable[[str, Any], None]]]
    live: dict[str, list[Any]]


class HriAdapter:
    """Follows the humans of REP-155, subscribing and unsubscribing as their ids come and go."""

    def __init__(self, node: Subscriber, messages: Any,
                 on_perception: Callable[[UserPerception], None]) -> None:
        """Subscribe to the lists of tracked voices, faces and persons, and to gazes.

        Args:
            node: node to subscribe with.
            messages: module ``hri_msgs.msg``.
            on_perception: called with what was perceived.
        """
        self._node = node
        self._emit = on_perception
        self._speaking: set[str] = set()
        self._expression = ''
        self._engagement: dict[str, int] = {}
        self._looking: set[str] = set()
        self._kinds = [
            _Kind('/humans/voices/tracked', [
                (messages.LiveSpeech, '/humans/voices/{}/speech', self._speech),
                (Bool, '/humans/voices/{}/is_speaking', self._is_speaking)], {}),
            _Kind('/humans/faces/tracked', [
                (messages.Expression, '/humans/faces/{}/expression', self._on_expression)], {}),
            _Kind('/humans/persons/tracked', [
                (messages.EngagementLevel, '/humans/persons/{}/engagement_status',
                 self._on_engagement)], {})]
        self._subscriptions = [
            node.create_subscription(
                messages.IdsList, kind.tracked,
                partial(self._on_ids, kind), qos.EVENT)
            for kind in self._kinds]
        self._subscriptions.append(node.create_subscription(
            messages.Gaze, '/humans/interactions/gazing', self._on_gaze, qos.EVENT))

    def close(self) -> None:
        """Unsubscribe from everything."""
        for kind in self._kinds:
            self.follow(kind, [])
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _on_ids(self, kind: _Kind, message: Any) -> None:
        before = set(kind.live)
        self.follow(kind, message.ids)
        if kind is self._kinds[1] and set(kind.live) != before:
            # Whoever comes or goes is told, even if nothing else is known of them.
            self._send('')

    def follow(self, kind: _Kind, ids: Iterable[str]) -> None:
        """Subscribe to the topics of new ids, and unsubscribe from those of ids that have gone."""
        wanted = set(ids)
        for gone in set(kind.live) - wanted:
            for subscription in kind.live.pop(gone):
                self._node.destroy_subscription(subscription)
            self._forget(gone)
        for new in wanted - set(kind.live):
            kind.live[new] = [
                self._node.create_subscription(
                    message_type, topic.format(new),
                    partial(call, new), qos.EVENT)
                for message_type, topic, call in kind.topics]

    def _forget(self, who: str) -> None:
        self._looking.discard(who)
        self._engagement.pop(who, None)
        if who in self._speaking:
            # A voice that is lost in mid-sentence has stopped speaking.
            self._speaking.discard(who)
            self._send(who, UserPerception.SPEECH_ENDED)

    def _send(self, who: str, event: int = UserPerception.NONE, text: str = '',
              confidence: float = math.nan) -> None:
        faces = self._kinds[1].live
        level = max(self._engagement.values(), default=int(Engagement.UNKNOWN),
                    key=lambda level: ENGAGEMENT_SHARE.get(level, -1.0))
        self._emit(UserPerception(
            source='hri', user_id=who, event=event, speaking=bool(self._speaking), text=text,
            confidence=confidence, face_present=bool(faces), expression=self._expression,
            looking=bool(self._looking), people=min(len(faces), 255), engagement_level=level,
            engagement=ENGAGEMENT_SHARE.get(level, math.nan), distance_m=math.nan))

    def _speech(self, who: str, message: Any) -> None:
        if message.final:
            self._send(who, UserPerception.FINAL, message.final, float(message.confidence))
        elif message.incremental:
            self._send(who, UserPerception.PARTIAL, message.incremental)

    def _is_speaking(self, who: str, message: Any) -> None:
        if message.data and who not in self._speaking:
            self._speaking.add(who)
            self._send(who, UserPerception.SPEECH_STARTED)
        elif not message.data and who in self._speaking:
            self._speaking.discard(who)
            self._send(who, UserPerception.SPEECH_ENDED)

    def _on_expression(self, who: str, message: Any) -> None:
        name = message.expression
        if isinstance(name, int):
            name = NUMBERED_EXPRESSIONS[name] if name < len(NUMBERED_EXPRESSIONS) else ''
        expression = EXPRESSIONS.get(name.lower(), '')
        if expression != self._expression:
            self._expression = expression
            self._send(who)

    def _on_engagement(self, who: str, message: Any) -> None:
        level = int(message.level)
        if self._engagement.get(who) != level:
            self._engagement[who] = level
            self._send(who)

    def _on_gaze(self, message: Any) -> None:
        # An empty id is the robot itself.
        if not message.sender:
            return
        at_robot = not message.receiver
        if at_robot != (message.sender in self._looking):
            (self._looking.add if at_robot else self._looking.discard)(message.sender)
            self._send(message.sender)
