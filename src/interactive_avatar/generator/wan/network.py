# SPDX-License-Identifier: Apache-2.0
"""Wan2.1's diffusion transformer with audio cross-attention and Long-Short Visual Memory.

With audio and memory off, one forward is Wan2.1's, weight for weight (tested against diffusers).
What is added changes nothing until it is trained: the audio attention's output and the memory's
gates start at zero.

Block: self-attention → text cross-attention → audio cross-attention → FFN. Tokens are kept as
[B, F, n, width]: B streams, F latent frames, n tokens of a frame. A layer comes in pieces
(`Block.project`, `after_self`, `after_text`, `after_audio`), between which the caller attends: so
training, streaming, compiled regions and CUDA graphs share one set of layers.

H heads of width hw; keys and values are [B, tokens, H, hw].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from interactive_avatar.generator.compressor import timestep_features
from interactive_avatar.generator.denoiser import RMSNorm
from interactive_avatar.generator.wan.config import WanAudioConfig, WanConfig, WanNetworkConfig
from interactive_avatar.generator.wan.rope import chunk_table, rotate

KeysValues = tuple[Tensor, Tensor]
"""Keys and values [B, m, H, hw]."""

Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, 'Tensor | None']]
"""(q, k not rotated, v) -> attended [B, n, H · hw], and what memory gave or None."""

Source = KeysValues | Tensor
"""Keys and values made before, or the tokens [N, m, width] that a layer makes them of."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q [B, n, H, hw] over k, v [B, m, H, hw] -> [B, n, H · hw]; mask is added."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                         attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Queries from the video; keys and values come from `project` and are kept by the caller."""

    def __init__(self, config: WanNetworkConfig, source_width: int) -> None:
        super().__init__()
        width = config.width
        self.heads = (config.heads, config.head_width)
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(source_width, width)
        self.v = nn.Linear(source_width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = RMSNorm(width)
        self.norm_k = RMSNorm(width)

    def pair(self, source: Source) -> KeysValues:
        """Keys and values [N, m, H, hw] of what a layer is given."""
        return self.project(source) if isinstance(source, Tensor) else source

    def project(self, source: Tensor) -> KeysValues:
        """Keys and values [N, m, H, hw] of source tokens [N, m, source_width]."""
        k = self.norm_k(self.k(source)).unflatten(-1, self.heads)
        return k, self.v(source).unflatten(-1, self.heads)

    def query(self, x: Tensor) -> Tensor:
        """Queries [..., H, hw] of tokens [..., width]."""
        return self.norm_q(self.q(self.norm(x))).unflatten(-1, self.heads)


class Block(nn.Module):
    """One layer, whole or in pieces; x is [B, F, n, width], modulation m [B, 6, F or 1, 1,
    width]: shift, scale and gate of self-attention, then of the FFN, the block's table included.

    Attributes:
        checkpointed: in training, keep only what enters the layer and compute the rest again in
            the backward pass.
    """

    checkpointed = False

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        n = config.network
        width = n.width
        self.heads = (n.heads, n.head_width)
        self.norm1 = nn.LayerNorm(width, eps=n.norm_epsilon, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = RMSNorm(width)
        self.norm_k = RMSNorm(width)
        self.o = nn.Linear(width, width)
        self.memory_gate = nn.Parameter(torch.zeros(n.heads))
        self.text = CrossAttention(n, width)
        self.audio = CrossAttention(n, config.audio.token_width) if config.audio.enabled else None
        self.norm2 = nn.LayerNorm(width, eps=n.norm_epsilon, elementwise_affine=False)
        self.up = nn.Linear(width, n.ffn_width)
        self.down = nn.Linear(n.ffn_width, width)
        self.modulation = nn.Parameter(torch.randn(6, width) * width ** -0.5)

    def forward(self, x: Tensor, shared: Tensor, self_attention: Attention, text: Source,
                audio: Source | None) -> tuple[Tensor, Tensor, Tensor]:
        """The whole layer.

        Args:
            shared: modulation of `WanTransformer.modulate`, without the block's table.
            text: [B, tokens, ·]. audio: [B · F, tokens, ·] or None.

        Returns:
            the next layer's x; keys (not rotated) and values [B, F · n, H, hw] of self-attention.
        """
        if self.checkpointed and torch.is_grad_enabled():
            made: tuple[Tensor, Tensor, Tensor] = checkpoint(
                self._forward, x, shared, self_attention, text, audio, use_reentrant=False)
            return made
        return self._forward(x, shared, self_attention, text, audio)

    def _forward(self, x: Tensor, shared: Tensor, self_attention: Attention, text: Source,
                 audio: Source | None) -> tuple[Tensor, Tensor, Tensor]:
        m = shared + self.modulation.float()[:, None, None]
        q, k, v = self.project(x, m)
        x, query = self.after_self(x, m, *self_attention(q, k, v))
        x, heard = self.after_text(x, attend(query, *self.text.pair(text)))
        if heard is not None and audio is not None and self.audio is not None:
            heard = attend(heard, *self.audio.pair(audio))
        else:
            heard = None
        return self.after_audio(x, m, heard), k, v

    def packed(self, x: Tensor, m: Tensor) -> Tensor:
        """Self-attention's q, k and v side by side, not normed, [B, F · n, 3 · width]."""
        shift, scale = m[:, 0], m[:, 1]
        normed = self.norm1(x.float()) * (1 + scale) + shift
        made: Tensor = self.qkv(normed.to(x.dtype).flatten(1, 2))
        return made

    def project(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed q and k, not rotated, and v of self-attention, each [B, F · n, H, hw]."""
        q, k, v = self.packed(x, m).chunk(3, -1)
        return (self.norm_q(q).unflatten(-1, self.heads),
                self.norm_k(k).unflatten(-1, self.heads), v.unflatten(-1, self.heads))

    def after_self(self, x: Tensor, m: Tensor, attended: Tensor,
                   remembered: Tensor | None) -> tuple[Tensor, Tensor]:
        """Close self-attention; returns x and the text queries [B, F · n, H, hw].

        Args:
            attended: [B, F · n, width] of the frames seen. remembered: the same of the memory's
                entries, weighed by tanh of the gate, or None.
        """
        if remembered is not None:
            gate = torch.tanh(self.memory_gate.float())[:, None].to(attended.dtype)
            attended = (attended.unflatten(-1, self.heads)
                        + gate * remembered.unflatten(-1, self.heads)).flatten(2)
        x = self._gated(x, self.o(attended), m[:, 2])
        return x, self.text.query(x).flatten(1, 2)

    def after_text(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        """Close text attention; returns x and the audio queries [B · F, n, H, hw] or None."""
        x = x + self.text.o(attended).view_as(x)
        if self.audio is None:
            return x, None
        return x, self.audio.query(x).flatten(0, 1)

    def after_audio(self, x: Tensor, m: Tensor, attended: Tensor | None) -> Tensor:
        """Close audio attention, attended [B · F, n, width] or None, and run the FFN."""
        if attended is not None and self.audio is not None:
            x = x + self.audio.o(attended).view_as(x)
        return self.narrow(x, m, self.widen(x, m))

    def widen(self, x: Tensor, m: Tensor) -> Tensor:
        """First half of the FFN, [B, F · n, ffn width], before its activation."""
        normed = (self.norm2(x.float()) * (1 + m[:, 4]) + m[:, 3]).to(x.dtype)
        made: Tensor = self.up(normed.flatten(1, 2))
        return made

    def narrow(self, x: Tensor, m: Tensor, wide: Tensor) -> Tensor:
        """x with the FFN's second half added to it; ``wide`` is of `widen`."""
        return self._gated(x, self.down(F.gelu(wide, approximate='tanh')), m[:, 5])

    @staticmethod
    def _gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return (x.float() + y.view_as(x).float() * gate).to(x.dtype)


class AudioProjector(nn.Module):
    """Windows of Wav2Vec2 features to the audio tokens of each latent frame.

    [N, window, feature_layers, feature_width] -> [N, tokens, token_width], window = 4 + 2 ·
    margin_frames video frames (the place and sizes of InfiniteTalk's projector; three linear
    layers and a norm).
    """

    def __init__(self, config: WanAudioConfig, frames: int) -> None:
        super().__init__()
        self.shape = (config.tokens, config.token_width)
        window = frames + 2 * config.margin_frames
        inner = config.inner_width
        self.first = nn.Linear(window * config.feature_layers * config.feature_width, inner)
        self.second = nn.Linear(inner, inner)
        self.third = nn.Linear(inner, config.tokens * config.token_width)
        self.norm = nn.LayerNorm(config.token_width)

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(features.flatten(1)))))
        tokens: Tensor = self.norm(self.third(x).unflatten(-1, self.shape))
        return tokens


