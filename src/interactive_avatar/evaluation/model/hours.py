# SPDX-License-Identifier: Apache-2.0
"""Claim: hours. A long stream does not drift: identity, colour and sharpness have no slope."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.judges import IdentityJudge
from interactive_avatar.evaluation.model.figures import Figure, Result, Row
from interactive_avatar.evaluation.model.pictures import drift, sheet
from interactive_avatar.evaluation.model.play import Player, run
from interactive_avatar.generator.prompts import WorldState, action_prompt, stable_prompt
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES

MINUTE_CHUNKS: Final = 60_000 // CHUNK_MS
SAMPLE_CHUNKS: Final = 6
"""One frame in about a second is measured."""
SHOWN_EACH_MINUTE: Final = 4
SIGNIFICANT: Final = 2.0
"""A slope of fewer standard errors than this cannot be told from 0."""
MEASURES: Final = ('identity', 'L*', 'a*', 'b*', 'sharpness')


def minute_of(item: HeldOut) -> tuple[list[str], NDArray[np.int16]]:
    """A minute of life: a performance's speech twice, with silence between.

    Returns:
        A prompt per chunk, and the sound, int16.
    """
    world = WorldState()
    rest, talk = stable_prompt(world), action_prompt('talk', world)
    speaking = item.speaking().reshape(-1, 4).any(axis=1)
    spoken = [talk if on else rest for on in speaking]
    sound = item.audio[:len(spoken) * CHUNK_SAMPLES]
    pause = (MINUTE_CHUNKS - 2 * len(spoken)) // 2
    if pause < 0:
        spoken, sound = spoken[:MINUTE_CHUNKS // 2], sound[:MINUTE_CHUNKS // 2 * CHUNK_SAMPLES]
        pause = 0
    part = [*spoken, *[rest] * pause]
    quiet = np.zeros(pause * CHUNK_SAMPLES, np.int16)
    prompts = [*part, *part]
    prompts += [rest] * (MINUTE_CHUNKS - len(prompts))
    heard = np.concatenate([sound, quiet, sound, quiet])
    return prompts, np.pad(heard, (0, MINUTE_CHUNKS * CHUNK_SAMPLES - heard.size))


def look(frame: NDArray[np.uint8], judge: IdentityJudge, reference: NDArray[np.float64],
         ) -> list[float]:
    """The `MEASURES` of a frame."""
    colour = metrics.srgb_to_lab(frame[::2, ::2]).mean(axis=(0, 1))
    distance = metrics.identity_distance(judge.embed(frame)[None], reference)[0]
    return [float(distance), *map(float, colour), float(metrics.sharpness(frame[None])[0])]


def slopes(minutes: NDArray[np.float64], values: NDArray[np.float64]) -> metrics.Slope:
    """Slope over minute means: frames of one minute are no independent measurements.

    Args:
        minutes: float64 [n] stream time.
        values: float64 [n], NaN where unknown.
    """
    which = np.floor(minutes + 1e-9).astype(np.int64)
    means = np.array([np.nanmean(values[which == minute])
                      if np.isfinite(values[which == minute]).any() else np.nan
                      for minute in range(int(which.max()) + 1)])
    return metrics.slope_per_minute(60.0 * (np.arange(means.size) + 0.5), means)


def play_minutes(item: HeldOut, player: Player, minutes: int, folder: Path,
                 say: Callable[[str], None], sounds: list[HeldOut],
                 ) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Play a long stream, a minute at a time, and go on where an earlier call stopped.

    Returns:
        float64 [n, 1 + len(MEASURES)]: stream time in minutes and measures; and uint8
        [minutes · 4, H, W, 3] frames at rest and in speech of each minute.
    """
    heard = hashlib.sha256(''.join(sound.file_name for sound in sounds).encode())
    stem = folder / f'hours_{item.file_name}_{heard.hexdigest()[:8]}_{player.key}'
    notes, state = stem.with_suffix('.npz'), stem.with_suffix('.state')
    world = stable_prompt(WorldState())
    stream = player.stream(item.reference, world)
    judge = IdentityJudge()
    reference = judge.embed(item.reference)
    rows: list[list[float]] = []
    shown: list[NDArray[np.uint8]] = []
    done = 0
    if notes.exists():
        with np.load(notes) as data:
            rows, shown, done = data['rows'].tolist(), list(data['shown']), int(data['minutes'])
        if done < minutes:
            stream.restore(pickle.loads(state.read_bytes()))
    for minute in range(done, minutes):
        prompts, sound = minute_of(sounds[minute % len(sounds)])
        for first in range(0, MINUTE_CHUNKS, SAMPLE_CHUNKS):
            part = slice(first, min(first + SAMPLE_CHUNKS, MINUTE_CHUNKS))
            frames = run(stream, prompts[part], sound[part.start * CHUNK_SAMPLES:
                                                      part.stop * CHUNK_SAMPLES],
                         lookahead=0)
            at = minute + part.stop / MINUTE_CHUNKS
            rows.append([min(at, minute + 1 - 1e-6), *look(frames[-1], judge, reference)])
            every = MINUTE_CHUNKS // SAMPLE_CHUNKS // SHOWN_EACH_MINUTE
            if (first // SAMPLE_CHUNKS) % every == every - 1 \
                    and len(shown) < (minute + 1) * SHOWN_EACH_MINUTE:
                shown.append(frames[-1])
        part_file = stem.with_suffix('.part.npz')
        np.savez_compressed(part_file, rows=np.array(rows), shown=np.array(shown),
                            minutes=np.array(minute + 1))
        state.write_bytes(pickle.dumps(stream.snapshot()))
        part_file.replace(notes)
        table = np.array(rows)
        last = table[table[:, 0] >= minute]
        say(f'{item.name}: minute {minute + 1} of {minutes}, identity distance '
            f'{np.nanmean(last[:, 1]):.3f}, sharpness {np.nanmean(last[:, 5]):.0f}')
    kept = np.array(rows)
    return kept[kept[:, 0] < minutes], np.array(shown[:minutes * SHOWN_EACH_MINUTE])


def measure(items: list[HeldOut], player: Player, minutes: int, folder: Path,
            say: Callable[[str], None], sounds: list[HeldOut]) -> Result:
    """A long stream of each of some people.

    Args:
        items: whose references.
        player: the generator.
        minutes: how long each.
        folder: keeps state, so that a run goes on where it was cut off.
        say: told of each minute.
        sounds: whose speech is heard, one a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = Result(
        'Hours', f'Streams of {minutes} minutes, each minute two times 16 s of speech under the '
        'prompt to talk, and silence. One frame a second is measured; the slope goes through '
        f'minute means, with its standard error; within {SIGNIFICANT:g} standard errors it cannot '
        'be told from 0.', detail={'streams': []})
    for item in items:
        table, shown = play_minutes(item, player, minutes, folder, say, sounds)
        times = table[:, 0]
        found = {name: slopes(times, table[:, 1 + k]) for k, name in enumerate(MEASURES)}
        result.detail['streams'].append({'name': item.name, **{
            name: {'per_minute': slope.per_minute, 'standard_error': slope.standard_error,
                   'first_minute': float(np.nanmean(table[times < 1.0, 1 + k])),
                   'last_minute': float(np.nanmean(table[times >= minutes - 1, 1 + k]))}
            for k, (name, slope) in enumerate(found.items())}})
        for name, slope in found.items():
            error = slope.standard_error
            figure = Figure(slope.per_minute, slope.per_minute - SIGNIFICANT * error,
                            slope.per_minute + SIGNIFICANT * error, minutes, 'minutes',
                            'per minute', 4)
            result.rows.append(Row(
                f'hours: slope of {name}, {item.name}', figure, 'interval holds 0',
                abs(slope.per_minute) <= SIGNIFICANT * error if math.isfinite(error) else None))
        result.plots.append((f'{item.name}: {minutes} minutes', drift(times, [
            (name, table[:, 1 + k], found[name].per_minute, found[name].standard_error)
            for k, name in enumerate(MEASURES)])))
        picked = [0, minutes - 1]
        frames = [shown[m * SHOWN_EACH_MINUTE + k] for m in picked
                  for k in range(SHOWN_EACH_MINUTE)]
        result.plots.append((
            f'{item.name}: minute 1 above minute {minutes}',
            sheet(frames, [f'minute {m + 1}' for m in picked for _ in range(SHOWN_EACH_MINUTE)],
                  SHOWN_EACH_MINUTE)))
    return result
