# SPDX-License-Identifier: Apache-2.0
"""Two cards: split passes are those of one card. Here both are the processor, on which copies are
copies and there is nothing to wait for; recorded pieces are replayed by a stand-in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from wan_tiny import random_network, relative

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.attention import AttentionPlan
from interactive_avatar.generator.wan.backend import Options, WanBackend
from interactive_avatar.generator.wan.bench import (
    TINY_VAE,
    Stream,
    add_arguments,
    build,
    layouts_of,
)
from interactive_avatar.generator.wan.config import WAN_TINY
from interactive_avatar.generator.wan.fp8 import Fp8Linear, quantise_linears
from interactive_avatar.generator.wan.parallel import Part, TwoCardRunner, first_rows, replica
from interactive_avatar.generator.wan.runner import FP8_LINEARS
from interactive_avatar.generator.wan.vae import StreamingDecoder

BLOCKS = 4


def open_backend(device: str = 'cpu', **options: Any) -> WanBackend:
    decoder = build(lambda: StreamingDecoder(TINY_VAE), torch.device('cpu'), torch.float32)
    return WanBackend(random_network(), decoder, Options(
        device, precision='float32', compiled=False, **options))


@torch.no_grad()
def made(backend: WanBackend, blocks: int = BLOCKS) -> torch.Tensor:
    """Latents of some blocks; the memory fills, and the prompt changes before the last."""
    stream = Stream(backend)
    latents = []
    for index in range(blocks):
        if index == blocks - 1:
            stream.text = backend.encode_text(np.random.default_rng(5).standard_normal(
                (6, WAN_TINY.network.text_width), np.float32))
        x = backend.generate(stream.text, backend.encode_audio(stream._features), stream.cache,
                             index)
        latents.append(x.cpu().clone())
        for latent, entry in zip(latents[-1].numpy(), backend.commit(x), strict=True):
            stream.memory.commit(latent, entry)
    return torch.stack(latents)


@pytest.fixture(scope='module')
def expected() -> torch.Tensor:
    return made(open_backend())


@pytest.mark.parametrize(('share', 'alone'), [(0.5, 2), (0.5, 0), (0.75, 1), (0.25, 0)])
def test_two_cards_make_what_one_makes(expected: torch.Tensor, share: float, alone: int) -> None:
    backend = open_backend(cards=2, share=share, alone=alone)
    assert isinstance(backend.runner, TwoCardRunner)
    assert backend.runner.parts[0].span.rows.stop == round(4 * share)
    assert relative(made(backend), expected) < 1e-5


def test_each_card_splits_its_own_keys(expected: torch.Tensor) -> None:
    backend = open_backend(cards=2, share=0.75, alone=0)
    assert isinstance(backend.runner, TwoCardRunner)
    for part, plan in zip(backend.runner.parts, (AttentionPlan(queries=20, parts=2),
                                                 AttentionPlan(queries=12, parts=4))):
        part.plan = plan
    assert relative(made(backend), expected) < 1e-5


def test_only_the_passes_asked_for_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ('forward_alone', 'forward_together'):
        run = getattr(TwoCardRunner, name)

        def noted(self: TwoCardRunner, *args: Any, name: str = name, run: Any = run) -> Any:
            ran.append(name.removeprefix('forward_'))
            return run(self, *args)

        monkeypatch.setattr(TwoCardRunner, name, noted)
    for alone in (0, 1, 3, 5):
        ran.clear()
        made(open_backend(cards=2, alone=alone), 2)
        # Four steps and the clean pass, twice; a stream's first steps are no others'.
        first = ['alone'] * max(0, alone - 1) + ['together'] * (5 - max(1, alone))
        clean = 'alone' if alone else 'together'
        assert ran == [*first, clean] * 2


class StandIn(TorchDispatchMode):
    """A CUDA graph's stand-in: the operations of a capture, which a replay runs again into the
    tensors that they made then."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def capture_begin(self, pool: Any) -> None:
        self.__enter__()

    def capture_end(self) -> None:
        self.__exit__(None, None, None)

    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def test_recorded_pieces_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clean pass too is split: the first card's own graph is not what is tested.
    backend, ran = open_backend(cards=2, alone=0), []
    run = Part.run

    def noted(self: Part, name: str, piece: Any, recorded: bool) -> None:
        ran.append(recorded)
        run(self, name, piece, recorded)

    monkeypatch.setattr(torch.cuda, 'CUDAGraph', StandIn)
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: None)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    monkeypatch.setattr(Part, 'run', noted)
    backend.runner._graphs = True
    blocks = 8  # the last ones of which see a full memory
    assert relative(made(backend, blocks), made(open_backend(), blocks)) < 1e-5
    # From the enter to the end of each of two layers, of both parts, in five passes a block.
    assert sum(ran) % (5 * 2 * 5) == 0 and sum(ran) > 50
    assert not ran[0] and ran[-1]


