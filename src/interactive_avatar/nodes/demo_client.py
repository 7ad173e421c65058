# SPDX-License-Identifier: Apache-2.0
"""The demo's user: a microphone that plays recorded utterances, and a recorder beside it.

Runs as a process of its own (``python -m interactive_avatar.nodes.demo_client``), as a real user's
microphone would, and prints one JSON object per line about what happens.

Each entry of ``utterances.yaml`` is said (``NAME.wav`` lies beside it), or, with ``typed: true``,
typed, or, with ``presence: true`` or ``false``, the user comes or leaves. ``interrupts: 1.2`` says
it so many seconds after the answer to the entry before has begun to sound.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from interactive_avatar.evaluation.bag import RECORDED_TOPICS, BagWriter
from interactive_avatar.media.audio import read_wav
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.nodes.recorder import Recorder, message_class

PICTURE_TOPICS = ('image_raw/compressed', 'camera_info')

BLOCK_MS = 80
STABLE_PHASE = 0
FINAL_EVENT = 3
MIN_READY_SOUNDS = 6
MIN_READY_PICTURES = 25


def tell(event: str, **fields: Any) -> None:
    """Print one line of JSON for the parent process."""
    print(json.dumps({'event': event, **fields}, ensure_ascii=False), flush=True)


class Microphone:
    """Publishes sound in real time, silence when nothing is to be said.

    As with a real microphone, a block is published when its last sample has been taken, stamped
    with the time of its first.

    Args:
        node: publishes on ``user/audio`` below its namespace.
        block_ms: sound in a message, in milliseconds.
    """

    def __init__(self, node: Node, block_ms: int = BLOCK_MS) -> None:
        self._block_samples = block_ms * SAMPLE_RATE_HZ // 1000
        # Reliable offers serve both kinds of subscriber; perception asks for best effort.
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=50,
                         reliability=ReliabilityPolicy.RELIABLE)
        self._kind = message_class('avatar_bringup/msg/AudioChunk')
        self._publisher = node.create_publisher(self._kind, 'user/audio', qos)
        self._lock = threading.Lock()
        self._waiting = np.zeros(0, np.int16)
        self._started_ns = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='microphone', daemon=True)
        self._thread.start()

    @property
    def subscribers(self) -> int:
        """Nodes that listen."""
        return self._publisher.get_subscription_count()

    @property
    def busy(self) -> bool:
        """Whether something is still to be said."""
        with self._lock:
            return bool(self._waiting.size)

    def say(self, samples: NDArray[np.int16]) -> int:
        """Play int16 [n] from the next block on; returns the stamp of its first sample, ns."""
        with self._lock:
            self._waiting = np.asarray(samples, np.int16)
            self._started_ns = 0
        while not self._started_ns and not self._stop.is_set():
            time.sleep(0.005)
        return self._started_ns

    def _run(self) -> None:
        # One origin for the whole stream, so that stamps have no jitter and never drift.
        t0_ns, block = time.time_ns(), 0
        block_ns = self._block_samples * 1_000_000_000 // SAMPLE_RATE_HZ
        while not self._stop.is_set():
            end_ns = t0_ns + (block + 1) * block_ns
            time.sleep(max(0.0, (end_ns - time.time_ns()) / 1e9))
            samples = np.zeros(self._block_samples, np.int16)
            stamp_ns = end_ns - block_ns
            with self._lock:
                piece, self._waiting = (self._waiting[:self._block_samples],
                                        self._waiting[self._block_samples:])
                if piece.size and not self._started_ns:
                    self._started_ns = stamp_ns
            samples[:piece.size] = piece
            message = self._kind()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
            message.header.frame_id = 'demo_user'
            message.sequence = block
            message.sample_rate, message.channels = SAMPLE_RATE_HZ, 1
            message.encoding = 'S16LE'
            message.data.frombytes(samples.astype('<i2').tobytes())
            self._publisher.publish(message)
            block += 1

    def close(self) -> None:
        """Fall silent."""
        self._stop.set()
        self._thread.join(timeout=1.0)


@dataclass
class Seen:
    """What came from the avatar, written by the recorder's thread."""

    phase: int | None = None
    turn_id: int = 0
    intent_turn: int = 0
    intent_ns: int = 0
    stable_turn: int = 0
    sounding_turn: int = 0
    sounded_ns: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


