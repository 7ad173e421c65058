# SPDX-License-Identifier: Apache-2.0
"""Decoder of Wan2.1's video VAE, latent by latent, as fast as a GPU allows.

The same function as the decoder of diffusers' AutoencoderKLWan, with its weights and weight names
(tested), but laid out for streaming: frames are kept channels-last [T, H, W, C], what each causal
convolution remembers lies in fixed buffers (so a CUDA graph can hold the whole decode), biases,
residuals, norms and activations run as one pass, and each convolution uses the quickest of a few
equal implementations (`StreamingDecoder.tune`). Encoding, which happens once per stream, is left
to diffusers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.model import ModelError

METHODS = ('conv3d', 'stacked', 'summed', 'grouped')
"""Equal ways to run a causal convolution: a 3-d one; a 2-d one over the stacked time taps; the
sum of a 2-d one per tap; a 3-d one that makes several neighbours of a row as one pixel of more
channels, for few channels (see `CausalConv.group`)."""
UP_METHODS = ('repeated', 'phases')
"""Equal ways to double a picture and convolve it with 3×3 taps: as it is said; or one convolution
of 2×2 taps of the small picture, whose channels are the four places of a pixel's double."""
FEW_CHANNELS, NARROW_CHANNELS = 8, 128
"""Outputs so few that most of a tensor core's tile is empty; and that one tile cannot halve."""


@dataclass(frozen=True)
class VaeConfig:
    """What diffusers' config.json of an AutoencoderKLWan says of the decoder."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
    latents_std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)

    @classmethod
    def read(cls, folder: Path) -> VaeConfig:
        """Read a VAE folder's config.json.

        Raises:
            ModelError: if it is missing or of another kind of VAE.
        """
        path = folder / 'config.json'
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f'{str(path)!r} cannot be read as the config of a VAE: {error}; give '
                             f'the folder `vae` of a Wan2.1 model in the diffusers layout'
                             ) from error
        kind = values.get('_class_name', 'AutoencoderKLWan')
        if kind != 'AutoencoderKLWan' or values.get('is_residual'):
            raise ModelError(f'{str(folder)!r} holds a VAE of kind {kind!r}'
                             f'{" of Wan2.2" if values.get("is_residual") else ""}; this model '
                             f'needs the AutoencoderKLWan of Wan2.1')
        known = {f.name for f in fields(cls)}
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in values.items() if name in known}
        return cls(**given)


class DecoderState:
    """What the causal convolutions remember: their last two input frames, [2, H, W, C] each."""

    def __init__(self) -> None:
        self.started = False
        self._kept: dict[str, Tensor] = {}

    def of(self, name: str, like: Tensor, channels: int) -> Tensor:
        """The buffer of one convolution, zeros at first; ``like`` [T, H, W, ·] gives its size."""
        kept = self._kept.get(name)
        if kept is None:
            kept = like.new_zeros((2, *like.shape[1:3], channels))
            self._kept[name] = kept
        return kept

    def keep(self, name: str, frames: Tensor) -> None:
        """Remember a convolution's last two input frames [2, H, W, C]."""
        self._kept[name].copy_(frames)

    def copy(self) -> DecoderState:
        """An independent copy."""
        other = DecoderState()
        other.started = self.started
        other._kept = {name: kept.clone() for name, kept in self._kept.items()}
        return other

    def assign(self, other: DecoderState) -> None:
        """Take over another state's content, keeping the buffers' addresses (CUDA graphs)."""
        self.started = other.started
        for name, kept in other._kept.items():
            if name in self._kept:
                self._kept[name].copy_(kept)
            else:
                self._kept[name] = kept.clone()
        for name in set(self._kept) - set(other._kept):
            self._kept[name].zero_()


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _wide(x: Tensor) -> Tensor:
    """x [..., C], contiguous, as 8-byte words where C allows it: copies that PyTorch does not
    vectorise then move four bf16 numbers at a time."""
    return x.view(torch.float64) if x.shape[-1] * x.element_size() % 8 == 0 else x


class _Convolution(nn.Module):
    """Weights, bias, and the weights laid out for one of several ways to run (``method``)."""

    def __init__(self, shape: tuple[int, ...], method: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        nn.init.normal_(self.weight, std=math.prod(shape[1:]) ** -0.5)
        self.method = method
        self._flat: Tensor | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module.forget())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget()
        return super()._apply(fn, recurse)

    def forget(self) -> None:
        """Drop the laid-out weights; they are made again from those that are now there."""
        self._flat = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The ways that fit its shape."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Lay the weights out for the chosen method; call after loading and moving."""
        raise NotImplementedError

    def laid_out(self) -> Tensor:
        """The weights as `prepare` leaves them."""
        if self._flat is None:
            self.prepare()
        return cast(Tensor, self._flat)


