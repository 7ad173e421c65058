# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines: building them, and the cache that never hands out a wrong one.

One code for ``tensorrt`` (10 or newer: Jetson, data centre) and ``tensorrt_rtx`` (desktop RTX),
which share the API used here. TensorRT-RTX compiles without a GPU.

An engine is kept under ``$XDG_CACHE_HOME/avatar_bringup/engines`` by a key of all that it depends
on, with a JSON record beside it; both are written under a temporary name and renamed. An engine
whose record, size, hash or plan header does not fit is named with the reason, never loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from interactive_avatar.generator.backends.engine_graph import (
    PRECISIONS,
    PREPARATION_VERSION,
    prepare_graph,
)
from interactive_avatar.generator.model import WEIGHTS_NAME, ModelError
from interactive_avatar.generator.signatures import GraphSignature, TensorSpec
from interactive_avatar.paths import cache_folder

PROGRESS_PERIOD_S: Final = 5.0
MINIMUM_VERSION: Final = {'tensorrt': 10, 'tensorrt_rtx': 1}
MODULES: Final = {'tensorrt': ('tensorrt',),
                  # The thin package tensorrt_rtx only renames the bindings, and may be absent.
                  'tensorrt_rtx': ('tensorrt_rtx', 'tensorrt_rtx_bindings')}
INSTALL: Final = {
    'tensorrt': "on a Jetson it comes with JetPack ('apt install python3-libnvinfer'), elsewhere "
                "'pip install tensorrt'",
    'tensorrt_rtx': "'pip install --no-deps tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs'"}
PORTABLE: Final = 'any'
"""Compute capability of an engine that TensorRT-RTX compiles for every card it supports."""

UNSUPPORTED_BY_RTX: Final = ('9.0', '10.0', '10.3')
"""Data-centre cards, which TensorRT-RTX refuses at run time."""

PLAN_MAGICS: Final = {'tensorrt': b'ftrt', 'tensorrt_rtx': b'vtrt'}
PLAN_SIZE_OFFSET, PLAN_VERSION_OFFSET, PLAN_HEADER_BYTES = 16, 24, 64

LOG = logging.getLogger(__name__)
Log = Callable[[str], None]


class EngineError(ModelError):
    """An engine is missing, cannot be used or cannot be built; says why and what to do."""


@dataclass(frozen=True)
class Api:
    """A TensorRT that can be imported.

    Attributes:
        name: tensorrt or tensorrt_rtx.
        trt: the module.
        version: as it says itself.
    """

    name: str
    trt: Any
    version: str

    @property
    def needs_gpu_to_build(self) -> bool:
        """Whether engines can only be compiled on the card that runs them."""
        return self.name == 'tensorrt'


def load_api(name: str = '') -> Api:
    """Import TensorRT, or TensorRT-RTX where that is not installed.

    Args:
        name: tensorrt or tensorrt_rtx; empty takes the first that is installed.

    Raises:
        EngineError: if it is not installed or too old.
    """
    if name and name not in MODULES:
        raise EngineError(f'there is no TensorRT {name!r}; use one of {", ".join(MODULES)}')
    complaints = []
    for candidate in ([name] if name else list(MODULES)):
        for module in MODULES[candidate]:
            try:
                trt = importlib.import_module(module)
            except (ImportError, OSError) as error:
                reason = f'{module}: {error}'
                continue
            version = str(trt.__version__)
            if int(version.split('.')[0]) >= MINIMUM_VERSION[candidate]:
                return Api(candidate, trt, version)
            reason = f'{module} {version} is older than {MINIMUM_VERSION[candidate]}'
            break
        complaints.append(f'{reason} ({INSTALL[candidate]})')
    raise EngineError(f'TensorRT cannot be used: {"; ".join(complaints)}')


class GraphFiles(Protocol):
    """Graphs on disk: `ModelFiles`, or those of another architecture."""

    @property
    def root(self) -> Path:
        """Their folder."""
        ...

    @property
    def sha256(self) -> dict[str, str]:
        """File name -> hash."""
        ...

    @property
    def graphs(self) -> dict[str, GraphSignature]:
        """Graph -> its inputs and outputs."""
        ...

    def graph(self, name: str) -> Path:
        """ONNX graph by name."""
        ...


