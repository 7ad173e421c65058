# SPDX-License-Identifier: Apache-2.0
"""Stages at the wan size by flow matching on clips: sound for the teacher, and the memory.

- **teacher**: clips denoised as a whole, conditions dropped now and then; by default only what
  Wan2.1 lacks is trained, its audio attention, and the rest stays as released.
- **memory**: the compressor and the gates by the retrieval objective, as `memory` does at the
  compact size: frames older than the short memory are drawn at random, the last ones kept whole;
  the target block, next to an old group or among the last frames, is denoised from the reference
  and the memory's entries alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from interactive_avatar.training.common import Process
from interactive_avatar.training.stage import Clock, Optimiser, Run, Stage, whole
from interactive_avatar.training.teacher import shifted_levels
from interactive_avatar.training.wan_rollout import WanClip, WanTrainee

TRAINED = {'additions': ('audio.', 'audio_projector.'), 'all': ('',)}
MEMORY = ('compressor.', 'memory_gate')


@dataclass(frozen=True)
class WanTeacherOptions:
    """Options of the teacher's stage; a batch is one clip per process and part.

    Attributes:
        blocks: of a clip. trained: 'additions' or 'all'.
    """

    blocks: int = 7
    trained: str = 'additions'
    peak_rate: float = 1e-5
    weight_decay: float = 0.01
    average_decay: float = 0.999
    level_shift: float = 5.0
    all_drop: float = 0.1
    audio_drop: float = 0.1
    checkpointed: bool = True


@dataclass(frozen=True)
class WanMemoryOptions:
    """Options of the memory's stage.

    Attributes:
        old_share: of targets next to a group older than the short memory; neighbour_frames: how
            far from it.
    """

    peak_rate: float = 1e-4
    weight_decay: float = 0.01
    average_decay: float = 0.999
    level_low: float = 0.3
    level_high: float = 1.0
    old_share: float = 0.6
    neighbour_frames: int = 6
    checkpointed: bool = True


def choose_trained(model: WanTrainee, names: Sequence[str]) -> int:
    """Leave alone all parameters but those with one of ``names`` in theirs; returns the number of
    weights that are trained. Before sharding or after it, but before the optimiser."""
    count = 0
    for name, parameter in model.network.named_parameters():
        chosen = any(f'.{part}' in f'.{name}' for part in names)
        parameter.requires_grad_(chosen and parameter.requires_grad)
        count += parameter.numel() if parameter.requires_grad else 0
    return count


def latents_of(clips: Sequence[WanClip], least: int) -> list[tuple[WanClip, Tensor]]:
    """Clips with their latents, those of at least so many frames.

    Raises:
        ValueError: if there is none.
    """
    found = [(clip, clip.latents) for clip in clips
             if clip.latents is not None and len(clip.latents) >= least]
    if not found:
        raise ValueError(f'there is no clip with latents of {least} frames or more: this stage '
                         f'learns from clips, which need `latents` (docs/wan.md)')
    return found


def _mixed(process: Process, run: Run) -> AbstractContextManager[object]:
    """Autocast where FSDP does not mix precisions itself."""
    cuda = process.device.type == 'cuda'
    return torch.autocast(process.device.type, torch.bfloat16, enabled=cuda and not run.sharded)


def _begin(name: str, model: WanTrainee, trained: Sequence[str], process: Process, run: Run,
           options: WanTeacherOptions | WanMemoryOptions) -> tuple[Optimiser, Stage]:
    """Optimiser and stage of those parameters that have one of ``trained`` in their names."""
    choose_trained(model, trained)
    for layer in model.network.layers:
        layer.checkpointed = options.checkpointed
    if not run.sharded:
        process.share_weights(model)
    optimiser = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          average_decay=options.average_decay)
    stage = Stage(name, process, run)
    stage.keep(weights=optimiser)
    return optimiser, stage


def _integer(end: int) -> int:
    return int(torch.randint(end, ()))


def train_wan_teacher(model: WanTrainee, clips: Sequence[WanClip], empty: Tensor,
                      process: Process, run: Run, options: WanTeacherOptions | None = None,
                      clock: Clock | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result.

    Args:
        clips: with latents. empty: text encoder states of the empty prompt [n, text width].
        clock: takes the seconds of a step's forward and backward passes and its update.

    Raises:
        ValueError: if ``trained`` is unknown, or no clip is long enough.
    """
    options, clock = options or WanTeacherOptions(), clock or Clock(process.device, False)
    if options.trained not in TRAINED:
        raise ValueError(f'trained: {options.trained!r} is none of {", ".join(TRAINED)}')
    config, device = model.config, process.device
    frames = options.blocks * config.chunk_latents
    usable = latents_of(clips, frames)
    optimiser, stage = _begin('wan_teacher', model, TRAINED[options.trained], process, run,
                              options)
    for progress in stage.steps():
        clock.begin()
        for share in stage.parts():
            clip, latents = usable[_integer(len(usable))]
            start = _integer(len(latents) - frames + 1)
            clean = latents[start:start + frames].float()
            audio = None if clip.audio is None else clip.audio[start:start + frames]
            level = shifted_levels(1, options.level_shift, device)[0]
            noise = torch.randn_like(clean)
            roll = float(torch.rand(()))
            text = empty if roll < options.all_drop else clip.text
            if audio is not None and roll < options.all_drop + options.audio_drop:
                audio = torch.zeros_like(audio)
            with _mixed(process, run), clock.part('forward'):
                velocity = model.clip((1.0 - level) * clean + level * noise, level,
                                      clip.reference, text, audio)
            loss = F.mse_loss(velocity, noise - clean)
            with clock.part('backward'):
                optimiser.backward(share * loss)
            stage.log.add(stage.step, loss=loss, level=level)
        with clock.part('update'):
            gradient = optimiser.step(progress)
        stage.log.add(stage.step, gradient=gradient)
    stage.close()
    return optimiser


