# SPDX-License-Identifier: Apache-2.0
"""A turn: all that the avatar says and does in answer to one utterance, validated.

Whatever a reasoner emits, be it the policy in `persona.yaml` or a language model, passes through
`check_turn` before it reaches the voice or the generator.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from interactive_avatar.generator import prompts
from interactive_avatar.generator.prompts import WorldState

INTENTS: Final = (
    'greeting', 'farewell', 'thanks', 'apology', 'affirm', 'deny', 'ask_name', 'ask_identity',
    'ask_capability', 'ask_wellbeing', 'ask_time', 'ask_date', 'ask_repeat', 'introduce_self',
    'compliment', 'complaint', 'joke', 'wait', 'be_quiet', 'nod', 'shake_head', 'smile', 'frown',
    'look_surprised', 'look', 'tilt_head', 'raise_eyebrows', 'think', 'lean_closer', 'wear',
    'remove', 'step_out', 'come_back', 'out_of_scope',
)
OUT_OF_SCOPE: Final = 'out_of_scope'
DIRECTIONS: Final = prompts.GAZES
OBJECTS: Final = prompts.OBJECTS
EMOTIONS: Final = prompts.EMOTIONS
# What a turn may ask the face to do; `listen` belongs to the state cycle.
ACTIONS: Final = tuple(name for name in prompts.ACTIONS if name != 'listen')
# Slots that an intent needs before it can be acted on.
REQUIRED_SLOTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    'introduce_self': ('name',), 'look': ('direction',), 'wear': ('object',),
    'remove': ('object',),
})

MAX_SPEECH_CHARS: Final = 600
MAX_PROMPT_CHARS: Final = 200
MAX_NAME_CHARS: Final = 32
MAX_UTTERANCE_CHARS: Final = 400

_URL = re.compile(r'\b(?:https?://|www\.)\S+', re.IGNORECASE)
_TAG = re.compile(r'<[^<>]{0,200}>')
_MARKDOWN = re.compile(r'[*_`#~|\\{}\[\]^]+')
_CODE_BLOCK = re.compile(r'```.*?(?:```|$)', re.DOTALL)
_NAME = re.compile(r"[^\W\d_][^\W\d_'.-]*(?:[ '.-]{1,2}[^\W\d_'.-]+){0,3}\.?")


class TurnError(ValueError):
    """A turn that must not reach the avatar; the message says which part and why."""


@dataclass(frozen=True)
class Turn:
    """One answer of the avatar.

    Attributes:
        intent: what the user wanted, one of `INTENTS` or an intent of the persona's own.
        confidence: of the intent, 0 to 1.
        emotion: of voice and face while speaking, one of `EMOTIONS`.
        speech: what is said; may be empty.
        action: what the face does, one of `ACTIONS`; 'talk' if nothing but speaking.
        slots: the action's slots and what else was understood, such as `name`.
        action_prompt: given to the generator when the turn begins.
        talk_prompt: given to the generator when the action has been shown and speech goes on.
        stable_prompt: given to the generator when the turn has ended.
        world: the world that `stable_prompt` describes.
        reasoner: which reasoner made it, for reports.
        asks: (slot, intent) if the turn asks the user for a slot that completes an intent.
    """

    intent: str
    confidence: float
    emotion: str
    speech: str
    action: str
    slots: Mapping[str, str]
    action_prompt: str
    talk_prompt: str
    stable_prompt: str
    world: WorldState
    reasoner: str = 'embedded'
    asks: tuple[str, str] | None = None


def clean_text(text: str, limit_chars: int) -> str:
    """Plain words out of whatever arrives: no control characters, markup, links or pictures.

    Args:
        text: anything.
        limit_chars: length limit; a longer text ends at its last whole sentence or word.
    """
    text = unicodedata.normalize('NFKC', text[:limit_chars * 8])
    text = _CODE_BLOCK.sub(' ', text)
    text = _URL.sub(' ', _TAG.sub(' ', text))
    text = _MARKDOWN.sub(' ', text)
    kept = []
    for char in text:
        category = unicodedata.category(char)
        if char in '\n\t\r' or category[0] == 'Z':
            kept.append(' ')
        elif category[0] in 'LNMP' or category in ('Sc', 'Sm') or char in '°%&+':
            kept.append(char)
    text = ' '.join(''.join(kept).split())
    if len(text) <= limit_chars:
        return text
    cut = text[:limit_chars]
    end = max(cut.rfind(mark) for mark in ('. ', '! ', '? '))
    return cut[:end + 1] if end > limit_chars // 2 else cut.rsplit(' ', 1)[0]


def clean_name(text: str) -> str | None:
    """A person's name fit to be spoken and shown, or None if the text is not one."""
    text = ' '.join(clean_text(text, 4 * MAX_NAME_CHARS).strip(' .,!?;:').split())
    if not text or len(text) > MAX_NAME_CHARS or not _NAME.fullmatch(text):
        return None
    return ' '.join(word[0].upper() + word[1:] for word in text.split(' '))


