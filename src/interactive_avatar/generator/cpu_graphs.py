# SPDX-License-Identifier: Apache-2.0
"""Denoiser and decoder laid out for ONNX Runtime on a CPU: the graphs whose names end in .int8.

The same weights and the same arithmetic as in `denoiser` and `autoencoder`, but in an order that
costs a CPU less: channels last, so that a convolution is one matrix product in 8-bit integers;
modulations as the scale and shift of the norms before them; pictures kept as planes that the
sampling reads and writes. One stream at a time.

`rows` and `convolve` become placeholders in the exported graph, which `integer_products` turns
into standard operators: quantise, multiply as integers, scale.
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.autoencoder import FLOW_SCALE, ResidualBlock, smoothed
from interactive_avatar.generator.compressor import patchify
from interactive_avatar.generator.denoiser import Block, CrossAttention, rotate
from interactive_avatar.generator.networks import Generator

DOMAIN: Final = 'interactive_avatar'
ROWS, CONVOLVE = f'{DOMAIN}::Rows', f'{DOMAIN}::Convolve'

Sizes = tuple[int, ...]


# Sizes go as arguments of their own, because the exporter does not know them where it asks.
class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, sizes: Sizes) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, sizes: Sizes) -> Any:
        return g.op(ROWS, x, weight, bias).setType(x.type().with_sizes(list(sizes)))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shuffle: int, sizes: Sizes,
                kernel: Sizes) -> Tensor:
        made = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2)
        made = made.permute(0, 2, 3, 1)
        return made.unflatten(3, (-1, shuffle)).transpose(3, 4).flatten(3)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, shuffle: int, sizes: Sizes,
                 kernel: Sizes) -> Any:
        made = g.op(CONVOLVE, x, weight, bias, shuffle_i=shuffle, sizes_i=list(sizes),
                    kernel_i=list(kernel))
        return made.setType(x.type().with_sizes([*sizes[:3], kernel[0]]))


def _sizes(x: Tensor) -> Sizes:
    return tuple(int(size) for size in x.shape)


def rows(x: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer with bias on x [..., in] -> [..., out]."""
    made: Tensor = _Rows.apply(  # type: ignore[no-untyped-call]
        x, layer.weight, layer.bias, (*_sizes(x)[:-1], layer.out_features))
    return made


def convolve(x: Tensor, layer: nn.Conv2d, bias: Tensor | None = None, shuffle: int = 1) -> Tensor:
    """A convolution of stride 1 on x [1, h, w, in] -> [1, h, w, out].

    Args:
        x: channels last.
        layer: its kernel, 1×1 or 3×3.
        bias: in place of the layer's own.
        shuffle: output channels come as [shuffle, out / shuffle] instead of the reverse, so that
            a shuffle of pixels moves whole rows of channels.
    """
    bias = cast(Tensor, layer.bias) if bias is None else bias
    made: Tensor = _Convolve.apply(  # type: ignore[no-untyped-call]
        x, layer.weight, bias, shuffle, _sizes(x), _sizes(layer.weight))
    return made


