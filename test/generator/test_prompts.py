# SPDX-License-Identifier: Apache-2.0
"""Prompts are distinct, short, and tell the world."""

from __future__ import annotations

import re

import pytest

from interactive_avatar.generator import prompts
from interactive_avatar.generator.prompts import (
    WorldState,
    action_prompt,
    after,
    passing_prompt,
    passing_table,
    prompt_table,
    stable_prompt,
)


def test_table_is_distinct_and_small() -> None:
    table = prompts.prompt_table()
    held_out = prompts.prompt_table(held_out=True)
    texts = [prompt.text for prompt in table]
    assert len(texts) <= 4000
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {prompt.text for prompt in held_out}
    assert {prompt.action for prompt in table} == {None, *prompts.ACTIONS}


def test_prompts_fit_the_text_context() -> None:
    for prompt in prompts.prompt_table() + prompts.prompt_table(held_out=True):
        pieces = len(re.findall(r'\w+|[^\w\s]', prompt.text)) + 2
        assert pieces <= prompts.MAX_WORD_PIECES, prompt.text


def test_table_finds_each_prompt() -> None:
    for number, prompt in enumerate(prompts.prompt_table()):
        assert prompts.prompt_id(prompt.text) == number
    with pytest.raises(KeyError, match='not trained on'):
        prompts.prompt_id('A dog')


def test_canonical_wording() -> None:
    world = WorldState(glasses=True, listening=True)
    assert stable_prompt(world) == 'A person wearing glasses looks at the viewer, listening'
    assert action_prompt('nod', world) == 'A person wearing glasses nods'
    assert action_prompt('wear', world, object='hat') == 'A person wearing glasses puts on a hat'
    assert action_prompt('look', WorldState(), direction='left') == (
        'A person turns to look to the left')
    assert action_prompt('remove', world, object='glasses') == 'A person takes off the glasses'


def test_actions_have_more_wordings_than_worlds_and_some_are_never_trained_on() -> None:
    world, away = WorldState(), WorldState(in_view=False)
    trained = prompts.trained_variants(world, 'nod')
    assert len(trained) == prompts.VARIANTS - 2 + prompts.MORE_VARIANTS
    assert not {*trained, *prompts.trained_variants(world)} & {*prompts.HELD_OUT_VARIANTS}
    # What cannot be seen has the wordings of the world it happens in.
    assert prompts.trained_variants(away, 'nod') == prompts.trained_variants(away)
    assert prompts.trained_variants(away, 'come_back') == trained
    assert action_prompt('wear', world, 21, object='hat') == 'The woman puts on the new hat'
    assert action_prompt('wear', world, 10, object='glasses') == (
        'A person takes glasses and puts them on')
    with pytest.raises(ValueError, match='use 0 to 28'):
        action_prompt('nod', world, 29)
    with pytest.raises(ValueError, match='use 0 to 13'):
        stable_prompt(world, 14)


def test_the_end_of_an_expression_has_a_prompt_of_its_own() -> None:
    rest, smiling = WorldState(hat=True, gaze='left'), WorldState(expression='smile')
    assert passing_prompt(action_prompt('frown', WorldState()), stable_prompt(rest)) == (
        'A person wearing a hat looks to the left, no longer frowning')
    # Whatever the words.
    assert passing_prompt(stable_prompt(smiling, 3), stable_prompt(WorldState(), 5)) == (
        'A person looks at the viewer, no longer smiling')
    surprised = action_prompt('look_surprised', WorldState())
    assert passing_prompt(surprised, stable_prompt(WorldState())) == (
        'A person looks at the viewer, no longer surprised')
    neutral = stable_prompt(WorldState())
    for before, after_ in ((neutral, stable_prompt(rest)), (neutral, stable_prompt(smiling)),
                           (stable_prompt(smiling), stable_prompt(WorldState(in_view=False))),
                           (stable_prompt(smiling), action_prompt('nod', WorldState())),
                           (action_prompt('nod', WorldState()), neutral),
                           ('A person who grins.', neutral),
                           (stable_prompt(smiling), 'A person who waits.')):
        assert passing_prompt(before, after_) is None
    texts = [moment.text for moment in passing_table().values()]
    assert len(set(texts)) == len(texts) and not set(texts) & {p.text for p in prompt_table()}


def test_after_changes_the_world() -> None:
    world = after('wear', WorldState(), object='glasses')
    assert world.glasses and not world.hat
    away = after('step_out', world)
    assert not away.in_view and away.glasses
    assert action_prompt('nod', away) == stable_prompt(away)
    assert after('nod', away) == away
    back = after('come_back', away)
    assert back.in_view and back.glasses
    assert after('look', back, direction='up').gaze == 'up'
    assert after('talk', after('look', back, direction='up')).gaze == 'user'
    assert after('smile', back).expression == 'smile'
    assert after('listen', back).listening


def test_all_prompts_reached_from_any_world() -> None:
    for glasses in (False, True):
        for action, allowed in prompts.ACTION_SLOTS.items():
            slots = {name: values[-1] for name, values in allowed.items()}
            world = WorldState(glasses=glasses, hat=True, gaze='left', expression='smile')
            prompts.prompt_id(action_prompt(action, world, 3, **slots))


@pytest.mark.parametrize(('action', 'slots'), [
    ('dance', {}), ('nod', {'direction': 'left'}), ('wear', {}), ('look', {'direction': 'back'})])
def test_bad_actions_are_named(action: str, slots: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r'use one of|has no slot'):
        action_prompt(action, WorldState(), **slots)


def test_bad_world_is_named() -> None:
    with pytest.raises(ValueError, match='gaze'):
        WorldState(gaze='behind')
    with pytest.raises(ValueError, match='expression'):
        WorldState(expression='angry')
