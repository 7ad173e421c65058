# SPDX-License-Identifier: Apache-2.0
"""Each claim on streams and faces whose answers are known."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import ScriptedStream, held_out

from interactive_avatar.evaluation.model import (
    actions,
    blinks,
    frechet,
    hours,
    identity,
    lips,
    looks,
    recorded,
    retention,
    seams,
)
from interactive_avatar.evaluation.model.performances import Seen
from interactive_avatar.evaluation.model.play import Player, Setup, run
from interactive_avatar.generator.blinking import BlinkSchedule
from interactive_avatar.generator.prompts import action_prompt, stable_prompt

ITEMS = [held_out(f'person_{index}', seed=index) for index in range(4)]


def seen(index: int, lag: int = 0, away: float = 0.0) -> Seen:
    """A perfect rendition of a performance, its lips late by `lag`, its identity off by `away`."""
    item = ITEMS[index]
    identity_rows = np.zeros((8, 128))
    identity_rows[:, 0] = away
    change = np.where(np.arange(1, item.frames) % 4 == 0, 3.0, 2.0)
    return Seen(np.roll(item.mouth_open, lag).astype(np.float64) * 0.3, identity_rows,
                np.zeros(128), item.true_look, change,
                np.where(change == 3.0, 2.8, 2.0), np.full(item.frames, 0.3),
                np.zeros((3, 32, 32, 3), np.uint8))


def by_claim(result: Any) -> dict[str, Any]:
    return {row.claim: row for row in result.rows}


def test_lips_that_are_late_by_two_frames() -> None:
    rows = by_claim(lips.measure(ITEMS, [seen(i, lag=2) for i in range(4)]))
    fit = rows['lips follow speech: correlation']
    assert fit.figure.value > 0.99 and fit.met and fit.figure.n == 4
    assert fit.figure.low <= fit.figure.value <= fit.figure.high
    lag = rows['lips follow speech: lag']
    assert lag.figure.value == pytest.approx(80.0)
    assert lag.met is False
    assert lag.compared['true pictures'].value == 0.0
    assert rows['silence: lip motion over that in speech'].figure.value == pytest.approx(0.0)


def test_identity_is_a_share_of_frames() -> None:
    mixed = [seen(0, away=0.1), seen(1, away=0.2), seen(2, away=0.3), seen(3, away=0.7)]
    rows = by_claim(identity.measure(ITEMS, mixed))
    share = rows['who it is: frames with distance < 0.5']
    assert share.figure.value == pytest.approx(75.0)
    assert share.met is False
    assert share.compared['true pictures'].value == 100.0
    lost = identity.figures([np.array([0.1, np.nan, 0.9, np.nan])])
    assert lost['same'].value == pytest.approx(50.0)
    assert lost['faces'].value == pytest.approx(50.0)


def test_blinks_are_counted_and_held_against_those_told() -> None:
    performances = [seen(i) for i in range(4)]
    frames = performances[0].opening.size
    for one in performances[:2]:
        one.opening[10:14] = one.opening[40:44] = 0.05
    row, = blinks.measure(ITEMS, performances, True, 0).rows
    per_blink = 60.0 * 25 / (frames - 1)
    assert row.figure.value == pytest.approx(per_blink) and row.figure.n == 4
    assert set(row.compared) == {'as told'}
    nobody = blinks.measure(ITEMS, [seen(i) for i in range(4)], False, 0).rows[0]
    assert nobody.figure.value == 0.0 and nobody.met is False and nobody.compared == {}
    # The first chunk of a stream is never shown: it is what the lookahead takes.
    schedule = BlinkSchedule(3)
    starts = [chunk for chunk in range(1, 400) if schedule.phase(chunk) == 1]
    prompts = ['a person'] * starts[4]

    def count(prompts: list[str]) -> float:
        return blinks.told_per_minute(prompts, 3) * 4 * len(prompts) / (60 * 25)

    assert count(prompts) == pytest.approx(5)
    # Chunk 1 of the stream is the first that the first prompt is seen in.
    switched = [*prompts[:starts[2] - 2], *['another'] * (starts[4] - starts[2] + 2)]
    assert count(switched) == pytest.approx(4)


def test_seams_by_hand() -> None:
    result = seams.measure(ITEMS, [seen(i) for i in range(4)])
    assert result.rows[0].figure.value == pytest.approx(1.5)
    assert result.rows[0].met is False
    assert result.rows[1].figure.value == pytest.approx(1.4)
    assert result.detail['grey_levels_by_place'] == [2.0, 2.0, 2.0, 3.0]


def test_frechet_distance_of_gaussians_by_hand() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 3))
    # Means 2 apart in one direction, spreads 1 against 3 in another: 4 + (3 - 1)².
    b = rng.normal(size=(4000, 3)) * [1, 3, 1] + [2, 0, 0]
    assert frechet.distance(a, b) == pytest.approx(8.0, rel=0.06)
    assert frechet.distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_frechet_features_see_blur() -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    soft = gaussian_filter(sharp, (2, 2, 0))
    a, b = frechet.features(sharp), frechet.features(soft)
    assert a.shape == (frechet.FEATURES,)
    energies = frechet.FEATURES - 3 * frechet.GRID ** 2
    # The finest scale loses most.
    finest, coarsest = slice(0, energies // 3), slice(2 * energies // 3, energies)
    assert (a - b)[finest].mean() > 2 * (a - b)[coarsest].mean() > 0


def test_the_truth_is_at_the_floor_of_frechet() -> None:
    result = looks.measure(ITEMS, [seen(i) for i in range(4)])
    row = result.rows[0]
    assert row.figure.value == pytest.approx(0.0, abs=1e-6)
    assert row.compared['true pictures'].value > 0


def test_a_minute_is_a_minute_of_speech_and_silence() -> None:
    prompts, sound = hours.minute_of(ITEMS[0])
    assert len(prompts) == 375 and sound.size == 375 * 2560
    talk = np.array([prompt == action_prompt('talk', hours.WorldState()) for prompt in prompts])
    assert 0.1 < talk.mean() < 0.6
    assert talk[:25].all() and not talk[30:180].any()


def test_slopes_of_a_drift_and_of_noise() -> None:
    minutes = np.arange(600) / 60.0
    noise = np.random.default_rng(0).normal(0, 0.05, 600)
    drifting = hours.slopes(minutes, 0.3 + 0.02 * minutes + noise)
    assert drifting.per_minute == pytest.approx(0.02, abs=0.004)
    assert drifting.per_minute > 2 * drifting.standard_error
    still = hours.slopes(minutes, 0.3 + noise)
    assert abs(still.per_minute) < 3 * still.standard_error


def test_a_long_stream_goes_on_bit_for_bit_after_a_cut() -> None:
    from interactive_avatar.evaluation.held_out import SHIPPED_SET, load_set

    item = load_set(SHIPPED_SET, 1)[0]
    player = Player(Setup(levels=(1.0,)))
    prompts, sound = hours.minute_of(item)
    first, second = slice(0, 3), slice(3, 5)

    def play(stream: Any, part: slice) -> np.ndarray:
        return run(stream, prompts[part], sound[part.start * 2560:part.stop * 2560], lookahead=0)

    stream = player.stream(item.reference, prompts[0])
    play(stream, first)
    data = pickle.dumps(stream.snapshot())
    whole = play(stream, second)
    again = player.stream(item.reference, prompts[0])
    again.restore(pickle.loads(data))
    assert (play(again, second) == whole).all()


def test_words_of_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interactive_avatar.media.audio import write_wav

    folder = tmp_path / 'cards'
    folder.mkdir()
    (folder / 'cards.transcription').write_text('<s> ten of clubs  </s> (001)\nnot a line\n')
    write_wav(folder / '001.wav', np.ones(16000, np.int16))
    monkeypatch.setattr(recorded, 'POCKETSPHINX', tmp_path)
    monkeypatch.setattr(recorded, 'ASTERISK', tmp_path / 'none')
    clip, = recorded.human()
    assert (clip.name, clip.words, clip.samples.size) == ('cards 001', ['ten', 'of', 'clubs'],
                                                          16000)
    assert len(recorded.synthetic()) >= 6


def test_openness_needs_its_words() -> None:
    pytest.importorskip('pocketsphinx', reason='pocketsphinx is not installed (extra "train")')
    from interactive_avatar.training.speech.align import Aligner

    aligner = Aligner()
    clip = recorded.synthetic()[0]
    asked = recorded.openness(clip, aligner)
    assert asked is not None
    assert asked.size == clip.samples.size // 640
    assert 0.1 < asked.max() < 1.0
    # "… nice to meet you": the lips touch at the m and open wide before and after.
    closed = 10 + int(asked[10:-10].argmin())
    assert asked[closed] < 0.06 and asked[:closed].max() > 0.2 and asked[closed:].max() > 0.2
    assert recorded.openness(recorded.Clip('x', clip.samples, ['xyzzyq']), aligner) is None


def test_absence_is_told_in_the_prompts_of_the_given_world() -> None:
    stream = ScriptedStream('rest')
    left, back = retention.absence(stream, retention.WorldState(), 8.0)
    assert len(left) == 4 * 60 and len(back) == 4 * 30
    assert not any('glasses' in prompt or 'hat' in prompt for prompt in stream.prompts)
    told = ScriptedStream('rest')
    retention.absence(told, retention.WorldState(glasses=True), 8.0)
    assert all('glasses' in prompt for prompt in told.prompts)


def test_what_was_never_put_on_does_not_count_as_kept_or_lost() -> None:
    stories = [retention.Kept(f'p{i}', 'hat', False, put, put and still, True, put and after, put)
               for i, (put, still, after) in enumerate([
                   (True, True, True), (True, True, False), (True, False, False),
                   (False, False, False)])]
    bare = [retention.Unworn('a', (), (), True, ()), retention.Unworn('c', (), (), True, ()),
            retention.Unworn('b', (), (), True, ('hat',)),
            retention.Unworn('d', (), ('hat',), True, ('hat',)),
            retention.Unworn('e', (), (), False, ('glasses',)),
            retention.Unworn('f', ('hat',), ('hat',), True, ('hat',))]
    rows = by_claim(retention.summarise(stories, bare, retention.Timeline()))
    grown = rows['wears nothing, and nothing is on at 70 s']
    assert (grown.figure.value, grown.figure.n, grown.met) == (pytest.approx(80.0), 5, False)
    nothing = rows['wore nothing, and nothing is on after 8 s out of view']
    assert (nothing.figure.value, nothing.figure.n, nothing.met) == (
        pytest.approx(200 / 3), 3, False)
    assert rows['objects put on when prompted'].figure.value == pytest.approx(75.0)
    kept = rows['what happened stays: put on at 10 s, still on at 70 s']
    assert (kept.figure.value, kept.figure.n, kept.met) == (pytest.approx(200 / 3), 3, False)
    away = rows['on after 8 s out of view, not mentioned']
    assert (away.figure.value, away.figure.n) == (pytest.approx(50.0), 2)


def test_a_trial_is_rest_then_action_then_the_world_after() -> None:
    trial = next(trial for trial in actions.TRIALS if trial.name == 'wear glasses')
    stream = ScriptedStream('x')
    frames = actions.perform(stream, trial, 0)
    assert len(frames) == 72
    world = actions.WorldState()
    assert stream.prompts == [
        *[stable_prompt(world)] * 3, *[action_prompt('wear', world, object='glasses')] * 10,
        *[stable_prompt(actions.WorldState(glasses=True))] * 5]


def test_actions_are_counted_by_person_and_phrasing() -> None:
    outcomes = [actions.Outcome(person, name, variant, name == 'nod' or variant == 0)
                for person in ('a', 'b') for name in ('nod', 'smile') for variant in (0, 12, 13)]
    result = actions.summarise(outcomes)
    rows = by_claim(result)
    assert rows['actions carried out when prompted, all'].figure.value == pytest.approx(800 / 12)
    assert rows['actions: the worst one (smile)'].figure.value == pytest.approx(100 / 3)
    assert rows['actions under phrasings never trained on'].figure.value == pytest.approx(50.0)
    assert result.table is not None
    assert result.table[1][1][:4] == ['smile', '2 of 2', '0 of 2', '0 of 2']
    json.dumps(result.detail)


def test_words_of_writers_who_saw_no_others_are_counted_by_themselves() -> None:
    outcomes = [actions.Outcome('a', 'nod', variant, variant != 27) for variant in (0, 12, 26, 27)]
    result = actions.summarise(outcomes)
    rows = by_claim(result)
    assert rows['actions under phrasings never trained on'].figure.value == pytest.approx(100.0)
    fresh = rows['actions in words of a writer who had seen none of these']
    assert (fresh.figure.value, fresh.figure.n) == (pytest.approx(50.0), 2)
    assert result.table is not None
    header, lines = result.table
    cells = dict(zip(header, lines[0], strict=True))
    assert (cells['held-out 1'], cells['held-out 2']) == ('1 of 1', '–')
    assert (cells['fresh 1'], cells['fresh 2'], cells['fresh 3']) == ('1 of 1', '0 of 1', '–')
