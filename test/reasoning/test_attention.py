# SPDX-License-Identifier: Apache-2.0
"""Whom the avatar greets, sees off, looks at, smiles and nods at."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from interactive_avatar.generator import prompts
from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.reasoning.attention import Attention, AttentionOptions, Perceived
from interactive_avatar.reasoning.cycle import Activity, Phase, State

NOBODY = Perceived(False, 'camera', looking=False, engaged=0.0)
PASSING = Perceived(True, 'camera', 1, False, 0.0, 'neutral')
LOOKING = Perceived(True, 'camera', 1, True, 1.0, 'neutral')
SMILING = replace(LOOKING, expression='smile')
BLIND = Perceived(None, 'camera')


class Bench:
    """An attention on a clock that the test winds."""

    def __init__(self, **options: float) -> None:
        self.now_s = 100.0
        self.attention = Attention(AttentionOptions(**options),  # type: ignore[arg-type]
                                   lambda: self.now_s)
        self.impulses: list[str] = []

    def see(self, seen: Perceived | None, seconds: float) -> list[str]:
        """A camera that tells twice a second (None: it is silent); returns the impulses."""
        told = []
        for _ in range(round(seconds * 2)):
            self.now_s += 0.5
            if seen is not None:
                told.append(self.attention.perceive(seen))
            told.append(self.attention.tick())
        self.impulses += [impulse for impulse in told if impulse]
        return [impulse for impulse in told if impulse]

    def talk(self) -> None:
        """The user says something and is answered."""
        self.attention.speech_started()
        self.attention.speech_ended()
        self.attention.turn_began()

    def prompt(self, world: WorldState | None = None, activity: Activity = Activity.IDLE,
               phase: Phase = Phase.STABLE) -> str:
        """What is published for a state of the cycle."""
        world = world or WorldState()
        plain = prompts.stable_prompt(world)
        state = State(phase, activity, 0, plain, plain, world)
        dressed = self.attention.dress(state)
        assert (dressed.phase, dressed.world, dressed.stable_prompt) == (
            phase, world, plain), 'dressing changes the prompt alone'
        return dressed.prompt


# --- coming and going ----------------------------------------------------------------------------

def test_who_comes_and_looks_is_greeted_once_and_seen_off() -> None:
    bench = Bench()
    assert bench.see(PASSING, 5.0) == [], 'a passer-by is not spoken to'
    assert bench.see(LOOKING, 60.0) == ['greeting']
    assert bench.see(PASSING, 5.0) + bench.see(LOOKING, 5.0) == []
    bench.talk()
    assert bench.see(NOBODY, 10.0) == ['farewell']
    assert not bench.attention.present


def test_out_of_sight_for_a_moment_is_not_gone() -> None:
    bench = Bench()
    bench.see(LOOKING, 2.0)
    bench.talk()
    for _ in range(5):
        assert bench.see(NOBODY, 1.0) + bench.see(LOOKING, 2.0) == []


def test_who_comes_back_soon_is_not_greeted_again() -> None:
    bench = Bench()
    bench.see(LOOKING, 2.0)
    assert bench.see(NOBODY, 10.0) == [], 'who never talked needs no farewell'
    assert bench.see(LOOKING, 2.0) == []
    bench.see(NOBODY, 30.0)
    assert bench.see(LOOKING, 2.0) == ['greeting']


def test_a_source_that_knows_no_looks_is_greeted_by_presence() -> None:
    bench = Bench()
    assert bench.attention.perceive(Perceived(True)) == 'greeting'
    assert bench.attention.perceive(Perceived(True)) == ''


def test_a_second_person_is_greeted_when_nothing_is_being_said() -> None:
    two = replace(LOOKING, people=2)
    bench = Bench()
    bench.see(LOOKING, 3.0)
    bench.talk()
    assert bench.see(two, 10.0) == [], 'not in the middle of a conversation'
    bench.see(LOOKING, 30.0)
    assert bench.see(two, 10.0) == ['greeting']
    assert bench.see(LOOKING, 10.0) == [], 'one of two leaves: the other is still there'
    assert bench.see(NOBODY, 10.0) == ['farewell']


def test_two_sources_see_one_user() -> None:
    bench = Bench()
    assert bench.attention.perceive(Perceived(True, 'hri', 1)) == 'greeting'
    assert bench.see(NOBODY, 10.0) == [], 'ROS4HRI still sees them'
    bench.talk()
    bench.attention.perceive(Perceived(False, 'hri'))
    assert bench.see(NOBODY, 3.0) == ['farewell']


@pytest.mark.parametrize('silence', [None, BLIND])
def test_silence_of_perception_is_neither_coming_nor_going(silence: Perceived | None) -> None:
    bench = Bench()
    bench.see(LOOKING, 3.0)
    bench.talk()
    # Minutes without pictures, and the user is talking on: no farewell, no greeting after.
    for _ in range(60):
        assert bench.see(silence, 4.0) == []
        bench.talk()
    assert bench.see(LOOKING, 10.0) == []
    # Minutes in which nothing was heard either: who is there then may be somebody else.
    assert bench.see(silence, 300.0) == []
    assert bench.see(LOOKING, 10.0) == ['greeting']


def test_nothing_is_said_without_greet_or_before_anything_is_known() -> None:
    bench = Bench(greet=False)
    bench.see(LOOKING, 3.0)
    bench.talk()
    assert bench.see(NOBODY, 10.0) == [] and bench.impulses == []
    assert Bench().see(None, 10.0) == []


# --- what is shown -------------------------------------------------------------------------------

def test_a_smile_is_mirrored_while_it_lasts() -> None:
    bench = Bench()
    neutral, smiling = prompts.stable_prompt(WorldState()), prompts.stable_prompt(
        WorldState(expression='smile'))
    bench.see(LOOKING, 10.0)
    assert bench.prompt() == neutral
    bench.see(SMILING, 1.0)
    assert bench.prompt() == smiling
    assert bench.prompt(activity=Activity.LISTENING) == prompts.stable_prompt(
        WorldState(expression='smile', listening=True))
    assert bench.prompt(WorldState(hat=True)) == prompts.stable_prompt(
        WorldState(hat=True, expression='smile'))
    # Not over an answer, and not from outside the view.
    assert bench.prompt(activity=Activity.SPEAKING, phase=Phase.ACTION) == neutral
    away = WorldState(in_view=False)
    assert bench.prompt(away) == prompts.stable_prompt(away)
    bench.see(LOOKING, 1.0)
    assert bench.prompt() == neutral
    # Nobody grins for ever, nor again and again.
    bench.see(LOOKING, 20.0)
    bench.see(SMILING, 7.0)
    assert bench.prompt() == neutral
    # A smile at somebody else is not for the avatar.
    other = Bench()
    other.see(replace(SMILING, looking=False), 3.0)
    assert other.prompt() == neutral


def test_eyes_are_met_when_the_user_looks_and_then_rest_where_they_were_told_to() -> None:
    bench = Bench()
    aside = WorldState(gaze='left')
    bench.see(PASSING, 10.0)
    assert bench.prompt(aside) == prompts.stable_prompt(aside)
    bench.see(LOOKING, 1.0)
    assert bench.prompt(aside) == prompts.stable_prompt(WorldState())
    bench.see(LOOKING, 5.0)
    assert bench.prompt(aside) == prompts.stable_prompt(aside)
    # A glance aside is no new meeting.
    bench.see(replace(LOOKING, looking=False, engaged=0.25), 1.0)
    bench.see(LOOKING, 1.0)
    assert bench.prompt(aside) == prompts.stable_prompt(aside)


def test_nods_at_pauses_of_a_user_who_has_spoken_for_a_while() -> None:
    bench = Bench()
    nod = prompts.action_prompt('nod', WorldState())
    listening = Activity.LISTENING
    bench.attention.paused()
    assert bench.prompt(activity=listening) != nod, 'nobody speaks'
    bench.attention.speech_started()
    bench.now_s += 0.6
    bench.attention.paused()
    assert bench.prompt(activity=listening) != nod, 'too early'
    bench.now_s += 1.0
    bench.attention.paused()
    assert bench.prompt(activity=listening) == nod
    bench.now_s += 1.7
    assert bench.prompt(activity=listening) != nod, 'one nod'
    bench.attention.paused()
    assert bench.prompt(activity=listening) != nod, 'not at every pause'
    bench.now_s += 3.0
    bench.attention.paused()
    assert bench.prompt(activity=listening) == nod
    bench.attention.turn_began()
    assert bench.prompt() != nod, 'the answer ends it'


def test_a_nod_answers_a_question_that_was_just_asked() -> None:
    bench = Bench()
    assert bench.attention.answer_to('nod') == ''
    bench.attention.turn_heard('Shall I put on my glasses?')
    bench.now_s += 2.0
    assert bench.attention.answer_to('') == ''
    assert bench.attention.answer_to('shake') == 'no'
    assert bench.attention.answer_to('nod') == '', 'answered already'
    bench.attention.turn_heard('Shall I put on my glasses?')
    bench.now_s += 30.0
    assert bench.attention.answer_to('nod') == ''
    bench.attention.turn_heard('I am Nora.')
    assert bench.attention.answer_to('nod') == ''


def test_without_react_nothing_is_dressed() -> None:
    bench = Bench(react=False)
    bench.attention.speech_started()
    bench.now_s += 3.0
    bench.attention.paused()
    bench.see(SMILING, 1.0)
    assert bench.prompt(WorldState(gaze='left')) == prompts.stable_prompt(WorldState(gaze='left'))


@pytest.mark.parametrize('value', [-1.0, math.nan, 1e6])
def test_options_that_cannot_work_are_named(value: float) -> None:
    with pytest.raises(ValueError, match='nod_every_s='):
        AttentionOptions(nod_every_s=value)
