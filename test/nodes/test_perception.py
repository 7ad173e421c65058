# SPDX-License-Identifier: Apache-2.0
"""The perception node on real topics, with its real ears."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')
pytest.importorskip('faster_whisper', reason='faster-whisper is not installed: run `make build`')

from avatar_bringup.msg import AudioChunk, UserPerception
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

import interactive_avatar.evaluation
from interactive_avatar.media.audio import read_wav
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.nodes import perception, qos
from interactive_avatar.nodes.messages import audio_message
from interactive_avatar.nodes.perception import PerceptionNode

UTTERANCES = Path(interactive_avatar.evaluation.__file__).parent / 'utterances'
BLOCK = SAMPLE_RATE_HZ // 25


@pytest.mark.slow
def test_a_sentence_is_heard_and_bad_sound_is_refused(context: Any) -> None:
    node = PerceptionNode(context=context, namespace='ear', parameters={'nice': 0})
    friend = Node('friend', context=context, namespace='ear')
    heard: list[UserPerception] = []
    friend.create_subscription(UserPerception, 'perception', heard.append, qos.EVENT)
    talk = friend.create_publisher(AudioChunk, 'user/audio', qos.AUDIO)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    executor.add_node(friend)

    def spin_until(done: Callable[[], Any], timeout_s: float = 20.0) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not done() and time.monotonic() < deadline_s:
            executor.spin_once(timeout_sec=0.02)
        return bool(done())

    try:
        assert spin_until(lambda: node.state_label == 'active' and talk.get_subscription_count())
        bad = audio_message(np.zeros(BLOCK, np.int16), 0, sequence=0)
        bad.sample_rate = 48000
        talk.publish(bad)
        assert spin_until(lambda: '48000 Hz' in node.diagnostics.status().message)
        quiet = np.zeros(SAMPLE_RATE_HZ // 2, np.int16)
        sound = np.concatenate([quiet, read_wav(UTTERANCES / 'nod.wav'), quiet, quiet])
        stamp_ns = time.time_ns()
        # Four times as fast as real time: the stamps, not the arrival, are the clock.
        for sequence, start in enumerate(range(0, sound.size - BLOCK + 1, BLOCK)):
            talk.publish(audio_message(sound[start:start + BLOCK],
                                       stamp_ns + start * 1_000_000_000 // SAMPLE_RATE_HZ,
                                       sequence=sequence))
            executor.spin_once(timeout_sec=0.01)
        assert spin_until(lambda: any(m.event == UserPerception.FINAL for m in heard))
        events = [message.event for message in heard]
        assert events[0] == UserPerception.SPEECH_STARTED
        assert events.index(UserPerception.SPEECH_ENDED) < events.index(UserPerception.FINAL)
        final = heard[events.index(UserPerception.FINAL)]
        assert 'nod' in final.text.lower() and final.duration_s > 0.3 and not final.speaking
        assert node.state_label == 'active'
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        friend.destroy_node()


def test_activated_again_it_takes_up_nothing_of_before(
        context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Ear:
        """Notes what is asked of it."""

        speaking = False

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def push(self, samples: np.ndarray, stamp_ns: int) -> list[Any]:
            calls.append('push')
            return []

        def poll(self) -> list[Any]:
            return []

        def forget(self) -> None:
            calls.append('forget')

        def close(self) -> None:
            pass

    monkeypatch.setattr(perception, 'Listener', Ear)
    node = PerceptionNode(context=context, namespace='ear', parameters={
        'nice': 0, 'autostart': False, 'echo_guard': False})
    try:
        node.trigger_configure()
        node._blocks.put((np.zeros(BLOCK, np.int16), 1))
        node.trigger_activate()
        assert node.state_label == 'active'
        node.trigger_deactivate()
        assert calls == ['forget']
    finally:
        node.close()
        node.destroy_node()
