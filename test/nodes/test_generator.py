# SPDX-License-Identifier: Apache-2.0
"""The generator node on real topics, with a stream that is cheap and lets itself be read."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

from avatar_bringup.msg import AudioChunk, AvatarState
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from interactive_avatar.media.clock import CHUNK_NS, CHUNK_SAMPLES, FRAME_NS
from interactive_avatar.media.picture import decode_image
from interactive_avatar.nodes import generator, qos
from interactive_avatar.nodes.messages import audio_message, samples_of, to_ns


class GreyStream:
    """Each chunk is one grey; the sound of the frames is the speech of the step before."""

    lookahead_chunks = 1
    overlaps = False

    def __init__(self) -> None:
        self.count = 0
        self.prompts: list[str] = []
        self.pending = np.zeros(CHUNK_SAMPLES, np.int16)

    def submit(self, speech: np.ndarray, shown: Any = None) -> Future[Any]:
        made: Future[Any] = Future()
        made.set_result(self.step(speech))
        return made

    def step(self, speech: np.ndarray) -> Any:
        self.count += 1
        sound, self.pending = self.pending, speech
        frames = np.full((4, 64, 64, 3), self.count % 250, np.uint8)
        return SimpleNamespace(frames=frames, audio=sound,
                               prompt=self.prompts[-1] if self.prompts else '')

    def switch(self, prompt: str) -> None:
        self.prompts.append(prompt)

    def prepare(self, prompt: str) -> None:
        self.prompts.append(f'prepared {prompt}')


def test_what_is_said_live_has_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from interactive_avatar.generator import AvatarStream

    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(AvatarStream, 'open', lambda **given: opened.append(given))
    for mode in ('companion', 'telepresence'):
        generator.open_stream(generator.GeneratorOptions(mode=mode, backend='onnx'))
    assert [given['overlap'] for given in opened] == [True, False]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What streams were opened with, on a machine whose card runs torch."""
    from interactive_avatar.generator import AvatarStream, backends

    calls: list[dict[str, Any]] = []

    def open_it(**given: Any) -> SimpleNamespace:
        calls.append(given)
        return SimpleNamespace(lookahead_chunks=1, prompt='', snapshot=lambda: None)

    monkeypatch.setattr(AvatarStream, 'open', open_it)
    monkeypatch.setattr(backends, 'choose_backend', lambda: ('torch', 'a card'))
    return calls


@pytest.fixture
def wan_model(tmp_path: Path) -> str:
    from interactive_avatar.generator.wan.files import ARCHITECTURE

    (tmp_path / 'config.json').write_text(json.dumps({'architecture': ARCHITECTURE}))
    return str(tmp_path)


def open_with(**parameters: Any) -> tuple[Any, str]:
    return generator.open_stream(generator.GeneratorOptions(**parameters))


def test_precision_and_cards_reach_the_model(opened: list[dict[str, Any]], wan_model: str) -> None:
    open_with(backend='torch', precision='fp16')
    open_with(backend='onnx', precision='fp16')
    open_with(backend='torch')
    assert [given.get('precision') for given in opened] == ['fp16', None, None]
    assert not any({'cards', 'decode_device'} & set(given) for given in opened)
    opened.clear()
    stream, backend = open_with(model=wan_model, precision='fp8', cards=2)
    assert backend.startswith('torch (')
    # There is no graph of it for onnx to go on with.
    assert isinstance(stream, SimpleNamespace)
    open_with(model=wan_model, backend='torch', decode_device='cuda:1', mode='telepresence')
    assert [{name: given[name] for name in ('precision', 'cards', 'decode_device', 'lookahead_ms')
             if name in given} for given in opened] == [
        {'precision': 'fp8', 'cards': 2, 'decode_device': ''},
        {'cards': 1, 'decode_device': 'cuda:1'}]
    assert [given['backend'] for given in opened] == ['torch', 'torch']


