# SPDX-License-Identifier: Apache-2.0
"""Self-forcing rollouts at the wan size: streams with the caches that `WanStream` has.

A stream lives across training steps, as those of the compact size do (`rollout`): each step makes
its next blocks by few-step sampling, commits them, compresses what leaves the adjacent queue and
chooses key frames. As in Self-Forcing, the gradient runs through one random step of each block's
sampler, and what the caches hold is taken as it is. One block fills a GPU, so a stream is worked
off by itself; a batch is several processes, or several parts of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interactive_avatar.generator.wan.cache import Entry, WanCache
from interactive_avatar.generator.wan.config import WanConfig
from interactive_avatar.generator.wan.memory import WanMemory
from interactive_avatar.generator.wan.network import KeysValues, Source, WanTransformer
from interactive_avatar.generator.wan.rope import (
    entry_slots_table,
    frame_slots_table,
    rotate,
)
from interactive_avatar.generator.wan.window import Context, block_velocity, still_layers
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.common import Process

PASSES = ('clip', 'block', 'reference', 'entry', 'entries')
"""Methods of `WanTrainee` that are called on sharded weights."""


@dataclass(frozen=True)
class WanClip:
    """What a stream is told: who, what, and which sound.

    Attributes:
        reference: latent of a picture, float [C, h, w].
        text: text encoder states, float [n, text width].
        audio: Wav2Vec2 features of each latent frame, float [T, window, layers, width]; None for
            a model without audio attention.
        latents: of the clip's own pictures [T, C, h, w], for the stages that learn from clips.
    """

    reference: Tensor
    text: Tensor
    audio: Tensor | None
    latents: Tensor | None = None


class WanTrainee(nn.Module):
    """A transformer as training calls it: whole passes from raw conditions.

    Each method is one pass that gathers sharded weights by itself (`shard_wan`); inside, the
    layers gather theirs one by one. All take one stream, and give float32 velocities.
    """

    def __init__(self, network: WanTransformer) -> None:
        super().__init__()
        self.network = network

    @property
    def config(self) -> WanConfig:
        """Of the network."""
        return self.network.config

    def _conditions(self, text: Tensor, audio: Tensor | None
                    ) -> tuple[list[Source], list[Source] | None]:
        network = self.network
        dtype, layers = network.patch_embedding.weight.dtype, len(network.blocks)
        tokens: Source = network.text_tokens(text[None].to(dtype))
        if audio is None or network.audio_projector is None:
            return [tokens] * layers, None
        sound: Source = network.audio_tokens(audio.to(dtype))
        return [tokens] * layers, [sound] * layers

    def clip(self, frames: Tensor, level: Tensor, reference: Tensor, text: Tensor,
             audio: Tensor | None) -> Tensor:
        """All frames see each other and the reference, which stands clean before them: how teacher
        and critic look at a clip.

        Args:
            frames: [F, C, h, w] at noise ``level``, a scalar. reference: [C, h, w].
            text: [n, text width]. audio: [F, window, layers, width]; silence for the reference.

        Returns:
            velocity [F, C, h, w].
        """
        network = self.network
        x = torch.cat([reference[None].to(frames.dtype), frames])[None]
        levels = torch.cat([torch.zeros_like(level)[None], level.expand(len(frames))])[None]
        if audio is not None:
            audio = torch.cat([torch.zeros_like(audio[:1]), audio])
        told, heard = self._conditions(text, audio)
        velocity = network(x.to(network.patch_embedding.weight.dtype), levels, told, heard)
        return cast(Tensor, velocity[0, 1:].float())

    def block(self, latents: Tensor, level: float, context: Context, text: Tensor,
              audio: Tensor | None) -> tuple[Tensor, list[KeysValues]]:
        """The next block of a stream: `window.block_velocity`.

        Args:
            latents: [F, C, h, w]. text, audio: as in `clip`.

        Returns:
            velocity [F, C, h, w]; keys (not rotated) and values of the block per layer.
        """
        told, heard = self._conditions(text, audio)
        at = torch.full((1, 1), level, device=latents.device)
        velocity, pairs = block_velocity(self.network, latents[None], at, context, told, heard)
        return velocity[0].float(), pairs

    def reference(self, latent: Tensor, empty: Tensor) -> Entry:
        """Keys and values of the reference [C, h, w] under the empty prompt's states."""
        network = self.network
        told, _ = self._conditions(empty, None)
        tokens = network.embed(latent[None, None].to(network.patch_embedding.weight.dtype))[:, 0]
        return _entry(still_layers(network, tokens, told, None))

    def entry(self, group: Tensor, reference: Entry, empty: Tensor) -> Entry:
        """Keys and values of a memory entry: latents [group, C, h, w] compressed."""
        return _entry(self._entries(group[None], reference, empty))

    def entries(self, groups: Tensor, reference: Entry, empty: Tensor) -> Entry:
        """Keys and values [L, tokens, H, hw] of many memory entries, one after the other; groups
        [G, group, C, h, w]."""
        pairs = self._entries(groups, reference, empty)
        return (torch.stack([k.flatten(0, 1) for k, _ in pairs]),
                torch.stack([v.flatten(0, 1) for _, v in pairs]))

    def _entries(self, groups: Tensor, reference: Entry, empty: Tensor) -> list[KeysValues]:
        network, count = self.network, len(groups)
        told, _ = self._conditions(empty, None)
        tokens = network.compressor(groups.to(network.patch_embedding.weight.dtype),
                                    network.embed)
        return still_layers(network, tokens, told, [
            (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1))
            for k, v in zip(*reference, strict=True)])

    def remembering(self, reference: Entry, entries: Entry) -> Context:
        """A context of the reference and of entries in the order of the slots, with gradient."""
        config, device = self.config, reference[0].device
        pairs = []
        for (k, v), (cos, sin) in (
                (reference, self.network.table('frame slots', device,
                                               lambda: frame_slots_table(config))),
                (entries, self.network.table('entry slots', device,
                                             lambda: entry_slots_table(config)))):
            count = k.shape[1]
            pairs.append((rotate(k, cos[:count], sin[:count]), v))
        return Context(pairs[0], pairs[1])


