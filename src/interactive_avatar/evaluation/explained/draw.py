# SPDX-License-Identifier: Apache-2.0
"""Draws a good and a bad case side by side: value and words, pictures, a plot."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from interactive_avatar.media.picture import fit_square

GOOD_COLOUR: Final = '#1b7f4b'
BAD_COLOUR: Final = '#b3261e'
WIDTH_INCHES: Final = 10.0
TITLE_INCHES: Final = 0.62
PICTURES_INCHES: Final = 1.05
PLOT_INCHES: Final = 1.75
DPI: Final = 100
WEBP_QUALITY: Final = 80
THUMBNAIL_PX: Final = 160

Floats = NDArray[np.float64]
Plot = Callable[[Any], None]


@dataclass(frozen=True)
class Case:
    """One side of a picture.

    Attributes:
        what: what is shown, a few words.
        value: the metric's value as text, with its unit.
        pictures: uint8 [H, W, 3] RGB each, drawn in a row.
        labels: under the pictures, one each.
        plot: draws into matplotlib axes; None for none.
    """

    what: str
    value: str
    pictures: Sequence[NDArray[np.uint8]] = ()
    labels: Sequence[str] = ()
    plot: Plot | None = None


@dataclass(frozen=True)
class Explained:
    """A metric with its two cases.

    Attributes:
        name: of the file, letters and underscores.
        metric: for people.
        good: as it should be.
        bad: as it should not.
        values: the numbers of both, for tests and JSON: ``good``, ``bad``.
    """

    name: str
    metric: str
    good: Case
    bad: Case
    values: dict[str, float | None] = field(default_factory=dict)


def lines(series: dict[str, tuple[Floats, Floats]], xlabel: str, ylabel: str,
          marks: Sequence[tuple[float, str]] = (), limit: float | None = None,
          limits: tuple[float | None, float | None] | None = None) -> Plot:
    """Series over x as lines.

    Args:
        series: x float64 [n] and y float64 [n] by name.
        xlabel: with its unit.
        ylabel: with its unit.
        marks: vertical lines and their names.
        limit: a horizontal line, in red.
        limits: of the y axis.
    """
    def plot(axes: Any) -> None:
        for name, (x, y) in series.items():
            axes.plot(x, y, linewidth=1.1, label=name)
        for at, name in marks:
            axes.axvline(at, color='0.45', linewidth=0.8, linestyle=':')
            axes.annotate(name, (at, 1.0), (2, -2), xycoords=('data', 'axes fraction'),
                          textcoords='offset points', fontsize=7, va='top', color='0.35')
        if limit is not None:
            axes.axhline(limit, color=BAD_COLOUR, linewidth=0.8, linestyle='--')
        axes.set_xlabel(xlabel, fontsize=8)
        axes.set_ylabel(ylabel, fontsize=8)
        axes.tick_params(labelsize=7)
        if limits:
            axes.set_ylim(*limits)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=7, ncols=len(series), loc='lower right',
                        bbox_to_anchor=(1.0, 0.98), borderaxespad=0.0)
    return plot


def bars(names: Sequence[str], values: Sequence[float], xlabel: str, limit: float | None = None,
         most: float | None = None) -> Plot:
    """Horizontal bars with their values; a red line at the limit."""
    def plot(axes: Any) -> None:
        places = np.arange(len(names))
        drawn = axes.barh(places, values, 0.6, color='0.55')
        axes.bar_label(drawn, fmt='%.3g', fontsize=7, padding=3)
        axes.set_yticks(places, names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(xlabel, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlim(0, most if most is not None else 1.25 * max([*values, limit or 0.0]))
        if limit is not None:
            axes.axvline(limit, color=BAD_COLOUR, linewidth=0.9, linestyle='--')
    return plot


def standard(values: Floats) -> Floats:
    """A series to mean 0 and spread 1, NaN kept."""
    return np.asarray((values - np.nanmean(values)) / max(float(np.nanstd(values)), 1e-9))


def draw(item: Explained, path: Path) -> Path:
    """Write the picture of a metric as WebP.

    Raises:
        plots.PlotsMissing: without matplotlib.
    """
    from interactive_avatar.evaluation.plots import canvas

    cases = item.good, item.bad
    pictures = any(case.pictures for case in cases)
    plots = any(case.plot for case in cases)
    heights = [TITLE_INCHES, *([PICTURES_INCHES] if pictures else []),
               *([PLOT_INCHES] if plots else [])]
    if pictures:
        # A row of few pictures may be taller, but no taller than a plot.
        most = max(len(case.pictures) for case in cases)
        heights[1] = min(1.9, WIDTH_INCHES / 2 / max(most, 1)) + 0.2
    figure = canvas((WIDTH_INCHES, sum(heights)), DPI)
    figure.suptitle(item.metric, fontsize=11, fontweight='bold', x=0.01, ha='left')
    part = figure.add_gridspec(len(heights), 2, height_ratios=heights, hspace=0.05, wspace=0.03)
    for column, (case, colour, kind) in enumerate(((item.good, GOOD_COLOUR, 'good'),
                                                   (item.bad, BAD_COLOUR, 'bad'))):
        head = figure.add_subplot(part[0, column])
        head.set_axis_off()
        head.text(0.0, 0.62, f'{kind}: {case.value}', color=colour, fontsize=11,
                  fontweight='bold', va='center', transform=head.transAxes)
        head.text(0.0, 0.08, case.what, fontsize=8.5, va='center', transform=head.transAxes)
        if case.pictures:
            row = part[1, column].subgridspec(1, len(case.pictures), wspace=0.04)
            for number, picture in enumerate(case.pictures):
                axes = figure.add_subplot(row[0, number])
                axes.imshow(fit_square(picture, THUMBNAIL_PX))
                axes.set_axis_off()
                if number < len(case.labels):
                    axes.set_title(case.labels[number], fontsize=7, y=-0.02, va='top', pad=0)
        if case.plot is not None:
            axes = figure.add_subplot(part[len(heights) - 1, column])
            axes.spines[['top', 'right']].set_visible(False)
            case.plot(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert('RGB').save(path, 'WEBP', quality=WEBP_QUALITY, method=6)
    return path
