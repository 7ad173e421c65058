# SPDX-License-Identifier: Apache-2.0
"""``avatar evaluate`` and ``avatar record`` from the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation import evaluate, judges, metrics, session_judges
from interactive_avatar.evaluation.bag import read_bag
from interactive_avatar.evaluation.session import analyse

SOURCE = Path(evaluate.__file__).parents[2]
FIXTURE = Path(__file__).parents[1] / 'data' / 'conversation'
has_ros = all(importlib.util.find_spec(name) for name in ('rclpy', 'avatar_bringup'))


def test_bag_in_metrics_out(session_bag: Path, tmp_path: Path,
                            capsys: pytest.CaptureFixture[str]) -> None:
    said = tmp_path / 'said.yaml'
    said.write_text('utterances: [{name: nod, text: "please nod", intent: nod}]')
    assert evaluate.main(['bag', str(session_bag), '--out', str(tmp_path / 'out'),
                          '--said', str(said), '--no-judges']) == 0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['turns'][0]['word_error_rate'] == 0.0
    said = capsys.readouterr()
    assert said.out.strip().endswith('report.html')
    assert '8.0 s of session evaluated in ' in said.err


def test_the_fixture_session_and_its_figures(tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in FIXTURE.rglob('*') if path.is_file())
    assert size < 2_000_000
    assert evaluate.main(['bag', str(FIXTURE / 'bag'), '--out', str(tmp_path)]) == 0
    report = json.loads((tmp_path / 'report.json').read_text())
    stream = report['stream']
    # 382 chunks of 160 ms lie in the bag; the recorder was loaded, so two came late.
    assert stream['audio']['received'] == report['messages']['/avatar/audio'] == 382
    assert (stream['audio']['lost'], stream['audio']['late']) == (0, 2)
    assert stream['seconds'] == pytest.approx(382 * 0.16, abs=0.17)
    assert (stream['missed']['repeated'], stream['missed']['made']) == (252, 374)
    # Twelve turns, five of them said aloud; seven were typed or seen.
    assert [row['name'] for row in report['turns']] == [
        'greeting', 'identity', 'glasses', 'capability', 'nod']
    assert all(row['understood'] for row in report['turns'])
    # "Oh there" for "Hello there": one word of six.
    assert [row['word_error_rate'] for row in report['turns']] == [0.167, 0, 0, 0, 0]
    assert report['response_latency_s']['p50'] == pytest.approx(3.654)
    assert report['stages_s']['recognition']['p50'] == pytest.approx(0.942)
    assert report['face'] is None
    assert any('image_raw/compressed is not in the bag' in text for text in report['problems'])
    assert 'UserPerception was written by another version' in ' '.join(report['problems'])
    assert (tmp_path / 'report.html').stat().st_size > 50_000


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(['bag', str(tmp_path / 'nothing')]) == 2
    assert 'no bag at' in capsys.readouterr().err
    odd = tmp_path / 'odd.yaml'
    odd.write_text('- 1')
    with pytest.raises(ValueError, match='no list "utterances"'):
        evaluate.load_expected(odd)


def test_blinks() -> None:
    opening = np.full(250, 0.3)
    opening[[50, 51, 52, 150, 151]] = 0.05
    opening[200] = np.nan
    assert metrics.blinks_per_minute(opening, np.arange(250) / 25) == pytest.approx(
        60 * 2 / (249 / 25))
    assert np.isnan(metrics.blinks_per_minute(np.full(250, np.nan), np.arange(250) / 25))


@pytest.mark.skipif(bool(judges.available()['mediapipe']),
                    reason=judges.available()['mediapipe'] or 'installed')
def test_judges_of_a_session_without_faces(session_bag: Path) -> None:
    result = session_judges.judge_session(analyse(read_bag(session_bag)))
    assert result['frames_with_face'] == 0.0
    assert result['lip_motion_at_rest_to_speech'] is None


@pytest.mark.skipif(not has_ros, reason='rclpy or the built messages are missing: run `make`')
def test_record_ends_with_a_readable_bag(tmp_path: Path) -> None:
    environment = dict(os.environ)
    environment['PYTHONPATH'] = os.pathsep.join(
        [str(SOURCE), environment.get('PYTHONPATH', '')])
    namespace = f'record_{os.getpid()}'
    puppet = subprocess.Popen([sys.executable, str(Path(__file__).parent / 'puppet_avatar.py'),
                               namespace, '120'], env=environment)
    try:
        done = subprocess.run(
            [sys.executable, '-m', 'interactive_avatar.evaluation.record', str(tmp_path / 'bag'),
             '--namespace', namespace, '--seconds', '4'],
            env=environment, capture_output=True, text=True, timeout=40)
    finally:
        puppet.kill()
        puppet.wait()
    assert done.returncode == 0, done.stderr
    assert f'nobody published /{namespace}/speech' in done.stderr
    recording = read_bag(tmp_path / 'bag')
    assert len(recording.audio) > 5
    assert len(recording.states) == 1
