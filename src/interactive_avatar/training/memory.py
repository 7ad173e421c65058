# SPDX-License-Identifier: Apache-2.0
"""Stage: pre-training of the memory compressor with the retrieval objective.

As InteractiveAvatar describes it: of the history older than 5 s some is sampled at random, the
last 5 s are kept whole, both go through the compressor in front of a noised target, which is a
neighbour of a sampled old frame or a frame of the last 5 s; the loss is on the target only. With
text and sound dropped and nothing else to look at, what the target looked like must come out of
the memory. Frames are latents (160 ms), and what is sampled are groups of five, as in the stream.

`compare` trains other ways to fill the same slots beside it, all from new compressors and each
with its own copy of the denoiser, and reports what can be retrieved from each.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from interactive_avatar.generator.autoencoder import Autoencoder, Sight
from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.compressor import MemoryCompressor
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.denoiser import Clip, Denoiser
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import REFERENCES_PER_CLIP, Shard
from interactive_avatar.training.denoiser import mix
from interactive_avatar.training.stage import Optimiser, Run, Stage, averaged, compile_layers

LATENT_RANGE = 6.0
"""Peak of the latent PSNR: normalised latents lie within ±3 deviations but for 0.3 %."""


@dataclass(frozen=True)
class MemoryOptions:
    """Options of the stage; batch counts targets per process and part.

    ``train_denoiser``: the whole denoiser learns, not only the compressor; always so in a
    comparison. ``neighbour_chunks``: how far from an old sampled group its target may lie.
    """

    batch: int = 64
    peak_rate: float = 5e-4
    weight_decay: float = 0.02
    old_share: float = 0.6
    neighbour_chunks: int = 2
    level_low: float = 0.5
    level_high: float = 1.0
    reference_drop: float = 0.5
    train_denoiser: bool = False
    compare: tuple[str, ...] = ()
    average_decay: float = 0.998
    held_out_share: float = 0.1
    test_level: float = 0.8
    test_targets: int = 256


@dataclass
class Retrieval:
    """Targets and the memory they are to be retrieved from.

    Attributes:
        groups: [B, 12, group, C, h, w], long then short; target: [B, C, h, w].
        reference: [B, C, h, w]; clip: [B] and starts: [B, 12], where the groups lie; at: [B],
            where the target lies; now: [B], the chunk whose memory it is.
    """

    groups: Tensor
    target: Tensor
    reference: Tensor
    clip: Tensor
    starts: Tensor
    at: Tensor
    now: Tensor


def draw_retrieval(shard: Shard, batch: int, options: MemoryOptions,
                   clips: tuple[int, int]) -> Retrieval:
    """Draw targets from the clips first … last - 1.

    Raises:
        ValueError: if clips are too short to have a history older than the short memory.
    """
    assert shard.latents is not None and shard.references is not None
    m, device = shard.config.memory, shard.device
    chunks, recent = shard.latents.shape[1], m.short * m.group
    if chunks <= recent + m.group:
        raise ValueError(f'clips of {chunks} chunks have no history older than {recent} chunks: '
                         f'render longer ones (--clip-seconds)')
    clip = clips[0] + shard._random(clips[1] - clips[0], batch)
    now = recent + m.group + shard._random(chunks - recent - m.group, batch)
    short = now[:, None] - recent + m.group * torch.arange(m.short, device=device)
    room = now - recent - m.group + 1
    draw = torch.rand(batch, m.long, device=device, generator=shard.random)
    long = (draw * room[:, None]).long().sort(1).values
    starts = torch.cat([long, short], 1)
    inner = torch.arange(m.group, device=device)
    groups = shard.latents[clip[:, None, None], starts[..., None] + inner].float()

    reach = options.neighbour_chunks
    which = shard._random(m.long, batch)[:, None]
    old = torch.gather(long, 1, which)[:, 0] \
        + shard._random(m.group + 2 * reach, batch) - reach
    old = torch.minimum(old.clamp_min(0), now - recent - 1)
    new = now - 1 - shard._random(recent, batch)
    is_old = torch.rand(batch, device=device, generator=shard.random) < options.old_share
    at = torch.where(is_old, old, new)
    pick = shard._random(REFERENCES_PER_CLIP, batch)
    return Retrieval(groups, shard.latents[clip, at].float(),
                     shard.references[clip, pick].float(), clip, starts, at, now)


def retrieval_clip(drawn: Retrieval, noised: Tensor, level: Tensor, reference_hidden: Tensor,
                   config: GeneratorConfig, memory_hidden: bool = False) -> Clip:
    """The target as a clip of one frame without text and sound."""
    d, batch, device = config.denoiser, len(noised), noised.device
    seen = config.cache_layout['adjacent'][0]
    hidden = (torch.arange(seen, device=device) < config.chunk_tokens) & reference_hidden[:, None]
    if memory_hidden:
        hidden = hidden | (torch.arange(seen, device=device) >= config.chunk_tokens)
    return Clip(
        frames=noised[:, None], level=level[:, None], reference=drawn.reference,
        groups=drawn.groups, mask=hidden.float() * float(MASKED),
        audio=torch.zeros(batch, 1, config.audio.tokens, config.audio.width, device=device),
        text=torch.zeros(batch, 1, d.text_tokens, d.text_width, device=device),
        text_index=torch.zeros(batch, 1, dtype=torch.int64, device=device),
        text_mask=torch.zeros(batch, 1, d.text_tokens, device=device))


class Patchifier(nn.Module):
    """Baseline: one large patch (group × 4 × 4 latent cells of all channels) per token."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        side = config.autoencoder.latent_px // config.memory.entry_side
        size = (config.memory.group, side, side)
        self.patches = nn.Conv3d(config.autoencoder.latent_channels, config.denoiser.width,
                                 size, stride=size)

    def forward(self, latents: Tensor, patch_embedding: nn.Linear) -> Tensor:
        """[B, group, C, 16, 16] -> [B, 16, width], as `MemoryCompressor`."""
        tokens: Tensor = self.patches(latents.transpose(1, 2)).flatten(2).transpose(1, 2)
        return tokens


