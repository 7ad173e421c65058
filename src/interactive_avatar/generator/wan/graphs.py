# SPDX-License-Identifier: Apache-2.0
"""A wan model as graphs of fixed shapes, caches as inputs and outputs: what TensorRT is given.

The whole transformer is more than one graph may hold and most machines can compile, so its layers
come in runs of a few, which hand the tokens on. Whatever calls them keeps the caches, rotates
their keys once per block, and steps the sampler, as `runner` and `backend` do. Every module here
takes float32 and holds the network's own parameters under the network's own names. A reference is
embedded as one of a block's latents.

| graph | does |
|---|---|
| ``encode_text``, ``encode_audio`` | a prompt, sound: keys and values in every layer |
| ``embed``, ``time``, ``head`` | into tokens, a level's modulations, out to a velocity |
| ``layers_A_B`` | layers A to B - 1 of a block of latents |
| ``reference_A_B``, ``entry_A_B`` | the same of the reference picture and of a memory entry |
| ``compress`` | a group of latents to an entry's tokens |
| ``decode_first``, ``decode`` | one latent to its frames |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interactive_avatar.generator.signatures import GraphSignature, TensorSpec
from interactive_avatar.generator.wan.config import WanConfig
from interactive_avatar.generator.wan.network import CrossAttention, WanTransformer, attend
from interactive_avatar.generator.wan.rope import (
    cache_times,
    chunk_table,
    entry_slots_table,
    rotate,
)
from interactive_avatar.generator.wan.runner import close_layer
from interactive_avatar.generator.wan.vae import DecoderState, StreamingDecoder, enter
from interactive_avatar.media.clock import FRAMES_PER_CHUNK

DECODER_GRAPHS = ('decode_first', 'decode')


def runs(config: WanConfig, layers_per_graph: int) -> list[tuple[int, int]]:
    """First layer and the one after the last of each run.

    Raises:
        ValueError: if ``layers_per_graph`` is not positive.
    """
    if layers_per_graph < 1:
        raise ValueError(f'{layers_per_graph} layers per graph: give 1 or more')
    count = config.network.layers
    return [(first, min(first + layers_per_graph, count))
            for first in range(0, count, layers_per_graph)]


def graph_names(config: WanConfig, layers_per_graph: int) -> list[str]:
    """Names of all graphs of a model, in the order in which a stream first needs them."""
    spans = [f'{first:02d}_{end:02d}' for first, end in runs(config, layers_per_graph)]
    audio = ['encode_audio'] if config.audio.enabled else []
    return ['encode_text', *audio, 'embed', 'time', *(f'reference_{s}' for s in spans),
            *(f'layers_{s}' for s in spans), 'head', 'compress', *(f'entry_{s}' for s in spans),
            *DECODER_GRAPHS]


class _Projection(nn.Module):
    """The part of a `CrossAttention` that makes keys and values."""

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.k, self.v, self.norm_k = attention.k, attention.v, attention.norm_k
        self.heads = attention.heads

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        k = self.norm_k(self.k(source)).unflatten(-1, self.heads)
        return k, self.v(source).unflatten(-1, self.heads)


class _Holder(nn.Module):
    """Modules and parameters under their names."""

    def __init__(self, **members: Any) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)


def _numbered(members: Sequence[nn.Module], first: int = 0) -> nn.ModuleDict:
    return nn.ModuleDict({str(first + index): member for index, member in enumerate(members)})


def _members(numbered: nn.ModuleDict) -> list[Any]:
    """In order; what they hold is known to who put them there."""
    return list(numbered.values())


class _EncodeText(nn.Module):
    def __init__(self, network: WanTransformer) -> None:
        super().__init__()
        self.text_embedding = network.text_embedding
        self.blocks = _numbered([_Holder(text=_Projection(b.text)) for b in network.layers])

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.text_embedding(states)
        pairs = [block.text(tokens) for block in _members(self.blocks)]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])


class _EncodeAudio(nn.Module):
    def __init__(self, network: WanTransformer) -> None:
        super().__init__()
        self.audio_projector = network.audio_projector
        self.blocks = _numbered([_Holder(audio=_Projection(b.audio)) for b in network.layers
                                 if b.audio is not None])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        assert self.audio_projector is not None
        tokens = self.audio_projector(features)
        pairs = [block.audio(tokens) for block in _members(self.blocks)]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])


class _Embed(nn.Module):
    def __init__(self, network: WanTransformer) -> None:
        super().__init__()
        self.patch_embedding = network.patch_embedding
        self._embed = network.embed

    def forward(self, latents: Tensor) -> Tensor:
        return self._embed(latents)


class _Time(nn.Module):
    def __init__(self, network: WanTransformer) -> None:
        super().__init__()
        self.time_embedding = network.time_embedding
        self.time_projection = network.time_projection
        # `modulate` reads the head's dtype.
        self.head = network.head
        self.blocks = _numbered([_Holder(modulation=b.modulation) for b in network.layers])
        self._modulate = network.modulate

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        embedded, shared = self._modulate(level)
        tables = torch.stack([block.modulation for block in _members(self.blocks)])
        return embedded, shared + tables[:, None, :, None, None]


class _Head(nn.Module):
    def __init__(self, network: WanTransformer) -> None:
        super().__init__()
        self.head, self.head_norm = network.head, network.head_norm
        self.head_modulation = network.head_modulation
        self._velocity, self._height = network.velocity, network.config.latent_px

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        return self._velocity(x, embedded, self._height)


class _Layers(nn.Module):
    """A run of layers of a block of latents."""

    def __init__(self, network: WanTransformer, first: int, end: int) -> None:
        super().__init__()
        c = network.config
        self.blocks = _numbered(network.layers[first:end], first)
        self.cos, self.sin = chunk_table(c.network, range(c.chunk_latents), c.grid_side,
                                         c.grid_side)

    def forward(self, x: Tensor, modulation: Tensor, frames_k: Tensor, frames_v: Tensor,
                entries_k: Tensor, entries_v: Tensor, text_k: Tensor, text_v: Tensor,
                *audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = [], []
        for i, block in enumerate(_members(self.blocks)):
            m = modulation[i]
            q, k, v = block.project(x, m)
            keys.append(k)
            values.append(v)
            q = rotate(q, self.cos, self.sin)
            attended = attend(q, torch.cat([rotate(k, self.cos, self.sin), frames_k[i]], 1),
                              torch.cat([v, frames_v[i]], 1))
            remembered = attend(q, entries_k[i], entries_v[i])
            x = close_layer(block, x, m, attended, remembered, (text_k[i], text_v[i]),
                            (audio[0][i], audio[1][i]) if audio else None)
        return x, torch.stack(keys), torch.stack(values)


class _Still(nn.Module):
    """A run of layers of the reference, or of a memory entry, which sees the reference."""

    def __init__(self, network: WanTransformer, first: int, end: int, entry: bool) -> None:
        super().__init__()
        c, side = network.config, network.config.grid_side
        self.blocks = _numbered(network.layers[first:end], first)
        self.cos, self.sin = (entry_slots_table(c, 0.0) if entry
                              else chunk_table(c.network, [0], side, side))
        self.before = chunk_table(c.network, cache_times(c)['reference'], side, side)

    def forward(self, x: Tensor, modulation: Tensor, text_k: Tensor, text_v: Tensor,
                *reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = [], []
        for i, block in enumerate(_members(self.blocks)):
            m = modulation[i]
            q, k, v = block.project(x, m)
            keys.append(k)
            values.append(v)
            k = rotate(k, self.cos, self.sin)
            if reference:
                k = torch.cat([rotate(reference[0][i], *self.before), k], 1)
                v = torch.cat([reference[1][i], v], 1)
            attended = attend(rotate(q, self.cos, self.sin), k, v)
            x = close_layer(block, x, m, attended, None, (text_k[i], text_v[i]), None)
        return x, torch.stack(keys), torch.stack(values)


class _Compress(nn.Module):
    def __init__(self, network: WanTransformer) -> None:
        super().__init__()
        self.compressor, self.patch_embedding = network.compressor, network.patch_embedding
        self._embed = network.embed

    def forward(self, latents: Tensor) -> Tensor:
        tokens: Tensor = self.compressor(latents, self._embed)
        return tokens[:, None]


class _TracedState(DecoderState):
    """A decoder's memory that is read from tensors and written beside them."""

    def __init__(self, kept: dict[str, Tensor]) -> None:
        super().__init__()
        self.started = True
        self._kept = kept
        self.names = {id(value): name for name, value in kept.items()}
        self.after: dict[str, Tensor] = {}

    def keep(self, name: str, frames: Tensor) -> None:
        """See `DecoderState.keep`."""
        self.after[name] = frames


