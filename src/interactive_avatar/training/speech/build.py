# SPDX-License-Identifier: Apache-2.0
"""Build the speech library: `python -m interactive_avatar.training.speech.build --out DIR`.

First every voice reads its sentences and the phones are aligned (slow; one cached file per
voice, so the build resumes). Then mouth curves and spectrograms are packed (fast), with copies
whose speed and pitch are changed together by resampling.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.training.speech.align import SILENCE, Aligner, Phone
from interactive_avatar.training.speech.sentences import is_test_sentence, sentences, words
from interactive_avatar.training.speech.voices import Voice, synthesise, voices

SENTENCE_COUNT = 1400
# A phone longer than this, or words faster or slower than this, means that the aligner lost its
# way.
MAX_PHONE_S = 0.7
MIN_MEAN_PHONE_S = 0.04
MAX_MEAN_PHONE_S = 0.2


def stable_seed(*parts: object) -> int:
    """A 32-bit seed from values, the same in every process."""
    return zlib.crc32('|'.join(map(str, parts)).encode())


def texts_for(voice: Voice, pool: list[str], seed: int) -> list[str]:
    """The sentences a voice reads, by the split rules."""
    if voice.split == 'test':
        allowed = [text for text in pool if is_test_sentence(text)]
    elif voice.reads_test:
        allowed = list(pool)
    else:
        allowed = [text for text in pool if not is_test_sentence(text)]
    order = np.random.default_rng(stable_seed(seed, voice.name)).permutation(len(allowed))
    return [allowed[index] for index in order[:voice.count]]


def plausible(phones: list[Phone]) -> bool:
    """Whether an alignment looks right: phone lengths as people (and synthesisers) speak."""
    lengths_s = [phone.end_s - phone.start_s for phone in phones if phone.name != SILENCE]
    if len(lengths_s) < 2 or max(lengths_s) > MAX_PHONE_S:
        return False
    return MIN_MEAN_PHONE_S <= float(np.mean(lengths_s)) <= MAX_MEAN_PHONE_S


def speak(voice: Voice, texts: list[str], aligner: Aligner, cache: Path) -> None:
    """Synthesise and align one voice into `cache`, unless it is there already.

    The file holds `audio` int16 [all samples], `starts` int64 [n + 1], and `lines`, JSON: text
    and phones of each utterance.
    """
    digest = hashlib.sha256(repr((voice, texts)).encode()).hexdigest()[:12]
    path = cache / f'{voice.name}-{digest}.npz'
    if path.exists():
        return
    audio: list[NDArray[np.int16]] = []
    lines = []
    lost = 0
    spoken = zip(texts, synthesise(voice, texts), strict=True)
    for text, (samples, reported) in tqdm(spoken, voice.name, len(texts), file=sys.stderr,
                                          mininterval=5.0):
        phones = reported or aligner.align(samples, words(text))
        if phones is None or not plausible(phones):
            lost += 1
            continue
        audio.append(samples)
        lines.append({'text': text, 'phones': [(phone.name, round(phone.start_s, 3),
                                                round(phone.end_s, 3)) for phone in phones]})
    if not audio:
        raise RuntimeError(f'no sentence of voice {voice.name} could be aligned; check its sound')
    starts = np.concatenate([[0], np.cumsum([len(part) for part in audio])])
    temporary = path.with_suffix('.tmp.npz')
    np.savez(temporary, audio=np.concatenate(audio), starts=starts, lines=json.dumps(lines))
    temporary.rename(path)
    minutes = starts[-1] / SAMPLE_RATE_HZ / 60.0
    print(f'{voice.name}: {len(audio)} sentences, {minutes:.1f} min, {lost} not aligned',
          flush=True)


def speak_all(chosen: Iterable[Voice], cache: Path, seed: int) -> None:
    """Synthesise and align all voices into `cache`; skips what is there."""
    cache.mkdir(parents=True, exist_ok=True)
    aligner = Aligner()
    pool = sentences(SENTENCE_COUNT, seed, aligner.knows)
    for voice in chosen:
        speak(voice, texts_for(voice, pool, seed), aligner, cache)


def main(arguments: list[str] | None = None) -> int:
    """Command line of the builder; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('assets/speech'))
    parser.add_argument('--minutes', type=float, default=100.0,
                        help='upper bound of the packed library (default 100)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--without', nargs='*', default=[],
                        help='engines to leave out: piper kokoro espeak flite')
    parser.add_argument('--pack-only', action='store_true', help='pack the voices made so far')
    options = parser.parse_args(arguments)
    cache = options.out / 'voices'
    if not options.pack_only:
        speak_all([voice for voice in voices() if voice.engine not in options.without], cache,
                  options.seed)
    from interactive_avatar.training.speech.pack import pack

    pack(cache, options.out, options.minutes, options.seed)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
