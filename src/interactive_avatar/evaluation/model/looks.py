# SPDX-License-Identifier: Apache-2.0
"""Claim: few steps lose nothing; distance of generated to true pictures in a fixed space."""

from __future__ import annotations

from collections.abc import Sequence

from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.model import frechet
from interactive_avatar.evaluation.model.figures import NOTHING, Result, Row
from interactive_avatar.evaluation.model.performances import Seen


def measure(items: Sequence[HeldOut], seen: Sequence[Seen]) -> Result:
    """Fréchet distance of generated performances to their true pictures."""
    how = ('Fréchet distance in the space of Gabor energies and colours of a 4×4 grid '
           f'({frechet.COMPONENTS} principal components of the true pictures, in units of their '
           'spread); lower is nearer. Not FID: compare it only with itself, at the same N.')
    pairs = [(one.look, item.true_look) for item, one in zip(items, seen, strict=True)
             if len(item.true_look)]
    if not pairs:
        return Result('Pictures as a whole', how + ' The held-out set has no true features: make '
                      'it again.', [Row('Fréchet distance (Gabor) to true pictures', NOTHING)])
    drawn, true = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    space = frechet.Space(true)
    return Result(
        'Pictures as a whole', how,
        [Row('Fréchet distance (Gabor) to true pictures', frechet.compare(drawn, true, space),
             compared={'true pictures': frechet.floor(true, space)})],
        {'pictures': sum(len(rows) for rows in drawn)})
