# SPDX-License-Identifier: Apache-2.0
"""The page's server: refusals, what is sent, what is taken, and slow pages."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media import encode_jpeg
from interactive_avatar.web import AvatarPage, PageError
from interactive_avatar.web.server import MAX_WAITING_MEDIA, MICROPHONE_JITTER_NS

Socket = aiohttp.ClientWebSocketResponse


class Heard:
    """What the page's callbacks were given."""

    def __init__(self) -> None:
        self.audio: list[tuple[int, NDArray[np.int16]]] = []
        self.text: list[str] = []

    def on_audio(self, samples: NDArray[np.int16], stamp_ns: int) -> None:
        """Note sound."""
        self.audio.append((stamp_ns, samples))

    def on_text(self, text: str) -> None:
        """Note text; fail on one word."""
        self.text.append(text)
        if text == 'fail':
            raise RuntimeError('receiver fails')


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def page(heard: Heard) -> Iterator[AvatarPage]:
    with AvatarPage(0, heard.on_audio, heard.on_text) as served:
        yield served


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait at most 3 s."""
    end_s = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < end_s, 'timed out'
        time.sleep(0.005)


def visit(page: AvatarPage, talk: Callable[[Socket], Awaitable[Any]],
          headers: dict[str, str] | None = None) -> Any:
    """Open a WebSocket and talk."""
    async def run() -> Any:
        async with (aiohttp.ClientSession() as session,
                    session.ws_connect(f'{page.url}ws', headers=headers) as opened):
            return await asyncio.wait_for(talk(opened), 3)
    return asyncio.run(run())


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Fetch a page: status, text, headers."""
    async def run() -> tuple[int, str, dict[str, str]]:
        async with (aiohttp.ClientSession() as session,
                    session.get(url, headers=headers) as answer):
            return answer.status, await answer.text(), dict(answer.headers)
    return asyncio.run(run())


def test_serves_itself_and_loads_nothing_from_elsewhere(page: AvatarPage) -> None:
    status, text, headers = get(page.url)
    assert status == 200
    assert '<canvas' in text
    assert 'http' not in text.replace('http-equiv', '')
    assert "default-src 'self'" in headers['Content-Security-Policy']
    for name in ('page.css', 'page.js', 'player.js', 'microphone.js', 'player-worklet.js',
                 'microphone-worklet.js', 'icon.svg'):
        assert get(f'{page.url}static/{name}')[0] == 200, name
    assert get(f'{page.url}static/../server.py')[0] == 404
    assert json.loads(get(f'{page.url}health')[1]) == {'pages': 0, 'dropped': 0}


def test_other_sites_are_refused(page: AvatarPage) -> None:
    assert get(page.url, Host='evil.example')[0] == 403
    with pytest.raises(aiohttp.WSServerHandshakeError):
        visit(page, lambda opened: opened.receive(), {'Origin': 'https://evil.example'})
    own = {'Origin': page.url.rstrip('/')}
    visit(page, lambda opened: opened.send_str('{}'), own)


def test_allowed_hosts() -> None:
    with AvatarPage(0, allowed_hosts=['robot.local']) as served:
        assert get(served.url, Host=f'robot.local:{served.port}')[0] == 200
        assert get(served.url, Host='other.local')[0] == 403


def test_under_any_name_other_sites_are_refused() -> None:
    with AvatarPage(0, allowed_hosts=['*']) as served:
        assert get(served.url, Host=f'robot.local:{served.port}')[0] == 200
        assert get(served.url, Origin='https://evil.example')[0] == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            visit(served, lambda opened: opened.receive(), {'Origin': 'https://evil.example'})
        assert refused.value.status == 403
        name = f'robot.local:{served.port}'
        visit(served, lambda opened: opened.send_str('{}'),
              {'Host': name, 'Origin': f'http://{name}'})
        visit(served, lambda opened: opened.send_str('{}'))


def test_port_in_use_and_bad_ports_are_explained() -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PageError, match=f'port {port} is in use.*choose another'):
            AvatarPage(port).start()
    with pytest.raises(PageError, match='70000'):
        AvatarPage(70_000)
    with pytest.raises(PageError, match='no address of this machine'):
        AvatarPage(0, host='203.0.113.7').start()


def test_starts_again_after_close() -> None:
    page = AvatarPage(0)
    page.start()
    with pytest.raises(PageError, match='already served'):
        page.start()
    page.close()
    page.close()
    page.start()
    assert get(page.url)[0] == 200
    page.close()


def test_media_reaches_the_page_and_nothing_is_kept_without_one(page: AvatarPage) -> None:
    assert not page.watched
    page.publish_chunk(0, [b'lost'], np.zeros(2560, np.int16))

    async def talk(opened: Socket) -> bytes:
        await asyncio.to_thread(wait_for, lambda: page.watched)
        page.publish_chunk(1_000_000, [b'one', b'two'], np.ones(2, np.int16))
        return await opened.receive_bytes()

    assert visit(page, talk).endswith(b'\x01\x00\x01\x00onetwo')
    wait_for(lambda: not page.watched)


