# SPDX-License-Identifier: Apache-2.0
"""The Reasoning-Reaction Module: what the user says in, turns and speech out. No ROS in here.

Events come in from any thread and return at once. A worker thread reasons and speaks; it has one
place for the newest question and one for the newest turn to be said, so nothing queues up. The
owner calls `pull` every 160 ms, on the pace of the media clock, and gets the next chunk of speech
or nothing; `pull` also lets the time-outs pass.

When the user pauses, the answer to the words so far is drafted: the turn, and the sound of its
first clause. If no more words come it is the answer, and it is there at once; else it is dropped.
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
from interactive_avatar.reasoning.attention import Attention, AttentionOptions, Perceived
from interactive_avatar.reasoning.cycle import (
    Activity,
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
    TakeBack,
    Warn,
)
from interactive_avatar.reasoning.embedded import EmbeddedReasoner, Reasoner
from interactive_avatar.reasoning.memory import Memory
from interactive_avatar.reasoning.persona import DEFAULT_PERSONA, load_persona
from interactive_avatar.reasoning.turn import MAX_UTTERANCE_CHARS, Turn, clean_text
from interactive_avatar.reasoning.voice import Voice, VoiceError, clauses, open_voice, pause_after

log = logging.getLogger(__name__)

# Latencies kept for percentiles.
HISTORY_TURNS: Final = 50
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
        react: whether it mirrors smiles, nods at pauses and meets eyes, see `Attention`.
        draft: whether answers are drafted while the user pauses.
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
    react: bool = True
    draft: bool = True
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
        latency_s: from the end of the user's voice to this decision.
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
        on_sound: the sound of a turn can be pulled from now on; no need to wait for the next time.
    """

    on_state: Callable[[State], None] = lambda _: None
    on_intent: Callable[[Intent], None] = lambda _: None
    on_warning: Callable[[str], None] = log.warning
    on_sound: Callable[[], None] = lambda: None


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
        self.told = False
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


