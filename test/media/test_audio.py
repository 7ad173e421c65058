# SPDX-License-Identifier: Apache-2.0
"""Audio primitives: refusals, chunking, gaps, resampling and WAV files."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media import (
    AudioFormat,
    AudioFormatError,
    Chunker,
    Resampler,
    SequenceGuard,
    check_samples,
    level_dbfs,
    mix_to_mono,
    read_wav,
    resample,
    samples_from_bytes,
    samples_to_bytes,
    silence,
    to_float32,
    to_int16,
    write_wav,
)
from interactive_avatar.media.audio import decode_flac, encode_flac


def tone(hz: float, rate_hz: int, seconds: float, amplitude: float = 0.5) -> NDArray[np.int16]:
    """A sine as int16 [n]."""
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return to_int16(amplitude * np.sin(2 * np.pi * hz * time_s))


def test_bytes_to_samples_and_back() -> None:
    assert samples_from_bytes(b'\x01\x00\xff\xff\x00\x80').tolist() == [1, -1, -32768]
    samples = np.array([0, 1, -1, 32767, -32768], np.int16)
    assert samples_from_bytes(samples_to_bytes(samples)).tolist() == samples.tolist()
    assert samples_from_bytes(b'').size == 0


@pytest.mark.parametrize(('declared', 'named', 'advice'), [
    (AudioFormat(sample_rate_hz=44_100), '44100 Hz', 'resample'),
    (AudioFormat(sample_rate_hz=0), '0 Hz', 'resample'),
    (AudioFormat(channels=2), '2 channels', 'mix_to_mono'),
    (AudioFormat(encoding='F32LE'), 'F32LE', 'convert'),
    (AudioFormat(encoding=''), 'not declared', 'declare it'),
])
def test_wrong_format_is_refused_with_the_next_step(
        declared: AudioFormat, named: str, advice: str) -> None:
    with pytest.raises(AudioFormatError) as refusal:
        samples_from_bytes(b'\0\0', declared)
    assert named in str(refusal.value)
    assert advice in str(refusal.value)


def test_odd_byte_count_is_refused() -> None:
    with pytest.raises(AudioFormatError, match='5121 bytes, an odd number'):
        samples_from_bytes(bytes(5121))


def test_check_samples_names_dtype_shape_and_count() -> None:
    with pytest.raises(AudioFormatError, match='float32'):
        check_samples(np.zeros(4, np.float32))  # type: ignore[arg-type]
    with pytest.raises(AudioFormatError, match=r'\(4, 2\)'):
        check_samples(np.zeros((4, 2), np.int16))
    with pytest.raises(AudioFormatError, match='got 3 samples, need 4'):
        check_samples(np.zeros(3, np.int16), 4)
    check_samples(silence(4), 4)


def test_floats_clip_and_nan_is_silent() -> None:
    values = np.array([0.0, 1.0, -1.0, 2.0, np.nan, np.inf], np.float32)
    assert to_int16(values).tolist() == [0, 32767, -32768, 32767, 0, 32767]
    assert to_float32(np.array([-32768, 16384], np.int16)).tolist() == [-1.0, 0.5]


def test_mix_to_mono_does_not_overflow() -> None:
    stereo = np.array([[32767, 32767], [-32768, -32768], [100, 300]], np.int16)
    assert mix_to_mono(stereo).tolist() == [32767, -32768, 200]
    with pytest.raises(AudioFormatError):
        mix_to_mono(np.zeros((2, 2), np.float32))  # type: ignore[arg-type]


def test_level() -> None:
    assert level_dbfs(silence()) == -120.0
    assert level_dbfs(np.zeros(0, np.int16)) == -120.0
    assert level_dbfs(tone(440, 16_000, 1.0, 1.0)) == pytest.approx(-3.01, abs=0.02)


def test_chunker_keeps_order_for_any_block_length() -> None:
    source = np.arange(10_000, dtype=np.int16)
    for block in (1, 7, 512, 2560, 9_999):
        chunker, found = Chunker(2560), []
        for at in range(0, source.size, block):
            found += chunker.push(source[at:at + block])
            assert chunker.pending < 2560
        assert np.array_equal(np.concatenate(found), source[:7680])
        rest = chunker.flush()
        assert rest is not None
        assert np.array_equal(rest[:2320], source[7680:])
        assert not rest[2320:].any()
        assert chunker.flush() is None


def test_chunker_refuses_bad_size_and_forgets_on_reset() -> None:
    with pytest.raises(ValueError, match='0 samples'):
        Chunker(0)
    chunker = Chunker(4)
    chunker.push(np.ones(3, np.int16))
    chunker.reset()
    assert chunker.pending == 0
    assert chunker.push(np.ones(2, np.int16)) == []


def test_sequence_guard_names_loss_and_steps_back() -> None:
    guard = SequenceGuard()
    assert guard.check(7, 'a') is None
    assert guard.check(8, 'a') is None
    gap = guard.check(11, 'a')
    assert gap is not None
    assert gap.lost == 2
    assert 'expected sequence 9, got 11' in str(gap)
    back = guard.check(3, 'a')
    assert back is not None
    assert back.lost == 0
    assert 'went back' in str(back)
    assert guard.check(0, 'b') is None
    guard.reset()
    assert guard.check(99, 'b') is None
    assert (guard.lost, guard.gaps) == (2, 2)


@pytest.mark.parametrize(('from_hz', 'to_hz'), [(48_000, 16_000), (44_100, 16_000),
                                                (22_050, 16_000), (8_000, 16_000)])
def test_resample_keeps_a_tone_and_its_phase(from_hz: int, to_hz: int) -> None:
    out = resample(tone(1000, from_hz, 0.5), from_hz, to_hz)
    expected = tone(1000, to_hz, 0.5)
    assert out.size == expected.size
    inner = slice(200, -200)
    error = np.abs(out[inner].astype(float) - expected[inner])
    assert error.max() < 20


def test_resample_removes_what_would_alias() -> None:
    for hz in (8_100, 9_000, 15_000, 23_000):
        out = resample(tone(hz, 48_000, 0.3), 48_000)
        assert level_dbfs(out[400:-400]) - level_dbfs(tone(1000, 16_000, 0.1)) < -70, hz


def test_resampler_does_not_depend_on_blocks() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(-20_000, 20_000, 9_000).astype(np.int16)
    whole = resample(source, 22_050)
    for block in (1, 160, 333, 4_096):
        resampler = Resampler(22_050)
        parts = [resampler.push(source[at:at + block]) for at in range(0, source.size, block)]
        joined = np.concatenate([*parts, resampler.flush()])
        assert np.array_equal(joined, whole)


def test_resampler_refuses_bad_rate_and_passes_equal_rate() -> None:
    with pytest.raises(AudioFormatError, match='0 Hz'):
        Resampler(0)
    source = tone(300, 16_000, 0.1)
    assert np.array_equal(resample(source, 16_000), source)


def test_wav_round_trip(tmp_path: Path) -> None:
    source = tone(440, 16_000, 0.1)
    write_wav(tmp_path / 'a.wav', source)
    assert np.array_equal(read_wav(tmp_path / 'a.wav'), source)


@pytest.mark.parametrize('width', [1, 2, 3, 4])
def test_wav_of_other_formats_is_refused_or_converted(tmp_path: Path, width: int) -> None:
    path = tmp_path / 'b.wav'
    level = tone(440, 48_000, 0.1).astype(np.int64)
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(48_000)
        frames = bytearray()
        for value in level.tolist():
            if width == 1:
                one = bytes([(value >> 8) + 128])
            else:
                one = struct.pack('<i', value << 16)[-width:]
            frames += one * 2
        file.writeframes(bytes(frames))
    with pytest.raises(AudioFormatError, match=r'b\.wav'):
        read_wav(path)
    out = read_wav(path, convert=True)
    error = np.abs(out[100:-100].astype(float) - tone(440, 16_000, 0.1)[100:-100])
    assert error.max() < (300 if width == 1 else 20)


def test_not_a_wav_file(tmp_path: Path) -> None:
    path = tmp_path / 'c.wav'
    for data in (b'', b'RIFF', b'not sound at all'):
        path.write_bytes(data)
        with pytest.raises(AudioFormatError, match='not a PCM WAV'):
            read_wav(path)
    with pytest.raises(FileNotFoundError):
        read_wav(tmp_path / 'missing.wav')


def test_flac_gives_back_every_sample() -> None:
    samples = np.random.default_rng(0).integers(-32768, 32767, 50_001).astype(np.int16)
    for part in (samples, samples[:0], samples[:1]):
        assert (decode_flac(encode_flac(part)) == part).all()
    with pytest.raises(AudioFormatError, match='not FLAC'):
        decode_flac(b'RIFF' + bytes(100))
