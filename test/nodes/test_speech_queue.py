# SPDX-License-Identifier: Apache-2.0
import numpy as np

from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ
from interactive_avatar.nodes.speech_queue import CAPACITY_S, SpeechQueue


def tone(count: int, value: int = 7) -> np.ndarray:
    return np.full(count, value, np.int16)


def test_silence_when_nothing_is_said() -> None:
    chunk = SpeechQueue().take()
    assert chunk.samples.shape == (CHUNK_SAMPLES,) and not chunk.samples.any()
    assert chunk.turn_id == 0 and not chunk.last


def test_pieces_of_any_length_become_chunks_and_the_end_is_padded() -> None:
    queue = SpeechQueue()
    for sequence in range(4):
        queue.push(1, sequence, tone(1000), last=sequence == 3)
    first, second, third = queue.take(), queue.take(), queue.take()
    assert (first.samples == 7).all() and first.turn_id == 1 and not first.last
    assert int((second.samples == 7).sum()) == 4000 - CHUNK_SAMPLES
    assert second.last and second.turn_id == 1
    assert third.turn_id == 0


def test_a_turn_waits_for_its_prebuffer_and_then_underruns_are_counted() -> None:
    queue = SpeechQueue(prebuffer_chunks=2)
    queue.push(1, 0, tone(CHUNK_SAMPLES), last=False)
    assert queue.take().turn_id == 0
    queue.push(1, 1, tone(CHUNK_SAMPLES), last=False)
    assert queue.take().turn_id == 1
    assert queue.take().turn_id == 1
    hole = queue.take()
    assert hole.turn_id == 1 and not hole.samples.any()
    assert queue.figures()['speech_underruns'] == 1


def test_a_lost_piece_is_filled_with_silence_and_told() -> None:
    queue = SpeechQueue()
    queue.push(1, 0, tone(CHUNK_SAMPLES), last=False)
    complaint = queue.push(1, 2, tone(CHUNK_SAMPLES), last=True)
    assert '1 piece(s) of speech lost' in complaint
    assert [bool(queue.take().samples.any()) for _ in range(3)] == [True, False, True]


def test_a_piece_that_comes_twice_is_dropped() -> None:
    queue = SpeechQueue()
    queue.push(1, 0, tone(10), last=False)
    assert 'twice or out of order' in queue.push(1, 0, tone(10), last=False)


def test_abort_drops_the_unsaid_and_what_comes_late_but_not_the_next_turn() -> None:
    queue = SpeechQueue()
    queue.push(3, 0, tone(9 * CHUNK_SAMPLES), last=False)
    assert queue.take().turn_id == 3
    queue.abort(3)
    queue.push(3, 1, tone(CHUNK_SAMPLES), last=True)
    assert queue.take().turn_id == 0
    queue.push(4, 0, tone(CHUNK_SAMPLES), last=True)
    assert queue.take().turn_id == 4


def test_a_turn_without_end_gives_way_to_the_next() -> None:
    queue = SpeechQueue()
    queue.push(1, 0, tone(100), last=False)
    queue.push(2, 0, tone(100), last=True)
    assert [queue.take().turn_id for _ in range(3)] == [1, 2, 0]


def test_too_much_is_refused() -> None:
    queue = SpeechQueue()
    block = tone(CAPACITY_S * SAMPLE_RATE_HZ)
    assert not queue.push(1, 0, block, last=False)
    assert 'ahead of the generator' in queue.push(1, 1, tone(1), last=False)


def test_an_empty_last_piece_ends_the_turn() -> None:
    queue = SpeechQueue()
    queue.push(1, 0, tone(CHUNK_SAMPLES), last=False)
    assert queue.take().turn_id == 1
    queue.push(1, 1, tone(0), last=True)
    ending = queue.take()
    assert ending.last and not ending.samples.any()
