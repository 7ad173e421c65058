# SPDX-License-Identifier: Apache-2.0
"""Claim: it keeps up on two cores."""

from __future__ import annotations

import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation.bench import RTF_AIM, run_stream
from interactive_avatar.evaluation.model.figures import Result, Row, bootstrap
from interactive_avatar.evaluation.model.play import Player
from interactive_avatar.generator.prompts import WorldState, stable_prompt
from interactive_avatar.media.clock import CHUNK_MS

BLOCK_CHUNKS: Final = 25


def measure(reference: NDArray[np.uint8], player: Player, chunks: int) -> Result:
    """Real-time factor of a stream in conversation, as `avatar bench generator` drives it.

    Args:
        reference: uint8 [H, W, 3].
        player: the generator.
        chunks: how many; the interval is over blocks of 25.
    """
    load = os.getloadavg()[0]
    stream = player.stream(reference, stable_prompt(WorldState()))
    run = run_stream(stream, chunks, overlap=bool(stream.overlaps))
    step_ms = run['step_ms']
    blocks = step_ms[:chunks // BLOCK_CHUNKS * BLOCK_CHUNKS].reshape(-1, BLOCK_CHUNKS)
    means = blocks.mean(axis=1) / CHUNK_MS
    figure = bootstrap(lambda index: float(means[index].mean()), len(means), 'blocks of 4 s')
    cores = len(os.sched_getaffinity(0))
    note = '' if load < 1.0 else (f'The machine was busy before this began (load {load:.1f}): '
                                  f'measure again on a quiet one.')
    return Result(
        'Cost', f'Time from chunk to chunk over {CHUNK_MS} ms, {chunks} chunks of conversation '
        f'with prompt switches, {cores} cores, backend {player.setup.backend}. {note}',
        [Row.at_most('cost: real-time factor', figure, RTF_AIM)],
        {'note': note, 'load_before': load, 'cores': cores,
         'p50_ms': float(np.percentile(run['shown_ms'], 50)),
         'p99_ms': float(np.percentile(run['shown_ms'], 99))})
