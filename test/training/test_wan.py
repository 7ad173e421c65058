# SPDX-License-Identifier: Apache-2.0
"""Distillation at the wan size, on a tiny network: its passes, its gradients, two processes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / 'generator' / 'wan'))
sys.path.insert(0, str(Path(__file__).parent))

from processes import run_two
from wan_tiny import random_network

from interactive_avatar.generator.wan.config import WAN_TINY, WanConfig
from interactive_avatar.generator.wan.lora import ADAPTED
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.training import wan
from interactive_avatar.training.common import Process
from interactive_avatar.training.stage import Run
from interactive_avatar.training.wan import WanOptions, train_wan
from interactive_avatar.training.wan_rollout import (
    WanRollout,
    WanSegment,
    WanTrainee,
    random_clips,
    read_clips,
)

# So small that more threads only wait for each other.
torch.set_num_threads(1)
CPU = torch.device('cpu')
OPTIONS = WanOptions(blocks=2, critic_updates=2, critic_warm_up=1, peak_rate=1e-3,
                     critic_rate=1e-3)
FRAMES = 30


def trainee(seed: int) -> WanTrainee:
    return WanTrainee(random_network(seed=seed))


def distil(folder: Path, accumulate: int, steps: int = 3,
           options: WanOptions = OPTIONS) -> dict[str, torch.Tensor]:
    model, teacher, critic = (trainee(seed) for seed in (0, 1, 1))
    clips, empty = random_clips(WAN_TINY, 2, FRAMES, CPU)
    run = Run(out=folder, state=folder, steps=steps, accumulate=accumulate, checkpoints=False)
    train_wan(model, teacher, critic, clips, empty, Process(0, 1, CPU), run, options)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def segment_of(model: WanTrainee, checkpointed: bool) -> tuple[WanSegment, torch.Tensor]:
    for block in model.network.layers:
        block.checkpointed = checkpointed
    clips, empty = random_clips(WAN_TINY, 2, FRAMES, CPU)
    torch.manual_seed(3)
    rollout = WanRollout(model, clips, empty, 2, 10, torch.float32)
    segment = rollout.advance(2)
    model.zero_grad()
    segment.made.square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return segment, gradient


def test_layers_computed_again_give_the_same_gradient() -> None:
    (kept, one), (again, two) = (segment_of(trainee(0), flag) for flag in (False, True))
    torch.testing.assert_close(kept.made, again.made, rtol=0, atol=0)
    torch.testing.assert_close(one, two)
    assert one.abs().sum() > 0


def test_streams_go_on_and_begin_anew_where_their_sound_ends() -> None:
    model = trainee(0)
    clips, empty = random_clips(WAN_TINY, 1, FRAMES, CPU)
    rollout = WanRollout(model, clips, empty, 4, 10, torch.float32)
    with torch.no_grad():
        ages = [rollout.advance(0, False).age for _ in range(4)]
    assert ages == [0, 4, 0, 4]  # ten blocks of sound hold two segments
    with pytest.raises(ValueError, match='fewer blocks'):
        WanRollout(model, clips, empty, 11, 10, torch.float32).advance(0)


@torch.no_grad()
def test_judges_see_the_whole_clip_and_the_reference() -> None:
    model = trainee(0)
    clips, _ = random_clips(WAN_TINY, 1, FRAMES, CPU)
    clip, frames = clips[0], torch.randn(6, *WAN_TINY.latent_shape)
    assert clip.audio is not None
    level = torch.tensor(0.5)

    def look(frames: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        assert clip.audio is not None
        return model.clip(frames, level, reference, clip.text, clip.audio[:6])

    before = look(frames, clip.reference)
    assert before.shape == frames.shape
    other = frames.clone()
    other[-1] += 1.0
    assert ((look(other, clip.reference) - before).abs().amax((1, 2, 3)) > 0).all()
    assert ((look(frames, clip.reference + 1.0) - before).abs().amax((1, 2, 3)) > 0).all()


def test_training_moves_the_student_and_logs(tmp_path: Path) -> None:
    moved = distil(tmp_path, 1)
    start = trainee(0).state_dict()
    changed = {name for name in start if not torch.equal(start[name], moved[name])}
    assert any('memory_gate' in name for name in changed)
    # What writes the caches is taken as it is.
    assert not any(name.startswith('network.compressor') for name in changed)
    row = json.loads((tmp_path / 'wan.jsonl').read_text().splitlines()[-1])
    assert {'dmd', 'critic', 'gradient', 'age'} <= set(row)


TWO = """
import sys
from pathlib import Path
sys.path[:0] = {folders!r}
import torch
import test_wan as t
from interactive_avatar.training.common import Process
from interactive_avatar.training.stage import Run, whole_state
from interactive_avatar.training.wan import train_wan
from interactive_avatar.training.wan_rollout import random_clips, shard_wan
process = Process.join()
models = [t.trainee(seed) for seed in (0, 1, 1)]
for model in models:
    shard_wan(model, process, None, {gather_again})
