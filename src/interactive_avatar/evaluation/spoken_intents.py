# SPDX-License-Identifier: Apache-2.0
"""How well spoken sentences are understood: synthesised, heard by the avatar's own ear, scored.

The sound goes through `perception.Listener` as in a conversation, endpointing included, except
that recognition takes no time: a sentence that is cut in two at a pause shows as `cut`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.speakers import available, read, speaker
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.perception import Final as Heard
from interactive_avatar.perception import Listener, ListenerOptions
from interactive_avatar.reasoning.accuracy import Accuracy, Row, measure

BLOCK_SAMPLES: Final = SAMPLE_RATE_HZ // 25
SILENCE_S: Final = 1.2
# A quiet room: microphones are never digitally silent.
ROOM_LEVEL: Final = 12.0
WORKER_PATIENCE_S: Final = 30.0


def sample_rows(rows: Sequence[Row], count: int, seed: int = 0) -> list[Row]:
    """A sample in which every intent keeps its share, in the file's order; all if count is 0."""
    if not count or count >= len(rows):
        return list(rows)
    rng = random.Random(seed)
    by_intent: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_intent.setdefault(row.intent, []).append(number)
    chosen: list[int] = []
    # The remainder of each share is carried on, so that the sizes add up.
    owed = 0.0
    for numbers in by_intent.values():
        owed += count * len(numbers) / len(rows)
        take = min(len(numbers), round(owed))
        owed -= take
        chosen += rng.sample(numbers, take)
    return [rows[number] for number in sorted(chosen)]


def hear(listener: Listener, samples: NDArray[np.int16], start_ns: int,
         room: np.random.Generator) -> tuple[list[Heard], int]:
    """Say one sentence to a listener, in a quiet room.

    Returns:
        What was heard, and the stamp after the silence that follows.
    """
    line = np.concatenate([samples, np.zeros(int(SILENCE_S * SAMPLE_RATE_HZ), np.int16)])
    line = line[:line.size // BLOCK_SAMPLES * BLOCK_SAMPLES]
    noisy = np.clip(line + room.normal(0.0, ROOM_LEVEL, line.size), -32768, 32767)
    sound = noisy.astype(np.int16)
    heard: list[Heard] = []
    for at in range(0, sound.size, BLOCK_SAMPLES):
        stamp_ns = start_ns + at * 1_000_000_000 // SAMPLE_RATE_HZ
        events = [*listener.push(sound[at:at + BLOCK_SAMPLES], stamp_ns),
                  *listener.wait(WORKER_PATIENCE_S)]
        heard += [event for event in events if isinstance(event, Heard)]
    return heard, start_ns + sound.size * 1_000_000_000 // SAMPLE_RATE_HZ


def run(rows: Sequence[Row], understand: Callable[[str], Any], count: int = 0,
        names: Sequence[str] = (), tell: Callable[[str], None] = print,
        options: ListenerOptions | None = None) -> tuple[dict[str, Any], Accuracy]:
    """Let each of two voices say a sample of the sentences, and score what is understood.

    Args:
        rows: labelled sentences.
        understand: of the reasoner.
        count: size of the sample; 0 for all.
        names: of the speakers; the first two that work if empty.
        tell: called with a line of progress now and then.
        options: of the listener.

    Returns:
        Figures for JSON, and the accuracy with what was missed (its rows hold what was heard).

    Raises:
        SpeakerMissing: if too few voices are installed.
    """
    voices = [speaker(name) for name in names] or available(2)
    sample = sample_rows(rows, count)
    listener = Listener(options or ListenerOptions(partial_interval_ms=0))
    room = np.random.default_rng(0)
    heard_rows: list[Row] = []
    errors: dict[str, list[float]] = {voice.name: [] for voice in voices}
    cut = deaf = 0
    now_ns = 1_000_000_000
    try:
        for voice in voices:
            texts = [row.utterance for row in sample]
            for number, (row, samples) in enumerate(zip(sample, read([voice], texts),
                                                        strict=True), 1):
                finals, now_ns = hear(listener, samples, now_ns, room)
                words = ' '.join(final.text for final in finals if final.text)
                cut += len(finals) > 1
                deaf += not words
                errors[voice.name].append(metrics.word_error_rate(row.utterance, words))
                heard_rows.append(Row(words or '(nothing)', row.intent, row.slots))
                if number % 50 == 0:
                    tell(f'{voice.name}: {number} of {len(sample)}')
    finally:
        listener.close()
    accuracy = measure(heard_rows, understand)
    half = len(sample)
    figures = accuracy.report() | {
        'voices': {voice.name: {
            'accuracy': round(measure(heard_rows[at * half:(at + 1) * half],
                                      understand).accuracy, 4),
            'word_error_rate': round(float(np.mean(errors[voice.name])), 4)}
            for at, voice in enumerate(voices)},
        'cut_in_two': cut, 'nothing_heard': deaf}
    return figures, accuracy