class CausalConv(_Convolution):
    """3-d convolution that sees the frame and those before it; its bias is added by who follows.

    Input [time − 1 + T, H, W, in], the remembered frames in front; output [T, H, W, out].
    """

    def __init__(self, channels: int, out: int, time_taps: int, space: int) -> None:
        super().__init__((out, channels, time_taps, space, space), 'conv3d')

    @property
    def group(self) -> int:
        """Pixels of a row that method ``grouped`` makes as one; the row must divide by it.

        A tensor core's tile is filled by the channels of all of them: g pixels of 3 taps see
        2 + g pixels, so products grow by (2 + g) / 3 and tiles of few channels fill g times.
        """
        return 8 if self.weight.shape[0] <= FEW_CHANNELS else 2

    @property
    def methods(self) -> tuple[str, ...]:
        """See `_Convolution.methods`."""
        fits = self.weight.shape[-1] == 3 and self.weight.shape[0] <= NARROW_CHANNELS
        return METHODS if fits else METHODS[:-1]

    def prepare(self) -> None:
        """See `_Convolution.prepare`."""
        w = self.weight.detach()
        taps = w.shape[2]
        if self.method == 'conv3d':
            self._flat = w.contiguous(memory_format=torch.channels_last_3d)
        elif self.method == 'stacked':
            self._flat = w.transpose(1, 2).flatten(1, 2).contiguous(
                memory_format=torch.channels_last)
        elif self.method == 'grouped':
            # Pixel i of a group sees the taps from i on.
            g = self.group
            self._flat = torch.cat([F.pad(w, (i, g - 1 - i)) for i in range(g)]).contiguous(
                memory_format=torch.channels_last_3d)
        else:
            self._flat = torch.stack([w[:, :, tap].contiguous() for tap in range(taps)])

    def forward(self, x: Tensor) -> Tensor:
        taps, pad = self.weight.shape[2], self.weight.shape[3] // 2
        frames = x.shape[0] - taps + 1
        if torch.onnx.is_in_onnx_export():
            # The weight under its own name, and the plainest operator.
            y = F.conv3d(x.permute(3, 0, 1, 2)[None], self.weight, padding=(0, pad, pad))
            return y[0].permute(1, 2, 3, 0)
        flat = self.laid_out()
        if self.method == 'conv3d':
            y = F.conv3d(x.permute(3, 0, 1, 2)[None], flat, padding=(0, pad, pad))
            return y[0].permute(1, 2, 3, 0).contiguous()
        if self.method == 'grouped':
            y = F.conv3d(x.permute(3, 0, 1, 2)[None], flat, padding=(0, pad, pad),
                         stride=(1, 1, self.group))
            # A group's channels are its pixels in order: the same memory is the row of pixels.
            return y[0].permute(1, 2, 3, 0).contiguous().view(
                frames, x.shape[1], x.shape[2], -1)
        if self.method == 'stacked':
            stacked = (x if taps == 1 else
                       torch.cat([x[tap:tap + frames] for tap in range(taps)], dim=-1))
            return _nhwc(F.conv2d(_nchw(stacked), flat, padding=pad))
        total = None
        for tap in range(taps):
            y = F.conv2d(_nchw(x[tap:tap + frames]),
                         flat[tap].contiguous(memory_format=torch.channels_last), padding=pad)
            total = y if total is None else total.add_(y)
        return _nhwc(cast(Tensor, total))


