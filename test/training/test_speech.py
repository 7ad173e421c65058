# SPDX-License-Identifier: Apache-2.0
"""Mouth curves close where lips meet and in silence; the library packs and reads back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.media.clock import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from interactive_avatar.media.mel import log_mel, mel_to_bytes
from interactive_avatar.training.speech import SpeechLibrary
from interactive_avatar.training.speech.align import Phone
from interactive_avatar.training.speech.build import plausible, texts_for
from interactive_avatar.training.speech.curves import MOUTH_UNITS, mouth_curves
from interactive_avatar.training.speech.espeak import phones_from_events, to_arpabet
from interactive_avatar.training.speech.pack import change_speed, pack, phones_of, trim
from interactive_avatar.training.speech.sentences import is_test_sentence, sentences, words
from interactive_avatar.training.speech.voices import voices

JAW = MOUTH_UNITS.index('jawOpen')
CLOSE = MOUTH_UNITS.index('mouthClose')
ROLL_LOWER = MOUTH_UNITS.index('mouthRollLower')
PUCKER = MOUTH_UNITS.index('mouthPucker')


def tone(seconds: float) -> np.ndarray:
    """A 200 Hz tone, int16."""
    times = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (8000 * np.sin(2 * np.pi * 200 * times)).astype(np.int16)


def chain(*parts: tuple[str, float], start: float = 0.4) -> list[Phone]:
    """Phones one after the other, (name, seconds)."""
    phones = []
    for name, length in parts:
        phones.append(Phone(name, start, start + length))
        start += length
    return phones


def test_bilabials_close_at_any_frame_phase() -> None:
    for shift in np.arange(0.0, 0.04, 0.005):
        phones = chain(('AA', .15), ('B', .05), ('AA', .15), start=0.4 + float(shift))
        curves = mouth_curves(phones, tone(1.2), 30)
        middle = 0.4 + float(shift) + 0.175
        frame = int(middle * 25)
        gap = np.maximum(curves[:, JAW] - curves[:, CLOSE], 0.0)
        assert gap[frame - 1:frame + 2].min() < 0.03
        assert gap.max() > 0.3


def test_labiodental_and_rounding() -> None:
    curves = mouth_curves(chain(('AA', .12), ('F', .1), ('UW', .2)), tone(1.2), 30)
    assert curves[:, ROLL_LOWER].max() > 0.4
    assert curves[:, PUCKER].max() > 0.4


def test_silence_is_closed() -> None:
    phones = chain(('AA', .2), ('SIL', .8), ('IY', .2))
    curves = mouth_curves(phones, tone(2.5), 60)
    assert not curves[:6].any()
    assert not curves[int(.95 * 25):int(1.2 * 25)].any()
    assert not curves[int(1.9 * 25):].any()


def test_unknown_phone_is_named() -> None:
    with pytest.raises(ValueError, match='XX'):
        mouth_curves([Phone('XX', 0.0, 0.1)], tone(0.2), 5)
    with pytest.raises(ValueError, match='silence'):
        mouth_curves([Phone('SIL', 0.0, 0.1)], tone(0.2), 5)


def test_sentences_are_distinct_and_split() -> None:
    found = sentences(700, 0)
    assert len(set(found)) == 700
    assert found == sentences(700, 0)
    held_out = sum(map(is_test_sentence, found))
    assert 40 < held_out < 110
    assert words("Let's go, Joe!") == ["let's", 'go', 'joe']


def test_trim_and_speed_move_phones_with_the_sound() -> None:
    samples = np.concatenate([np.zeros(8000, np.int16), tone(1.0), np.zeros(8000, np.int16)])
    cut, phones = trim(samples, [Phone('SIL', 0.0, 0.5), Phone('AA', 0.5, 1.5),
                                 Phone('SIL', 1.5, 2.0)])
    assert [phone.name for phone in phones] == ['AA']
    assert phones[0].start_s == pytest.approx(0.06)
    assert cut.size == pytest.approx(1.12 * SAMPLE_RATE_HZ, abs=2)
    fast, moved = change_speed(cut, phones, 1.1)
    assert moved[0].start_s == pytest.approx(0.06 / 1.1, rel=0.01)
    assert fast.size == pytest.approx(cut.size / 1.1, rel=0.01)


def test_pack_and_load(tmp_path: Path) -> None:
    cache = tmp_path / 'voices'
    cache.mkdir()
    train = next(text for text in sentences(50, 0) if not is_test_sentence(text))
    test = next(text for text in sentences(200, 0) if is_test_sentence(text))
    sound = np.concatenate([tone(1.0), tone(0.8)])
    lines = [{'text': train, 'phones': [['AA', 0.1, 0.5], ['B', 0.5, 0.9]]},
             {'text': test, 'phones': [['IY', 0.1, 0.7]]}]
    np.savez(cache / 'someone-0123.npz', audio=sound, starts=np.array([0, 16000, 28800]),
             lines=json.dumps(lines))
    pack(cache, tmp_path, minutes=0.06, seed=0)
    phones = phones_of(cache, 'someone', train)
    # 0.06 s of what came before are kept, behind four frames of silence.
    assert phones == [Phone('AA', pytest.approx(0.22), pytest.approx(0.62)),
                      Phone('B', pytest.approx(0.62), pytest.approx(1.02))]
    assert phones_of(cache, 'some', train) is None
    assert phones_of(cache, 'someone', 'Nobody said this.') is None
    library = SpeechLibrary.load(tmp_path / 'speech.npz')
    assert len(library.of_split('test')) == 1
    assert library.of_split('test')[0].text == test
    assert any('*' in utterance.voice for utterance in library.of_split('train'))
    for utterance in library.utterances:
        audio = library.audio_of(utterance)
        assert audio.size == utterance.length * SAMPLES_PER_FRAME
        assert np.array_equal(library.mel_of(utterance), mel_to_bytes(log_mel(audio)))
        curves = library.curves_of(utterance)
        assert curves.shape == (utterance.length, len(MOUTH_UNITS))
        assert not curves[0].any() and not curves[-1].any()
        assert not library.mel_of(utterance)[-4:].any()


def test_missing_library_tells_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'training\.speech\.build'):
        SpeechLibrary.load(tmp_path / 'speech.npz')


def test_espeak_names_become_arpabet() -> None:
    assert to_arpabet('tʃ') == ['CH']
    assert to_arpabet('ˈaɪɚ') == ['AY', 'ER']
    assert to_arpabet('ː') == []
    phones = phones_from_events([(0.0, 'h'), (0.1, 'oːɹ'), (0.3, '')], 0.5)
    assert [phone.name for phone in phones] == ['HH', 'AO', 'R', 'SIL']
    assert phones[2].start_s == pytest.approx(0.2)


def test_voices_keep_the_split() -> None:
    pool = sentences(600, 0)
    names = [voice.name for voice in voices()]
    assert len(set(names)) == len(names) > 30
    for voice in voices():
        read = texts_for(voice, pool, 0)
        assert read == texts_for(voice, pool, 0)
        if voice.split == 'test':
            assert all(map(is_test_sentence, read))
        elif not voice.reads_test:
            assert not any(map(is_test_sentence, read))


def test_lost_alignments_are_refused() -> None:
    assert plausible(chain(('AA', .1), ('B', .06), ('IY', .12)))
    assert not plausible(chain(('AA', 1.1), ('B', .06)))
    assert not plausible(chain(('AA', .01), ('B', .01), ('IY', .01)))