def _entry(pairs: Sequence[KeysValues]) -> Entry:
    return torch.stack([k[0] for k, _ in pairs]), torch.stack([v[0] for _, v in pairs])


def shard_wan(model: WanTrainee, process: Process, mixed: torch.dtype | None,
              gather_again: bool = False) -> None:
    """Split weights over the processes with FSDP2, layer by layer, in place.

    Args:
        mixed: dtype of weights and activations in the passes; master weights and the sums of
            gradients stay as they are, or in float32. None leaves all as it is.
        gather_again: let go of a layer's gathered weights after its forward pass. At 1.3B they
            are small (3 GB in bf16) beside what gathering them for every step of the sampler
            costs; at 14B they are not.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )
    mesh = init_device_mesh(process.device.type, (process.world,))
    policy = MixedPrecisionPolicy(
        param_dtype=mixed, reduce_dtype=None if mixed is None else torch.float32,
        cast_forward_inputs=False)
    for block in model.network.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=gather_again)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=gather_again)
    for name in PASSES:
        register_fsdp_forward_method(model, name)


class _Caches:
    """What `WanMemory` asks of a backend, by the network in training."""

    def __init__(self, model: WanTrainee, empty: Tensor, dtype: torch.dtype) -> None:
        self.config, self._model, self._empty, self._dtype = model.config, model, empty, dtype
        self._device = empty.device

    def new_cache(self) -> WanCache:
        return WanCache(self.config, self._device, self._dtype)

    @torch.no_grad()
    def embed_reference(self, latent: NDArray[np.float32]) -> Entry:
        return self._model.reference(torch.from_numpy(latent).to(self._device), self._empty)

    @torch.no_grad()
    def compress(self, latents: NDArray[np.float32], cache: WanCache) -> Entry:
        return self._model.entry(torch.from_numpy(latents).to(self._device),
                                 cache.take('reference', 0), self._empty)


@dataclass
class WanSegment:
    """What a stream did in one training step; F latent frames.

    Attributes:
        made: x0 at one step of the sampler, with its gradient, [F, C, h, w].
        finished: what the stream goes on from, without gradient, the same shape.
        reference, text, audio: of the clip followed; audio [F, window, layers, width] or None.
        age: blocks made before.
    """

    made: Tensor
    finished: Tensor
    reference: Tensor
    text: Tensor
    audio: Tensor | None
    age: int


class WanRollout:
    """One stream after another, each following a clip until its sound ends.

    Args:
        model: the causal student. clips: what streams follow, drawn at random.
        empty: text encoder states of the empty prompt, [n, text width].
        blocks: of a segment.
        longest: blocks after which a stream without sound begins anew.
        dtype: of the caches.
    """

    def __init__(self, model: WanTrainee, clips: Sequence[WanClip], empty: Tensor, blocks: int,
                 longest: int, dtype: torch.dtype) -> None:
        if not clips:
            raise ValueError('there are no clips to follow')
        self._model, self._clips, self._longest = model, clips, longest
        self._caches = _Caches(model, empty, dtype)
        self.blocks = blocks
        self._memory: WanMemory | None = None
        self._clip = clips[0]
        self.age = 0

    def _room(self) -> int:
        """Blocks that are left of the clip."""
        if self._clip.audio is None:
            return self._longest - self.age
        return len(self._clip.audio) // self._model.config.chunk_latents - self.age

    def _begin(self) -> WanMemory:
        self._clip = self._clips[int(torch.randint(len(self._clips), ()))]
        self.age = 0
        if self._room() < self.blocks:
            raise ValueError(f'a segment of {self.blocks} blocks does not fit a clip of '
                             f'{self._room()}: give longer clips or fewer blocks')
        return WanMemory(cast(Any, self._caches),
                         self._clip.reference.float().cpu().numpy())

    def advance(self, chosen: int, with_gradient: bool = True) -> WanSegment:
        """Make the next segment.

        Args:
            chosen: step of the sampler whose x0 is judged, and has the gradient.
        """
        model, sampler = self._model, self._model.config.sampler
        count = model.config.chunk_latents
        memory = self._memory
        if memory is None or self._room() < self.blocks:
            memory = self._memory = self._begin()
        clip, device = self._clip, self._clip.reference.device
        shape = (count, *model.config.latent_shape)
        age, heard, made, finished = self.age, [], [], []
        for _ in range(self.blocks):
            span = slice(self.age * count, (self.age + 1) * count)
            audio = None if clip.audio is None else clip.audio[span]
            with torch.no_grad():
                context = Context.of(model.network, memory.cache)
            x = clean = torch.randn(shape, device=device)
            for step, level in enumerate(sampler.levels):
                with torch.set_grad_enabled(with_gradient and step == chosen):
                    velocity, _ = model.block(x, level, context, clip.text, audio)
                    clean = x - level * velocity
                if step == chosen:
                    made.append(clean)
                clean = clean.detach()
                if step + 1 < len(sampler.levels):
                    following = sampler.levels[step + 1]
                    x = (1.0 - following) * clean + following * torch.randn_like(clean)
            finished.append(clean)
            if audio is not None:
                heard.append(audio)
            self._commit(memory, clean, context, clip, audio)
            self.age += 1
        return WanSegment(torch.cat(made), torch.cat(finished), clip.reference, clip.text,
                          torch.cat(heard) if heard else None, age)

    @torch.no_grad()
    def _commit(self, memory: WanMemory, clean: Tensor, context: Context, clip: WanClip,
                audio: Tensor | None) -> None:
        level = self._model.config.sampler.commit_level
        x = clean if not level else (1.0 - level) * clean + level * torch.randn_like(clean)
        _, pairs = self._model.block(x, level, context, clip.text, audio)
        tokens = self._model.config.frame_tokens
        for index, latent in enumerate(clean.float().cpu().numpy()):
            span = slice(index * tokens, (index + 1) * tokens)
            memory.commit(latent, (torch.stack([k[0, span] for k, _ in pairs]),
                                   torch.stack([v[0, span] for _, v in pairs])))


def random_clips(config: WanConfig, count: int, frames: int, device: torch.device,
                 seed: int = 0) -> tuple[list[WanClip], Tensor]:
    """Clips of random numbers, for measuring; and the empty prompt's states."""
    random = torch.Generator(device).manual_seed(seed)
    n, a = config.network, config.audio

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    window = FRAMES_PER_CHUNK + 2 * a.margin_frames
    clips = [WanClip(normal(*config.latent_shape), normal(n.text_tokens, n.text_width),
                     normal(frames, window, a.feature_layers, a.feature_width)
                     if a.enabled else None, normal(frames, *config.latent_shape))
             for _ in range(count)]
    return clips, torch.zeros((1, n.text_width), device=device)