def _low_resolution(config: GeneratorConfig) -> nn.Module:
    """Baseline: the low-resolution branch alone; the learnt branch stays at its zeros."""
    compressor = MemoryCompressor(config)
    for parameter in compressor.parameters():
        parameter.requires_grad_(False)
    return compressor


COMPRESSORS: dict[str, Callable[[GeneratorConfig], nn.Module]] = {
    'compressor': MemoryCompressor, 'patchifier': Patchifier, 'low_resolution': _low_resolution}


def retrieval_loss(model: Denoiser, drawn: Retrieval, options: MemoryOptions) -> Tensor:
    """Flow-matching loss of the targets."""
    target = drawn.target
    count, device = len(target), target.device
    level = options.level_low + (options.level_high - options.level_low) * torch.rand(
        count, device=device)
    noise = torch.randn_like(target)
    hidden = torch.rand(count, device=device) < options.reference_drop
    clip = retrieval_clip(drawn, mix(target, level, noise), level, hidden, model.config)
    return (model.clip(clip)[:, 0].float() - (noise - target)).square().mean()


@torch.no_grad()
def retrieval_report(model: Denoiser, drawn: Retrieval, options: MemoryOptions,
                     autoencoder: Autoencoder | None, pictures: Tensor | None) -> dict[str, float]:
    """PSNR [dB] of targets retrieved at ``test_level`` with nothing but memory to look at.

    Latent PSNR against a range of `LATENT_RANGE`; picture PSNR of both latents decoded after the
    reference picture. ``without_memory`` is the same model with its memory masked.
    """
    generator = torch.Generator(device=drawn.target.device).manual_seed(0)
    noise = torch.randn(drawn.target.shape, generator=generator, device=drawn.target.device)
    level = torch.full_like(drawn.target[:, 0, 0, 0], options.test_level)
    hidden = torch.ones_like(level, dtype=torch.bool)
    noised = mix(drawn.target, level, noise)
    report = {}
    old = drawn.at < drawn.now - model.config.memory.short * model.config.memory.group
    for name, masked in (('memory', False), ('without_memory', True)):
        made = []
        for part in torch.arange(len(noised), device=noised.device).split(64):
            some = Retrieval(**{key: value[part] for key, value in vars(drawn).items()})
            clip = retrieval_clip(some, noised[part], level[part], hidden[part], model.config,
                                  masked)
            made.append(noised[part] - options.test_level * model.clip(clip)[:, 0].float())
        latents = torch.cat(made)
        error = (latents - drawn.target).square().mean((1, 2, 3))
        psnr = 10.0 * torch.log10(LATENT_RANGE ** 2 / error)
        report[f'{name}_latent_psnr_db'] = float(psnr.mean())
        if not masked:
            report['old_latent_psnr_db'] = float(psnr[old].mean())
            report['recent_latent_psnr_db'] = float(psnr[~old].mean())
        if autoencoder is not None and pictures is not None:
            picture = pictures[drawn.clip].movedim(-1, 1).float() / 127.5 - 1.0
            values = []
            for part in torch.arange(len(noised), device=noised.device).split(32):
                sight = Sight(drawn.reference[part], picture[part], drawn.reference[part],
                              picture[part])
                a, b = (autoencoder.decode(x[part], sight).clamp(-1.0, 1.0).float()
                        for x in (latents, drawn.target))
                values.append((a - b).square().mean((1, 2, 3, 4)) / 4.0)
            report[f'{name}_picture_psnr_db'] = float(
                (-10.0 * torch.log10(torch.cat(values).clamp_min(1e-9))).mean())
    return report


