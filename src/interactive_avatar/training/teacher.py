# SPDX-License-Identifier: Apache-2.0
"""Stage: the bidirectional teacher, by flow matching over clips whose frames see each other.

It has the causal denoiser's layers and starts from its weights, so it has only to learn that the
future may be looked at. A clip has one noise level, because that is how distillation asks: a
rolled-out clip is noised as a whole. Per-frame levels would spend training on reading a frame off
a cleaner neighbour. Conditions are dropped now and then, for classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.denoiser import Clip, Denoiser
from interactive_avatar.training.audio import disturb
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard, WindowBatch, draw_windows
from interactive_avatar.training.denoiser import Trainee, mix
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers


@dataclass(frozen=True)
class TeacherOptions:
    """Options of the stage; batch counts clips per process and part."""

    batch: int = 32
    frames: int = 20
    peak_rate: float = 4e-4
    weight_decay: float = 0.02
    mouth_weight: float = 4.0
    eye_weight: float = 2.0
    level_shift: float = 3.0
    all_drop: float = 0.1
    text_drop: float = 0.05
    audio_drop: float = 0.05
    memory_drop: float = 0.3
    mouth_head_weight: float = 0.1
    average_decay: float = 0.998
    settle_steps: int = 100


def shifted_levels(count: int, shift: float, device: torch.device, low: float = 0.02,
                   high: float = 1.0) -> Tensor:
    """Noise levels [count] for whole clips: uniform, moved up by Wan's shift
    s u / (1 + (s - 1) u), because frames of a clip tell about each other; within [low, high]."""
    u = torch.rand(count, device=device)
    return (shift * u / (1.0 + (shift - 1.0) * u)).clamp(low, high)


def without_memory(mask: Tensor, config: GeneratorConfig, hidden: Tensor) -> Tensor:
    """A clip's mask [B, tokens] with all but the reference hidden where ``hidden`` [B]."""
    reference = torch.arange(mask.shape[1], device=mask.device) < config.chunk_tokens
    return torch.where(hidden[:, None] & ~reference, float(MASKED), mask)


def clip_of(batch: WindowBatch, config: GeneratorConfig, frames: Tensor, level: Tensor,
            audio: Tensor, prompts: Prompts) -> Clip:
    """The window's targets as one clip, with the memory that stands at its first frame.

    Args:
        frames: noised targets [B, T, C, h, w]; level: [B].
        audio: tokens of the targets [B, T, 12, width].
    """
    m, count = config.memory, frames.shape[1]
    first = count + 1  # row of the first target among the window's frames
    groups = torch.cat([batch.groups[:, -m.long:],
                        batch.groups[:, batch.short_index[first]]], 1)
    seen = config.cache_layout['adjacent'][0]
    return Clip(frames=frames, level=level[:, None].expand(-1, count),
                reference=batch.reference, groups=groups, mask=batch.mask[:, first, :seen],
                audio=audio, text=prompts.states[batch.prompt_ids].float(),
                text_index=batch.text_index[:, first:],
                text_mask=prompts.mask[batch.prompt_ids])


def drop(clip: Clip, text: Tensor, audio: Tensor) -> Clip:
    """The clip without text or audio where the masks [B] say so; what is dropped is zeros."""
    clip.text = torch.where(text[:, None, None, None], 0.0, clip.text)
    clip.text_mask = torch.where(text[:, None, None], 0.0, clip.text_mask)
    clip.audio = clip.audio * ~audio[:, None, None, None]
    return clip


def guided(model: Denoiser, clip: Clip, guidance: float) -> Tensor:
    """Velocity with classifier-free guidance over text and audio: u + guidance (c - u)."""
    told = model.clip(clip)
    if guidance == 1.0:
        return told
    everywhere = torch.ones(len(clip.frames), dtype=torch.bool, device=clip.frames.device)
    copy = Clip(**vars(clip))
    untold = model.clip(drop(copy, everywhere, everywhere))
    return untold + guidance * (told - untold)


def train_teacher(model: Trainee, shard: Shard, prompts: Prompts, process: Process, run: Run,
                  options: TeacherOptions | None = None,
                  sheet: Callable[[Path], None] | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result."""
    options = options or TeacherOptions()
    device, cuda = process.device, process.device.type == 'cuda'
    config = shard.config
    optimiser = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          average_decay=options.average_decay,
                          settle_steps=options.settle_steps)
    stage = Stage('teacher', process, run, [shard.random])
    stage.samples(optimiser, sheet)
    stage.keep(weights=optimiser)
    if cuda and run.compiled and not run.sharded:
        compile_layers('_clip_layer', model.denoiser)
    for progress in stage.steps():
        for share in stage.parts():
            batch = draw_windows(shard, options.batch, options.frames,
                                 mouth_weight=options.mouth_weight,
                                 eye_weight=options.eye_weight)
            clean = batch.latents[:, 2:]
            count = len(clean)
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                tokens = model.audio(disturb(batch.mel[:, 2:].flatten(0, 1)))
                read = F.l1_loss(model.audio.mouth(tokens).float(),
                                 batch.mouth[:, 2:].flatten(0, 1))
                level = shifted_levels(count, options.level_shift, device)
                noise = torch.randn_like(clean)
                clip = clip_of(batch, config, mix(clean, level[:, None], noise), level,
                               tokens.unflatten(0, clean.shape[:2]), prompts)
                roll = torch.rand(count, device=device)
                both = roll < options.all_drop
                text = both | (roll > 1.0 - options.text_drop)
                audio = both | ((roll > 0.5) & (roll < 0.5 + options.audio_drop))
                clip = drop(clip, text, audio)
                hidden = batch.told & (torch.rand(count, device=device) < options.memory_drop)
                clip.mask = without_memory(clip.mask, config, hidden)
                velocity = model.denoiser.clip(clip)
            error = (velocity.float() - (noise - clean)).square()
            loss = (error * (batch.weight / batch.weight.mean())).mean()
            optimiser.backward(share * (loss + options.mouth_head_weight * read))
            # Comparable between runs: the error of x0 where half is noise or more.
            with torch.no_grad():
                high = (level >= 0.5)[:, None, None, None, None]
                at_high = (error * high).sum() / (high.sum() * error[0].numel()).clamp_min(1)
            stage.log.add(stage.step, loss=loss, above_half=at_high, mouth=read)
        norm = optimiser.step(progress)
        stage.log.add(stage.step, gradient=norm)
    stage.close()
    return optimiser
