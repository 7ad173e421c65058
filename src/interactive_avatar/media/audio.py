# SPDX-License-Identifier: Apache-2.0
"""Audio primitives: format checks, chunking, loss detection, resampling and WAV files.

Everything inside the avatar is 16 kHz mono S16LE. Whatever else arrives is refused by name or
converted by an explicit call; nothing is guessed.
"""

from __future__ import annotations

import io
import sys
import wave
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ

SAMPLE_BYTES = 2
SUPPORTED_ENCODING = 'S16LE'
# Half-width of the resampling kernel in zero crossings of the lower rate, and the share of the
# lower Nyquist frequency at the middle of the transition: with this window, everything beyond
# the lower Nyquist frequency is below -80 dB and speech up to 6 kHz passes untouched.
RESAMPLE_ZERO_CROSSINGS = 24
RESAMPLE_PASS_SHARE = 0.88
RESAMPLE_KAISER_BETA = 9.0
MAX_SAMPLE_RATE_HZ = 384_000


class AudioFormatError(ValueError):
    """Audio that is not what it must be; the message names the value and the next step."""


@dataclass(frozen=True)
class AudioFormat:
    """What a block of audio claims to be.

    Attributes:
        sample_rate_hz: samples per second and channel.
        channels: number of interleaved channels.
        encoding: name of the sample encoding; only ``S16LE`` is known.
    """

    sample_rate_hz: int = SAMPLE_RATE_HZ
    channels: int = 1
    encoding: str = SUPPORTED_ENCODING

    def check(self) -> None:
        """Refuse anything but 16 kHz mono S16LE.

        Raises:
            AudioFormatError: naming the first value that is wrong and what to do about it.
        """
        if self.encoding != SUPPORTED_ENCODING:
            declared = f'"{self.encoding}"' if self.encoding else 'not declared (empty)'
            raise AudioFormatError(
                f'audio encoding is {declared}, only "{SUPPORTED_ENCODING}" is accepted: '
                f'convert to signed 16-bit little endian and declare it in the message')
        if self.sample_rate_hz != SAMPLE_RATE_HZ:
            raise AudioFormatError(
                f'audio sample rate is {self.sample_rate_hz} Hz, only {SAMPLE_RATE_HZ} Hz is '
                f'accepted: resample before publishing (interactive_avatar.media.resample, or '
                f'set the microphone driver to {SAMPLE_RATE_HZ})')
        if self.channels != 1:
            raise AudioFormatError(
                f'audio has {self.channels} channels, only mono is accepted: publish one '
                f'channel or the mean of all (interactive_avatar.media.mix_to_mono)')


def samples_from_bytes(data: bytes | bytearray | memoryview,
                       declared: AudioFormat | None = None) -> NDArray[np.int16]:
    """Decode S16LE bytes after checking their declared format.

    Args:
        data: little-endian signed 16-bit samples.
        declared: what the sender says the bytes are; 16 kHz mono S16LE if None.

    Returns:
        int16 [n], a copy in the machine's byte order.

    Raises:
        AudioFormatError: on an unsupported format or half a sample at the end.
    """
    (declared or AudioFormat()).check()
    view = memoryview(data).cast('B')
    if view.nbytes % SAMPLE_BYTES:
        raise AudioFormatError(
            f'audio block has {view.nbytes} bytes, an odd number, but {SUPPORTED_ENCODING} '
            f'samples take {SAMPLE_BYTES}: send whole samples in each block')
    return np.frombuffer(view, '<i2').astype(np.int16)


def samples_to_bytes(samples: NDArray[np.int16]) -> bytes:
    """Encode int16 [n] as S16LE bytes.

    Raises:
        AudioFormatError: if the array is not a flat int16 array.
    """
    check_samples(samples)
    return samples.astype('<i2', copy=False).tobytes()


def check_samples(samples: NDArray[np.int16], count: int | None = None) -> None:
    """Refuse anything but a flat int16 array (of ``count`` samples, where given).

    Raises:
        AudioFormatError: naming the dtype or shape that was found.
    """
    if not isinstance(samples, np.ndarray) or samples.dtype != np.int16:
        found = getattr(samples, 'dtype', type(samples).__name__)
        raise AudioFormatError(f'samples are {found}, need int16: convert with '
                               f'interactive_avatar.media.to_int16')
    if samples.ndim != 1:
        raise AudioFormatError(f'samples have shape {samples.shape}, need a flat array of one '
                               f'channel: mix down with interactive_avatar.media.mix_to_mono')
    if count is not None and samples.size != count:
        raise AudioFormatError(f'got {samples.size} samples, need {count}: cut the sound into '
                               f'blocks with interactive_avatar.media.Chunker')


