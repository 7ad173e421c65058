# SPDX-License-Identifier: Apache-2.0
"""Acting: which segments are lessons, and that only the refiner learns from them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import toy
from toy import ALONE, TINY

from interactive_avatar.generator.networks import Generator
from interactive_avatar.generator.prompts import WorldState, prompt_table, trained_variants
from interactive_avatar.training.acting import (
    ActingOptions,
    gather,
    train_acting,
)
from interactive_avatar.training.data import Shard
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.reading import Texts, meant, table_names
from interactive_avatar.training.stage import Run

CONFIG = replace(TINY, denoiser=replace(TINY.denoiser, refiner_layers=1, refiner_ffn_width=64))
OPTIONS = ActingOptions(actions=('think',), streams=4, segments=4, batch=6, stay=6, queries=8,
                        kept=64, settle_steps=2, judge_steps=5)
TABLE = prompt_table()
REST = meant(None, {}, WorldState())
THINK = meant('think', {}, WorldState())
OTHER_WORDS = next(number for number, prompt in enumerate(TABLE)
                   if prompt.action == 'think' and prompt.variant in trained_variants(
                       WorldState(), 'think')[1:] and prompt.world == WorldState())


def prompts() -> Prompts:
    """Random states for the whole table, half of each masked."""
    d = CONFIG.denoiser
    random = torch.Generator().manual_seed(1)
    mask = torch.zeros((len(TABLE), d.text_tokens))
    mask[:, d.text_tokens // 2:] = -1e4
    states = torch.randn((len(TABLE), d.text_tokens, d.text_width), generator=random)
    return Prompts.of(states.masked_fill((mask < 0.0)[..., None], 0.0), mask)


def moments(of: Prompts) -> Texts:
    """Stand-ins for the moments in which an expression ends."""
    return Texts(of.states[:7].flip(0), of.mask[:7], torch.arange(7))


def trainee(refiner: bool = True) -> Trainee:
    """A tiny generator whose text attention does something."""
    torch.manual_seed(0)
    config = CONFIG if refiner else replace(CONFIG, denoiser=replace(CONFIG.denoiser,
                                                                     refiner_layers=0))
    generator = Generator(config)
    for parameter in [*generator.audio.parameters(), *generator.denoiser.parameters()]:
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.06)
    return Trainee(generator.audio, generator.denoiser)


def thinking_shard(share: int = 10, number: int = OTHER_WORDS) -> Shard:
    """Made-up clips of people at rest who think for ``share`` of every 20 chunks, and then are
    somewhere else."""
    source = toy.shard()
    source.told[:] = True
    source.prompt_ids[:] = REST
    for start in range(0, source.prompt_ids.shape[1], 20):
        source.prompt_ids[:, start + 5:start + 5 + share] = number
    assert source.latents is not None
    source.latents[source.prompt_ids == number] += 2.0
    return source


def test_lessons_are_chunks_of_the_actions_in_canonical_words() -> None:
    source, model, table = thinking_shard(), trainee(), prompts()
    source.in_view[:, 25 * 4:27 * 4] = False
    canonical = Texts.of_table(table).target
    lessons = gather(model, source, table, replace(OPTIONS, segments=8), canonical)
    assert lessons['held'] and lessons['free']
    for lesson in lessons['held'] + lessons['free']:
        segment = lesson.segment
        at = int(segment.at) + torch.arange(10)
        acts = (source.prompt_ids[0, at] == OTHER_WORDS) & (at != 25) & (at != 26)
        assert torch.equal(lesson.weight[0].amax((1, 2, 3)) > 0.0, acts) and acts.any()
        played = segment.prompt_ids.gather(1, segment.text_index)[0]
        assert set(played[acts].tolist()) == {THINK} and OTHER_WORDS not in played
    assert all(int(lesson.segment.age) > 0 for lesson in lessons['free'])


def test_what_is_worn_and_not_told_is_no_lesson() -> None:
    source, table = thinking_shard(), prompts()
    source.told[:] = False
    source.told[:, 0] = True  # streams begin where it is told
    lessons = gather(trainee(), source, table, OPTIONS, Texts.of_table(table).target)
    assert not any(lessons.values())


def test_only_the_refiner_is_trained_and_pictures_come_nearer(tmp_path: Path) -> None:
    source, table, model = thinking_shard(), prompts(), trainee()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    missed: list[float] = []

    def each(_: int, values: Mapping[str, torch.Tensor | float]) -> None:
        missed.extend(float(value) for name, value in values.items()
                      if name.startswith('missed'))

    train_acting(model, source, table, moments(table), ALONE,
                 Run(out=tmp_path, state=tmp_path, steps=41, each=each),
                 replace(OPTIONS, peak_rate=3e-3))
    changed = {name for name, value in model.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed and all(name.startswith('denoiser.refiner.') for name in changed)
    assert missed[0] == pytest.approx(1.0, abs=1e-3) and missed[-1] < 0.98
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(('refiner', 'number', 'match'), [
    (True, REST, 'none of 3 clips has any of these actions.*think'),
    (False, OTHER_WORDS, 'train the stage text first')])
def test_what_cannot_be_learnt_from_is_said(tmp_path: Path, refiner: bool, number: int,
                                            match: str) -> None:
    table = prompts()
    with pytest.raises(ValueError, match=match):
        train_acting(trainee(refiner), thinking_shard(number=number), table, moments(table),
                     ALONE, Run(out=tmp_path, state=tmp_path, steps=1), OPTIONS)


def test_an_unknown_action_is_named() -> None:
    assert 'look up' in table_names() and '' in table_names()
    with pytest.raises(ValueError, match=r"'look_up' is unknown; use some of .*look up"):
        ActingOptions(actions=('look_up',))