def _group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm of x [1, h, w, C]: one scale and shift per channel, from two means."""
    def by_group(means: Tensor) -> Tensor:
        return means.view(norm.num_groups, -1).mean(1, keepdim=True).expand(
            -1, x.shape[3] // norm.num_groups).reshape(-1)

    flat = x.flatten(0, 2)
    # A product, because ONNX Runtime takes far longer for a mean over rows.
    share = torch.full((1, flat.shape[0]), 1.0 / flat.shape[0])
    mean = by_group(share @ flat)
    variance = by_group(share @ (flat * flat)) - mean * mean
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return x * scale + (norm.bias - mean * scale)


def _residual(x: Tensor, block: ResidualBlock) -> Tensor:
    h = convolve(F.silu(_group_norm(x, block.norm)), block.conv1)
    return x + convolve(F.silu(h), block.conv2)


def _spread(x: Tensor, by: int) -> Tensor:
    """Shuffle pixels of x [1, h, w, by² · C], channels by `convolve`'s shuffle, -> [1, by · h,
    by · w, C]."""
    h, w = x.shape[1:3]
    return x.view(h, w, by, by, -1).permute(0, 2, 1, 3, 4).reshape(1, by * h, by * w, -1)


def _planes(x: Tensor) -> Tensor:
    """Shuffle pixels of x [h, w, C, by, by] -> [C, by · h, by · w]."""
    h, w, planes, by = x.shape[:4]
    return x.permute(2, 0, 3, 1, 4).reshape(planes, by * h, by * w)


class CpuDecode(nn.Module):
    """`decode` of one stream: see `Decoder`, whose weights these are."""

    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.autoencoder = g.autoencoder

    def forward(self, latent: Tensor, previous: Tensor, reference: Tensor, last: Tensor,
                picture: Tensor) -> Tensor:
        d = self.autoencoder.decoder
        by, frames, side = d.shuffle, d.frames, last.shape[1]
        x = torch.cat([latent, previous, reference], 1).permute(0, 2, 3, 1)
        x = convolve(x, d.stem)
        for block in d.stage1:
            x = _residual(x, cast(ResidualBlock, block))
        x = _spread(convolve(x, d.up1, shuffle=4), 2)
        for block in d.stage2:
            x = _residual(x, cast(ResidualBlock, block))
        wide = convolve(F.silu(x), d.wide_flow)
        x = _spread(convolve(x, d.up2, shuffle=4), 2)
        cells = last.view(side // by, by, side // by, by, 3).permute(0, 2, 4, 1, 3)
        cells = cells.reshape(1, side // by, side // by, 3 * by * by).float() / 127.5 - 1.0
        x = x + convolve(cells, d.last_embedding)
        for block in d.stage3:
            x = _residual(x, cast(ResidualBlock, block))
        x = F.silu(x)
        # Two sources, x and y, for every frame: resized as planes.
        flow = F.interpolate(wide.permute(0, 3, 1, 2), scale_factor=2.0, mode='bilinear')
        flow = flow + 0.25 * convolve(x, d.fine_flow).permute(0, 3, 1, 2)
        flow = F.interpolate(FLOW_SCALE * flow, scale_factor=float(by), mode='bilinear')
        flow = flow.view(2, frames, 2, side, side)
        # Half a grey level lower: what the zero point of the last line puts back.
        half = 1.0 / 255.0
        cells = convolve(x, d.out, cast(Tensor, d.out.bias) - half)
        cells = cells.view(side // by, side // by, frames, 3, by, by)
        shares = convolve(x, d.shares).view(side // by, side // by, 2, frames, by, by)
        seen = [picture.permute(0, 3, 1, 2).float() / 127.5 - (1.0 + half)
                for picture in (last, picture)]
        pixels = []
        # Frame by frame, because all four at once outgrow the processor's cache: half the time at
        # 512×512.
        for i in range(frames):
            recent, old = (
                F.grid_sample(source, d.sources(flow[None, which, i]), mode='bilinear',
                              padding_mode='zeros', align_corners=False).view(3, side, side)
                for which, source in enumerate(seen))
            logits = smoothed(_planes(shares[:, :, :, i])[None], d.smoothing)[0]
            carried, fresh = torch.sigmoid(logits)
            old = old + d.last_share * fresh * (recent - old)
            drawn = _planes(cells[:, :, i])
            made = drawn + carried * (old - drawn)
            # Rounding, clipping and the type in one pass.
            made = _Pixels.apply(made)  # type: ignore[no-untyped-call]
            pixels.append(made.permute(1, 2, 0))
        return torch.stack(pixels)[None]


class _Pixels(torch.autograd.Function):
    """[-1, 1], half a grey level lowered, -> uint8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 127.5).add(128.0).clamp(0.0, 255.0).to(torch.uint8)

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        scale = g.op('Constant', value_t=torch.tensor(1.0 / 127.5))
        zero = g.op('Constant', value_t=torch.tensor(128, dtype=torch.uint8))
        return g.op('QuantizeLinear', x, scale, zero).setType(x.type().with_dtype(torch.uint8))


