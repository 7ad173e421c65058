# SPDX-License-Identifier: Apache-2.0
"""One run of a training stage: clock, optimisers with averages, checkpoints, resumption.

Random numbers are a function of (seed, step, part of the batch): nothing has to be kept to go on
exactly where a run stopped, and a batch split over processes or over `accumulate` parts of one
process is the same batch.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, MethodType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from interactive_avatar.training.common import Average, Log, Process, learning_rate

FORWARD_METHODS = ('window', 'clip', 'chunk', 'reference', 'entry', 'text_cache', 'audio_cache',
                   'mouth')
"""Methods beside ``forward`` that are called on sharded modules."""


@dataclass(frozen=True)
class Run:
    """Bounds of one call of a stage, and where it keeps what.

    Attributes:
        out: folder of curves, samples and weights; state: folder kept between calls.
        seconds: wall time of this call, from the progress reached to ``until``.
        steps: length of the whole schedule in steps; overrules ``seconds`` if not 0.
        until: progress in [0, 1] at which this call ends.
        resume: go on from the state of an earlier call.
        seed: of all random numbers. accumulate: parts in which a process works its batch off.
        checkpoint_seconds: how often state and samples are written beside the end.
        sharded: FSDP2 instead of a copy of everything in every process.
        between: called before every step, for clips that have come meanwhile.
        compiled: fuse layers with torch.compile where a stage knows how, on CUDA.
        checkpoints: write state and samples; measurements leave that out.
        each: called with the step and the values logged of it, which stay on the device.
    """

    out: Path
    state: Path
    seconds: float = 0.0
    steps: int = 0
    until: float = 1.0
    resume: bool = False
    seed: int = 0
    accumulate: int = 1
    checkpoint_seconds: float = 600.0
    sharded: bool = False
    between: Callable[[], None] | None = None
    compiled: bool = True
    checkpoints: bool = True
    each: Callable[[int, Mapping[str, Tensor | float]], None] | None = None


class Kept(Protocol):
    """Something beside optimisers that a stage must keep to go on exactly."""

    def state_dict(self) -> dict[str, Any]:
        """What to keep."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take back what was kept."""
        ...


def freeze_but(model: nn.Module, trained: Iterable[nn.Parameter]) -> Callable[[], None]:
    """Freeze what a stage does not train; what comes back lets it be trained again."""
    kept = {id(parameter) for parameter in trained}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in frozen:
        parameter.requires_grad_(False)

    def thaw() -> None:
        for parameter in frozen:
            parameter.requires_grad_(True)

    return thaw


def shard(module: nn.Module, process: Process) -> None:
    """Split a module's parameters over the processes with FSDP2 (``fully_shard``), in place.

    The module becomes one unit: it is gathered when one of its methods runs forward and stays
    gathered until its gradients have been scattered.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    mesh = init_device_mesh(process.device.type, (process.world,))
    fully_shard(module, mesh=mesh)
    for name in FORWARD_METHODS:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; plain tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes; plain tensors as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state gathered on the CPU; every process must take part."""
    return {name: whole(value).detach().cpu() for name, value in module.state_dict().items()}


def compile_layers(name: str, *models: nn.Module) -> None:
    """Compile one layer function of equal models once, for all their layers; in place.

    Compiling whole models takes minutes, one layer takes seconds, and the compiled function is
    shared by the models. Copy models before: a compiled method does not survive a deep copy.
    """
    compiled = torch.compile(getattr(type(models[0]), name))
    for model in models:
        setattr(model, name, MethodType(compiled, model))