class Conv2d(nn.Module):
    """Convolution of each frame, [T, H, W, in] -> [T, H, W, out], without its bias."""

    def __init__(self, channels: int, out: int, space: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, space, space))
        self.bias = nn.Parameter(torch.zeros(out))
        nn.init.normal_(self.weight, std=(channels * space * space) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        return _nhwc(F.conv2d(_nchw(x), w.contiguous(memory_format=torch.channels_last),
                              padding=w.shape[-1] // 2))


class UpConv(_Convolution):
    """A picture's double (each pixel four times) and its 3×3 convolution, without bias.

    [T, H, W, in] -> [T, 2H, 2W, out]. Rows 2i − 1 to 2i + 1 of the double are rows i − 1, i and i
    of the picture, rows 2i to 2i + 2 are i, i and i + 1: two taps each, the equal ones summed. So
    with columns: 16 of 36 products, and no doubled picture.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__((out, channels, 3, 3), 'repeated')

    @property
    def methods(self) -> tuple[str, ...]:
        """See `_Convolution.methods`."""
        return UP_METHODS

    def prepare(self) -> None:
        """See `_Convolution.prepare`."""
        w = self.weight.detach()
        if self.method == 'phases':
            # [phase, tap of the small picture, tap of its double]
            taps = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]],
                                device=w.device, dtype=torch.float32)
            w = torch.einsum('pad,qbe,ocde->pqocab', taps, taps, w.float()).flatten(0, 2).to(
                w.dtype)
        self._flat = w.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            # The weight under its own name, and the plainest operators.
            doubled = F.interpolate(_nchw(x), scale_factor=2.0, mode='nearest')
            return _nhwc(F.conv2d(doubled, self.weight, padding=1))
        frames, rows, columns, _ = x.shape
        flat = self.laid_out()
        if self.method == 'repeated':
            words = _wide(x.contiguous())[:, :, None, :, None]
            doubled = words.expand(-1, -1, 2, -1, 2, -1).reshape(
                frames, 2 * rows, 2 * columns, -1).view(x.dtype)
            return _nhwc(F.conv2d(_nchw(doubled), flat, padding=1))
        y = _nhwc(F.conv2d(_nchw(x), flat, padding=1))  # [T, H + 1, W + 1, 4 · out]
        made = y.new_empty((frames, 2 * rows, 2 * columns, self.weight.shape[0]))
        places = _wide(y.unflatten(-1, (4, -1)))
        target = _wide(made)
        for phase in range(4):
            down, right = divmod(phase, 2)
            target[:, down::2, right::2] = places[:, down:down + rows, right:right + columns,
                                                  phase]
        return made


class Norm(nn.Module):
    """Wan's RMS norm over channels; diffusers keeps gamma as [C, 1, 1(, 1)]."""

    def __init__(self, channels: int, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *([1] * dims)))


def normalise(x: Tensor, gamma: Tensor) -> Tensor:
    """x / ‖x‖ · √C · gamma over the last axis, [..., C]."""
    wide = x.float()
    length = wide.pow(2).sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
    return (wide / length * x.shape[-1] ** 0.5 * gamma.flatten().float()).to(x.dtype)


Pending = tuple[Tensor, Tensor, 'Tensor | None']
"""Output of a convolution, its bias, and what is to be added or None."""


def settle(y: Tensor, bias: Tensor, added: Tensor | None) -> Tensor:
    """The finished features of a `Pending`."""
    x = y + bias
    return x if added is None else x + added


def enter(y: Tensor, bias: Tensor, added: Tensor | None, gamma: Tensor,
          kept: Tensor) -> tuple[Tensor, Tensor]:
    """Finish features, norm and activate them, and put the remembered frames in front.

    Returns:
        features [T, H, W, C] and the next convolution's input [2 + T, H, W, C]; ``kept`` is
        moved on.
    """
    x = settle(y, bias, added)
    padded = torch.cat([kept, F.silu(normalise(x, gamma))])
    kept.copy_(padded[-2:])
    return x, padded


def enter_only(y: Tensor, bias: Tensor, gamma: Tensor, kept: Tensor) -> Tensor:
    """`enter` where the features themselves are not needed again."""
    return enter(y, bias, None, gamma, kept)[1]


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(channels), CausalConv(channels, out, 3, 3)
        self.norm2, self.conv2 = Norm(out), CausalConv(out, out, 3, 3)
        self.conv_shortcut = CausalConv(channels, out, 1, 1) if channels != out else None


class Attention(nn.Module):
    """Single-head attention within each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, 2)
        self.to_qkv, self.proj = Conv2d(channels, 3 * channels, 1), Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Pending:
        """[T, H, W, C] -> what is added to it."""
        qkv = (self.to_qkv(normalise(x, self.norm.gamma)) + self.to_qkv.bias).flatten(1, 2)
        q, k, v = qkv[:, None].chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].view_as(x)
        return self.proj(y), self.proj.bias, x


class MidBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels)])


class Upsample(nn.Module):
    """Twice the side, half the channels; with ``in_time`` also twice the frames."""

    def __init__(self, channels: int, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), UpConv(channels, channels // 2)])
        self.time_conv = CausalConv(channels, 2 * channels, 3, 1) if in_time else None


class UpBlock(nn.Module):
    def __init__(self, channels: int, out: int, blocks: int, up: bool, in_time: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([
            ResidualBlock(channels if index == 0 else out, out) for index in range(blocks)])
        self.upsamplers = nn.ModuleList([Upsample(out, in_time)] if up else [])


class _Decoder(nn.Module):
    """The modules under the names that diffusers gives them."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in (config.dim_mult[-1], *config.dim_mult[::-1])]
        in_time = config.temperal_downsample[::-1]
        self.conv_in = CausalConv(config.z_dim, widths[0], 3, 3)
        self.mid_block = MidBlock(widths[0])
        ups = []
        for index, (channels, out) in enumerate(pairwise(widths)):
            up = index != len(config.dim_mult) - 1
            ups.append(UpBlock(channels if index == 0 else channels // 2, out,
                               config.num_res_blocks + 1, up, up and in_time[index]))
        self.up_blocks = nn.ModuleList(ups)
        self.norm_out = Norm(widths[-1])
        self.conv_out = CausalConv(widths[-1], 3, 3, 3)


class StreamingDecoder(nn.Module):
    """Latents to frames, each call going on where the last one stopped (`DecoderState`)."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv = CausalConv(config.z_dim, config.z_dim, 1, 1)
        self.decoder = _Decoder(config)
        self.register_buffer('latent_mean', torch.tensor(config.latents_mean), persistent=False)
        self.register_buffer('latent_std', torch.tensor(config.latents_std), persistent=False)
        self._enter: Callable[..., tuple[Tensor, Tensor]] = enter
        self._enter_only: Callable[..., Tensor] = enter_only

    def fuse(self) -> bool:
        """Run the passes between convolutions as one kernel each; False where Triton is absent."""
        try:
            from interactive_avatar.generator.wan import kernels
        except ImportError:
            return False
        self._enter, self._enter_only = kernels.enter, kernels.enter_only
        return True

    @property
    def convolutions(self) -> list[CausalConv | UpConv]:
        """All convolutions that can be run in several ways."""
        return [m for m in self.modules() if isinstance(m, CausalConv | UpConv)]

    def tune(self, latents: Tensor) -> dict[str, str]:
        """Choose each convolution's quickest method for this device and number of latents.

        Args:
            latents: [n, C, h, w], as they will come.

        Returns:
            method by shape, for the record.
        """
        chosen: dict[tuple[Any, ...], str] = {}
        hooks, seen = [], {}

        def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[module] = arguments[0]

        for conv in self.convolutions:
            conv.method = 'stacked' if isinstance(conv, CausalConv) else 'phases'
            conv.prepare()
            hooks.append(conv.register_forward_pre_hook(note))
        state = DecoderState()
        self(latents[:1], state)
        self(latents, state)
        for hook in hooks:
            hook.remove()
        for conv, x in cast(dict[CausalConv | UpConv, Tensor], seen).items():
            key = (*conv.weight.shape, *x.shape)
            if key not in chosen:
                times = {method: _time(conv, x, method) for method in conv.methods}
                chosen[key] = min(times, key=lambda method: times[method])
            conv.method = chosen[key]
            conv.prepare()
        return {'×'.join(map(str, key)): method for key, method in chosen.items()}

    def _residual(self, name: str, block: ResidualBlock, pending: Pending,
                  state: DecoderState) -> Pending:
        y = pending[0]
        x, padded = self._enter(*pending, block.norm1.gamma, state.of(
            f'{name}.1', y, y.shape[-1]))
        if block.conv_shortcut is None:
            shortcut = x
        else:
            shortcut = block.conv_shortcut(x) + block.conv_shortcut.bias
        y = block.conv1(padded)
        padded = self._enter_only(y, block.conv1.bias, block.norm2.gamma, state.of(
            f'{name}.2', y, y.shape[-1]))
        return block.conv2(padded), block.conv2.bias, shortcut

    def _upsample(self, name: str, up: Upsample, x: Tensor, state: DecoderState,
                  first: bool) -> Pending:
        if up.time_conv is not None and not first:
            kept = state.of(name, x, x.shape[-1])
            padded = torch.cat([kept, x])
            state.keep(name, padded[-2:])
            y = up.time_conv(padded) + up.time_conv.bias
            # Channels hold two frames each.
            x = y.unflatten(-1, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        conv = cast(UpConv, up.resample[1])
        return conv(x), conv.bias, None

    def features(self, latents: Tensor, state: DecoderState, first: bool) -> Tensor:
        """[n, C, h, w], normalised -> [T, H, W, 3] nominally in [-1, 1]; T = 4n, 1 if first."""
        d = self.decoder
        raw = latents * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        x = self.post_quant_conv(_nhwc(raw.to(self.post_quant_conv.weight.dtype)))
        x = x + self.post_quant_conv.bias
        kept = state.of('in', x, x.shape[-1])
        padded = torch.cat([kept, x])
        state.keep('in', padded[-2:])
        pending: Pending = (d.conv_in(padded), d.conv_in.bias, None)
        mid = d.mid_block
        pending = self._residual('mid.0', cast(ResidualBlock, mid.resnets[0]), pending, state)
        pending = mid.attentions[0](settle(*pending))
        pending = self._residual('mid.1', cast(ResidualBlock, mid.resnets[1]), pending, state)
        for index, up in enumerate(cast(list[UpBlock], list(d.up_blocks))):
            for number, block in enumerate(up.resnets):
                pending = self._residual(f'up.{index}.{number}', cast(ResidualBlock, block),
                                         pending, state)
            for sampler in up.upsamplers:
                pending = self._upsample(f'up.{index}', cast(Upsample, sampler),
                                         settle(*pending), state, first)
        y = pending[0]
        _, padded = self._enter(*pending, d.norm_out.gamma, state.of('out', y, y.shape[-1]))
        return d.conv_out(padded) + d.conv_out.bias

    @torch.no_grad()
    def forward(self, latents: Tensor, state: DecoderState) -> Tensor:
        """The next latents as frames.

        Args:
            latents: [n, C, h, w], normalised. The very first latent of a stream makes one frame,
                every later one four.
            state: of the stream; moved on.

        Returns:
            uint8 [T, H, W, 3] on the device.
        """
        parts = []
        if not state.started:
            parts.append(self.features(latents[:1], state, True))
            latents, state.started = latents[1:], True
        if len(latents):
            parts.append(self.features(latents, state, False))
        frames = torch.cat(parts) if len(parts) > 1 else parts[0]
        return (frames.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def _time(conv: CausalConv | UpConv, x: Tensor, method: str, repeats: int = 3) -> float:
    """Seconds of one run of a convolution; infinite where the device cannot run it."""
    conv.method = method
    try:
        conv.prepare()
        conv(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        start = time.perf_counter()
        for _ in range(repeats):
            conv(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return (time.perf_counter() - start) / repeats
    except RuntimeError:  # no kernel for it, or no memory
        return float('inf')


def encode_picture(folder: Path, device: torch.device,
                   frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The normalised latent float32 [C, h, w] of the first of ``frames`` uint8 [n, H, W, 3], by
    diffusers' encoder, which is loaded for this and let go.

    Raises:
        ModelError: if diffusers is missing or the folder holds no such VAE.
    """
    config = VaeConfig.read(folder)
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise ModelError("encoding a reference picture needs diffusers: pip install -e "
                         "'.[wan]'") from error
    try:
        vae = AutoencoderKLWan.from_pretrained(str(folder)).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f'the VAE in {str(folder)!r} cannot be loaded: {error}') from error
    x = torch.from_numpy(np.ascontiguousarray(frames[:1])).to(device).float() / 127.5 - 1.0
    with torch.no_grad():
        latent = vae.encode(x.permute(3, 0, 1, 2)[None]).latent_dist.mode()[0, :, 0].cpu()
    mean, std = (torch.tensor(values)[:, None, None]
                 for values in (config.latents_mean, config.latents_std))
    made: NDArray[np.float32] = ((latent - mean) / std).float().numpy()
    return made


def load_decoder(folder: Path, device: torch.device, dtype: torch.dtype) -> StreamingDecoder:
    """The decoder of a VAE folder in the diffusers layout.

    Raises:
        ModelError: if a file is missing or does not fit; names the weights.
    """
    from safetensors import safe_open

    config = VaeConfig.read(folder)
    path = folder / 'diffusion_pytorch_model.safetensors'
    decoder = StreamingDecoder(config)
    own = decoder.state_dict()
    try:
        with safe_open(str(path), 'pt') as file:
            state = {name: file.get_tensor(name) for name in file.keys()
                     if name.startswith(('decoder.', 'post_quant_conv.'))}
    except (OSError, ValueError) as error:
        raise ModelError(f'the VAE weights {str(path)!r} cannot be read: {error}; restore the '
                         f'file') from error
    wrong = sorted(set(own) ^ set(state)) + [
        name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        raise ModelError(f'{str(path)!r} is not the VAE that its config.json describes; it '
                         f'differs at {wrong[:5]}')
    decoder.load_state_dict(state)
    return decoder.to(device, dtype).eval()
