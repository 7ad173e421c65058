# SPDX-License-Identifier: Apache-2.0
"""Stage: self-forcing rollout with distribution matching distillation (DMD).

Streams roll on with the KV cache and the memory (`rollout`). Free streams are judged by what they
look like: the gradient is the difference of two scores, of the bidirectional teacher with guidance
(real, frozen) and of a critic trained on the rollouts (fake). For them lips are compared with the
sound by a reader of mouth units. Anchored streams are kept on their clips and compared with them
latent by latent, with a history of their own making: with ``dmd_weight: 0`` the stage is
self-forcing without any teacher.

DMD as in Self-Forcing: a clip is noised to one level (shifted, within [0.02, 0.98]); the gradient
(x0_fake - x0_real) / mean |x0_made - x0_real|; loss ½ ‖x0 - stop(x0 - gradient)‖².
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interactive_avatar.generator.denoiser import Clip
from interactive_avatar.training.audio import disturb
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard, cell_weight
from interactive_avatar.training.denoiser import Trainee, mix
from interactive_avatar.training.probe import fit_probe
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.reader import MouthReader, correlation, train_reader
from interactive_avatar.training.rollout import (
    Rollout,
    Segment,
    part,
    segment_clip,
    segment_window,
)
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers
from interactive_avatar.training.teacher import guided, shifted_levels, without_memory


@dataclass(frozen=True)
class DistilOptions:
    """Options of the stage; batch counts streams per process.

    Attributes:
        chunks: of a segment, which is what the teacher judges at once; a multiple of five.
        anchored_share: of the streams, kept on their clips.
        samplers, sampler_weights: noise levels to roll out with, and how often each is drawn.
        critic_updates: of the critic for each of the generator; critic_warm_up: before the first.
        memory_drop: how often teacher and critic see only the reference, not the memory.
        anchor_weight: of the anchored streams' flow-matching loss, in which latent cells weigh
            more by mouth_weight and eye_weight; reading_weight: of mouth and eye units read off
            their latents where the clip has them (`probe`).
        reader_weight: of the free streams' mouth units, wherever their mouths are (`reader`).
        switch_weight, switch_chunks: how much more the chunks right after a change of prompt
            weigh, and how many; untold_weight: the same of chunks in view whose prompt does not
            name what is worn (see `chunk_weight`).
        settle_steps: over which the rates of generator and critic rise, each from its own first
            update (see `Optimiser`).
    """

    batch: int = 32
    chunks: int = 20
    anchored_share: float = 0.5
    restart_share: float = 0.05
    samplers: tuple[tuple[float, ...], ...] = ((1.0, 0.5), (1.0,), (1.0, 0.75, 0.5, 0.25))
    sampler_weights: tuple[float, ...] = (0.7, 0.2, 0.1)
    dmd_weight: float = 1.0
    anchor_weight: float = 1.0
    reader_weight: float = 0.1
    reading_weight: float = 0.05
    mouth_head_weight: float = 0.1
    mouth_weight: float = 8.0
    eye_weight: float = 3.0
    anchor_start_share: float = 0.3
    switch_weight: float = 0.0
    switch_chunks: int = 4
    untold_weight: float = 0.0
    guidance: float = 2.0
    level_shift: float = 3.0
    level_low: float = 0.02
    level_high: float = 0.98
    memory_drop: float = 0.3
    critic_updates: int = 2
    critic_warm_up: int = 50
    peak_rate: float = 1e-4
    critic_rate: float = 2e-4
    weight_decay: float = 0.0
    average_decay: float = 0.99
    settle_steps: int = 60
    reader_seconds: float = 20.0
    reader_steps: int = 0


def dmd_gradient(made: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """(fake - real) / mean |made - real| over each clip, of x0 predictions [B, T, C, h, w]."""
    scale = (made - real).abs().mean(tuple(range(1, made.dim())), keepdim=True).clamp_min(1e-6)
    return torch.nan_to_num((fake - real) / scale)


def dmd_loss(made: Tensor, gradient: Tensor, weight: Tensor | None = None) -> Tensor:
    """½ mse(made, stop(made - gradient)); its gradient by ``made`` is ``gradient`` / number, times
    ``weight`` [B, T] of the chunks if there is one."""
    error = (made.float() - (made.float() - gradient).detach()).square()
    return 0.5 * (error if weight is None else error * weight[..., None, None, None]).mean()


def chunk_weight(shard: Shard, segment: Segment, options: DistilOptions) -> Tensor:
    """How much each chunk of a segment counts, [B, T], 1 on average.

    What a prompt changes must be seen at once, and what the memory alone tells must be drawn when
    somebody comes back; both are decided in a few chunks of a hundred, and what follows them goes
    by the chunks before.
    """
    chunks, recent = segment.text_index.shape[1], options.switch_chunks
    index = segment.at[:, None] + torch.arange(-recent, chunks, device=segment.at.device)
    clip = segment.clip[:, None]
    ids = shard.prompt_ids[clip, index.clamp_min(0)]
    changed = (ids[:, 1:] != ids[:, :-1]).unfold(1, recent, 1).any(-1)
    untold = segment.seen & ~shard.told[clip, index[:, recent:]]
    weight = (1.0 + options.switch_weight * changed) * (1.0 + options.untold_weight * untold)
    return weight / weight.mean()


def draw_sampler(options: DistilOptions, process: Process) -> Sequence[float]:
    """Noise levels of this step's rollout, the same in all processes."""
    weights = torch.tensor(options.sampler_weights)
    index = int(process.agree(float(torch.multinomial(weights, 1))))
    return options.samplers[index]


