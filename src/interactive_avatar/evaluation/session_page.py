# SPDX-License-Identifier: Apache-2.0
"""The report of a session as one HTML page: figures, the video with its time line, plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics, session
from interactive_avatar.evaluation.bag import NS_PER_S, Recording
from interactive_avatar.evaluation.html import Card, HtmlReport, Lane, Section, Span, Tone
from interactive_avatar.evaluation.plots import axes_of, new_figure, thin
from interactive_avatar.evaluation.report import (
    face_rows,
    judge_rows,
    number,
    percent,
    stream_rows,
    system_rows,
    turn_rows,
    visible_ms,
)
from interactive_avatar.evaluation.session import Analysis
from interactive_avatar.media.clock import CHUNK_MS, FRAME_NS, FRAMES_PER_CHUNK

Floats = NDArray[np.float64]
SPEECH_COLOUR, USER_COLOUR, QUIET_COLOUR, BAD_COLOUR = '#d9822b', '#3b7dd8', '#8b949e', '#c23b4b'
GOOD_COLOUR = '#2f9e5b'
JUST_NOTICEABLE_DELTA_E = 2.3
SAME_PERSON_DISTANCE = 0.5
# (title, how to read it, drawer); a drawer answers None where the session has nothing to draw.
Drawer = Callable[[Analysis], Any]


def _times(analysis: Analysis) -> Floats:
    assert analysis.track is not None
    stamps = analysis.track.stamps_ns
    return np.asarray((stamps - stamps[0]) / NS_PER_S)


def _shade_speech(axes: Any, analysis: Analysis) -> None:
    track = analysis.track
    assert track is not None
    speaking = session.speaking_mask(analysis.recording, track.stamps_ns)
    edges = np.flatnonzero(np.diff(np.r_[False, speaking, False].astype(int)))
    seconds = np.r_[_times(analysis), _times(analysis)[-1:]]
    for start, stop in edges.reshape(-1, 2):
        axes.axvspan(seconds[start], seconds[stop], color=SPEECH_COLOUR, alpha=0.13, linewidth=0)


def _voices(analysis: Analysis) -> Any:
    recording, track = analysis.recording, analysis.track
    if track is None or not (recording.audio or recording.user_audio):
        return None
    t0 = int(track.stamps_ns[0])
    delay = int(np.median([p.arrival_ns - p.stamp_ns for p in recording.pictures]))
    figure, (user, avatar) = axes_of(2, 1.5, sharex=True)
    for axes, sounds, shift, name, colour in (
            (user, recording.user_audio, -delay, 'user', USER_COLOUR),
            (avatar, recording.audio, 0, 'avatar', SPEECH_COLOUR)):
        stamps, levels = session.levels_dbfs(sounds)
        at, level = thin((stamps + shift - t0) / NS_PER_S, np.maximum(levels, -80.0))
        axes.fill_between(at, -80, level, color=colour, linewidth=0)
        axes.set(ylabel=f'{name} (dBFS)', ylim=(-72, 0))
    for event in recording.intents:
        at_s = (event.arrival_ns - delay - t0) / NS_PER_S
        user.axvline(at_s, color='black', linewidth=0.7)
        user.text(at_s, -3, f' {event.fields.get("intent", "")}', fontsize=8, va='top')
    avatar.set(xlabel='stream time (s)', xlim=(0, _times(analysis)[-1]))
    return figure


def _motion(analysis: Analysis) -> Any:
    if analysis.track is None:
        return None
    figure, (axes,) = axes_of(1, 2.6)
    seconds = _times(analysis)
    _shade_speech(axes, analysis)
    axes.plot(*thin(seconds, analysis.track.mouth_change), linewidth=0.8, label='mouth region')
    axes.plot(*thin(seconds, analysis.track.change), linewidth=0.8, label='whole picture')
    axes.set(xlabel='stream time (s)', ylabel='change per frame\n(grey levels)', ylim=(0, None))
    axes.legend(frameon=False, ncols=2, loc='upper right')
    return figure


def _mouth_split(analysis: Analysis) -> Any:
    track = analysis.track
    if track is None:
        return None
    speaking = session.speaking_mask(analysis.recording, track.stamps_ns)
    resting = session.resting_mask(analysis.recording, track.stamps_ns) & ~speaking
    if not speaking.any() or not resting.any():
        return None
    figure, (axes,) = axes_of(1, 2.6)
    top = max(float(np.percentile(track.mouth_change, 99.5)), 0.1)
    bins = np.linspace(0, top, 60).tolist()
    for mask, name, colour in ((resting, 'at rest', GOOD_COLOUR),
                               (speaking, 'in speech', SPEECH_COLOUR)):
        values = np.minimum(track.mouth_change[mask], top)
        axes.hist(values, bins=bins, weights=np.full(values.size, 100.0 / values.size),
                  alpha=0.6, color=colour, label=f'{name} ({values.size} frames)')
    axes.set(xlabel='change of the mouth region per frame (grey levels)', ylabel='% of frames')
    axes.legend(frameon=False)
    return figure


def _arrival(analysis: Analysis) -> Any:
    recording = analysis.recording
    if not recording.audio and not recording.pictures:
        return None
    figure, (axes,) = axes_of(1, 2.6)
    t0 = min(i.stamp_ns for items in (recording.audio, recording.pictures) for i in items)
    for items, name, colour in ((recording.pictures, 'pictures', USER_COLOUR),
                                (recording.audio, 'sound', SPEECH_COLOUR)):
        if items:
            axes.plot(*thin(np.array([(i.stamp_ns - t0) / NS_PER_S for i in items]),
                            np.array([(i.arrival_ns - i.stamp_ns) / 1e6 for i in items])),
                      linewidth=0.8, label=name, color=colour)
    axes.axhline(0, color='black', linewidth=0.6)
    axes.set(xlabel='stream time (s)', ylabel='arrival after stamp (ms)')
    axes.legend(frameon=False, ncols=2)
    return figure


def _spacing(analysis: Analysis) -> Any:
    audio = analysis.recording.audio
    if len(audio) < 3:
        return None
    figure, (axes,) = axes_of(1, 2.4)
    gaps = np.sort(np.diff([a.arrival_ns for a in audio]) / 1e6)
    axes.plot(*thin(gaps, 100.0 * np.arange(1, gaps.size + 1) / gaps.size), color=SPEECH_COLOUR)
    axes.axvline(CHUNK_MS, color='black', linewidth=0.7)
    axes.axvline(2 * CHUNK_MS, color=BAD_COLOUR, linewidth=0.8,
                 label='a player with one chunk of buffer runs dry')
    axes.set(xlabel='time between two chunks of sound at the listener (ms)', ylabel='% of chunks',
             xlim=(0, max(2.2 * CHUNK_MS, float(gaps[-1]))))
    axes.legend(frameon=False, loc='lower right')
    return figure


def _av_offset(analysis: Analysis) -> Any:
    recording = analysis.recording
    offsets = metrics.av_offsets_ms([p.stamp_ns for p in recording.pictures],
                                    [a.stamp_ns for a in recording.audio])
    if not offsets.size:
        return None
    figure, (axes,) = axes_of(1, 2.2)
    axes.axhspan(-20, 20, color=GOOD_COLOUR, alpha=0.13, linewidth=0, label='±20 ms')
    axes.plot(*thin(np.arange(offsets.size) * CHUNK_MS / 1000, offsets), color=USER_COLOUR)
    axes.set(xlabel='stream time (s)', ylabel='picture after sound\nby stamp (ms)',
             ylim=(min(-25.0, float(offsets.min())), max(25.0, float(offsets.max()))))
    axes.legend(frameon=False)
    return figure


def _chunk_times(analysis: Analysis) -> Any:
    figure, (axes,) = axes_of(1, 2.6)
    drawn = False
    for key, colour in (('chunk_p50_ms', GOOD_COLOUR), ('chunk_p95_ms', SPEECH_COLOUR),
                        ('chunk_p99_ms', BAD_COLOUR)):
        seconds, values = session.node_series(analysis.recording, 'generator', key)
        if values.size:
            axes.plot(seconds, values, color=colour, label=key.split('_')[1])
            drawn = True
    if not drawn:
        return None
    axes.axhline(CHUNK_MS, color='black', linewidth=0.8, label=f'{CHUNK_MS} ms: real time')
    axes.set(xlabel='session time (s)', ylabel='time per chunk over\nthe last minute (ms)',
             ylim=(0, None))
    axes.legend(frameon=False, ncols=4)
    return figure


def _missed(analysis: Analysis) -> Any:
    seconds, late = session.node_series(analysis.recording, 'generator', 'chunks_late')
    slot_s, slots = session.node_series(analysis.recording, 'generator', 'slots')
    if late.size < 2:
        return None
    figure, (axes,) = axes_of(1, 2.4)
    axes.step(seconds, late - late[0], where='post', color=BAD_COLOUR)
    made = slots[-1] - slots[0] if slots.size else 0
    axes.set(xlabel='session time (s)', ylabel='missed chunks so far',
             ylim=(0, max(1.0, 1.1 * float(late[-1] - late[0]))),
             title=f'{late[-1] - late[0]:.0f} of {made:.0f} chunks' if slot_s.size else '')
    return figure


def _dialogue(analysis: Analysis) -> Any:
    rows = [row for row in analysis.result['turns'] if row['response_latency_s'] is not None
            or row['decision_latency_s'] is not None]
    if not rows:
        return None
    figure, (axes,) = axes_of(1, max(1.6, 0.45 * len(rows) + 0.9))
    labels = []
    for place, row in enumerate(rows):
        decision, response = row['decision_latency_s'], row['response_latency_s']
        labels.append(str(row.get('said') or row['heard'] or '?')[:34])
        if decision is not None:
            axes.barh(place, decision, color=USER_COLOUR,
                      label='to the decision' if not place else None)
        if response is not None:
            axes.barh(place, response - (decision or 0.0), left=decision or 0.0,
                      color=SPEECH_COLOUR, label='to the first sound' if not place else None)
            axes.text(response, place, f' {response:.2f} s', va='center', fontsize=8)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="time after the user's last sound (s)")
    axes.margins(x=0.12)
    axes.legend(frameon=False, loc='lower right')
    return figure


def _sharpness(analysis: Analysis) -> Any:
    if analysis.track is None:
        return None
    figure, (axes,) = axes_of(1, 2.3)
    seconds = _times(analysis)
    _shade_speech(axes, analysis)
    axes.plot(*thin(seconds, analysis.track.sharpness), linewidth=0.8, color=USER_COLOUR)
    if seconds.size > 2 and seconds[-1] > 0:
        line = np.polyfit(seconds, analysis.track.sharpness, 1)
        axes.plot(seconds[[0, -1]], np.polyval(line, seconds[[0, -1]]), color='black',
                  linewidth=0.9, linestyle='--')
    axes.set(xlabel='stream time (s)', ylabel='sharpness\n(variance of Laplacian)', ylim=(0, None))
    return figure


def _colour(analysis: Analysis) -> Any:
    track = analysis.track
    if track is None:
        return None
    figure, (axes,) = axes_of(1, 2.3)
    start = track.lab[:session.FRAME_RATE_HZ].mean(axis=0)
    difference = track.lab - start
    seconds = _times(analysis)
    axes.plot(*thin(seconds, np.linalg.norm(difference, axis=1)), color='black', linewidth=1.0,
              label='ΔE')
    for index, (name, colour) in enumerate((('L*', QUIET_COLOUR), ('a*', BAD_COLOUR),
                                            ('b*', USER_COLOUR))):
        axes.plot(*thin(seconds, difference[:, index]), linewidth=0.7, color=colour, label=name)
    axes.axhline(JUST_NOTICEABLE_DELTA_E, color=SPEECH_COLOUR, linewidth=0.8, linestyle='--',
                 label='just noticeable')
    axes.set(xlabel='stream time (s)', ylabel='mean colour against\nthe first second (Lab)')
    axes.legend(frameon=False, ncols=5, fontsize=8)
    return figure


def _seams(analysis: Analysis) -> Any:
    track, recording = analysis.track, analysis.recording
    if track is None or not recording.audio:
        return None
    place = session.seam_places(recording, track)
    groups = [track.change[place == index] for index in range(FRAMES_PER_CHUNK)]
    if not all(group.size for group in groups):
        return None
    figure, (axes,) = axes_of(1, 2.3)
    means = [float(group.mean()) for group in groups]
    errors = [2 * float(group.std()) / np.sqrt(group.size) for group in groups]
    axes.bar(range(FRAMES_PER_CHUNK), means, yerr=errors, capsize=3,
             color=[BAD_COLOUR, *[QUIET_COLOUR] * (FRAMES_PER_CHUNK - 1)])
    axes.set_xticks(range(FRAMES_PER_CHUNK), ['first of a chunk\n(across the border)', 'second',
                                              'third', 'fourth'])
    axes.set(ylabel='change to the frame\nbefore (grey levels)')
    return figure


def _where(analysis: Analysis) -> Any:
    pictures = sorted(analysis.recording.pictures, key=lambda p: p.stamp_ns)
    if len(pictures) < 20:
        return None
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, 150).astype(int))]
    first = chosen[0].decode()
    frames = [f for f in (p.decode() for p in chosen) if f.shape == first.shape]
    # At a quarter of the size: where, not what.
    grey = np.stack([metrics.luma(frame)[::2, ::2] for frame in frames])
    figure, axes = new_figure(1, 3, row_inches=3.0)
    mean = np.mean([f[::2, ::2].astype(np.float32) for f in frames], axis=0)
    for place, (image, title, options) in enumerate((
            (first[::2, ::2], 'first picture', {}),
            (mean.astype(np.uint8), f'mean of {len(frames)}', {}),
            (grey.std(axis=0), 'how much each point changes (grey levels)',
             {'cmap': 'inferno', 'vmin': 0}))):
        drawn = axes[0][place].imshow(image, **options)
        axes[0][place].set_title(title, fontsize=9)
        axes[0][place].axis('off')
    figure.colorbar(drawn, ax=axes[0][2], shrink=0.8)
    return figure


def _resources(analysis: Analysis) -> Any:
    names = list(analysis.result['system'])
    if not names:
        return None
    figure, (memory, processor) = axes_of(2, 1.8, sharex=True)
    for name in names:
        short = name.rsplit('/', 1)[-1]
        for axes, key in ((memory, 'rss_mib'), (processor, 'cpu_percent')):
            seconds, values = session.node_series(analysis.recording, name, key)
            axes.plot(*thin(seconds, values), linewidth=0.9, label=short)
    memory.set(ylabel='memory (MiB)', ylim=(0, None))
    memory.legend(frameon=False, ncols=len(names), fontsize=8)
    processor.set(ylabel='% of one core', xlabel='session time (s)', ylim=(0, None))
    return figure


def _identity(analysis: Analysis) -> Any:
    if 'identity_distance' not in analysis.series:
        return None
    figure, (axes,) = axes_of(1, 2.3)
    axes.plot(analysis.series['identity_s'], analysis.series['identity_distance'], marker='.',
              color=USER_COLOUR)
    axes.axhline(SAME_PERSON_DISTANCE, color=BAD_COLOUR, linewidth=0.8, linestyle='--',
                 label='another person')
    axes.set(xlabel='stream time (s)', ylabel='distance to the\nfirst seconds', ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def _lips(analysis: Analysis) -> Any:
    if 'lip_gap' not in analysis.series or analysis.track is None:
        return None
    from interactive_avatar.evaluation.session_judges import loudness_at

    figure, (gap_axes, loud_axes) = axes_of(2, 1.6, sharex=True)
    seconds, gap = _times(analysis), analysis.series['lip_gap']
    loud = loudness_at(analysis.recording, analysis.track.stamps_ns)
    for axes in (gap_axes, loud_axes):
        _shade_speech(axes, analysis)
    gap_axes.plot(*thin(seconds, gap), linewidth=0.8, color=BAD_COLOUR)
    loud_axes.plot(*thin(seconds, np.maximum(loud, -80.0)), linewidth=0.8, color=SPEECH_COLOUR)
    gap_axes.set(ylabel='lip gap\n(of eye distance)', ylim=(0, None))
    loud_axes.set(ylabel='sound (dBFS)', xlabel='stream time (s)', ylim=(-72, 0))
    return figure


def _lag(analysis: Analysis) -> Any:
    if 'lip_gap' not in analysis.series or analysis.track is None:
        return None
    from interactive_avatar.evaluation.session_judges import loudness_at

    stamps = analysis.track.stamps_ns
    speaking = session.speaking_mask(analysis.recording, stamps)
    gap = np.where(speaking, analysis.series['lip_gap'], np.nan)
    loud = loudness_at(analysis.recording, stamps)
    lags = np.arange(-15, 16)
    if gap.size <= 2 * lags.max():
        return None
    values = [metrics.correlation(gap[max(0, k):gap.size + min(0, k)],
                                  loud[max(0, -k):loud.size - max(0, k)]) for k in lags]
    if not np.isfinite(values).any():
        return None
    figure, (axes,) = axes_of(1, 2.3)
    axes.plot(lags * FRAME_NS / 1e6, values, marker='.', color=USER_COLOUR)
    axes.axvline(0, color='black', linewidth=0.6)
    axes.set(xlabel='picture later than sound by (ms)',
             ylabel='correlation of lip gap\nwith loudness')
    return figure


def _sync(analysis: Analysis) -> Any:
    if 'sync_distance' not in analysis.series:
        return None
    offsets, distance = analysis.series['sync_offset_ms'], analysis.series['sync_distance']
    figure, (axes,) = axes_of(1, 2.3)
    axes.plot(offsets, distance, marker='.', color=USER_COLOUR)
    axes.axhline(float(np.median(distance)), color=QUIET_COLOUR, linewidth=0.8, linestyle='--',
                 label='median')
    best = int(np.argmin(distance))
    axes.plot(offsets[best], distance[best], 'o', color=BAD_COLOUR, label='best')
    axes.set(xlabel='picture later than sound by (ms)', ylabel='distance of sound\nand lips')
    axes.legend(frameon=False)
    return figure


PLOTS: tuple[tuple[str, str, str, Drawer], ...] = (
    ('Dialogue', 'Voices and decisions', "Level of the user's and the avatar's voice; a line "
     'where the avatar decided, with the intent.', _voices),
    ('Dialogue', 'Latency of each answer', 'From the last sound of the user to the intent, and '
     'on to the first sound of the answer.', _dialogue),
    ('Stream', 'Time per chunk', "The generator's own clock; above the black line it falls "
     'behind.', _chunk_times),
    ('Stream', 'Missed chunks', 'Chunks for which the last frame was held, because none was '
     'ready; flat is good.', _missed),
    ('Stream', 'Arrival after stamp', 'Sound is sent ahead of its time (below 0), pictures at '
     'their time; a rise is delay that grows.', _arrival),
    ('Stream', 'Regularity', 'Share of chunks that came within a time of the one before; a step '
     'at 160 ms is perfect.', _spacing),
    ('Stream', 'Sound against picture', 'Difference of the stamps; inside the band nobody '
     'notices.', _av_offset),
    ('Stream', 'Memory and processor', 'Of each node, as it reports itself.', _resources),
    ('Face', 'Motion', 'Change from frame to frame; speech is shaded. The mouth should move in '
     'speech and rest else.', _motion),
    ('Face', 'Mouth in speech and at rest', 'Two separate heaps are good; at rest the heap lies '
     'at 0.', _mouth_split),
    ('Face', 'Lips and loudness', 'Lip gap by the face mesh, an independent judge, above the '
     'sound that was heard with it.', _lips),
    ('Face', 'Lag of the lips', 'Correlation of lip gap and loudness in speech for shifts of the '
     'picture; a peak left of 0 means that lips lead.', _lag),
    ('Face', 'In-domain sync', "Distance between sound and lips by this project's own scorer "
     '(not SyncNet); a deep dip at 0 is sync.', _sync),
    ('Face', 'Seams', 'Change at each place of a chunk; a first bar above the others is a '
     'flicker at every border.', _seams),
    ('Drift', 'Sharpness', 'A falling line is a picture that blurs over time.', _sharpness),
    ('Drift', 'Colour', 'Mean colour against the first second; above the dashed line it can be '
     'seen.', _colour),
    ('Drift', 'Identity', 'Distance of the face to that of the first seconds, by dlib, once a '
     'second.', _identity),
    ('Drift', 'Where the picture changes', 'Background that lights up is drift; the face should '
     'be what moves.', _where),
)


def timeline_lanes(recording: Recording) -> tuple[list[Lane], float]:
    """Lanes for the video: state, speech of both, intents, missed chunks; and its length.

    Returns:
        (lanes on the video's own time, length in seconds).
    """
    pictures = recording.pictures
    t0 = min(p.stamp_ns for p in pictures)
    end_s = (max(p.stamp_ns for p in pictures) - t0 + FRAME_NS) / NS_PER_S
    delay = int(np.median([p.arrival_ns - p.stamp_ns for p in pictures]))
    tones = {'IDLE': 'f', 'LISTENING': 'a', 'THINKING': 'e', 'SPEAKING': 'b', 'GESTURING': 'c'}
    states = session.states_table(recording)
    shift = (min([t0, *[s.stamp_ns for s in recording.audio[:1]]]) - t0) / NS_PER_S
    spans = [Span(state['t_s'] + shift, (after['t_s'] + shift) if after else end_s,
                  state['activity'].lower(), tones.get(state['activity'], 'f'))
             for state, after in zip(states, [*states[1:], None])]
    lanes = [Lane('state', spans)]
    user = [Span((u.start_ns - delay - t0) / NS_PER_S, (u.end_ns - delay - t0) / NS_PER_S,
                 '', 'a') for u in session.utterances(recording.user_audio)]
    avatar = [Span((u.start_ns - t0) / NS_PER_S, (u.end_ns - t0) / NS_PER_S, '', 'b')
              for u in session.utterances(recording.audio)]
    lanes += [Lane('user', user), Lane('avatar', avatar)]
    lanes.append(Lane('intent', [Span((e.arrival_ns - delay - t0) / NS_PER_S,
                                      (e.arrival_ns - delay - t0) / NS_PER_S,
                                      e.fields.get('intent', ''), 'e')
                                 for e in recording.intents]))
    seconds, late = session.node_series(recording, 'generator', 'chunks_late')
    start = (session.start_ns(recording) - delay - t0) / NS_PER_S
    lanes.append(Lane('missed', [
        Span(float(before_s) + start, float(at_s) + start, f'{after - before:.0f} missed', 'd')
        for before_s, at_s, before, after in zip(seconds, seconds[1:], late, late[1:])
        if after > before]))
    return lanes, end_s


def _cards(result: dict[str, Any]) -> list[Card]:
    stream, face = result['stream'], result['face']
    turns = [row for row in result['turns'] if 'said' in row]
    missed, offset = stream['missed'], stream['av_offset_ms']

    def tone(good: bool | None) -> Tone:
        return 'plain' if good is None else 'good' if good else 'bad'

    cards = [Card('stream', number(stream['seconds'], 's', 1),
                  f'{number(stream["frames_per_second"])} pictures per second')]
    if turns:
        right = sum(bool(row['understood']) for row in turns)
        cards.append(Card('sentences understood', f'{right} of {len(turns)}', '',
                          tone(right >= 0.8 * len(turns))))
    latency = result['response_latency_s']
    cards.append(Card('answer after the last sound', number(latency['p50'], 's'),
                      f'median; p95 {number(latency["p95"], "s")}',
                      tone(None if latency['p50'] is None else latency['p50'] <= 1.0)))
    seen = visible_ms(result)
    if seen:
        cards.append(Card('switch to visible', number(float(np.median(seen)), 'ms', 0),
                          f'median of {len(seen)} actions; worst {number(max(seen), "ms", 0)}'))
    if missed['made']:
        share = missed['repeated'] / missed['made']
        cards.append(Card('missed chunks', f'{missed["repeated"]} of {missed["made"]}',
                          f'{number(percent(missed["clean_share"]), "%", 1)} of seconds clean',
                          tone(share < 0.01)))
    cards.append(Card('sound against picture', number(offset['worst'], 'ms'), 'worst, by stamp',
                      tone(None if offset['worst'] is None else offset['worst'] <= 20)))
    if face:
        ratio = face['mouth_rest_to_speech']
        cards.append(Card('mouth at rest', number(percent(ratio), '%', 0),
                          'of its motion in speech', tone(None if ratio is None
                                                          else ratio < 0.5)))
        drift = face['colour_drift_delta_e']['last_second']
        cards.append(Card('colour drift', number(drift, 'ΔE'), 'last second against first',
                          tone(None if drift is None else drift < JUST_NOTICEABLE_DELTA_E)))
        seam = face['seam_ratio']
        cards.append(Card('seam ratio', number(seam), '1 is seamless',
                          tone(None if seam is None else seam <= 1.1)))
    first = result['start']['first_chunk_s']
    if first is not None:
        cards.append(Card('first picture', number(first, 's'),
                          "after the generator's process was started"))
    return cards


def _tables(section: Section, result: dict[str, Any], part: str) -> None:
    if part == 'Dialogue' and result['turns']:
        section.table(*turn_rows(result), tones=[
            'plain' if 'understood' not in row else 'good' if row['understood'] else 'bad'
            for row in result['turns']])
    elif part == 'Stream':
        section.table(['figure', 'measured'], stream_rows(result) + system_rows(result))
    elif part == 'Face' and result['face']:
        section.table(['figure', 'measured'], face_rows(result['face']))
        if result.get('judges'):
            section.table(['by independent judges', 'measured'], judge_rows(result['judges']))
        elif result.get('judges_missing'):
            section.text(f'The independent judges were not asked: {result["judges_missing"]}')


def build_page(analysis: Analysis, title: str, commands: Sequence[str],
               video: Path | None = None, sheet: Path | None = None,
               compared: Callable[[HtmlReport], None] | None = None) -> HtmlReport:
    """Lay a session out as a page.

    Args:
        analysis: the measured session; its result has ``machine``, and may have ``checks`` and
            ``judges``.
        title: heading.
        commands: what to type to do it again.
        video: MP4 of the conversation.
        sheet: PNG of its moments.
        compared: adds a section, after the headline, that compares with another session.

    Raises:
        plots.PlotsMissing: without matplotlib.
    """
    recording, result = analysis.recording, analysis.result
    report = HtmlReport(title, f'bag {result["bag"]}, topics under {recording.namespace}, '
                               f'{number(result["stream"]["seconds"], "s", 1)} of stream')
    head = report.section('Summary')
    head.cards(_cards(result))
    if result.get('checks'):
        head.table(['check', 'passed', 'why'],
                   [[c['name'], number(c['passed']), c['why']] for c in result['checks']],
                   tones=['good' if c['passed'] else 'bad' for c in result['checks']])
    if result['problems']:
        head.text('**What was missing or wrong with the recording:**')
        head.bullets(result['problems'])
    if compared is not None:
        compared(report)
    if video is not None and video.is_file():
        lanes, seconds = timeline_lanes(recording)
        report.section('Video').video(
            video, 'The conversation with both voices. Click into the lanes to go there.', lanes,
            seconds)
    if sheet is not None and sheet.is_file():
        report.section('Moments').picture(sheet, 'pictures of the moments of the session',
                                          'Rest, listening, and each action soon after it began.')
    for part in dict.fromkeys(entry[0] for entry in PLOTS):
        section = report.section(part)
        _tables(section, result, part)
        for _, name, caption, draw in (entry for entry in PLOTS if entry[0] == part):
            figure = draw(analysis)
            if figure is not None:
                section.plot(figure, name, caption)
    warned = [[name, str(node['worst_level']), '; '.join(node['messages'])]
              for name, node in result['nodes'].items() if node['worst_level']]
    if warned:
        report.section('Complaints of the nodes').table(
            ['node', 'worst level', 'messages'], warned)
    states = '\n'.join(f'{row["t_s"]:8.2f} s  {row["phase"]:6}  {row["activity"]:10}  '
                       f'{row["prompt"]}' for row in result['states'])
    if states:
        report.section('States').details('every state and its prompt', states)
    report.provenance(result['machine'], commands, result.get('recorded'))
    report.data('report', result)
    return report