def to_int16(samples: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.int16]:
    """Floats in [-1, 1] to int16, clipped, same shape; NaN becomes silence."""
    scaled = np.nan_to_num(np.asarray(samples, np.float64), nan=0.0, posinf=1.0, neginf=-1.0)
    return _round_to_int16(scaled * 32768.0)


def to_float32(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """int16 to floats in [-1, 1), same shape."""
    return samples.astype(np.float32) / np.float32(32768.0)


def _round_to_int16(values: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
    clipped: NDArray[np.int16] = np.clip(np.rint(values), -32768, 32767).astype(np.int16)
    return clipped


def mix_to_mono(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Mean of the channels: int16 [n, channels] (or [n]) to int16 [n].

    Raises:
        AudioFormatError: on another dtype or number of dimensions.
    """
    if samples.dtype != np.int16 or samples.ndim not in (1, 2):
        raise AudioFormatError(f'mix_to_mono needs int16 [n, channels], got {samples.dtype} '
                               f'{samples.shape}: decode the sound to 16-bit first')
    if samples.ndim == 1:
        return samples
    return _round_to_int16(samples.mean(axis=1, dtype=np.float64))


def silence(count: int = CHUNK_SAMPLES) -> NDArray[np.int16]:
    """Digital silence, int16 [count]."""
    return np.zeros(count, np.int16)


def level_dbfs(samples: NDArray[np.int16]) -> float:
    """Root mean square level relative to full scale, in dB; -120 for silence or nothing."""
    if samples.size == 0:
        return -120.0
    power = float(np.mean((samples.astype(np.float64) / 32768.0) ** 2))
    return max(-120.0, 10.0 * float(np.log10(power + 1e-30)))


class Chunker:
    """Cuts a stream of samples of any block length into blocks of one length.

    Args:
        size: samples per block.

    Raises:
        ValueError: if ``size`` is not positive.
    """

    def __init__(self, size: int = CHUNK_SAMPLES) -> None:
        if size <= 0:
            raise ValueError(f'chunk size is {size} samples, need at least 1')
        self.size = size
        self._rest = np.zeros(0, np.int16)

    @property
    def pending(self) -> int:
        """Samples that wait for their block to fill; always below ``size``."""
        return int(self._rest.size)

    def push(self, samples: NDArray[np.int16]) -> list[NDArray[np.int16]]:
        """Add samples and return every block that is now full, int16 [size] each.

        Raises:
            AudioFormatError: if the array is not a flat int16 array.
        """
        check_samples(samples)
        joined = np.concatenate([self._rest, samples])
        whole = joined.size // self.size * self.size
        # A copy, so that a short rest does not keep a long array alive.
        self._rest = joined[whole:].copy()
        return [joined[at:at + self.size] for at in range(0, whole, self.size)]

    def flush(self) -> NDArray[np.int16] | None:
        """The last, unfilled block padded with silence, int16 [size]; None if nothing waits."""
        if not self._rest.size:
            return None
        block = np.zeros(self.size, np.int16)
        block[:self._rest.size] = self._rest
        self.reset()
        return block

    def reset(self) -> None:
        """Forget what waits."""
        self._rest = np.zeros(0, np.int16)


@dataclass(frozen=True)
class Gap:
    """Loss in a numbered stream.

    Attributes:
        expected: sequence number that should have come.
        found: sequence number that came.
        lost: blocks missing; 0 where the stream went back (a late block or a sender restarted).
    """

    expected: int
    found: int

    @property
    def lost(self) -> int:
        """Blocks that are missing, 0 if the numbering went backwards."""
        return max(0, self.found - self.expected)

    def __str__(self) -> str:
        """One line for a log."""
        if self.lost:
            return (f'{self.lost} audio block(s) lost: expected sequence {self.expected}, '
                    f'got {self.found}')
        return (f'audio sequence went back: expected {self.expected}, got {self.found} '
                f'(late block or restarted sender)')


class SequenceGuard:
    """Watches the ``sequence`` of a stream of blocks and names gaps.

    Attributes:
        lost: blocks lost so far.
        gaps: interruptions so far, steps backwards included.
    """

    def __init__(self) -> None:
        self._stream: str | None = None
        self._next = 0
        self.lost = 0
        self.gaps = 0

    def check(self, sequence: int, stream: str = '') -> Gap | None:
        """Note one block.

        Args:
            sequence: the block's number.
            stream: name of the stream, such as a turn id; a new name starts a new numbering.

        Returns:
            The gap before this block, or None where it follows on or starts a stream.
        """
        expected, known = self._next, self._stream == stream
        self._stream, self._next = stream, sequence + 1
        if not known or sequence == expected:
            return None
        gap = Gap(expected, sequence)
        self.gaps += 1
        self.lost += gap.lost
        return gap

    def reset(self) -> None:
        """Start anew with whatever number comes next; the counts stay."""
        self._stream = None


class Resampler:
    """Streaming band-limited resampler (windowed sinc), exact at any rational ratio.

    Output is the same for every way of cutting the input into blocks.

    Args:
        from_hz: rate of the samples pushed in.
        to_hz: rate of the samples returned.

    Raises:
        AudioFormatError: on a rate that is not between 1 and 384,000 Hz.
    """

    def __init__(self, from_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> None:
        for rate_hz in (from_hz, to_hz):
            if not 1 <= rate_hz <= MAX_SAMPLE_RATE_HZ:
                raise AudioFormatError(f'sample rate is {rate_hz} Hz, need 1 to '
                                       f'{MAX_SAMPLE_RATE_HZ}: check the header of the source')
        divisor = gcd(from_hz, to_hz)
        self.from_hz, self.to_hz = from_hz, to_hz
        self._up, self._down = to_hz // divisor, from_hz // divisor
        scale = min(1.0, to_hz / from_hz)
        self._half = int(np.ceil(RESAMPLE_ZERO_CROSSINGS / scale))
        cutoff = scale * RESAMPLE_PASS_SHARE
        # One row of taps per output phase: tap k weighs input floor(position) - half + 1 + k.
        offsets = np.arange(-self._half + 1, self._half + 1, dtype=np.float64)
        phases = np.arange(self._up, dtype=np.float64)[:, None] / self._up
        distance = offsets[None, :] - phases
        window = np.i0(RESAMPLE_KAISER_BETA * np.sqrt(
            np.clip(1.0 - (distance / self._half) ** 2, 0.0, None)))
        taps = cutoff * np.sinc(cutoff * distance) * window
        # Unit gain at 0 Hz for every phase, so that silence and offsets stay what they are.
        self._taps = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the past; the next sample pushed in is sample 0."""
        # Zeros in front so that output 0 lies on input 0.
        self._buffer = np.zeros(self._half - 1, np.float32)
        self._origin = -(self._half - 1)
        self._done = 0
        self._seen = 0

    def push(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """Add samples at ``from_hz``; return those at ``to_hz`` that are now certain.

        Raises:
            AudioFormatError: if the array is not a flat int16 array.
        """
        check_samples(samples)
        if self._up == self._down:
            return samples.copy()
        self._buffer = np.concatenate([self._buffer, samples.astype(np.float32)])
        self._seen += samples.size
        return self._produce(limit=None)

    def flush(self) -> NDArray[np.int16]:
        """The rest, as if silence followed; then start anew."""
        if self._up == self._down:
            return np.zeros(0, np.int16)
        total = -(-self._seen * self._up // self._down)
        self._buffer = np.concatenate([self._buffer, np.zeros(self._half + 1, np.float32)])
        rest = self._produce(limit=total)
        self.reset()
        return rest

    def _produce(self, limit: int | None) -> NDArray[np.int16]:
        last_input = self._origin + self._buffer.size - 1
        # Output n lies at input n * down / up and needs inputs up to floor(that) + half.
        ready = max(0, ((last_input - self._half + 1) * self._up - 1) // self._down + 1)
        stop = ready if limit is None else min(ready, limit)
        if stop <= self._done:
            return np.zeros(0, np.int16)
        position = np.arange(self._done, stop, dtype=np.int64) * self._down
        base, phase = position // self._up, position % self._up
        windows = np.lib.stride_tricks.sliding_window_view(self._buffer, 2 * self._half)
        picked = windows[base - self._half + 1 - self._origin]
        out = np.einsum('ij,ij->i', picked, self._taps[phase])
        self._done = stop
        keep_from = stop * self._down // self._up - self._half + 1 - self._origin
        if keep_from > 0:
            self._buffer = self._buffer[keep_from:].copy()
            self._origin += keep_from
        return _round_to_int16(out)


def resample(samples: NDArray[np.int16], from_hz: int,
             to_hz: int = SAMPLE_RATE_HZ) -> NDArray[np.int16]:
    """Resample a whole recording, int16 [n] to int16 [ceil(n * to_hz / from_hz)].

    Raises:
        AudioFormatError: on a wrong array or rate.
    """
    check_samples(samples)
    resampler = Resampler(from_hz, to_hz)
    # In blocks of a second, since a window is gathered for every output sample.
    parts = [resampler.push(samples[at:at + from_hz]) for at in range(0, samples.size, from_hz)]
    return np.concatenate([*parts, resampler.flush()])


def read_wav(path: str | Path, convert: bool = False) -> NDArray[np.int16]:
    """Read a PCM WAV file as 16 kHz mono.

    Args:
        path: the file.
        convert: mix down, resample and requantise whatever PCM the file holds; if False, only
            16-bit 16 kHz mono is accepted.

    Returns:
        int16 [n].

    Raises:
        AudioFormatError: if the file is not PCM WAV, or is of another format without `convert`.
        FileNotFoundError: if there is no such file.
    """
    try:
        with wave.open(str(path), 'rb') as file:
            rate_hz, channels, width = (
                file.getframerate(), file.getnchannels(), file.getsampwidth())
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise AudioFormatError(f'{path} is not a PCM WAV file ({error or "it is cut off"}): '
                               f'convert it to 16-bit PCM WAV first') from error
    if not convert:
        try:
            return samples_from_bytes(data, AudioFormat(
                rate_hz, channels, SUPPORTED_ENCODING if width == 2 else f'{8 * width}-bit PCM'))
        except AudioFormatError as error:
            raise AudioFormatError(f'{path}: {error}; read_wav(..., convert=True) does it'
                                   ) from error
    # A cut-off file may end inside a sample; what is whole is used.
    data = data[:len(data) // (width * channels) * width * channels]
    mono = mix_to_mono(_pcm_to_int16(data, width).reshape(-1, channels))
    return resample(mono, rate_hz)


def _pcm_to_int16(data: bytes, width: int) -> NDArray[np.int16]:
    if width == 1:  # WAV's 8-bit samples are unsigned, the others signed.
        return ((np.frombuffer(data, np.uint8).astype(np.int16) - 128) << 8).astype(np.int16)
    # The top two bytes of each little-endian sample are its 16-bit value.
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)[:, -2:]
    return np.ascontiguousarray(raw).view('<i2').reshape(-1).astype(np.int16)


def write_wav(path: str | Path, samples: NDArray[np.int16],
              sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write int16 [n] as a mono 16-bit WAV file.

    Raises:
        AudioFormatError: if the array is not a flat int16 array.
    """
    data = samples_to_bytes(samples)
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(SAMPLE_BYTES)
        file.setframerate(sample_rate_hz)
        # The wave module swaps bytes on big-endian machines; hand it native order.
        file.writeframes(data if sys.byteorder == 'little' else samples.tobytes())


def encode_flac(samples: NDArray[np.int16]) -> bytes:
    """Compress int16 [n], 16 kHz mono, without loss; needs PyAV.

    Raises:
        AudioFormatError: if the array is not a flat int16 array.
    """
    import av

    check_samples(samples)
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='flac') as container:
        stream = container.add_stream('flac', rate=SAMPLE_RATE_HZ, layout='mono')
        if samples.size:
            frame = av.AudioFrame.from_ndarray(samples[None], 's16', 'mono')
            frame.sample_rate = SAMPLE_RATE_HZ
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def decode_flac(data: bytes) -> NDArray[np.int16]:
    """What `encode_flac` was given, int16 [n].

    Raises:
        AudioFormatError: if it is not FLAC of 16 kHz mono 16-bit sound.
    """
    import av

    try:
        with av.open(io.BytesIO(data), 'r', format='flac') as container:
            stream = container.streams.audio[0]
            if stream.format is None:
                raise AudioFormatError(f'{len(data)} bytes are not FLAC: restore the file they '
                                       f'came from')
            if (stream.rate, stream.channels, stream.format.name) != (SAMPLE_RATE_HZ, 1, 's16'):
                raise AudioFormatError(f'FLAC of {stream.rate} Hz, {stream.channels} channel(s), '
                                       f'{stream.format.name}: need {SAMPLE_RATE_HZ} Hz, 1, s16')
            parts = [frame.to_ndarray()[0] for frame in container.decode(stream)]
    except av.error.FFmpegError as error:
        raise AudioFormatError(f'{len(data)} bytes are not FLAC ({error}): restore the file they '
                               f'came from') from error
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)
