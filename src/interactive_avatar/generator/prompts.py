# SPDX-License-Identifier: Apache-2.0
"""The prompts that the generator is trained on, and the world that they describe.

Two kinds of prompt exist. A *stable* prompt describes the world while nothing
happens: what is worn, where the person looks, the expression, whether they listen. An *action*
prompt describes what happens now. Reasoning emits prompts only through `stable_prompt` and
`action_prompt`, so nothing reaches the generator that it was not trained on; free text from a
user is left to the text encoder and the token refiner to generalise to.

Every prompt has several phrasings, its variants. Variant 0 is the canonical one, used at run time.
`HELD_OUT_VARIANTS` are never trained on: they measure how well other wordings are understood.
Actions have further ones, since an action that is known by a few phrases only is missed in others,
and `FRESH_VARIANTS`, never trained on either, by a writer who knew none of these.

Directions are the viewer's: `left` is the left of the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Final

from interactive_avatar.generator.wordings import (
    ACTS,
    AWAY,
    FRESH_ACTS,
    FRESH_SUBJECTS,
    MORE_ACTS,
    MORE_SUBJECTS,
    STABLE,
    SUBJECTS,
    TO,
    TO_ALT,
    WORN,
)

GAZES: Final = ('user', 'left', 'right', 'up', 'down')
EXPRESSIONS: Final = ('neutral', 'smile', 'frown', 'surprise')
EMOTIONS: Final = ('neutral', 'happy', 'sad', 'surprised')
OBJECTS: Final = ('glasses', 'hat')

# Phrasings of stable prompts; action prompts have these, `MORE_VARIANTS` and `FRESH_VARIANTS`.
VARIANTS: Final = 14
HELD_OUT_VARIANTS: Final = (12, 13)
MORE_VARIANTS: Final = 12
FRESH_VARIANTS: Final = tuple(VARIANTS + MORE_VARIANTS + number
                              for number in range(len(FRESH_SUBJECTS)))
# Averted gazes have 128 worlds, each rarer than the 32 that look at the user: fewer phrasings of
# each keep the table of text embeddings small on the training machine.
TRAINED_VARIANTS_AVERTED: Final = 8
MAX_WORD_PIECES: Final = 20

# Slots of each action and the values they take. An action without slots has an empty mapping.
ACTION_SLOTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    'nod': {},
    'shake_head': {},
    'smile': {},
    'frown': {},
    'look_surprised': {},
    'look': {'direction': GAZES},
    'tilt_head': {},
    'raise_eyebrows': {},
    'think': {},
    'lean_closer': {},
    'wear': {'object': OBJECTS},
    'remove': {'object': OBJECTS},
    'step_out': {},
    'come_back': {},
    'talk': {'emotion': EMOTIONS},
    'listen': {},
}
ACTIONS: Final = tuple(ACTION_SLOTS)
_SHOWS: Final = {'smile': 'smile', 'frown': 'frown', 'look_surprised': 'surprise'}
GONE: Final = {'smile': 'no longer smiling', 'frown': 'no longer frowning',
               'surprise': 'no longer surprised'}
"""How the end of an expression is told."""
_DEFAULT_SLOTS: Final = {'direction': 'user', 'emotion': 'neutral'}


@dataclass(frozen=True)
class WorldState:
    """What a stable prompt describes.

    Attributes:
        glasses: worn or not.
        hat: worn or not.
        in_view: False after `step_out`, until `come_back`.
        gaze: one of `GAZES`; held while stable.
        expression: one of `EXPRESSIONS`; held while stable.
        listening: attentive to the user who speaks.

    Raises:
        ValueError: on a gaze or expression outside those tuples.
    """

    glasses: bool = False
    hat: bool = False
    in_view: bool = True
    gaze: str = 'user'
    expression: str = 'neutral'
    listening: bool = False

    def __post_init__(self) -> None:
        if self.gaze not in GAZES:
            raise ValueError(f'gaze {self.gaze!r} is unknown; use one of {", ".join(GAZES)}')
        if self.expression not in EXPRESSIONS:
            raise ValueError(f'expression {self.expression!r} is unknown; use one of '
                             f'{", ".join(EXPRESSIONS)}')

    @property
    def worn(self) -> tuple[str, ...]:
        """Names of the objects worn, in the order of `OBJECTS`."""
        return tuple(name for name in OBJECTS if getattr(self, name))


@dataclass(frozen=True)
class Prompt:
    """One entry of the training table.

    Attributes:
        text: the English prompt.
        action: None for a stable prompt, else one of `ACTIONS`.
        slots: the action's slots as sorted (name, value) pairs.
        world: the world described (stable) or in which the action starts; only what the text
            depends on is set, the rest is at its default.
        variant: phrasing, as in `stable_prompt` and `action_prompt`.
    """

    text: str
    action: str | None
    slots: tuple[tuple[str, str], ...]
    world: WorldState
    variant: int


def _attired(subject: tuple[str, str], worn: tuple[str, ...]) -> str:
    who, how = subject
    return f'{who} {how} {WORN[worn]}' if worn else who


def _with_object(world: WorldState, name: str, worn: bool) -> WorldState:
    return replace(world, glasses=worn) if name == 'glasses' else replace(world, hat=worn)


def in_words(action: str, world: WorldState, phrase: str,
             subject: tuple[str, str] = SUBJECTS[0], **slots: str) -> str:
    """An action prompt in other words than those of `action_prompt`.

    Args:
        action, world, **slots: as of `action_prompt`.
        phrase: what follows the subject.
        subject: who does it, and how what is worn is attached, as 'wearing'.
    """
    changed = check_slots(action, slots).get('object')
    worn = tuple(name for name in world.worn if name != changed)
    return _sentence(f'{_attired(subject, worn)} {phrase}')


def _check_variant(variant: int, count: int) -> None:
    if not 0 <= variant < count:
        raise ValueError(f'variant {variant} does not exist; use 0 to {count - 1}')


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def check_slots(action: str, slots: Mapping[str, str]) -> dict[str, str]:
    """Validate an action and its slots, filling in defaults.

    Args:
        action: one of `ACTIONS`.
        slots: by name, see `ACTION_SLOTS`; `direction` defaults to user, `emotion` to neutral.

    Returns:
        All slots of the action, by name.

    Raises:
        ValueError: on an unknown action, slot or value, or a missing `object`.
    """
    if action not in ACTION_SLOTS:
        raise ValueError(f'action {action!r} is unknown; use one of {", ".join(ACTIONS)}')
    allowed = ACTION_SLOTS[action]
    for name in slots:
        if name not in allowed:
            raise ValueError(f'action {action!r} has no slot {name!r}; it takes '
                             f'{", ".join(allowed) or "none"}')
    filled = {}
    for name, values in allowed.items():
        value = slots.get(name, _DEFAULT_SLOTS.get(name))
        if value not in values:
            raise ValueError(f'{name}={value!r} does not fit action {action!r}; use one of '
                             f'{", ".join(values)}')
        filled[name] = value
    return filled


def stable_prompt(world: WorldState, variant: int = 0) -> str:
    """English description of a world in which nothing happens.

    Args:
        world: the world; when out of view, gaze, expression and listening do not show.
        variant: phrasing, 0 to `VARIANTS` - 1; 0 is the one used at run time.

    Raises:
        ValueError: if there is no such variant.
    """
    _check_variant(variant, VARIANTS)
    if not world.in_view:
        how = SUBJECTS[variant][1]
        worn = f' {how} {WORN[world.worn]}' if world.worn else ''
        return _sentence(AWAY[variant].format(worn=worn))
    at_user, elsewhere, expressions, listening = STABLE[variant]
    gaze = at_user if world.gaze == 'user' else elsewhere.format(to=TO[world.gaze])
    expression = expressions[EXPRESSIONS.index(world.expression)]
    return _sentence(f'{_attired(SUBJECTS[variant], world.worn)} {gaze}{expression}'
                     f'{listening if world.listening else ""}')


def action_prompt(action: str, world: WorldState, variant: int = 0, **slots: str) -> str:
    """English description of an action that starts in a world.

    Out of view nothing but `come_back` can be seen, so any other action there gives the stable
    prompt of that world (the voice is heard all the same).

    Args:
        action: one of `ACTIONS`.
        world: the world before the action; only worn objects and `in_view` matter.
        variant: phrasing, 0 to the last of `FRESH_VARIANTS`; 0 is the one used at run time.
        **slots: see `ACTION_SLOTS`.

    Raises:
        ValueError: on an unknown action, slot, value or variant, or a missing `object`.
    """
    _check_variant(variant, VARIANTS + MORE_VARIANTS + len(FRESH_VARIANTS))
    filled = check_slots(action, slots)
    if not world.in_view and action != 'come_back':
        return stable_prompt(world, variant % VARIANTS)
    values: dict[str, str] = {}
    key = ''
    if action in ('wear', 'remove'):
        name = filled['object']
        values = {'object': name if action == 'remove' else WORN[(name,)], 'plain': name}
    elif action == 'look':
        direction = filled['direction']
        key = 'user' if direction == 'user' else 'away'
        if key == 'away':
            values = {'to': TO[direction], 'alt': TO_ALT[direction]}
    elif action == 'talk':
        key = filled['emotion']
    fresh = FRESH_ACTS[action, next(iter(filled.values()), '')]
    phrase = (*ACTS[action, key], *MORE_ACTS[action, key], *fresh)[variant].format(**values)
    if values.get('plain') == 'glasses':
        phrase = phrase.replace(' it', ' them')
    subject = (*SUBJECTS, *MORE_SUBJECTS, *FRESH_SUBJECTS)[variant]
    return in_words(action, world, phrase, subject, **filled)


def after(action: str, world: WorldState, **slots: str) -> WorldState:
    """The world after an action, as the next stable prompt describes it.

    A smile stays; a frown and surprise are passing and relax to neutral. `look` is held until
    another action, which turns back to the user.

    Raises:
        ValueError: on an unknown action, slot or value, or a missing `object`.
    """
    filled = check_slots(action, slots)
    if action in ('wear', 'remove'):
        world = _with_object(world, filled['object'], action == 'wear')
    if action == 'step_out':
        return replace(world, in_view=False, gaze='user', expression='neutral', listening=False)
    if action == 'come_back':
        return replace(world, in_view=True, gaze='user', listening=False)
    if not world.in_view:
        return world
    gaze = filled['direction'] if action == 'look' else 'user'
    expression = {'smile': 'smile', 'frown': 'neutral', 'look_surprised': 'neutral'}.get(
        action, world.expression)
    if action == 'talk' and filled['emotion'] != 'neutral':
        expression = 'smile' if filled['emotion'] == 'happy' else 'neutral'
    return replace(world, gaze=gaze, expression=expression, listening=action == 'listen')


@cache
def trained_variants(world: WorldState, action: str | None = None) -> tuple[int, ...]:
    """The phrasings of a stable or action prompt that are trained on."""
    if action is None and world.in_view and world.gaze != 'user':
        return tuple(range(TRAINED_VARIANTS_AVERTED))
    # Where an action cannot be seen, its prompt is the stable one.
    seen = action is not None and (world.in_view or action == 'come_back')
    return tuple(variant for variant in range(VARIANTS + (MORE_VARIANTS if seen else 0))
                 if variant not in HELD_OUT_VARIANTS)


def shown(world: WorldState, action: str | None = None,
          slots: Mapping[str, str] | None = None) -> WorldState:
    """The world reduced to what its stable prompt (or the prompt of an action in it) tells."""
    if action is None:
        return world if world.in_view else WorldState(world.glasses, world.hat, False)
    reduced = WorldState(world.glasses, world.hat, action != 'come_back')
    if action in ('wear', 'remove') and slots:
        reduced = _with_object(reduced, slots['object'], action == 'remove')
    return reduced


@lru_cache(maxsize=2)
def prompt_table(held_out: bool = False) -> tuple[Prompt, ...]:
    """All prompts trained on, in a fixed order, or the held-out phrasings.

    Args:
        held_out: give the `HELD_OUT_VARIANTS` of each prompt instead.
    """
    table: list[Prompt] = []

    def add(action: str | None, slots: Mapping[str, str], world: WorldState) -> None:
        for variant in HELD_OUT_VARIANTS if held_out else trained_variants(world, action):
            text = (stable_prompt(world, variant) if action is None
                    else action_prompt(action, world, variant, **slots))
            table.append(Prompt(text, action, tuple(sorted(slots.items())), world, variant))

    for glasses, hat in itertools.product((False, True), repeat=2):
        for gaze, expression, listening in itertools.product(GAZES, EXPRESSIONS, (False, True)):
            add(None, {}, WorldState(glasses, hat, True, gaze, expression, listening))
        add(None, {}, WorldState(glasses, hat, False))
        for action, allowed in ACTION_SLOTS.items():
            for values in itertools.product(*allowed.values()):
                slots = dict(zip(allowed, values, strict=True))
                world = WorldState(glasses, hat, action != 'come_back')
                if shown(world, action, slots) == world:
                    add(action, slots, world)
    return tuple(table)


def somebody_there(text: str) -> bool:
    """Whether a prompt is about somebody who is in view and stays there; so are other words than
    those of the table taken."""
    number = _index().get(text)
    if number is None:
        return True
    prompt = prompt_table()[number]
    return prompt.world.in_view and prompt.action not in ('step_out', 'come_back')


@dataclass(frozen=True)
class Passing:
    """A prompt of the moment in which an expression ends.

    Attributes:
        text: the prompt.
        before, after: the stable prompts, with the expression and without.
    """

    text: str
    before: str
    after: str


@lru_cache(maxsize=1)
def passing_table() -> dict[tuple[str, WorldState], Passing]:
    """The moments in which an expression ends: by the expression, and the world then."""
    table = {}
    for expression, gone in GONE.items():
        for glasses, hat, gaze, listening in itertools.product(
                (False, True), (False, True), GAZES, (False, True)):
            then = WorldState(glasses, hat, True, gaze, 'neutral', listening)
            table[expression, then] = Passing(
                f'{stable_prompt(then)}, {gone}',
                stable_prompt(replace(then, expression=expression)), stable_prompt(then))
    return table


def passing_prompt(before: str, after: str) -> str | None:
    """What a stream is told in the first chunk after a switch that ends an expression.

    A face that relaxes changes little in its first 160 ms, even in true pictures, so the end of a
    smile would not be seen within a chunk. Reasoning knows nothing of this: it switches from
    prompt to prompt.

    Args:
        before, after: prompts of the table, of any phrasing.

    Returns:
        The prompt of that chunk; None if the switch ends no expression, or one of them is in
        other words.
    """
    table, index = prompt_table(), _index()
    if before not in index or after not in index:
        return None
    old, new = table[index[before]], table[index[after]]
    if new.action is not None or not new.world.in_view or new.world.expression != 'neutral':
        return None
    shown_then = _SHOWS.get(old.action, 'neutral') if old.action else old.world.expression
    found = passing_table().get((shown_then, new.world))
    return found.text if found else None


@lru_cache(maxsize=1)
def _index() -> dict[str, int]:
    return {prompt.text: number for number, prompt in enumerate(prompt_table())}


def prompt_id(text: str) -> int:
    """Index of a trained prompt in `prompt_table()`.

    Raises:
        KeyError: if the text is not in the table.
    """
    try:
        return _index()[text]
    except KeyError:
        raise KeyError(f'prompt {text!r} is not trained on; take it from stable_prompt or '
                       f'action_prompt with a trained variant') from None
