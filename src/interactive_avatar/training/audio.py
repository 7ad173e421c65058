# SPDX-License-Identifier: Apache-2.0
"""Warm-up of the audio encoder: from log-mel windows to the mouth units of the chunk's frames.

Cheap and exactly labelled, so the denoiser starts with tokens that already say what lips do.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.audio import AudioEncoder
from interactive_avatar.media.mel import MEL_CEILING_LN, MEL_FLOOR_LN
from interactive_avatar.training.common import Budget, Log, Process, learning_rate
from interactive_avatar.training.data import Shard


def disturb(mel: Tensor) -> Tensor:
    """Other microphones and rooms: random gain, tilt and noise floor per window, [B, 96, 64]."""
    batch, _, bands = mel.shape
    device = mel.device
    gain = torch.rand(batch, 1, 1, device=device) * 3.0 - 2.0
    tilt = (torch.rand(batch, 1, 1, device=device) - 0.5) * 2.0
    slope = torch.linspace(-1.0, 1.0, bands, device=device)
    silent = mel <= MEL_FLOOR_LN + 0.1
    shaped = torch.where(silent, mel, mel + gain + tilt * slope)
    noisy = torch.rand(batch, 1, 1, device=device) < 0.3
    floor = MEL_FLOOR_LN + torch.rand(batch, 1, 1, device=device) * 6.0 \
        + torch.randn_like(mel) * 0.5
    shaped = torch.where(noisy, torch.maximum(shaped, floor), shaped)
    return shaped.clamp(MEL_FLOOR_LN, MEL_CEILING_LN)


def train_audio(model: AudioEncoder, shard: Shard, process: Process, seconds: float,
                out: Path, batch: int = 512, peak_rate: float = 1.5e-3) -> None:
    """Train in place for ``seconds`` on windows drawn from the shard's performances."""
    process.share_weights(model)
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=peak_rate, weight_decay=1e-2,
                                  fused=process.device.type == 'cuda')
    log = Log(out, 'audio', process)
    budget = Budget(process, seconds)
    cuda = process.device.type == 'cuda'
    forward = torch.compile(model) if cuda else model
    step = 0
    while (progress := budget.progress()) < 1.0:
        for group in optimiser.param_groups:
            group['lr'] = learning_rate(progress, peak_rate)
        mel, units = shard.audio_windows(batch)
        with torch.autocast(process.device.type, torch.bfloat16, enabled=cuda):
            made = model.mouth(forward(disturb(mel)))
        loss = F.l1_loss(made.float(), units)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        process.mean_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        centred_a, centred_b = (x - x.mean() for x in (made.detach().float()[..., 0],
                                                       units[..., 0]))
        correlation = (centred_a * centred_b).mean() / (centred_a.std() * centred_b.std() + 1e-6)
        log.add(step, l1=loss, jaw_correlation=correlation)
    log.plot()