def test_a_replica_is_the_network_and_shares_nothing() -> None:
    network = random_network()
    quantise_linears(network.blocks, FP8_LINEARS, {'qkv': 'rows', 'up': 'sums'})
    other = replica(network, torch.device('cpu'))
    ours, theirs = network.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.data_ptr() != theirs[name].data_ptr()
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
    assert isinstance(other.layers[0].qkv, Fp8Linear) and other.layers[0].qkv.way == 'rows'


def test_each_card_has_a_row() -> None:
    assert [first_rows(32, share) for share in (0.01, 0.5, 0.6, 0.99)] == [1, 16, 19, 31]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Compute capabilities of the cards that PyTorch is made to see."""
    seen = [(9, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(seen))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: 'NVIDIA H200')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: seen[index])
    yield seen


def test_what_two_cards_need_is_said(cards: list[tuple[int, int]]) -> None:
    assert Options('cuda', cards=2).resolved().decode_device == 'cuda:1'
    assert Options('cuda:1', cards=2).resolved().decode_device == 'cuda:0'
    assert Options('cuda', 'cuda:1').resolved().cards == 1
    for options, said in ((Options('cuda', cards=3), 'give 1, or 2'),
                          (Options('cuda', cards=2, share=1.0), 'between 0 and 1'),
                          (Options('cuda', cards=2, alone=-1), '0 or more'),
                          (Options('cuda', 'cuda:0', cards=2), 'sees cuda:0 to cuda:1'),
                          (Options('cuda', 'cuda:2', cards=2), "not 'cuda:2'"),
                          (Options('cuda', 'cpu', cards=2), "not 'cpu'")):
        with pytest.raises(ModelError, match=said):
            options.resolved()
    cards[1] = (8, 9)
    with pytest.raises(ModelError, match=r'one kind.*8\.9.*decode there'):
        Options('cuda', cards=2).resolved()
    del cards[1]
    with pytest.raises(ModelError, match=r'sees one GPU here .*CUDA_VISIBLE_DEVICES'):
        Options('cuda', cards=2).resolved()


def test_the_bench_measures_each_way_to_use_the_cards() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found = layouts_of(parser.parse_args([
        '--device', 'cpu', '--cards', '1,2', '--share', '0.5,0.6', '--alone', '2', '--no-graphs']))
    assert [name for name, _ in found] == ['', ', 2 cards, share 0.5, alone 2',
                                           ', 2 cards, share 0.6, alone 2']
    assert [(o.cards, o.share, o.alone, o.graphs) for _, o in found[1:]] == [
        (2, 0.5, 2, False), (2, 0.6, 2, False)]
    assert found[0][1].cards == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
@pytest.mark.parametrize('alone', [0, 2])
def test_two_gpus_make_what_one_makes(alone: int) -> None:
    one, two = (made(open_backend('cuda', cards=cards, alone=alone), 8) for cards in (1, 2))
    assert relative(two, one) < 1e-3
