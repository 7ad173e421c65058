# SPDX-License-Identifier: Apache-2.0
"""Stage 1: the video autoencoder.

The picture error is weighted around mouth and eyes, whose blur costs most: a latent cell covers
16×16 pixels of four frames, and a face is judged by a few of them. A small head reads the mouth's
and eyes' units off the latent cells under them, so that the latent keeps what moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.autoencoder import Autoencoder
from interactive_avatar.training.common import Average, Budget, Log, Process, learning_rate
from interactive_avatar.training.data import Shard


@dataclass(frozen=True)
class AutoencoderOptions:
    """Options of the stage; batch counts groups of four frames per GPU."""

    batch: int = 48
    peak_rate: float = 6e-4
    mouth_weight: float = 7.0
    eye_weight: float = 5.0
    mouth_sigma_px: float = 20.0
    eye_sigma_px: float = 11.0
    gradient_weight: float = 1.0
    temporal_weight: float = 0.5
    probe_weight: float = 0.3
    latent_decay: float = 1e-4
    latent_noise: float = 0.1
    still_share: float = 0.1


class Probe(nn.Module):
    """Reads units of the four frames off the latent around mouth and eyes; training only."""

    def __init__(self, channels: int, units: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.linear = nn.Linear(channels * 3 * 9, frames * units)
        axis = torch.arange(3.0) - 1.0
        self.register_buffer('offsets', torch.cartesian_prod(axis, axis).flip(1))

    offsets: Tensor

    def forward(self, latent: Tensor, marks_px: Tensor) -> Tensor:
        """latent [B, C, h, w], marks [B, 3, 2] in pixels (x, y) -> [B, frames, units]."""
        side = latent.shape[-1]
        cells = marks_px / 16.0 - 0.5
        points = (cells[:, :, None] + self.offsets).clamp(0, side - 1)
        grid = points / (side - 1) * 2 - 1
        taken = F.grid_sample(latent.float(), grid, align_corners=True)
        out: Tensor = self.linear(taken.flatten(1))
        return out.unflatten(1, (self.frames, -1))


def face_weight(marks_px: Tensor, side_px: int, options: AutoencoderOptions) -> Tensor:
    """Weight of every pixel, [B, F, 1, H, W], from marks [B, F, 3, 2] (mouth, eyes; x, y)."""
    axis = torch.arange(side_px, device=marks_px.device, dtype=torch.float32) + 0.5

    def bump(at: Tensor, sigma: float) -> Tensor:
        x = torch.exp(-(axis - at[..., :1]) ** 2 / (2 * sigma ** 2))
        y = torch.exp(-(axis - at[..., 1:]) ** 2 / (2 * sigma ** 2))
        return y[..., :, None] * x[..., None, :]

    mouth = bump(marks_px[:, :, 0], options.mouth_sigma_px)
    eyes = bump(marks_px[:, :, 1], options.eye_sigma_px) + bump(marks_px[:, :, 2],
                                                               options.eye_sigma_px)
    weight = 1.0 + options.mouth_weight * mouth + options.eye_weight * eyes
    return weight[:, :, None]


def picture_loss(made: Tensor, true: Tensor, weight: Tensor,
                 options: AutoencoderOptions) -> tuple[Tensor, Tensor]:
    """Weighted L1 of frames, their gradients at two scales, and their change over time.

    Args:
        made, true: [B, 4, 3, H, W] in [-1, 1]. weight: [B, 4, 1, H, W].

    Returns:
        the loss and the plain L1, scalars.
    """
    error = made - true
    total = weight.mean()
    pixel = (error.abs() * weight).mean()
    dx = (error[..., :, 1:] - error[..., :, :-1]).abs() * weight[..., :, 1:]
    dy = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
    wide = F.avg_pool2d(error.flatten(0, 1), 2).unflatten(0, error.shape[:2])
    wide_x = (wide[..., :, 1:] - wide[..., :, :-1]).abs() * weight[..., ::2, 2::2]
    wide_y = (wide[..., 1:, :] - wide[..., :-1, :]).abs() * weight[..., 2::2, ::2]
    gradient = dx.mean() + dy.mean() + wide_x.mean() + wide_y.mean()
    change = ((error[:, 1:] - error[:, :-1]).abs() * weight[:, 1:]).mean()
    loss = (pixel + options.gradient_weight * gradient + options.temporal_weight * change) / total
    return loss, error.abs().mean()


def train_autoencoder(model: Autoencoder, shard: Shard, process: Process, seconds: float,
                      out: Path, options: AutoencoderOptions | None = None) -> None:
    """Train in place for ``seconds``; leaves averaged weights and latent statistics."""
    options = options or AutoencoderOptions()
    device = process.device
    process.share_weights(model)
    probe = Probe(model.encoder.out.out_channels, shard.probe_units.shape[-1], 4).to(device)
    process.share_weights(probe)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [*model.parameters(), *probe.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=options.peak_rate, betas=(0.9, 0.99),
                                  weight_decay=1e-4, fused=device.type == 'cuda')
    average = Average(model)
    log = Log(out, 'autoencoder', process)
    compiled = device.type == 'cuda'
    encoder = torch.compile(model.encoder) if compiled else model.encoder
    decoder = torch.compile(model.decoder) if compiled else model.decoder
    loss_function = torch.compile(picture_loss) if compiled else picture_loss
    budget = Budget(process, seconds)
    step = 0
    while (progress := budget.progress()) < 1.0:
        for group in optimiser.param_groups:
            group['lr'] = learning_rate(progress, options.peak_rate)
        frames, marks, units = shard.groups(options.batch, options.still_share)
        true = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
        weight = face_weight(marks, frames.shape[2], options)
        with torch.autocast(device.type, torch.bfloat16, enabled=compiled):
            latent = encoder(true)
            noisy = latent + torch.randn_like(latent) * options.latent_noise * torch.rand(
                len(latent), 1, 1, 1, device=device)
            made = decoder(noisy)
        picture, plain = loss_function(made.float(), true, weight, options)
        read = F.mse_loss(probe(latent, marks.mean(1)), units)
        loss = picture + options.probe_weight * read + options.latent_decay * latent.float(
            ).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        process.mean_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update()
        step += 1
        log.add(step, loss=picture, l1=plain, probe=read, latent=latent.float().std())
    average.swap()
    measure_latents(model, shard, process)
    log.plot()


@torch.no_grad()
def measure_latents(model: Autoencoder, shard: Shard, process: Process) -> None:
    """Set the per-channel mean and deviation that normalise latents."""
    model.eval()
    collected = []
    for _ in range(16):
        frames, _, _ = shard.groups(32, 0.0)
        true = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
        with torch.autocast(process.device.type, torch.bfloat16,
                            enabled=process.device.type == 'cuda'):
            collected.append(model.encoder(true).float())
    latents = torch.cat(collected)
    model.latent_mean.copy_(latents.mean((0, 2, 3)))
    model.latent_std.copy_(latents.std((0, 2, 3)).clamp_min(1e-3))
    process.share_weights(model)