class Optimiser:
    """AdamW with decay on matrices only, gradient clipping and an average of the weights.

    Args:
        module: what is trained; parameters without ``requires_grad`` are left alone.
        peak_rate: top of the schedule (`learning_rate`); average_decay: of the average.
        settle_steps: updates over which the rate rises. Counted in updates and not in the
            schedule's time, a tenth of which goes by while layers compile: Adam's first updates
            move every weight by the full rate, whatever the gradient, and at the full rate that
            threw streams so far off that a third of a distillation went by until they were back.
    """

    def __init__(self, module: nn.Module, process: Process, peak_rate: float,
                 weight_decay: float = 0.02, betas: tuple[float, float] = (0.9, 0.98),
                 average_decay: float = 0.9985, settle_steps: int = 50, final: float = 0.02,
                 clip: float = 1.0) -> None:
        self._process, self._rate, self._clip = process, peak_rate, clip
        self._settle_steps, self._final = settle_steps, final
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in self.parameters if p.dim() >= 2]
        vectors = [p for p in self.parameters if p.dim() < 2]
        self._adam = torch.optim.AdamW(
            [{'params': matrices, 'weight_decay': weight_decay},
             {'params': vectors, 'weight_decay': 0.0}],
            lr=peak_rate, betas=betas, fused=process.device.type == 'cuda')
        self.average = Average(module, average_decay)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part's loss."""
        loss.backward()

    def step(self, progress: float) -> Tensor:
        """Update from the gathered gradients; returns their norm before clipping."""
        settled = min(1.0, (self.average.steps + 1) / max(1, self._settle_steps))
        for group in self._adam.param_groups:
            group['lr'] = settled * learning_rate(progress, self._rate, 0.0, self._final)
        if not any(isinstance(p, DTensor) for p in self.parameters[:1]):
            self._process.mean_gradients(self.parameters)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self._clip))
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.average.update()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Raw weights, average and optimiser, as this process holds them."""
        adam = self._adam.state_dict()
        adam['state'] = {key: {name: local(value) if isinstance(value, Tensor) else value
                               for name, value in entry.items()}
                         for key, entry in adam['state'].items()}
        return {'raw': [local(p.detach()).clone() for p in self.parameters],
                'average': self.average.state_dict(), 'adam': adam}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for parameter, value in zip(self.parameters, state['raw'], strict=True):
            local(parameter).copy_(value)
        self.average.load_state_dict(state['average'])
        adam = state['adam']
        for index, parameter in enumerate(p for g in self._adam.param_groups
                                          for p in g['params']):
            entry = adam['state'].get(index)
            if entry is not None and isinstance(parameter, DTensor):
                for name, value in entry.items():
                    if value.dim():
                        entry[name] = DTensor.from_local(
                            value, parameter.device_mesh, parameter.placements,
                            shape=parameter.shape, stride=parameter.stride())
        self._adam.load_state_dict(adam)


class Clock:
    """Seconds of the parts of a step, waiting for the device at their borders; costs nothing when
    it is not on."""

    def __init__(self, device: torch.device, on: bool) -> None:
        self._device, self._on = device, on
        self.rows: list[dict[str, float]] = []

    def begin(self) -> None:
        """A new step."""
        if self._on:
            self.rows.append({})

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is inside; parts of one name are added up."""
        if not self._on:
            yield
            return
        began = self._now()
        yield
        row = self.rows[-1]
        row[name] = row.get(name, 0.0) + self._now() - began


