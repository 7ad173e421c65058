# SPDX-License-Identifier: Apache-2.0
"""Stage: the causal student, by regression on its autoregressive teacher's ODE (Causal Forcing).

The teacher is the causal denoiser as it is, frozen. Given noised true context it walks from noise
to a latent in many Euler steps; the student learns to give that latent from the states on the way
at the levels of its own few-step sampler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from interactive_avatar.generator.denoiser import Denoiser, Window
from interactive_avatar.training.audio import disturb
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard, draw_windows, noised_window
from interactive_avatar.training.denoiser import Trainee, mix
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers


@dataclass(frozen=True)
class StudentOptions:
    """Options of the stage; batch counts windows per process and part.

    ``levels`` are those of every sampler that the student shall serve, besides 0.
    """

    batch: int = 12
    targets: int = 20
    euler_steps: int = 16
    euler_shift: float = 3.0
    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    peak_rate: float = 1e-4
    weight_decay: float = 0.02
    mouth_weight: float = 4.0
    eye_weight: float = 2.0
    context_noise: float = 0.25
    average_decay: float = 0.99


def euler_levels(steps: int, shift: float, stops: tuple[float, ...]) -> list[float]:
    """Falling levels from 1 to 0 in ``steps`` shifted Euler steps, each stop put in place of the
    level nearest to it."""
    uniform = [1.0 - i / steps for i in range(steps + 1)]
    levels = [shift * u / (1.0 + (shift - 1.0) * u) for u in uniform]
    free = set(range(1, steps))
    for stop in sorted(set(stops) - {1.0}):
        if not free:
            raise ValueError(f'{steps} Euler steps cannot pass {len(stops)} stops: take more')
        nearest = min(free, key=lambda i: abs(levels[i] - stop))
        free.remove(nearest)
        levels[nearest] = stop
    return sorted(levels, reverse=True)


@torch.no_grad()
def trajectory(teacher: Denoiser, window: Window, noise: Tensor, levels: list[float],
               stops: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Walk the teacher's ODE for all targets of a window at once.

    Args:
        window: its targets are overwritten. noise: [B, T, C, h, w]. levels: falling, 1 to 0.

    Returns:
        states at the stops [stops, B, T, C, h, w] and the end [B, T, C, h, w].
    """
    x, states = noise, []
    for level, after in pairwise(levels):
        if level in stops:
            states.append(x)
        window.targets = x
        window.target_level = torch.full_like(window.target_level, level)
        x = x + (after - level) * teacher.window(window).float()
    return torch.stack(states), x


def train_student(model: Trainee, shard: Shard, prompts: Prompts, process: Process, run: Run,
                  options: StudentOptions | None = None,
                  sheet: Callable[[Path], None] | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result."""
    options = options or StudentOptions()
    device, cuda = process.device, process.device.type == 'cuda'
    teacher = copy.deepcopy(model).eval()
    if run.sharded:
        raise ValueError('the student has no use for FSDP: its teacher is a copy of itself; '
                         'leave out --fsdp')
    optimiser = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          average_decay=options.average_decay)
    stage = Stage('student', process, run, [shard.random])
    stage.samples(optimiser, sheet)
    stage.keep(weights=optimiser, teacher=teacher)
    if cuda and run.compiled:
        compile_layers('_window_layer', teacher.denoiser, model.denoiser)
    levels = euler_levels(options.euler_steps, options.euler_shift, options.levels)
    stops = tuple(sorted(options.levels, reverse=True))
    at = torch.tensor(stops, device=device)
    for progress in stage.steps():
        for share in stage.parts():
            batch = draw_windows(shard, options.batch, options.targets,
                                 mouth_weight=options.mouth_weight,
                                 eye_weight=options.eye_weight)
            shape = (len(batch.latents), options.targets)
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                mel = disturb(batch.mel.flatten(0, 1))
                context = batch.latents[:, :-1]
                level_c = (torch.rand(shape[0], 1, device=device)
                           * options.context_noise).expand(-1, context.shape[1])
                noisy_c = mix(context, level_c, torch.randn_like(context))
                noise = torch.randn_like(batch.latents[:, 2:])
                ones = torch.ones(shape, device=device)
                pair: list[Window] = []
                for trainee in (teacher, model):
                    with torch.set_grad_enabled(trainee is model):
                        audio = trainee.audio(mel).unflatten(0, batch.mel.shape[:2])
                    pair.append(noised_window(batch, context, noisy_c, level_c, noise, ones,
                                              audio, prompts))
                own = pair[1]
                states, end = trajectory(teacher.denoiser, pair[0], noise, levels, stops)
                pick = torch.randint(len(stops), shape, device=device)
                own.target_level = at[pick]
                own.targets = torch.gather(
                    states, 0, pick[None, ..., None, None, None].expand(1, *end.shape))[0]
                velocity = model.denoiser.window(own)
            made = own.targets - own.target_level[..., None, None, None] * velocity.float()
            error = (made - end).square() * (batch.weight / batch.weight.mean())
            loss = error.mean()
            optimiser.backward(share * loss)
            first = (pick == 0)[..., None, None, None]
            at_one = (error.detach() * first).sum() / (first.sum() * error[0, 0].numel()
                                                       ).clamp_min(1)
            stage.log.add(stage.step, loss=loss, at_one=at_one)
        stage.log.add(stage.step, gradient=optimiser.step(progress))
    stage.close()
    return optimiser
