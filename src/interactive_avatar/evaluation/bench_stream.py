# SPDX-License-Identifier: Apache-2.0
"""``avatar bench stream``: the real graph in conversation for hours; what grows, what drifts.

A line a minute; Ctrl-C ends it early with a report of what there is. Every minute is also written
to ``minutes.jsonl`` as it ends, so that even a machine that loses power leaves its figures.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.html import Card, HtmlReport
from interactive_avatar.evaluation.plots import axes_of
from interactive_avatar.evaluation.process import run_process
from interactive_avatar.evaluation.report import machine, number
from interactive_avatar.graph import NODES, start_graph
from interactive_avatar.media.picture import contact_sheet, decode_image

NAMESPACE = 'avatar_stream'
UTTERANCES = Path(__file__).parent / 'utterances'
OFFSET_AIM_MS = 20.0
MEMORY_AIM_SHARE = 0.02
# The caches of every node have filled once by then; what grows after it grows for ever.
WARM_UP_MINUTES = 2
SHEET_PICTURES = 24
# Two minutes say nothing of a slope.
MIN_MINUTES_FOR_GROWTH = WARM_UP_MINUTES + 2


class StreamBenchError(RuntimeError):
    """The bench could not run; the message says why and what to do."""


@dataclass(frozen=True)
class StreamOptions:
    """What to run.

    Attributes:
        hours: of conversation.
        out: folder for the results.
        config: parameter file.
        overrides: parameters that go before it.
        seed: of the conversation.
        ready_timeout_s: patience with the start.
    """

    hours: float
    out: Path
    config: str = 'config/avatar.yaml'
    overrides: tuple[tuple[str, object], ...] = ()
    seed: int = 0
    ready_timeout_s: float = 180.0


def describe_minute(minute: dict[str, Any]) -> str:
    """One line about a minute."""
    memory = sum(node.get('rss_mib', 0.0) for node in minute['nodes'].values())
    files = sum(node.get('open_files', 0.0) for node in minute['nodes'].values())
    processor = sum(node.get('cpu_percent', 0.0) for node in minute['nodes'].values())
    return (f'min {minute["minute"]:4d}  chunks {minute["chunks"]:4d}  '
            f'missed {number(minute["missed"])}  lost {minute["lost"]}  A/V '
            f'{number(minute["av_offset_worst_ms"], "ms", 1)}  sound '
            f'{number(minute["sound_after_stamp_ms"], "ms", 0)}  turns '
            f'{minute["answered"]}/{minute["said"]}  {memory:.0f} MiB  {files:.0f} files  '
            f'{processor:.0f} % cpu')


def growth(minutes: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """How a figure of each node goes with time.

    Args:
        minutes: as the client reported them.
        key: ``rss_mib`` or ``open_files``.

    Returns:
        By node: ``first`` (mean of the minutes after warming up, a tenth of the run or one),
        ``last``, ``share`` of growth between them, ``per_hour`` and its ``standard_error``.
    """
    found: dict[str, dict[str, float]] = {}
    names = sorted({name for minute in minutes for name in minute['nodes']})
    for name in names:
        rows = [(minute['minute'], minute['nodes'][name][key]) for minute in minutes
                if minute['minute'] > WARM_UP_MINUTES and key in minute['nodes'].get(name, {})]
        if len(rows) < 2:
            continue
        at, values = np.array(rows, np.float64).T
        part = max(1, values.size // 10)
        slope = metrics.slope_per_minute(60.0 * at, values)
        first, last = float(values[:part].mean()), float(values[-part:].mean())
        found[name] = {'first': first, 'last': last,
                       'share': last / first - 1.0 if first else float('nan'),
                       'per_hour': 60.0 * slope.per_minute,
                       'standard_error': 60.0 * slope.standard_error}
    return found


def _looks(pictures: list[NDArray[np.uint8]], judged: bool) -> dict[str, Any]:
    """Colour, sharpness and identity of a picture a minute."""
    if not pictures:
        return {}
    frames = np.stack(pictures)
    times = 60.0 * np.arange(1, len(frames) + 1)
    looks: dict[str, Any] = {'colour_delta_e': metrics.colour_drift(frames, frames[0]),
                             'sharpness': metrics.sharpness(frames)}
    if judged:
        from interactive_avatar.evaluation import judges

        try:
            embeddings = judges.IdentityJudge().embed_all(frames)
            known = embeddings[np.isfinite(embeddings[:, 0])]
            if len(known):
                looks['identity_distance'] = metrics.identity_distance(embeddings, known[0])
        except judges.JudgeMissing as error:
            looks['identity_missing'] = str(error)
    for name in ('colour_delta_e', 'sharpness', 'identity_distance'):
        if name in looks:
            slope = metrics.slope_per_minute(times, looks[name])
            looks[f'{name}_per_hour'] = [60.0 * slope.per_minute, 60.0 * slope.standard_error]
    return looks


def summarise(minutes: list[dict[str, Any]], pictures: list[NDArray[np.uint8]],
              judged: bool = True) -> dict[str, Any]:
    """Figures of a run.

    Args:
        minutes: as the client reported them.
        pictures: one of each minute, uint8 [H, W, 3].
        judged: ask dlib whether it is still the same person.
    """
    offsets = [m['av_offset_worst_ms'] for m in minutes if m['av_offset_worst_ms'] is not None]
    late = [m['sound_after_stamp_ms'] for m in minutes if m['sound_after_stamp_ms'] is not None]
    made = sum(m['made'] or 0 for m in minutes)
    worst = max(offsets, default=float('nan'))
    memory = growth(minutes, 'rss_mib')
    total = [sum(memory[name][key] for name in memory) for key in ('first', 'last')]
    long_enough = len(minutes) >= MIN_MINUTES_FOR_GROWTH
    share = total[1] / total[0] - 1.0 if long_enough and total[0] else float('nan')
    return {
        'minutes': len(minutes), 'hours': minutes[-1]['seconds'] / 3600.0 if minutes else 0.0,
        'chunks': sum(m['chunks'] for m in minutes), 'made': made,
        'missed': sum(m['missed'] or 0 for m in minutes),
        'lost': sum(m['lost'] for m in minutes),
        'said': sum(m['said'] for m in minutes), 'answered': sum(m['answered'] for m in minutes),
        'av_offset_worst_ms': worst, 'av_offset_within_aim': bool(worst <= OFFSET_AIM_MS),
        # Sound that comes ever later is a delay that builds up.
        'sound_after_stamp_ms': {'first': late[0], 'last': late[-1]} if late else None,
        'memory_growth_share': share,
        'memory_within_aim': bool(abs(share) <= MEMORY_AIM_SHARE) if long_enough else None,
        'memory_mib': memory, 'open_files': growth(minutes, 'open_files'),
        'looks': _looks(pictures, judged)}


def _page(result: dict[str, Any], minutes: list[dict[str, Any]],
          pictures: list[NDArray[np.uint8]], command: str) -> HtmlReport:
    report = HtmlReport('Hours of stream', f'{result["hours"]:.2f} hours of conversation with '
                                           f'the running graph')
    head = report.section('Summary')
    missed = f'{result["missed"]} of {result["made"]}'
    share = result['memory_growth_share']
    head.cards([
        Card('stream', f'{result["hours"]:.2f} h', f'{result["chunks"]} chunks'),
        Card('sound against picture', number(result['av_offset_worst_ms'], 'ms'),
             f'worst, by stamp; aim ±{OFFSET_AIM_MS:.0f} ms',
             'good' if result['av_offset_within_aim'] else 'bad'),
        Card('memory', '–' if not np.isfinite(share) else f'{100 * share:+.2f} %',
             f'all nodes, first to last tenth; aim ±{100 * MEMORY_AIM_SHARE:.0f} %',
             'plain' if result['memory_within_aim'] is None else
             'good' if result['memory_within_aim'] else 'bad'),
        Card('missed chunks', missed, 'by the generator'),
        Card('sentences answered', f'{result["answered"]} of {result["said"]}')])
    at = np.array([m['minute'] for m in minutes])
    stream = report.section('Stream')
    figure, (offset, late, chunk) = axes_of(3, 1.6, sharex=True)
    offset.axhspan(-OFFSET_AIM_MS, OFFSET_AIM_MS, color='#2f9e5b', alpha=0.13, linewidth=0)
    for axes, key, label in ((offset, 'av_offset_worst_ms', 'sound against\npicture (ms)'),
                             (late, 'sound_after_stamp_ms', 'sound after\nstamp (ms)'),
                             (chunk, 'missed', 'missed chunks\na minute')):
        axes.plot(at, [np.nan if m[key] is None else m[key] for m in minutes], marker='.',
                  markersize=3)
        axes.set(ylabel=label)
    chunk.set(xlabel='minute')
    stream.plot(figure, 'Timing', 'Flat lines are a stream that does not drift.')
    figure, rows = axes_of(3, 1.6, sharex=True)
    for axes, key, label in zip(rows, ('rss_mib', 'open_files', 'cpu_percent'),
                                ('memory (MiB)', 'open files', '% of one core')):
        for name in sorted({name for m in minutes for name in m['nodes']}):
            axes.plot(at, [m['nodes'].get(name, {}).get(key, np.nan) for m in minutes],
                      label=name)
        axes.set(ylabel=label, ylim=(0, None))
    rows[0].legend(frameon=False, ncols=4, fontsize=8)
    rows[-1].set(xlabel='minute')
    stream.plot(figure, 'Resources', 'Of each node, as it reports itself.')
    if pictures:
        look = report.section('Picture')
        names = [n for n in ('colour_delta_e', 'sharpness', 'identity_distance')
                 if n in result['looks']]
        figure, rows = axes_of(len(names), 1.6, sharex=True)
        for axes, name in zip(rows, names):
            axes.plot(np.arange(1, len(pictures) + 1), result['looks'][name], marker='.',
                      markersize=3)
            axes.set(ylabel=name.replace('_', ' '), ylim=(0, None))
        rows[-1].set(xlabel='minute')
        look.plot(figure, 'Drift', 'One picture a minute against the first: colour (2.3 can just '
                  'be seen), sharpness, identity (another person above 0.5).')
        chosen = np.unique(np.linspace(0, len(pictures) - 1, SHEET_PICTURES).astype(int))
        look.picture(contact_sheet([pictures[i] for i in chosen],
                                   [f'minute {i + 1}' for i in chosen], columns=6),
                     'one picture of each of several minutes')
    report.provenance(machine(), [command])
    return report


def run(options: StreamOptions) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the graph in conversation.

    Returns:
        (figures, minutes). Ctrl-C ends the run early, and what there is is measured.

    Raises:
        StreamBenchError: if the avatar did not come alive.
        GraphError: if a node failed.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    pictures_folder = options.out / 'minutes'
    nodes = tuple(name for name in NODES if name != 'web')
    minutes: list[dict[str, Any]] = []
    restarts: list[str] = []

    def tell(text: str) -> None:
        restarts.append(text)
        print(text, file=sys.stderr, flush=True)

    with start_graph(options.config, nodes=nodes, namespace=NAMESPACE,
                     overrides=dict(options.overrides), log_folder=options.out / 'logs',
                     tell=tell) as graph, \
            open(options.out / 'minutes.jsonl', 'w', encoding='utf-8') as record:
        graph.wait_until_active(options.ready_timeout_s)
        command = [sys.executable, '-m', 'interactive_avatar.nodes.stream_client',
                   '--namespace', NAMESPACE, '--utterances', str(UTTERANCES),
                   '--pictures', str(pictures_folder), '--seed', str(options.seed),
                   '--seconds', str(3600.0 * options.hours),
                   '--ready-timeout', str(options.ready_timeout_s)]

        def take(line: str) -> None:
            event = json.loads(line)
            if event['event'] == 'minute':
                minutes.append(event)
                record.write(json.dumps(event) + '\n')
                record.flush()
                print(describe_minute(event), flush=True)

        try:
            run_process(command, graph.environment, options.out / 'logs' / 'stream_client.log',
                       take)
        except KeyboardInterrupt:
            print('interrupted; the report holds what there is', file=sys.stderr)
    if not minutes:
        raise StreamBenchError(f'not one minute was measured; logs are in '
                               f'{options.out / "logs"}: is the machine too slow, or was it '
                               f'interrupted in the first minute?')
    shown = []
    for minute in minutes:
        path = pictures_folder / f'{minute["minute"]:05d}.jpg'
        if path.is_file() and path.stat().st_size:
            shown.append(decode_image(path.read_bytes()))
    result = {'benchmark': 'stream', **summarise(minutes, shown), 'node_ends': restarts}
    command_line = f'avatar bench stream --hours {options.hours:g} --seed {options.seed}'
    _page(result, minutes, shown, command_line).write(options.out / 'stream.html')
    print(options.out / 'stream.html')
    return result, minutes
