# SPDX-License-Identifier: Apache-2.0
"""Time by operator, on a graph of two operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from interactive_avatar.evaluation.bench_operators import example_inputs, profile
from interactive_avatar.generator.signatures import GraphSignature, TensorSpec

SIGNATURE = GraphSignature({'x': TensorSpec('float32', (32, 32)),
                            'cache_mask': TensorSpec('float32', (32, 32))},
                           {'y': TensorSpec('float32', (32, 32))})


def test_time_is_told_by_operator(tmp_path: Path) -> None:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [32, 32])

    graph = helper.make_graph(
        [helper.make_node('MatMul', ['x', 'x'], ['xx']),
         helper.make_node('Softmax', ['xx'], ['s']),
         helper.make_node('MatMul', ['s', 'cache_mask'], ['y'])],
        'two', [value('x'), value('cache_mask')], [value('y')])
    path = tmp_path / 'two.onnx'
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)],
                                ir_version=9), str(path))
    spent = profile(path, SIGNATURE, 1, 3)
    assert set(spent) == {'MatMul', 'Softmax'}
    assert list(spent.values()) == sorted(spent.values(), reverse=True)
    assert min(spent.values()) > 0


def test_example_masks_hide_nothing() -> None:
    inputs = example_inputs(SIGNATURE)
    assert not inputs['cache_mask'].any() and inputs['x'].std() > 0.5
    np.testing.assert_array_equal(inputs['x'], example_inputs(SIGNATURE)['x'])
