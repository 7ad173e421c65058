# SPDX-License-Identifier: Apache-2.0
"""Forced phone alignment of known text to sound, with pocketsphinx (BSD) and its dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import SAMPLE_RATE_HZ

ALIGN_FRAME_S = 0.01
PADDING_SAMPLES = 3200
SILENCE = 'SIL'


@dataclass(frozen=True)
class Phone:
    """One phone of an utterance.

    Attributes:
        name: ARPAbet without stress, or `SIL`.
        start_s: seconds from the start of the sound.
        end_s: seconds from the start of the sound.
    """

    name: str
    start_s: float
    end_s: float


class Aligner:
    """Aligns utterances; holds the acoustic model."""

    def __init__(self) -> None:
        """Load the acoustic model.

        Raises:
            ModuleNotFoundError: without pocketsphinx.
        """
        import pocketsphinx

        model = Path(pocketsphinx.get_model_path('en-us'))
        self._decoder: Any = pocketsphinx.Decoder(lm=None, loglevel='FATAL')
        # The acoustic model wants to hear silence around speech, and digital zeros upset its
        # cepstra, so sound is aligned between paddings of faint noise.
        self._padding = np.random.default_rng(0).integers(-2, 3, PADDING_SAMPLES).astype(np.int16)
        with open(model / 'cmudict-en-us.dict', encoding='utf-8') as file:
            self._words = {line.split()[0].split('(')[0] for line in file}

    def knows(self, word: str) -> bool:
        """Whether the dictionary pronounces a word (lower case)."""
        return word in self._words

    def align(self, samples: NDArray[np.int16], words: list[str]) -> list[Phone] | None:
        """Times of the phones of `words` in `samples` (int16 [n], 16 kHz).

        Returns:
            Phones without gaps from the first to the last, silences included; None if the words
            could not be found in the sound.
        """
        data = np.concatenate([self._padding, samples, self._padding]).tobytes()
        length_s = samples.size / SAMPLE_RATE_HZ
        decoder = self._decoder
        try:
            decoder.set_align_text(' '.join(words))
            decoder.start_utt()
            decoder.process_raw(data, full_utt=True)
            decoder.end_utt()
            if decoder.hyp() is None:
                return None
            decoder.set_alignment()
            decoder.start_utt()
            decoder.process_raw(data, full_utt=True)
            decoder.end_utt()
            alignment = decoder.get_alignment()
        except RuntimeError:
            return None
        phones = []
        for word in alignment or ():
            for phone in word:
                name = phone.name.strip('+')
                start_s = phone.start * ALIGN_FRAME_S - PADDING_SAMPLES / SAMPLE_RATE_HZ
                end_s = start_s + phone.duration * ALIGN_FRAME_S
                start_s, end_s = max(start_s, 0.0), min(end_s, length_s)
                if end_s > start_s:
                    phones.append(Phone(name, start_s, end_s))
        return phones or None
