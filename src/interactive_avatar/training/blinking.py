# SPDX-License-Identifier: Apache-2.0
"""Stage: blinking when told to, learnt as a few keys and values beside a frozen generator.

In clips people blink, at moments that nothing announces. A generator of few steps makes what is
likely, and lids that fall now are never likely: in half a minute of any face nobody blinked. So
the moment is given to it (`generator.blinking`), and what carries it out is a prefix (Li and
Liang, arXiv 2101.00190): ``rows`` keys and values per chunk of a blink, in every layer's text
attention, masked while nobody blinks. Nothing else is trained, so nothing else can change: without
a blink the generator draws just what it drew.

Streams are held on clips, and lessons are the chunks in which a clip's blink falls as the stream
will time it: lids begin to fall in the chunk's second frame, so that the borders of chunks lie
where they move little. Asked for is the clip's own latent around the eyes, and elsewhere what the
generator draws without a blink. Where nobody is in view a blink is to change nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from interactive_avatar.generator.config import BLINK_CHUNKS
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import PROBE_UNITS, Shard, cell_weight
from interactive_avatar.training.denoiser import Trainee, mix
from interactive_avatar.training.performances.motion import BLINK
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.rollout import SHARED, Rollout, Segment, part, segment_window
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers

LIDS: Final = PROBE_UNITS.index('eyeBlinkLeft')
FIRST_FRAME: Final = 1
"""Frame of the first chunk in which lids begin to fall."""
OPEN_MOST: Final = 0.3
"""Lids of a person who looks down fall so far."""
TOLERANCE: Final = 0.03


@dataclass(frozen=True)
class BlinkingOptions:
    """Options of the stage; batch counts segments per process and part.

    ``rows``: keys and values per chunk of a blink, where the weights come without any.
    ``streams`` are held on clips ``segments`` times, ``chunks`` each, for lessons; ``empty_share``
    of a batch are of times when nobody is in view. ``eye_weight``: of cells at the eyes, against
    1 elsewhere.
    """

    rows: int = 4
    streams: int = 64
    segments: int = 60
    chunks: int = 10
    empty_share: float = 0.1
    eye_weight: float = 20.0
    batch: int = 24
    peak_rate: float = 1e-2
    average_decay: float = 0.99
    settle_steps: int = 20


@dataclass
class Lesson:
    """A stretch of a stream that is held on a clip.

    Attributes:
        segment: of one stream. audio: tokens of its chunks, [1, T, 12, width].
        phase: int64 [1, T], which chunk of a blink each is, from 1; 0 for none.
        eyes: [1, T, 1, h, w], 0 to 1, where the clip's latent is wanted.
    """

    segment: Segment
    audio: Tensor
    phase: Tensor
    eyes: Tensor


def blink_phases(lids: Tensor) -> Tensor:
    """Which chunk of a blink each chunk of clips is, if it is timed as a stream's.

    Args:
        lids: closure of lids, [B, 4 n].

    Returns:
        int64 [B, n], from 1; 0 for none, and for blinks that begin in another frame.
    """
    shape = torch.full((FRAMES_PER_CHUNK * BLINK_CHUNKS,), -1.0, device=lids.device)
    shape[FIRST_FRAME:FIRST_FRAME + len(BLINK)] = torch.from_numpy(BLINK)
    # Below what looking down does to lids, anything will do.
    low = shape < OPEN_MOST
    frames = lids.unfold(1, len(shape), FRAMES_PER_CHUNK)
    fits = torch.where(low, frames <= OPEN_MOST, (frames - shape).abs() <= TOLERANCE).all(-1)
    phase = torch.zeros((len(lids), lids.shape[1] // FRAMES_PER_CHUNK), dtype=torch.int64,
                        device=lids.device)
    for chunk in range(BLINK_CHUNKS):
        phase[:, chunk:chunk + fits.shape[1]] += (chunk + 1) * fits
    return phase


@torch.no_grad()
def gather(model: Trainee, shard: Shard, prompts: Prompts,
           options: BlinkingOptions) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons of blinks, and lessons of times when nobody is in view."""
    side, device = shard.config.autoencoder.latent_px, shard.device
    rollout = Rollout(model.denoiser, shard, prompts, options.streams, options.chunks, 0.0,
                      captured=device.type == 'cuda')
    lids = blink_phases(shard.probe_units[..., LIDS])
    step = torch.arange(options.chunks, device=device)
    blinks: list[Lesson] = []
    empty: list[Lesson] = []
    for _ in range(options.segments):
        segment, audio = rollout.advance(model.audio, (1.0,), anchored=options.streams)
        phase = lids[segment.clip[:, None], segment.at[:, None] + step]
        # A blink that is cut has lost its beginning, and without it nobody knows what opens.
        phase[:, 0] = torch.where(phase[:, 0] == 1, 1, 0)
        phase = torch.where(segment.seen, phase, 0)
        marks = shard.chunk_marks(segment.clip, segment.at, options.chunks)
        eyes = (cell_weight(marks, side, 0.0, 1.0) - 1.0).clamp(max=1.0)
        away = torch.randint(1, BLINK_CHUNKS + 1, phase.shape, device=device) * ~segment.seen
        for stream in range(options.streams):
            own = slice(stream, stream + 1)
            for found, chunks, where in ((blinks, phase[own], eyes[own]),
                                         (empty, away[own], torch.zeros_like(eyes[own]))):
                if chunks.any():
                    found.append(Lesson(part(segment, own), audio[own].detach(), chunks, where))
    return blinks, empty


