# SPDX-License-Identifier: Apache-2.0
"""All networks of a generator as one torch module, and their safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from interactive_avatar.generator.audio import AudioEncoder
from interactive_avatar.generator.autoencoder import Autoencoder, widened
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.denoiser import Denoiser
from interactive_avatar.generator.model import ModelError

SCALE_SUFFIX = '.scale'
QUANTISED_MIN_VALUES = 16_384
"""Matrices at least this large are released in 8 bits; smaller ones would save nothing."""


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric 8-bit weights with one scale per output row.

    Args:
        weight: float [out, ...].

    Returns:
        int8 of the same shape and float32 scales [out, 1, ...]; weight ≈ int8 · scale.
    """
    flat = weight.float().flatten(1)
    scale = flat.abs().amax(dim=1).clamp_min(1e-8) / 127.0
    shape = (-1,) + (1,) * (weight.dim() - 1)
    scale = scale.view(shape)
    return torch.round(weight.float() / scale).to(torch.int8), scale


def saved_config(path: Path) -> GeneratorConfig:
    """The config that weights were saved with; the default one if the file names none.

    Raises:
        ValueError: if this version cannot read it.
    """
    with safe_open(str(path), 'pt') as stored:
        text = (stored.metadata() or {}).get('config')
    return GeneratorConfig() if text is None else GeneratorConfig.from_json(text)


def saved_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights by name as `Generator.save` wrote them, those in 8 bits as float32 again."""
    state = load_file(str(path))
    for name in [n for n in state if n.endswith(SCALE_SUFFIX)]:
        matrix = name.removesuffix(SCALE_SUFFIX)
        state[matrix] = state[matrix].float() * state.pop(name)
    return state


class Generator(nn.Module):
    """Autoencoder, audio encoder and denoiser; the prefix of a weight says whose it is."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder)
        self.audio = AudioEncoder(config.audio)
        self.denoiser = Denoiser(config)

    def save(self, path: Path, quantise: bool = True, prefixes: tuple[str, ...] = ('',)) -> None:
        """Write weights as safetensors with the config in the metadata.

        Args:
            path: the file.
            quantise: large matrices and kernels as int8 with a scale per output row (the
                released form, a quarter of float32); otherwise everything is float16.
            prefixes: only weights whose names start with one of these.
        """
        state: dict[str, torch.Tensor] = {}
        for name, value in self.state_dict().items():
            if not name.startswith(prefixes):
                continue
            value = value.detach().cpu()
            if quantise and value.dim() >= 2 and value.numel() >= QUANTISED_MIN_VALUES \
                    and name.endswith('.weight'):
                stored, scale = quantise_rows(value)
                state[name], state[name + SCALE_SUFFIX] = stored.contiguous(), scale.contiguous()
            else:
                state[name] = value.to(torch.float16).contiguous()
        save_file(state, str(path), {'config': self.config.to_json()})

    def load(self, path: Path, partial: bool = False, misfits: bool = False,
             widen: bool = False) -> frozenset[str]:
        """Read weights written by `save`; ``partial`` leaves those that the file lacks alone.

        Args:
            path: the file.
            partial: whether weights may be missing.
            misfits: leave out weights of another shape than here, and unknown ones, as if the
                file lacked them.
            widen: take the weights of a decoder for smaller pictures (`autoencoder.widened`).

        Returns:
            names of the weights that the file lacks.

        Raises:
            ModelError: names missing, unexpected and wrongly shaped keys.
        """
        state = saved_weights(path)
        own = self.state_dict()
        if widen and 'autoencoder.decoder.out.weight' in state:
            factor = self.config.autoencoder.upscale / saved_config(path).autoencoder.upscale
            if factor > 1.0 and factor.is_integer():
                state = widened(state, 'autoencoder.', int(factor))
        if misfits:
            state = {name: value for name, value in state.items()
                     if name in own and own[name].shape == value.shape}
        missing = [] if partial else sorted(set(own) - set(state))
        unexpected = sorted(set(state) - set(own))
        shapes = [f'{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}'
                  for name in own if name in state and state[name].shape != own[name].shape]
        if missing or unexpected or shapes:
            raise ModelError(f'{str(path)!r} does not fit the config: missing {missing[:5]}, '
                             f'unexpected {unexpected[:5]}, shapes {shapes[:5]}; use the config '
                             f'that the weights were saved with')
        self.load_state_dict({name: value.float() for name, value in state.items()},
                             strict=not partial)
        return frozenset(own) - frozenset(state)
