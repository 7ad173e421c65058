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
from torch import Tensor

from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.graph_modules import graph_module
from interactive_avatar.generator.model import CONFIG_NAME, WEIGHTS_NAME, write_manifest
from interactive_avatar.generator.networks import SCALE_SUFFIX, Generator
from interactive_avatar.generator.signatures import (
    GraphSignature,
    TensorSpec,
    graph_signatures,
)

OPSET = 18


def graph_inputs(config: GeneratorConfig) -> dict[str, dict[str, Tensor]]:
    """Example inputs of every graph, by name; shapes are fixed."""
    def example(spec: TensorSpec) -> Tensor:
        if spec.dtype == 'uint8':
            return torch.zeros(spec.shape, dtype=torch.uint8)
        return torch.randn(spec.shape)

    return {graph: {name: example(spec) for name, spec in signature.inputs.items()}
            for graph, signature in graph_signatures(config).items()}


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
    signatures, found = graph_signatures(generator.config), {}
    for name, inputs in graph_inputs(generator.config).items():
        buffer = io.BytesIO()
        with torch.no_grad():
            torch.onnx.export(
                graph_module(generator, name), tuple(inputs.values()),
                buffer,  # type: ignore[arg-type]
                input_names=list(inputs), output_names=list(signatures[name].outputs),
                opset_version=OPSET, do_constant_folding=False, dynamo=False)
        for suffix in ('', '.int8') if name == 'denoise' else ('',):
            model = onnx.load_from_string(buffer.getvalue())
            _point_weights(model, offsets, integer_products=suffix == '.int8')
            model.producer_name, model.producer_version = 'interactive_avatar', ''
            onnx.save_model(model, str(root / f'{name}{suffix}.onnx'))
        found[name] = _signature_of(model)
    write_manifest(root, found, note)


def _signature_of(model: Any) -> GraphSignature:
    """Inputs and outputs as they stand in an ONNX graph."""
    def side(values: Any) -> dict[str, TensorSpec]:
        return {value.name: TensorSpec(
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(d.dim_value for d in value.type.tensor_type.shape.dim)) for value in values}

    return GraphSignature(side(model.graph.input), side(model.graph.output))


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
