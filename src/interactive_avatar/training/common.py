# SPDX-License-Identifier: Apache-2.0
"""What every training stage shares: processes, time budget, averages, schedule, curves."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Process:
    """This process among its peers, one per GPU; a lone process without ``torchrun``."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls) -> Process:
        """Join the group that ``torchrun`` announces in the environment, or run alone."""
        rank = int(os.environ.get('RANK', '0'))
        world = int(os.environ.get('WORLD_SIZE', '1'))
        local = int(os.environ.get('LOCAL_RANK', '0'))
        cuda = torch.cuda.is_available()
        device = torch.device('cuda', local) if cuda else torch.device('cpu')
        if cuda:
            torch.cuda.set_device(device)
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        if world > 1 and not dist.is_initialized():
            # Numbers are agreed on between the CPUs, so that no GPU has to be waited for.
            dist.init_process_group('cpu:gloo,cuda:nccl' if cuda else 'gloo')
        return cls(rank, world, device)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def egl_index(self) -> int:
        """This process's GPU among EGL's devices, from which ``CUDA_VISIBLE_DEVICES`` hides
        nothing: without looking there, all that are given a card of their own draw on the first.
        """
        index = self.device.index or 0
        named = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
        own = named[index].strip() if index < len(named) else ''
        # Names that are no numbers (GPU-8a3b…) say nothing about EGL's order.
        return int(own) if own.isdecimal() else index

    def leave(self) -> None:
        """Wait for the other processes and end the group; the last thing a process does."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the first one's weights and buffers; sharded ones are left as they
        are, for they were split from equal ones."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                if not isinstance(tensor, DTensor):
                    dist.broadcast(tensor, 0)

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over processes, in one flat exchange."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        torch._foreach_copy_(gradients, [
            part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]),
                                               gradients, strict=True)])

    def agree(self, value: float) -> float:
        """The first process's value, so that all leave a loop at the same step."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return float(tensor.item())


class Budget:
    """Wall-clock budget of a stage; progress in [0, 1] drives its schedules.

    Args:
        seconds: the budget. done: share of the stage's schedule done before this call.
        until: progress at which this call ends.
    """

    def __init__(self, process: Process, seconds: float, done: float = 0.0,
                 until: float = 1.0) -> None:
        self._process, self._seconds = process, seconds
        self._done, self._until = done, until
        self._start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began in this call."""
        return time.monotonic() - self._start

    def progress(self) -> float:
        """Progress of the stage's schedule, agreed among processes; `until` when time is up."""
        share = min(1.0, self.elapsed_s / self._seconds)
        return self._process.agree(self._done + (self._until - self._done) * share)


def learning_rate(progress: float, peak: float, warm_up: float = 0.02,
                  final: float = 0.02) -> float:
    """Linear warm-up, then cosine to ``final`` × peak, as a function of progress in [0, 1]."""
    if progress < warm_up:
        return peak * max(progress, 1e-4) / warm_up
    phase = (progress - warm_up) / (1.0 - warm_up)
    return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, phase))))


