# SPDX-License-Identifier: Apache-2.0
"""The packed speech library: spectrograms and mouth curves of every utterance, numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import SAMPLES_PER_FRAME

MEL_FRAMES_PER_FRAME = 4


@dataclass(frozen=True)
class Utterance:
    """One utterance of the library.

    Attributes:
        index: its number in the library.
        voice: name of the voice (resampled copies end in the factor, as `joe*1.07`).
        split: train or test.
        text: what is said.
        start: first 25-fps frame in the packed arrays.
        length: 25-fps frames, with silence at both ends.
        speech_start: first frame with sound, relative to `start`.
        speech_end: frame after the last one with sound, relative to `start`.
    """

    index: int
    voice: str
    split: str
    text: str
    start: int
    length: int
    speech_start: int
    speech_end: int


class SpeechLibrary:
    """Utterances with spectrogram (uint8, 4 per frame) and mouth curves (25 fps)."""

    def __init__(self, mel: NDArray[np.uint8], curves: NDArray[np.uint8], units: tuple[str, ...],
                 utterances: list[Utterance], audio_path: Path | None = None) -> None:
        """Hold packed arrays.

        Args:
            mel: uint8 [4 n, 64].
            curves: uint8 [n, units], 255 is 1.0.
            units: mouth unit names of the columns.
            utterances: the table.
            audio_path: file with `audio` int16 [640 n], if the sound is on this machine.

        Raises:
            ValueError: if the arrays' lengths do not belong together.
        """
        if mel.shape[0] != MEL_FRAMES_PER_FRAME * curves.shape[0] or curves.shape[1] != len(units):
            raise ValueError(f'mel {mel.shape} and curves {curves.shape} with {len(units)} units '
                             f'do not belong together; rebuild the library with '
                             f'"python -m interactive_avatar.training.speech.build"')
        self.mel = mel
        self.curves = curves
        self.units = units
        self.utterances = utterances
        self._audio_path = audio_path

    @classmethod
    def load(cls, path: Path | str) -> SpeechLibrary:
        """Read `speech.npz` (and, when asked for sound, `audio.npz` beside it).

        Raises:
            FileNotFoundError: if there is none; names the command that builds it.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f'no speech library at {path}; build it with '
                                    f'"python -m interactive_avatar.training.speech.build"')
        with np.load(path) as data:
            table = data['table']
            utterances = [
                Utterance(index, str(voice), 'test' if test else 'train', str(text),
                          *(int(value) for value in row))
                for index, (voice, test, text, row) in enumerate(zip(
                    data['voice'], data['test'], data['text'], table, strict=True))]
            mel = np.cumsum(data['mel_differences'], axis=1, dtype=np.uint8)
            return cls(mel, data['curves'], tuple(map(str, data['units'])), utterances,
                       path.with_name('audio.npz'))

    def of_split(self, split: str) -> list[Utterance]:
        """Utterances of a split: 'train' or 'test'.

        Raises:
            ValueError: if there are none.
        """
        found = self._splits.get(split)
        if not found:
            raise ValueError(f'the library has no utterance of split {split!r}; it has '
                             f'{", ".join(sorted(self._splits))}')
        return found

    @cached_property
    def _splits(self) -> dict[str, list[Utterance]]:
        splits: dict[str, list[Utterance]] = {}
        for utterance in self.utterances:
            splits.setdefault(utterance.split, []).append(utterance)
        return splits

    def mel_of(self, utterance: Utterance) -> NDArray[np.uint8]:
        """Spectrogram of an utterance, uint8 [4 length, 64]."""
        first = utterance.start * MEL_FRAMES_PER_FRAME
        return self.mel[first:first + utterance.length * MEL_FRAMES_PER_FRAME]

    def curves_of(self, utterance: Utterance) -> NDArray[np.float32]:
        """Mouth curves of an utterance, float32 [length, units], 0 to 1."""
        rows = self.curves[utterance.start:utterance.start + utterance.length]
        return rows.astype(np.float32) / 255.0

    def audio_of(self, utterance: Utterance) -> NDArray[np.int16]:
        """Sound of an utterance, int16 [640 length].

        Raises:
            FileNotFoundError: if the sound is not on this machine.
        """
        first = utterance.start * SAMPLES_PER_FRAME
        return self._audio[first:first + utterance.length * SAMPLES_PER_FRAME]

    @cached_property
    def _audio(self) -> NDArray[np.int16]:
        if self._audio_path is None or not self._audio_path.exists():
            raise FileNotFoundError(f'the sound of the library is not at {self._audio_path}; it '
                                    f'stays on the machine that built it')
        with np.load(self._audio_path) as data:
            return np.asarray(data['audio'], np.int16)
