# SPDX-License-Identifier: Apache-2.0
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from interactive_avatar.media.clock import CHUNK_NS, CHUNK_SAMPLES, FRAME_NS
from interactive_avatar.nodes.pacer import FADE_SAMPLES, Slot, StreamPacer, fade_out
from interactive_avatar.nodes.speech_queue import SpeechQueue


@dataclass
class PlainChunk:
    frames: np.ndarray
    audio: np.ndarray
    prompt: str


@dataclass
class PlainStream:
    """A stream of one grey level per chunk, one chunk of lookahead, slow or broken at will."""

    lookahead_chunks: int = 1
    overlaps: bool = False
    slow_at: dict[int, float] = field(default_factory=dict)
    fail_at: set[int] = field(default_factory=set)
    steps: int = 0
    prompt: str = 'rest'
    prepared: list[str] = field(default_factory=list)
    pending: np.ndarray = field(default_factory=lambda: np.zeros(CHUNK_SAMPLES, np.int16))

    def step(self, speech: np.ndarray, shown: Any = None) -> PlainChunk:
        number, self.steps = self.steps, self.steps + 1
        if number in self.fail_at:
            raise RuntimeError('broken graph')
        time.sleep(self.slow_at.get(number, 0.001))
        frames = np.zeros((4, 2, 2, 3), np.uint8)
        frames += np.array([number * 10 + i for i in range(4)], np.uint8)[:, None, None, None]
        sound, self.pending = self.pending, speech
        return PlainChunk(frames, sound, self.prompt)

    def submit(self, speech: np.ndarray, shown: Any = None) -> Future[PlainChunk]:
        made: Future[PlainChunk] = Future()
        made.set_result(self.step(speech, shown))
        return made

    def switch(self, prompt: str) -> None:
        self.prompt = prompt

    def prepare(self, prompt: str) -> None:
        self.prepared.append(prompt)


class Rig:
    """A pacer whose output is collected."""

    def __init__(self, stream: PlainStream, **arguments: float) -> None:
        self.stream = stream
        self.speech = SpeechQueue()
        self.slots: list[Slot] = []
        self.frames: list[tuple[float, int]] = []
        self.complaints: list[tuple[str, str]] = []
        self.enough = threading.Event()
        self.wanted = 0
        self.pacer = StreamPacer(
            stream, self.speech, self._slot,
            lambda frame, stamp_ns: self.frames.append((time.time(), stamp_ns)),
            now_ns=time.time_ns, complain=lambda key, text: self.complaints.append((key, text)),
            **arguments)

    def _slot(self, slot: Slot) -> None:
        self.slots.append(slot)
        if len(self.slots) >= self.wanted:
            self.enough.set()

    def run(self, slots: int) -> None:
        self.wanted = slots
        self.pacer.start()
        assert self.enough.wait(slots * 0.16 + 2), f'only {len(self.slots)} slots came'
        self.pacer.stop()


def test_slots_follow_the_media_clock_and_frames_come_at_their_time() -> None:
    rig = Rig(PlainStream())
    rig.run(4)
    stamps = [slot.stamp_ns for slot in rig.slots]
    assert set(np.diff(stamps)) == {CHUNK_NS}
    assert [slot.index for slot in rig.slots] == [0, 1, 2, 3]
    assert set(np.diff([stamp for _, stamp in rig.frames])) == {FRAME_NS}
    # Generous, as a test machine may be busy.
    lateness = [shown - stamp / 1e9 for shown, stamp in rig.frames]
    assert min(lateness) > -0.005 and np.median(lateness) < 0.04
    assert not rig.complaints


def test_speech_comes_out_with_its_turn_after_the_lookahead() -> None:
    rig = Rig(PlainStream())
    rig.speech.push(5, 0, np.full(CHUNK_SAMPLES, 3, np.int16), last=True)
    rig.run(4)
    spoken = [slot for slot in rig.slots if slot.audio.any()]
    assert [(slot.index, slot.turn_id, slot.last) for slot in spoken] == [(1, 5, True)]


