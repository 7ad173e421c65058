# SPDX-License-Identifier: Apache-2.0
import numpy as np

from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ
from interactive_avatar.nodes.speech_queue import CAPACITY_S, Feed, SpeechQueue


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


def test_a_sender_that_counts_its_turns_anew_is_heard_after_a_restart() -> None:
    queue = SpeechQueue()
    queue.push(5, 0, tone(2 * CHUNK_SAMPLES), last=False)
    queue.abort(5)
    queue.push(6, 0, tone(CHUNK_SAMPLES), last=True)
    queue.restart()
    assert not queue.newest_turn
    queue.push(1, 0, tone(CHUNK_SAMPLES), last=True)
    assert queue.take().turn_id == 1


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


def test_a_live_voice_is_taken_at_once_but_for_its_reserve() -> None:
    queue = SpeechQueue(reserve_ms=20.0)
    queue.push(1, 0, tone(1000), last=False)
    first = queue.take()
    # Silence goes before it, and 320 samples stay.
    assert first.turn_id == 1 and (first.samples[-680:] == 7).all()
    assert not first.samples[:-680].any()
    queue.push(1, 1, tone(CHUNK_SAMPLES), last=False)
    assert (queue.take().samples == 7).all()
    # A hole of 100 samples delays what follows by them and a new reserve, not by a chunk.
    queue.push(1, 2, tone(CHUNK_SAMPLES - 420), last=False)
    late = queue.take()
    assert int((late.samples == 7).sum()) == CHUNK_SAMPLES - 420
    assert queue.figures()['speech_underruns'] == 1
    queue.push(1, 3, tone(100), last=True)
    end = queue.take()
    assert end.last and int((end.samples == 7).sum()) == 420


def test_a_live_voice_that_piled_up_catches_up_in_its_pauses() -> None:
    queue = SpeechQueue(reserve_ms=20.0)
    words = tone(CHUNK_SAMPLES, 3000)
    queue.push(1, 0, np.concatenate([words, tone(CHUNK_SAMPLES, 9), words]), last=False)
    sound = np.concatenate([queue.take().samples for _ in range(3)])
    # All of the words, and what may wait: the pause was cut by what is more than that.
    assert int((sound == 3000).sum()) == 2 * CHUNK_SAMPLES
    assert queue.figures()['speech_skipped_ms'] == 160


class Hearing:
    """Keeps one chunk, as the generator's stream does."""

    lookahead_chunks = 1

    def __init__(self) -> None:
        self.kept = np.zeros(CHUNK_SAMPLES, np.int16)

    def replace_silence(self, speech: np.ndarray) -> None:
        assert not self.kept.any()
        self.kept = speech

    def step(self, speech: np.ndarray) -> np.ndarray:
        out, self.kept = self.kept, speech
        return out


def play(pieces: int, chunks: int, last: bool = True) -> list[int]:
    """What is heard, chunk by chunk, of a turn that comes before the fourth."""
    queue, stream = SpeechQueue(), Hearing()
    feed = Feed(queue, stream)
    heard = []
    for at in range(chunks):
        if at == 3:
            for sequence in range(pieces):
                queue.push(1, sequence, tone(CHUNK_SAMPLES, sequence + 1),
                           last=last and sequence == pieces - 1)
        speech = feed.take()
        coming = feed.coming(speech)
        sound = stream.step(speech.samples)
        source = feed.heard(speech)
        assert source is coming
        assert bool(sound.any()) == bool(source.turn_id)
        heard.append(int(sound[0]))
    return heard


def test_a_turn_of_which_two_chunks_are_there_is_heard_without_the_lookahead() -> None:
    assert play(3, 8) == [0, 0, 0, 1, 2, 3, 0, 0]
    # One chunk alone waits for what comes after it.
    assert play(1, 6) == [0, 0, 0, 0, 1, 0]


def test_the_end_of_a_turn_is_not_replaced_by_the_next() -> None:
    queue, stream = SpeechQueue(), Hearing()
    feed = Feed(queue, stream)
    heard = []
    for at in range(10):
        if at in (2, 3):
            for sequence in range(2):
                queue.push(at, sequence, tone(CHUNK_SAMPLES, at), last=sequence == 1)
        speech = feed.take()
        heard.append(int(stream.step(speech.samples)[0]))
        feed.heard(speech)
    assert heard == [0, 0, 2, 2, 3, 3, 0, 0, 0, 0]
