# SPDX-License-Identifier: Apache-2.0
"""Mouth curves from phone times: co-articulation by dominance functions.

After M. M. Cohen and D. W. Massaro, "Modeling Coarticulation in Synthetic Visual Speech" (1993):
each phone pulls each mouth unit toward a target with a dominance that decays with distance in
time; the curve is the dominance-weighted mean of all targets. Two things are added, because
viewers see them at once when they are missing: lips really meet in /p b m/ and the lower lip
really reaches the teeth in /f v/, whatever the neighbours pull; and silence is a closed mouth.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from interactive_avatar.training.speech.align import SILENCE, Phone

# Mouth units that speech drives; `Both` ones stand for the ARKit Left and Right pair.
MOUTH_UNITS: Final = (
    'jawOpen', 'mouthClose', 'mouthFunnel', 'mouthPucker', 'mouthPress', 'mouthRollLower',
    'mouthRollUpper', 'mouthStretch', 'mouthSmile', 'mouthUpperUp', 'mouthLowerDown',
    'mouthShrugUpper')
PAIRED_UNITS: Final = ('mouthPress', 'mouthStretch', 'mouthSmile', 'mouthUpperUp',
                       'mouthLowerDown')
_JAW, _CLOSE, _FUNNEL, _PUCKER, _PRESS, _ROLL_LOWER, _ROLL_UPPER = range(7)
_STRETCH, _SMILE, _UPPER_UP, _LOWER_DOWN, _SHRUG_UPPER = range(7, 12)

RATE_HZ: Final = 100

# How far in time a phone's pull on a unit reaches, seconds: rounding is planned earlier and held
# longer than the jaw's movement.
_REACH_S: Final = np.array([.045, .03, .065, .07, .03, .03, .03, .05, .06, .045, .045, .045],
                           np.float32)
# Speakers anticipate more than they carry over.
_ANTICIPATION: Final = 1.3
LIP_LEAD_S: Final = 0.11
LIP_RELEASE_S: Final = 0.14
# A pause shorter than this does not close the mouth.
SHORT_PAUSE_S: Final = 0.16
# Shortest plateau of a lip closure: longer than one video frame, so a frame always shows it.
CLOSURE_S: Final = 0.055
_CLOSURE_RAMP_S: Final = 0.045


def _target(**units: float) -> NDArray[np.float32]:
    values = np.zeros(len(MOUTH_UNITS), np.float32)
    for name, value in units.items():
        values[MOUTH_UNITS.index(name)] = value
    return values


def _vowel(jaw: float, funnel: float = 0.0, pucker: float = 0.0, stretch: float = 0.0,
           smile: float = 0.0, upper: float = 0.0, lower: float = 0.0) -> NDArray[np.float32]:
    return _target(jawOpen=jaw, mouthFunnel=funnel, mouthPucker=pucker, mouthStretch=stretch,
                   mouthSmile=smile, mouthUpperUp=upper, mouthLowerDown=lower)


_TARGETS: Final[dict[str, NDArray[np.float32]]] = {
    SILENCE: _target(),
    'AA': _vowel(.60, upper=.10, lower=.25), 'AE': _vowel(.52, stretch=.2, upper=.2, lower=.3),
    'AH': _vowel(.38, upper=.08, lower=.18), 'AO': _vowel(.50, funnel=.35, pucker=.1, lower=.1),
    'EH': _vowel(.42, stretch=.15, upper=.15, lower=.25), 'ER': _vowel(.24, funnel=.3, pucker=.2),
    'IH': _vowel(.27, stretch=.15, smile=.08, upper=.12, lower=.2),
    'IY': _vowel(.20, stretch=.3, smile=.18, upper=.14, lower=.22),
    'UH': _vowel(.24, funnel=.3, pucker=.3), 'UW': _vowel(.15, funnel=.3, pucker=.65),
    'E': _vowel(.36, stretch=.2, smile=.08, upper=.14, lower=.22),
    'O': _vowel(.36, funnel=.5, pucker=.3),
    'B': _target(jawOpen=.04, mouthClose=.08, mouthPress=.25, mouthRollLower=.12,
                 mouthRollUpper=.1),
    'F': _target(jawOpen=.07, mouthRollLower=.5, mouthUpperUp=.22),
    'TH': _target(jawOpen=.17, mouthUpperUp=.12, mouthLowerDown=.18),
    'T': _target(jawOpen=.13, mouthUpperUp=.08, mouthLowerDown=.16, mouthStretch=.06),
    'N': _target(jawOpen=.14, mouthUpperUp=.06, mouthLowerDown=.14),
    'L': _target(jawOpen=.2, mouthUpperUp=.1, mouthLowerDown=.15),
    'S': _target(jawOpen=.06, mouthStretch=.22, mouthUpperUp=.14, mouthLowerDown=.24),
    'SH': _target(jawOpen=.1, mouthFunnel=.55, mouthPucker=.2, mouthUpperUp=.1,
                  mouthLowerDown=.12),
    'K': _target(jawOpen=.2, mouthLowerDown=.1, mouthUpperUp=.05),
    'R': _target(jawOpen=.17, mouthFunnel=.3, mouthPucker=.32),
    'W': _target(jawOpen=.09, mouthFunnel=.25, mouthPucker=.75),
    'Y': _target(jawOpen=.15, mouthStretch=.25, mouthSmile=.12, mouthLowerDown=.12),
    'HH': _target(jawOpen=.26, mouthLowerDown=.1),
}
_ALIASES: Final = {'P': 'B', 'M': 'B', 'V': 'F', 'DH': 'TH', 'D': 'T', 'Z': 'S', 'ZH': 'SH',
                   'CH': 'SH', 'JH': 'SH', 'G': 'K', 'NG': 'K', 'NSN': SILENCE, 'SPN': SILENCE}
# Diphthongs move from one vowel to another: name -> (first, second, share of the first).
_DIPHTHONGS: Final = {'AW': ('AA', 'UH', .6), 'AY': ('AA', 'IH', .6), 'EY': ('E', 'IY', .5),
                      'OW': ('O', 'UW', .55), 'OY': ('AO', 'IH', .55)}
_VOWELS: Final = ('AA', 'AE', 'AH', 'AO', 'EH', 'ER', 'IH', 'IY', 'UH', 'UW', 'E', 'O')
_BILABIAL: Final = ('B',)
_LABIODENTAL: Final = ('F',)
_ROUND: Final = ('UW', 'W', 'O', 'AO', 'SH', 'R', 'ER', 'UH')


def _dominance(name: str) -> NDArray[np.float32]:
    """Strength of a phone's pull on each unit, float32 [units]."""
    strength = np.full(len(MOUTH_UNITS), 0.6, np.float32)
    if name in _VOWELS:
        strength[:] = 1.0
    elif name in _BILABIAL:
        strength[:] = 1.6
        strength[[_FUNNEL, _PUCKER, _STRETCH, _SMILE]] = 0.15
    elif name in _LABIODENTAL:
        strength[:] = 1.4
        strength[[_FUNNEL, _PUCKER, _STRETCH, _SMILE]] = 0.2
    elif name == SILENCE:
        strength[:] = 1.2
    elif name == 'HH':
        strength[:] = 0.15
    else:
        # Tongue consonants leave the lips to their neighbours.
        strength[[_FUNNEL, _PUCKER]] = 0.2
        if name == 'S':
            strength[[_JAW, _STRETCH]] = 1.3
    if name in _ROUND:
        strength[[_FUNNEL, _PUCKER]] = 1.3
    return strength


