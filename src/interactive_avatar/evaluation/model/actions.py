# SPDX-License-Identifier: Apache-2.0
"""Claim: each action is carried out when prompted, paraphrased prompts included."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.judges import MeshJudge
from interactive_avatar.evaluation.model import gauge
from interactive_avatar.evaluation.model.faces import watch
from interactive_avatar.evaluation.model.figures import Figure, Result, Row, share_of
from interactive_avatar.evaluation.model.gestures import (
    AFTER_FRAMES,
    BEFORE_FRAMES,
    TRIALS,
    Trial,
    carried_out,
    needs_objects,
    trial_measures,
)
from interactive_avatar.evaluation.model.pictures import bars, sheet
from interactive_avatar.evaluation.model.play import Player, run
from interactive_avatar.generator.prompts import (
    FRESH_VARIANTS,
    HELD_OUT_VARIANTS,
    WorldState,
    action_prompt,
    after,
    stable_prompt,
)
from interactive_avatar.media.clock import FRAMES_PER_CHUNK

AIM_PERCENT: Final = 90.0
CANONICAL: Final = 0
PARAPHRASES: Final = (*HELD_OUT_VARIANTS, *FRESH_VARIANTS)
QUICK_PARAPHRASES: Final = (HELD_OUT_VARIANTS[0], FRESH_VARIANTS[0])
WARM_CHUNKS: Final = 10
ACTION_CHUNKS: Final = 10
"""1.6 s: as long as the reasoning module holds a gesture without words."""
SETTLE_CHUNKS: Final = 6
STRIP_FRAMES: Final = (BEFORE_FRAMES - 1, 24, 34, 44, 54, BEFORE_FRAMES + AFTER_FRAMES - 1)
QUICK: Final = ('nod', 'shake_head', 'smile', 'frown', 'raise_eyebrows', 'look_surprised',
                'look left', 'tilt_head', 'wear glasses', 'step_out', 'come_back')


@dataclass(frozen=True)
class Outcome:
    """One trial: who, which, under which phrasing, and whether it was carried out."""

    person: str
    trial: str
    variant: int
    done: bool


def perform(stream: Any, trial: Trial, variant: int) -> NDArray[np.uint8]:
    """Frames of a trial, uint8 [72, H, W, 3]: rest, the action, and the world it leaves."""
    world = trial.before
    assert trial.action is not None
    then = after(trial.action, world, **trial.slots)
    return run(stream, [
        *[stable_prompt(world)] * (BEFORE_FRAMES // FRAMES_PER_CHUNK),
        *[action_prompt(trial.action, world, variant, **dict(trial.slots))] * ACTION_CHUNKS,
        *[stable_prompt(then)] * (AFTER_FRAMES // FRAMES_PER_CHUNK - ACTION_CHUNKS)])


def _ready(stream: Any, trial: Trial, warm: Any) -> Any:
    """State of the stream in which a trial can begin: what has to happen first has happened."""
    stream.restore(warm)
    if trial.first is None:
        return warm
    action, slots = trial.first
    run(stream, [*[action_prompt(action, WorldState(), 0, **slots)] * ACTION_CHUNKS,
                 *[stable_prompt(trial.before)] * SETTLE_CHUNKS])
    return stream.snapshot()


def act(item: HeldOut, player: Player, mesh: MeshJudge, trials: Sequence[Trial],
        variants: Sequence[int], folder: Path) -> list[Outcome]:
    """Let one person carry out actions; what was found before is read from `folder`.

    Returns:
        The outcomes; a strip of each trial lies in the folder as ``.npz``.
    """
    gauges, wears = gauge.load()
    notes = folder / f'actions_{item.file_name}_{player.key}_{gauge.version()}.json'
    known: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}
    wanted = [(trial, variant) for trial in trials for variant in variants
              if f'{trial.name}/{variant}' not in known]
    if wanted:
        rest = watch([item.reference], mesh).measures[0]
        stream = player.stream(item.reference, stable_prompt(WorldState()))
        run(stream, [stable_prompt(WorldState())] * WARM_CHUNKS)
        warm = stream.snapshot()
        ready: dict[str, Any] = {}
        for trial, variant in wanted:
            first = repr(trial.first)
            if first not in ready:
                ready[first] = _ready(stream, trial, warm)
            stream.restore(ready[first])
            frames = perform(stream, trial, variant)
            watched = watch(frames, mesh)
            worn = {name: wears.track(frames, watched.landmarks, name)
                    for name in needs_objects(trial)}
            measures = trial_measures(watched, rest, worn)
            known[f'{trial.name}/{variant}'] = {
                name: round(value, 5) if np.isfinite(value) else None
                for name, value in measures.items()}
            np.savez_compressed(strip_path(folder, player, item.file_name, trial.name, variant),
                                strip=frames[list(STRIP_FRAMES)])
            notes.write_text(json.dumps(known))
    return [Outcome(item.name, trial.name, variant, carried_out(
        trial, {name: np.nan if value is None else value
                for name, value in known[f'{trial.name}/{variant}'].items()},
        gauges[trial.name])) for trial in trials for variant in variants]


def strip_path(folder: Path, player: Player, name: str, trial: str, variant: int) -> Path:
    """Where a trial's strip of frames lies; name: the person's `HeldOut.file_name`."""
    return folder / f'strip_{name}_{trial.replace(" ", "_")}_{variant}_{player.key}.npz'


def _grouped(outcomes: Sequence[Outcome]) -> list[list[bool]]:
    """Whether trials were carried out, by person."""
    people: dict[str, list[bool]] = {}
    for outcome in outcomes:
        people.setdefault(outcome.person, []).append(outcome.done)
    return list(people.values())


def _truth(names: Sequence[str]) -> Figure:
    gauges, _ = gauge.load()
    return share_of([[True] * gauges[name].right
                     + [False] * (gauges[name].trials - gauges[name].right) for name in names],
                    'true renders')


def summarise(outcomes: Sequence[Outcome]) -> Result:
    """The claim's figures from its trials."""
    gauges, wears = gauge.load()
    names = [trial.name for trial in TRIALS if any(o.trial == trial.name for o in outcomes)]
    shares = {name: share_of(_grouped([o for o in outcomes if o.trial == name]), 'trials')
              for name in names}
    worst = min(names, key=lambda name: shares[name].value)
    rows = [
        Row.at_least('actions carried out when prompted, all',
                     share_of(_grouped(outcomes), 'trials'), AIM_PERCENT,
                     {'true pictures': _truth(names)}),
        Row.at_least(f'actions: the worst one ({worst})', shares[worst], AIM_PERCENT,
                     {'true pictures': _truth([worst])}),
        Row.at_least(f'actions: how many of {len(names)} reach {AIM_PERCENT:.0f} %', Figure(
            100.0 * float(np.mean([shares[name].value >= AIM_PERCENT for name in names])),
            n=len(names), of='actions', unit='%', digits=0), 100.0)]
    for claim, variants in (('actions under phrasings never trained on', HELD_OUT_VARIANTS),
                            ('actions in words of a writer who had seen none of these',
                             FRESH_VARIANTS)):
        some = [o for o in outcomes if o.variant in variants]
        if some:
            rows.append(Row.at_least(claim, share_of(_grouped(some), 'trials'), AIM_PERCENT))
    lines = []
    for name in names:
        cells = [name]
        for variant in (CANONICAL, *PARAPHRASES):
            done = [o.done for o in outcomes if o.trial == name and o.variant == variant]
            cells.append(f'{sum(done)} of {len(done)}' if done else '–')
        g = gauges[name]
        lines.append([*cells, f'{g.right} of {g.trials}', f'{g.false} of {g.others}'])
    return Result(
        'Actions',
        'Each trial: at rest, 1.6 s under the action prompt, then the stable prompt of the world '
        'after it, in silence, by held-out people. Judged by changes of head pose, size, brows, '
        'mouth, lids, irises and presence in the landmarks of MediaPipe, against thresholds '
        'fitted on true renders of training people; glasses and hats by a classifier of this '
        'project '
        f'(right on {100 * wears.accuracy["glasses"]:.1f} % and '
        f'{100 * wears.accuracy["hat"]:.1f} % of {wears.pictures} true pictures of held-out '
        'people, both classes equally weighted). Beside: the same judge on true renders of '
        'held-out people doing it (recognised), and doing something else (false alarms).',
        rows, {'trials': [vars(outcome) for outcome in outcomes]},
        [('Share of trials carried out, by action', bars(
            names, {'generated': [shares[name].value for name in names],
                    'true pictures': [_truth([name]).value for name in names]}, '% of trials'))],
        table=(['action', 'canonical',
                *[f'held-out {k + 1}' for k in range(len(HELD_OUT_VARIANTS))],
                *[f'fresh {k + 1}' for k in range(len(FRESH_VARIANTS))],
                'true renders recognised', 'false alarms'], lines))


