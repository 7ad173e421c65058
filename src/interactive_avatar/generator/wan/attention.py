# SPDX-License-Identifier: Apache-2.0
"""Self-attention of a block as a card runs it quickest: which kernel, and in how many pieces.

A kernel's work comes in tiles of queries and heads, which fill a card in waves; where the last
wave is nearly empty, its queries are better run apart, their keys split into parts that run side
by side. Results of the parts are merged by the logarithms of their sums (log-sum-exp), which is
exact.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interactive_avatar.generator.wan.network import attend

TILES = (64, 128, 192, 256)
"""Queries of a tile, as kernels have them; which one a kernel takes is not said."""
MAX_PARTS = 8


@dataclass(frozen=True)
class AttentionPlan:
    """How self-attention is run.

    Attributes:
        kernel: flash, cudnn or default.
        queries: the last ones, whose keys are split; 0: all run as a whole.
        parts: into which the keys are split.
    """

    kernel: str = 'default'
    queries: int = 0
    parts: int = 1

    def __str__(self) -> str:
        if not self.queries:
            return self.kernel
        return f'{self.kernel}, last {self.queries} queries with keys in {self.parts}'

    def fits(self, keys: int) -> bool:
        """Whether so many keys are to be split, and can be."""
        return self.queries > 0 and keys % self.parts == 0


Pieces = tuple[Tensor | None, Tensor, Tensor]
"""What `split_attention` made: [1, n − r, H · hw] of the first queries or None; the parts'
results for the last r queries [p, r, H, hw]; logarithms of the parts' sums [p, H, r]."""


def attention_kernel(name: str) -> Any:
    """A context in which scaled_dot_product_attention prefers a kernel: flash, cudnn, default."""
    if name == 'default':
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    first = SDPBackend.CUDNN_ATTENTION if name == 'cudnn' else SDPBackend.FLASH_ATTENTION
    return sdpa_kernel([first, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.MATH], set_priority=True)


def with_sums(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> tuple[Tensor, Tensor]:
    """Attention of q [B, n, H, hw] over k, v [B, m, H, hw], and the logarithm of its sums.

    Returns:
        [B, n, H, hw] and float32 [B, H, n].

    Raises:
        RuntimeError: if the kernel cannot run it.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if kernel == 'cudnn':
        made = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
        out, sums = made[0], made[1]
    elif kernel == 'flash':
        made = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
        out, sums = made[0], made[1]
    else:
        scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
        sums = scores.logsumexp(-1)
        out = (torch.exp(scores - sums[..., None]) @ v.float()).to(q.dtype)
    # cuDNN keeps a last axis of one.
    return out.transpose(1, 2), sums.reshape(*q.shape[:3])


def split_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Pieces:
    """Attention of q [1, n, H, hw] over k, v [1, m, H, hw] in a plan's pieces; m divides.

    Raises:
        RuntimeError: if the kernel cannot run it.
    """
    whole = q.shape[1] - plan.queries
    parts = (plan.parts, -1)
    out, sums = with_sums(q[:, whole:].repeat(plan.parts, 1, 1, 1), k[0].unflatten(0, parts),
                          v[0].unflatten(0, parts), plan.kernel)
    return attend(q[:, :whole], k, v) if whole else None, out, sums


def join(first: Tensor | None, parts: Tensor, sums: Tensor) -> Tensor:
    """The result [1, n, H · hw] of `split_attention`'s pieces."""
    weights = sums.float().softmax(0).transpose(1, 2)[..., None]
    last = (parts.float() * weights).sum(0).flatten(1)[None].to(parts.dtype)
    return last if first is None else torch.cat([first, last], 1)


def join_and_add(first: Tensor | None, parts: Tensor, sums: Tensor, other: Tensor) -> Tensor:
    """`join` with what reads its result, so that a trial pays what a layer pays."""
    return join(first, parts, sums) + other


def plans(kernels: tuple[str, ...], queries: int, keys: int, heads: int,
          processors: int) -> list[AttentionPlan]:
    """What is worth a trial on a card of so many multiprocessors: each kernel as it is, all keys
    in two and four, and the queries of an unfilled last wave apart."""
    found = [AttentionPlan(kernel) for kernel in kernels]
    last = {queries}
    for tile in TILES:
        waves = -(-queries // tile) * heads // processors
        left = queries - waves * processors // heads * tile
        if 0 < left < queries:
            last.add(left)
    for count in sorted(last):
        # Parts enough to fill the card once with the smaller tiles.
        most = 4 if count == queries else MAX_PARTS
        found += [AttentionPlan(kernel, count, parts) for kernel in kernels
                  for parts in range(2, most + 1) if keys % parts == 0]
    return found
