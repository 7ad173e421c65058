# SPDX-License-Identifier: Apache-2.0
"""The persona file: who the avatar is, what users say, what it answers. Read and checked here."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from interactive_avatar.paths import resource
from interactive_avatar.reasoning.turn import (
    ACTIONS,
    EMOTIONS,
    OUT_OF_SCOPE,
    REQUIRED_SLOTS,
    clean_name,
)

DEFAULT_PERSONA: Final = 'config/persona.yaml'
SITUATIONS: Final = ('already', 'out_of_view', 'missing', 'known')
SLOTS: Final = ('name', 'direction', 'object')
PLACEHOLDERS: Final = ('name', ', name', 'self', 'object', 'direction', 'time', 'date', 'joke',
                       'last')
MAX_ALTERNATIVES: Final = 64
_TOP_FIELDS: Final = ('name', 'language', 'description', 'recognition', 'jokes', 'intents')
_INTENT_FIELDS: Final = ('examples', 'replies', 'when', 'action', 'emotion', 'slots')
_RECOGNITION_FIELDS: Final = ('accept_similarity', 'accept_probability')
_PLACEHOLDER = re.compile(r'\{([^{}]*)\}')
_CHOICE = re.compile(r'\(([^()]*)\)')
_NAME = re.compile(r'[a-z][a-z0-9_]*')


class PersonaError(ValueError):
    """A persona file with a mistake; the message names file, line, field and what is right."""


@dataclass(frozen=True)
class IntentPolicy:
    """What one intent looks like and how it is answered.

    Attributes:
        name: of the intent.
        examples: sentences that mean it, alternatives already spelled out.
        replies: what may be said; an empty string means acting without a word.
        situations: replies by situation, see `SITUATIONS`.
        action: what the face does, None for talking only.
        emotion: of voice and face.
        slots: slots that must be known before it can be acted on.
    """

    name: str
    examples: tuple[str, ...]
    replies: tuple[str, ...]
    situations: Mapping[str, tuple[str, ...]]
    action: str | None
    emotion: str
    slots: tuple[str, ...]


@dataclass(frozen=True)
class Persona:
    """A checked persona.

    Attributes:
        name: what the avatar calls itself.
        description: one sentence about it, for language models.
        intents: policies by intent name.
        jokes: told one after the other.
        accept_similarity: least cosine to the nearest example that counts as understood.
        accept_probability: least probability of the best intent that counts as understood.
        digest: sha256 of the file, key of what is derived from it.
    """

    name: str
    description: str
    intents: Mapping[str, IntentPolicy]
    jokes: tuple[str, ...]
    accept_similarity: float
    accept_probability: float
    digest: str


def expand(pattern: str) -> list[str]:
    """Spell out the alternatives `(a|b|)` of an example.

    Raises:
        ValueError: on unbalanced parentheses or more than `MAX_ALTERNATIVES` results.
    """
    parts = _CHOICE.split(pattern)
    if any(char in ''.join(parts[::2]) for char in '()|'):
        raise ValueError('parentheses are unbalanced or nested, or a bar stands outside them')
    choices = [part.split('|') if at % 2 else [part] for at, part in enumerate(parts)]
    results = [' '.join(''.join(chosen).split())
               for chosen in itertools.islice(itertools.product(*choices), MAX_ALTERNATIVES + 1)]
    if len(results) > MAX_ALTERNATIVES:
        raise ValueError(f'it has more than {MAX_ALTERNATIVES} alternatives')
    return [result for result in dict.fromkeys(results) if result]


class _Reader:
    """Typed access to a YAML tree that remembers the line of everything."""

    def __init__(self, path: str, root: yaml.Node) -> None:
        self.path = path
        self.root = root
        self.has_jokes = False

    def error(self, node: yaml.Node, field: str, problem: str) -> PersonaError:
        return PersonaError(f'{self.path}:{node.start_mark.line + 1}: {field}: {problem}')

    def mapping(self, node: yaml.Node, field: str,
                allowed: tuple[str, ...] | None) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, field, 'must be a mapping of `key: value` lines')
        result: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if allowed is not None and name not in allowed:
                raise self.error(key, f'{field}.{name}' if field else name,
                                 f'unknown field; use one of {", ".join(allowed)}')
            if name in result:
                raise self.error(key, f'{field}.{name}', 'appears twice; remove one')
            result[name] = value
        return result

    def text(self, node: yaml.Node, field: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, field, 'must be a text')
        return ' '.join(str(node.value).split())

    def texts(self, node: yaml.Node, field: str) -> list[tuple[yaml.Node, str]]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, field, 'must be a list, one `- text` a line')
        return [(item, self.text(item, field)) for item in node.value]

    def share(self, node: yaml.Node, field: str) -> float:
        try:
            value = float(self.text(node, field))
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 1.0:
            raise self.error(node, field, f'{node.value!r} must be a number from 0 to 1')
        return value

    def replies(self, node: yaml.Node, field: str) -> tuple[str, ...]:
        found = self.texts(node, field)
        if not found:
            raise self.error(node, field, 'is empty; give at least one reply, "" for none')
        for item, text in found:
            for name in _PLACEHOLDER.findall(text):
                if name not in PLACEHOLDERS:
                    raise self.error(item, field, f'placeholder {{{name}}} is unknown; use one '
                                     f'of ' + ' '.join(f'{{{known}}}' for known in PLACEHOLDERS))
                if name == 'joke' and not self.has_jokes:
                    raise self.error(item, field, '{joke} is used but `jokes` is missing')
        return tuple(text for _, text in found)


def load_persona(path: str | Path = DEFAULT_PERSONA) -> Persona:
    """Read and check a persona file.

    Args:
        path: as `interactive_avatar.paths.resource` takes it.

    Raises:
        FileNotFoundError: if there is no such file.
        PersonaError: on the first mistake, with file, line and field.
    """
    found = resource(path)
    data = found.read_bytes()
    return parse_persona(data.decode('utf-8', errors='replace'), found.name)


def parse_persona(text: str, file_name: str = 'persona.yaml') -> Persona:
    """Check the text of a persona file; see `load_persona`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise PersonaError(f'{file_name}:{line}: not valid YAML: {error.problem}; check quotes, '
                           f'colons and indentation there') from error
    except yaml.reader.ReaderError as error:
        # It knows no line; control characters come with text that is pasted from elsewhere.
        line = text.count('\n', 0, error.position) + 1
        raise PersonaError(f'{file_name}:{line}: not valid YAML: the character '
                           f'U+{ord(text[error.position]):04X} cannot be seen and may not stand '
                           f'in it; delete it there') from error
    if root is None:
        raise PersonaError(f'{file_name}: the file is empty; start from config/persona.yaml')
    reader = _Reader(file_name, root)
    top = reader.mapping(root, '', _TOP_FIELDS)
    for required in ('name', 'intents'):
        if required not in top:
            raise reader.error(root, required, 'is missing')
    name = clean_name(reader.text(top['name'], 'name'))
    if name is None:
        raise reader.error(top['name'], 'name', 'must be a name of up to 32 letters')
    recognition = reader.mapping(top['recognition'], 'recognition', _RECOGNITION_FIELDS
                                 ) if 'recognition' in top else {}
    shares = {field: reader.share(recognition[field], f'recognition.{field}')
              if field in recognition else default
              for field, default in (('accept_similarity', 0.4), ('accept_probability', 0.3))}
    jokes = tuple(joke for _, joke in reader.texts(top['jokes'], 'jokes')
                  ) if 'jokes' in top else ()
    reader.has_jokes = bool(jokes)
    intents: dict[str, IntentPolicy] = {}
    seen: dict[str, str] = {}
    for intent, node in reader.mapping(top['intents'], 'intents', None).items():
        intents[intent] = _intent(reader, intent, node, seen)
    if OUT_OF_SCOPE not in intents:
        raise reader.error(top['intents'], f'intents.{OUT_OF_SCOPE}',
                           'is missing; it answers whatever was not understood')
    return Persona(name, reader.text(top['description'], 'description')
                   if 'description' in top else '', intents, jokes,
                   shares['accept_similarity'], shares['accept_probability'],
                   hashlib.sha256(text.encode()).hexdigest())


