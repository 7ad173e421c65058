# SPDX-License-Identifier: Apache-2.0
"""The aligner finds the words of a sentence that nobody synthesised for it: a bundled voice."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from itertools import pairwise

import pytest

from interactive_avatar.training.speech.align import Aligner, Phone, group
from interactive_avatar.training.speech.voices import synthesise, voices


def phones(names: str) -> list[Phone]:
    """Phones of a tenth of a second each."""
    return [Phone(name, k / 10, (k + 1) / 10) for k, name in enumerate(names.split())]


def test_words_own_the_phones_that_a_voice_made_of_them() -> None:
    said = phones('SIL DH IY SIL B IH G ER K AE')
    words = group(['the', 'bigger', 'cat'], said,
                  [['DH', 'AH'], ['B', 'IH', 'G', 'ER'], ['K', 'AE', 'T']])
    assert [word.text for word in words] == ['the', 'bigger', 'cat']
    assert [[phone.name for phone in word.phones] for word in words] == [
        ['DH', 'IY'], ['B', 'IH', 'G', 'ER'], ['K', 'AE']]
    assert (words[0].start_s, words[1].start_s, words[2].end_s) == pytest.approx((0.1, 0.4, 1.0))


def test_a_phone_too_many_and_a_word_that_was_swallowed() -> None:
    words = group(['a', 'b', 'c'], phones('AH S K IY'), [['AH'], ['B'], ['K', 'IY']])
    assert words[0].text == 'a'
    assert words[-1].text == 'c' and words[-1].phones[-1].name == 'IY'
    assert sum(len(word.phones) for word in words) == 4


@pytest.mark.skipif(importlib.util.find_spec('pocketsphinx') is None,
                    reason='needs pocketsphinx: pip install pocketsphinx==5.1.1')
@pytest.mark.skipif(shutil.which('flite') is None, reason='needs flite: apt-get install flite')
def test_phones_in_order_and_in_time() -> None:
    voice = next(voice for voice in voices() if voice.name == 'slt')
    try:
        sound, reported = next(iter(synthesise(voice, ['Maybe tomorrow.'])))
    except subprocess.CalledProcessError:
        pytest.skip('this flite has no voice slt')
    assert reported is None
    aligner = Aligner()
    found = aligner.align(sound, ['maybe', 'tomorrow'])
    assert found is not None
    spoken = [phone.name for phone in found if phone.name != 'SIL']
    assert spoken[:4] == ['M', 'EY', 'B', 'IY'] == aligner.pronunciation('maybe')
    assert all(one.end_s <= two.start_s + 1e-6 for one, two in pairwise(found))
    assert found[-1].end_s <= sound.size / 16000.0