clips, empty = random_clips(t.WAN_TINY, 2, t.FRAMES, t.CPU)
run = Run(out=Path({out!r}), state=Path({out!r}), steps=3, sharded=True, checkpoints=False)
train_wan(*models, clips, empty, process, run, t.OPTIONS)
state = whole_state(models[0])
if process.leads:
    torch.save(state, {out!r} + '/weights.pt')
process.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize('gather_again', [False, True])
def test_two_processes_with_fsdp_are_as_one(tmp_path: Path, gather_again: bool) -> None:
    script = tmp_path / 'two.py'
    out = tmp_path / 'two'
    out.mkdir()
    here = Path(__file__).parent
    script.write_text(TWO.format(folders=[str(here), str(here.parent / 'generator' / 'wan')],
                                 out=str(out), gather_again=gather_again))
    run_two(str(script), timeout_s=600.0)
    one = distil(tmp_path / 'one', 2)
    two = torch.load(out / 'weights.pt', weights_only=True)
    start = trainee(0).state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-5)
    assert any(not torch.equal(one[name], start[name]) for name in one)


def test_a_run_can_be_measured(tmp_path: Path) -> None:
    options = tmp_path / 'options.yaml'
    options.write_text('blocks: 1\ncritic_updates: 1\n')
    report = tmp_path / 'report.json'
    assert wan.main(['--random', 'wan-tiny', '--steps', '1', '--config', str(options),
                     '--out', str(tmp_path), '--state', str(tmp_path),
                     '--report', str(report)]) == 0
    found = json.loads(report.read_text())
    assert found['latents'] == 3 and len(found['step_s']) == 1
    assert {'rollout', 'scores', 'backward', 'critic'} <= set(found['parts_of_last_step_s'])
    assert not (tmp_path / 'model.safetensors').exists()


@pytest.mark.parametrize(('stage', 'latents'), [('teacher', 6), ('memory', 3)])
def test_the_other_stages_can_be_measured(tmp_path: Path, stage: str, latents: int) -> None:
    options, report = tmp_path / 'options.yaml', tmp_path / 'report.json'
    options.write_text('blocks: 2\n' if stage == 'teacher' else 'old_share: 0.5\n')
    assert wan.main(['--random', 'wan-tiny', '--stage', stage, '--steps', '2',
                     '--config', str(options), '--out', str(tmp_path), '--state', str(tmp_path),
                     '--report', str(report)]) == 0
    found = json.loads(report.read_text())
    assert found['latents'] == latents and 'critic_updates' not in found
    parts = found['parts_of_last_step_s']
    assert set(parts) == {'forward', 'backward', 'update'} and min(parts.values()) > 0.0
    assert len(found['step_s']) == 2
    assert found['step_s'][-1] == pytest.approx(sum(parts.values()))
    assert not (tmp_path / 'model.safetensors').exists()


def test_adapters_are_trained_alone_and_folded_in(tmp_path: Path) -> None:
    clips, empty = random_clips(WAN_TINY, 1, FRAMES, CPU)
    clip = clips[0]
    assert clip.audio is not None
    folder = tmp_path / 'clips'
    folder.mkdir()
    save_file({'reference': clip.reference, 'text': clip.text, 'audio': clip.audio},
              str(folder / 'a.safetensors'))
    save_file({'text': empty}, str(folder / 'empty.safetensors'))
    options = tmp_path / 'options.yaml'
    options.write_text('blocks: 1\ncritic_updates: 1\ncritic_warm_up: 0\npeak_rate: 0.1\n')
    assert wan.main(['--random', 'wan-tiny', '--steps', '2', '--lora-rank', '2',
                     '--clips', str(folder), '--config', str(options),
                     '--out', str(tmp_path / 'out'), '--state', str(tmp_path / 'state')]) == 0
    made = load_file(str(tmp_path / 'out' / 'model.safetensors'))
    torch.manual_seed(0)
    start = WanTransformer(WAN_TINY).state_dict()
    assert made.keys() == start.keys()
    changed = {name for name in start if not torch.equal(start[name].bfloat16(), made[name])}
    changed -= {name for name in changed if name.endswith('memory_gate')}  # opened to measure
    assert any(name.endswith('qkv.weight') for name in changed)
    assert all(name.split('.')[-2] in ADAPTED for name in changed)
    assert WanConfig.from_json((tmp_path / 'out' / 'config.json').read_text()) == WAN_TINY


def test_clips_of_a_folder(tmp_path: Path) -> None:
    clips, empty = random_clips(WAN_TINY, 1, FRAMES, CPU)
    clip = clips[0]
    assert clip.audio is not None
    save_file({'reference': clip.reference, 'text': clip.text, 'audio': clip.audio},
              str(tmp_path / 'a.safetensors'))
    with pytest.raises(ValueError, match=r'empty\.safetensors'):
        read_clips(tmp_path, WAN_TINY, CPU)
    save_file({'text': empty}, str(tmp_path / 'empty.safetensors'))
    read, nothing = read_clips(tmp_path, WAN_TINY, CPU)
    torch.testing.assert_close(read[0].audio, clip.audio)
    torch.testing.assert_close(nothing, empty)
    with pytest.raises(ValueError, match="'reference' must be"):
        read_clips(tmp_path, replace(WAN_TINY, picture_px=128), CPU)
