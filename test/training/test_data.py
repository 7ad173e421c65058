# SPDX-License-Identifier: Apache-2.0
"""What a shard knows of its clips: references as at run time, and what prompts leave out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import toy

from interactive_avatar.generator.prompts import (
    WorldState,
    action_prompt,
    after,
    prompt_id,
    prompt_table,
    stable_prompt,
)
from interactive_avatar.training import data
from interactive_avatar.training.data import (
    BARE_REFERENCES,
    REFERENCES_PER_CLIP,
    Shard,
    ShardOptions,
    draw_windows,
    reference_stills,
    told,
)
from interactive_avatar.training.performances import Performance
from interactive_avatar.training.probe import fit_probe
from interactive_avatar.training.reader import MouthReader

CHUNKS = 20
BARE = WorldState()
GLASSES = after('wear', BARE, object='glasses')


def performance(worn_from: int = 0, prompts: tuple[str, ...] = (stable_prompt(GLASSES),),
                away: slice = slice(0, 0)) -> Performance:
    """Somebody with glasses from a chunk on; prompts share the chunks evenly."""
    n = 4 * CHUNKS
    units = np.full((n, 52), 0.25, np.float32)
    head = np.full((n, 6), 0.01, np.float32)
    head[away, 3] = 0.7
    glasses = np.zeros(n, np.float32)
    glasses[4 * worn_from:] = 1.0
    ids = np.repeat([prompt_id(text) for text in prompts], CHUNKS // len(prompts))
    return Performance(0, 'train', units, head, glasses, np.zeros(n, np.float32),
                       np.zeros((4 * n, 64), np.uint8), np.zeros(n, np.float32),
                       ids.astype(np.int32), tuple(prompt.text for prompt in prompt_table()))


def test_a_prompt_tells_what_is_worn_by_its_world_or_its_action() -> None:
    named = told(performance(worn_from=2, prompts=(
        stable_prompt(BARE), action_prompt('wear', BARE, object='glasses'),
        stable_prompt(GLASSES), stable_prompt(BARE))))
    assert named[:2].all() and not named[2:5].any()  # worn, and not named
    assert named[5:15].all() and not named[15:].any()
    hat = after('wear', BARE, object='hat')
    assert not told(performance(prompts=(stable_prompt(hat),))).any()


def test_most_references_show_nothing_worn_and_the_first_is_at_rest() -> None:
    units, head, glasses, hat = reference_stills(performance(), seed=3)
    assert not units[0].any() and not head[0].any()
    assert (units[1:] == 0.25).all()
    assert glasses.tolist() == [0.0] * BARE_REFERENCES + [1.0] * (
        REFERENCES_PER_CLIP - BARE_REFERENCES)
    assert not hat.any()


def test_references_are_of_moments_in_view() -> None:
    _, head, _, _ = reference_stills(performance(away=slice(0, 79)), seed=3)
    assert (head[1:, 3] == np.float32(0.01)).all()
    with pytest.raises(ValueError, match='out of view in all 80 frames'):
        reference_stills(performance(away=slice(0, 80)), seed=3)


class Slate:
    """Stands for the renderer: pictures whose first pixel says what was asked for."""

    def __init__(self, people: Any, size: int, device_index: int) -> None:
        self._size = size

    def render(self, identity: int, units: np.ndarray, head: np.ndarray, glasses: np.ndarray,
               hat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frames = np.zeros((len(units), self._size, self._size, 3), np.uint8)
        frames[:, 0, 0, 0], frames[:, 0, 0, 1] = 100 * glasses, 100 * units[:, 0]
        return frames, np.arange(len(units), dtype=np.float32)[:, None, None] * np.ones((3, 2),
                                                                                       np.float32)

    def close(self) -> None:
        pass


def test_a_shard_keeps_its_stills_and_their_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, 'Renderer', Slate)
    monkeypatch.setattr(data, 'People', lambda path: [0])
    monkeypatch.setattr(data, 'compose_many', lambda *args: [performance()] * 2)
    shard = Shard.render(ShardOptions(clips=2, recombine=False), toy.TINY, Path('people'),
                         Path('speech'), toy.CPU, say=lambda text: None)
    assert shard.stills is not None and shard.still_marks is not None and shard.marks is not None
    assert shard.stills[:, :, 0, 0, 0].tolist() == [[0, 0, 0, 0, 100, 100]] * 2
    assert shard.still_marks[0, :, 0, 0].tolist() == [80.0 + k for k in range(6)]
    assert shard.marks.shape == (2, 80, 3, 2)
    a = toy.TINY.autoencoder

    def encode(frames: torch.Tensor) -> torch.Tensor:
        """[B, 4, H, W, 3] -> a latent that holds what the first frame's first pixel says."""
        value = frames[:, 0, 0, 0, 0].float()[:, None, None, None]
        return value.expand(-1, a.latent_channels, a.latent_px, a.latent_px)

    shard.encode(encode)
    assert shard.references is not None and shard.pictures is not None
    assert shard.references[1, :, 0, 0, 0].tolist() == [0.0] * 4 + [100.0] * 2
    assert shard.pictures[0, 0, 0].tolist() == [0, 0, 0]
    shard.drop_frames()
    assert shard.stills is None
    kept = Shard.of([shard.state()], toy.TINY, toy.CPU, 0)
    assert torch.equal(kept.told, shard.told) and kept.told.all()


def test_windows_that_are_not_told_have_all_of_their_past() -> None:
    shard = toy.shard(clips=2, chunks=60)
    shard.told[0], shard.told[1] = True, False
    start, count, tokens = toy.TINY.cache_layout['long']
    long = slice(start, start + count * tokens)
    for clip in (0, 1):
        hidden = []
        for _ in range(20):
            batch = draw_windows(shard, 4, 5, at=(torch.full((4,), clip), torch.full((4,), 50)))
            assert batch.told.tolist() == [clip == 0] * 4
            hidden.append((batch.mask[:, 0, long] < 0).any(1))
        assert bool(torch.stack(hidden).any()) == (clip == 0)


def test_an_empty_room_has_no_lips_to_be_read() -> None:
    """Neither reading's loss asks for what one who is out of view does."""
    data = toy.shard(clips=2, chunks=40)
    data.in_view[0, 8:12] = False
    seen = data.seen(torch.tensor([0, 1]), torch.tensor([1, 1]), 3)
    assert seen.tolist() == [[True, False, True], [True, True, True]]
    reader = MouthReader(toy.TINY)
    reading = fit_probe(data, chunks=200)
    made = data.latents[:, 1:4].float().clone().requires_grad_()
    marks = data.chunk_marks(torch.tensor([0, 1]), torch.tensor([1, 1]), 3)
    losses = []
    for asked in (0.0, 5.0):
        torch.manual_seed(0)
        units, probe_units = torch.rand(2, 3, 4, 16), torch.rand(2, 3, 4, 4)
        units[0, 1] += asked
        probe_units[0, 1] += asked
        read = reader(made.flatten(0, 1), data.references[:, 0].float().repeat_interleave(
            3, 0)).unflatten(0, (2, 3))
        losses.append(reader.loss(read, units, seen) + reading.loss(
            made.flatten(0, 1), marks.flatten(0, 1), probe_units.flatten(0, 1), seen.flatten()))
    assert torch.equal(losses[0], losses[1])
    losses[0].backward()
    assert not made.grad[0, 1].any() and made.grad[0, 0].any() and made.grad[1, 1].any()
