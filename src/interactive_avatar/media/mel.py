# SPDX-License-Identifier: Apache-2.0
"""Causal log-mel spectrogram: the acoustic front end of the generator, in numpy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import SAMPLE_RATE_HZ

MEL_BANDS = 64
MEL_HOP_SAMPLES = 160
MEL_WINDOW_SAMPLES = 400
MEL_FFT_SAMPLES = 512
MEL_HISTORY_SAMPLES = MEL_WINDOW_SAMPLES - MEL_HOP_SAMPLES
MEL_MIN_HZ = 60.0
MEL_MAX_HZ = 7600.0
# Natural-log energies are clipped to this range: digital silence is the floor, full scale is
# just under the ceiling, so one byte per value stores a spectrogram without visible loss.
MEL_FLOOR_LN = -14.0
MEL_CEILING_LN = 4.0


@lru_cache(maxsize=1)
def mel_filterbank() -> NDArray[np.float32]:
    """Triangular filters on the HTK mel scale, peak 1. float32 [MEL_BANDS, fft bins]."""
    def to_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0))

    edges_mel = np.linspace(to_mel(MEL_MIN_HZ), to_mel(MEL_MAX_HZ), MEL_BANDS + 2)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    bins_hz = np.fft.rfftfreq(MEL_FFT_SAMPLES, 1.0 / SAMPLE_RATE_HZ)
    lower, centre, upper = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (bins_hz - lower) / (centre - lower)
    falling = (upper - bins_hz) / (upper - centre)
    return np.clip(np.minimum(rising, falling), 0.0, None).astype(np.float32)


def log_mel(samples: NDArray[np.int16],
            history: NDArray[np.int16] | None = None) -> NDArray[np.float32]:
    """Log-mel frames every 10 ms; frame ``k`` ends with sample ``160 (k + 1)`` (causal).

    Args:
        samples: int16 [n], 16 kHz mono, ``n`` a multiple of 160.
        history: int16 [240], the samples just before ``samples``; zeros if None.

    Returns:
        float32 [n / 160, MEL_BANDS], natural log of mel energy, clipped to
        [MEL_FLOOR_LN, MEL_CEILING_LN].

    Raises:
        ValueError: on a length that is not a multiple of 160, or another history length.
    """
    if samples.ndim != 1 or samples.size % MEL_HOP_SAMPLES:
        raise ValueError(f'log_mel needs a flat array whose length is a multiple of '
                         f'{MEL_HOP_SAMPLES}, got shape {samples.shape}')
    if history is None:
        history = np.zeros(MEL_HISTORY_SAMPLES, np.int16)
    if history.shape != (MEL_HISTORY_SAMPLES,):
        raise ValueError(f'history must be {MEL_HISTORY_SAMPLES} samples, got {history.shape}')
    signal = np.concatenate([history, samples]).astype(np.float32) / 32768.0
    count = samples.size // MEL_HOP_SAMPLES
    frames = np.lib.stride_tricks.sliding_window_view(signal, MEL_WINDOW_SAMPLES)
    frames = frames[::MEL_HOP_SAMPLES][:count] * np.hanning(MEL_WINDOW_SAMPLES).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, MEL_FFT_SAMPLES)).astype(np.float32) ** 2
    # No matrix product: BLAS would wake a thread that spins for tens of ms after each, on the
    # cores that make the pictures.
    energy = np.einsum('tf,bf->tb', power, mel_filterbank())
    with np.errstate(divide='ignore'):
        return np.clip(np.log(energy), MEL_FLOOR_LN, MEL_CEILING_LN).astype(np.float32)


def mel_to_bytes(mel: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise log-mel values to one byte each (step 0.07 nepers), same shape."""
    scaled = (mel - MEL_FLOOR_LN) / (MEL_CEILING_LN - MEL_FLOOR_LN) * 255.0
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def mel_from_bytes(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Inverse of `mel_to_bytes` up to its rounding, float32, same shape."""
    return (data.astype(np.float32) / 255.0 * (MEL_CEILING_LN - MEL_FLOOR_LN)
            + MEL_FLOOR_LN).astype(np.float32)
