# SPDX-License-Identifier: Apache-2.0
"""A wan model as graphs: run one after the other they are the stream's own passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from wan_tiny import random_network, randomise, relative

from interactive_avatar.generator.backends import engine as command
from interactive_avatar.generator.backends.engines import EngineError, load_api
from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.cache import WanCache
from interactive_avatar.generator.wan.config import WAN_1_3B, WAN_TINY
from interactive_avatar.generator.wan.export import WanGraphFiles, export_wan, main
from interactive_avatar.generator.wan.graphs import graph_names, runs
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.runner import BlockRunner
from interactive_avatar.generator.wan.vae import DecoderState, StreamingDecoder, VaeConfig
from interactive_avatar.generator.wan.window import Context, still_layers

Pair = tuple[torch.Tensor, torch.Tensor]
LAYERS = WAN_TINY.network.layers


@pytest.fixture(scope='module')
def network() -> WanTransformer:
    return random_network()


@pytest.fixture(scope='module')
def decoder() -> StreamingDecoder:
    torch.manual_seed(2)
    made = StreamingDecoder(VaeConfig(base_dim=4))
    randomise(made)
    return made.eval()


@pytest.fixture(scope='module')
def folder(network: WanTransformer, decoder: StreamingDecoder,
           tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('wan')
    save_file(dict(network.state_dict()), str(root / 'model.safetensors'))
    (root / 'config.json').write_text(WAN_TINY.to_json())
    export_wan(root, WAN_TINY, network, decoder, 1, say=lambda text: None)
    return root


def run(folder: Path, name: str, **inputs: torch.Tensor) -> list[torch.Tensor]:
    session = ort.InferenceSession(str(folder / f'{name}.onnx'),
                                   providers=['CPUExecutionProvider'])
    given = {key: value.numpy() for key, value in inputs.items()}
    return [torch.from_numpy(value) for value in session.run(None, given)]


def stack(pairs: list[Pair]) -> Pair:
    return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])


def each(prefix: str, pair: Pair, layer: int) -> dict[str, torch.Tensor]:
    return {f'{prefix}_k': pair[0][layer:layer + 1], f'{prefix}_v': pair[1][layer:layer + 1]}


@torch.no_grad()
def test_layers_one_after_the_other_are_the_streams_forward(network: WanTransformer,
                                                            folder: Path) -> None:
    c = WAN_TINY
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    def entry(tokens: int) -> Pair:
        shape = (LAYERS, tokens, c.network.heads, c.network.head_width)
        return normal(*shape), normal(*shape)

    cache = WanCache(c, torch.device('cpu'), torch.float32)
    cache.place('reference', 0, entry(c.frame_tokens))
    for _ in range(c.memory.adjacent):
        cache.push('adjacent', entry(c.frame_tokens))
    for _ in range(c.memory.short):
        cache.push('short', entry(c.memory.entry_tokens))
    for slot in range(c.memory.long):
        cache.place('long', slot, entry(c.memory.entry_tokens))
    states = normal(1, c.network.text_tokens, c.network.text_width)
    features = normal(c.chunk_latents, 8, c.audio.feature_layers, c.audio.feature_width)
    latents = normal(1, c.chunk_latents, *c.latent_shape)
    runner = BlockRunner(network)
    runner.condition(stack(network.text_cache(states)), stack(network.audio_cache(features)))
    runner.see(cache)
    expected = runner.forward(latents, 0.6)

    text = tuple(run(folder, 'encode_text', states=states))
    audio = tuple(run(folder, 'encode_audio', features=features))
    (x,) = run(folder, 'embed', latents=latents)
    embedded, modulation = run(folder, 'time', level=torch.full((1, 1), 0.6))
    context = Context.of(network, cache)
    keys = []
    for layer in range(LAYERS):
        x, k, _ = run(
            folder, f'layers_{layer:02d}_{layer + 1:02d}', x=x,
            modulation=modulation[layer:layer + 1],
            **each('frames', tuple(t[:, None] for t in context.frames), layer),
            **each('entries', tuple(t[:, None] for t in context.entries), layer),
            **each('text', text, layer), **each('audio', audio, layer))
        keys.append(k)
    (velocity,) = run(folder, 'head', x=x, embedded=embedded)
    assert relative(velocity, expected) < 1e-4
    made = torch.cat(keys)[:, 0, :c.frame_tokens]
    assert relative(made, runner.commit(latents, 0.6)[0][0]) < 1e-4


@torch.no_grad()
def test_pictures_that_stand_by_themselves(network: WanTransformer, folder: Path) -> None:
    c = WAN_TINY
    states = torch.randn(1, c.network.text_tokens, c.network.text_width)
    group = torch.randn(1, c.memory.group, *c.latent_shape)
    latents = torch.randn(1, c.chunk_latents, *c.latent_shape)
    text = network.text_cache(states)
    reference = still_layers(network, network.embed(latents[:, :1])[:, 0], text, None)
    entry = still_layers(network, network.compressor(group, network.embed), text, reference)
    given = tuple(run(folder, 'encode_text', states=states))
    _, modulation = run(folder, 'time', level=torch.zeros(1, 1))
    (x,) = run(folder, 'embed', latents=latents)
    x, (tokens,) = x[:, :1], run(folder, 'compress', latents=group)
    for layer in range(LAYERS):
        span = f'{layer:02d}_{layer + 1:02d}'
        shared = {'modulation': modulation[layer:layer + 1], **each('text', given, layer)}
        x, k, v = run(folder, f'reference_{span}', x=x, **shared)
        assert relative(k[0], reference[layer][0]) < 1e-4
        tokens, k, v = run(folder, f'entry_{span}', x=tokens, **shared,
                           reference_k=k, reference_v=v)
        assert relative(k[0], entry[layer][0]) < 1e-4
        assert relative(v[0], entry[layer][1]) < 1e-4


@torch.no_grad()
def test_frames_of_the_decoder_latent_by_latent(decoder: StreamingDecoder, folder: Path) -> None:
    latents = torch.randn(3, *WAN_TINY.latent_shape)
    state = DecoderState()
    expected = torch.cat([decoder(latents[:1], state), decoder(latents[1:], state)])
    kept: dict[str, torch.Tensor] = {
        name: torch.zeros(spec.shape)
        for name, spec in WanGraphFiles.open(folder).graphs['decode'].inputs.items()
        if name.startswith('kept_')}
    made = []
    for index, latent in enumerate(latents):
        frames, *after = run(folder, 'decode' if index else 'decode_first', latent=latent[None],
                             **kept)
        kept = dict(zip(kept, after, strict=True))
        made.append(frames)
    assert torch.cat(made).shape == expected.shape
    assert (torch.cat(made).int() - expected.int()).abs().max() <= 1


def test_graphs_are_named_by_their_layers_and_checked(folder: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert runs(WAN_1_3B, 8) == [(0, 8), (8, 16), (16, 24), (24, 30)]
    assert 'entry_24_30' in graph_names(WAN_1_3B, 8)
    files = WanGraphFiles.open(folder)
    assert set(files.graphs) == set(graph_names(WAN_TINY, 1))
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / 'head.onnx').write_bytes(b'x' * (tmp_path / 'head.onnx').stat().st_size)
    with pytest.raises(ModelError, match=r'head\.onnx.* is corrupt; run'):
        WanGraphFiles.open(tmp_path)
    (tmp_path / 'model.safetensors').write_bytes(b'')
    with pytest.raises(ModelError, match=r'model\.safetensors.* missing or has changed'):
        WanGraphFiles.open(tmp_path)
    assert main(['--random', 'wan-tiny', '--out', str(tmp_path / 'new'), '--graph', 'tail']) == 1
    assert "no graph 'tail'" in capsys.readouterr().err
    assert command.main(['build', '--model', str(folder), '--graph', 'tail']) == 1
    assert "no graph 'tail'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_graph_compiles(folder: Path, tmp_path: Path) -> None:
    try:
        load_api('tensorrt_rtx')
    except EngineError as error:
        pytest.skip(f'TensorRT-RTX is not installed: {error}')
    assert command.main(['build', '--model', str(folder), '--api', 'tensorrt_rtx',
                         '--compute-capability', 'any', '--folder', str(tmp_path)]) == 0
    records: list[dict[str, Any]] = [json.loads(path.read_text())
                                     for path in tmp_path.glob('*.json')]
    assert {record['graph'] for record in records} == set(graph_names(WAN_TINY, 1))
    signatures = WanGraphFiles.open(folder).graphs
    assert all(record['signature'] == signatures[record['graph']].to_dict()
               for record in records)
    assert np.all([record['engine_bytes'] > 0 for record in records])
