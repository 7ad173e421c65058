# SPDX-License-Identifier: Apache-2.0
"""The avatar's ear: sound in, speech events out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.audio import Chunker, check_samples
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.perception.asr import (
    Job,
    Outcome,
    Recogniser,
    RecognitionWorker,
    WhisperRecogniser,
)
from interactive_avatar.perception.echo import EchoGuard
from interactive_avatar.perception.sentence import JUDGED_LANGUAGES, sounds_complete
from interactive_avatar.perception.vad import (
    WINDOW_MS,
    WINDOW_SAMPLES,
    Edge,
    Endpointer,
    EndpointOptions,
    SileroVoiceActivity,
    SpeechProbability,
)

NS_PER_S = 1_000_000_000
# A shorter loss is bridged with silence, so that one lost message does not cut a sentence.
BRIDGED_GAP_MS = 320
PREROLL_MS = 320
MAX_EVENTS = 256


@dataclass(frozen=True)
class SpeechStarted:
    """The user began to speak at ``stamp_ns``."""

    utterance: int
    stamp_ns: int


@dataclass(frozen=True)
class Partial:
    """What was understood of an utterance so far, up to ``stamp_ns``; may change.

    Attributes:
        utterance: number of the utterance.
        stamp_ns: up to where.
        text: the words.
        pause: the user has paused, and these are all words up to there; if no more come they are
            the final ones.
    """

    utterance: int
    stamp_ns: int
    text: str
    pause: bool = False


@dataclass(frozen=True)
class SpeechEnded:
    """The user stopped at ``stamp_ns``; ``reason`` is complete, silence, length, gap or closed."""

    utterance: int
    stamp_ns: int
    reason: str


@dataclass(frozen=True)
class Final:
    """The utterance's words, '' where none were understood.

    Attributes:
        utterance: number of the utterance.
        start_ns: when it began.
        end_ns: when it ended.
        text: the words.
        confidence: 0 to 1.
        recognition_s: time that recognising took.
        error: why there are no words; '' if nothing went wrong.
    """

    utterance: int
    start_ns: int
    end_ns: int
    text: str
    confidence: float
    recognition_s: float
    error: str = ''


@dataclass(frozen=True)
class AudioGap:
    """Sound is missing before ``stamp_ns`` (``lost_ms`` < 0: it came twice or too late)."""

    stamp_ns: int
    lost_ms: int
    bridged: bool

    def __str__(self) -> str:
        """One line for a log."""
        if self.lost_ms < 0:
            return f'{-self.lost_ms} ms of sound came late or twice; it was dropped'
        done = 'bridged with silence' if self.bridged else 'listening started anew'
        return f'{self.lost_ms} ms of sound are missing; {done}'


Event = SpeechStarted | Partial | SpeechEnded | Final | AudioGap


@dataclass(frozen=True)
class ListenerOptions:
    """How the ear works.

    Attributes:
        endpoint: when speech begins and ends.
        partial_interval_ms: time between partial results; 0 for none.
        early_ms: silence after which recognition of the whole begins, ahead of the end; its
            result is used if the user says no more.
        complete_silence_ms: silence that ends an utterance whose words are a complete sentence
            and surely recognised; 0 to wait for the whole trailing silence always.
        complete_confidence: least confidence of such words, 0 to 1.
        language: of the words, for judging whether a sentence is complete.
        stamp_tolerance_ms: stamps of real sources jitter; a difference up to this is no loss.
    """

    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    partial_interval_ms: int = 1000
    early_ms: int = 96
    complete_silence_ms: int = 288
    complete_confidence: float = 0.6
    language: str = 'en'
    stamp_tolerance_ms: int = 120

    def ends_early(self, text: str, confidence: float) -> bool:
        """Whether these words, followed by `complete_silence_ms` of silence, are an utterance."""
        return (self.complete_silence_ms > 0 and self.language in JUDGED_LANGUAGES
                and confidence >= self.complete_confidence and sounds_complete(text))


class _Utterance:
    """An utterance that is being heard."""

    def __init__(self, number: int, start_ns: int, before: list[NDArray[np.int16]]) -> None:
        self.number = number
        self.start_ns = start_ns
        self.blocks = before
        self.tried_ms = 0
        self.early: Job | None = None
        self.early_done: Outcome | None = None

    def sound(self) -> NDArray[np.int16]:
        """Everything heard of it, int16 [n]."""
        return np.concatenate(self.blocks)


class Listener:
    """Hears speech in a stream of sound and recognises it while it is spoken.

    Call `push` with sound as it comes and `poll` when none comes; both return the events since
    the last call, in order. Neither waits for recognition. Memory is bounded by the longest
    utterance. One thread at a time may call.

    Args:
        options: how the ear works.
        open_recogniser: makes the recogniser, in the worker's thread; Whisper if None.
        voice_activity: rates windows of sound; Silero if None.
        echo: takes the avatar's own voice out of the sound first; None where it cannot be heard.

    Raises:
        PerceptionError: if a model is missing or damaged.
    """

    def __init__(self, options: ListenerOptions | None = None,
                 open_recogniser: Callable[[], Recogniser] | None = None,
                 voice_activity: SpeechProbability | None = None,
                 echo: EchoGuard | None = None) -> None:
        self.options = options or ListenerOptions()
        self._echo = echo
        self._activity = voice_activity or SileroVoiceActivity()
        self._endpointer = Endpointer(self.options.endpoint)
        self._windows = Chunker(WINDOW_SAMPLES)
        self._before: deque[NDArray[np.int16]] = deque(maxlen=PREROLL_MS // WINDOW_MS)
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._current: _Utterance | None = None
        self._ended: dict[Job, tuple[int, int]] = {}
        self._count = 0
        self._heard_ns: int | None = None
        self._window_ns = 0
        self._worker = RecognitionWorker(open_recogniser or WhisperRecogniser)
        self._worker.start()

    @property
    def speaking(self) -> bool:
        """Whether the user is speaking now."""
        return self._current is not None

    @property
    def recognising(self) -> bool:
        """Whether words of an ended utterance are still to come."""
        return bool(self._ended)

    def push(self, samples: NDArray[np.int16], stamp_ns: int) -> list[Event]:
        """Hear the next block.

        Args:
            samples: int16 [n] at 16 kHz mono.
            stamp_ns: time of the first sample; 0 where the source has no clock, and the block
                is taken to follow on.

        Returns:
            Events since the last call.

        Raises:
            AudioFormatError: if the array is not a flat int16 array.
        """
        check_samples(samples)
        samples = self._join(samples, stamp_ns)
        if self._echo is not None:
            assert self._heard_ns is not None
            samples = self._echo.clean(
                samples, self._heard_ns - samples.size * NS_PER_S // SAMPLE_RATE_HZ)
        for window in self._windows.push(samples):
            self._hear(window)
        return self.poll()

    def poll(self) -> list[Event]:
        """Events since the last call, without new sound."""
        for outcome in self._worker.results():
            self._take(outcome)
        self._end_if_complete()
        events = list(self._events)
        self._events.clear()
        return events

    def reset(self, reason: str = 'gap') -> None:
        """Forget the sound so far; an open utterance ends and is recognised as it is."""
        self._finish(reason)
        self._endpointer.reset()
        self._activity.reset()
        self._windows.reset()
        self._before.clear()
        self._heard_ns = None

    def forget(self) -> None:
        """Forget all that was heard: no event of it comes any more, nor words under way."""
        self._current = None
        self._ended.clear()
        self.reset()
        self._events.clear()

    def wait(self, timeout_s: float) -> list[Event]:
        """Events after everything under way has been recognised, or at the time-out."""
        self._worker.wait_idle(timeout_s)
        return self.poll()

    def close(self) -> None:
        """End the worker; an open utterance is dropped."""
        self._worker.close()

    def _join(self, samples: NDArray[np.int16], stamp_ns: int) -> NDArray[np.int16]:
        """Lay a block behind the sound so far: bridge, cut or start anew."""
        duration_ns = samples.size * NS_PER_S // SAMPLE_RATE_HZ
        if self._heard_ns is None or not stamp_ns:
            if self._heard_ns is None:
                self._window_ns = stamp_ns
            self._heard_ns = (self._heard_ns or stamp_ns) + duration_ns
            return samples
        off_ms = round((stamp_ns - self._heard_ns) / 1e6)
        if abs(off_ms) <= self.options.stamp_tolerance_ms:
            # The count of samples is the clock; a slow pull towards the stamps follows a
            # source whose crystal runs a little fast or slow.
            pull_ns = (stamp_ns - self._heard_ns) // 16
            self._heard_ns += pull_ns + duration_ns
            self._window_ns += pull_ns
            return samples
        if -BRIDGED_GAP_MS <= off_ms < 0:
            # Late or repeated: what is already heard is dropped.
            self._events.append(AudioGap(stamp_ns, off_ms, bridged=True))
            known = min(samples.size, -off_ms * SAMPLE_RATE_HZ // 1000)
            self._heard_ns += (samples.size - known) * NS_PER_S // SAMPLE_RATE_HZ
            return samples[known:]
        if 0 < off_ms <= BRIDGED_GAP_MS:
            self._events.append(AudioGap(stamp_ns, off_ms, bridged=True))
            missing = np.zeros(off_ms * SAMPLE_RATE_HZ // 1000, np.int16)
            self._heard_ns = stamp_ns + duration_ns
            return np.concatenate([missing, samples])
        self._events.append(AudioGap(stamp_ns, off_ms, bridged=False))
        self.reset('gap')
        self._window_ns, self._heard_ns = stamp_ns, stamp_ns + duration_ns
        return samples

    def _hear(self, window: NDArray[np.int16]) -> None:
        self._window_ns += WINDOW_MS * 1_000_000
        edge = self._endpointer.push(self._activity(window))
        self._before.append(window)
        current = self._current
        if edge is Edge.START:
            self._count += 1
            start_ns = self._window_ns - self._endpointer.speech_ms * 1_000_000
            # What came just before belongs to the first word.
            self._current = _Utterance(self._count, start_ns, list(self._before))
            self._events.append(SpeechStarted(self._count, start_ns))
        elif current is not None:
            current.blocks.append(window)
            if edge is Edge.END:
                self._finish('silence', self.options.endpoint.trailing_silence_ms)
            elif edge is Edge.CUT:
                self._finish('length')
            else:
                self._recognise_early(current)
                self._end_if_complete()

    def _recognise_early(self, current: _Utterance) -> None:
        """Start a partial recognition, or that of the whole once a pause shows."""
        silence_ms, speech_ms = self._endpointer.silence_ms, self._endpointer.speech_ms
        if silence_ms >= self.options.early_ms:
            if current.early is None:
                current.early = Job(current.number, current.sound(), final=True, needed=False)
                current.early_done = None
                self._worker.submit(current.early)
            return
        if silence_ms == 0:
            current.early = current.early_done = None
        interval_ms = self.options.partial_interval_ms
        if (interval_ms and speech_ms - current.tried_ms >= interval_ms and not silence_ms
                and not self._worker.busy):
            current.tried_ms = speech_ms
            self._worker.submit(Job(current.number, current.sound(), final=False, needed=False,
                                    tag=self._window_ns))

    def _end_if_complete(self) -> None:
        """End an utterance whose words say that it is over, before the silence does."""
        current, silence_ms = self._current, self._endpointer.silence_ms
        if current is None or current.early_done is None \
                or not silence_ms >= self.options.complete_silence_ms:
            return
        heard = current.early_done.recognition
        if heard is not None and self.options.ends_early(heard.text, heard.confidence):
            self._endpointer.reset()
            self._finish('complete', silence_ms)

    def _finish(self, reason: str, silence_ms: int = 0) -> None:
        current, self._current = self._current, None
        if current is None:
            return
        end_ns = self._window_ns
        job = current.early
        if silence_ms:
            windows = -(-silence_ms // WINDOW_MS)
            end_ns -= windows * WINDOW_MS * 1_000_000
        else:
            # The early job, if any, lacks what was heard since.
            job = None
        # What follows a cut must not hear the end of what came before it again.
        self._before.clear()
        self._events.append(SpeechEnded(current.number, end_ns, reason))
        if job is not None and current.early_done is not None:
            self._ended[job] = (current.start_ns, end_ns)
            self._take(current.early_done)
            return
        if job is None or not self._worker.need(job):
            job = Job(current.number, current.sound(), final=True, needed=True)
            self._worker.submit(job)
        self._ended[job] = (current.start_ns, end_ns)

    def _take(self, outcome: Outcome) -> None:
        """Turn an outcome into an event."""
        job, heard = outcome.job, outcome.recognition
        current = self._current
        if job in self._ended:
            start_ns, end_ns = self._ended.pop(job)
            self._events.append(Final(
                job.utterance, start_ns, end_ns, heard.text if heard else '',
                heard.confidence if heard else 0.0, heard.seconds if heard else 0.0,
                outcome.error))
        elif current is not None and job.utterance == current.number:
            if job is current.early:
                current.early_done = outcome
            if heard is not None and heard.text:
                stamp_ns = job.tag or self._window_ns
                self._events.append(Partial(job.utterance, stamp_ns, heard.text,
                                            job is current.early))
