# SPDX-License-Identifier: Apache-2.0
"""The echo guard: takes the avatar's own voice out of what its microphone hears.

Two parts. WebRTC's echo canceller (AEC3, in PyPI ``livekit``) learns the way from speaker to
microphone and subtracts it; it needs a few seconds of the avatar's voice to learn. Until then, and
whenever the way changes, the *gate* silences what correlates with the avatar's own sound and that
the canceller has left standing. While the avatar is silent, and where no echo is found, sound
passes untouched.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.audio import Chunker, check_samples
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.perception.vad import PerceptionError

FRAME_SAMPLES: Final = SAMPLE_RATE_HZ // 100
# The avatar's sound is known for so long: the device's delay and the room's reverberation.
OWN_SAMPLES: Final = 4 * SAMPLE_RATE_HZ
# Echo is expected for so long after the avatar's last sound.
TAIL_SAMPLES: Final = SAMPLE_RATE_HZ
# The end of a sound that is so long past that no stamp, not even 0, lies in its tail.
_LONG_AGO: Final = -2 * TAIL_SAMPLES
# Below this peak (-60 dB of full scale) the avatar is silent.
OWN_QUIET_PEAK: Final = 32
# Two time lines that lie further apart than this are laid together anew.
RESYNC_SAMPLES: Final = SAMPLE_RATE_HZ // 25
# The gate compares so much of the microphone with the avatar's sound, every so often.
GATE_SAMPLES: Final = SAMPLE_RATE_HZ * 320 // 1000
GATE_EVERY_FRAMES: Final = 4
MAX_DELAY_SAMPLES: Final = SAMPLE_RATE_HZ // 2
# The gate closes on what one delayed copy of the avatar's sound explains this share of, if the
# canceller has left more than this share of the energy. While the canceller learns, less suffices,
# and so does a like course of the loudness over time and pitch, which reverberation blurs less.
# Chosen in made rooms with echo at -15 dB (docs/perception.md).
GATE_SHARE: Final = 0.12
GATE_LEFT: Final = 0.25
LEARNING_FRAMES: Final = 300
LEARNING_SHARE: Final = 0.06
LEARNING_LIKENESS: Final = 0.65
LEARNING_LEFT: Final = 0.05
# Once closed while learning, the gate opens only to what is clearly another voice.
OTHER_LIKENESS: Final = 0.55
# Headphones, or a browser that cancels echo itself: if the avatar's sound is found in less than
# this share of the microphone's (a running mean over a second of the avatar's voice), there is no
# echo, and sound passes untouched. The canceller would take a user's voice for echo otherwise.
PRESENT_SHARE: Final = 0.15
PRESENT_RATE: Final = GATE_EVERY_FRAMES / 100
# Loudness over time and pitch: 20 bands of 10 ms, compressed.
BAND_HOP_SAMPLES: Final = FRAME_SAMPLES
BAND_SAMPLES: Final = 2 * FRAME_SAMPLES
BAND_EDGES: Final = np.unique(np.round(np.geomspace(6, 200, 21)).astype(int))
BAND_FLOOR: Final = 1e4
BAND_POWER: Final = 0.2
PRE_EMPHASIS: Final = 0.95


class Canceller(Protocol):
    """Subtracts an echo, 10 ms at a time."""

    def process(self, own: NDArray[np.int16], heard: NDArray[np.int16]) -> NDArray[np.int16]:
        """Take the echo of ``own`` out of ``heard``, int16 [160] each, in step."""


class WebRtcCanceller:
    """WebRTC's AEC3, about 1 % of a core while it runs.

    Raises:
        PerceptionError: if the package is missing.
    """

    def __init__(self) -> None:
        try:
            from livekit.rtc import AudioFrame, AudioProcessingModule
        except ImportError as error:
            raise PerceptionError(f'echo cancellation is not installed ({error}): pip install '
                                  f'"livekit>=1.0", or set echo_guard to false and use '
                                  f'headphones') from error
        self._frame: Any = AudioFrame
        self._module: Any = AudioProcessingModule(echo_cancellation=True, high_pass_filter=True)

    def process(self, own: NDArray[np.int16], heard: NDArray[np.int16]) -> NDArray[np.int16]:
        """See `Canceller.process`."""
        self._module.process_reverse_stream(self._wrap(own))
        # The stamps lay both on one time line; what is left is for the canceller to find.
        self._module.set_stream_delay_ms(0)
        frame = self._wrap(heard)
        self._module.process_stream(frame)
        return np.frombuffer(bytes(frame.data), np.int16)

    def _wrap(self, samples: NDArray[np.int16]) -> Any:
        return self._frame(bytearray(samples.tobytes()), SAMPLE_RATE_HZ, 1, FRAME_SAMPLES)


def explained_share(heard: NDArray[np.int16], own: NDArray[np.int16]) -> float:
    """How much of a sound is one delayed copy of another.

    The largest squared normalised cross-correlation over the delays that fit, after pre-emphasis,
    so that the bass that all voices share does not count.

    Args:
        heard: int16 [n].
        own: int16 [n + d]; delays of 0 to d samples before the end are tried.

    Returns:
        0 (nothing in common) to 1.
    """
    x = np.diff(heard.astype(np.float64) * PRE_EMPHASIS, prepend=0.0)
    y = np.diff(own.astype(np.float64) * PRE_EMPHASIS, prepend=0.0)
    size = 1 << int(np.ceil(np.log2(x.size + y.size)))
    product = np.fft.irfft(np.fft.rfft(y, size) * np.conj(np.fft.rfft(x, size)), size)
    lags = y.size - x.size + 1
    power = np.concatenate([[0.0], np.cumsum(y * y)])
    energy = (power[x.size:] - power[:lags]) * float(x @ x)
    fits = energy > 1e-3
    if not fits.any():
        return 0.0
    return float(np.max(product[:lags][fits] ** 2 / energy[fits]))


def likeness(heard: NDArray[np.int16], own: NDArray[np.int16]) -> float:
    """How alike the loudness of two sounds runs over time and pitch.

    The largest correlation coefficient of their compressed band energies over the delays that fit,
    each band without its mean.

    Args:
        heard: int16 [n].
        own: int16 [n + d]; delays of 0 to d samples before the end are tried, in steps of 10 ms.

    Returns:
        -1 to 1; 0 if one of them is silent.
    """
    one, many = _bands(heard), _bands(own)
    one = one - one.mean(axis=0)
    windows = np.lib.stride_tricks.sliding_window_view(many, len(one), axis=0)
    windows = windows - windows.mean(axis=2, keepdims=True)
    energy = (windows ** 2).sum(axis=(1, 2)) * float((one ** 2).sum())
    fits = energy > 1e-9
    if not fits.any():
        return 0.0
    products = np.einsum('lbt,tb->l', windows, one)
    return float(np.max(products[fits] / np.sqrt(energy[fits])))


def _bands(samples: NDArray[np.int16]) -> NDArray[np.float64]:
    """Compressed energies of a sound, float64 [frames, bands]."""
    frames = np.lib.stride_tricks.sliding_window_view(
        samples.astype(np.float64), BAND_SAMPLES)[::BAND_HOP_SAMPLES] * np.hanning(BAND_SAMPLES)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    bands = np.add.reduceat(power, BAND_EDGES, axis=1)[:, :-1]
    return np.asarray((bands + BAND_FLOOR) ** BAND_POWER)


class EchoGuard:
    """Takes the avatar's own sound out of the microphone's.

    `hear_own` may be called from another thread than `clean`.

    Args:
        canceller: WebRTC's if None.

    Raises:
        PerceptionError: if the canceller is not installed.
    """

    def __init__(self, canceller: Canceller | None = None) -> None:
        self._canceller = canceller or WebRtcCanceller()
        self._lock = threading.Lock()
        self._own = np.zeros(OWN_SAMPLES, np.int16)
        # Positions are samples since the epoch; a ring is enough for the last four seconds.
        self._own_end = 0
        self._loud_end = _LONG_AGO
        self._position: int | None = None
        self._frames = Chunker(FRAME_SAMPLES)
        self._heard = np.zeros(GATE_SAMPLES, np.int16)
        self._left = np.zeros(GATE_SAMPLES, np.int16)
        self._count = 0
        # Until more is known, what is heard while the avatar speaks is its echo.
        self._closed = True
        self._present = 1.0
        self._counts = {'echo_frames': 0, 'echo_gated_frames': 0}

    def hear_own(self, samples: NDArray[np.int16], stamp_ns: int) -> None:
        """Take note of what the avatar says.

        Args:
            samples: int16 [n], 16 kHz mono.
            stamp_ns: when its first sample is played.
        """
        check_samples(samples)
        start = _position(stamp_ns)
        with self._lock:
            if abs(start - self._own_end) > OWN_SAMPLES:
                # The avatar's clock has jumped: what was known is of no use.
                self._own[:] = 0
                self._own_end = start
                self._loud_end = _LONG_AGO
            if start > self._own_end:
                self._write(self._own_end, np.zeros(start - self._own_end, np.int16))
            self._write(start, samples[-OWN_SAMPLES:])
            self._own_end = max(self._own_end, start + samples.size)
            loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > OWN_QUIET_PEAK)
            if loud.size:
                self._loud_end = start + int(loud[-1]) + 1

    def _write(self, start: int, samples: NDArray[np.int16]) -> None:
        self._own[np.arange(start, start + samples.size) % OWN_SAMPLES] = samples

    def _read(self, start: int, count: int) -> NDArray[np.int16]:
        positions = np.arange(start, start + count)
        known = (positions < self._own_end) & (positions >= self._own_end - OWN_SAMPLES)
        return np.where(known, self._own[positions % OWN_SAMPLES], 0).astype(np.int16)

    def clean(self, samples: NDArray[np.int16], stamp_ns: int) -> NDArray[np.int16]:
        """The microphone's sound without the avatar's.

        Args:
            samples: int16 [n], 16 kHz mono.
            stamp_ns: when its first sample was taken.

        Returns:
            int16 [m]; up to 9 ms stay back until the next call, so m may differ from n.
        """
        check_samples(samples)
        start = _position(stamp_ns) - self._frames.pending
        if self._position is None or abs(start - self._position) > RESYNC_SAMPLES:
            self._position = start
        frames = self._frames.push(samples)
        return np.concatenate([self._frame(frame) for frame in frames]) if frames \
            else np.zeros(0, np.int16)

    def _frame(self, frame: NDArray[np.int16]) -> NDArray[np.int16]:
        assert self._position is not None
        start = self._position
        self._position += FRAME_SAMPLES
        with self._lock:
            # Before what is known lie only stamps of another clock, or none: nothing can be found
            # in such sound, and to silence it would be to be deaf.
            if not self._own_end - OWN_SAMPLES <= start <= self._loud_end + TAIL_SAMPLES:
                return frame
            own = self._read(start, FRAME_SAMPLES)
            self._count += 1
            compared = self._read(start + FRAME_SAMPLES - GATE_SAMPLES - MAX_DELAY_SAMPLES,
                                  GATE_SAMPLES + MAX_DELAY_SAMPLES) \
                if self._count % GATE_EVERY_FRAMES == 0 else None
        cleaned = self._canceller.process(own, frame)
        self._heard = np.concatenate([self._heard[FRAME_SAMPLES:], frame])
        self._left = np.concatenate([self._left[FRAME_SAMPLES:], cleaned])
        self._counts['echo_frames'] += 1
        if compared is not None:
            self._judge(compared)
        if self._present < PRESENT_SHARE:
            return frame
        if not self._closed:
            return cleaned
        self._counts['echo_gated_frames'] += 1
        return np.zeros_like(cleaned)

    def _judge(self, own: NDArray[np.int16]) -> None:
        """Decide from the last 320 ms whether there is echo, and whether to silence it."""
        if int(np.abs(own.astype(np.int32)).max()) <= OWN_QUIET_PEAK:
            return
        before, after = (float(x.astype(np.float64) @ x) for x in (self._heard, self._left))
        share, like = explained_share(self._heard, own), likeness(self._heard, own)
        alike = share > LEARNING_SHARE or like > LEARNING_LIKENESS
        self._present += PRESENT_RATE * (alike - self._present)
        if self._counts['echo_frames'] > LEARNING_FRAMES:
            self._closed = after > GATE_LEFT * before and share > GATE_SHARE
        elif alike:
            self._closed = after > LEARNING_LEFT * before
        elif like < OTHER_LIKENESS:
            self._closed = False

    def figures(self) -> Mapping[str, int]:
        """Frames of 10 ms in which echo was expected, and those that the gate silenced."""
        return dict(self._counts)


def _position(stamp_ns: int) -> int:
    """A stamp as a number of samples since the epoch."""
    return stamp_ns * SAMPLE_RATE_HZ // 1_000_000_000
