# SPDX-License-Identifier: Apache-2.0
"""Optimised graphs and encoded faces are kept, and made again where they are useless."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tiny import TINY, open_stream, reference

from interactive_avatar.generator.backends import onnx_sessions
from interactive_avatar.generator.backends.onnx import OnnxBackend
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.media.clock import CHUNK_SAMPLES


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept, empty."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'avatar_bringup' / 'onnx'


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are optimised from now on."""
    names: list[str] = []
    keep = onnx_sessions._keep

    def counted(graph: Path, path: Path) -> bool:
        names.append(graph.stem)
        return keep(graph, path)

    monkeypatch.setattr(onnx_sessions, '_keep', counted)
    return names


def still(seed: int = 0) -> np.ndarray:
    return np.repeat(reference(seed)[None], TINY.autoencoder.frames, axis=0)


def test_a_graph_is_optimised_once(model: Path, kept: Path, optimised: list[str]) -> None:
    files = ModelFiles.open(model)
    for _ in range(2):
        OnnxBackend(files, graphs=('decode',)).close()
    OnnxBackend(files, int8=False, graphs=('decode',)).close()
    assert optimised == ['decode.int8', 'decode']
    assert sorted(path.name.split('-')[0] for path in kept.iterdir()) == ['decode', 'decode.int8']


@pytest.mark.parametrize('damage', [lambda path: path.write_bytes(path.read_bytes()[:1000]),
                                    lambda path: path.write_bytes(b''), Path.unlink])
def test_a_damaged_graph_is_made_again(model: Path, kept: Path, optimised: list[str],
                                       damage: Callable[[Path], object]) -> None:
    files = ModelFiles.open(model)
    OnnxBackend(files, graphs=('encode_audio',)).close()
    damage(next(kept.glob('encode_audio-*.onnx')))
    OnnxBackend(files, graphs=('encode_audio',)).close()
    assert optimised == ['encode_audio'] * 2


@pytest.mark.parametrize('blocked', ['', 'avatar_bringup/onnx'])
def test_without_a_place_to_keep_anything_it_runs(model: Path, tmp_path: Path, blocked: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / 'cache' / blocked
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()  # a file where the folder would be
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    levels = []
    session = onnx_sessions._session

    def seen(graph: Path, options: Any) -> Any:
        opened = session(graph, options)
        levels.append(options.graph_optimization_level)
        return opened

    monkeypatch.setattr(onnx_sessions, '_session', seen)
    stream = open_stream(OnnxBackend(ModelFiles.open(model)))
    assert stream.step(np.zeros(CHUNK_SAMPLES, np.int16)).index == 0
    assert set(levels) == {ort.GraphOptimizationLevel.ORT_ENABLE_ALL}


def test_a_graph_that_cannot_be_loaded_is_named(model: Path, kept: Path, tmp_path: Path) -> None:
    files = ModelFiles(tmp_path, TINY)
    (tmp_path / 'model.safetensors').touch()
    (tmp_path / 'decode.onnx').write_bytes(b'no graph')
    with pytest.raises(ModelError, match=r"'decode'.*avatar export"):
        OnnxBackend(files, graphs=('decode',))


def test_a_face_is_encoded_once(model: Path, kept: Path) -> None:
    files = ModelFiles.open(model)
    first = OnnxBackend(files)
    latent = first.encode_image(still())
    k, v = first.embed_reference(latent)
    second = OnnxBackend(files)
    np.testing.assert_array_equal(second.encode_image(still()), latent)
    for found, wanted in zip(second.embed_reference(latent), (k, v), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not {'encode_image', 'embed_reference'} & set(second._graphs)
    assert not np.array_equal(second.encode_image(still(1)), latent)
    next(kept.glob('encode_image-*.npz')).write_bytes(b'damaged')
    np.testing.assert_array_equal(OnnxBackend(files).encode_image(still()), latent)


def test_what_nobody_uses_is_removed(model: Path, kept: Path) -> None:
    files = ModelFiles.open(model)
    kept.mkdir(parents=True)
    old, recent = kept / 'old-0.onnx', kept / 'recent-0.onnx'
    for path in (old, recent):
        path.touch()
    os.utime(old, (0, 0))
    OnnxBackend(files, graphs=('decode',)).close()
    assert not old.exists() and recent.exists()


def test_pixels_depend_neither_on_threads_nor_on_what_was_kept(model: Path, kept: Path) -> None:
    files = ModelFiles.open(model)
    streams = [open_stream(OnnxBackend(files, threads=threads)) for threads in (1, 2, 2)]
    random = np.random.default_rng(0)
    for _ in range(9):
        block = random.integers(-8000, 8000, CHUNK_SAMPLES).astype(np.int16)
        first, *others = [stream.step(block).frames for stream in streams]
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize(('processor', 'wider'), [
    ('flags : fpu avx2 avx512f', '1'), ('flags : fpu avx2 avx_vnni', '0'),
    ('flags : fpu avx512f avx512_vnni amx_int8', '0'), ('aarch64 ', '1')])
def test_products_are_widened_only_where_they_would_overflow(
        processor: str, wider: str, model: Path, kept: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_sessions, '_processor', lambda: processor)
    options = onnx_sessions.session_options(1)
    assert options.get_session_config_entry('session.x64quantprecision') == wider
    # A graph that was kept with the other setting is not taken.
    path = onnx_sessions._kept_path(ModelFiles.open(model), 'decode.int8')
    other = ('fpu', 'aarch64') if wider == '1' else ()
    monkeypatch.setattr(onnx_sessions, 'EXACT_PRODUCTS', other)
    assert onnx_sessions._kept_path(ModelFiles.open(model), 'decode.int8') != path
