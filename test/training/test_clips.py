# SPDX-License-Identifier: Apache-2.0
"""The folder of clips that a training stage takes up while it grows."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import toy

from interactive_avatar.generator.autoencoder import as_input
from interactive_avatar.generator.networks import Generator
from interactive_avatar.training import clips
from interactive_avatar.training.clips import ClipFolder, predict_twins, require_encoder
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import ShardOptions


def write(folder: Path, seed: int, count: int, chunks: int = 60) -> torch.Tensor:
    state = toy.shard(count, chunks, seed).state()
    torch.save(state, folder / f'clips{seed:09d}.pt')
    return state['latents']


def folder_of(path: Path, rank: int = 0, world: int = 1) -> ClipFolder:
    return ClipFolder(path, Process(rank, world, toy.CPU), toy.TINY, say=lambda text: None)


def test_clips_that_come_later_are_taken_between_steps(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path, 1, 2)
    folder = folder_of(tmp_path)
    shard = folder.first(seed=0, patience_s=0.0)
    assert torch.equal(shard.latents, first)
    later = write(tmp_path, 2, 3)
    folder.poll()
    assert len(shard.mel) == 2  # looked a moment ago
    monkeypatch.setattr(clips, 'LOOK_AGAIN_S', 0.0)
    folder.poll()
    folder.poll()
    assert torch.equal(shard.latents, torch.cat([first, later]))
    assert {len(value) for value in shard.state().values()} == {5}


def test_twins_are_blended_into_the_first_clips_alone(monkeypatch: pytest.MonkeyPatch,
                                                      tmp_path: Path) -> None:
    generator = Generator(toy.TINY)
    data = toy.shard(clips=4, chunks=10)
    side = toy.TINY.autoencoder.picture_px
    data.performances = [SimpleNamespace(identity=number, units=None, head=None, glasses=None,
                                         hat=None) for number in range(4)]
    seeds: list[object] = []

    class Looks:
        def __init__(self, path: object) -> None:
            seeds.append(path)

        def recombined(self, seed: int) -> Looks:
            seeds.append(seed)
            return self

        with_other_looks = recombined

    class Painter:
        def __init__(self, population: object, size: int, device_index: int) -> None:
            assert isinstance(population, Looks) and size == side

        def render(self, identity: int, *play: object) -> tuple[np.ndarray, None]:
            return np.full((40, side, side, 3), 60 * identity, np.uint8), None

        def close(self) -> None:
            seeds.append('closed')

    renderer = ModuleType('renderer')
    renderer.Renderer = Painter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, 'interactive_avatar.training.render.renderer', renderer)
    monkeypatch.setattr(clips, 'People', Looks)
    people = tmp_path / 'people.npz'
    predict_twins(generator, data, ShardOptions(first_seed=7), people, toy.ALONE, 2)
    assert seeds == [people, 7, 8, 'closed']
    assert data.predicted is not None and data.latents is not None
    assert torch.equal(data.predicted[2:], data.latents[2:])
    for number in range(2):
        with torch.no_grad():
            twin = generator.autoencoder.encode(as_input(torch.full(
                (1, 4, side, side, 3), 60 * number, dtype=torch.uint8)))
        own = data.latents[number].float()
        much = (data.predicted[number].float() - own) / (twin - own)
        middle = much.median()
        assert clips.TWIN_LEAST - 0.01 < middle < 1.01
        assert ((much - middle).abs() < 0.05).float().mean() > 0.9


def test_processes_share_the_files(tmp_path: Path) -> None:
    made = [write(tmp_path, seed, 1) for seed in range(3)]
    even, odd = (folder_of(tmp_path, rank, 2).first(0, 0.0) for rank in range(2))
    assert torch.equal(even.latents, torch.cat([made[0], made[2]]))
    assert torch.equal(odd.latents, made[1])


def test_turns_do_not_shift_when_names_come_in_between(tmp_path: Path) -> None:
    made = {seed: write(tmp_path, seed, 1) for seed in (20, 30)}
    folders = [folder_of(tmp_path, rank, 2) for rank in range(2)]
    shards = [folder.first(0, 0.0) for folder in folders]
    for seed in (21, 10, 31):
        made[seed] = write(tmp_path, seed, 1)
        for folder in folders:
            folder.take()
    # In the order in which they were found: 20, 30, 21, 10, 31.
    assert torch.equal(shards[0].latents, torch.cat([made[20], made[21], made[31]]))
    assert torch.equal(shards[1].latents, torch.cat([made[30], made[10]]))
    again = folder_of(tmp_path).first(0, 0.0)
    assert torch.equal(again.latents, torch.cat([made[s] for s in (20, 30, 21, 10, 31)]))


def test_an_empty_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='avatar render --out'):
        folder_of(tmp_path).first(0, 0.0)


def test_clips_of_another_length_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    folder = folder_of(tmp_path)
    folder.first(0, 0.0)
    write(tmp_path, 2, 1, chunks=40)
    with pytest.raises(ValueError, match='--clip-seconds'):
        folder.take()


def test_weights_without_an_encoder_cannot_make_clips(tmp_path: Path) -> None:
    require_encoder(frozenset({'denoiser.out.weight'}), tmp_path)
    with pytest.raises(ValueError, match='encoder'):
        require_encoder(frozenset({'autoencoder.latent_std'}), tmp_path)
