# SPDX-License-Identifier: Apache-2.0
"""Stage 2: the autoregressive denoiser with its memory, by flow matching.

Every target chunk is denoised from the context that the stream would hold: reference, long and
short memory, the two latents before it. A context of clean latents would leave the model alone
with its own errors at run time, so in a growing share of steps the context is what the model
itself predicts: a few passes without gradient, each feeding the last one's predictions, all
anchored to the clip because each target starts from the noised truth (a parallel form of
self-forcing's rollout; the distillation stage rolls out for real).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.audio import AudioEncoder
from interactive_avatar.generator.denoiser import Denoiser, Window
from interactive_avatar.training.audio import disturb
from interactive_avatar.training.common import Average, Budget, Log, Process, learning_rate
from interactive_avatar.training.data import (
    PROBE_UNITS,
    Shard,
    WindowBatch,
    draw_windows,
    noised_window,
)
from interactive_avatar.training.probe import fit_probe
from interactive_avatar.training.prompts import Prompts


@dataclass(frozen=True)
class DenoiserOptions:
    """Options of the stage; batch counts windows per GPU."""

    batch: int = 24
    targets: int = 20
    peak_rate: float = 1e-3
    weight_decay: float = 0.02
    mouth_weight: float = 4.0
    eye_weight: float = 2.0
    level_shift: float = 3.0
    start_share: float = 0.3
    middle_share: float = 0.2
    context_noise: float = 0.25
    previous_noise: float = 0.1
    own_context_from: float = 0.25
    own_context_share: float = 0.6
    own_context_passes: int = 3
    text_drop: float = 0.05
    audio_drop: float = 0.05
    mouth_head_weight: float = 0.1
    reading_weight: float = 0.05
    average_decay: float = 0.9985
    settle_share: float = 0.15


class Trainee(nn.Module):
    """Audio encoder and denoiser as one module."""

    def __init__(self, audio: AudioEncoder, denoiser: Denoiser) -> None:
        super().__init__()
        self.audio, self.denoiser = audio, denoiser


def draw_levels(shape: tuple[int, int], middle: float, options: DenoiserOptions,
                device: torch.device) -> Tensor:
    """Noise levels of targets: often the sampler's own, else uniform with Wan's shift."""
    u = torch.rand(shape, device=device)
    level = options.level_shift * u / (1.0 + (options.level_shift - 1.0) * u)
    roll = torch.rand(shape, device=device)
    level = torch.where(roll < options.start_share, 1.0, level)
    between = (roll >= options.start_share) & (roll < options.start_share + options.middle_share)
    return torch.where(between, middle, level).clamp(0.02, 1.0)


def mix(clean: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """x_t = (1 − t) x0 + t noise, level broadcast over [B, F]."""
    t = level[..., None, None, None]
    return (1.0 - t) * clean + t * noise


def train_denoiser(model: Trainee, shard: Shard, prompts: Prompts, process: Process,
                   seconds: float, out: Path, done: float = 0.0, until: float = 1.0,
                   options: DenoiserOptions | None = None,
                   state: dict[str, object] | None = None,
                   fresh: frozenset[str] = frozenset()) -> dict[str, object]:
    """Train in place; leaves averaged weights in ``model``.

    Args:
        model: audio encoder and denoiser on the process's device.
        done, until: share of the whole schedule before and after this call.
        state: what an earlier call returned (optimiser and raw weights), to go on with.
        fresh: names of parameters that start anew beside loaded ones, which then learn slowly
            at first, so that they are not spoilt before the new ones have settled.

    Returns:
        the state to go on with.
    """
    options = options or DenoiserOptions()
    device, cuda = process.device, process.device.type == 'cuda'
    process.share_weights(model)
    if state is not None:
        fresh = frozenset(state['fresh'])  # type: ignore[call-overload]
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((parameter.dim() >= 2, bool(fresh) and name not in fresh),
                          []).append(parameter)
    parameters = [p for members in groups.values() for p in members]
    optimiser = torch.optim.AdamW(
        [{'params': members, 'weight_decay': options.weight_decay if matrix else 0.0,
          'settles': loaded} for (matrix, loaded), members in groups.items()],
        lr=options.peak_rate, betas=(0.9, 0.98), fused=cuda)
    average = Average(model, options.average_decay)
    if state is not None:
        average.values = [v.to(device) for v in state['average']]  # type: ignore[attr-defined]
        average.steps = 10 ** 6
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), state['raw'],  # type: ignore[call-overload]
                                        strict=True):
                parameter.copy_(value)
        optimiser.load_state_dict(state['optimiser'])  # type: ignore[arg-type]
    denoiser = model.denoiser
    if cuda:
        denoiser._window_layer = torch.compile(denoiser._window_layer)  # type: ignore[method-assign]
    levels = denoiser.config.sampler.levels
    middle = levels[1] if len(levels) > 1 else 0.5
    reading = fit_probe(shard)
    if process.leads:
        print(f'units read off latents: {float(reading.explained.mean()):.2f} of their variance, '
              f'jawOpen {float(reading.explained[PROBE_UNITS.index("jawOpen")]):.2f}', flush=True)
    log = Log(out, 'denoiser', process)
    budget = Budget(process, seconds, done, until)
    step = 0
    while (progress := budget.progress()) < until:
        for group in optimiser.param_groups:
            share = min(1.0, 0.02 + (progress - done) / options.settle_share)
            group['lr'] = learning_rate(progress, options.peak_rate) * (
                share if group['settles'] else 1.0)
        batch = draw_windows(shard, options.batch, options.targets,
                             mouth_weight=options.mouth_weight, eye_weight=options.eye_weight)
        shape = (batch.latents.shape[0], options.targets)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            mel = disturb(batch.mel.flatten(0, 1))
            tokens = model.audio(mel)
            read = F.l1_loss(model.audio.mouth(tokens).float(), batch.mouth.flatten(0, 1))
            audio = tokens.unflatten(0, batch.mel.shape[:2])
            heard = torch.rand(shape[0], 1, 1, 1, device=device) >= options.audio_drop
            audio = audio * heard
            dropped = torch.rand(shape[0], device=device) < options.text_drop
            own = progress >= options.own_context_from \
                and process.agree(float(torch.rand(1))) < options.own_context_share
            context = batch.latents[:, :-1]
            if own:
                context = own_context(denoiser, batch, audio.detach(), prompts, options, middle)
            level_c = torch.rand(shape[0], 1, device=device) * options.context_noise
            level_c = level_c.expand(-1, context.shape[1])
            noisy_c = mix(context, level_c, torch.randn_like(context))
            clean = batch.latents[:, 2:]
            level = draw_levels(shape, middle, options, device)
            noise = torch.randn_like(clean)
            # The latent before is used clean by the stream; noise here keeps the model from
            # trusting it to the last digit, which is how errors would pile up.
            spread = torch.rand(shape[0], 1, 1, 1, 1, device=device) * options.previous_noise
            handed = context + spread * torch.randn_like(context)
            window = noised_window(batch, handed, noisy_c, level_c, mix(clean, level, noise),
                                   level, audio, prompts)
            window.text_mask = torch.where(dropped[:, None, None], 0.0, window.text_mask)
            window.text = torch.where(dropped[:, None, None, None], 0.0, window.text)
            velocity = denoiser.window(window)
        error = (velocity.float() - (noise - clean)).square()
        weight = batch.weight / batch.weight.mean()
        loss = (error * weight).mean()
        # x_t − t v, written as the truth and the error of v, which are at hand.
        made = clean - level[..., None, None, None] * (velocity.float() - (noise - clean))
        units = reading.loss(made.flatten(0, 1), batch.marks.flatten(0, 1),
                             batch.units.flatten(0, 1), batch.seen.flatten())
        total = loss + options.mouth_head_weight * read + options.reading_weight * units
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        process.mean_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update()
        step += 1
        with torch.no_grad():
            start = (level >= 1.0)[..., None, None, None]
            at_start = (error * start).sum() / (start.sum() * error[0, 0].numel()).clamp_min(1)
        log.add(step, loss=loss, at_start=at_start, mouth=read, units=units, gradient=norm)
    kept: dict[str, object] = {
        'raw': [p.detach().clone().cpu() for p in model.parameters()],
        'average': [v.clone().cpu() for v in average.values],
        'fresh': sorted(fresh),
        'optimiser': optimiser.state_dict()}
    average.swap()
    log.plot()
    return kept


@torch.no_grad()
def own_context(denoiser: Denoiser, batch: WindowBatch, audio: Tensor, prompts: Prompts,
                options: DenoiserOptions, middle: float) -> Tensor:
    """Context latents as the model itself would predict them, [B, T + 1, C, h, w].

    Pass k feeds pass k + 1, so errors compound over k chunks as in a rollout; the noised truth
    under each target keeps all of them on the clip.
    """
    clean = batch.latents[:, 2:]
    context = batch.latents[:, :-1]
    passes = int(torch.randint(1, options.own_context_passes + 1, (1,)))
    for _ in range(passes):
        level_c = torch.full(context.shape[:2], denoiser.config.sampler.commit_level,
                             device=clean.device)
        noisy = mix(context, level_c, torch.randn_like(context))
        level = torch.rand(clean.shape[:2], device=clean.device) * 0.5 + 0.45
        targets = mix(clean, level, torch.randn_like(clean))
        window: Window = noised_window(batch, context, noisy, level_c, targets, level,
                                       audio, prompts)
        velocity = denoiser.window(window).float()
        made = targets - level[..., None, None, None] * velocity
        context = torch.cat([batch.latents[:, :2], made[:, :-1]], 1)
    return context
