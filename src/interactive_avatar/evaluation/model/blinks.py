# SPDX-License-Identifier: Apache-2.0
"""Claim: the avatar blinks as people do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.metrics import blinks_per_minute
from interactive_avatar.evaluation.model.figures import Result, Row, mean_of
from interactive_avatar.evaluation.model.performances import Seen
from interactive_avatar.generator.blinking import CALM_CHUNKS, BlinkSchedule
from interactive_avatar.generator.prompts import somebody_there
from interactive_avatar.media.clock import FRAME_RATE_HZ, FRAMES_PER_CHUNK

LEAST_PER_MINUTE: Final = 4.5
MOST_PER_MINUTE: Final = 26.0
"""What people do, from reading to conversation (17 at rest): Bentivoglio et al., Analysis of blink
rate patterns in normal subjects, Movement Disorders 1997."""


def told_per_minute(prompts: Sequence[str], seed: int) -> float:
    """How often a stream of this seed is told to blink while it follows prompts, one per chunk.

    What it makes first is never shown: that is the lookahead's.
    """
    schedule = BlinkSchedule(seed)
    starts, since, last = 0, -CALM_CHUNKS, 0
    played = [prompts[0], *prompts]
    for chunk, prompt in enumerate(played):
        if chunk and prompt != played[chunk - 1]:
            since = chunk
        last = schedule.told(chunk, since, somebody_there(prompt), last)
        starts += last == 1 and chunk > 0
    return 60.0 * starts * FRAME_RATE_HZ / (len(prompts) * FRAMES_PER_CHUNK)


def measure(items: Sequence[HeldOut], seen: Sequence[Seen], told: bool, seed: int) -> Result:
    """Blinks of generated performances.

    Args:
        told: whether the model has learnt to blink when it is told to; seed: of the streams.
    """
    rates = [blinks_per_minute(one.opening, np.arange(one.opening.size) / FRAME_RATE_HZ)
             for one in seen]
    figure = mean_of(rates, 'performances', digits=1)
    compared = {'as told': mean_of(
        [told_per_minute(item.prompts[:item.frames // FRAMES_PER_CHUNK], seed) for item in items],
        'performances', digits=1)} if told else {}
    return Result(
        'Blinks', 'Falls of the opening of the eyes (height over width in the landmarks of '
        'MediaPipe) below 60 % of its median, per minute. The aim is what people do between '
        'reading and conversation (Bentivoglio et al., 1997).',
        [Row('blinks per minute', figure, f'{LEAST_PER_MINUTE:g} to {MOST_PER_MINUTE:g}',
             LEAST_PER_MINUTE <= figure.value <= MOST_PER_MINUTE
             if math.isfinite(figure.value) else None, compared)],
        {'each': rates},
        table=(['performance', 'blinks per minute'],
               [[item.name, f'{rate:.1f}'] for item, rate in zip(items, rates, strict=True)]))