class WanMemoryCompressor(nn.Module):
    """Latents [B, group, C, h, w] that left the adjacent queue -> tokens [B, side², width].

    (3D conv + SiLU)×N → attention → SiLU at the transformer's width (InteractiveAvatar, arXiv
    2606.22905, project page), added from a zero start to a low-resolution branch through the
    transformer's own patch embedding (frame-preservation pretraining, arXiv 2512.23851).
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        memory, channels = config.memory, config.network.latent_channels
        inner = memory.compressor_width
        self.shrink = config.grid_side // memory.entry_side
        halvings = int(math.log2(config.latent_px / memory.entry_side))
        if memory.entry_side << halvings != config.latent_px:
            raise ValueError(f'memory.entry_side {memory.entry_side} must be the latent side '
                             f'{config.latent_px} divided by a power of two')
        convs = []
        for index in range(halvings):
            last = index == halvings - 1
            convs.append(nn.Conv3d(
                channels if index == 0 else inner, inner, (memory.group if last else 3, 3, 3),
                stride=(1, 2, 2), padding=(0 if last else 1, 1, 1)))
        self.convs = nn.ModuleList(convs)
        self.heads = 4
        self.norm = nn.LayerNorm(inner)
        self.qkv = nn.Linear(inner, 3 * inner)
        self.proj = nn.Linear(inner, inner)
        self.out = nn.Linear(inner, config.network.width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, latents: Tensor, patch_embedding: Callable[[Tensor], Tensor]) -> Tensor:
        """Args: latents [B, group, C, h, w]; patch_embedding: latent [B, 1, C, h', w'] to tokens
        [B, 1, n, width]."""
        low = patch_embedding(F.avg_pool2d(latents.mean(1), self.shrink)[:, None])[:, 0]
        x = latents.transpose(1, 2)
        for conv in self.convs:
            x = F.silu(conv(x))
        x = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        x = F.silu(x + self.proj(attend(*qkv.unbind(2))))
        tokens: Tensor = low + self.out(x)
        return tokens


class WanTransformer(nn.Module):
    """Velocity of flow matching, v = noise − x0, of latent frames at their noise levels."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        n = config.network
        values = n.latent_channels * n.patch ** 2
        self.patch_embedding = nn.Linear(values, n.width)
        self.text_embedding = nn.Sequential(
            nn.Linear(n.text_width, n.width), nn.GELU(approximate='tanh'),
            nn.Linear(n.width, n.width))
        self.time_embedding = nn.Sequential(
            nn.Linear(n.frequency_width, n.width), nn.SiLU(), nn.Linear(n.width, n.width))
        self.time_projection = nn.Linear(n.width, 6 * n.width)
        self.blocks = nn.ModuleList([Block(config) for _ in range(n.layers)])
        self.head_norm = nn.LayerNorm(n.width, eps=n.norm_epsilon, elementwise_affine=False)
        self.head = nn.Linear(n.width, values)
        self.head_modulation = nn.Parameter(torch.randn(2, n.width) * n.width ** -0.5)
        self.audio_projector = (AudioProjector(config.audio, 4) if config.audio.enabled else None)
        self.compressor = WanMemoryCompressor(config)
        self._tables: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        self.start_additions()

    def start_additions(self) -> None:
        """Set what is added to Wan2.1 so that it changes nothing."""
        for block in self.layers:
            nn.init.zeros_(block.memory_gate)
            if block.audio is not None:
                nn.init.zeros_(block.audio.o.weight)
                nn.init.zeros_(block.audio.o.bias)
        nn.init.zeros_(self.compressor.out.weight)
        nn.init.zeros_(self.compressor.out.bias)

    @property
    def layers(self) -> list[Block]:
        """`blocks`, typed."""
        return cast(list[Block], list(self.blocks))

    def table(self, name: str, device: torch.device,
              make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Positions on a device, made once (a CUDA graph may not copy from the host)."""
        key = (name, str(device))
        if key not in self._tables:
            cos, sin = make()
            self._tables[key] = (cos.to(device), sin.to(device))
        return self._tables[key]

    # In and out -----------------------------------------------------------------------------

    def embed(self, latents: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] -> tokens [B, F, n, width]."""
        patches = F.pixel_unshuffle(latents.flatten(0, 1), self.config.network.patch)
        tokens: Tensor = self.patch_embedding(patches.flatten(2).transpose(1, 2))
        return tokens.unflatten(0, latents.shape[:2])

    def modulate(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels [B, F] in [0, 1] -> embedding [B, F, width] and modulation [B, 6, F, 1,
        width] to which each block adds its table; both float32 whatever the weights are.

        Computed in the weights' dtype, as Wan2.1's bf16 releases run.
        """
        features = timestep_features(level.flatten(), self.config.network.frequency_width)
        embedded = self.time_embedding(features.to(self.head.weight.dtype))
        shared = self.time_projection(F.silu(embedded)).unflatten(-1, (6, -1))
        shared = shared.unflatten(0, level.shape).transpose(1, 2)[:, :, :, None]
        return embedded.unflatten(0, level.shape).float(), shared.float()

    def of_layer(self, layer: int, shared: Tensor) -> Tensor:
        """The modulation of one block, [B, 6, F, 1, width], from `modulate`'s."""
        return shared + self.layers[layer].modulation.float()[:, None, None]

    def velocity(self, x: Tensor, embedded: Tensor, height: int) -> Tensor:
        """Tokens [B, F, n, width] and time embedding [B, F or 1, width] -> [B, F, C, h, w]."""
        shift, scale = (embedded[:, :, None, None] + self.head_modulation.float()[:, None]
                        ).unbind(2)
        out = self.head((self.head_norm(x.float()) * (1 + scale) + shift).to(x.dtype))
        patch = self.config.network.patch
        out = out.unflatten(-1, (patch, patch, -1)).unflatten(2, (height // patch, -1))
        return out.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    # Conditions -----------------------------------------------------------------------------

    def text_tokens(self, text: Tensor) -> Tensor:
        """Text encoder states [B, n, text width] -> tokens [B, text_tokens, width], padded with
        zeros before they are embedded (Wan2.1 attends to the padding).

        Raises:
            ValueError: if they are too many or of another width.
        """
        n = self.config.network
        if text.shape[1] > n.text_tokens or text.shape[2] != n.text_width:
            raise ValueError(f'text states are {list(text.shape)}; this model takes up to '
                             f'{n.text_tokens} tokens of width {n.text_width}')
        embedded: Tensor = self.text_embedding(
            F.pad(text, (0, 0, 0, n.text_tokens - text.shape[1])))
        return embedded

    def text_cache(self, text: Tensor) -> list[KeysValues]:
        """Keys and values of a prompt in every layer, from text encoder states."""
        tokens = self.text_tokens(text)
        return [block.text.project(tokens) for block in self.layers]

    def audio_tokens(self, features: Tensor) -> Tensor:
        """Features [N, window, layers, width], one window for each of N latent frames -> tokens
        [N, tokens, token width].

        Raises:
            ValueError: if the model has no audio attention.
        """
        if self.audio_projector is None:
            raise ValueError('this model has no audio attention (audio.enabled is false)')
        tokens: Tensor = self.audio_projector(features)
        return tokens

    def audio_cache(self, features: Tensor) -> list[KeysValues]:
        """Keys and values of audio in every layer, [N, tokens, H, hw] each, of features as in
        `audio_tokens`."""
        tokens = self.audio_tokens(features)
        return [cast(CrossAttention, block.audio).project(tokens) for block in self.layers]

    # Passes ---------------------------------------------------------------------------------

    def forward(self, latents: Tensor, level: Tensor, text: Sequence[Source],
                audio: Sequence[Source] | None = None, mask: Tensor | None = None) -> Tensor:
        """All frames of a clip at once.

        Args:
            latents: [B, F, C, h, w] at noise ``level`` [B, F] in [0, 1].
            text: of `text_cache`, or `text_tokens` for each layer. audio: of `audio_cache` or
                `audio_tokens` with N = B · F, or None.
            mask: added to self-attention's scores [F · n, F · n]; None: every frame sees all.

        Returns:
            velocity [B, F, C, h, w].
        """
        frames, rows, columns = latents.shape[1], *(
            side // self.config.network.patch for side in latents.shape[-2:])
        cos, sin = self.table(f'clip of {frames}×{rows}×{columns}', latents.device,
                              lambda: chunk_table(self.config.network, range(frames), rows,
                                                  columns))

        def self_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
            return attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask), None

        embedded, shared = self.modulate(level)
        x = self.embed(latents)
        for index, block in enumerate(self.layers):
            x, _, _ = block(x, shared, self_attention, text[index],
                            None if audio is None else audio[index])
        return self.velocity(x, embedded, latents.shape[-2])
