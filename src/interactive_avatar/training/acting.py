# SPDX-License-Identifier: Apache-2.0
"""Stage: carrying out actions as clips do, learnt by the token refiner through a frozen generator.

A distilled generator carries out some actions weakly: a head that thinks goes up and tilts less
than in clips. Enlarging what its text attention adds (`reading.ReadingOptions.emphasis`) can only
ask for more of what it does already. Here pictures say what is missing. The refiner
(`generator.refiner`) is trained, and nothing else, so that with the canonical prompt of an action
the generator draws, out of nothing but noise, the clip's own latents: soft prompt tuning (Lester
et al., arXiv 2104.08691), of prompts that a network makes. The denoiser stays as it is, and so
does all that it does without such a prompt.

Streams are held on clips for a segment and run free for the next, in turns, for what they make of
a gesture's beginning is not what the clip made of it, and the rest of it must begin there. What
text attention adds for canonical prompts of anything else, and for the moments in which an
expression ends, is held where it was. What other words say is learnt afterwards, by the stage
*text* with ``taught``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from interactive_avatar.training.blinking import weighted_error
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard, cell_weight
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.reading import (
    ReadingOptions,
    Texts,
    collect_queries,
    read,
    read_in_parts,
    spread,
    table_names,
)
from interactive_avatar.training.recall import drawn
from interactive_avatar.training.rollout import Rollout, Segment, joined, part
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers, freeze_but

KINDS: Final = ('held', 'free')


@dataclass(frozen=True)
class ActingOptions:
    """Options of the stage; batch counts segments per process and part.

    Attributes:
        actions: those that are learnt (with the slot, as 'look up').
        streams: are played for ``segments`` segments of ``chunks`` chunks, held and free in turns.
        free_share: of a batch, segments that ran free.
        mouth_weight, eye_weight: of cells there, beside 1 elsewhere.
        stay: prompts of a batch whose effect is to stay, and ``stay_weight`` of that error.
        queries, kept: as in `reading.ReadingOptions`.
        judge_steps: after how many steps the error is compared with that of the refiner as it
            came.
    """

    actions: tuple[str, ...] = ()
    streams: int = 64
    segments: int = 60
    chunks: int = 10
    free_share: float = 0.5
    mouth_weight: float = 4.0
    eye_weight: float = 6.0
    stay: int = 48
    stay_weight: float = 1.0
    queries: int = 96
    kept: int = 8192
    batch: int = 24
    peak_rate: float = 3e-4
    weight_decay: float = 0.0
    average_decay: float = 0.995
    settle_steps: int = 50
    judge_steps: int = 25

    def __post_init__(self) -> None:
        known = {name for name in table_names() if name}
        for name in self.actions:
            if name not in known:
                raise ValueError(f'action {name!r} is unknown; use some of '
                                 f'{", ".join(sorted(known))}')


@dataclass
class Lesson:
    """A stretch of a stream.

    Attributes:
        segment: of one stream, with canonical prompts. audio: of its chunks, [1, T, 12, width].
        weight: of its cells, 0 in chunks that are no lesson, [1, T, 1, h, w].
    """

    segment: Segment
    audio: Tensor
    weight: Tensor


Lessons = dict[str, list[Lesson]]


@torch.no_grad()
def gather(model: Trainee, shard: Shard, prompts: Prompts, options: ActingOptions,
           canonical: Tensor) -> Lessons:
    """Lessons *held* and *free*: segments in which somebody in view carries out one of the
    actions.

    Args:
        canonical: int64 [P], the canonical prompt of each of the table's.
    """
    side, device = shard.config.autoencoder.latent_px, shard.device
    chosen = torch.tensor([name in options.actions for name in table_names()], device=device)
    rollout = Rollout(model.denoiser, shard, prompts, options.streams, options.chunks, 0.0,
                      captured=device.type == 'cuda')
    lessons: Lessons = {kind: [] for kind in KINDS}
    for number in range(options.segments):
        kind = KINDS[number % 2]
        held = options.streams if kind == 'held' else 0
        segment, audio = rollout.advance(model.audio, (1.0,), anchored=held)
        segment.prompt_ids = canonical[segment.prompt_ids]
        acts = chosen[segment.prompt_ids.gather(1, segment.text_index)] & segment.seen
        # What is worn and not named may not be known to the stream.
        acts &= segment.told[:, None]
        if kind == 'free':
            # Streams that begin here are somewhere else than their clip.
            acts &= segment.age[:, None] > 0
        marks = shard.chunk_marks(segment.clip, segment.at, options.chunks)
        weight = (cell_weight(marks, side, options.mouth_weight, options.eye_weight)
                  * acts[..., None, None, None])
        for stream in torch.nonzero(acts.any(1)).flatten().tolist():
            own = slice(stream, stream + 1)
            lessons[kind].append(Lesson(part(segment, own), audio[own].detach(), weight[own]))
    return lessons


def collate(lessons: Sequence[Lesson]) -> Lesson:
    """Lessons as one."""
    return Lesson(joined([lesson.segment for lesson in lessons]),
                  torch.cat([lesson.audio for lesson in lessons]),
                  torch.cat([lesson.weight for lesson in lessons]))


def train_acting(model: Trainee, shard: Shard, prompts: Prompts, moments: Texts, process: Process,
                 run: Run, options: ActingOptions | None = None,
                 sheet: Callable[[Path], None] | None = None) -> Optimiser:
    """Train the refiner in place; raw weights stay in ``model``, their average in the result.

    Args:
        moments: in which an expression ends, whose effect is to stay.

    Raises:
        ValueError: if the denoiser has no refiner, or the clips none of the actions.
    """
    options = options or ActingOptions()
    denoiser, device = model.denoiser, process.device
    if denoiser.refiner is None:
        raise ValueError('this denoiser has no token refiner: train the stage text first')
    if run.sharded:
        raise ValueError('the refiner is too small to be split: leave out --fsdp')
    process.share_weights(model)
    before = copy.deepcopy(denoiser).requires_grad_(False).eval()
    thaw = freeze_but(model, denoiser.refiner.parameters())
    optimiser = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          average_decay=options.average_decay,
                          settle_steps=options.settle_steps)
    stage = Stage('act', process, run)
    stage.samples(optimiser, sheet)
    stage.keep(weights=optimiser)
    torch.manual_seed(run.seed * 1009 + process.rank)
    table = Texts.of_table(prompts)
    lessons = gather(model, shard, prompts, options, table.target)
    kinds = [kind for kind in KINDS if lessons[kind]]
    if not kinds:
        raise ValueError(f'none of {len(shard.mel)} clips has any of these actions where prompts '
                         f'name all that is worn: {", ".join(options.actions) or "none given"}')
    queries = collect_queries(model, shard, prompts, ReadingOptions(
        streams=min(8, options.streams), kept=options.kept))
    names = table_names()
    others = torch.tensor([number for number in table.target.unique().tolist()
                           if names[number] not in options.actions], device=device)
    states = torch.cat([prompts.states[others], moments.states])
    mask = torch.cat([prompts.mask[others], moments.mask])
    with torch.no_grad():
        some = queries[:, :, :options.queries]
        scale = spread(read_in_parts(before, states, mask, some, True))
    commit_level = shard.config.sampler.commit_level
    if device.type == 'cuda' and run.compiled:
        compile_layers('_window_layer', denoiser)
    free = round(options.batch * options.free_share) if len(kinds) == 2 else 0
    counts = {'held': options.batch - free, 'free': free} if len(kinds) == 2 \
        else {kinds[0]: options.batch}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda')
    for progress in stage.steps():
        for share in stage.parts():
            drawn_from = [kind for kind, count in counts.items() for _ in range(count)]
            lesson = collate([lessons[kind][int(torch.randint(len(lessons[kind]), ()))]
                              for kind in drawn_from])
            goal = lesson.segment.truth
            from_noise = replace(lesson.segment, noised=torch.randn_like(goal),
                               level=torch.ones_like(lesson.segment.level))
            x0 = drawn(model, from_noise, lesson.audio, prompts, commit_level)
            error = weighted_error(x0, goal, lesson.weight)
            pick = torch.randint(len(states), (options.stay,), device=device)
            asked = queries[:, :, torch.randint(queries.shape[2], (options.queries,),
                                                device=device)]
            with autocast:
                with torch.no_grad():
                    was = read(before, states[pick].float(), mask[pick], asked)
                now = read(denoiser, states[pick].float(), mask[pick], asked)
            moved = ((now - was).square().mean((2, 3)) / scale).mean()
            optimiser.backward(share * (error + options.stay_weight * moved))
            stage.log.add(stage.step, error=error.detach(), moved=moved.detach())
            if stage.step % options.judge_steps == 0:
                own, denoiser.refiner = denoiser.refiner, before.refiner
                with torch.no_grad():
                    formerly = drawn(model, from_noise, lesson.audio, prompts, commit_level)
                denoiser.refiner = own
                for kind in kinds:
                    of = torch.tensor([each == kind for each in drawn_from], device=device)
                    stage.log.add(stage.step, **{f'missed_{kind}': weighted_error(
                        x0.detach()[of], goal[of], lesson.weight[of]) / weighted_error(
                            formerly[of], goal[of], lesson.weight[of])})
        stage.log.add(stage.step, gradient=optimiser.step(progress))
    stage.close()
    thaw()
    return optimiser
