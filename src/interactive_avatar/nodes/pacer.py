# SPDX-License-Identifier: Apache-2.0
"""Runs an avatar stream against the media clock: a chunk every 160 ms, whatever happens.

No ROS in here. Two threads: the *maker* computes one chunk ahead, the *pacer* owns the time line.
When a slot's time comes and no chunk is there, the pacer waits for the budget, then repeats the
last frames in silence for this one slot and counts it; the chunk takes the next slot, so that
nothing of a word is lost.

A stream that overlaps begins the chunk after a late one at the time it always would have: while
the late one's pictures are still being decoded. So it loses no more time, catches up sooner, and
a machine that needs more than 160 ms from speech to pictures keeps pace if each half takes less.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import (
    CHUNK_MS,
    CHUNK_NS,
    CHUNK_SAMPLES,
    FRAME_NS,
    FRAMES_PER_CHUNK,
    SAMPLE_RATE_HZ,
    MediaClock,
)
from interactive_avatar.nodes.speech_queue import Feed, SpeechChunk, SpeechQueue

FADE_SAMPLES = SAMPLE_RATE_HZ // 100
# Chunk times kept for percentiles: about a minute.
HISTORY_CHUNKS = 375
# After a step that failed, the next attempt waits so long: a broken model must not eat a core.
RETRY_S = CHUNK_MS / 1000
FRAME_S = FRAME_NS / 1e9
# A clock that is off by more than this has been set, or the process was stopped: the time line
# starts anew there instead of holding still, or rushing, until it has caught up.
CLOCK_JUMP_S = 2.0
# Stamps that lie further from the clock than this are laid at it anew: the clock was set, or the
# machine slept, of which the clock that sets the pace tells nothing.
STAMPS_OFF_S = 0.1
# Two clocks read further apart than this cannot be compared: the thread was held up in between.
# They are read so often at most.
READING_S = 0.01
READINGS = 3
# A clock that is not this machine's own (/clock of a replay) may run at any speed: it is looked at
# again after this time at most.
SIMULATED_WAIT_S = 0.005


class ChunkLike(Protocol):
    """What a stream returns for 160 ms."""

    frames: NDArray[np.uint8]
    audio: NDArray[np.int16]
    prompt: str


class StreamLike(Protocol):
    """The part of `generator.AvatarStream` that the pacer uses."""

    lookahead_chunks: int

    @property
    def overlaps(self) -> bool: ...

    def submit(self, speech: NDArray[np.int16],
               shown: Callable[[Any], None] | None = None) -> Future[Any]: ...

    def switch(self, prompt: str) -> None: ...

    def prepare(self, prompt: str) -> None: ...


@dataclass(frozen=True)
class Slot:
    """One chunk's place on the time line, ready to be published.

    Attributes:
        index: number of the slot since the start; without gaps.
        stamp_ns: presentation time of its first frame and first sample.
        frames: uint8 [4, H, W, 3] RGB.
        audio: int16 [2560].
        turn_id: turn of dialogue that the sound belongs to, 0 for none.
        last: True if the turn's sound ends with this slot.
        prompt: prompt under which the frames were made.
        repeated: True if nothing new was ready in time and the last frames are shown again.
    """

    index: int
    stamp_ns: int
    frames: NDArray[np.uint8]
    audio: NDArray[np.int16]
    turn_id: int
    last: bool
    prompt: str
    repeated: bool


@dataclass
class _Made:
    chunk: ChunkLike
    turn_id: int
    last: bool


@dataclass
class _Begun:
    """A chunk that is being made, whose sound it is, how long the maker was held by it, and
    whether it has been made ready."""

    source: SpeechChunk
    started_s: float
    held_s: float = 0.0
    shown: bool = False


def fade_out(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Silence int16 [n] after a 10 ms ramp, so that a cut does not click."""
    muted = np.zeros_like(samples)
    ramp = np.linspace(1.0, 0.0, FADE_SAMPLES, dtype=np.float32)
    muted[:FADE_SAMPLES] = (samples[:FADE_SAMPLES] * ramp).astype(np.int16)
    return muted


