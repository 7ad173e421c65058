# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of the VAE decoder's pass between two convolutions; `vae.enter` is its reference.

One read and one or two writes of the features, where PyTorch's own operations make nine passes
over tensors that do not fit any cache. Compiles in a second at first use.
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
