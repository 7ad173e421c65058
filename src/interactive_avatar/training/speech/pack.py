# SPDX-License-Identifier: Apache-2.0
"""Pack voices into the library: trim, level, copies at other speeds, curves, spectrograms."""

from __future__ import annotations

import json
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from interactive_avatar.media.clock import FRAME_RATE_HZ, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from interactive_avatar.media.mel import log_mel, mel_to_bytes
from interactive_avatar.training.speech.align import SILENCE, Phone
from interactive_avatar.training.speech.curves import MOUTH_UNITS, mouth_curves
from interactive_avatar.training.speech.voices import voices

# Silence kept around the words: the mouth gets ready before the sound and relaxes after it.
LEAD_FRAMES = 4
TAIL_FRAMES = 5
KEPT_EDGE_S = 0.06
FADE_SAMPLES = 240
LEVEL_DBFS = -22.0
LEVEL_SPREAD_DB = 4.0
SPEED_MIN = 0.88
SPEED_MAX = 1.15


def trim(samples: NDArray[np.int16], phones: list[Phone]) -> tuple[
        NDArray[np.int16], list[Phone]]:
    """Cut silence beyond `KEPT_EDGE_S` from both ends and fade them; phones shift along."""
    spoken = [phone for phone in phones if phone.name != SILENCE]
    start = max(int((spoken[0].start_s - KEPT_EDGE_S) * SAMPLE_RATE_HZ), 0)
    end = min(int((spoken[-1].end_s + KEPT_EDGE_S) * SAMPLE_RATE_HZ), samples.size)
    cut = samples[start:end].astype(np.float32)
    fade = np.linspace(0.0, 1.0, FADE_SAMPLES, dtype=np.float32)
    cut[:FADE_SAMPLES] *= fade
    cut[-FADE_SAMPLES:] *= fade[::-1]
    shift_s = start / SAMPLE_RATE_HZ
    first = phones.index(spoken[0])
    last = len(phones) - phones[::-1].index(spoken[-1])
    moved = [Phone(phone.name, phone.start_s - shift_s, phone.end_s - shift_s)
             for phone in phones[first:last]]
    return np.rint(cut).astype(np.int16), moved


def change_speed(samples: NDArray[np.int16], phones: list[Phone], speed: float) -> tuple[
        NDArray[np.int16], list[Phone]]:
    """Resample: faster and higher for speed > 1, as a tape; phone times scale along."""
    ratio = Fraction(speed).limit_denominator(60)
    changed = resample_poly(samples.astype(np.float32), ratio.denominator, ratio.numerator)
    exact = float(ratio)
    return (np.clip(np.rint(changed), -32768, 32767).astype(np.int16),
            [Phone(phone.name, phone.start_s / exact, phone.end_s / exact) for phone in phones])


def level(samples: NDArray[np.int16], dbfs: float) -> NDArray[np.int16]:
    """Scale so that the louder half of 20 ms windows has this RMS; peaks are limited."""
    signal = samples.astype(np.float32)
    count = signal.size // 320
    rms = np.sqrt((signal[:count * 320].reshape(count, 320) ** 2).mean(axis=1))
    reference = float(np.sqrt((rms[rms >= np.median(rms)] ** 2).mean())) + 1e-6
    gain = 32768.0 * 10.0 ** (dbfs / 20.0) / reference
    gain = min(gain, 32000.0 / (float(np.abs(signal).max()) + 1e-6))
    return np.asarray(np.rint(signal * gain), np.int16)


