# SPDX-License-Identifier: Apache-2.0
"""A small network that reads mouth units off latents, wherever the mouth is; training only.

It is the expert of distillation's lip loss: rolled-out streams hold their heads as they like, so
no pixel of theirs can be compared with the clip's, but what their lips do can. Reads noised
latents too, so that its gradient is smooth.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.common import Process, learning_rate
from interactive_avatar.training.data import REFERENCES_PER_CLIP, Shard

CELL_PX = 16
"""Pixels of a latent cell."""
LEAST_SPREAD = 0.02
"""Units that hardly move in a shard are not read more finely than this."""


class MouthReader(nn.Module):
    """Latents and reference [N, C, h, w] -> mouth units [N, 4, 16].

    Convolutions, then one learnt query that looks for the mouth.
    """

    spread: Tensor

    def __init__(self, config: GeneratorConfig, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        channels, self.units = config.autoencoder.latent_channels, config.audio.mouth_units
        self.stem = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(3)])
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1)
                                           for _ in range(3)])
        self.heads = heads
        self.score = nn.Conv2d(width, heads, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.out = nn.Sequential(nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, FRAMES_PER_CHUNK * self.units))
        self.register_buffer('spread', torch.ones(self.units))

    def forward(self, latents: Tensor, reference: Tensor) -> Tensor:
        return self.read(latents, reference)[0]

    def read(self, latents: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Units [N, 4, 16], and where they were looked for: shares [N, heads, h · w]."""
        x = self.stem(torch.cat([latents, reference], 1))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = x + convolution(F.silu(norm(x)))
        x = F.silu(x)
        share = self.score(x).flatten(2).softmax(-1)
        value = self.value(x).flatten(2).unflatten(1, (self.heads, -1))
        seen = torch.einsum('bhcn,bhn->bhc', value, share).flatten(1)
        units: Tensor = self.out(seen)
        return units.unflatten(1, (FRAMES_PER_CHUNK, self.units)) * self.spread, share

    def loss(self, read: Tensor, units: Tensor, seen: Tensor) -> Tensor:
        """Mean squared error in units of each unit's spread over the shard: 1 is knowing nothing.

        Args:
            read, units: [..., 4, 16]. seen: bool [...], whether anybody is in view; the mouth of
                one who is away is not to be drawn.
        """
        error = ((read - units) / self.spread).square().mean((-2, -1))
        return (error * seen).mean() / seen.float().mean().clamp_min(1e-6)


def correlation(a: Tensor, b: Tensor, counted: Tensor | None = None) -> Tensor:
    """Pearson correlation of the elements of two tensors of one shape.

    Args:
        a, b: [..., k]. counted: bool [...], which rows count, or None for all. They are weighed
            and not picked out: for the number of rows picked the processor would have to wait.
    """
    weight = torch.ones_like(a) if counted is None else counted[..., None].expand_as(a).float()
    weight = weight / weight.sum().clamp_min(1.0)
    a, b = a - (a * weight).sum(), b - (b * weight).sum()
    spread = (a.square() * weight).sum().sqrt() * (b.square() * weight).sum().sqrt()
    return (a * b * weight).sum() / spread.clamp_min(1e-6)


def draw_readings(shard: Shard, count: int, clips: tuple[int, int]
                  ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Latents, references [N, C, h, w], mouth units [N, 4, 16], the mouth's cell [N, h · w]
    (shares that sum to 1) and whether anybody is in view, bool [N], of random chunks."""
    assert shard.latents is not None and shard.references is not None
    clip = clips[0] + shard._random(clips[1] - clips[0], count)
    chunk = shard._random(shard.latents.shape[1], count)
    pick = shard._random(REFERENCES_PER_CLIP, count)
    step = torch.arange(FRAMES_PER_CHUNK, device=shard.device)
    units = shard.mouth[clip[:, None], chunk[:, None] * FRAMES_PER_CHUNK + step]
    mouth = shard.chunk_marks(clip, chunk, 1)[:, 0, 0] / CELL_PX
    axis = torch.arange(shard.latents.shape[-1], device=shard.device) + 0.5
    away = ((axis - mouth[:, :1]).square()[:, None, :]
            + (axis - mouth[:, 1:]).square()[:, :, None]).flatten(1)
    return (shard.latents[clip, chunk].float(), shard.references[clip, pick].float(), units,
            (-away / 2.0).softmax(-1), shard.seen(clip, chunk, 1)[:, 0])


def train_reader(config: GeneratorConfig, shard: Shard, process: Process, seconds: float,
                 steps: int = 0, batch: int = 256, peak_rate: float = 1e-3,
                 noise: float = 0.3, place_weight: float = 0.1) -> tuple[MouthReader, float]:
    """Train a reader on true latents, for some time or a number of steps.

    It is also told where the mouth is: left to find that out by itself, it settles for the mean
    of all cells and reads nothing.

    Returns:
        the frozen reader, and the correlation of jaw opening that it reads on the last tenth of
        the clips, which it never saw.
    """
    assert shard.latents is not None
    device, cuda = process.device, process.device.type == 'cuda'
    count = len(shard.latents)
    held = min(count - 1, max(1, count // 10))
    reader = MouthReader(config).to(device)
    reader.spread.copy_(shard.mouth.flatten(0, 1).std(0).clamp_min(LEAST_SPREAD))
    process.share_weights(reader)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=peak_rate, weight_decay=1e-2,
                                  fused=cuda)
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        for group in optimiser.param_groups:
            group['lr'] = learning_rate(progress, peak_rate)
        latents, reference, units, place, seen = draw_readings(shard, batch, (0, count - held))
        level = noise * torch.rand(batch, 1, 1, 1, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            read, share = reader.read(latents + level * torch.randn_like(latents), reference)
        looked = -(place[:, None] * share.float().clamp_min(1e-6).log()).sum(-1).mean(-1)
        looked = (looked * seen).mean() / seen.float().mean().clamp_min(1e-6)
        loss = reader.loss(read.float(), units, seen) + place_weight * looked
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        process.mean_gradients(reader.parameters())
        optimiser.step()
        step += 1
        if step % 20 == 0 or steps:
            progress = process.agree(step / steps if steps
                                     else (time.monotonic() - start) / max(seconds, 1e-9))
    reader.requires_grad_(False).eval()
    with torch.no_grad():
        latents, reference, units, _, seen = draw_readings(shard, 1024, (count - held, count))
        jaw = float(correlation(reader(latents, reference)[..., 0], units[..., 0], seen))
    return reader, jaw
