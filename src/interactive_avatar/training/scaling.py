# SPDX-License-Identifier: Apache-2.0
"""One measurement of a training stage: steps per second, memory and the loss of every step.

Run by ``avatar bench training`` under ``torchrun``, once for each number of GPUs and each way to
use them. Clips are random (`synthetic`), the same in all processes, so that a batch split over
processes is the batch that one process works off in parts, and losses can be laid over each other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.networks import Generator
from interactive_avatar.training.common import Process, options_from
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.distil import DistilOptions, train_distil
from interactive_avatar.training.stage import Run
from interactive_avatar.training.stage import shard as split
from interactive_avatar.training.synthetic import synthetic_prompts, synthetic_shard
from interactive_avatar.training.teacher import TeacherOptions, train_teacher

STAGES = ('teacher', 'distil')
CLIP_CHUNKS = 250
PROMPTS = 32
LOSSES = {'teacher': 'loss', 'distil': 'anchor'}
"""What is laid over each other: of distillation, the part that needs no other network."""


class Watch:
    """Takes note of every step of a stage without waiting for the device.

    Args:
        warm_up: step at which the clock starts, after compilation, autotuning and the critic's
            first steps; it stops at the same point of the last of ``steps``.
    """

    def __init__(self, process: Process, loss: str, warm_up: int, steps: int) -> None:
        self._process, self._loss = process, loss
        self._losses: dict[int, list[Tensor]] = {}
        self._marks: dict[int, float | None] = {warm_up: None, steps - 1: None}

    def __call__(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """See `Run.each`."""
        if self._loss in values:
            value = values[self._loss]
            self._losses.setdefault(step, []).append(
                value.detach().float() if isinstance(value, Tensor) else torch.tensor(value))
        if step in self._marks and self._marks[step] is None:
            first = all(mark is None for mark in self._marks.values())
            self._finish()
            self._marks[step] = time.perf_counter()
            if first and self._process.device.type == 'cuda':
                torch.cuda.reset_peak_memory_stats()

    def _finish(self) -> None:
        if self._process.device.type == 'cuda':
            torch.cuda.synchronize()
        if self._process.world > 1:
            dist.barrier()

    def result(self) -> dict[str, Any]:
        """Seconds per step between the marks; losses of the whole batch, the mean over parts and
        processes; the largest memory of a process, GiB."""
        (first, began), (last, ended) = sorted(self._marks.items())
        if began is None or ended is None:
            raise RuntimeError('the stage ended before it could be measured')
        seconds = (ended - began) / (last - first)
        device, cuda = self._process.device, self._process.device.type == 'cuda'
        losses = torch.stack([torch.stack(self._losses[step]).mean().to(device)
                              for step in sorted(self._losses)])
        memory = torch.tensor([torch.cuda.max_memory_allocated() if cuda else 0,
                               torch.cuda.max_memory_reserved() if cuda else 0],
                              dtype=torch.float64, device=device)
        if self._process.world > 1:
            dist.all_reduce(losses)
            losses /= self._process.world
            dist.all_reduce(memory, dist.ReduceOp.MAX)
        return {'s_per_step': seconds, 'steps_per_s': 1.0 / seconds,
                'allocated_gib': float(memory[0]) / 2**30,
                'reserved_gib': float(memory[1]) / 2**30, 'loss': losses.tolist()}


def measure(args: argparse.Namespace, process: Process) -> dict[str, Any]:
    """Train a few steps and say how they went."""
    config = (GeneratorConfig.from_json(args.model_config.read_text()) if args.model_config
              else GeneratorConfig())
    torch.manual_seed(args.seed)
    device = process.device

    def fresh() -> Trainee:
        generator = Generator(config)
        return Trainee(generator.audio, generator.denoiser).to(device)

    model, teacher = fresh(), fresh()
    process.share_weights(model)
    if args.fsdp:
        for module in (model.audio, model.denoiser):
            split(module, process)
    shard = synthetic_shard(config, args.clips, args.chunks, PROMPTS, device, args.seed)
    prompts = synthetic_prompts(config, PROMPTS, device)
    watch = Watch(process, LOSSES[args.stage], args.warm_up, args.steps)
    run = Run(out=args.out.parent / args.out.stem, state=args.out.parent / args.out.stem,
              steps=args.steps, seed=args.seed, accumulate=args.accumulate, sharded=args.fsdp,
              compiled=not args.eager, checkpoints=False, each=watch)
    if args.stage == 'teacher':
        options = replace(options_from(args.config, TeacherOptions()), batch=args.batch)
        train_teacher(model, shard, prompts, process, run, options)
    else:
        distilling = replace(options_from(args.config, DistilOptions()), batch=args.batch)
        train_distil(model, teacher, shard, prompts, process, run, distilling)
    batch = args.batch * args.accumulate * process.world
    found = watch.result()
    return {'stage': args.stage, 'gpus': process.world, 'fsdp': args.fsdp,
            'compiled': not args.eager and not args.fsdp and device.type == 'cuda',
            'batch_per_process': args.batch, 'accumulate': args.accumulate,
            'global_batch': batch, 'clips_per_s': batch * found['steps_per_s'],
            'steps': args.steps, 'warm_up': args.warm_up,
            'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
            **found}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('stage', choices=STAGES)
    parser.add_argument('--out', type=Path, required=True, help='JSON file')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--warm-up', type=int, default=12, help='steps before the clock starts')
    parser.add_argument('--batch', type=int, default=32, help='clips per process and part')
    parser.add_argument('--accumulate', type=int, default=1)
    parser.add_argument('--fsdp', action='store_true')
    parser.add_argument('--eager', action='store_true', help='without torch.compile')
    parser.add_argument('--clips', type=int, default=48)
    parser.add_argument('--chunks', type=int, default=CLIP_CHUNKS, help='of a clip')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--config', type=Path, help="YAML with the stage's options")
    parser.add_argument('--model-config', type=Path, help='JSON of the model (default: compact)')
    args = parser.parse_args(argv)
    if args.warm_up + 2 > args.steps:
        parser.error(f'--steps {args.steps} leaves nothing to measure after --warm-up '
                     f'{args.warm_up}: give at least {args.warm_up + 2}')
    process = Process.join()
    result = measure(args, process)
    if process.leads:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1))
    process.leave()
    return 0


if __name__ == '__main__':
    sys.exit(main())
