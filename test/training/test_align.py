# SPDX-License-Identifier: Apache-2.0
"""The aligner finds the words of a sentence that nobody synthesised for it: a bundled voice."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise

import pytest

from interactive_avatar.training.speech.align import Aligner
from interactive_avatar.training.speech.voices import synthesise, voices

pytest.importorskip('pocketsphinx', reason='needs pocketsphinx: pip install pocketsphinx==5.1.1')


@pytest.mark.skipif(shutil.which('flite') is None, reason='needs flite: apt-get install flite')
def test_phones_in_order_and_in_time() -> None:
    voice = next(voice for voice in voices() if voice.name == 'slt')
    try:
        sound, reported = next(iter(synthesise(voice, ['Maybe tomorrow.'])))
    except subprocess.CalledProcessError:
        pytest.skip('this flite has no voice slt')
    assert reported is None
    phones = Aligner().align(sound, ['maybe', 'tomorrow'])
    assert phones is not None
    spoken = [phone.name for phone in phones if phone.name != 'SIL']
    assert spoken[:4] == ['M', 'EY', 'B', 'IY']
    assert all(one.end_s <= two.start_s + 1e-6 for one, two in pairwise(phones))
    assert phones[-1].end_s <= sound.size / 16000.0
