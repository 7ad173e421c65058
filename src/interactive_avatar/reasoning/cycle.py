# SPDX-License-Identifier: Apache-2.0
"""State-Cycling: the avatar's behaviour as one table (docs/architecture.md).

In the phase STABLE the avatar is silent and the generator is given the stable prompt; in the
phase ACTION a turn is said and shown. `TABLE` holds every transition; `StateCycle` applies it and
answers each event with commands. It knows no threads, no ROS and no clock but the one it is
given, so every order of events can be tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from interactive_avatar.generator import prompts
from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.reasoning.turn import MAX_UTTERANCE_CHARS, Turn


class Phase(str, Enum):
    """Which prompt the generator is given."""

    STABLE = 'STABLE'
    ACTION = 'ACTION'


class Activity(str, Enum):
    """What the avatar is doing."""

    IDLE = 'IDLE'
    LISTENING = 'LISTENING'
    THINKING = 'THINKING'
    SPEAKING = 'SPEAKING'
    GESTURING = 'GESTURING'


class Event(str, Enum):
    """What can happen."""

    USER_SPEECH_STARTED = 'user_speech_started'
    USER_SPEECH_GOES_ON = 'user_speech_goes_on'
    USER_SPEECH_ENDED = 'user_speech_ended'
    UTTERANCE = 'utterance'
    NO_WORDS = 'no_words'
    TURN_READY = 'turn_ready'
    TURN_FAILED = 'turn_failed'
    IMPULSE = 'impulse'
    SPEECH_GOES_ON = 'speech_goes_on'
    SPEECH_FINISHED = 'speech_finished'
    SPEECH_FAILED = 'speech_failed'
    ACTION_SHOWN = 'action_shown'
    TIMEOUT = 'timeout'


PHASE_OF: Final[Mapping[Activity, Phase]] = {
    Activity.IDLE: Phase.STABLE, Activity.LISTENING: Phase.STABLE,
    Activity.THINKING: Phase.STABLE, Activity.SPEAKING: Phase.ACTION,
    Activity.GESTURING: Phase.ACTION,
}

# How long an action takes to be seen in full, in seconds; a little more than in the performances
# that the generator is trained on.
ACTION_SECONDS: Final[Mapping[str, float]] = {
    'nod': 1.6, 'shake_head': 1.8, 'smile': 1.8, 'frown': 1.8, 'look_surprised': 1.8,
    'look': 1.4, 'tilt_head': 1.8, 'raise_eyebrows': 1.6, 'think': 2.4, 'lean_closer': 2.2,
    'wear': 1.6, 'remove': 1.6, 'step_out': 1.8, 'come_back': 1.8, 'talk': 0.0,
}
# A turn that could not be spoken is shown at least so long, so that its caption can be read.
SILENT_TURN_S: Final = 1.6


@dataclass(frozen=True)
class CycleOptions:
    """Time-outs: no activity but IDLE lasts without something happening.

    Attributes:
        listening_s: without any sign of the user's speech going on.
        thinking_s: for recognition and reasoning together.
        speaking_s: without a chunk of speech being fetched.
        gesturing_s: for a gesture.
        joining_s: words before a pause this short belong to those after it.
        unheard_s: so long nothing of a turn can have been heard; who speaks then is not breaking
            in but going on.
    """

    listening_s: float = 15.0
    thinking_s: float = 12.0
    speaking_s: float = 8.0
    gesturing_s: float = 6.0
    joining_s: float = 3.0
    unheard_s: float = 0.6

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 < value <= 600.0:
                raise ValueError(f'{name}={value!r} must be more than 0 and at most 600 seconds')


# --- commands: what the cycle asks its owner to do ---------------------------------------------

@dataclass(frozen=True)
class Reason:
    """Think of a turn for `text`; answer with TURN_READY or TURN_FAILED and `request_id`."""

    request_id: int
    text: str


@dataclass(frozen=True)
class DropReason:
    """The answer to `request_id` is no longer wanted."""

    request_id: int


@dataclass(frozen=True)
class BeginTurn:
    """A turn begins: take over what it changes, tell the world, say what it says."""

    turn_id: int
    turn: Turn
    utterance: str


@dataclass(frozen=True)
class TakeBack:
    """Nobody noticed `turn_id`, which has just begun: undo what it changed."""

    turn_id: int


@dataclass(frozen=True)
class StopSpeech:
    """End the sound of `turn_id` now and drop what is not yet heard."""

    turn_id: int


@dataclass(frozen=True)
class SwitchPrompt:
    """Give the generator this prompt from its next chunk on."""

    prompt: str


@dataclass(frozen=True)
class State:
    """The avatar's state, to be published when it changes.

    Attributes:
        phase: STABLE or ACTION.
        activity: see `Activity`.
        turn_id: of the turn in ACTION, else of the last one; 0 before the first.
        prompt: what the generator is given now.
        stable_prompt: what it will be given when the turn has ended.
        world: what the stable prompt describes.
        reason: the event that led here; not compared, so it alone is no change.
    """

    phase: Phase
    activity: Activity
    turn_id: int
    prompt: str
    stable_prompt: str
    world: WorldState
    reason: str = field(default='', compare=False)


@dataclass(frozen=True)
class PublishState:
    """The state has changed."""

    state: State


@dataclass(frozen=True)
class Warn:
    """Something did not go as it should; for logs and diagnostics."""

    text: str


Command = (Reason | DropReason | BeginTurn | TakeBack | StopSpeech | SwitchPrompt | PublishState
           | Warn)


# --- the table --------------------------------------------------------------------------------

@dataclass(frozen=True)
class Rule:
    """In `activity`, on `event`, if `guard`: do `effects`, then be in `target`.

    The first rule that fits is applied; an event without one is ignored. Guards and effects are
    methods of `StateCycle` by name.
    """

    activity: Activity
    event: Event
    target: Activity
    effects: tuple[str, ...] = ()
    guard: str | None = None


def _table() -> tuple[Rule, ...]:
    a, e = Activity, Event
    return (
        Rule(a.IDLE, e.USER_SPEECH_STARTED, a.LISTENING, ('listen',)),
        Rule(a.IDLE, e.UTTERANCE, a.THINKING, ('reason',)),
        Rule(a.IDLE, e.IMPULSE, a.SPEAKING, ('begin',), 'speaks'),
        Rule(a.IDLE, e.IMPULSE, a.GESTURING, ('begin',)),

        Rule(a.LISTENING, e.USER_SPEECH_STARTED, a.LISTENING, ('listen',)),
        Rule(a.LISTENING, e.USER_SPEECH_GOES_ON, a.LISTENING),
        Rule(a.LISTENING, e.USER_SPEECH_ENDED, a.THINKING, ('hear_end',)),
        # Words from before a pause arrive while the user is talking again: they are joined.
        Rule(a.LISTENING, e.UTTERANCE, a.LISTENING, ('keep_words',), 'spoken'),
        Rule(a.LISTENING, e.UTTERANCE, a.THINKING, ('reason',)),
        Rule(a.LISTENING, e.TIMEOUT, a.IDLE, ('warn_listening', 'rest')),

        Rule(a.THINKING, e.USER_SPEECH_STARTED, a.LISTENING, ('take_words_back', 'listen')),
        Rule(a.THINKING, e.UTTERANCE, a.THINKING, ('reason',)),
        Rule(a.THINKING, e.NO_WORDS, a.THINKING, ('reason_kept',), 'has_kept_words'),
        Rule(a.THINKING, e.NO_WORDS, a.IDLE, ('rest',), 'nothing_asked'),
        Rule(a.THINKING, e.TURN_READY, a.SPEAKING, ('begin',), 'asked_and_speaks'),
        Rule(a.THINKING, e.TURN_READY, a.GESTURING, ('begin',), 'asked'),
        Rule(a.THINKING, e.TURN_FAILED, a.IDLE, ('warn_failed', 'rest'), 'asked'),
        Rule(a.THINKING, e.TIMEOUT, a.THINKING, ('reason_kept',), 'has_kept_words'),
        Rule(a.THINKING, e.TIMEOUT, a.IDLE, ('warn_thinking', 'drop_request', 'rest')),

        # The answer has begun and is not heard yet: the user has only paused, and goes on.
        Rule(a.SPEAKING, e.USER_SPEECH_STARTED, a.LISTENING,
             ('stop_speech', 'keep_asked', 'listen'), 'unheard'),
        # The break: the user speaks, so the avatar falls silent and listens.
        Rule(a.SPEAKING, e.USER_SPEECH_STARTED, a.LISTENING, ('stop_speech', 'listen')),
        Rule(a.SPEAKING, e.UTTERANCE, a.THINKING, ('stop_speech', 'attend', 'reason')),
        Rule(a.SPEAKING, e.SPEECH_GOES_ON, a.SPEAKING, (), 'current'),
        Rule(a.SPEAKING, e.ACTION_SHOWN, a.SPEAKING, ('talk',), 'current'),
        Rule(a.SPEAKING, e.SPEECH_FINISHED, a.GESTURING, (), 'current_and_acting'),
        Rule(a.SPEAKING, e.SPEECH_FINISHED, a.IDLE, ('rest',), 'current'),
        Rule(a.SPEAKING, e.SPEECH_FAILED, a.GESTURING, ('stop_speech', 'show_silently'),
             'current'),
        Rule(a.SPEAKING, e.TIMEOUT, a.IDLE, ('warn_speaking', 'stop_speech', 'rest')),

        Rule(a.GESTURING, e.USER_SPEECH_STARTED, a.LISTENING, ('listen',)),
        Rule(a.GESTURING, e.UTTERANCE, a.THINKING, ('attend', 'reason')),
        Rule(a.GESTURING, e.ACTION_SHOWN, a.IDLE, ('rest',), 'current'),
        Rule(a.GESTURING, e.TIMEOUT, a.IDLE, ('warn_gesturing', 'rest')),
    )


TABLE: Final = _table()


@dataclass(frozen=True)
class Occurrence:
    """An event with what belongs to it.

    Attributes:
        event: what happened.
        text: of UTTERANCE; of TURN_FAILED and SPEECH_FAILED the reason.
        spoken: whether an UTTERANCE was spoken (typed otherwise).
        turn: of TURN_READY and IMPULSE.
        number: the request (TURN_READY, TURN_FAILED) or turn (SPEECH_..., ACTION_SHOWN).
    """

    event: Event
    text: str = ''
    spoken: bool = True
    turn: Turn | None = None
    number: int = 0


@dataclass
class StateCycle:
    """The machine.

    Args:
        clock: seconds, monotonic.
        options: time-outs.
        world: the world at the start.
    """

    clock: Callable[[], float]
    options: CycleOptions = field(default_factory=CycleOptions)
    world: WorldState = field(default_factory=WorldState)

    def __post_init__(self) -> None:
        self.activity = Activity.IDLE
        self.turn: Turn | None = None
        self.turn_id = 0
        self.request_id = 0
        self.prompt = prompts.stable_prompt(self.world)
        self._asked = False
        self._utterance = ''
        self._kept = ''
        self._kept_s = 0.0
        # What the turn answers; '' if nobody asked.
        self._asked_words = ''
        self._began_s = 0.0
        self._world_before = self.world
        self._deadline_s: float | None = None
        self._shown_s: float | None = None
        self._commands: list[Command] = []
        self._published: State | None = None
        self._reason = 'start'

    @property
    def phase(self) -> Phase:
        """STABLE or ACTION."""
        return PHASE_OF[self.activity]

    @property
    def state(self) -> State:
        """The state as it is published."""
        return State(self.phase, self.activity, self.turn_id, self.prompt,
                     prompts.stable_prompt(self.world), self.world, self._reason)

    @property
    def next_deadline_s(self) -> float | None:
        """When `tick` has something to do next, on the clock given; None for never."""
        due = [at for at in (self._deadline_s, self._shown_s) if at is not None]
        return min(due) if due else None

    def joined(self, text: str) -> str:
        """Spoken words together with those before the pause that they follow."""
        if self._kept and self.clock() - self._kept_s <= self.options.joining_s \
                + self.options.listening_s:
            joined = f'{self._kept.rstrip(" .,")} {text}'
            if len(joined) <= MAX_UTTERANCE_CHARS:
                return joined
        return text

    def start(self) -> list[Command]:
        """Commands that establish the first state."""
        self._commands = [SwitchPrompt(self.prompt)]
        return self._finish()

    def handle(self, occurrence: Occurrence) -> list[Command]:
        """Apply the table to one event.

        Returns:
            What must be done now, in this order; empty if the event is ignored.
        """
        self._commands = []
        for rule in TABLE:
            if rule.activity is self.activity and rule.event is occurrence.event and (
                    rule.guard is None or getattr(self, f'_if_{rule.guard}')(occurrence)):
                self.activity = rule.target
                self._reason = occurrence.event.value
                for effect in rule.effects:
                    getattr(self, f'_do_{effect}')(occurrence)
                self._arm()
                return self._finish()
        return []

    def tick(self) -> list[Command]:
        """Let time pass: deliver the time-outs that are due."""
        now_s = self.clock()
        commands: list[Command] = []
        if self._shown_s is not None and now_s >= self._shown_s:
            self._shown_s = None
            commands += self.handle(Occurrence(Event.ACTION_SHOWN, number=self.turn_id))
        if self._deadline_s is not None and now_s >= self._deadline_s:
            self._deadline_s = None
            commands += self.handle(Occurrence(Event.TIMEOUT))
        return commands

    def _finish(self) -> list[Command]:
        state = self.state
        if state != self._published:
            self._published = state
            self._commands.append(PublishState(state))
        commands, self._commands = self._commands, []
        return commands

    def _arm(self) -> None:
        seconds = {
            Activity.LISTENING: self.options.listening_s,
            Activity.THINKING: self.options.thinking_s,
            Activity.SPEAKING: self.options.speaking_s,
            Activity.GESTURING: self.options.gesturing_s,
        }.get(self.activity)
        self._deadline_s = None if seconds is None else self.clock() + seconds
        if self.phase is Phase.STABLE:
            self._shown_s = None

    def _switch(self, prompt: str) -> None:
        if prompt != self.prompt:
            self.prompt = prompt
            self._commands.append(SwitchPrompt(prompt))

    # --- guards -------------------------------------------------------------------------------

    def _if_spoken(self, happened: Occurrence) -> bool:
        return happened.spoken

    def _if_speaks(self, happened: Occurrence) -> bool:
        return happened.turn is not None and bool(happened.turn.speech)

    def _if_asked(self, happened: Occurrence) -> bool:
        return self._asked and happened.number == self.request_id

    def _if_asked_and_speaks(self, happened: Occurrence) -> bool:
        return self._if_asked(happened) and self._if_speaks(happened)

    def _if_nothing_asked(self, _: Occurrence) -> bool:
        return not self._asked

    def _if_has_kept_words(self, _: Occurrence) -> bool:
        return not self._asked and bool(self._kept)

    def _if_current(self, happened: Occurrence) -> bool:
        return happened.number == self.turn_id

    def _if_current_and_acting(self, happened: Occurrence) -> bool:
        return self._if_current(happened) and self._shown_s is not None

    def _if_unheard(self, _: Occurrence) -> bool:
        return bool(self._asked_words) and self.clock() - self._began_s < self.options.unheard_s

    # --- effects ------------------------------------------------------------------------------

    def _do_listen(self, _: Occurrence) -> None:
        # Attention goes to the user, wherever the avatar was looking.
        self._switch(prompts.stable_prompt(replace(self.world, listening=True, gaze='user')
                                           if self.world.in_view else self.world))

    def _do_attend(self, happened: Occurrence) -> None:
        self._do_listen(happened)

    def _do_rest(self, _: Occurrence) -> None:
        self._kept = ''
        self._asked = False
        self._switch(prompts.stable_prompt(self.world))

    def _do_hear_end(self, _: Occurrence) -> None:
        self._asked = False

    def _do_keep_words(self, happened: Occurrence) -> None:
        self._kept = self.joined(happened.text)
        self._kept_s = self.clock()

    def _do_take_words_back(self, _: Occurrence) -> None:
        # The user goes on before the answer began: what they said is the beginning of it.
        if self._asked:
            self._commands.append(DropReason(self.request_id))
            self._asked = False
            self._kept, self._kept_s = self._utterance, self.clock()

    def _do_keep_asked(self, _: Occurrence) -> None:
        # The words are thought of once more with those that follow, in the world that they were
        # said in: what the answer did to it was not seen.
        self._kept, self._kept_s = self._asked_words, self.clock()
        self.turn, self.world = None, self._world_before
        self._commands.append(TakeBack(self.turn_id))

    def _do_drop_request(self, _: Occurrence) -> None:
        if self._asked:
            self._commands.append(DropReason(self.request_id))
            self._asked = False

    def _do_reason(self, happened: Occurrence) -> None:
        self._do_drop_request(happened)
        self._utterance = self.joined(happened.text) if happened.spoken else happened.text
        self._ask()

    def _do_reason_kept(self, _: Occurrence) -> None:
        self._utterance = self._kept
        self._ask()

    def _ask(self) -> None:
        self._kept = ''
        self._asked = True
        self.request_id += 1
        self._commands.append(Reason(self.request_id, self._utterance))

    def _do_begin(self, happened: Occurrence) -> None:
        assert happened.turn is not None
        turn = happened.turn
        utterance = self._utterance if happened.event is Event.TURN_READY else ''
        self._asked = False
        self._kept = ''
        self._asked_words = utterance
        self._began_s = self.clock()
        self.turn = turn
        self.turn_id += 1
        self._world_before, self.world = self.world, turn.world
        seconds = ACTION_SECONDS[turn.action]
        if not turn.speech:
            seconds = max(seconds, SILENT_TURN_S)
        self._shown_s = self.clock() + seconds if seconds else None
        self._switch(turn.action_prompt)
        self._commands.append(BeginTurn(self.turn_id, turn, utterance))

    def _do_talk(self, _: Occurrence) -> None:
        if self.turn is not None:
            self._switch(self.turn.talk_prompt)

    def _do_show_silently(self, happened: Occurrence) -> None:
        self._commands.append(Warn(f'the answer is shown without a voice: {happened.text}'))
        self._shown_s = max(self._shown_s or 0.0, self.clock() + SILENT_TURN_S)

    def _do_stop_speech(self, _: Occurrence) -> None:
        self._commands.append(StopSpeech(self.turn_id))

    def _do_warn_listening(self, _: Occurrence) -> None:
        self._warn(f"no end of the user's speech for {self.options.listening_s:g} s; "
                   f'is perception alive?')

    def _do_warn_thinking(self, _: Occurrence) -> None:
        what = f'the reasoner on {self._utterance[:60]!r}' if self._asked else 'recognition'
        self._warn(f'no answer from {what} for {self.options.thinking_s:g} s')

    def _do_warn_failed(self, happened: Occurrence) -> None:
        self._warn(f'no turn was made: {happened.text}')

    def _do_warn_speaking(self, _: Occurrence) -> None:
        self._warn(f'no speech was fetched for {self.options.speaking_s:g} s; is the generator '
                   f'or the voice stuck?')

    def _do_warn_gesturing(self, _: Occurrence) -> None:
        self._warn(f'a gesture did not end within {self.options.gesturing_s:g} s')

    def _warn(self, text: str) -> None:
        self._commands.append(Warn(text))


def diagram(rules: Iterable[Rule] = TABLE) -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ['stateDiagram-v2', '    [*] --> IDLE']
    for phase in Phase:
        inside = [activity.value for activity in Activity if PHASE_OF[activity] is phase]
        lines += [f'    state {phase.value} {{', *(f'        {name}' for name in inside), '    }']
    for rule in rules:
        guard = f' [{rule.guard.replace("_", " ")}]' if rule.guard else ''
        effects = f' / {", ".join(rule.effects).replace("_", " ")}' if rule.effects else ''
        lines.append(f'    {rule.activity.value} --> {rule.target.value}: '
                     f'{rule.event.value}{guard}{effects}')
    return '\n'.join(lines)
