# SPDX-License-Identifier: Apache-2.0
"""What the avatar does about whom it sees: greets, sees off, meets eyes, mirrors a smile, nods.

`Attention` sits beside the state cycle. It asks for impulses (a greeting, a farewell), which are
turns like any other, and it *dresses* the states that are published: while the avatar is silent,
a nod, a smile or a look at the user takes the place of the stable prompt for a moment. A dressed
state stays in the phase STABLE; nothing of the cycle changes, and the first word ends it.

No threads, no ROS, and no clock but the one it is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from interactive_avatar.generator import prompts
from interactive_avatar.reasoning.cycle import ACTION_SECONDS, Activity, Phase, State

GREETING: Final = 'greeting'
FAREWELL: Final = 'farewell'
# Sources that tell what they see again and again, so that their silence means something.
STEADY_SOURCES: Final = ('camera',)
# What the user's head says in answer to a question.
ANSWER_OF: Final = {'nod': 'yes', 'shake': 'no'}


@dataclass(frozen=True)
class Perceived:
    """What one source perceives of the user now.

    Attributes:
        present: whether somebody is there; None if that is not known (no camera, no pictures).
        source: who says so, such as 'camera' or 'hri'.
        people: how many are there; 0 if nobody or not known.
        looking: whether they look at the avatar; None if that is not known.
        engaged: REP-155 engagement from 0 to 1; NaN if not known.
        expression: neutral, smile, frown, surprise; '' if not known.
        gesture: nod or shake, in the one report in which it was recognised.
    """

    present: bool | None
    source: str = ''
    people: int = 0
    looking: bool | None = None
    engaged: float = math.nan
    expression: str = ''
    gesture: str = ''


@dataclass(frozen=True)
class AttentionOptions:
    """How the avatar attends to its user.

    Attributes:
        greet: whether who comes is greeted and who leaves is seen off.
        react: whether it mirrors smiles, nods at pauses and turns its eyes to who looks at it.
        greet_again_s: a person who was away for less is not greeted again.
        farewell_after_s: who is out of sight for less has not left.
        silent_after_s: a steady source that says nothing for so long knows nothing.
        nod_after_s: at pauses of a user who has spoken for so long.
        nod_every_s: not more often than this.
        smile_every_s: a smile is mirrored again after this.
        smile_most_s: a mirrored smile ends after this, if the user's does not before.
        meet_s: how long eyes are met that were turned away.
        question_s: for so long after a question of the avatar, the user's nod or shake is an
            answer.
    """

    greet: bool = True
    react: bool = True
    greet_again_s: float = 20.0
    farewell_after_s: float = 1.5
    silent_after_s: float = 5.0
    nod_after_s: float = 1.2
    nod_every_s: float = 4.0
    smile_every_s: float = 8.0
    smile_most_s: float = 5.0
    meet_s: float = 4.0
    question_s: float = 8.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool) and not 0.0 <= value <= 3600.0:
                raise ValueError(f'{name}={value!r} must be from 0 to 3600 seconds')


class Attention:
    """See the module's text. Not thread-safe: the reasoning module calls it under its lock.

    Args:
        options: how it attends.
        clock: seconds, monotonic.
    """

    def __init__(self, options: AttentionOptions | None = None,
                 clock: Callable[[], float] | None = None) -> None:
        self.options = options or AttentionOptions()
        self._clock = clock or time.monotonic
        self._seen: dict[str, tuple[Perceived, float]] = {}
        self._present = False
        self._greeted = False
        self._known_s = -math.inf
        self._gone_since_s: float | None = None
        self._absent_since_s = -math.inf
        self._people = 0
        self._heard_s = -math.inf
        self._met = False
        self._talked = False
        self._speaking_since_s: float | None = None
        self._nodded_s = -math.inf
        self._smiled_s = -math.inf
        self._action: tuple[str, float] | None = None
        self._smile_until_s = -math.inf
        self._meet_until_s = -math.inf
        self._asked_s = -math.inf

    # --- what happens ---------------------------------------------------------------------------

    @property
    def present(self) -> bool:
        """Whether somebody is there, as far as is known."""
        return self._present

    def speech_started(self) -> None:
        """The user has begun to speak."""
        now_s = self._clock()
        self._heard_s = now_s
        if self._speaking_since_s is None:
            self._speaking_since_s = now_s

    def paused(self) -> None:
        """The user pauses while speaking: a nod says that one listens."""
        now_s = self._clock()
        self._heard_s = now_s
        since_s = self._speaking_since_s
        if (self.options.react and since_s is not None
                and now_s - since_s >= self.options.nod_after_s
                and now_s - self._nodded_s >= self.options.nod_every_s):
            self._nodded_s = now_s
            self._action = ('nod', now_s + ACTION_SECONDS['nod'])

    def speech_ended(self) -> None:
        """The user has finished, or another turn of theirs is expected."""
        self._heard_s = self._clock()
        self._speaking_since_s = None

    def turn_began(self) -> None:
        """The avatar answers."""
        self._talked = True
        self._heard_s = self._clock()
        self._asked_s = -math.inf
        self._action = None

    def turn_heard(self, words: str) -> None:
        """The avatar's words were heard to their end."""
        if words.rstrip().endswith('?'):
            self._asked_s = self._clock()

    def answer_to(self, gesture: str) -> str:
        """The word that a gesture stands for, if the avatar has just asked; else ''."""
        if self._clock() - self._asked_s > self.options.question_s:
            return ''
        answer = ANSWER_OF.get(gesture, '')
        if answer:
            self._asked_s = -math.inf
        return answer

    def perceive(self, seen: Perceived) -> str:
        """Take what a source sees now.

        Returns:
            An impulse, 'greeting' or 'farewell', or ''.
        """
        self._seen[seen.source] = (seen, self._clock())
        return self._judge()

    def tick(self) -> str:
        """Let time pass; to be called a few times a second. Returns an impulse as `perceive`."""
        return self._judge()

    # --- what comes of it -----------------------------------------------------------------------

    def dress(self, state: State) -> State:
        """The state as it is to be published: with a nod, a smile or a look, or as it is."""
        if not self.options.react or state.phase is not Phase.STABLE or not state.world.in_view:
            return state
        now_s = self._clock()
        if self._action is not None and now_s < self._action[1]:
            return replace(state, prompt=prompts.action_prompt(self._action[0], state.world))
        self._action = None
        shown = state.world
        if now_s < self._smile_until_s:
            shown = replace(shown, expression='smile')
        if now_s < self._meet_until_s:
            shown = replace(shown, gaze='user')
        if shown == state.world:
            return state
        if state.activity is Activity.LISTENING:
            shown = replace(shown, listening=True, gaze='user')
        return replace(state, prompt=prompts.stable_prompt(shown))

    def _sources(self, now_s: float) -> list[Perceived]:
        """What is known now: of steady sources, only what is new enough."""
        return [seen for seen, at_s in self._seen.values()
                if seen.present is not None and not (
                    seen.source in STEADY_SOURCES
                    and now_s - at_s > self.options.silent_after_s)]

    def _judge(self) -> str:
        now_s = self._clock()
        known = self._sources(now_s)
        if not known:
            # Nothing is known: nobody has come, and nobody has left.
            self._people, self._met = 0, False
            self._smile_until_s = -math.inf
            return ''
        unknown_s = now_s - self._known_s
        self._known_s = now_s
        there = [seen for seen in known if seen.present]
        if not there:
            return self._judge_absence(now_s)
        self._react(there, now_s)
        looking = any(seen.looking for seen in there) or all(
            seen.looking is None for seen in there)
        impulse = ''
        if not self._present:
            self._present = True
            away_s = now_s - self._absent_since_s
            self._greeted = away_s < self.options.greet_again_s
        elif self._gone_since_s is None and self.options.greet_again_s <= unknown_s < math.inf:
            # The eyes were shut for long: whoever is there now may be somebody else, unless they
            # have talked with the avatar meanwhile.
            self._greeted = now_s - self._heard_s < self.options.greet_again_s
        self._gone_since_s = None
        # A passer-by is not spoken to; who looks is.
        if not self._greeted and looking:
            self._greeted = True
            impulse = GREETING
        people = max(seen.people for seen in there)
        if people > self._people >= 1 and self._greeted and not impulse and looking \
                and now_s - self._heard_s >= self.options.greet_again_s:
            # One more has come while nothing was being said.
            impulse = GREETING
        self._people = people
        if impulse:
            self._heard_s = now_s
        return impulse if self.options.greet else ''

    def _judge_absence(self, now_s: float) -> str:
        self._people, self._met = 0, False
        self._smile_until_s = -math.inf
        if not self._present:
            return ''
        if self._gone_since_s is None:
            self._gone_since_s = now_s
        if now_s - self._gone_since_s < self.options.farewell_after_s:
            return ''
        self._present, self._absent_since_s = False, self._gone_since_s
        self._gone_since_s = None
        talked, self._talked = self._talked, False
        return FAREWELL if self.options.greet and talked else ''

    def _react(self, there: list[Perceived], now_s: float) -> None:
        options = self.options
        looking = any(seen.looking for seen in there)
        if looking and not self._met:
            self._meet_until_s = now_s + options.meet_s
        if not looking and all(seen.looking is None for seen in there):
            looking = True
        # Only who has really turned away is met anew.
        self._met = looking or (self._met and any(seen.engaged > 0.0 for seen in there))
        smiling = looking and any(seen.expression == 'smile' for seen in there)
        if not smiling:
            self._smile_until_s = min(self._smile_until_s, now_s)
        elif now_s - self._smiled_s >= options.smile_every_s:
            self._smiled_s = now_s
            self._smile_until_s = now_s + options.smile_most_s
