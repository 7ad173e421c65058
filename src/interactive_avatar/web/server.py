# SPDX-License-Identifier: Apache-2.0
"""The page's server: sends pictures, sound and words, takes the microphone and typed text."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web
from numpy.typing import NDArray

from interactive_avatar.media.clock import FRAME_NS, SAMPLE_RATE_HZ
from interactive_avatar.web.protocol import (
    KIND_CAMERA,
    MAX_CAMERA_BYTES,
    MAX_TEXT_CHARS,
    ProtocolError,
    pack_media,
    unpack_camera,
    unpack_microphone,
)

STATIC = Path(__file__).parent / 'static'
DEFAULT_PORT = 8080
# What waits for a slow page: 8 chunks are 1.3 s. Beyond that the oldest is dropped.
MAX_WAITING_MEDIA = 8
MAX_WAITING_TEXTS = 64
MAX_CAPTIONS_KEPT = 50
MAX_PAGES = 16
START_TIMEOUT_S = 10.0
HEARTBEAT_S = 20.0
NS_PER_SAMPLE = 1_000_000_000 // SAMPLE_RATE_HZ
# The network bunches blocks up; below this the count of samples is the better clock.
MICROPHONE_JITTER_NS = 250_000_000
# A page sends eight pictures a second; what comes faster is dropped.
LEAST_PICTURE_GAP_NS = 50_000_000
# The page loads nothing from elsewhere, and nothing else may load it.
SECURITY_HEADERS = {
    'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:; "
                               "connect-src 'self' ws: wss:; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache',
}

_LOG = logging.getLogger(__name__)


class PageError(RuntimeError):
    """The page cannot be served; the message says why and what to do."""


class _Client:
    """One open page: what waits to be sent to it."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self.media: deque[bytes] = deque()
        self.texts: deque[str] = deque(maxlen=MAX_WAITING_TEXTS)
        self.wake = asyncio.Event()
        self.dropped = 0
        self.next_stamp_ns: int | None = None
        # Told that another page's microphone or camera has taken the place of its own. What is
        # still under way from it is not to take that place back.
        self.mute = False
        self.blind = False

    def add_media(self, message: bytes) -> bool:
        """Queue a media message; False if an older one had to go."""
        full = len(self.media) >= MAX_WAITING_MEDIA
        if full:
            self.media.popleft()
            self.dropped += 1
        self.media.append(message)
        self.wake.set()
        return not full

    def add_text(self, text: str) -> None:
        """Queue a JSON message."""
        self.texts.append(text)
        self.wake.set()


