# SPDX-License-Identifier: Apache-2.0
"""Many streams in one batch are what each would be alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY, encode_text, reference

from interactive_avatar.generator.backends.torch import TorchBackend
from interactive_avatar.generator.group import StreamGroup, StreamRefusedError
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.stream import AvatarStream
from interactive_avatar.media.clock import CHUNK_SAMPLES


@pytest.fixture
def group(model: Path) -> Iterator[StreamGroup]:
    made = StreamGroup(TorchBackend(ModelFiles.open(model), device='cpu', streams=3), encode_text,
                       budget_ms=1e6)
    yield made
    made.close()


def sound(seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(-8000, 8000, (count, CHUNK_SAMPLES)).astype(np.int16)


def test_joins_leaves_and_neighbours_change_nothing(model: Path, group: StreamGroup) -> None:
    alone = AvatarStream(TorchBackend(ModelFiles.open(model), device='cpu', streams=1),
                         reference(5), 'a person', encode_text, seed=7)
    blocks, others = sound(1, 44), sound(2, 44)
    member = group.join(reference(5), 'a person', seed=7)
    neighbour: AvatarStream | None = None
    for index, block in enumerate(blocks):
        if index in (3, 24):
            neighbour = group.join(reference(index), 'somebody else', seed=index)
        if index == 15 and neighbour is not None:
            group.leave(neighbour)
            neighbour = None
        if index == 30:
            alone.switch('a quite different person')
            member.switch('a quite different person')
        # The neighbour comes first, so that the batch's rows change places.
        speech = {neighbour: others[index]} if neighbour is not None else {}
        chunks = group.step({**speech, member: block})
        wanted = alone.step(block)
        difference = np.abs(chunks[member].frames.astype(int) - wanted.frames.astype(int))
        assert difference.mean() < 0.1, f'chunk {index}'
        np.testing.assert_array_equal(chunks[member].audio, wanted.audio)


def test_one_too_many_is_refused_and_the_others_go_on(group: StreamGroup) -> None:
    members = [group.join(reference(seed), 'a person') for seed in range(3)]
    with pytest.raises(StreamRefusedError, match='stream 4 is refused: all 3 places'):
        group.join(reference(9), 'a person')
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    assert len(group.step({member: silence for member in members})) == 3
    group.leave(members[1])
    assert len(group) == 2
    group.join(reference(9), 'a person')
    with pytest.raises(ValueError, match='not in the group'):
        group.leave(members[1])


def test_who_would_make_all_late_is_refused(group: StreamGroup) -> None:
    member = group.join(reference(), 'a person')
    group.step({member: np.zeros(CHUNK_SAMPLES, np.int16)})
    assert group.expected_ms(1) == 0.0  # the first step of a number says nothing about the next
    for _ in range(2):
        group.step({member: np.zeros(CHUNK_SAMPLES, np.int16)})
    taken_ms = group.expected_ms(1)
    assert taken_ms > 0
    group._budget_ms = 1.5 * taken_ms
    with pytest.raises(StreamRefusedError, match=f'{2 * taken_ms:.0f} ms'):
        group.join(reference(1), 'a person')


def test_bad_sound_stops_nobody(group: StreamGroup) -> None:
    good, bad = group.join(reference(1), 'a person'), group.join(reference(2), 'a person')
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    with pytest.raises(ValueError, match='float32'):
        group.step({good: silence,
                    bad: silence.astype(np.float32)})  # type: ignore[dict-item]
    chunks = group.step({good: silence, bad: silence})
    assert {chunk.index for chunk in chunks.values()} == {0}


def test_there_are_no_identities_without_a_model(group: StreamGroup) -> None:
    from interactive_avatar.generator.model import ModelError
    with pytest.raises(ModelError, match='give a picture'):
        group.join(None)
    assert TINY.autoencoder.picture_px == reference().shape[0]
