# SPDX-License-Identifier: Apache-2.0
"""A whole wan model on disk, tiny and random, streamed through `AvatarStream`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from wan_tiny import random_network, randomise

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.stream import AvatarStream
from interactive_avatar.generator.wan.audio import Wav2Vec2Features, window_samples
from interactive_avatar.generator.wan.backend import (
    Options,
    check_memory,
    parameter_count,
    required_bytes,
)
from interactive_avatar.generator.wan.config import WAN_1_3B, WAN_TINY
from interactive_avatar.generator.wan.parallel import TwoCardRunner
from interactive_avatar.generator.wan.stream import WanStream
from interactive_avatar.media.clock import CHUNK_SAMPLES
from interactive_avatar.media.picture import write_image

diffusers = pytest.importorskip('diffusers', reason='install the extra `test`')
transformers = pytest.importorskip('transformers', reason='install the extra `test`')

CPU = {'device': 'cpu', 'precision': 'float32'}
TINY = dataclasses.replace(WAN_TINY, picture_px=32)


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp('wan')
    n, a = WAN_TINY.network, WAN_TINY.audio
    vae = diffusers.AutoencoderKLWan(base_dim=4)
    randomise(vae)
    vae.save_pretrained(root / 'vae')
    transformers.UMT5EncoderModel(transformers.UMT5Config(
        vocab_size=16, d_model=n.text_width, d_kv=8, d_ff=32, num_layers=2,
        num_heads=2)).save_pretrained(root / 'text_encoder')
    pieces = Tokenizer(models.WordLevel({'<pad>': 0, 'a': 1, 'person': 2, 'nods': 3, '<unk>': 4,
                                         '</s>': 5}, unk_token='<unk>'))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    from tokenizers.processors import TemplateProcessing
    pieces.post_processor = TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 5)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token='<pad>', unk_token='<unk>',
        eos_token='</s>').save_pretrained(root / 'tokenizer')
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(
        hidden_size=a.feature_width, num_hidden_layers=a.feature_layers, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8,) * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2)).save_pretrained(root / 'audio_encoder')
    config = dataclasses.replace(TINY, components={
        name: name for name in ('vae', 'text_encoder', 'tokenizer', 'audio_encoder')})
    (root / 'config.json').write_text(config.to_json())
    save_file(random_network(TINY).state_dict(), str(root / 'model.safetensors'))
    (root / 'identities').mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    write_image(root / 'identities' / 'ann.png', picture)
    return root


def open_stream(model: Path, **options: object) -> AvatarStream:
    return AvatarStream.open(model, 'torch', prompt='a person', **{**CPU, **options})


def sound(chunks: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        -8000, 8000, (chunks, CHUNK_SAMPLES)).astype(np.int16)


def test_a_folder_streams_through_the_one_class(model: Path) -> None:
    stream = open_stream(model)
    assert isinstance(stream, WanStream)
    assert stream.lookahead_chunks == 3
    blocks = sound(9)
    chunks = [stream.step(block) for block in blocks]
    side = TINY.picture_px
    assert all(chunk.frames.shape == (4, side, side, 3) for chunk in chunks)
    assert chunks[0].frames.dtype == np.uint8
    assert not np.concatenate([chunk.audio for chunk in chunks[:3]]).any()
    for late, block in zip(chunks[3:], blocks):
        np.testing.assert_array_equal(late.audio, block)
    assert len({chunk.frames.tobytes() for chunk in chunks}) == len(chunks)
    again = open_stream(model)
    for chunk, block in zip(chunks, blocks):
        np.testing.assert_array_equal(again.step(block).frames, chunk.frames)


def test_the_nodes_parameters_split_it_between_two_cards(
        model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies on the processor; the frames are those of one but for rounding."""
    pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
    from interactive_avatar.nodes.generator import GeneratorOptions, open_stream

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    blocks = sound(4)

    def frames(**parameters: Any) -> list[np.ndarray]:
        stream, _ = open_stream(GeneratorOptions(
            model=str(model), backend='torch', prompt='a person', precision='float32',
            **parameters))
        assert isinstance(stream, WanStream)
        assert isinstance(stream.backend.runner, TwoCardRunner) == (parameters.get('cards') == 2)
        return [stream.step(block).frames.astype(int) for block in blocks]

    for one, two in zip(frames(), frames(cards=2), strict=True):
        assert np.abs(one - two).max() <= 1