class AvatarPage:
    """Serves the avatar's page on this machine, in a thread of its own.

    All ``publish_`` methods may be called from any thread, return at once, and cost next to
    nothing while no page is open.

    Args:
        port: TCP port; 0 takes a free one.
        on_audio: called with the microphone's samples (int16 [n], 16 kHz mono) and the stamp of
            the first, in ns since the epoch; from the server's thread, so it must be quick.
        on_text: called with each typed line, from the server's thread.
        on_picture: called with each picture of the user's camera (JPEG, not yet decoded) and the
            time it came, in ns since the epoch; from the server's thread.
        host: address to listen at. Browsers give the microphone to ``localhost`` and to https
            only, so another address serves pages without a microphone.
        allowed_hosts: further host names under which the page may be opened, such as this
            machine's name in the local network; '*' allows all. Other sites stay shut out.

    Attributes:
        port: the port it listens at.
        dropped: media messages that slow pages have missed.
    """

    def __init__(self, port: int = DEFAULT_PORT,
                 on_audio: Callable[[NDArray[np.int16], int], None] | None = None,
                 on_text: Callable[[str], None] | None = None,
                 host: str = '127.0.0.1', allowed_hosts: Sequence[str] = (),
                 on_picture: Callable[[bytes, int], None] | None = None) -> None:
        if not 0 <= port <= 65_535:
            raise PageError(f'port is {port}, need 1 to 65535, or 0 for any free one')
        self.port = port
        self.host = host
        self.dropped = 0
        self._allowed = {'localhost', '127.0.0.1', '[::1]', host, *allowed_hosts}
        self._on_audio = on_audio
        self._on_text = on_text
        self._on_picture = on_picture
        self._seen: _Client | None = None
        self._seen_ns = 0
        self._clients: set[_Client] = set()
        self._speaker: _Client | None = None
        self._state = ''
        self._intent = ''
        self._captions: dict[str, dict[str, Any]] = {}
        self._caption_id = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Address to open in a browser."""
        host = 'localhost' if self.host in ('127.0.0.1', '0.0.0.0', '::', '::1') else self.host
        return f'http://{host}:{self.port}/'

    @property
    def watched(self) -> bool:
        """Whether any page is open: whoever encodes pictures may rest while none is."""
        return bool(self._clients)

    @property
    def pages(self) -> int:
        """Number of open pages."""
        return len(self._clients)

    def start(self) -> None:
        """Start serving; returns when the page can be opened.

        Raises:
            PageError: if the port is in use or may not be used, or the page's files are missing.
        """
        if self._thread is not None:
            raise PageError(f'the page is already served at {self.url}')
        if not (STATIC / 'index.html').is_file():
            raise PageError(f"the page's files are missing in {STATIC}: install the package "
                            f'again')
        started = threading.Event()
        failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(started, failure), name='page',
                                        daemon=True)
        self._thread.start()
        if not started.wait(START_TIMEOUT_S):
            raise PageError(f'the page did not start within {START_TIMEOUT_S:.0f} s: is the '
                            f'machine overloaded?')
        if failure:
            self._thread.join(1.0)
            self._thread = None
            raise self._explain(failure[0]) from failure[0]

    def _explain(self, error: BaseException) -> PageError:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return PageError(f'port {self.port} is in use: close the program that uses it (is '
                             f'another avatar running?) or choose another port, such as '
                             f'{self.port + 1 if self.port < 65_535 else DEFAULT_PORT}')
        if isinstance(error, OSError) and error.errno == errno.EACCES:
            return PageError(f'port {self.port} may not be used by this user: choose one above '
                             f'1023')
        if isinstance(error, OSError) and error.errno in (errno.EADDRNOTAVAIL, -2, -5):
            return PageError(f'{self.host} is no address of this machine: use 127.0.0.1, or '
                             f'0.0.0.0 for all')
        return PageError(f'the page cannot be served at {self.host}:{self.port}: {error!r}')

    def close(self) -> None:
        """Close all pages' connections and stop serving; may be called again."""
        loop, stop, thread = self._loop, self._stop, self._thread
        if thread is None or loop is None or stop is None:
            return
        try:
            loop.call_soon_threadsafe(stop.set)
        except RuntimeError:
            pass  # the loop has ended by itself
        thread.join(5.0)
        self._thread = None

    def __enter__(self) -> AvatarPage:
        """Start serving."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.close()

    def publish_chunk(self, stamp_ns: int, frames: Sequence[bytes],
                      audio: NDArray[np.int16] | None = None, frame_ns: int = FRAME_NS) -> None:
        """Show pictures and play the sound that belongs to them.

        Args:
            stamp_ns: presentation time of the first picture and the first sample.
            frames: JPEG pictures, `frame_ns` apart; may be empty.
            audio: int16 [n] at 16 kHz mono; may be None.
            frame_ns: time between pictures.

        Raises:
            AudioFormatError: if the array is not a flat int16 array.
        """
        if self.watched:
            message = pack_media(stamp_ns, frames, audio, frame_ns)
            self._call(self._send_media, message)

    def publish_state(self, state: dict[str, Any]) -> None:
        """Show the avatar's state: ``phase``, ``activity``, and whatever else is to be seen."""
        text = json.dumps({'type': 'state', **state})
        with self._lock:
            self._state = text
        self._send_text(text)

    def publish_intent(self, intent: dict[str, Any]) -> None:
        """Show what was understood: ``intent``, ``confidence``, and what comes of it."""
        text = json.dumps({'type': 'intent', **intent})
        with self._lock:
            self._intent = text
        self._send_text(text)

    def publish_caption(self, who: str, text: str, final: bool = True,
                        caption: str | None = None) -> None:
        """Show words that were spoken or typed.

        Args:
            who: ``user`` or ``avatar``.
            text: the words; '' withdraws the caption that is being made.
            final: False for words that may still change.
            caption: name of the caption that these words replace; if None, words replace the
                unfinished ones of the same speaker.

        Raises:
            ValueError: on another speaker.
        """
        if who not in ('user', 'avatar'):
            raise ValueError(f'caption of "{who}": need "user" or "avatar"')
        with self._lock:
            key = caption
            if key is None:
                key = next((name for name, known in self._captions.items()
                            if known['who'] == who and not known['final']), None)
            if key is None:
                self._caption_id += 1
                key = f'c{self._caption_id}'
            message = {'type': 'caption', 'id': key, 'who': who, 'text': text, 'final': final}
            if text:
                self._captions[key] = message
            else:
                self._captions.pop(key, None)
            while len(self._captions) > MAX_CAPTIONS_KEPT:
                self._captions.pop(next(iter(self._captions)))
        self._send_text(json.dumps(message))

    def publish_notice(self, text: str) -> None:
        """Show a line to the user, such as what is wrong and what to do."""
        self._send_text(json.dumps({'type': 'notice', 'text': text}))

    def _send_text(self, text: str) -> None:
        self._call(self._add_text, text)

    def _add_text(self, text: str) -> None:
        for client in self._clients:
            client.add_text(text)

    def _send_media(self, message: bytes) -> None:
        for client in self._clients:
            if not client.add_media(message):
                self.dropped += 1

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        loop = self._loop
        if loop is None or not loop.is_running():
            return
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # closed in between: nobody is left to see it

    def _run(self, started: threading.Event, failure: list[BaseException]) -> None:
        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            application = web.Application(middlewares=[self._guard])
            application.add_routes([
                web.get('/', self._index), web.get('/ws', self._socket),
                web.get('/health', self._health), web.static('/static', STATIC)])
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            try:
                site = web.TCPSite(runner, self.host, self.port, reuse_address=True)
                await site.start()
                addresses = runner.addresses
                self.port = int(addresses[0][1]) if addresses else self.port
                started.set()
                await self._stop.wait()
                for client in list(self._clients):
                    await client.socket.close(code=1001, message=b'server stops')
            finally:
                await runner.cleanup()

        try:
            asyncio.run(serve())
        except BaseException as error:
            failure.append(error)
            if started.is_set():
                _LOG.exception('the page has stopped')
        finally:
            started.set()

    @web.middleware
    async def _guard(self, request: web.Request,
                     handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
                     ) -> web.StreamResponse:
        """Answer only to this page: others must not reach the microphone through it."""
        host = request.host.rsplit(':', 1)[0] if not request.host.endswith(']') else request.host
        origin = request.headers.get('Origin')
        if '*' not in self._allowed and host not in self._allowed:
            raise web.HTTPForbidden(text=f'The avatar does not answer to the name '
                                         f'"{host[:100]}". Open {self.url}, or add the name '
                                         f'to allowed_hosts.')
        # Under whatever name the page is opened, only it may use it: browsers let every site
        # open WebSockets to this machine, and tell which one it was.
        if origin is not None and origin.split('://', 1)[-1] != request.host:
            raise web.HTTPForbidden(text='Another site may not use this page.')
        response = await handler(request)
        if not response.prepared:
            response.headers.update(SECURITY_HEADERS)
        return response

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(STATIC / 'index.html', headers=SECURITY_HEADERS)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({'pages': self.pages, 'dropped': self.dropped})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._clients) >= MAX_PAGES:
            raise web.HTTPServiceUnavailable(text=f'{MAX_PAGES} pages are open already: close '
                                                  f'one')
        # Pictures are compressed already; deflate would only cost time.
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, compress=False,
                                       max_msg_size=MAX_CAMERA_BYTES + 1024)
        await socket.prepare(request)
        client = _Client(socket)
        with self._lock:
            for text in (self._state, self._intent):
                if text:
                    client.add_text(text)
            for caption in self._captions.values():
                client.add_text(json.dumps(caption))
        self._clients.add(client)
        sender = asyncio.create_task(self._send(client))
        try:
            async for message in socket:
                if message.type == WSMsgType.BINARY:
                    if message.data[:1] == bytes([KIND_CAMERA]):
                        self._see(client, message.data)
                    else:
                        self._hear(client, message.data)
                elif message.type == WSMsgType.TEXT:
                    self._read(client, message.data)
        finally:
            self._clients.discard(client)
            if self._speaker is client:
                self._speaker = None
            if self._seen is client:
                self._seen = None
            sender.cancel()
        return socket

    async def _send(self, client: _Client) -> None:
        """Send what waits, words first; a page that does not read makes only itself wait."""
        try:
            while not client.socket.closed:
                await client.wake.wait()
                client.wake.clear()
                while client.texts or client.media:
                    if client.texts:
                        await client.socket.send_str(client.texts.popleft())
                    else:
                        await client.socket.send_bytes(client.media.popleft())
        except (ConnectionError, RuntimeError):
            return  # the page has gone; the reader ends the client

    def _hear(self, client: _Client, data: bytes) -> None:
        try:
            samples = unpack_microphone(data)
        except ProtocolError as error:
            client.add_text(json.dumps({'type': 'notice', 'text': str(error)}))
            return
        if client.mute:
            return
        if self._speaker is not client:
            # Two microphones at once would be one garbled voice: the newest has it.
            if self._speaker is not None:
                self._speaker.mute = True
                self._speaker.add_text(json.dumps({'type': 'microphone', 'taken': True}))
            self._speaker = client
            client.next_stamp_ns = None
        arrived_ns = time.time_ns() - samples.size * NS_PER_SAMPLE
        stamp_ns = client.next_stamp_ns
        if stamp_ns is None or abs(arrived_ns - stamp_ns) > MICROPHONE_JITTER_NS:
            stamp_ns = arrived_ns
        else:
            stamp_ns += (arrived_ns - stamp_ns) // 64
        client.next_stamp_ns = stamp_ns + samples.size * NS_PER_SAMPLE
        if self._on_audio is not None and samples.size:
            self._guarded(self._on_audio, samples, stamp_ns)

    def _see(self, client: _Client, data: bytes) -> None:
        try:
            picture = unpack_camera(data)
        except ProtocolError as error:
            client.add_text(json.dumps({'type': 'notice', 'text': str(error)}))
            return
        if client.blind:
            return
        if self._seen is not client:
            # Two cameras at once would be a user who jumps to and fro: the newest has it.
            if self._seen is not None:
                self._seen.blind = True
                self._seen.add_text(json.dumps({'type': 'camera', 'taken': True}))
            self._seen = client
        now_ns = time.time_ns()
        if self._on_picture is None or now_ns - self._seen_ns < LEAST_PICTURE_GAP_NS:
            return
        self._seen_ns = now_ns
        self._guarded(self._on_picture, picture, now_ns)

    def _read(self, client: _Client, data: str) -> None:
        try:
            message = json.loads(data)
            kind = message.get('type')
        except (ValueError, AttributeError):
            client.add_text(json.dumps({'type': 'notice', 'text': 'message is not a JSON object: '
                                                                  'reload the page'}))
            return
        if kind == 'text':
            text = str(message.get('text', '')).strip()
            if len(text) > MAX_TEXT_CHARS:
                client.add_text(json.dumps({
                    'type': 'notice', 'text': f'That text has {len(text)} characters, at most '
                                              f'{MAX_TEXT_CHARS} are taken: shorten it'}))
            elif text and self._on_text is not None:
                self._guarded(self._on_text, text)
        elif kind == 'microphone':
            if message.get('on'):
                client.mute = False
            elif self._speaker is client:
                self._speaker = None
        elif kind == 'camera':
            if message.get('on'):
                client.blind = False
            elif self._seen is client:
                self._seen = None

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:
            # Whatever the receiver does wrong, the page stays up.
            _LOG.exception("the receiver of the page's input failed")
