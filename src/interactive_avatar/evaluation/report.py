# SPDX-License-Identifier: Apache-2.0
"""Reports: the same figures as JSON for machines and Markdown for people."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interactive_avatar import __version__

REPORTED_PACKAGES = ('numpy', 'onnxruntime', 'faster-whisper', 'piper-tts', 'rosbags',
                     'ros-rclpy', 'rclpy', 'mediapipe', 'torch')


def machine() -> dict[str, Any]:
    """What this was measured on: processor, cores, memory, versions."""
    from importlib import metadata

    name = platform.processor() or platform.machine()
    memory_gib = float('nan')
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
        memory_gib = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    except (OSError, ValueError):
        pass  # Not Linux: the plain name has to do.
    versions = {}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {'processor': name, 'cores': len(os.sched_getaffinity(0))
            if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
            'memory_gib': round(memory_gib, 1), 'system': platform.platform(),
            'python': platform.python_version(), 'interactive_avatar': __version__,
            'packages': versions, 'command': ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}


def write_json(path: Path, data: Any) -> None:
    """Write plain values as readable JSON.

    Raises:
        ValueError: on NaN or infinity, which JSON does not know.
    """
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + '\n',
                    encoding='utf-8')


def number(value: Any, unit: str = '', digits: int = 2) -> str:
    """A figure for people: ``1.23 s``, or a dash where nothing was measured."""
    if value is None:
        return '–'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    text = f'{value:.{digits}f}' if isinstance(value, float) else str(value)
    return f'{text} {unit}'.rstrip()


def percent(share: float | None) -> float | None:
    """A share as per cent; None stays None."""
    return None if share is None else 100.0 * share


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; pipes inside cells are escaped."""
    def line(cells: Sequence[str]) -> str:
        return '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in cells) + ' |'
    return '\n'.join([line(head), '|' + '---|' * len(head), *(line(row) for row in rows)])


def stream_rows(result: dict[str, Any]) -> list[list[str]]:
    """Rows about the stream: name and figure."""
    stream = result['stream']
    sound, pictures, offset = stream['audio'], stream['pictures'], stream['av_offset_ms']
    missed = stream['missed']
    rows = [
        ['stream', number(stream['seconds'], 's', 1)],
        ['pictures per second', number(stream['frames_per_second'])],
        ['chunks received / lost / late',
         f'{sound["received"]} / {sound["lost"]} / {sound["late"]}'],
        ["seconds without a missed chunk, by the generator's count",
         f'{number(percent(missed["clean_share"]), "%", 1)} ({missed["repeated"]} of '
         f'{missed["made"]} chunks repeated)'],
        ['seconds without a lost or late chunk, at the listener',
         f'{number(percent(sound["clean_share"]), "%", 1)} ({sound["clean_seconds"]} of '
         f'{sound["seconds"]})'],
        ['pictures lost', number(pictures['lost'])],
        ['sound against picture by stamp, mean / worst',
         f'{number(offset["mean"])} / {number(offset["worst"], "ms")}'],
        ['arrival after stamp, sound p50 / p99',
         f'{number(stream["arrival_after_stamp_ms"]["audio"]["p50"], "", 1)} / '
         f'{number(stream["arrival_after_stamp_ms"]["audio"]["p99"], "ms", 1)}'],
    ]
    seen = visible_ms(result)
    if seen:
        rows.append(['switch of the prompt to a visible change, p50 / worst',
                     f'{number(float(np.median(seen)), "", 0)} / {number(max(seen), "ms", 0)} '
                     f'({len(seen)} actions)'])
    generator = next((node['values'] for name, node in result['nodes'].items()
                      if name.endswith('generator')), None)
    if generator:
        rows.append(['chunk time p50 / p95 / p99 (generator)', ' / '.join(
            generator.get(f'chunk_{p}_ms', '–') for p in ('p50', 'p95', 'p99')) + ' ms'])
        rows.append(['real-time factor (generator)', generator.get('real_time_factor', '–')])
    return rows


def visible_ms(result: dict[str, Any]) -> list[float]:
    """Milliseconds from each switch to an action prompt until the picture changed."""
    times = [row.get('switch_to_visible_ms') for row in result['turns']]
    return [float(value) for value in times if value is not None and np.isfinite(value)]


def face_rows(face: dict[str, Any]) -> list[list[str]]:
    """Rows about the picture, by pixels."""
    return [
        ['picture', f'{face["size"][1]}×{face["size"][0]}, {face["frames"]} frames'],
        ['change in the mouth region, speaking / at rest (grey levels per frame)',
         f'{number(face["mouth_change_in_speech"])} / {number(face["mouth_change_at_rest"])}'],
        ['mouth region at rest relative to speech', number(face['mouth_rest_to_speech'])],
        ['seam ratio (1 is seamless)', number(face['seam_ratio'])],
        ['sharpness (variance of the Laplacian)', number(face['sharpness']['mean'], '', 1)],
        ['sharpness per minute', f'{number(face["sharpness"]["slope_per_minute"], "", 1)} ± '
         f'{number(face["sharpness"]["slope_standard_error"], "", 1)}'],
        ['colour drift in the last second', number(face['colour_drift_delta_e']['last_second'],
                                                   'ΔE')],
    ]


