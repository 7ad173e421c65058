# SPDX-License-Identifier: Apache-2.0
"""The perception node: the user's sound in, speech events and words out.

A thin adapter over `perception.Listener`, which runs in a thread of its own behind a bounded
queue. When the queue is full the oldest sound goes, and the listener is told of the gap by the
stamps. The avatar's own sound is heard too, so that its echo is not taken for the user.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from avatar_bringup.msg import AudioChunk, UserPerception
from numpy.typing import NDArray

from interactive_avatar.media.audio import SequenceGuard
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.adapters import AudioCommonAdapter, HriAdapter, find_messages
from interactive_avatar.nodes.base import AvatarNode, be_nice, run_node
from interactive_avatar.nodes.diagnostics import WARN
from interactive_avatar.nodes.messages import samples_of, to_ns, to_time
from interactive_avatar.nodes.options import option
from interactive_avatar.perception import (
    AudioGap,
    EchoGuard,
    EndpointOptions,
    Event,
    Final,
    Listener,
    ListenerOptions,
    Partial,
    PerceptionError,
    SpeechEnded,
    SpeechStarted,
    WhisperRecogniser,
)

# How often results of recognition are fetched while no sound comes.
POLL_S = 0.05
# A source that falls silent in mid-sentence (a page that is closed) ends the sentence.
SOURCE_LOST_S = 1.0


@dataclass(frozen=True)
class PerceptionOptions:
    """Parameters of the perception node."""

    autostart: bool = option(True, 'configure and activate without being asked')
    mode: str = option('companion', "companion hears the user; in telepresence user/audio is the "
                                    "operator's and is not recognised",
                       choices=('companion', 'telepresence'))
    language: str = option('en', 'language the user speaks, two-letter code')
    model: str = option('', 'folder of a CTranslate2 Whisper model; empty for the packaged one')
    threads: int = option(2, 'processor threads of one recognition', minimum=1, maximum=16)
    onset: float = option(0.5, 'probability of voice from which speech may start',
                          minimum=0.01, maximum=0.99)
    offset: float = option(0.35, 'probability of voice below which speech may end',
                           minimum=0.01, maximum=0.99)
    trailing_silence_ms: int = option(500, 'silence that ends an utterance, ms',
                                      minimum=100, maximum=5000)
    complete_silence_ms: int = option(288, 'silence that ends a sentence whose words are complete '
                                           'and surely recognised, ms; 0 to wait for '
                                           'trailing_silence_ms always', minimum=0, maximum=5000)
    max_speech_ms: int = option(25000, 'an utterance is cut at this length, ms',
                                minimum=1000, maximum=28000)
    partial_interval_ms: int = option(1000, 'time between partial results, ms; 0 for none',
                                      minimum=0, maximum=10000)
    queue_blocks: int = option(100, 'blocks of sound that may wait; the oldest goes first',
                               minimum=4, maximum=10000)
    echo_guard: bool = option(True, "take the avatar's own voice out of what the microphone hears")
    hri: bool = option(True, 'follow the humans of ROS4HRI (REP-155) where hri_msgs is installed')
    audio_common: bool = option(True, 'take user/audio_stamped where audio_common_msgs is '
                                      'installed')
    nice: int = option(5, 'scheduling priority of the listening threads, 19 is lowest',
                       minimum=-20, maximum=19)


class PerceptionNode(AvatarNode):
    """Publishes what the user says; see the module."""

    options_class = PerceptionOptions
    options: PerceptionOptions

    def __init__(self, **arguments: Any) -> None:
        super().__init__('perception', **arguments)
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._adapters: list[AudioCommonAdapter | HriAdapter] = []
        self._stopping = threading.Event()

    def configure(self) -> None:
        """Load voice activity and recognition, make the topics."""
        options = self.options
        be_nice(self, options.nice)
        self._blocks: queue.Queue[tuple[NDArray[np.int16], int]] = queue.Queue(
            options.queue_blocks)
        self._guard = SequenceGuard()
        self._echo = self._open_echo_guard()
        self._listener = Listener(
            ListenerOptions(
                EndpointOptions(onset=options.onset, offset=options.offset,
                                trailing_silence_ms=options.trailing_silence_ms,
                                max_speech_ms=options.max_speech_ms),
                partial_interval_ms=options.partial_interval_ms,
                complete_silence_ms=options.complete_silence_ms, language=options.language),
            open_recogniser=lambda: WhisperRecogniser(
                options.model or None, language=options.language, threads=options.threads),
            echo=self._echo)
        self._perception = self.publish_to(UserPerception, 'perception', qos.EVENT)
        if options.mode == 'companion':
            self._hear_user()
        self._adapt()

    def _hear_user(self) -> None:
        self.listen_to(AudioChunk, 'user/audio', self._on_audio, qos.SENSOR_AUDIO)
        if self._echo is not None:
            self.listen_to(AudioChunk, 'audio', self._on_own_audio, qos.AUDIO)
            self.diagnostics.watch(self._echo.figures)

    def _open_echo_guard(self) -> EchoGuard | None:
        if not self.options.echo_guard:
            return None
        try:
            return EchoGuard()
        except PerceptionError as error:
            # An avatar that hears itself is of more use than one that is deaf.
            self.report('echo_guard', f'the avatar may interrupt itself: {error}', WARN)
            return None

    def _adapt(self) -> None:
        """Make the optional inputs whose message packages are installed."""
        if self.options.audio_common and (messages := find_messages('audio_common_msgs')):
            self._adapters.append(AudioCommonAdapter(
                self, messages, self._hear,
                lambda text: self.report('audio_stamped', text, WARN)))
        if self.options.hri and (messages := find_messages('hri_msgs')):
            self._adapters.append(HriAdapter(self, messages, self._perceive))

    def activate(self) -> None:
        """Start listening; what was heard before is not taken up again."""
        self._stopping.clear()
        while not self._blocks.empty():
            self._blocks.get_nowait()
        self._guard.reset()
        if self._listener is not None:
            self._listener.forget()
        self._thread = threading.Thread(target=self._listen, name='listener', daemon=True)
        self._thread.start()

    def deactivate(self) -> None:
        """Stop listening."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None

    def cleanup(self) -> None:
        """Release the models."""
        while self._adapters:
            self._adapters.pop().close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _on_audio(self, message: AudioChunk) -> None:
        samples = samples_of(message)
        self.diagnostics.count('blocks_heard')
        gap = self._guard.check(message.sequence, message.header.frame_id)
        if gap is not None:
            self.report('audio_gap', f'user/audio: {gap}', WARN)
        self._hear(samples, to_ns(message.header.stamp))

    def _on_own_audio(self, message: AudioChunk) -> None:
        if self._echo is not None and self._thread is not None:
            self._echo.hear_own(samples_of(message), to_ns(message.header.stamp))

    def _perceive(self, message: UserPerception) -> None:
        if self._thread is not None:
            message.header.stamp = self.get_clock().now().to_msg()
            self._perception.publish(message)

    def _hear(self, samples: NDArray[np.int16], stamp_ns: int) -> None:
        if self._thread is None:
            return
        block = (samples, stamp_ns)
        while True:
            try:
                self._blocks.put_nowait(block)
                return
            except queue.Full:
                try:
                    self._blocks.get_nowait()
                except queue.Empty:
                    continue
                self.report('audio_dropped', f'user/audio: more than {self.options.queue_blocks} '
                            f'blocks waited, the oldest was dropped: free the processor', WARN)

    def _listen(self) -> None:
        listener = self._listener
        assert listener is not None
        heard_s = time.monotonic()
        while not self._stopping.is_set():
            try:
                try:
                    samples, stamp_ns = self._blocks.get(timeout=POLL_S)
                    heard_s = time.monotonic()
                    events = listener.push(samples, stamp_ns)
                except queue.Empty:
                    if listener.speaking and time.monotonic() - heard_s > SOURCE_LOST_S:
                        listener.reset('gap')
                    events = listener.poll()
                for event in events:
                    self._publish(event, listener.speaking)
            except Exception as error:
                self.report('listen', f'listening failed: {type(error).__name__}: {error}')
                self._stopping.wait(POLL_S)

    def _publish(self, event: Event, speaking: bool) -> None:
        if isinstance(event, AudioGap):
            self.report('audio_gap', f'user/audio: {event}', WARN)
            return
        if isinstance(event, SpeechEnded):
            self.diagnostics.count(f'ended_by_{event.reason}')
            self._note('voice_to_end_s', event.stamp_ns)
        if isinstance(event, Final):
            self.diagnostics.values['recognition_s'] = event.recognition_s
            self.diagnostics.count('utterances')
            self._note('voice_to_words_s', event.end_ns)
            if event.error:
                self.report('recognition', f'an utterance was not recognised: {event.error}')
        self._perception.publish(perception_message(event, speaking, self.options.language))

    def _note(self, name: str, since_ns: int) -> None:
        """Show how long ago the user's voice ended, where the sound's stamps are of this clock."""
        seconds = (self.get_clock().now().nanoseconds - since_ns) / 1e9
        if 0.0 <= seconds <= 60.0:
            self.diagnostics.values[name] = round(seconds, 3)


def perception_message(event: SpeechStarted | SpeechEnded | Partial | Final, speaking: bool,
                       language: str) -> UserPerception:
    """What was heard as a message.

    Args:
        event: what was heard.
        speaking: whether the user is speaking now.
        language: two-letter code.
    """
    message = UserPerception(source='microphone', speaking=speaking, language=language,
                             confidence=math.nan, engagement=math.nan, distance_m=math.nan)
    if isinstance(event, SpeechStarted):
        message.event, stamp_ns = UserPerception.SPEECH_STARTED, event.stamp_ns
    elif isinstance(event, SpeechEnded):
        message.event, stamp_ns = UserPerception.SPEECH_ENDED, event.stamp_ns
    elif isinstance(event, Partial):
        message.event, stamp_ns = UserPerception.PARTIAL, event.stamp_ns
        message.text = event.text
        message.speaking = not event.pause
    else:
        message.event, stamp_ns = UserPerception.FINAL, event.end_ns
        message.text = event.text
        message.confidence = float(event.confidence)
        message.duration_s = (event.end_ns - event.start_ns) / 1e9
    message.header.stamp = to_time(max(stamp_ns, 0))
    return message


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    return run_node(PerceptionNode, args)


if __name__ == '__main__':
    sys.exit(main())