def read_clips(folder: Path, config: WanConfig, device: torch.device
               ) -> tuple[list[WanClip], Tensor]:
    """Clips of a folder: ``*.safetensors`` with the tensors of `WanClip`, and
    ``empty.safetensors`` with ``text``, the empty prompt's states.

    Raises:
        ValueError: names the file and what does not fit.
    """
    from safetensors.torch import load_file

    n, a = config.network, config.audio
    window = FRAMES_PER_CHUNK + 2 * a.margin_frames
    clips, empty = [], None
    for path in sorted(folder.glob('*.safetensors')):
        tensors = {name: value.to(device).float() for name, value in load_file(str(path)).items()}
        for name, shape in _shapes(path, config, window):
            found = tensors.get(name)
            if found is None and name == 'latents':
                continue
            if found is None or found.dim() != len(shape) or any(
                    want is not None and want != size
                    for want, size in zip(shape, found.shape)):
                raise ValueError(
                    f'{str(path)!r}: {name!r} must be {list(shape)} (None: any number), not '
                    f'{"missing" if found is None else list(found.shape)}')
        if path.stem == 'empty':
            empty = tensors['text'][:n.text_tokens]
        else:
            clips.append(WanClip(tensors['reference'], tensors['text'][:n.text_tokens],
                                 tensors['audio'] if a.enabled else None,
                                 tensors.get('latents')))
    if not clips or empty is None:
        raise ValueError(f'{str(folder)!r} must hold clips (*.safetensors) and empty.safetensors; '
                         f'docs/wan.md says what is in them')
    return clips, empty


def _shapes(path: Path, config: WanConfig,
            window: int) -> Iterable[tuple[str, tuple[int | None, ...]]]:
    n, a = config.network, config.audio
    yield 'text', (None, n.text_width)
    if path.stem != 'empty':
        yield 'reference', config.latent_shape
        yield 'latents', (None, *config.latent_shape)
        if a.enabled:
            yield 'audio', (None, window, a.feature_layers, a.feature_width)
