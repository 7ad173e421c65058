# SPDX-License-Identifier: Apache-2.0
"""Forced phone alignment of known text to sound, with pocketsphinx (BSD) and its dictionary; and
which of an utterance's phones belong to which of its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import SAMPLE_RATE_HZ

ALIGN_FRAME_S = 0.01
PADDING_SAMPLES = 3200
SILENCE = 'SIL'
VOWELS = frozenset(('AA', 'AE', 'AH', 'AO', 'AW', 'AY', 'EH', 'ER', 'EY', 'IH', 'IY', 'OW', 'OY',
                    'UH', 'UW'))
# Cost of hearing another phone of the same kind; a phone too many or too few costs 1.
OTHER_PHONE_COST = 0.6


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


@dataclass(frozen=True)
class Word:
    """One word of an utterance.

    Attributes:
        text: as the dictionary spells it.
        phones: its phones in order, at least one.
    """

    text: str
    phones: tuple[Phone, ...]

    @property
    def start_s(self) -> float:
        """Seconds from the start of the sound."""
        return self.phones[0].start_s

    @property
    def end_s(self) -> float:
        """Seconds from the start of the sound."""
        return self.phones[-1].end_s


def group(words: Sequence[str], phones: Sequence[Phone],
          pronunciations: Sequence[Sequence[str]]) -> list[Word]:
    """Tell which phones belong to which word.

    The phones are laid against those of the dictionary with the least edit distance (Needleman
    and Wunsch 1970), so a voice may leave out, add or colour phones, as voices do.

    Args:
        words: of the utterance, in order.
        phones: of the utterance, silences included or not.
        pronunciations: phone names of each word, as the dictionary has them.

    Returns:
        The words that have a phone.
    """
    spoken = [phone for phone in phones if phone.name != SILENCE]
    asked = [(name, number) for number, names in enumerate(pronunciations) for name in names]
    rows, columns = len(spoken) + 1, len(asked) + 1
    cost = np.zeros((rows, columns))
    cost[:, 0], cost[0] = np.arange(rows), np.arange(columns)
    other = np.array([[0.0 if phone.name == name else OTHER_PHONE_COST
                       if (phone.name in VOWELS) == (name in VOWELS) else 2.0
                       for name, _ in asked] for phone in spoken]).reshape(len(spoken), len(asked))
    for i in range(1, rows):
        for j in range(1, columns):
            cost[i, j] = min(cost[i - 1, j - 1] + other[i - 1, j - 1], cost[i - 1, j] + 1.0,
                             cost[i, j - 1] + 1.0)
    owner = [0] * len(spoken)
    i, j = rows - 1, columns - 1
    while i:
        if j and cost[i, j] == cost[i - 1, j - 1] + other[i - 1, j - 1]:
            i, j = i - 1, j - 1
            owner[i] = asked[j][1]
        elif j and cost[i, j] == cost[i, j - 1] + 1.0:
            j -= 1
        else:
            # A phone that no word asked for goes with the one before it.
            i -= 1
            owner[i] = asked[j - 1][1] if j else 0
    found = [tuple(phone for phone, word in zip(spoken, owner, strict=True) if word == number)
             for number in range(len(words))]
    return [Word(text, mine) for text, mine in zip(words, found, strict=True) if mine]


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
            self._words = {line.split()[0].split('(')[0]: line.split()[1:]
                           for line in reversed(file.readlines())}

    def knows(self, word: str) -> bool:
        """Whether the dictionary pronounces a word (lower case)."""
        return word in self._words

    def pronunciation(self, word: str) -> list[str]:
        """Phones of a word, the first way of saying it that the dictionary has.

        Raises:
            KeyError: for a word that is not in it.
        """
        return list(self._words[word])

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
