# SPDX-License-Identifier: Apache-2.0
"""A shard of rendered performances in device memory, and the batches that stages draw from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.denoiser import Window
from interactive_avatar.generator.prompts import OBJECTS, prompt_table
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.media.mel import MEL_CEILING_LN, MEL_FLOOR_LN
from interactive_avatar.training.performances import Performance, compose, restless
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.render.people import People
from interactive_avatar.training.render.renderer import Renderer
from interactive_avatar.training.speech.library import SpeechLibrary
from interactive_avatar.training.units import UNITS

MOUTH_UNITS = tuple(name for name in UNITS if name.startswith(('jawOpen', 'mouth')))[:16]
PROBE_UNITS = tuple(name for name in UNITS
                    if name.startswith(('jawOpen', 'mouth', 'eyeBlink', 'eyeLook', 'eyeWide',
                                        'brow')))
IN_VIEW_M = 0.08
"""How far a person may stand aside to be in view."""
LEAVING_CHUNKS = 2
"""So long it takes from there until nothing of them is in the picture, and when they come back."""
REFERENCES_PER_CLIP = 6
BARE_REFERENCES = 4
"""So many of them show nothing worn, the first of them at rest and from the front, as the pictures
that streams begin with. References drawn from the clip's frames wear what is worn there, and a
generator that has it from the reference learns to keep it neither by memory nor by prompt."""
ENCODED = ('mouth', 'probe_units', 'mel', 'prompt_ids', 'in_view', 'told', 'marks', 'latents',
           'references', 'pictures')
"""Tensors of a shard, first axis clips, that outlive its pictures."""


@dataclass(frozen=True)
class ShardOptions:
    """What is rendered: clips of equal length, seeds from ``first_seed`` on.

    With ``recombine`` the people are not the baked ones but a population put together anew from
    them (`People.recombined`): 198 faces are learnt by heart within minutes. Of a
    ``restless_share`` of the clips the brows move all the time (`performances.restless`).
    """

    clips: int = 150
    seconds: int = 40
    first_seed: int = 0
    split: str = 'train'
    render_seconds: float = 150.0
    recombine: bool = True
    restless_share: float = 0.0


def compose_many(seeds: Sequence[int], speech: Path, people: int, seconds: int,
                 split: str) -> list[Performance]:
    """Performances of the seeds, in order, by some of ``people`` identities."""
    library = SpeechLibrary.load(speech)
    return [compose(seed, range(people), library, seconds=seconds, split=split) for seed in seeds]


def told(performance: Performance) -> np.ndarray:
    """Whether the prompt of each chunk names all that is worn in it, bool [n / 4]."""
    table = prompt_table()
    names = [(*prompt.world.worn, *dict(prompt.slots).values()) for prompt in (
        table[number] for number in performance.prompt_ids)]
    named = np.ones(len(names), bool)
    for item in OBJECTS:
        worn = getattr(performance, item).reshape(len(names), FRAMES_PER_CHUNK).max(1) > 0.0
        named &= ~worn | np.array([item in each for each in names])
    return named


def reference_stills(performance: Performance, seed: int) -> tuple[np.ndarray, ...]:
    """What a clip's reference pictures show (see `BARE_REFERENCES`), for `Renderer.render`.

    Returns:
        units [6, 52], head [6, 6], glasses [6], hat [6], float32; of moments in view.

    Raises:
        ValueError: if the person never is in view.
    """
    visible = np.flatnonzero(np.abs(performance.head[:, 3]) < IN_VIEW_M)
    if not len(visible):
        raise ValueError(f'person {performance.identity} is out of view in all '
                         f'{performance.frames} frames: there is no picture to refer to')
    pick = visible[np.random.default_rng([seed, 2]).integers(len(visible),
                                                             size=REFERENCES_PER_CLIP)]
    units, head, glasses, hat = (part[pick].copy() for part in (
        performance.units, performance.head, performance.glasses, performance.hat))
    units[0] = head[0] = 0.0
    glasses[:BARE_REFERENCES] = hat[:BARE_REFERENCES] = 0.0
    return units, head, glasses, hat


class Shard:
    """Rendered clips: frames in device memory for the autoencoder, latents for the denoiser.

    Attributes:
        frames: uint8 [clips, n, H, W, 3], or None once dropped.
        marks: float32 [clips, n, 3, 2], mouth centre and eyes in pixels (x, y).
        mel: uint8 [clips, 4 n, 64]; mouth: float32 [clips, n, 16]; probe_units: [clips, n, k].
        prompt_ids: int64 [clips, n / 4]; told: bool [clips, n / 4], whether prompts name all that
            is worn. Where they do not, nobody could know it who has no memory.
        latents: float16 [clips, n / 4, C, h, w] once encoded; references likewise [clips, 6, …].
        predicted: the latents as a denoiser sees them through noise, or None.
        stills: the reference pictures, uint8 [clips, 6, H, W, 3], first those of
            `BARE_REFERENCES`; still_marks: [clips, 6, 3, 2]. Dropped with the frames.
        pictures: uint8 [clips, H, W, 3], the first reference of each clip, once encoded.
    """

    def __init__(self, performances: Sequence[Performance], device: torch.device,
                 config: GeneratorConfig, seed: int) -> None:
        self.performances = list(performances)
        self.device, self.config = device, config
        self.random = torch.Generator(device=device)
        self.random.manual_seed(seed)
        take = partial(np.stack, axis=0)
        units = take([p.units for p in performances]).astype(np.float32)
        mouth = [UNITS.index(name) for name in MOUTH_UNITS]
        probe = [UNITS.index(name) for name in PROBE_UNITS]
        self.mouth = torch.from_numpy(units[:, :, mouth]).to(device)
        self.probe_units = torch.from_numpy(units[:, :, probe]).to(device)
        self.mel = torch.from_numpy(take([p.mel for p in performances])).to(device)
        self.prompt_ids = torch.from_numpy(
            take([p.prompt_ids for p in performances]).astype(np.int64)).to(device)
        self.in_view = torch.from_numpy(
            take([np.abs(p.head[:, 3]) < IN_VIEW_M for p in performances])).to(device)
        self.told = torch.from_numpy(take([told(p) for p in performances])).to(device)
        self.length = units.shape[1]
        self.frames: Tensor | None = None
        self.marks: Tensor | None = None
        self.stills: Tensor | None = None
        self.still_marks: Tensor | None = None
        self.latents: Tensor | None = None
        self.references: Tensor | None = None
        self.predicted: Tensor | None = None
        self.pictures: Tensor | None = None

    @classmethod
    def render(cls, options: ShardOptions, config: GeneratorConfig, people: Path, speech: Path,
               device: torch.device, device_index: int = 0,
               say: Callable[[str], None] = print) -> Shard:
        """Compose and render a shard."""
        start = time.monotonic()
        seeds = range(options.first_seed, options.first_seed + options.clips)
        population = People(people)
        if options.recombine:
            population = population.recombined(options.first_seed)
        performances = compose_many(seeds, speech, len(population), options.seconds,
                                    options.split)
        rng = np.random.default_rng([options.first_seed, 3])
        performances = [restless(p, rng) if rng.random() < options.restless_share else p
                        for p in performances]
        say(f'composed {len(performances)} performances in {time.monotonic() - start:.1f} s')
        shard = cls(performances, device, config, options.first_seed)
        start = time.monotonic()
        side = config.autoencoder.picture_px
        renderer = Renderer(population, size=side, device_index=device_index)
        shard.frames = torch.empty((len(performances), shard.length, side, side, 3),
                                   dtype=torch.uint8, device=device)
        shard.stills = shard.frames.new_empty(
            (len(performances), REFERENCES_PER_CLIP, side, side, 3))
        marks = np.empty((len(performances), shard.length + REFERENCES_PER_CLIP, 3, 2), np.float32)
        for index, p in enumerate(performances):
            # In one go: the stills fill an atlas that the frames leave half empty.
            drawn = [np.concatenate(parts) for parts in zip(
                (p.units, p.head, p.glasses, p.hat),
                reference_stills(p, options.first_seed + index), strict=True)]
            frames, marks[index] = renderer.render(p.identity, *drawn)
            shard.frames[index].copy_(torch.from_numpy(frames[:shard.length]))
            shard.stills[index].copy_(torch.from_numpy(frames[shard.length:]))
            if time.monotonic() - start > options.render_seconds:
                break
        renderer.close()
        shard.marks = torch.from_numpy(marks[:, :shard.length]).to(device)
        shard.still_marks = torch.from_numpy(marks[:, shard.length:]).to(device)
        shard.keep_first(index + 1)
        seconds = time.monotonic() - start
        count = (index + 1) * shard.length
        say(f'rendered {count} frames in {seconds:.1f} s: {count / seconds:.0f} frames/s')
        return shard

    def keep_first(self, clips: int) -> None:
        """Drop the clips that were not rendered in time."""
        self.performances = self.performances[:clips]
        for name in ('mouth', 'probe_units', 'mel', 'prompt_ids', 'in_view', 'told', 'frames',
                     'marks', 'stills', 'still_marks'):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[:clips])

    def _random(self, high: int, count: int) -> Tensor:
        return torch.randint(0, high, (count,), device=self.device, generator=self.random)

    def groups(self, batch: int, still_share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Groups of four frames at any offset, some of them one frame held still.

        Returns:
            frames uint8 [B, 4, H, W, 3], marks [B, 4, 3, 2], units [B, 4, k].
        """
        assert self.frames is not None and self.marks is not None
        clip = self._random(len(self.frames), batch)[:, None]
        start = self._random(self.length - FRAMES_PER_CHUNK, batch)[:, None]
        step = torch.arange(FRAMES_PER_CHUNK, device=self.device)[None]
        moving = torch.rand(batch, 1, device=self.device, generator=self.random) >= still_share
        index = start + step * moving
        return self.frames[clip, index], self.marks[clip, index], self.probe_units[clip, index]

    def mel_windows(self, clip: Tensor, chunk: Tensor) -> Tensor:
        """Log-mel windows of chunks; clip and chunk [N] -> float [N, 96, 64]; floor outside."""
        a = self.config.audio
        step = torch.arange(a.window_mels, device=self.device)
        index = (chunk[:, None] * FRAMES_PER_CHUNK - a.past_frames) * 4 + step
        inside = (index >= 0) & (index < self.mel.shape[1])
        data = self.mel[clip[:, None], index.clamp(0, self.mel.shape[1] - 1)]
        return torch.where(inside[..., None], mel_nepers(data), MEL_FLOOR_LN)

    def audio_windows(self, batch: int) -> tuple[Tensor, Tensor]:
        """Random windows and the mouth units of their chunk's frames, [B, 4, 16]."""
        clip = self._random(len(self.mel), batch)
        chunk = self._random(self.length // FRAMES_PER_CHUNK, batch)
        step = torch.arange(FRAMES_PER_CHUNK, device=self.device)
        units = self.mouth[clip[:, None], chunk[:, None] * FRAMES_PER_CHUNK + step]
        return self.mel_windows(clip, chunk), units

    def chunk_marks(self, clip: Tensor, at: Tensor, chunks: int) -> Tensor:
        """Mouth and eyes of chunks from ``at`` on, in pixels, [B, chunks, 3, 2]; clip, at [B]."""
        assert self.marks is not None
        chunk = at[:, None] + torch.arange(chunks, device=self.device)
        step = torch.arange(FRAMES_PER_CHUNK, device=self.device)
        marks: Tensor = self.marks[clip[:, None, None],
                                   chunk[..., None] * FRAMES_PER_CHUNK + step].mean(2)
        return marks

    def seen(self, clip: Tensor, at: Tensor, chunks: int) -> Tensor:
        """Whether somebody is in view all through each of the chunks from ``at`` on, bool
        [B, chunks]; clip, at [B]."""
        chunk = at[:, None] + torch.arange(chunks, device=self.device)
        step = torch.arange(FRAMES_PER_CHUNK, device=self.device)
        return self.in_view[clip[:, None, None], chunk[..., None] * FRAMES_PER_CHUNK + step].all(2)

    def empty(self, clip: Tensor, at: Tensor, chunks: int) -> Tensor:
        """Whether nothing of anybody is in the picture in each of the chunks from ``at`` on, bool
        [B, chunks]; clip, at [B]. Who is out of view by less than `LEAVING_CHUNKS` chunks still
        shows a shoulder."""
        somebody = self.in_view.unflatten(1, (-1, FRAMES_PER_CHUNK)).any(2).float()
        near = max_pool1d(somebody[:, None], 2 * LEAVING_CHUNKS + 1, 1, LEAVING_CHUNKS)[:, 0]
        chunk = at[:, None] + torch.arange(chunks, device=self.device)
        nobody: Tensor = near[clip[:, None], chunk] == 0.0
        return nobody

    @torch.no_grad()
    def encode(self, encode: Callable[[Tensor], Tensor], batch: int = 64) -> None:
        """Latents of every chunk, and of the stills as references."""
        assert self.frames is not None and self.stills is not None
        clips, chunks = len(self.frames), self.length // FRAMES_PER_CHUNK
        a = self.config.autoencoder
        shape = (a.latent_channels, a.latent_px, a.latent_px)
        self.latents = torch.empty((clips, chunks, *shape), dtype=torch.float16,
                                   device=self.device)
        self.references = torch.empty((clips, REFERENCES_PER_CLIP, *shape), dtype=torch.float16,
                                      device=self.device)
        self.pictures = self.stills[:, 0].clone()
        for clip in range(clips):
            groups = self.frames[clip].unflatten(0, (chunks, FRAMES_PER_CHUNK))
            self.latents[clip] = torch.cat([encode(part) for part in groups.split(batch)]).half()
            still = self.stills[clip][:, None].expand(-1, FRAMES_PER_CHUNK, -1, -1, -1)
            self.references[clip] = encode(still).half()

    def drop_frames(self) -> None:
        """Free the pictures once they are encoded."""
        self.frames = self.stills = self.still_marks = None

    def state(self) -> dict[str, Tensor]:
        """What the denoiser's stage needs, to be kept on disk between calls."""
        return {name: getattr(self, name) for name in ENCODED}

    def extend(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Add encoded clips of equal length.

        Raises:
            ValueError: if theirs differs.
        """
        for state in states:
            if state['mouth'].shape[1] != self.length:
                raise ValueError(f'clips of {state["mouth"].shape[1]} frames do not fit those of '
                                 f'{self.length}: render all with the same --clip-seconds')
        for name in ENCODED:
            setattr(self, name, torch.cat([getattr(self, name),
                                           *(state[name].to(self.device) for state in states)]))

    @classmethod
    def of(cls, states: Sequence[dict[str, Tensor]], config: GeneratorConfig,
           device: torch.device, seed: int) -> Shard:
        """Encoded clips of one or more shards, without pictures."""
        shard = object.__new__(cls)
        shard.device, shard.config = device, config
        shard.performances, shard.predicted = [], None
        shard.drop_frames()
        shard.random = torch.Generator(device=device)
        shard.random.manual_seed(seed)
        for name in ENCODED:
            if name not in states[0]:
                raise ValueError(f'the kept latents lack {name!r}: an earlier version wrote them; '
                                 f'delete latents*.pt in the state folder to draw them anew')
            setattr(shard, name, torch.cat([state[name].to(device) for state in states]))
        shard.length = shard.mouth.shape[1]
        return shard


def mel_nepers(data: Tensor) -> Tensor:
    """Log-mel values, nepers, of bytes of any shape (`media.mel.mel_to_bytes`)."""
    return data.float() / 255.0 * (MEL_CEILING_LN - MEL_FLOOR_LN) + MEL_FLOOR_LN


def cell_weight(marks_px: Tensor, side: int, mouth_weight: float, eye_weight: float) -> Tensor:
    """Weight of latent cells, 1 + bumps at mouth and eyes, [B, n, 1, side, side].

    Args: marks_px: [B, n, 3, 2], mouth and eyes (x, y) in pixels.
    """
    marks = marks_px / 16.0
    axis = torch.arange(side, device=marks.device) + 0.5
    across, down = (axis - marks[..., :1]) ** 2, (axis - marks[..., 1:]) ** 2
    near = torch.exp(-(down[..., :, None] + across[..., None, :]) / (2 * 1.3 ** 2))
    weight = 1.0 + mouth_weight * near[:, :, 0] + eye_weight * (near[:, :, 1] + near[:, :, 2])
    return weight[:, :, None]


@dataclass
class WindowBatch:
    """Clean windows of clips; noise, audio tokens and text are added by the stage.

    Attributes:
        latents: [B, T + 2, C, h, w], clip frames s - 2 … s + T - 1.
        follows: [B, F] bool, whether a frame has one before it (else the reference stands there).
        mel: [B, T + 2, 96, 64]; mouth: [B, T + 2, 4, 16]; weight: [B, T, 1, h, w].
        marks: of the targets, [B, T, 3, 2] in pixels; units: [B, T, 4, k], as `probe_units`.
        clip: [B] which clips they are; told: bool [B], see `Shard`; seen: bool [B, T], whether
            somebody is in view; the rest as in `Window`, for
            its F = 2 T + 1 frames.
    """

    latents: Tensor
    follows: Tensor
    mel: Tensor
    mouth: Tensor
    weight: Tensor
    marks: Tensor
    units: Tensor
    reference: Tensor
    groups: Tensor
    short_index: Tensor
    mask: Tensor
    prompt_ids: Tensor
    text_index: Tensor
    clip: Tensor
    told: Tensor
    seen: Tensor


def draw_windows(shard: Shard, batch: int, targets: int, prompts: int = 4,
                 mouth_weight: float = 4.0, eye_weight: float = 2.0,
                 at: tuple[Tensor, Tensor] | None = None) -> WindowBatch:
    """Windows with the memory that a stream would hold there.

    They lie anywhere, or where ``at`` says: clips and first targets, int64 [batch] each.

    A stream is taken to have begun at a random earlier chunk of the clip; everything before is
    masked. Groups of the short memory lie at a random phase; long-term entries are random older
    groups, a random number of them filled. Windows in which a prompt does not name what is worn
    have all of their clip's past.
    """
    assert shard.latents is not None and shard.references is not None
    assert shard.marks is not None
    config, device = shard.config, shard.device
    m = config.memory
    chunks = shard.latents.shape[1]
    clip, s = at or (shard._random(len(shard.latents), batch),
                     shard._random(chunks - targets + 1, batch))
    roll = torch.rand(batch, device=device, generator=shard.random)
    back = shard._random(60, batch)
    begin = torch.where(roll < 0.12, s, torch.where(roll < 0.4, (s - back).clamp_min(0), 0))
    wanted = s[:, None] + torch.arange(targets, device=device)
    told = shard.told[clip[:, None], wanted].all(1)
    begin = torch.where(told, begin, 0)
    phase = int(torch.randint(0, m.group, (1,), device=device, generator=shard.random))

    around = s[:, None] + torch.arange(-2, targets, device=device)
    inside = around.clamp(0, chunks - 1)
    latents = shard.latents[clip[:, None], inside].float()
    flat_clip = clip[:, None].expand_as(around).flatten()
    mel = shard.mel_windows(flat_clip, inside.flatten()).unflatten(0, around.shape)
    step = torch.arange(FRAMES_PER_CHUNK, device=device)
    mouth = shard.mouth[clip[:, None, None], inside[..., None] * FRAMES_PER_CHUNK + step]

    # Short memory: group k starts at s + first + k · group (see the module's tests).
    fixed = m.short + (targets + m.group) // m.group + 1
    first = -(m.adjacent + 2 + m.group + phase) - (m.short - 1) * m.group
    starts = s[:, None] + first + m.group * torch.arange(fixed, device=device)
    oldest = starts[:, :1] - m.group
    older = torch.floor(torch.rand(batch, m.long, device=device, generator=shard.random)
                        * (oldest - begin[:, None] + 1).clamp_min(1)).long() + begin[:, None]
    filled = torch.where(told, shard._random(m.long + 1, batch), m.long)
    long_visible = ((torch.arange(m.long, device=device) < filled[:, None])
                    & (oldest >= begin[:, None]))
    starts = torch.cat([starts, older], 1)
    inner = torch.arange(m.group, device=device)
    index = (starts[..., None] + inner).clamp(0, chunks - 1)
    groups = shard.latents[clip[:, None, None], index].float()

    offsets = torch.cat([torch.arange(-2, targets - 1, device=device),
                         torch.arange(0, targets, device=device)])
    last = m.short - 1 + torch.div(offsets + 2 + phase, m.group, rounding_mode='floor')
    short_index = last[:, None] + torch.arange(1 - m.short, 1, device=device)
    short_start = starts[:, :fixed][:, short_index]
    short_visible = short_start >= begin[:, None, None]
    frame = s[:, None] + offsets
    adjacent = torch.stack([frame - 2, frame - 1], -1)
    # The window's first context frames have no older ones in it, whatever the clip holds.
    floor = torch.cat([s[:, None] - 2, begin[:, None]], 1).amax(1)
    adjacent_visible = adjacent >= floor[:, None, None]
    parts = []
    for visible, tokens in ((torch.ones_like(frame, dtype=torch.bool)[..., None],
                             config.chunk_tokens),
                            (long_visible[:, None].expand(-1, len(offsets), -1), m.entry_tokens),
                            (short_visible, m.entry_tokens),
                            (adjacent_visible, config.chunk_tokens)):
        parts.append(visible.repeat_interleave(tokens, -1))
    mask = (~torch.cat(parts, -1)).float() * float(MASKED)

    ids = shard.prompt_ids[clip[:, None], inside]
    changed = torch.cat([torch.zeros_like(ids[:, :1]), (ids[:, 1:] != ids[:, :-1]).long()], 1)
    segment = changed.cumsum(1).clamp(max=prompts - 1)
    chosen = torch.zeros((batch, prompts), dtype=torch.int64, device=device)
    chosen.scatter_(1, segment, ids)
    text_index = torch.cat([segment[:, :-1], segment[:, 2:]], 1)

    pick = shard._random(REFERENCES_PER_CLIP, batch)
    marks_px = shard.chunk_marks(clip, s, targets)
    units = shard.probe_units[clip[:, None, None], inside[:, 2:, None] * FRAMES_PER_CHUNK + step]
    weight = cell_weight(marks_px, config.autoencoder.latent_px, mouth_weight, eye_weight)
    reference = shard.references[clip, pick].float()
    return WindowBatch(latents, adjacent_visible[..., 1], mel, mouth, weight, marks_px, units,
                       reference, groups, short_index, mask, chosen, text_index, clip, told,
                       shard.seen(clip, s, targets))


def noised_window(batch: WindowBatch, made: Tensor, context: Tensor, context_level: Tensor,
                  targets: Tensor, target_level: Tensor, audio: Tensor,
                  prompts: Prompts) -> Window:
    """Assemble the denoiser's input.

    Args:
        made: context latents before noise, as the stream hands them on, [B, T + 1, C, h, w].
        context: the same noised as they are committed.
        audio: [B, T + 2, 12, width] for clip frames s - 2 …
    """
    before = torch.cat([made[:, :1], made[:, :-1], made[:, 1:]], 1)
    previous = torch.where(batch.follows[..., None, None, None], before,
                           batch.reference[:, None].to(before.dtype))
    return Window(
        context=context, context_level=context_level, previous=previous, targets=targets,
        target_level=target_level, reference=batch.reference, groups=batch.groups,
        short_index=batch.short_index, mask=batch.mask,
        audio=torch.cat([audio[:, :-1], audio[:, 2:]], 1),
        text=prompts.states[batch.prompt_ids].float(), text_index=batch.text_index,
        text_mask=prompts.mask[batch.prompt_ids])
