# SPDX-License-Identifier: Apache-2.0
"""Replay in lock step: the same pictures and sound each time, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
from interactive_avatar.evaluation.bag import NS_PER_S, BagWriter, Recording, read_bag
from interactive_avatar.evaluation.session import measure
from interactive_avatar.generator.prompts import WorldState
from interactive_avatar.nodes import lockstep
from interactive_avatar.nodes.lockstep import (
    Lockstep,
    LockstepError,
    load_settings,
    what_the_user_does,
)
from interactive_avatar.nodes.pacer import FADE_SAMPLES, Muting
from interactive_avatar.nodes.speech_queue import SpeechQueue
from interactive_avatar.reasoning import Activity, Phase, State

ROOT = Path(__file__).parents[2]
SAID = ROOT / 'test' / 'data' / 'perception' / 'what_is_your_name.wav'
CONFIG = ROOT / 'config' / 'avatar.yaml'
T0_NS = 1_700_000_000 * NS_PER_S
BLOCK = 1280


def user_bag(path: Path, seconds: float = 3.0) -> Path:
    """A bag of a user alone: one spoken sentence, then a typed one."""
    from interactive_avatar.media.audio import read_wav

    spoken = np.concatenate([np.zeros(8000, np.int16), read_wav(SAID),
                             np.zeros(int(seconds * 16000), np.int16)])
    with BagWriter(path) as writer:
        types = writer.typestore.types
        sound, text = 'avatar_bringup/msg/AudioChunk', 'std_msgs/msg/String'
        writer.add_topic('/avatar/user/audio', sound)
        writer.add_topic('/avatar/user/text', text)
        # Marks the bag as an avatar's.
        writer.add_topic('/avatar/audio', sound)
        for index in range(spoken.size // BLOCK):
            stamp_ns = T0_NS + index * BLOCK * NS_PER_S // 16000
            header = types['std_msgs/msg/Header'](
                types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, NS_PER_S)), 'user')
            piece = spoken[index * BLOCK:(index + 1) * BLOCK].astype('<i2').view(np.uint8)
            writer.write_message('/avatar/user/audio', stamp_ns + 80_000_000, types[sound](
                header, 0, index, 16000, 1, 'S16LE', False, piece))
        writer.write_message('/avatar/user/text', T0_NS + spoken.size * NS_PER_S // 16000,
                             types[text]('please nod'))
    return path


def replayed(bag: Path, out: Path, seed: int, threads: int) -> dict[str, object]:
    """Replay in a process of its own, as `avatar replay` does."""
    done = subprocess.run(
        [sys.executable, '-m', 'interactive_avatar.nodes.lockstep', str(bag), '--out', str(out),
         '--digests', str(out) + '.json', '--seed', str(seed), '--overrides',
         json.dumps({'generator.threads': threads, 'reasoning.voice': 'piper'})],
        capture_output=True, text=True, cwd=ROOT, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(Path(str(out) + '.json').read_text())
    return found


@pytest.mark.slow
def test_the_same_bag_gives_the_same_pictures_sound_and_report(tmp_path: Path) -> None:
    pytest.importorskip('piper', reason='piper-tts is not installed')
    bag = user_bag(tmp_path / 'user')
    # The second run shares the processor with a busy loop, and has another number of threads.
    first = replayed(bag, tmp_path / 'first', 0, threads=2)
    hog = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        second = replayed(bag, tmp_path / 'second', 0, threads=1)
    finally:
        hog.kill()
        hog.wait()
    assert first['chunk_digests'] == second['chunk_digests']
    assert first['audio_sha256'] == second['audio_sha256']
    reports = [measure(read_bag(tmp_path / name)) for name in ('first', 'second')]
    for report in reports:
        report.pop('bag')
        report['recorded'].pop('threads')
    assert reports[0] == reports[1]
    turns = reports[0]['turns']
    assert turns[0]['intents'][0] == 'ask_name' and turns[0]['answer_s'] > 0.5
    assert 0.3 < turns[0]['decision_latency_s'] < 2.0
    assert any(event.fields['intent'] == 'nod' for event in read_bag(tmp_path / 'first').intents)
    assert reports[0]['stream']['audio']['lost'] == 0


def test_settings_come_from_the_parameter_file_and_overrides() -> None:
    settings = load_settings(CONFIG, {'generator.seed': 7, 'web.port': 1}, 3, 0.2)
    assert settings.generator.seed == 7 and settings.seed == 3
    assert settings.reasoning.reasoner == 'embedded'


@pytest.mark.parametrize('overrides, words', [
    ({'reasoning.reasoner': 'llm'}, 'does not answer the same twice'),
    ({'generator.sed': 1}, "generator has no parameter 'sed'"),
    ({'display.x': 1}, "'display.x' names no part"),
])
def test_what_cannot_be_replayed_is_refused(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(LockstepError, match=words):
        load_settings(CONFIG, overrides, 0, 0.4)


def test_a_session_without_a_user_is_refused(tmp_path: Path) -> None:
    settings = load_settings(CONFIG, {}, 0, 0.4)
    with pytest.raises(LockstepError, match='holds nothing of a user'):
        lockstep.replay(Recording(tmp_path / 'x', '/avatar/'), settings, tmp_path / 'out')


def test_the_users_part_is_in_order_of_time(tmp_path: Path) -> None:
    items = what_the_user_does(read_bag(user_bag(tmp_path / 'user')))
    assert [at for at, _, _ in items] == sorted(at for at, _, _ in items)
    assert {kind for _, kind, _ in items} == {0, 1}


def test_a_typed_line_ends_the_turn_as_in_the_live_graph() -> None:
    queue, muting, loud = SpeechQueue(), Muting(), np.full(2560, 1000, np.int16)
    parts = SimpleNamespace(_queue=queue, _muting=muting, _prompt='', _next_prompt='')
    for turn_id in (1, 2):
        queue.push(turn_id, 0, loud, last=False)
    Lockstep._follow(cast(Lockstep, parts), State(
        Phase.STABLE, Activity.THINKING, 1, '', '', WorldState()), '')
    assert queue.take().turn_id == 2
    assert not muting.audible(loud, 1)[FADE_SAMPLES:].any() and muting.audible(loud, 2) is loud


def test_muting_fades_once_and_lets_later_turns_pass() -> None:
    muting, loud = Muting(), np.full(2560, 1000, np.int16)
    assert muting.audible(loud, 1) is loud
    muting.mute(1)
    faded = muting.audible(loud, 1)
    assert faded[0] == 1000 and not faded[FADE_SAMPLES:].any()
    assert not muting.audible(loud, 1).any()
    assert muting.audible(loud, 2) is loud
