# SPDX-License-Identifier: Apache-2.0
"""Claims: lips follow speech, in time; the mouth rests in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.bench_lips import (
    AIM_CORRELATION,
    AIM_LAG_MS,
    AIM_SILENCE_SHARE,
    closures,
    pooled,
)
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.model.figures import Figure, Result, Row, bootstrap, mean_of
from interactive_avatar.evaluation.model.performances import Seen
from interactive_avatar.evaluation.model.pictures import curves
from interactive_avatar.evaluation.sync import sync_fits

SHOWN: Final = 3

Floats = NDArray[np.float64]


def fits(items: Sequence[HeldOut], gaps: Sequence[Floats]) -> dict[str, Figure]:
    """Lips and silence of a set of lip gaps, with intervals over performances.

    Args:
        items: the performances.
        gaps: float64 [n] each, lip gap by the judge, NaN without a face.

    Returns:
        ``correlation`` of the lip gap with the true opening (performances put behind each other,
        each to mean 0 and spread 1, at one lag for all), ``in_speech`` the same over frames with
        speech, ``lag`` in ms, ``silence`` motion in silence over that in speech in per cent,
        ``faces`` share of frames with a face in per cent, ``sync`` confidence of in-domain sync,
        ``closing`` how surely lips are closer in /b m p/ than in open vowels (0.5 by chance).
    """
    truth = [item.mouth_open[:gap.size] for item, gap in zip(items, gaps, strict=True)]
    speaking = [item.speaking()[:gap.size] for item, gap in zip(items, gaps, strict=True)]

    def fit(index: NDArray[np.int64], only_speech: bool = False) -> metrics.LipFit:
        chosen = [np.where(speaking[i], gaps[i], np.nan) if only_speech else gaps[i]
                  for i in index]
        # Both to mean 0 and spread 1 over the same frames: what is left out of one is of both.
        true = [np.where(np.isfinite(gap), truth[i], np.nan)
                for i, gap in zip(index, chosen, strict=True)]
        return metrics.lip_fit(pooled(chosen), pooled(true))

    of, count = 'performances', len(items)
    ratios = [100.0 * metrics.motion_ratio(gap, on)
              for gap, on in zip(gaps, speaking, strict=True)]
    return {
        'correlation': bootstrap(lambda i: fit(i).correlation, count, of, resamples=400),
        'in_speech': bootstrap(lambda i: fit(i, True).correlation, count, of, resamples=400),
        'lag': bootstrap(lambda i: fit(i).lag_ms, count, of, 'ms', 0, resamples=400),
        'silence': mean_of(ratios, of, '%', 1),
        'sync': mean_of([fit.confidence for fit in sync_fits(items, gaps)[2]], of),
        'closing': mean_of([metrics.separation(*closures(item, gap))
                            for item, gap in zip(items, gaps, strict=True)], of),
        'faces': mean_of([100.0 * float(np.isfinite(gap).mean()) for gap in gaps], of, '%', 0)}


def measure(items: Sequence[HeldOut], seen: Sequence[Seen]) -> Result:
    """Lips, lag and silence of generated performances against the truth by the same judge."""
    gaps = [one.gap for one in seen]
    true = [item.true_gap[:gap.size].astype(np.float64)
            for item, gap in zip(items, gaps, strict=True)]
    drawn, truth = fits(items, gaps), fits(items, true)

    def beside(name: str) -> dict[str, Figure]:
        return {'true pictures': truth[name]}

    each: list[dict[str, Any]] = []
    for item, gap, real in zip(items, gaps, true, strict=True):
        fit = metrics.lip_fit(gap, item.mouth_open[:gap.size])
        each.append({'name': item.name, 'correlation': fit.correlation, 'lag_ms': fit.lag_ms,
                     'true_pictures': metrics.lip_fit(
                         real, item.mouth_open[:gap.size]).correlation})
    result = Result(
        'Lips and silence',
        'MediaPipe face mesh 0.10.21: distance of the inner lips over that of the outer eye '
        'corners, against the true opening of the mouth of held-out people, voices and '
        'sentences. Lags of ±10 frames are tried; a positive lag is a late picture. In-domain '
        "sync: this project's own scorer of lip gap and sound over ±15 frames (not SyncNet).",
        [Row.at_least('lips follow speech: correlation', drawn['correlation'], AIM_CORRELATION,
                      beside('correlation')),
         Row('the same in frames with speech only', drawn['in_speech'],
             compared=beside('in_speech')),
         Row('lips closer in /b m p/ than in open vowels (chance: 0.5)', drawn['closing'],
             compared=beside('closing')),
         Row('in-domain sync: confidence', drawn['sync'], compared=beside('sync')),
         Row.at_most('lips follow speech: lag', drawn['lag'], AIM_LAG_MS, beside('lag')),
         Row.at_most('silence: lip motion over that in speech', drawn['silence'],
                     100.0 * AIM_SILENCE_SHARE, beside('silence')),
         Row('frames in which the judge finds a face', drawn['faces'], compared=beside('faces'))],
        {'each': each},
        table=(['performance', 'correlation', 'lag', 'true pictures'],
               [[row['name'], f'{row["correlation"]:.2f}', f'{row["lag_ms"]:.0f} ms',
                 f'{row["true_pictures"]:.2f}'] for row in each]))
    order = np.argsort([row['correlation'] for row in each])
    picked = [int(order[k]) for k in
              sorted({0, len(order) // 2, len(order) - 1})][:SHOWN]
    for index in picked:
        item = items[index]
        result.plots.append((
            f'{item.name}: correlation {each[index]["correlation"]:.2f}',
            curves({'generated': gaps[index], 'true pictures': true[index],
                    'true opening': item.mouth_open[:gaps[index].size].astype(np.float64)},
                   'lip gap (z-score)')))
    return result
