# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media.clock import CHUNK_SAMPLES
from interactive_avatar.reasoning.attention import Attention, AttentionOptions, Perceived
from interactive_avatar.reasoning.cycle import Activity, Phase, State
from interactive_avatar.reasoning.embedded import EmbeddedReasoner
from interactive_avatar.reasoning.memory import Memory
from interactive_avatar.reasoning.module import (
    Callbacks,
    Intent,
    ModuleOptions,
    ReasoningModule,
    SpokenChunk,
)
from interactive_avatar.reasoning.persona import parse_persona
from interactive_avatar.reasoning.turn import Turn
from interactive_avatar.reasoning.voice import VoiceError

from .conftest import PERSONA, Clock, embed


class Voice:
    """Half a second of tone per clause; waits or fails when told to."""

    name = 'tone'

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.error = ''

    def synthesise(self, text: str) -> Iterator[NDArray[np.int16]]:
        self.go.wait(5.0)
        if self.error:
            raise VoiceError(self.error)
        yield np.full(8000, 1000, np.int16)

    def close(self) -> None:
        self.go.set()


class Bench:
    """A module with a clock that the test moves, and what it told."""

    def __init__(self, reasoner: EmbeddedReasoner, clock: Clock) -> None:
        self.clock = clock
        self.voice = Voice()
        self.states: list[State] = []
        self.intents: list[Intent] = []
        self.warnings: list[str] = []
        self.sounds = 0
        self.module = ReasoningModule(
            reasoner, self.voice,
            Callbacks(self.states.append, self.intents.append, self.warnings.append,
                      self.note_sound),
            ModuleOptions(playout_s=0.32), clock)
        self.module.start()

    def note_sound(self) -> None:
        self.sounds += 1

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 3.0
        while not condition():
            assert time.monotonic() < deadline, 'nothing happened'
            time.sleep(0.002)

    def spoken(self, turn_id: int) -> None:
        """Wait until the voice has made the whole turn."""
        def made() -> bool:
            speech = self.module._speech
            return speech is not None and speech.turn_id == turn_id and speech.complete
        self.wait(made)

    def pull(self, count: int) -> list[SpokenChunk]:
        chunks = []
        for _ in range(count):
            chunk = self.module.pull()
            if chunk is not None:
                chunks.append(chunk)
            self.clock.now_s += 0.16
        return chunks


@pytest.fixture
def bench(reasoner: EmbeddedReasoner, clock: Clock) -> Iterator[Bench]:
    bench = Bench(reasoner, clock)
    yield bench
    bench.module.close()
    bench.module.close()


def test_a_question_is_answered_and_the_avatar_comes_to_rest(bench: Bench) -> None:
    bench.module.on_speech_started()
    bench.module.on_speech_ended()
    bench.module.on_words('Put on your hat.')
    bench.spoken(1)
    chunks = bench.pull(40)
    assert [chunk.sequence for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk.samples.shape == (CHUNK_SAMPLES,) and chunk.turn_id == 1
               for chunk in chunks)
    assert bench.intents[0].turn.action == 'wear'
    assert bench.intents[0].utterance == 'Put on your hat.'
    path = [state.activity for state in bench.states]
    assert path[:4] == [Activity.IDLE, Activity.LISTENING, Activity.THINKING, Activity.SPEAKING]
    assert path[-1] is Activity.IDLE
    assert bench.states[-1].prompt == bench.states[-1].stable_prompt
    assert bench.states[-1].world.hat
    assert [line.speaker for line in bench.module.memory.lines] == ['user', 'avatar']
    assert bench.warnings == []


def test_the_user_breaks_in(bench: Bench) -> None:
    bench.module.on_text('put on your hat')
    bench.spoken(1)
    assert len(bench.pull(5)) == 5
    bench.module.on_speech_started()
    assert bench.states[-1].activity is Activity.LISTENING
    assert bench.states[-1].phase is Phase.STABLE
    assert bench.pull(5) == []
    last = bench.module.memory.lines[-1]
    said = bench.intents[0].turn.speech
    assert not last.complete and 0 < len(last.text) < len(said) and said.startswith(last.text)
    assert bench.module.figures()['interruptions'] == 1
    assert bench.module.memory.world.hat


