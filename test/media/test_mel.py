# SPDX-License-Identifier: Apache-2.0
"""The causal log-mel front end."""

from __future__ import annotations

import numpy as np
import pytest

from interactive_avatar.media.mel import (
    MEL_BANDS,
    MEL_CEILING_LN,
    MEL_FLOOR_LN,
    MEL_HISTORY_SAMPLES,
    log_mel,
    mel_filterbank,
    mel_from_bytes,
    mel_to_bytes,
)


def test_silence_is_the_floor() -> None:
    mel = log_mel(np.zeros(2560, np.int16))
    assert mel.shape == (16, MEL_BANDS)
    assert mel.dtype == np.float32
    assert (mel == MEL_FLOOR_LN).all()


def test_chunks_with_history_equal_one_pass() -> None:
    samples = np.random.default_rng(1).integers(-9000, 9000, 2560 * 3).astype(np.int16)
    whole = log_mel(samples)
    history, parts = None, []
    for at in range(0, samples.size, 2560):
        parts.append(log_mel(samples[at:at + 2560], history))
        history = samples[at + 2560 - MEL_HISTORY_SAMPLES:at + 2560]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_causal() -> None:
    samples = np.random.default_rng(2).integers(-9000, 9000, 2560).astype(np.int16)
    changed = samples.copy()
    changed[1600:] = 0
    np.testing.assert_array_equal(log_mel(samples)[:10], log_mel(changed)[:10])
    assert (log_mel(samples)[10] != log_mel(changed)[10]).any()


def test_tone_lands_in_its_band() -> None:
    bank = mel_filterbank()
    assert bank.shape == (MEL_BANDS, 257)
    assert (bank.max(axis=1) > 0).all()
    time_s = np.arange(3200) / 16_000
    samples = (8000 * np.sin(2 * np.pi * 1000 * time_s)).astype(np.int16)
    band = int(log_mel(samples)[-1].argmax())
    assert bank[band, round(1000 / 31.25)] > 0


def test_bytes_round_trip() -> None:
    mel = np.linspace(MEL_FLOOR_LN, MEL_CEILING_LN, 640, dtype=np.float32).reshape(10, 64)
    assert np.abs(mel_from_bytes(mel_to_bytes(mel)) - mel).max() <= 18 / 255 / 2 + 1e-5


def test_bad_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match='160'):
        log_mel(np.zeros(161, np.int16))
    with pytest.raises(ValueError, match='240'):
        log_mel(np.zeros(160, np.int16), np.zeros(10, np.int16))
