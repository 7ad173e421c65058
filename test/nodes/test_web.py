# SPDX-License-Identifier: Apache-2.0
"""The web node between real topics and a plain WebSocket client."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')


from avatar_bringup.msg import AudioChunk, AvatarIntent, AvatarState, UserPerception
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from interactive_avatar.media.clock import CHUNK_SAMPLES, FRAME_NS
from interactive_avatar.media.picture import encode_jpeg
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.messages import (
    audio_message,
    compressed_message,
    picture_of,
    samples_of,
)
from interactive_avatar.nodes.web import WebNode
from interactive_avatar.web.protocol import KIND_CAMERA, KIND_MEDIA, KIND_MICROPHONE


class Page(threading.Thread):
    """What a browser does, in a thread: collects messages, sends what it is given."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._socket: Any = None
        self.texts: list[dict[str, Any]] = []
        self.media: list[bytes] = []
        self.open = threading.Event()
        self.start()

    def run(self) -> None:
        async def talk() -> None:
            async with aiohttp.ClientSession() as session, session.ws_connect(
                    f'http://localhost:{self._port}/ws') as self._socket:
                self.open.set()
                async for message in self._socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        self.texts.append(json.loads(message.data))
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self.media.append(message.data)

        self._loop.run_until_complete(talk())

    def send(self, data: bytes | dict[str, Any]) -> None:
        call = (self._socket.send_bytes(data) if isinstance(data, bytes)
                else self._socket.send_str(json.dumps(data)))
        asyncio.run_coroutine_threadsafe(call, self._loop).result(5)


class Rig:
    """The node, a friend, and an executor for both."""

    def __init__(self, context: Any, **parameters: Any) -> None:
        self.node = WebNode(context=context, namespace='page',
                            parameters={'port': 0, 'nice': 0, **parameters})
        self.friend = Node('friend', context=context, namespace='page')
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.friend)

    def spin_until(self, done: Callable[[], Any], timeout_s: float = 8.0) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not done() and time.monotonic() < deadline_s:
            self.executor.spin_once(timeout_sec=0.02)
        return bool(done())

    def close(self) -> None:
        self.node.close()
        self.executor.shutdown()
        self.node.destroy_node()
        self.friend.destroy_node()


@pytest.fixture
def rig(context: Any) -> Iterator[Rig]:
    made = Rig(context)
    assert made.spin_until(lambda: made.node.state_label == 'active')
    yield made
    made.close()


def test_what_the_page_sends_reaches_the_topics(rig: Rig) -> None:
    audio: list[AudioChunk] = []
    text: list[String] = []
    rig.friend.create_subscription(AudioChunk, 'user/audio', audio.append, qos.SENSOR_AUDIO)
    rig.friend.create_subscription(String, 'user/text', text.append, qos.EVENT)
    assert rig.spin_until(lambda: rig.node._audio_out.get_subscription_count()
                          and rig.node._text_out.get_subscription_count())
    assert rig.node._page is not None
    page = Page(rig.node._page.port)
    assert page.open.wait(5)
    samples = np.arange(320, dtype=np.int16)
    page.send(struct.pack('<B3x', KIND_MICROPHONE) + samples.tobytes())
    page.send(struct.pack('<B3x', KIND_MICROPHONE) + samples.tobytes())
    page.send({'type': 'text', 'text': 'please nod'})
    assert rig.spin_until(lambda: len(audio) >= 2 and text)
    assert (samples_of(audio[0]) == samples).all()
    assert [message.sequence for message in audio] == [0, 1]
    assert audio[0].header.frame_id == 'browser' and audio[0].header.stamp.sec > 0
    assert text[0].data == 'please nod'


def test_the_pages_camera_reaches_the_face_node(rig: Rig) -> None:
    pictures: list[Image] = []
    assert rig.node._page is not None
    page = Page(rig.node._page.port)
    assert page.open.wait(5)
    frame = np.zeros((24, 32, 3), np.uint8)
    frame[:, 16:] = 200
    message = struct.pack('<B3x', KIND_CAMERA) + encode_jpeg(frame, 95)
    # Nobody looks: nothing is decoded.
    page.send(message)
    rig.spin_until(lambda: False, 0.2)
    told = rig.node.diagnostics.status().values
    assert not any(value.key == 'camera_pictures' for value in told)
    rig.friend.create_subscription(Image, 'user/image_raw', pictures.append, qos.SENSOR_IMAGE)
    assert rig.spin_until(rig.node._image_out.get_subscription_count)
    rig.spin_until(lambda: False, 0.2)
    page.send(message)
    assert rig.spin_until(lambda: pictures)
    seen = picture_of(pictures[0])
    assert seen.shape == frame.shape and np.abs(seen.astype(int) - frame).mean() < 5
    assert pictures[0].header.frame_id == 'user_camera' and pictures[0].header.stamp.sec > 0
    time.sleep(0.1)
    page.send(struct.pack('<B3x', KIND_CAMERA) + b'\xff\xd8\xff cut off')
    assert rig.spin_until(lambda: 'camera' in rig.node.diagnostics.status().message)


