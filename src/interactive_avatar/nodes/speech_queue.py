# SPDX-License-Identifier: Apache-2.0
"""Turns the pieces of speech that arrive on a topic into the chunks that the generator eats.

No ROS in here. Two clocks meet: the reasoning node's and the generator's. A turn therefore starts
to sound only when a little of it is there, silence fills what is missing, and every loss is
counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ

# Longer than any answer: a sender that runs ahead of time for ever is refused, not stored.
CAPACITY_S = 60
# A gap of more pieces than this is not filled with silence: the sender has started anew.
FILLED_GAP_PIECES = 5

# Live voices: what may wait beyond the reserve before pauses are shortened (the longest piece that
# is usual), the blocks that are cut out, and what counts as a pause: 50 dB below full scale, or
# 20 dB below the loudest that waits.
SLACK_SAMPLES = SAMPLE_RATE_HZ * 40 // 1000
BLOCK_MS = 10
BLOCK_SAMPLES = SAMPLE_RATE_HZ * BLOCK_MS // 1000
QUIET_LEVEL = 100.0
QUIET_SHARE = 0.1


@dataclass(frozen=True)
class SpeechChunk:
    """What is spoken in one chunk.

    Attributes:
        samples: int16 [2560], zeros where nothing is said.
        turn_id: the turn of dialogue it belongs to; 0 for silence between turns.
        last: True on the last chunk of a turn.
    """

    samples: NDArray[np.int16]
    turn_id: int = 0
    last: bool = False


@dataclass
class _Turn:
    turn_id: int
    samples: NDArray[np.int16]
    next_sequence: int
    complete: bool = False
    started: bool = False


class SpeechQueue:
    """Speech waiting to be spoken, in order of its turns. Thread-safe."""

    def __init__(self, prebuffer_chunks: int = 1, reserve_ms: float | None = None) -> None:
        """Make an empty queue.

        Args:
            prebuffer_chunks: chunks of a turn that must be there before it starts to sound.
            reserve_ms: for a voice that comes live: a turn starts to sound with what there is of
                it but so much, which stays to outlast the jitter of its pieces; what piles up
                beyond is caught up on in the voice's own pauses. None for speech that comes
                faster than it is spoken.
        """
        self._reserve_samples = None if reserve_ms is None \
            else round(reserve_ms * SAMPLE_RATE_HZ / 1000)
        self._prebuffer_samples = prebuffer_chunks * CHUNK_SAMPLES
        self._turns: deque[_Turn] = deque()
        self._aborted_turn = 0
        self._lock = threading.Lock()
        self._counts = {'speech_pieces_lost': 0, 'speech_underruns': 0, 'speech_refused': 0}
        if reserve_ms is not None:
            self._counts['speech_skipped_ms'] = 0

    def push(self, turn_id: int, sequence: int, samples: NDArray[np.int16], last: bool) -> str:
        """Add a piece of speech.

        Args:
            turn_id: turn of dialogue, above 0.
            sequence: position of the piece in its turn's stream.
            samples: int16 [n], 16 kHz mono, any length.
            last: True if the turn ends with this piece.

        Returns:
            What was wrong with the piece, or an empty string.
        """
        with self._lock:
            if turn_id <= self._aborted_turn:
                return ''
            turn = self._turn(turn_id, sequence)
            if turn.complete:
                self._counts['speech_refused'] += 1
                return (f'speech of turn {turn_id} came after its last piece (sequence '
                        f'{sequence}): start a new turn_id')
            complaint = ''
            missing = sequence - turn.next_sequence
            if missing > 0:
                self._counts['speech_pieces_lost'] += missing
                complaint = (f'{missing} piece(s) of speech lost before sequence {sequence} of '
                             f'turn {turn_id}')
                if missing <= FILLED_GAP_PIECES:
                    # Silence in its place keeps the rest of the sentence at its time.
                    hole = np.zeros(missing * len(samples), np.int16)
                    samples = np.concatenate([hole, samples])
            elif missing < 0:
                self._counts['speech_refused'] += 1
                return (f'speech of turn {turn_id} with sequence {sequence} came twice or out of '
                        f'order (expected {turn.next_sequence}), it is dropped')
            turn.next_sequence = sequence + 1
            if turn.samples.size + samples.size > CAPACITY_S * SAMPLE_RATE_HZ:
                self._counts['speech_refused'] += 1
                return (f'speech of turn {turn_id} is more than {CAPACITY_S} s ahead of the '
                        f'generator: send it at the speed at which it is spoken')
            turn.samples = np.concatenate([turn.samples, samples])
            turn.complete = last
            return complaint

    def _turn(self, turn_id: int, sequence: int) -> _Turn:
        for turn in self._turns:
            if turn.turn_id == turn_id:
                return turn
        # An unfinished turn that another one follows will not be finished any more.
        for turn in self._turns:
            turn.complete = True
        turn = _Turn(turn_id, np.zeros(0, np.int16), sequence)
        self._turns.append(turn)
        return turn

    def take(self) -> SpeechChunk:
        """Take the next 160 ms: speech, padded with silence, or silence."""
        with self._lock:
            while self._turns:
                turn = self._turns[0]
                if self._reserve_samples is not None:
                    self._catch_up(turn, CHUNK_SAMPLES + self._reserve_samples + SLACK_SAMPLES)
                size = turn.samples.size
                if turn.complete:
                    if size <= CHUNK_SAMPLES:
                        self._turns.popleft()
                        padded = np.zeros(CHUNK_SAMPLES, np.int16)
                        padded[:size] = turn.samples
                        return SpeechChunk(padded, turn.turn_id, True)
                elif self._reserve_samples is not None:
                    if turn.started and size < CHUNK_SAMPLES:
                        self._counts['speech_underruns'] += 1
                    if not turn.started or size < CHUNK_SAMPLES:
                        fresh = min(size - self._reserve_samples, CHUNK_SAMPLES)
                        if fresh <= 0:
                            return SpeechChunk(np.zeros(CHUNK_SAMPLES, np.int16),
                                               turn.turn_id if turn.started else 0)
                        turn.started = True
                        # What is there is heard now; silence goes before it, not into it.
                        padded = np.zeros(CHUNK_SAMPLES, np.int16)
                        padded[-fresh:] = turn.samples[:fresh]
                        turn.samples = turn.samples[fresh:]
                        return SpeechChunk(padded, turn.turn_id)
                elif size < (CHUNK_SAMPLES if turn.started
                             else max(self._prebuffer_samples, CHUNK_SAMPLES)):
                    if turn.started:
                        self._counts['speech_underruns'] += 1
                        return SpeechChunk(np.zeros(CHUNK_SAMPLES, np.int16), turn.turn_id)
                    break
                turn.started = True
                chunk = turn.samples[:CHUNK_SAMPLES].copy()
                turn.samples = turn.samples[CHUNK_SAMPLES:]
                return SpeechChunk(chunk, turn.turn_id)
            return SpeechChunk(np.zeros(CHUNK_SAMPLES, np.int16))

    @property
    def begins(self) -> bool:
        """Whether a turn is about to start of which two chunks, or all, are there."""
        with self._lock:
            if not self._turns or self._turns[0].started:
                return False
            turn = self._turns[0]
            return turn.samples.size >= max(self._prebuffer_samples, 2 * CHUNK_SAMPLES) or (
                turn.complete and turn.samples.size > CHUNK_SAMPLES)

    def _catch_up(self, turn: _Turn, most: int) -> None:
        """Shorten a turn's pauses until no more than ``most`` samples of it wait."""
        excess = (turn.samples.size - most) // BLOCK_SAMPLES
        if excess <= 0:
            return
        count = turn.samples.size // BLOCK_SAMPLES
        blocks = turn.samples[:count * BLOCK_SAMPLES].reshape(count, BLOCK_SAMPLES)
        level = np.sqrt((blocks.astype(np.float64) ** 2).mean(axis=1))
        quiet = np.flatnonzero(level < max(QUIET_LEVEL, QUIET_SHARE * level.max()))[:excess]
        if quiet.size:
            kept = np.delete(blocks, quiet, axis=0).reshape(-1)
            turn.samples = np.concatenate([kept, turn.samples[count * BLOCK_SAMPLES:]])
            self._counts['speech_skipped_ms'] += BLOCK_MS * int(quiet.size)

    def abort(self, turn_id: int) -> None:
        """Drop what is unsaid of ``turn_id`` and of all before it, now and when it comes late."""
        with self._lock:
            self._aborted_turn = max(self._aborted_turn, turn_id)
            self._turns = deque(turn for turn in self._turns
                                if turn.turn_id > self._aborted_turn)

    def restart(self) -> None:
        """Forget all turns, also which were aborted: their sender counts them anew."""
        with self._lock:
            self._aborted_turn = 0
            self._turns.clear()

    @property
    def newest_turn(self) -> int:
        """Highest turn that waits or speaks; 0 if none does."""
        with self._lock:
            return max((turn.turn_id for turn in self._turns), default=0)

    def figures(self) -> Mapping[str, object]:
        """Counters and the seconds that wait, for diagnostics."""
        with self._lock:
            waiting = sum(turn.samples.size for turn in self._turns) / SAMPLE_RATE_HZ
            return {**self._counts, 'speech_waiting_s': round(waiting, 2)}