def _expand(phones: list[Phone]) -> list[Phone]:
    """Aliases resolved and diphthongs split into their two vowels."""
    result = []
    for phone in phones:
        name = _ALIASES.get(phone.name, phone.name)
        if name in _DIPHTHONGS:
            first, second, share = _DIPHTHONGS[name]
            middle_s = phone.start_s + share * (phone.end_s - phone.start_s)
            result += [Phone(first, phone.start_s, middle_s), Phone(second, middle_s, phone.end_s)]
        else:
            result.append(Phone(name, phone.start_s, phone.end_s))
    return result


def _plateau(times_s: NDArray[np.float32], start_s: float, end_s: float,
             lead_s: float, release_s: float) -> NDArray[np.float32]:
    """1 inside [start, end], smooth to 0 over lead before and release after, float32 [n]."""
    rise = np.clip((times_s - (start_s - lead_s)) / lead_s, 0.0, 1.0)
    fall = np.clip(((end_s + release_s) - times_s) / release_s, 0.0, 1.0)
    level = np.minimum(rise, fall)
    return np.asarray(level * level * (3.0 - 2.0 * level), np.float32)


def _stretches(speech: list[Phone]) -> list[tuple[float, float]]:
    """Start and end, seconds, of speech without a long pause."""
    result = [(speech[0].start_s, speech[0].end_s)]
    for phone in speech[1:]:
        if phone.start_s - result[-1][1] < 2.0 * SHORT_PAUSE_S:
            result[-1] = (result[-1][0], phone.end_s)
        else:
            result.append((phone.start_s, phone.end_s))
    return result


