# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import rule as step

from interactive_avatar.generator import prompts
from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.reasoning.cycle import (
    PHASE_OF,
    TABLE,
    Activity,
    BeginTurn,
    CycleOptions,
    Event,
    Occurrence,
    Phase,
    PublishState,
    Reason,
    StateCycle,
    StopSpeech,
    SwitchPrompt,
    TakeBack,
    Warn,
    diagram,
)
from interactive_avatar.reasoning.turn import ACTIONS, make_turn

from .conftest import Clock


def turn_for(world: WorldState, action: str = 'talk', speech: str = 'Yes.'):  # type: ignore[no-untyped-def]
    slots = {'wear': {'object': 'hat'}, 'remove': {'object': 'hat'},
             'look': {'direction': 'left'}}.get(action, {})
    return make_turn('affirm', 1.0, 'neutral', speech, world, action, slots)


class Driver:
    """Feeds a cycle and checks after every event what must always hold."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.cycle = StateCycle(clock)
        self.sounding: int | None = None
        self.begun: list[int] = []
        self.warnings = 0
        self.asked: int | None = None
        self.carry_out(self.cycle.start())

    def send(self, event: Event, **fields: object) -> None:
        self.carry_out(self.cycle.handle(Occurrence(event, **fields)))  # type: ignore[arg-type]

    def carry_out(self, commands: list) -> None:  # type: ignore[type-arg]
        for command in commands:
            match command:
                case BeginTurn():
                    assert self.sounding is None, 'two turns at once'
                    assert command.turn_id not in self.begun
                    self.begun.append(command.turn_id)
                    self.sounding = command.turn_id if command.turn.speech else None
                case StopSpeech():
                    if self.sounding == command.turn_id:
                        self.sounding = None
                case TakeBack():
                    assert command.turn_id == self.begun[-1] and self.sounding is None
                case Reason():
                    self.asked = command.request_id
                case Warn():
                    self.warnings += 1
                case PublishState():
                    assert command.state.phase is PHASE_OF[command.state.activity]
        self.check()

    def check(self) -> None:
        cycle = self.cycle
        if cycle.phase is Phase.STABLE:
            assert self.sounding is None, 'sound in STABLE'
            attending = replace(cycle.world, listening=True, gaze='user')
            assert cycle.prompt in (prompts.stable_prompt(cycle.world),
                                    prompts.stable_prompt(attending))
            if cycle.turn is not None:
                assert cycle.world == cycle.turn.world
        else:
            assert cycle.turn is not None
            assert cycle.prompt in (cycle.turn.action_prompt, cycle.turn.talk_prompt)
        if cycle.activity is not Activity.IDLE:
            assert cycle.next_deadline_s is not None, 'a dead end'

    def random_event(self, chance: random.Random) -> None:
        event = chance.choice(list(Event))
        world = replace(self.cycle.world, listening=False)
        action = chance.choice(ACTIONS)
        turn = turn_for(world, action, chance.choice(['', 'Yes.']) if action != 'talk' else 'Yes.')
        if event is Event.TIMEOUT or chance.random() < 0.3:
            self.clock.now_s += chance.choice([0.1, 1.0, 20.0])
            self.carry_out(self.cycle.tick())
        elif event in (Event.TURN_READY, Event.TURN_FAILED):
            self.send(event, turn=turn, number=self.cycle.request_id - chance.choice([0, 0, 1]))
        elif event is Event.IMPULSE:
            self.send(event, turn=turn)
        elif event in (Event.SPEECH_FINISHED, Event.SPEECH_FAILED, Event.SPEECH_GOES_ON):
            if self.sounding == self.cycle.turn_id:
                if event is not Event.SPEECH_GOES_ON:
                    self.sounding = None
                self.send(event, number=self.cycle.turn_id)
            else:
                self.send(event, number=self.cycle.turn_id - 1)
        elif event is not Event.ACTION_SHOWN:
            self.send(event, text='hello', spoken=chance.random() < 0.6)


@pytest.mark.parametrize('seed', range(30))
def test_any_order_of_events_keeps_the_rules(seed: int, clock: Clock) -> None:
    chance = random.Random(seed)
    driver = Driver(clock)
    for _ in range(200):
        driver.random_event(chance)
    # Left alone, it comes to rest with the turn's stable prompt.
    for _ in range(20):
        clock.now_s += 20.0
        driver.carry_out(driver.cycle.tick())
    assert driver.cycle.activity is Activity.IDLE
    assert driver.cycle.prompt == prompts.stable_prompt(driver.cycle.world)


def test_the_random_orders_reach_every_rule(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    for seed in range(60):
        chance = random.Random(seed)
        driver = Driver(clock)
        for _ in range(150):
            before = driver.cycle.activity
            driver.random_event(chance)
            used.add((before, driver.cycle.activity))
    assert {(rule.activity, rule.target) for rule in TABLE} <= used


def test_a_turn_from_question_to_rest(clock: Clock) -> None:
    driver = Driver(clock)
    driver.send(Event.USER_SPEECH_STARTED)
    assert driver.cycle.activity is Activity.LISTENING
    assert 'listening' in driver.cycle.prompt
    driver.send(Event.USER_SPEECH_ENDED)
    driver.send(Event.UTTERANCE, text='put on your hat')
    assert driver.asked == 1
    turn = turn_for(WorldState(), 'wear')
    driver.send(Event.TURN_READY, turn=turn, number=1)
    assert driver.cycle.activity is Activity.SPEAKING
    assert driver.cycle.prompt == turn.action_prompt
    clock.now_s += 2.0
    driver.carry_out(driver.cycle.tick())
    assert driver.cycle.prompt == turn.talk_prompt
    driver.sounding = None
    driver.send(Event.SPEECH_FINISHED, number=1)
    assert driver.cycle.activity is Activity.IDLE
    assert driver.cycle.prompt == turn.stable_prompt and 'hat' in turn.stable_prompt


def test_a_gesture_outlasts_short_speech(clock: Clock) -> None:
    driver = Driver(clock)
    driver.send(Event.IMPULSE, turn=turn_for(WorldState(), 'nod'))
    driver.sounding = None
    driver.send(Event.SPEECH_FINISHED, number=1)
    assert driver.cycle.activity is Activity.GESTURING
    clock.now_s += 2.0
    driver.carry_out(driver.cycle.tick())
    assert driver.cycle.activity is Activity.IDLE


def test_the_break_stops_the_sound_at_once(clock: Clock) -> None:
    cycle = StateCycle(clock)
    cycle.handle(Occurrence(Event.IMPULSE, turn=turn_for(WorldState(), 'wear')))
    commands = cycle.handle(Occurrence(Event.USER_SPEECH_STARTED))
    assert commands[0] == StopSpeech(1)
    assert cycle.activity is Activity.LISTENING and cycle.world.hat
    assert any(isinstance(command, SwitchPrompt) and 'listening' in command.prompt
               for command in commands)


def test_an_answer_to_an_older_question_is_dropped(clock: Clock) -> None:
    driver = Driver(clock)
    driver.send(Event.UTTERANCE, text='one', spoken=False)
    driver.send(Event.UTTERANCE, text='two', spoken=False)
    driver.send(Event.TURN_READY, turn=turn_for(WorldState()), number=1)
    assert driver.cycle.activity is Activity.THINKING
    driver.send(Event.TURN_READY, turn=turn_for(WorldState()), number=2)
    assert driver.cycle.activity is Activity.SPEAKING


def test_a_pause_in_a_sentence_does_not_cut_it(clock: Clock) -> None:
    cycle = StateCycle(clock)
    for event, text in ((Event.USER_SPEECH_STARTED, ''), (Event.USER_SPEECH_ENDED, ''),
                        (Event.UTTERANCE, 'Put on your.'), (Event.USER_SPEECH_STARTED, ''),
                        (Event.USER_SPEECH_ENDED, '')):
        cycle.handle(Occurrence(event, text))
    commands = cycle.handle(Occurrence(Event.UTTERANCE, 'glasses'))
    assert Reason(2, 'Put on your glasses') in commands


def test_words_of_noise_do_not_lose_those_before(clock: Clock) -> None:
    cycle = StateCycle(clock)
    for event, text in ((Event.USER_SPEECH_STARTED, ''), (Event.USER_SPEECH_ENDED, ''),
                        (Event.UTTERANCE, 'Nod.'), (Event.USER_SPEECH_STARTED, ''),
                        (Event.USER_SPEECH_ENDED, '')):
        cycle.handle(Occurrence(event, text))
    assert Reason(2, 'Nod.') in cycle.handle(Occurrence(Event.NO_WORDS))


@pytest.mark.parametrize(('events', 'word'), [
    ([Event.USER_SPEECH_STARTED], 'perception'), ([Event.UTTERANCE], 'reasoner'),
    ([Event.USER_SPEECH_STARTED, Event.USER_SPEECH_ENDED], 'recognition'),
    ([Event.IMPULSE], 'voice'),
])
def test_every_wait_ends_with_a_reason(events: list[Event], word: str, clock: Clock) -> None:
    cycle = StateCycle(clock)
    for event in events:
        cycle.handle(Occurrence(event, 'hello', turn=turn_for(WorldState())))
    clock.now_s += 60.0
    warnings = [command.text for command in cycle.tick() if isinstance(command, Warn)]
    assert len(warnings) == 1 and word in warnings[0]
    assert cycle.activity is Activity.IDLE


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match='thinking_s=0'):
        CycleOptions(thinking_s=0)


def test_the_table_has_no_dead_end_and_names_what_exists(clock: Clock) -> None:
    cycle = StateCycle(clock)
    for rule in TABLE:
        for effect in rule.effects:
            assert callable(getattr(cycle, f'_do_{effect}'))
        assert rule.guard is None or callable(getattr(cycle, f'_if_{rule.guard}'))
    for activity in Activity:
        assert any(rule.activity is activity and rule.target is not activity for rule in TABLE)
        if activity is not Activity.IDLE:
            assert any(rule.activity is activity and rule.event is Event.TIMEOUT
                       and rule.target is Activity.IDLE for rule in TABLE)


def test_diagram() -> None:
    text = diagram()
    assert text.startswith('stateDiagram-v2')
    assert 'SPEAKING --> LISTENING: user_speech_started / stop speech, listen' in text


def test_the_documentation_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    assert f'```mermaid\n{diagram()}\n```' in page, 'paste the output of diagram() into the page'


class CycleMachine(RuleBasedStateMachine):
    """Hypothesis chooses the events and the times between them; `Driver` checks the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(Clock())

    @step(seconds=st.floats(0.0, 30.0))
    def wait(self, seconds: float) -> None:
        self.driver.clock.now_s += seconds
        self.driver.carry_out(self.driver.cycle.tick())

    @step(event=st.sampled_from((Event.USER_SPEECH_STARTED, Event.USER_SPEECH_GOES_ON,
                                 Event.USER_SPEECH_ENDED, Event.UTTERANCE, Event.NO_WORDS)),
          spoken=st.booleans(), text=st.text(min_size=1, max_size=500))
    def user(self, event: Event, spoken: bool, text: str) -> None:
        self.driver.send(event, text=text, spoken=spoken)

    @step(event=st.sampled_from((Event.TURN_READY, Event.TURN_FAILED, Event.IMPULSE)),
          action=st.sampled_from(ACTIONS), speech=st.sampled_from(('', 'Yes.')),
          late=st.integers(0, 2))
    def reasoner(self, event: Event, action: str, speech: str, late: int) -> None:
        cycle = self.driver.cycle
        world = replace(cycle.world, listening=False)
        turn = turn_for(world, action, speech if action != 'talk' else 'Yes.')
        self.driver.send(event, turn=turn, number=cycle.request_id - late)

    @step(event=st.sampled_from((Event.SPEECH_GOES_ON, Event.SPEECH_FINISHED,
                                 Event.SPEECH_FAILED)), late=st.integers(0, 2))
    def voice(self, event: Event, late: int) -> None:
        driver = self.driver
        number = driver.cycle.turn_id - late
        if driver.sounding == number and event is not Event.SPEECH_GOES_ON:
            driver.sounding = None
        elif driver.sounding is None and not late:
            # A voice that is silent tells of nothing.
            return
        driver.send(event, number=number)

    def teardown(self) -> None:
        """Left alone, it comes to rest with the stable prompt of the last turn."""
        for _ in range(20):
            self.driver.clock.now_s += 20.0
            self.driver.carry_out(self.driver.cycle.tick())
        cycle = self.driver.cycle
        assert cycle.activity is Activity.IDLE and cycle.next_deadline_s is None
        assert cycle.prompt == prompts.stable_prompt(cycle.world)
        if cycle.turn is not None:
            assert cycle.prompt == cycle.turn.stable_prompt


CycleMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, database=None)
TestCycleMachine = CycleMachine.TestCase
