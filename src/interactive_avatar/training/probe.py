# SPDX-License-Identifier: Apache-2.0
"""A linear reading of mouth and eyes off latents: keeps in the latent what moves, and tells the
denoiser in the field's own numbers how far a mouth is from where the sound wants it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.data import Shard

LEAST_UNIT_SPREAD = 0.03
"""Units that hardly move are not blown up beyond 1 / this."""


class Probe(nn.Module):
    """Reads units of the four frames off the latent around mouth and eyes; training only."""

    def __init__(self, channels: int, units: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.linear = nn.Linear(channels * 3 * 9, frames * units)
        axis = torch.arange(3.0) - 1.0
        self.register_buffer('offsets', torch.cartesian_prod(axis, axis).flip(1))

    offsets: Tensor

    def features(self, latent: Tensor, marks_px: Tensor) -> Tensor:
        """The 3×3 cells around each mark; latent [B, C, h, w], marks [B, 3, 2] in pixels (x, y)
        -> [B, 27 C]."""
        side = latent.shape[-1]
        cells = marks_px / 16.0 - 0.5
        points = (cells[:, :, None] + self.offsets).clamp(0, side - 1)
        grid = points / (side - 1) * 2 - 1
        return F.grid_sample(latent.float(), grid, align_corners=True).flatten(1)

    def forward(self, latent: Tensor, marks_px: Tensor) -> Tensor:
        """Units of the four frames, [B, frames, units]; arguments as of `features`."""
        out: Tensor = self.linear(self.features(latent, marks_px))
        return out.unflatten(1, (self.frames, -1))


@dataclass
class Reading:
    """A fitted probe and how well it reads.

    Attributes:
        probe: reads units in their natural size.
        spread: standard deviation of each unit, [k].
        explained: share of each unit's variance that it reads off held-out chunks, [k].
    """

    probe: Probe
    spread: Tensor
    explained: Tensor

    def loss(self, made: Tensor, marks_px: Tensor, units: Tensor, seen: Tensor) -> Tensor:
        """Squared error of the units read off latents, in units of their spread, weighed by how
        well they can be read.

        Args:
            made: latents [B, C, h, w]. marks_px: [B, 3, 2]. units: the truth, [B, 4, k].
            seen: bool [B], whether anybody is in view: nothing can be read off an empty room,
                and a loss of it would draw a face there.
        """
        error = (self.probe(made, marks_px) - units) / self.spread
        weight = self.explained.clamp_min(0.0)
        error = error.square() * weight * seen[:, None, None]
        return error.mean() / (weight.mean() * seen.float().mean()).clamp_min(1e-6)


@torch.no_grad()
def fit_probe(shard: Shard, chunks: int = 20_000, ridge: float = 3e-3) -> Reading:
    """Fit a probe to a shard's latents by ridge regression, in closed form.

    Args:
        shard: with latents and marks. chunks: how many, a tenth of them to judge by.
        ridge: relative to the mean square of a feature.
    """
    assert shard.latents is not None and shard.marks is not None
    device = shard.device
    clip = shard._random(len(shard.latents), chunks)
    at = shard._random(shard.latents.shape[1], chunks)
    index = at[:, None] * FRAMES_PER_CHUNK + torch.arange(FRAMES_PER_CHUNK, device=device)
    units = shard.probe_units[clip[:, None], index]
    marks = shard.marks[clip[:, None], index].mean(1)
    probe = Probe(shard.latents.shape[2], units.shape[-1], FRAMES_PER_CHUNK).to(device)
    x = torch.cat([probe.features(shard.latents[part_clip, part_at], part_marks)
                   for part_clip, part_at, part_marks in zip(
                       clip.split(2000), at.split(2000), marks.split(2000), strict=True)])
    # A person in view: marks of one who has stepped out lie at the border.
    seen = shard.in_view[clip[:, None], index].all(1)
    x, units = x[seen].double(), units[seen]
    y = units.flatten(1).double()
    judged = len(x) // 10
    mean_x, mean_y = x[judged:].mean(0), y[judged:].mean(0)
    centred = x[judged:] - mean_x
    gram = centred.T @ centred
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, centred.T @ (y[judged:] - mean_y))
    probe.linear.weight.copy_(weight.T)
    probe.linear.bias.copy_(mean_y - mean_x @ weight)
    read = probe.linear(x[:judged].float()).unflatten(1, units.shape[1:])
    true = units[:judged]
    error = (read - true).square().mean((0, 1))
    spread = units.std((0, 1))
    explained = 1.0 - error / true.var((0, 1)).clamp_min(1e-9)
    explained = torch.where(spread < 1e-3, torch.zeros_like(spread), explained)
    return Reading(probe.requires_grad_(False), spread.clamp_min(LEAST_UNIT_SPREAD), explained)
