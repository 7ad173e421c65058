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
generator draws without a blink. Text attention reaches every token, and what a blink leaves beside
the eyes is remembered: with little weight on it, a hat grew out of a blink in a turn of the head.
So streams also run free and blink at any time, and away from the eyes nothing is to change; where
nobody is in view, nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from interactive_avatar.training.rollout import Rollout, Segment, joined, part, segment_window
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers, freeze_but

LIDS: Final = PROBE_UNITS.index('eyeBlinkLeft')
FIRST_FRAME: Final = 1
"""Frame of the first chunk in which lids begin to fall."""
OPEN_MOST: Final = 0.3
"""Lids of a person who looks down fall so far."""
TOLERANCE: Final = 0.03
FAR: Final = 0.05
"""Weight of the eyes below which a cell is beside them."""


@dataclass(frozen=True)
class BlinkingOptions:
    """Options of the stage; batch counts segments per process and part.

    ``rows``: keys and values per chunk of a blink, where the weights come without any.
    ``streams`` are held on clips ``segments`` times, ``chunks`` each, for lessons, and run free
    ``free_segments`` times. ``free_share`` of a batch are of these, ``empty_share`` of times when
    nobody is in view. ``eye_weight``: of cells at the eyes, against 1 elsewhere.
    """

    rows: int = 4
    streams: int = 64
    segments: int = 60
    free_segments: int = 10
    chunks: int = 10
    empty_share: float = 0.1
    free_share: float = 0.35
    eye_weight: float = 6.0
    batch: int = 24
    peak_rate: float = 1e-2
    average_decay: float = 0.99
    settle_steps: int = 20


@dataclass
class Lesson:
    """A stretch of a stream.

    Attributes:
        segment: of one stream. audio: tokens of its chunks, [1, T, 12, width].
        phase: int64 [1, T], which chunk of a blink each is, from 1; 0 for none.
        goal: latents [1, T, C, h, w], wanted at the eyes.
        eyes: [1, T, 1, h, w], 0 to 1, where that is.
        still: of the same shape, where nothing is to change.
    """

    segment: Segment
    audio: Tensor
    phase: Tensor
    goal: Tensor
    eyes: Tensor
    still: Tensor


Lessons = dict[str, list[Lesson]]


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
def gather(model: Trainee, shard: Shard, prompts: Prompts, options: BlinkingOptions) -> Lessons:
    """Lessons *held* (the clips' blinks), *free*, and *empty* (when nobody is in view)."""
    side, device = shard.config.autoencoder.latent_px, shard.device
    lids = blink_phases(shard.probe_units[..., LIDS])
    step = torch.arange(options.chunks, device=device)
    lessons: Lessons = {'held': [], 'free': [], 'empty': []}

    def played(segments: int, levels: Sequence[float], anchored: int
               ) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        rollout = Rollout(model.denoiser, shard, prompts, options.streams, options.chunks, 0.0,
                          captured=device.type == 'cuda')
        for _ in range(segments):
            segment, audio = rollout.advance(model.audio, levels, anchored=anchored)
            marks = shard.chunk_marks(segment.clip, segment.at, options.chunks)
            near = (cell_weight(marks, side, 0.0, 1.0) - 1.0).clamp(max=1.0)
            yield segment, audio.detach(), near

    def keep(kind: str, segment: Segment, audio: Tensor, phase: Tensor, goal: Tensor,
             eyes: Tensor, still: Tensor) -> None:
        for stream in torch.nonzero(phase.any(1)).flatten().tolist():
            own = slice(stream, stream + 1)
            lessons[kind].append(Lesson(part(segment, own), audio[own], phase[own], goal[own],
                                        eyes[own], still[own]))

    for segment, audio, near in played(options.segments, (1.0,), options.streams):
        phase = lids[segment.clip[:, None], segment.at[:, None] + step]
        # A blink that is cut has lost its beginning, and without it nobody knows what opens.
        phase[:, 0] = torch.where(phase[:, 0] == 1, 1, 0)
        # What is worn and not named may not be known to the stream.
        phase = torch.where(segment.seen & segment.told[:, None], phase, 0)
        eyes = near.square()
        keep('held', segment, audio, phase, segment.truth, eyes, 1.0 - eyes)
        away = torch.randint(1, BLINK_CHUNKS + 1, phase.shape, device=device) * ~segment.seen
        keep('empty', segment, audio, away, segment.truth, torch.zeros_like(eyes),
             torch.ones_like(eyes))
    for segment, audio, near in played(options.free_segments, shard.config.sampler.levels, 0):
        first = torch.randint(options.chunks, (options.streams, 1), device=device)
        phase = torch.where((step >= first) & (step < first + BLINK_CHUNKS), step - first + 1, 0)
        # A free stream is about where its clip is.
        keep('free', segment, audio, phase, segment.made, torch.zeros_like(near),
             (near < FAR).float())
    return lessons


