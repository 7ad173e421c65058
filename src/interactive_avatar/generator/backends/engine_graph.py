# SPDX-License-Identifier: Apache-2.0
"""Turns a model's ONNX graph into one that TensorRT compiles: own weights, chosen precision.

The graphs of a model point into ``model.safetensors`` and dequantise there and then; TensorRT
takes 8-bit constants only in front of its own dequantisation. And networks of TensorRT-RTX (and
of TensorRT from 11 on) are strongly typed, so that precision must stand in the graph: matrix
products and convolutions take and give half precision here, everything between them (norms,
softmax, sampling grids, residual sums) stays float32.

Needs the package ``onnx``; used when an engine is built, never when one runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.model import ModelError

PRECISIONS: Final = ('fp32', 'fp16', 'bf16')
HALF_OPERATORS: Final = ('MatMul', 'Gemm', 'Conv')
FOLDED_OPERATORS: Final = ('Cast', 'Mul', 'Transpose')
PREPARATION_VERSION: Final = 1
"""Part of every engine's key: raise it when `prepare_graph` writes another graph."""


def prepare_graph(path: Path, precision: str) -> Any:
    """Read a graph with its weights and rewrite it in ``precision``.

    Args:
        path: graph of a model; its external data lies beside it.
        precision: fp32, fp16 or bf16. Inputs and outputs keep their types in all three.

    Returns:
        ``onnx.ModelProto`` that holds its weights.

    Raises:
        ModelError: if ``onnx`` is missing or the graph cannot be read.
        ValueError: on another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision {precision!r} does not exist; use one of '
                         f'{", ".join(PRECISIONS)}')
    try:
        import onnx
    except ImportError as error:
        raise ModelError('building an engine needs the Python package onnx: '
                         "pip install 'interactive-avatar[tensorrt]'") from error
    try:
        model = onnx.load(str(path))
    except Exception as error:  # the protobuf and onnx errors share no base class
        raise ModelError(f'graph {str(path)!r} cannot be read: {error}; restore it (git '
                         f"checkout or 'avatar export')") from error
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor)
                 for tensor in model.graph.initializer}
    nodes = _folded(list(model.graph.node), constants)
    if precision != 'fp32':
        nodes = _halved(nodes, constants, precision)
    used = {name for node in nodes for name in node.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value, order='C'), name)
        for name, value in constants.items() if name in used)
    return model


def _folded(nodes: list[Any], constants: dict[str, NDArray[Any]]) -> list[Any]:
    """Nodes left after dequantisation, casts and transpositions of constants are computed."""
    from onnx import helper

    kept = []
    for node in nodes:
        if node.op_type not in FOLDED_OPERATORS or any(name not in constants
                                                       for name in node.input):
            kept.append(node)
            continue
        values = [constants[name] for name in node.input]
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == 'Cast':
            folded = values[0].astype(helper.tensor_dtype_to_np_dtype(attributes['to']))
        elif node.op_type == 'Mul':
            folded = values[0] * values[1]
        else:
            folded = np.transpose(values[0], attributes.get('perm'))
        constants[node.output[0]] = folded
    return kept


def _halved(nodes: list[Any], constants: dict[str, NDArray[Any]], precision: str) -> list[Any]:
    """Nodes with every product and convolution between casts to half precision and back."""
    from onnx import TensorProto, helper

    half = {'fp16': TensorProto.FLOAT16, 'bf16': TensorProto.BFLOAT16}[precision]
    half_dtype = helper.tensor_dtype_to_np_dtype(half)
    result: list[Any] = []
    cast: dict[str, str] = {}

    def narrowed(name: str) -> str:
        if name and name not in cast:
            cast[name] = f'{name}.half'
            if name in constants:
                constants[cast[name]] = constants[name].astype(half_dtype)
            else:
                result.append(helper.make_node('Cast', [name], [cast[name]], to=half))
        return cast.get(name, name)

    for node in nodes:
        if node.op_type not in HALF_OPERATORS:
            result.append(node)
            continue
        inputs = [narrowed(name) for name in node.input]
        output = node.output[0]
        del node.input[:]
        node.input.extend(inputs)
        node.output[0] = f'{output}.narrow'
        result += [node, helper.make_node('Cast', [node.output[0]], [output],
                                          to=TensorProto.FLOAT)]
    return result
