# SPDX-License-Identifier: Apache-2.0
"""Figures with intervals, and what a claim gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
_Z: Final = 1.959964


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        value: NaN if nothing could be measured.
        low: lower end of its 95 % interval, NaN if it has none.
        high: upper end.
        n: how many independent things it was measured on.
        of: what those are, as `performances`.
        unit: printed behind it.
        digits: printed after the point.
    """

    value: float
    low: float = float('nan')
    high: float = float('nan')
    n: int = 0
    of: str = ''
    unit: str = ''
    digits: int = 2

    def __str__(self) -> str:
        """``0.85 (0.80 to 0.90), N = 12 performances``; a dash if nothing was measured."""
        if not math.isfinite(self.value):
            return '–'
        d = self.digits
        text = f'{self.value:.{d}f}'
        if math.isfinite(self.low):
            text += f' ({self.low:.{d}f} to {self.high:.{d}f})'
        text = f'{text} {self.unit}'.rstrip()
        return f'{text}, N = {self.n} {self.of}'.rstrip() if self.n else text

    def as_json(self) -> dict[str, Any]:
        """Plain values, None for NaN."""
        def plain(value: float) -> float | None:
            return value if math.isfinite(value) else None
        return {'value': plain(self.value), 'low': plain(self.low), 'high': plain(self.high),
                'n': self.n, 'of': self.of, 'unit': self.unit}


NOTHING: Final = Figure(float('nan'))


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], count: int, of: str,
              unit: str = '', digits: int = 2, resamples: int = RESAMPLES) -> Figure:
    """A statistic of `count` independent things with its percentile bootstrap interval.

    Source: Efron, Bootstrap methods, Annals of Statistics 1979.

    Args:
        statistic: of the things with these indices, int64 [count] with repetitions.
        count: how many things there are; with fewer than two there is no interval.
        of: what they are called.
        unit: of the value.
        digits: to print.
        resamples: how often to draw.
    """
    if not count:
        return Figure(float('nan'), of=of, unit=unit, digits=digits)
    value = float(statistic(np.arange(count)))
    if count < 2 or not math.isfinite(value):
        return Figure(value, n=count, of=of, unit=unit, digits=digits)
    rng = np.random.default_rng(0)
    drawn = np.array([statistic(rng.integers(0, count, count)) for _ in range(resamples)])
    drawn = drawn[np.isfinite(drawn)]
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100.0 - tail]) if drawn.size else (np.nan, np.nan)
    return Figure(value, float(low), float(high), count, of, unit, digits)


def mean_of(values: Sequence[float], of: str, unit: str = '', digits: int = 2) -> Figure:
    """Mean of the finite values, with its bootstrap interval over them."""
    known = np.array([value for value in values if math.isfinite(value)])
    return bootstrap(lambda index: float(known[index].mean()), known.size, of, unit, digits)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share.

    Source: E. B. Wilson, Probable inference, 1927.

    Raises:
        ValueError: without a trial.
    """
    if trials <= 0:
        raise ValueError(f'{successes} of {trials} trials: an interval needs some')
    share = successes / trials
    scale = 1.0 + _Z * _Z / trials
    centre = (share + _Z * _Z / (2 * trials)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / trials + _Z * _Z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(groups: Sequence[Sequence[bool]], of: str) -> Figure:
    """Share of trials that succeeded, in per cent, pooled over groups that hang together.

    The interval is a bootstrap over groups (people), as trials of one person are not independent;
    where all trials end alike, which a bootstrap takes for certain, it is Wilson's.

    Args:
        groups: outcomes by person.
        of: what a trial is called.
    """
    kept = [np.asarray(group, bool) for group in groups if len(group)]
    trials = sum(group.size for group in kept)
    if not trials:
        return Figure(float('nan'), of=of, unit='%', digits=0)
    successes = int(sum(group.sum() for group in kept))
    value = 100.0 * successes / trials
    if successes in (0, trials) or len(kept) < 2:
        low, high = wilson(successes, trials)
        return Figure(value, 100.0 * low, 100.0 * high, trials, of, '%', 0)
    hits = np.array([group.sum() for group in kept], np.float64)
    sizes = np.array([group.size for group in kept], np.float64)
    drawn = bootstrap(lambda index: 100.0 * float(hits[index].sum() / sizes[index].sum()),
                      len(kept), of)
    return Figure(value, drawn.low, drawn.high, trials, of, '%', 0)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        claim: in words.
        figure: what the model reaches.
        aim: in words, as ``≥ 0.85``; empty for a figure without an aim.
        met: whether the value reaches it; None without an aim or a figure.
        compared: the same by the same judge of something else, by name.
    """

    claim: str
    figure: Figure
    aim: str = ''
    met: bool | None = None
    compared: dict[str, Figure] = field(default_factory=dict)

    @classmethod
    def at_least(cls, claim: str, figure: Figure, aim: float,
                 compared: dict[str, Figure] | None = None) -> Row:
        """A line whose figure should be `aim` or more."""
        return cls(claim, figure, f'≥ {aim:g} {figure.unit}'.rstrip(),
                   figure.value >= aim if math.isfinite(figure.value) else None, compared or {})

    @classmethod
    def at_most(cls, claim: str, figure: Figure, aim: float,
                compared: dict[str, Figure] | None = None) -> Row:
        """A line whose figure should be `aim` or less, in either direction of its sign."""
        return cls(claim, figure, f'≤ {aim:g} {figure.unit}'.rstrip(),
                   abs(figure.value) <= aim if math.isfinite(figure.value) else None,
                   compared or {})

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {'claim': self.claim, 'figure': self.figure.as_json(), 'aim': self.aim,
                'met': self.met,
                'compared': {name: f.as_json() for name, f in self.compared.items()}}


@dataclass
class Result:
    """What measuring a claim gave.

    Attributes:
        title: heading.
        how: how it was measured, a few sentences.
        rows: lines of the table.
        detail: plain values for the JSON file.
        plots: caption and a matplotlib figure, or a picture uint8 [h, w, 3] RGB.
        videos: caption and path.
        table: head and lines of a further table, or None.
    """

    title: str
    how: str
    rows: list[Row] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)
    plots: list[tuple[str, Any]] = field(default_factory=list)
    videos: list[tuple[str, Path]] = field(default_factory=list)
    table: tuple[list[str], list[list[str]]] | None = None