def measure(items: Sequence[HeldOut], player: Player, trials: Sequence[Trial],
            variants: Sequence[int], folder: Path, say: Callable[[str], None]) -> Result:
    """Let people carry out actions and judge them.

    Args:
        items: whose references are used.
        player: the generator.
        trials: which actions.
        variants: phrasings of the action prompts.
        folder: keeps what was found, so that a run goes on where it was cut off.
        say: told of each person.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with MeshJudge() as mesh:
        for item in items:
            mine = act(item, player, mesh, trials, variants, folder)
            outcomes += mine
            say(f'{item.name}: {sum(o.done for o in mine)} of {len(mine)} actions carried out')
    result = summarise(outcomes)
    files = {item.name: item.file_name for item in items}
    shown = [next((o for o in outcomes if o.trial == trial.name and o.done),
                  next(o for o in outcomes if o.trial == trial.name)) for trial in trials]
    failed = [o for o in outcomes if not o.done][:12]
    for caption, some in (('One trial of each action (rest, then 0.5, 0.9, 1.3, 1.7, 2.4 s after '
                           'the prompt)', shown), ('Failures', failed)):
        if some:
            frames, labels = [], []
            for o in some:
                with np.load(strip_path(folder, player, files[o.person], o.trial,
                                        o.variant)) as data:
                    strip = data['strip']
                frames += list(strip)
                labels += [f'{o.trial}{"" if o.done else ", failed"} ({o.variant})',
                           *[''] * (len(strip) - 1)]
            result.plots.append((caption, sheet(frames, labels, len(STRIP_FRAMES))))
    return result
