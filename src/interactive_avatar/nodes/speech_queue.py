# SPDX-License-Identifier: Apache-2.0
"""Turns the pieces of speech that arrive on a topic into the chunks that the generator eats.

No ROS in here. Two clocks meet: the reasoning node's and the generator's. A turn therefore starts
to sound only when a little of it is there, silence fills what is missing, and every loss is
counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ

# Longer than any answer: a sender that runs ahead of time for ever is refused, not stored.
CAPACITY_S = 60
# A gap of more pieces than this is not filled with silence: the sender has started anew.
FILLED_GAP_PIECES = 5


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

    def __init__(self, prebuffer_chunks: int = 1) -> None:
        """Make an empty queue.

        Args:
            prebuffer_chunks: chunks of a turn that must be there before it starts to sound.
        """
        self._prebuffer_samples = prebuffer_chunks * CHUNK_SAMPLES
        self._turns: deque[_Turn] = deque()
        self._aborted_turn = 0
        self._lock = threading.Lock()
        self._counts = {'speech_pieces_lost': 0, 'speech_underruns': 0, 'speech_refused': 0}

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
                size = turn.samples.size
                if turn.complete:
                    if size <= CHUNK_SAMPLES:
                        self._turns.popleft()
                        padded = np.zeros(CHUNK_SAMPLES, np.int16)
                        padded[:size] = turn.samples
                        return SpeechChunk(padded, turn.turn_id, True)
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

    def abort(self, turn_id: int) -> None:
        """Drop what is unsaid of ``turn_id`` and of all before it, now and when it comes late."""
        with self._lock:
            self._aborted_turn = max(self._aborted_turn, turn_id)
            self._turns = deque(turn for turn in self._turns
                                if turn.turn_id > self._aborted_turn)

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
