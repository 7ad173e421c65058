# SPDX-License-Identifier: Apache-2.0
"""Sheets of samples beside the truth, drawn at every checkpoint of a stage."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interactive_avatar.generator.autoencoder import as_input, as_pixels
from interactive_avatar.generator.networks import Generator
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard, draw_windows
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.rollout import Rollout
from interactive_avatar.training.teacher import clip_of, guided

CLIPS = 4
COLUMNS = 10


@torch.no_grad()
def write_samples(generator: Generator, shard: Shard, prompts: Prompts, process: Process,
                  args: argparse.Namespace, path: Path, levels: Sequence[float] = ()) -> None:
    """Four clips as pairs of rows, truth above, what the model makes of their sound, prompts and
    reference below; both through the decoder. The teacher samples a clip in 24 Euler steps, the
    others stream for 40 chunks, sampled at ``levels`` or else the config's. Every process must
    take part if the weights are sharded.
    """
    state = shard.random.get_state()
    outside = torch.get_rng_state()
    shard.random.manual_seed(7)
    torch.manual_seed(7)
    cuda = process.device.type == 'cuda'
    generator.eval()
    if args.fsdp:
        for module in (generator.audio, generator.denoiser):
            module.unshard()  # type: ignore[operator]
    try:
        # Layers compiled for the stage's shapes would be compiled again for these, for minutes.
        with torch.compiler.set_stance('force_eager'), \
                torch.autocast(process.device.type, torch.bfloat16, enabled=cuda):
            if args.stage == 'teacher':
                truth, made, clip = _teacher_clips(generator, shard, prompts)
            else:
                truth, made, clip = _streams(generator, shard, prompts,
                                             levels or shard.config.sampler.levels)
            if process.leads:
                assert shard.pictures is not None
                pictures = as_input(shard.pictures[clip])
                rows = [_decoded(generator, latents, pictures) for latents in (truth, made)]
    finally:
        if args.fsdp:
            for module in (generator.audio, generator.denoiser):
                module.reshard()  # type: ignore[operator]
        generator.train()
        shard.random.set_state(state)
        torch.set_rng_state(outside)
    if process.leads:
        _write(path, rows[0], rows[1])


def _teacher_clips(generator: Generator, shard: Shard, prompts: Prompts,
                   steps: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """True latents, the teacher's [n, T, C, h, w], and which clips they are."""
    assert shard.references is not None
    batch = draw_windows(shard, CLIPS, 20)
    batch.reference = shard.references[batch.clip, 0].float()
    clean = batch.latents[:, 2:]
    audio = generator.audio(batch.mel[:, 2:].flatten(0, 1)).unflatten(0, clean.shape[:2])
    x = torch.randn_like(clean)
    levels = [3.0 * u / (1.0 + 2.0 * u) for u in np.linspace(1.0, 0.0, steps + 1)]
    for level, after in pairwise(levels):
        at = torch.full((len(x),), level, device=x.device)
        clip = clip_of(batch, shard.config, x, at, audio, prompts)
        x = x + (after - level) * guided(generator.denoiser, clip, 2.0).float()
    return clean, x, batch.clip


def _streams(generator: Generator, shard: Shard, prompts: Prompts, levels: Sequence[float],
             segments: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """True latents and those of streams, [n, 40, C, h, w], and which clips they follow."""
    assert shard.latents is not None
    chunks = 20
    segments = min(segments, shard.latents.shape[1] // chunks)
    rollout = Rollout(generator.denoiser, shard, prompts, CLIPS, chunks, 0.0, captured=False)
    rollout.begin(segments * chunks)
    made = [rollout.advance(generator.audio, levels)[0] for _ in range(segments)]
    return (torch.cat([s.truth for s in made], 1), torch.cat([s.made for s in made], 1),
            made[0].clip)


def _decoded(generator: Generator, latents: Tensor, pictures: Tensor) -> Tensor:
    """Last frames of the chunks shown, uint8 [n, COLUMNS, H, W, 3]."""
    frames = generator.autoencoder.decode_clip(latents, pictures)[:, :, -1].float()
    pick = torch.linspace(0, latents.shape[1] - 1, COLUMNS).round().long()
    return as_pixels(frames[:, pick]).cpu()


def _write(path: Path, truth: Tensor, made: Tensor) -> None:
    from PIL import Image
    pairs = torch.stack([truth, made], 1).flatten(0, 1)
    sheet = pairs.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    picture = Image.fromarray(sheet.numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width // 2, picture.height // 2)).save(path)