def draw_history(frames: int, model: WanTrainee, options: WanMemoryOptions
                 ) -> tuple[list[int], int]:
    """First frames of the memory's groups in the order of its slots (short, newest first, then
    long), and of the target block, in a clip of so many frames."""
    m, block = model.config.memory, model.config.chunk_latents
    recent = m.short * m.group
    now = recent + m.group + _integer(frames - recent - m.group - block + 1)
    short = [now - m.group * (index + 1) for index in range(m.short)]
    long = sorted(_integer(now - recent - m.group + 1) for _ in range(m.long))
    if float(torch.rand(())) < options.old_share:
        reach = options.neighbour_frames
        target = long[_integer(m.long)] + _integer(2 * reach + 1) - reach
        target = min(max(0, target), max(0, now - recent - block))
    else:
        target = now - recent + _integer(recent - block + 1)
    return [*short, *long], target


def train_wan_memory(model: WanTrainee, clips: Sequence[WanClip], empty: Tensor,
                     process: Process, run: Run, options: WanMemoryOptions | None = None,
                     clock: Clock | None = None) -> Optimiser:
    """Train the compressor and the gates in place; see `train_wan_teacher`."""
    options, clock = options or WanMemoryOptions(), clock or Clock(process.device, False)
    m, block = model.config.memory, model.config.chunk_latents
    usable = latents_of(clips, m.group * (m.short + 1) + block)
    optimiser, stage = _begin('wan_memory', model, MEMORY, process, run, options)
    for progress in stage.steps():
        clock.begin()
        for share in stage.parts():
            clip, latents = usable[_integer(len(usable))]
            starts, at = draw_history(len(latents), model, options)
            clean = latents[at:at + block].float()
            groups = torch.stack([latents[first:first + m.group].float() for first in starts])
            level = options.level_low + (options.level_high - options.level_low) * float(
                torch.rand(()))
            noise = torch.randn_like(clean)
            audio = None if clip.audio is None else clip.audio[at:at + block]
            with _mixed(process, run), clock.part('forward'):
                with torch.no_grad():
                    reference = model.reference(clip.reference, empty)
                entries = model.entries(groups, reference, empty)
                velocity, _ = model.block((1.0 - level) * clean + level * noise, level,
                                          model.remembering(reference, entries), clip.text, audio)
            loss = F.mse_loss(velocity, noise - clean)
            with clock.part('backward'):
                optimiser.backward(share * loss)
            stage.log.add(stage.step, loss=loss, level=level)
        with clock.part('update'):
            gradient = optimiser.step(progress)
        stage.log.add(stage.step, gradient=gradient)
    gates = torch.stack([whole(layer.memory_gate.detach()).abs().mean()
                         for layer in model.network.layers])
    if process.leads:
        print(f'mean of the gates: {float(gates.mean()):.3g}', flush=True)
    stage.close()
    return optimiser
