# SPDX-License-Identifier: Apache-2.0
"""``avatar export``: whole models only, from what stages write or from a released one."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'generator'))

from tiny import TINY

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.base import pad_text
from interactive_avatar.generator.backends.onnx import OnnxText
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.networks import Generator
from interactive_avatar.media.picture import write_image
from interactive_avatar.training import release


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tiny:
        from_json = GeneratorConfig.from_json

        def __call__(self) -> GeneratorConfig:
            return TINY

    monkeypatch.setattr(release, 'GeneratorConfig', Tiny())


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    release.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_parts_of_a_model_are_refused_and_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / 'out').mkdir()
    Generator(TINY).save(tmp_path / 'out' / release.WEIGHTS, quantise=False,
                         prefixes=('audio.', 'denoiser.'))
    with pytest.raises(ValueError, match=r"such as 'autoencoder\..*checkpoints/state"):
        release.main(arguments('--weights', tmp_path / 'out', '--out', tmp_path / 'model'))
    assert not (tmp_path / 'model').exists()


def test_a_released_model_is_exported_again_with_other_levels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / 'state').mkdir()
    Generator(TINY).save(tmp_path / 'state' / release.WEIGHTS, quantise=False)
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert release.main(arguments('--weights', tmp_path / 'state', '--out', one,
                                  '--levels', '1')) == 0
    (one / 'identities').mkdir()
    (one / 'identities' / 'ada.png').write_bytes(b'picture')
    assert release.main(arguments('--weights', one, '--out', two, '--levels', '1,0.25')) == 0
    first, second = ModelFiles.open(one), ModelFiles.open(two)
    assert release.main(arguments('--weights', one, '--out', tmp_path / 'same')) == 0
    assert ModelFiles.open(tmp_path / 'same').config == ModelFiles.open(one).config
    assert (first.config.sampler.levels, second.config.sampler.levels) == ((1.0,), (1.0, 0.25))
    assert (two / 'identities' / 'ada.png').read_bytes() == b'picture'
    before, after = Generator(TINY), Generator(TINY)
    before.load(one / 'model.safetensors')
    after.load(two / 'model.safetensors')
    for (name, a), b in zip(before.state_dict().items(), after.state_dict().values(),
                            strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3, msg=name)


def test_a_model_is_widened_and_keeps_its_size_from_then_on(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    (tmp_path / 'state').mkdir()
    Generator(TINY).save(tmp_path / 'state' / release.WEIGHTS, quantise=False)
    wide, decoder = tmp_path / 'wide', tmp_path / 'decoder'
    (wide / 'identities').mkdir(parents=True)
    write_image(wide / 'identities' / 'ada.png', np.zeros((128, 128, 3), np.uint8))
    assert release.main(arguments('--weights', tmp_path / 'state', '--upscale', 2, '--out',
                                  wide)) == 0
    assert '128 pixels where the model draws 256' in capsys.readouterr().out
    files = ModelFiles.open(wide)
    side = 2 * TINY.autoencoder.picture_px
    assert files.graphs['decode'].outputs['frames'].shape == (1, 4, side, side, 3)
    assert files.graphs['encode_image'].outputs['latent'].shape[-1] == TINY.autoencoder.latent_px
    # What a stage trained of it says itself how large its pictures are.
    trained = Generator(files.config)
    trained.load(wide / 'model.safetensors')
    decoder.mkdir()
    trained.save(decoder / release.WEIGHTS, quantise=False, prefixes=('autoencoder.decoder.',))
    assert release.main(arguments('--weights', tmp_path / 'state', decoder, '--out',
                                  tmp_path / 'both')) == 0
    assert ModelFiles.open(tmp_path / 'both').config == files.config
    # What brings no decoder does not say how large pictures are.
    (tmp_path / 'sound').mkdir()
    Generator(TINY).save(tmp_path / 'sound' / release.WEIGHTS, prefixes=('audio.',))
    assert release.main(arguments('--weights', wide, tmp_path / 'sound', '--out',
                                  tmp_path / 'heard')) == 0
    assert ModelFiles.open(tmp_path / 'heard').config == files.config
    with pytest.raises(ModelError, match='shapes'):
        release.main(arguments('--weights', wide, '--upscale', 1, '--out', tmp_path / 'no'))


def test_a_refiner_trained_by_itself_joins_a_model_that_has_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old, refined = tmp_path / 'old', replace(TINY, denoiser=replace(
        TINY.denoiser, refiner_layers=1, refiner_heads=2, refiner_ffn_width=16))
    (tmp_path / 'state').mkdir()
    Generator(TINY).save(tmp_path / 'state' / release.WEIGHTS, quantise=False)
    assert release.main(arguments('--weights', tmp_path / 'state', '--out', old)) == 0
    (tmp_path / 'text').mkdir()
    trained = Generator(refined)
    assert trained.denoiser.refiner is not None
    for name, value in trained.denoiser.refiner.named_parameters():
        if name.endswith('down.weight'):
            torch.nn.init.normal_(value)
    trained.save(tmp_path / 'text' / release.WEIGHTS, quantise=False,
                 prefixes=('denoiser.refiner.',))
    new = tmp_path / 'new'
    assert release.main(arguments('--weights', old, tmp_path / 'text', '--out', new)) == 0
    assert ModelFiles.open(old).config.denoiser.refiner_layers == 0
    assert ModelFiles.open(new).config.denoiser.refiner_layers == 1
    text = np.random.default_rng(0).standard_normal((3, TINY.denoiser.text_width)).astype('f')
    with_it, without = (open_backend('onnx', ModelFiles.open(folder)).encode_text(text)
                        for folder in (new, old))
    assert isinstance(with_it, OnnxText) and isinstance(without, OnnxText)
    assert not np.allclose(with_it.k, without.k)
    # The graph does what the networks do.
    loaded = Generator(refined)
    loaded.load(new / 'model.safetensors')
    padded, _ = pad_text(text, refined)
    k, _ = loaded.denoiser.text_cache(torch.from_numpy(padded)[None])
    np.testing.assert_allclose(with_it.k, k.detach().numpy(), atol=2e-3)