def test_an_answer_drafted_in_a_pause_is_there_when_the_words_are_final(bench: Bench) -> None:
    bench.module.on_speech_started()
    bench.module.on_partial('Put on', pause=False)
    bench.module.on_partial('Put on your hat.', pause=True)
    bench.wait(lambda: bench.module._draft is not None and bench.module._draft.speech.marks)
    assert bench.states[-1].activity is Activity.LISTENING and not bench.intents
    assert not bench.module.memory.world.hat and not bench.module.memory.lines
    bench.voice.go.clear()
    bench.module.on_speech_ended(0.3)
    bench.module.on_words('Put on your hat.')
    # No thread had to do anything: the turn has begun and its first chunk is there.
    assert [intent.turn.action for intent in bench.intents] == ['wear']
    assert bench.intents[0].latency_s == pytest.approx(0.3)
    assert bench.sounds == 1
    assert bench.pull(1)[0].samples.any()
    bench.voice.go.set()
    bench.spoken(1)
    # All clauses, each once.
    assert len(bench.module._speech.marks) == 2  # type: ignore[union-attr]
    figures = bench.module.figures()
    assert figures['drafts_used'] == 1 and figures['voice_to_words_p50_s'] == pytest.approx(0.3)


def test_a_draft_of_other_words_is_dropped(bench: Bench) -> None:
    bench.module.on_speech_started()
    bench.module.on_partial('Put on your hat.', pause=True)
    bench.wait(lambda: bench.module._draft is not None and bench.module._draft.turn)
    bench.module.on_partial('Put on your hat. Hello there.', pause=False)
    bench.module.on_speech_ended()
    bench.module.on_words('Goodbye now.')
    bench.spoken(1)
    assert [intent.turn.intent for intent in bench.intents] == ['farewell']
    assert bench.module.figures()['drafts_used'] == 0
    assert not bench.module.memory.world.hat


def test_a_question_meets_its_draft_half_made(bench: Bench) -> None:
    bench.voice.go.clear()
    bench.module.on_speech_started()
    bench.module.on_partial('Put on your hat.', pause=True)
    bench.wait(lambda: bench.module._draft is not None and bench.module._draft.turn)
    bench.module.on_speech_ended()
    bench.module.on_words('Put on your hat.')
    assert bench.states[-1].activity is Activity.SPEAKING
    bench.voice.go.set()
    bench.spoken(1)
    chunks = bench.pull(40)
    assert chunks[-1].last and len(chunks) == sum(
        1 for chunk in chunks if chunk.turn_id == 1)
    assert bench.states[-1].activity is Activity.IDLE


def test_who_goes_on_before_the_answer_is_heard_is_answered_in_the_world_before(
        bench: Bench) -> None:
    bench.module.on_speech_started()
    bench.module.on_speech_ended()
    bench.module.on_words('Put on your glasses.')
    bench.spoken(1)
    assert bench.pull(2) and bench.module.memory.world.glasses
    bench.module.on_speech_started()
    assert not bench.module.memory.world.glasses and not bench.states[-1].world.glasses
    assert bench.module.memory.last_object is None and bench.module.memory.last_action is None
    bench.module.on_speech_ended()
    bench.module.on_words('please.')
    bench.spoken(2)
    first, second = bench.intents
    assert second.utterance == 'Put on your glasses please.'
    assert (first.turn.action, second.turn.action) == ('wear', 'wear')
    assert second.turn.world.glasses and bench.module.memory.world.glasses
    assert bench.states[-1].world.glasses
    assert [line.text for line in bench.module.memory.lines] == ['Put on your glasses please.']