class Average:
    """Exponential moving average of weights, kept in float32.

    Of weights that are sharded over processes (FSDP2) each process averages its own part.

    Attributes:
        steps: how many updates there have been.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self._source = [p for p in module.parameters() if p.requires_grad]
        self.values = [self._local(p).clone().float() for p in self._source]
        self.steps = 0

    @staticmethod
    def _local(parameter: Tensor) -> Tensor:
        part: Tensor = parameter.detach()
        return part.to_local() if hasattr(part, 'to_local') else part

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current weights; faster in the first steps."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [self._local(p).float() for p in self._source],
                             1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and current weights; call again to undo."""
        for value, parameter in zip(self.values, self._source, strict=True):
            own = self._local(parameter)
            current = own.clone()
            own.copy_(value)
            value.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """Averages and the number of updates."""
        return {'values': [value.clone() for value in self.values], 'steps': self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for value, kept in zip(self.values, state['values'], strict=True):
            value.copy_(kept)
        self.steps = state['steps']


class Log:
    """Metrics as JSON lines, plotted to a PNG at the end; prints a line now and then.

    Args:
        each: called with every step's values.
    """

    def __init__(self, folder: Path, name: str, process: Process, every_s: float = 10.0,
                 each: Callable[[int, Mapping[str, Tensor | float]], None] | None = None) -> None:
        self._path, self._each = folder / f'{name}.jsonl', each
        self._process, self._every_s = process, every_s
        self._rows: list[dict[str, float]] = []
        self._sums: dict[str, list[Tensor]] = {}
        self._last, self._start, self._step = 0.0, time.monotonic(), 0
        if process.leads:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, **values: Tensor | float) -> None:
        """Collect values of a step; writes their means every few seconds."""
        for name, value in values.items():
            kept = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            self._sums.setdefault(name, []).append(kept)
        self._step = step
        if self._each is not None:
            self._each(step, values)
        if time.monotonic() - self._last >= self._every_s:
            self._write()

    def _write(self) -> None:
        """Write the means of what was collected since the last row."""
        if not self._sums:
            return
        now = time.monotonic()
        self._last, step = now, self._step
        row = {'step': float(step), 'seconds': now - self._start}
        row |= {name: float(torch.stack([v.float().cpu() for v in items]).mean())
                for name, items in self._sums.items()}
        self._sums = {}
        self._rows.append(row)
        if self._process.leads:
            with self._path.open('a') as stream:
                stream.write(json.dumps(row) + '\n')
            print(self._path.stem, ' '.join(f'{k} {v:.4g}' for k, v in row.items()), flush=True)

    def plot(self) -> None:
        """Write what is left, and curves of every metric against steps beside the log."""
        self._write()
        if not self._process.leads or not self._rows:
            return
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot
        names = [n for n in self._rows[-1] if n not in ('step', 'seconds')]
        figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            own = [r for r in self._rows if name in r]
            axis.plot([r['step'] for r in own], [r[name] for r in own])
            axis.set_title(name)
            axis.set_xlabel('step')
        figure.tight_layout()
        figure.savefig(self._path.with_suffix('.png'), dpi=80)
        pyplot.close(figure)


def save_parts(source: Path, folder: Path, part_bytes: int = 15 << 20) -> list[Path]:
    """Split a file into ``name.part00`` …, small enough to be carried; `join_parts` undoes."""
    data = source.read_bytes()
    for old in folder.glob(f'{source.name}.part*'):
        old.unlink()  # of a longer file, which would be joined to this one's
    parts = []
    for index, start in enumerate(range(0, len(data), part_bytes)):
        part = folder / f'{source.name}.part{index:02d}'
        part.write_bytes(data[start:start + part_bytes])
        parts.append(part)
    return parts


def join_parts(folder: Path, name: str) -> Path:
    """Join the parts of ``name`` in ``folder`` into one file there, and return it.

    Raises:
        FileNotFoundError: if there is neither the file nor a part of it.
    """
    parts = sorted(folder.glob(f'{name}.part*'))
    target = folder / name
    if parts:
        target.write_bytes(b''.join(part.read_bytes() for part in parts))
    if not target.is_file():
        raise FileNotFoundError(f'{str(target)!r} is missing, and so are its parts')
    return target


def options_from(path: Path | None, defaults: Any) -> Any:
    """A stage's options dataclass with the entries of a YAML file put over its defaults.

    Raises:
        ValueError: on an unknown entry, naming it.
    """
    if path is None:
        return defaults
    import dataclasses

    import yaml
    values = yaml.safe_load(path.read_text()) or {}
    known = {f.name for f in dataclasses.fields(defaults)}
    for name in values:
        if name not in known:
            raise ValueError(f'{str(path)!r} has the unknown entry {name!r}; '
                             f'known: {sorted(known)}')
    return dataclasses.replace(defaults, **{name: _tuples(value)
                                            for name, value in values.items()})


def _tuples(value: Any) -> Any:
    """YAML's lists as tuples, at every depth."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
