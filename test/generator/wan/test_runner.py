# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from wan_tiny import kernel_device, random_network, relative

from interactive_avatar.generator.wan.attention import AttentionPlan
from interactive_avatar.generator.wan.cache import WanCache
from interactive_avatar.generator.wan.config import WAN_TINY
from interactive_avatar.generator.wan.rope import chunk_table
from interactive_avatar.generator.wan.runner import BlockRunner, open_layer, place
from interactive_avatar.generator.wan.window import (
    Context,
    block_velocity,
    still_layers,
    window_velocity,
)


def stack(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])


@pytest.mark.parametrize('remembering', [False, True])
def test_streaming_with_caches_equals_one_masked_forward(remembering: bool) -> None:
    network, c = random_network(), WAN_TINY
    n, memory, blocks = c.network, c.memory, 3
    frames = blocks * c.chunk_latents
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    finished, noisy = (normal(1, frames, *c.latent_shape) for _ in range(2))
    features = normal(frames, 8, c.audio.feature_layers, c.audio.feature_width)
    level, commit_level = 0.7, 0.1
    with torch.no_grad():
        empty = network.text_cache(torch.zeros(1, 1, n.text_width))
        text = network.text_cache(normal(1, 7, n.text_width))
        reference = still_layers(network, network.embed(normal(1, 1, *c.latent_shape))[:, 0],
                                 empty, None)
        groups = normal(memory.short + memory.long, memory.group, *c.latent_shape)
        kept = [still_layers(network, network.compressor(group[None], network.embed), empty,
                             reference) for group in groups]
        entries = [(torch.cat([e[i][0] for e in kept], 1), torch.cat([e[i][1] for e in kept], 1))
                   for i in range(n.layers)] if remembering else None
        together = window_velocity(
            network, finished, commit_level, noisy, torch.full((1, frames), level), reference,
            text, network.audio_cache(features), entries)

        runner = BlockRunner(network)
        cache = WanCache(c, torch.device('cpu'), torch.float32)
        cache.place('reference', 0, tuple(t[:, 0] for t in stack(reference)))
        if remembering:
            slots = [('short', i) for i in reversed(range(memory.short))]
            slots += [('long', i) for i in range(memory.long)]
            for (kind, index), entry in zip(slots, kept, strict=True):
                cache.place(kind, index, tuple(t[:, 0] for t in stack(entry)))
        apart = []
        for block in range(blocks):
            span = slice(block * c.chunk_latents, (block + 1) * c.chunk_latents)
            runner.condition(stack(text), stack(network.audio_cache(features[span])))
            runner.see(cache)
            apart.append(runner.forward(noisy[:, span], level).clone())
            for entry in runner.commit(finished[:, span], commit_level):
                cache.push('adjacent', entry)
    assert relative(torch.cat(apart, 1), together) < 1e-5


@pytest.mark.parametrize('plan', [AttentionPlan(queries=48, parts=2),
                                  AttentionPlan(queries=7, parts=4)])
@torch.no_grad()
def test_attention_in_pieces_changes_no_forward(plan: AttentionPlan) -> None:
    network, c = random_network(), WAN_TINY
    random = torch.Generator().manual_seed(6)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    runner, cache = BlockRunner(network), WanCache(c, torch.device('cpu'), torch.float32)
    shape = (c.network.layers, c.frame_tokens, c.network.heads, c.network.head_width)
    cache.place('reference', 0, (normal(*shape), normal(*shape)))
    features = normal(c.chunk_latents, 8, c.audio.feature_layers, c.audio.feature_width)
    runner.condition(stack(network.text_cache(normal(1, 7, c.network.text_width))),
                     stack(network.audio_cache(features)))
    runner.see(cache)
    latents = normal(1, c.chunk_latents, *c.latent_shape)
    expected = runner.forward(latents, 0.7)
    runner.plan = plan
    assert plan.fits(c.block_tokens + c.frame_tokens)
    assert relative(runner.forward(latents, 0.7), expected) < 1e-5


@torch.no_grad()
def test_a_still_picture_in_the_stream_is_that_of_training() -> None:
    network, c = random_network(), WAN_TINY
    runner = BlockRunner(network)
    empty = network.text_cache(torch.zeros(1, 1, c.network.text_width))
    latent, group = torch.randn(1, 1, *c.latent_shape), torch.randn(
        1, c.memory.group, *c.latent_shape)
    tokens = network.embed(latent)[:, 0]
    reference = still_layers(network, tokens, empty, None)
    ours = runner.still(tokens, stack(empty), None)
    for mine, theirs in zip(ours, stack(reference), strict=True):
        assert relative(mine, theirs[:, 0]) < 1e-5
    tokens = network.compressor(group, network.embed)
    entry = runner.still(tokens, stack(empty), ours)
    expected = stack(still_layers(network, tokens, empty, reference))
    for mine, theirs in zip(entry, expected, strict=True):
        assert relative(mine, theirs[:, 0]) < 1e-5


