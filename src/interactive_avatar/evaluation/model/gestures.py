# SPDX-License-Identifier: Apache-2.0
"""Was an action carried out: judged from frames, with thresholds fitted on true renders.

A *trial* shows a person at rest and then one action. Its measures are changes against that rest
(`trial_measures`); each action is judged by the few that tell of it. Where several do, a logistic
regression weighs them, fitted on true renders of training people; the same judge on true renders
of held-out people gives the ceiling (`Gauge.right`) and the false alarms (`Gauge.false`), which
are printed beside every figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.model.faces import MEASURES, Watched
from interactive_avatar.evaluation.model.objects import OBJECTS
from interactive_avatar.generator.prompts import WorldState, after

Floats = NDArray[np.float64]

BEFORE_FRAMES: Final = 12
AFTER_FRAMES: Final = 60
HELD_FRAMES: Final = 12
"""An expression counts as shown by the mean of its strongest 0.5 s."""
SWING_FRAMES: Final = 25
"""A swing of the head counts by its strength over its best second."""
WORN_CHANCE: Final = 0.5


@dataclass(frozen=True)
class Trial:
    """One action to be judged.

    Attributes:
        name: of the action with its slot, as `look left`.
        action: one of `generator.prompts.ACTIONS`, None for a rest.
        slots: of the action.
        first: what has to happen before, (action, slots), or None.
        senses: names of the measures that it is judged by; empty where `carried_out` has a rule.
        allowed: other trials whose motion includes this one's, no false alarm if it is seen.
    """

    name: str
    action: str | None
    slots: Mapping[str, str] = field(default_factory=dict)
    first: tuple[str, Mapping[str, str]] | None = None
    senses: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    @property
    def before(self) -> WorldState:
        """The world in which the action starts."""
        return after(self.first[0], WorldState(), **self.first[1]) if self.first else WorldState()


REST: Final = Trial('rest', None)
_SIGHT = ('gaze_x', 'gaze_y', 'yaw', 'pitch')
_AVERTED = (*(f'{name}{end}' for name in _SIGHT for end in ('+', '-')), 'yaw=', 'pitch=')
TRIALS: Final = (
    Trial('nod', 'nod', senses=('pitch_swing', 'yaw_swing', 'pitch=')),
    Trial('shake_head', 'shake_head', senses=('pitch_swing', 'yaw_swing', 'yaw=')),
    Trial('smile', 'smile', senses=('corner_lift+', 'mouth_width+', 'lip_gap+')),
    Trial('frown', 'frown', senses=('corner_lift-', 'brow_inner-', 'brow_outer-')),
    Trial('look_surprised', 'look_surprised',
          senses=('lip_gap+', 'brow_inner+', 'brow_outer+', 'eye_opening+')),
    Trial('look left', 'look', {'direction': 'left'}, senses=_AVERTED),
    Trial('look right', 'look', {'direction': 'right'}, senses=_AVERTED),
    Trial('look up', 'look', {'direction': 'up'}, senses=_AVERTED, allowed=('think',)),
    Trial('look down', 'look', {'direction': 'down'}, senses=_AVERTED),
    Trial('look user', 'look', {'direction': 'user'}, ('look', {'direction': 'left'}),
          senses=('yaw=', 'gaze_x=', 'gaze_y=', 'yaw+')),
    Trial('tilt_head', 'tilt_head', senses=('roll~', 'yaw~'), allowed=('think',)),
    Trial('raise_eyebrows', 'raise_eyebrows',
          senses=('brow_inner+', 'brow_outer+', 'lip_gap+', 'eye_opening+', 'gaze_y-', 'pitch-'),
          allowed=('look_surprised',)),
    Trial('think', 'think', senses=('gaze_y+', 'pitch+', 'yaw~', 'gaze_x~', 'roll~'),
          allowed=('look up',)),
    Trial('lean_closer', 'lean_closer', senses=('size+', 'y~')),
    Trial('wear glasses', 'wear', {'object': 'glasses'}),
    Trial('wear hat', 'wear', {'object': 'hat'}),
    Trial('remove glasses', 'remove', {'object': 'glasses'}, ('wear', {'object': 'glasses'})),
    Trial('remove hat', 'remove', {'object': 'hat'}, ('wear', {'object': 'hat'})),
    Trial('step_out', 'step_out'),
    Trial('come_back', 'come_back', first=('step_out', {})),
)
TRIAL_NAMES: Final = tuple(trial.name for trial in TRIALS)


def _filled(series: Floats) -> Floats:
    """Gaps bridged by straight lines; zeros if nothing is known."""
    known = np.flatnonzero(np.isfinite(series))
    if not known.size:
        return np.zeros_like(series)
    return np.interp(np.arange(series.size), known, series[known])


def swing(series: Floats, frames: int = SWING_FRAMES) -> float:
    """Strength of a to and fro: root mean square of what a moving mean over `frames` leaves,
    times √2 (so a sine gives about its amplitude), over the best window of that length.

    Args:
        series: float64 [n], n at least 2 `frames`; NaN is bridged.

    Returns:
        In the unit of the series.
    """
    values = _filled(series)
    half = frames // 2
    padded = np.pad(values, half, mode='edge')
    mean = np.convolve(padded, np.ones(2 * half + 1) / (2 * half + 1), 'valid')
    power = np.convolve((values - mean) ** 2, np.ones(frames) / frames, 'valid')
    return float(np.sqrt(2.0 * power.max()))


def trial_measures(watched: Watched, rest: Floats, worn: Mapping[str, Floats],
                   before: int = BEFORE_FRAMES) -> dict[str, float]:
    """What a trial is judged by.

    Args:
        watched: the trial, `before` frames of rest and then the action.
        rest: float64 [len(MEASURES)], measures of the person's reference picture.
        worn: by object, float64 [n] probability per frame that it is worn.
        before: frames before the action.

    Returns:
        By name: ``m+`` and ``m-``, how far measure m of `faces.MEASURES` rose and fell (both
        positive) against its median before, for the strongest 0.5 s; ``m~`` the larger of the
        two; ``m=`` distance of its median at the end from the reference picture's; `pitch_swing`
        and `yaw_swing`; ``<object>_before`` and ``<object>_after``; `seen_before` and
        `seen_after`, shares of frames with a face in the first and last 0.5 s. 0 where unknown.
    """
    result: dict[str, float] = {}
    ending = watched.measures[-HELD_FRAMES:]
    for column, name in enumerate(MEASURES):
        series = watched.measures[:, column]
        start, action = series[:before], series[before:]
        base = float(np.nanmedian(start)) if np.isfinite(start).any() else float(rest[column])
        change = np.sort(action[np.isfinite(action)] - base)
        if name == 'size' and base > 0:
            change = change / base
        count = min(HELD_FRAMES, change.size)
        up = float(change[-count:].mean()) if count else 0.0
        down = float(-change[:count].mean()) if count else 0.0
        last = ending[:, column]
        known = np.isfinite(last).any() and np.isfinite(rest[column])
        result |= {f'{name}+': up, f'{name}-': down, f'{name}~': max(up, down),
                   f'{name}=': abs(float(np.nanmedian(last)) - float(rest[column]))
                   if known else 0.0}
    for name in ('pitch', 'yaw'):
        result[f'{name}_swing'] = swing(watched.of(name)[before:])
    for name, chances in worn.items():
        for label, part in (('before', chances[:before]), ('after', chances[-HELD_FRAMES:])):
            result[f'{name}_{label}'] = float(np.nanmedian(part)) \
                if np.isfinite(part).any() else float('nan')
    result['seen_before'] = float(watched.found[:before].mean())
    result['seen_after'] = float(watched.found[-HELD_FRAMES:].mean())
    return result


@dataclass(frozen=True)
class Gauge:
    """How one action is recognised, and how well on true pictures.

    Attributes:
        weights: of the trial's senses, constant last, float64 [d + 1]; empty where a rule judges.
        right: of true renders of the action by held-out people, how many it recognised.
        trials: how many of those there were.
        false: of true renders of other actions and rest by held-out people, how many it took for
            the action.
        others: how many of those there were.
    """

    weights: Floats
    right: int = 0
    trials: int = 0
    false: int = 0
    others: int = 0


def senses_of(trial: Trial, measures: Mapping[str, float]) -> Floats:
    """The measures that a trial is judged by, float64 [d]."""
    return np.array([measures[name] for name in trial.senses])


def carried_out(trial: Trial, measures: Mapping[str, float], gauge: Gauge) -> bool:
    """Whether an action was carried out."""
    if trial.action in ('wear', 'remove'):
        name = trial.slots['object']
        first, last = measures[f'{name}_before'], measures[f'{name}_after']
        if trial.action == 'remove':
            first, last = last, first
        # A face that is not seen (NaN) shows nothing.
        return first < WORN_CHANCE <= last
    if trial.action in ('step_out', 'come_back'):
        gone, there = measures['seen_after'], measures['seen_before']
        if trial.action == 'come_back':
            gone, there = there, gone
        return gone < 0.5 <= there
    # Who has left shows no gesture.
    if measures['seen_before'] < 0.5 or measures['seen_after'] < 0.5:
        return False
    return float(senses_of(trial, measures) @ gauge.weights[:-1] + gauge.weights[-1]) > 0.0


def needs_objects(trial: Trial) -> tuple[str, ...]:
    """Objects that have to be looked for in a trial."""
    return (trial.slots['object'],) if trial.action in ('wear', 'remove') else ()


__all__ = ['AFTER_FRAMES', 'BEFORE_FRAMES', 'OBJECTS', 'REST', 'TRIALS', 'TRIAL_NAMES', 'Gauge',
           'Trial', 'carried_out', 'needs_objects', 'senses_of', 'swing', 'trial_measures']
