# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from interactive_avatar.reasoning.persona import (
    PersonaError,
    describe,
    expand,
    load_persona,
    parse_persona,
)
from interactive_avatar.reasoning.turn import INTENTS, REQUIRED_SLOTS

from .conftest import PERSONA


def test_the_persona_that_ships_covers_every_intent() -> None:
    persona = load_persona()
    assert set(persona.intents) == set(INTENTS)
    for intent, slots in REQUIRED_SLOTS.items():
        assert persona.intents[intent].slots == slots
    assert describe(persona)['examples'] > 1000


def test_alternatives_are_spelled_out() -> None:
    assert expand('(please|) look (up|down)') == [
        'please look up', 'please look down', 'look up', 'look down']
    for wrong in ('look (up', 'a|b', '(a(b)|c)'):
        with pytest.raises(ValueError):
            expand(wrong)
    with pytest.raises(ValueError, match='alternatives'):
        expand('(a|b|c)' * 5)


@pytest.mark.parametrize(('old', 'new', 'field'), [
    ('action: nod', 'action: jump', 'intents.nod.action'),
    ('emotion: happy', 'emotion: angry', 'intents.greeting.emotion'),
    ('{joke}', '{jokes}', 'intents.joke.replies'),
    ('slots: [object]', 'slots: [colour]', 'intents.wear.slots'),
    ("replies: ['']", 'reply: x', 'intents.nod.reply'),
    ('please nod', 'hello there', 'intents.nod.examples'),
    ('nod your head', 'nod (a|b', 'intents.nod.examples'),
    ('accept_similarity: 0.3', 'accept_similarity: 3', 'recognition.accept_similarity'),
    ("      missing: ['What should I put on?']\n", '', 'intents.wear.when.missing'),
    ('    examples: [goodbye now, see you later]\n', '', 'intents.farewell.examples'),
    ('  out_of_scope:', '  something_else:', 'intents.out_of_scope'),
    ('jokes: [A joke.]\n', '', 'intents.joke.replies'),
])
def test_a_mistake_is_named_with_line_and_field(old: str, new: str, field: str) -> None:
    text = PERSONA.replace(old, new, 1)
    assert text != PERSONA
    with pytest.raises(PersonaError) as caught:
        parse_persona(text, 'mine.yaml')
    message = str(caught.value)
    assert message.startswith('mine.yaml:') and field in message
    assert int(message.split(':')[1]) > 0


def test_the_line_is_the_right_one() -> None:
    text = PERSONA.replace('action: nod', 'action: jump')
    line = text.splitlines().index('    action: jump') + 1
    with pytest.raises(PersonaError, match=f':{line}:'):
        parse_persona(text)


def test_jokes_are_needed_wherever_one_is_told() -> None:
    text = PERSONA.replace('jokes: [A joke.]\n', '').replace("['{joke}']", "['No.']")
    parse_persona(text)
    reply = "      already: ['I am wearing my {object}.']"
    line = text.splitlines().index(reply) + 1
    with pytest.raises(PersonaError, match=rf':{line}: intents\.wear\.when\.already: .joke. is'):
        parse_persona(text.replace(reply, "      already: ['{joke}']"))


@pytest.mark.parametrize('character', ['\x0c', '\x00', '\x1b', '\x7f', '\ud800'])
def test_a_character_that_yaml_does_not_take_is_named_with_its_line(character: str) -> None:
    text = PERSONA.replace('Goodbye.', f'Good{character}bye.')
    line = next(at for at, found in enumerate(text.split('\n'), 1) if character in found)
    with pytest.raises(PersonaError, match=rf'^mine\.yaml:{line}: .*U\+{ord(character):04X}'):
        parse_persona(text, 'mine.yaml')


@pytest.mark.parametrize('text', ['', 'name: [', 'just text', 'name: Ada', '- a'])
def test_what_is_no_persona_is_refused(text: str) -> None:
    with pytest.raises(PersonaError):
        parse_persona(text)
