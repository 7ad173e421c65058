# SPDX-License-Identifier: Apache-2.0
"""Claim: lips follow recorded human speech as well.

The recordings stay where Debian puts them: `pocketsphinx-testdata` (LibriVox and read cards,
public domain) and `asterisk-core-sounds-en-wav` (CC BY-SA 3.0). There is no true mouth; what is
compared with is the openness that the aligned phones ask for, by the formulas that training uses
(`training.speech.curves`). The same is done for synthetic speech: the demo user's sentences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.bench import UTTERANCES
from interactive_avatar.evaluation.bench_lips import pooled
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.judges import MeshJudge
from interactive_avatar.evaluation.model.figures import NOTHING, Figure, Result, Row, bootstrap
from interactive_avatar.evaluation.model.pictures import curves
from interactive_avatar.evaluation.model.play import Player, run
from interactive_avatar.generator.prompts import WorldState, action_prompt, stable_prompt
from interactive_avatar.media.audio import read_wav
from interactive_avatar.media.clock import (
    CHUNK_SAMPLES,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
)

AIM_CORRELATION: Final = 0.7
POCKETSPHINX: Final = Path('/usr/share/pocketsphinx/test/data')
ASTERISK: Final = Path('/usr/share/asterisk/sounds/en_US_f_Allison')
INSTALL: Final = 'apt install pocketsphinx-testdata asterisk-core-sounds-en-wav'
LEAD_S: Final = 0.64
PEAK: Final = 0.6 * 32767
# Asterisk's prompts come without a file of their words.
ASTERISK_WORDS: Final = {
    'all-circuits-busy-now': 'all circuits are busy now',
    'cannot-complete-as-dialed': 'your call cannot be completed as dialed',
    'check-number-dial-again': 'please check the number and dial again',
    'feature-not-avail-line': 'that feature is not available on this line',
    'please-try-call-later': 'please try your call again later',
    'tt-weasels': 'weasels have eaten our phone system',
    'conf-onlyperson': 'you are currently the only person in this conference',
    'conf-leaderhasleft': 'the leader has left the conference',
    'demo-nomatch': "i'm sorry there are no matches for those keywords",
    'ss-noservice': 'the number you have dialed is not in service please check the number and '
                    'try again',
    'confbridge-begin-glorious-a': 'the conference will begin when our glorious leader arrives',
    'agent-incorrect': 'login incorrect please enter your agent number followed by the pound key',
}


@dataclass(frozen=True)
class Clip:
    """A recording with its words.

    Attributes:
        name: for people.
        samples: int16 [n], 16 kHz.
        words: lower case.
    """

    name: str
    samples: NDArray[np.int16]
    words: list[str]


def _transcribed(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Files of a folder with a Sphinx transcription: ``<s> words </s> (name)`` a line."""
    for path in sorted(folder.glob('*transcription')):
        for line in path.read_text(encoding='utf-8').splitlines():
            found = re.fullmatch(r'<s>\s*(.*?)\s*</s>\s*\((.+)\)\s*', line.strip())
            if found:
                yield folder / f'{found[2]}.wav', found[1].split()


def human() -> list[Clip]:
    """Recordings of people that are installed; none if the packages are not."""
    clips = []
    for folder in (POCKETSPHINX / 'librivox', POCKETSPHINX / 'cards'):
        for path, words in _transcribed(folder):
            if path.is_file():
                clips.append(Clip(f'{folder.name} {path.stem[-4:]}',
                                  read_wav(path, convert=True), words))
    for name, text in ASTERISK_WORDS.items():
        path = ASTERISK / f'{name}.wav'
        if path.is_file():
            clips.append(Clip(f'asterisk {name}', read_wav(path, convert=True), text.split()))
    return clips


def synthetic() -> list[Clip]:
    """The demo user's sentences, a synthetic voice."""
    entries = yaml.safe_load((UTTERANCES / 'utterances.yaml').read_text(encoding='utf-8'))
    return [Clip(f'synthetic {entry["name"]}', read_wav(UTTERANCES / f'{entry["name"]}.wav'),
                 re.findall(r"[a-z']+", entry['text'].lower()))
            for entry in entries['utterances']]