def test_what_the_avatar_does_reaches_the_page(rig: Rig) -> None:
    state = rig.friend.create_publisher(AvatarState, 'state', qos.STATE)
    intent = rig.friend.create_publisher(AvatarIntent, 'intent', qos.EVENT)
    heard = rig.friend.create_publisher(UserPerception, 'perception', qos.EVENT)
    sound = rig.friend.create_publisher(AudioChunk, 'audio', qos.AUDIO)
    pictures = rig.friend.create_publisher(
        CompressedImage, 'image_raw/compressed', qos.COMPRESSED_IMAGE)
    rig.spin_until(lambda: False, 0.4)
    # Nobody encodes pictures for a page that is not open.
    assert pictures.get_subscription_count() == 0
    assert rig.node._page is not None
    page = Page(rig.node._page.port)
    assert rig.spin_until(lambda: all(publisher.get_subscription_count() for publisher in (
        state, intent, heard, sound, pictures)))
    # A publisher knows its subscription a little before the subscription knows the publisher.
    rig.spin_until(lambda: False, 0.2)
    state.publish(AvatarState(phase=AvatarState.ACTION, activity=AvatarState.GESTURING))
    intent.publish(AvatarIntent(turn_id=1, intent='nod', speech='Of course.', confidence=0.9))
    heard.publish(UserPerception(event=UserPerception.FINAL, text='please nod'))
    stamp_ns = 5_000_000_000
    sound.publish(audio_message(np.zeros(CHUNK_SAMPLES, np.int16), stamp_ns, sequence=0))
    for number in range(4):
        pictures.publish(compressed_message(b'jpeg%d' % number, stamp_ns + number * FRAME_NS))

    def seen(**fields: Any) -> bool:
        return any(fields.items() <= text.items() for text in page.texts)

    assert rig.spin_until(lambda: page.media and len(page.texts) >= 4)
    assert seen(type='state', phase='ACTION', activity='GESTURING')
    assert seen(type='intent', intent='nod')
    assert seen(type='caption', who='user', text='please nod', final=True)
    assert seen(type='caption', who='avatar', text='Of course.')
    assert page.media[0][0] == KIND_MEDIA and b'jpeg0' in page.media[0]


def test_turns_that_are_counted_anew_have_captions_of_their_own(
        rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(rig.node._page, 'publish_caption', lambda *caption: told.append(caption))
    for turn_id in (1, 2, 1, 2):
        rig.node._on_intent(AvatarIntent(turn_id=turn_id, speech='Of course.'))
    assert len({caption for *_, caption in told}) == 4
    # An action without words has none.
    rig.node._on_intent(AvatarIntent(turn_id=2))
    assert len(told) == 4


def test_a_typed_line_stays_when_the_microphone_heard_no_words(rig: Rig) -> None:
    page = rig.node._page
    assert page is not None

    def hear(event: int, text: str = '') -> None:
        rig.node._on_perception(UserPerception(event=event, text=text, distance_m=math.nan))

    def shown() -> list[str]:
        return [caption['text'] for caption in page._captions.values()]

    hear(UserPerception.SPEECH_STARTED)
    rig.node._from_keyboard('Tell me a joke')
    hear(UserPerception.FINAL)
    assert shown() == ['Tell me a joke']
    # Nor does a line that is typed meanwhile part what is spoken.
    hear(UserPerception.SPEECH_STARTED)
    hear(UserPerception.PARTIAL, 'how are')
    rig.node._from_keyboard('And another')
    hear(UserPerception.FINAL, 'How are you?')
    assert sorted(shown()) == ['And another', 'How are you?', 'Tell me a joke']


def test_a_port_in_use_is_told_and_can_be_mended(context: Any) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        rig = Rig(context, port=port)
        assert rig.spin_until(lambda: rig.node.diagnostics.status().level != b'\0')
        assert f'port {port} is in use' in rig.node.diagnostics.status().message
        assert rig.node.state_label == 'unconfigured'
    rig.node.trigger_configure()
    assert rig.node.state_label == 'inactive'
    rig.close()