class Muting:
    """Silences what is on its way of a turn that the user has broken off. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._muted_turn = 0
        self._fading_turn = 0

    def mute(self, turn_id: int) -> None:
        """Silence turn ``turn_id`` and all before it."""
        with self._lock:
            if turn_id > self._muted_turn:
                self._muted_turn = self._fading_turn = turn_id

    def unmute(self) -> None:
        """Let every turn be heard again."""
        with self._lock:
            self._muted_turn = self._fading_turn = 0

    def audible(self, samples: NDArray[np.int16], turn_id: int) -> NDArray[np.int16]:
        """What is heard of int16 [n] of turn ``turn_id``: all, a fading start, or nothing."""
        with self._lock:
            muted = 0 < turn_id <= self._muted_turn
            fade = muted and turn_id == self._fading_turn
            if fade:
                self._fading_turn = 0
        if not muted:
            return samples
        return fade_out(samples) if fade else np.zeros_like(samples)


class StreamPacer:
    """Drives a stream in real time and hands its slots and frames out on time."""

    def __init__(
        self,
        stream: StreamLike,
        speech: SpeechQueue,
        emit_slot: Callable[[Slot], None],
        emit_frame: Callable[[NDArray[np.uint8], int], None],
        *,
        now_ns: Callable[[], int],
        simulated: bool = False,
        complain: Callable[[str, str], None],
        on_maker_start: Callable[[], None] = lambda: None,
        lead_ms: float = 60.0,
        budget_ms: float = 40.0,
        ahead_chunks: int = 1,
        ahead_ms: float | None = None,
    ) -> None:
        """Set up; `start` begins.

        Args:
            stream: an open stream.
            speech: where the next 160 ms of speech come from.
            emit_slot: called once for each slot, ``lead_ms`` before its presentation time.
            emit_frame: called with each frame uint8 [H, W, 3] and its stamp, at that time.
            now_ns: clock of the stamps, nanoseconds.
            simulated: whether that clock also sets the pace (a replay's /clock, which may run at
                any speed and be set); else the system's monotonic clock does.
            complain: called with a short key and a message when something goes wrong.
            on_maker_start: called first in the maker's thread, e.g. to raise its priority.
            lead_ms: how long before its presentation time a chunk is handed out.
            budget_ms: how late after its presentation time a chunk may still be handed out.
            ahead_chunks: chunks that may be computed ahead; each adds 160 ms of latency.
            ahead_ms: where given, a chunk is begun only so long before it is handed out, with the
                newest speech; the less, the sooner and the more often too late.
        """
        self._stream = stream
        self._speech = speech
        self._emit_slot = emit_slot
        self._emit_frame = emit_frame
        self._now_ns = now_ns
        self._simulated = simulated
        self._complain = complain
        self._on_maker_start = on_maker_start
        self._lead_s = lead_ms / 1000
        self._budget_s = budget_ms / 1000
        self._credits = ahead_chunks
        self._ahead_s = None if ahead_ms is None else ahead_ms / 1000
        # When the next chunk may be begun, on the clock that sets the pace.
        self._begin_s = float('-inf')
        self._ready: deque[_Made] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._prompt: str | None = None
        self._prepare: deque[str] = deque(maxlen=4)
        self._muting = Muting()
        self._threads: list[threading.Thread] = []
        # Whether the next chunk may be begun although the one before has not been handed out.
        self._lent = False
        self._rest_until_s = float('-inf')
        self._chunk_s: deque[float] = deque(maxlen=HISTORY_CHUNKS)
        self._busy_s: deque[float] = deque(maxlen=HISTORY_CHUNKS)
        self._shown_s: deque[float] = deque(maxlen=HISTORY_CHUNKS)
        self._late = 0
        self._failed = 0
        self._slots = 0
        self._first_s: float | None = None

    # Commands, from any thread --------------------------------------------------------------

    def start(self) -> None:
        """Start both threads."""
        self._stopping = False
        for target, name in ((self._make, 'maker'), (self._pace, 'pacer')):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop both threads and wait for them."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)
        self._threads.clear()

    def switch(self, prompt: str) -> None:
        """Use ``prompt`` from the next chunk on."""
        with self._wake:
            self._prompt = prompt

    def prepare(self, prompt: str) -> None:
        """Make ``prompt`` ready ahead of need, when there is time."""
        with self._wake:
            if prompt not in self._prepare:
                self._prepare.append(prompt)
            self._wake.notify_all()

    def mute(self, turn_id: int) -> None:
        """Silence what is on its way of turn ``turn_id`` and of those before it."""
        self._muting.mute(turn_id)

    def unmute(self) -> None:
        """Let every turn be heard again, because turns are counted anew."""
        self._muting.unmute()

    def figures(self) -> Mapping[str, object]:
        """Counters and chunk times in ms, for diagnostics.

        ``chunk_…_ms`` is from the speech to the end of all work on its chunk, ``shown_p95_ms`` to
        its pictures. ``real_time_factor`` is the least time from one chunk to the next, as a
        share of 160 ms: what keeps the stream from the next chunk, or its decoder if that takes
        longer.
        """
        with self._wake:
            times, shown = np.array(self._chunk_s) * 1000, np.array(self._shown_s) * 1000
            busy = np.array(self._busy_s) * 1000
            figures: dict[str, object] = {
                'slots': self._slots, 'chunks_late': self._late, 'steps_failed': self._failed}
        if times.size:
            p50, p95, p99 = np.percentile(times, [50, 95, 99])
            figures |= {'chunk_p50_ms': round(float(p50), 1), 'chunk_p95_ms': round(float(p95), 1),
                        'chunk_p99_ms': round(float(p99), 1),
                        'shown_p95_ms': round(float(np.percentile(shown, 95)), 1),
                        'real_time_factor': round(float(busy.mean()) / CHUNK_MS, 3)}
        return figures

    # The maker ------------------------------------------------------------------------------

    def _make(self) -> None:
        self._on_maker_start()
        feed = Feed(self._speech, self._stream)
        coming: Future[Any] | None = None
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping,
                                    max(0.0, self._rest_until_s - time.monotonic()))
                while not self._stopping and not self._prepare and self._early_s() > 0.0:
                    early_s = self._early_s()
                    self._wake.wait(None if early_s == float('inf') else
                                    min(early_s, SIMULATED_WAIT_S) if self._simulated else early_s)
                if self._stopping:
                    break
                prompt, self._prompt = self._prompt, None
                idle = self._early_s() > 0.0
                upcoming = self._prepare.popleft() if idle else None
                if not idle:
                    self._credits -= 1
            begun: _Begun | None = None
            try:
                if prompt is not None:
                    self._stream.switch(prompt)
                if upcoming is not None:
                    self._stream.prepare(upcoming)
                if idle:
                    continue
                speech = feed.take()
                begun = _Begun(feed.coming(speech), time.perf_counter())
                coming = self._stream.submit(speech.samples, partial(self._show, begun))
                begun.held_s = time.perf_counter() - begun.started_s
                feed.heard(speech)
                coming.add_done_callback(partial(self._made, begun))
            except Exception as error:
                self._fail(error, to_make=not (idle or (begun and begun.shown)))
        if coming is not None:
            # A stopped pacer's stream is free to be used by another.
            wait([coming])

    def _made(self, begun: _Begun, coming: Future[Any]) -> None:
        """All work on a chunk has ended; in the maker's thread or the one that decodes."""
        error = coming.exception()
        if error is not None:
            self._fail(error, to_make=not begun.shown)
            return
        chunk = coming.result()
        self._show(begun, chunk)
        decode_s = getattr(chunk, 'seconds', {}).get('decode', 0.0)
        with self._wake:
            self._chunk_s.append(time.perf_counter() - begun.started_s)
            self._busy_s.append(max(begun.held_s, decode_s))

    def _fail(self, error: BaseException, to_make: bool) -> None:
        """Tell that a chunk could not be made; ``to_make``: whether its slot still wants one."""
        self._complain('step_failed', f'a chunk could not be made: '
                                      f'{type(error).__name__}: {error}')
        with self._wake:
            self._failed += 1
            self._credits += int(to_make)
            self._rest_until_s = time.monotonic() + RETRY_S
            self._wake.notify_all()

    def _early_s(self) -> float:
        """How long it is until the next chunk may be begun, seconds; infinite while nobody waits
        for one. Called with the lock held."""
        return self._begin_s - self._pace_s() if self._credits else float('inf')

    def _show(self, begun: _Begun, chunk: ChunkLike) -> None:
        """Make a chunk ready for its slot; what comes a second time is dropped."""
        if begun.shown:
            return
        begun.shown = True
        with self._wake:
            self._shown_s.append(time.perf_counter() - begun.started_s)
            self._ready.append(_Made(chunk, begun.source.turn_id, begun.source.last))
            self._wake.notify_all()

    # The pacer ------------------------------------------------------------------------------

    def _pace_s(self) -> float:
        """The clock that sets the pace, seconds."""
        return self._now_ns() / 1e9 if self._simulated else time.monotonic()

    def _pace(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or bool(self._ready))
            if self._stopping:
                return
        origin_s = self._pace_s() + self._lead_s
        clock = MediaClock(self._now_ns() + int(self._lead_s * 1e9))
        frames_due: deque[tuple[float, NDArray[np.uint8], int]] = deque()
        previous: Slot | None = None
        index = 0
        while True:
            slot_s = origin_s + index * CHUNK_MS / 1000
            now_s = self._pace_s()
            if abs(now_s - slot_s) > CLOCK_JUMP_S:
                self._complain('clock_jump', f'slot {index} was due {now_s - slot_s:+.1f} s ago: '
                               f'the clock was set or the process was stopped; the time line goes '
                               f'on from now')
                origin_s += now_s + self._lead_s - slot_s
                slot_s = now_s + self._lead_s
                clock = MediaClock(self._now_ns() + int(self._lead_s * 1e9) - index * CHUNK_NS)
                frames_due.clear()
            if frames_due and frames_due[0][0] <= now_s:
                _, frame, stamp_ns = frames_due.popleft()
                self._call(self._emit_frame, frame, stamp_ns)
                continue
            made: _Made | None = None
            with self._wake:
                if self._stopping:
                    return
                due = now_s >= slot_s - self._lead_s
                too_late = now_s >= slot_s + self._budget_s
                if due and self._ready:
                    made = self._ready.popleft()
                    self._lend(slot_s, False)
                elif not (due and too_late and previous is not None):
                    if due and not self._lent and self._stream.overlaps:
                        self._lend(slot_s, True)
                    next_s = slot_s + self._budget_s if due else slot_s - self._lead_s
                    if frames_due:
                        next_s = min(next_s, frames_due[0][0])
                    wait_s = max(next_s - now_s, 0.0005)
                    self._wake.wait(min(wait_s, SIMULATED_WAIT_S) if self._simulated else wait_s)
                    continue
            clock = self._in_step(clock, index, slot_s)
            stamp_ns = clock.chunk_stamp_ns(index)
            if made is not None:
                slot = Slot(index, stamp_ns, made.chunk.frames,
                            self._muting.audible(made.chunk.audio, made.turn_id),
                            made.turn_id, made.last, made.chunk.prompt, False)
            else:
                assert previous is not None
                slot = self._repeat(previous, index, stamp_ns)
            self._call(self._emit_slot, slot)
            for number in range(FRAMES_PER_CHUNK):
                frames_due.append((slot_s + number * FRAME_S, slot.frames[number],
                                   clock.frame_stamp_ns(index, number)))
            previous = slot
            index += 1
            self._slots = index

    def _in_step(self, clock: MediaClock, index: int, slot_s: float) -> MediaClock:
        """The clock that gives slot ``index``, due at ``slot_s``, a stamp of the present time.

        Sound and pictures of a slot get theirs from the same one, so they stay together.
        """
        if self._simulated:
            return clock
        for _ in range(READINGS):
            before_s, now_ns = self._pace_s(), self._now_ns()
            if self._pace_s() - before_s <= READING_S:
                break
        else:
            return clock
        due_ns = now_ns + int((slot_s - before_s) * 1e9)
        off_s = (due_ns - clock.chunk_stamp_ns(index)) / 1e9
        if abs(off_s) <= STAMPS_OFF_S:
            return clock
        self._complain('clock_jump', f'the clock of the stamps was set by {off_s:+.1f} s, or the '
                       f'machine slept; from slot {index} on stamps follow it')
        return MediaClock(due_ns - index * CHUNK_NS)

    def _lend(self, slot_s: float, late: bool) -> None:
        """Let the chunk after that of the slot at ``slot_s`` be begun: when that one is handed
        out, or ``late``, when it should have been. Called with the lock held."""
        if late or not self._lent:
            self._credits += 1
        self._lent = late
        if self._ahead_s is not None:
            self._begin_s = slot_s + CHUNK_MS / 1000 - self._lead_s - self._ahead_s
        self._wake.notify_all()

    def _repeat(self, previous: Slot, index: int, stamp_ns: int) -> Slot:
        self._late += 1
        # Holding the last frame looks calmer than playing four frames over again.
        held = np.repeat(previous.frames[-1:], FRAMES_PER_CHUNK, axis=0)
        self._complain('chunk_late', f'slot {index}: no chunk was ready within '
                       f'{self._budget_s * 1000:.0f} ms of its time, the last frame is held for '
                       f'{CHUNK_MS} ms ({self._late} so far): free the processor, or choose a '
                       f'smaller model or another backend (`avatar bench generator`)')
        return Slot(index, stamp_ns, held, np.zeros(CHUNK_SAMPLES, np.int16),
                    0, False, previous.prompt, True)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._complain('publish_failed', f'publishing failed: '
                                             f'{type(error).__name__}: {error}')
