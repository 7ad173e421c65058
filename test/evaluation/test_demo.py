# SPDX-License-Identifier: Apache-2.0
"""The demo: its verdict, its files, and its recorded user against a stand-in for the avatar."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from interactive_avatar.evaluation import demo
from interactive_avatar.evaluation.bag import read_bag
from interactive_avatar.evaluation.session import Expected, utterances
from interactive_avatar.graph import prepare_environment
from interactive_avatar.media.audio import read_wav
from interactive_avatar.media.video import VideoReader
from interactive_avatar.reasoning import turn as reasoning_turn

has_ros = all(importlib.util.find_spec(name) for name in ('rclpy', 'avatar_bringup'))


def turn(**fields: Any) -> dict[str, Any]:
    return {'said': 'please nod', 'heard': 'please nod', 'word_error_rate': 0.0,
            'understood': True, 'answer_s': 1.0, 'actions': ['nod'], **fields}


def test_verdict() -> None:
    face = {'mouth_change_in_speech': 3.0, 'mouth_rest_to_speech': 0.2}
    good = demo.checks({'turns': [turn()] * 5, 'face': face})
    assert [c['passed'] for c in good] == [True, True, True]
    deaf = turn(heard='', word_error_rate=1.0, understood=False)
    assert not demo.checks({'turns': [turn(), deaf], 'face': face})[0]['passed']
    mute = turn(answer_s=0.0)
    assert not demo.checks({'turns': [mute] * 5, 'face': face})[1]['passed']
    still = face | {'mouth_change_in_speech': 0.1}
    assert not demo.checks({'turns': [turn()] * 5, 'face': still})[2]['passed']
    restless = face | {'mouth_rest_to_speech': 0.95}
    assert not demo.checks({'turns': [turn()] * 5, 'face': restless})[2]['passed']
    nothing = demo.checks({'turns': [], 'face': None})
    assert not any(c['passed'] for c in nothing)


def test_recorded_user_ships_whole() -> None:
    entries = yaml.safe_load((demo.UTTERANCES / 'utterances.yaml').read_text(encoding='utf-8'))
    assert len(entries['utterances']) >= 5
    total = 0
    for entry in entries['utterances']:
        path = demo.UTTERANCES / f'{entry["name"]}.wav'
        total += path.stat().st_size
        samples = read_wav(path)
        assert 0.5 < samples.size / 16000 < 4.0
        assert np.abs(samples).max() > 10000
        assert entry['intent'] in reasoning_turn.INTENTS
    assert total < 1_000_000


def test_report_of_a_session(session_bag: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = demo.make_report(read_bag(session_bag), [Expected('nod', 'Please nod!', 'nod')],
                              tmp_path, 'Test', said.append)
    assert [c['passed'] for c in result['checks']] == [True, True, True]
    video = VideoReader(tmp_path / 'demo.mp4')
    assert (video.width, video.height) == (512, 624)
    assert video.has_audio
    assert sum(1 for _ in video) == 200
    # The user's tone starts 1.12 s into the session; 20 ms is the way to the viewer.
    sound = video.audio()
    assert np.flatnonzero(np.abs(sound) > 2000)[0] / 16000 == pytest.approx(1.10, abs=0.03)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['turns'][0]['heard'] == 'please nod'
    text = (tmp_path / 'report.md').read_text()
    assert '| Please nod! | please nod | nod | nod | Of course. |' in text
    assert (tmp_path / 'contact_sheet.png').stat().st_size > 1000


def test_events_become_lines_for_people() -> None:
    assert demo.describe({'event': 'say', 'text': 'Hello'}) == 'user    "Hello"'
    line = demo.describe({'event': 'intent', 'intent': 'nod', 'confidence': 0.9,
                          'action': 'nod', 'speech': 'Sure.'})
    assert line == 'avatar  [nod 0.90 → nod] "Sure."'
    assert demo.describe({'event': 'state'}) is None


@pytest.mark.skipif(not has_ros, reason='rclpy or the built messages are missing: run `make`')
def test_recorded_user_talks_to_a_puppet(tmp_path: Path) -> None:
    few = tmp_path / 'utterances'
    few.mkdir()
    (few / 'hello.wav').write_bytes((demo.UTTERANCES / 'capability.wav').read_bytes())
    (few / 'utterances.yaml').write_text(
        'utterances: [{name: hello, intent: greeting, text: Hello there}]')
    environment = dict(prepare_environment(dict(os.environ)))
    environment['PYTHONPATH'] = os.pathsep.join(
        [str(Path(demo.__file__).parents[2]), environment.get('PYTHONPATH', '')])
    namespace = f'puppet_{os.getpid()}'
    puppet = subprocess.Popen([sys.executable, str(Path(__file__).parent / 'puppet_avatar.py'),
                               namespace, '60'], env=environment)
    said: list[str] = []
    try:
        status = demo.run_client(tmp_path, environment, namespace, 30.0, said.append, few)
    finally:
        puppet.kill()
        puppet.wait()
    assert status == 0, said
    assert 'heard   "Hello there."' in said
    recording = read_bag(tmp_path / 'bag')
    assert recording.namespace == f'/{namespace}/'
    log = demo.expected_from_log(tmp_path / 'said.json')
    result = demo.make_report(recording, log, tmp_path, 'Puppet', said.append)
    assert [c['passed'] for c in result['checks']] == [True, True, True]
    # What was laid on the wire is what is in the bag, at the time that the client noted.
    spoken = utterances(recording.user_audio)
    assert len(spoken) == 1
    assert abs(spoken[0].start_ns - log[0].start_ns) < 100_000_000
    assert 0.0 < result['turns'][0]['response_latency_s'] < 3.0
