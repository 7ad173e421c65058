# SPDX-License-Identifier: Apache-2.0
"""The reasoning node on real topics, with a module that notes what it is told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

from avatar_bringup.msg import AudioChunk, AvatarIntent, AvatarState, UserPerception
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.media.clock import CHUNK_SAMPLES
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.messages import ACTIVITIES, PHASES, audio_message
from interactive_avatar.nodes.reasoning import (
    ReasoningNode,
    cycle_options,
    intent_message,
    perceived_of,
    state_message,
)
from interactive_avatar.reasoning import Activity, Intent, Phase, State, Turn

STATE = State(Phase.ACTION, Activity.SPEAKING, 7, 'nods', 'rests', WorldState())
TURN = Turn('nod', 0.75, 'happy', 'Gladly.', 'nod', {'direction': 'left'}, 'nods', 'talks',
            'rests', WorldState())
INTENT = Intent(7, TURN, 'please nod', 0.25)


class NotingModule:
    """Notes every call; its speech is filled by the test."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.pieces: deque[Any] = deque()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, *arguments))

    def pull(self) -> Any:
        return self.pieces.popleft() if self.pieces else None

    def figures(self) -> dict[str, object]:
        return {'turns': 3}


@pytest.fixture
def rig(context: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = NotingModule()
    monkeypatch.setattr(ReasoningNode, '_open', lambda self: module)
    node = ReasoningNode(context=context, namespace='mind')
    friend = Node('friend', context=context, namespace='mind')
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    executor.add_node(friend)

    def spin_until(done: Callable[[], Any], timeout_s: float = 8.0) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not done() and time.monotonic() < deadline_s:
            executor.spin_once(timeout_sec=0.02)
        return bool(done())

    got: dict[str, list[Any]] = {'state': [], 'intent': [], 'speech': []}
    for kind, topic, profile in ((AvatarState, 'state', qos.STATE),
                                 (AvatarIntent, 'intent', qos.EVENT),
                                 (AudioChunk, 'speech', qos.AUDIO)):
        friend.create_subscription(kind, topic, got[topic].append, profile)
    out = SimpleNamespace(
        perception=friend.create_publisher(UserPerception, 'perception', qos.EVENT),
        text=friend.create_publisher(String, 'user/text', qos.EVENT))

    assert spin_until(lambda: node.state_label == 'active' and all(
        publisher.get_subscription_count() for publisher in vars(out).values()) and all(
        publisher.get_subscription_count()
        for publisher in (node._state, node._intent, node._speech)))
    # A publisher knows its subscription a little before the subscription knows the publisher.
    spin_until(lambda: False, 0.2)
    yield SimpleNamespace(node=node, module=module, got=got, out=out, spin_until=spin_until)
    node.close()
    executor.shutdown()
    node.destroy_node()
    friend.destroy_node()
    assert ('close',) in module.calls


def test_the_names_of_the_cycle_are_those_of_the_messages() -> None:
    assert tuple(phase.value for phase in Phase) == PHASES
    assert tuple(activity.value for activity in Activity) == ACTIVITIES
    for names in (PHASES, ACTIVITIES):
        assert [getattr(AvatarState, name) for name in names] == list(range(len(names)))


def test_a_state_becomes_a_message() -> None:
    message = state_message(STATE)
    assert (message.phase, message.activity) == (AvatarState.ACTION, AvatarState.SPEAKING)
    assert (message.prompt, message.next_prompt, message.turn_id) == ('nods', 'rests', 7)


def test_the_cycle_is_more_patient_than_the_language_model_needs() -> None:
    assert cycle_options(4.0).thinking_s == 12.0
    assert cycle_options(20.0).thinking_s == 44.0
    # The longest patience that the parameter allows is one that the cycle allows.
    assert cycle_options(120.0).thinking_s == 244.0


def test_a_turn_becomes_a_message() -> None:
    message = intent_message(INTENT)
    assert (message.intent, message.action, message.speech) == ('nod', 'nod', 'Gladly.')
    assert (message.slot_names, message.slot_values) == (['direction'], ['left'])
    assert message.header.frame_id == 'embedded'


def test_what_the_user_does_reaches_the_module(rig: Any) -> None:
    for event, text in ((UserPerception.SPEECH_STARTED, ''), (UserPerception.PARTIAL, 'please'),
                        (UserPerception.SPEECH_ENDED, ''), (UserPerception.FINAL, 'please nod'),
                        (UserPerception.NONE, '')):
        rig.out.perception.publish(UserPerception(event=event, text=text, face_present=True,
                                                  speaking=event != UserPerception.FINAL))
    rig.out.text.publish(String(data='and smile'))
    assert rig.spin_until(lambda: ('on_text', 'and smile') in rig.module.calls
                          and any(call[0] == 'on_perceived' for call in rig.module.calls))
    *heard, seen = [call for call in rig.module.calls if call[0].startswith('on_') and
                    call[0] != 'on_text']
    assert heard == [
        ('on_speech_started',), ('on_partial', 'please', False), ('on_speech_ended', 0.0),
        ('on_words', 'please nod')]
    # A source that names itself by nothing is not taken to see that nobody looks.
    assert (seen[1].present, seen[1].looking) == (True, None)


def test_what_a_camera_does_not_know_stays_open() -> None:
    seen = perceived_of(UserPerception(
        source='camera', face_present=True, looking=False, engagement=0.25,
        engagement_level=UserPerception.DISENGAGING, people=2, gesture='nod'))
    assert (seen.present, seen.looking, seen.engaged, seen.people, seen.gesture) == (
        True, False, 0.25, 2, 'nod')
    gone = UserPerception(source='camera', engagement_level=UserPerception.DISENGAGED)
    assert perceived_of(gone).present is False
    # No pictures: nobody is known to have left.
    assert perceived_of(UserPerception(source='camera')).present is None


def test_a_turn_that_can_be_heard_does_not_wait_for_the_next_tick(rig: Any) -> None:
    waits_s = []
    for turn in range(1, 7):
        rig.module.pieces.append(SimpleNamespace(
            turn_id=turn, sequence=0, samples=np.full(CHUNK_SAMPLES, 9, np.int16), last=True))
        started_s = time.monotonic()
        rig.node._wake.set()
        assert rig.spin_until(lambda turn=turn: len(rig.got['speech']) == turn)
        waits_s.append(time.monotonic() - started_s)
    assert sorted(waits_s)[3] < 0.06


def test_in_telepresence_the_operators_sound_and_actions_go_to_the_remote(
        context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = NotingModule()
    monkeypatch.setattr(ReasoningNode, '_open_remote', lambda self: remote)
    node = ReasoningNode(context=context, namespace='far', parameters={'mode': 'telepresence'})
    friend = Node('friend', context=context, namespace='far')
    voice = friend.create_publisher(AudioChunk, 'user/audio', qos.AUDIO)
    text = friend.create_publisher(String, 'user/text', qos.EVENT)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    executor.add_node(friend)
    try:
        deadline_s = time.monotonic() + 8.0
        while not (node.state_label == 'active' and voice.get_subscription_count()
                   and text.get_subscription_count()) and time.monotonic() < deadline_s:
            executor.spin_once(timeout_sec=0.02)
        samples = np.arange(640, dtype=np.int16)
        while not {'on_sound', 'on_text', 'tick'} <= {call[0] for call in remote.calls} \
                and time.monotonic() < deadline_s:
            voice.publish(audio_message(samples, time.time_ns(), sequence=0))
            text.publish(String(data='nod'))
            executor.spin_once(timeout_sec=0.05)
        heard = next(call for call in remote.calls if call[0] == 'on_sound')
        assert np.array_equal(heard[1], samples)
        assert ('on_text', 'nod') in remote.calls and ('start',) in remote.calls
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        friend.destroy_node()
    assert ('close',) in remote.calls


def test_deactivated_it_hushes_its_module(rig: Any) -> None:
    rig.node.trigger_deactivate()
    assert rig.module.calls[-1] == ('hush',)


def test_an_empty_line_is_refused_with_a_diagnostic(rig: Any) -> None:
    rig.out.text.publish(String(data='  '))
    assert rig.spin_until(lambda: 'an empty line' in rig.node.diagnostics.status().message)


def test_state_and_intent_are_published_from_any_thread(rig: Any) -> None:
    rig.node._publish_state(STATE)
    rig.node._publish_intent(INTENT)
    assert rig.spin_until(lambda: rig.got['state'] and rig.got['intent'])
    assert rig.got['state'][0].header.stamp.sec > 0
    assert rig.got['intent'][0].user_text == 'please nod'


def test_speech_is_sent_at_the_pace_at_which_it_is_spoken(rig: Any) -> None:
    samples = np.full(CHUNK_SAMPLES, 9, np.int16)
    rig.module.pieces.extend(
        SimpleNamespace(turn_id=7, sequence=number, samples=samples, last=number == 4)
        for number in range(5))
    started_s = time.monotonic()
    assert rig.spin_until(lambda: len(rig.got['speech']) == 5)
    # The second piece goes out with the first, so five take three waits.
    assert time.monotonic() - started_s > 2.5 * 0.16
    assert [(piece.turn_id, piece.sequence, piece.last) for piece in rig.got['speech']] == [
        (7, number, number == 4) for number in range(5)]
