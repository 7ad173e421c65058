# SPDX-License-Identifier: Apache-2.0
"""Sizes of a generator; round-trips through JSON so that a model is its config plus weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Any, Final, get_type_hints

from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.media.mel import MEL_BANDS

BLINK_CHUNKS: Final = 2
"""Chunks that a blink takes: lids fall and are shut in the first, and open in the second."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Video autoencoder: 4 frames of ``picture_px``² become one latent of ``latent_px``².

    ``upscale`` is how much larger pictures are than what the encoder looks at: it averages them
    first, so that decoders of several sizes share latents, and the denoiser that makes them.
    ``pixel_shuffle`` follows from it: the decoder's last layers lie on a grid four times the
    latent's. ``last_share`` is the most that the frame before the chunk may give to a new pixel:
    what is wrong in it fades at least that fast.

    Raises:
        ValueError: if ``picture_px`` is no multiple of 16 · ``upscale``, or ``pixel_shuffle`` is
            not 4 · ``upscale``.
    """

    picture_px: int = 256
    upscale: int = 1
    latent_channels: int = 32
    encoder_widths: tuple[int, ...] = (64, 128, 256)
    decoder_widths: tuple[int, ...] = (256, 128, 96)
    decoder_blocks: tuple[int, ...] = (2, 2, 1)
    pixel_shuffle: int = 4
    last_share: float = 0.92
    frames: int = FRAMES_PER_CHUNK

    def __post_init__(self) -> None:
        if self.upscale < 1 or self.picture_px % (16 * self.upscale):
            raise ValueError(f'picture_px is {self.picture_px} and upscale {self.upscale}: give '
                             f'pictures of a multiple of 16 times the upscale, which is 1 or more')
        if self.pixel_shuffle != 4 * self.upscale:
            raise ValueError(f'pixel_shuffle is {self.pixel_shuffle}: with an upscale of '
                             f'{self.upscale} it is {4 * self.upscale}')

    @property
    def latent_px(self) -> int:
        """Side of the latent grid: what the encoder looks at, divided by 16."""
        return self.picture_px // (16 * self.upscale)

    def upscaled(self, upscale: int) -> AutoencoderConfig:
        """The same latents for pictures of ``upscale`` times the encoder's side."""
        return replace(self, picture_px=self.picture_px // self.upscale * upscale,
                       upscale=upscale, pixel_shuffle=4 * upscale)


@dataclass(frozen=True)
class AudioConfig:
    """Audio encoder: a window of mel frames becomes ``tokens`` vectors of ``width``.

    The window holds ``past_frames + 4 + ahead_frames`` video frames of 40 ms, of which the last
    ``tokens`` are handed to the denoiser.
    """

    mel_bands: int = MEL_BANDS
    width: int = 192
    layers: int = 3
    heads: int = 4
    past_frames: int = 16
    ahead_frames: int = 4
    tokens: int = 12
    mouth_units: int = 16

    @property
    def window_frames(self) -> int:
        """Video frames in the window, 24."""
        return self.past_frames + FRAMES_PER_CHUNK + self.ahead_frames

    @property
    def window_mels(self) -> int:
        """10 ms mel frames in the window, 96."""
        return 4 * self.window_frames


@dataclass(frozen=True)
class MemoryConfig:
    """Long-Short Visual Memory: how many entries of each kind and what one entry holds."""

    adjacent: int = 2
    short: int = 6
    long: int = 6
    group: int = 5
    entry_side: int = 4
    compressor_width: int = 128

    @property
    def entry_tokens(self) -> int:
        """Tokens of one compressed entry, 16."""
        return self.entry_side * self.entry_side


@dataclass(frozen=True)
class DenoiserConfig:
    """Diffusion transformer; ``refiner_layers`` of its token refiner, 0 for none.

    ``blink_rows``: keys and values of a blink, for each of the `BLINK_CHUNKS` chunks that it
    takes; 0 for a generator that blinks when it likes. ``passing``: whether its token refiner
    knows `prompts.passing_prompt`.
    """

    width: int = 384
    heads: int = 6
    layers: int = 8
    ffn_width: int = 1536
    patch: int = 2
    text_width: int = 384
    text_tokens: int = 20
    refiner_layers: int = 0
    refiner_heads: int = 6
    refiner_ffn_width: int = 768
    blink_rows: int = 0
    passing: bool = False
    rope_split: tuple[int, int, int] = (24, 20, 20)
    rope_theta: float = 100.0
    frequency_width: int = 256

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def text_rows(self) -> int:
        """Keys and values that text attention sees: a prompt's, then those of a blink."""
        return self.text_tokens + BLINK_CHUNKS * self.blink_rows


@dataclass(frozen=True)
class SamplerConfig:
    """Few-step sampler: noise levels at which x0 is predicted, and the level of the commit."""

    levels: tuple[float, ...] = (1.0, 0.5)
    commit_level: float = 0.1


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that gives the networks their shapes."""

    name: str = 'compact'
    format_version: int = 2
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one latent frame, 64."""
        return (self.autoencoder.latent_px // self.denoiser.patch) ** 2

    @property
    def context_slots(self) -> tuple[tuple[str, int, int], ...]:
        """Layout of the cache: (kind, number of entries, tokens per entry), in order."""
        memory = self.memory
        return (('reference', 1, self.chunk_tokens), ('long', memory.long, memory.entry_tokens),
                ('short', memory.short, memory.entry_tokens),
                ('adjacent', memory.adjacent, self.chunk_tokens))

    @property
    def cache_layout(self) -> dict[str, tuple[int, int, int]]:
        """Kind -> (first token, number of entries, tokens per entry) in the cache."""
        layout, start = {}, 0
        for kind, count, tokens in self.context_slots:
            layout[kind] = (start, count, tokens)
            start += count * tokens
        return layout

    @property
    def context_tokens(self) -> int:
        """Tokens in the cache, 384; self-attention sees these and the chunk's own."""
        return sum(count * tokens for _, count, tokens in self.context_slots)

    def to_json(self) -> str:
        """The config as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> GeneratorConfig:
        """Read a config written by `to_json`.

        Raises:
            ValueError: on an unknown key, naming it, or on another format version.
        """
        config: GeneratorConfig = build_config(cls, json.loads(text), 'config')
        if config.format_version != cls.format_version:
            raise ValueError(f'model format {config.format_version} is not supported by this '
                             f'version (format {cls.format_version}); export the model again')
        return config


def build_config(kind: Any, values: dict[str, Any], where: str) -> Any:
    """An instance of the dataclass ``kind`` from what JSON gave, nested ones and tuples too.

    Raises:
        ValueError: on an unknown key, naming it and where it stands.
    """
    hints = get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise ValueError(f'unknown key {sorted(unknown)[0]!r} in {where}; known: {sorted(known)}')
    built = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            built[name] = build_config(hint, value, f'{where}.{name}')
        else:
            built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)
