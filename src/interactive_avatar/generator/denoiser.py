# SPDX-License-Identifier: Apache-2.0
"""Diffusion transformer of the compact model: one chunk attends to reference, memory and itself.

Block order as in InteractiveAvatar: self-attention → text cross-attention → audio cross-attention
→ FFN, per-latent-frame timestep modulation of self-attention and FFN (Wan2.1's scheme). Keys are
cached *before* rotation and rotated by the fixed position of the slot that holds them, so
positions never grow.

The same layers serve the stream (`chunk`, `reference`, `entry`) and training: `window` runs many
frames of many clips at once with exactly the stream's visibility, `clip` lets all frames of a clip
see each other (the bidirectional teacher and the critic of distillation).

Shapes: B streams, L layers, H heads of width hw, n tokens; keys and values are [B, L, H, n, hw].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.compressor import (
    MemoryCompressor,
    patchify,
    timestep_features,
    unpatchify,
)
from interactive_avatar.generator.config import BLINK_CHUNKS, DenoiserConfig, GeneratorConfig
from interactive_avatar.generator.positions import (
    cache_table,
    chunk_table,
    clip_table,
    entry_table,
)
from interactive_avatar.generator.refiner import TokenRefiner


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., n, hw]; cos and signed sin [n, hw] (see `positions`)."""
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([b, a], dim=-1) * sin).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width (Wan2.1's q/k norm), [..., *shape]."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            # One kernel; ONNX has it only from opset 23 on, and TensorRT on Jetsons not at all.
            return (F.rms_norm(x, x.shape[-1:], eps=1e-6) * self.weight).to(x.dtype)
        normed = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed * self.weight


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q [N, H, n, hw] over k, v [N, H, m, hw] -> [N, n, H · hw]; mask is added."""
    out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Queries from the chunk; keys and values made by `project` and kept by the caller."""

    def __init__(self, config: DenoiserConfig, source_width: int) -> None:
        super().__init__()
        width = config.width
        self.heads = (config.heads, config.head_width)
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(source_width, width)
        self.v = nn.Linear(source_width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = RMSNorm(width)
        self.norm_k = RMSNorm(width)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, H, m, hw] of source tokens [N, m, source_width]."""
        k = self.norm_k(self.k(source)).unflatten(-1, self.heads).transpose(1, 2)
        return k, self.v(source).unflatten(-1, self.heads).transpose(1, 2)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.norm_q(self.q(self.norm(x))).unflatten(-1, self.heads).transpose(1, 2)
        return x + self.o(attend(q, k, v, mask))


class Block(nn.Module):
    """One transformer layer, in pieces so that callers decide what self-attention sees.

    Modulation is [N, 6, width]: shift, 1 + scale and gate of self-attention, then of the FFN.
    """

    def __init__(self, config: DenoiserConfig, audio_width: int) -> None:
        super().__init__()
        width = config.width
        self.heads = (config.heads, config.head_width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_qk = RMSNorm(2, width)
        self.o = nn.Linear(width, width)
        self.text = CrossAttention(config, width)
        self.audio = CrossAttention(config, audio_width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.up = nn.Linear(width, config.ffn_width)
        self.down = nn.Linear(config.ffn_width, width)

    def project(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Normed q and k, not rotated, [N, 2, H, n, hw], and v [N, H, n, hw], of x [N, n, w]."""
        qkv = self.qkv(self.norm1(x) * m[:, 1:2] + m[:, 0:1]).unflatten(-1, (3, -1))
        qk = self.norm_qk(qkv[:, :, :2]).unflatten(-1, self.heads).permute(0, 2, 3, 1, 4)
        return qk, qkv[:, :, 2].unflatten(-1, self.heads).transpose(1, 2)

    def finish_attention(self, x: Tensor, attended: Tensor, m: Tensor) -> Tensor:
        """Output projection, gate and residual of self-attention."""
        return x + m[:, 2:3] * self.o(attended)

    def feed_forward(self, x: Tensor, m: Tensor) -> Tensor:
        """The modulated FFN with its residual."""
        h = self.norm2(x) * m[:, 4:5] + m[:, 3:4]
        return x + m[:, 5:6] * self.down(F.gelu(self.up(h), approximate='tanh'))


KeysValues = tuple[Tensor, Tensor]


def with_blink(prompts: KeysValues, blink: KeysValues | None) -> KeysValues:
    """Keys and values of prompts 2 × [N, H, n, hw] and after them those of a blink 2 × [H, m, hw],
    if there are any."""
    if blink is None:
        return prompts
    k, v = (torch.cat([own, rows.to(own.dtype).expand(len(own), -1, -1, -1)], 2)
            for own, rows in zip(prompts, blink, strict=True))
    return k, v


def unblinking(mask: Tensor, config: DenoiserConfig) -> Tensor:
    """Masks of prompts [..., text tokens] with those of a blink, which is not seen,
    [..., text rows]."""
    return F.pad(mask, (0, config.text_rows - config.text_tokens), value=float(MASKED))


def one_hot(index: Tensor, count: int) -> Tensor:
    """Rows that `picked` takes: int64 [B, n] -> bool [B, n, count]."""
    return index[..., None] == torch.arange(count, device=index.device)


def picked(rows: Tensor, source: Tensor) -> Tensor:
    """Rows of ``source`` [B · count, ...] for each of B, by ``rows`` [B, n, count] -> [B, n, ...].

    As a product of matrices, whose backward is one too: that of an index adds row by row, which
    took most of a training step on a GPU.
    """
    batch, _, count = rows.shape
    flat = source.unflatten(0, (batch, count)).flatten(2)
    return torch.bmm(rows.to(flat.dtype), flat).unflatten(2, source.shape[1:])


@dataclass
class Window:
    """A batch of clip windows for training; B clips, T target frames, Fc = T + 1 context frames.

    Context frame ``j`` is clip frame ``s + j - 2``, target ``i`` is clip frame ``s + i``, so that
    target ``i`` sees context ``i`` and ``i + 1`` as its adjacent queue. F = Fc + T.

    Attributes:
        context: [B, Fc, C, 16, 16] latents already mixed with noise at ``context_level``.
        context_level: [B, Fc] noise levels in [0, 1].
        previous: [B, F, C, 16, 16], for each frame the latent right before it.
        targets: [B, T, C, 16, 16] noised latents; target_level: [B, T].
        reference: [B, C, 16, 16].
        groups: [B, Gs + 6, group, C, 16, 16]; the last 6 are long-term entries.
        short_index: [F, 6] int64, short slot -> group for each frame.
        mask: [B, F, context tokens] float, 0 where visible, large negative where not.
        audio: [B, F, 12, audio width] tokens per frame.
        text: [B, P, n, text width]; text_index: [B, F] int64; text_mask: [B, P, n] float.
        long_index: [B, F, 6] int64, long slot -> group for each frame; the last six groups for
            every frame if None.
        kept_k, kept_v: [B, L, H, 2, 64, hw] keys (not rotated) and values that a stream has
            already made of the first two context frames; made anew if None.
        blink: [B, F] int64, which chunk of a blink each frame is, from 1; 0 for none.
            None: nobody blinks, and its keys and values are left out.
    """

    context: Tensor
    context_level: Tensor
    previous: Tensor
    targets: Tensor
    target_level: Tensor
    reference: Tensor
    groups: Tensor
    short_index: Tensor
    mask: Tensor
    audio: Tensor
    text: Tensor
    text_index: Tensor
    text_mask: Tensor
    long_index: Tensor | None = None
    kept_k: Tensor | None = None
    kept_v: Tensor | None = None
    blink: Tensor | None = None


@dataclass
class Clip:
    """A batch of clips that are denoised as a whole; B clips of T frames.

    Attributes:
        frames: [B, T, C, 16, 16] noised latents; level: [B, T].
        reference: [B, C, 16, 16].
        groups: [B, 12, group, C, 16, 16], memory entries in the order of the cache: long, short.
        mask: [B, reference and memory tokens] float, 0 where visible, large negative where not.
        audio: [B, T, 12, audio width] tokens per frame.
        text: [B, P, n, text width]; text_index: [B, T] int64; text_mask: [B, P, n] float.
    """

    frames: Tensor
    level: Tensor
    reference: Tensor
    groups: Tensor
    mask: Tensor
    audio: Tensor
    text: Tensor
    text_index: Tensor
    text_mask: Tensor


class Denoiser(nn.Module):
    """Velocity of flow matching, v = noise − x0 at x_t = (1 − t) x0 + t noise, for one chunk.

    Besides its keys in the cache, the latent right before the chunk enters the chunk's own tokens
    and the head, cell by cell: most of a chunk is what was there before, and attention alone
    copies too coarsely for pictures that must not flicker from chunk to chunk.
    """

    chunk_cos: Tensor
    chunk_sin: Tensor
    entry_cos: Tensor
    entry_sin: Tensor
    cache_cos: Tensor
    cache_sin: Tensor
    modulation_one: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        d, latent = config.denoiser, config.autoencoder
        patch_values = latent.latent_channels * d.patch ** 2
        self.patch_embedding = nn.Linear(patch_values, d.width)
        self.previous_embedding = nn.Linear(patch_values, d.width, bias=False)
        self.previous_head = nn.Linear(patch_values, patch_values, bias=False)
        self.time_embedding = nn.Sequential(
            nn.Linear(d.frequency_width, d.width), nn.SiLU(), nn.Linear(d.width, d.width))
        self.time_projection = nn.Linear(d.width, 6 * d.width)
        # Wan's per-block tables, kept together so that one addition makes all modulations.
        self.modulation = nn.Parameter(torch.randn(d.layers, 6, d.width) * d.width ** -0.5)
        self.text_embedding = nn.Sequential(
            nn.Linear(d.text_width, d.width), nn.GELU(approximate='tanh'),
            nn.Linear(d.width, d.width))
        self.refiner = TokenRefiner(d) if d.refiner_layers else None
        # Of a blink, layer by layer (prefix tuning, Li and Liang, arXiv 2101.00190).
        blink = (d.layers, d.heads, BLINK_CHUNKS * d.blink_rows, d.head_width)
        self.blink_k = nn.Parameter(torch.randn(blink)) if d.blink_rows else None
        self.blink_v = nn.Parameter(torch.zeros(blink)) if d.blink_rows else None
        blocks = [Block(d, config.audio.width) for _ in range(d.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.compressor = MemoryCompressor(config)
        self.head_norm = nn.LayerNorm(d.width, elementwise_affine=False)
        self.head_modulation = nn.Parameter(torch.randn(2, d.width) * d.width ** -0.5)
        self.head = nn.Linear(d.width, patch_values)
        self.kind_embedding = nn.Parameter(torch.zeros(2, d.width))
        one = torch.zeros(6, 1)
        one[1] = one[4] = 1.0
        self.register_buffer('modulation_one', one, persistent=False)
        for name, table in (('chunk', chunk_table(config)), ('entry', entry_table(config)),
                            ('cache', cache_table(config))):
            self.register_buffer(f'{name}_cos', torch.from_numpy(table[0]), persistent=False)
            self.register_buffer(f'{name}_sin', torch.from_numpy(table[1]), persistent=False)
        self._clip_kept: tuple[Tensor, Tensor] | None = None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.layers:
            # Cross-attention starts by changing little, so early training is self-attention's.
            nn.init.normal_(block.text.o.weight, std=0.01)
            nn.init.normal_(block.audio.o.weight, std=0.01)
        nn.init.normal_(self.time_projection.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        # A model trained without the latent before goes on from exactly what it knows.
        nn.init.zeros_(self.previous_embedding.weight)
        nn.init.zeros_(self.previous_head.weight)
        nn.init.zeros_(self.compressor.out.weight)
        if self.refiner is not None:
            self.refiner.begin()

    @property
    def layers(self) -> list[Block]:
        """`blocks`, typed."""
        return cast(list[Block], list(self.blocks))

    def time_modulation(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels [N] -> (embedding [N, width], modulations [N, L, 6, width])."""
        features = timestep_features(level, self.config.denoiser.frequency_width)
        embedded = self.time_embedding(features.to(self.head.weight.dtype))
        shared = self.time_projection(F.silu(embedded)).unflatten(-1, (6, -1))
        return embedded, shared[:, None] + (self.modulation + self.modulation_one)

    def velocity(self, x: Tensor, embedded: Tensor, before: Tensor | None) -> Tensor:
        """Tokens [N, 64, width] and patches [N, 64, C·patch²] of the latent before, if there is
        one, -> velocity [N, C, 16, 16]."""
        shift, scale = (embedded[:, None] + self.head_modulation).chunk(2, 1)
        out = self.head(self.head_norm(x) * (1 + scale) + shift)
        if before is not None:
            out = out + self.previous_head(before)
        return unpatchify(out, self.config.denoiser.patch, self.config.autoencoder.latent_px)

    def embed_text(self, text: Tensor) -> Tensor:
        """States of the text encoder [N, n, text width] as the text attention's source tokens,
        [N, n, width]."""
        refined = text if self.refiner is None else self.refiner(text)
        embedded: Tensor = self.text_embedding(refined)
        return embedded

    def text_cache(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a prompt in every layer, and after them those of a blink;
        [B, text tokens, text width] -> 2 × [B, L, H, text rows, hw].

        This is all that switching a prompt needs (Cache-Switching).
        """
        embedded = self.embed_text(text)
        pairs = [with_blink(block.text.project(embedded), self.blink_of(layer))
                 for layer, block in enumerate(self.layers)]
        return torch.stack([k for k, _ in pairs], 1), torch.stack([v for _, v in pairs], 1)

    def blink_of(self, layer: int) -> KeysValues | None:
        """A layer's keys and values of a blink, 2 × [H, blink rows of all its chunks, hw]."""
        if self.blink_k is None or self.blink_v is None:
            return None
        return self.blink_k[layer], self.blink_v[layer]

    def _blink_bias(self, phase: Tensor) -> Tensor:
        """What is added to the scores of a blink's keys, [N, 1, 1, rows], by ``phase`` [N]: which
        chunk of a blink it is, from 1; 0 for none."""
        rows = self.config.denoiser.blink_rows
        own = torch.arange(BLINK_CHUNKS * rows, device=phase.device) // rows + 1
        return torch.where(own == phase[:, None], 0.0, float(MASKED))[:, None, None]

    def audio_cache(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a chunk's audio tokens [B, 12, audio width], as `text_cache`."""
        pairs = [block.audio.project(audio) for block in self.layers]
        return torch.stack([k for k, _ in pairs], 1), torch.stack([v for _, v in pairs], 1)

    def chunk(self, latent: Tensor, level: Tensor, previous: Tensor, audio_k: Tensor,
              audio_v: Tensor, text_k: Tensor, text_v: Tensor, text_mask: Tensor,
              cache_k: Tensor, cache_v: Tensor,
              cache_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One forward for B streams: denoising, and with a finished latent the commit.

        Args:
            latent: [B, C, 16, 16] at noise level ``level`` [B].
            previous: [B, C, 16, 16], the finished latent before; the reference's at first.
            audio_k, audio_v, text_k, text_v: [B, L, H, n, hw]; text_mask: [B, n], added.
            cache_k: [B, L, H, 384, hw], rotated to its slots; cache_v; cache_mask: [B, 384].

        Returns:
            velocity [B, C, 16, 16]; keys (not rotated) and values of the chunk [B, L, H, 64, hw].
        """
        dtype = self.head.weight.dtype  # latents stay float32 where the weights do not
        before = patchify(previous.to(dtype), self.config.denoiser.patch)
        x = self.patch_embedding(patchify(latent.to(dtype), self.config.denoiser.patch))
        x = x + self.previous_embedding(before)
        embedded, modulations = self.time_modulation(level)
        own = torch.zeros_like(cache_mask[:, :1]).expand(-1, x.shape[1])
        mask = torch.cat([cache_mask, own], dim=1)[:, None, None]
        text_bias = text_mask[:, None, None]
        keys, values = [], []
        for i, block in enumerate(self.layers):
            x, k, v = self._chunk_layer(
                block, x, modulations[:, i], mask, text_bias, audio_k[:, i], audio_v[:, i],
                text_k[:, i], text_v[:, i], cache_k[:, i], cache_v[:, i])
            keys.append(k)
            values.append(v)
        return self.velocity(x, embedded, before), torch.stack(keys, 1), torch.stack(values, 1)

    def _chunk_layer(self, block: Block, x: Tensor, m: Tensor, mask: Tensor, text_bias: Tensor,
                     audio_k: Tensor, audio_v: Tensor, text_k: Tensor, text_v: Tensor,
                     cache_k: Tensor, cache_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A layer of `chunk`; returns the tokens for the next layer and this layer's keys (not
        rotated) and values."""
        qk, v = block.project(x, m)
        q, k = rotate(qk, self.chunk_cos, self.chunk_sin).unbind(1)
        attended = attend(q, torch.cat([cache_k, k], 2), torch.cat([cache_v, v], 2), mask)
        x = block.finish_attention(x, attended, m)
        x = block.text(x, text_k, text_v, text_bias)
        x = block.audio(x, audio_k, audio_v)
        return block.feed_forward(x, m), qk[:, 1], v

    def reference(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the reference picture [B, C, 16, 16] -> 2 × [B, L, H, 64, hw]."""
        x = patchify(latent, self.config.denoiser.patch)
        x = self.patch_embedding(x) + self.kind_embedding[0]
        _, modulations = self.time_modulation(torch.zeros_like(latent[:, 0, 0, 0]))
        keys, values = [], []
        for i, block in enumerate(self.layers):
            x, k, v = self._still_layer(block, x, modulations[:, i], None, None)
            keys.append(k)
            values.append(v)
        return torch.stack(keys, 1), torch.stack(values, 1)

    def entry(self, latents: Tensor, reference_k: Tensor,
              reference_v: Tensor) -> tuple[Tensor, Tensor]:
        """Compress a group of latents and run it through the layers as a memory entry.

        Args:
            latents: [B, group, C, 16, 16]. reference_k, reference_v: [B, L, H, 64, hw], the
                reference's, keys not rotated.

        Returns:
            keys (not rotated) and values 2 × [B, L, H, 16, hw].
        """
        x = self.compressor(latents, self.patch_embedding) + self.kind_embedding[1]
        _, modulations = self.time_modulation(torch.zeros_like(latents[:, 0, 0, 0, 0]))
        keys, values = [], []
        for i, block in enumerate(self.layers):
            x, k, v = self._still_layer(block, x, modulations[:, i], reference_k[:, i],
                                        reference_v[:, i])
            keys.append(k)
            values.append(v)
        return torch.stack(keys, 1), torch.stack(values, 1)

    def _still_layer(self, block: Block, x: Tensor, m: Tensor, reference_k: Tensor | None,
                     reference_v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """A layer of the reference or of a memory entry: no text, no audio, no other frames.

        Returns the tokens for the next layer and this layer's keys (not rotated) and values.
        """
        is_entry = reference_k is not None and reference_v is not None
        cos, sin = ((self.entry_cos, self.entry_sin) if is_entry
                    else (self.chunk_cos, self.chunk_sin))
        qk, v = block.project(x, m)
        q, k = rotate(qk, cos, sin).unbind(1)
        values = v
        if reference_k is not None and reference_v is not None:
            n = reference_k.shape[2]
            old = rotate(reference_k, self.cache_cos[:n], self.cache_sin[:n])
            k = torch.cat([old, k], 2)
            values = torch.cat([reference_v, v], 2)
        x = block.finish_attention(x, attend(q, k, values), m)
        return block.feed_forward(x, m), qk[:, 1], v

    def window(self, w: Window) -> Tensor:
        """Velocities of all targets of a training window, [B, T, C, 16, 16].

        Equal to running `chunk` frame by frame with the caches that the stream would hold.
        """
        patch = self.config.denoiser.patch
        batch, frames_c = w.context.shape[:2]
        frames_t = w.targets.shape[1]
        frames = frames_c + frames_t
        groups = w.groups.shape[1]
        ref = self.patch_embedding(patchify(w.reference, patch)) + self.kind_embedding[0]
        mem = self.compressor(w.groups.flatten(0, 1), self.patch_embedding)
        mem = mem + self.kind_embedding[1]
        latents = torch.cat([w.context, w.targets], 1).flatten(0, 1)
        before = patchify(w.previous.flatten(0, 1), patch)
        x = self.patch_embedding(patchify(latents, patch)) + self.previous_embedding(before)
        level = torch.cat([w.context_level, w.target_level], 1).flatten()
        embedded, modulations = self.time_modulation(level)
        _, still = self.time_modulation(torch.zeros_like(level[:1]))
        mask = F.pad(w.mask, (0, x.shape[1])).flatten(0, 1)[:, None, None].to(x.dtype)
        text = self.embed_text(w.text.flatten(0, 1)).unflatten(0, w.text.shape[:2])
        text_bias = torch.gather(w.text_mask, 1, w.text_index[..., None].expand(
            -1, -1, w.text_mask.shape[-1])).flatten(0, 1)[:, None, None].to(x.dtype)
        if w.blink is not None:
            text_bias = torch.cat([text_bias, self._blink_bias(w.blink.flatten()).to(x.dtype)], -1)
        text_rows = one_hot(w.text_index, text.shape[1])
        audio = w.audio.flatten(0, 1)
        slots = self._slots(w, groups)
        for i, block in enumerate(self.layers):
            kept = None if w.kept_k is None or w.kept_v is None else (w.kept_k[:, i],
                                                                      w.kept_v[:, i])
            ref, mem, x = self._window_layer(
                block, ref, mem, x, still[:, i], modulations[:, i], mask, text.flatten(0, 1),
                text_rows, text_bias, audio, slots, batch, frames_c, frames, groups, kept,
                None if w.blink is None else self.blink_of(i))
        x = x.unflatten(0, (batch, frames))[:, frames_c:].flatten(0, 1)
        embedded = embedded.unflatten(0, (batch, frames))[:, frames_c:].flatten(0, 1)
        before = before.unflatten(0, (batch, frames))[:, frames_c:].flatten(0, 1)
        return self.velocity(x, embedded, before).unflatten(0, (batch, frames_t))

    def _slots(self, w: Window, groups: int) -> Tensor:
        """Which group stands in each memory slot, long then short, as rows for `picked`;
        bool [B, F · 12, groups]."""
        batch, frames = w.text_index.shape
        device = w.short_index.device
        count = self.config.memory.long
        long = w.long_index
        if long is None:
            long = torch.arange(groups - count, groups, device=device).expand(batch, frames, -1)
        short = w.short_index.expand(batch, -1, -1)
        return one_hot(torch.cat([long, short], 2).flatten(1), groups)

    def _window_layer(self, block: Block, ref: Tensor, mem: Tensor, x: Tensor, still: Tensor,
                      m: Tensor, mask: Tensor, text: Tensor, text_rows: Tensor,
                      text_bias: Tensor, audio: Tensor, slots: Tensor, batch: int,
                      frames_c: int, frames: int, groups: int,
                      kept: KeysValues | None, blink: KeysValues | None
                      ) -> tuple[Tensor, Tensor, Tensor]:
        ref_next, ref_k, ref_v = self._still_layer(block, ref, still, None, None)
        mem_next, mem_k, mem_v = self._still_layer(
            block, mem, still, ref_k.repeat_interleave(groups, 0),
            ref_v.repeat_interleave(groups, 0))
        qk, v = block.project(x, m)

        def past(own: Tensor, memory: Tensor, reference: Tensor,
                 begun: Tensor | None) -> Tensor:
            """The cache of every frame, [B · F, H, 384, hw], in the order of the slots."""
            own = own.unflatten(0, (batch, frames))[:, :frames_c]
            if begun is not None:
                own = torch.cat([begun.transpose(1, 2).to(own.dtype), own[:, 2:]], 1)
            padded = F.pad(own, (0, 0, 0, 0, 0, 0, 2, 0))
            older = torch.cat([padded[:, :frames_c], own[:, :-1]], 1)
            newer = torch.cat([padded[:, 1:frames_c + 1], own[:, 1:]], 1)
            entries = picked(slots, memory).unflatten(1, (frames, -1))
            first = reference[:, None].expand(-1, frames, -1, -1, -1)
            return torch.cat([first, entries.transpose(2, 3).flatten(3, 4), older, newer],
                             3).flatten(0, 1)

        kept_k, kept_v = kept if kept is not None else (None, None)
        old_k = rotate(past(qk[:, 1], mem_k, ref_k, kept_k), self.cache_cos, self.cache_sin)
        q, k = rotate(qk, self.chunk_cos, self.chunk_sin).unbind(1)
        attended = attend(q, torch.cat([old_k, k], 2),
                          torch.cat([past(v, mem_v, ref_v, kept_v), v], 2), mask)
        x = block.finish_attention(x, attended, m)
        text_k, text_v = with_blink(block.text.project(text), blink)
        x = block.text(x, picked(text_rows, text_k).flatten(0, 1),
                       picked(text_rows, text_v).flatten(0, 1), text_bias)
        x = block.audio(x, *block.audio.project(audio))
        return ref_next, mem_next, block.feed_forward(x, m)

    def clip(self, c: Clip) -> Tensor:
        """Velocities of all frames of a clip, [B, T, C, 16, 16]; every frame sees every other,
        the reference and the memory entries.

        Frames stand at the times 0 … T - 1 after the cache's; no frame has the latent before as
        an input, because that latent is being made along with it.
        """
        patch = self.config.denoiser.patch
        batch, frames = c.frames.shape[:2]
        groups = c.groups.shape[1]
        ref = self.patch_embedding(patchify(c.reference, patch)) + self.kind_embedding[0]
        mem = self.compressor(c.groups.flatten(0, 1), self.patch_embedding)
        mem = mem + self.kind_embedding[1]
        x = self.patch_embedding(patchify(c.frames.flatten(0, 1), patch))
        embedded, modulations = self.time_modulation(c.level.flatten())
        _, still = self.time_modulation(torch.zeros_like(c.level[:1, 0]))
        mask = F.pad(c.mask, (0, frames * x.shape[1]))[:, None, None].to(x.dtype)
        text = self.embed_text(c.text.flatten(0, 1)).unflatten(0, c.text.shape[:2])
        text_bias = torch.gather(c.text_mask, 1, c.text_index[..., None].expand(
            -1, -1, c.text_mask.shape[-1])).flatten(0, 1)[:, None, None].to(x.dtype)
        text_rows = one_hot(c.text_index, text.shape[1])
        cos, sin = self._clip_rotation(frames)
        for i, block in enumerate(self.layers):
            ref, mem, x = self._clip_layer(
                block, ref, mem, x, still[:, i], modulations[:, i], mask, text.flatten(0, 1),
                text_rows, text_bias, c.audio.flatten(0, 1), cos, sin, batch, frames, groups)
        return self.velocity(x, embedded, None).unflatten(0, (batch, frames))

    def _clip_rotation(self, frames: int) -> tuple[Tensor, Tensor]:
        """`clip_table` as tensors beside the other tables; kept for the length used last."""
        kept = self._clip_kept
        if kept is None or kept[0].shape[0] != frames * self.config.chunk_tokens \
                or kept[0].device != self.chunk_cos.device:
            cos, sin = clip_table(self.config, frames)
            kept = (torch.from_numpy(cos).to(self.chunk_cos),
                    torch.from_numpy(sin).to(self.chunk_sin))
            self._clip_kept = kept
        return kept

    def _clip_layer(self, block: Block, ref: Tensor, mem: Tensor, x: Tensor, still: Tensor,
                    m: Tensor, mask: Tensor, text: Tensor, text_rows: Tensor, text_bias: Tensor,
                    audio: Tensor, cos: Tensor, sin: Tensor, batch: int, frames: int,
                    groups: int) -> tuple[Tensor, Tensor, Tensor]:
        ref_next, ref_k, ref_v = self._still_layer(block, ref, still, None, None)
        mem_next, mem_k, mem_v = self._still_layer(
            block, mem, still, ref_k.repeat_interleave(groups, 0),
            ref_v.repeat_interleave(groups, 0))
        qk, v = block.project(x, m)

        def past(memory: Tensor, reference: Tensor) -> Tensor:
            """Reference and memory entries of every clip, [B, H, 64 + 12 · 16, hw]."""
            entries = memory.unflatten(0, (batch, groups)).transpose(1, 2).flatten(2, 3)
            return torch.cat([reference, entries], 2)

        def together(own: Tensor) -> Tensor:
            """[B · T, H, 64, hw] -> [B, H, T · 64, hw]."""
            return own.unflatten(0, (batch, frames)).transpose(1, 2).flatten(2, 3)

        old_k = past(mem_k, ref_k)
        old_k = rotate(old_k, self.cache_cos[:old_k.shape[2]], self.cache_sin[:old_k.shape[2]])
        q, k = (rotate(together(part), cos, sin) for part in qk.unbind(1))
        attended = attend(q, torch.cat([old_k, k], 2),
                          torch.cat([past(mem_v, ref_v), together(v)], 2), mask)
        x = block.finish_attention(x, attended.unflatten(1, (frames, -1)).flatten(0, 1), m)
        text_k, text_v = block.text.project(text)
        x = block.text(x, picked(text_rows, text_k).flatten(0, 1),
                       picked(text_rows, text_v).flatten(0, 1), text_bias)
        x = block.audio(x, *block.audio.project(audio))
        return ref_next, mem_next, block.feed_forward(x, m)
