# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines: every graph of the shipped model really compiled, and a cache that refuses."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from interactive_avatar.generator.backends import engine as command
from interactive_avatar.generator.backends import engines
from interactive_avatar.generator.backends.engines import (
    PORTABLE,
    Api,
    EngineCache,
    EngineError,
    EngineSpec,
    build_engine,
    ensure_engine,
    inspect_engine,
    load_api,
)
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.signatures import DEVICE_GRAPHS, STREAM_GRAPHS
from interactive_avatar.paths import resource

SMALL = 'sample_step'


@pytest.fixture(scope='module')
def api() -> Api:
    try:
        return load_api('tensorrt_rtx')
    except EngineError as error:
        pytest.skip(f'TensorRT-RTX is not installed: {error}')


@pytest.fixture(scope='module')
def built(model: Path, api: Api, tmp_path_factory: pytest.TempPathFactory
          ) -> tuple[ModelFiles, EngineCache, EngineSpec]:
    files = ModelFiles.open(model)
    cache = EngineCache(tmp_path_factory.mktemp('engines'))
    spec = EngineSpec.of(files, SMALL, api, PORTABLE, 'fp16')
    build_engine(spec, files, api, cache)
    return files, cache, spec


@pytest.fixture
def cache(built: tuple[ModelFiles, EngineCache, EngineSpec], tmp_path: Path) -> EngineCache:
    """A copy of the cache with one engine in it, to spoil."""
    for path in built[1].folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return EngineCache(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('graph', [*STREAM_GRAPHS, *DEVICE_GRAPHS])
def test_the_shipped_model_compiles(api: Api, tmp_path: Path, graph: str) -> None:
    files = ModelFiles.open(resource('models/compact'))
    cache = EngineCache(tmp_path)
    spec = EngineSpec.of(files, graph, api, PORTABLE, 'fp16')
    path = build_engine(spec, files, api, cache)
    plan = cache.load(spec)
    # What the plan itself names; `build_engine` compared types and shapes with the network's.
    for name in (*spec.signature.inputs, *spec.signature.outputs):
        assert name.encode() in plan, name
    assert inspect_engine(path).record['signature'] == spec.signature.to_dict()


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_other_precisions_compile_too(model: Path, api: Api, tmp_path: Path,
                                      precision: str) -> None:
    files, cache = ModelFiles.open(model), EngineCache(tmp_path)
    spec = EngineSpec.of(files, 'encode_text', api, PORTABLE, precision)
    build_engine(spec, files, api, cache)
    assert cache.load(spec)


def test_a_ready_engine_is_not_built_again(built: tuple[ModelFiles, EngineCache, EngineSpec],
                                           api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    files, cache, spec = built
    monkeypatch.setattr(engines, 'build_engine', lambda *arguments: pytest.fail('built again'))
    assert ensure_engine(spec, files, api, cache, build=True) == cache.path(spec).read_bytes()


@pytest.mark.parametrize('spoil, told', [
    (lambda data: data[:-100], 'truncated or changed'),
    (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 'corrupt: its sha256')])
def test_a_spoilt_engine_is_named_and_built_once(
        built: tuple[ModelFiles, EngineCache, EngineSpec], cache: EngineCache, api: Api,
        spoil: object, told: str) -> None:
    files, _, spec = built
    path = cache.path(spec)
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(EngineError, match=told) as caught:
        ensure_engine(spec, files, api, cache, build=False)
    assert 'avatar engine build' in str(caught.value) and f'--graph {SMALL}' in str(caught.value)
    said: list[str] = []
    assert ensure_engine(spec, files, api, cache, build=True, log=said.append)
    assert told.split(':')[0] in said[0]


def test_a_lost_or_foreign_record_is_named(
        built: tuple[ModelFiles, EngineCache, EngineSpec], cache: EngineCache) -> None:
    spec = built[2]
    path = cache.path(spec).with_suffix('.json')
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, 'compute_capability': '8.7'}))
    with pytest.raises(EngineError, match=r"compute_capability is '8.7' instead of 'any'"):
        cache.load(spec)
    path.write_text(json.dumps({**record, 'api_version': '99.1.0'}))
    with pytest.raises(EngineError, match='written by version'):
        cache.load(spec)
    path.unlink()
    with pytest.raises(EngineError, match='cannot be read'):
        cache.load(spec)


def test_an_engine_for_something_else_explains_the_miss(
        built: tuple[ModelFiles, EngineCache, EngineSpec], api: Api) -> None:
    files, cache, _ = built
    other = EngineSpec.of(files, SMALL, api, '8.9', 'bf16')
    with pytest.raises(EngineError) as caught:
        cache.load(other)
    said = str(caught.value)
    assert "its precision is 'fp16' instead of 'bf16'" in said
    assert '--compute-capability 8.9' in said and '--precision bf16' in said


def test_a_card_that_is_not_known_is_named(model: Path, api: Api, tmp_path: Path) -> None:
    files = ModelFiles.open(model)
    spec = EngineSpec.of(files, SMALL, api, '3.5', 'fp16')
    with pytest.raises(EngineError, match=r'compute capability 3\.5; it knows SM120'):
        build_engine(spec, files, api, EngineCache(tmp_path))


def test_the_command(model: Path, api: Api, tmp_path: Path,
                     capsys: pytest.CaptureFixture[str]) -> None:
    build = ['build', '--model', str(model), '--api', 'tensorrt_rtx', '--compute-capability',
             PORTABLE, '--graph', SMALL, '--folder', str(tmp_path)]
    assert command.main(build) == 0 and 'MiB in' in capsys.readouterr().out
    assert command.main(build) == 0 and 'ready' in capsys.readouterr().out
    name, = (path.name for path in tmp_path.glob('*.engine'))
    assert command.main(['inspect', name, '--folder', str(tmp_path)]) == 0
    assert '"next_level"' in capsys.readouterr().out
    (tmp_path / name).write_bytes(b'vtrt')
    assert command.main(['list', '--folder', str(tmp_path)]) == 0
    assert 'truncated' in capsys.readouterr().out
    assert command.main(['inspect', name, '--folder', str(tmp_path)]) == 1
    assert command.main(['clean', '--folder', str(tmp_path)]) == 0
    assert '1 engines removed' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert command.main(['inspect', name, '--folder', str(tmp_path)]) == 1
    assert 'avatar engine list' in capsys.readouterr().err


def test_what_goes_on_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, 'PROGRESS_PERIOD_S', 0.02)
    said: list[str] = []
    with engines.progress('building', said.append):
        time.sleep(0.1)
    assert len(said) >= 2 and said[0].startswith('building: ')


def test_without_tensorrt_the_command_to_install_is_named(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f'No module named {name!r}')

    monkeypatch.setattr(engines.importlib, 'import_module', refuse)
    with pytest.raises(EngineError, match=r'JetPack.*tensorrt-rtx-cu13-bindings'):
        load_api()
