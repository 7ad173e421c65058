# SPDX-License-Identifier: Apache-2.0
"""The embedded reasoner: recognised intents and the dialogue policy of the persona. Offline."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from interactive_avatar.generator import prompts
from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.reasoning.intents import (
    Embed,
    Guess,
    IntentClassifier,
    normalise,
    sentences,
)
from interactive_avatar.reasoning.memory import Memory
from interactive_avatar.reasoning.persona import IntentPolicy, Persona
from interactive_avatar.reasoning.slots import find_direction, find_name, find_object
from interactive_avatar.reasoning.turn import (
    MAX_UTTERANCE_CHARS,
    OUT_OF_SCOPE,
    Turn,
    clean_text,
    make_turn,
)

# Said around what is meant: `Hello! Please nod.` asks for a nod.
SOCIAL_INTENTS: Final = frozenset(('greeting', 'thanks', 'apology', 'affirm', 'deny',
                                   'compliment', OUT_OF_SCOPE))
# Least confidence of one sentence out of several to stand for all of them.
SENTENCE_CONFIDENCE: Final = 0.45
# Actions that change nothing in a world that is so already.
_WORLD_ACTIONS: Final = frozenset(('wear', 'remove', 'step_out', 'come_back'))
# Actions that need no face in view.
_UNSEEN_ACTIONS: Final = frozenset(('talk', 'step_out', 'come_back'))
_AGAIN: Final = re.compile(r'(?:please )?(?:(?:can|could) you )?(?:do (?:it|that|this) )?'
                           r'(?:again|once more|one more time|once again)(?: please)?')
_TELLS_NAME: Final = re.compile(r"\b(?:my|the) name(?:'s| is)\b|\b(?:may|can|should) call me\b")
_SPOKEN_DIRECTION: Final = {'left': 'to the left', 'right': 'to the right', 'up': 'up',
                            'down': 'down', 'user': 'at you'}


class Reasoner(Protocol):
    """Turns what a user said into a turn of the avatar."""

    name: str

    def reason(self, text: str, memory: Memory,
               cancelled: Callable[[], bool] = lambda: False) -> Turn:
        """Answer one utterance.

        Args:
            text: what the user said or typed.
            memory: the conversation; read only (`Memory.begin` takes the turn over).
            cancelled: tells that the answer is no longer wanted.

        Raises:
            TurnError: if no valid turn could be made.
        """

    def answer(self, intent: str, memory: Memory) -> Turn | None:
        """A turn that nobody asked for, such as greeting who comes; None if that is not known."""

    def close(self) -> None:
        """Release what is held; may be called twice."""


class EmbeddedReasoner:
    """Intent by sentence embedding, answer by policy.

    Args:
        persona: intents, examples, replies.
        embed: text to a unit vector float32 [d], `TextEncoder.sentence`.
        cache: folder for the embeddings of the examples, None for none.
        now: local time, for the time and the date.
        seed: of the order of replies.
    """

    name = 'embedded'

    def __init__(self, persona: Persona, embed: Embed, cache: Path | None = None,
                 now: Callable[[], datetime] = datetime.now, seed: int | None = None) -> None:
        self.persona = persona
        self.classifier = IntentClassifier(persona, embed, cache)
        self._now = now
        self._random = random.Random(seed)
        self._bags: dict[tuple[str, str], list[str]] = {}
        self._last: dict[tuple[str, str], str] = {}

    # --- understanding ------------------------------------------------------------------------

    def understand(self, text: str, memory: Memory | None = None
                   ) -> tuple[str, float, dict[str, str]]:
        """Intent, confidence and slots of an utterance.

        Args:
            text: what was said.
            memory: the conversation, for what only it explains (`take it off`, a bare name).
        """
        memory = memory or Memory()
        text = clean_text(text, MAX_UTTERANCE_CHARS)
        expected = self._expected(text, memory)
        if expected is not None:
            return expected
        guess = self._guess(self._without_address(text))
        intent = guess.intent
        slots = self._slots(intent, text, memory)
        if intent != 'introduce_self' and 'introduce_self' in self.persona.intents:
            # `Hi there, I'm Ben` greets, and the name is worth more than the greeting.
            # A sentence that says `my name is` introduces, however rare the name.
            name = find_name(text) if intent in ('greeting', OUT_OF_SCOPE) else None
            if name is not None and (guess.runner_up == 'introduce_self'
                                     or _TELLS_NAME.search(normalise(text))):
                return 'introduce_self', guess.confidence, {'name': name}
        return intent, guess.confidence, slots

    def _guess(self, text: str) -> Guess:
        whole = self.classifier.guess(text)
        parts = sentences(text)
        if len(parts) < 2 or (whole.intent not in SOCIAL_INTENTS and whole.confidence
                              >= SENTENCE_CONFIDENCE):
            return whole
        guesses = [self.classifier.guess(part) for part in parts[:6]]
        sure = [guess for guess in guesses if guess.confidence >= SENTENCE_CONFIDENCE]
        telling = [guess for guess in sure if guess.intent not in SOCIAL_INTENTS]
        if telling:
            return telling[-1]
        social = [guess for guess in sure if guess.intent != OUT_OF_SCOPE]
        # A question that cannot be answered is what was meant, not the greeting before it.
        return whole if whole.intent != OUT_OF_SCOPE or not social or len(social) < len(sure) \
            else social[0]

    def _without_address(self, text: str) -> str:
        # `Robin, please nod`: the avatar's own name says nothing about the intent, unless it is
        # all that follows a greeting.
        name = re.escape(self.persona.name)
        shorter = re.sub(rf'^(?:(?:hey|hi|hello|okay|ok|dear|please) )?{name}[,!. ]+(?=\w)', '',
                         text, flags=re.IGNORECASE)
        return re.sub(rf'(?<=\w)[, ]+{name}(?=[.!?]*$)', '', shorter, flags=re.IGNORECASE)

    def _expected(self, text: str, memory: Memory) -> tuple[str, float, dict[str, str]] | None:
        # An answer to the avatar's own question: `The hat.` after `My glasses or my hat?`.
        if memory.expecting is None or memory.expecting_intent is None:
            return None
        words = normalise(text).split()
        if not words or len(words) > 5:
            return None
        if memory.expecting == 'name':
            guess = self.classifier.guess(text)
            if guess.intent not in (OUT_OF_SCOPE, 'introduce_self') and guess.confidence > 0.5:
                return None
            value = find_name(text, bare=True)
        elif memory.expecting == 'object':
            value = find_object(text)
        else:
            value = find_direction(text)
        if value is None:
            return None
        return memory.expecting_intent, 0.9, {memory.expecting: value}

    def _slots(self, intent: str, text: str, memory: Memory) -> dict[str, str]:
        policy = self.persona.intents[intent]
        found = {
            'name': find_name(text) if 'name' in policy.slots else None,
            'direction': find_direction(text) if 'direction' in policy.slots else None,
            'object': find_object(text, memory.world.worn, memory.last_object,
                                  policy.action == 'remove') if 'object' in policy.slots else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    # --- answering ----------------------------------------------------------------------------

    def reason(self, text: str, memory: Memory,
               cancelled: Callable[[], bool] = lambda: False) -> Turn:
        """See `Reasoner.reason`."""
        intent, confidence, slots = self.understand(text, memory)
        if intent == 'ask_repeat' and memory.last_action is not None \
                and _AGAIN.fullmatch(normalise(text)):
            action, action_slots = memory.last_action
            if action not in _WORLD_ACTIONS:
                return make_turn(intent, confidence, 'neutral', '', memory.resting_world(), action,
                                 action_slots, self.name, self.persona.intents)
        return self.respond(intent, confidence, slots, memory)

    def answer(self, intent: str, memory: Memory) -> Turn | None:
        """See `Reasoner.answer`."""
        if intent not in self.persona.intents:
            # Whoever leaves `greeting` out of a persona wants nobody greeted.
            return None
        return self.respond(intent, 1.0, {}, memory)

    def respond(self, intent: str, confidence: float, slots: Mapping[str, str],
                memory: Memory) -> Turn:
        """The policy's answer to an intent that is already known."""
        policy = self.persona.intents[intent]
        world = memory.resting_world()
        situation, action, asks = self._situation(policy, slots, memory, world)
        replies = policy.situations[situation] if situation else policy.replies
        speech = self._fill(self._pick(intent, situation, replies), slots, memory)
        emotion = policy.emotion if situation in ('', 'known') else 'neutral'
        return make_turn(intent, confidence, emotion, speech, world, action, slots, self.name,
                         self.persona.intents, asks)

    def close(self) -> None:
        """Nothing is held."""

    def _situation(self, policy: IntentPolicy, slots: Mapping[str, str], memory: Memory,
                   world: WorldState) -> tuple[str, str | None, tuple[str, str] | None]:
        has = policy.situations
        action = policy.action
        if not world.in_view and action and action not in _UNSEEN_ACTIONS and 'out_of_view' in has:
            return 'out_of_view', None, None
        for slot in policy.slots:
            if slot not in slots:
                return 'missing', None, (slot, policy.name)
        if memory.last_said is None and 'missing' in has and any(
                '{last}' in reply for reply in policy.replies):
            return 'missing', None, None
        if action in _WORLD_ACTIONS and 'already' in has:
            acted = {name: value for name, value in slots.items()
                     if name in prompts.ACTION_SLOTS[action]}
            later = prompts.after(action, world, **acted)
            if (later.worn, later.in_view) == (world.worn, world.in_view):
                return 'already', None, None
        if memory.user_name is not None and 'name' not in slots and 'known' in has:
            return 'known', action, None
        return '', action, None

    def _pick(self, intent: str, situation: str, replies: Sequence[str]) -> str:
        # Shuffled and drawn until empty: all are heard, none twice in a row.
        key = (intent, situation)
        bag = self._bags.get(key)
        if not bag:
            bag = list(replies)
            self._random.shuffle(bag)
            if len(bag) > 1 and bag[-1] == self._last.get(key):
                bag[0], bag[-1] = bag[-1], bag[0]
            self._bags[key] = bag
        self._last[key] = bag.pop()
        return self._last[key]

    def _fill(self, reply: str, slots: Mapping[str, str], memory: Memory) -> str:
        name = slots.get('name') or memory.user_name or ''
        now = self._now()
        values = {
            'name': name, ', name': f', {name}' if name else '', 'self': self.persona.name,
            'object': slots.get('object', ''),
            'direction': _SPOKEN_DIRECTION.get(slots.get('direction', ''), ''),
            'time': time_in_words(now), 'date': date_in_words(now),
            'last': memory.last_said or '',
            'joke': self._pick('jokes', '', self.persona.jokes) if '{joke}' in reply else '',
        }
        return re.sub(r'\{([^{}]*)\}', lambda match: values[match[1]], reply)


