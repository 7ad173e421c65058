# SPDX-License-Identifier: Apache-2.0
"""Audio encoder: a bounded window of log-mel frames to tokens for the denoiser's audio attention.

Stateless on purpose: one chunk looks 640 ms back and one chunk (160 ms) ahead, so a stream can be
entered, restored and replayed anywhere with the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.config import AudioConfig
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.media.mel import MEL_CEILING_LN, MEL_FLOOR_LN


class _Block(nn.Module):
    """Pre-norm transformer layer over the window's 24 tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate='tanh'))


class AudioEncoder(nn.Module):
    """Log-mel window [B, 96, 64] -> tokens [B, 12, width].

    The last 12 of the window's 24 tokens are returned: 4 before the chunk, its own 4 (one per
    video frame) and 4 of lookahead. `mouth` reads mouth units off the chunk's own tokens; it is
    trained along and keeps the tokens about what lips do.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv1d(config.mel_bands, width, 5, padding=2)
        self.conv2 = nn.Conv1d(width, width, 4, stride=2, padding=1)
        self.conv3 = nn.Conv1d(width, width, 4, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(config.window_frames, width) * 0.02)
        self.blocks = nn.ModuleList([_Block(width, config.heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.mouth_head = nn.Linear(width, config.mouth_units)

    def forward(self, mel: Tensor) -> Tensor:
        """Float log-mel [B, 96, 64] in nepers -> [B, 12, width]."""
        middle = 0.5 * (MEL_CEILING_LN + MEL_FLOOR_LN)
        x = ((mel - middle) / (0.25 * (MEL_CEILING_LN - MEL_FLOOR_LN))).transpose(1, 2)
        x = F.silu(self.conv1(x.to(self.conv1.weight.dtype)))
        x = F.silu(self.conv2(x))
        x = self.conv3(x).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.norm(x)[:, -self.config.tokens:]
        return tokens

    def mouth(self, tokens: Tensor) -> Tensor:
        """Mouth units [B, 4, mouth_units] of the chunk's four frames, from `forward`'s tokens."""
        end = self.config.tokens - self.config.ahead_frames
        units: Tensor = self.mouth_head(tokens[:, end - FRAMES_PER_CHUNK:end])
        return units
