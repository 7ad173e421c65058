# SPDX-License-Identifier: Apache-2.0
"""Products of a graph in 8-bit integers: the placeholders of `cpu_graphs` as standard operators.

DynamicQuantizeLinear (activations per tensor, at run time) → MatMulInteger → scale and bias, which
ONNX Runtime fuses into one kernel. A convolution gathers its windows as bytes first. Weights that
are stored in 8 bits are read as they are; others are quantised per row by constant nodes, which a
runtime folds at load.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx

from interactive_avatar.generator.cpu_graphs import CONVOLVE, DOMAIN
from interactive_avatar.generator.networks import SCALE_SUFFIX

SMALLEST_SCALE = 1e-12


class IntegerProducts:
    """Rewrites the nodes of one graph; each activation is quantised, each weight laid out once.

    Args:
        stored: weights that the file holds in 8 bits with a scale per row.

    Attributes:
        nodes: the rewritten graph so far.
        constants: initialisers that it needs beside the weights.
    """

    def __init__(self, stored: Collection[str]) -> None:
        self._stored = stored
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._made: dict[Any, Any] = {}

    def take(self, nodes: list[Any]) -> None:
        """Append ``nodes``, placeholders as what they stand for."""
        for node in nodes:
            if node.domain != DOMAIN:
                self.nodes.append(node)
                continue
            x, weight, bias = node.input
            given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if f'{node.domain}::{node.op_type}' == CONVOLVE:
                sizes, kernel = given['sizes'], given['kernel']
                columns, scale, bias = self._columns(weight, kernel, bias, given['shuffle'])
                quantised = self._windows(x, sizes, kernel[2])
            else:
                columns, scale, bias = self._columns(weight, None, bias, 1)
                quantised = self._quantised(x)
            out = node.output[0]
            product = out if quantised[0] == self._quantised(x)[0] else f'{out}.rows'
            whole, x_scale, zero = quantised
            self._add('MatMulInteger', [whole, columns, zero], f'{out}.i32')
            self._add('Cast', [f'{out}.i32'], f'{out}.f32', to=onnx.TensorProto.FLOAT)
            self._add('Mul', [x_scale, scale], f'{out}.scale')
            self._add('Mul', [f'{out}.f32', f'{out}.scale'], f'{out}.scaled')
            self._add('Add', [f'{out}.scaled', bias], product)
            if product != out:
                shape = [*sizes[:3], kernel[0]]
                self._add('Reshape', [product, self._constant(shape)], out)

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _constant(self, values: list[int], dtype: str = 'int64') -> str:
        name = f'{dtype}.' + '_'.join(str(value) for value in values)
        if name not in self._made:
            self._made[name] = name
            self.constants.append(onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def _quantised(self, x: str) -> tuple[str, str, str]:
        """(bytes, scale, zero point) of an activation."""
        if x not in self._made:
            self._made[x] = (f'{x}.q', f'{x}.q_scale', f'{x}.q_zero')
            self.nodes.append(onnx.helper.make_node('DynamicQuantizeLinear', [x],
                                                    list(self._made[x])))
        found: tuple[str, str, str] = self._made[x]
        return found

    def _windows(self, x: str, sizes: list[int], kernel: int) -> tuple[str, str, str]:
        """`_quantised` of x [1, h, w, C] with the window of each pixel in a row, [h · w,
        kernel² · C]; with a 1×1 kernel x as it is."""
        q, scale, zero = self._quantised(x)
        if kernel == 1:
            return q, scale, zero
        name = f'{x}.windows{kernel}'
        if name not in self._made:
            self._made[name] = name
            _, height, width, channels = sizes
            # Pixels outside are one more row, which holds the byte that means 0.
            pixels = self._add('Reshape', [q, self._constant([height * width, channels])],
                               f'{name}.pixels')
            padded = self._add('Pad', [pixels, self._constant([0, 0, 1, 0]), zero],
                               f'{name}.padded')
            gathered = self._add('Gather', [padded, self._neighbours(height, width, kernel)],
                                 f'{name}.gathered', axis=0)
            shape = [height * width, kernel * kernel * channels]
            self._add('Reshape', [gathered, self._constant(shape)], name)
        return name, scale, zero

    def _neighbours(self, height: int, width: int, kernel: int) -> str:
        """Which pixels lie in the window of each, int32 [h · w, kernel²]; h · w is outside."""
        name = f'neighbours.{height}.{width}.{kernel}'
        if name not in self._made:
            self._made[name] = name
            edge = kernel // 2
            pixels = np.pad(np.arange(height * width, dtype=np.int32).reshape(height, width), edge,
                            constant_values=height * width)
            windows = np.lib.stride_tricks.sliding_window_view(pixels, (kernel, kernel))
            self.constants.append(onnx.numpy_helper.from_array(
                windows.reshape(height * width, kernel * kernel).copy(), name))
        return name

    def _columns(self, weight: str, kernel: list[int] | None, bias: str,
                 shuffle: int) -> tuple[str, str, str]:
        """A weight [out, in, ...] as int8 columns [... · in, out], their scales [1, out] and the
        bias, with output channels in the order of `cpu_graphs.convolve`."""
        name = f'{weight}.columns'
        if name not in self._made:
            self._made[name] = name
            whole, scale = self._stored_rows(weight)
            if kernel is None:
                self._add('Transpose', [whole], name, perm=[1, 0])
            else:
                out, inner, size = kernel[0], kernel[1], kernel[2] * kernel[3]
                self._add('Reshape', [whole, self._constant([out // shuffle, shuffle, inner,
                                                             size])], f'{name}.apart')
                self._add('Transpose', [f'{name}.apart'], f'{name}.turned', perm=[3, 2, 1, 0])
                self._add('Reshape', [f'{name}.turned', self._constant([size * inner, out])],
                          name)
            self._made[name] = (self._shuffled(scale, shuffle, f'{name}.scale', [1, -1]),
                                self._shuffled(bias, shuffle, f'{name}.bias', [-1]))
        return name, *self._made[name]

    def _shuffled(self, values: str, shuffle: int, name: str, shape: list[int]) -> str:
        """One value for each output channel, in the order of the columns."""
        self._add('Reshape', [values, self._constant([-1, shuffle])], f'{name}.apart')
        self._add('Transpose', [f'{name}.apart'], f'{name}.turned', perm=[1, 0])
        return self._add('Reshape', [f'{name}.turned', self._constant(shape)], name)

    def _stored_rows(self, weight: str) -> tuple[str, str]:
        """(int8, scale per row) of a weight, made by constant nodes if the file has none."""
        if weight in self._stored:
            return f'{weight}.stored', weight + SCALE_SUFFIX
        name = f'{weight}.made'
        self._add('Flatten', [weight], f'{name}.flat', axis=1)
        self._add('Abs', [f'{name}.flat'], f'{name}.abs')
        self._add('ReduceMax', [f'{name}.abs', self._constant([1])], f'{name}.largest')
        self._add('Max', [f'{name}.largest', self._float(SMALLEST_SCALE)], f'{name}.positive')
        self._add('Div', [f'{name}.positive', self._float(127.0)], f'{name}.scale')
        self._add('Div', [f'{name}.flat', f'{name}.scale'], f'{name}.steps')
        self._add('Round', [f'{name}.steps'], f'{name}.rounded')
        self._add('Cast', [f'{name}.rounded'], f'{name}.bytes', to=onnx.TensorProto.INT8)
        return f'{name}.bytes', f'{name}.scale'

    def _float(self, value: float) -> str:
        name = f'float.{value}'
        if name not in self._made:
            self._made[name] = name
            self.constants.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
        return name
