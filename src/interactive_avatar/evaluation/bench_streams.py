# SPDX-License-Identifier: Apache-2.0
"""``avatar bench generator --streams N``: many avatars in one process, in real time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from interactive_avatar.evaluation import metrics
from interactive_avatar.generator.group import StreamGroup, StreamRefusedError
from interactive_avatar.generator.prompts import WorldState, action_prompt, stable_prompt
from interactive_avatar.media.clock import CHUNK_MS

WARM_UP_STEPS = 8
LEARNING_STEPS = 4
PROMPT_PERIOD_STEPS = 25


def run(group: StreamGroup, streams: int, steps: int, speech: Any, paced: bool) -> dict[str, Any]:
    """Let ``streams`` avatars into a group and measure steps of all of them.

    Args:
        group: empty.
        streams: how many are to join; those that are refused are counted.
        steps: measured steps of 160 ms.
        speech: seed -> endless iterator of int16 [2560].
        paced: one step every 160 ms, as in life.

    Returns:
        ``step_ms`` [steps], ``joined``, ``refused`` and the last refusal's words.
    """
    group.backend.warm_up(streams)
    members, refusal = {}, ''
    for number in range(streams):
        try:
            members[group.join(seed=number)] = speech(number)
        except StreamRefusedError as error:
            refusal = str(error)
            break
        joined = number + 1
        if joined & number == 0:  # a power of two: the group learns what so many take
            for _ in range(LEARNING_STEPS):
                group.step({member: next(sounds) for member, sounds in members.items()})
    world = WorldState()
    prompts = [action_prompt('talk', world), stable_prompt(world), action_prompt('nod', world)]
    for _ in range(WARM_UP_STEPS):
        group.step({member: next(sounds) for member, sounds in members.items()})
    step_ms = np.zeros(steps)
    begin_s = time.perf_counter()
    for index in range(steps):
        if paced:
            time.sleep(max(0.0, begin_s + index * CHUNK_MS / 1000 - time.perf_counter()))
        sound = {member: next(sounds) for member, sounds in members.items()}
        started_s = time.perf_counter()
        for number, member in enumerate(members):
            # Not all at once: people do not speak in chorus.
            if (index + number) % PROMPT_PERIOD_STEPS == 0:
                member.switch(prompts[index // PROMPT_PERIOD_STEPS % len(prompts)])
        group.step(sound)
        step_ms[index] = 1000.0 * (time.perf_counter() - started_s)
    return {'step_ms': step_ms, 'joined': len(members), 'refused': streams - len(members),
            'refusal': refusal}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Figures of `run`."""
    step_ms, joined = found['step_ms'], found['joined']
    percentiles = metrics.percentiles(step_ms)
    return {'streams': joined, 'refused': found['refused'], 'refusal': found['refusal'],
            'step_ms': {**percentiles, 'max': float(step_ms.max())},
            'late_share': float((step_ms > CHUNK_MS).mean()),
            'frames_per_s': 4000.0 * joined / float(step_ms.mean())}
