# SPDX-License-Identifier: Apache-2.0
"""The wan size learns from clips: what is trained, what is seen, what is drawn."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'generator' / 'wan'))

from wan_tiny import random_network

from interactive_avatar.generator.wan.cache import WanCache
from interactive_avatar.generator.wan.config import WAN_TINY
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.window import Context
from interactive_avatar.training import wan
from interactive_avatar.training.common import Process
from interactive_avatar.training.stage import Run
from interactive_avatar.training.wan_flow import (
    WanMemoryOptions,
    WanTeacherOptions,
    draw_history,
    train_wan_memory,
    train_wan_teacher,
)
from interactive_avatar.training.wan_rollout import WanTrainee, random_clips

# So small that more threads only wait for each other.
torch.set_num_threads(1)
CPU = torch.device('cpu')
ALONE = Process(0, 1, CPU)
FRAMES = 30


def changed(folder: Path, stage: str, network: WanTransformer, **options: object) -> set[str]:
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    clips, empty = random_clips(WAN_TINY, 2, FRAMES, CPU)
    run = Run(out=folder, state=folder, steps=3, accumulate=2, checkpoints=False)
    model = WanTrainee(network)
    if stage == 'teacher':
        train_wan_teacher(model, clips, empty, ALONE, run, WanTeacherOptions(
            blocks=2, peak_rate=1e-2, **options))  # type: ignore[arg-type]
    else:
        train_wan_memory(model, clips, empty, ALONE, run, WanMemoryOptions(peak_rate=1e-2))
    row = json.loads((folder / f'wan_{stage}.jsonl').read_text().splitlines()[-1])
    assert row['loss'] == row['loss'] and row['gradient'] > 0
    return {name for name, value in network.state_dict().items()
            if not torch.equal(value, before[name])}


def test_the_teacher_learns_sound_and_leaves_the_rest(tmp_path: Path) -> None:
    # From the start that imported weights have: the audio attention's output is zero.
    torch.manual_seed(0)
    moved = changed(tmp_path, 'teacher', WanTransformer(WAN_TINY))
    assert any('.audio.o.' in name for name in moved)
    assert all('audio' in name for name in moved)
    everything = changed(tmp_path / 'all', 'teacher', random_network(), trained='all')
    assert any('.text.' in name for name in everything) and 'head.weight' in everything
    with pytest.raises(ValueError, match="'nothing' is none of"):
        changed(tmp_path, 'teacher', random_network(), trained='nothing')


def test_the_memory_learns_compressor_and_gates(tmp_path: Path) -> None:
    moved = changed(tmp_path, 'memory', random_network())
    assert any(name.startswith('compressor.') for name in moved)
    assert any(name.endswith('memory_gate') for name in moved)
    assert all(name.startswith('compressor.') or name.endswith('memory_gate') for name in moved)


@torch.no_grad()
def test_entries_together_are_those_of_the_stream() -> None:
    model, m = WanTrainee(random_network()), WAN_TINY.memory
    clips, empty = random_clips(WAN_TINY, 1, FRAMES, CPU)
    groups = torch.randn(m.short + m.long, m.group, *WAN_TINY.latent_shape)
    reference = model.reference(clips[0].reference, empty)
    cache = WanCache(WAN_TINY, CPU, torch.float32)
    cache.place('reference', 0, reference)
    for index in reversed(range(m.short)):  # the newest lies first
        cache.push('short', model.entry(groups[index], reference, empty))
    for index in range(m.long):
        cache.place('long', index, model.entry(groups[m.short + index], reference, empty))
    streamed = Context.of(model.network, cache)
    together = model.remembering(reference, model.entries(groups, reference, empty))
    for one, other in ((streamed.frames, together.frames), (streamed.entries, together.entries)):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_targets_are_old_neighbours_or_among_the_last_frames() -> None:
    model, m = WanTrainee(random_network()), WAN_TINY.memory
    block, recent = WAN_TINY.chunk_latents, m.short * m.group
    for old in (0.0, 1.0):
        for _ in range(50):
            starts, target = draw_history(FRAMES, model, WanMemoryOptions(old_share=old))
            short, long = starts[:m.short], starts[m.short:]
            now = short[0] + m.group
            assert short == [now - m.group * (i + 1) for i in range(m.short)]
            assert all(0 <= first and first + m.group <= now - recent for first in long)
            assert 0 <= target and target + block <= FRAMES
            assert (target >= now - recent and target + block <= now) or old == 1.0


def test_clips_without_latents_are_refused(tmp_path: Path) -> None:
    clips, empty = random_clips(WAN_TINY, 1, FRAMES, CPU)
    run = Run(out=tmp_path, state=tmp_path, steps=1)
    with pytest.raises(ValueError, match='need `latents`'):
        train_wan_teacher(WanTrainee(random_network()), [replace(clips[0], latents=None)], empty,
                          ALONE, run)


@pytest.mark.parametrize('stage', ['teacher', 'memory'])
def test_the_command_runs_them(tmp_path: Path, stage: str) -> None:
    assert wan.main(['--stage', stage, '--random', 'wan-tiny', '--steps', '1',
                     '--out', str(tmp_path / 'out'), '--state', str(tmp_path / 'state')]) == 0
    assert (tmp_path / 'out' / 'model.safetensors').is_file()
    assert (tmp_path / 'state' / f'wan_{stage}.0.pt').is_file()
