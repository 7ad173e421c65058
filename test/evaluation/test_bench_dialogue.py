# SPDX-License-Identifier: Apache-2.0
"""Stages, stops and delays, on sessions worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interactive_avatar.evaluation import bench_response, bench_telepresence
from interactive_avatar.evaluation.bag import Event, Picture, Recording, Sound
from interactive_avatar.evaluation.stages import measure_stages, stages_of
from interactive_avatar.media.clock import CHUNK_NS, CHUNK_SAMPLES

MS = 1_000_000
T0_NS = 1_700_000_000_000_000_000


def event(ms: float, **fields: Any) -> Event:
    at = T0_NS + round(ms * MS)
    return Event(at, at, fields)


def sound(ms: float, level: int, turn_id: int = 0, delay_ms: float = 0.0,
          samples: np.ndarray | None = None) -> Sound:
    at = T0_NS + round(ms * MS)
    block = np.full(CHUNK_SAMPLES, level, np.int16) if samples is None else samples
    return Sound(at, at + round(delay_ms * MS), turn_id, 0, False, block)


def test_the_stages_add_up_to_the_response() -> None:
    recording = Recording(
        Path('bag'), perceptions=[event(1400, event=4), event(1450, event=3)],
        intents=[event(1460, turn_id=7)], speech=[sound(1600, 900, 7)])
    row = {'start_ns': T0_NS, 'end_ns': T0_NS + 1000 * MS, 'response_latency_s': 1.0}
    stages = stages_of(recording, row)
    assert stages is not None and sum(stages.values()) == pytest.approx(1.0)
    assert list(stages.values()) == pytest.approx([0.4, 0.05, 0.01, 0.14, 0.4])
    silent = {**row, 'response_latency_s': float('nan')}
    figures = measure_stages(recording, [row, silent])
    assert figures['turns'] == 1 and figures['voice']['p50'] == pytest.approx(0.14)
    assert stages_of(Recording(Path('bag')), row) is None


def test_how_soon_it_falls_silent() -> None:
    # The avatar speaks from 0 to 1.12 s and answers at 3.2 s; the user breaks in at 0.96 s.
    recording = Recording(
        Path('bag'),
        audio=[sound(160 * n, 3000, 1) for n in range(7)]
        + [sound(160 * n, 0, 1) for n in range(7, 20)] + [sound(3200, 3000, 2)],
        user_audio=[sound(160 * n, 3000 if 6 <= n < 10 else 0) for n in range(20)],
        perceptions=[event(1060, event=1)], intents=[event(2500, turn_id=2)])
    log = [{'start_ns': T0_NS - 3 * 10**9, 'ended': False, 'sounded': True},
           {'start_ns': T0_NS + 960 * MS, 'ended': True}]
    stops = bench_response.measure_stops(recording, log)
    assert stops == [{'voice': pytest.approx(0.16), 'told': pytest.approx(0.06)}]
    # The user pauses and goes on, so that the first answer, to the first words, never sounds.
    recording.intents.insert(0, event(1800, turn_id=5))
    assert bench_response.measure_stops(recording, log) == stops
    assert bench_response.measure_stops(recording, [{**log[0], 'ended': True}, log[1]]) == []


def test_a_typed_line_is_measured_to_the_first_sound_after_it() -> None:
    # Turn 1 still sounds, or not yet, while turn 2 is awaited.
    recording = Recording(Path('bag'), intents=[event(320, turn_id=2)],
                          audio=[sound(160 * n, 3000 if n != 4 else 0, 1 + (n >= 4))
                                 for n in range(9)])
    log = [{'kind': 'typed', 'answered': True, 'start_ns': T0_NS + 300 * MS},
           {'kind': 'typed', 'answered': False, 'start_ns': T0_NS + 300 * MS}]
    assert bench_response.measure_typed(recording, log) == [pytest.approx(0.5)]
    recording.speech.append(sound(450, 900, 2))
    stages = bench_response.measure_typed_stages(recording, log)
    assert stages == {'reasoning': [pytest.approx(0.02)], 'voice': [pytest.approx(0.13)],
                      'generator': [pytest.approx(0.35)]}


def test_the_operators_sound_is_found_again() -> None:
    rng = np.random.default_rng(0)
    voice = rng.normal(0, 3000, 10 * CHUNK_SAMPLES).astype(np.int16)
    pieces = [voice[at:at + CHUNK_SAMPLES] for at in range(0, voice.size, CHUNK_SAMPLES)]
    step_ms = CHUNK_NS / MS
    recording = Recording(
        Path('bag'),
        user_audio=[sound(step_ms * n, 0, samples=piece) for n, piece in enumerate(pieces)],
        audio=[sound(step_ms * n + 520, 0, 1, -60, piece) for n, piece in enumerate(pieces)]
        + [sound(step_ms * 12 + 520, 0, 1, -60,
                 rng.normal(0, 3000, CHUNK_SAMPLES).astype(np.int16)),
           sound(step_ms * 13 + 520, 0, 1), sound(step_ms * 14 + 520, 3000, 0)])
    presented, published, lost = bench_telepresence.delays_ms(recording)
    assert presented == pytest.approx(np.full(10, 520.0), abs=0.2)
    assert published == pytest.approx(np.full(10, 460.0), abs=0.2)
    assert lost == 1


def test_a_chunk_whose_picture_comes_after_its_stamp_is_seen_then() -> None:
    rng = np.random.default_rng(0)
    voice = rng.normal(0, 3000, CHUNK_SAMPLES).astype(np.int16)
    said, heard = sound(0, 0, samples=voice), sound(300, 0, 1, -10, voice)
    late = Picture(heard.stamp_ns, heard.stamp_ns + 25 * MS, b'')
    recording = Recording(Path('bag'), user_audio=[said, sound(160, 0)], audio=[heard],
                          pictures=[late])
    presented, published, _ = bench_telepresence.delays_ms(recording)
    assert presented == published == pytest.approx([325.0], abs=0.2)
