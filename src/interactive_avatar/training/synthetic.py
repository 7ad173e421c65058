# SPDX-License-Identifier: Apache-2.0
"""Clips and prompts of random numbers: a training step costs what it costs, and nothing is drawn.

For measuring and for dry runs; what is trained on them learns nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.data import PROBE_UNITS, REFERENCES_PER_CLIP, Shard
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.speech.library import MEL_FRAMES_PER_FRAME

CHUNKS_PER_PROMPT = 10


def synthetic_shard(config: GeneratorConfig, clips: int, chunks: int, prompts: int,
                    device: torch.device, seed: int = 0) -> Shard:
    """Encoded clips, the same for the same seed on the same kind of device.

    Args:
        clips, chunks: how many, and of how many chunks of 160 ms each.
        prompts: size of the prompt table that their chunks point into.
    """
    a, frames = config.autoencoder, chunks * FRAMES_PER_CHUNK
    random = torch.Generator(device).manual_seed(seed)
    latent = (a.latent_channels, a.latent_px, a.latent_px)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device).half()

    ids = torch.randint(0, prompts, (clips, -(-chunks // CHUNKS_PER_PROMPT)), generator=random,
                        device=device).repeat_interleave(CHUNKS_PER_PROMPT, 1)
    middle = a.picture_px / 2
    state = {
        'mouth': uniform(clips, frames, config.audio.mouth_units),
        'probe_units': uniform(clips, frames, len(PROBE_UNITS)),
        'mel': (255 * uniform(clips, frames * MEL_FRAMES_PER_FRAME, config.audio.mel_bands)).to(
            torch.uint8),
        'prompt_ids': ids[:, :chunks],
        'in_view': torch.ones((clips, frames), dtype=torch.bool, device=device),
        'told': torch.ones((clips, chunks), dtype=torch.bool, device=device),
        'marks': middle + 0.1 * middle * uniform(clips, frames, 3, 2),
        'latents': normal(clips, chunks, *latent),
        'references': normal(clips, REFERENCES_PER_CLIP, *latent),
        'pictures': torch.zeros((clips, a.picture_px, a.picture_px, 3), dtype=torch.uint8,
                                device=device)}
    return Shard.of([state], config, device, seed)


def synthetic_prompts(config: GeneratorConfig, count: int, device: torch.device,
                      seed: int = 1) -> Prompts:
    """Prompts of random states, half of each masked."""
    d = config.denoiser
    random = torch.Generator(device).manual_seed(seed)
    empty = torch.arange(d.text_tokens, device=device) >= d.text_tokens // 2
    return Prompts.of(
        torch.randn((count, d.text_tokens, d.text_width), generator=random, device=device).half(),
        (empty.float() * float(MASKED)).expand(count, -1).clone())
