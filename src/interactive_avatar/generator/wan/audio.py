# SPDX-License-Identifier: Apache-2.0
"""Wav2Vec2 on a bounded window of sound: features of a block's latent frames.

Wav2Vec2 is bidirectional, so a stream hears a fixed stretch before the block and a bounded
lookahead after it, anew for each block: no state, no drift, the same cost for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.config import WanConfig
from interactive_avatar.media.clock import (
    FRAMES_PER_CHUNK,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
)

SILENCE_LEVEL = 1e-3
"""Sound is scaled to unit variance as Wav2Vec2 was trained, but never louder than from this
standard deviation (-60 dBFS): silence stays silence."""


def window_samples(config: WanConfig) -> int:
    """Samples that the encoder hears for one block: left context, block, lookahead."""
    a = config.audio
    context = (a.left_context_ms + a.lookahead_ms) * SAMPLE_RATE_HZ // 1000
    return context + config.chunk_latents * FRAMES_PER_CHUNK * SAMPLES_PER_FRAME


class Wav2Vec2Features:
    """Sound to the windows that `WanBackend.encode_audio` takes."""

    def __init__(self, encoder: Any, config: WanConfig) -> None:
        self._encoder, self._config = encoder, config

    @classmethod
    def load(cls, folder: Path, config: WanConfig, device: str) -> Wav2Vec2Features:
        """Load a transformers folder of Wav2Vec2.

        Raises:
            ModelError: if transformers is missing, the encoder is of another size, or a file
                cannot be read.
        """
        try:
            values = json.loads((folder / 'config.json').read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f'{str(folder)!r} is no audio encoder: {error}') from error
        a = config.audio
        found = values.get('num_hidden_layers'), values.get('hidden_size')
        if found != (a.feature_layers, a.feature_width):
            raise ModelError(f'the audio encoder {str(folder)!r} has {found[0]} layers of width '
                             f'{found[1]}; this model takes {a.feature_layers} of '
                             f'{a.feature_width} (wav2vec2-base)')
        try:
            from transformers import Wav2Vec2Model
        except ImportError as error:
            raise ModelError("the audio encoder needs transformers: pip install -e "
                             "'.[wan]'") from error
        try:
            model = Wav2Vec2Model.from_pretrained(str(folder), dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f'the audio encoder in {str(folder)!r} cannot be loaded: {error}'
                             ) from error
        whole: Any = model
        return cls(whole.to(device).eval(), config)

    @torch.no_grad()
    def windows(self, sound: NDArray[np.int16]) -> NDArray[np.float32]:
        """Features around each latent frame of the block.

        Args:
            sound: int16 [`window_samples`], 16 kHz.

        Returns:
            float32 [latents, 4 + 2 · margin_frames, feature_layers, feature_width].

        Raises:
            ValueError: on another length.
        """
        c, a = self._config, self._config.audio
        if sound.shape != (window_samples(c),):
            raise ValueError(f'the audio window must be [{window_samples(c)}] samples, got '
                             f'{list(sound.shape)}')
        x = torch.from_numpy(sound.astype(np.float32) / 32768.0)
        x = (x - x.mean()) / max(float(x.std()), SILENCE_LEVEL)
        device = next(self._encoder.parameters()).device
        states = self._encoder(x[None].to(device), output_hidden_states=True).hidden_states[1:]
        layers = torch.cat(list(states)).transpose(1, 2)
        frames = len(sound) // SAMPLES_PER_FRAME
        # 50 Hz states, fewer at the end by the encoder's own window, to 25 Hz video frames.
        paced = F.interpolate(layers, size=frames, mode='linear', align_corners=True)
        paced = paced.permute(2, 0, 1)
        start = a.left_context_ms * SAMPLE_RATE_HZ // 1000 // SAMPLES_PER_FRAME
        begins = [start + FRAMES_PER_CHUNK * latent - a.margin_frames
                  for latent in range(c.chunk_latents)]
        width = FRAMES_PER_CHUNK + 2 * a.margin_frames
        array: NDArray[np.float32] = torch.stack(
            [paced[begin:begin + width] for begin in begins]).float().cpu().numpy()
        return array
