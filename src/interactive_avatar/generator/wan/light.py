# SPDX-License-Identifier: Apache-2.0
"""A light decoder for Wan2.1's latents: a tenth of the VAE's operations, a little less sharp.

The architecture of TAEHV (tiny autoencoders for video latents, MIT), so that its weights for
Wan2.1 (``taew2_1``) load under their own names. Same calls as `vae.StreamingDecoder`. Never used
unless asked for: a model folder that has a component ``light_decoder`` and ``decoder: light``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.vae import DecoderState


@dataclass(frozen=True)
class LightDecoderConfig:
    """Channels of the four stages, from the latent's side to eight times it."""

    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    z_dim: int = 16

    @classmethod
    def for_width(cls, transformer_width: int) -> LightDecoderConfig:
        """The public sizes, or tiny ones beside a tiny transformer."""
        return cls() if transformer_width >= 512 else cls((16, 8, 8, 8))


def _conv(channels: int, out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, bias=bias)


class MemoryBlock(nn.Module):
    """Residual block that sees each frame beside the one before it; x and past [T, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(2 * channels, channels), nn.ReLU(),
                                  _conv(channels, channels), nn.ReLU(), _conv(channels, channels))

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)


class Grow(nn.Module):
    """Each frame becomes ``factor`` frames: [T, C, H, W] -> [T · factor, C, H, W]."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels * factor, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.unflatten(1, (-1, self.channels)).flatten(0, 1).contiguous(
            memory_format=torch.channels_last)


class LightDecoder(nn.Module):
    """Latents to frames, each call going on where the last one stopped."""

    def __init__(self, config: LightDecoderConfig) -> None:
        super().__init__()
        a, b, c, d = config.widths

        def stage(channels: int, out: int, factor: int) -> list[nn.Module]:
            return [*(MemoryBlock(channels) for _ in range(3)), nn.Upsample(scale_factor=2),
                    Grow(channels, factor), _conv(channels, out, bias=False)]

        # Positions in the list are the names of the weights; Identity stands for steps without.
        self.decoder = nn.ModuleList([
            nn.Identity(), _conv(config.z_dim, a), nn.ReLU(), *stage(a, b, 1), *stage(b, c, 2),
            *stage(c, d, 2), nn.ReLU(), _conv(d, 3)])

    def fuse(self) -> bool:
        """See `StreamingDecoder.fuse`: nothing to fuse here but the memory layout."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return True

    def tune(self, latents: Tensor) -> dict[str, str]:
        """See `StreamingDecoder.tune`: plain 2-d convolutions, nothing to choose."""
        del latents
        return {}

    @torch.no_grad()
    def forward(self, latents: Tensor, state: DecoderState) -> Tensor:
        """See `StreamingDecoder.forward`."""
        first, state.started = not state.started, True
        weight = cast(nn.Conv2d, self.decoder[1]).weight
        x = latents.to(weight.dtype).contiguous(memory_format=torch.channels_last)
        x = torch.tanh(x / 3) * 3
        for index, module in enumerate(self.decoder):
            if isinstance(module, MemoryBlock):
                kept = state.of(f'light.{index}', x.permute(0, 2, 3, 1), x.shape[1])
                frames = torch.cat([kept[-1:].permute(0, 3, 1, 2), x])
                kept[-1:] = x[-1:].permute(0, 2, 3, 1)
                x = module(x, frames[:-1])
            else:
                x = module(x)
        if first:
            x = x[3:]  # Wan2.1's first latent is one frame.
        pixels = (x.float().clamp(0, 1) * 255.0).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()


def load_light_decoder(path: Path) -> LightDecoder:
    """Read TAEHV weights for Wan2.1, .safetensors or .pth.

    Raises:
        ModelError: names what does not fit.
    """
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file
            state: dict[str, Any] = load_file(str(path))
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # both loaders raise many kinds
        raise ModelError(f'the light decoder {str(path)!r} cannot be read: {error}') from error
    decoder = LightDecoder(LightDecoderConfig())
    own = decoder.state_dict()
    given = {name: value for name, value in state.items() if name.startswith('decoder.')}
    for name, value in own.items():
        # Released files may hold a frame grower for more frames; the last ones count.
        if name in given and name.endswith('.conv.weight') and value.shape[-1] == 1:
            given[name] = given[name][-value.shape[0]:]
    wrong = sorted(set(own) ^ set(given)) + [
        name for name in own if name in given and own[name].shape != given[name].shape]
    if wrong:
        raise ModelError(f'{str(path)!r} is no TAEHV decoder for Wan2.1; it differs at '
                         f'{wrong[:5]}')
    decoder.load_state_dict(given)
    return decoder.eval()
