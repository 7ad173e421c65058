# SPDX-License-Identifier: Apache-2.0
"""A generator of the compact architecture, small enough for unit tests."""

import numpy as np

from interactive_avatar.generator.backends.base import Backend
from interactive_avatar.generator.config import (
    AudioConfig,
    AutoencoderConfig,
    DenoiserConfig,
    GeneratorConfig,
    MemoryConfig,
)
from interactive_avatar.generator.stream import AvatarStream

TINY = GeneratorConfig(
    name='tiny',
    autoencoder=AutoencoderConfig(picture_px=128, latent_channels=8, encoder_widths=(8, 16, 16),
                                  decoder_widths=(16, 16, 8), decoder_blocks=(1, 1, 1)),
    audio=AudioConfig(width=32, layers=1, heads=2),
    memory=MemoryConfig(entry_side=2, compressor_width=16),
    denoiser=DenoiserConfig(width=64, heads=2, layers=2, ffn_width=128, blink_rows=2,
                            passing=True,
                            rope_split=(12, 10, 10)))


def encode_text(text: str) -> np.ndarray:
    """Stands where the text encoder does: states that depend on the text's length."""
    random = np.random.default_rng(len(text))
    return random.standard_normal((5, TINY.denoiser.text_width)).astype(np.float32)


def reference(seed: int = 0) -> np.ndarray:
    """A picture of noise."""
    side = TINY.autoencoder.picture_px
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)


def open_stream(backend: Backend, seed: int = 0) -> AvatarStream:
    """A stream of the tiny model."""
    return AvatarStream(backend, reference(), 'a person', encode_text, seed)
