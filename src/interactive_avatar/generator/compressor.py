# SPDX-License-Identifier: Apache-2.0
"""Memory compressor: a group of latents that left the adjacent queue becomes a few tokens.

(3D conv + SiLU)×N → attention → SiLU → linear to the denoiser's width, after InteractiveAvatar
(arXiv 2606.22905, project page), beside a low-resolution branch through the denoiser's own patch
embedding that carries the picture while the convolutions still learn (after the
frame-preservation pretraining of arXiv 2512.23851; the learnt branch starts at zero).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.config import GeneratorConfig


class MemoryCompressor(nn.Module):
    """Latents [B, group, C, 16, 16] -> tokens [B, 16, width]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        channels = config.autoencoder.latent_channels
        width, inner = config.denoiser.width, config.memory.compressor_width
        group = config.memory.group
        self.heads = 4
        self.patch = config.denoiser.patch
        self.conv1 = nn.Conv3d(channels, inner, 3, stride=(1, 2, 2), padding=1)
        self.conv2 = nn.Conv3d(inner, inner, (group, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.norm = nn.LayerNorm(inner)
        self.qkv = nn.Linear(inner, 3 * inner)
        self.proj = nn.Linear(inner, inner)
        self.out = nn.Linear(inner, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latents: Tensor, patch_embedding: nn.Linear) -> Tensor:
        """Args: latents [B, group, C, 16, 16]; patch_embedding: the denoiser's, patch -> width."""
        batch = latents.shape[0]
        low = F.avg_pool2d(latents.mean(dim=1), 2)
        low = patch_embedding(F.pixel_unshuffle(low, self.patch).flatten(2).transpose(1, 2))
        x = F.silu(self.conv1(latents.transpose(1, 2)))
        x = F.silu(self.conv2(x)).flatten(2).transpose(1, 2)
        tokens, inner = x.shape[1], x.shape[2]
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, inner // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = F.silu(x + self.proj(attended.reshape(batch, tokens, inner)))
        result: Tensor = low + self.out(x)
        return result


def patchify(latent: Tensor, patch: int) -> Tensor:
    """[B, C, h, w] -> [B, h·w/patch², C·patch²]."""
    return F.pixel_unshuffle(latent, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, side: int) -> Tensor:
    """[B, side²/patch², C·patch²] -> [B, C, side, side]."""
    grid = side // patch
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (grid, grid)), patch)


def timestep_features(level: Tensor, width: int) -> Tensor:
    """Sinusoidal features of the noise level in [0, 1]; [N] -> [N, width] (as DiT's, ×1000)."""
    half = width // 2
    rates = torch.exp(-torch.arange(half, device=level.device, dtype=torch.float32)
                      * (9.210340371976184 / half))
    angles = level.float()[:, None] * 1000.0 * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