_ONES: Final = ('zero one two three four five six seven eight nine ten eleven twelve thirteen '
                'fourteen fifteen sixteen seventeen eighteen nineteen').split()
_TENS: Final = {20: 'twenty', 30: 'thirty', 40: 'forty', 50: 'fifty', 60: 'sixty', 70: 'seventy',
                80: 'eighty', 90: 'ninety'}
_ORDINALS: Final = ('first second third fourth fifth sixth seventh eighth ninth tenth eleventh '
                    'twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth '
                    'nineteenth').split()
_DAYS: Final = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
_MONTHS: Final = ('January February March April May June July August September October November '
                  'December').split()


def _number(value: int) -> str:
    if value < 20:
        return _ONES[value]
    ten, one = value // 10 * 10, value % 10
    return _TENS[ten] + (f'-{_ONES[one]}' if one else '')


def time_in_words(now: datetime) -> str:
    """A time as people say it: `twenty-five past nine in the morning`."""
    minute = now.minute
    hour = now.hour if minute <= 30 else (now.hour + 1) % 24
    if hour == 0 and minute == 0:
        return 'midnight'
    if hour == 12 and minute == 0:
        return 'noon'
    spoken = _number(hour % 12 or 12)
    if hour in (0, 12):
        spoken, part = ('midnight' if hour == 0 else 'noon'), ''
        if minute == 30:
            spoken, part = 'twelve', ''
    else:
        part = (' at night' if now.hour < 5 or now.hour >= 22 else ' in the morning'
                if now.hour < 12 else ' in the afternoon' if now.hour < 18
                else ' in the evening')
    if minute == 0:
        return f"{spoken} o'clock{part}"
    if minute == 30:
        return f'half past {spoken}{part}'
    past = minute < 30
    count = minute if past else 60 - minute
    said = 'a quarter' if count == 15 else _number(count)
    unit = '' if count == 15 or count % 5 == 0 else ' minute' if count == 1 else ' minutes'
    return f'{said}{unit} {"past" if past else "to"} {spoken}{part}'


def date_in_words(now: datetime) -> str:
    """A date as people say it: `Monday, the twenty-third of November, twenty twenty-six`."""
    day = now.day
    if day < 20:
        ordinal = _ORDINALS[day - 1]
    elif day % 10 == 0:
        ordinal = _TENS[day].removesuffix('y') + 'ieth'
    else:
        ordinal = f'{_TENS[day // 10 * 10]}-{_ORDINALS[day % 10 - 1]}'
    century, rest = divmod(now.year, 100)
    year = (f'two thousand {_number(rest)}'.replace(' zero', '') if now.year // 10 == 200
            else f'{_number(century)} {_number(rest) if rest > 9 else "oh " + _ONES[rest]}')
    return f'{_DAYS[now.weekday()]}, the {ordinal} of {_MONTHS[now.month - 1]}, {year}'
