# SPDX-License-Identifier: Apache-2.0
"""Stages at the wan size; here distillation, the objectives of `distil` on `generator.wan`.

Streams roll on with their key-value and memory caches (`wan_rollout`). What they made is noised as
a whole and judged by two bidirectional networks, a frozen teacher with guidance and a critic that
learns what rollouts look like; their difference is the generator's gradient (DMD). Three networks
of 1.3B, two of them with optimisers, fit two cards of 80 GB with FSDP2.

::

    torchrun --nproc-per-node=2 -m interactive_avatar.training.wan --weights models/wan --clips DIR
    torchrun --nproc-per-node=2 -m interactive_avatar.training.wan --random wan-1.3b --steps 3
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.model import CONFIG_NAME, WEIGHTS_NAME
from interactive_avatar.generator.wan.config import SIZES, WanConfig
from interactive_avatar.generator.wan.lora import add_lora, folded
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.training.common import Process, options_from
from interactive_avatar.training.distil import dmd_gradient, dmd_loss
from interactive_avatar.training.stage import (
    Clock,
    Optimiser,
    Run,
    Stage,
    averaged,
    whole_state,
)
from interactive_avatar.training.teacher import shifted_levels
from interactive_avatar.training.wan_flow import (
    WanMemoryOptions,
    WanTeacherOptions,
    train_wan_memory,
    train_wan_teacher,
)
from interactive_avatar.training.wan_rollout import (
    WanClip,
    WanRollout,
    WanSegment,
    WanTrainee,
    random_clips,
    read_clips,
    shard_wan,
)

STAGES = ('teacher', 'memory', 'distil')
RANDOM_GATE = 0.5
"""Memory gates of random weights: opened, so that entries are attended to and paid for."""


@dataclass(frozen=True)
class WanOptions:
    """Options of the stage.

    Attributes:
        blocks: of a segment, which teacher and critic judge at once. longest: of a stream whose
            clips have no sound.
        guidance: of the teacher over text and sound. level_shift, level_low, level_high: of the
            noise that judging adds.
        critic_updates: for each of the generator; critic_warm_up: steps of the critic alone.
        peak_rate, critic_rate, average_decay: Self-Forcing's.
        checkpointed: compute layers again in the backward pass instead of keeping them.
    """

    blocks: int = 3
    longest: int = 60
    guidance: float = 3.0
    level_shift: float = 5.0
    level_low: float = 0.02
    level_high: float = 0.98
    critic_updates: int = 5
    critic_warm_up: int = 20
    peak_rate: float = 2e-6
    critic_rate: float = 4e-7
    weight_decay: float = 0.01
    average_decay: float = 0.99
    checkpointed: bool = True


class WanJudges:
    """Teacher and critic: what they say about a rolled-out clip."""

    def __init__(self, teacher: WanTrainee, critic: WanTrainee, empty: Tensor,
                 options: WanOptions) -> None:
        self.teacher, self.critic, self._empty, self._options = teacher, critic, empty, options

    def _noised(self, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The clip with noise, the noise, and its level, a scalar."""
        o = self._options
        level = shifted_levels(1, o.level_shift, made.device, o.level_low, o.level_high)[0]
        noise = torch.randn_like(made)
        return (1.0 - level) * made + level * noise, noise, level

    def _guided(self, segment: WanSegment, noised: Tensor, level: Tensor) -> Tensor:
        """The teacher's velocity, guided away from silence under the empty prompt."""
        told = self.teacher.clip(noised, level, segment.reference, segment.text, segment.audio)
        if self._options.guidance == 1.0:
            return told
        silence = None if segment.audio is None else torch.zeros_like(segment.audio)
        untold = self.teacher.clip(noised, level, segment.reference, self._empty, silence)
        return untold + self._options.guidance * (told - untold)

    @torch.no_grad()
    def gradient(self, segment: WanSegment) -> Tensor:
        """DMD's gradient for what was made, [F, C, h, w]."""
        made = segment.made.detach()
        noised, _, level = self._noised(made)
        real = noised - level * self._guided(segment, noised, level)
        fake = noised - level * self.critic.clip(noised, level, segment.reference, segment.text,
                                                 segment.audio)
        return dmd_gradient(made[None], fake[None], real[None])[0]

    def critic_loss(self, segment: WanSegment) -> Tensor:
        """Flow-matching loss of the critic on what was made."""
        made = segment.made.detach()
        noised, noise, level = self._noised(made)
        velocity = self.critic.clip(noised, level, segment.reference, segment.text, segment.audio)
        return F.mse_loss(velocity, noise - made)


