# SPDX-License-Identifier: Apache-2.0
"""Two sessions side by side: differences of their figures, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interactive_avatar.evaluation import metrics, session
from interactive_avatar.evaluation.bag import NS_PER_S
from interactive_avatar.evaluation.html import HtmlReport
from interactive_avatar.evaluation.plots import axes_of
from interactive_avatar.evaluation.report import number
from interactive_avatar.evaluation.session import Analysis

# Neighbouring frames say the same thing twice: the unit of resampling is a stretch of stream.
BLOCK_S = 2.0
RESAMPLES = 2000
COVERAGE = 0.95
# Fewer blocks or turns than this give no interval worth printing.
MIN_SAMPLES = 4
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """A figure's values in one session.

    Attributes:
        values: one per turn, per block of stream or per report of a node.
        unit: of the values.
        of: what one value is of.
        better: -1 if less is better, 1 if more is, 0 if neither.
    """

    values: Floats
    unit: str
    of: str
    better: int = -1


@dataclass(frozen=True)
class Difference:
    """How much a figure differs between two sessions.

    Attributes:
        name: of the figure.
        unit: of the values.
        of: what one value is of.
        first: mean in the first session.
        second: mean in the second.
        difference: first less second.
        low: lower end of the interval of the difference; NaN with too few values.
        high: upper end.
        counts: values in each.
        paired: whether value i of one belongs to value i of the other.
        verdict: better, worse, differs or no difference seen, of the first.
    """

    name: str
    unit: str
    of: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    counts: tuple[int, int]
    paired: bool
    verdict: str


def difference_interval(first: ArrayLike, second: ArrayLike, paired: bool = False, seed: int = 0,
                        resamples: int = RESAMPLES) -> tuple[float, float]:
    """Interval of the difference of two means, by the percentile bootstrap.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.

    Args:
        first: [n] values.
        second: [m] values; m = n if paired.
        paired: resample pairs instead of each side.
        seed: of the resampling.
        resamples: how many.

    Returns:
        (low, high) that hold the difference of the means, first less second, at 95 %; NaN with
        fewer than `MIN_SAMPLES` on a side.

    Raises:
        ValueError: if paired series differ in length.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if paired and a.shape != b.shape:
        raise ValueError(f'{a.size} and {b.size} values cannot be paired: give one for one')
    if min(a.size, b.size) < MIN_SAMPLES:
        return float('nan'), float('nan')
    rng = np.random.default_rng(seed)
    at = rng.integers(0, a.size, (resamples, a.size))
    if paired:
        means = (a - b)[at].mean(axis=1)
    else:
        means = a[at].mean(axis=1) - b[rng.integers(0, b.size, (resamples, b.size))].mean(axis=1)
    edge = 100.0 * (1.0 - COVERAGE) / 2.0
    low, high = np.percentile(means, [edge, 100.0 - edge])
    return float(low), float(high)