def test_late_pages_get_state_intent_and_captions(page: AvatarPage) -> None:
    page.publish_state({'phase': 'STABLE', 'activity': 'IDLE'})
    page.publish_state({'phase': 'ACTION', 'activity': 'SPEAKING'})
    page.publish_intent({'intent': 'nod', 'confidence': 0.9})
    page.publish_caption('user', 'please', final=False)
    page.publish_caption('user', 'please nod')
    page.publish_caption('avatar', 'gladly', caption='turn1')
    page.publish_caption('user', 'hm', final=False)
    page.publish_caption('user', '', final=True)

    async def talk(opened: Socket) -> list[dict[str, Any]]:
        return [await opened.receive_json() for _ in range(4)]

    state, intent, user, avatar = visit(page, talk)
    assert (state['type'], state['activity']) == ('state', 'SPEAKING')
    assert intent['intent'] == 'nod'
    assert (user['who'], user['text'], user['final']) == ('user', 'please nod', True)
    assert (avatar['id'], avatar['text']) == ('turn1', 'gladly')
    with pytest.raises(ValueError, match='nobody'):
        page.publish_caption('nobody', 'x')


def test_typed_text_and_sound_are_taken(page: AvatarPage, heard: Heard) -> None:
    async def talk(opened: Socket) -> None:
        await opened.send_json({'type': 'text', 'text': '  hello  '})
        await opened.send_json({'type': 'text', 'text': 'fail'})
        await opened.send_json({'type': 'text', 'text': ' '})
        for _ in range(10):
            await opened.send_bytes(b'\x02\0\0\0' + b'\x05\x00' * 640)
        await asyncio.to_thread(wait_for, lambda: len(heard.audio) == 10)

    visit(page, talk)
    assert heard.text == ['hello', 'fail']
    stamps = np.array([stamp for stamp, _ in heard.audio])
    # Sent in a burst, but the sound is 40 ms a block, and so are its stamps as far as the
    # tolerance goes.
    assert abs(stamps[3] - stamps[0] - 120_000_000) < 20_000_000
    assert (heard.audio[0][1] == 5).all()
    assert abs(time.time_ns() - stamps[-1]) < MICROPHONE_JITTER_NS + 5_000_000_000


def test_bad_input_is_answered_and_the_page_stays(page: AvatarPage, heard: Heard) -> None:
    async def talk(opened: Socket) -> list[str]:
        await opened.send_bytes(b'\x02\0\0\0\x01')
        await opened.send_bytes(b'\x09')
        await opened.send_str('{"type"')
        await opened.send_str('[]')
        await opened.send_json({'type': 'text', 'text': 'x' * 1001})
        notices = [(await opened.receive_json())['text'] for _ in range(5)]
        await opened.send_json({'type': 'text', 'text': 'still here'})
        await asyncio.to_thread(wait_for, lambda: heard.text == ['still here'])
        return notices

    odd, unknown, broken, no_object, long = visit(page, talk)
    assert 'odd number' in odd
    assert 'reload' in unknown
    assert 'JSON' in broken
    assert 'JSON' in no_object
    assert '1001' in long


def test_the_newest_microphone_has_it(page: AvatarPage, heard: Heard) -> None:
    async def run() -> dict[str, Any]:
        block = b'\x02\0\0\0' + bytes(1280)
        async with (aiohttp.ClientSession() as session,
                    session.ws_connect(f'{page.url}ws') as first,
                    session.ws_connect(f'{page.url}ws') as second):
            await first.send_bytes(block)
            await asyncio.to_thread(wait_for, lambda: len(heard.audio) == 1)
            await second.send_bytes(block)
            message: dict[str, Any] = await asyncio.wait_for(first.receive_json(), 3)
            return message
    assert asyncio.run(run()) == {'type': 'microphone', 'taken': True}


def test_what_comes_late_from_a_microphone_that_was_taken_does_not_take_it_back(
        page: AvatarPage, heard: Heard) -> None:
    def block(value: int) -> bytes:
        return b'\x02\0\0\0' + np.full(320, value, '<i2').tobytes()

    async def run() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        async with (aiohttp.ClientSession() as session,
                    session.ws_connect(f'{page.url}ws') as first,
                    session.ws_connect(f'{page.url}ws') as second):
            await first.send_bytes(block(1))
            await asyncio.to_thread(wait_for, lambda: len(heard.audio) == 1)
            await second.send_bytes(block(2))
            told = [await asyncio.wait_for(first.receive_json(), 3)]
            # Sent before the page read it, and what the page says of it when it did.
            await first.send_bytes(block(3))
            await first.send_json({'type': 'microphone', 'on': False})
            await first.send_bytes(b'\x09')
            told.append(await asyncio.wait_for(first.receive_json(), 3))
            await second.send_bytes(block(4))
            await asyncio.to_thread(wait_for, lambda: len(heard.audio) == 3)
            await first.send_json({'type': 'microphone', 'on': True})
            await first.send_bytes(block(5))
            taken: dict[str, Any] = await asyncio.wait_for(second.receive_json(), 3)
            return told, taken

    (taken, late), taken_back = asyncio.run(run())
    assert taken == taken_back == {'type': 'microphone', 'taken': True}
    assert late['type'] == 'notice'
    wait_for(lambda: len(heard.audio) == 4)
    assert [int(samples[0]) for _, samples in heard.audio] == [1, 2, 4, 5]