def test_a_late_chunk_holds_the_last_frame_once_and_takes_the_next_slot() -> None:
    rig = Rig(PlainStream(slow_at={2: 0.30}), lead_ms=20.0, budget_ms=20.0)
    rig.run(6)
    repeated = [slot.index for slot in rig.slots if slot.repeated]
    assert repeated == [2]
    held, before, after = rig.slots[2], rig.slots[1], rig.slots[3]
    assert (held.frames == before.frames[-1]).all() and not held.audio.any()
    assert after.frames[0, 0, 0, 0] == 20
    assert rig.pacer.figures()['chunks_late'] == 1
    assert rig.complaints and rig.complaints[0][0] == 'chunk_late'
    assert set(np.diff([slot.stamp_ns for slot in rig.slots])) == {CHUNK_NS}


def test_a_chunk_is_begun_so_long_before_it_is_handed_out() -> None:
    begun_s: list[float] = []

    class Noting(PlainStream):
        def step(self, speech: np.ndarray, shown: Any = None) -> PlainChunk:
            begun_s.append(time.monotonic())
            return super().step(speech, shown)

    rig = Rig(Noting(), lead_ms=10.0, ahead_ms=60.0)
    handed_s: list[float] = []
    rig.pacer._emit_slot = lambda slot: (handed_s.append(time.monotonic()), rig._slot(slot))
    rig.run(6)
    ahead_ms = 1000 * (np.array(handed_s[2:6]) - np.array(begun_s[2:6]))
    assert 40 < np.median(ahead_ms) < 90
    assert not [slot for slot in rig.slots if slot.repeated]


def test_what_is_shown_early_is_handed_out_before_the_step_ends_and_once() -> None:
    ended_s: list[float] = []

    class Early(PlainStream):
        def step(self, speech: np.ndarray, shown: Any = None) -> PlainChunk:
            chunk = super().step(speech)
            assert shown is not None
            shown(chunk)
            time.sleep(0.1)
            ended_s.append(time.monotonic())
            return chunk

    rig = Rig(Early(), lead_ms=10.0, budget_ms=60.0, ahead_ms=20.0)
    handed_s: list[float] = []
    rig.pacer._emit_slot = lambda slot: (handed_s.append(time.monotonic()), rig._slot(slot))
    rig.run(5)
    assert [slot.frames[0, 0, 0, 0] for slot in rig.slots] == [0, 10, 20, 30, 40]
    assert np.median(np.array(ended_s[1:5]) - np.array(handed_s[1:5])) > 0.05
    assert rig.pacer.figures()['shown_p95_ms'] < rig.pacer.figures()['chunk_p50_ms']


def test_a_failing_step_is_reported_and_the_stream_goes_on() -> None:
    rig = Rig(PlainStream(fail_at={1}))
    rig.run(4)
    assert ('step_failed', 'a chunk could not be made: RuntimeError: broken graph'
            ) in rig.complaints
    assert any(slot.frames[0, 0, 0, 0] == 20 for slot in rig.slots)


class OverlappingStream(PlainStream):
    """Takes ``first_s`` to answer and ``rest_s`` more for the pictures, one after the other."""

    def __init__(self, first_s: float, rest_s: float, lost_at: tuple[int, ...] = ()) -> None:
        super().__init__(overlaps=True)
        self.first_s, self.rest_s, self.lost_at = first_s, rest_s, lost_at
        self.slow_at = {}
        self.pool = ThreadPoolExecutor(1)
        self.outstanding: Future[PlainChunk] | None = None
        self.begun_s: list[float] = []

    def submit(self, speech: np.ndarray, shown: Any = None) -> Future[PlainChunk]:
        self.begun_s.append(time.monotonic())
        number = self.steps
        chunk = self.step(speech)
        time.sleep(self.first_s)
        if self.outstanding is not None:
            self.outstanding.exception()

        def decode() -> PlainChunk:
            time.sleep(self.rest_s)
            if number in self.lost_at:
                raise RuntimeError('pictures lost')
            return chunk

        self.outstanding = self.pool.submit(decode)
        return self.outstanding