def loudness(samples: NDArray[np.int16], count: int) -> NDArray[np.float32]:
    """Loudness relative to the utterance's loud parts, at 100 Hz.

    Args:
        samples: int16 [n], 16 kHz.
        count: how many values are wanted.

    Returns:
        float32 [count], about 1 in loud vowels, 0 in silence; RMS over 80 ms, compressed.
    """
    hop = SAMPLE_RATE_HZ // RATE_HZ
    padded = np.zeros(count * hop, np.float32)
    padded[:min(samples.size, padded.size)] = samples[:padded.size]
    power = (padded.reshape(count, hop) ** 2).mean(axis=1)
    power = np.convolve(power, np.hanning(10)[1:-1] / np.hanning(10).sum(), 'same')
    level = np.sqrt(power)
    loudest = float(level.max(initial=0.0))
    reference = float(np.percentile(level[level > 0.02 * loudest], 80)) if loudest > 0.0 else 1.0
    return np.asarray(np.clip((level / reference) ** 0.5, 0.0, 1.3), np.float32)


def mouth_curves(phones: list[Phone], samples: NDArray[np.int16],
                 frames: int) -> NDArray[np.float32]:
    """Mouth units of an utterance at 25 frames/s.

    Frame ``f`` shows the mouth at the middle of its 40 ms.

    Args:
        phones: in order, seconds from the first sample; silences named `SIL`.
        samples: int16 [n], the sound, for loudness.
        frames: how many frames are wanted; after the sound the mouth is closed.

    Returns:
        float32 [frames, len(MOUTH_UNITS)], 0 to 1; all zero in silence.

    Raises:
        ValueError: on a phone without a target, or no phone that is not silence.
    """
    parts = _expand(phones)
    unknown = sorted({phone.name for phone in parts} - set(_TARGETS))
    if unknown:
        raise ValueError(f'no mouth shape for phones {", ".join(unknown)}; use ARPAbet without '
                         f'stress')
    speech = [phone for phone in parts if phone.name != SILENCE]
    if not speech:
        raise ValueError('the utterance has no phone but silence; leave it out')
    steps = frames * RATE_HZ // FRAME_RATE_HZ
    times_s = ((np.arange(steps) + 0.5) / RATE_HZ).astype(np.float32)
    weighted = np.zeros((steps, len(MOUTH_UNITS)), np.float32)
    total = np.full((steps, len(MOUTH_UNITS)), 1e-6, np.float32)
    for phone in parts:
        if phone.name == SILENCE and phone.end_s - phone.start_s < SHORT_PAUSE_S:
            continue
        centre_s = 0.5 * (phone.start_s + phone.end_s)
        core_s = 0.25 * (phone.end_s - phone.start_s)
        near = slice(max(int((phone.start_s - 0.6) * RATE_HZ), 0),
                     max(int((phone.end_s + 0.5) * RATE_HZ), 0))
        offset_s = times_s[near, None] - centre_s
        reach_s = _REACH_S * np.where(offset_s < 0, _ANTICIPATION, 1.0)
        distance_s = np.maximum(np.abs(offset_s) - core_s, 0.0)
        pull = _dominance(phone.name) * np.exp(-distance_s / reach_s)
        weighted[near] += pull * _TARGETS[phone.name]
        total[near] += pull
    curves: NDArray[np.float32] = weighted / total

    loud = loudness(samples, steps)
    scale = 0.72 + 0.5 * loud
    for unit in (_JAW, _UPPER_UP, _LOWER_DOWN, _STRETCH):
        curves[:, unit] *= scale

    # Lips that must touch: open the plateau to at least one video frame around the middle.
    for phone in speech:
        if phone.name not in _BILABIAL and phone.name not in _LABIODENTAL:
            continue
        centre_s = 0.5 * (phone.start_s + phone.end_s)
        half_s = 0.5 * max(0.7 * (phone.end_s - phone.start_s), CLOSURE_S)
        gate = _plateau(times_s, centre_s - half_s, centre_s + half_s, _CLOSURE_RAMP_S,
                        _CLOSURE_RAMP_S)[:, None]
        goal = _TARGETS[phone.name].copy()
        held = np.array([_FUNNEL, _PUCKER, _STRETCH, _SMILE])
        mixed = np.asarray(curves * (1.0 - gate) + goal * gate, np.float32)
        mixed[:, held] = curves[:, held] * (1.0 - 0.75 * gate)
        curves = mixed

    # Silence: closed, apart from getting ready just before and relaxing just after speech.
    talking = np.zeros(steps, np.float32)
    for start_s, end_s in _stretches(speech):
        talking = np.maximum(talking, _plateau(times_s, start_s, end_s, LIP_LEAD_S, LIP_RELEASE_S))
    curves = curves * talking[:, None]

    # Muscles are slower than the formulas, but a closure must survive: 30 ms triangle.
    smooth = np.apply_along_axis(np.convolve, 0, curves, np.array([0.25, 0.5, 0.25]), 'same')
    step = RATE_HZ // FRAME_RATE_HZ
    picked = 0.5 * (smooth[step // 2 - 1::step][:frames] + smooth[step // 2::step][:frames])
    return np.asarray(np.clip(picked, 0.0, 1.0), np.float32)