def test_what_comes_late_from_a_camera_that_was_taken_does_not_take_it_back() -> None:
    seen: list[bytes] = []
    head = b'\x03\0\0\0'
    pictures = [encode_jpeg(np.full((24, 32, 3), value, np.uint8)) for value in (0, 99, 180, 255)]

    async def run(page: AvatarPage) -> list[dict[str, Any]]:
        async with (aiohttp.ClientSession() as session,
                    session.ws_connect(f'{page.url}ws') as first,
                    session.ws_connect(f'{page.url}ws') as second):
            await first.send_bytes(head + pictures[0])
            await asyncio.to_thread(wait_for, lambda: len(seen) == 1)
            await asyncio.sleep(0.1)
            await second.send_bytes(head + pictures[1])
            told = [await asyncio.wait_for(first.receive_json(), 3)]
            await asyncio.sleep(0.1)
            await first.send_bytes(head + pictures[2])
            await first.send_bytes(head + b'no picture')
            told.append(await asyncio.wait_for(first.receive_json(), 3))
            await first.send_json({'type': 'camera', 'on': True})
            await first.send_bytes(head + pictures[3])
            told.append(await asyncio.wait_for(second.receive_json(), 3))
            await asyncio.to_thread(wait_for, lambda: len(seen) == 3)
            return told

    with AvatarPage(0, on_picture=lambda data, _: seen.append(data)) as page:
        taken, late, taken_back = asyncio.run(run(page))
    assert taken == taken_back == {'type': 'camera', 'taken': True}
    assert late['type'] == 'notice'
    assert seen == [pictures[0], pictures[1], pictures[3]]


def test_pictures_of_the_newest_camera_are_taken_and_no_faster_than_they_are_of_use() -> None:
    seen: list[tuple[bytes, int]] = []
    picture = encode_jpeg(np.zeros((24, 32, 3), np.uint8))
    message = b'\x03\0\0\0' + picture

    async def run(page: AvatarPage) -> tuple[Any, Any]:
        async with (aiohttp.ClientSession() as session,
                    session.ws_connect(f'{page.url}ws') as first,
                    session.ws_connect(f'{page.url}ws') as second):
            for _ in range(5):
                await first.send_bytes(message)
            await first.send_bytes(b'\x03\0\0\0no picture')
            refused = await asyncio.wait_for(first.receive_json(), 3)
            assert len(seen) == 1
            await asyncio.sleep(0.1)
            await second.send_bytes(message)
            taken = await asyncio.wait_for(first.receive_json(), 3)
            await second.send_json({'type': 'camera', 'on': False})
            await asyncio.to_thread(wait_for, lambda: len(seen) == 2)
            return refused, taken

    with AvatarPage(0, on_picture=lambda data, stamp_ns: seen.append((data, stamp_ns))) as page:
        refused, taken = asyncio.run(run(page))
    assert refused['type'] == 'notice' and 'no JPEG' in refused['text']
    assert taken == {'type': 'camera', 'taken': True}
    assert all(data == picture for data, _ in seen)
    assert 0 < seen[1][1] - seen[0][1] < 5_000_000_000


def test_a_page_that_does_not_read_loses_the_oldest_only(page: AvatarPage) -> None:
    frame = bytes(200_000)

    async def talk(opened: Socket) -> list[float]:
        await asyncio.to_thread(wait_for, lambda: page.watched)
        # The client's buffer is full after a few; nothing is read meanwhile.
        for index in range(200):
            page.publish_chunk(index * 1_000_000, [frame])
        page.publish_state({'activity': 'IDLE'})
        await asyncio.to_thread(wait_for, lambda: page.dropped > 0)
        stamps: list[float] = []
        while not stamps or stamps[-1] < 199:
            message = await opened.receive()
            if message.type == aiohttp.WSMsgType.BINARY:
                stamps.append(float(np.frombuffer(message.data, '<f8', 1, 4)[0]))
        return stamps

    stamps = visit(page, talk)
    assert stamps == sorted(stamps)
    assert stamps[-MAX_WAITING_MEDIA:] == [float(at) for at in range(192, 200)]
    assert len(stamps) + page.dropped == 200


def test_publishing_after_close_is_harmless() -> None:
    page = AvatarPage(0)
    page.publish_caption('user', 'before')
    page.start()
    page.close()
    page.publish_chunk(0, [b''], None)
    page.publish_notice('after')
