# SPDX-License-Identifier: Apache-2.0
"""The graphs laid out for CPUs compute what the networks do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny import TINY
from torch import Tensor

from interactive_avatar.generator.cpu_graphs import CPU_GRAPHS
from interactive_avatar.generator.graph_modules import graph_module
from interactive_avatar.generator.networks import Generator
from interactive_avatar.generator.signatures import (
    INT8_SUFFIX,
    LAYERED,
    cpu_signature,
    graph_signatures,
)


@pytest.fixture(scope='module')
def generator(model: Path) -> Generator:
    made = Generator(TINY)
    made.load(model / 'model.safetensors')
    return made.eval()


def inputs_of(graph: str) -> dict[str, Tensor]:
    torch.manual_seed(5)
    made = {}
    for name, spec in graph_signatures(TINY)[graph].inputs.items():
        made[name] = (torch.randint(0, 255, spec.shape, dtype=torch.uint8)
                      if spec.dtype == 'uint8' else torch.randn(spec.shape))
    return made


@pytest.mark.parametrize('graph', CPU_GRAPHS)
@torch.no_grad()
def test_layout_changes_nothing(generator: Generator, graph: str) -> None:
    inputs = inputs_of(graph)
    wanted = graph_module(generator, graph)(*inputs.values())
    parts = [part for name, value in inputs.items()
             for part in (value[0] if name in LAYERED else [value])]
    found = CPU_GRAPHS[graph](generator)(*parts)
    if graph == 'decode':
        # A value between two grey levels may round to either.
        difference = (found.int() - wanted.int()).abs()
        assert difference.max() <= 1 and difference.float().mean() < 1e-3
        return
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_layout_changes_nothing_of_larger_pictures(model: Path) -> None:
    config = replace(TINY, autoencoder=TINY.autoencoder.upscaled(2))
    generator = Generator(config).eval()
    generator.load(model / 'model.safetensors', widen=True)
    inputs = {name: torch.randint(0, 255, spec.shape, dtype=torch.uint8)
              if spec.dtype == 'uint8' else torch.randn(spec.shape)
              for name, spec in graph_signatures(config)['decode'].inputs.items()}
    wanted = graph_module(generator, 'decode')(*inputs.values())
    found = CPU_GRAPHS['decode'](generator)(*inputs.values())
    difference = (found.int() - wanted.int()).abs()
    assert wanted.shape[2] == 256 and difference.max() <= 1 and difference.float().mean() < 1e-3


@pytest.mark.parametrize('graph', CPU_GRAPHS)
def test_exported_graphs_hold_standard_operators_and_no_weights(model: Path, graph: str) -> None:
    path = model / f'{graph}{INT8_SUFFIX}.onnx'
    exported = onnx.load(str(path), load_external_data=False)
    assert {item.domain for item in exported.opset_import} == {''}
    assert {node.domain for node in exported.graph.node} == {''}
    assert 'MatMulInteger' in {node.op_type for node in exported.graph.node}
    inside = [item for item in exported.graph.initializer if not item.external_data]
    # Positions are tables in the graph; a weight matrix would be larger than any of them.
    assert max(np.prod(item.dims) for item in inside) <= 16_384


def test_caches_come_layer_by_layer() -> None:
    signature = graph_signatures(TINY)['denoise']
    found = cpu_signature(signature)
    whole = signature.inputs['cache_k'].shape
    assert [found.inputs[f'cache_k.{i}'].shape for i in range(TINY.denoiser.layers)] == \
        [whole[2:]] * whole[1]
    assert 'cache_k' not in found.inputs and found.outputs == signature.outputs
    assert cpu_signature(graph_signatures(TINY)['decode']) == graph_signatures(TINY)['decode']
