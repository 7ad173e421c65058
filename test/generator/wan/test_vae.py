# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from wan_tiny import kernel_device, randomise, relative

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.vae import (
    METHODS,
    UP_METHODS,
    DecoderState,
    StreamingDecoder,
    UpConv,
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


@pytest.mark.parametrize('method', METHODS + UP_METHODS)
@torch.no_grad()
def test_decoding_latent_by_latent_equals_diffusers_at_once(folder: Path, method: str) -> None:
    torch.manual_seed(1)
    latents = torch.randn(4, 16, 4, 6)
    decoder = decoder_of(folder)
    ways = [conv for conv in decoder.convolutions if method in conv.methods]
    assert len(ways) > 2
    for conv in ways:
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
    assert set(chosen.values()) <= {*METHODS, *UP_METHODS}
    assert (decoder(latents, DecoderState()).int() - before.int()).abs().max() <= 1


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_loading_and_casting_renews_weights_that_were_laid_out(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    conv, x = UpConv(6, 4), torch.randn(2, 5, 3, 6)
    conv.method = 'phases'
    conv(x)
    other = UpConv(6, 4)
    conv.load_state_dict(other.state_dict())
    conv, other, x = conv.to(dtype), other.to(dtype), x.to(dtype)
    assert conv(x).shape == (2, 10, 6, 4)
    assert relative(conv(x).float(), other(x).float()) < (
        1e-6 if dtype == torch.float32 else 1e-2)


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


@pytest.mark.parametrize('frames', [1, 2, 3])
def test_the_fused_kernel_equals_its_reference(frames: int) -> None:
    device = kernel_device()
    from interactive_avatar.generator.wan import kernels, vae
    y, kept = (torch.randn(n, 5, 7, 24, device=device) for n in (frames, 2))
    bias, gamma = torch.randn(24, device=device), torch.rand(24, 1, 1, 1, device=device)
    for added in (None, torch.randn_like(y)):
        a, b = kept.clone(), kept.clone()
        for x, z in zip(vae.enter(y, bias, added, gamma, a),
                        kernels.enter(y, bias, added, gamma, b)):
            torch.testing.assert_close(x, z)
        torch.testing.assert_close(a, b)