def test_what_a_model_cannot_use_is_refused(opened: list[dict[str, Any]], wan_model: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from interactive_avatar.generator import backends
    from interactive_avatar.generator.model import ModelError

    with pytest.raises(ModelError, match=r'cards 2 .* no wan model .* leave the parameter cards'):
        open_with(cards=2)
    with pytest.raises(ModelError, match=r"decode_device 'cuda:1' .* leave the parameter decode"):
        open_with(decode_device='cuda:1')
    monkeypatch.setattr(backends, 'choose_backend', lambda: ('onnx', 'there is no CUDA card'))
    with pytest.raises(ModelError, match=r"needs torch .*there is no CUDA card.* to 'torch'"):
        open_with(model=wan_model)
    assert not opened


class Rig:
    """The node, a friend that listens to it, and an executor for both."""

    def __init__(self, context: Any, stream: GreyStream, **parameters: Any) -> None:
        self.stream = stream
        self.node = generator.GeneratorNode(
            context=context, namespace='rig', parameters={'nice': 0, **parameters})
        from rclpy.node import Node
        self.friend = Node('friend', context=context, namespace='rig')
        self.got: dict[str, list[Any]] = {'audio': [], 'image': [], 'jpeg': [], 'info': []}
        for kind, topic, name, profile in (
                (AudioChunk, 'audio', 'audio', qos.AUDIO),
                (Image, 'image_raw', 'image', qos.IMAGE),
                (CompressedImage, 'image_raw/compressed', 'jpeg', qos.COMPRESSED_IMAGE),
                (CameraInfo, 'camera_info', 'info', qos.IMAGE)):
            self.friend.create_subscription(kind, topic, self.got[name].append, profile)
        self.speech = self.friend.create_publisher(AudioChunk, 'speech', qos.AUDIO)
        self.state = self.friend.create_publisher(AvatarState, 'state', qos.STATE)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.friend)

    def spin_until(self, done: Callable[[], Any], timeout_s: float = 8.0) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not done() and time.monotonic() < deadline_s:
            self.executor.spin_once(timeout_sec=0.02)
        return bool(done())

    def ready(self) -> None:
        assert self.spin_until(lambda: self.node.state_label == 'active'), self.node.state_label
        assert self.spin_until(lambda: all(self.got.values())), {
            name: len(messages) for name, messages in self.got.items()}
        assert self.spin_until(lambda: self.speech.get_subscription_count()
                               and self.state.get_subscription_count())
        # A publisher knows its subscription a little before the subscription knows the publisher.
        self.spin_until(lambda: False, 0.2)

    def close(self) -> None:
        self.node.close()
        self.executor.shutdown()
        self.node.destroy_node()
        self.friend.destroy_node()