class Watcher:
    """Follows the dialogue from the recorded bytes, and tells of it."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._kinds = {name: message_class(RECORDED_TOPICS[name])
                       for name in ('perception', 'intent', 'state', 'audio')}

    def __call__(self, topic: str, data: bytes, now_ns: int) -> None:
        """Take one message (a `recorder.Listener`)."""
        if topic not in self._kinds:
            return
        message: Any = deserialize_message(data, self._kinds[topic])
        with self.seen.changed:
            if topic == 'perception' and message.event == FINAL_EVENT:
                tell('heard', text=message.text.strip())
            elif topic == 'intent':
                self.seen.intent_turn, self.seen.intent_ns = message.turn_id, now_ns
                tell('intent', intent=message.intent, confidence=round(message.confidence, 2),
                     action=message.action, speech=message.speech)
            elif topic == 'audio':
                if not message.turn_id or not any(message.data):
                    return
                self.seen.sounding_turn, self.seen.sounded_ns = message.turn_id, now_ns
            elif topic == 'state':
                self.seen.phase, self.seen.turn_id = message.phase, message.turn_id
                if message.phase == STABLE_PHASE:
                    self.seen.stable_turn = message.turn_id
                tell('state', phase='STABLE' if message.phase == STABLE_PHASE else 'ACTION',
                     activity=message.activity, prompt=message.prompt)
            self.seen.changed.notify_all()


class DemoUser:
    """Says each utterance and waits for the answer's end before the next.

    Args:
        microphone: where to say it.
        recorder: tells what has come so far.
        watcher: tells how the dialogue goes.
        answer_timeout_s: wait for an intent after an utterance's end.
        turn_timeout_s: wait for the return to the stable state after an intent.
    """

    def __init__(self, microphone: Microphone, recorder: Recorder, watcher: Watcher,
                 answer_timeout_s: float = 10.0, turn_timeout_s: float = 30.0) -> None:
        self._microphone, self._recorder, self._watcher = microphone, recorder, watcher
        self._answer_timeout_s, self._turn_timeout_s = answer_timeout_s, turn_timeout_s

    def wait_ready(self, timeout_s: float) -> list[str]:
        """Wait for a live avatar that listens; returns what is missing (empty if ready)."""
        deadline = time.monotonic() + timeout_s
        told: list[str] = []
        while True:
            counts = self._recorder.counts
            missing = []
            if counts.get('image_raw/compressed', MIN_READY_PICTURES) < MIN_READY_PICTURES:
                missing.append('pictures on image_raw/compressed (generator)')
            if counts['audio'] < MIN_READY_SOUNDS:
                missing.append('sound on audio (generator)')
            if self._watcher.seen.phase is None:
                missing.append('a state on state (reasoning)')
            if not self._microphone.subscribers > 1:
                # The recorder is one; a second one listens to understand.
                missing.append('a listener on user/audio (perception)')
            if not missing or time.monotonic() > deadline:
                return missing
            if missing != told:
                told = missing
                tell('waiting', missing=missing)
            time.sleep(0.2)

    def say(self, samples: NDArray[np.int16], until_sound_s: float | None = None
            ) -> dict[str, Any]:
        """Say int16 [n], wait for the turn, and return when what happened (ns).

        Args:
            samples: what is said.
            until_sound_s: wait only so long after the answer has begun to sound; None for its
                end.
        """
        start_ns = self._microphone.say(samples)
        end_ns = start_ns + samples.size * 1_000_000_000 // SAMPLE_RATE_HZ
        while self._microphone.busy:
            time.sleep(0.02)
        return self._follow(start_ns, end_ns, until_sound_s)

    def type(self, publish: Callable[[], None], until_sound_s: float | None = None
             ) -> dict[str, Any]:
        """Type or show something, wait for the turn, and return when what happened (ns)."""
        start_ns = time.time_ns()
        publish()
        return self._follow(start_ns, start_ns, until_sound_s)

    def _follow(self, start_ns: int, end_ns: int, until_sound_s: float | None) -> dict[str, Any]:
        seen = self._watcher.seen
        with seen.changed:
            seen.changed.wait_for(lambda: seen.intent_ns > start_ns, self._answer_timeout_s)
            answered = seen.intent_ns > start_ns
            turn = seen.intent_turn
            if answered and until_sound_s is not None:
                sounds = seen.changed.wait_for(
                    lambda: seen.sounding_turn >= turn and seen.sounded_ns > start_ns,
                    self._turn_timeout_s)
                seen.changed.wait_for(lambda: False, until_sound_s)
                return {'start_ns': start_ns, 'end_ns': end_ns, 'answered': answered,
                        'ended': False, 'sounded': bool(sounds)}
            ended = answered and seen.changed.wait_for(
                lambda: seen.phase == STABLE_PHASE and seen.stable_turn >= turn,
                self._turn_timeout_s)
        return {'start_ns': start_ns, 'end_ns': end_ns, 'answered': answered,
                'ended': bool(ended)}


def run(args: argparse.Namespace) -> int:
    """Play the demo; returns 0 if the avatar was there, 3 if it never came up."""
    entries = yaml.safe_load((args.utterances / 'utterances.yaml').read_text(encoding='utf-8'))
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.create_node('demo_user', namespace=args.namespace)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    watcher = Watcher()
    log: list[dict[str, Any]] = []
    with BagWriter(args.bag, {'recorder': 'avatar demo'}) as writer:
        topics = {name: kind for name, kind in RECORDED_TOPICS.items()
                  if args.pictures or name not in PICTURE_TOPICS}
        recorder = Recorder(node, writer, topics, listener=watcher)
        keyboard = node.create_publisher(message_class('std_msgs/msg/String'), 'user/text', 16)
        eyes = node.create_publisher(message_class('avatar_bringup/msg/UserPerception'),
                                     'perception', 16)

        def spin() -> None:
            try:
                executor.spin()
            except ExternalShutdownException:
                pass

        thread = threading.Thread(target=spin, name='recorder', daemon=True)
        thread.start()
        microphone = Microphone(node, args.block_ms)
        user = DemoUser(microphone, recorder, watcher, args.answer_timeout)
        try:
            missing = user.wait_ready(args.ready_timeout)
            if missing:
                tell('not_ready', missing=missing)
                return 3
            tell('ready', utterances=len(entries['utterances']))
            time.sleep(args.pause)
            script = entries['utterances']
            for index, entry in enumerate(script):
                follows = script[index + 1] if index + 1 < len(script) else {}
                until_sound_s = follows.get('interrupts')
                tell('say', index=index, name=entry['name'], text=entry['text'])
                if entry.get('typed'):
                    row = user.type(partial(keyboard.publish, message_class(
                        'std_msgs/msg/String')(data=entry['text'])), until_sound_s)
                elif 'presence' in entry:
                    row = user.type(partial(eyes.publish, message_class(
                        'avatar_bringup/msg/UserPerception')(face_present=entry['presence'])),
                        until_sound_s)
                else:
                    row = user.say(read_wav(args.utterances / f'{entry["name"]}.wav'),
                                   until_sound_s)
                kind = 'typed' if entry.get('typed') else \
                    'seen' if 'presence' in entry else 'said'
                log.append({'name': entry['name'], 'text': entry['text'],
                            'intent': entry['intent'], 'kind': kind, **row})
                tell('turn', index=index, **row)
                if until_sound_s is None:
                    time.sleep(args.pause)
            tell('done', counts=recorder.counts)
        finally:
            args.log.write_text(json.dumps(log, indent=1), encoding='utf-8')
            microphone.close()
            executor.shutdown(timeout_sec=2.0)
            thread.join(timeout=2.0)
            recorder.close()
            node.destroy_node()
            rclpy.try_shutdown()
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; started by `interactive_avatar.evaluation.demo`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--bag', type=Path, required=True, help='bag folder to create')
    parser.add_argument('--log', type=Path, required=True, help='JSON file: what was said when')
    parser.add_argument('--utterances', type=Path, required=True,
                        help='folder with utterances.yaml and its WAV files')
    parser.add_argument('--namespace', default='avatar')
    parser.add_argument('--ready-timeout', type=float, default=180.0, help='seconds')
    parser.add_argument('--no-pictures', dest='pictures', action='store_false',
                        help='neither wait for pictures nor record them')
    parser.add_argument('--answer-timeout', type=float, default=10.0, help='seconds')
    parser.add_argument('--block-ms', type=int, default=BLOCK_MS,
                        help="sound in a message of the microphone's")
    parser.add_argument('--pause', type=float, default=2.0, help='seconds between turns')
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(args)
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    sys.exit(main())