@torch.no_grad()
def test_full_slots_are_placed_as_those_that_fill() -> None:
    network, c = random_network(), WAN_TINY
    cache = WanCache(c, torch.device('cpu'), torch.float32)
    n = c.network

    def entry(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (n.layers, tokens, n.heads, n.head_width)
        return torch.randn(shape), torch.randn(shape)

    cache.place('reference', 0, entry(c.frame_tokens))
    for _ in range(c.memory.adjacent):
        cache.push('adjacent', entry(c.frame_tokens))
    plain, placing = BlockRunner(network), BlockRunner(network)
    placing._place = place
    plain.see(cache)
    placing.see(cache)
    assert torch.equal(plain._k, placing._k) and torch.equal(plain._v, placing._v)
    assert float(plain._k.abs().sum()) > 0


@torch.no_grad()
def test_the_kernel_before_attention_equals_its_reference() -> None:
    device = kernel_device()
    from interactive_avatar.generator.wan.kernels import turn_heads
    network, c = random_network().to(device), WAN_TINY
    block, n = network.layers[0], c.network
    cos, sin = (t.to(device) for t in chunk_table(n, range(3), c.grid_side, c.grid_side))
    x = torch.randn(1, 3, c.frame_tokens, n.width, device=device)
    m = torch.randn(1, 6, 1, 1, n.width, device=device)
    made, expected = (tuple(torch.zeros(1, c.block_tokens, n.heads, n.head_width, device=device)
                            for _ in range(3)) for _ in range(2))
    q = open_layer(block, x, m, cos, sin, *expected)
    turned = turn_heads(block.packed(x, m), block.norm_q.weight, block.norm_k.weight, cos, sin,
                        *made)
    for mine, theirs in zip((turned, *made), (q, *expected), strict=True):
        assert relative(mine, theirs) < 1e-5
    with pytest.raises(ValueError, match='do not fit'):
        turn_heads(x, block.norm_q.weight, block.norm_k.weight, cos, sin, *made)


def test_memory_with_closed_gates_changes_nothing_and_is_not_run() -> None:
    network = random_network()
    for block in network.layers:
        torch.nn.init.zeros_(block.memory_gate)
    assert not BlockRunner(network).memory_on
    assert BlockRunner(random_network()).memory_on


def test_slots_fill_from_the_front_and_keep_their_order() -> None:
    c = WAN_TINY
    cache = WanCache(c, torch.device('cpu'), torch.float32)
    n = c.network

    def entry(value: float, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        k = torch.full((n.layers, tokens, n.heads, n.head_width), value)
        return k, -k

    with pytest.raises(ValueError, match='before those in front'):
        cache.push('adjacent', entry(1.0, c.frame_tokens))
    cache.place('reference', 0, entry(9.0, c.frame_tokens))
    for value in range(1, 6):
        cache.push('adjacent', entry(float(value), c.frame_tokens))
    assert cache.frame_tokens == 4 * c.frame_tokens
    held = [float(cache.take('adjacent', i)[0][0, 0, 0, 0]) for i in range(3)]
    assert held == [3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match='long'):
        cache.place('long', 0, entry(1.0, c.memory.entry_tokens))
    for value in (1.0, 2.0):
        cache.push('short', entry(value, c.memory.entry_tokens))
    cache.place('long', 0, entry(7.0, c.memory.entry_tokens))
    assert cache.entry_tokens == 3 * c.memory.entry_tokens
    other = cache.copy()
    cache.push('short', entry(3.0, c.memory.entry_tokens))
    assert float(other.take('short', 1)[0][0, 0, 0, 0]) == 2.0
    with pytest.raises(IndexError, match='does not exist'):
        cache.take('short', 5)
    cache.follow(np.zeros(3, np.float32))


@pytest.mark.parametrize('filled', [1, 3])
@torch.no_grad()
def test_a_block_in_training_is_the_streams_block(filled: int) -> None:
    network, c = random_network(), WAN_TINY
    random = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    def entry(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (c.network.layers, tokens, c.network.heads, c.network.head_width)
        return normal(*shape), normal(*shape)

    cache = WanCache(c, torch.device('cpu'), torch.float32)
    cache.place('reference', 0, entry(c.frame_tokens))
    for _ in range(filled):
        cache.push('adjacent', entry(c.frame_tokens))
        cache.push('short', entry(c.memory.entry_tokens))
    states = normal(1, 7, c.network.text_width)
    features = normal(c.chunk_latents, 8, c.audio.feature_layers, c.audio.feature_width)
    latents = normal(1, c.chunk_latents, *c.latent_shape)
    runner = BlockRunner(network)
    runner.condition(stack(network.text_cache(states)), stack(network.audio_cache(features)))
    runner.see(cache)
    streamed = runner.forward(latents, 0.6)
    layers = c.network.layers
    velocity, pairs = block_velocity(
        network, latents, torch.full((1, 1), 0.6), Context.of(network, cache),
        [network.text_tokens(states)] * layers, [network.audio_tokens(features)] * layers)
    assert relative(velocity, streamed) < 1e-5
    committed = runner.commit(latents, 0.6)
    span = slice(0, c.frame_tokens)
    for made, kept in zip(stack(pairs), committed[0], strict=True):
        assert relative(made[:, 0, span], kept) < 1e-5
