# SPDX-License-Identifier: Apache-2.0
"""Self-forcing rollouts: many streams that go on and on, with the caches that `AvatarStream` has.

A rollout lives across training steps. Each step advances all streams by a segment of chunks,
without gradient, in exactly the stream's way: few-step sampling, commit at the commit level,
groups of five compressed into the short memory, key frames chosen for the long memory. What was
seen on the way is then put together as one `Window`, whose forward with gradient gives what the
rollout gave (`test_rollout.py` shows it): one large batch instead of a small backward per chunk,
and gradients reach what wrote the caches too. As in Self-Forcing each stream's gradient runs
through one random step of its sampler; unlike there, streams are not started anew at every
training step, so errors that show up only after many chunks are trained on at no extra cost
(LongLive's streaming long tuning).

All streams of a batch have ages that differ by multiples of the group, so that they compress at
the same chunks and nothing depends on data: no synchronisation, and CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.denoiser import Clip, Denoiser, Window, rotate, unblinking
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.data import REFERENCES_PER_CLIP, Shard
from interactive_avatar.training.denoiser import Trainee, mix
from interactive_avatar.training.prompts import Prompts

PROMPTS_AT_ONCE = 4
"""Prompts a stream may have within one segment; a fifth is taken for the fourth."""


@dataclass
class Segment:
    """What the streams did in one training step; B streams, T chunks.

    Attributes:
        mel: [B, T, 96, 64]; units: mouth units of the clips followed, [B, T, 4, 16], and
            probe_units [B, T, 4, k] (see `Shard`).
        truth: the clips' latents [B, T, C, h, w]; age: chunks each stream had before, [B].
        seen: bool [B, T], whether somebody is in view in the clip.
        clip, at: [B], which clip and from which of its chunks on; told: bool [B], whether prompts
            name all that is worn, all along.
        prompt_ids: [B, P]; text_index: [B, T].
        made: finished latents [B, T, C, h, w].
        noised, level: input and noise level [B, T] of the step that has the gradient.
        committed: the first two adjacent and the made latents, but the last, with the commit's
            noise, [B, T + 1, C, h, w]; before: the latent before each chunk, [B, T, C, h, w].
        groups: short memory at the start, new groups, long memory at the start, [B, G, group, …].
        short_index: [T, 6]; long_index: [B, T, 6]; mask: [B, T, context tokens].
        kept_k, kept_v: [B, L, H, 2, 64, hw], the adjacent's keys (not rotated) and values.
        reference: [B, C, h, w].
    """

    mel: Tensor
    units: Tensor
    probe_units: Tensor
    seen: Tensor
    truth: Tensor
    age: Tensor
    clip: Tensor
    at: Tensor
    told: Tensor
    prompt_ids: Tensor
    text_index: Tensor
    made: Tensor
    noised: Tensor
    level: Tensor
    committed: Tensor
    before: Tensor
    groups: Tensor
    short_index: Tensor
    long_index: Tensor
    mask: Tensor
    kept_k: Tensor
    kept_v: Tensor
    reference: Tensor


SHARED = frozenset({'short_index'})
"""Attributes of a `Segment` that its streams have in common."""


def part(segment: Segment, streams: slice) -> Segment:
    """Some streams of a segment."""
    return Segment(**{name: value if name in SHARED else value[streams]
                      for name, value in vars(segment).items()})


def joined(segments: Sequence[Segment]) -> Segment:
    """Segments as one: their streams side by side."""
    parts = [vars(segment) for segment in segments]
    return Segment(**{name: value if name in SHARED else torch.cat([each[name] for each in parts])
                      for name, value in parts[0].items()})


def batch_redundancy(features: Tensor) -> Tensor:
    """Mean pairwise cosine similarity (`memory.redundancy`), [..., n, d] -> [...]."""
    unit = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    count = features.shape[-2]
    total = unit.sum(-2).square().sum(-1) - unit.square().sum((-1, -2))
    return total / (count * (count - 1))


def key_frame_slot(held: Tensor, candidate: Tensor) -> Tensor:
    """Slot that `memory.DynamicKeyFrames` gives each candidate, -1 for none.

    Args: held [B, n, d]; candidate [B, d]. Returns int64 [B].
    """
    held, candidate = held.double(), candidate.double()
    count = held.shape[1]
    swap = torch.eye(count, dtype=torch.bool, device=held.device)[None, :, :, None]
    trials = torch.where(swap, candidate[:, None, None], held[:, None])
    values = batch_redundancy(trials)
    best, slot = values.min(1)
    return torch.where(best < batch_redundancy(held) - 1e-9, slot, -1)


class ChunkForward:
    """`Denoiser.chunk` without gradient; on CUDA one captured graph over fixed buffers, because a
    chunk of a few streams is some 500 small kernels."""

    def __init__(self, model: Denoiser, captured: bool) -> None:
        self._model, self._captured = model, captured
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, Tensor, Tensor]

    def _run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        device = inputs[0].device.type
        # The cache of casts would outlive the graph's memory.
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda',
                            cache_enabled=False):
            return self._model.chunk(*inputs)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Denoiser.chunk`; with a graph, outputs are overwritten by the next call, and inputs
        that are the tensors of the first call are not copied."""
        if not self._captured:
            return self._run(inputs)
        if self._graph is None:
            self._capture(inputs)
        for buffer, value in zip(self._inputs, inputs, strict=True):
            if buffer is not value:
                buffer.copy_(value)
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = inputs
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._run(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self._run(self._inputs)


class Rollout:
    """A batch of streams that follow clips of a shard: their sound, their prompts.

    Args:
        batch: streams. chunks: of a segment, a multiple of the memory's group.
        restart_share: how often a stream ends early and begins anew elsewhere, per segment.
        captured: use a CUDA graph for the chunk forward.

    Raises:
        ValueError: if the segment is not a multiple of the group, or longer than the clips.
    """

    def __init__(self, model: Denoiser, shard: Shard, prompts: Prompts, batch: int, chunks: int,
                 restart_share: float, captured: bool) -> None:
        assert shard.latents is not None
        config, device = shard.config, shard.device
        d, a, m = config.denoiser, config.autoencoder, config.memory
        if chunks % m.group:
            raise ValueError(f'a segment of {chunks} chunks is no multiple of the memory group, '
                             f'{m.group}: streams would compress at different chunks')
        if chunks > shard.latents.shape[1]:
            raise ValueError(f'a segment of {chunks} chunks does not fit clips of '
                             f'{shard.latents.shape[1]}: render longer ones (--clip-seconds)')
        self._model, self._shard, self._prompts = model, shard, prompts
        self.batch, self.chunks, self._restart_share = batch, chunks, restart_share
        self._forward = ChunkForward(model, captured)
        dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
        latent = (a.latent_channels, a.latent_px, a.latent_px)

        def zeros(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((batch, *shape), dtype=kind, device=device)

        keys = (d.layers, d.heads, config.context_tokens, d.head_width)
        features = latent[0] * 16
        self.k, self.v = zeros(*keys, kind=dtype), zeros(*keys, kind=dtype)
        self._rotated = zeros(*keys, kind=dtype)
        self.mask = torch.full((batch, config.context_tokens), float(MASKED), device=device)
        self.reference = zeros(*latent)
        self.previous = zeros(*latent)
        self.trail = zeros(m.adjacent + m.group, *latent)
        self.short_groups = zeros(m.short, m.group, *latent)
        self.long_groups = zeros(m.long, m.group, *latent)
        self.short_features = zeros(m.short, features)
        self.long_features = zeros(m.long, features)
        self.long_count = zeros(kind=torch.int64)
        self.clip, self.at, self.age = (zeros(kind=torch.int64) for _ in range(3))
        self.at.fill_(shard.latents.shape[1])
        self._text = (zeros(d.layers, d.heads, d.text_rows, d.head_width, kind=dtype),
                      zeros(d.layers, d.heads, d.text_rows, d.head_width, kind=dtype),
                      zeros(d.text_rows))
        self._audio = tuple(zeros(d.layers, d.heads, config.audio.tokens, d.head_width,
                                  kind=dtype) for _ in range(2))
        self._x, self._level = zeros(*latent), zeros()

    _STATE = ('k', 'v', 'mask', 'reference', 'previous', 'trail', 'short_groups', 'long_groups',
              'short_features', 'long_features', 'long_count', 'clip', 'at', 'age')

    def state_dict(self) -> dict[str, Any]:
        """Everything that a stream has become."""
        return {name: getattr(self, name).clone() for name in self._STATE} | {'who': self._who()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Streams whose clip is another one now begin anew:
        clips come into a shard in the order in which they are found."""
        for name in self._STATE:
            getattr(self, name).copy_(state[name])
        assert self._shard.latents is not None
        count, length = self._shard.latents.shape[:2]
        lost = self.clip >= count
        self.clip.clamp_(max=count - 1)
        lost |= (self._who() != state['who']).any(1)
        self.at.masked_fill_(lost, length)

    def _who(self) -> Tensor:
        """Numbers that tell the streams' clips from others, [B, 64]."""
        assert self._shard.references is not None
        return self._shard.references[self.clip, 0].flatten(1)[:, :64].clone()

    def _span(self, kind: str) -> slice:
        start, count, tokens = self._shard.config.cache_layout[kind]
        return slice(start, start + count * tokens)

    def _slots(self, tensor: Tensor, kind: str, axis: int) -> Tensor:
        """View of a kind's slots: the token axis becomes [slots, tokens]."""
        _, count, _ = self._shard.config.cache_layout[kind]
        span = self._span(kind)
        return tensor.narrow(axis, span.start, span.stop - span.start).unflatten(axis, (count, -1))

    def _feature(self, latent: Tensor) -> Tensor:
        """`memory.frame_feature` of latents [B, C, h, w] -> [B, C · 16]."""
        cell = latent.shape[-1] // 4
        pooled = (latent - self.reference).unflatten(3, (4, cell)).unflatten(2, (4, cell))
        return pooled.mean((3, 5)).flatten(1)

    def begin(self, chunks: int) -> None:
        """Begin all streams anew, with room for so many chunks, each from its clip's first
        reference (the one whose picture a shard keeps)."""
        self._restart(torch.ones_like(self.at, dtype=torch.bool), chunks, 1)

    def follow(self, clips: Tensor) -> None:
        """Begin all streams anew, each at the start of the clip that ``clips`` [B] says, from its
        first reference."""
        assert self._shard.latents is not None
        self._restart(torch.ones_like(self.at, dtype=torch.bool), self._shard.latents.shape[1], 1,
                      clips)

    def forget(self, streams: Tensor) -> None:
        """Mask what the long memory holds by now, of ``streams``, bool [B]."""
        long = self.mask[:, self._span('long')]
        long.masked_fill_(streams[:, None], float(MASKED))

    def _restart(self, fresh: Tensor, room: int, references: int,
                 clips: Tensor | None = None) -> None:
        """Begin streams anew where ``fresh`` [B], in ``clips`` [B] or in any."""
        shard = self._shard
        assert shard.latents is not None and shard.references is not None
        chunks = shard.latents.shape[1]
        clip = shard._random(len(shard.latents), self.batch) if clips is None else clips
        at = shard._random(chunks - room + 1, self.batch)
        # What is worn and not named there could not be known; at a clip's start it is named.
        at = torch.where(shard.told[clip, at], at, 0)
        pick = shard._random(references, self.batch)
        reference = shard.references[clip, pick].float()
        self.clip = torch.where(fresh, clip, self.clip)
        self.at = torch.where(fresh, at, self.at)
        self.age = torch.where(fresh, 0, self.age)
        self.long_count = torch.where(fresh, 0, self.long_count)
        wide = fresh[:, None, None, None]
        self.reference.copy_(torch.where(wide, reference, self.reference))
        self.previous.copy_(torch.where(wide, reference, self.previous))
        self.mask.copy_(torch.where(fresh[:, None], float(MASKED), self.mask))
        self.mask[:, self._span('reference')] = 0.0

    @torch.no_grad()
    def _refresh(self) -> None:
        """Make the keys of references and memory entries anew: the weights have moved on."""
        model = self._model
        reference_k, reference_v = model.reference(self.reference)
        for cache, value in ((self.k, reference_k), (self.v, reference_v)):
            cache[:, :, :, self._span('reference')] = value.to(cache.dtype)
        for kind, groups in (('long', self.long_groups), ('short', self.short_groups)):
            count = groups.shape[1]
            pair = model.entry(groups.flatten(0, 1), reference_k.repeat_interleave(count, 0),
                               reference_v.repeat_interleave(count, 0))
            for cache, value in zip((self.k, self.v), pair, strict=True):
                slots = value.unflatten(0, (self.batch, count)).movedim(1, 3).flatten(3, 4)
                cache[:, :, :, self._span(kind)] = slots.to(cache.dtype)

    def _conditions(self) -> tuple[Tensor, ...]:
        """Mel windows, mouth and probe units, latents, prompts and their index for the segment's
        chunks."""
        shard = self._shard
        assert shard.latents is not None
        index = self.at[:, None] + torch.arange(self.chunks, device=shard.device)
        clip = self.clip[:, None].expand_as(index)
        mel = shard.mel_windows(clip.flatten(), index.flatten()).unflatten(0, index.shape)
        step = torch.arange(FRAMES_PER_CHUNK, device=shard.device)
        frames = index[..., None] * FRAMES_PER_CHUNK + step
        units = shard.mouth[clip[..., None], frames]
        probe_units = shard.probe_units[clip[..., None], frames]
        ids = shard.prompt_ids[clip, index]
        changed = torch.cat([torch.zeros_like(ids[:, :1]),
                             (ids[:, 1:] != ids[:, :-1]).long()], 1)
        text_index = changed.cumsum(1).clamp(max=PROMPTS_AT_ONCE - 1)
        chosen = torch.zeros((self.batch, PROMPTS_AT_ONCE), dtype=torch.int64,
                             device=shard.device).scatter_(1, text_index, ids)
        truth = shard.latents[clip, index].float()
        return mel, units, probe_units, truth, chosen, text_index

    @torch.no_grad()
    def advance(self, hear: Callable[[Tensor], Tensor], levels: Sequence[float],
                anchored: int = 0, anchor_low: float = 0.45, anchor_high: float = 0.95
                ) -> tuple[Segment, Tensor]:
        """Go on by a segment.

        Args:
            hear: mel windows [N, 96, 64] to audio tokens [N, 12, width], with gradient outside.
            levels: of the sampler, falling from 1.
            anchored: the first so many streams are kept on their clips: each of their chunks
                starts from the clip's latent noised to a level between ``anchor_low`` and
                ``anchor_high``, and what they commit is what the model makes of it.

        Returns:
            the segment and its audio tokens [B, T, 12, width], with their graph.
        """
        config, device = self._shard.config, self._shard.device
        m, commit_level = config.memory, config.sampler.commit_level
        assert self._shard.latents is not None
        over = self.at + self.chunks > self._shard.latents.shape[1]
        chance = torch.rand(self.batch, device=device, generator=self._shard.random)
        self._restart(over | (chance < self._restart_share), self.chunks, REFERENCES_PER_CLIP)
        mel, units, probe_units, truth, chosen, text_index = self._conditions()
        with torch.enable_grad():
            tokens = hear(mel.flatten(0, 1)).unflatten(0, mel.shape[:2])
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda')
        with autocast:
            self._refresh()
            audio = [part.unflatten(0, mel.shape[:2]) for part in self._model.audio_cache(
                tokens.detach().flatten(0, 1))]
            text = [part.unflatten(0, chosen.shape) for part in self._model.text_cache(
                self._prompts.states[chosen.flatten()].float())]
        # Nobody blinks but by chance.
        text_mask = unblinking(self._prompts.mask[chosen], config.denoiser)
        adjacent = self._span('adjacent')
        kept = [cache[:, :, :, adjacent].unflatten(3, (m.adjacent, -1)).clone()
                for cache in (self.k, self.v)]
        age, first = self.age.clone(), self.trail[:, -m.adjacent:].clone()
        groups = self.short_groups.clone()
        fresh_groups: list[Tensor] = []
        long_groups = self.long_groups.clone()
        fixed = m.short + self.chunks // m.group
        long_index = (fixed + torch.arange(m.long, device=device)).repeat(self.batch, 1)
        chosen_step = torch.randint(len(levels), (self.batch,), device=device)
        streams = torch.arange(self.batch, device=device)
        held = streams < anchored
        made, noised, at_level, before, masks, noises = [], [], [], [], [], []
        short_rows, long_rows = [], []
        for chunk in range(self.chunks):
            for buffer, value in zip((*self._audio, *self._text),
                                     (audio[0][:, chunk], audio[1][:, chunk],
                                      text[0][streams, text_index[:, chunk]],
                                      text[1][streams, text_index[:, chunk]],
                                      text_mask[streams, text_index[:, chunk]]), strict=True):
                buffer.copy_(value)
            self._rotated.copy_(rotate(self.k, self._model.cache_cos, self._model.cache_sin))
            before.append(self.previous.clone())
            masks.append(self.mask.clone())
            short_rows.append(torch.arange(m.short, device=device) + len(fresh_groups))
            long_rows.append(long_index.clone())
            clean = kept_x = self._x
            kept_level = self._level
            for step, level in enumerate(levels):
                noise = torch.randn_like(clean)
                x = noise if step == 0 else mix(clean, torch.full_like(self._level, level), noise)
                at = torch.full_like(self._level, level)
                if anchored:
                    anchor = anchor_low + (anchor_high - anchor_low) * torch.rand_like(at)
                    at = torch.where(held, anchor, at)
                    x = torch.where(held[:, None, None, None],
                                    mix(truth[:, chunk], at, noise), x)
                velocity = self._step(x, at)[0].float()
                clean = x - at[:, None, None, None] * velocity
                here = chosen_step == step
                kept_x = torch.where(here[:, None, None, None], x, kept_x)
                kept_level = torch.where(here, at, kept_level)
            made.append(clean)
            noised.append(kept_x)
            at_level.append(kept_level)
            noise = torch.randn_like(clean)
            quiet = torch.full_like(self._level, commit_level)
            noises.append(noise)
            _, k, v = self._step(mix(clean, quiet, noise), quiet)
            self._commit(clean, k, v)
            if (chunk + 1 - m.adjacent) % m.group == 0:
                fresh_groups.append(self.trail[:, :m.group].clone())
                self._compress(len(fresh_groups) - 1, long_index)
        at = self.at
        told = self._shard.told[self.clip[:, None], at[:, None] + torch.arange(
            self.chunks, device=device)].all(1)
        self.at = self.at + self.chunks
        latents = torch.stack(made, 1)
        context = torch.cat([first, latents[:, :-1]], 1)
        noise = torch.cat([torch.zeros_like(first), torch.stack(noises[:-1], 1)], 1)
        committed = mix(context, torch.full(context.shape[:2], commit_level, device=device), noise)
        segment = Segment(
            mel=mel, units=units, probe_units=probe_units, truth=truth, age=age,
            seen=self._shard.seen(self.clip, at, self.chunks),
            clip=self.clip, at=at, told=told, prompt_ids=chosen, text_index=text_index,
            made=latents, noised=torch.stack(noised, 1), level=torch.stack(at_level, 1),
            committed=committed, before=torch.stack(before, 1),
            groups=torch.cat([groups, *(g[:, None] for g in fresh_groups), long_groups], 1),
            short_index=torch.stack(short_rows), long_index=torch.stack(long_rows, 1),
            mask=torch.stack(masks, 1), kept_k=kept[0], kept_v=kept[1],
            reference=self.reference.clone())
        return segment, tokens

    def _step(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One forward of the chunk being made."""
        self._x.copy_(x)
        self._level.copy_(level)
        return self._forward(self._x, self._level, self.previous, *self._audio, *self._text,
                             self._rotated, self.v, self.mask)

    def _commit(self, latent: Tensor, k: Tensor, v: Tensor) -> None:
        """Push a finished chunk to the adjacent slots (`VisualMemory.commit`)."""
        span = self._span('adjacent')
        tokens = k.shape[3]
        for cache, value in ((self.k, k), (self.v, v)):
            part = cache[:, :, :, span]
            part.copy_(torch.cat([part[:, :, :, tokens:], value.to(cache.dtype)], 3))
        mask = self.mask[:, span]
        mask.copy_(torch.cat([mask[:, tokens:], torch.zeros_like(mask[:, :tokens])], 1))
        self.trail.copy_(torch.cat([self.trail[:, 1:], latent[:, None]], 1))
        self.previous.copy_(latent)
        self.age = self.age + 1

    def _compress(self, index: int, long_index: Tensor) -> None:
        """A full group becomes a short entry; what that pushes out may become a long one."""
        m = self._shard.config.memory
        group = self.trail[:, :m.group]
        there = self.age >= m.adjacent + m.group
        span = self._span('reference')
        device = group.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            k, v = self._model.entry(group, self.k[:, :, :, span], self.v[:, :, :, span])
        short_mask = self._slots(self.mask, 'short', 1)
        leaves = short_mask[:, 0, 0] == 0.0
        slot = torch.where(self.long_count < m.long, self.long_count,
                           key_frame_slot(self.long_features, self.short_features[:, 0]))
        taken = leaves & (slot >= 0)
        place = (torch.arange(m.long, device=slot.device) == slot[:, None]) & taken[:, None]
        for cache in (self.k, self.v):
            long = self._slots(cache, 'long', 3)
            oldest = self._slots(cache, 'short', 3)[:, :, :, :1]
            long.copy_(torch.where(place[:, None, None, :, None, None], oldest, long))
        long_mask = self._slots(self.mask, 'long', 1)
        long_mask.copy_(torch.where(place[..., None], 0.0, long_mask))
        wide = place[:, :, None, None, None, None]
        self.long_groups.copy_(torch.where(wide, self.short_groups[:, :1], self.long_groups))
        self.long_features.copy_(torch.where(place[..., None], self.short_features[:, :1],
                                             self.long_features))
        long_index.copy_(torch.where(place, index, long_index))
        self.long_count = self.long_count + (taken & (self.long_count < m.long))
        for cache, value in ((self.k, k), (self.v, v)):
            part = cache[:, :, :, self._span('short')]
            part.copy_(torch.cat([part[:, :, :, value.shape[3]:], value.to(cache.dtype)], 3))
        newest = torch.where(there, 0.0, float(MASKED))[:, None, None].expand(
            -1, 1, short_mask.shape[2])
        short_mask.copy_(torch.cat([short_mask[:, 1:], newest], 1))
        feature = self._feature(group.mean(1))
        self.short_groups.copy_(torch.cat([self.short_groups[:, 1:], group[:, None]], 1))
        self.short_features.copy_(torch.cat([self.short_features[:, 1:], feature[:, None]], 1))


@torch.no_grad()
def predict_shard(model: Trainee, shard: Shard, prompts: Prompts, first: int = 0, batch: int = 32,
                  lowest: float = 0.8, highest: float = 0.99) -> None:
    """Fill `Shard.predicted` from clip ``first`` on, every latent as a stream makes it that is
    held on its clip; the clips before keep the encoder's.

    Each chunk starts from the clip's latent under noise of a level between ``lowest`` and
    ``highest``, which tells where things are and no more; what the stream has made before is all
    it knows of the past. So a decoder trained on them knows how a face comes out that has been
    turned away for long: where it should be, and with hardly anything of its own left.
    """
    assert shard.latents is not None
    clips, chunks = shard.latents.shape[:2]
    batch, group = min(batch, clips), shard.config.memory.group
    shard.predicted = shard.latents.clone()
    device = shard.device
    rollout = Rollout(model.denoiser, shard, prompts, batch, group, 0.0,
                      captured=device.type == 'cuda')

    def hear(mel: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16,
                                             enabled=device.type == 'cuda'):
            tokens: Tensor = model.audio(mel)
        return tokens

    for start in range(first, clips, batch):
        # The last batch is filled up, so that shapes stay the same; what fills it is not kept.
        clip = torch.arange(start, start + batch, device=device) % clips
        own = min(batch, clips - start)
        rollout.follow(clip)
        for at in range(0, chunks - group + 1, group):
            segment, _ = rollout.advance(hear, (1.0,), batch, lowest, highest)
            shard.predicted[start:start + own, at:at + group] = segment.made[:own].half()


def segment_window(segment: Segment, audio: Tensor, prompts: Prompts, targets: Tensor,
                   level: Tensor, commit_level: float, blink: Tensor | None = None) -> Window:
    """The segment as one window; its forward on ``noised`` at ``level`` repeats the rollout.

    Args:
        audio: tokens of the chunks [B, T, 12, width]. targets, level: [B, T, C, h, w], [B, T].
        blink: of the chunks, [B, T], see `Window`.
    """
    def both(own: Tensor, axis: int = 1) -> Tensor:
        """Context frames (two whose keys are kept, then all but the last), then targets."""
        first = own.narrow(axis, 0, 1)
        return torch.cat([first, first, own.narrow(axis, 0, own.shape[axis] - 1), own], axis)

    return Window(
        context=segment.committed,
        context_level=torch.full_like(segment.committed[:, :, 0, 0, 0], commit_level),
        previous=both(segment.before), targets=targets, target_level=level,
        reference=segment.reference, groups=segment.groups,
        short_index=both(segment.short_index, 0), mask=both(segment.mask), audio=both(audio),
        text=prompts.states[segment.prompt_ids].float(), text_index=both(segment.text_index),
        text_mask=prompts.mask[segment.prompt_ids], long_index=both(segment.long_index),
        kept_k=segment.kept_k, kept_v=segment.kept_v,
        blink=None if blink is None else both(blink))


def segment_clip(segment: Segment, config: GeneratorConfig, frames: Tensor, level: Tensor,
                 audio: Tensor, prompts: Prompts) -> Clip:
    """The segment's chunks as one clip, with the memory that stood at its first chunk.

    Args:
        frames: [B, T, C, h, w]; level: [B]. audio: [B, T, 12, width].
    """
    m, seen = config.memory, config.cache_layout['adjacent'][0]
    return Clip(
        frames=frames, level=level[:, None].expand(-1, frames.shape[1]),
        reference=segment.reference,
        groups=torch.cat([segment.groups[:, -m.long:], segment.groups[:, :m.short]], 1),
        mask=segment.mask[:, 0, :seen], audio=audio,
        text=prompts.states[segment.prompt_ids].float(), text_index=segment.text_index,
        text_mask=prompts.mask[segment.prompt_ids])