def test_what_was_heard_of_is_not_taken_back(bench: Bench) -> None:
    bench.module.on_text('put on your glasses')
    bench.spoken(1)
    bench.pull(6)
    bench.module.on_speech_started()
    assert bench.module.memory.world.glasses and bench.states[-1].world.glasses


def test_who_goes_on_before_the_answer_is_heard_is_not_cut_off(bench: Bench) -> None:
    bench.module.on_speech_started()
    bench.module.on_speech_ended()
    bench.module.on_words('Hello there.')
    bench.spoken(1)
    bench.clock.now_s += 0.3
    bench.module.on_speech_started()
    bench.module.on_speech_ended()
    bench.module.on_words('Put on your hat.')
    bench.spoken(2)
    assert bench.intents[-1].utterance == 'Hello there Put on your hat.'
    said = [line.text for line in bench.module.memory.lines if line.speaker == 'user']
    assert said == ['Hello there Put on your hat.']


def test_an_unspoken_gesture_ends(bench: Bench) -> None:
    bench.module.on_text('please nod')
    bench.wait(lambda: bench.intents)
    assert bench.states[-1].activity is Activity.GESTURING
    assert bench.pull(20) == []
    assert bench.states[-1].activity is Activity.IDLE


def test_what_is_not_said_yet_is_not_awaited(bench: Bench) -> None:
    bench.voice.go.clear()
    bench.module.on_text('hello there')
    bench.wait(lambda: bench.intents)
    assert bench.pull(3) == []
    assert bench.states[-1].activity is Activity.SPEAKING
    bench.voice.go.set()
    bench.spoken(1)
    assert bench.pull(1)[0].sequence == 0


def test_without_a_voice_the_answer_is_shown(bench: Bench) -> None:
    bench.voice.error = 'hoarse'
    bench.module.on_text('hello there')
    bench.wait(lambda: bench.warnings)
    assert 'hoarse' in bench.warnings[0]
    assert bench.states[-1].activity is Activity.GESTURING
    bench.pull(20)
    assert bench.states[-1].activity is Activity.IDLE
    assert bench.module.memory.last_said


