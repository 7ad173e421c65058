# SPDX-License-Identifier: Apache-2.0
"""Fit the judges of actions and objects: ``python -m interactive_avatar.evaluation.model.gauge``.

A tool for whoever changes the renderer, the prompts or the judges; needs the training assets and
an hour of two cores. It renders people doing each action, looks at them as the judges do (cached
by person, so that it resumes), fits on people of the training split and measures on the others.
The result, `judges.npz`, ships with the package.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.judges import MeshJudge
from interactive_avatar.evaluation.model import objects
from interactive_avatar.evaluation.model.faces import Watched, watch
from interactive_avatar.evaluation.model.gestures import (
    AFTER_FRAMES,
    BEFORE_FRAMES,
    HELD_FRAMES,
    REST,
    TRIALS,
    Gauge,
    Trial,
    carried_out,
    needs_objects,
    senses_of,
    trial_measures,
)
from interactive_avatar.evaluation.model.objects import OBJECTS, ObjectJudge, fit_logistic
from interactive_avatar.generator.prompts import WorldState

JUDGES: Final = Path(__file__).parent / 'judges.npz'
GESTURE_PENALTY: Final = 1e-3
OBJECT_PENALTY: Final = 3e-3
# The generator draws softer than the renderer: every crop is also learnt blurred.
BLURS_PX: Final = (0.8, 1.6)
STILLS_PER_WORLD: Final = 4
RESTS: Final = 2
WORN_SHARE: Final = 0.25
_STILL_ACTIONS: Final = ('look', 'smile', 'nod', 'tilt_head', 'look_surprised', 'lean_closer')


# Frames at which trials about objects are looked at.
ENDS: Final = (*range(1, BEFORE_FRAMES, 2), *range(-HELD_FRAMES, 0, 2))


def _worlds(rng: np.random.Generator, trial: Trial, bare: bool) -> WorldState:
    """The world before a trial; other trials than those about objects may wear some."""
    if bare or trial.action in ('wear', 'remove', 'step_out', 'come_back'):
        return trial.before
    return replace(trial.before, glasses=bool(rng.random() < WORN_SHARE),
                   hat=bool(rng.random() < WORN_SHARE))


def _crops(frames: NDArray[np.uint8], watched: Watched, glasses: NDArray[np.float32],
           hat: NDArray[np.float32], picked: NDArray[np.int64],
           ) -> tuple[list[NDArray[np.uint8]], list[tuple[bool, bool]]]:
    """Head crops of the picked frames, and what is worn; frames in between are left out."""
    crops, labels = [], []
    for frame in picked:
        worn = glasses[frame], hat[frame]
        if watched.found[frame] and all(not 0.02 < value < 0.98 for value in worn):
            crops.append(objects.head_crop(frames[frame], watched.landmarks[frame]))
            labels.append((bool(worn[0] > 0.5), bool(worn[1] > 0.5)))
    return crops, labels


def look_at_trials(identity: int, renderer: Any, mesh: MeshJudge, bare: bool) -> dict[str, Any]:
    """Render every trial with a person and look at it.

    Returns:
        ``measures`` float32 [trials, frames, m], ``rest`` float32 [m], ``crops`` uint8 [k, 64,
        64, 3] with ``labels`` bool [k, 2], and ``ends`` uint8 [o, `ENDS`, 64, 64, 3], crops of
        the trials about objects, black where no face was found.
    """
    from interactive_avatar.training.performances.compose import compose_action

    rng = np.random.default_rng([77, identity])
    rest = watch([renderer.reference_view(identity)], mesh).measures[0]
    measures, crops, labels, ends = [], [], [], []
    for number, trial in enumerate((*TRIALS, *[REST] * RESTS)):
        play = compose_action(number, identity, trial.action, _worlds(rng, trial, bare),
                              BEFORE_FRAMES, AFTER_FRAMES, **trial.slots)
        frames, _ = renderer.render(identity, play.units, play.head, play.glasses, play.hat)
        watched = watch(frames, mesh)
        measures.append(watched.measures.astype(np.float32))
        picked = np.arange(2, len(frames), 10)
        some, what = _crops(frames, watched, play.glasses, play.hat, picked)
        crops += some
        labels += what
        if needs_objects(trial):
            ends.append([objects.head_crop(frames[at], watched.landmarks[at])
                         if watched.found[at] else np.zeros_like(crops[0]) for at in ENDS])
    return {'measures': np.array(measures), 'ends': np.array(ends),
            'rest': rest.astype(np.float32), 'crops': np.array(crops), 'labels': np.array(labels)}


def look_at_stills(identity: int, renderer: Any, mesh: MeshJudge) -> dict[str, Any]:
    """A few frames of a person with and without each object: ``crops`` and ``labels``."""
    from interactive_avatar.training.performances.compose import compose_action

    crops, labels = [], []
    for number in range(4):
        world = WorldState(glasses=bool(number & 1), hat=bool(number & 2))
        action = _STILL_ACTIONS[(identity + number) % len(_STILL_ACTIONS)]
        slots = {'direction': ('left', 'right', 'up', 'down')[number]} if action == 'look' else {}
        play = compose_action(100 + number, identity, action, world, 8, 32, **slots)
        chosen = np.linspace(0, play.frames - 1, STILLS_PER_WORLD).astype(np.int64)
        frames, _ = renderer.render(identity, play.units[chosen], play.head[chosen],
                                    play.glasses[chosen], play.hat[chosen])
        some, what = _crops(frames, watch(frames, mesh), play.glasses[chosen], play.hat[chosen],
                            np.arange(len(frames)))
        crops += some
        labels += what
    return {'crops': np.array(crops), 'labels': np.array(labels)}


def fit_objects(crops: NDArray[np.uint8], labels: NDArray[np.bool_],
                test_crops: NDArray[np.uint8], test_labels: NDArray[np.bool_]) -> ObjectJudge:
    """Fit the classifier of worn objects and measure it.

    Args:
        crops: uint8 [n, 64, 64, 3] of training people; labels: bool [n, 2], glasses and hat.
        test_crops: the same of held-out people; test_labels: theirs.
    """
    judge = ObjectJudge({}, {}, {}, {}, len(test_crops))
    soft = [objects.blurred(crop, sigma) for sigma in BLURS_PX for crop in crops]
    for column, name in enumerate(OBJECTS):
        rows = np.array([objects.features(crop, name) for crop in (*crops, *soft)])
        truth = np.tile(labels[:, column], 1 + len(BLURS_PX))
        weights, means, scales = fit_logistic(rows, truth, OBJECT_PENALTY)
        judge.weights[name], judge.means[name], judge.scales[name] = weights, means, scales
        said = np.array([judge.chance(crop, name) > 0.5 for crop in test_crops])
        right = said == test_labels[:, column]
        judge.accuracy[name] = float(np.mean([right[test_labels[:, column]].mean(),
                                              right[~test_labels[:, column]].mean()]))
    return judge


def _measures_of(person: dict[str, Any], judge: ObjectJudge) -> list[dict[str, float]]:
    """Measures of each trial of a person, in order."""
    found, ends = [], iter(person['ends'])
    for measures, trial in zip(person['measures'], (*TRIALS, *[REST] * RESTS), strict=True):
        watched = Watched(np.zeros((len(measures), 0, 3), np.float32),
                          measures.astype(np.float64))
        worn = {}
        for name in needs_objects(trial):
            worn[name] = np.full(len(measures), np.nan)
            for at, crop in zip(ENDS, next(ends), strict=True):
                if crop.any():
                    worn[name][at] = judge.chance(crop, name)
        found.append(trial_measures(watched, person['rest'].astype(np.float64), worn))
    return found


def fit_gauges(train: list[list[dict[str, float]]], test: list[list[dict[str, float]]],
               ) -> dict[str, Gauge]:
    """Fit each action's judge on training people and measure it on held-out ones.

    Args:
        train: by person, measures of each trial in the order of `TRIALS`, then of the rests.
        test: the same of held-out people.
    """
    gauges: dict[str, Gauge] = {}
    names = [trial.name for trial in TRIALS] + ['rest'] * RESTS
    for trial in TRIALS:
        weights = np.zeros(0)
        others = [name != trial.name and name not in trial.allowed for name in names]
        if trial.senses:
            rows, labels = [], []
            for person in train:
                for name, other, measured in zip(names, others, person, strict=True):
                    if (name == trial.name or other) and measured['seen_after'] >= 0.5 \
                            and measured['seen_before'] >= 0.5:
                        rows.append(senses_of(trial, measured))
                        labels.append(name == trial.name)
            w, means, scales = (values.astype(np.float64) for values in fit_logistic(
                np.array(rows), np.array(labels), GESTURE_PENALTY))
            weights = np.append(w[:-1] / scales, w[-1] - (w[:-1] * means / scales).sum())
        gauge = Gauge(weights)
        right, wrong = [], []
        for person in test:
            for name, other, measured in zip(names, others, person, strict=True):
                if name == trial.name:
                    right.append(carried_out(trial, measured, gauge))
                elif other and all(f'{item}_after' in measured for item in needs_objects(trial)):
                    wrong.append(carried_out(trial, measured, gauge))
        gauges[trial.name] = Gauge(weights, sum(right), len(right), sum(wrong), len(wrong))
    return gauges


def save(path: Path, gauges: dict[str, Gauge], judge: ObjectJudge) -> None:
    """Write both judges."""
    arrays: dict[str, Any] = {'pictures': np.array(judge.pictures)}
    for name, gauge in gauges.items():
        arrays[f'gauge/{name}'] = gauge.weights
        arrays[f'truth/{name}'] = np.array([gauge.right, gauge.trials, gauge.false,
                                            gauge.others])
    for name in judge.weights:
        arrays[f'weights/{name}'] = judge.weights[name]
        arrays[f'means/{name}'] = judge.means[name]
        arrays[f'scales/{name}'] = judge.scales[name]
        arrays[f'accuracy/{name}'] = np.array(judge.accuracy[name])
    np.savez_compressed(path, **arrays)


@cache
def load(path: Path = JUDGES) -> tuple[dict[str, Gauge], ObjectJudge]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: if it is not there; names the command that makes it.
        ValueError: if an action is missing in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no fitted judges at {path}; make them with "python -m '
                                f'interactive_avatar.evaluation.model.gauge" (needs the training '
                                f'assets)')
    with np.load(path) as data:
        gauges = {}
        for trial in TRIALS:
            if f'gauge/{trial.name}' not in data:
                raise ValueError(f'{path} has no judge of {trial.name!r}; make it again with '
                                 f'"python -m interactive_avatar.evaluation.model.gauge"')
            gauges[trial.name] = Gauge(data[f'gauge/{trial.name}'],
                                       *(int(v) for v in data[f'truth/{trial.name}']))
        return gauges, ObjectJudge(
            {name: data[f'weights/{name}'] for name in OBJECTS},
            {name: data[f'means/{name}'] for name in OBJECTS},
            {name: data[f'scales/{name}'] for name in OBJECTS},
            {name: float(data[f'accuracy/{name}']) for name in OBJECTS}, int(data['pictures']))


@cache
def version(path: Path = JUDGES) -> str:
    """Short hash of the fitted judges: findings of other judges are not mixed with theirs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:6]