class _Decode(nn.Module):
    """One latent to its frames, uint8; the first latent of a stream makes one frame, others four.

    What the convolutions remember goes in and comes out, in the order of `decoder_caches`; what
    the first latent does not reach comes out as it went in.
    """

    def __init__(self, decoder: StreamingDecoder, names: Sequence[str], first: bool) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = decoder.decoder, decoder.post_quant_conv
        self._whole = [decoder]  # in a list, so that its parameters have one name
        self._names, self._first = list(names), first

    def forward(self, latent: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        whole = self._whole[0]
        state = _TracedState(dict(zip(self._names, kept, strict=True)))

        def entering(y: Tensor, bias: Tensor, added: Tensor | None, gamma: Tensor,
                     before: Tensor) -> tuple[Tensor, Tensor]:
            # `enter` moves what it is given on, which a traced input cannot be.
            x, padded = enter(y, bias, added, gamma, before.clone())
            state.keep(state.names[id(before)], padded[-2:])
            return x, padded

        fused = whole._enter, whole._enter_only
        whole._enter = entering
        whole._enter_only = lambda y, bias, gamma, before: entering(
            y, bias, None, gamma, before)[1]
        try:
            frames = whole.features(latent, state, self._first)
        finally:
            whole._enter, whole._enter_only = fused
        pixels = (frames.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
        # A graph may not give an input out as it is.
        return pixels, *(state.after[name] if name in state.after else before * 1.0
                         for name, before in zip(self._names, kept, strict=True))


def decoder_caches(decoder: StreamingDecoder, config: WanConfig) -> dict[str, tuple[int, ...]]:
    """Shape of what each causal convolution remembers, [2, H, W, C], by its name in the state."""
    with torch.device('meta'):
        shadow = StreamingDecoder(decoder.config)
        state = DecoderState()
        latent = torch.zeros((1, *config.latent_shape))
        shadow.features(latent, state, True)
        shadow.features(latent, state, False)
    return {name: tuple(kept.shape) for name, kept in state._kept.items()}


def wan_graph(name: str, network: WanTransformer, decoder: StreamingDecoder | None = None
              ) -> nn.Module:
    """The module of a graph.

    Raises:
        KeyError: if there is no graph of this name.
    """
    plain: dict[str, Callable[[WanTransformer], nn.Module]] = {
        'encode_text': _EncodeText, 'encode_audio': _EncodeAudio, 'embed': _Embed,
        'time': _Time, 'head': _Head, 'compress': _Compress}
    if name in plain:
        return plain[name](network)
    if name in DECODER_GRAPHS and decoder is not None:
        return _Decode(decoder, list(decoder_caches(decoder, network.config)),
                       name == 'decode_first')
    kind, *span = name.split('_')
    if kind not in ('layers', 'reference', 'entry') or len(span) != 2:
        raise KeyError(f'there is no graph {name!r}')
    first, end = int(span[0]), int(span[1])
    if kind == 'layers':
        return _Layers(network, first, end)
    return _Still(network, first, end, kind == 'entry')


def wan_signature(name: str, config: WanConfig,
                  decoder: StreamingDecoder | None = None) -> GraphSignature:
    """Inputs and outputs of a graph."""
    n, a, m = config.network, config.audio, config.memory
    heads = (n.heads, n.head_width)

    def real(*shape: int) -> TensorSpec:
        return TensorSpec('float32', tuple(shape))

    def pair(prefix: str, *shape: int) -> dict[str, TensorSpec]:
        return {f'{prefix}_k': real(*shape, *heads), f'{prefix}_v': real(*shape, *heads)}

    def outputs(prefix: str, *shape: int) -> dict[str, TensorSpec]:
        return {f'{prefix}_k_out': real(*shape, *heads), f'{prefix}_v_out': real(*shape, *heads)}

    block = (1, config.chunk_latents, config.frame_tokens, n.width)
    velocity = (1, config.chunk_latents, *config.latent_shape)
    entry = (1, 1, m.entry_tokens, n.width)
    window = FRAMES_PER_CHUNK + 2 * a.margin_frames
    if name == 'encode_text':
        return GraphSignature({'states': real(1, n.text_tokens, n.text_width)},
                              outputs('text', n.layers, 1, n.text_tokens))
    if name == 'encode_audio':
        return GraphSignature(
            {'features': real(config.chunk_latents, window, a.feature_layers, a.feature_width)},
            outputs('audio', n.layers, config.chunk_latents, a.tokens))
    if name == 'embed':
        return GraphSignature({'latents': real(*velocity)}, {'x_out': real(*block)})
    if name == 'time':
        return GraphSignature({'level': real(1, 1)}, {
            'embedded': real(1, 1, n.width),
            'modulation': real(n.layers, 1, 6, 1, 1, n.width)})
    if name == 'head':
        return GraphSignature({'x': real(*block), 'embedded': real(1, 1, n.width)},
                              {'velocity': real(*velocity)})
    if name == 'compress':
        return GraphSignature({'latents': real(1, m.group, *config.latent_shape)},
                              {'x_out': real(*entry)})
    if name in DECODER_GRAPHS:
        assert decoder is not None
        kept = {f'kept_{key}': real(*shape)
                for key, shape in decoder_caches(decoder, config).items()}
        frames = (1 if name == 'decode_first' else FRAMES_PER_CHUNK, config.picture_px,
                  config.picture_px, 3)
        return GraphSignature({'latent': real(1, *config.latent_shape), **kept}, {
            'frames': TensorSpec('uint8', frames),
            **{f'{key}_out': spec for key, spec in kept.items()}})
    kind, first, end = name.split('_')
    count = int(end) - int(first)
    modulation = {'modulation': real(count, 1, 6, 1, 1, n.width)}
    text = pair('text', count, 1, n.text_tokens)
    if kind == 'layers':
        sound = pair('audio', count, config.chunk_latents, a.tokens) if a.enabled else {}
        return GraphSignature({
            'x': real(*block), **modulation,
            **pair('frames', count, 1, (1 + m.adjacent) * config.frame_tokens),
            **pair('entries', count, 1, (m.short + m.long) * m.entry_tokens), **text, **sound},
            {'x_out': real(*block), **outputs('own', count, 1, config.block_tokens)})
    tokens = m.entry_tokens if kind == 'entry' else config.frame_tokens
    shape = (1, 1, tokens, n.width)
    seen = pair('reference', count, 1, config.frame_tokens) if kind == 'entry' else {}
    return GraphSignature({'x': real(*shape), **modulation, **text, **seen},
                          {'x_out': real(*shape), **outputs('own', count, 1, tokens)})