def _stage_parts(result: dict[str, Any]) -> list[str]:
    from interactive_avatar.evaluation.stages import STAGES

    stages = result.get('stages_s')
    if not stages or not stages['turns']:
        return []
    latency = result['response_latency_s']
    rows = [[name.replace('_', ' '), number(stages[name]['p50'], 's'),
             number(stages[name]['p95'], 's'), why] for name, why in STAGES.items()]
    rows.append(['all', number(latency['p50'], 's'), number(latency['p95'], 's'), ''])
    return ['## Where the time goes', '', table(['stage', 'p50', 'p95', 'from the stage before'],
                                                rows), '',
            f'Over {stages["turns"]} spoken turns that were answered aloud.', '']


def judge_rows(figures: dict[str, Any]) -> list[list[str]]:
    """Rows about what the judges saw."""
    return [[key.replace('in_domain', 'in-domain').replace('_', ' '), number(value, '', 3)]
            for key, value in figures.items()]


def system_rows(result: dict[str, Any]) -> list[list[str]]:
    """Rows about memory and processor of each node."""
    rows = []
    for name, node in result['system'].items():
        memory, processor = node.get('rss_mib'), node.get('cpu_percent')
        text = [f'{number(processor, "%", 0)} of a core'] if processor is not None else []
        if memory:
            text.append(f'{number(memory["first"], "", 0)} to {number(memory["last"], "MiB", 0)}')
        rows.append([f'processor and memory of {name.rsplit("/", 1)[-1]}', ', '.join(text)])
    return rows


def turn_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The dialogue as a table: head and rows."""
    head = ['said', 'heard', 'intent', 'action', 'answer', 'decision', 'response',
            'switch to visible']
    return head, [[row.get('said', '(unknown)'), row['heard'] or '–',
                   ', '.join(row['intents']) or '–', ', '.join(row['actions']) or '–',
                   row['speech'] or '–', number(row['decision_latency_s'], 's'),
                   number(row['response_latency_s'], 's'),
                   number(row['switch_to_visible_ms'], 'ms', 0)] for row in result['turns']]


def session_markdown(result: dict[str, Any], title: str) -> str:
    """The report of `session.measure` as Markdown.

    Args:
        result: what `measure` gave, with ``machine`` and, for the demo, ``checks`` added.
        title: heading.
    """
    parts = [f'# {title}', '']
    if result.get('checks'):
        parts += ['## Verdict', '', table(
            ['check', 'passed', 'why'],
            [[c['name'], '**yes**' if c['passed'] else '**NO**', c['why']]
             for c in result['checks']]), '']
    parts += ['## Dialogue', '', table(*turn_rows(result)), '',
        "Decision: from the end of the user's voice to the intent. Response: to the first sound "
        'of the answer. Switch to visible: from the change of the prompt to the first change of '
        'the picture above its calm (for actions).', '']
    parts += _stage_parts(result)
    parts += ['## Stream', '', table(
        ['figure', 'measured'], stream_rows(result) + system_rows(result)), '']
    if result['face']:
        parts += ['## Picture', '', table(['figure', 'measured'], face_rows(result['face'])),
                  '', 'Measured on pixels: the mouth region is a fixed window of the picture, so '
                  'turns of the head count as well. `avatar evaluate bag` also measures '
                  'lips and identity with independent face models, where they are '
                  'installed.', '']
    if result.get('judges'):
        parts += ['## Judges', '', table(['figure', 'measured'], judge_rows(result['judges'])),
                  '']
    warned = [[name, str(node['worst_level']), '; '.join(node['messages'])]
              for name, node in result['nodes'].items() if node['worst_level']]
    if warned:
        parts += ['## What the nodes complained of', '',
                  table(['node', 'worst level', 'messages'], warned), '']
    if result['problems']:
        parts += ['## Problems', '', *(f'- {problem}' for problem in result['problems']), '']
    if result.get('files'):
        parts += ['## Files', '', *(f'- `{name}`: {what}'
                                    for name, what in result['files'].items()), '']
    info = result.get('machine')
    if info:
        parts += ['## Machine', '',
                  f'{info["processor"]}, {info["cores"]} cores, {info["memory_gib"]} GiB; '
                  f'{info["system"]}; Python {info["python"]}; '
                  + ', '.join(f'{k} {v}' for k, v in info['packages'].items()) + '.', '',
                  f'Command: `{info["command"]}`', '']
    return '\n'.join(parts)
