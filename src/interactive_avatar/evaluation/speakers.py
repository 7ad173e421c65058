# SPDX-License-Identifier: Apache-2.0
"""Users of whom there are no recordings: other synthetic voices than the avatar's.

They read sentences to the avatar in `avatar evaluate intents --speech` and `avatar bench
response`. The synthesisers are tools of the evaluation, each optional.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.training.speech.voices import Voice, synthesise

# Best first; none is the avatar's own voice (joe).
SPEAKERS: Final = (
    Voice('kokoro-kumo', 'kokoro', (('speed', 1.0), ('style', 'jm_kumo')), 0),
    Voice('slt', 'flite', (), 0),
    Voice('kokoro-alpha', 'kokoro', (('speed', 1.0), ('style', 'jf_alpha')), 0),
    Voice('espeak', 'espeak', (('accent', 'en-us'), ('pitch', 50), ('variant', ''),
                               ('words_per_minute', 155)), 0),
)
# As a person at a microphone: half of full scale at the loudest sample.
PEAK: Final = 16_000
QUIET_LEVEL: Final = 150


class SpeakerMissing(RuntimeError):
    """Too few voices are installed; the message says what to install."""


def speaker(name: str) -> Voice:
    """A voice by its name.

    Raises:
        ValueError: naming those that there are.
    """
    for voice in SPEAKERS:
        if voice.name == name:
            return voice
    raise ValueError(f'there is no speaker {name!r}; use one of '
                     f'{", ".join(voice.name for voice in SPEAKERS)}')


def available(count: int) -> list[Voice]:
    """The first voices that work here, tried with one word.

    Raises:
        SpeakerMissing: if there are fewer.
    """
    found: list[Voice] = []
    problems = []
    for voice in SPEAKERS:
        if len(found) == count:
            break
        try:
            next(read([voice], ['Hello.']))
        except (OSError, ImportError, RuntimeError, ValueError) as error:
            problems.append(f'{voice.name}: {error}')
        else:
            found.append(voice)
    if len(found) < count:
        raise SpeakerMissing(f'{count} voices are needed and {len(found)} work: apt install '
                             f'espeak-ng flite ({"; ".join(problems)})')
    return found


def read(voices: Sequence[Voice], texts: Sequence[str]) -> Iterator[NDArray[np.int16]]:
    """Let voices read sentences in turn, sentence by sentence.

    Args:
        voices: sentence `n` is read by voice `n` modulo their number.
        texts: plain English sentences.

    Yields:
        int16 [n] at 16 kHz without silence around it, at one level, in order.
    """
    readers = [synthesise(voice, list(texts[at::len(voices)])) for at, voice in enumerate(voices)]
    for number in range(len(texts)):
        samples, _ = next(readers[number % len(voices)])
        loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > QUIET_LEVEL)
        if loud.size:
            margin = SAMPLE_RATE_HZ // 50
            samples = samples[max(0, int(loud[0]) - margin):int(loud[-1]) + margin]
        peak = max(1, int(np.abs(samples.astype(np.int32)).max()))
        yield np.asarray(np.rint(samples * (PEAK / peak)), np.int16)