def train_wan(model: WanTrainee, teacher: WanTrainee, critic: WanTrainee,
              clips: Sequence[WanClip], empty: Tensor, process: Process, run: Run,
              options: WanOptions | None = None, clock: Clock | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result.

    A batch is one stream for each process and each of its ``accumulate`` parts. Resumed, streams
    begin anew.

    Args:
        model: the causal student. teacher: frozen. critic: starts as the teacher's equal; all
            three sharded already where ``run.sharded``.
        empty: text encoder states of the empty prompt [n, text width].
    """
    options = options or WanOptions()
    device, cuda = process.device, process.device.type == 'cuda'
    clock = clock or Clock(device, False)
    teacher.requires_grad_(False)
    for trained in (model, critic):
        for block in trained.network.layers:
            block.checkpointed = options.checkpointed
    if not run.sharded:
        process.share_weights(model)
        process.share_weights(critic)
    generator = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          betas=(0.0, 0.999), average_decay=options.average_decay, final=0.1)
    imitator = Optimiser(critic, process, options.critic_rate, options.weight_decay,
                         betas=(0.0, 0.999), final=0.1)
    judges = WanJudges(teacher, critic, empty, options)
    stage = Stage('wan', process, run)
    stage.keep(generator=generator, critic=imitator)
    rollouts = [WanRollout(model, clips, empty, options.blocks, options.longest,
                           torch.bfloat16 if cuda else torch.float32)
                for _ in range(run.accumulate)]
    levels = len(model.config.sampler.levels)
    # Without FSDP's own mixed precision.
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=cuda and not run.sharded)
    for progress in stage.steps():
        clock.begin()
        # Of the step alone, so that all processes run the same passes.
        dice = torch.Generator().manual_seed(run.seed * 1_000_003 + stage.step)
        chosen = int(torch.randint(levels, (), generator=dice))
        warm = stage.step < options.critic_warm_up
        segments: list[WanSegment] = []
        log: dict[str, Tensor | float] = {}
        for rollout, share in zip(rollouts, stage.parts(), strict=True):
            with mixed, clock.part('rollout'):
                segment = rollout.advance(chosen, not warm)
            if not warm:
                with mixed, clock.part('scores'):
                    gradient = judges.gradient(segment)
                with clock.part('backward'):
                    generator.backward(share * dmd_loss(segment.made, gradient))
                log['dmd'] = gradient.abs().mean()
            log |= {'age': float(segment.age), 'spread': segment.finished.std()}
            segments.append(replace(segment, made=segment.made.detach()))
        if not warm:
            with clock.part('generator update'):
                log['gradient'] = generator.step(progress)
        for update in range(options.critic_updates):
            losses = []
            for part, segment in enumerate(segments):
                # Numbers of their own, beside those of the rollouts.
                stage.draw(((update + 1) * process.world + process.rank) * run.accumulate + part)
                with clock.part('critic'):
                    with mixed:
                        losses.append(judges.critic_loss(segment))
                    imitator.backward(losses[-1] / run.accumulate)
            with clock.part('critic update'):
                imitator.step(progress)
            log['critic'] = torch.stack(losses).detach().mean()
        stage.log.add(stage.step, **log)
    stage.close()
    return generator


def load(args: argparse.Namespace, process: Process) -> tuple[WanTrainee, WanTrainee]:
    """Student and teacher, in float32 and in the run's precision, on the device."""
    if args.random:
        config = SIZES[args.random]
        if args.side:
            config = replace(config, picture_px=args.side)
        torch.manual_seed(args.seed)

        def made() -> WanTransformer:
            with torch.device(process.device):
                network = WanTransformer(config)
            for block in network.layers:
                nn.init.constant_(block.memory_gate, RANDOM_GATE)
            return network

        student, teacher = made(), made()
    else:
        from interactive_avatar.generator.wan.files import WanFiles
        from interactive_avatar.generator.wan.stream import load_network

        student = load_network(WanFiles.open(args.weights)).float().to(process.device)
        teacher = load_network(WanFiles.open(args.teacher or args.weights)).to(process.device)
    return WanTrainee(student), WanTrainee(teacher)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='python -m interactive_avatar.training.wan',
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stage', choices=STAGES, default='distil',
                        help='teacher: sound by flow matching; memory: the compressor by '
                             'retrieval; distil: the student (default)')
    parser.add_argument('--weights', type=Path, default=Path('models/wan'),
                        help="the student's first weights, a model folder of import-weights")
    parser.add_argument('--teacher', type=Path, help='a model folder (default: as --weights)')
    parser.add_argument('--random', choices=sorted(SIZES), help='random weights, to measure')
    parser.add_argument('--side', type=int, default=0, help='of the picture, with --random')
    parser.add_argument('--clips', type=Path,
                        help='folder of clips (docs/wan.md); random ones with --random')
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--seconds', type=float, default=0.0, help='instead of --steps')
    parser.add_argument('--accumulate', type=int, default=1, help='streams per process')
    parser.add_argument('--lora-rank', type=int, default=0,
                        help='train adapters of this rank in place of all weights')
    parser.add_argument('--gather-again', action='store_true',
                        help='let go of gathered weights after each layer, for 14B')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--config', type=Path, help="YAML with the stage's options")
    parser.add_argument('--state', type=Path, default=Path('checkpoints/wan'))
    parser.add_argument('--out', type=Path, default=Path('out/wan'))
    parser.add_argument('--report', type=Path, metavar='FILE',
                        help='measure: time every part, write JSON, keep no weights')
    args = parser.parse_args(argv)
    if not args.random and args.clips is None:
        parser.error('give --clips, or --random to measure')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage."""
    args = arguments(argv)
    process = Process.join()
    device, cuda = process.device, process.device.type == 'cuda'
    began = time.perf_counter()

    def say(text: str) -> None:
        if process.leads:
            print(f'[{time.perf_counter() - began:6.1f} s] {text}', flush=True)

    student, teacher = load(args, process)
    distilling = args.stage == 'distil'
    sharded = process.world > 1
    models = [student]
    if distilling:
        if cuda:
            teacher.to(torch.bfloat16)
        models += [WanTrainee(copy.deepcopy(teacher.network).float()), teacher]
    del teacher
    parameters = sum(p.numel() for p in student.parameters())
    if args.lora_rank:
        for module in models[:2]:
            add_lora(module.network, args.lora_rank)
    if sharded:
        for module in models:
            shard_wan(module, process, torch.bfloat16 if cuda else None, args.gather_again)
            if cuda:
                torch.cuda.empty_cache()
    config = student.config
    options: WanOptions = options_from(args.config if distilling else None, WanOptions())
    if args.report:
        options = replace(options, critic_warm_up=0)
    frames = config.chunk_latents * max(options.longest, options.blocks)
    clips, empty = (read_clips(args.clips, config, device) if args.clips
                    else random_clips(config, 2, frames, device, args.seed))
    run = Run(out=args.out, state=args.state, seconds=args.seconds,
              steps=0 if args.seconds else args.steps, resume=args.resume, seed=args.seed,
              accumulate=args.accumulate, sharded=sharded, checkpoints=not args.report)
    clock = Clock(device, args.report is not None)
    say(f'{len(models)} networks of {parameters} weights, {process.world} processes')
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    # Of what is denoised or rolled out at once.
    blocks, more = options.blocks, {'critic_updates': options.critic_updates}
    if distilling:
        optimiser = train_wan(student, models[2], models[1], clips, empty, process, run, options,
                              clock)
    elif args.stage == 'teacher':
        flow: WanTeacherOptions = options_from(args.config, WanTeacherOptions())
        blocks, more = flow.blocks, {}
        optimiser = train_wan_teacher(student, clips, empty, process, run, flow, clock)
    else:
        blocks, more = 1, {}
        optimiser = train_wan_memory(student, clips, empty, process, run,
                                     options_from(args.config, WanMemoryOptions()), clock)
    if args.report:
        trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        report(args.report, clock, process, {
            'stage': args.stage, 'size': config.name, 'picture_px': config.picture_px,
            'parameters': parameters, 'trained_parameters': trained, 'gpus': process.world,
            'streams_per_gpu': args.accumulate, 'blocks': blocks,
            'latents': blocks * config.chunk_latents, **more})
    else:
        save(args.out, student, optimiser, config, process)
    say('done')
    process.leave()
    return 0


def report(path: Path, clock: Clock, process: Process, what: dict[str, Any]) -> None:
    """Write what a step costs: seconds of its parts, memory of each process.

    Args:
        what: was measured, which stands before the figures.
    """
    cuda = process.device.type == 'cuda'
    own = {'allocated_gib': torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
           'reserved_gib': torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0}
    gathered: list[Any] = [own]
    if process.world > 1:
        gathered = [None] * process.world
        dist.all_gather_object(gathered, own)
    rows = clock.rows
    result = {
        **what,
        'device': torch.cuda.get_device_name(process.device) if cuda else 'cpu',
        'memory_by_process': gathered, 'step_s': [sum(row.values()) for row in rows],
        # The last step: kernels are chosen, optimisers have their state.
        'parts_of_last_step_s': rows[-1] if rows else {}}
    if process.leads:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1))
        print(json.dumps(result), flush=True)


def save(out: Path, student: WanTrainee, optimiser: Optimiser, config: WanConfig,
         process: Process) -> None:
    """Write the averaged weights as a model folder; its components are those of ``--weights``."""
    from safetensors.torch import save_file

    with averaged(optimiser):
        state = folded(whole_state(student.network))
    if process.leads:
        out.mkdir(parents=True, exist_ok=True)
        save_file({name: value.to(torch.bfloat16).contiguous() for name, value in state.items()},
                  str(out / WEIGHTS_NAME))
        (out / CONFIG_NAME).write_text(config.to_json() + '\n')


if __name__ == '__main__':
    sys.exit(main())
