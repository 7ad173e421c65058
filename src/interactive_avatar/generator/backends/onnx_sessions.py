# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime sessions of a model's graphs, optimised once and kept; and kept results.

Optimising a graph takes ONNX Runtime several times as long as loading the result, so that is kept
in ``$XDG_CACHE_HOME/avatar_bringup/onnx``, by all that it depends on. Every session is opened from
a kept graph, the first one too, so that a stream's pixels do not depend on what was kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from interactive_avatar.generator.model import WEIGHTS_NAME, ModelError, ModelFiles, sha256_of
from interactive_avatar.generator.signatures import GraphSignature, TensorSpec
from interactive_avatar.paths import cache_folder

EXACT_PRODUCTS: Final = ('avx512_vnni', 'avx_vnni')
"""Processor flags (x86) of products of 8-bit numbers that are summed in 32 bits."""
KEPT_FOR_S: Final = 30 * 24 * 3600.0
"""What nobody used for so long is removed when something else is kept."""

DTYPES = {'tensor(float)': 'float32', 'tensor(uint8)': 'uint8', 'tensor(int64)': 'int64',
          'tensor(float16)': 'float16'}


def open_session(files: ModelFiles, variant: str, wanted: GraphSignature, threads: int) -> Any:
    """A session for a graph, checked against its signature.

    Args:
        files: the checked model.
        variant: name of the graph's file without its ending.
        wanted: inputs and outputs that it must have.
        threads: intra-op threads; 0 lets ONNX Runtime take every core.

    Raises:
        ModelError: if the graph cannot be loaded or has other inputs or outputs.
    """
    graph = files.graph(variant)
    session = None
    with contextlib.suppress(OSError):  # no room or no right to write: do without
        session = _open_kept(graph, _kept_path(files, variant), threads)
    try:
        session = session or _session(graph, session_options(threads))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelError(f'graph {variant!r} of {str(files.root)!r} cannot be loaded by ONNX '
                         f"Runtime: {error}; run 'avatar export' again") from error
    found = GraphSignature(*({item.name: TensorSpec(DTYPES.get(item.type, item.type),
                                                    tuple(item.shape)) for item in side}
                             for side in (session.get_inputs(), session.get_outputs())))
    difference = wanted.difference(found)
    if difference:
        raise ModelError(f'graph {variant!r} of {str(files.root)!r} is not of this version: '
                         f"{difference}; run 'avatar export' again")
    return session


def session_options(threads: int) -> Any:
    """How every session runs; threads: see `open_session`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Waiting threads that spin take the cores that recognition and the voice need.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.add_session_config_entry('session.x64quantprecision', _wider_products())
    return options


def _wider_products() -> str:
    """'1' on processors whose sums of 8-bit products overflow at 16 bits: weights become unsigned
    then, and exact. It must be '0' elsewhere: ONNX Runtime would turn them there too, away from
    the processor's own instruction, and a chunk would take 1.7 times as long
    (`avatar bench generator`)."""
    flags = _processor().split()
    return '0' if any(flag in flags for flag in EXACT_PRODUCTS) else '1'


def _session(graph: Path, options: Any) -> Any:
    return ort.InferenceSession(str(graph), options, providers=['CPUExecutionProvider'])


def _open_kept(graph: Path, kept: Path, threads: int) -> Any:
    """A session of ``graph`` from the file ``kept``, which is made if it is missing or useless;
    None if the graph itself cannot be optimised, so that the caller hears why.

    Raises:
        OSError: if the file cannot be written.
    """
    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for _ in range(2):
        with contextlib.suppress(Exception):  # see `open_session`
            session = _session(kept, options)
            with contextlib.suppress(OSError):
                os.utime(kept)
            return session
        if not _keep(graph, kept):
            break
    return None


def kept_result(files: ModelFiles, variant: str, inputs: Mapping[str, NDArray[Any]],
                run: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What a graph gives, from disk if it was run with the same inputs before.

    Args:
        files: the checked model.
        variant: name of the graph's file without its ending.
        inputs: what the graph is run on.
        run: runs it.
    """
    digest = hashlib.sha256()
    for name in sorted(inputs):
        digest.update(name.encode() + np.ascontiguousarray(inputs[name]).tobytes())
    try:
        graph = _kept_path(files, variant)
        path = graph.with_name(f'{graph.stem}-{digest.hexdigest()[:24]}.npz')
    except OSError:  # no room or no right to write: do without
        return run()
    with contextlib.suppress(Exception):  # missing or damaged in any of many ways
        with np.load(path) as kept:
            found = {name: kept[name] for name in kept.files}
        os.utime(path)
        return found
    found = run()

    def write(new: Path) -> None:
        with new.open('wb') as stream:
            np.savez(stream, **found)

    with contextlib.suppress(OSError):
        _replace(path, write)
    return found


def _keep(graph: Path, kept: Path) -> bool:
    """Optimise ``graph`` into the file ``kept``; whether that went well."""
    def write(new: Path) -> None:
        options = session_options(1)
        options.log_severity_level = 4  # it warns that the file is for this processor only
        options.optimized_model_filepath = str(new)
        _session(graph, options)

    try:
        _replace(kept, write)
    except OSError:
        raise
    except Exception:  # see `open_session`
        return False
    return True


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file and give it its name at once; remove files long not used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may be quicker
            if time.time() - old.stat().st_mtime > KEPT_FOR_S:
                old.unlink()
    # Under a name of its own first: another process may open the same model.
    new = path.with_name(f'{path.name}.{os.getpid()}.new')
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _kept_path(files: ModelFiles, variant: str) -> Path:
    """Where the optimised graph lies: named by graph, weights, ONNX Runtime and processor."""
    parts = [files.sha256.get(name) or sha256_of(files.root / name)
             for name in (f'{variant}.onnx', WEIGHTS_NAME)]
    parts += [ort.__version__, _processor(), _wider_products()]
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()
    return cache_folder() / 'onnx' / f'{variant}-{key[:24]}.onnx'


@cache
def _processor() -> str:
    """What this processor can do, as far as the system says."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith(('flags', 'Features')):
                return line
    return f'{platform.machine()} {platform.processor()}'