def place(samples: NDArray[np.int16], phones: list[Phone]) -> tuple[
        NDArray[np.int16], NDArray[np.float32], int, int]:
    """Pad to whole frames with real zeros and compute the curves.

    Returns:
        Sound int16 [640 n], curves float32 [n, units], first frame with sound, frame after it.
    """
    lead = LEAD_FRAMES * SAMPLES_PER_FRAME
    length = LEAD_FRAMES + -(-samples.size // SAMPLES_PER_FRAME) + TAIL_FRAMES
    sound = np.zeros(length * SAMPLES_PER_FRAME, np.int16)
    sound[lead:lead + samples.size] = samples
    curves = mouth_curves(_after_lead(phones), sound, length)
    curves[0] = curves[-1] = 0.0
    return sound, curves, LEAD_FRAMES, length - TAIL_FRAMES


def phones_of(cache: Path, voice: str, text: str) -> list[Phone] | None:
    """Phones of an utterance of the library, from the voices that it was packed from.

    Args:
        cache: folder of the voices.
        voice: its name; copies at another speed are not looked for.
        text: what is said.

    Returns:
        Phones in seconds from the utterance's first frame, None if there is no such utterance.
    """
    for path in sorted(cache.glob(f'{voice}-*.npz')):
        if path.stem.rsplit('-', 1)[0] != voice or path.name.endswith('.tmp.npz'):
            continue
        with np.load(path) as data:
            audio, starts, lines = data['audio'], data['starts'], json.loads(str(data['lines']))
        for number, line in enumerate(lines):
            if line['text'] == text:
                _, phones = trim(audio[starts[number]:starts[number + 1]],
                                 [Phone(str(name), float(start), float(end))
                                  for name, start, end in line['phones']])
                return _after_lead(phones)
    return None


def _after_lead(phones: list[Phone]) -> list[Phone]:
    lead_s = LEAD_FRAMES / FRAME_RATE_HZ
    return [Phone(phone.name, phone.start_s + lead_s, phone.end_s + lead_s) for phone in phones]


def pack(cache: Path, out: Path, minutes: float, seed: int) -> None:
    """Write `speech.npz` (travels) and `audio.npz` (stays) from the voices in `cache`.

    Every utterance goes in once; then copies of train utterances at other speeds, in a random
    order, until `minutes` are full.

    Raises:
        FileNotFoundError: if the cache holds no voice.
    """
    rng = np.random.default_rng(seed)
    test_voices = {voice.name for voice in voices() if voice.split == 'test'}
    items: list[tuple[str, str, NDArray[np.int16], list[Phone]]] = []
    for path in sorted(cache.glob('*.npz')):
        if path.name.endswith('.tmp.npz'):
            continue
        with np.load(path) as data:
            audio, starts, lines = data['audio'], data['starts'], json.loads(str(data['lines']))
        name = path.stem.rsplit('-', 1)[0]
        for number, line in enumerate(lines):
            samples = audio[starts[number]:starts[number + 1]]
            phones = [Phone(str(phone), float(start), float(end))
                      for phone, start, end in line['phones']]
            items.append((name, line['text'], *trim(samples, phones)))
    if not items:
        raise FileNotFoundError(f'no voices in {cache}; run the build without --pack-only')
    _write(out, _chosen(items, test_voices, minutes, rng))


def _chosen(items: list[tuple[str, str, NDArray[np.int16], list[Phone]]], test_voices: set[str],
            minutes: float, rng: np.random.Generator) -> list[
                tuple[str, bool, str, NDArray[np.int16], list[Phone]]]:
    from interactive_avatar.training.speech.sentences import is_test_sentence

    budget = minutes * 60.0 * SAMPLE_RATE_HZ
    used = 0.0
    chosen = []
    for voice, text, samples, phones in items:
        test = voice in test_voices or is_test_sentence(text)
        chosen.append((voice, test, text, samples, phones))
        used += samples.size + (LEAD_FRAMES + TAIL_FRAMES) * SAMPLES_PER_FRAME
    originals = [entry for entry in chosen if not entry[1]]
    while used < budget and originals:
        for number in rng.permutation(len(originals)):
            voice, test, text, samples, phones = originals[number]
            speed = float(rng.uniform(SPEED_MIN, SPEED_MAX))
            changed, moved = change_speed(samples, phones, speed)
            used += changed.size + (LEAD_FRAMES + TAIL_FRAMES) * SAMPLES_PER_FRAME
            if used > budget:
                break
            chosen.append((f'{voice}*{speed:.2f}', test, text, changed, moved))
    return chosen


def _write(out: Path,
           chosen: list[tuple[str, bool, str, NDArray[np.int16], list[Phone]]]) -> None:
    sounds, curves, rows = [], [], []
    start = 0
    for voice, _, text, samples, phones in chosen:
        # The level depends on the utterance alone, so it is the same in every build.
        spread = np.random.default_rng(zlib.crc32(f'{voice}|{text}'.encode())).uniform(-1.0, 1.0)
        sound, mouth, first, last = place(
            level(samples, LEVEL_DBFS + LEVEL_SPREAD_DB * float(spread)), phones)
        sounds.append(sound)
        curves.append(np.rint(mouth * 255.0).astype(np.uint8))
        rows.append((start, len(mouth), first, last))
        start += len(mouth)
    # Every utterance begins and ends in zeros longer than the filter bank's memory, so
    # spectrograms of utterances can be put together in any order.
    mel = np.concatenate([mel_to_bytes(log_mel(sound)) for sound in sounds])
    out.mkdir(parents=True, exist_ok=True)
    # Neighbouring bands are alike: their differences (modulo 256) compress a fifth better.
    np.savez_compressed(
        out / 'speech.npz', mel_differences=np.diff(mel, axis=1, prepend=np.uint8(0)),
        curves=np.concatenate(curves), units=np.array(MOUTH_UNITS),
        voice=np.array([entry[0] for entry in chosen]),
        test=np.array([entry[1] for entry in chosen]),
        text=np.array([entry[2] for entry in chosen]), table=np.array(rows, np.int32))
    np.savez(out / 'audio.npz', audio=np.concatenate(sounds))
    size_mib = (out / 'speech.npz').stat().st_size / 2 ** 20
    print(f'{len(chosen)} utterances, {start / FRAME_RATE_HZ / 60:.1f} min, '
          f'{sum(entry[1] for entry in chosen)} for test, speech.npz {size_mib:.1f} MiB')
