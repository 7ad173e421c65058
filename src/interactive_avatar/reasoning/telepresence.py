# SPDX-License-Identifier: Apache-2.0
"""Telepresence: an operator speaks through the avatar. No ROS in here, and no reasoning.

The operator's voice goes to the face as it comes; voice activity alone decides whether the avatar
speaks or listens to whoever stands before it. What the operator types or presses is an action
(`nod`, `put on your glasses`), shown while they speak or are silent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator import prompts
from interactive_avatar.media.audio import Chunker, check_samples
from interactive_avatar.reasoning.cycle import ACTION_SECONDS, Activity, Phase, State
from interactive_avatar.reasoning.embedded import EmbeddedReasoner
from interactive_avatar.reasoning.memory import Memory
from interactive_avatar.reasoning.module import Callbacks, Intent, SpokenChunk
from interactive_avatar.reasoning.turn import MAX_UTTERANCE_CHARS, TurnError, clean_text

WINDOW_SAMPLES: Final = 512
# Lower than for a user: a lost first sound costs more here than a breath that is let through.
ONSET: Final = 0.3
# Short pauses inside a sentence stay open; real silence is fed as zeros so that the mouth shuts.
HOLD_WINDOWS: Final = 16
# An operator whose line is dead is one who is silent.
LOST_S: Final = 0.6


class VoiceActivity(Protocol):
    """Rates windows of sound in order, as `perception.SileroVoiceActivity` does."""

    def __call__(self, window: NDArray[np.int16]) -> float:
        """Probability of speech, 0 to 1, in int16 [512] at 16 kHz."""

    def reset(self) -> None:
        """Forget the sound so far."""


class Telepresence:
    """Passes an operator's voice and actions on.

    Thread-safe. `tick` is to be called every 100 ms or so.

    Args:
        reasoner: tells which action a typed sentence asks for.
        voice_activity: rates the operator's sound.
        on_speech: called with each piece of the operator's voice, in order, at once.
        callbacks: whom to tell of states and actions.
        playout_s: from `on_speech` to the ear; the avatar listens only when all has been heard.
        clock: seconds, monotonic.
    """

    def __init__(self, reasoner: EmbeddedReasoner, voice_activity: VoiceActivity,
                 on_speech: Callable[[SpokenChunk], None], callbacks: Callbacks | None = None,
                 playout_s: float = 0.6, clock: Callable[[], float] = time.monotonic) -> None:
        self.memory = Memory()
        self._reasoner = reasoner
        self._activity = voice_activity
        self._on_speech = on_speech
        self._callbacks = callbacks or Callbacks()
        self._playout_s = playout_s
        self._clock = clock
        self._lock = threading.RLock()
        self._windows = Chunker(WINDOW_SAMPLES)
        # What has come and has not been passed on.
        self._kept = np.zeros(0, np.int16)
        self._unrated_samples = 0
        self._open = 0
        self._turn_id = 0
        self._sequence = 0
        self._heard_s = clock()
        # When the last of the voice will have been heard; None while it goes on or is heard.
        self._silent_at_s: float | None = None
        self._acting_until_s: float | None = None
        self._action_prompt = ''
        self._running = False
        self._published: State | None = None
        self._counts = {'utterances': 0, 'actions': 0, 'actions_refused': 0}

    def start(self) -> None:
        """Publish the first state; from now on sound is passed on."""
        with self._lock:
            self._running = True
            self._published = None
            self._publish('start')

    def close(self) -> None:
        """Fall silent; may be called twice."""
        with self._lock:
            self._shut()
            self._running = False
        self._reasoner.close()

    # --- what the operator does ---------------------------------------------------------------

    def on_sound(self, samples: NDArray[np.int16]) -> None:
        """The operator's microphone.

        Args:
            samples: int16 [n], 16 kHz mono, of any length, as it comes.

        Raises:
            AudioFormatError: on an array of another kind.
        """
        check_samples(samples)
        with self._lock:
            if not self._running:
                return
            self._heard_s = self._clock()
            self._kept = np.concatenate([self._kept, samples])
            self._unrated_samples = (self._unrated_samples + samples.size) % WINDOW_SAMPLES
            for window in self._windows.push(samples):
                if self._activity(window) >= ONSET:
                    if not self._open:
                        self._begin()
                    self._open = HOLD_WINDOWS
                elif self._open:
                    self._open -= 1
                    if not self._open:
                        self._send(last=True)
                        self._silent_at_s = self._clock() + self._playout_s
            if self._open:
                # At once: only whether the voice has begun or ended waits for whole windows.
                self._send()
            else:
                # The first sound of a word is often too soft to be rated as speech, so the last
                # window stays, with what has come of the next one.
                self._kept = self._kept[-(WINDOW_SAMPLES + self._unrated_samples):]

    def on_text(self, text: str) -> None:
        """An action, typed or pressed; anything else is refused with a warning."""
        words = clean_text(text, MAX_UTTERANCE_CHARS)
        try:
            turn = self._reasoner.reason(words, self.memory)
        except TurnError as error:
            self._refuse(text, str(error))
            return
        if turn.action == 'talk':
            self._refuse(text, 'there is no action in it, or nothing to change')
            return
        with self._lock:
            if not self._running:
                return
            self.memory.begin(turn)
            self._counts['actions'] += 1
            self._acting_until_s = self._clock() + ACTION_SECONDS[turn.action]
            self._action_prompt = turn.action_prompt
            if not self._open:
                self._turn_id += 1
            # What the operator says goes on in the same turn.
            self._callbacks.on_intent(Intent(self._turn_id, replace(turn, speech=''), words, 0.0))
            self._publish('action')

    def _refuse(self, text: str, why: str) -> None:
        with self._lock:
            self._counts['actions_refused'] += 1
        self._callbacks.on_warning(
            f'{text[:60]!r} is not shown: {why}; in telepresence type an action, such as '
            f'"nod", "look left" or "put on your glasses"')

    # --- time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let time pass: actions end, and an operator whose sound stays away is silent."""
        with self._lock:
            now_s = self._clock()
            if self._open and now_s - self._heard_s > LOST_S:
                self._shut()
                self._silent_at_s = now_s + self._playout_s
            if self._silent_at_s is not None and now_s >= self._silent_at_s:
                self._silent_at_s = None
                self._publish('operator_silent')
            if self._acting_until_s is not None and now_s >= self._acting_until_s:
                self._acting_until_s = None
                self._publish('action_shown')

    @property
    def state(self) -> State:
        """The state now."""
        with self._lock:
            return self._state('')

    def figures(self) -> Mapping[str, object]:
        """Counts for diagnostics."""
        with self._lock:
            return dict(self._counts)

    def _begin(self) -> None:
        self._turn_id += 1
        self._sequence = 0
        self._counts['utterances'] += 1
        self._open = HOLD_WINDOWS
        self._silent_at_s = None
        self._publish('operator_speaks')

    def _shut(self) -> None:
        if self._open:
            self._open = 0
            self._send(last=True)
        self._windows.reset()
        self._activity.reset()
        self._kept = np.zeros(0, np.int16)
        self._unrated_samples = 0

    def _send(self, last: bool = False) -> None:
        samples, self._kept = self._kept, np.zeros(0, np.int16)
        self._on_speech(SpokenChunk(samples, self._turn_id, self._sequence, last))
        self._sequence += 1

    def _state(self, reason: str) -> State:
        world = self.memory.world
        # Who speaks through the avatar sees whom it looks at: it attends while it is silent.
        resting = prompts.stable_prompt(replace(world, listening=world.in_view))
        acting = self._acting_until_s is not None
        speaking = bool(self._open) or self._silent_at_s is not None
        if acting:
            prompt = self._action_prompt
        elif speaking:
            prompt = prompts.action_prompt('talk', world)
        else:
            prompt = resting
        return State(
            Phase.ACTION if acting or speaking else Phase.STABLE,
            Activity.SPEAKING if speaking else Activity.GESTURING if acting
            else Activity.LISTENING,
            self._turn_id, prompt, resting, world, reason)

    def _publish(self, reason: str) -> None:
        state = self._state(reason)
        if state != self._published:
            self._published = state
            self._callbacks.on_state(state)

