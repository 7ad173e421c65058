# SPDX-License-Identifier: Apache-2.0
"""Stage 1: the video autoencoder.

The decoder goes on from what it showed last, so it is trained as it runs: streams walk through
clips, two chunks a step, and keep their own last frame from step to step, for thousands of frames
(truncated backpropagation through time). Latents are normalised by the statistics of the batch
(of the model, where only the decoder is trained) and handed over with noise, so that what they say
survives the errors of a denoiser.

The picture error is weighted around mouth, eyes and brows, whose blur costs most: a latent cell
covers 16×16 pixels of four frames, and a face is judged by a few of them. A small head reads the
mouth's and eyes' units off the latent cells under them, so that the latent keeps what moves.

Where mouth and eyes were in the frame shown last and in the reference picture is known, so the two
flows of the decoder are told there. Without it they settle for the middle of a chunk: the picture
error of half a pixel is small, and what is wrong shows only as a jump at each border
(`evaluation.model.seams`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.autoencoder import Autoencoder, Decoder, Sight, as_input
from interactive_avatar.generator.config import AutoencoderConfig
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.common import Average, Budget, Log, Process, learning_rate
from interactive_avatar.training.data import Shard
from interactive_avatar.training.probe import Probe, fit_probe

FACE_POINTS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.34, 0.33, 0.33),
               (-0.4, 0.7, 0.7), (0.5, 0.85, -0.35), (0.5, -0.35, 0.85), (1.4, -0.2, -0.2))
"""Where flows are told: mouth, eyes, and between and around them (nose, forehead, cheeks, chin) as
sums of these three, which a flat face keeps however it moves, turns or tilts."""
STRENGTH_PX = 8
"""Side of the squares over which changes are averaged: smaller than a mouth."""
WIDE_STRENGTH_PX = 64
"""The same, for how much there is to be in all: of what is uncertain, the median of many small
squares is less than their mean."""
TINTS = 8
"""Tints of a frame shown last, per side; between them they change evenly."""
HOLE_PX = 8
"""Side of the squares in which a picture is compared with the reference."""
HOLE_ABOVE = 0.04
"""How much the mean of some colour differs there if somebody is missing, in [-1, 1]: five steps
of 255."""
BROWS_ABOVE_EYES = 0.32
"""How far brows lie above eyes, over the distance from the mouth to the eyes."""


@dataclass(frozen=True)
class AutoencoderOptions:
    """Options of the stage; batch counts streams per GPU, chunks those of one step. Pixels are
    those that the encoder looks at, of which a picture has `AutoencoderConfig.upscale` a side.

    ``decoder_only`` leaves the encoder and the statistics of its latents as they are, so that a
    denoiser trained on them stays valid. ``anchor_weight`` above 0 trains the encoder too, but
    holds its latents near those of the encoder that the stage began with (mean squared distance
    over their variance), so that a denoiser trained on those has little to learn anew.
    ``predicted_share`` is the part of streams whose latents are the denoiser's predictions, where
    there are some (`Shard.predicted`); of a ``twin_share`` of the clips they are blends with a
    twin's instead (`clips.predict_twins`). ``strength_weight`` is of how much pictures change
    (`change_strength`): what moves is blurred, and blur moves too little within a chunk;
    ``wide_strength_weight`` is of the same over large squares, and ``border_weight`` adds to both
    for the first frames of chunks, where what a denoiser makes of one latent and of the next
    shows as a jump. Asked for change, a decoder makes some where it costs little: it tints the
    frames of a chunk in turns. ``chroma_weight`` is of the error of colours beside that of their
    luma, and ``flicker_weight`` of what goes back and forth more than it does in the truth
    (`flicker`).
    ``texture_weight`` is of how much detail pictures have (`texture`): where latents leave open
    what a turned face looks like, blur has the least error, but the reference has its texture.
    ``empty_weight`` is how much more frames weigh, all over, in which nobody is in view: a smear
    of who has left costs little error, and what is carried on from frame to frame stays. With
    ``holds_people`` those alone are learnt: where somebody is in view, asked for is what the
    decoder that the stage began with makes of the same latents and pictures. ``hole_weight`` is of
    the share of what is carried over from other pictures where the reference shows somebody and
    nothing of anybody is left (`hole_loss`): nothing in them shows what is behind. What is drawn
    there instead goes by the frame shown last too, and a little too much of that is a shade that
    grows. So an ``empty_share`` of the streams begin in empty pictures, each stays where it is in
    them with a chance of ``dwell_share`` at every step, and frames shown last are tinted there by
    ``last_tint`` (deviation, in [-1, 1]), which is not to be gone by.
    ``restless_share`` of the clips that the stage draws have brows that move all the time
    (`performances.restless`).

    Raises:
        ValueError: with ``decoder_only`` and an ``anchor_weight``: one trains no encoder; with
            ``holds_people`` and without ``decoder_only``: latents would move away from people.
    """

    batch: int = 24
    chunks: int = 2
    peak_rate: float = 6e-4
    mouth_weight: float = 7.0
    eye_weight: float = 5.0
    brow_weight: float = 3.0
    mouth_sigma_px: float = 20.0
    eye_sigma_px: float = 11.0
    gradient_weight: float = 1.0
    temporal_weight: float = 1.0
    strength_weight: float = 0.0
    wide_strength_weight: float = 0.0
    border_weight: float = 0.0
    chroma_weight: float = 0.0
    flicker_weight: float = 0.0
    texture_weight: float = 0.0
    empty_weight: float = 0.0
    holds_people: bool = False
    hole_weight: float = 0.0
    empty_share: float = 0.0
    dwell_share: float = 0.0
    last_tint: float = 0.0
    candidates_weight: float = 0.1
    flow_weight: float = 2.0
    probe_weight: float = 0.3
    latent_noise: float = 0.3
    last_noise: float = 0.03
    still_share: float = 0.1
    restart_share: float = 0.02
    jump_share: float = 0.01
    decoder_only: bool = False
    anchor_weight: float = 0.0
    predicted_share: float = 0.5
    twin_share: float = 0.0
    restless_share: float = 0.0

    def __post_init__(self) -> None:
        if self.decoder_only and self.anchor_weight > 0.0:
            raise ValueError('anchor_weight holds an encoder that is trained, and decoder_only '
                             'trains none: leave out one of them')
        if self.holds_people and not self.decoder_only:
            raise ValueError('holds_people asks for what a decoder makes of latents that stay as '
                             'they are: set decoder_only too')

    @property
    def goes_on(self) -> bool:
        """Whether latents keep their scale, and a denoiser that knows them its use."""
        return self.decoder_only or self.anchor_weight > 0.0

    @property
    def trained(self) -> tuple[str, ...]:
        """Beginnings of the names of what the stage leaves new."""
        if self.decoder_only:
            return ('autoencoder.decoder.',)
        return ('autoencoder.',) if self.goes_on else ('autoencoder.', 'audio.')


def face_weight(marks_px: Tensor, side_px: int, options: AutoencoderOptions,
                upscale: int = 1) -> Tensor:
    """Weight of every pixel, [B, F, 1, H, W], from marks [B, F, 3, 2] (mouth, eyes; x, y)."""
    axis = torch.arange(side_px, device=marks_px.device, dtype=torch.float32) + 0.5
    mouth_sigma, eye_sigma = (upscale * sigma for sigma in (options.mouth_sigma_px,
                                                            options.eye_sigma_px))

    def bump(at: Tensor, sigma: float) -> Tensor:
        x = torch.exp(-(axis - at[..., :1]) ** 2 / (2 * sigma ** 2))
        y = torch.exp(-(axis - at[..., 1:]) ** 2 / (2 * sigma ** 2))
        return y[..., :, None] * x[..., None, :]

    mouth = bump(marks_px[:, :, 0], mouth_sigma)
    eyes = bump(marks_px[:, :, 1], eye_sigma) + bump(marks_px[:, :, 2], eye_sigma)
    up = BROWS_ABOVE_EYES * (marks_px[:, :, 1:].mean(2) - marks_px[:, :, 0])
    brows = bump(marks_px[:, :, 1] + up, eye_sigma) + bump(marks_px[:, :, 2] + up, eye_sigma)
    weight = 1.0 + options.mouth_weight * mouth + options.eye_weight * eyes \
        + options.brow_weight * brows
    return weight[:, :, None]


class Step(NamedTuple):
    """What streams show next, n = 4 · chunks frames each.

    Attributes:
        frames: [B, 1 + n, 3, H, W] in [-1, 1], the first being the one before.
        marks: [B, n, 3, 2] in pixels; units: [B, n, k]; seen: bool [B, n], whether anybody is in
            view; empty: bool [B, n], whether nothing of anybody is in the picture (`Shard.empty`).
        last_marks, picture_marks: [B, 3, 2], of the frame shown last and of the reference.
        predicted: the denoiser's idea of the latents, [B, chunks, C, h, w], or None.
        uses_predicted: bool [B], whether a stream is to be decoded from it.
    """

    frames: Tensor
    marks: Tensor
    units: Tensor
    seen: Tensor
    empty: Tensor
    last_marks: Tensor
    picture_marks: Tensor
    predicted: Tensor | None
    uses_predicted: Tensor


class Streams:
    """Streams that walk through a shard's clips and carry what their decoder showed last.

    Attributes:
        picture: reference pictures [B, 3, H, W] in [-1, 1].
        last: frames shown last, the same; previous: latents shown last, [B, C, h, w].
        fresh: bool [B], at a stream's first step, where the reference stands for both.
    """

    def __init__(self, shard: Shard, options: AutoencoderOptions, config: AutoencoderConfig
                 ) -> None:
        assert shard.frames is not None
        self._shard, self._options = shard, options
        count, side, device = options.batch, config.picture_px, shard.device
        self._step = FRAMES_PER_CHUNK * options.chunks
        self._clip = torch.zeros(count, dtype=torch.int64, device=device)
        self._at = torch.full((count,), shard.length, device=device)
        self._uses_predicted = torch.zeros(count, dtype=torch.bool, device=device)
        self.picture = torch.zeros(count, 3, side, side, device=device)
        self.last = torch.zeros_like(self.picture)
        self._before = torch.zeros_like(self.picture)
        self._picture_marks = torch.zeros(count, 3, 2, device=device)
        self._last_marks = torch.zeros_like(self._picture_marks)
        self.previous = torch.zeros(count, config.latent_channels, config.latent_px,
                                    config.latent_px, device=device)
        self.fresh = torch.ones(count, dtype=torch.bool, device=device)
        clips = torch.arange(len(shard.frames), device=device)
        self._empty = shard.empty(clips, torch.zeros_like(clips), shard.length // FRAMES_PER_CHUNK)
        self._empties = torch.nonzero(self._empty[:, :1 - options.chunks or None])

    def _chance(self, share: float) -> Tensor:
        return torch.rand(len(self._at), device=self._at.device,
                          generator=self._shard.random) < share

    def next(self) -> Step:
        """Go on by a step, at borders of chunks."""
        shard, options, count = self._shard, self._options, len(self._at)
        assert shard.frames is not None and shard.marks is not None
        assert shard.stills is not None and shard.still_marks is not None
        high = shard.length - self._step + 1
        over = self._at >= high
        self.fresh = over | self._chance(options.restart_share)
        anywhere = shard._random(high // FRAMES_PER_CHUNK + 1, count) * FRAMES_PER_CHUNK
        leap = self.fresh | self._chance(options.jump_share)
        self._clip = torch.where(self.fresh, shard._random(len(shard.frames), count), self._clip)
        self._at = torch.where(leap, anywhere.clamp(max=high - 1), self._at)
        if len(self._empties) and options.empty_share > 0.0:
            begun = self.fresh & self._chance(options.empty_share)
            clip, chunk = self._empties[shard._random(len(self._empties), count)].unbind(1)
            self._clip = torch.where(begun, clip, self._clip)
            self._at = torch.where(begun, chunk * FRAMES_PER_CHUNK, self._at)
        self._uses_predicted = torch.where(self.fresh, self._chance(options.predicted_share),
                                           self._uses_predicted)
        still = shard._random(shard.stills.shape[1], count)
        picture = as_input(shard.stills[self._clip, still])
        fresh = self.fresh[:, None, None, None]
        self.picture = torch.where(fresh, picture, self.picture)
        self.last = torch.where(fresh, picture, self.last)
        marks = shard.still_marks[self._clip, still]
        self._picture_marks = torch.where(fresh[..., 0], marks, self._picture_marks)
        last_marks = torch.where(fresh[..., 0], marks, self._last_marks)
        chunk = self._at[:, None] // FRAMES_PER_CHUNK + torch.arange(
            options.chunks, device=self._at.device)
        empty = self._empty[self._clip[:, None], chunk]
        dwelling = empty.all(1) & self._chance(options.dwell_share)
        moving = ~(dwelling | self._chance(options.still_share))
        step = torch.arange(self._step, device=self._at.device)[None]
        index = self._at[:, None] + step * moving[:, None]
        # The frame before is the one that the stream has shown, which after a jump or a still is
        # another than the clip's: a decoder that does right must not be told of a change.
        first = as_input(shard.frames[self._clip, (self._at - 1).clamp_min(0)])
        before = torch.where(fresh, first, self._before)
        frames = torch.cat([before[:, None],
                            as_input(shard.frames[self._clip[:, None], index])], 1)
        self._before = frames[:, -1]
        empty = torch.where(moving[:, None], empty, empty[:, :1])
        predicted = None
        if shard.predicted is not None:
            predicted = shard.predicted[self._clip[:, None], chunk]
        result = Step(frames,
                      shard.marks[self._clip[:, None], index],
                      shard.probe_units[self._clip[:, None], index],
                      shard.in_view[self._clip[:, None], index],
                      empty.repeat_interleave(FRAMES_PER_CHUNK, 1),
                      last_marks, self._picture_marks, predicted,
                      self._uses_predicted & (moving | dwelling))
        self._at = torch.where(moving, self._at + self._step, self._at)
        self._last_marks = result.marks[:, -1]
        return result

    def keep(self, last: Tensor, previous: Tensor) -> None:
        """What the decoder showed last, as the next step will see it."""
        last = last.detach().float().clamp(-1.0, 1.0)
        self.last = torch.round(last * 127.5) / 127.5
        self.previous = previous.detach()


def picture_loss(made: Tensor, true: Tensor, weight: Tensor, made_before: Tensor,
                 true_before: Tensor, going_on: Tensor, options: AutoencoderOptions,
                 upscale: int = 1) -> tuple[Tensor, Tensor]:
    """Weighted L1 of frames, their gradients at two scales, and their change over time.

    Args:
        made, true: [B, n, 3, H, W] in [-1, 1]. weight: [B, n, 1, H, W].
        made_before, true_before: the frame before the first, [B, 3, H, W].
        going_on: bool [B], whether the stream showed that frame.
        upscale: pixels of these to one that the encoder looks at, per side.

    Returns:
        the loss and the plain L1, scalars.
    """
    error = made - true
    total = weight.mean()
    pixel = (error.abs() * weight).mean()
    dx = (error[..., :, 1:] - error[..., :, :-1]).abs() * weight[..., :, 1:]
    dy = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
    wide = F.avg_pool2d(error.flatten(0, 1), 2).unflatten(0, error.shape[:2])
    wide_x = (wide[..., :, 1:] - wide[..., :, :-1]).abs() * weight[..., ::2, 2::2]
    wide_y = (wide[..., 1:, :] - wide[..., :-1, :]).abs() * weight[..., 2::2, ::2]
    gradient = dx.mean() + dy.mean() + wide_x.mean() + wide_y.mean()
    going = going_on[:, None, None, None]
    first = torch.where(going, made_before - true_before, error[:, 0])
    earlier = torch.cat([first[:, None], error[:, :-1]], 1)
    change = ((error - earlier).abs() * weight).mean()
    loss = pixel + options.gradient_weight * gradient + options.temporal_weight * change
    # A stream's first frame follows none: there the true change stands for its own.
    before = torch.where(going, made_before, made[:, 0] - (true[:, 0] - true_before))
    for asked, side in ((options.strength_weight, STRENGTH_PX),
                        (options.wide_strength_weight, WIDE_STRENGTH_PX)):
        side *= upscale
        if asked > 0.0:
            lacking = (change_strength(made, before, side)
                       - change_strength(true, true_before, side)).abs()
            there = F.avg_pool2d(weight.flatten(0, 1), side).unflatten(0, weight.shape[:2])
            each = (lacking * there).mean((0, 2, 3, 4))
            loss = loss + asked * (each.mean() + options.border_weight
                                   * each[::FRAMES_PER_CHUNK].sum() / len(each))
    if options.chroma_weight > 0.0:
        loss = loss + options.chroma_weight * ((error - luma(error)).abs() * weight).mean()
    if options.flicker_weight > 0.0:
        side = STRENGTH_PX * upscale
        excess = (flicker(made, before, side) - flicker(true, true_before, side)).relu()
        there = F.avg_pool2d(weight[:, 1:].flatten(0, 1), side).unflatten(0, excess.shape[:2])
        loss = loss + options.flicker_weight * (excess * there).mean()
    if options.texture_weight > 0.0:
        lacking = (texture(made.flatten(0, 1), upscale)
                   - texture(true.flatten(0, 1), upscale)).abs()
        there = F.avg_pool2d(weight.flatten(0, 1), STRENGTH_PX * upscale)
        loss = loss + options.texture_weight * (lacking * there).mean()
    return loss / total, error.abs().mean()


def luma(frames: Tensor) -> Tensor:
    """Brightness with the weights of ITU-R BT.601, [..., 3, H, W] -> [..., 1, H, W]."""
    red, green, blue = frames.split(1, -3)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def change_strength(frames: Tensor, before: Tensor, side: int = STRENGTH_PX) -> Tensor:
    """Mean absolute change of luma from frame to frame over squares of ``side`` pixels.

    Of luma alone: of colours it is answered by tints that take turns.

    Where the way that something moves is uncertain, the frame with the least L1 error is blurred
    and hardly moves. This says how much is to move there, whatever the way.

    Args:
        frames: [B, n, 3, H, W]. before: the frame before the first, [B, 3, H, W].
        side: of the squares; divides H and W.

    Returns:
        [B, n, 1, H / side, W / side].
    """
    shown = torch.cat([luma(before)[:, None], luma(frames)], 1)
    change = (shown[:, 1:] - shown[:, :-1]).abs()
    return F.avg_pool2d(change.flatten(0, 1), side).unflatten(0, change.shape[:2])


def flicker(frames: Tensor, before: Tensor, side: int = STRENGTH_PX) -> Tensor:
    """Mean absolute second difference over time, of all colours, over squares of ``side`` pixels:
    what goes back and forth has much of it, what moves on has little.

    Args: as of `change_strength`.

    Returns:
        [B, n - 1, 1, H / side, W / side], of each frame from the second on.
    """
    shown = torch.cat([before[:, None], frames], 1)
    turn = (shown[:, 2:] - 2.0 * shown[:, 1:-1] + shown[:, :-2]).abs().mean(2, keepdim=True)
    return F.avg_pool2d(turn.flatten(0, 1), side).unflatten(0, turn.shape[:2])


def texture(frames: Tensor, upscale: int = 1) -> Tensor:
    """How much neighbouring pixels differ, on average over squares of `STRENGTH_PX` · upscale.

    It says how much detail is to be somewhere, not where each hair lies, so that a face that is
    sharp and lies half a pixel off is better than its blur.

    Args:
        frames: [n, 3, H, W].

    Returns:
        [n, 6 k, h, w]: colours × (across, down) × k scales, from neighbours to those that are
        2 · upscale apart.
    """
    found = []
    for factor in (2 ** power for power in range(upscale.bit_length() + 1)):
        small = F.avg_pool2d(frames, factor) if factor > 1 else frames
        across = F.pad((small[..., 1:] - small[..., :-1]).abs(), (0, 1))
        down = F.pad((small[..., 1:, :] - small[..., :-1, :]).abs(), (0, 0, 0, 1))
        found.append(F.avg_pool2d(torch.cat([across, down], 1), STRENGTH_PX * upscale // factor))
    return torch.cat(found, 1)


def normalised(raw: Tensor, model: Autoencoder, momentum: float = 0.02) -> Tensor:
    """Latents to zero mean and unit deviation over the batch, per channel; the model's own
    statistics follow."""
    wide = raw.float()
    mean, std = wide.mean((0, 2, 3)), wide.std((0, 2, 3)).clamp_min(1e-3)
    with torch.no_grad():
        model.latent_mean.lerp_(mean.detach(), momentum)
        model.latent_std.lerp_(std.detach(), momentum)
    return (wide - mean[:, None, None]) / std[:, None, None]


def train_autoencoder(model: Autoencoder, shard: Shard, process: Process, seconds: float,
                      out: Path, options: AutoencoderOptions | None = None) -> None:
    """Train in place for ``seconds``; leaves averaged weights and latent statistics."""
    options = options or AutoencoderOptions()
    device = process.device
    process.share_weights(model)
    anchored = options.anchor_weight > 0.0
    if anchored and shard.latents is not None:
        # One that knows the latents: a new one would shake what they are to keep.
        probe = fit_probe(shard).probe.requires_grad_(True)
    else:
        probe = Probe(model.encoder.out.out_channels, shard.probe_units.shape[-1], 4).to(device)
    process.share_weights(probe)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = options.decoder_only
    trained: list[nn.Module] = [model.decoder] if frozen else [model, probe]
    former = copy.deepcopy(model.encoder).requires_grad_(False) if anchored else None
    held = copy.deepcopy(model.decoder).requires_grad_(False) if options.holds_people else None
    parameters = [p for module in trained for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=options.peak_rate, betas=(0.9, 0.99),
                                  weight_decay=1e-4, fused=device.type == 'cuda')
    average = Average(model.decoder if frozen else model)
    log = Log(out, 'autoencoder', process)
    compiled = device.type == 'cuda'
    encoder = torch.compile(model.encoder) if compiled else model.encoder
    former_encoder = torch.compile(former) if compiled and former is not None else former
    unroll, unroll_held = ((torch.compile(_unroll), torch.compile(_unroll)) if compiled
                           else (_unroll, _unroll))
    loss_function = torch.compile(picture_loss) if compiled else picture_loss
    candidates_function = torch.compile(candidates_loss) if compiled else candidates_loss
    streams = Streams(shard, options, shard.config.autoencoder)
    upscale = shard.config.autoencoder.upscale
    budget = Budget(process, seconds)
    step = 0
    while (progress := budget.progress()) < 1.0:
        for group in optimiser.param_groups:
            group['lr'] = learning_rate(progress, options.peak_rate)
        (frames, marks, units, seen, empty, last_marks, picture_marks, predicted,
         uses_predicted) = streams.next()
        before, true = frames[:, 0], frames[:, 1:]
        weight = face_weight(marks, frames.shape[-1], options, upscale)
        weight = weight * (1.0 + options.empty_weight * ~seen)[:, :, None, None, None]
        chunks = true.unflatten(1, (options.chunks, FRAMES_PER_CHUNK))
        still = streams.picture[:, None, None].expand(-1, 1, FRAMES_PER_CHUNK, -1, -1, -1)
        with torch.autocast(device.type, torch.bfloat16, enabled=compiled):
            shown = torch.cat([chunks, still], 1).flatten(0, 1)
            if options.goes_on:
                with torch.set_grad_enabled(not frozen):
                    latents = model.normalised(encoder(shown).float())
            else:
                latents = normalised(encoder(shown), model)
            if former_encoder is not None:
                with torch.no_grad():
                    home = model.normalised(former_encoder(shown).float())
            latents = latents.unflatten(0, (-1, options.chunks + 1))
            given, reference = latents[:, :-1], latents[:, -1]
            if predicted is not None:
                given = torch.where(uses_predicted[:, None, None, None, None],
                                    predicted.to(given.dtype), given)
            level = options.latent_noise * torch.rand(len(latents), 1, 1, 1, 1, device=device)
            noisy = given + level * torch.randn_like(given)
            previous = torch.where(streams.fresh[:, None, None, None], reference,
                                   streams.previous)
            spoilt = options.last_noise * torch.rand(len(latents), 1, 1, 1, device=device)
            last = streams.last + spoilt * torch.randn_like(streams.last)
            if options.last_tint > 0.0:
                tint = options.last_tint * torch.randn(len(last), 3, TINTS, TINTS, device=device)
                last = last + F.interpolate(tint, last.shape[-2:], mode='bilinear') \
                    * empty[:, :1, None, None]
            sight = Sight(previous, last, reference, streams.picture)
            made, drawn, recent, moved, carried, flows = unroll(model.decoder, noisy, sight)
            if held is not None:
                with torch.no_grad():
                    as_before = unroll_held(held, noisy, sight)[0]
                people = seen[..., None, None, None]
                true = torch.where(people, as_before, true)
                before = torch.where(people[:, 0], streams.last, before)
        picture, plain = loss_function(made, true, weight, streams.last, before, ~streams.fresh,
                                       options, upscale)
        each = candidates_function(drawn, recent, moved, true, weight, upscale)
        astray = flow_loss(flows, marks, last_marks, picture_marks)
        loss = picture + options.candidates_weight * each + options.flow_weight * astray
        figures = {'loss': picture, 'l1': plain, 'candidates': each, 'flow': astray}
        if options.hole_weight > 0.0:
            hole = hole_loss(carried, frames[:, 1:], streams.picture, empty, upscale)
            loss = loss + options.hole_weight * hole
            figures['hole'] = hole
        if not frozen:
            clean = latents[:, :-1].flatten(0, 1)
            groups = (options.chunks, FRAMES_PER_CHUNK)
            read = (probe(clean, marks.unflatten(1, groups).mean(2).flatten(0, 1))
                    - units.unflatten(1, groups).flatten(0, 1)).square().mean((1, 2))
            there = seen.unflatten(1, groups).all(2).flatten()
            read = (read * there).mean() / there.float().mean().clamp_min(1e-6)
            loss = loss + options.probe_weight * read
            figures['probe'] = read
        if former_encoder is not None:
            away = F.mse_loss(latents.flatten(0, 1), home) / home.var()
            loss = loss + options.anchor_weight * away
            figures['away'] = away
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        process.mean_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update()
        streams.keep(made[:, -1], noisy[:, -1])
        step += 1
        log.add(step, **figures)
    average.swap()
    if not options.goes_on:
        measure_latents(model, shard, process)
    log.plot()


def _unroll(decoder: Decoder, latents: Tensor, sight: Sight) -> tuple[Tensor, ...]:
    """Frames of successive chunks [B, n, C, h, w] and their candidates (see `Decoder.blend`),
    each [B, 4 n, 3, H, W], what is carried over [B, 4 n, 1, H, W], and the flows
    [B, 4 n, 2, 2, H, W]."""
    steps = []
    for latent in latents.unbind(1):
        *pictures, flow = decoder.blend(latent, sight)
        steps.append(tuple(part.float() for part in (*pictures, flow.transpose(1, 2))))
        sight = sight._replace(previous=latent, last=steps[-1][0][:, -1].clamp(-1.0, 1.0))
    return tuple(torch.cat(parts, 1) for parts in zip(*steps, strict=True))


def flow_loss(flows: Tensor, marks: Tensor, last: Tensor, picture: Tensor) -> Tensor:
    """How far the flows at `FACE_POINTS` lead astray, in half pictures; 0 if none is in view.

    Args:
        flows: [B, n, 2, 2, H, W] in half pictures, of the frame shown before the chunk and of the
            reference; n = 4 · chunks.
        marks: [B, n, 3, 2] in pixels (x, y); last, picture: [B, 3, 2], where they were in the
            frame shown before the first chunk and in the reference.
    """
    side = flows.shape[-1]
    # A chunk goes on from the frame before it, which is the last one of the chunk before.
    ends = torch.cat([last[:, None], marks[:, FRAMES_PER_CHUNK - 1:-1:FRAMES_PER_CHUNK]], 1)
    before = ends.repeat_interleave(FRAMES_PER_CHUNK, 1)
    sources = _face_points(torch.stack([before, picture[:, None].expand_as(before)], 2))
    at = _face_points(marks)[:, :, None].expand_as(sources)
    wanted = (sources - at) * (2.0 / side)
    grid = at * (2.0 / side) - 1.0
    found = F.grid_sample(flows.flatten(0, 2), grid.flatten(0, 2)[:, None], align_corners=False)
    found = found[:, :, 0].unflatten(0, flows.shape[:3]).transpose(-1, -2)
    inside = ((grid.abs() < 1.0) & ((sources * (2.0 / side) - 1.0).abs() < 1.0)).all(-1)
    error = (found - wanted).abs().mean(-1) * inside
    return error.sum() / inside.sum().clamp_min(1)


def _face_points(marks: Tensor) -> Tensor:
    """[..., 3, 2] -> [..., points, 2]; no matrix product, which may round pixels to 11 bits."""
    return (marks.new_tensor(FACE_POINTS)[:, :, None] * marks[..., None, :, :]).sum(-2)


def candidates_loss(drawn: Tensor, last: Tensor, reference: Tensor, true: Tensor,
                    weight: Tensor, upscale: int = 1) -> Tensor:
    """What keeps every candidate useful: L1 of the drawn pixels, and of the moved pictures
    shrunk 4 and 16 times (from the encoder's size), which leads their flows home from afar."""
    loss = ((drawn - true).abs() * weight).mean() / weight.mean()
    for moved in (last, reference):
        error = (moved - true).flatten(0, 1)
        for factor in (4, 16):
            loss = loss + 0.5 * F.avg_pool2d(error, factor * upscale).abs().mean()
    return loss


def hole_loss(carried: Tensor, true: Tensor, picture: Tensor, empty: Tensor,
              upscale: int = 1) -> Tensor:
    """Mean share of what is carried over, where the reference picture shows somebody who is not
    there any more; 0 if nobody is missed.

    Edges of the reference moved together over such a hole cost little error, and what has been
    made of them is carried on from frame to frame.

    Args:
        carried: shares [B, n, 1, H, W], 0 to 1. true: [B, n, 3, H, W] in [-1, 1].
        picture: the reference [B, 3, H, W], the same. empty: bool [B, n].
    """
    side = HOLE_PX * upscale
    apart = F.interpolate(F.avg_pool2d((true - picture[:, None]).flatten(0, 1), side).abs()
                          .amax(1, keepdim=True), scale_factor=float(side))
    hole = (apart > HOLE_ABOVE).unflatten(0, carried.shape[:2]) & empty[..., None, None, None]
    return (carried * hole).sum() / hole.sum().clamp_min(1)


@torch.no_grad()
def measure_latents(model: Autoencoder, shard: Shard, process: Process) -> None:
    """Set the per-channel mean and deviation that normalise latents."""
    model.eval()
    collected = []
    for _ in range(16):
        frames, _, _ = shard.groups(32, 0.0)
        with torch.autocast(process.device.type, torch.bfloat16,
                            enabled=process.device.type == 'cuda'):
            collected.append(model.encoder(as_input(frames)).float())
    latents = torch.cat(collected)
    model.latent_mean.copy_(latents.mean((0, 2, 3)))
    model.latent_std.copy_(latents.std((0, 2, 3)).clamp_min(1e-3))
    process.share_weights(model)