def test_a_stream_that_overlaps_keeps_pace_with_chunks_of_more_than_their_time() -> None:
    """200 ms from speech to pictures, 120 ms from one chunk to the next: 160 ms is enough."""
    stream = OverlappingStream(0.08, 0.12)
    rig = Rig(stream)
    rig.run(12)
    assert [slot.frames[0, 0, 0, 0] for slot in rig.slots] == [10 * n for n in range(12)]
    assert not [slot for slot in rig.slots if slot.repeated]
    # A chunk is begun when the one before it is due, not earlier.
    due_s = np.array([slot.stamp_ns / 1e9 - 0.06 for slot in rig.slots[1:10]])
    offset_s = time.time() - time.monotonic()
    begun_s = np.array(stream.begun_s[2:11]) + offset_s
    assert np.abs(begun_s - due_s).max() < 0.05
    figures = rig.pacer.figures()
    assert 0.4 < figures['real_time_factor'] < 0.8 < figures['chunk_p50_ms'] / 160


def test_without_overlap_such_a_stream_falls_behind() -> None:
    rig = Rig(PlainStream(slow_at=dict.fromkeys(range(20), 0.2)))
    rig.run(12)
    assert [slot for slot in rig.slots if slot.repeated]


def test_after_a_late_chunk_one_more_is_made_ahead_and_only_once() -> None:
    stream = OverlappingStream(0.01, 0.01)
    stream.slow_at = {3: 0.3}
    rig = Rig(stream, lead_ms=20.0, budget_ms=20.0)
    rig.run(10)
    assert [slot.index for slot in rig.slots if slot.repeated] == [3]
    assert [slot.frames[0, 0, 0, 0] for slot in rig.slots if not slot.repeated] == [
        10 * n for n in range(9)]
    # Of the ten slots nine have been made, and one is ahead, unless the end came before its turn.
    assert stream.steps in (9, 10)


def test_pictures_that_are_lost_are_reported_and_the_sound_stays_with_its_turn() -> None:
    stream = OverlappingStream(0.01, 0.02, lost_at=(2,))
    rig = Rig(stream)
    for sequence in range(6):
        rig.speech.push(1, sequence, np.full(CHUNK_SAMPLES, sequence + 1, np.int16),
                        last=sequence == 5)
    rig.run(9)
    assert ('step_failed', 'a chunk could not be made: RuntimeError: pictures lost'
            ) in rig.complaints
    assert rig.pacer.figures()['steps_failed'] == 1
    heard = [(int(slot.audio[0]), slot.turn_id, slot.last) for slot in rig.slots
             if slot.turn_id]
    # The second piece went with its pictures; what follows has its turn, and its end is known.
    assert heard == [(1, 1, False), *((n, 1, n == 6) for n in (3, 4, 5, 6))]


def test_stopping_waits_for_pictures_on_their_way() -> None:
    stream = OverlappingStream(0.01, 0.1)
    rig = Rig(stream)
    rig.run(3)
    assert stream.outstanding is not None and stream.outstanding.done()


def test_switch_and_prepare_reach_the_stream() -> None:
    rig = Rig(PlainStream())
    rig.pacer.prepare('later')
    rig.pacer.switch('nodding')
    rig.run(3)
    assert rig.slots[0].prompt == 'nodding' and rig.stream.prepared == ['later']