class Judges:
    """Teacher and critic: what they say about rolled-out clips.

    Args:
        teacher: frozen. critic: trained by the caller's optimiser.
    """

    def __init__(self, teacher: Trainee, critic: Trainee, shard: Shard, prompts: Prompts,
                 options: DistilOptions) -> None:
        self.teacher, self.critic = teacher, critic
        self._shard, self._prompts, self._options = shard, prompts, options

    def _clip(self, model: Trainee, segment: Segment, frames: Tensor, level: Tensor,
              hidden: Tensor) -> Clip:
        config = self._shard.config
        audio = model.audio(segment.mel.flatten(0, 1)).unflatten(0, segment.mel.shape[:2])
        clip = segment_clip(segment, config, frames, level, audio, self._prompts)
        clip.mask = without_memory(clip.mask, config, hidden)
        return clip

    def _noised(self, made: Tensor, told: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised clips, the noise, its level [B], and where memory is hidden [B]."""
        o, device = self._options, made.device
        level = shifted_levels(len(made), o.level_shift, device, o.level_low, o.level_high)
        noise = torch.randn_like(made)
        # Without it nobody could know what is worn and not named.
        hidden = told & (torch.rand(len(made), device=device) < o.memory_drop)
        return mix(made, level[:, None], noise), noise, level, hidden

    @torch.no_grad()
    def gradient(self, made: Tensor, segment: Segment) -> Tensor:
        """DMD's gradient for clips [B, T, C, h, w]."""
        noised, _, level, hidden = self._noised(made, segment.told)
        at = level[:, None, None, None, None]
        real = guided(self.teacher.denoiser,
                      self._clip(self.teacher, segment, noised, level, hidden),
                      self._options.guidance).float()
        fake = self.critic.denoiser.clip(
            self._clip(self.critic, segment, noised, level, hidden)).float()
        return dmd_gradient(made, noised - at * fake, noised - at * real)

    def critic_loss(self, made: Tensor, segment: Segment) -> Tensor:
        """Flow-matching loss of the critic on clips."""
        noised, noise, level, hidden = self._noised(made, segment.told)
        velocity = self.critic.denoiser.clip(
            self._clip(self.critic, segment, noised, level, hidden))
        return F.mse_loss(velocity.float(), noise - made)


def anchor_levels(shape: tuple[int, int], options: DistilOptions, device: torch.device) -> Tensor:
    """Levels of the anchored streams' targets: often those of the samplers, else uniform with a
    shift."""
    u = torch.rand(shape, device=device)
    level = 3.0 * u / (1.0 + 2.0 * u)
    fixed = torch.tensor(sorted({x for levels in options.samplers for x in levels if x < 1.0}),
                         device=device)
    roll = torch.rand(shape, device=device)
    if len(fixed):
        pick = fixed[torch.randint(len(fixed), shape, device=device)]
        level = torch.where(roll > 0.8, pick, level)
    return torch.where(roll < options.anchor_start_share, 1.0, level).clamp(0.02, 1.0)


def train_distil(model: Trainee, teacher: Trainee | None, shard: Shard, prompts: Prompts,
                 process: Process, run: Run, options: DistilOptions | None = None,
                 sheet: Callable[[Path], None] | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result.

    Args:
        model: the causal generator. teacher: of the teacher stage; the critic starts from it.

    Raises:
        ValueError: without a teacher while ``dmd_weight`` is not 0.
    """
    options = options or DistilOptions()
    if run.accumulate != 1:
        raise ValueError('streams belong to a process, so their batch cannot be worked off in '
                         'parts: leave out --accumulate')
    if len(options.samplers) != len(options.sampler_weights):
        raise ValueError(f'{len(options.samplers)} samplers but {len(options.sampler_weights)} '
                         f'sampler_weights in the options: give one weight for each')
    device, cuda = process.device, process.device.type == 'cuda'
    with_dmd = options.dmd_weight > 0.0
    if with_dmd and teacher is None:
        raise ValueError('distribution matching needs a teacher: run the teacher stage, give '
                         '--teacher, or set dmd_weight: 0 in --config')
    process.share_weights(model)
    generator = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          betas=(0.0, 0.999), average_decay=options.average_decay,
                          settle_steps=options.settle_steps, final=0.1)
    kept: dict[str, Any] = {'generator': generator}
    judges = critic = None
    if with_dmd:
        assert teacher is not None
        imitator = copy.deepcopy(teacher)
        if run.sharded:
            from interactive_avatar.training.stage import shard as split
            for module in (imitator.audio, imitator.denoiser):
                split(module, process)
        judges = Judges(teacher.eval(), imitator, shard, prompts, options)
        critic = Optimiser(imitator, process, options.critic_rate, options.weight_decay,
                           betas=(0.0, 0.999), settle_steps=options.settle_steps,
                           final=0.2)
        kept['critic'] = critic
    stage = Stage('distil', process, run, [shard.random])
    stage.samples(generator, sheet)
    # Random numbers of their own, so that a run resumed draws the very same.
    stage.draw(process.rank)
    reader, jaw = None, 0.0
    if options.reader_weight > 0.0:
        reader, jaw = _reader(shard, process, run, options)
    stage.draw(process.rank)
    anchored = round(options.anchored_share * options.batch)
    reading = fit_probe(shard) if anchored and options.reading_weight > 0.0 else None
    rollout = Rollout(model.denoiser, shard, prompts, options.batch, options.chunks,
                      options.restart_share, captured=cuda and not run.sharded)
    stage.keep(**kept, streams=rollout)
    if cuda and run.compiled and not run.sharded:
        compile_layers('_window_layer', model.denoiser)
        if judges is not None:
            compile_layers('_clip_layer', judges.teacher.denoiser, judges.critic.denoiser)
    free = slice(anchored, options.batch)
    commit_level = shard.config.sampler.commit_level
    weights = (options.mouth_weight, options.eye_weight)

    def hear(mel: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            tokens: Tensor = model.audio(disturb(mel))
        return tokens

    for progress in stage.steps():
        stage.draw(process.rank)
        if run.sharded:
            model.denoiser.unshard()  # type: ignore[operator]
        levels = draw_sampler(options, process)
        segment, tokens = rollout.advance(hear, levels, anchored)
        warm = with_dmd and stage.step < options.critic_warm_up
        target_level, targets = segment.level.clone(), segment.noised.clone()
        noise = torch.randn_like(segment.truth[:anchored])
        if anchored:
            target_level[:anchored] = anchor_levels((anchored, rollout.chunks), options, device)
            targets[:anchored] = mix(segment.truth[:anchored], target_level[:anchored], noise)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            window = segment_window(segment, tokens, prompts, targets, target_level, commit_level)
            velocity = model.denoiser.window(window).float()
            heard = F.l1_loss(model.audio.mouth(tokens.flatten(0, 1)).float(),
                              segment.units.flatten(0, 1))
        x0 = targets - target_level[..., None, None, None] * velocity
        counts = chunk_weight(shard, segment, options)
        loss = options.mouth_head_weight * heard
        log: dict[str, Tensor | float] = {'mouth': heard, 'age': segment.age.float().mean()}
        if anchored:
            marks = shard.chunk_marks(segment.clip[:anchored], segment.at[:anchored],
                                      options.chunks)
            weight = cell_weight(marks, shard.config.autoencoder.latent_px, *weights)
            error = (velocity[:anchored] - (noise - segment.truth[:anchored])).square()
            wide = counts[:anchored, :, None, None, None]
            anchor = (error * (weight / weight.mean()) * wide).mean()
            loss = loss + options.anchor_weight * anchor
            log['anchor'] = anchor
            if reading is not None:
                units = reading.loss(x0[:anchored].flatten(0, 1), marks.flatten(0, 1),
                                     segment.probe_units[:anchored].flatten(0, 1),
                                     segment.seen[:anchored].flatten())
                loss = loss + options.reading_weight * units
                log['units'] = units
        if anchored < options.batch:
            own = part(segment, free)
            if reader is not None:
                with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                    read = reader(x0[free].flatten(0, 1), own.reference.repeat_interleave(
                        options.chunks, 0)).float().unflatten(0, own.units.shape[:2])
                lips = reader.loss(read, own.units, own.seen)
                loss = loss + options.reader_weight * lips
                log |= {'lips': lips, 'jaw': correlation(read.detach()[..., 0], own.units[..., 0],
                                                         own.seen)}
            if judges is not None and not warm:
                with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                    gradient = judges.gradient(x0[free].detach(), own)
                matching = dmd_loss(x0[free], gradient, counts[free])
                loss = loss + options.dmd_weight * matching
                log['dmd'] = gradient.abs().mean()
            log['drift'] = (segment.made[free].mean((1, 3, 4))
                            - segment.truth[free].mean((1, 3, 4))).square().mean()
        if warm:
            # The critic first learns what rollouts look like; the generator stands still, and
            # its gradient is thrown away with the graph.
            del loss
        else:
            generator.backward(loss)
            log['gradient'] = generator.step(progress)
        if judges is not None and critic is not None and anchored < options.batch:
            made = x0[free].detach()
            for _ in range(options.critic_updates):
                with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                    imitation = judges.critic_loss(made, own)
                critic.backward(imitation)
                critic.step(progress)
            log['critic'] = imitation
        if run.sharded:
            model.denoiser.reshard()  # type: ignore[operator]
        stage.log.add(stage.step, **log)
    if process.leads:
        (run.out / 'distil.json').write_text(json.dumps(
            {'steps': stage.step, 'reader_jaw_correlation': jaw,
             'oldest_stream_chunks': int(rollout.age.max())}, indent=2) + '\n')
    stage.close()
    return generator


def _reader(shard: Shard, process: Process, run: Run,
            options: DistilOptions) -> tuple[MouthReader, float]:
    """The reader of an earlier call with this state folder, else a new one."""
    path = run.state / 'reader.pt'
    if run.resume and path.is_file():
        reader = MouthReader(shard.config).to(process.device)
        kept = torch.load(path, map_location=process.device, weights_only=True)
        reader.load_state_dict(kept['reader'])
        return reader.requires_grad_(False).eval(), float(kept['jaw'])
    reader, jaw = train_reader(shard.config, shard, process, options.reader_seconds,
                               options.reader_steps)
    if process.leads:
        run.state.mkdir(parents=True, exist_ok=True)
        torch.save({'reader': reader.state_dict(), 'jaw': jaw}, path)
        print(f'reader: jaw opening on unseen clips correlates {jaw:.3f}', flush=True)
    return reader, jaw
