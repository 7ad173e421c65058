# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from interactive_avatar.evaluation.model import gauge
from interactive_avatar.evaluation.model.faces import MEASURES, Watched
from interactive_avatar.evaluation.model.gestures import (
    AFTER_FRAMES,
    BEFORE_FRAMES,
    TRIALS,
    Gauge,
    carried_out,
    swing,
    trial_measures,
)

FRAMES = BEFORE_FRAMES + AFTER_FRAMES
REST = np.zeros(len(MEASURES))
BY_NAME = {trial.name: trial for trial in TRIALS}


def watched(**changes: np.ndarray) -> Watched:
    measures = np.zeros((FRAMES, len(MEASURES)))
    measures[:, MEASURES.index('size')] = 0.3
    for name, values in changes.items():
        measures[BEFORE_FRAMES:, MEASURES.index(name)] += values
    return Watched(np.zeros((FRAMES, 0, 3), np.float32), measures)


def wave(amplitude: float, frequency_hz: float = 1.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(AFTER_FRAMES) / 25)


def test_swing_gives_the_amplitude_and_no_slow_turn() -> None:
    assert swing(wave(0.2)) == pytest.approx(0.2, rel=0.25)
    assert swing(np.linspace(0, 0.5, AFTER_FRAMES)) < 0.03
    holes = wave(0.2)
    holes[::7] = np.nan
    assert swing(holes) == pytest.approx(swing(wave(0.2)), rel=0.1)
    assert swing(np.full(AFTER_FRAMES, np.nan)) == 0.0


def test_measures_by_hand() -> None:
    found = trial_measures(watched(corner_lift=np.r_[np.full(30, 0.1), np.zeros(30)],
                                   size=np.full(60, 0.06), yaw=np.full(60, -0.4)), REST, {})
    assert found['corner_lift+'] == pytest.approx(0.1)
    assert found['corner_lift-'] == pytest.approx(0.0)
    assert found['size+'] == pytest.approx(0.2)
    assert found['yaw-'] == pytest.approx(0.4)
    assert found['yaw~'] == pytest.approx(0.4)
    assert found['yaw='] == pytest.approx(0.4)
    assert found['seen_after'] == 1.0


@pytest.mark.parametrize(('name', 'before', 'end', 'done'), [
    ('wear glasses', 0.1, 0.9, True), ('wear glasses', 0.9, 0.9, False),
    ('wear glasses', 0.1, 0.2, False), ('remove hat', 0.9, 0.1, True),
    ('remove hat', 0.1, 0.1, False), ('wear hat', 0.1, float('nan'), False)])
def test_objects_have_to_change(name: str, before: float, end: float, done: bool) -> None:
    chance = np.r_[np.full(BEFORE_FRAMES, before), np.full(AFTER_FRAMES, end)]
    item = name.split()[1]
    measures = trial_measures(watched(), REST, {item: chance})
    assert carried_out(BY_NAME[name], measures, Gauge(np.zeros(0))) is done


def test_leaving_and_coming_back_are_presence() -> None:
    gone = watched()
    gone.measures[40:] = np.nan
    back = Watched(gone.landmarks, gone.measures[::-1].copy())
    for clip, name in ((gone, 'step_out'), (back, 'come_back')):
        measures = trial_measures(clip, REST, {})
        other = 'come_back' if name == 'step_out' else 'step_out'
        assert carried_out(BY_NAME[name], measures, Gauge(np.zeros(0)))
        assert not carried_out(BY_NAME[other], measures, Gauge(np.zeros(0)))
    # Who has left shows no gesture, however the weights are.
    assert not carried_out(BY_NAME['nod'], trial_measures(gone, REST, {}),
                           Gauge(np.array([0.0, 0.0, 9.0])))


def test_the_shipped_judges_know_clear_gestures() -> None:
    gauges, _ = gauge.load()
    clips = {'nod': watched(pitch=-np.abs(wave(0.25))), 'shake_head': watched(yaw=wave(0.3)),
             'tilt_head': watched(roll=np.full(60, 0.27)),
             'lean_closer': watched(size=np.full(60, 0.05))}
    for shown, clip in clips.items():
        measures = trial_measures(clip, REST, {})
        for asked in clips:
            assert carried_out(BY_NAME[asked], measures, gauges[asked]) is (asked == shown), (
                shown, asked)
