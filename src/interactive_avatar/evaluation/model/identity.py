# SPDX-License-Identifier: Apache-2.0
"""Claim: the face is that of the reference picture, for people never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.model.figures import Figure, Result, Row, bootstrap
from interactive_avatar.evaluation.model.performances import Seen
from interactive_avatar.evaluation.model.pictures import bars, sheet

SAME_PERSON_DISTANCE: Final = 0.5
AIM_PERCENT: Final = 95.0

Floats = NDArray[np.float64]


def figures(distances: Sequence[Floats]) -> dict[str, Figure]:
    """Share of frames near the reference and median distance, with intervals over people.

    Args:
        distances: of each person's frames to the reference, NaN where the judge finds no face.

    Returns:
        ``same`` in per cent of the frames with a face, ``median``, ``faces`` in per cent.
    """
    known = [values[np.isfinite(values)] for values in distances]
    of = 'people'

    def over(statistic: str) -> Figure:
        def value(index: NDArray[np.int64]) -> float:
            rows = np.concatenate([known[i] for i in index])
            if not rows.size:
                return float('nan')
            return 100.0 * float((rows < SAME_PERSON_DISTANCE).mean()) if statistic == 'same' \
                else float(np.median(rows))
        return bootstrap(value, len(known), of, '%' if statistic == 'same' else '',
                         0 if statistic == 'same' else 2)

    def seen(index: NDArray[np.int64]) -> float:
        rows = np.concatenate([distances[i] for i in index])
        return 100.0 * float(np.isfinite(rows).mean())

    return {'same': over('same'), 'median': over('median'),
            'faces': bootstrap(seen, len(distances), of, '%', 0)}


def measure(items: Sequence[HeldOut], seen: Sequence[Seen]) -> Result:
    """Identity of generated performances against the references, and the truth's own spread."""
    drawn = [metrics.identity_distance(one.identity, one.reference) for one in seen]
    true = [metrics.identity_distance(item.true_identity, one.reference)
            for item, one in zip(items, seen, strict=True) if item.true_identity.size]
    got = figures(drawn)
    truth = figures(true) if true else {}

    def beside(name: str) -> dict[str, Figure]:
        return {'true pictures': truth[name]} if truth else {}

    def share(values: Floats) -> float:
        known = values[np.isfinite(values)]
        return 100.0 * float((known < SAME_PERSON_DISTANCE).mean()) if known.size else 0.0

    names = [item.name for item in items]
    shares = {'generated': [share(values) for values in drawn]}
    if len(true) == len(items):
        shares['true pictures'] = [share(values) for values in true]
    return Result(
        'Who it is',
        "dlib's face network, one frame a second of each held-out performance: Euclidean distance "
        f"to the reference picture's embedding. Below {SAME_PERSON_DISTANCE} counts as the same "
        'person (on renders, others are above 0.62).',
        [Row.at_least(f'who it is: frames with distance < {SAME_PERSON_DISTANCE}', got['same'],
                      AIM_PERCENT, beside('same')),
         Row('identity distance, median', got['median'], compared=beside('median')),
         Row('frames in which dlib finds a face', got['faces'], compared=beside('faces'))],
        {'each': dict(zip(names, shares['generated'], strict=True))},
        [(f'Frames with distance < {SAME_PERSON_DISTANCE}, by person',
          bars(names, shares, '% of frames')),
         ('Reference, then generated frames', _strips(items, seen))])


def _strips(items: Sequence[HeldOut], seen: Sequence[Seen]) -> NDArray[np.uint8]:
    columns = 1 + min(5, min(len(one.strip) for one in seen))
    frames, labels = [], []
    for item, one in zip(items, seen, strict=True):
        frames += [item.reference, *one.strip[:columns - 1]]
        labels += [item.name, *[f'{3 * k} s' for k in range(columns - 1)]]
    return sheet(frames, labels, columns)
