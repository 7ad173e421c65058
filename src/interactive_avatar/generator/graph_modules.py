# SPDX-License-Identifier: Apache-2.0
"""The networks as the graphs of a model: one torch module for each name in `signatures`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from interactive_avatar.generator.autoencoder import Sight, as_input, as_pixels
from interactive_avatar.generator.denoiser import rotate
from interactive_avatar.generator.networks import Generator


class _EncodeImage(nn.Module):
    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.autoencoder = g.autoencoder

    def forward(self, frames: Tensor) -> Tensor:
        weight = self.autoencoder.encoder.stem.weight
        latent: Tensor = self.autoencoder.encode(as_input(frames).to(weight.dtype))
        return latent


class _Decode(nn.Module):
    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.autoencoder = g.autoencoder

    def forward(self, latent: Tensor, previous: Tensor, reference: Tensor, last: Tensor,
                picture: Tensor) -> Tensor:
        x = self.autoencoder.decode(latent, Sight(previous, as_input(last), reference,
                                                  as_input(picture)))
        return as_pixels(x)


class _EncodeAudio(nn.Module):
    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.audio, self.denoiser = g.audio, g.denoiser

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        keys_values: tuple[Tensor, Tensor] = self.denoiser.audio_cache(self.audio(mel))
        return keys_values


class _Denoiser(nn.Module):
    def __init__(self, g: Generator, method: str) -> None:
        super().__init__()
        self.denoiser = g.denoiser
        self.method = method

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.denoiser, self.method)(*inputs)


class _SampleStep(nn.Module):
    """One step of the sampler: x0 from a velocity, and x0 noised for what comes next."""

    def forward(self, latent: Tensor, velocity: Tensor, noise: Tensor, level: Tensor,
                next_level: Tensor) -> tuple[Tensor, Tensor]:
        clean = latent - level * velocity
        return clean, (1.0 - next_level) * clean + next_level * noise


class _Push(nn.Module):
    """New keys and values into the cache, as outputs: what `OnnxCache` does in place."""

    cos: Tensor
    sin: Tensor

    def __init__(self, g: Generator, kind: str) -> None:
        super().__init__()
        config, denoiser = g.config, g.denoiser
        self.register_buffer('cos', denoiser.cache_cos.clone())
        self.register_buffer('sin', denoiser.cache_sin.clone())
        self.layout = config.cache_layout
        self.kind = kind

    def forward(self, cache_k: Tensor, cache_v: Tensor, cache_mask: Tensor, k: Tensor, v: Tensor,
                long_slot: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        start, count, tokens = self.layout[self.kind]
        end = start + count * tokens

        def pushed(old: Tensor, new: Tensor, axis: int) -> Tensor:
            before = old.narrow(axis, 0, start)
            if long_slot is not None:
                before = self._kept(old, long_slot, axis)
            return torch.cat([before, old.narrow(axis, start + tokens, end - start - tokens), new,
                              old.narrow(axis, end, old.shape[axis] - end)], axis)

        next_k, next_v = pushed(cache_k, k, 3), pushed(cache_v, v, 3)
        next_mask = pushed(cache_mask, torch.zeros_like(cache_mask.narrow(1, 0, tokens)), 1)
        return next_k, rotate(next_k, self.cos, self.sin), next_v, next_mask

    def _kept(self, old: Tensor, long_slot: Tensor, axis: int) -> Tensor:
        """What precedes the short memory, with its oldest entry in the slot that is 1."""
        start, count, tokens = self.layout['long']
        middle = self.layout['short'][0]
        oldest = old.narrow(axis, middle, tokens)
        shape = [1] * old.dim()
        kept = []
        for slot in range(count):
            held = old.narrow(axis, start + slot * tokens, tokens)
            share = long_slot[:, slot].reshape([-1, *shape[1:]])
            kept.append(held + share * (oldest - held))
        return torch.cat([old.narrow(axis, 0, start), *kept], axis)


def graph_module(generator: Generator, name: str) -> nn.Module:
    """The torch module whose forward is the graph ``name``."""
    makers: dict[str, Callable[[], nn.Module]] = {
        'encode_image': lambda: _EncodeImage(generator),
        'decode': lambda: _Decode(generator),
        'encode_audio': lambda: _EncodeAudio(generator),
        'encode_text': lambda: _Denoiser(generator, 'text_cache'),
        'embed_reference': lambda: _Denoiser(generator, 'reference'),
        'denoise': lambda: _Denoiser(generator, 'chunk'),
        'compress': lambda: _Denoiser(generator, 'entry'),
        'sample_step': _SampleStep,
        'push_adjacent': lambda: _Push(generator, 'adjacent'),
        'push_memory': lambda: _Push(generator, 'short'),
    }
    return makers[name]()