def make_turn(intent: str, confidence: float, emotion: str, speech: str, world: WorldState,
              action: str | None = None, slots: Mapping[str, str] | None = None,
              reasoner: str = 'embedded', intents: Collection[str] = INTENTS,
              asks: tuple[str, str] | None = None) -> Turn:
    """Build a turn whose prompts come from the generator's vocabulary, and check it.

    Args:
        intent: what the user wanted.
        confidence: of the intent, 0 to 1.
        emotion: one of `EMOTIONS`.
        speech: what is said.
        world: the world before the turn.
        action: one of `ACTIONS`, None for 'talk'.
        slots: what was understood; those that the action knows go into its prompt.
        reasoner: who made it.
        intents: the intents that exist.
        asks: see `Turn`.

    Raises:
        TurnError: if any part is not what it must be.
    """
    action = action or 'talk'
    slots = dict(slots or {})
    if action not in ACTIONS:
        raise TurnError(f'action {action!r} is unknown; use one of {", ".join(ACTIONS)}')
    if emotion not in EMOTIONS:
        raise TurnError(f'emotion {emotion!r} is unknown; use one of {", ".join(EMOTIONS)}')
    known = prompts.ACTION_SLOTS[action]
    acted = {name: value for name, value in slots.items() if name in known}
    if action == 'talk':
        acted['emotion'] = emotion
    try:
        action_prompt = prompts.action_prompt(action, world, 0, **acted)
        later = prompts.after(action, world, **acted)
    except ValueError as error:
        raise TurnError(str(error)) from error
    talk_prompt = prompts.action_prompt('talk', later, emotion=emotion)
    turn = Turn(intent, confidence, emotion, clean_text(speech, MAX_SPEECH_CHARS), action, slots,
                action_prompt, talk_prompt, prompts.stable_prompt(later), later, reasoner, asks)
    check_turn(turn, intents)
    return turn


def check_turn(turn: Turn, intents: Collection[str] = INTENTS) -> None:
    """Refuse a turn that is not fit for the avatar.

    Raises:
        TurnError: naming the part, its value and what it must be.
    """
    if turn.intent not in intents:
        raise TurnError(f'intent {turn.intent!r} is unknown; use one of {", ".join(intents)}')
    if not (isinstance(turn.confidence, int | float) and math.isfinite(turn.confidence)
            and 0.0 <= turn.confidence <= 1.0):
        raise TurnError(f'confidence {turn.confidence!r} is not a number from 0 to 1')
    if turn.emotion not in EMOTIONS:
        raise TurnError(f'emotion {turn.emotion!r} is unknown; use one of {", ".join(EMOTIONS)}')
    if turn.action not in ACTIONS:
        raise TurnError(f'action {turn.action!r} is unknown; use one of {", ".join(ACTIONS)}')
    if turn.speech != clean_text(turn.speech, MAX_SPEECH_CHARS):
        raise TurnError(f'speech {turn.speech[:60]!r} holds markup, control characters or more '
                        f'than {MAX_SPEECH_CHARS} characters; pass it through clean_text first')
    for name in ('action_prompt', 'talk_prompt', 'stable_prompt'):
        prompt = getattr(turn, name)
        if not prompt.strip() or len(prompt) > MAX_PROMPT_CHARS or not prompt.isprintable():
            raise TurnError(f'{name} {prompt[:60]!r} must be 1 to {MAX_PROMPT_CHARS} printable '
                            f'characters')
    for name, allowed in prompts.ACTION_SLOTS[turn.action].items():
        if turn.action != 'talk' and turn.slots.get(name) not in allowed:
            raise TurnError(f'{name}={turn.slots.get(name)!r} does not fit action '
                            f'{turn.action!r}; use one of {", ".join(allowed)}')
    user_name = turn.slots.get('name')
    if user_name is not None and clean_name(user_name) != user_name:
        raise TurnError(f'name {user_name[:60]!r} is not a name of 1 to {MAX_NAME_CHARS} letters')
