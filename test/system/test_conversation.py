# SPDX-License-Identifier: Apache-2.0
"""A whole conversation on the real graph: said, typed, interrupted, a changed world, a goodbye.

The bag of one such run is the fixture test/data/conversation (see its README); it is read here as
the fresh one is.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

from interactive_avatar.evaluation.bag import Recording, read_bag
from interactive_avatar.evaluation.demo import UTTERANCES, run_client
from interactive_avatar.graph import start_graph

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / 'test' / 'data' / 'conversation'
MODEL = ROOT / 'models' / 'compact'
NAMESPACE = 'avatar'
DOMAIN = 103
STABLE, LISTENING, SPEAKING = 0, 1, 3
SCRIPT: list[dict[str, Any]] = [
    {'name': 'comes', 'text': '', 'intent': 'greeting', 'presence': True},
    {'name': 'greeting', 'text': 'Hello there, nice to meet you!', 'intent': 'greeting'},
    {'name': 'name', 'text': 'My name is Ada.', 'intent': 'introduce_self', 'typed': True},
    {'name': 'identity', 'text': 'What is your name?', 'intent': 'ask_name'},
    {'name': 'glasses', 'text': 'Put on your glasses, please.', 'intent': 'wear'},
    {'name': 'time', 'text': 'What time is it?', 'intent': 'ask_time', 'typed': True},
    {'name': 'capability', 'text': 'What can you do?', 'intent': 'ask_capability'},
    {'name': 'nod', 'text': 'Please nod your head.', 'intent': 'nod', 'interrupts': 1.0},
    {'name': 'remove', 'text': 'Take off your glasses.', 'intent': 'remove', 'typed': True},
    {'name': 'france', 'text': 'What is the capital of France?', 'intent': 'out_of_scope',
     'typed': True},
    {'name': 'thanks', 'text': 'Thank you, Robin.', 'intent': 'thanks', 'typed': True},
    {'name': 'leaves', 'text': '', 'intent': 'farewell', 'presence': False},
]


def check(recording: Recording, log: list[dict[str, Any]]) -> None:
    """What must be true of the conversation, fresh or from the fixture."""
    assert [row['name'] for row in log] == [entry['name'] for entry in SCRIPT]
    assert all(row['answered'] for row in log), log
    intents = [event.fields['intent'] for event in recording.intents]
    assert intents == [entry['intent'] for entry in SCRIPT]
    turns = [event.fields['turn_id'] for event in recording.intents]
    assert turns == list(range(1, len(SCRIPT) + 1))
    speech = {event.fields['turn_id']: event.fields['speech'] for event in recording.intents}
    # The name is remembered; whoever leaves is seen off.
    assert any('Ada' in speech[turn] for turn in turns[3:])
    states = recording.states
    # The world: glasses from the fifth turn on, until they are taken off.
    wear, remove = turns[4], turns[8]
    for state in states:
        worn = 'glasses' in state.fields['stable_prompt']
        assert worn == (wear <= state.fields['turn_id'] < remove), state.fields
    # The interruption: from SPEAKING straight to LISTENING, and the turn never sounds to its end.
    broken = turns[6]
    after = next(b.fields['activity'] for a, b in itertools.pairwise(states)
                 if a.fields['turn_id'] == broken and a.fields['activity'] == SPEAKING
                 and b.fields['activity'] != SPEAKING)
    assert after == LISTENING
    assert not any(sound.last for sound in recording.speech if sound.turn_id == broken)
    others = [turn for turn in turns if speech[turn] and turn != broken]
    assert {sound.turn_id for sound in recording.speech if sound.last} == set(others)
    # Silence in STABLE at the end, with the stable prompt.
    assert states[-1].fields['phase'] == STABLE
    assert states[-1].fields['prompt'] == states[-1].fields['stable_prompt']


@pytest.mark.slow
def test_ten_turns_with_an_interruption_and_a_changed_world(tmp_path: Path) -> None:
    if not (MODEL / 'config.json').is_file():
        pytest.skip('models/compact is not there')
    user = tmp_path / 'user'
    user.mkdir()
    for entry in SCRIPT:
        if not entry.get('typed') and 'presence' not in entry:
            shutil.copy(UTTERANCES / f'{entry["name"]}.wav', user)
    (user / 'utterances.yaml').write_text(yaml.safe_dump({'utterances': SCRIPT}))
    said: list[str] = []
    with start_graph(nodes=('perception', 'reasoning', 'generator'), namespace=NAMESPACE,
                     log_folder=tmp_path / 'logs', tell=said.append,
                     environment={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)}) as graph:
        graph.wait_until_active(120.0)
        status = run_client(tmp_path, graph.environment, NAMESPACE, 120.0, said.append, user,
                            pictures=False, pause_s=0.5)
        assert status == 0, said
    check(read_bag(tmp_path / 'bag', NAMESPACE),
          json.loads((tmp_path / 'said.json').read_text()))


def test_the_recorded_conversation_is_as_it_should_be() -> None:
    size = sum(path.stat().st_size for path in FIXTURE.rglob('*') if path.is_file())
    assert size < 2_000_000
    check(read_bag(FIXTURE / 'bag', NAMESPACE),
          json.loads((FIXTURE / 'said.json').read_text()))
