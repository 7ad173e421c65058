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
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from interactive_avatar.generator.cpu_graphs import CPU_GRAPHS, DOMAIN
from interactive_avatar.generator.graph_modules import graph_module
from interactive_avatar.generator.integer_products import IntegerProducts
from interactive_avatar.generator.model import CONFIG_NAME, WEIGHTS_NAME, write_manifest
from interactive_avatar.generator.networks import SCALE_SUFFIX, Generator
from interactive_avatar.generator.signatures import (
    INT8_SUFFIX,
    GraphSignature,
    TensorSpec,
    cpu_signature,
    graph_signatures,
)

OPSET = 18
CPU_OPSET = 20
"""Of the graphs for a CPU, which TensorRT never sees: the first with GELU as one operator."""


def graph_inputs(signature: GraphSignature) -> dict[str, Tensor]:
    """Example inputs of a graph, by name; shapes are fixed."""
    return {name: torch.zeros(spec.shape, dtype=torch.uint8) if spec.dtype == 'uint8'
            else torch.randn(spec.shape) for name, spec in signature.inputs.items()}


def export(generator: Generator, root: Path, note: dict[str, object] | None = None) -> None:
    """Write config, weights, graphs and manifest of ``generator`` to the directory ``root``.

    Graphs whose names end in ``.int8`` are the same networks laid out for a CPU, with their
    products in 8-bit integers (see `cpu_graphs`); they read the same weights file.
    """
    root.mkdir(parents=True, exist_ok=True)
    generator = generator.float().cpu().eval()
    _set_equal_tensors_apart(generator)
    (root / CONFIG_NAME).write_text(generator.config.to_json() + '\n')
    generator.save(root / WEIGHTS_NAME)
    offsets = safetensors_offsets(root / WEIGHTS_NAME)
    signatures = graph_signatures(generator.config)
    found: dict[str, GraphSignature] = {}
    for name, signature in signatures.items():
        found[name] = export_graph(graph_module(generator, name), signature, OPSET, offsets,
                                   root / f'{name}.onnx')
        if name in CPU_GRAPHS:
            export_graph(CPU_GRAPHS[name](generator), cpu_signature(signature), CPU_OPSET,
                         offsets, root / f'{name}{INT8_SUFFIX}.onnx')
    write_manifest(root, found, note)


def export_graph(module: nn.Module, signature: GraphSignature, opset: int,
                 offsets: Mapping[str, tuple[str, int, int, list[int]]], path: Path,
                 location: str = WEIGHTS_NAME) -> GraphSignature:
    """Write one graph to ``path``; returns what it was found to take and give.

    Args:
        offsets: of `safetensors_offsets`; parameters of the module that bear these names stay in
            the file ``location`` beside the graph.
    """
    inputs = graph_inputs(signature)
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # Sizes become constants, as they should: shapes are fixed.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        torch.onnx.export(
            module, tuple(inputs.values()), buffer,  # type: ignore[arg-type]
            input_names=list(inputs), output_names=list(signature.outputs),
            opset_version=opset, do_constant_folding=False, dynamo=False)
    model = onnx.load_from_string(buffer.getvalue())
    _point_weights(model, offsets, location)
    model.producer_name, model.producer_version = 'interactive_avatar', ''
    onnx.save_model(model, str(path))
    return _signature_of(model)


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
              'BF16': onnx.TensorProto.BFLOAT16, 'I8': onnx.TensorProto.INT8}


def external_tensor(name: str, item: tuple[str, int, int, list[int]],
                    location: str = WEIGHTS_NAME) -> Any:
    """A tensor of a weights file, by reference; ``item`` from `safetensors_offsets`."""
    dtype, offset, length, shape = item
    tensor = onnx.TensorProto(name=name, dims=shape, data_type=ONNX_TYPES[dtype],
                              data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (('location', location), ('offset', offset), ('length', length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _point_weights(model: Any, offsets: Mapping[str, tuple[str, int, int, list[int]]],
                   location: str = WEIGHTS_NAME) -> None:
    """Replace initialisers that are weights by external data, dequantised or cast in the graph;
    products that `cpu_graphs` marks read the stored bytes as they are."""
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
        initializers.append(external_tensor(stored, offsets[name], location))
        if scale_name in offsets:
            quantised.add(name)
            initializers.append(external_tensor(scale_name, offsets[scale_name], location))
            prologue.append(node('Cast', [stored], [f'{name}.float'], to=onnx.TensorProto.FLOAT))
            prologue.append(node('Mul', [f'{name}.float', scale_name], [name]))
        else:
            prologue.append(node('Cast', [stored], [name], to=onnx.TensorProto.FLOAT))
    products = IntegerProducts(quantised)
    products.take(list(model.graph.node))
    nodes, initializers = products.nodes, initializers + products.constants
    foreign = [item for item in model.opset_import if item.domain == DOMAIN]
    for item in foreign:
        model.opset_import.remove(item)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    used = {name for n in nodes for name in n.input}
    needed = [n for n in prologue if n.output[0] in used]
    inner = {name for n in needed for name in n.input}
    model.graph.node.extend([n for n in prologue if n in needed or n.output[0] in inner] + nodes)
    held = {name for n in model.graph.node for name in n.input}
    for initializer in [i for i in model.graph.initializer if i.name not in held]:
        model.graph.initializer.remove(initializer)