@pytest.fixture
def rig(context: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    stream = GreyStream()
    monkeypatch.setattr(generator, 'open_stream', lambda *arguments: (stream, 'grey'))
    made = Rig(context, stream)
    yield made
    made.close()


def test_pictures_and_sound_carry_the_stamps_of_one_clock(rig: Rig) -> None:
    rig.ready()
    start = len(rig.got['audio'])
    assert rig.spin_until(lambda: len(rig.got['audio']) >= start + 4)
    sounds = rig.got['audio'][start:]
    stamps = [to_ns(sound.header.stamp) for sound in sounds]
    assert set(np.diff(stamps)) == {CHUNK_NS}
    assert all(samples_of(sound).size == CHUNK_SAMPLES for sound in sounds)
    for name in ('image', 'jpeg', 'info'):
        offsets = {(to_ns(message.header.stamp) - stamps[0]) % CHUNK_NS
                   for message in rig.got[name]}
        assert offsets <= {n * FRAME_NS for n in range(4)}
    jpeg_stamps = [to_ns(message.header.stamp) for message in rig.got['jpeg']]
    assert set(np.diff(jpeg_stamps)) == {FRAME_NS}
    image = rig.got['image'][-1]
    assert (image.height, image.width, image.encoding, len(image.data)) == (64, 64, 'rgb8', 12288)
    # A frame and its compressed twin show the same grey.
    greys = {to_ns(message.header.stamp): message.data[0] for message in rig.got['image']}
    twins = [(greys[to_ns(message.header.stamp)],
              int(decode_image(bytes(message.data))[32, 32, 0]))
             for message in rig.got['jpeg'] if to_ns(message.header.stamp) in greys]
    assert twins and all(abs(raw - packed) <= 3 for raw, packed in twins)


def test_how_long_the_first_chunk_took_is_told_once(rig: Rig) -> None:
    rig.ready()
    told = {pair.key: pair.value for pair in rig.node.diagnostics.status().values}
    assert 0.0 < float(told['first_chunk_s']) < rig.node.diagnostics.process_age_s()
    rig.spin_until(lambda: False, 0.5)
    again = {pair.key: pair.value for pair in rig.node.diagnostics.status().values}
    assert again['first_chunk_s'] == told['first_chunk_s']


def test_speech_is_sounded_with_its_turn_and_ends_with_last(rig: Rig) -> None:
    rig.ready()
    for sequence in range(3):
        rig.speech.publish(audio_message(np.full(CHUNK_SAMPLES, 50, np.int16), 1,
                                         sequence=sequence, turn_id=4, last=sequence == 2))
    assert rig.spin_until(lambda: any(sound.last for sound in rig.got['audio']))
    turn = [sound for sound in rig.got['audio'] if sound.turn_id == 4]
    assert len(turn) == 3 and turn[-1].last
    assert all((samples_of(sound) == 50).all() for sound in turn)


def test_a_break_silences_the_turn(rig: Rig) -> None:
    rig.ready()
    for sequence in range(20):
        rig.speech.publish(audio_message(np.full(CHUNK_SAMPLES, 50, np.int16), 1,
                                         sequence=sequence, turn_id=1, last=sequence == 19))
    assert rig.spin_until(lambda: rig.got['audio'][-1].turn_id == 1)
    rig.state.publish(AvatarState(turn_id=1, activity=AvatarState.LISTENING, prompt='listens'))
    assert rig.spin_until(lambda: 'listens' in rig.stream.prompts)
    broken = len(rig.got['audio'])
    assert rig.spin_until(lambda: len(rig.got['audio']) >= broken + 4)
    assert not samples_of(rig.got['audio'][-1]).any()
    assert sum(samples_of(sound).any() for sound in rig.got['audio'][broken:]) <= 1


def test_a_typed_line_ends_the_turn_and_not_the_next(rig: Rig) -> None:
    rig.ready()
    rig.node.trigger_deactivate()
    muted: list[int] = []
    # Without its threads the node's queue is the test's; what is active takes speech.
    rig.node._pacer = SimpleNamespace(mute=muted.append,
                                      switch=lambda prompt: None, stop=lambda: None)
    queue = rig.node._speech

    def say(turn_id: int, sequence: int) -> None:
        rig.node._on_speech(audio_message(np.full(CHUNK_SAMPLES, 50, np.int16), 1,
                                          sequence=sequence, turn_id=turn_id, last=False))

    for sequence in range(3):
        say(1, sequence)
    rig.node._on_state(AvatarState(turn_id=1, activity=AvatarState.SPEAKING))
    assert queue.take().turn_id == 1 and not muted
    rig.node._on_state(AvatarState(turn_id=1, activity=AvatarState.THINKING))
    silence = queue.take()
    assert (silence.turn_id, silence.samples.any(), muted) == (0, False, [1])
    say(1, 3)
    assert not queue.newest_turn
    # The answer may be there before the state is.
    say(2, 0)
    rig.node._on_state(AvatarState(turn_id=1, activity=AvatarState.THINKING))
    rig.node._on_state(AvatarState(turn_id=2, activity=AvatarState.SPEAKING))
    assert queue.take().turn_id == 2
    assert queue.figures()['speech_underruns'] == 0


def test_a_reasoning_node_that_starts_anew_is_heard(rig: Rig) -> None:
    rig.ready()
    rig.state.publish(AvatarState(turn_id=3, activity=AvatarState.LISTENING, prompt='listens'))
    assert rig.spin_until(lambda: 'listens' in rig.stream.prompts)
    rig.state.publish(AvatarState(turn_id=0, activity=AvatarState.IDLE, prompt='rests'))
    assert rig.spin_until(lambda: 'rests' in rig.stream.prompts)
    rig.speech.publish(audio_message(np.full(CHUNK_SAMPLES, 50, np.int16), 1,
                                     sequence=0, turn_id=1, last=True))
    assert rig.spin_until(lambda: any(sound.turn_id == 1 and samples_of(sound).any()
                                      for sound in rig.got['audio']))


def test_prompts_are_switched_and_prepared(rig: Rig) -> None:
    rig.ready()
    rig.state.publish(AvatarState(prompt='nods', next_prompt='rests'))
    assert rig.spin_until(lambda: {'nods', 'prepared rests'} <= set(rig.stream.prompts))


@pytest.mark.parametrize('changes, told', [
    ({'sample_rate': 44100}, '44100 Hz'), ({'channels': 2}, '2 channels'),
    ({'encoding': 'F32LE'}, 'F32LE'), ({'data': array('B', b'abc')}, '3 bytes'),
    ({'turn_id': 0}, 'turn_id 0')])
def test_bad_speech_is_refused_with_a_diagnostic_and_the_stream_goes_on(
        rig: Rig, changes: dict[str, Any], told: str) -> None:
    rig.ready()
    message = audio_message(np.ones(CHUNK_SAMPLES, np.int16), 1, sequence=0, turn_id=1, last=True)
    for name, value in changes.items():
        setattr(message, name, value)
    rig.speech.publish(message)
    assert rig.spin_until(lambda: told in rig.node.diagnostics.status().message)
    count = len(rig.got['audio'])
    assert rig.spin_until(lambda: len(rig.got['audio']) >= count + 2)
    assert rig.node.state_label == 'active'


def test_a_missing_model_is_named_and_the_node_stays_up(context: Any) -> None:
    rig = Rig(context, GreyStream(), model='/no/such/model')
    try:
        assert rig.spin_until(lambda: rig.node.diagnostics.status().level != b'\0')
        assert '/no/such/model' in rig.node.diagnostics.status().message
        assert rig.node.state_label == 'unconfigured'
    finally:
        rig.close()


def test_what_comes_while_it_is_inactive_is_not_said_later(rig: Rig) -> None:
    rig.ready()

    def say(turn_id: int) -> None:
        rig.node._on_speech(audio_message(np.full(8 * CHUNK_SAMPLES, 50, np.int16), 1,
                                          sequence=0, turn_id=turn_id, last=True))

    say(1)
    rig.node.trigger_deactivate()
    for turn_id in range(2, 20):
        say(turn_id)
    assert rig.node._speech.figures()['speech_waiting_s'] == 0
    rig.node.trigger_activate()
    rig.spin_until(lambda: False, 0.2)
    rig.got['audio'].clear()
    say(20)
    assert rig.spin_until(lambda: any(sound.turn_id for sound in rig.got['audio']))
    assert {sound.turn_id for sound in rig.got['audio']} <= {0, 20}


def test_it_can_be_stopped_and_started_again(rig: Rig) -> None:
    rig.ready()
    for _ in range(2):
        rig.node.trigger_deactivate()
        rig.node.trigger_cleanup()
        quiet = len(rig.got['audio'])
        rig.spin_until(lambda: False, 0.4)
        assert len(rig.got['audio']) <= quiet + 2
        rig.node.trigger_configure()
        rig.node.trigger_activate()
        rig.got['audio'].clear()
        assert rig.spin_until(lambda: len(rig.got['audio']) > 2)
