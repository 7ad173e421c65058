# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and types of every graph of a model, from its config alone.

Export writes graphs that follow these, the manifest records them, and each backend checks what it
loads against them, so that a graph of another model is named before it runs. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from interactive_avatar.generator.config import GeneratorConfig

STREAM_GRAPHS: Final = ('encode_audio', 'encode_image', 'encode_text', 'embed_reference',
                        'denoise', 'compress', 'decode')
"""Graphs that hold weights; every backend runs these."""

DEVICE_GRAPHS: Final = ('sample_step', 'push_adjacent', 'push_memory')
"""Graphs without weights that keep sampler and caches on a device (TensorRT)."""


INT8_SUFFIX: Final = '.int8'
"""Ends the name of a graph's variant for CPUs, which the onnx backend takes where there is one."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: NumPy name of its type, and its fixed shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f'{self.dtype} {list(self.shape)}'


@dataclass(frozen=True)
class GraphSignature:
    """Inputs and outputs of a graph by name, in order."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: {'inputs': {name: [type, shape]}, 'outputs': ...}."""
        return {side: {name: [spec.dtype, list(spec.shape)] for name, spec in tensors.items()}
                for side, tensors in (('inputs', self.inputs), ('outputs', self.outputs))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GraphSignature:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: on another form.
        """
        sides = [{str(name): TensorSpec(str(dtype), tuple(int(n) for n in shape))
                  for name, (dtype, shape) in values[side].items()}
                 for side in ('inputs', 'outputs')]
        return cls(*sides)

    def difference(self, found: GraphSignature) -> str:
        """The first thing in which ``found`` differs from this, as a sentence; empty if none."""
        for side, own, other in (('input', self.inputs, found.inputs),
                                 ('output', self.outputs, found.outputs)):
            for name in own:
                if name not in other:
                    return f'it has no {side} {name!r}'
                if own[name] != other[name]:
                    return f'its {side} {name!r} is {other[name]} instead of {own[name]}'
            for name in other:
                if name not in own:
                    return f'it has an {side} {name!r} that is not known'
        return ''


LAYERED: Final = ('cache_k', 'cache_v')
"""Inputs that a CPU's variant takes layer by layer, because cutting them up would copy them."""


def cpu_signature(signature: GraphSignature) -> GraphSignature:
    """What a graph's variant for CPUs takes and gives: `LAYERED` inputs [1, L, ...] are L inputs
    ``name.layer`` [...]."""
    inputs: dict[str, TensorSpec] = {}
    for name, spec in signature.inputs.items():
        if name in LAYERED:
            inputs |= {f'{name}.{layer}': TensorSpec(spec.dtype, spec.shape[2:])
                       for layer in range(spec.shape[1])}
        else:
            inputs[name] = spec
    return GraphSignature(inputs, signature.outputs)


def graph_signatures(config: GeneratorConfig) -> dict[str, GraphSignature]:
    """The signature of every graph, by name."""
    a, d, m = config.autoencoder, config.denoiser, config.memory
    latent = TensorSpec('float32', (1, a.latent_channels, a.latent_px, a.latent_px))
    frames = TensorSpec('uint8', (1, a.frames, a.picture_px, a.picture_px, 3))
    picture = TensorSpec('uint8', (1, a.picture_px, a.picture_px, 3))
    scalar = TensorSpec('float32', (1,))

    def kv(tokens: int) -> TensorSpec:
        return TensorSpec('float32', (1, d.layers, d.heads, tokens, d.head_width))

    def wide(*shape: int) -> TensorSpec:
        return TensorSpec('float32', (1, *shape))

    chunk, entry, context = kv(config.chunk_tokens), kv(m.entry_tokens), kv(config.context_tokens)
    cache_mask = wide(config.context_tokens)
    cache = {'cache_k': context, 'cache_v': context, 'cache_mask': cache_mask}
    pushed = {'next_k': context, 'next_rotated': context, 'next_v': context,
              'next_mask': cache_mask}
    return {
        'encode_audio': GraphSignature(
            {'mel': wide(config.audio.window_mels, config.audio.mel_bands)},
            {'audio_k': kv(config.audio.tokens), 'audio_v': kv(config.audio.tokens)}),
        'encode_image': GraphSignature({'frames': frames}, {'latent': latent}),
        'encode_text': GraphSignature(
            {'text': wide(d.text_tokens, d.text_width)},
            {'text_k': kv(d.text_rows), 'text_v': kv(d.text_rows)}),
        'embed_reference': GraphSignature({'latent': latent}, {'k': chunk, 'v': chunk}),
        'denoise': GraphSignature(
            {'latent': latent, 'level': scalar, 'previous': latent,
             'audio_k': kv(config.audio.tokens), 'audio_v': kv(config.audio.tokens),
             'text_k': kv(d.text_rows), 'text_v': kv(d.text_rows),
             'text_mask': wide(d.text_rows), **cache},
            {'velocity': latent, 'k': chunk, 'v': chunk}),
        'compress': GraphSignature(
            {'latents': wide(m.group, *latent.shape[1:]), 'reference_k': chunk,
             'reference_v': chunk}, {'k': entry, 'v': entry}),
        'decode': GraphSignature(
            {'latent': latent, 'previous': latent, 'reference': latent, 'last': picture,
             'picture': picture}, {'frames': frames}),
        'sample_step': GraphSignature(
            {'latent': latent, 'velocity': latent, 'noise': latent, 'level': scalar,
             'next_level': scalar}, {'clean': latent, 'mixed': latent}),
        'push_adjacent': GraphSignature({**cache, 'k': chunk, 'v': chunk}, pushed),
        'push_memory': GraphSignature(
            {**cache, 'k': entry, 'v': entry, 'long_slot': wide(m.long)}, pushed),
    }