def blocks(seconds: ArrayLike, values: ArrayLike, block_s: float = BLOCK_S) -> Floats:
    """Means of stretches of a series, without those that hold nothing.

    Args:
        seconds: [n] time of each value, in order.
        values: [n], NaN where unknown.
        block_s: length of a stretch.
    """
    t, v = np.asarray(seconds, np.float64), np.asarray(values, np.float64)
    known = np.isfinite(v)
    if not known.any():
        return np.zeros(0)
    index = ((t[known] - t[0]) // block_s).astype(int)
    sums = np.bincount(index, v[known])
    counts = np.bincount(index)
    return np.asarray(sums[counts > 0] / counts[counts > 0])


def samples_of(analysis: Analysis) -> dict[str, Samples]:
    """The figures of a session that can be compared, with the values behind them."""
    recording, track, found = analysis.recording, analysis.track, {}
    turns = analysis.result['turns']
    for name, key, unit in (('answer after the last sound', 'response_latency_s', 's'),
                            ('decision after the last sound', 'decision_latency_s', 's'),
                            ('switch to visible', 'switch_to_visible_ms', 'ms')):
        values = [np.nan if row[key] is None else float(row[key]) for row in turns]
        found[name] = Samples(np.array(values), unit, 'turn')
    if track is not None:
        seconds = (track.stamps_ns - track.stamps_ns[0]) / NS_PER_S
        speaking = session.speaking_mask(recording, track.stamps_ns)
        resting = session.resting_mask(recording, track.stamps_ns) & ~speaking
        start = track.lab[:session.FRAME_RATE_HZ].mean(axis=0)

        def put(name: str, values: Floats, unit: str, better: int) -> None:
            found[name] = Samples(blocks(seconds, values), unit, f'{BLOCK_S:g} s', better)

        put('mouth motion in speech', np.where(speaking, track.mouth_change, np.nan),
            'grey levels', 1)
        put('mouth motion at rest', np.where(resting, track.mouth_change, np.nan),
            'grey levels', -1)
        put('sharpness', track.sharpness, '', 1)
        put('colour drift', np.linalg.norm(track.lab - start, axis=1), 'ΔE', -1)
        if 'lip_gap' in analysis.series:
            put('lip gap in speech', np.where(speaking, analysis.series['lip_gap'], np.nan), '',
                0)
            put('lip gap at rest', np.where(resting, analysis.series['lip_gap'], np.nan), '', -1)
    if 'identity_distance' in analysis.series:
        found['identity distance'] = Samples(
            blocks(analysis.series['identity_s'], analysis.series['identity_distance']), '',
            f'{BLOCK_S:g} s')
    for name, key, unit in (('time per chunk, median', 'chunk_p50_ms', 'ms'),
                            ('processor of the generator', 'cpu_percent', '% of a core'),
                            ('memory of the generator', 'rss_mib', 'MiB')):
        found[name] = Samples(session.node_series(recording, 'generator', key)[1], unit, 'second')
    late = session.node_series(recording, 'generator', 'chunks_late')[1]
    found['missed chunks'] = Samples(np.maximum(np.diff(late), 0.0), 'per second', 'second')
    return found


def compare(first: Analysis, second: Analysis) -> list[Difference]:
    """Differences of all figures that both sessions have.

    Values per turn are compared pair by pair where both sessions have the same turns, as a
    session and its replay do.
    """
    a, b = samples_of(first), samples_of(second)
    said = [[row.get('said') or row['heard'] for row in side.result['turns']]
            for side in (first, second)]
    rows = []
    for name in a:
        if name not in b:
            continue
        x, y = a[name].values, b[name].values
        paired = a[name].of == 'turn' and len(said[0]) == len(said[1]) and x.shape == y.shape
        if paired:
            both = np.isfinite(x) & np.isfinite(y)
            x, y = x[both], y[both]
        else:
            x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        if not x.size or not y.size:
            continue
        low, high = difference_interval(x, y, paired)
        rows.append(Difference(
            name, a[name].unit, a[name].of, float(x.mean()), float(y.mean()),
            float(x.mean() - y.mean()), low, high, (x.size, y.size), paired,
            _verdict(low, high, a[name].better)))
    return rows


def _verdict(low: float, high: float, better: int) -> str:
    if not np.isfinite(low):
        return 'too few to say'
    if low <= 0.0 <= high:
        return 'no difference seen'
    if not better:
        return 'differs'
    return 'better' if (low > 0.0) == (better > 0) else 'worse'


def as_plain(rows: list[Difference]) -> list[dict[str, Any]]:
    """Differences as plain values for JSON, None for NaN."""
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 5) if np.isfinite(value) else None
        return list(value) if isinstance(value, tuple) else value
    return [{key: plain(value) for key, value in asdict(row).items()} for row in rows]


def compared_section(rows: list[Difference], first: Analysis, second: Analysis,
                     names: tuple[str, str]) -> Callable[[HtmlReport], None]:
    """What adds the comparison to a page: a table, and a drawing of the intervals."""
    def add(report: HtmlReport) -> None:
        section = report.section(f'Against {names[1]}')
        section.text(f'Means of `{names[0]}` and `{names[1]}`, and their difference with an '
                     f'interval of {100 * COVERAGE:.0f} % (percentile bootstrap over turns, '
                     f'stretches of {BLOCK_S:g} s or seconds; pairs of turns where both sessions '
                     f'have the same). It holds the noise within a session, not that between '
                     f'runs: run each twice and compare those to see the latter.')
        section.table(
            ['figure', names[0], names[1], 'difference', 'interval', 'values', 'verdict'],
            [[row.name + (' (pairs)' if row.paired else ''), number(row.first, row.unit, 3),
              number(row.second, row.unit, 3), f'{row.difference:+.3f}',
              f'{row.low:+.3f} … {row.high:+.3f}' if np.isfinite(row.low) else '–',
              f'{row.counts[0]} / {row.counts[1]}', row.verdict] for row in rows],
            tones=['good' if row.verdict == 'better' else 'bad' if row.verdict == 'worse'
                   else 'plain' for row in rows])
        known = [row for row in rows if np.isfinite(row.low) and abs(row.second) > 1e-9]
        if known:
            figure, (axes,) = axes_of(1, 0.34 * len(known) + 0.9)
            for place, row in enumerate(known):
                colour = {'better': '#2f9e5b', 'worse': '#c23b4b'}.get(row.verdict, '#8b949e')
                scale = 100.0 / abs(row.second)
                axes.plot([row.low * scale, row.high * scale], [place, place], color=colour,
                          linewidth=3)
                axes.plot(row.difference * scale, place, 'o', color=colour)
            axes.set_yticks(range(len(known)), [row.name for row in known], fontsize=8)
            axes.invert_yaxis()
            axes.axvline(0, color='black', linewidth=0.8)
            axes.set(xlabel=f'difference, % of {names[1]}')
            section.plot(figure, 'Differences with their intervals', 'An interval that leaves 0 '
                         'out is a difference; green is better.')
        for name, side in ((names[0], first), (names[1], second)):
            found = metrics.percentiles([row['response_latency_s'] for row in side.result['turns']
                                         if row['response_latency_s'] is not None])
            section.text(f'`{name}`: answers after {number(found["p50"], "s")} (median), '
                         f'{number(found["p95"], "s")} (95 %).')
    return add
