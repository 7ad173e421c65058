# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.reasoning.turn import (
    INTENTS,
    MAX_SPEECH_CHARS,
    TurnError,
    check_turn,
    clean_name,
    clean_text,
    make_turn,
)


@pytest.mark.parametrize(('given', 'clean'), [
    ('Hello\n\tthere', 'Hello there'),
    ('**Bold** and `code`', 'Bold and code'),
    ('a <b>tag</b> here', 'a tag here'),
    ('see https://example.org/x now', 'see now'),
    ('bell\x07 and \u202eflip', 'bell and flip'),
    ('smile \U0001f600!', 'smile !'),
    ('```rm -rf```', ''),
    ('Größe, niño', 'Größe, niño'),
])
def test_text_is_reduced_to_plain_words(given: str, clean: str) -> None:
    assert clean_text(given, 100) == clean


def test_long_text_ends_at_a_sentence() -> None:
    text = 'One two three. Four five six. ' * 10
    assert clean_text(text, 50).endswith('.')
    assert len(clean_text('word ' * 1000, MAX_SPEECH_CHARS)) <= MAX_SPEECH_CHARS


@pytest.mark.parametrize(('given', 'name'), [
    ('anna', 'Anna'), ("O'Neil", "O'Neil"), ('Jean-Luc', 'Jean-Luc'), ('Mr. Brown', 'Mr. Brown'),
    ('', None), ('R2D2', None), ('x' * 40, None), ('a b c d e f g', None), ('<b>', None),
])
def test_names(given: str, name: str | None) -> None:
    assert clean_name(given) == name


def test_prompts_describe_the_world_before_and_after() -> None:
    turn = make_turn('wear', 0.9, 'happy', 'Sure.', WorldState(), 'wear', {'object': 'hat'})
    assert 'puts on a hat' in turn.action_prompt
    assert turn.world.hat
    assert 'hat' in turn.stable_prompt and 'hat' in turn.talk_prompt


@pytest.mark.parametrize(('change', 'word'), [
    ({'intent': 'fly'}, 'fly'), ({'emotion': 'furious'}, 'furious'), ({'action': 'jump'}, 'jump'),
    ({'confidence': float('nan')}, 'confidence'), ({'confidence': 1.5}, '1.5'),
    ({'action': 'wear', 'slots': {'object': 'coat'}}, 'coat'), ({'action': 'wear'}, 'object'),
    ({'slots': {'name': '<script>'}}, 'name'),
])
def test_what_is_wrong_is_named(change: dict[str, object], word: str) -> None:
    arguments: dict[str, object] = {'intent': 'nod', 'confidence': 0.5, 'emotion': 'neutral',
                                    'speech': 'Yes.', 'world': WorldState(), **change}
    with pytest.raises(TurnError, match=word):
        make_turn(**arguments)  # type: ignore[arg-type]


def test_a_turn_that_was_tampered_with_is_refused() -> None:
    turn = make_turn('nod', 0.5, 'neutral', 'Yes.', WorldState())
    check_turn(turn)
    for change in ({'stable_prompt': ''}, {'action_prompt': 'a\x00b'}, {'speech': 'a<b>c</b>'},
                   {'speech': 'x' * (MAX_SPEECH_CHARS + 1)}):
        with pytest.raises(TurnError):
            check_turn(replace(turn, **change))


def test_intent_names_are_those_of_the_design() -> None:
    assert len(INTENTS) == len(set(INTENTS)) == 34
