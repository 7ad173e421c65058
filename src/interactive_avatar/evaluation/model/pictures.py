# SPDX-License-Identifier: Apache-2.0
"""Plots of the report, as matplotlib figures, and its contact sheets, as pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.plots import new_figure
from interactive_avatar.media.clock import FRAME_RATE_HZ
from interactive_avatar.media.picture import contact_sheet

Floats = NDArray[np.float64]
ROW_INCHES = 2.4


def curves(series: Mapping[str, Floats], label: str) -> Any:
    """Series at the frame rate, each to mean 0 and spread 1, over each other."""
    figure, axes = new_figure(1, 1, ROW_INCHES)
    row = axes[0][0]
    for name, values in series.items():
        spread = np.nanstd(values) if np.isfinite(values).any() else 0.0
        if spread > 0:
            row.plot(np.arange(values.size) / FRAME_RATE_HZ,
                     (values - np.nanmean(values)) / spread, linewidth=0.9, label=name)
    row.set(xlabel='stream time (s)', ylabel=label)
    row.legend(frameon=False, ncols=3, loc='upper right')
    row.spines[['top', 'right']].set_visible(False)
    return figure


def drift(minutes: Floats, rows: Sequence[tuple[str, Floats, float, float]]) -> Any:
    """Values over a long stream with their straight lines.

    Args:
        minutes: float64 [n] stream time.
        rows: label, float64 [n] values, slope per minute, its standard error.
    """
    figure, axes = new_figure(len(rows), 1, ROW_INCHES, sharex=True)
    for axis, (label, values, slope, error) in zip(axes[:, 0], rows, strict=True):
        axis.plot(minutes, values, '.', markersize=3)
        known = np.isfinite(values)
        if known.any() and np.isfinite(slope):
            middle, mean = minutes[known].mean(), values[known].mean()
            axis.plot(minutes, mean + slope * (minutes - middle), linewidth=1.2)
        axis.set(ylabel=label, title=f'{slope:+.4f} ± {error:.4f} per minute')
        axis.spines[['top', 'right']].set_visible(False)
    axes[-1][0].set(xlabel='stream time (min)')
    return figure


def bars(names: Sequence[str], shares: Mapping[str, Sequence[float]], label: str) -> Any:
    """Horizontal bars, a group for each name, one bar in it for each series (0 to 100)."""
    figure, axes = new_figure(1, 1, max(2.0, 0.32 * len(names) + 1.0))
    axis, height = axes[0][0], 0.8 / max(1, len(shares))
    places = np.arange(len(names))
    for number, (name, values) in enumerate(shares.items()):
        axis.barh(places + (number - (len(shares) - 1) / 2) * height, values, height, label=name)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set(xlabel=label, xlim=(0, 100))
    axis.legend(frameon=False, loc='lower right')
    axis.spines[['top', 'right']].set_visible(False)
    return figure


def sheet(frames: Sequence[NDArray[np.uint8]], labels: Sequence[str], columns: int,
          ) -> NDArray[np.uint8]:
    """A contact sheet."""
    return contact_sheet(frames, labels, columns=columns)
