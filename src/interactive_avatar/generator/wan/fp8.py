# SPDX-License-Identifier: Apache-2.0
"""Linear layers in 8-bit floats (E4M3) for GPUs that multiply them: Ada, Hopper, Blackwell.

Weights have one scale per output row, activations one per token, found as they come; products are
summed in wider floats by the tensor cores (torch._scaled_mm). Scales and bias are applied by the
product itself (way ``rows``) or to its sums by whatever the layer is compiled with (``sums``):
cuBLAS takes rows' scales for some shapes only, and which is quicker depends on the shape. Few
tokens, such as a memory entry's, always go by sums, which is quicker there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

E4M3_MAX = 448.0
MIN_COMPUTE_CAPABILITY = (8, 9)
WAYS = ('rows', 'sums')
"""Where the scales are applied: in the product, or to its sums."""
MANY_ROWS = 512
"""Tokens from which on way ``rows`` is taken; cuBLAS refuses some shapes at 64."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., width] -> float8_e4m3fn of the same shape and float32 scales [..., 1]."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / E4M3_MAX
    scaled = (x.float() * scale.reciprocal()).clamp(-E4M3_MAX, E4M3_MAX)
    return scaled.to(torch.float8_e4m3fn), scale


class Fp8Linear(nn.Module):
    """A linear layer with E4M3 weights, from an existing one.

    Attributes:
        way: of `WAYS`, for many tokens.
    """

    weight: Tensor
    scale: Tensor
    one: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, way: str = 'sums') -> None:
        super().__init__()
        self.way = way
        weight, scale = quantise(linear.weight.detach())
        self.register_buffer('weight', weight.contiguous())
        self.register_buffer('scale', scale.contiguous())
        self.register_buffer('one', scale.new_ones(()), persistent=False)
        self.register_buffer('bias', None if linear.bias is None else linear.bias.detach())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moves with its module, but keeps its types when that is cast.
        kept = {name: getattr(self, name) for name in ('weight', 'scale', 'one')}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            setattr(self, name, tensor.to(getattr(self, name).device))
        return self

    @staticmethod
    def _multiplies(x: Tensor) -> bool:
        """Whether x lies where 8-bit floats are multiplied."""
        return x.is_cuda

    def forward(self, x: Tensor) -> Tensor:
        if not self._multiplies(x):  # the same arithmetic where there is no 8-bit product
            small, scale = quantise(x)
            wide = (small.float() * scale).to(x.dtype)
            return F.linear(wide, (self.weight.float() * self.scale).to(x.dtype), self.bias)
        small, scale = quantise(x.flatten(0, -2))
        if self.way == 'rows' and small.shape[0] >= MANY_ROWS:
            y = torch._scaled_mm(small, self.weight.t(), scale_a=scale, scale_b=self.scale.t(),
                                 bias=self.bias, out_dtype=x.dtype, use_fast_accum=True)
            return y.view(*x.shape[:-1], -1)
        y = torch._scaled_mm(small, self.weight.t(), scale_a=self.one, scale_b=self.one,
                             out_dtype=x.dtype, use_fast_accum=True)
        y = y.float() * scale * self.scale.t()
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def quantise_linears(module: nn.Module, names: tuple[str, ...],
                     ways: Mapping[str, str] | None = None) -> int:
    """Replace the linear layers called ``names`` anywhere below ``module``; returns how many.

    Args:
        ways: by name, of `WAYS`, or another word for layers that stay as they are; sums for all
            that have none.
    """
    count = 0
    for child in list(module.modules()):
        for name in names:
            linear, way = getattr(child, name, None), (ways or {}).get(name, 'sums')
            if isinstance(linear, nn.Linear) and way in WAYS:
                setattr(child, name, Fp8Linear(linear, way))
                count += 1
    return count


def ways_of(module: nn.Module, names: tuple[str, ...]) -> dict[str, str]:
    """How the layers called ``names`` below ``module`` are run: a way, or the dtype of weights
    that are not quantised."""
    found = {}
    for child in module.modules():
        for name in names:
            linear = getattr(child, name, None)
            if isinstance(linear, Fp8Linear):
                found[name] = linear.way
            elif isinstance(linear, nn.Linear):
                found[name] = str(linear.weight.dtype).removeprefix('torch.')
    return found


def supported(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floats."""
    return (device.type == 'cuda'
            and torch.cuda.get_device_capability(device) >= MIN_COMPUTE_CAPABILITY)
