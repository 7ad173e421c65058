# SPDX-License-Identifier: Apache-2.0
"""The Reasoning-Reaction Module: what the user says in, turns and speech out. No ROS in here.

Events come in from any thread and return at once. A worker thread reasons and speaks; it has one
place for the newest question and one for the newest turn to be said, so nothing queues up. The
owner calls `pull` every 160 ms, on the pace of the media clock, and gets the next chunk of speech
or nothing; `pull` also lets the time-outs pass.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ
from interactive_avatar.paths import cache_folder
from interactive_avatar.reasoning.cycle import (
    BeginTurn,
    Command,
    CycleOptions,
    DropReason,
    Event,
    Occurrence,
    PublishState,
    Reason,
    State,
    StateCycle,
    StopSpeech,
    Warn,
)
from interactive_avatar.reasoning.embedded import EmbeddedReasoner, Reasoner
from interactive_avatar.reasoning.memory import Memory
from interactive_avatar.reasoning.persona import DEFAULT_PERSONA, load_persona
from interactive_avatar.reasoning.turn import MAX_UTTERANCE_CHARS, Turn, clean_text
from interactive_avatar.reasoning.voice import Voice, VoiceError, clauses, open_voice, pause_after

log = logging.getLogger(__name__)

# No answer is longer; a voice that never ends is cut here.
MAX_TURN_SAMPLES: Final = 90 * SAMPLE_RATE_HZ


@dataclass(frozen=True)
class ModuleOptions:
    """How the module works.

    Attributes:
        persona: file, as `load_persona` takes it.
        reasoner: 'embedded', or 'llm' with the embedded one behind it.
        llm_url: address of an OpenAI-compatible server, with its `/v1`.
        llm_model: name of the model there.
        llm_timeout_s: patience with it, for the whole answer.
        voice: 'piper' or 'espeak'.
        voice_model: piper's ONNX file, empty for the installed one.
        voice_speed: 1 is normal.
        playout_s: from `pull` to the ear: what lies between this module and the speaker.
        greet: whether who comes is greeted and who leaves is seen off.
        greet_again_s: a person who was away for less is not greeted again.
        seed: of the order of replies and of the voice, None for a different one each time.
        cycle: time-outs.
    """

    persona: str = DEFAULT_PERSONA
    reasoner: str = 'embedded'
    llm_url: str = 'http://localhost:11434/v1'
    llm_model: str = 'llama3.2'
    llm_timeout_s: float = 4.0
    voice: str = 'piper'
    voice_model: str = ''
    voice_speed: float = 1.0
    playout_s: float = 0.5
    greet: bool = True
    greet_again_s: float = 20.0
    seed: int | None = None
    cycle: CycleOptions = field(default_factory=CycleOptions)


@dataclass(frozen=True)
class SpokenChunk:
    """A chunk of the avatar's speech.

    Attributes:
        samples: int16 [2560], 16 kHz mono.
        turn_id: the turn it belongs to, from 1.
        sequence: position in the turn, from 0.
        last: True on the last chunk of the turn.
    """

    samples: NDArray[np.int16]
    turn_id: int
    sequence: int
    last: bool


@dataclass(frozen=True)
class Intent:
    """A turn that begins.

    Attributes:
        turn_id: from 1, counted up.
        turn: what is said and done.
        utterance: the user's words, '' if nobody asked.
        latency_s: from the end of the user's words to this decision.
    """

    turn_id: int
    turn: Turn
    utterance: str
    latency_s: float


@dataclass
class Callbacks:
    """What the owner wants to hear; called from any thread, in order, and must not block.

    Attributes:
        on_state: a new state, see `State`.
        on_intent: a turn begins.
        on_warning: something did not go as it should; one sentence.
    """

    on_state: Callable[[State], None] = lambda _: None
    on_intent: Callable[[Intent], None] = lambda _: None
    on_warning: Callable[[str], None] = log.warning


class _Speech:
    """The sound of one turn: filled by the worker, emptied by `pull`."""

    def __init__(self, turn_id: int) -> None:
        self.turn_id = turn_id
        self.blocks: deque[NDArray[np.int16]] = deque()
        self.ready = 0
        self.made = 0
        self.pulled = 0
        self.sequence = 0
        self.complete = False
        self.finished = False
        self.failure = ''
        # (clause, samples made when it ended), to know what was heard.
        self.marks: list[tuple[str, int]] = []

    def push(self, block: NDArray[np.int16]) -> bool:
        if self.made + block.size > MAX_TURN_SAMPLES:
            return False
        self.blocks.append(block)
        self.ready += block.size
        self.made += block.size
        return True

    def take(self) -> NDArray[np.int16]:
        """Up to one chunk, filled up with zeros."""
        chunk = np.zeros(CHUNK_SAMPLES, np.int16)
        filled = 0
        while self.blocks and filled < CHUNK_SAMPLES:
            block = self.blocks[0]
            count = min(block.size, CHUNK_SAMPLES - filled)
            chunk[filled:filled + count] = block[:count]
            filled += count
            if count == block.size:
                self.blocks.popleft()
            else:
                self.blocks[0] = block[count:]
        self.ready -= filled
        self.pulled += filled
        return chunk

    def heard(self, text: str, playout_samples: int) -> str:
        """The words that were heard when the sound is stopped now."""
        heard = max(0, self.pulled - playout_samples)
        words: list[str] = []
        began = 0
        for clause, ended in self.marks:
            if heard >= ended:
                words.append(clause)
            elif heard > began:
                spoken = clause.split()
                words += spoken[:int(len(spoken) * (heard - began) / (ended - began))]
                break
            else:
                break
            began = ended
        return text if self.finished and len(words) == len(self.marks) else ' '.join(words)


class ReasoningModule:
    """See the module's text. `start` it, feed it events, `pull` its speech, `close` it.

    Args:
        reasoner: what thinks.
        voice: what speaks.
        callbacks: whom to tell.
        options: see `ModuleOptions`.
        clock: seconds, monotonic.
    """

    def __init__(self, reasoner: Reasoner, voice: Voice, callbacks: Callbacks | None = None,
                 options: ModuleOptions | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options or ModuleOptions()
        self.memory = Memory()
        self._reasoner = reasoner
        self._voice = voice
        self._callbacks = callbacks or Callbacks()
        self._clock = clock
        self._cycle = StateCycle(clock, self.options.cycle)
        # Commands are carried out under it, so that states and intents leave in order.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._question: Reason | None = None
        self._to_say: BeginTurn | None = None
        self._impulse: str | None = None
        self._speech: _Speech | None = None
        self._heard_at_s: float | None = None
        self._words_ended_s = clock()
        self._turn_began_s = clock()
        self._left_s: float | None = None
        self._present = False
        self._closing = False
        self._busy = False
        self._worker: threading.Thread | None = None
        self._counts = {'turns': 0, 'interruptions': 0, 'voice_failures': 0, 'underruns': 0}
        self._latencies_s: dict[str, float] = {}

    @classmethod
    def open(cls, options: ModuleOptions | None = None, callbacks: Callbacks | None = None,
             clock: Callable[[], float] = time.monotonic,
             now: Callable[[], datetime] = datetime.now) -> ReasoningModule:
        """The module as it is configured: persona, text encoder, voice, language model.

        Args:
            options: see `ModuleOptions`.
            callbacks: whom to tell.
            clock: seconds; all time-outs are on it.
            now: the time of day that is told to who asks for it.

        Raises:
            PersonaError: on a mistake in the persona file.
            FileNotFoundError: if the persona file is missing.
            VoiceError: if no voice is installed.
            ValueError: on an option that is not usable.
        """
        options = options or ModuleOptions()
        reasoner: Reasoner = open_embedded(options.persona, options.seed, now)
        if options.reasoner == 'llm':
            from interactive_avatar.reasoning.llm import LlmOptions, LlmReasoner
            reasoner = LlmReasoner(
                LlmOptions(options.llm_url, options.llm_model, timeout_s=options.llm_timeout_s),
                reasoner)
        elif options.reasoner != 'embedded':
            raise ValueError(f'reasoner {options.reasoner!r} is unknown; use embedded or llm')
        voice = open_voice(options.voice, options.voice_model, options.voice_speed, options.seed)
        return cls(reasoner, voice, callbacks, options, clock)

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the voice, publish the first state, begin to work.

        A voice that does not load is reported through `on_warning`; answers are then shown only.
        """
        begin: Any = getattr(self._voice, 'start', None)
        if begin is not None:
            try:
                begin()
            except VoiceError as error:
                self._callbacks.on_warning(f'voice: {error}')
        with self._lock:
            if self._worker is not None:
                return
            self._closing = False
            self._worker = threading.Thread(target=self._run, name='reasoning', daemon=True)
            self._worker.start()
            self._carry_out(self._cycle.start())

    def close(self) -> None:
        """Stop the worker and the voice; may be called twice."""
        with self._lock:
            self._closing = True
            self._speech = None
            self._work.notify_all()
            worker, self._worker = self._worker, None
        # Ends the voice's process, and with it a clause that the worker waits for.
        self._voice.close()
        if worker is not None:
            worker.join(timeout=5.0)
        self._reasoner.close()

    # --- what the user does -------------------------------------------------------------------

    def on_speech_started(self) -> None:
        """The user began to speak; breaks off what the avatar says."""
        self._handle(Occurrence(Event.USER_SPEECH_STARTED))

    def on_partial(self, text: str) -> None:
        """Words so far, while the user speaks."""
        self._handle(Occurrence(Event.USER_SPEECH_GOES_ON, text))

    def on_speech_ended(self) -> None:
        """The user stopped speaking; their words follow with `on_words`."""
        with self._lock:
            self._words_ended_s = self._clock()
            self._handle(Occurrence(Event.USER_SPEECH_ENDED))

    def on_words(self, text: str) -> None:
        """The words of what the user said; '' if none were understood."""
        self._utterance(text, spoken=True)

    def on_text(self, text: str) -> None:
        """What the user typed."""
        with self._lock:
            self._words_ended_s = self._clock()
            self._utterance(text, spoken=False)

    def on_presence(self, present: bool) -> None:
        """Whether somebody is there; greets who comes and sees off who leaves."""
        with self._lock:
            if present == self._present:
                return
            self._present = present
            now_s = self._clock()
            away_s = None if self._left_s is None else now_s - self._left_s
            if not present:
                self._left_s = now_s
            if not self.options.greet:
                return
            if present and (away_s is None or away_s >= self.options.greet_again_s):
                self._impulse = 'greeting'
            elif not present and self._counts['turns']:
                self._impulse = 'farewell'
            self._work.notify_all()

    def _utterance(self, text: str, spoken: bool) -> None:
        clean = clean_text(text, MAX_UTTERANCE_CHARS)
        if not any(char.isalnum() for char in clean):
            # What is typed and holds no words is no event; what was spoken ends the waiting.
            if spoken:
                self._handle(Occurrence(Event.NO_WORDS))
            return
        self._handle(Occurrence(Event.UTTERANCE, clean, spoken=spoken))

    # --- speech -------------------------------------------------------------------------------

    def pull(self) -> SpokenChunk | None:
        """The next 160 ms of speech; None in silence. To be called every 160 ms."""
        with self._lock:
            self.tick()
            speech = self._speech
            if speech is None or speech.finished:
                return None
            if not speech.complete and speech.ready < CHUNK_SAMPLES:
                # The voice is not there yet; mid-turn this is an audible pause.
                self._counts['underruns'] += speech.sequence > 0
                return None
            if speech.sequence == 0:
                self._latencies_s['words_to_first_sound_s'] = self._clock() - self._words_ended_s
                self._latencies_s['turn_to_first_sound_s'] = self._clock() - self._turn_began_s
            samples = speech.take()
            last = speech.complete and speech.ready == 0
            chunk = SpokenChunk(samples, speech.turn_id, speech.sequence, last)
            speech.sequence += 1
            if last:
                speech.finished = True
                self._heard_at_s = self._clock() + self.options.playout_s
            self._handle(Occurrence(Event.SPEECH_GOES_ON, number=speech.turn_id))
            return chunk

    def tick(self) -> None:
        """Let the time-outs pass; `pull` does it too."""
        with self._lock:
            if self._heard_at_s is not None and self._clock() >= self._heard_at_s:
                self._heard_at_s = None
                speech = self._speech
                if speech is not None:
                    self._remember(complete=True)
                    self._speech = None
                    self._handle(Occurrence(Event.SPEECH_FINISHED, number=speech.turn_id))
            self._carry_out(self._cycle.tick())

    def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to be thought of or synthesised, on the wall's clock.

        For a replay that gives the module its time step by step: within a step everything that
        follows from what was heard is done, however slow the machine is.

        Returns:
            False if there was still work at the time-out.
        """
        def settled() -> bool:
            speech = self._speech
            return not (self._busy or self._question or self._to_say or self._impulse) and (
                speech is None or speech.complete)

        with self._lock:
            return self._work.wait_for(settled, timeout_s)

    @property
    def state(self) -> State:
        """The state as last published."""
        with self._lock:
            return self._cycle.state

    def figures(self) -> dict[str, float]:
        """Counts and latencies for diagnostics."""
        with self._lock:
            return {**self._counts, **{name: round(value, 3)
                                       for name, value in self._latencies_s.items()}}

    # --- the cycle ----------------------------------------------------------------------------

    def _handle(self, occurrence: Occurrence) -> None:
        with self._lock:
            self._carry_out(self._cycle.handle(occurrence))

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Reason():
                    self.memory.say('user', command.text)
                    self._question = command
                    self._work.notify_all()
                case DropReason():
                    if self._question is not None and \
                            self._question.request_id == command.request_id:
                        self._question = None
                case BeginTurn():
                    self._begin(command)
                case StopSpeech():
                    if self._speech is not None:
                        self._counts['interruptions'] += not self._speech.finished
                        self._remember(complete=False)
                    self._speech = None
                    self._to_say = None
                    self._heard_at_s = None
                case PublishState():
                    self._callbacks.on_state(command.state)
                case Warn():
                    self._callbacks.on_warning(command.text)

    def _begin(self, begun: BeginTurn) -> None:
        self.memory.begin(begun.turn)
        self._counts['turns'] += 1
        self._turn_began_s = self._clock()
        latency_s = self._clock() - self._words_ended_s if begun.utterance else 0.0
        self._latencies_s['words_to_turn_s'] = latency_s
        self._heard_at_s = None
        if begun.turn.speech:
            self._speech = _Speech(begun.turn_id)
            self._to_say = begun
            self._work.notify_all()
        self._callbacks.on_intent(Intent(begun.turn_id, begun.turn, begun.utterance, latency_s))

    def _remember(self, complete: bool) -> None:
        speech, turn = self._speech, self._cycle.turn
        if speech is None or turn is None:
            return
        text = turn.speech if complete else speech.heard(
            turn.speech, round(self.options.playout_s * SAMPLE_RATE_HZ))
        self.memory.say('avatar', text, speech.turn_id, complete)

    # --- the worker ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                self._work.notify_all()
                while not (self._closing or self._question or self._to_say or self._impulse):
                    self._work.wait()
                if self._closing:
                    return
                question, begun, impulse = self._question, self._to_say, self._impulse
                self._to_say = None
                self._impulse = None
                self._busy = True
            try:
                if begun is not None:
                    self._say(begun)
                elif question is not None:
                    self._answer(question)
                elif impulse is not None:
                    turn = self._reasoner.answer(impulse, self.memory)
                    self._handle(Occurrence(Event.IMPULSE, turn=turn))
            except Exception as error:
                # Whatever goes wrong in a reasoner or voice, the avatar stays alive.
                log.exception('reasoning failed')
                self._callbacks.on_warning(f'{type(error).__name__}: {error}')

    def _answer(self, question: Reason) -> None:
        def cancelled() -> bool:
            return self._closing or self._question is not question

        try:
            turn = self._reasoner.reason(question.text, self.memory, cancelled)
        except Exception as error:
            occurrence = Occurrence(Event.TURN_FAILED, f'{type(error).__name__}: {error}',
                                    number=question.request_id)
        else:
            occurrence = Occurrence(Event.TURN_READY, turn=turn, number=question.request_id)
        with self._lock:
            if self._question is question:
                self._question = None
                self._handle(occurrence)

    def _say(self, begun: BeginTurn) -> None:
        speech = self._speech
        if speech is None or speech.turn_id != begun.turn_id:
            return
        parts = clauses(begun.turn.speech)
        try:
            for at, clause in enumerate(parts):
                for block in self._voice.synthesise(clause):
                    with self._lock:
                        # Broken off, or endless.
                        if self._speech is not speech or self._closing:
                            return
                        if not speech.push(block):
                            raise VoiceError(f'the voice made more than '
                                             f'{MAX_TURN_SAMPLES // SAMPLE_RATE_HZ} s of sound')
                with self._lock:
                    speech.marks.append((clause, speech.made))
                    if at + 1 < len(parts):
                        speech.push(pause_after(clause))
        except VoiceError as error:
            speech.failure = str(error)
        with self._lock:
            if self._speech is not speech or self._closing:
                return
            speech.complete = True
            if speech.made == 0:
                self._counts['voice_failures'] += 1
                self.memory.say('avatar', begun.turn.speech, begun.turn_id)
                self._speech = None
                self._handle(Occurrence(Event.SPEECH_FAILED, speech.failure or 'no sound came',
                                        number=begun.turn_id))
            elif speech.failure:
                self._counts['voice_failures'] += 1
                self._callbacks.on_warning(f'the answer breaks off: {speech.failure}')


def open_embedded(persona: str | Path = DEFAULT_PERSONA, seed: int | None = None,
                  now: Callable[[], datetime] = datetime.now) -> EmbeddedReasoner:
    """The embedded reasoner on the installed text encoder.

    Raises:
        PersonaError: on a mistake in the persona file.
        FileNotFoundError: if the persona file is missing.
    """
    # Here, so that the cycle and the voice can be used without the encoder's packages.
    from interactive_avatar.generator.text import TextEncoder
    return EmbeddedReasoner(load_persona(persona), TextEncoder.load().sentence,
                            cache_folder(), now=now, seed=seed)
