# SPDX-License-Identifier: Apache-2.0
"""Sizes of a wan model; the public sizes of Wan2.1 by name; JSON round trip."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from interactive_avatar.generator.config import MemoryConfig, SamplerConfig, build_config
from interactive_avatar.media.clock import CHUNK_MS

ARCHITECTURE = 'wan'
VAE_SPACE_STRIDE = 8
"""Pixels per latent cell, each way."""


@dataclass(frozen=True)
class WanNetworkConfig:
    """Wan2.1's diffusion transformer; the defaults are T2V-1.3B's."""

    width: int = 1536
    heads: int = 12
    layers: int = 30
    ffn_width: int = 8960
    frequency_width: int = 256
    text_width: int = 4096
    text_tokens: int = 512
    latent_channels: int = 16
    patch: int = 2
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def rope_pairs(self) -> tuple[int, int, int]:
        """Complex pairs of a head that turn with time, row and column: 22, 21, 21 of 64."""
        side = self.head_width // 6
        return self.head_width // 2 - 2 * side, side, side


@dataclass(frozen=True)
class WanAudioConfig:
    """Wav2Vec2 features of a latent frame -> ``tokens`` keys for its audio cross-attention.

    ``margin_frames`` video frames on either side of the latent frame's four enter its window.
    The encoder hears ``left_context_ms`` before the block and ``lookahead_ms`` after it.
    ``enabled`` is False for weights without audio attention.
    """

    enabled: bool = True
    feature_layers: int = 12
    feature_width: int = 768
    margin_frames: int = 2
    inner_width: int = 512
    tokens: int = 32
    token_width: int = 768
    left_context_ms: int = 1920
    lookahead_ms: int = CHUNK_MS


@dataclass(frozen=True)
class WanConfig:
    """Everything that gives a wan model its shapes.

    ``chunk_latents`` latent frames are made together (one block); each is four video frames, so
    160 ms. ``components`` names the folders of VAE, text encoder, tokenizer and audio encoder,
    absolute or relative to the model's folder.
    """

    name: str = 'wan-1.3b'
    architecture: str = ARCHITECTURE
    format_version: int = 1
    picture_px: int = 512
    chunk_latents: int = 3
    network: WanNetworkConfig = field(default_factory=WanNetworkConfig)
    audio: WanAudioConfig = field(default_factory=WanAudioConfig)
    memory: MemoryConfig = field(default_factory=lambda: MemoryConfig(
        adjacent=3, short=6, long=6, group=5, entry_side=8, compressor_width=256))
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(
        levels=(1.0, 0.9375, 0.8333333, 0.625), commit_level=0.0))
    components: dict[str, str] = field(default_factory=dict)

    @property
    def latent_px(self) -> int:
        """Side of the latent grid: the picture divided by 8."""
        return self.picture_px // VAE_SPACE_STRIDE

    @property
    def grid_side(self) -> int:
        """Side of the grid of tokens of one latent frame."""
        return self.latent_px // self.network.patch

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame, 1,024 at 512×512."""
        return self.grid_side ** 2

    @property
    def block_tokens(self) -> int:
        """Tokens of the latent frames that are made together."""
        return self.chunk_latents * self.frame_tokens

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of one latent frame."""
        return self.network.latent_channels, self.latent_px, self.latent_px

    def to_json(self) -> str:
        """The config as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> WanConfig:
        """Read a config written by `to_json`.

        Raises:
            ValueError: on an unknown key, another architecture or format, or impossible sizes.
        """
        config: WanConfig = build_config(cls, json.loads(text), 'config')
        if config.architecture != ARCHITECTURE or config.format_version != cls.format_version:
            raise ValueError(f'this is a model of architecture {config.architecture!r}, format '
                             f'{config.format_version}; this version reads {ARCHITECTURE!r}, '
                             f"format {cls.format_version}: run 'avatar import-weights' again")
        config.check()
        return config

    def check(self) -> None:
        """Refuse sizes that no network has.

        Raises:
            ValueError: naming the size and what it must be.
        """
        n, side = self.network, self.memory.entry_side
        step = VAE_SPACE_STRIDE * n.patch * side
        if n.width % n.heads or n.head_width % 2:
            raise ValueError(f'network.width {n.width} does not divide into {n.heads} heads of '
                             f'even width')
        if self.picture_px <= 0 or self.picture_px % step:
            raise ValueError(f'picture_px {self.picture_px} must be a multiple of {step}, so that '
                             f'memory entries of {side}×{side} tokens fit its grid')
        if self.chunk_latents < 1:
            raise ValueError(f'chunk_latents {self.chunk_latents} must be at least 1')


WAN_1_3B = WanConfig()
WAN_14B = WanConfig(name='wan-14b', network=WanNetworkConfig(
    width=5120, heads=40, layers=40, ffn_width=13824))
WAN_TINY = WanConfig(
    name='wan-tiny', picture_px=64, network=WanNetworkConfig(
        width=48, heads=2, layers=2, ffn_width=96, frequency_width=32, text_width=24,
        text_tokens=12),
    audio=WanAudioConfig(feature_layers=2, feature_width=16, inner_width=16, tokens=4,
                         token_width=16),
    memory=MemoryConfig(adjacent=3, short=2, long=2, group=2, entry_side=2, compressor_width=8))
"""For tests and dry runs."""

SIZES = {config.name: config for config in (WAN_1_3B, WAN_14B, WAN_TINY)}
