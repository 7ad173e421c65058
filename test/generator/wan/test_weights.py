# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_tiny import random_network, relative

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan import fp8, import_weights
from interactive_avatar.generator.wan.config import WAN_TINY, WanConfig
from interactive_avatar.generator.wan.files import WanFiles, is_wan
from interactive_avatar.generator.wan.lora import add_lora, load_lora, lora_state
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.weights import is_added, open_checkpoint, source_names

PATCH = 'patch_embedding.weight'


def released(network: WanTransformer, layout: str) -> dict[str, torch.Tensor]:
    """A network's weights as that layout's release would hold them."""
    state = {}
    for name, value in network.state_dict().items():
        if is_added(name):
            continue
        sources = source_names(name, layout)
        for source, part in zip(sources, value.chunk(len(sources)), strict=True):
            if name == PATCH:
                part = part.unflatten(1, (16, 1, 2, 2))
            elif name.endswith('modulation'):
                part = part[None]
            state[source] = part.contiguous()
    return state


def write(folder: Path, layout: str, shards: int = 1) -> Path:
    """A release on disk; returns what a user would point at."""
    folder.mkdir(parents=True, exist_ok=True)
    state = released(random_network(), layout)
    (folder / 'config.json').write_text(json.dumps({'num_heads': WAN_TINY.network.heads}))
    if layout == 'self-forcing':
        path = folder / 'model.pt'
        torch.save({'generator_ema': {f'model.{k}': v for k, v in state.items()}}, path)
        return path
    names = sorted(state)
    for index in range(shards):
        save_file({name: state[name] for name in names[index::shards]}, str(
            folder / f'diffusion-{index + 1:05}-of-{shards:05}.safetensors'))
    return folder


def arguments(path: Path, out: Path, *more: str) -> tuple[int, object]:
    parser = ArgumentParser()
    import_weights.add_arguments(parser)
    args = parser.parse_args([str(path), '--out', str(out), '--picture-px', '128', '--dtype',
                              'float32', *more])
    return import_weights.main(args), args


@pytest.mark.parametrize('layout', ['wan', 'diffusers', 'self-forcing'])
def test_every_layout_brings_in_the_same_weights(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / 'in', layout, shards=2)
    assert open_checkpoint(path).layout == layout
    code, _ = arguments(path, tmp_path / 'out')
    assert code == 0
    expected = random_network().state_dict()
    made = load_file(str(tmp_path / 'out' / 'model.safetensors'))
    for name, value in expected.items():
        if not is_added(name):
            assert torch.equal(made[name], value), name
        elif name.endswith(('memory_gate', 'audio.o.weight', 'compressor.out.weight')):
            assert not made[name].any()
    assert is_wan(tmp_path / 'out')
    config = WanConfig.from_json((tmp_path / 'out' / 'config.json').read_text())
    assert config.network.heads == WAN_TINY.network.heads
    provenance = json.loads((tmp_path / 'out' / 'provenance.json').read_text())
    assert provenance['layout'] == layout
    with pytest.raises(ModelError, match=r'no vae.*--vae'):
        WanFiles.open(tmp_path / 'out')


@pytest.mark.parametrize(('spoil', 'complaint'), [
    (lambda s: s.pop('blocks.1.ffn.0.bias'), r'missing: blocks\.1\.ffn\.0\.bias'),
    (lambda s: s.update({'img_emb.proj.weight': torch.zeros(2)}), r'unexpected: img_emb'),
    (lambda s: s.update({'head.head.bias': torch.zeros(9)}),
     r'wrong shapes: head\.head\.bias \[9\] instead of \[64\]'),
    (lambda s: s.update({'patch_embedding.weight': torch.zeros(48, 36, 1, 2, 2)}),
     'image-to-video'),
    (lambda s: s.update({'head.head.weight': s['head.head.weight'].to(torch.float8_e4m3fn)}),
     '8-bit floats')])
