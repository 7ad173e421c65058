# SPDX-License-Identifier: Apache-2.0
"""Token refiner: what a prompt means to the generator, whatever its words.

A few bidirectional transformer layers between the text encoder's states and the denoiser's text
attention (as HunyuanVideo's token refiner, arXiv 2412.03603, section 4.2, without its timestep).
It runs when a prompt is new and never in a chunk, so Cache-Switching costs what it did.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.config import DenoiserConfig


class RefinerLayer(nn.Module):
    """Self-attention and a feed-forward network, each after a norm and added."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.text_width
        self.heads = (config.refiner_heads, width // config.refiner_heads)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.o = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.refiner_ffn_width)
        self.down = nn.Linear(config.refiner_ffn_width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """States [N, n, width]; ``bias`` [N, 1, 1, n] is added to the scores."""
        q, k, v = (part.unflatten(-1, self.heads).transpose(1, 2)
                   for part in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate='tanh'))


class TokenRefiner(nn.Module):
    """Refines states of the text encoder; as it begins it changes nothing."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RefinerLayer(config) for _ in range(config.refiner_layers))

    def begin(self) -> None:
        """Make it change nothing."""
        for layer in self.layers:
            for last in (layer.o, layer.down):
                assert isinstance(last, nn.Linear)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, text: Tensor) -> Tensor:
        """States [N, n, text width]; where there is no token they are zeros and stay so."""
        empty = (text == 0.0).all(-1)
        bias = (empty.to(text.dtype) * float(MASKED))[:, None, None]
        x = text
        for layer in self.layers:
            x = layer(x, bias)
        return torch.where(empty[..., None], text, x)
