# SPDX-License-Identifier: Apache-2.0
"""Video autoencoder of the compact model: four frames at once to one 16×16 latent and back."""

from __future__ import annotations

import math
from typing import Final, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.config import AutoencoderConfig

FLOW_SCALE: Final = 0.25
"""Flow of an output of 1, in half pictures: 32 pixels at 256×256."""
CARRIED_LOGIT_AT_FIRST: Final = -2.0


def as_input(pictures: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    n = pictures.dim()  # permute, because the exporter to ONNX gets negative movedim wrong
    # TensorRT takes 8-bit pictures only where a cast follows at once.
    return pictures.float().permute(*range(n - 3), n - 1, n - 3, n - 2) / 127.5 - 1.0


def as_pixels(frames: Tensor) -> Tensor:
    """[..., 3, H, W], nominally in [-1, 1] -> uint8 [..., H, W, 3]."""
    n = frames.dim()
    pixels = torch.round(frames * 127.5 + 127.5).clamp(0.0, 255.0)
    return pixels.permute(*range(n - 3), n - 2, n - 1, n - 3).to(torch.uint8)


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
    """Frames [B, 4, 3, H, W] in [-1, 1] to a latent [B, C, h, w], h = H / (16 · upscale)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.upscale = config.upscale
        w0, w1, w2 = config.encoder_widths
        self.stem = nn.Conv2d(3 * config.frames * 16, w0, 3, padding=1)
        self.stage1 = nn.Sequential(ResidualBlock(w0), ResidualBlock(w0))
        self.down1 = nn.Conv2d(w0 * 4, w1, 3, padding=1)
        self.stage2 = nn.Sequential(ResidualBlock(w1), ResidualBlock(w1))
        self.down2 = nn.Conv2d(w1 * 4, w2, 3, padding=1)
        self.stage3 = nn.Sequential(ResidualBlock(w2), ResidualBlock(w2), ResidualBlock(w2))
        self.out = nn.Conv2d(w2, config.latent_channels, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.flatten(1, 2)
        if self.upscale > 1:
            x = F.avg_pool2d(x, self.upscale)
        x = F.pixel_unshuffle(x, 4)
        x = self.stage1(self.stem(x))
        x = self.stage2(self.down1(F.pixel_unshuffle(x, 2)))
        x = self.stage3(self.down2(F.pixel_unshuffle(x, 2)))
        latent: Tensor = self.out(x)
        return latent


def smoothed(shares: Tensor, side: int) -> Tensor:
    """Mean over ``side``² pixels around each, [B, n, H, W] -> same shape and dtype; pixels at the
    edge stand for those beyond it. 1 changes nothing.

    Where last layers draw cells of ``side``² pixels at once, nothing that repeats itself from cell
    to cell passes this. Without it what is newly drawn shows through as a grid of dots.
    """
    if side == 1:
        return shares
    # Rows, then columns; edges put together by hand, because torch 2.13 does not compile padding
    # by them for CPUs.
    before = side // 2
    for axis, size in ((-2, shares.shape[-2]), (-1, shares.shape[-1])):
        first, last = shares.narrow(axis, 0, 1), shares.narrow(axis, size - 1, 1)
        wide = torch.cat([first] * before + [shares] + [last] * (side - 1 - before), axis)
        shares = wide.narrow(axis, 0, size)
        for at in range(1, side):
            shares = shares + wide.narrow(axis, at, size)
        shares = shares / side
    return shares


class Sight(NamedTuple):
    """What the decoder sees beside a latent: pictures in [-1, 1] and the latents they belong to.

    Attributes:
        previous: normalised latent of the chunk before, [B, C, h, w].
        last: the frame shown last, [B, 3, H, W].
        reference: normalised latent of the reference picture held still, [B, C, h, w].
        picture: the reference picture, [B, 3, H, W].
    """

    previous: Tensor
    last: Tensor
    reference: Tensor
    picture: Tensor


class Decoder(nn.Module):
    """Latent [B, C, h, w] to frames [B, 4, 3, H, W], H = 16 · upscale · h, nominally in [-1, 1].

    A latent of 32 numbers for 16×16 pixels of four frames says where things are, not what every
    hair looks like. So each frame is a blend, weighed per pixel, of three candidates: the frame
    shown last and the reference picture, both moved along a flow read off the latents, and newly
    drawn pixels (the scheme of First Order Motion Model, arXiv 2003.00196, with the last frame as
    in frame-recurrent super-resolution, arXiv 1801.04590). Texture is carried over instead of
    being drawn anew, and motion goes on across the borders of chunks.
    """

    axis: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        w0, w1, w2 = config.decoder_widths
        n0, n1, n2 = config.decoder_blocks
        self.frames = config.frames
        self.shuffle = shuffle = config.pixel_shuffle
        self.last_share = config.last_share
        self.smoothing = shuffle
        self.stem = nn.Conv2d(3 * config.latent_channels, w0, 3, padding=1)
        self.stage1 = nn.Sequential(*[ResidualBlock(w0) for _ in range(n0)])
        self.up1 = nn.Conv2d(w0, w1 * 4, 1)
        self.stage2 = nn.Sequential(*[ResidualBlock(w1) for _ in range(n1)])
        self.up2 = nn.Conv2d(w1, w2 * 4, 1)
        self.last_embedding = nn.Conv2d(3 * shuffle ** 2, w2, 1)
        self.stage3 = nn.Sequential(*[ResidualBlock(w2) for _ in range(n2)])
        self.out = nn.Conv2d(w2, 3 * self.frames * shuffle ** 2, 3, padding=1)
        # Two sources, x and y, for every frame; wide motion at 32×32, fine at 64×64.
        self.wide_flow = nn.Conv2d(w1, 4 * self.frames, 3, padding=1)
        self.fine_flow = nn.Conv2d(w2, 4 * self.frames, 3, padding=1)
        self.shares = nn.Conv2d(w2, 2 * self.frames * shuffle ** 2, 1)
        for layer in (self.wide_flow, self.fine_flow, self.shares, self.last_embedding):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast(Tensor, layer.bias))
        # Pictures are carried where they prove right; at first most is drawn.
        nn.init.constant_(cast(Tensor, self.shares.bias)[:self.frames * shuffle ** 2],
                          CARRIED_LOGIT_AT_FIRST)
        side = config.picture_px
        self.register_buffer('axis', (torch.arange(side) + 0.5) * (2.0 / side) - 1.0,
                             persistent=False)

    def sources(self, flow: Tensor) -> Tensor:
        """Where flows [..., 2, H, W] lead from each pixel, [..., H, W, 2], x and y, both in half
        pictures from the middle."""
        # Axis by axis, because a whole grid would be megabytes of constants in every graph.
        x, y = flow.unbind(-3)
        at = torch.stack([x + self.axis, y + self.axis[:, None]], -1)
        # What lies outside shows the edge; clamped here, because ONNX Runtime samples three times
        # as fast with padding by zeros as by the border (`avatar bench generator`, stage decode).
        edge = 1.0 - 1.0 / len(self.axis)
        return at.clamp(-edge, edge)

    def candidates(self, latent: Tensor, sight: Sight) -> tuple[Tensor, Tensor, Tensor]:
        """Newly drawn frames [B, 4, 3, H, W]; flows [B, 2, 4, 2, H, W] in half pictures, of the
        last frame and the reference; shares [B, 2, 4, 1, H, W], 0 to 1."""
        # Latents and pictures stay float32 where the weights are in half precision.
        dtype = self.stem.weight.dtype
        x = self.stem(torch.cat([latent, sight.previous, sight.reference], 1).to(dtype))
        x = F.pixel_shuffle(self.up1(self.stage1(x)), 2)
        x = self.stage2(x)
        wide = self.wide_flow(F.silu(x))
        x = F.pixel_shuffle(self.up2(x), 2)
        x = self.stage3(x + self.last_embedding(
            F.pixel_unshuffle(sight.last.to(dtype), self.shuffle)))
        x = F.silu(x)
        drawn = F.pixel_shuffle(self.out(x), self.shuffle).unflatten(1, (self.frames, 3))
        fine = self.fine_flow(x)
        flow = F.interpolate(wide, scale_factor=2.0, mode='bilinear') + 0.25 * fine
        flow = F.interpolate(flow, scale_factor=float(self.shuffle), mode='bilinear')
        flow = flow.unflatten(1, (2, self.frames, 2))
        shares = smoothed(F.pixel_shuffle(self.shares(x), self.shuffle), self.smoothing)
        return drawn, FLOW_SCALE * flow, torch.sigmoid(shares).unflatten(1, (2, self.frames, 1))

    def moved(self, picture: Tensor, flow: Tensor) -> Tensor:
        """A picture [B, 3, H, W] seen along flows [B, 4, 2, H, W] -> [B, 4, 3, H, W]."""
        # The frames' sources lie below each other, so that the picture need not be repeated.
        at = self.sources(flow).flatten(1, 2)
        seen = F.grid_sample(picture, at, mode='bilinear', padding_mode='zeros',
                             align_corners=False)
        return seen.unflatten(2, (self.frames, -1)).transpose(1, 2)

    def blend(self, latent: Tensor, sight: Sight) -> tuple[Tensor, ...]:
        """The frames and their three candidates: newly drawn, last frame and reference picture
        as moved; all [B, 4, 3, H, W]; the share of the latter two together [B, 4, 1, H, W], and
        their flows [B, 2, 4, 2, H, W]."""
        drawn, flow, shares = self.candidates(latent, sight)
        last = self.moved(sight.last, flow[:, 0])
        reference = self.moved(sight.picture, flow[:, 1])
        carried, recent = shares.unbind(1)
        old = reference + self.last_share * recent * (last - reference)
        return drawn + carried * (old - drawn), drawn, last, reference, carried, flow

    def forward(self, latent: Tensor, sight: Sight) -> Tensor:
        return self.blend(latent, sight)[0]


class Autoencoder(nn.Module):
    """Encoder, decoder and the per-channel statistics that bring latents to zero mean, unit std.

    `encode` and `decode` speak normalised latents.
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
        """[B, 4, 3, H, W] in [-1, 1] -> normalised latent [B, C, h, w]."""
        return self.normalised(self.encoder(frames))

    def normalised(self, latent: Tensor) -> Tensor:
        """The encoder's output [B, C, h, w] to zero mean and unit deviation per channel."""
        return (latent - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def decode(self, latent: Tensor, sight: Sight) -> Tensor:
        """Normalised latent [B, C, h, w] -> frames [B, 4, 3, H, W], nominally in [-1, 1]."""
        frames: Tensor = self.decoder(latent, sight)
        return frames

    def decode_clip(self, latents: Tensor, picture: Tensor) -> Tensor:
        """Decode chunk after chunk, as a stream does, from a reference picture on.

        Args:
            latents: normalised, [B, n, C, h, w]. picture: [B, 3, H, W] in [-1, 1].

        Returns:
            frames [B, n, 4, 3, H, W], within [-1, 1].
        """
        frames = self.decoder.frames
        reference = self.encode(picture[:, None].expand(-1, frames, -1, -1, -1))
        sight = Sight(reference, picture, reference, picture)
        made = []
        for latent in latents.unbind(1):
            made.append(self.decode(latent, sight).clamp(-1.0, 1.0))
            sight = sight._replace(previous=latent, last=made[-1][:, -1])
        return torch.stack(made, 1)


SHUFFLED_LAYERS: Final = ('decoder.out', 'decoder.shares')
"""Layers of an `Autoencoder` whose channels are shuffled into pixels."""


def widened(state: dict[str, Tensor], prefix: str, upscale: int) -> dict[str, Tensor]:
    """Weights of an autoencoder for pictures of ``upscale`` times the side: every new pixel begins
    as the old one that it lies in. Latents, flows and shares stay, so what is carried over from
    the reference picture is sharp at once; what is newly drawn is to be learnt.

    Args:
        state: weights by name.
        prefix: what the names of the autoencoder's begin with.
        upscale: 1 or more.
    """
    wide = dict(state)
    embedding = f'{prefix}decoder.last_embedding.weight'
    side = math.isqrt(state[embedding].shape[1] // 3)

    def spread(weight: Tensor, axis: int) -> Tensor:
        cells = weight.unflatten(axis, (-1, side, side))
        for cell in (axis + 1, axis + 2):
            cells = cells.repeat_interleave(upscale, cell)
        return cells.flatten(axis, axis + 2).contiguous()

    for layer in SHUFFLED_LAYERS:
        for part in ('weight', 'bias'):
            wide[f'{prefix}{layer}.{part}'] = spread(state[f'{prefix}{layer}.{part}'], 0)
    # It sees the mean of the pixels that stand where one stood.
    wide[embedding] = spread(state[embedding], 1) / upscale ** 2
    return wide
