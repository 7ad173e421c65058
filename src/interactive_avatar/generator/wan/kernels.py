# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, each of which compiles in a second at first use.

`enter`: the VAE decoder's pass between two convolutions; `vae.enter` is its reference. One read
and one or two writes of the features, where PyTorch's own operations make nine passes over tensors
that do not fit any cache.

`turn_heads`: from a layer's product to self-attention; `runner.open_layer` is its reference.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS_PER_PROGRAM = 2048


@triton.jit
def _enter(y, bias, added, gamma, features, normed, kept,  # type: ignore[no-untyped-def]
           rows, first_kept, root,
           channels: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
           has_added: tl.constexpr, keep: tl.constexpr):
    row = tl.program_id(0) * block + tl.arange(0, block)
    column = tl.arange(0, width)
    real = column < channels
    inside = (row < rows)[:, None] & real[None, :]
    at = row.to(tl.int64)[:, None] * channels + column[None, :]
    x = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias + column, mask=real, other=0.0).to(tl.float32)[None, :]
    if has_added:
        x += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    if keep:
        tl.store(features + at, x.to(features.dtype.element_ty), mask=inside)
    length = tl.sqrt(tl.sum(x * x, axis=1))
    inverse = root / tl.maximum(length, 1e-12)
    x = x * inverse[:, None] * tl.load(gamma + column, mask=real, other=0.0).to(
        tl.float32)[None, :]
    x = x * tl.sigmoid(x)
    tl.store(normed + at, x.to(normed.dtype.element_ty), mask=inside)
    tl.store(kept + (at - first_kept * channels), x.to(kept.dtype.element_ty),
             mask=inside & (row >= first_kept)[:, None])


def _launch(y: Tensor, bias: Tensor, added: Tensor | None, gamma: Tensor, kept: Tensor,
            keep: bool) -> tuple[Tensor, Tensor]:
    frames, channels = y.shape[0], y.shape[-1]
    y = y.contiguous()
    padded = y.new_empty((2 + frames, *y.shape[1:]))
    features = torch.empty_like(y) if keep else y
    padded[:2] = kept
    rows = y.numel() // channels
    # The last two frames are remembered by the kernel itself, unless one of them is remembered
    # already.
    first_kept = rows - kept.numel() // channels if frames >= 2 else rows
    width = triton.next_power_of_2(channels)
    block = max(1, ELEMENTS_PER_PROGRAM // width)
    with torch.cuda.device(y.device) if y.is_cuda else nullcontext():
        _enter[(triton.cdiv(rows, block),)](
            y, bias, y if added is None else added.contiguous(), gamma, features, padded[2:],
            kept, rows, first_kept, channels ** 0.5, channels=channels, width=width, block=block,
            has_added=added is not None, keep=keep)
    if frames < 2:
        kept.copy_(padded[-2:])
    return features, padded


def enter(y: Tensor, bias: Tensor, added: Tensor | None, gamma: Tensor,
          kept: Tensor) -> tuple[Tensor, Tensor]:
    """See `vae.enter`."""
    return _launch(y, bias, added, gamma, kept, True)


def enter_only(y: Tensor, bias: Tensor, gamma: Tensor, kept: Tensor) -> Tensor:
    """See `vae.enter_only`."""
    return _launch(y, bias, None, gamma, kept, False)[1]


@triton.jit
def _turned(at, weight, cosine, sine, column, inside, inverse_width,  # type: ignore[no-untyped-def]
            epsilon, pairs: tl.constexpr):
    """One token's normed row: as it is, and its even and odd columns turned."""
    x = tl.load(at + column, mask=inside, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) * inverse_width + epsilon)
    x *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (pairs, 2)))
    turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    return x, tl.reshape(turned, (2 * pairs,))


@triton.jit
def _heads(qkv, q_weight, k_weight, cos, sin, q_out, raw,  # type: ignore[no-untyped-def]
           k_out, v_out, epsilon, width: tl.constexpr, padded: tl.constexpr,
           half: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, padded)
    inside = column < width
    pair = tl.arange(0, padded // 2)
    angle = row * half + pair % half
    cosine, sine = tl.load(cos + angle), tl.load(sin + angle)
    start, at = qkv + row * 3 * width, row * width + column
    _, q = _turned(start, q_weight, cosine, sine, column, inside, 1.0 / width, epsilon,
                   padded // 2)
    tl.store(q_out + at, q.to(q_out.dtype.element_ty), mask=inside)
    k, turned = _turned(start + width, k_weight, cosine, sine, column, inside, 1.0 / width,
                        epsilon, padded // 2)
    tl.store(raw + at, k.to(raw.dtype.element_ty), mask=inside)
    tl.store(k_out + at, turned.to(k_out.dtype.element_ty), mask=inside)
    tl.store(v_out + at, tl.load(start + 2 * width + column, mask=inside), mask=inside)


def turn_heads(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
               raw: Tensor, k_out: Tensor, v_out: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Norm q and k over the whole width, turn them, and put k and v where they are kept.

    Args:
        qkv: [1, n, 3 · width], contiguous. q_weight, k_weight: of the norms. cos, sin: float32
            [n, pairs of a head]. raw, k_out, v_out: [1, n, H, hw], contiguous; take k before it
            is turned, k and v.

    Returns:
        q [1, n, H, hw].

    Raises:
        ValueError: if a tensor is not laid out like this.
    """
    tokens, width = raw.shape[1], raw.shape[2] * raw.shape[3]
    if qkv.shape != (1, tokens, 3 * width) or cos.shape != (tokens, raw.shape[3] // 2):
        raise ValueError(f'qkv {list(qkv.shape)} and angles {list(cos.shape)} do not fit keys '
                         f'{list(raw.shape)}')
    if not all(t.is_contiguous() for t in (qkv, cos, sin, raw, k_out, v_out)):
        raise ValueError('the heads must be contiguous')
    q = torch.empty_like(raw)
    with torch.cuda.device(qkv.device) if qkv.is_cuda else nullcontext():
        _heads[(tokens,)](qkv, q_weight, k_weight, cos, sin, q, raw, k_out, v_out, epsilon,
                          width=width, padded=triton.next_power_of_2(width), half=cos.shape[1])
    return q
