# SPDX-License-Identifier: Apache-2.0
"""Measured training: the same losses however the batch is split."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'generator'))
sys.path.insert(0, str(Path(__file__).parent))

from processes import run_two
from tiny import TINY

from interactive_avatar.training import scaling
from interactive_avatar.training.synthetic import synthetic_prompts, synthetic_shard

OPTIONS = {'teacher': 'frames: 4\n',
           'distil': 'chunks: 10\nreading_weight: 0.0\nreader_steps: 2\ncritic_warm_up: 1\n'}
SMALL = ['--steps', '4', '--warm-up', '1', '--clips', '3', '--chunks', '40']


def arguments(folder: Path, stage: str, *more: str) -> list[str]:
    (folder / 'model.json').write_text(TINY.to_json())
    (folder / 'options.yaml').write_text(OPTIONS[stage])
    return [stage, *SMALL, '--model-config', str(folder / 'model.json'),
            '--config', str(folder / 'options.yaml'), '--out', str(folder / 'result.json'), *more]


def result(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / 'result.json').read_text())
    return found


def test_made_up_clips_are_the_same_for_the_same_seed() -> None:
    device = torch.device('cpu')
    first, again, other = (synthetic_shard(TINY, 2, 20, 3, device, seed) for seed in (0, 0, 1))
    assert first.latents is not None and again.latents is not None and other.latents is not None
    torch.testing.assert_close(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)
    assert first.prompt_ids.max() < 3
    prompts = synthetic_prompts(TINY, 3, device)
    assert prompts.states.shape[:2] == (3, TINY.denoiser.text_tokens) == prompts.mask.shape


def test_one_process_says_how_it_went(tmp_path: Path) -> None:
    assert scaling.main(arguments(tmp_path, 'distil', '--batch', '4')) == 0
    found = result(tmp_path)
    assert found['gpus'] == 1 and found['global_batch'] == 4
    assert len(found['loss']) == 4  # type: ignore[arg-type]
    assert found['steps_per_s'] > 0  # type: ignore[operator]
    assert {path.name for path in tmp_path.rglob('*.pt')} == {'reader.pt'}  # no checkpoint
    with pytest.raises(SystemExit):
        scaling.main(['teacher', '--out', 'x', '--steps', '3', '--warm-up', '3'])


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / 'one', tmp_path / 'two'
    one.mkdir()
    two.mkdir()
    assert scaling.main(arguments(one, 'teacher', '--batch', '2', '--accumulate', '2')) == 0
    run_two('-m', 'interactive_avatar.training.scaling',
            *arguments(two, 'teacher', '--batch', '2', '--fsdp'), timeout_s=600.0)
    alone, together = result(one), result(two)
    assert alone['global_batch'] == together['global_batch'] == 4
    assert together['fsdp'] and together['gpus'] == 2
    assert together['loss'] == pytest.approx(alone['loss'], rel=1e-4)
