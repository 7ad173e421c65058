# SPDX-License-Identifier: Apache-2.0
"""Performances are deterministic, split by rule, and show what their prompts say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interactive_avatar.generator.prompts import action_prompt, prompt_table, stable_prompt
from interactive_avatar.training.performances import (
    Performance,
    compose,
    mouth_opening,
    restless,
)
from interactive_avatar.training.performances.compose import AWAY_M
from interactive_avatar.training.performances.motion import Track, blinks, ease, oscillation
from interactive_avatar.training.speech import SpeechLibrary, Utterance
from interactive_avatar.training.speech.curves import MOUTH_UNITS
from interactive_avatar.training.units import UNITS

LENGTH = 60


@pytest.fixture(scope='module')
def library() -> SpeechLibrary:
    """Four made-up utterances: two voices to train on, two for test."""
    rng = np.random.default_rng(0)
    mel = np.zeros((4 * 4 * LENGTH, 64), np.uint8)
    curves = np.zeros((4 * LENGTH, len(MOUTH_UNITS)), np.uint8)
    utterances = []
    for index in range(4):
        start = index * LENGTH
        mel[4 * (start + 4):4 * (start + LENGTH - 5)] = rng.integers(80, 200, (4 * 51, 64))
        curves[start + 3:start + LENGTH - 3, 0] = rng.integers(0, 150, LENGTH - 6)
        utterances.append(Utterance(index, f'voice{index % 2}*1.05' if index == 0 else
                                    f'voice{index % 2}', 'train' if index < 2 else 'test',
                                    'hello', start, LENGTH, 4, LENGTH - 5))
    return SpeechLibrary(mel, curves, MOUTH_UNITS, utterances)


@pytest.fixture(scope='module')
def performances(library: SpeechLibrary) -> list[Performance]:
    return [compose(seed, range(40), library, 40.0) for seed in range(40)]


def test_same_seed_same_performance(library: SpeechLibrary) -> None:
    one, two = (compose(7, range(40), library, 10.0) for _ in range(2))
    assert one.identity == two.identity
    for name in ('units', 'head', 'glasses', 'hat', 'mel', 'mouth_open', 'prompt_ids'):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_shapes_and_ranges(performances: list[Performance]) -> None:
    for performance in performances:
        n = performance.frames
        assert n == 1000 and n % 20 == 0
        assert performance.units.shape == (n, 52) and performance.units.dtype == np.float32
        assert performance.head.shape == (n, 6)
        assert performance.mel.shape == (4 * n, 64)
        assert performance.prompt_ids.shape == (n // 4,)
        assert 0.0 <= performance.units.min() and performance.units.max() <= 1.0
        assert np.isfinite(performance.head).all()
        assert performance.units[:, UNITS.index('tongueOut')].max() == 0.0
        # Smooth: nobody's head turns faster than 6 rad/s or jumps.
        assert np.abs(np.diff(performance.head[:, :3], axis=0)).max() < 0.24
        assert np.abs(np.diff(performance.head[:, 3:], axis=0)).max() < 0.07


def test_splits_never_mix(library: SpeechLibrary) -> None:
    for seed in range(10):
        for split in ('train', 'test'):
            performance = compose(seed, range(40), library, 20.0, split)
            assert (performance.identity % 10 == 9) == (split == 'test')
            assert {library.utterances[placed.utterance].split
                    for placed in performance.speech} <= {split}


def test_mouth_is_closed_in_silence(performances: list[Performance]) -> None:
    for performance in performances:
        quiet = np.ones(performance.frames, bool)
        for placed in performance.speech:
            quiet[max(placed.start_frame - 1, 0):placed.start_frame + LENGTH + 1] = False
        for event in performance.events:
            if event.action == 'look_surprised':
                quiet[event.start_frame:event.end_frame + 20] = False
        assert performance.mouth_open[quiet].max() == pytest.approx(0.0, abs=1e-6)
        sound = performance.mel.max(axis=1).reshape(-1, 4).max(axis=1) > 0
        assert not (sound & quiet).any()


def test_every_action_appears(performances: list[Performance]) -> None:
    seen = {event.action for performance in performances for event in performance.events}
    assert seen >= {'talk', 'nod', 'shake_head', 'smile', 'frown', 'look_surprised', 'look',
                    'tilt_head', 'raise_eyebrows', 'think', 'lean_closer', 'wear', 'remove',
                    'step_out', 'come_back', 'listen'}


def test_prompts_tell_the_action_and_the_world(performances: list[Performance]) -> None:
    table = prompt_table()
    for performance in performances:
        for event in performance.events:
            prompt = table[performance.prompt_ids[event.start_frame // 4]]
            assert event.start_frame % 4 == 0
            assert prompt.action == event.action and prompt.slots == event.slots
        for frame, world in performance.worlds:
            prompt = table[performance.prompt_ids[frame // 4]]
            assert prompt.action is None
            last = min(frame + 15, performance.frames - 1)
            assert performance.glasses[last] == (1.0 if world.glasses else 0.0)
            assert performance.hat[last] == (1.0 if world.hat else 0.0)
            out = performance.head[last, 3] > 0.5 * AWAY_M
            assert out == (not world.in_view)
            told = (world, replace(world, glasses=False, hat=False))
            assert prompt.text in [stable_prompt(each, prompt.variant) for each in told]


def test_in_training_prompts_fall_silent_about_what_is_worn(
        performances: list[Performance], library: SpeechLibrary) -> None:
    tests = [compose(seed, range(40), library, 40.0, 'test') for seed in range(40)]
    table, silent = prompt_table(), {}
    for split, played in (('train', performances), ('test', tests)):
        worn = [(world, table[each.prompt_ids[frame // 4]].world)
                for each in played for frame, world in each.worlds if world.worn]
        silent[split] = sum(told.worn != world.worn for world, told in worn) / len(worn)
        for each in played:
            for event in each.events:
                if event.action == 'remove':
                    told = table[each.prompt_ids[event.start_frame // 4]]
                    assert dict(told.slots)['object'] in ('glasses', 'hat')
    assert 0.05 < silent['train'] < 0.5
    assert silent['test'] == 0.0


def test_in_training_many_come_back_with_what_no_prompt_names(library: SpeechLibrary) -> None:
    """What only the long memory can tell: longer away than the short memory lasts."""
    told_by_memory = 0
    for seed in range(60):
        performance = compose(seed, range(220), library, seconds=24.0)
        away = np.abs(performance.head[:, 3]) > 0.5
        for event in performance.events:
            seen = min(event.end_frame, performance.frames - 1)
            worn = performance.glasses[seen] > 0.9 or performance.hat[seen] > 0.9
            prompt = performance.prompt_at(seen)
            if (event.action == 'come_back' and worn and away[:event.start_frame].sum() > 64
                    and 'glasses' not in prompt and 'hat' not in prompt):
                told_by_memory += 1
    assert told_by_memory > 5


def test_short_performances_end_where_they_end(library: SpeechLibrary) -> None:
    for seed in range(40):
        short = compose(seed, range(40), library, seconds=4.0)
        assert all(0 <= event.start_frame < event.end_frame <= short.frames
                   for event in short.events)


def test_motion_follows_the_action(performances: list[Performance]) -> None:
    for performance in performances:
        for event in performance.events:
            if event.end_frame >= performance.frames:
                continue
            span = slice(event.start_frame, event.end_frame)
            yaw, pitch, roll = performance.head[span, :3].T
            slots = dict(event.slots)
            if event.action == 'nod':
                assert pitch.min() < -0.08
            elif event.action == 'shake_head':
                assert np.ptp(yaw) > 0.3
            elif event.action == 'tilt_head':
                assert np.abs(roll).max() > 0.15
            elif event.action == 'lean_closer':
                assert performance.head[span, 5].max() > 0.1
            elif event.action == 'look' and slots['direction'] == 'left':
                assert yaw[-1] < -0.2
                eyes = performance.units[span]
                assert eyes[-1, UNITS.index('eyeLookInLeft')] > 0.3
                assert eyes[-1, UNITS.index('eyeLookOutRight')] > 0.3


def test_restless_brows_move_and_nothing_else(performances: list[Performance]) -> None:
    plain = performances[0]
    moved = restless(plain, np.random.default_rng(4))
    brows = np.array([name.startswith('brow') for name in UNITS])
    assert np.array_equal(moved.units[:, ~brows], plain.units[:, ~brows])
    assert moved.units.min() >= 0.0 and moved.units.max() <= 1.0
    assert np.array_equal(moved.head, plain.head)
    inner = moved.units[:, UNITS.index('browInnerUp')]
    lowered = moved.units[:, UNITS.index('browDownLeft')]
    # Up and down, many times a minute, and never both.
    for track in (inner, lowered):
        assert np.abs(np.diff(track > 0.5)).sum() > 6
    assert inner.std() > 1.5 * plain.units[:, UNITS.index('browInnerUp')].std()
    again = restless(plain, np.random.default_rng(4))
    assert np.array_equal(again.units, moved.units)


def test_a_face_comes_and_goes_within_a_chunk_of_its_prompt(library: SpeechLibrary) -> None:
    column, halves = UNITS.index('browOuterUpLeft'), []
    for seed in range(60):
        played = compose(seed, range(40), library, 40.0)
        for event in played.events:
            if event.action != 'raise_eyebrows' or event.end_frame + 12 >= played.frames:
                continue
            for at in (event.start_frame, event.end_frame):
                before, settled = (float(played.units[at + late, column]) for late in (-1, 7))
                if abs(settled - before) > 0.6:
                    halves.append((played.units[at + 3, column] - before) / (settled - before))
    assert len(halves) > 10 and min(halves) > 0.5


def test_blinks_shut_the_eyes() -> None:
    closure = blinks(np.random.default_rng(0), 1500, [])
    shut = (closure == 1.0).astype(int)
    count = int((np.diff(shut) == 1).sum())
    assert 10 < count < 30
    assert shut.sum() == 2 * count


def test_motion_blocks() -> None:
    assert ease(10)[-1] == pytest.approx(1.0)
    assert np.all(np.diff(ease(10)) > 0)
    track = Track(40)
    track.pulse(5, 5, 5, 5, 1.0)
    assert track.values[4] == 0.0 and track.values[12] == 1.0 and track.values[25] == 0.0
    assert abs(oscillation(2, 1.5, 0.2)[-1]) < 1e-5


def test_mouth_opening_counts_lips() -> None:
    units = np.zeros((3, 52), np.float32)
    units[1:, UNITS.index('jawOpen')] = 0.5
    units[2, UNITS.index('mouthClose')] = 0.5
    assert mouth_opening(units) == pytest.approx([0.0, 0.5, 0.0])


def test_bad_requests_are_named(library: SpeechLibrary) -> None:
    with pytest.raises(ValueError, match='too short'):
        compose(0, range(40), library, 0.5)
    with pytest.raises(ValueError, match='identity of split'):
        compose(0, range(5), library, 5.0, 'test')


def test_action_prompts_used_are_the_canonical_ones_often(
        performances: list[Performance]) -> None:
    table = prompt_table()
    variants = [table[number].variant for performance in performances
                for number in performance.prompt_ids]
    assert 0.3 < np.mean(np.array(variants) == 0) < 0.6
    nod = action_prompt('nod', performances[0].worlds[0][1])
    assert any(prompt.text == nod for prompt in table)
