# SPDX-License-Identifier: Apache-2.0
"""Metrics of the running system: on a recorded session, and on the shipped model's own stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics, session
from interactive_avatar.evaluation.bag import NS_PER_S, Recording, Sound
from interactive_avatar.evaluation.bench import rss_mib, speech_loop
from interactive_avatar.evaluation.explained.draw import Case, Explained, Floats, bars, lines
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.model.play import Player, Setup
from interactive_avatar.generator.prompts import WorldState, action_prompt, stable_prompt
from interactive_avatar.media.clock import CHUNK_MS, FRAME_RATE_HZ

CHUNKS: Final = 150
WARM_UP: Final = 10
# Defects.
EVERY: Final = 20
STALL_MS: Final = 150.0
DROPPED: Final = (40, 41, 90)
DELAYED: Final = (60, 61)
DELAY_MS: Final = 450.0
DRIFT_MS: Final = 18.0
SLOW_S: Final = 3.0
LATE_SWITCH_FRAMES: Final = 25
MANY_LEVELS: Final = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)


@dataclass
class Session:
    """What the pictures are made of.

    Attributes:
        recording: a session of the running graph, with pictures.
        player: the shipped model.
        item: whose reference is shown.
    """

    recording: Recording
    player: Player
    item: HeldOut

    @cached_property
    def track(self) -> session.PictureTrack:
        """Change of each recorded picture.

        Raises:
            ValueError: if the session has no pictures.
        """
        track = session.track_pictures(self.recording.pictures)
        if track is None:
            raise ValueError(f'{self.recording.path} holds no pictures: record it with `avatar '
                             f'demo`')
        return track

    @cached_property
    def steps(self) -> tuple[Floats, Floats, Floats]:
        """Of `CHUNKS` chunks of the shipped model: ms of the wall, ms of the processor, MiB."""
        return drive(self.player, self.item, CHUNKS)


def drive(player: Player, item: HeldOut, chunks: int, keep: bool = False
          ) -> tuple[Floats, Floats, Floats]:
    """Make chunks of somebody who talks.

    Args:
        player: the generator.
        item: whose reference.
        chunks: how many, after warming up.
        keep: never let go of a picture, as a leak does.

    Returns:
        Time of each chunk by the wall and by the processor in ms, and resident memory in MiB
        after it, float64 [chunks].
    """
    stream = player.stream(item.reference, action_prompt('talk', WorldState()))
    speech = speech_loop()
    kept: list[NDArray[np.uint8]] = []
    rows = []
    for index in range(WARM_UP + chunks):
        samples = next(speech)
        wall, processor = time.perf_counter(), time.process_time()
        frames = stream.step(samples).frames
        row = (1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor),
               rss_mib())
        if keep:
            kept.append(frames.copy())
        if index >= WARM_UP:
            rows.append(row)
    wall_ms, processor_ms, memory = np.array(rows).T
    return wall_ms, processor_ms, memory


def first_frame(found: Session) -> Explained:
    """A stream of a model that is open, and one that has to be loaded first."""
    def opened(player: Player) -> float:
        begin = time.perf_counter()
        player.stream(found.item.reference, stable_prompt(WorldState())).step(
            np.zeros(2560, np.int16))
        return time.perf_counter() - begin

    warm = min(opened(found.player) for _ in range(3))
    begin = time.perf_counter()
    cold = Player(found.player.setup)
    loading = time.perf_counter() - begin
    total = loading + opened(cold)
    names = ['loading the model', 'reference and first chunk']
    most = 1.2 * total
    return Explained(
        'first_frame', 'First frame: from opening a stream to its first picture',
        Case('the model is open already', f'{warm:.2f} s',
             plot=bars(names, [0.0, warm], 'seconds', most=most)),
        Case('the model is loaded for it', f'{total:.2f} s',
             plot=bars(names, [loading, total - loading], 'seconds', most=most)),
        {'good': warm, 'bad': total})


def _text(points: dict[str, float]) -> str:
    return ' / '.join(f'{value:.0f}' for value in points.values()) + ' ms'


def chunk_time(found: Session) -> Explained:
    """Chunks that all come in time, and a few that stall."""
    wall = found.steps[0]
    stalling = wall.copy()
    stalling[EVERY // 2::EVERY] += STALL_MS
    points = [metrics.percentiles(values) for values in (wall, stalling)]
    x = np.arange(wall.size) * CHUNK_MS / 1000.0
    high = 1.1 * max(float(stalling.max()), CHUNK_MS)

    def side(values: Floats, point: dict[str, float], what: str) -> Case:
        return Case(what, f'p50 / p95 / p99: {_text(point)}',
                    plot=lines({'time': (x, values)}, 'stream time (s)', 'ms per chunk',
                               limit=CHUNK_MS, limits=(0.0, high)))

    return Explained(
        'chunk_time', f'Chunk time: percentiles (dashed: {CHUNK_MS} ms, the length of a chunk)',
        side(wall, points[0], 'the shipped model'),
        side(stalling, points[1], f'every {EVERY}th chunk waits {STALL_MS:.0f} ms: the median '
             'does not show it'),
        {'good': points[0]['p99'], 'bad': points[1]['p99']})


def missed_chunks(found: Session) -> Explained:
    """Sound that comes in order, and sound with holes."""
    sounds = found.recording.audio
    broken = [replace(sound, arrival_ns=sound.arrival_ns + int(
        DELAY_MS * 1e6 * (number in DELAYED)))
        for number, sound in enumerate(sounds) if number not in DROPPED]

    def side(kept: list[Sound], what: str) -> tuple[Case, float]:
        stamps = np.array([sound.stamp_ns for sound in kept])
        arrivals = np.array([sound.arrival_ns for sound in kept])
        seen = metrics.delivery(stamps, arrivals)
        delay = arrivals - stamps
        x = (stamps - sounds[0].stamp_ns) / NS_PER_S
        gaps = [(float(x[k]), 'lost') for k in np.flatnonzero(np.diff(x) > 1.5 * CHUNK_MS / 1000)]
        return Case(what, f'{seen.lost} lost, {seen.late} late; {100 * seen.clean_share:.0f} % of '
                    f'seconds without a miss',
                    plot=lines({'lateness': (x, (delay - np.median(delay)) / 1e6)},
                               'stream time (s)', 'arrival after the\nmedian (ms)', gaps,
                               limit=CHUNK_MS, limits=(-100.0, 1.1 * DELAY_MS))
                    ), seen.clean_share

    good, clean = side(list(sounds), 'a recorded session')
    bad, holes = side(broken, f'the same with {len(DROPPED)} chunks dropped and '
                      f'{len(DELAYED)} held up')
    return Explained('missed_chunks', 'Missed chunks: stamps that were skipped, chunks that came '
                     'after their turn (dashed)', good, bad,
                     {'good': 100 * clean, 'bad': 100 * holes})


def av_offset(found: Session) -> Explained:
    """Sound and pictures of one clock, and of two."""
    sounds = np.array([sound.stamp_ns for sound in found.recording.audio])
    pictures = np.array(sorted({picture.stamp_ns for picture in found.recording.pictures}))
    drift = np.linspace(0.0, DRIFT_MS, pictures.size) * 1e6
    sides = []
    values: dict[str, float | None] = {}
    for kind, stamps, what in (('good', pictures, 'a recorded session'),
                               ('bad', pictures + drift.astype(np.int64),
                                "the pictures' clock runs slow")):
        offsets = metrics.av_offsets_ms(stamps, sounds)
        x = np.linspace(0.0, (sounds[-1] - sounds[0]) / NS_PER_S, offsets.size)
        values[kind] = float(np.abs(offsets).max())
        sides.append(Case(what, f'worst {values[kind]:.1f} ms',
                          plot=lines({'offset': (x, offsets)}, 'stream time (s)',
                                     'picture after\nsound (ms)', limit=20.0,
                                     limits=(-2.0, 24.0))))
    return Explained('av_offset', 'Sound against picture, by stamp (dashed: the aim, 20 ms)',
                     sides[0], sides[1], values)


def switch_to_visible(found: Session) -> Explained:
    """A prompt that is soon seen, and one that is taken late."""
    recording, track = found.recording, found.track
    turns = [row for row in session.measure_turns(recording, (), track)
             if np.isfinite(row['switch_to_visible_ms'])]
    if not turns:
        raise ValueError(f'{recording.path} has no turn with a visible action: record it with '
                         f'`avatar demo`')
    row = min(turns, key=lambda turn: turn['switch_to_visible_ms'])
    after = [event for event in recording.states if event.fields.get('phase') == 1
             and event.stamp_ns >= row['end_ns']]
    switch_ns = after[0].stamp_ns
    start = int(np.searchsorted(track.stamps_ns, switch_ns))
    before = track.change[max(0, start - LATE_SWITCH_FRAMES):start]
    late = np.concatenate([track.change[:start], before,
                           track.change[start:-before.size or None]])
    part = slice(max(0, start - FRAME_RATE_HZ), start + 2 * FRAME_RATE_HZ)
    x = (track.stamps_ns - switch_ns) / NS_PER_S
    sides = []
    values: dict[str, float | None] = {}
    for kind, change, what in (('good', track.change, f'a recorded session: {row["actions"][0]}'),
                               ('bad', late, f'the switch is taken '
                                f'{1000 * LATE_SWITCH_FRAMES // FRAME_RATE_HZ} ms late')):
        seen = metrics.first_change(change[:start + 3 * FRAME_RATE_HZ], start,
                                    floor=session.SWITCH_FLOOR_GREY)
        at = None if seen is None else float(x[seen])
        values[kind] = None if at is None else 1000.0 * at
        sides.append(Case(what, 'not seen' if at is None else f'{1000 * at:.0f} ms',
                          plot=lines({'change': (x[part], change[part])},
                                     'time from the switch (s)',
                                     'change of the\npicture (grey levels)',
                                     [(0.0, 'switch'), *([] if at is None else [(at, 'seen')])])))
    return Explained('switch_to_visible', 'From the switch of the prompt to the first visible '
                     'change', sides[0], sides[1], values)


def _answered(recording: Recording) -> dict[str, Any]:
    rows = [row for row in session.measure_turns(recording)
            if np.isfinite(row['response_latency_s'])]
    if not rows:
        raise ValueError(f'{recording.path} has no spoken answer: record it with `avatar demo`')
    return rows[0]


def response(found: Session) -> Explained:
    """An answer that comes soon, and one that lets the user wait."""
    recording = found.recording
    row = _answered(recording)
    shift_ns = int(SLOW_S * NS_PER_S)
    # The sound from here on belongs to the answer; what lies before stays.
    slow = replace(recording, audio=[
        sound if sound.stamp_ns < row['end_ns'] else
        replace(sound, stamp_ns=sound.stamp_ns + shift_ns, arrival_ns=sound.arrival_ns + shift_ns)
        for sound in recording.audio])
    sides = []
    values: dict[str, float | None] = {}
    for kind, one, what in (('good', recording, f'a recorded session: "{row["heard"]}"'),
                            ('bad', slow, f'the answer comes {SLOW_S:.0f} s later')):
        mine = next(turn for turn in session.measure_turns(one)
                    if turn['start_ns'] == row['start_ns'])
        values[kind] = mine['response_latency_s']
        series = {}
        for name, sounds in (('user', one.user_audio), ('avatar', one.audio)):
            stamps, levels = session.levels_dbfs(sounds)
            delay = int(np.median([s.arrival_ns - s.stamp_ns for s in one.audio])) \
                if name == 'avatar' else 0
            x = (stamps + delay - row['end_ns']) / NS_PER_S
            near = (x > -2.5) & (x < 2.5 + SLOW_S)
            series[name] = x[near], np.maximum(levels[near], -70.0)
        marks = [(0.0, 'last sound of the user'), (float(values[kind] or 0.0), 'answer')]
        sides.append(Case(what, f'{values[kind]:.2f} s',
                          plot=lines(series, 'time from the end of the utterance (s)',
                                     'level (dBFS)', marks, limits=(-72.0, 0.0))))
    return Explained('response', "From the end of the user's speech to the answer", sides[0],
                     sides[1], values)


def memory(found: Session) -> Explained:
    """Memory that is flat, and memory of a stream that keeps its pictures."""
    flat = found.steps[2]
    leaking = drive(found.player, found.item, CHUNKS, keep=True)[2]
    x = np.arange(CHUNKS) * CHUNK_MS / 1000.0
    fifth = CHUNKS // 5
    shares = [float(np.median(series[-fifth:]) / np.median(series[:fifth]) - 1.0)
              for series in (flat, leaking)]
    high = 1.1 * max(float(flat.max()), float(leaking.max()))

    def side(series: Floats, share: float, what: str) -> Case:
        return Case(what, f'{100 * share:+.1f} % from the first fifth to the last',
                    plot=lines({'memory': (x, series)}, 'stream time (s)',
                               'resident\nmemory (MiB)', limits=(0.0, high)))

    return Explained('memory', 'Memory over stream time',
                     side(flat, shares[0], 'the shipped model'),
                     side(leaking, shares[1], 'the same, and no picture is ever let go'),
                     {'good': 100 * shares[0], 'bad': 100 * shares[1]})


def processor(found: Session) -> Explained:
    """A model that leaves room, and one that asks for more than there is."""
    setup: Setup = found.player.setup
    heavy = Player(replace(setup, levels=MANY_LEVELS))
    many = drive(heavy, found.item, CHUNKS // 3)
    x = np.arange(CHUNKS // 3) * CHUNK_MS / 1000.0
    sides = []
    values: dict[str, float | None] = {}
    levels = len(found.player.files.config.sampler.levels)
    for kind, steps, what in (
            ('good', found.steps, f'the shipped model, {levels} steps'),
            ('bad', many, f'the same with {len(MANY_LEVELS)} steps')):
        wall, used = (series[:x.size] for series in steps[:2])
        media_s = x.size * CHUNK_MS / 1000.0
        factor = metrics.real_time_factor(float(wall.sum()) / 1000.0, media_s)
        cores = float(used.sum()) / 1000.0 / media_s
        values[kind] = factor
        sides.append(Case(what, f'real-time factor {factor:.2f}; {cores:.2f} cores',
                          plot=lines({'processor': (x, used), 'wall': (x, wall)},
                                     'stream time (s)', 'ms per chunk', limit=CHUNK_MS,
                                     limits=(0.0, None))))
    return Explained('processor', 'Cost: seconds of computing per second of stream (1 and more '
                     'cannot keep up), and of the processor', sides[0], sides[1], values)


SYSTEM: Final[tuple[Callable[[Session], Explained], ...]] = (
    first_frame, chunk_time, missed_chunks, av_offset, switch_to_visible, response, memory,
    processor)
