# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from wan_tiny import randomise, relative

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.vae import (
    METHODS,
    DecoderState,
    StreamingDecoder,
    VaeConfig,
    load_decoder,
)

diffusers = pytest.importorskip('diffusers', reason='install the extra `test`')
BASE = 8


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=BASE)
    randomise(vae)
    for name, parameter in vae.named_parameters():
        if 'gamma' in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    root = tmp_path_factory.mktemp('vae')
    vae.save_pretrained(root)
    return root


def decoder_of(folder: Path) -> StreamingDecoder:
    return load_decoder(folder, torch.device('cpu'), torch.float32)


@pytest.mark.parametrize('method', METHODS)
@torch.no_grad()
def test_decoding_latent_by_latent_equals_diffusers_at_once(folder: Path, method: str) -> None:
    torch.manual_seed(1)
    latents = torch.randn(4, 16, 4, 6)
    decoder = decoder_of(folder)
    for conv in decoder.convolutions:
        conv.method = method
        conv.prepare()
    raw = latents * decoder.latent_std[:, None, None] + decoder.latent_mean[:, None, None]
    theirs = diffusers.AutoencoderKLWan.from_pretrained(folder)
    expected = theirs.decode(raw.transpose(0, 1)[None]).sample[0].permute(1, 2, 3, 0)
    state, parts = DecoderState(), []
    for index in range(4):
        parts.append(decoder.features(latents[index:index + 1], state, index == 0))
    apart = torch.cat(parts).clamp(-1, 1)
    assert apart.shape == (13, 32, 48, 3)
    assert relative(apart, expected) < 1e-5
    state = DecoderState()
    pixels = torch.cat([decoder(latents[:1], state), decoder(latents[1:], state)])
    assert pixels.dtype == torch.uint8
    assert (pixels.float() - (expected * 127.5 + 127.5)).abs().max() < 0.51


def test_a_copied_state_goes_on_alike_and_independently(folder: Path) -> None:
    latents = torch.randn(3, 16, 4, 4)
    decoder, state = decoder_of(folder), DecoderState()
    decoder(latents[:1], state)
    other = state.copy()
    first = decoder(latents[1:], state)
    assert torch.equal(first, decoder(latents[1:], other))
    third = DecoderState()
    third.assign(other)
    assert torch.equal(decoder(latents, third), decoder(latents, other))


def test_tuning_keeps_the_function(folder: Path) -> None:
    latents = torch.randn(3, 16, 4, 4)
    decoder = decoder_of(folder)
    before = decoder(latents, DecoderState())
    chosen = decoder.tune(latents)
    assert set(chosen.values()) <= set(METHODS)
    assert (decoder(latents, DecoderState()).int() - before.int()).abs().max() <= 1


def test_another_vae_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match='cannot be read as the config'):
        VaeConfig.read(tmp_path)
    values = json.loads((folder / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**values, 'is_residual': True}))
    with pytest.raises(ModelError, match=r'Wan2\.2'):
        VaeConfig.read(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({**values, 'base_dim': 16}))
    with pytest.raises(ModelError, match='cannot be read'):
        load_decoder(tmp_path, torch.device('cpu'), torch.float32)
    weights = 'diffusion_pytorch_model.safetensors'
    (tmp_path / weights).write_bytes((folder / weights).read_bytes())
    with pytest.raises(ModelError, match='differs at'):
        load_decoder(tmp_path, torch.device('cpu'), torch.float32)


def test_the_fused_kernel_equals_its_reference() -> None:
    triton = pytest.importorskip('triton', reason='triton comes with CUDA builds of torch')
    del triton
    if not torch.cuda.is_available():
        pytest.skip('the kernel runs on a GPU only')
    from interactive_avatar.generator.wan import kernels, vae
    y, kept = torch.randn(3, 5, 7, 24).cuda(), torch.randn(2, 5, 7, 24).cuda()
    bias, gamma = torch.randn(24).cuda(), torch.rand(24, 1, 1, 1).cuda()
    for added in (None, torch.randn_like(y)):
        a, b = kept.clone(), kept.clone()
        for x, z in zip(vae.enter(y, bias, added, gamma, a),
                        kernels.enter(y, bias, added, gamma, b)):
            torch.testing.assert_close(x, z)
        torch.testing.assert_close(a, b)
