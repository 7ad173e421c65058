# SPDX-License-Identifier: Apache-2.0
"""Plots of benchmarks and sessions, with matplotlib where it is installed."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import CHUNK_MS

if TYPE_CHECKING:
    from interactive_avatar.evaluation.bag import Recording

COMMAND = 'pip install "matplotlib>=3.10"'
SIZE_INCHES = (9.0, 4.5)
DPI = 130


class PlotsMissing(RuntimeError):
    """Matplotlib is not installed; the message has the command."""


def canvas(size_inches: tuple[float, float], dpi: int = DPI) -> Any:
    """An empty figure of a size (width, height), laid out so that nothing overlaps.

    Raises:
        PlotsMissing: without matplotlib.
    """
    try:
        figure_module = importlib.import_module('matplotlib.figure')
        backend = importlib.import_module('matplotlib.backends.backend_agg')
    except ImportError as error:
        raise PlotsMissing(f'{error}: {COMMAND}') from error
    # No pyplot: no global state and no display, so any thread of any program may draw.
    figure = figure_module.Figure(figsize=size_inches, dpi=dpi, layout='constrained')
    backend.FigureCanvasAgg(figure)
    return figure


def new_figure(rows: int = 1, columns: int = 1, row_inches: float = SIZE_INCHES[1],
               sharex: bool = False) -> tuple[Any, Any]:
    """A figure and its axes [rows][columns].

    Raises:
        PlotsMissing: without matplotlib.
    """
    figure = canvas((SIZE_INCHES[0], row_inches * rows))
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex)


def axes_of(rows: int, row_inches: float, sharex: bool = False) -> tuple[Any, Any]:
    """A figure of one column and its axes, with a light frame."""
    figure, axes = new_figure(rows, 1, row_inches, sharex)
    for row in axes[:, 0]:
        row.spines[['top', 'right']].set_visible(False)
    return figure, axes[:, 0]


def thin(x: NDArray[Any], y: NDArray[Any], points: int = 1600
         ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A series with fewer points but all its peaks: the least and greatest of each stretch.

    Args:
        x: [n], in order.
        y: [n].
        points: about how many to keep; series that are shorter stay as they are.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.size <= points:
        return x, y
    edges = np.linspace(0, x.size, points // 2 + 1).astype(int)
    keep: list[int] = []
    for start, stop in itertools.pairwise(edges.tolist()):
        part = y[start:stop]
        if np.isfinite(part).any():
            keep += sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))})
        else:
            keep.append(start)
    return x[keep], y[keep]


def _generator(result: dict[str, Any], data: dict[str, Any]) -> Any:
    figure, axes = new_figure(1, 2)
    time_axis, stage_axis = axes[0]
    step = np.asarray(data['step_ms'])
    time_axis.plot(np.arange(step.size) * CHUNK_MS / 1000, step, linewidth=0.6)
    time_axis.axhline(CHUNK_MS, color='crimson', linewidth=0.8, label=f'{CHUNK_MS} ms: too late')
    time_axis.set(xlabel='stream time (s)', ylabel='one chunk to the next (ms)',
                  title=f'real-time factor {result["real_time_factor"]:.2f}', ylim=(0, None))
    time_axis.legend(frameon=False)
    names = list(data['stages_ms'])
    if names:
        stage_axis.boxplot([data['stages_ms'][name] for name in names], whis=(1, 99),
                           orientation='horizontal', showfliers=False)
        stage_axis.set_yticks(range(1, len(names) + 1), names)
    stage_axis.set(xlabel='ms (box: quartiles, whiskers: 1 to 99 %)', title='stages')
    return figure


def _memory(result: dict[str, Any], data: dict[str, Any]) -> Any:
    figure, axes = new_figure(2, 1)
    memory = np.asarray(data['rss_mib'])
    minutes = np.arange(memory.size) * CHUNK_MS / 60_000
    axes[0][0].plot(minutes, memory, linewidth=0.8)
    axes[0][0].set(xlabel='stream time (min)', ylabel='resident memory (MiB)', ylim=(0, None),
                   title=f'{100 * result["growth_share"]:+.2f} % from minute 1 to the last')
    axes[1][0].plot(minutes, data['step_ms'], linewidth=0.4)
    axes[1][0].set(xlabel='stream time (min)', ylabel='time per chunk (ms)', ylim=(0, None))
    return figure


def _image_topic(result: dict[str, Any], data: dict[str, Any]) -> Any:
    figure, axes = new_figure()
    for name, values in data.items():
        ordered = np.sort(values)
        axes[0][0].plot(ordered, np.arange(1, ordered.size + 1) / ordered.size, label=name)
    axes[0][0].set(xlabel='publish to callback (ms)', ylabel='share of pictures', xscale='log',
                   title=f'{result["size"]}×{result["size"]} rgb8 between two processes')
    axes[0][0].legend(frameon=False)
    return figure


def _agreement(result: dict[str, Any], data: dict[str, Any]) -> Any:
    figure, axes = new_figure()
    for name, values in data.items():
        seconds = np.arange(len(values)) * CHUNK_MS / 1000
        axes[0][0].plot(seconds, np.maximum(values, 1e-4), linewidth=0.7, label=name)
    axes[0][0].set(xlabel='stream time (s)', yscale='log',
                   ylabel=f'difference from {result["reference"]} (grey levels)',
                   title='the same stream, other backends')
    axes[0][0].legend(frameon=False)
    return figure


def _lips(result: dict[str, Any], data: dict[str, Any]) -> Any:
    shown = data['tracks'][:3]
    figure, axes = new_figure(max(1, len(shown)), 1)
    for row, track in zip(axes[:, 0], shown, strict=False):
        seconds = np.arange(len(track['true'])) / 25
        for name, values in track.items():
            series = np.asarray(values, float)
            spread = np.nanstd(series) if np.isfinite(series).any() else 0.0
            if spread > 0:
                row.plot(seconds, (series - np.nanmean(series)) / spread, linewidth=0.8,
                         label=name)
        row.set(xlabel='stream time (s)', ylabel='mouth opening (z-score)')
        row.legend(frameon=False, ncols=4, loc='upper right')
    axes[0][0].set_title(f'generated against true: correlation '
                         f'{result["generated"]["correlation"]:.2f}, lag '
                         f'{result["generated"]["lag_ms"]:.0f} ms')
    return figure


def _training(result: dict[str, Any], data: dict[str, Any]) -> Any:
    stages = list(dict.fromkeys(run['stage'] for run in data['runs']))
    figure, axes = new_figure(len(stages), 3, row_inches=3.0)
    for row, stage in zip(axes, stages):
        runs = [run for run in data['runs'] if run['stage'] == stage]
        speed, memory, loss = row
        for fsdp, name, mark in ((False, 'data parallel', 'o'), (True, 'FSDP2', 's')):
            own = [run for run in runs if run['fsdp'] == fsdp]
            if not own:
                continue
            for axis, key in ((speed, 'clips_per_s'), (memory, 'allocated_gib')):
                axis.plot([run['gpus'] for run in own], [run[key] for run in own], mark,
                          label=name)
        alone = [run['clips_per_s'] for run in runs if run['gpus'] == 1]
        most = max(run['gpus'] for run in runs)
        if alone:
            speed.plot([1, most], [max(alone), most * max(alone)], color='tab:gray', linewidth=1,
                       label='in proportion')
        for run in runs:
            loss.plot(run['loss'], linewidth=1, linestyle='--' if run['fsdp'] else '-',
                      label=f'{run["gpus"]} × {run["global_batch"] // run["gpus"]}'
                            f'{" FSDP2" if run["fsdp"] else ""}')
        speed.set(ylabel='clips/s', title=stage)
        memory.set(ylabel='GiB per GPU')
        loss.set(xlabel='step', ylabel='loss')
        for axis in (speed, memory):
            top = max(float(np.max(line.get_ydata())) for line in axis.get_lines())
            axis.set(xlabel='GPUs', ylim=(0, 1.2 * top if top else None),
                     xticks=sorted({run['gpus'] for run in runs}))
        for axis in row:
            axis.legend(frameon=False, fontsize=7)
    return figure


def draw_session(recording: Recording, path: Path) -> Path:
    """Draw a session's time line: both voices, states, motion, regularity.

    Args:
        recording: a session with sound and pictures.
        path: PNG to write.

    Returns:
        The path.

    Raises:
        PlotsMissing: without matplotlib.
        ValueError: if the session has no pictures or no sound.
    """
    # Benchmarks draw without bags, and without what reads them.
    from interactive_avatar.evaluation import session
    from interactive_avatar.evaluation.bag import NS_PER_S

    track = session.track_pictures(recording.pictures)
    if track is None or not recording.audio:
        raise ValueError('a time line needs pictures and sound: record both')
    figure, axes = new_figure(5, 1, row_inches=1.7, sharex=True)
    user_row, avatar_row, state_row, motion_row, delay_row = axes[:, 0]
    t0_ns = int(track.stamps_ns[0])
    delay_ns = int(np.median([p.arrival_ns - p.stamp_ns for p in recording.pictures]))
    for row, sounds, shift_ns, name, colour in (
            (user_row, recording.user_audio, -delay_ns, 'user', 'tab:blue'),
            (avatar_row, recording.audio, 0, 'avatar', 'tab:orange')):
        stamps, levels = session.levels_dbfs(sounds)
        row.fill_between((stamps + shift_ns - t0_ns) / NS_PER_S, -90, np.maximum(levels, -90),
                         color=colour, linewidth=0)
        row.set(ylabel=f'{name}\n(dBFS)', ylim=(-70, 0))
    for event in recording.intents:
        at = (event.arrival_ns - delay_ns - t0_ns) / NS_PER_S
        user_row.axvline(at, color='black', linewidth=0.6)
        user_row.text(at, -6, f' {event.fields.get("intent", "")}', fontsize=7, va='top')
    states = session.states_table(recording)
    end_s = float(track.stamps_ns[-1] - t0_ns) / NS_PER_S
    for state, after in zip(states, [*states[1:], None]):
        stop = after['t_s'] if after else end_s
        state_row.broken_barh([(state['t_s'], max(0.0, stop - state['t_s']))],
                              (session.ACTIVITIES.index(state['activity'])
                               if state['activity'] in session.ACTIVITIES else 0, 0.9),
                              color='tab:red' if state['phase'] == 'ACTION' else 'tab:green')
    state_row.set_yticks(np.arange(len(session.ACTIVITIES)) + 0.45, session.ACTIVITIES,
                         fontsize=7)
    seconds = (track.stamps_ns - t0_ns) / NS_PER_S
    motion_row.plot(seconds, track.mouth_change, linewidth=0.6, label='mouth region')
    motion_row.plot(seconds, track.change, linewidth=0.6, label='whole picture')
    motion_row.set(ylabel='change per frame\n(grey levels)', ylim=(0, None))
    motion_row.legend(frameon=False, fontsize=7, ncols=2, loc='upper right')
    delay_row.plot([(a.stamp_ns - t0_ns) / NS_PER_S for a in recording.audio],
                   [(a.arrival_ns - a.stamp_ns) / 1e6 for a in recording.audio], linewidth=0.7)
    delay_row.set(xlabel='stream time (s)', ylabel='sound: arrival\nafter stamp (ms)')
    for row in axes[:, 0]:
        row.spines[['top', 'right']].set_visible(False)
        row.set_xlim(0, end_s)
    figure.savefig(path)
    return path


PLOTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    'generator': _generator, 'memory': _memory, 'image-topic': _image_topic, 'lips': _lips,
    'training': _training, 'agreement': _agreement}


def draw(name: str, result: dict[str, Any], data: dict[str, Any], path: Path) -> Path:
    """Draw a benchmark's plot as PNG.

    Args:
        name: of the benchmark.
        result: its figures.
        data: its series.
        path: file to write.

    Returns:
        The path.

    Raises:
        PlotsMissing: without matplotlib.
    """
    PLOTS[name](result, data).savefig(path)
    return path