def collate(lessons: Sequence[Lesson]) -> Lesson:
    """Lessons as one."""
    parts = [vars(lesson.segment) for lesson in lessons]
    joined = {name: value if name in SHARED else torch.cat([each[name] for each in parts])
              for name, value in parts[0].items()}
    return Lesson(Segment(**joined), *(torch.cat([getattr(lesson, name) for lesson in lessons])
                                       for name in ('audio', 'phase', 'eyes')))


def drawn(model: Trainee, lesson: Lesson, prompts: Prompts, noised: Tensor, level: Tensor,
          blinks: bool, commit_level: float) -> Tensor:
    """What a generator makes of ``noised`` [B, T, C, h, w] at ``level`` [B, T]."""
    with torch.autocast(noised.device.type, torch.bfloat16):
        window = segment_window(lesson.segment, lesson.audio, prompts, noised, level,
                                commit_level, lesson.phase if blinks else None)
        velocity = model.denoiser.window(window)
    return noised - level[..., None, None, None] * velocity.float()


def train_blinking(model: Trainee, shard: Shard, prompts: Prompts, process: Process, run: Run,
                   options: BlinkingOptions | None = None,
                   sheet: Callable[[Path], None] | None = None) -> Optimiser:
    """Train the keys and values of a blink in place; raw ones stay in ``model``, their average in
    the result.

    Raises:
        ValueError: if the denoiser has none, or the clips hold no blink that is timed as a
            stream's.
    """
    options = options or BlinkingOptions()
    denoiser = model.denoiser
    if denoiser.blink_k is None:
        raise ValueError('this denoiser has no keys for a blink: give blink_rows in its config')
    if run.sharded:
        raise ValueError('a few keys are too small to be split: leave out --fsdp')
    process.share_weights(model)
    trained = {id(denoiser.blink_k), id(denoiser.blink_v)}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimiser = Optimiser(model, process, options.peak_rate, 0.0, betas=(0.9, 0.99),
                          average_decay=options.average_decay,
                          settle_steps=options.settle_steps)
    stage = Stage('blink', process, run)
    stage.samples(optimiser, sheet)
    stage.keep(weights=optimiser)
    torch.manual_seed(run.seed * 1009 + process.rank)
    blinks, empty = gather(model, shard, prompts, options)
    if not blinks:
        raise ValueError(f'none of {len(shard.mel)} clips has a blink that begins in frame '
                         f'{FIRST_FRAME} of a chunk: render more or longer ones')
    levels = torch.tensor(shard.config.sampler.levels, device=shard.device)
    commit_level = shard.config.sampler.commit_level
    if shard.device.type == 'cuda' and run.compiled:
        compile_layers('_window_layer', denoiser)
    count_empty = round(options.batch * options.empty_share) if empty else 0
    for progress in stage.steps():
        for share in stage.parts():
            some = [pool[int(torch.randint(len(pool), ()))]
                    for pool, count in ((blinks, options.batch - count_empty),
                                        (empty, count_empty)) for _ in range(count)]
            lesson = collate(some)
            truth = lesson.segment.truth
            level = levels[torch.randint(len(levels), (len(truth), 1), device=truth.device)
                           ].expand(-1, truth.shape[1])
            noised = mix(truth, level, torch.randn_like(truth))
            with torch.no_grad():
                still = drawn(model, lesson, prompts, noised, level, False, commit_level)
            x0 = drawn(model, lesson, prompts, noised, level, True, commit_level)
            # Chunks without a blink cannot change.
            told = (lesson.phase > 0)[..., None, None, None].float()
            wanted = still + lesson.eyes * (truth - still)
            weight = told * (1.0 + options.eye_weight * lesson.eyes)
            error = (weight * (x0 - wanted).square()).sum() / (weight.sum() * x0.shape[2])
            optimiser.backward(share * error)
            with torch.no_grad():
                def missed(of: Tensor, told: Tensor = told, eyes: Tensor = lesson.eyes,
                           truth: Tensor = truth) -> Tensor:
                    return (told * eyes * (of - truth).square()).sum()

                elsewhere = (told * (1.0 - lesson.eyes) * (x0 - still).square()).sum() / (
                    (told * (1.0 - lesson.eyes)).sum() * x0.shape[2])
                stage.log.add(stage.step, loss=error.detach(), elsewhere=elsewhere,
                              eyes_missed=missed(x0.detach()) / missed(still))
        stage.log.add(stage.step, gradient=optimiser.step(progress))
    stage.close()
    for parameter in frozen:
        parameter.requires_grad_(True)
    return optimiser