def train_memory(model: Denoiser, shard: Shard, process: Process, run: Run,
                 options: MemoryOptions | None = None,
                 autoencoder: Autoencoder | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result.

    Writes ``retrieval.json`` to ``run.out``: PSNR on clips not trained on, before and after, and
    of each compressor compared with.

    Raises:
        ValueError: on the name of a compressor that does not exist.
    """
    options = options or MemoryOptions()
    cuda = process.device.type == 'cuda'
    if run.sharded:
        raise ValueError('the memory stage trains a few small layers: leave out --fsdp')
    for name in options.compare:
        if name not in COMPRESSORS:
            raise ValueError(f'there is no compressor {name!r} to compare; known: '
                             f'{sorted(COMPRESSORS)}')
    models = {'model': model}
    for name in options.compare:
        models[name] = copy.deepcopy(model)
        models[name].compressor = cast(MemoryCompressor, COMPRESSORS[name](model.config)
                                       .to(process.device))
    whole = options.train_denoiser or bool(options.compare)
    for each in models.values():
        for name, parameter in each.named_parameters():
            if not whole and not name.startswith('compressor.') and name != 'kind_embedding':
                parameter.requires_grad_(False)
        process.share_weights(each)
    optimisers = {name: Optimiser(each, process, options.peak_rate, options.weight_decay,
                                  average_decay=options.average_decay)
                  for name, each in models.items() if not options.compare or name != 'model'}
    stage = Stage('memory', process, run, [shard.random])
    stage.keep(**optimisers)
    if cuda:
        compile_layers('_clip_layer', *models.values())
    assert shard.latents is not None
    count = len(shard.latents)
    held = min(count - 1, max(1, round(options.held_out_share * count)))
    shard.random.manual_seed(run.seed)
    test = draw_retrieval(shard, options.test_targets, options, (count - held, count))
    # The one whose picture the shard has: pictures are decoded from both.
    assert shard.references is not None
    test.reference = shard.references[test.clip, 0].float()

    def measure() -> dict[str, dict[str, float]]:
        with torch.autocast(process.device.type, torch.bfloat16, enabled=cuda):
            return {name: retrieval_report(each, test, options, autoencoder, shard.pictures)
                    for name, each in models.items()}

    report = {'before': measure()}
    for progress in stage.steps():
        for share in stage.parts():
            drawn = draw_retrieval(shard, options.batch, options, (0, count - held))
            for name, optimiser in optimisers.items():
                with torch.autocast(process.device.type, torch.bfloat16, enabled=cuda):
                    loss = retrieval_loss(models[name], drawn, options)
                optimiser.backward(share * loss)
                stage.log.add(stage.step, **{name: loss})
        for optimiser in optimisers.values():
            optimiser.step(progress)
    with averaged(*optimisers.values()):
        report['after'] = measure()
    if process.leads:
        (run.out / 'retrieval.json').write_text(json.dumps(
            {'targets': options.test_targets, 'clips': held, 'level': options.test_level,
             'steps': stage.step, **report}, indent=2) + '\n')
        for name, values in report['after'].items():
            print(f'memory {name}: ' + ' '.join(f'{k} {v:.2f}' for k, v in values.items()),
                  flush=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    stage.close()
    return optimisers.get('model', next(iter(optimisers.values())))
