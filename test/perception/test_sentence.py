# SPDX-License-Identifier: Apache-2.0
"""Which words end a sentence: on real sentences, and on their beginnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from interactive_avatar.perception.sentence import sounds_complete

SENTENCES = Path(__file__).parents[1] / 'data' / 'intents' / 'heldout.tsv'


@pytest.mark.parametrize('text', [
    'Please nod.', 'please nod your head', 'Hello!', 'What can you do?', 'How are you?',
    'Put it on.', 'Nod, please.', 'Come back.', 'What?', 'Yes.', 'My name is Ada.',
    'Look at me.', 'Thank you so much!',
])
def test_whole_sentences_are_complete(text: str) -> None:
    assert sounds_complete(text)


@pytest.mark.parametrize('text', [
    '', '...', 'Put on your.', 'Can you.', 'My name is.', 'I want you to.', 'Look at the.',
    'Hello, my name...', 'And then,', 'I think that is very.', 'Tell me.',
    "Let's.", 'Could you please put on your glasses and.', 'Um.',
])
def test_beginnings_are_not(text: str) -> None:
    assert not sounds_complete(text)


def test_few_beginnings_of_real_sentences_pass_for_whole_ones() -> None:
    rows = [line.split('\t')[0] for line in SENTENCES.read_text('utf-8').splitlines()
            if line.strip() and not line.startswith(('#', 'utterance\t'))]
    whole = [sounds_complete(row.rstrip('.?!') + '?') for row in rows]
    assert sum(whole) / len(whole) > 0.95
    # Half of all beginnings end in a word that could end a sentence; words alone do not tell more,
    # which is why a sure recognition and a pause of a third of a second are needed as well.
    begun = [' '.join(words[:at]).rstrip('.,?!') + '.'
             for words in map(str.split, rows) for at in range(2, len(words))]
    assert sum(map(sounds_complete, begun)) / len(begun) < 0.55
