# SPDX-License-Identifier: Apache-2.0
"""The wan size against the public implementations, with the same random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from wan_tiny import randomise, relative

from interactive_avatar.generator.wan.config import WAN_1_3B, WAN_TINY, WanConfig
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.weights import Checkpoint, convert

diffusers = pytest.importorskip('diffusers', reason='install the extra `test`')


def test_one_forward_equals_diffusers() -> None:
    n = WAN_TINY.network
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=n.heads, attention_head_dim=n.head_width, text_dim=n.text_width,
        freq_dim=n.frequency_width, ffn_dim=n.ffn_width, num_layers=n.layers).eval()
    randomise(theirs)
    state = theirs.state_dict()
    checkpoint = Checkpoint({k: tuple(v.shape) for k, v in state.items()}, [], 'diffusers',
                            state.__getitem__)
    ours = WanTransformer(WAN_TINY).eval()
    _, unexpected = ours.load_state_dict(dict(convert(checkpoint, WAN_TINY)), strict=False)
    assert not unexpected
    x, text = torch.randn(2, 16, 3, 8, 12), torch.randn(2, n.text_tokens, n.text_width)
    time = torch.tensor([937.5, 250.0])
    with torch.no_grad():
        expected = theirs(x, time, text, return_dict=False)[0]
        # Audio off; the zero-started audio and memory change nothing, so it may also be on.
        made = ours(x.transpose(1, 2), time[:, None] / 1000, ours.text_cache(text))
        heard = ours(x.transpose(1, 2), time[:, None] / 1000, ours.text_cache(text),
                     ours.audio_cache(torch.randn(6, 8, 2, 16)))
    assert relative(made.transpose(1, 2), expected) < 1e-5
    torch.testing.assert_close(made, heard)


def test_the_sizes_are_wan_s() -> None:
    with torch.device('meta'):
        network = WanTransformer(WAN_1_3B)
    own = sum(p.numel() for name, p in network.named_parameters()
              if not any(part in name for part in ('audio', 'memory_gate', 'compressor')))
    assert own == 1_418_996_800


def test_config_round_trips_and_refuses_what_it_does_not_know() -> None:
    assert WanConfig.from_json(WAN_TINY.to_json()) == WAN_TINY
    with pytest.raises(ValueError, match='unknown key'):
        WanConfig.from_json(WAN_TINY.to_json().replace('"heads"', '"hats"'))
    with pytest.raises(ValueError, match='multiple of'):
        dataclasses.replace(WAN_TINY, picture_px=100).check()