def openness(clip: Clip, aligner: Any) -> NDArray[np.float32] | None:
    """Openness of the mouth that the phones of a clip ask for.

    Args:
        clip: the recording.
        aligner: a `training.speech.align.Aligner`.

    Returns:
        float32 [n] at 25 frames/s, 1 for a fully open jaw; None if the words could not be found
        in the sound.
    """
    from interactive_avatar.training.performances.mouth import mouth_opening
    from interactive_avatar.training.speech.curves import MOUTH_UNITS, PAIRED_UNITS, mouth_curves
    from interactive_avatar.training.units import UNITS

    if not all(aligner.knows(word) for word in clip.words):
        return None
    phones = aligner.align(clip.samples, clip.words)
    if phones is None:
        return None
    shapes = mouth_curves(phones, clip.samples, clip.samples.size // SAMPLES_PER_FRAME)
    units = np.zeros((len(shapes), len(UNITS)), np.float32)
    for name, values in zip(MOUTH_UNITS, shapes.T, strict=True):
        sides = [name + side for side in ('Left', 'Right')] if name in PAIRED_UNITS else [name]
        for side in sides:
            units[:, UNITS.index(side)] += values
    return mouth_opening(units)


def levelled(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Samples [n] with their loudest at `PEAK`."""
    loudest = max(1, int(np.abs(samples.astype(np.int32)).max()))
    return np.rint(samples * (PEAK / loudest)).astype(np.int16)


def speak(clip: Clip, reference: NDArray[np.uint8], player: Player) -> NDArray[np.uint8]:
    """Frames of a person who says a clip, from its first sample on."""
    lead = round(LEAD_S * SAMPLE_RATE_HZ / CHUNK_SAMPLES)
    level = levelled(clip.samples)
    sound = np.concatenate([np.zeros(lead * CHUNK_SAMPLES, np.int16), level])
    world = WorldState()
    rest, talk = stable_prompt(world), action_prompt('talk', world)
    count = -(-level.size // CHUNK_SAMPLES)
    stream = player.stream(reference, rest)
    frames = run(stream, [*[rest] * lead, *[talk] * count], sound)
    return frames[lead * 4:]


def _figure(pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], value: str,
            ) -> Figure:
    def fit(index: NDArray[np.int64]) -> float:
        found = metrics.lip_fit(pooled([pairs[i][0] for i in index]),
                                pooled([pairs[i][1] for i in index]))
        return float(getattr(found, value))
    return bootstrap(fit, len(pairs), 'recordings', 'ms' if value == 'lag_ms' else '',
                     0 if value == 'lag_ms' else 2, resamples=400)


def measure(items: Sequence[HeldOut], player: Player, folder: Path, limit: int,
            say: Callable[[str], None]) -> Result:
    """Let held-out people say recordings; finished ones are read from `folder`.

    Args:
        items: whose references are used, in turn.
        player: the generator.
        folder: keeps what was found.
        limit: recordings of either kind at most; 0 for all.
        say: told of each recording.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = Result(
        'Recorded human speech',
        'LibriVox and read cards (pocketsphinx-testdata), telephone prompts '
        '(asterisk-core-sounds-en-wav, 8 kHz), said by held-out people in turn under the prompt '
        'to talk. Lip gap by MediaPipe against the openness that the aligned phones ask for; '
        'beside it the same for a synthetic voice.')
    try:
        from interactive_avatar.training.speech.align import Aligner
        aligner = Aligner()
    except ModuleNotFoundError as error:
        result.how += f' Not measured: {error}; pip install pocketsphinx==5.1.1.'
        result.rows.append(Row('recorded human speech: correlation', NOTHING))
        return result
    recordings = human()
    if not recordings:
        result.how += f' Not measured, the recordings are not installed: {INSTALL}.'
    found: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    lines = []
    with MeshJudge() as mesh:
        for kind, clips in (('human', recordings), ('synthetic', synthetic())):
            if limit and len(clips) > limit:
                clips = [clips[k * len(clips) // limit] for k in range(limit)]
            for number, clip in enumerate(clips):
                item = items[number % len(items)]
                asked = openness(clip, aligner)
                if asked is None:
                    say(f'{clip.name}: its words were not found in the sound; left out')
                    continue
                notes = folder / (f'recorded_{clip.name.replace(" ", "_")}_{item.file_name}_'
                                  f'{player.key}.json')
                if not notes.exists():
                    gap = mesh.track(speak(clip, item.reference, player)).lip_gap[:asked.size]
                    notes.write_text(json.dumps([None if np.isnan(v) else round(float(v), 5)
                                                 for v in gap]))
                gap = np.array(json.loads(notes.read_text()), np.float64)
                pair = gap, asked[:gap.size].astype(np.float64)
                found.setdefault(kind, []).append(pair)
                fit = metrics.lip_fit(*pair)
                lines.append([clip.name, item.name, f'{gap.size / 25:.1f} s',
                              f'{fit.correlation:.2f}', f'{fit.lag_ms:.0f} ms'])
                say(f'{clip.name}: lips {fit.correlation:.2f}, lag {fit.lag_ms:.0f} ms')
    beside = {name: _figure(found['synthetic'], name) if found.get('synthetic') else NOTHING
              for name in ('correlation', 'lag_ms')}
    people = found.get('human', [])
    result.rows += [
        Row.at_least('recorded human speech: correlation with phone openness',
                     _figure(people, 'correlation') if people else NOTHING, AIM_CORRELATION,
                     {'synthetic voice': beside['correlation']}),
        Row('recorded human speech: lag', _figure(people, 'lag_ms') if people else NOTHING,
            compared={'synthetic voice': beside['lag_ms']})]
    result.table = (['recording', 'said by', 'length', 'correlation', 'lag'], lines)
    if people:
        longest = max(people, key=lambda pair: pair[0].size)
        result.plots.append(('The longest recording', curves(
            {'generated': longest[0], 'phones': longest[1]}, 'openness (z-score)')))
    return result
