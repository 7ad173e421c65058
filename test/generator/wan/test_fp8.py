# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from wan_tiny import random_network, relative

from interactive_avatar.generator.wan.fp8 import (
    MANY_ROWS,
    Fp8Linear,
    quantise,
    quantise_linears,
    ways_of,
)
from interactive_avatar.generator.wan.runner import FP8_LINEARS, quickest_products
from interactive_avatar.generator.wan.timing import quickest


def test_each_row_has_its_own_scale() -> None:
    x = torch.randn(5, 32) * torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0])[:, None]
    small, scale = quantise(x)
    assert small.dtype == torch.float8_e4m3fn and scale.shape == (5, 1)
    assert relative((small.float() * scale)[:4], x[:4]) < 0.05
    assert bool((small[4].float() == 0).all())


@pytest.mark.parametrize('rows', [3, MANY_ROWS])
def test_scales_within_the_product_and_after_it_are_one_layer(
        rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the card's own path, its product stood in for."""
    taken: list[tuple[int, ...]] = []

    def product(a: torch.Tensor, b: torch.Tensor, *, scale_a: torch.Tensor,
                scale_b: torch.Tensor, out_dtype: torch.dtype, use_fast_accum: bool,
                bias: torch.Tensor | None = None) -> torch.Tensor:
        taken.append(tuple(scale_a.shape))
        y = (a.float() * scale_a) @ (b.float() * scale_b)
        return (y if bias is None else y + bias).to(out_dtype)

    monkeypatch.setattr(torch, '_scaled_mm', product)
    monkeypatch.setattr(Fp8Linear, '_multiplies', staticmethod(lambda x: True))
    linear = nn.Linear(16, 24)
    x = torch.randn(1, rows, 16)
    with torch.no_grad():
        made = {way: Fp8Linear(linear, way)(x) for way in ('rows', 'sums')}
        expected = linear(x)
    assert taken == [(rows, 1) if rows >= MANY_ROWS else (), ()]
    assert relative(made['rows'], made['sums']) < 1e-5
    assert relative(made['rows'], expected) < 0.06


def test_layers_are_quantised_in_the_way_chosen_for_their_name() -> None:
    network = random_network()
    ways = {'qkv': 'rows', 'o': 'wide', 'q': 'wide', 'up': 'rows', 'down': 'sums'}
    assert quantise_linears(network.blocks, FP8_LINEARS, ways) == 3 * len(network.layers)
    expected = {**ways, 'o': 'float32', 'q': 'float32'}
    assert ways_of(network.layers[0], FP8_LINEARS) == expected
    assert isinstance(network.layers[1].text.o, nn.Linear)
    # What was chosen once stays.
    assert quantise_linears(network.blocks, FP8_LINEARS, {name: 'wide' for name in ways}) == 0


def test_trials_leave_the_network_as_it_was() -> None:
    network = random_network()
    before = dict(network.named_modules())

    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    found = quickest_products(network, False, timed)
    assert set(found) == set(FP8_LINEARS)
    assert all(set(times) == {'wide', 'rows', 'sums'} for times in found.values())
    assert dict(network.named_modules()) == before


def test_what_does_not_run_is_not_chosen() -> None:
    def refused() -> None:
        raise RuntimeError('no such kernel')

    found = quickest({'slow': lambda: 2.0, 'refused': refused, 'quick': lambda: 1.0},
                     lambda run: float(run()))
    assert list(found) == ['quick', 'slow']
