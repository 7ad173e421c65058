# SPDX-License-Identifier: Apache-2.0
"""Video autoencoder of the compact model: four frames at once to one 16×16 latent and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.config import AutoencoderConfig


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with SiLU and a residual path, [B, C, H, W] -> same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm(x)))
        return x + self.conv2(F.silu(h))


class Encoder(nn.Module):
    """Frames [B, 4, 3, H, W] in [-1, 1] to a latent [B, C, H/16, W/16]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        w0, w1, w2 = config.encoder_widths
        self.stem = nn.Conv2d(3 * config.frames * 16, w0, 3, padding=1)
        self.stage1 = nn.Sequential(ResidualBlock(w0), ResidualBlock(w0))
        self.down1 = nn.Conv2d(w0 * 4, w1, 3, padding=1)
        self.stage2 = nn.Sequential(ResidualBlock(w1), ResidualBlock(w1))
        self.down2 = nn.Conv2d(w1 * 4, w2, 3, padding=1)
        self.stage3 = nn.Sequential(ResidualBlock(w2), ResidualBlock(w2), ResidualBlock(w2))
        self.out = nn.Conv2d(w2, config.latent_channels, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.pixel_unshuffle(frames.flatten(1, 2), 4)
        x = self.stage1(self.stem(x))
        x = self.stage2(self.down1(F.pixel_unshuffle(x, 2)))
        x = self.stage3(self.down2(F.pixel_unshuffle(x, 2)))
        latent: Tensor = self.out(x)
        return latent


class Decoder(nn.Module):
    """Latent [B, C, h, w] to frames [B, 4, 3, 16h, 16w], nominally in [-1, 1]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        w0, w1, w2 = config.decoder_widths
        n0, n1, n2 = config.decoder_blocks
        self.frames = config.frames
        self.shuffle = config.pixel_shuffle
        self.stem = nn.Conv2d(config.latent_channels, w0, 3, padding=1)
        self.stage1 = nn.Sequential(*[ResidualBlock(w0) for _ in range(n0)])
        self.up1 = nn.Conv2d(w0, w1 * 4, 1)
        self.stage2 = nn.Sequential(*[ResidualBlock(w1) for _ in range(n1)])
        self.up2 = nn.Conv2d(w1, w2 * 4, 1)
        self.stage3 = nn.Sequential(*[ResidualBlock(w2) for _ in range(n2)])
        self.out = nn.Conv2d(w2, 3 * self.frames * self.shuffle ** 2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.stage1(self.stem(latent))
        x = self.stage2(F.pixel_shuffle(self.up1(x), 2))
        x = self.stage3(F.pixel_shuffle(self.up2(x), 2))
        x = F.pixel_shuffle(self.out(F.silu(x)), self.shuffle)
        return x.unflatten(1, (self.frames, 3))


class Autoencoder(nn.Module):
    """Encoder, decoder and the per-channel statistics that bring latents to zero mean, unit std.

    `encode` and `decode` speak normalised latents; the statistics are measured after training.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer('latent_mean', torch.zeros(config.latent_channels))
        self.register_buffer('latent_std', torch.ones(config.latent_channels))

    def encode(self, frames: Tensor) -> Tensor:
        """[B, 4, 3, H, W] in [-1, 1] -> normalised latent [B, C, H/16, W/16]."""
        latent: Tensor = self.encoder(frames)
        return (latent - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latent [B, C, h, w] -> frames [B, 4, 3, 16h, 16w], nominally in [-1, 1]."""
        raw = latent * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        frames: Tensor = self.decoder(raw)
        return frames
