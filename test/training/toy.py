# SPDX-License-Identifier: Apache-2.0
"""A shard of made-up clips and prompts for a tiny generator: stages run, nothing is drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'generator'))

from tiny import TINY

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.networks import Generator
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.prompts import Prompts

# So small that more threads only wait for each other.
torch.set_num_threads(1)
CPU = torch.device('cpu')
ALONE = Process(0, 1, CPU)
PROMPT_COUNT = 5


def shard(clips: int = 3, chunks: int = 60, seed: int = 0) -> Shard:
    """Clips whose latents drift slowly, so that neighbours are alike."""
    random = torch.Generator().manual_seed(seed)
    a, n = TINY.autoencoder, chunks * 4
    latent = (a.latent_channels, a.latent_px, a.latent_px)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    latents = (0.3 * normal(clips, chunks, *latent)).cumsum(1)
    latents = latents / latents.std()
    state = {
        'mouth': torch.rand((clips, n, 16), generator=random),
        'probe_units': torch.rand((clips, n, 4), generator=random),
        'mel': torch.randint(0, 255, (clips, 4 * n, TINY.audio.mel_bands), generator=random,
                             dtype=torch.uint8),
        'prompt_ids': torch.randint(0, PROMPT_COUNT, (clips, chunks // 10), generator=random
                                    ).repeat_interleave(10, 1),
        'in_view': torch.ones((clips, n), dtype=torch.bool),
        'told': torch.rand((clips, chunks), generator=random) < 0.8,
        'marks': torch.rand((clips, n, 3, 2), generator=random) * a.picture_px,
        'latents': latents.half(),
        'references': latents[:, :6].half(),
        'pictures': torch.randint(0, 255, (clips, a.picture_px, a.picture_px, 3),
                                  generator=random, dtype=torch.uint8)}
    return Shard.of([state], TINY, CPU, seed)


def prompts() -> Prompts:
    """Prompts of random states, half of each masked."""
    d = TINY.denoiser
    made = object.__new__(Prompts)
    random = torch.Generator().manual_seed(1)
    made.states = torch.randn((PROMPT_COUNT, d.text_tokens, d.text_width), generator=random)
    empty = torch.arange(d.text_tokens) >= d.text_tokens // 2
    made.mask = (empty.float() * float(MASKED)).expand(PROMPT_COUNT, -1).clone()
    return made


def trainee(seed: int = 0) -> Trainee:
    """Audio encoder and denoiser with weights that do something."""
    torch.manual_seed(seed)
    generator = Generator(TINY)
    for parameter in [*generator.audio.parameters(), *generator.denoiser.parameters()]:
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.06)
    return Trainee(generator.audio, generator.denoiser)