class CpuDenoise(nn.Module):
    """`denoise` of one stream: see `Denoiser.chunk`, whose weights and arguments these are."""

    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.denoiser = g.denoiser
        self.layers = g.config.denoiser.layers

    def forward(self, latent: Tensor, level: Tensor, previous: Tensor, audio_k: Tensor,
                audio_v: Tensor, text_k: Tensor, text_v: Tensor, text_mask: Tensor,
                *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Args: as `Denoiser.chunk`; past: keys of every layer [H, 384, hw], values of every
        layer, and cache_mask [1, 384]."""
        d = self.denoiser
        before = patchify(previous, d.config.denoiser.patch)
        x = rows(patchify(latent, d.config.denoiser.patch), d.patch_embedding)
        x = x + d.previous_embedding(before)
        embedded, modulations = d.time_modulation(level)
        m = modulations.flatten().split(x.shape[2])
        mask = F.pad(past[-1], (0, x.shape[1]))
        kept = [past[:self.layers], past[self.layers:-1],
                *(t.flatten(0, 2).chunk(self.layers) for t in (text_k, text_v, audio_k, audio_v))]
        keys, values = [], []
        for i, block in enumerate(d.layers):
            old_k, old_v, t_k, t_v, a_k, a_v = (kind[i] for kind in kept)
            shift, scale, gate, shift2, scale2, gate2 = m[6 * i:6 * i + 6]
            q, k, v = _project(block, _norm(x, block.norm1, scale, shift))
            keys.append(k)
            values.append(v)
            cos, sin = d.chunk_cos, d.chunk_sin
            attended = _attend(rotate(q, cos, sin),
                               torch.cat([old_k, rotate(k, cos, sin)], 1),
                               torch.cat([old_v, v], 1), mask)
            x = x + gate * rows(attended, block.o)
            x = self._cross(x, block.text, t_k, t_v, text_mask)
            x = self._cross(x, block.audio, a_k, a_v, None)
            h = rows(_norm(x, block.norm2, scale2, shift2), block.up)
            x = x + gate2 * rows(F.gelu(h, approximate='tanh'), block.down)
        return (d.velocity(x, embedded, before), torch.stack(keys)[None],
                torch.stack(values)[None])

    @staticmethod
    def _cross(x: Tensor, layer: CrossAttention, k: Tensor, v: Tensor,
               mask: Tensor | None) -> Tensor:
        heads, width = layer.heads
        q = _rms(rows(layer.norm(x), layer.q), layer.norm_q.weight * width ** -0.5)
        return x + rows(_attend(_heads(q, heads), k, v, mask), layer.o)


class _CpuStill(nn.Module):
    """What reference picture and memory entries have in common: noise level 0, no text, no
    audio; see `Denoiser.reference` and `Denoiser.entry`."""

    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.denoiser = g.denoiser

    def through_layers(self, x: Tensor, cos: Tensor, sin: Tensor, old_k: tuple[Tensor, ...],
                       old_v: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Keys (not rotated) and values [1, L, H, n, hw] of tokens x [1, n, width].

        Args:
            x: the tokens; cos, sin: their rotation [n, hw].
            old_k, old_v: what else each layer sees, rotated, [H, m, hw]; empty for nothing.
        """
        d = self.denoiser
        m = d.time_modulation(torch.zeros(1))[1].flatten().split(x.shape[2])
        keys, values = [], []
        for i, block in enumerate(d.layers):
            shift, scale, gate, shift2, scale2, gate2 = m[6 * i:6 * i + 6]
            q, k, v = _project(block, _norm(x, block.norm1, scale, shift))
            keys.append(k)
            values.append(v)
            k = rotate(k, cos, sin)
            if old_k:
                k, v = torch.cat([old_k[i], k], 1), torch.cat([old_v[i], v], 1)
            x = x + gate * rows(_attend(rotate(q, cos, sin), k, v, None), block.o)
            h = rows(_norm(x, block.norm2, scale2, shift2), block.up)
            x = x + gate2 * rows(F.gelu(h, approximate='tanh'), block.down)
        return torch.stack(keys)[None], torch.stack(values)[None]


class CpuReference(_CpuStill):
    """`embed_reference` of one stream."""

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        d = self.denoiser
        x = rows(patchify(latent, d.config.denoiser.patch), d.patch_embedding)
        return self.through_layers(x + d.kind_embedding[0], d.chunk_cos, d.chunk_sin, (), ())


class CpuCompress(_CpuStill):
    """`compress` of one stream."""

    def forward(self, latents: Tensor, reference_k: Tensor,
                reference_v: Tensor) -> tuple[Tensor, Tensor]:
        d = self.denoiser
        n, layers = d.config.chunk_tokens, d.config.denoiser.layers
        x = d.compressor(latents, d.patch_embedding) + d.kind_embedding[1]
        old = rotate(reference_k, d.cache_cos[:n], d.cache_sin[:n])
        old_k, old_v = (t.flatten(0, 2).chunk(layers) for t in (old, reference_v))
        return self.through_layers(x, d.entry_cos, d.entry_sin, old_k, old_v)


def _project(block: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, scaled for attention, k and v [H, n, hw], not rotated, of x [1, n, width]."""
    heads, width = block.heads
    q, k, v = rows(x, block.qkv).chunk(3, 2)
    weight = block.norm_qk.weight
    q = _rms(q, weight[0] * width ** -0.5)
    return _heads(q, heads), _heads(_rms(k, weight[1]), heads), _heads(v, heads)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[1, n, H · hw] -> [H, n, hw]."""
    return x.view(x.shape[1], heads, -1).transpose(0, 1)


def _norm(x: Tensor, norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> Tensor:
    """A norm without weights of its own and the modulation after it, as one norm."""
    return F.layer_norm(x, norm.normalized_shape, scale, shift, norm.eps)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    """`RMSNorm` with another weight."""
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q [H, n, hw], scaled, over k, v [H, m, hw] -> [1, n, H · hw]."""
    scores = q @ k.transpose(1, 2)
    if mask is not None:
        scores = scores + mask
    return (torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(1, q.shape[1], -1)


CPU_GRAPHS: Final[dict[str, type[nn.Module]]] = {
    'decode': CpuDecode, 'denoise': CpuDenoise, 'compress': CpuCompress,
    'embed_reference': CpuReference}
"""Graphs that have a variant for CPUs."""
