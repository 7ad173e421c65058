# SPDX-License-Identifier: Apache-2.0
"""What a conversation remembers: who said what, the user's name, what is being talked about."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.reasoning.turn import OBJECTS, Turn

HISTORY_LIMIT: Final = 40


@dataclass(frozen=True)
class Line:
    """One line of the dialogue.

    Attributes:
        speaker: 'user' or 'avatar'.
        text: what was said; of the avatar only what was heard before an interruption.
        turn_id: the turn it belongs to, 0 for none.
        complete: False if the avatar was interrupted.
    """

    speaker: str
    text: str
    turn_id: int = 0
    complete: bool = True


@dataclass
class Memory:
    """State of one conversation, shared by all reasoners.

    Attributes:
        world: as the last turn left it.
        user_name: None until told.
        last_object: glasses or hat, whichever was last spoken of.
        expecting: slot that the avatar asked for (name, direction, object), or None.
        expecting_intent: the intent that the slot completes.
        last_action: the last bodily action and its slots, for `do it again`.
        smile_asked: the user asked for the smile that is worn, so it stays.
    """

    world: WorldState = field(default_factory=WorldState)
    user_name: str | None = None
    last_object: str | None = None
    expecting: str | None = None
    expecting_intent: str | None = None
    last_action: tuple[str, dict[str, str]] | None = None
    smile_asked: bool = False

    def __post_init__(self) -> None:
        # The cycle writes what was heard while a worker thread reads the dialogue.
        self._lines: deque[Line] = deque(maxlen=HISTORY_LIMIT)
        self._lock = threading.Lock()
        # What the last turn changed, as it was before.
        self._before: dict[str, Any] = {}

    def say(self, speaker: str, text: str, turn_id: int = 0, complete: bool = True) -> None:
        """Append a line; an empty text leaves no trace."""
        if text:
            with self._lock:
                self._lines.append(Line(speaker, text, turn_id, complete))

    def hear(self, text: str) -> None:
        """Append what the user said; words that go on from the line before replace it."""
        with self._lock:
            if self._lines and self._lines[-1].speaker == 'user' and text.startswith(
                    self._lines[-1].text.rstrip(' .,')):
                self._lines.pop()
        self.say('user', text)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The dialogue, oldest first, at most `HISTORY_LIMIT` lines."""
        with self._lock:
            return tuple(self._lines)

    @property
    def last_said(self) -> str | None:
        """The last thing that the avatar was heard to say."""
        return next((line.text for line in reversed(self.lines) if line.speaker == 'avatar'),
                    None)

    def resting_world(self) -> WorldState:
        """The world in which the next turn begins.

        A turn ends listening. A smile that came with friendly words fades with the next words,
        one that the user asked for stays.
        """
        world = replace(self.world, listening=False)
        if world.expression == 'smile' and not self.smile_asked:
            world = replace(world, expression='neutral')
        return world

    def begin(self, turn: Turn) -> None:
        """Take over what a turn changes, at the moment when it begins.

        Reasoning itself changes nothing, so a turn that is dropped before it began leaves no
        trace.
        """
        self._before = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        self.world = turn.world
        self.user_name = turn.slots.get('name', self.user_name)
        if turn.slots.get('object') in OBJECTS:
            self.last_object = turn.slots['object']
        self.expecting, self.expecting_intent = turn.asks or (None, None)
        if turn.action == 'smile':
            self.smile_asked = True
        elif turn.world.expression != 'smile':
            self.smile_asked = False
        self.last_action = None if turn.action == 'talk' else (turn.action, dict(turn.slots))

    def take_back(self) -> None:
        """Undo the last `begin`, of a turn that ended before anybody noticed it.

        The dialogue is not touched: it holds only what was heard.
        """
        for name, value in self._before.items():
            setattr(self, name, value)
        self._before = {}
