# SPDX-License-Identifier: Apache-2.0
"""Claim: what happened stays. Glasses or a hat once put on are still on a minute later, and after
the person was out of view while no prompt mentioned them. And who wore nothing comes back with
nothing: a generator that puts a hat on everybody who comes back would remember every hat."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.judges import MeshJudge
from interactive_avatar.evaluation.model import gauge
from interactive_avatar.evaluation.model.faces import watch
from interactive_avatar.evaluation.model.figures import Result, Row, share_of
from interactive_avatar.evaluation.model.gestures import WORN_CHANCE
from interactive_avatar.evaluation.model.objects import OBJECTS
from interactive_avatar.evaluation.model.pictures import sheet
from interactive_avatar.evaluation.model.play import Player, run
from interactive_avatar.generator.prompts import WorldState, action_prompt, after, stable_prompt
from interactive_avatar.media.clock import CHUNK_MS, FRAMES_PER_CHUNK

AIM_STAYS_PERCENT: Final = 95.0
AIM_AWAY_PERCENT: Final = 90.0
ACTION_S: Final = 1.6
SETTLE_S: Final = 3.2
"""After coming back: the walk in takes one second of the action, the rest settles."""
LOOK_S: Final = 0.96


@dataclass(frozen=True)
class Timeline:
    """When things happen, seconds from the start of the stream.

    Attributes:
        put_on_s: the action prompt that puts the object on.
        still_s: when it has to be on still.
        away_s: how long the person is out of view after that.
    """

    put_on_s: float = 10.0
    still_s: float = 70.0
    away_s: float = 8.0


QUICK: Final = Timeline(2.0, 12.0, 8.0)


def chunks(seconds: float) -> int:
    """Whole chunks of a time span."""
    return max(1, round(1000.0 * seconds / CHUNK_MS))


@dataclass(frozen=True)
class Kept:
    """One stream's story.

    Attributes:
        person: whose reference.
        name: of the object.
        before: whether the judge saw it before it was put on (it should not).
        put_on: whether it saw it 2 s after.
        still: whether at `Timeline.still_s`.
        left: whether the person was out of view while away.
        after_unmentioned: whether it was on after coming back with no prompt mentioning it.
        after_mentioned: the same with prompts that do, as the reasoning module writes them.
    """

    person: str
    name: str
    before: bool
    put_on: bool
    still: bool
    left: bool
    after_unmentioned: bool
    after_mentioned: bool


@dataclass(frozen=True)
class Unworn:
    """The story of somebody who never wears anything.

    Attributes:
        person: whose reference.
        first: what the judge saw on them in the stream's first second (nothing, or it errs).
        before: what it saw before they left (it should see nothing).
        left: whether they were out of view while away.
        after: what it saw after they came back.
    """

    person: str
    first: tuple[str, ...]
    before: tuple[str, ...]
    left: bool
    after: tuple[str, ...]


class _Eye:
    """Looks at the end of a stretch of frames."""

    def __init__(self, mesh: MeshJudge) -> None:
        self._mesh = mesh
        _, self._judge = gauge.load()

    def worn(self, frames: NDArray[np.uint8], name: str) -> bool:
        """Whether an object is on; False without a face."""
        return name in self.seen(frames)

    def seen(self, frames: NDArray[np.uint8]) -> tuple[str, ...]:
        """What is on, by the median of the last second; nothing without a face."""
        last = frames[-chunks(LOOK_S) * FRAMES_PER_CHUNK:]
        watched = watch(last, self._mesh)
        if watched.found.mean() < 0.5:
            return ()
        return tuple(name for name in OBJECTS if np.nanmedian(
            self._judge.track(last, watched.landmarks, name)) >= WORN_CHANCE)

    def away(self, frames: NDArray[np.uint8]) -> bool:
        """Whether no face is there."""
        last = frames[-chunks(LOOK_S) * FRAMES_PER_CHUNK:]
        return float(watch(last, self._mesh).found.mean()) < 0.5


def absence(stream: Any, told: WorldState, away_s: float,
            ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Leave, stay away, come back.

    Args:
        stream: where a person is in view.
        told: the world that the prompts describe.
        away_s: time out of view, from the end of the action of leaving.

    Returns:
        Frames while away, and after coming back.
    """
    gone = after('step_out', told)
    left = run(stream, [*[action_prompt('step_out', told)] * chunks(ACTION_S),
                        *[stable_prompt(gone)] * chunks(away_s)])
    back = run(stream, [*[action_prompt('come_back', gone)] * chunks(ACTION_S),
                        *[stable_prompt(after('come_back', gone))] * chunks(SETTLE_S)])
    return left, back