def test_mute_silences_a_turn_that_is_on_its_way() -> None:
    rig = Rig(PlainStream())
    rig.speech.push(1, 0, np.full(8 * CHUNK_SAMPLES, 1000, np.int16), last=True)
    original = rig._slot

    def mute_at_third(slot: Slot) -> None:
        if slot.index == 2:
            rig.speech.abort(1)
            rig.pacer.mute(1)
        original(slot)

    rig.pacer._emit_slot = mute_at_third
    rig.run(6)
    heard = [int(np.abs(slot.audio).max()) for slot in rig.slots]
    assert heard[2] == 1000
    fading = rig.slots[3].audio
    assert fading[0] == 1000 and not fading[FADE_SAMPLES:].any()
    assert not any(heard[4:])


def test_a_turn_that_is_counted_anew_is_heard() -> None:
    rig = Rig(PlainStream())
    rig.pacer.mute(5)
    rig.pacer.unmute()
    rig.speech.push(1, 0, np.full(CHUNK_SAMPLES, 1000, np.int16), last=True)
    rig.run(4)
    assert [slot.turn_id for slot in rig.slots if slot.audio.any()] == [1]


def test_fade_out_ends_in_silence() -> None:
    faded = fade_out(np.full(CHUNK_SAMPLES, -2000, np.int16))
    assert faded[0] == -2000 and not faded[FADE_SAMPLES:].any()


def test_a_simulated_clock_sets_the_pace_at_any_rate_and_may_be_set() -> None:
    """At four times the speed 160 ms of the clock are 40 ms; then it is set ahead by a minute."""
    begin_s, shift_ns = time.monotonic(), [0]

    def now_ns() -> int:
        return int(1e18) + shift_ns[0] + int(4e9 * (time.monotonic() - begin_s))

    stream, slots, complaints = PlainStream(), [], []
    enough = threading.Event()

    def take(slot: Slot) -> None:
        slots.append((slot, now_ns()))
        if len(slots) == 8:
            shift_ns[0] = 60 * 10**9
        if len(slots) == 14:
            enough.set()

    pacer = StreamPacer(stream, SpeechQueue(), take, lambda *_: None, now_ns=now_ns,
                        simulated=True, complain=lambda key, _: complaints.append(key))
    pacer.start()
    assert enough.wait(5.0)
    pacer.stop()
    stamps = np.array([slot.stamp_ns for slot, _ in slots])
    steps = np.diff(stamps)
    # One jump of a minute; before and after it chunks follow one another without a gap.
    assert (steps == CHUNK_NS).sum() >= 11 and (steps > 59 * 10**9).sum() == 1
    assert 'clock_jump' in complaints
    assert [slot.index for slot, _ in slots] == list(range(14))
    # Stamps stay near the clock on both sides of the jump.
    assert all(abs(slot.stamp_ns - at_ns) < 10**9 for slot, at_ns in slots)


@pytest.mark.parametrize('shift_s', [3600, -3600])
def test_stamps_follow_a_clock_that_is_set(shift_s: int) -> None:
    shift_ns, slots, frames, complaints = [0], [], [], []
    enough = threading.Event()

    def now_ns() -> int:
        return time.time_ns() + shift_ns[0]

    def take(slot: Slot) -> None:
        slots.append((slot, now_ns()))
        if len(slots) == 4:
            shift_ns[0] = shift_s * 10**9
        if len(slots) == 8:
            enough.set()

    pacer = StreamPacer(PlainStream(), SpeechQueue(), take,
                        lambda _, stamp_ns: frames.append(stamp_ns), now_ns=now_ns,
                        complain=lambda key, _: complaints.append(key))
    pacer.start()
    assert enough.wait(5.0)
    pacer.stop()
    assert all(abs(slot.stamp_ns - at_ns) < 0.5e9 for slot, at_ns in slots)
    assert [slot.index for slot, _ in slots] == list(range(len(slots)))
    assert complaints.count('clock_jump') == 1
    # Pictures go by the stamps of their sound.
    of_slots = [slot.stamp_ns + at * FRAME_NS for slot, _ in slots for at in range(4)]
    assert len(frames) >= 24 and frames == of_slots[:len(frames)]