def test_what_does_not_fit_is_named(spoil, complaint: str, tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    import re
    state = released(random_network(), 'wan')
    spoil(state)
    save_file(state, str(tmp_path / 'w.safetensors'))
    (tmp_path / 'config.json').write_text(json.dumps({'num_heads': WAN_TINY.network.heads}))
    code, _ = arguments(tmp_path / 'w.safetensors', tmp_path / 'out')
    assert code == 1
    assert re.search(complaint, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


def test_half_the_shards_and_strangers_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / 'in', 'wan', shards=2)
    next(folder.glob('*00002*')).unlink()
    with pytest.raises(ModelError, match=r'1 of 2 shards .* missing number 2'):
        open_checkpoint(folder)
    (folder / 'x.safetensors.index.json').write_text(json.dumps(
        {'weight_map': {'a': 'gone.safetensors'}}))
    with pytest.raises(ModelError, match=r'missing .*gone\.safetensors'):
        open_checkpoint(folder)
    save_file({'a': torch.zeros(1)}, str(tmp_path / 'a.safetensors'))
    with pytest.raises(ModelError, match='no known layout'):
        open_checkpoint(tmp_path / 'a.safetensors')
    with pytest.raises(ModelError, match="has the layout 'diffusers', not 'wan'"):
        open_checkpoint(write(tmp_path / 'd', 'diffusers'), 'wan')
    (tmp_path / 'cut.safetensors').write_bytes(b'12345678')
    with pytest.raises(ModelError, match='cut off'):
        open_checkpoint(tmp_path / 'cut.safetensors')
    with pytest.raises(ModelError, match='no checkpoint'):
        open_checkpoint(tmp_path / 'nowhere')


def lora_file(path: Path, rank: int, up_rank: int | None = None) -> Path:
    width = WAN_TINY.network.width
    torch.manual_seed(4)
    save_file({'diffusion_model.blocks.0.self_attn.k.lora_A.weight': torch.randn(rank, width),
               'diffusion_model.blocks.0.self_attn.k.lora_B.weight':
                   torch.randn(width, up_rank or rank)}, str(path))
    return path


def test_a_lora_is_merged_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / 'in', 'wan')
    good = lora_file(tmp_path / 'lora.safetensors', 4)
    assert arguments(folder, tmp_path / 'out', '--lora', str(good))[0] == 0
    made = load_file(str(tmp_path / 'out' / 'model.safetensors'))
    before = random_network().state_dict()
    change = made['blocks.0.qkv.weight'] - before['blocks.0.qkv.weight']
    factors = load_file(str(good))
    expected = (factors['diffusion_model.blocks.0.self_attn.k.lora_B.weight']
                @ factors['diffusion_model.blocks.0.self_attn.k.lora_A.weight'])
    width = WAN_TINY.network.width
    assert relative(change[width:2 * width], expected) < 1e-5
    assert not change[:width].any()
    assert arguments(folder, tmp_path / 'no', '--lora', str(good), '--lora-rank', '8')[0] == 1
    assert 'is of rank 4' in capsys.readouterr().err
    bad = lora_file(tmp_path / 'bad.safetensors', 4, 6)
    assert arguments(folder, tmp_path / 'no', '--lora', str(bad))[0] == 1
    assert 'rank' in capsys.readouterr().err


def test_adapters_start_at_nothing_train_alone_and_load_at_their_rank() -> None:
    c = WAN_TINY
    network = random_network()
    x, text = torch.randn(1, 3, *c.latent_shape), torch.randn(1, 5, c.network.text_width)
    level = torch.full((1, 1), 0.5)
    before = network(x, level, network.text_cache(text)).detach()
    count = add_lora(network, 2)
    trainable = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trainable.values()) == count
    made = network(x, level, network.text_cache(text))
    torch.testing.assert_close(made, before)
    made.square().mean().backward()
    # Sound is off here, so its adapters have nothing to learn from.
    assert all(p.grad is not None for n, p in trainable.items() if '.audio.' not in n)
    other = random_network()
    add_lora(other, 3)
    with pytest.raises(ModelError, match=r'rank \[2\].*\[3\]'):
        load_lora(other, lora_state(network))


def test_eight_bits_stay_close_and_survive_a_cast() -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(64, 32), torch.randn(5, 64)
    small = fp8.Fp8Linear(linear)
    assert relative(small(x), linear(x)) < 0.05
    small.to(torch.bfloat16)
    assert small.weight.dtype == torch.float8_e4m3fn
    assert small.scale.dtype == torch.float32


def test_the_original_text_encoder_becomes_transformers_own(tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers', reason='install the extra `test`')
    torch.manual_seed(0)
    encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(
        vocab_size=16, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).eval()
    original = {}
    for name, value in encoder.state_dict().items():
        for theirs, ours in (
                ('shared.', 'token_embedding.'), ('encoder.final_layer_norm.', 'norm.'),
                ('encoder.block.', 'blocks.'), ('.layer.0.layer_norm.', '.norm1.'),
                ('.layer.0.SelfAttention.relative_attention_bias.', '.pos_embedding.embedding.'),
                ('.layer.0.SelfAttention.', '.attn.'), ('.layer.1.layer_norm.', '.norm2.'),
                ('.layer.1.DenseReluDense.wi_0.', '.ffn.gate.0.'),
                ('.layer.1.DenseReluDense.wi_1.', '.ffn.fc1.'),
                ('.layer.1.DenseReluDense.wo.', '.ffn.fc2.')):
            name = name.replace(theirs, ours)
        if name != 'encoder.embed_tokens.weight':
            original[name] = value
    torch.save(original, tmp_path / 't5.pth')
    folder = import_weights._convert_text_encoder(tmp_path / 't5.pth', tmp_path / 'made')
    made = transformers.UMT5EncoderModel.from_pretrained(folder).eval()
    ids = torch.tensor([[1, 2, 3, 5]])
    with torch.no_grad():
        torch.testing.assert_close(made(ids).last_hidden_state, encoder(ids).last_hidden_state)
    del original['norm.weight']
    torch.save(original, tmp_path / 'half.pth')
    with pytest.raises(ModelError, match='no whole UMT5 encoder'):
        import_weights._convert_text_encoder(tmp_path / 'half.pth', tmp_path / 'other')