@dataclass
class Stage:
    """The loop of a stage.

    ::

        stage = Stage('teacher', process, run, random=[shard.random])
        stage.keep(weights=Optimiser(...))
        for progress in stage.steps():
            for share in stage.parts():
                ...backward(share * loss)
            ...step(progress)
            stage.log.add(stage.step, loss=loss)
        stage.close()
    """

    name: str
    process: Process
    run: Run
    random: list[torch.Generator] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = Log(self.run.out, self.name, self.process, each=self.run.each)
        self.step, self.progress = 0, 0.0
        self._kept: dict[str, Kept] = {}
        self._stopped = False
        self._sheet: Callable[[], None] | None = None

    def samples(self, optimiser: Optimiser, sheet: Callable[[Path], None] | None) -> None:
        """Have every checkpoint draw samples of the averaged weights: ``sheet(path of a PNG)``."""
        if sheet is None:
            return

        def draw() -> None:
            with averaged(optimiser):
                sheet(self.run.out / f'{self.name}_{self.step:06d}.png')

        self._sheet = draw

    def keep(self, **kept: Kept) -> None:
        """Name what checkpoints hold; with ``resume`` it is read back now.

        Raises:
            FileNotFoundError: if there is nothing to resume.
            ValueError: if what is there was written by another number of processes.
        """
        self._kept = kept
        if self.run.resume:
            self._load()

    def _path(self, rank: int) -> Path:
        return self.run.state / f'{self.name}.{rank}.pt'

    def save(self) -> None:
        """Write a checkpoint, to a temporary name first."""
        self.run.state.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {'step': self.step, 'progress': self.progress,
                                 'world': self.process.world, 'sharded': self.run.sharded}
        for name, kept in self._kept.items():
            # Equal in all processes unless it is sharded, so the first one's is enough.
            if self.process.leads or self.run.sharded or not isinstance(kept, Optimiser):
                state[name] = kept.state_dict()
        path = self._path(self.process.rank)
        torch.save(state, path.with_suffix('.tmp'))
        path.with_suffix('.tmp').replace(path)

    def _load(self) -> None:
        path = self._path(self.process.rank)
        if not path.is_file():
            raise FileNotFoundError(f'there is no state {str(path)!r} to resume; leave out '
                                    f'--resume, or name the folder with --state')
        device = self.process.device
        state = torch.load(path, map_location=device, weights_only=True)
        if state['world'] != self.process.world or state['sharded'] != self.run.sharded:
            raise ValueError(
                f'{str(path)!r} was written by {state["world"]} processes'
                f'{" with FSDP" if state["sharded"] else ""}, now there are '
                f'{self.process.world}{" with FSDP" if self.run.sharded else ""}: resume as it '
                f'was begun, or begin anew from the weights without --resume')
        first = state if self.process.leads else torch.load(
            self._path(0), map_location=device, weights_only=True)
        for name, kept in self._kept.items():
            kept.load_state_dict((state if name in state else first)[name])
        self.step, self.progress = state['step'], state['progress']

    def _now(self, began: float, done: float) -> float:
        """Progress now, the same in all processes."""
        run = self.run
        if self._stopped:
            value = run.until
        elif run.steps:
            value = self.step / run.steps
        else:
            share = min(1.0, (time.monotonic() - began) / max(run.seconds, 1e-9))
            value = done + (run.until - done) * share
        return self.process.agree(value)

    def steps(self) -> Iterator[float]:
        """Progress of the schedule, step by step, until this call's end."""
        from tqdm import tqdm
        began, done = time.monotonic(), self.progress
        checkpoint = began
        before = signal.signal(signal.SIGTERM, self._stop)
        bar = tqdm(total=1.0, initial=done, desc=self.name, disable=None if self.process.leads
                   else True, bar_format='{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}')
        try:
            while True:
                progress = self._now(began, done)
                bar.update(progress - bar.n)
                if progress >= self.run.until - 1e-9:
                    break
                if self.run.between is not None:
                    self.run.between()
                yield progress
                self.step += 1
                self.progress = progress
                bar.set_postfix(step=self.step, refresh=False)
                # The first one's clock decides: a checkpoint is written by all or by none.
                due = time.monotonic() - checkpoint > self.run.checkpoint_seconds
                if self.process.agree(float(due)):
                    checkpoint = time.monotonic()
                    self._checkpoint()
            # A call that was stopped goes on from where it was.
            self.progress = self.progress if self._stopped else self.run.until
            if self.run.steps:
                self.progress = self.step / self.run.steps
        finally:
            bar.close()
            signal.signal(signal.SIGTERM, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM ends the call after this step, with its state and weights written."""
        self._stopped = True

    def parts(self) -> Iterator[float]:
        """Parts of this step's batch, each with random numbers of its own; yields the share that
        a part's loss has in the batch's."""
        count = self.run.accumulate
        for part in range(count):
            self.draw(self.process.rank * count + part)
            yield 1.0 / count

    def draw(self, part: int) -> None:
        """Set all random numbers to those of this step and part."""
        seed = (self.run.seed * 1_000_003 + self.step) * 1009 + part
        torch.manual_seed(seed)
        for index, generator in enumerate(self.random):
            generator.manual_seed(seed + (index + 1) * 7_368_787)

    def _checkpoint(self) -> None:
        if not self.run.checkpoints:
            return
        self.save()
        if self._sheet is not None:
            self._sheet()

    def close(self) -> None:
        """Write the last state, samples and curves."""
        self._checkpoint()
        self.log.plot()


def averaged(*optimisers: Optimiser) -> Averaged:
    """Context in which the models have their averaged weights."""
    return Averaged(optimisers)


class Averaged:
    """See `averaged`."""

    def __init__(self, optimisers: tuple[Optimiser, ...]) -> None:
        self._optimisers = optimisers

    def __enter__(self) -> None:
        for optimiser in self._optimisers:
            optimiser.average.swap()

    def __exit__(self, *_: object) -> None:
        for optimiser in self._optimisers:
            optimiser.average.swap()


def barrier(process: Process) -> None:
    """Wait for the other processes."""
    if process.world > 1:
        dist.barrier()