@dataclass(frozen=True)
class EngineSpec:
    """All that an engine depends on.

    Attributes:
        graph: name of the graph.
        graph_sha256: of the graph's file.
        weights_sha256: of the weights that the graph points into.
        api: tensorrt or tensorrt_rtx.
        api_version: its version.
        compute_capability: such as 8.7, or `PORTABLE`.
        precision: of products and convolutions: fp32, fp16 or bf16.
        preparation: version of the rewriting of graphs.
        signature: names, types and shapes of inputs and outputs.
        model: folder of the model, for messages; no part of the key.
    """

    graph: str
    graph_sha256: str
    weights_sha256: str
    api: str
    api_version: str
    compute_capability: str
    precision: str
    preparation: int
    signature: GraphSignature
    model: str = ''

    @classmethod
    def of(cls, files: GraphFiles, graph: str, api: Api, compute_capability: str,
           precision: str) -> EngineSpec:
        """The spec of a model's graph on a card."""
        if precision not in PRECISIONS:
            raise ValueError(f'precision {precision!r} does not exist; use one of '
                             f'{", ".join(PRECISIONS)}')
        return cls(graph, files.sha256[f'{graph}.onnx'], files.sha256[WEIGHTS_NAME], api.name,
                   api.version, compute_capability, precision, PREPARATION_VERSION,
                   files.graphs[graph], str(files.root))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                  if field.name != 'model'}
        return {**values, 'signature': self.signature.to_dict()}

    @property
    def key(self) -> str:
        """Hex digest of everything in the spec; the file's name carries it."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def command(self) -> str:
        """The command line that builds this engine."""
        return (f'avatar engine build --model {self.model} --api {self.api} --precision '
                f'{self.precision} --compute-capability {self.compute_capability} --graph '
                f'{self.graph}')


@dataclass(frozen=True)
class Kept:
    """An engine file in the cache.

    Attributes:
        path: of the plan.
        record: the JSON beside it; empty if that is missing or unreadable.
        trouble: why it cannot be used, empty if it can.
    """

    path: Path
    record: dict[str, Any]
    trouble: str


class EngineCache:
    """Engines on disk.

    Args:
        folder: where they lie; the user's cache by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / 'engines'

    def path(self, spec: EngineSpec) -> Path:
        """Where the engine of ``spec`` lies if it is there."""
        return self.folder / f'{spec.graph}-{spec.key}.engine'

    def load(self, spec: EngineSpec) -> bytes:
        """The plan of ``spec``, after all checks.

        Raises:
            EngineError: missing, truncated, changed, or made by or for something else; says
                which, and the command that builds it.
        """
        path = self.path(spec)
        if not path.is_file():
            raise EngineError(f'there is no engine of graph {spec.graph!r} for '
                              f'{_circumstances(spec)}{self._others(spec)}; build it with: '
                              f'{spec.command}')
        kept = inspect_engine(path)
        wrong = kept.trouble or _differences(spec.to_dict(), kept.record)
        if wrong:
            raise EngineError(f'engine {str(path)!r} is refused: {wrong}; build it anew with: '
                              f'{spec.command}')
        return path.read_bytes()

    def store(self, spec: EngineSpec, plan: bytes, build_s: float) -> Path:
        """Write a plan and its record so that a reader sees either all of them or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(spec)
        record = {**spec.to_dict(), 'engine_sha256': hashlib.sha256(plan).hexdigest(),
                  'engine_bytes': len(plan), 'build_s': round(build_s, 2)}
        _write_atomically(path.with_suffix('.json'),
                          (json.dumps(record, indent=2) + '\n').encode())
        _write_atomically(path, plan)
        return path

    def entries(self) -> Iterator[Kept]:
        """Everything in the cache, by name."""
        for path in sorted(self.folder.glob('*.engine')):
            yield inspect_engine(path)

    def remove(self, path: Path) -> None:
        """Delete an engine and what lies beside it."""
        for suffix in ('.engine', '.json', '.runtime'):
            path.with_suffix(suffix).unlink(missing_ok=True)

    def _others(self, spec: EngineSpec) -> str:
        """What the engines of the same graph were made for, to explain a miss."""
        for kept in self.entries():
            if kept.record.get('graph') == spec.graph:
                return (f' (there is one that does not fit: '
                        f'{_differences(spec.to_dict(), kept.record)})')
        return ''


def _circumstances(spec: EngineSpec) -> str:
    return (f'{spec.api} {spec.api_version}, compute capability {spec.compute_capability}, '
            f'{spec.precision}')


def _differences(wanted: dict[str, Any], record: dict[str, Any]) -> str:
    """What a record says otherwise than a spec, in words."""
    found = []
    for key, value in wanted.items():
        if record.get(key) == value:
            continue
        if key == 'signature' or key.endswith('sha256'):
            found.append(f'it was built from another {key.removesuffix("_sha256")}')
        else:
            found.append(f'its {key} is {record.get(key)!r} instead of {value!r}')
    return ', '.join(found)


def inspect_engine(path: Path) -> Kept:
    """Check a plan by itself: record, size, hash, and TensorRT's own header."""
    try:
        record = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))
        wanted_sha, wanted_bytes = record['engine_sha256'], record['engine_bytes']
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Kept(path, {}, f'its record {path.with_suffix(".json").name!r} cannot be read '
                              f'({type(error).__name__}: {error})')
    plan = path.read_bytes()
    if len(plan) != wanted_bytes:
        return Kept(path, record, f'it is truncated or changed: {len(plan)} bytes instead of '
                                  f'{wanted_bytes}')
    if hashlib.sha256(plan).hexdigest() != wanted_sha:
        return Kept(path, record, 'it is corrupt: its sha256 is not that of its record')
    return Kept(path, record, _header_trouble(plan, record))


