# SPDX-License-Identifier: Apache-2.0
"""A generator of the compact architecture, small enough for unit tests."""

from interactive_avatar.generator.config import (
    AudioConfig,
    AutoencoderConfig,
    DenoiserConfig,
    GeneratorConfig,
    MemoryConfig,
)

TINY = GeneratorConfig(
    name='tiny',
    autoencoder=AutoencoderConfig(picture_px=128, latent_channels=8, encoder_widths=(8, 16, 16),
                                  decoder_widths=(16, 16, 8), decoder_blocks=(1, 1, 1)),
    audio=AudioConfig(width=32, layers=1, heads=2),
    memory=MemoryConfig(entry_side=2, compressor_width=16),
    denoiser=DenoiserConfig(width=64, heads=2, layers=2, ffn_width=128,
                            rope_split=(12, 10, 10)))
