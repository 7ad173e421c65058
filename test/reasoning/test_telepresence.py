# SPDX-License-Identifier: Apache-2.0
"""An operator's voice and actions, with a clock that the test moves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media import AudioFormatError
from interactive_avatar.reasoning.cycle import Activity, Phase, State
from interactive_avatar.reasoning.embedded import EmbeddedReasoner
from interactive_avatar.reasoning.module import Callbacks, Intent, SpokenChunk
from interactive_avatar.reasoning.telepresence import HOLD_WINDOWS, WINDOW_SAMPLES, Telepresence

from .conftest import Clock

LOUD = np.full(WINDOW_SAMPLES, 3000, np.int16)
QUIET = np.full(WINDOW_SAMPLES, 3, np.int16)


class Loudness:
    """What is loud is speech."""

    def __call__(self, window: NDArray[np.int16]) -> float:
        return float(np.abs(window.astype(int)).mean() > 100)

    def reset(self) -> None:
        """Nothing to forget."""


class Bench:
    """A telepresence and what it told."""

    def __init__(self, reasoner: EmbeddedReasoner, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[SpokenChunk] = []
        self.states: list[State] = []
        self.intents: list[Intent] = []
        self.warnings: list[str] = []
        self.remote = Telepresence(
            reasoner, Loudness(), self.sent.append,
            Callbacks(self.states.append, self.intents.append, self.warnings.append), 0.5, clock)
        self.remote.start()

    def hear(self, window: NDArray[np.int16], times: int = 1) -> None:
        for _ in range(times):
            self.remote.on_sound(window)
            self.clock.now_s += 0.032
            self.remote.tick()

    @property
    def path(self) -> list[Activity]:
        return [state.activity for state in self.states]


@pytest.fixture
def bench(reasoner: EmbeddedReasoner, clock: Clock) -> Bench:
    return Bench(reasoner, clock)


def test_the_voice_is_passed_on_at_once_and_silence_is_not(bench: Bench) -> None:
    bench.hear(QUIET, 10)
    assert bench.sent == [] and bench.path == [Activity.LISTENING]
    bench.hear(LOUD)
    # The window before it comes along, for the soft beginning of a word.
    assert bench.sent[0].samples.size == 2 * WINDOW_SAMPLES
    assert bench.states[-1].activity is Activity.SPEAKING
    assert bench.states[-1].phase is Phase.ACTION and 'talk' in bench.states[-1].prompt
    bench.hear(LOUD, 20)
    bench.hear(QUIET, HOLD_WINDOWS + 4)
    assert [piece.last for piece in bench.sent] == [False] * (len(bench.sent) - 1) + [True]
    assert [piece.sequence for piece in bench.sent] == list(range(len(bench.sent)))
    assert {piece.turn_id for piece in bench.sent} == {1}
    # It listens only when the last of the voice has been heard.
    assert bench.states[-1].activity is Activity.SPEAKING
    bench.hear(QUIET, 20)
    assert bench.path == [Activity.LISTENING, Activity.SPEAKING, Activity.LISTENING]
    assert bench.states[-1].phase is Phase.STABLE and 'listening' in bench.states[-1].prompt


def test_a_pause_in_a_sentence_stays_one_turn_and_a_long_one_does_not(bench: Bench) -> None:
    for quiet in (HOLD_WINDOWS // 2, HOLD_WINDOWS * 3):
        bench.hear(LOUD, 10)
        bench.hear(QUIET, quiet)
    bench.hear(LOUD, 3)
    assert {piece.turn_id for piece in bench.sent} == {1, 2}


def test_blocks_of_any_length_are_taken_and_wrong_ones_refused(bench: Bench) -> None:
    sound = np.concatenate([QUIET, *[LOUD] * 20])
    for at in range(0, sound.size, 333):
        bench.remote.on_sound(sound[at:at + 333])
    total = sum(piece.samples.size for piece in bench.sent)
    assert total == sound.size
    with pytest.raises(AudioFormatError):
        bench.remote.on_sound(np.zeros(10, np.float32))  # type: ignore[arg-type]


def test_an_action_is_shown_and_ends_and_the_world_stays_changed(bench: Bench) -> None:
    bench.remote.on_text('put on your hat')
    assert [intent.turn.action for intent in bench.intents] == ['wear']
    assert bench.intents[0].turn.speech == ''
    assert bench.states[-1].activity is Activity.GESTURING
    assert 'puts on a hat' in bench.states[-1].prompt
    bench.hear(QUIET, 80)
    assert bench.path == [Activity.LISTENING, Activity.GESTURING, Activity.LISTENING]
    assert 'hat' in bench.states[-1].prompt and bench.states[-1].world.hat


def test_an_action_while_speaking_does_not_stop_the_voice(bench: Bench) -> None:
    bench.hear(LOUD, 3)
    bench.remote.on_text('please nod')
    assert bench.states[-1].activity is Activity.SPEAKING and 'nods' in bench.states[-1].prompt
    bench.hear(LOUD, 80)
    assert 'talk' in bench.states[-1].prompt
    assert {piece.turn_id for piece in bench.sent} == {1}


@pytest.mark.parametrize('text', ['', '\x00', 'hello there', 'what is the capital of France'])
def test_what_is_no_action_is_refused_with_a_reason(bench: Bench, text: str) -> None:
    bench.remote.on_text(text)
    assert bench.intents == [] and len(bench.states) == 1
    assert 'type an action' in bench.warnings[0]


def test_an_operator_whose_line_dies_is_silent(bench: Bench) -> None:
    bench.hear(LOUD, 5)
    for _ in range(20):
        bench.clock.now_s += 0.1
        bench.remote.tick()
    assert bench.sent[-1].last and bench.states[-1].activity is Activity.LISTENING
    bench.hear(LOUD, 2)
    assert bench.sent[-1].turn_id == 2


def test_after_closing_nothing_is_passed_on(bench: Bench) -> None:
    bench.hear(LOUD, 2)
    bench.remote.close()
    assert bench.sent[-1].last
    count = len(bench.sent)
    bench.hear(LOUD, 2)
    bench.remote.on_text('please nod')
    bench.remote.close()
    assert len(bench.sent) == count and bench.intents == []