class _Draft:
    """An answer made ahead, while it is not yet sure that the user has finished.

    Attributes:
        text: the words that it answers.
        turn: the answer, None until it is made.
        speech: its sound, which the turn takes over when it begins.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.turn: Turn | None = None
        self.speech = _Speech(0)


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
        self._draft: _Draft | None = None
        self._speech: _Speech | None = None
        self._heard_at_s: float | None = None
        self._voice_ended_s = clock()
        self._words_s = clock()
        self._asked = False
        self._turn_began_s = clock()
        self._attention = Attention(AttentionOptions(
            greet=self.options.greet, greet_again_s=self.options.greet_again_s,
            react=self.options.react), clock)
        self._base: State | None = None
        self._shown: State | None = None
        self._closing = False
        self._hushes = 0
        self._busy = False
        self._worker: threading.Thread | None = None
        self._counts = {'turns': 0, 'interruptions': 0, 'voice_failures': 0, 'underruns': 0,
                        'drafts': 0, 'drafts_used': 0}
        self._latencies_s: dict[str, deque[float]] = {}

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

    def hush(self) -> None:
        """Fall silent and come to rest at once; what is being thought of or said is dropped."""
        with self._lock:
            self._impulse = self._draft = self._to_say = None
            self._hushes += 1
            self._attention.speech_ended()
            # Every activity ends at IDLE when nothing happens for long enough; that it does so
            # now is no problem to be told, and nothing is to be thought of on the way.
            while self._cycle.activity is not Activity.IDLE:
                self._carry_out([command for command in self._cycle.handle(
                    Occurrence(Event.TIMEOUT)) if not isinstance(command, Warn | Reason)])
            self._work.notify_all()

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
        with self._lock:
            self._attention.speech_started()
        self._handle(Occurrence(Event.USER_SPEECH_STARTED))

    def on_partial(self, text: str, pause: bool = False) -> None:
        """Words so far.

        Args:
            text: the words.
            pause: the user is silent, and these are all words up to now.
        """
        with self._lock:
            self._handle(Occurrence(Event.USER_SPEECH_GOES_ON, text))
            if pause and self._cycle.activity is Activity.LISTENING:
                self._attention.paused()
                self._show()
            clean = clean_text(text, MAX_UTTERANCE_CHARS)
            if not (pause and self.options.draft and self._cycle.activity is Activity.LISTENING
                    and any(char.isalnum() for char in clean)):
                return
            words = self._cycle.joined(clean)
            if self._draft is None or self._draft.text != words:
                self._draft = _Draft(words)
                self._work.notify_all()

    def on_speech_ended(self, ago_s: float = 0.0) -> None:
        """The user stopped speaking; their words follow with `on_words`.

        Args:
            ago_s: how long ago their voice ended.
        """
        with self._lock:
            self._voice_ended_s = self._clock() - ago_s
            self._attention.speech_ended()
            self._handle(Occurrence(Event.USER_SPEECH_ENDED))

    def on_words(self, text: str) -> None:
        """The words of what the user said; '' if none were understood."""
        with self._lock:
            self._words_s = self._clock()
            self._note('voice_to_words_s', self._words_s - self._voice_ended_s)
            self._utterance(text, spoken=True)

    def on_text(self, text: str) -> None:
        """What the user typed."""
        with self._lock:
            self._voice_ended_s = self._words_s = self._clock()
            self._utterance(text, spoken=False)

    def on_presence(self, present: bool) -> None:
        """Whether somebody is there, from a source that knows no more; see `on_perceived`."""
        self.on_perceived(Perceived(present))

    def on_perceived(self, seen: Perceived) -> None:
        """What a source sees of the user; `Attention` says what comes of it."""
        with self._lock:
            self._wish(self._attention.perceive(seen))
            if self._cycle.activity is Activity.IDLE and seen.gesture:
                answer = self._attention.answer_to(seen.gesture)
                if answer:
                    self.on_text(answer)
            self._show()

    def _wish(self, impulse: str) -> None:
        """Have an impulse when there is time for it."""
        if impulse:
            self._impulse = impulse
            self._work.notify_all()

    def _show(self) -> None:
        """Publish the cycle's state as attention dresses it, if that has changed."""
        if self._base is None:
            return
        dressed = self._attention.dress(self._base)
        if dressed != self._shown:
            self._shown = dressed
            self._callbacks.on_state(dressed)

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
                self._note('turn_to_sound_s', self._clock() - self._turn_began_s)
                if self._asked:
                    self._note('voice_to_sound_s', self._clock() - self._voice_ended_s)
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
                    if self._cycle.turn is not None:
                        self._attention.turn_heard(self._cycle.turn.speech)
                    self._speech = None
                    self._handle(Occurrence(Event.SPEECH_FINISHED, number=speech.turn_id))
            self._carry_out(self._cycle.tick())
            self._wish(self._attention.tick())
            self._show()

    def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to be thought of or synthesised, on the wall's clock.

        For a replay that gives the module its time step by step: within a step everything that
        follows from what was heard is done, however slow the machine is.

        Returns:
            False if there was still work at the time-out.
        """
        def settled() -> bool:
            speech = self._speech
            return not (self._busy or self._question or self._to_say or self._impulse
                        or self._to_draft) and (
                speech is None or speech.complete)

        with self._lock:
            return self._work.wait_for(settled, timeout_s)

    @property
    def state(self) -> State:
        """The state as last published."""
        with self._lock:
            return self._cycle.state

    def figures(self) -> dict[str, float]:
        """Counts and latencies for diagnostics.

        Of each stage the median and the 95th percentile of the last turns: ``voice_to_words``
        (silence waited for and recognition), ``words_to_turn`` (reasoning), ``turn_to_sound``
        (the voice's first chunk), and ``voice_to_sound`` over all.
        """
        with self._lock:
            figures: dict[str, float] = dict(self._counts)
            for name, values in self._latencies_s.items():
                for share in (50, 95):
                    figures[f'{name.removesuffix("_s")}_p{share}_s'] = round(
                        float(np.percentile(values, share)), 3)
            return figures

    def _note(self, name: str, seconds: float) -> None:
        self._latencies_s.setdefault(name, deque(maxlen=HISTORY_TURNS)).append(seconds)

    # --- the cycle ----------------------------------------------------------------------------

    def _handle(self, occurrence: Occurrence) -> None:
        with self._lock:
            self._carry_out(self._cycle.handle(occurrence))
            self._use_draft()

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Reason():
                    self.memory.hear(command.text)
                    self._question = command
                    self._work.notify_all()
                case DropReason():
                    if self._question is not None and \
                            self._question.request_id == command.request_id:
                        self._question = None
                case BeginTurn():
                    self._begin(command)
                case TakeBack():
                    self.memory.take_back()
                case StopSpeech():
                    if self._speech is not None:
                        self._counts['interruptions'] += not self._speech.finished
                        self._remember(complete=False)
                    self._speech = None
                    self._to_say = None
                    self._draft = None
                    self._heard_at_s = None
                case PublishState():
                    self._base = command.state
                    self._show()
                case Warn():
                    self._callbacks.on_warning(command.text)

    def _begin(self, begun: BeginTurn) -> None:
        self.memory.begin(begun.turn)
        self._attention.turn_began()
        self._counts['turns'] += 1
        self._turn_began_s = self._clock()
        self._asked = bool(begun.utterance)
        latency_s = 0.0
        if self._asked:
            latency_s = self._clock() - self._voice_ended_s
            self._note('words_to_turn_s', self._clock() - self._words_s)
        self._heard_at_s = None
        draft, self._draft = self._draft, None
        if begun.turn.speech:
            ready = draft is not None and draft.turn is begun.turn
            self._speech = draft.speech if ready and draft is not None else _Speech(0)
            self._speech.turn_id = begun.turn_id
            self._to_say = begun
            self._work.notify_all()
        self._callbacks.on_intent(Intent(begun.turn_id, begun.turn, begun.utterance, latency_s))
        self._tell_sound()

    def _end_clause(self, speech: _Speech, parts: list[str], at: int) -> None:
        speech.marks.append((parts[at], speech.made))
        if at + 1 < len(parts):
            speech.push(pause_after(parts[at]))

    def _tell_sound(self) -> None:
        """Tell once that a turn can be heard."""
        speech = self._speech
        if speech is not None and not speech.told and (
                speech.ready >= CHUNK_SAMPLES or (speech.complete and speech.ready)):
            speech.told = True
            self._callbacks.on_sound()

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
                while not (self._closing or self._question or self._to_say or self._impulse
                           or self._to_draft):
                    self._work.wait()
                if self._closing:
                    return
                question, begun, impulse = self._question, self._to_say, self._impulse
                draft, hushes = self._to_draft, self._hushes
                self._to_say = None
                if begun is None and question is None:
                    # Drafting comes first: whoever speaks is not to be greeted just now.
                    self._impulse = impulse if draft else None
                self._busy = True
            try:
                if begun is not None:
                    self._say(begun)
                elif question is not None:
                    self._answer(question)
                elif draft is not None:
                    self._make_draft(draft)
                elif impulse is not None:
                    turn = self._reasoner.answer(impulse, self.memory)
                    with self._lock:
                        if turn is not None and self._hushes == hushes:
                            self._handle(Occurrence(Event.IMPULSE, turn=turn))
            except Exception as error:
                # Whatever goes wrong in a reasoner or voice, the avatar stays alive.
                log.exception('reasoning failed')
                self._callbacks.on_warning(f'{type(error).__name__}: {error}')

    @property
    def _to_draft(self) -> _Draft | None:
        """The draft that is still to be made."""
        return self._draft if self._draft is not None and self._draft.turn is None else None

    def _make_draft(self, draft: _Draft) -> None:
        def unwanted() -> bool:
            question = self._question
            return (self._closing or self._draft is not draft
                    or (question is not None and question.text != draft.text))

        try:
            turn = self._reasoner.reason(draft.text, self.memory, unwanted)
        except Exception as error:
            # The question itself will show it, if it comes.
            log.debug('draft: %s: %s', type(error).__name__, error)
            with self._lock:
                if self._draft is draft:
                    self._draft = None
            return
        with self._lock:
            if unwanted():
                return
            draft.turn = turn
            self._counts['drafts'] += 1
            self._use_draft()
            if not turn.speech:
                return
        parts, speech = clauses(turn.speech), draft.speech
        try:
            for block in self._voice.synthesise(parts[0]):
                with self._lock:
                    # Either still a draft, or already what is being said.
                    if unwanted() and self._speech is not speech:
                        return
                    speech.push(block)
                    self._tell_sound()
        except VoiceError as error:
            # Whoever says the turn meets it again.
            log.debug('draft: %s', error)
            return
        with self._lock:
            self._end_clause(speech, parts, 0)

    def _use_draft(self) -> None:
        """Answer the question with the draft, if there is one of it."""
        question, draft = self._question, self._draft
        if question is not None and draft is not None and draft.turn is not None \
                and draft.text == question.text:
            self._question = None
            self._counts['drafts_used'] += 1
            self._handle(Occurrence(Event.TURN_READY, turn=draft.turn,
                                    number=question.request_id))

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
            for at in range(len(speech.marks), len(parts)):
                for block in self._voice.synthesise(parts[at]):
                    with self._lock:
                        # Broken off, or endless.
                        if self._speech is not speech or self._closing:
                            return
                        if not speech.push(block):
                            raise VoiceError(f'the voice made more than '
                                             f'{MAX_TURN_SAMPLES // SAMPLE_RATE_HZ} s of sound')
                        self._tell_sound()
                with self._lock:
                    self._end_clause(speech, parts, at)
        except VoiceError as error:
            speech.failure = str(error)
        with self._lock:
            if self._speech is not speech or self._closing:
                return
            speech.complete = True
            self._tell_sound()
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