class HearingStream(Protocol):
    """The part of `generator.AvatarStream` that a `Feed` uses; `replace_silence` may be absent."""

    lookahead_chunks: int


class Feed:
    """What a stream is given to hear, chunk by chunk, and whose sound comes out of it.

    Not thread-safe.

    Args:
        queue: where the speech comes from.
        stream: keeps ``lookahead_chunks`` chunks before it shows them. If it can replace silence,
            the silence that it keeps when a turn starts is left out: that turn is heard a chunk
            sooner.
    """

    def __init__(self, queue: SpeechQueue, stream: HearingStream) -> None:
        self._queue, count = queue, stream.lookahead_chunks
        self._replace: Callable[[NDArray[np.int16]], None] | None = \
            getattr(stream, 'replace_silence', None) if count == 1 else None
        self._kept = deque(SpeechChunk(np.zeros(CHUNK_SAMPLES, np.int16)) for _ in range(count))
        # The end of a turn reaches into the first windows of the network after it.
        self._silent_chunks = 0

    def take(self) -> SpeechChunk:
        """The next 160 ms for the stream to hear."""
        if self._replace is not None and self._silent_chunks >= 2 and self._queue.begins:
            first = self._queue.take()
            self._replace(first.samples)
            self._kept[-1] = first
        speech = self._queue.take()
        silent = not speech.turn_id and not speech.samples.any()
        self._silent_chunks = self._silent_chunks + 1 if silent else 0
        return speech

    def coming(self, speech: SpeechChunk) -> SpeechChunk:
        """Whose sound the chunk will be that comes out when the stream hears ``speech``."""
        return self._kept[0] if self._kept else speech

    def heard(self, speech: SpeechChunk) -> SpeechChunk:
        """The stream has heard ``speech``: whose sound the chunk that came out of it is."""
        self._kept.append(speech)
        return self._kept.popleft()
