# SPDX-License-Identifier: Apache-2.0
"""PyTorch: the reference for the other backends, for training samples and for CUDA cards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interactive_avatar.generator.autoencoder import Sight, as_input, as_pixels
from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.networks import Generator

Pair = tuple[Tensor, Tensor]


class TorchCache:
    """Keys and values [1, L, H, context tokens, hw] on the device."""

    def __init__(self, config: GeneratorConfig, device: torch.device, dtype: torch.dtype) -> None:
        d = config.denoiser
        shape = (1, d.layers, d.heads, config.context_tokens, d.head_width)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.mask = torch.full((1, config.context_tokens), float(MASKED), device=device,
                               dtype=dtype)
        a = config.autoencoder
        self.previous = torch.zeros((1, a.latent_channels, a.latent_px, a.latent_px),
                                    device=device, dtype=dtype)
        self.reference = self.previous
        self.picture = torch.zeros((1, 3, a.picture_px, a.picture_px), device=device, dtype=dtype)
        self.last = self.picture
        self._slots = config.cache_layout

    def open(self, picture: NDArray[np.uint8], latent: NDArray[np.float32]) -> None:
        """See `Cache.open`."""
        shown = torch.from_numpy(picture[None]).to(self.picture.device)
        self.picture = self.last = as_input(shown).to(self.picture.dtype)
        self.reference = self.previous = torch.from_numpy(latent[None]).to(self.previous)

    def place(self, kind: str, index: int, entry: Pair) -> None:
        """See `Cache.place`."""
        start, count, tokens = self._slots[kind]
        if not 0 <= index < count:
            raise IndexError(f'slot {index} of {kind!r} does not exist; it has {count}')
        span = slice(start + index * tokens, start + (index + 1) * tokens)
        self.k[..., span, :], self.v[..., span, :] = entry
        self.mask[:, span] = 0.0

    def push(self, kind: str, entry: Pair) -> None:
        """See `Cache.push`."""
        start, count, tokens = self._slots[kind]
        end = start + count * tokens
        for array in (self.k, self.v):
            array[..., start:end - tokens, :] = array[..., start + tokens:end, :].clone()
        self.mask[:, start:end - tokens] = self.mask[:, start + tokens:end].clone()
        self.place(kind, count - 1, entry)

    def take(self, kind: str, index: int) -> Pair:
        """See `Cache.take`."""
        start, _, tokens = self._slots[kind]
        span = slice(start + index * tokens, start + (index + 1) * tokens)
        return self.k[..., span, :].clone(), self.v[..., span, :].clone()

    def follow(self, latent: NDArray[np.float32]) -> None:
        """See `Cache.follow`."""
        self.previous = torch.from_numpy(latent[None]).to(self.previous)

    def copy(self) -> TorchCache:
        """See `Cache.copy`."""
        other = object.__new__(TorchCache)
        other.__dict__.update(self.__dict__)
        for name in ('k', 'v', 'mask'):
            setattr(other, name, getattr(self, name).clone())
        return other


class TorchBackend:
    """Runs the networks themselves.

    Args:
        files: the checked model.
        device: cuda or cpu; cuda where there is one by default.
        dtype: of weights and caches; float32 by default.
    """

    name = 'torch'

    def __init__(self, files: ModelFiles, device: str | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        generator = Generator(files.config)
        generator.load(files.weights)
        self._bind(generator, files.config, dtype)

    @classmethod
    def of(cls, generator: Generator, device: str = 'cpu',
           dtype: torch.dtype = torch.float32) -> TorchBackend:
        """A backend over networks in memory."""
        self = object.__new__(cls)
        self.device = torch.device(device)
        self._bind(generator, generator.config, dtype)
        return self

    def _bind(self, generator: Generator, config: GeneratorConfig, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self._networks = generator.to(self.device, dtype).eval()

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)[None]

    @staticmethod
    def _array(tensor: Tensor) -> NDArray[np.float32]:
        array: NDArray[np.float32] = tensor[0].float().cpu().numpy()
        return array

    def new_cache(self) -> TorchCache:
        """See `Backend.new_cache`."""
        return TorchCache(self.config, self.device, self.dtype)

    @torch.no_grad()
    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.encode_image`."""
        x = as_input(torch.from_numpy(frames[None]).to(self.device)).to(self.dtype)
        return self._array(self._networks.autoencoder.encode(x))

    @torch.no_grad()
    def encode_audio(self, mel: NDArray[np.float32]) -> Pair:
        """See `Backend.encode_audio`."""
        return self._networks.denoiser.audio_cache(self._networks.audio(self._tensor(mel)))

    @torch.no_grad()
    def encode_text(self, tokens: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backend.encode_text`."""
        d = self.config.denoiser
        padded = np.zeros((d.text_tokens, d.text_width), np.float32)
        mask = np.full(d.text_tokens, MASKED, np.float32)
        count = min(len(tokens), d.text_tokens)
        padded[:count], mask[:count] = tokens[:count], 0.0
        k, v = self._networks.denoiser.text_cache(self._tensor(padded))
        return k, v, self._tensor(mask)

    @torch.no_grad()
    def embed_reference(self, latent: NDArray[np.float32]) -> Pair:
        """See `Backend.embed_reference`."""
        return self._networks.denoiser.reference(self._tensor(latent))

    @torch.no_grad()
    def _forward(self, latent: NDArray[np.float32], level: float, audio: Pair,
                 text: tuple[Tensor, Tensor, Tensor],
                 cache: TorchCache) -> tuple[Tensor, Tensor, Tensor]:
        from interactive_avatar.generator.denoiser import rotate
        denoiser = self._networks.denoiser
        at = torch.full((1,), level, device=self.device, dtype=self.dtype)
        rotated = rotate(cache.k, denoiser.cache_cos, denoiser.cache_sin)
        return denoiser.chunk(self._tensor(latent), at, cache.previous, *audio, *text, rotated,
                              cache.v, cache.mask)

    def denoise(self, latent: NDArray[np.float32], level: float, audio: Pair,
                text: tuple[Tensor, Tensor, Tensor], cache: TorchCache) -> NDArray[np.float32]:
        """See `Backend.denoise`."""
        return self._array(self._forward(latent, level, audio, text, cache)[0])

    def commit(self, latent: NDArray[np.float32], level: float, audio: Pair,
               text: tuple[Tensor, Tensor, Tensor], cache: TorchCache) -> Pair:
        """See `Backend.commit`."""
        _, k, v = self._forward(latent, level, audio, text, cache)
        return k, v

    @torch.no_grad()
    def compress(self, latents: NDArray[np.float32], cache: TorchCache) -> Pair:
        """See `Backend.compress`."""
        return self._networks.denoiser.entry(self._tensor(latents), *cache.take('reference', 0))

    @torch.no_grad()
    def decode(self, latent: NDArray[np.float32], cache: TorchCache) -> NDArray[np.uint8]:
        """See `Backend.decode`."""
        frames = self._networks.autoencoder.decode(self._tensor(latent), Sight(
            cache.previous, cache.last, cache.reference, cache.picture))[0].float()
        pixels = as_pixels(frames)
        cache.last = as_input(pixels[-1:]).to(self.dtype)
        array: NDArray[np.uint8] = pixels.cpu().numpy()
        return array
