# SPDX-License-Identifier: Apache-2.0
"""``avatar bench operators``: where the time of each graph of the onnx backend goes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from interactive_avatar.evaluation.report import number, table
from interactive_avatar.generator.backends.onnx_sessions import session_options
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.signatures import (
    INT8_SUFFIX,
    GraphSignature,
    TensorSpec,
    cpu_signature,
    graph_signatures,
)

GRAPHS: Final = ('encode_audio', 'denoise', 'decode', 'compress')
"""What a running stream needs."""

OPERATORS_SHOWN: Final = 8
WARM_UP_RUNS: Final = 2
ENDING: Final = '_kernel_time'


def example_inputs(signature: GraphSignature, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs of a graph, by name: noise, and masks that hide nothing."""
    random = np.random.default_rng(seed)

    def example(name: str, spec: TensorSpec) -> NDArray[Any]:
        if spec.dtype == 'uint8':
            return random.integers(0, 256, spec.shape).astype(np.uint8)
        if name.endswith('mask'):
            return np.zeros(spec.shape, np.float32)
        return random.standard_normal(spec.shape).astype(np.float32)

    return {name: example(name, spec) for name, spec in signature.inputs.items()}


def profile(graph: Path, signature: GraphSignature, threads: int, runs: int) -> dict[str, float]:
    """Milliseconds that one run of a graph spends in each kind of operator, most first.

    Args:
        graph: its file.
        signature: its inputs.
        threads: intra-op threads.
        runs: how many to take the median of, after warming up.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'profile')
        session = ort.InferenceSession(str(graph), options, providers=['CPUExecutionProvider'])
        inputs = example_inputs(signature)
        for _ in range(WARM_UP_RUNS + runs):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding='utf-8'))
    kernels = [event for event in events if str(event.get('name', '')).endswith(ENDING)]
    # Every run has the same kernels, and events come in the order in which they happened.
    of_one_run = len(kernels) // (WARM_UP_RUNS + runs)
    spent: dict[str, NDArray[np.float64]] = {}
    for index, event in enumerate(kernels[of_one_run * WARM_UP_RUNS:]):
        operator = spent.setdefault(event['args']['op_name'], np.zeros(runs))
        operator[index // of_one_run] += event['dur'] / 1000.0
    # Medians, because other processes take the core from some runs.
    medians = {name: float(np.median(values)) for name, values in spent.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def run(model: Path, threads: int, int8: bool, runs: int) -> dict[str, Any]:
    """Profile the graphs of a stream and print a table of each.

    Raises:
        ModelError: if the model cannot be used.
    """
    files = ModelFiles.open(model)
    operators: dict[str, dict[str, float]] = {}
    for name in GRAPHS:
        signature, variant = graph_signatures(files.config)[name], f'{name}{INT8_SUFFIX}'
        if int8 and files.graph(variant).is_file():
            signature = cpu_signature(signature)
        else:
            variant = name
        operators[variant] = profile(files.graph(variant), signature, threads, runs)
    rows = []
    for variant, spent in operators.items():
        whole = sum(spent.values())
        shown = list(spent.items())[:OPERATORS_SHOWN]
        rest = whole - sum(value for _, value in shown)
        rows.append([variant, number(whole, '', 1), ', '.join(
            f'{name} {number(value, "", 1)}' for name, value in [*shown, ('others', rest)])])
    print(table(['graph', 'ms', 'of these'], rows))
    return {'benchmark': 'operators', 'model': str(model), 'threads': threads, 'runs': runs,
            'operators_ms': operators}