def story(item: HeldOut, name: str, player: Player, mesh: MeshJudge, times: Timeline, seed: int,
          ) -> tuple[Kept, list[NDArray[np.uint8]]]:
    """Play one stream; returns what happened, and a frame of each moment."""
    bare = WorldState()
    worn = after('wear', bare, object=name)
    eye = _Eye(mesh)
    stream = player.stream(item.reference, stable_prompt(bare), seed)
    first = run(stream, [stable_prompt(bare)] * chunks(times.put_on_s))
    put = run(stream, [*[action_prompt('wear', bare, object=name)] * chunks(ACTION_S),
                       *[stable_prompt(worn)] * chunks(1.0)])
    rest = chunks(times.still_s) - chunks(times.put_on_s) - chunks(ACTION_S) - chunks(1.0)
    # In pieces: a minute of frames need not be held.
    for _ in range(max(0, rest - chunks(LOOK_S))):
        run(stream, [stable_prompt(worn)])
    still = run(stream, [stable_prompt(worn)] * chunks(LOOK_S))
    fork = stream.snapshot()
    away, back = absence(stream, bare, times.away_s)
    stream.restore(fork)
    _, told = absence(stream, worn, times.away_s)
    kept = Kept(item.name, name, eye.worn(first, name), eye.worn(put, name),
                eye.worn(still, name), eye.away(away), eye.worn(back, name),
                eye.worn(told, name))
    return kept, [first[-1], put[-1], still[-1], away[-1], back[-1], told[-1]]


def unworn_story(item: HeldOut, player: Player, mesh: MeshJudge, times: Timeline, seed: int,
                 ) -> tuple[Unworn, list[NDArray[np.uint8]]]:
    """Play a stream in which nothing is put on; returns what happened, and a frame of each
    moment: the first second, before leaving, away, back."""
    bare = WorldState()
    eye = _Eye(mesh)
    stream = player.stream(item.reference, stable_prompt(bare), seed)
    look = [stable_prompt(bare)] * chunks(LOOK_S)
    first = run(stream, look)
    # In pieces: a minute of frames need not be held.
    for _ in range(max(0, chunks(times.still_s) - 2 * len(look))):
        run(stream, [stable_prompt(bare)])
    rest = run(stream, look)
    away, back = absence(stream, bare, times.away_s)
    return (Unworn(item.name, eye.seen(first), eye.seen(rest), eye.away(away), eye.seen(back)),
            [first[-1], rest[-1], away[-1], back[-1]])


UNWORN_MOMENTS: Final = ('wears nothing', 'later', 'away', 'back')
MOMENTS: Final = ('before', 'put on', 'still on', 'away', 'back, unmentioned', 'back, mentioned')