def test_a_reasoner_that_fails_leaves_the_avatar_alive(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Turn:
        raise ValueError('out of ideas')
    reasoner = bench.module._reasoner
    monkeypatch.setattr(reasoner, 'reason', fail)
    bench.module.on_text('hello there')
    bench.wait(lambda: bench.warnings)
    assert 'out of ideas' in bench.warnings[0]
    assert bench.states[-1].activity is Activity.IDLE
    monkeypatch.undo()
    bench.module.on_text('hello there')
    bench.wait(lambda: bench.intents)


def test_only_the_newest_question_is_answered(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    proceed = threading.Event()
    real = bench.module._reasoner.reason

    def slow(text: str, memory: Memory, cancelled: Callable[[], bool]) -> Turn:
        asked.set()
        proceed.wait(3.0)
        return real(text, memory, cancelled)

    monkeypatch.setattr(bench.module._reasoner, 'reason', slow)
    bench.module.on_text('hello there')
    assert asked.wait(3.0)
    for _ in range(50):
        bench.module.on_text('goodbye now')
    proceed.set()
    bench.spoken(1)
    assert [intent.turn.intent for intent in bench.intents] == ['farewell']


def test_nothing_typed_is_nothing(bench: Bench) -> None:
    for text in ('', ' \t', '...', '\x00', '\U0001f600'):
        bench.module.on_text(text)
    assert len(bench.states) == 1


def test_no_words_end_the_waiting(bench: Bench) -> None:
    bench.module.on_speech_started()
    bench.module.on_speech_ended()
    bench.module.on_words('')
    assert bench.states[-1].activity is Activity.IDLE


def test_hushed_while_it_speaks_it_comes_to_rest_and_goes_on_anew(bench: Bench) -> None:
    bench.module.on_text('tell me a joke')
    bench.spoken(1)
    assert bench.pull(1)
    bench.module.hush()
    assert (bench.states[-1].phase, bench.states[-1].activity) == (Phase.STABLE, Activity.IDLE)
    assert bench.states[-1].prompt == bench.states[-1].stable_prompt
    assert bench.pull(10) == [] and bench.warnings == []
    bench.module.on_text('tell me a joke')
    bench.spoken(2)
    assert {chunk.turn_id for chunk in bench.pull(10)} == {2}


def test_hushed_while_it_thinks_it_does_not_answer_later(
        bench: Bench, reasoner: EmbeddedReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    thinking, go = threading.Event(), threading.Event()
    reason, answer = reasoner.reason, reasoner.answer

    def slow(think: Callable[..., Turn]) -> Callable[..., Turn]:
        def late(*arguments: object) -> Turn:
            thinking.set()
            go.wait(3.0)
            return think(*arguments)
        return late

    monkeypatch.setattr(reasoner, 'reason', slow(reason))
    monkeypatch.setattr(reasoner, 'answer', slow(answer))
    for ask in (lambda: bench.module.on_text('tell me a joke'),
                lambda: bench.module.on_presence(True)):
        thinking.clear()
        go.clear()
        ask()
        assert thinking.wait(3.0)
        bench.module.hush()
        go.set()
        assert bench.module.settle(3.0)
        assert bench.states[-1].activity is Activity.IDLE
    assert not bench.intents
    # Words that were taken back, because the user went on, are not thought of again.
    bench.module.on_speech_started()
    bench.module.on_words('Please nod')
    bench.module.on_speech_ended()
    bench.module.hush()
    assert bench.states[-1].activity is Activity.IDLE
    assert bench.module.settle(3.0) and not bench.intents and bench.warnings == []


def test_a_persona_without_greetings_greets_nobody(clock: Clock) -> None:
    parts = re.split(r'^(?=  \w)', PERSONA, flags=re.MULTILINE)
    persona = parse_persona(''.join(
        part for part in parts if not part.startswith(('  greeting:', '  farewell:'))))
    assert 'nod' in persona.intents and not {'greeting', 'farewell'} & set(persona.intents)
    bench = Bench(EmbeddedReasoner(persona, embed, seed=1), clock)
    for there in (True, False):
        for _ in range(20):
            bench.module.on_presence(there)
            assert bench.module.settle(5.0)
            bench.pull(2)
    bench.module.close()
    assert not bench.intents and not bench.warnings


def test_who_comes_is_greeted_once(bench: Bench) -> None:
    bench.module.on_presence(True)
    bench.module.on_presence(True)
    bench.spoken(1)
    bench.pull(30)
    assert [intent.turn.intent for intent in bench.intents] == ['greeting']
    bench.module.on_presence(False)
    bench.pull(15)
    bench.spoken(2)
    bench.pull(30)
    bench.module.on_presence(True)
    bench.pull(5)
    assert [intent.turn.intent for intent in bench.intents] == ['greeting', 'farewell']


def test_a_smile_is_mirrored_and_pauses_are_nodded_at(bench: Bench) -> None:
    # Without a greeting, which would leave a smile of its own.
    bench.module._attention = Attention(AttentionOptions(greet=False), bench.clock)
    seen = Perceived(True, 'other', 1, True, 1.0, 'smile')
    bench.module.on_perceived(seen)
    assert 'smiling' in bench.states[-1].prompt
    assert bench.states[-1].activity is Activity.IDLE
    bench.module.on_perceived(Perceived(True, 'other', 1, True, 1.0, 'neutral'))
    assert 'smiling' not in bench.states[-1].prompt
    bench.module.on_speech_started()
    bench.pull(10)
    bench.module.on_partial('I have been thinking', pause=True)
    assert 'nods' in bench.states[-1].prompt
    assert bench.states[-1].activity is Activity.LISTENING
    bench.pull(12)
    assert bench.states[-1].prompt.endswith('listening')


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match='oracle'):
        ReasoningModule.open(ModuleOptions(reasoner='oracle'))
