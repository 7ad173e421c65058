# SPDX-License-Identifier: Apache-2.0
"""Blinking: which blinks are lessons, and that nothing but a blink is learnt."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import toy
from toy import ALONE, TINY

from interactive_avatar.generator.networks import Generator
from interactive_avatar.training.blinking import (
    LIDS,
    OPEN_MOST,
    BlinkingOptions,
    blink_phases,
    collate,
    drawn,
    gather,
    train_blinking,
)
from interactive_avatar.training.data import PROBE_UNITS, Shard
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.performances.motion import BLINK
from interactive_avatar.training.stage import Run

OPTIONS = BlinkingOptions(streams=3, segments=2, free_segments=1, batch=4, settle_steps=2)


def blinking_shard(starts: list[int], seed: int = 0) -> Shard:
    """Made-up clips of people who blink from the given frames on."""
    source = toy.shard(seed=seed)
    units = torch.zeros((*source.probe_units.shape[:2], len(PROBE_UNITS)))
    for start in starts:
        units[:, start:start + len(BLINK), LIDS] = torch.from_numpy(BLINK)
    source.probe_units = units
    source.told[:] = True
    return source


def test_a_blink_is_one_if_it_begins_in_the_second_frame_of_a_chunk() -> None:
    lids = torch.zeros((4, 40))
    for clip in range(4):
        lids[clip, 8 + clip:8 + clip + len(BLINK)] = torch.from_numpy(BLINK)
    lids[1, :8] = OPEN_MOST  # looks down before
    expected = torch.zeros((4, 10), dtype=torch.int64)
    expected[1, 2:4] = torch.tensor([1, 2])
    torch.testing.assert_close(blink_phases(lids), expected)


def test_lessons_are_the_blinks_and_times_when_nothing_is_to_change() -> None:
    source = blinking_shard([21, 62, 101, 141, 221])
    source.in_view[:, 200:] = False
    lessons = gather(toy.trainee(), source, toy.prompts(),
                     replace(OPTIONS, segments=6, free_segments=1))
    assert all(lessons.values()) and len(lessons['free']) == OPTIONS.streams
    for lesson in lessons['held']:
        start = int(lesson.segment.at)
        found = {start + int(chunk): int(lesson.phase[0, chunk])
                 for chunk in torch.nonzero(lesson.phase[0]).flatten()}
        assert found.items() <= {5: 1, 6: 2, 25: 1, 26: 2, 35: 1, 36: 2}.items()
        assert 0.0 <= lesson.eyes.min() and 0.2 < lesson.eyes.max() <= 1.0
        torch.testing.assert_close(lesson.goal, lesson.segment.truth)
    for lesson in lessons['empty']:
        assert ((lesson.phase > 0) == ~lesson.segment.seen).all() and not lesson.eyes.any()
    for lesson in lessons['free']:
        told = lesson.phase[0][lesson.phase[0] > 0].tolist()
        assert told in ([1, 2], [1]) and not lesson.eyes.any() and lesson.still.any()
        torch.testing.assert_close(lesson.goal, lesson.segment.made)


def test_what_is_not_told_is_no_lesson() -> None:
    source = blinking_shard([21, 62])
    source.told[:] = False
    source.told[:, 0] = True  # streams begin where it is told
    assert not gather(toy.trainee(), source, toy.prompts(), OPTIONS)['held']


def test_only_the_blink_is_trained_and_only_its_chunks_change(tmp_path: Path) -> None:
    source, prompts, model = blinking_shard([5, 25, 45, 65, 85, 105, 125]), toy.prompts(), \
        toy.trainee()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lesson = collate(gather(model, source, prompts, OPTIONS)['held'][:3])
    noise = torch.randn_like(lesson.segment.truth)
    level = torch.ones_like(lesson.segment.level)
    still = drawn(model, lesson, prompts, noise, level, False, 0.1)
    train_blinking(model, source, prompts, ALONE, Run(out=tmp_path, state=tmp_path, steps=12),
                   OPTIONS)
    changed = {name for name, value in model.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == {'denoiser.blink_k', 'denoiser.blink_v'}
    torch.testing.assert_close(drawn(model, lesson, prompts, noise, level, False, 0.1), still)
    now = drawn(model, lesson, prompts, noise, level, True, 0.1)
    with torch.no_grad():
        first = int(torch.nonzero(lesson.phase[0]).flatten()[0])
        torch.testing.assert_close(now[0, :first], still[0, :first])
        assert not torch.allclose(now[0, first], still[0, first])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_eyes_come_nearer_to_the_clips(tmp_path: Path) -> None:
    source, prompts, model = blinking_shard([5, 25, 45, 65, 85, 105, 125]), toy.prompts(), \
        toy.trainee()
    options = replace(OPTIONS, batch=6, peak_rate=0.1)
    missed: list[float] = []

    def each(_: int, values: Mapping[str, torch.Tensor | float]) -> None:
        if 'eyes_missed' in values:
            missed.append(float(values['eyes_missed']))

    train_blinking(model, source, prompts, ALONE,
                   Run(out=tmp_path, state=tmp_path, steps=40, each=each), options)
    assert len(missed) == 40 and np.mean(missed[-5:]) < np.mean(missed[:5]) - 0.005


@pytest.mark.parametrize(('starts', 'rows', 'match'), [
    ([22, 60], 2, 'none of 3 clips has a blink'), ([21], 0, 'give blink_rows')])
def test_what_cannot_be_learnt_from_is_said(tmp_path: Path, starts: list[int], rows: int,
                                            match: str) -> None:
    model = toy.trainee()
    if not rows:
        generator = Generator(replace(TINY, denoiser=replace(TINY.denoiser, blink_rows=0)))
        model = Trainee(generator.audio, generator.denoiser)
    with pytest.raises(ValueError, match=match):
        train_blinking(model, blinking_shard(starts), toy.prompts(), ALONE,
                       Run(out=tmp_path, state=tmp_path, steps=1), OPTIONS)
