# SPDX-License-Identifier: Apache-2.0
"""Export of every network to ONNX graphs of fixed shapes that share one weights file.

The graphs hold no weights: their initialisers point into ``model.safetensors`` by
offset, as ONNX external data, and are scaled to float32 in the graph, where a runtime folds
that at load. So denoising and commit, compression and reference share one copy on disk.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from interactive_avatar.generator.autoencoder import Sight, as_input, as_pixels
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import CONFIG_NAME, WEIGHTS_NAME, write_manifest
from interactive_avatar.generator.networks import SCALE_SUFFIX, Generator

OPSET = 18


class _EncodeImage(nn.Module):
    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.autoencoder = g.autoencoder

    def forward(self, frames: Tensor) -> Tensor:
        latent: Tensor = self.autoencoder.encode(as_input(frames))
        return latent


class _Decode(nn.Module):
    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.autoencoder = g.autoencoder

    def forward(self, latent: Tensor, previous: Tensor, reference: Tensor, last: Tensor,
                picture: Tensor) -> Tensor:
        x = self.autoencoder.decode(latent, Sight(previous, as_input(last), reference,
                                                  as_input(picture)))
        return as_pixels(x)


class _EncodeAudio(nn.Module):
    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.audio, self.denoiser = g.audio, g.denoiser

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        keys_values: tuple[Tensor, Tensor] = self.denoiser.audio_cache(self.audio(mel))
        return keys_values


class _Denoiser(nn.Module):
    def __init__(self, g: Generator, method: str) -> None:
        super().__init__()
        self.denoiser = g.denoiser
        self.method = method

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.denoiser, self.method)(*inputs)


def graph_inputs(config: GeneratorConfig) -> dict[str, dict[str, Tensor]]:
    """Example inputs of every graph, by name; shapes are fixed."""
    a, d, m = config.autoencoder, config.denoiser, config.memory
    latent = torch.randn(1, a.latent_channels, a.latent_px, a.latent_px)
    frames = torch.zeros(1, a.frames, a.picture_px, a.picture_px, 3, dtype=torch.uint8)

    def kv(tokens: int) -> Tensor:
        return torch.randn(1, d.layers, d.heads, tokens, d.head_width)

    return {
        'encode_audio': {'mel': torch.randn(1, config.audio.window_mels, config.audio.mel_bands)},
        'encode_image': {'frames': frames},
        'encode_text': {'text': torch.randn(1, d.text_tokens, d.text_width)},
        'embed_reference': {'latent': latent},
        'denoise': {
            'latent': latent, 'level': torch.ones(1), 'previous': torch.randn_like(latent),
            'audio_k': kv(config.audio.tokens), 'audio_v': kv(config.audio.tokens),
            'text_k': kv(d.text_tokens), 'text_v': kv(d.text_tokens),
            'text_mask': torch.zeros(1, d.text_tokens),
            'cache_k': kv(config.context_tokens), 'cache_v': kv(config.context_tokens),
            'cache_mask': torch.zeros(1, config.context_tokens)},
        'compress': {'latents': latent[:, None].repeat(1, m.group, 1, 1, 1),
                     'reference_k': kv(config.chunk_tokens),
                     'reference_v': kv(config.chunk_tokens)},
        'decode': {'latent': latent, 'previous': torch.randn_like(latent),
                   'reference': torch.randn_like(latent), 'last': frames[:, 0],
                   'picture': frames[:, 1]},
    }


GRAPH_OUTPUTS = {
    'encode_audio': ['audio_k', 'audio_v'], 'encode_image': ['latent'],
    'encode_text': ['text_k', 'text_v'],
    'embed_reference': ['k', 'v'], 'denoise': ['velocity', 'k', 'v'], 'compress': ['k', 'v'],
    'decode': ['frames']}


def graph_module(generator: Generator, name: str) -> nn.Module:
    """The torch module whose forward is the graph ``name``."""
    if name == 'encode_image':
        return _EncodeImage(generator)
    if name == 'decode':
        return _Decode(generator)
    if name == 'encode_audio':
        return _EncodeAudio(generator)
    method = {'encode_text': 'text_cache', 'embed_reference': 'reference', 'denoise': 'chunk',
              'compress': 'entry'}[name]
    return _Denoiser(generator, method)


def export(generator: Generator, root: Path, note: dict[str, object] | None = None) -> None:
    """Write config, weights, graphs and manifest of ``generator`` to the directory ``root``.

    ``denoise.int8.onnx`` is the same network with its matrix products in 8-bit integers
    (activations quantised per tensor at run time); it reads the same weights file.
    """
    root.mkdir(parents=True, exist_ok=True)
    generator = generator.float().cpu().eval()
    _set_equal_tensors_apart(generator)
    (root / CONFIG_NAME).write_text(generator.config.to_json() + '\n')
    generator.save(root / WEIGHTS_NAME)
    offsets = safetensors_offsets(root / WEIGHTS_NAME)
    for name, inputs in graph_inputs(generator.config).items():
        buffer = io.BytesIO()
        with torch.no_grad():
            torch.onnx.export(
                graph_module(generator, name), tuple(inputs.values()),
                buffer,  # type: ignore[arg-type]
                input_names=list(inputs), output_names=GRAPH_OUTPUTS[name],
                opset_version=OPSET, do_constant_folding=False, dynamo=False)
        for suffix in ('', '.int8') if name == 'denoise' else ('',):
            model = onnx.load_from_string(buffer.getvalue())
            _point_weights(model, offsets, integer_products=suffix == '.int8')
            model.producer_name, model.producer_version = 'interactive_avatar', ''
            onnx.save_model(model, str(root / f'{name}{suffix}.onnx'))
    write_manifest(root, note)


def _set_equal_tensors_apart(generator: Generator) -> None:
    """Nudge one value of weights that are equal bit for bit.

    The exporter merges equal tensors under one name. Trained weights never are equal; norms of an
    untrained model are.
    """
    seen: set[bytes] = set()
    with torch.no_grad():
        for parameter in generator.state_dict().values():
            flat = parameter.view(-1)
            while (key := flat.numpy().tobytes()) in seen:
                flat[0] += 2.0 ** -12
            seen.add(key)


def safetensors_offsets(path: Path) -> dict[str, tuple[str, int, int, list[int]]]:
    """Tensor name -> (dtype, offset in the file, bytes, shape)."""
    with path.open('rb') as stream:
        (length,) = struct.unpack('<Q', stream.read(8))
        header = json.loads(stream.read(length))
    header.pop('__metadata__', None)
    base = 8 + length
    return {name: (item['dtype'], base + item['data_offsets'][0],
                   item['data_offsets'][1] - item['data_offsets'][0], item['shape'])
            for name, item in header.items()}


ONNX_TYPES = {'F16': onnx.TensorProto.FLOAT16, 'F32': onnx.TensorProto.FLOAT,
              'I8': onnx.TensorProto.INT8}


def external_tensor(name: str, item: tuple[str, int, int, list[int]]) -> Any:
    """A tensor of the weights file, by reference; ``item`` from `safetensors_offsets`."""
    dtype, offset, length, shape = item
    tensor = onnx.TensorProto(name=name, dims=shape, data_type=ONNX_TYPES[dtype],
                              data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (('location', WEIGHTS_NAME), ('offset', offset), ('length', length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _point_weights(model: Any, offsets: dict[str, tuple[str, int, int, list[int]]],
                   integer_products: bool = False) -> None:
    """Replace initialisers that are weights by external data, dequantised or cast in the graph.

    With ``integer_products``, products whose right side is a quantised matrix become
    DynamicQuantizeLinear → MatMulInteger → scale, and read the bytes as they are.
    """
    node = onnx.helper.make_node
    initializers, prologue = [], []
    quantised: set[str] = set()
    for initializer in model.graph.initializer:
        name = initializer.name
        if name not in offsets:
            initializers.append(initializer)
            continue
        scale_name = name + SCALE_SUFFIX
        stored = f'{name}.stored'
        initializers.append(external_tensor(stored, offsets[name]))
        if scale_name in offsets:
            quantised.add(name)
            initializers.append(external_tensor(scale_name, offsets[scale_name]))
            prologue.append(node('Cast', [stored], [f'{name}.float'], to=onnx.TensorProto.FLOAT))
            prologue.append(node('Mul', [f'{name}.float', scale_name], [name]))
        else:
            prologue.append(node('Cast', [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    if integer_products:
        nodes = _integer_products(nodes, quantised)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    used = {name for n in nodes for name in n.input}
    needed = [n for n in prologue if n.output[0] in used]
    inner = {name for n in needed for name in n.input}
    model.graph.node.extend([n for n in prologue if n in needed or n.output[0] in inner] + nodes)
    held = {name for n in model.graph.node for name in n.input}
    for initializer in [i for i in model.graph.initializer if i.name not in held]:
        model.graph.initializer.remove(initializer)


def _integer_products(nodes: list[Any], quantised: set[str]) -> list[Any]:
    """Rewrite MatMul(x, Transpose(w)) and Gemm(x, w, b, transB) with quantised w."""
    node = onnx.helper.make_node
    transposed = {n.output[0]: n.input[0] for n in nodes
                  if n.op_type == 'Transpose' and n.input[0] in quantised}
    result: list[Any] = []
    done: dict[str, tuple[str, str, str]] = {}
    rows: dict[str, tuple[str, str]] = {}
    for n in nodes:
        if n.op_type == 'MatMul' and n.input[1] in transposed:
            weight = transposed[n.input[1]]
        elif n.op_type == 'Gemm' and n.input[1] in quantised:
            weight = n.input[1]
        else:
            result.append(n)
            continue
        x = n.input[0]
        if x not in done:
            done[x] = (f'{x}.q', f'{x}.q_scale', f'{x}.q_zero')
            result.append(node('DynamicQuantizeLinear', [x], list(done[x])))
        if weight not in rows:
            rows[weight] = (f'{weight}.columns', f'{weight}.column_scale')
            result.append(node('Transpose', [f'{weight}.stored'], [rows[weight][0]],
                               perm=[1, 0]))
            result.append(node('Transpose', [weight + SCALE_SUFFIX], [rows[weight][1]],
                               perm=[1, 0]))
        q, scale, zero = done[x]
        columns, column_scale = rows[weight]
        out = n.output[0]
        product = f'{out}.scaled' if n.op_type == 'Gemm' else out
        result += [node('MatMulInteger', [q, columns, zero], [f'{out}.i32']),
                   node('Cast', [f'{out}.i32'], [f'{out}.f32'], to=onnx.TensorProto.FLOAT),
                   node('Mul', [scale, column_scale], [f'{out}.scale']),
                   node('Mul', [f'{out}.f32', f'{out}.scale'], [product])]
        if n.op_type == 'Gemm':
            result.append(node('Add', [product, n.input[2]], [out]))
    return result
