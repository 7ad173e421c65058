# SPDX-License-Identifier: Apache-2.0
"""Claim: the picture does not jump at chunk borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.model.figures import Result, Row, mean_of
from interactive_avatar.evaluation.model.performances import Seen
from interactive_avatar.media.clock import FRAMES_PER_CHUNK

AIM_RATIO: Final = 1.1


def ratio(change: NDArray[np.float64]) -> float:
    """Mean change across chunk borders over the mean inside chunks.

    Args:
        change: float64 [n - 1] of `metrics.frame_change`, from a chunk's first frame on.
    """
    border = np.arange(1, change.size + 1) % FRAMES_PER_CHUNK == 0
    inside = float(change[~border].mean())
    return float(change[border].mean()) / inside if inside > 1e-9 else float('nan')


def measure(items: Sequence[HeldOut], seen: Sequence[Seen]) -> Result:
    """Seam ratio of generated performances against that of the true pictures."""
    drawn = [ratio(one.change) for one in seen]
    bright = [ratio(one.luma_change) for one in seen]
    true = [item.true_seam for item in items if np.isfinite(item.true_seam)]
    figure, of_luma = (mean_of(each, 'performances') for each in (drawn, bright))
    places = np.array([[one.change[k::FRAMES_PER_CHUNK].mean() for k in range(FRAMES_PER_CHUNK)]
                       for one in seen]).mean(axis=0)
    return Result(
        'Seams', 'Mean absolute change of the whole picture from frame to frame, in grey levels: '
        'across chunk borders (frame 4 to 5) over that inside chunks. 1 is seamless.',
        [Row.at_most('seams: change across chunk borders / inside', figure, AIM_RATIO,
                     {'true pictures': mean_of(true, 'performances')} if true else {}),
         # Frames of a chunk that are tinted in turns change much inside it.
         Row('the same of brightness alone', of_luma)],
        {'each': drawn, 'each_of_luma': bright, 'grey_levels_by_place': places.tolist()},
        table=(['from frame', *[f'{k + 1} to {k + 2}' for k in range(FRAMES_PER_CHUNK - 1)],
                'last to first'],
               [['grey levels', *[f'{value:.2f}' for value in places]]]))
