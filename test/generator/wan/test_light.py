# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.light import (
    LightDecoder,
    LightDecoderConfig,
    load_light_decoder,
)
from interactive_avatar.generator.wan.vae import DecoderState


def test_latents_one_by_one_equal_all_at_once() -> None:
    torch.manual_seed(0)
    decoder = LightDecoder(LightDecoderConfig((16, 8, 8, 8))).eval()
    latents = torch.randn(4, 16, 4, 4)
    together = decoder(latents, DecoderState())
    state = DecoderState()
    apart = torch.cat([decoder(latent[None], state) for latent in latents])
    assert together.shape == (13, 32, 32, 3)
    assert (together.int() - apart.int()).abs().max() <= 1


def test_weights_load_under_their_public_names_or_are_refused(tmp_path: Path) -> None:
    state = LightDecoder(LightDecoderConfig()).state_dict()
    assert state['decoder.3.conv.0.weight'].shape == (256, 512, 3, 3)
    # The release may hold growers for more frames than are used.
    grown = {**state, 'decoder.7.conv.weight': torch.cat([state['decoder.7.conv.weight']] * 2)}
    torch.save(grown, tmp_path / 'taew2_1.pth')
    loaded = load_light_decoder(tmp_path / 'taew2_1.pth').state_dict()
    assert torch.equal(loaded['decoder.22.weight'], state['decoder.22.weight'])
    del state['decoder.22.bias']
    torch.save(state, tmp_path / 'bad.pth')
    with pytest.raises(ModelError, match=r'differs at .*decoder\.22\.bias'):
        load_light_decoder(tmp_path / 'bad.pth')
