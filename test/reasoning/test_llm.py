# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from interactive_avatar.reasoning.embedded import EmbeddedReasoner
from interactive_avatar.reasoning.llm import KEY_VARIABLE, LlmOptions, LlmReasoner
from interactive_avatar.reasoning.memory import Memory

from .conftest import Clock

GOOD = {'intent': 'wear', 'confidence': 0.9, 'emotion': 'happy', 'speech': 'Here **it** is.',
        'action': 'wear', 'direction': '', 'object': 'hat', 'name': '',
        'action_prompt': 'x', 'stable_prompt': 'y'}


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server on this machine that misbehaves on request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.answers: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.stop = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up on a server that drips are what is tested."""

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}/v1'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers['Authorization'])
        answer = self.server.answers.pop(0) if self.server.answers else 'hang'
        if answer == 'hang':
            self.server.stop.wait(5.0)
            return
        if isinstance(answer, int):
            self.send_error(answer, 'no')
            return
        if isinstance(answer, tuple):
            self.send_response(answer[0])
            self.end_headers()
            self.wfile.write(answer[1])
            return
        if answer == 'no schema':
            if 'response_format' in body:
                self.send_error(400, 'unknown field response_format')
                return
            answer = GOOD
        self.send_response(200)
        self.send_header('Content-Type', 'text/event-stream')
        self.end_headers()
        if answer == 'drip':
            while not self.server.stop.wait(0.05):
                self.wfile.write(b'd')
                self.wfile.flush()
            return
        if isinstance(answer, bytes):
            self.wfile.write(b'data: ' + answer + b'\n\ndata: [DONE]\n\n')
            return
        text = answer if isinstance(answer, str) else json.dumps(answer)
        text, broken = text.removesuffix('<break>'), text.endswith('<break>')
        for at in range(0, len(text), 20):
            event = {'choices': [{'delta': {'content': text[at:at + 20]}}]}
            self.wfile.write(f'data: {json.dumps(event)}\n\n'.encode())
        if not broken:
            self.wfile.write(b'data: [DONE]\n\n')

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def llm(server: Server, reasoner: EmbeddedReasoner) -> LlmReasoner:
    return LlmReasoner(LlmOptions(server.url, 'tiny', timeout_s=0.5), reasoner)


def test_an_answer_becomes_a_turn_of_the_vocabulary(server: Server, llm: LlmReasoner) -> None:
    server.answers = [GOOD]
    memory = Memory()
    memory.say('user', 'hello there')
    memory.say('avatar', 'Hello!')
    memory.say('user', 'a hat please')
    turn = llm.reason('a hat please', memory)
    assert (turn.reasoner, turn.action, turn.speech) == ('llm', 'wear', 'Here it is.')
    assert 'puts on a hat' in turn.action_prompt and turn.world.hat
    request = server.requests[0]
    assert request['stream'] and request['response_format']['type'] == 'json_schema'
    assert [message['role'] for message in request['messages']] == [
        'system', 'user', 'assistant', 'user']


@pytest.mark.parametrize('bad', [
    'no JSON at all', '{"intent": "wear"', '[1, 2]', {**GOOD, 'intent': 'fly'},
    {**GOOD, 'object': 'coat'}, {**GOOD, 'confidence': 'high'}, {**GOOD, 'speech': None},
    {**GOOD, 'confidence': 7}, {**GOOD, 'emotion': 'furious'}, {**GOOD, 'action': ['wear']},
    {**GOOD, 'confidence': 10 ** 400}, json.dumps(GOOD).replace('0.9', '9' * 5000),
    {**GOOD, 'confidence': float('nan')},
])
def test_a_bad_answer_is_repaired_once(server: Server, llm: LlmReasoner, bad: Any) -> None:
    server.answers = [bad, GOOD]
    assert llm.reason('a hat', Memory()).reasoner == 'llm'
    assert llm.counts['llm_repairs'] == 1
    assert 'cannot be used' in server.requests[1]['messages'][-1]['content']


@pytest.mark.parametrize('answers', [
    ['rubbish', 'rubbish'], ['{"intent": <break>'], [500], [404], ['hang'], ['drip'],
    ['x' * 20000], [b'[' * 100_000], [b'{"error": {"message": "out of memory"}}'], [b'1'],
    [b'{"choices": [{"delta": {"content": ' + b'9' * 5000 + b'}}]}'],
])
def test_whatever_the_server_does_there_is_an_answer_in_time(
        server: Server, llm: LlmReasoner, answers: list[Any]) -> None:
    server.answers = answers
    began = time.monotonic()
    turn = llm.reason('please nod', Memory())
    assert (turn.reasoner, turn.intent) == ('embedded', 'nod')
    assert time.monotonic() - began < 1.2
    assert llm.last_problem and llm.counts['llm_fallbacks'] == 1


@pytest.mark.parametrize('event', [
    b'{"choices": [{"delta": null, "finish_reason": "stop"}]}', b'{"choices": ["x"]}',
    b'{"choices": {"a": 1}}', b'{"choices": null, "error": null}', b'{"choices": [null]}',
    b'{"choices": [{"delta": "x"}]}', b'{"choices": [{"delta": {"content": ["x"]}}]}',
])
def test_events_without_words_are_passed_over(server: Server, llm: LlmReasoner,
                                              event: bytes) -> None:
    content = json.dumps({'choices': [{'delta': {'content': json.dumps(GOOD)}}]}).encode()
    server.answers = [event + b'\n\ndata: ' + content + b'\n\ndata: ' + event]
    assert llm.reason('a hat', Memory()).reasoner == 'llm'
    server.answers = [event, event]
    assert llm.reason('please nod', Memory()).reasoner == 'embedded'
    assert 'no JSON object' in llm.last_problem and llm._failed_s is not None


def test_whatever_goes_wrong_in_the_exchange_there_is_an_answer(
        llm: LlmReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise KeyError('choices')

    monkeypatch.setattr(llm, '_complete', fail)
    assert llm.reason('please nod', Memory()).reasoner == 'embedded'
    assert llm.last_problem == "KeyError: 'choices'" and llm._failed_s is not None


def test_a_server_that_is_not_there_is_left_alone_for_a_while(
        reasoner: EmbeddedReasoner, clock: Clock) -> None:
    llm = LlmReasoner(LlmOptions('http://127.0.0.1:9/v1'), reasoner, clock=clock)
    assert llm.reason('please nod', Memory()).intent == 'nod'
    assert 'is the server running' in llm.last_problem
    llm.last_problem = ''
    llm.reason('please nod', Memory())
    assert llm.last_problem == ''
    clock.now_s += 60.0
    llm.reason('please nod', Memory())
    assert llm.last_problem


def test_a_server_without_schemas_is_asked_without(server: Server, llm: LlmReasoner) -> None:
    server.answers = ['no schema', 'no schema', 'no schema', GOOD]
    assert llm.reason('a hat', Memory()).reasoner == 'llm'
    llm.reason('a hat', Memory())
    assert [request.get('response_format', {}).get('type') for request in server.requests] == [
        'json_schema', 'json_object', None, None]


def test_the_key_comes_from_the_environment_and_is_not_logged(
        server: Server, llm: LlmReasoner, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(KEY_VARIABLE, 'secret-key')
    server.answers = [500]
    with caplog.at_level(logging.DEBUG):
        llm.reason('please nod', Memory())
    assert server.keys == ['Bearer secret-key']
    assert 'secret-key' not in caplog.text + llm.last_problem


@pytest.mark.parametrize('end', ['\r', '\n', '\r\n', ' '])
def test_the_end_of_the_keys_line_is_no_part_of_it(
        server: Server, llm: LlmReasoner, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f'secret-key{end}')
    server.answers = [GOOD]
    assert llm.reason('a hat', Memory()).reasoner == 'llm'
    assert server.keys == ['Bearer secret-key']


@pytest.mark.parametrize('key', ['secret-\rkey', 'secret-\nkey', 'secret-kéy', 'secret-\x7fkey'])
def test_a_key_that_is_none_is_refused_and_not_quoted(
        server: Server, llm: LlmReasoner, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with caplog.at_level(logging.DEBUG):
        assert llm.reason('please nod', Memory()).reasoner == 'embedded'
    assert not server.requests
    assert KEY_VARIABLE in llm.last_problem and KEY_VARIABLE in caplog.text
    assert 'secret' not in caplog.text + llm.last_problem


@pytest.mark.parametrize('answer', [
    b'{"error": {"message": "Incorrect API key provided: secret-key"}}',
    b'{"error": "' + b'x' * 193 + b'secret-key"}',
    (401, b'Incorrect API key provided: secret-key'), (401, b'x' * 293 + b'secret-key'),
])
def test_a_key_that_the_server_sends_back_is_not_logged(
        server: Server, llm: LlmReasoner, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture, answer: Any) -> None:
    monkeypatch.setenv(KEY_VARIABLE, 'secret-key')
    server.answers = [answer]
    with caplog.at_level(logging.DEBUG):
        assert llm.reason('please nod', Memory()).reasoner == 'embedded'
    assert '***' in llm.last_problem and llm.last_problem in caplog.text
    assert 'secret' not in caplog.text + llm.last_problem


def test_a_key_in_whatever_goes_wrong_is_not_logged(
        llm: LlmReasoner, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> str:
        raise KeyError('secret-key')

    monkeypatch.setenv(KEY_VARIABLE, 'secret-key')
    monkeypatch.setattr(llm, '_complete', fail)
    with caplog.at_level(logging.DEBUG):
        llm.reason('please nod', Memory())
    assert 'secret' not in caplog.text + llm.last_problem


def test_what_is_not_wanted_any_more_is_dropped(server: Server, llm: LlmReasoner) -> None:
    server.answers = [GOOD]
    assert llm.reason('please nod', Memory(), lambda: True).reasoner == 'embedded'
    assert llm._failed_s is None and not server.requests


def test_an_answer_that_is_not_wanted_any_more_holds_nobody_up(
        server: Server, reasoner: EmbeddedReasoner) -> None:
    llm = LlmReasoner(LlmOptions(server.url, 'tiny', timeout_s=60.0), reasoner)
    server.answers = ['hang', GOOD]
    began = time.monotonic()
    assert llm.reason('please nod', Memory(), lambda: bool(server.requests)).reasoner == 'embedded'
    # The server hangs for 5 s.
    assert time.monotonic() - began < 3.0
    assert 'no longer wanted' in llm.last_problem and llm._failed_s is None
    assert llm.reason('a hat', Memory()).reasoner == 'llm'


def test_a_name_that_is_looked_up_for_long_is_not_waited_for(
        server: Server, llm: LlmReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    found, ended = threading.Event(), threading.Event()
    look_up = socket.getaddrinfo

    def hang(*arguments: Any, **named: Any) -> Any:
        found.wait(30.0)
        return look_up(*arguments, **named)

    def stream(*arguments: Any) -> str:
        try:
            return LlmReasoner._stream(llm, *arguments)
        finally:
            ended.set()

    monkeypatch.setattr(socket, 'getaddrinfo', hang)
    monkeypatch.setattr(llm, '_stream', stream)
    began = time.monotonic()
    assert llm.reason('please nod', Memory()).reasoner == 'embedded'
    assert time.monotonic() - began < 5.0
    assert 'no answer within 0.5 s' in llm.last_problem and llm._failed_s is not None
    # The thread that was left behind ends when it can, and asks nobody any more.
    found.set()
    assert ended.wait(10.0)
    assert not server.requests


@pytest.mark.parametrize('change', [
    {'url': 'ftp://x/v1'}, {'url': 'localhost:1'}, {'url': 'http://u:key@h/v1'},
    {'timeout_s': 0.0}])
def test_options_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        LlmOptions(**change)