def summarise(stories: Sequence[Kept], bare: Sequence[Unworn], times: Timeline) -> Result:
    """The claim's figures. Objects that were never put on cannot stay: they count as actions."""
    people = sorted({kept.person for kept in stories})

    def by_person(value: str, *given: str) -> list[list[bool]]:
        return [[bool(getattr(kept, value)) for kept in stories
                 if kept.person == person and all(getattr(kept, name) for name in given)]
                for person in people]

    _, wears = gauge.load()
    of = 'streams'
    rows = [
        Row('objects put on when prompted', share_of(by_person('put_on'), of)),
        Row.at_least(f'what happened stays: put on at {times.put_on_s:g} s, still on at '
                     f'{times.still_s:g} s', share_of(by_person('still', 'put_on'), of),
                     AIM_STAYS_PERCENT),
        Row.at_least(f'on after {times.away_s:g} s out of view, not mentioned',
                     share_of(by_person('after_unmentioned', 'still', 'left'), of),
                     AIM_AWAY_PERCENT),
        Row(f'on after {times.away_s:g} s out of view, mentioned as at run time',
            share_of(by_person('after_mentioned', 'still', 'left'), of)),
        Row.at_least(f'wears nothing, and nothing is on at {times.still_s:g} s',
                     share_of([[not other.before] for other in bare if not other.first], of),
                     AIM_STAYS_PERCENT),
        Row.at_least(f'wore nothing, and nothing is on after {times.away_s:g} s out of view',
                     share_of([[not other.after] for other in bare
                               if other.left and not other.first and not other.before], of),
                     AIM_AWAY_PERCENT),
        Row('left the view when prompted', share_of(by_person('left'), of))]
    return Result(
        'What happened stays',
        'Glasses or a hat, put on by prompt, looked for by the classifier of worn objects (right '
        f'on {100 * wears.accuracy["glasses"]:.1f} % and {100 * wears.accuracy["hat"]:.1f} % of '
        f'{wears.pictures} true pictures of held-out people). Until the person leaves, prompts '
        'mention what is worn, as the reasoning module writes them. "Still on" is counted where '
        'it was put on, "after out of view" where it was still on and the person left; no face '
        f'seen counts as not on. Who wears nothing rests for {times.still_s:g} s, goes and comes '
        'back, and neither may be on.',
        rows, {'streams': [vars(kept) for kept in stories],
               'unworn': [vars(other) for other in bare], 'timeline': vars(times)},
        table=(['person', 'object', *MOMENTS],
               [[kept.person, kept.name, *['yes' if value else 'no' for value in (
                   kept.before, kept.put_on, kept.still, kept.left, kept.after_unmentioned,
                   kept.after_mentioned)]] for kept in stories]))


def measure(items: Sequence[HeldOut], player: Player, times: Timeline, folder: Path,
            say: Callable[[str], None]) -> Result:
    """Play the story with each person and object; finished ones are read from `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stories: list[Kept] = []
    bare: list[Unworn] = []
    frames: list[NDArray[np.uint8]] = []
    bare_frames: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    bare_labels: list[str] = []
    with MeshJudge() as mesh:
        for number, item in enumerate(items):
            for name in OBJECTS:
                found, strip = _played(
                    folder / f'kept_{item.file_name}_{name}_{times.still_s:g}_{player.key}_'
                             f'{gauge.version()}',
                    partial(story, item, name, player, mesh, times, number))
                kept = Kept(**found)
                stories.append(kept)
                frames += strip
                labels += [f'{item.name} {name}', *MOMENTS[1:]]
                say(f'{item.name}, {name}: put on {kept.put_on}, still on {kept.still}, after '
                    f'being away {kept.after_unmentioned}')
            found, strip = _played(
                folder / f'unworn_{item.file_name}_{times.still_s:g}_{player.key}_'
                         f'{gauge.version()}',
                partial(unworn_story, item, player, mesh, times, number))
            other = Unworn(found['person'], tuple(found['first']), tuple(found['before']),
                           found['left'], tuple(found['after']))
            bare.append(other)
            bare_frames += strip
            bare_labels += [f'{item.name}, nothing', *UNWORN_MOMENTS[1:]]
            say(f'{item.name}, nothing: then {" and ".join(other.before) or "nothing"}, comes '
                f'back with {" and ".join(other.after) or "nothing"}')
    result = summarise(stories, bare, times)
    result.plots.append(('Each stream: before, put on, still on, away, back (not mentioned), back '
                         '(mentioned)', sheet(frames, labels, len(MOMENTS))))
    result.plots.append(('Who wears nothing: first, later, away, back',
                         sheet(bare_frames, bare_labels, len(UNWORN_MOMENTS))))
    return result


def _played(path: Path, play: Callable[[], tuple[Any, list[NDArray[np.uint8]]]],
            ) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """What a story came to and its pictures, played only if it is not in the folder yet."""
    notes, strip = path.with_name(f'{path.name}.json'), path.with_name(f'{path.name}.npz')
    if not notes.exists():
        found, moments = play()
        np.savez_compressed(strip, strip=np.array(moments))
        notes.write_text(json.dumps(vars(found)))
    with np.load(strip) as data:
        return json.loads(notes.read_text()), list(data['strip'])
