# SPDX-License-Identifier: Apache-2.0
"""Recall: what stories say and keep quiet about, that lessons are what was played, learning."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy import ALONE, CPU, TINY, shard, trainee

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.prompts import prompt_table
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.recall import (
    KEPT,
    WORDS,
    Lesson,
    RecallOptions,
    ask,
    collate,
    compose_story,
    drawn,
    play,
    play_clips,
    play_held,
    story_shard,
    train_recall,
)
from interactive_avatar.training.stage import Run
from interactive_avatar.training.synthetic import synthetic_prompts

OPTIONS = RecallOptions(stories=4, streams=2, away=(4, 4), batch=3, peak_rate=3e-3,
                        settle_steps=1, usual=1, rounds=1, jump_share=0.0)
WORN = RecallOptions(worn_share=1.0, removed_share=0.0, jump_share=0.0)
REMOVED = RecallOptions(worn_share=0.0, removed_share=1.0)
BARE = RecallOptions(worn_share=0.0, removed_share=0.0)
OTHERS = {'unaided', 'unworn', 'bare', 'worn', 'usual', 'switch', 'lips', 'turned', 'empty'}
"""Kinds of lessons that are no kinds of segments."""


def named(number: int) -> tuple[str, ...]:
    """Objects that a prompt says are worn."""
    return prompt_table()[number].world.worn


@pytest.mark.parametrize('seed', range(6))
def test_a_story_names_what_is_worn_or_keeps_quiet_about_it(seed: int) -> None:
    story = compose_story(np.random.default_rng(seed), WORN, 4)
    by_kind = dict(zip(story.kinds, zip(story.told, story.silent, strict=True), strict=True))
    assert set(KEPT) - OTHERS <= set(story.kinds) and story.kinds.count('away') == 4
    assert story.told[1] == story.silent[1] and prompt_table()[story.told[1]].action == 'wear'
    for kind in set(KEPT) - OTHERS - {'act'}:
        told, silent = by_kind[kind]
        assert len(named(told)) == 1 and named(silent) == ()
        table = prompt_table()
        assert (table[told].action, table[told].variant) == (table[silent].action,
                                                             table[silent].variant)


@torch.no_grad()
def test_a_stay_can_last_and_lessons_that_are_never_drawn_are_not_kept() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    model = trainee().eval()
    long = replace(WORN, stays=(3, 3), away=(4, 4), shares={'leave': 0.0, 'worn': 0.0})
    lessons = play(model, model, source, prompts, long, np.random.default_rng(3), 2)
    assert len(lessons['in_view']) + len(lessons['act']) == 2 * 5
    assert lessons['leave'] == [] and lessons['worn'] == [] and len(lessons['unaided']) == 4
    with pytest.raises(ValueError, match=r'stays is \[2, 1\]: give the fewest, 1 or more'):
        RecallOptions(stays=(2, 1))


def test_a_jump_puts_on_what_is_named_and_never_what_is_not() -> None:
    story = compose_story(np.random.default_rng(1), replace(WORN, jump_share=1.0), 4)
    table = prompt_table()
    assert story.kinds[1] == 'in_view' and table[story.told[1]].action is None
    assert story.told[1] == story.silent[1] and len(named(story.told[1])) == 1
    assert named(story.silent[0]) == () and named(story.silent[2]) == ()


@torch.no_grad()
def test_words_that_are_dropped_change_what_is_drawn_and_the_first_stays() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    model = trainee().eval()
    worn = replace(OPTIONS, worn_share=1.0, removed_share=0.0)
    lessons = play(model, model, source, prompts, worn, np.random.default_rng(3), 2)
    segment, audio = collate(lessons['return'])
    level = TINY.sampler.commit_level
    whole = drawn(model, segment, audio, prompts, level)
    torch.testing.assert_close(drawn(model, segment, audio, prompts, level, 0.0), whole)
    torch.manual_seed(0)
    assert not torch.allclose(drawn(model, segment, audio, prompts, level, 1.0), whole)
    # Prompts of one token, the first, have none to lose.
    prompts.mask[..., 1:] = float(MASKED)
    torch.testing.assert_close(drawn(model, segment, audio, prompts, level, 1.0),
                               drawn(model, segment, audio, prompts, level))


@pytest.mark.parametrize('options', [REMOVED, BARE], ids=['removed', 'bare'])
def test_there_is_nothing_to_keep_quiet_about_where_nothing_is_worn_in_the_end(
        options: RecallOptions) -> None:
    story = compose_story(np.random.default_rng(1), options, 4)
    last = story.kinds.index('leave')
    assert story.told[last:] == story.silent[last:]
    removed = 'remove' in [prompt_table()[number].action for number in story.told]
    assert removed == (options is REMOVED)


def test_prompts_are_silent_out_of_view_and_speech_is_the_shards() -> None:
    source = shard()
    story = compose_story(np.random.default_rng(2), WORN, 4)
    clips = story_shard(source, [story, story], RecallOptions(speech_share=0.5))
    away = story.kinds.index('away')
    assert clips.prompt_ids.shape == (2, 10 * len(story.kinds))
    assert (clips.prompt_ids[:, 10 * away] == story.silent[away]).all()
    assert (clips.prompt_ids[:, 10 * away - 1] == story.told[away - 1]).all()
    heard, quiet = clips.mel
    assert quiet.max() == 0
    assert any(torch.equal(heard[:source.mel.shape[1]], mel) for mel in source.mel)


@torch.no_grad()
def test_a_lesson_played_with_its_own_prompts_gives_what_was_played() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    model = trainee().eval()
    worn = replace(OPTIONS, worn_share=1.0, removed_share=0.0)
    lessons = play(model, model, source, prompts, worn, np.random.default_rng(3), 2)
    counts = {kind: len(each) for kind, each in lessons.items() if kind not in OTHERS}
    # What is put on, taken off or done in view takes one or two of the three segments there.
    assert counts.pop('in_view') + counts.pop('act') == 6
    assert counts == {'leave': 2, 'return': 2, 'back': 2}
    chosen = [lessons['return'][0], lessons['leave'][1]]
    told = torch.cat([lesson.segment.prompt_ids for lesson in chosen])
    segment, audio = collate(chosen)
    assert torch.equal(segment.prompt_ids, torch.cat([lesson.prompt_ids for lesson in chosen]))
    for index, lesson in enumerate(chosen):
        assert lesson.wanted is not None and torch.equal(lesson.wanted[0], segment.made[index])
    segment.prompt_ids = told
    again = drawn(model, segment, audio, prompts, TINY.sampler.commit_level)
    # The last step of the sampler gave what was made; earlier ones were only on the way. Windows
    # are computed in bfloat16.
    final = segment.level == min(TINY.sampler.levels)
    assert final.any()
    torch.testing.assert_close(again[final], segment.made[final], atol=0.05, rtol=0.05)


@torch.no_grad()
def test_who_comes_back_is_also_played_without_a_word_and_asked_for_the_told_picture() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    model = trainee().eval()
    worn = replace(OPTIONS, worn_share=1.0, removed_share=0.0)
    lessons = play(model, model, source, prompts, worn, np.random.default_rng(5), 2)
    assert len(lessons['unaided']) == 4 and len(lessons['return']) == 2
    told, alone = lessons['return'], lessons['unaided'][:2]
    assert any((lesson.segment.level == 1.0).any() for lesson in told)
    for one, other in zip(told, alone, strict=True):
        # The same memories at the door, the same noise; another prompt, hence other pictures (and
        # what a sampler's later steps begin from).
        assert torch.equal(one.segment.groups[:, :6], other.segment.groups[:, :6])
        first = one.segment.level == 1.0
        assert torch.equal(first, other.segment.level == 1.0)
        assert torch.equal(one.segment.noised[first], other.segment.noised[first])
        assert other.segment.prompt_ids[0, 0] == other.prompt_ids[0, 0] \
            != one.segment.prompt_ids[0, 0]
        assert other.wanted is not None and torch.equal(other.wanted, one.segment.made)
        assert not torch.allclose(other.wanted, other.segment.made)
    assert lessons['bare'] == [] and lessons['unworn'] == []
    # In view they are played as the generator has become, told what is worn.
    assert len(lessons['worn']) == 2 * 5
    table = prompt_table()
    for lesson in lessons['worn']:
        assert lesson.wanted is None
        assert torch.equal(lesson.prompt_ids[:, 0], lesson.segment.prompt_ids[:, 0])
    assert any(table[int(lesson.prompt_ids[0, 0])].world.worn for lesson in lessons['worn'])


@torch.no_grad()
def test_who_wore_nothing_is_asked_for_what_comes_without_a_long_memory() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    model = trainee().eval()
    bare = replace(OPTIONS, worn_share=0.0, removed_share=0.0, forgotten_weight=4.0)
    lessons = play(model, model, source, prompts, bare, np.random.default_rng(5), 2)
    assert lessons['return'] == [] and lessons['back'] == [] and len(lessons['unworn']) == 4
    start, slots, tokens = TINY.cache_layout['long']
    long, compared = slice(start, start + slots * tokens), 0
    for lesson in lessons['unworn'][:2]:
        # It has its memory; what is asked for is what the same generator makes of the same noise
        # and memories but that one.
        assert (lesson.segment.mask[:, 0, long] == 0.0).any()
        assert lesson.wanted is not None and lesson.weight is not None
        assert not torch.allclose(lesson.wanted, lesson.segment.made)
        blind = replace(lesson, segment=replace(lesson.segment))
        blind.segment.mask = lesson.segment.mask.clone()
        blind.segment.mask[:, :, long] = float(MASKED)
        asked = drawn(model, *collate([blind]), prompts, TINY.sampler.commit_level)
        if lesson.segment.level[0, 0] == min(TINY.sampler.levels):
            compared += 1
            torch.testing.assert_close(asked[:, 0], lesson.wanted[:, 0], atol=0.05, rtol=0.05)
        counted = lesson.weight[lesson.weight > 0.0]
        assert float(counted.max()) > float(counted.min()) > 1.0
    assert compared


@torch.no_grad()
def test_what_has_nothing_to_be_named_is_played_as_it_became_and_the_tutor_is_asked() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    source.told.fill_(True)
    tutor, model = trainee().eval(), trainee().eval()
    for value in model.denoiser.parameters():
        value.add_(0.02 * torch.randn_like(value))
    bare = replace(OPTIONS, worn_share=0.0, removed_share=0.0)
    lessons = play(tutor, model, source, prompts, bare, np.random.default_rng(3), 2)
    assert lessons['unaided'] == []
    # At rest, three more in view, and leaving.
    assert len(lessons['bare']) == 2 * 5
    usual = play_clips(model, source, prompts, bare, np.random.default_rng(3), 2)['usual']
    assert usual and all(lesson.segment.told.all() for lesson in usual)
    for lesson in (lessons['bare'][-1], usual[-1]):
        assert lesson.wanted is None
        ask(tutor, [lesson], prompts, 2, TINY.sampler.commit_level)
        assert lesson.wanted is not None
        own = drawn(model, *collate([lesson]), prompts, TINY.sampler.commit_level)
        assert not torch.allclose(lesson.wanted, own, atol=1e-3)
        torch.testing.assert_close(lesson.wanted, drawn(
            tutor, *collate([lesson]), prompts, TINY.sampler.commit_level))


@torch.no_grad()
def test_an_empty_picture_is_asked_for_as_the_clip_shows_it_and_of_nobody_else() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    source.told.fill_(True)
    # Nobody in view from chunk 14 to 24: the picture is empty from 16 to 22.
    source.in_view[:, 4 * 14:4 * 25] = False
    gone = set(range(16, 23))
    assert source.latents is not None
    lessons = play_clips(trainee().eval(), source, prompts, replace(OPTIONS, usual=6),
                         np.random.default_rng(3), 2)
    assert lessons['empty'] and lessons['usual']
    for kind, each in lessons.items():
        for lesson in each:
            clip, at = int(lesson.segment.clip), int(lesson.segment.at)
            chunks = set(range(at, at + 10))
            assert lesson.weight is not None
            counted = {at + int(k) for k in torch.nonzero(
                lesson.weight[0].amax((1, 2, 3))).flatten()}
            assert counted == (chunks & gone if kind == 'empty' else chunks - gone)
            assert float(lesson.weight.mean()) == pytest.approx(1.0, abs=1e-4)
            if kind == 'empty':
                assert lesson.wanted is not None
                assert torch.equal(lesson.wanted[0], source.latents[clip, at:at + 10].float())
            else:
                assert lesson.wanted is None


@torch.no_grad()
def test_of_stories_no_empty_picture_counts_and_what_was_forgotten_counts_most() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    model = trainee().eval()
    worn = replace(OPTIONS, worn_share=1.0, removed_share=0.0, forgotten_weight=8.0)
    lessons = play(model, model, source, prompts, worn, np.random.default_rng(5), 2)

    def counted(lesson: Lesson) -> set[int]:
        assert lesson.weight is not None
        return {int(k) for k in torch.nonzero(lesson.weight[0].amax((1, 2, 3))).flatten()}

    assert all(counted(lesson) == set(range(4)) for lesson in lessons['leave'])
    assert all(counted(lesson) == set(range(2, 10)) for lesson in lessons['return'])
    assert all(counted(lesson) == set(range(10)) for lesson in lessons['back'])
    for lesson in lessons['unaided']:
        assert lesson.weight is not None and lesson.wanted is not None
        missed = (lesson.wanted - lesson.segment.made).square().mean(2, keepdim=True)
        there = lesson.weight > 0.0
        order = lesson.weight[there][missed[there].argsort()]
        assert (order.diff() >= -1e-5).all() and float(order[-1]) > float(order[0]) > 1.0


@torch.no_grad()
def test_who_is_away_is_played_as_the_generator_has_become() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    tutor, model = trainee().eval(), trainee().eval()
    for value in model.denoiser.parameters():
        value.add_(0.02 * torch.randn_like(value))
    worn = replace(OPTIONS, worn_share=1.0, removed_share=0.0)
    group = TINY.memory.group

    def short(who: Trainee) -> torch.Tensor:
        lessons = play(tutor, who, source, prompts, worn, np.random.default_rng(5), 2)
        told, alone = lessons['return'][0].segment, lessons['unaided'][0].segment
        # Both go in by the same door, and it is not the tutor's.
        torch.testing.assert_close(told.groups[:, :6], alone.groups[:, :6])
        assert told.groups.shape[2] == group
        return told.groups[:, :6]

    source.random.manual_seed(0)
    theirs = short(tutor)
    source.random.manual_seed(0)
    assert not torch.allclose(short(model), theirs, atol=1e-3)


@torch.no_grad()
def test_after_a_switch_the_clip_itself_is_asked_for_out_of_noise() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    # Prompts of this shard change every ten chunks at most; chunk 33 of each clip is new too.
    source.prompt_ids[:, 33:40] = 7
    held = play_held(trainee().eval(), source, prompts, replace(OPTIONS, switches=6),
                     np.random.default_rng(3), 2)
    lessons = held['switch']
    assert lessons and len(held['lips']) == 12
    for lesson in held['lips']:
        clip, at = int(lesson.segment.clip), int(lesson.segment.at)
        assert lesson.weight is not None and lesson.wanted is not None and source.marks is not None
        seen = source.seen(lesson.segment.clip, lesson.segment.at, 10)[0]
        assert torch.equal(lesson.weight[0].amax((1, 2, 3)) > 0.0, seen)
        assert float(lesson.weight.mean()) == pytest.approx(1.0, abs=1e-4)
        # The mouth's cell weighs most.
        chunk = int(torch.nonzero(seen)[0])
        x, y = source.marks[clip, 4 * (at + chunk):4 * (at + chunk + 1), 0].mean(0) / 16.0
        row, column = divmod(int(lesson.weight[0, chunk, 0].argmax()), lesson.weight.shape[-1])
        assert abs(row + 0.5 - float(y)) <= 0.51 and abs(column + 0.5 - float(x)) <= 0.51
    for lesson in lessons:
        clip, at = int(lesson.segment.clip), int(lesson.segment.at)
        ids = source.prompt_ids[clip]
        after = {chunk + late for chunk in range(1, 60) if ids[chunk] != ids[chunk - 1]
                 for late in (0, 1)}
        assert lesson.weight is not None and lesson.wanted is not None
        counted = {at + int(k) for k in torch.nonzero(lesson.weight[0].amax((1, 2, 3))).flatten()}
        assert counted == after & set(range(at, at + 10)) and counted
        assert float(lesson.weight.mean()) == pytest.approx(1.0, abs=1e-4)
        assert source.latents is not None
        assert torch.equal(lesson.wanted[0], source.latents[clip, at:at + 10].float())
        assert (lesson.segment.level == 1.0).all()
        assert abs(float(lesson.segment.noised.mean())) < 0.1


@torch.no_grad()
def test_heads_are_turned_where_the_eyes_are_near_each_other() -> None:
    source, prompts = shard(), synthetic_prompts(TINY, len(prompt_table()), CPU)
    assert source.marks is not None
    source.marks[:, :, 1] = torch.tensor([20.0, 30.0])
    source.marks[:, :, 2] = torch.tensor([40.0, 30.0])
    source.marks[:, 48:60, 2] = torch.tensor([36.0, 30.0])
    held = play_held(trainee().eval(), source, prompts, replace(OPTIONS, switches=6),
                     np.random.default_rng(3), 2)
    assert held['turned']
    for lesson in held['turned']:
        at = int(lesson.segment.at)
        assert lesson.weight is not None
        counted = {at + int(k) for k in torch.nonzero(lesson.weight[0].amax((1, 2, 3))).flatten()}
        assert counted == {12, 13, 14} & set(range(at, at + 10)) and counted


def test_it_learns_to_do_without_the_words(tmp_path: Path) -> None:
    losses: list[float] = []

    def each(step: int, values: object) -> None:
        if isinstance(values, dict) and 'loss' in values:
            losses.append(float(values['loss']))

    prompts = synthetic_prompts(TINY, len(prompt_table()), CPU)
    # Of made-up clips nothing that comes after a switch could be learnt.
    options = replace(OPTIONS, worn_share=1.0, removed_share=0.0, switches=0)
    model = trainee()
    audio = [p.clone() for p in model.audio.parameters()]
    before = {name: p.clone() for name, p in model.denoiser.named_parameters()}
    train_recall(model, shard(), prompts, ALONE,
                 Run(out=tmp_path, state=tmp_path, steps=16, each=each), options)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert all(torch.equal(a, b) for a, b in zip(audio, model.audio.parameters(), strict=True))
    changed = {name for name, after in model.denoiser.named_parameters()
               if not torch.equal(before[name], after)}
    assert changed and not any(part in f'.{name}' for name in changed for part in WORDS)
    assert any('.qkv.' in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (tmp_path / 'recall.png').is_file()


@pytest.mark.parametrize('name', ['stories', 'rounds', 'remembered'])
def test_options_that_would_play_nothing_are_refused(name: str) -> None:
    nothing: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f'{name} is 0: give 1 or more'):
        RecallOptions(**nothing)


def test_an_absence_that_the_short_memory_outlasts_teaches_nothing(tmp_path: Path) -> None:
    prompts = synthetic_prompts(TINY, len(prompt_table()), CPU)
    with pytest.raises(ValueError, match='outlast the short memory'):
        train_recall(trainee(), shard(), prompts, ALONE,
                     Run(out=tmp_path, state=tmp_path, steps=1),
                     RecallOptions(chunks=5, away=(1, 2)))


def test_shares_of_lessons_can_be_given() -> None:
    options = RecallOptions(shares={'lips': 0.0, 'unaided': 0.9})
    assert options.drawn == {**KEPT, 'lips': 0.0, 'unaided': 0.9}
    with pytest.raises(ValueError, match="share of 'sums' is 1"):
        RecallOptions(shares={'sums': 1.0})
    with pytest.raises(ValueError, match='all shares are 0'):
        RecallOptions(shares=dict.fromkeys(KEPT, 0.0))