def _header_trouble(plan: bytes, record: dict[str, Any]) -> str:
    """What the plan's own header says against its record; empty if nothing."""
    if len(plan) < PLAN_HEADER_BYTES or plan[:4] != PLAN_MAGICS.get(str(record.get('api'))):
        return f'it is not a plan of {record.get("api")}'
    stated = int.from_bytes(plan[PLAN_SIZE_OFFSET:PLAN_SIZE_OFFSET + 8], 'little')
    if stated != len(plan):
        return f'its header speaks of {stated} bytes, it has {len(plan)}'
    version = '.'.join(str(number) for number in
                       plan[PLAN_VERSION_OFFSET:PLAN_VERSION_OFFSET + 3])
    if not str(record.get('api_version')).startswith(version):
        return f'it was written by version {version}, its record says {record.get("api_version")}'
    return ''


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.{threading.get_ident()}')
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def progress(what: str, log: Log) -> Iterator[None]:
    """Say every `PROGRESS_PERIOD_S` that ``what`` still goes on."""
    started_s, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(PROGRESS_PERIOD_S):
            log(f'{what}: {time.monotonic() - started_s:.0f} s so far')

    teller = threading.Thread(target=tell, name='engine progress', daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def ensure_engine(spec: EngineSpec, files: GraphFiles, api: Api, cache: EngineCache,
                  build: bool, log: Log = LOG.info) -> bytes:
    """The plan of ``spec``; built once if it cannot be used and ``build`` allows it.

    Raises:
        EngineError: if it cannot be used and must not, or cannot, be built.
    """
    try:
        return cache.load(spec)
    except EngineError as error:
        if not build:
            raise
        log(f'{error}; building it now')
    build_engine(spec, files, api, cache, log)
    return cache.load(spec)


def build_engine(spec: EngineSpec, files: GraphFiles, api: Api, cache: EngineCache,
                 log: Log = LOG.info) -> Path:
    """Compile one graph and put it into the cache. Takes seconds to minutes.

    Raises:
        EngineError: with TensorRT's own words if it refuses the graph.
    """
    started_s = time.monotonic()
    with progress(f'building the engine of {spec.graph!r} for {_circumstances(spec)}', log):
        plan = _compile(spec, files, api)
    path = cache.store(spec, plan, time.monotonic() - started_s)
    log(f'engine of {spec.graph!r}: {len(plan) / 2**20:.1f} MiB in '
        f'{time.monotonic() - started_s:.1f} s: {path}')
    return path


def make_logger(trt: Any, complaints: list[str]) -> Any:
    """A TensorRT logger that writes to `logging` and keeps the errors."""
    levels = {trt.ILogger.VERBOSE: logging.DEBUG, trt.ILogger.INFO: logging.DEBUG,
              trt.ILogger.WARNING: logging.INFO, trt.ILogger.ERROR: logging.WARNING,
              trt.ILogger.INTERNAL_ERROR: logging.WARNING}

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            LOG.log(levels.get(severity, logging.DEBUG), 'TensorRT: %s', message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                complaints.append(message)

    return Logger()


def _compile(spec: EngineSpec, files: GraphFiles, api: Api) -> bytes:
    trt = api.trt
    graph = prepare_graph(files.graph(spec.graph), spec.precision).SerializeToString()
    complaints: list[str] = []
    logger = make_logger(trt, complaints)

    def refuse(what: str) -> EngineError:
        detail = '; '.join(complaints[-3:]) or 'it gave no reason'
        return EngineError(f'{api.name} {api.version} {what} graph {spec.graph!r} in '
                           f'{spec.precision}: {detail}')

    builder = trt.Builder(logger)
    if builder is None:
        raise refuse('has no builder for')
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        complaints += [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise refuse('cannot read')
    found = network_signature(trt, network)
    difference = spec.signature.difference(found)
    if difference:
        raise EngineError(f'graph {spec.graph!r} does not fit its manifest: {difference}; run '
                          f"'avatar export' again")
    config = builder.create_builder_config()
    # One CUDA graph per chunk needs engines that allocate nothing while they run.
    if hasattr(trt.BuilderFlag, 'REQUIRE_USER_ALLOCATION'):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if api.name == 'tensorrt_rtx' and spec.compute_capability != PORTABLE:
        name = 'SM' + spec.compute_capability.replace('.', '')
        if name not in trt.ComputeCapability.__members__:
            known = sorted(m for m in trt.ComputeCapability.__members__ if m.startswith('SM'))
            raise EngineError(f'{api.name} {api.version} does not compile for compute capability '
                              f'{spec.compute_capability}; it knows {", ".join(known)}')
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[name], 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refuse('cannot compile')
    return bytes(plan)


def network_signature(trt: Any, network: Any) -> GraphSignature:
    """Inputs and outputs of a parsed network."""
    def spec(tensor: Any) -> TensorSpec:
        return TensorSpec(_dtype_name(trt, tensor.dtype), tuple(tensor.shape))

    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return GraphSignature({t.name: spec(t) for t in inputs}, {t.name: spec(t) for t in outputs})


def engine_signature(trt: Any, engine: Any) -> GraphSignature:
    """Inputs and outputs of a deserialised engine."""
    sides: dict[Any, dict[str, TensorSpec]] = {trt.TensorIOMode.INPUT: {},
                                               trt.TensorIOMode.OUTPUT: {}}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        sides[engine.get_tensor_mode(name)][name] = TensorSpec(
            _dtype_name(trt, engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name)))
    return GraphSignature(sides[trt.TensorIOMode.INPUT], sides[trt.TensorIOMode.OUTPUT])


def _dtype_name(trt: Any, dtype: Any) -> str:
    names = {trt.DataType.FLOAT: 'float32', trt.DataType.HALF: 'float16',
             trt.DataType.UINT8: 'uint8', trt.DataType.INT32: 'int32',
             trt.DataType.INT64: 'int64', trt.DataType.BF16: 'bfloat16'}
    return names.get(dtype, str(dtype))