def _intent(reader: _Reader, intent: str, node: yaml.Node, seen: dict[str, str]
            ) -> IntentPolicy:
    where = f'intents.{intent}'
    if not _NAME.fullmatch(intent):
        raise reader.error(node, where, 'the name must be lower_case letters, digits and _')
    fields = reader.mapping(node, where, _INTENT_FIELDS)
    for required in ('examples', 'replies'):
        if required not in fields:
            raise reader.error(node, f'{where}.{required}', 'is missing')
    examples: list[str] = []
    for item, pattern in reader.texts(fields['examples'], f'{where}.examples'):
        try:
            alternatives = expand(pattern)
        except ValueError as error:
            raise reader.error(item, f'{where}.examples', f'{pattern!r}: {error}') from error
        for example in alternatives:
            key = example.lower()
            if seen.setdefault(key, intent) != intent:
                raise reader.error(item, f'{where}.examples', f'{example!r} is also an example '
                                   f'of {seen[key]}; keep it in one of them')
            examples.append(example)
    if not examples:
        raise reader.error(fields['examples'], f'{where}.examples', 'is empty')
    emotion = reader.text(fields['emotion'], f'{where}.emotion') if 'emotion' in fields \
        else 'neutral'
    if emotion not in EMOTIONS:
        raise reader.error(fields['emotion'], f'{where}.emotion',
                           f'{emotion!r} is unknown; use one of {", ".join(EMOTIONS)}')
    action = reader.text(fields['action'], f'{where}.action') if 'action' in fields else None
    if action is not None and action not in ACTIONS:
        raise reader.error(fields['action'], f'{where}.action',
                           f'{action!r} is unknown; use one of {", ".join(ACTIONS)}')
    slots = tuple(slot for _, slot in reader.texts(fields['slots'], f'{where}.slots')
                  ) if 'slots' in fields else REQUIRED_SLOTS.get(intent, ())
    for slot in slots:
        if slot not in SLOTS:
            raise reader.error(fields['slots'], f'{where}.slots',
                               f'{slot!r} is unknown; use one of {", ".join(SLOTS)}')
    needed = {'look': 'direction', 'wear': 'object', 'remove': 'object'}.get(action or '')
    if needed is not None and needed not in slots:
        raise reader.error(fields['action'], f'{where}.slots', f'action {action!r} needs '
                           f'`slots: [{needed}]`')
    replies = reader.replies(fields['replies'], f'{where}.replies')
    situations: dict[str, tuple[str, ...]] = {}
    if 'when' in fields:
        for situation, value in reader.mapping(fields['when'], f'{where}.when',
                                               SITUATIONS).items():
            situations[situation] = reader.replies(value, f'{where}.when.{situation}')
    if slots and 'missing' not in situations:
        raise reader.error(node, f'{where}.when.missing',
                           'is needed to ask for the slot when it was not said')
    return IntentPolicy(intent, tuple(examples), replies, situations, action, emotion, slots)


def describe(persona: Persona) -> dict[str, Any]:
    """Counts of a persona, for `avatar doctor` and logs."""
    return {'name': persona.name, 'intents': len(persona.intents),
            'examples': sum(len(policy.examples) for policy in persona.intents.values())}
