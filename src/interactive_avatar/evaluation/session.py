# SPDX-License-Identifier: Apache-2.0
"""Measures a recorded session: was the user heard, answered, in time, in sync, by a live face.

Everything here comes from the bag alone and needs neither a GPU nor a learned judge; judges
(`interactive_avatar.evaluation.judges`) add to it where they are installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.bag import NS_PER_S, Event, Picture, Recording, Sound
from interactive_avatar.evaluation.stages import measure_stages
from interactive_avatar.media.clock import (
    FRAME_NS,
    FRAME_RATE_HZ,
    FRAMES_PER_CHUNK,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
)

STABLE_PHASE = 0
ACTION_PHASE = 1
ACTIVITIES = ('IDLE', 'LISTENING', 'THINKING', 'SPEAKING', 'GESTURING')
FINAL_EVENT = 3
# Speech is what is louder than this; the voice's own noise lies at -70 dBFS and below.
VOICED_DBFS = -45.0
# Pauses inside a sentence, which do not end an utterance of the user.
UTTERANCE_GAP_S = 0.7
# Closures of words and the mouth's way back to rest still belong to speech.
SPEECH_HANGOVER_FRAMES = 6
# Where the mouth is in a head-and-shoulders picture: left, top, right, bottom in shares. Kept
# wider than a mouth, since the head turns and nods.
MOUTH_WINDOW = (0.36, 0.55, 0.64, 0.78)
HEARD_WORD_ERROR_RATE = 0.34
SWITCH_WINDOW_FRAMES = 50
SWITCH_FLOOR_GREY = 0.4


@dataclass(frozen=True)
class Utterance:
    """A stretch of the user's speech.

    Attributes:
        start_ns: stamp of its first voiced sample.
        end_ns: stamp after its last voiced sample.
    """

    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Expected:
    """What a user was made to say, to compare with.

    Attributes:
        name: short name.
        text: the words.
        intent: the intent it should have.
        start_ns: when it began to play, on the bag's clock; 0 if unknown.
    """

    name: str
    text: str
    intent: str
    start_ns: int = 0


def levels_dbfs(sounds: Sequence[Sound], window: int = SAMPLES_PER_FRAME
                ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Level of each 40 ms of a stream of sound.

    Args:
        sounds: pieces of sound, of any lengths.
        window: samples per value.

    Returns:
        (stamps int64 [n] in nanoseconds, root mean square level float64 [n] in dBFS).
    """
    stamps: list[int] = []
    levels: list[float] = []
    for sound in sounds:
        for at in range(0, sound.samples.size, window):
            piece = sound.samples[at:at + window].astype(np.float64) / 32768.0
            stamps.append(sound.stamp_ns + at * NS_PER_S // SAMPLE_RATE_HZ)
            levels.append(10.0 * float(np.log10((piece @ piece) / piece.size + 1e-12)))
    order = np.argsort(np.asarray(stamps, np.int64), kind='stable')
    return np.asarray(stamps, np.int64)[order], np.asarray(levels, np.float64)[order]


def utterances(sounds: Sequence[Sound]) -> list[Utterance]:
    """Stretches of speech in the user's sound, by level alone (independent of perception)."""
    stamps, levels = levels_dbfs(sounds)
    voiced = stamps[levels > VOICED_DBFS]
    if not voiced.size:
        return []
    cuts = np.flatnonzero(np.diff(voiced) > UTTERANCE_GAP_S * NS_PER_S) + 1
    return [Utterance(int(part[0]), int(part[-1]) + FRAME_NS) for part in np.split(voiced, cuts)]


@dataclass
class PictureTrack:
    """Per-frame measures, made in one pass over the pictures.

    Attributes:
        stamps_ns: int64 [n], sorted, each once.
        arrivals_ns: int64 [n].
        change: float64 [n], mean absolute change of the whole picture, grey levels; 0 first.
        mouth_change: float64 [n], the same inside `MOUTH_WINDOW`.
        sharpness: float64 [n].
        lab: float64 [n, 3], mean colour.
        size: (height, width) in pixels.
    """

    stamps_ns: NDArray[np.int64]
    arrivals_ns: NDArray[np.int64]
    change: NDArray[np.float64]
    mouth_change: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    lab: NDArray[np.float64]
    size: tuple[int, int]


def track_pictures(pictures: Sequence[Picture],
                   progress: Callable[[int], None] | None = None) -> PictureTrack | None:
    """Decode every picture once and measure it; None without pictures."""
    unique = list({picture.stamp_ns: picture for picture in pictures}.values())
    unique.sort(key=lambda picture: picture.stamp_ns)
    if not unique:
        return None
    before: NDArray[np.int16] | None = None
    rows: list[tuple[float, float, float]] = []
    labs: list[NDArray[np.float64]] = []
    size = (0, 0)
    for index, picture in enumerate(unique):
        frame = picture.decode()
        size = frame.shape[0], frame.shape[1]
        now = frame.astype(np.int16)
        if before is None or before.shape != now.shape:
            whole = mouth = 0.0
        else:
            difference = np.abs(now - before)
            left, top, right, bottom = (round(share * side) for share, side in
                                        zip(MOUTH_WINDOW, (size[1], size[0]) * 2, strict=True))
            whole = float(difference.mean())
            mouth = float(difference[top:bottom, left:right].mean())
        before = now
        rows.append((whole, mouth, float(metrics.sharpness(frame[None])[0])))
        labs.append(metrics.srgb_to_lab(frame[::8, ::8]).mean(axis=(0, 1)))
        if progress:
            progress(index)
    table = np.asarray(rows, np.float64)
    return PictureTrack(np.array([p.stamp_ns for p in unique], np.int64),
                        np.array([p.arrival_ns for p in unique], np.int64),
                        table[:, 0], table[:, 1], table[:, 2], np.stack(labs), size)


def speaking_mask(recording: Recording, stamps_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the avatar's sound at each picture's stamp is speech, bool [n]."""
    stamps, levels = levels_dbfs(recording.audio)
    if not stamps.size:
        return np.zeros(stamps_ns.size, bool)
    voiced = levels > VOICED_DBFS
    # Speech goes on through short pauses: widen each voiced window to both sides.
    kernel = np.ones(2 * SPEECH_HANGOVER_FRAMES + 1)
    wide = np.convolve(voiced.astype(float), kernel, 'same') > 0.5
    at = np.clip(np.searchsorted(stamps, stamps_ns, side='right') - 1, 0, stamps.size - 1)
    near = np.abs(stamps[at] - stamps_ns) <= FRAME_NS
    return np.asarray(wide[at] & near)


def resting_mask(recording: Recording, stamps_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the avatar was in the stable phase at each picture's stamp, bool [n].

    A second after a turn is left out, in which the face returns to rest.
    """
    resting = np.ones(stamps_ns.size, bool)
    events = sorted(recording.states, key=lambda event: event.stamp_ns)
    for event, after in zip(events, [*events[1:], None], strict=True):
        if event.fields.get('phase') == ACTION_PHASE:
            end = NS_PER_S + (after.stamp_ns if after else int(stamps_ns[-1]))
            resting &= ~((stamps_ns >= event.stamp_ns) & (stamps_ns < end))
    return resting


def _round(value: Any, digits: int = 3) -> Any:
    """Floats to a readable length, NaN to None, through dicts and lists."""
    if isinstance(value, dict):
        return {key: _round(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_round(item, digits) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), digits) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _delivery(stamps: Sequence[int], arrivals: Sequence[int], chunk_ns: int) -> dict[str, Any]:
    seen = metrics.delivery(stamps, arrivals, chunk_ns=chunk_ns)
    return {'received': seen.chunks, 'lost': seen.lost, 'late': seen.late,
            'seconds': seen.seconds, 'clean_seconds': seen.clean_seconds,
            'clean_share': seen.clean_share, 'worst_late_ms': seen.worst_late_ms}


def measure_stream(recording: Recording) -> dict[str, Any]:
    """Regularity of the avatar's stream, and whether its sound and pictures share stamps."""
    audio = recording.audio
    stamps = [item.stamp_ns for item in audio]
    pictures = [picture.stamp_ns for picture in recording.pictures]
    offsets = metrics.av_offsets_ms(pictures, stamps)
    frame_delay = [(p.arrival_ns - p.stamp_ns) / 1e6 for p in recording.pictures]
    audio_delay = [(item.arrival_ns - item.stamp_ns) / 1e6 for item in audio]
    span_s = (max(pictures) - min(pictures) + FRAME_NS) / NS_PER_S if pictures else 0.0
    result: dict[str, Any] = {
        'seconds': recording.seconds,
        'frames_per_second': len(set(pictures)) / span_s if span_s else float('nan'),
        'audio': _delivery(stamps, [item.arrival_ns for item in audio], 160_000_000),
        'pictures': _delivery(pictures, [p.arrival_ns for p in recording.pictures], FRAME_NS),
        'av_offset_ms': {'chunks': int(offsets.size),
                         'without_picture': len(stamps) - int(offsets.size),
                         'mean': float(offsets.mean()) if offsets.size else float('nan'),
                         'worst': float(np.abs(offsets).max()) if offsets.size else float('nan')},
        'arrival_after_stamp_ms': {'audio': metrics.percentiles(audio_delay),
                                   'pictures': metrics.percentiles(frame_delay)},
        'missed': measure_missed(recording),
    }
    return result


def measure_missed(recording: Recording) -> dict[str, Any]:
    """Chunks that the generator repeated because none was ready, by its own count.

    A repeated chunk arrives in time, so only the generator knows; its count is read from
    ``/diagnostics``, about once a second, and the differences are taken, so that what was missed
    before the recording does not count.

    Returns:
        ``repeated`` and ``made`` chunks, ``intervals`` between two counts, ``clean_share`` of
        intervals without a miss; NaN and zeros without diagnostics.
    """
    counts = [(int(d.values['chunks_late']), int(d.values.get('slots', 0)))
              for d in recording.diagnostics
              if d.name.endswith('generator') and d.values.get('chunks_late', '').isdigit()]
    # A count that falls is a generator that was started again: it begins at 0.
    steps = [max(0, after - before) if after >= before else after
             for (before, _), (after, _) in itertools.pairwise(counts)]
    return {'repeated': sum(steps), 'intervals': len(steps),
            'made': counts[-1][1] - counts[0][1] if counts else 0,
            'clean_share': sum(not step for step in steps) / len(steps) if steps
            else float('nan')}


def measure_diagnostics(recording: Recording) -> dict[str, Any]:
    """The last numbers that each node reported of itself, and its worst level."""
    nodes: dict[str, Any] = {}
    for status in recording.diagnostics:
        entry = nodes.setdefault(status.name, {'worst_level': 0, 'values': {}, 'messages': []})
        entry['worst_level'] = max(entry['worst_level'], status.level)
        entry['values'] = status.values
        if status.level and status.message not in entry['messages'] and \
                len(entry['messages']) < 5:
            entry['messages'].append(status.message)
    return nodes


def measure_face(recording: Recording, track: PictureTrack) -> dict[str, Any]:
    """Motion of the mouth in speech and silence, sharpness, colour, seams; pixels only."""
    speaking = speaking_mask(recording, track.stamps_ns)
    resting = resting_mask(recording, track.stamps_ns) & ~speaking
    seconds = (track.stamps_ns - track.stamps_ns[0]) / NS_PER_S
    start = track.lab[:FRAME_RATE_HZ].mean(axis=0)
    drift = np.linalg.norm(track.lab - start, axis=1)
    inside, border = _seam_split(recording, track)
    speech_motion = float(track.mouth_change[speaking].mean()) if speaking.any() else float('nan')
    rest_motion = float(track.mouth_change[resting].mean()) if resting.any() else float('nan')
    slope = metrics.slope_per_minute(seconds[resting], track.sharpness[resting])
    return {
        'size': list(track.size),
        'frames': int(track.stamps_ns.size),
        'speech_frames': int(speaking.sum()), 'rest_frames': int(resting.sum()),
        'mouth_change_in_speech': speech_motion, 'mouth_change_at_rest': rest_motion,
        'mouth_rest_to_speech': rest_motion / speech_motion if speech_motion else float('nan'),
        'still_frames_share': float((track.change[1:] < 0.02).mean())
        if track.change.size > 1 else float('nan'),
        'sharpness': {'mean': float(track.sharpness.mean()),
                      'slope_per_minute': slope.per_minute,
                      'slope_standard_error': slope.standard_error},
        'colour_drift_delta_e': {'mean': float(drift.mean()),
                                 'last_second': float(drift[-FRAME_RATE_HZ:].mean())},
        'seam_ratio': float(border.mean() / inside.mean())
        if inside.size and border.size and inside.mean() > 1e-9 else float('nan'),
    }


def seam_places(recording: Recording, track: PictureTrack) -> NDArray[np.int64]:
    """Place of each picture within its chunk, 0 for the first; -1 where it says nothing of seams.

    Left out are pictures whose neighbour before is missing, and those of chunks that were held
    because none was ready (their pictures are equal): a held chunk is counted as missed, and
    would hide seams or make them up.

    Returns:
        int64 [pictures].
    """
    starts = np.array(sorted({item.stamp_ns for item in recording.audio}), np.int64)
    if not starts.size:
        return np.full(track.stamps_ns.size, -1, np.int64)
    chunk = np.searchsorted(starts, track.stamps_ns, side='right') - 1
    place = (track.stamps_ns - starts[np.maximum(chunk, 0)]) // FRAME_NS
    follows = np.r_[False, np.diff(track.stamps_ns) == FRAME_NS]
    inside = (place > 0) & (place < FRAMES_PER_CHUNK) & (chunk >= 0)
    moved = np.zeros(starts.size)
    np.maximum.at(moved, np.maximum(chunk, 0), np.where(inside & follows, track.change, 0.0))
    lives = moved[np.maximum(chunk, 0)] > 0.0
    # The first picture after a held chunk shows what several chunks would have.
    border = (place == 0) & np.r_[False, lives[:-1]]
    good = follows & lives & (inside | border)
    return np.where(good, place, -1)


def _seam_split(recording: Recording, track: PictureTrack
                ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    place = seam_places(recording, track)
    return track.change[place > 0], track.change[place == 0]


def _heard(events: Sequence[Event], start_ns: int, end_ns: int) -> str:
    texts = [event.fields.get('text', '') for event in events
             if start_ns <= event.arrival_ns < end_ns and event.fields.get('event') == FINAL_EVENT]
    return ' '.join(text.strip() for text in texts if text.strip())


def measure_turns(recording: Recording, expected: Sequence[Expected] = (),
                  track: PictureTrack | None = None) -> list[dict[str, Any]]:
    """One row per utterance of the user: heard, understood, answered, how fast.

    Args:
        recording: the session.
        expected: what the user was made to say, in order; matched by time, or in order where
            they carry none.
        track: pictures' measures, for the time until a change is seen.
    """
    spoken = utterances(recording.user_audio)
    rows: list[dict[str, Any]] = []
    last_ns = max([e.arrival_ns for e in recording.intents]
                  + [s.arrival_ns for s in recording.audio] + [0]) + 1
    stamps, levels = levels_dbfs(recording.audio)
    delay_ns = int(np.median([s.arrival_ns - s.stamp_ns for s in recording.audio])) \
        if recording.audio else 0
    pending = list(expected)
    for index, utterance in enumerate(spoken):
        after_ns = spoken[index + 1].start_ns if index + 1 < len(spoken) else last_ns
        intents = [e for e in recording.intents if utterance.start_ns < e.arrival_ns <= after_ns]
        # What the user hears: the stamp, shifted by the usual way to the listener.
        answer = stamps[(levels > VOICED_DBFS) & (stamps + delay_ns > utterance.end_ns)
                        & (stamps + delay_ns < after_ns)]
        row: dict[str, Any] = {
            'start_ns': utterance.start_ns, 'end_ns': utterance.end_ns,
            'heard': _heard(recording.perceptions, utterance.start_ns, after_ns)
            or ' '.join(e.fields.get('user_text', '') for e in intents),
            'intents': [e.fields.get('intent', '') for e in intents],
            'actions': [e.fields.get('action', '') for e in intents if e.fields.get('action')],
            'speech': ' '.join(e.fields.get('speech', '') for e in intents).strip(),
            'decision_latency_s': (intents[0].arrival_ns - utterance.end_ns) / NS_PER_S
            if intents else float('nan'),
            'response_latency_s': (int(answer[0]) + delay_ns - utterance.end_ns) / NS_PER_S
            if answer.size else float('nan'),
            'answer_s': answer.size * FRAME_NS / NS_PER_S,
            'switch_to_visible_ms': _visible_ms(recording, intents, track),
        }
        match = _match(pending, utterance)
        if match:
            pending.remove(match)
            row |= {'name': match.name, 'said': match.text, 'expected_intent': match.intent,
                    'word_error_rate': metrics.word_error_rate(match.text, row['heard']),
                    'understood': match.intent in row['intents']}
        rows.append(row)
    rows += [{'name': e.name, 'said': e.text, 'expected_intent': e.intent, 'heard': '',
              'intents': [], 'actions': [], 'speech': '', 'word_error_rate': 1.0,
              'understood': False, 'decision_latency_s': float('nan'),
              'response_latency_s': float('nan'), 'answer_s': 0.0,
              'switch_to_visible_ms': float('nan')} for e in pending]
    return rows


def _match(pending: Sequence[Expected], utterance: Utterance) -> Expected | None:
    for item in pending:
        if not item.start_ns or abs(item.start_ns - utterance.start_ns) < NS_PER_S:
            return item
    return None


def _visible_ms(recording: Recording, intents: Sequence[Event],
                track: PictureTrack | None) -> float:
    """From the switch of the prompt to the first change above the calm before it, by stamps."""
    if track is None or not any(e.fields.get('action') for e in intents):
        return float('nan')
    turn = intents[0].fields.get('turn_id')
    switches = [s for s in recording.states if s.fields.get('phase') == ACTION_PHASE
                and s.fields.get('turn_id') == turn]
    if not switches:
        return float('nan')
    start = int(np.searchsorted(track.stamps_ns, switches[0].stamp_ns))
    change = metrics.first_change(track.change[:start + SWITCH_WINDOW_FRAMES], start,
                                  floor=SWITCH_FLOOR_GREY)
    if change is None or start >= track.stamps_ns.size:
        return float('nan')
    return float(track.stamps_ns[change] - switches[0].stamp_ns) / 1e6


def states_table(recording: Recording) -> list[dict[str, Any]]:
    """States in order: seconds from the start, phase, activity, prompt."""
    if not recording.states:
        return []
    starts = [s.stamp_ns for s in recording.audio] + [p.stamp_ns for p in recording.pictures]
    t0 = min(starts) if starts else recording.states[0].stamp_ns
    rows = []
    for event in recording.states:
        activity = int(event.fields.get('activity', 0))
        rows.append({'t_s': (event.stamp_ns - t0) / NS_PER_S,
                     'phase': 'ACTION' if event.fields.get('phase') == ACTION_PHASE else 'STABLE',
                     'activity': ACTIVITIES[activity] if activity < len(ACTIVITIES)
                     else str(activity),
                     'prompt': event.fields.get('prompt', '')})
    return rows


def measure_system(recording: Recording) -> dict[str, Any]:
    """Memory and processor of each node over the session, as the nodes report them.

    Returns:
        By node: ``rss_mib`` (first, last, max) and ``cpu_percent`` (mean, of one core), where the
        node reported them.
    """
    system: dict[str, Any] = {}
    for name in sorted({d.name for d in recording.diagnostics}):
        row: dict[str, Any] = {}
        memory = node_series(recording, name, 'rss_mib')[1]
        if memory.size:
            row['rss_mib'] = {'first': memory[0], 'last': memory[-1], 'max': memory.max()}
        processor = node_series(recording, name, 'cpu_percent')[1]
        if processor.size:
            row['cpu_percent'] = float(processor.mean())
        if row:
            system[name] = row
    return system


def node_series(recording: Recording, name: str, key: str
                ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A figure that a node reported again and again.

    Args:
        recording: the session.
        name: of the node, or the end of it, such as ``generator``.
        key: of the figure.

    Returns:
        (seconds since the first arrival of the session [n], values [n]).
    """
    rows = []
    for status in recording.diagnostics:
        if status.name == name or status.name.endswith('/' + name):
            try:
                rows.append((status.arrival_ns, float(status.values[key])))
            except (KeyError, ValueError):
                continue
    if not rows:
        return np.zeros(0), np.zeros(0)
    start = start_ns(recording)
    return (np.array([(at - start) / NS_PER_S for at, _ in rows]),
            np.array([value for _, value in rows]))


def start_ns(recording: Recording) -> int:
    """Arrival of the first thing of the avatar, nanoseconds; 0 for an empty session."""
    return min([item.arrival_ns for items in (
        recording.audio[:1], recording.pictures[:1], recording.states[:1],
        recording.diagnostics[:1]) for item in items], default=0)


def bag_name(recording: Recording) -> str:
    """Name of a bag for people; with its folder's where it is only called "bag"."""
    path = recording.path.resolve()
    return path.name if path.name != 'bag' else f'{path.parent.name}/{path.name}'


def measure_start(recording: Recording) -> dict[str, Any]:
    """From the start of the generator's process to its first chunk, as the node reports it."""
    told = node_series(recording, 'generator', 'first_chunk_s')[1]
    return {'first_chunk_s': float(told[0]) if told.size else float('nan')}


@dataclass
class Analysis:
    """A measured session with what its figures were made of.

    Attributes:
        recording: the session.
        result: figures, see `measure`.
        track: measures per picture, None without pictures.
        series: further series by name, such as those of judges.
    """

    recording: Recording
    result: dict[str, Any]
    track: PictureTrack | None
    series: dict[str, NDArray[np.float64]]


def measure(recording: Recording, expected: Sequence[Expected] = (),
            progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Everything that can be measured of a session without a judge; see `analyse`.

    Returns:
        A tree of plain values, ready for JSON; None where something could not be measured, and
        the reason in ``problems`` where it is known.
    """
    return analyse(recording, expected, progress).result


def analyse(recording: Recording, expected: Sequence[Expected] = (),
            progress: Callable[[int], None] | None = None) -> Analysis:
    """Measure a session and keep the series behind the figures.

    Args:
        recording: the session.
        expected: what the user was made to say.
        progress: called with the index of each picture that was measured.

    Returns:
        The analysis; its ``result`` is plain values, ready for JSON.
    """
    track = track_pictures(recording.pictures, progress)
    turns = measure_turns(recording, expected, track)
    latency = [row['response_latency_s'] for row in turns]
    result: dict[str, Any] = {
        'bag': bag_name(recording),
        'messages': recording.counts,
        'problems': list(recording.problems),
        'stream': measure_stream(recording),
        'face': measure_face(recording, track) if track else None,
        'turns': turns,
        'response_latency_s': metrics.percentiles(latency, (50, 95)),
        'stages_s': measure_stages(recording, turns),
        'states': states_table(recording),
        'nodes': measure_diagnostics(recording),
        'start': measure_start(recording),
        'system': measure_system(recording),
        'recorded': dict(sorted(recording.custom.items())),
    }
    return Analysis(recording, _round(result), track, {})