def test_prompt_sound_and_snapshot_do_what_they_say(model: Path) -> None:
    stream = open_stream(model)
    blocks = sound(12)
    for block in blocks[:4]:
        stream.step(block)
    start = stream.snapshot()

    def go_on(given: np.ndarray) -> list[np.ndarray]:
        return [stream.step(block).frames for block in given]

    first = go_on(blocks[4:10])
    stream.restore(start)
    np.testing.assert_array_equal(first, go_on(blocks[4:10]))
    stream.restore(start)
    stream.switch('a person nods')
    other = go_on(blocks[4:10])
    # Two chunks of the block under way, then the next block's.
    assert [bool((a != b).any()) for a, b in zip(first, other)] == [False] * 2 + [True] * 4
    stream.restore(start)
    heard = go_on(np.concatenate([blocks[4:7], sound(3, 2)]))
    # Call 6 hears chunk 6 as the lookahead of chunks 3 to 5; what comes later changes nothing.
    assert [bool((a != b).any()) for a, b in zip(first, heard)] == [False] * 5 + [True]
    with pytest.raises(TypeError, match='is not a snapshot'):
        stream.restore(object())
    with pytest.raises(ValueError, match='float32'):
        stream.step(np.zeros(CHUNK_SAMPLES, np.float32))  # type: ignore[arg-type]


def test_memory_fills_and_stays_bounded(model: Path) -> None:
    stream = open_stream(model)
    silence = np.zeros(CHUNK_SAMPLES, np.int16)
    sizes = []
    for index in range(36):
        stream.step(silence)
        if index in (26, 35):
            cache = stream.memory.cache
            sizes.append((cache.frame_tokens, cache.entry_tokens, len(
                stream.memory.history.long_features)))
    memory = WAN_TINY.memory
    assert sizes[0] == sizes[1] == (
        4 * TINY.frame_tokens, (memory.short + memory.long) * memory.entry_tokens,
        memory.long)


def test_wav2vec_hears_its_window_and_no_more(model: Path) -> None:
    features = Wav2Vec2Features.load(model / 'audio_encoder', WAN_TINY, 'cpu')
    count = window_samples(WAN_TINY)
    assert count == 16 * CHUNK_SAMPLES
    silent = features.windows(np.zeros(count, np.int16))
    assert silent.shape == (3, 8, 2, 16)
    assert np.isfinite(silent).all()
    with pytest.raises(ValueError, match='audio window must be'):
        features.windows(np.zeros(5, np.int16))


def test_what_is_missing_or_of_another_size_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="runs with backend 'torch'"):
        AvatarStream.open(model, 'onnx')
    with pytest.raises(ModelError, match='does not take this option'):
        open_stream(model, threads=2)
    with pytest.raises(ModelError, match='precision'):
        open_stream(model, precision='int3')
    with pytest.raises(ModelError, match="decode_device 'gpu' is no device: give cuda:1"):
        open_stream(model, decode_device='gpu')
    with pytest.raises(ModelError, match=r"decode_device 'cuda:63' .* GPUs here: leave it out"):
        open_stream(model, decode_device='cuda:63')
    with pytest.raises(ValueError, match="no identity 'bob'; it has ann"):
        open_stream(model, reference='bob')
    for name in ('model.safetensors', 'config.json'):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    values = json.loads((tmp_path / 'config.json').read_text())

    def components(**changed: str) -> None:
        paths = {name: str(model / name) for name in values['components']} | changed
        (tmp_path / 'config.json').write_text(json.dumps({**values, 'components': paths}))

    components(vae='nowhere')
    with pytest.raises(ModelError, match=r'vae .* not at .*--vae'):
        open_stream(tmp_path, reference=None)
    components()
    with pytest.raises(ModelError, match='give a reference picture'):
        open_stream(tmp_path)
    other = tmp_path / 'small'
    other.mkdir()
    (other / 'config.json').write_text(json.dumps({'d_model': 512, 'num_hidden_layers': 24,
                                                   'hidden_size': 1024}))
    picture = np.full((256, 256, 3), 128, np.uint8)
    picture[:128] = 60
    components(text_encoder=str(other))
    with pytest.raises(ModelError, match=r'has width 512; .* 24'):
        open_stream(tmp_path, reference=picture)
    components(audio_encoder=str(other))
    with pytest.raises(ModelError, match='24 layers of width 1024'):
        open_stream(tmp_path, reference=picture)


def test_too_little_memory_is_said_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parameter_count(WAN_1_3B) > 1_418_996_800
    parts = required_bytes(WAN_1_3B)
    assert sum(parts.values()) < 24 * 2**30
    assert sum(required_bytes(WAN_1_3B, 'fp8').values()) < sum(parts.values())
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda _: (4 * 2**30, 8 * 2**30))
    with pytest.raises(ModelError, match=r'needs about \d+\.\d GiB .* 4\.0 GiB are free'):
        check_memory(WAN_1_3B, Options('cuda', 'cuda', 'bf16', True, True))
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match='sees no GPU'):
            Options('cuda').resolved()