def collate(lessons: Sequence[Lesson]) -> Lesson:
    """Lessons as one."""
    return Lesson(joined([lesson.segment for lesson in lessons]), *(
        torch.cat([getattr(lesson, name) for lesson in lessons])
        for name in ('audio', 'phase', 'goal', 'eyes', 'still')))


def drawn(model: Trainee, lesson: Lesson, prompts: Prompts, noised: Tensor, level: Tensor,
          blinks: bool, commit_level: float) -> Tensor:
    """What a generator makes of ``noised`` [B, T, C, h, w] at ``level`` [B, T]."""
    with torch.autocast(noised.device.type, torch.bfloat16):
        window = segment_window(lesson.segment, lesson.audio, prompts, noised, level,
                                commit_level, lesson.phase if blinks else None)
        velocity = model.denoiser.window(window)
    return noised - level[..., None, None, None] * velocity.float()


def weighted_error(of: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of latents [B, T, C, h, w] over cells weighed by [B, T, 1, h, w]."""
    return (weight * (of - wanted).square()).sum() / (weight.sum() * of.shape[2]).clamp_min(1.0)


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
    if denoiser.blink_k is None or denoiser.blink_v is None:
        raise ValueError('this denoiser has no keys for a blink: give blink_rows in its config')
    if run.sharded:
        raise ValueError('a few keys are too small to be split: leave out --fsdp')
    process.share_weights(model)
    thaw = freeze_but(model, (denoiser.blink_k, denoiser.blink_v))
    optimiser = Optimiser(model, process, options.peak_rate, 0.0, betas=(0.9, 0.99),
                          average_decay=options.average_decay,
                          settle_steps=options.settle_steps)
    stage = Stage('blink', process, run)
    stage.samples(optimiser, sheet)
    stage.keep(weights=optimiser)
    torch.manual_seed(run.seed * 1009 + process.rank)
    lessons = gather(model, shard, prompts, options)
    if not lessons['held']:
        raise ValueError(f'none of {len(shard.mel)} clips has a blink that begins in frame '
                         f'{FIRST_FRAME} of a chunk: render more or longer ones')
    levels = torch.tensor(shard.config.sampler.levels, device=shard.device)
    commit_level = shard.config.sampler.commit_level
    if shard.device.type == 'cuda' and run.compiled:
        compile_layers('_window_layer', denoiser)
    counts = {kind: round(options.batch * share) if lessons[kind] else 0
              for kind, share in (('free', options.free_share), ('empty', options.empty_share))}
    counts['held'] = options.batch - sum(counts.values())
    for progress in stage.steps():
        for share in stage.parts():
            lesson = collate([lessons[kind][int(torch.randint(len(lessons[kind]), ()))]
                              for kind, count in counts.items() for _ in range(count)])
            goal = lesson.goal
            level = levels[torch.randint(len(levels), (len(goal), 1), device=goal.device)
                           ].expand(-1, goal.shape[1])
            noised = mix(goal, level, torch.randn_like(goal))
            with torch.no_grad():
                still = drawn(model, lesson, prompts, noised, level, False, commit_level)
            x0 = drawn(model, lesson, prompts, noised, level, True, commit_level)
            # Chunks without a blink cannot change.
            told = (lesson.phase > 0)[..., None, None, None].float()
            at_eyes, beside = told * lesson.eyes, told * lesson.still

            eyes = weighted_error(x0, goal, at_eyes)
            elsewhere = weighted_error(x0, still, beside)
            optimiser.backward(share * (options.eye_weight * eyes + elsewhere
                                        ) / (options.eye_weight + 1.0))
            stage.log.add(stage.step, eyes=eyes.detach(), elsewhere=elsewhere.detach(),
                          eyes_missed=eyes.detach() / weighted_error(still, goal, at_eyes))
        stage.log.add(stage.step, gradient=optimiser.step(progress))
    stage.close()
    thaw()
    return optimiser
