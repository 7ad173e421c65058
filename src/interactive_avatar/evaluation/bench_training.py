# SPDX-License-Identifier: Apache-2.0
"""``avatar bench training``: steps per second, memory and loss of training stages over GPUs.

Starts `training.scaling` under torchrun, once for each number of GPUs and each way to use them,
and puts together what the runs wrote. Every run is a file of its own, so that runs made on several
machines can be laid into one folder and put together with ``--only-report``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interactive_avatar.evaluation.report import number, table

WORKER = 'interactive_avatar.training.scaling'
# What a stage does once, or only at first, is not to be timed as its steps.
OPTIONS = {'distil': 'critic_warm_up: 3\nreader_steps: 20\n'}
ACCUMULATING = ('teacher',)
"""Stages that can work a batch off in parts; the others take it at once."""


@dataclass(frozen=True)
class Case:
    """One run: the stage on so many GPUs, one process each.

    Attributes:
        batch: clips per process and part. accumulate: parts.
    """

    stage: str
    gpus: int
    fsdp: bool
    batch: int
    accumulate: int

    @property
    def name(self) -> str:
        """Of its file."""
        way = 'fsdp' if self.fsdp else 'plain'
        return f'{self.stage}-{self.gpus}-{way}-{self.batch}x{self.accumulate}'

    def command(self, out: Path, extra: Sequence[str]) -> list[str]:
        """What runs it."""
        start = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={self.gpus}',
                 '-m', WORKER] if self.gpus > 1 else ['-m', WORKER]
        return [sys.executable, *start, self.stage, '--out', str(out / f'{self.name}.json'),
                '--batch', str(self.batch), '--accumulate', str(self.accumulate),
                *(['--fsdp'] if self.fsdp else []), *extra]


def cases(stages: Sequence[str], gpus: Sequence[int], batch: int) -> list[Case]:
    """Every run: plain data parallel and FSDP2, the global batch equal and grown.

    Args:
        batch: clips per process where the batch grows with the GPUs; the equal one is what the
            largest number of GPUs then has.
    """
    most, found = max(gpus), []
    for stage in stages:
        for count in sorted(gpus):
            parts = most // count
            equal = (batch, parts) if stage in ACCUMULATING else (batch * parts, 1)
            for size, accumulate in dict.fromkeys([equal, (batch, 1)]):
                found.append(Case(stage, count, False, size, accumulate))
                if count > 1:
                    found.append(Case(stage, count, True, size, accumulate))
    return found


def run(todo: Sequence[Case], folder: Path, extra: Sequence[str]) -> list[str]:
    """Carry the cases out, one after the other; returns what went wrong, case by case."""
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    for case in todo:
        print(f'--- {case.name}', flush=True)
        options = []
        if case.stage in OPTIONS:
            path = folder / f'{case.stage}.yaml'
            path.write_text(OPTIONS[case.stage])
            options = ['--config', str(path)]
        with (folder / f'{case.name}.log').open('w') as log:
            done = subprocess.run(case.command(folder, [*options, *extra]), stdout=log,
                                  stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            lines = (folder / f'{case.name}.log').read_text().strip().splitlines()
            wrong.append(f'{case.name}: exit status {done.returncode}, '
                         f'{lines[-1] if lines else "no output"}')
            print(wrong[-1], flush=True)
    return wrong


def collect(folder: Path) -> list[dict[str, Any]]:
    """What runs in a folder have measured, in the order of the table.

    Raises:
        ValueError: if there is none.
    """
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]
    runs = [item for item in runs if 'steps_per_s' in item and 'loss' in item]
    if not runs:
        raise ValueError(f'{str(folder)!r} holds no measured runs: leave out --only-report')
    for item in runs:
        base = next((other for other in runs if other['stage'] == item['stage']
                     and other['gpus'] == 1 and other['compiled'] == item['compiled']), None)
        if base is None:
            base = next((other for other in runs if other['stage'] == item['stage']
                         and other['gpus'] == 1), None)
        item['speed_up'] = item['clips_per_s'] / base['clips_per_s'] if base else None
        item['efficiency'] = item['speed_up'] / item['gpus'] if base else None
        # The rate follows the schedule, whose length must be the same.
        plain = min((other for other in runs if all(other[key] == item[key] for key in (
            'stage', 'global_batch', 'steps'))), key=lambda other: (other['gpus'], other['fsdp']))
        item['loss_apart'] = None if plain is item and item['gpus'] > 1 else max(
            abs(a - b) / abs(b) for a, b in zip(item['loss'], plain['loss'], strict=True))
    return sorted(runs, key=lambda item: (item['stage'], item['gpus'], item['global_batch'],
                                          item['fsdp'], not item['compiled']))


def way(item: dict[str, Any]) -> str:
    """How a run used its GPUs, in words."""
    name = 'alone' if item['gpus'] == 1 else 'FSDP2' if item['fsdp'] else 'data parallel'
    return name + (', compiled' if item['compiled'] else '')


def report(runs: Sequence[dict[str, Any]]) -> str:
    """The table of `docs/training.md`."""
    def share(value: float | None) -> str:
        return '–' if value is None else f'{100.0 * value:.0f} %'

    return table(
        ['stage', 'GPUs', 'how', 'global batch', 'steps/s', 'clips/s', 'speed-up', 'efficiency',
         'GiB per GPU', 'loss apart'],
        [[item['stage'], item['gpus'], way(item),
          f'{item["global_batch"]}' + (f' in {item["accumulate"]} parts'
                                       if item['accumulate'] > 1 else ''),
          number(item['steps_per_s'], '', 2), number(item['clips_per_s'], '', 1),
          '–' if item['speed_up'] is None else number(item['speed_up'], '', 2),
          share(item['efficiency']), number(item['allocated_gib'], '', 1),
          '–' if item['loss_apart'] is None else f'{item["loss_apart"]:.1e}'] for item in runs])