def _spread(people: list[int], count: int) -> list[int]:
    """`count` of the people, evenly spread."""
    return [people[index * len(people) // count] for index in range(min(count, len(people)))]


def main() -> None:
    """Command line."""
    from interactive_avatar.training.render.renderer import Renderer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--people', type=Path, default=Path('assets/people.npz'))
    parser.add_argument('--cache', type=Path, default=Path('out/judges'))
    parser.add_argument('--actors', type=int, default=10,
                        help='people of either split who play every trial')
    parser.add_argument('--faces', type=int, default=60,
                        help='people of either split, at most, seen with and without each object')
    parser.add_argument('--cached-only', action='store_true',
                        help='fit on the people that the cache has')
    parser.add_argument('--out', type=Path, default=JUDGES)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    renderer = Renderer(options.people)
    seen: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    with MeshJudge() as mesh:
        for kind, count in (('stills', options.faces), ('trials', options.actors)):
            # In turns, so that a cache that is not finished yet has people of both splits.
            sides = [_spread(renderer.people.split(held_out), count) for held_out in (False, True)]
            for person in (p for pair in itertools.zip_longest(*sides) for p in pair):
                if person is None:
                    continue
                held_out = person in sides[1]
                path = options.cache / f'{kind}_{person:03d}.npz'
                if not path.exists():
                    if options.cached_only:
                        continue
                    found = look_at_stills(person, renderer, mesh) if kind == 'stills' \
                        else look_at_trials(person, renderer, mesh, bare=held_out)
                    np.savez_compressed(path.with_suffix('.new.npz'), **found)
                    path.with_suffix('.new.npz').replace(path)
                    print(path, file=sys.stderr, flush=True)
                with np.load(path) as data:
                    seen.setdefault((kind, held_out), []).append(dict(data))
    renderer.close()
    pictures = []
    for held_out in (False, True):
        parts = seen['stills', held_out] + seen['trials', held_out]
        pictures += [np.concatenate([part[name] for part in parts])
                     for name in ('crops', 'labels')]
    judge = fit_objects(*pictures)
    train, test = ([_measures_of(person, judge) for person in seen['trials', held_out]]
                   for held_out in (False, True))
    gauges = fit_gauges(train, test)
    save(options.out, gauges, judge)
    for name, gauge in gauges.items():
        print(f'{name:16} right {gauge.right}/{gauge.trials}, false alarms '
              f'{gauge.false}/{gauge.others}')
    print(judge.accuracy, judge.pictures, options.out.stat().st_size)


if __name__ == '__main__':
    main()
