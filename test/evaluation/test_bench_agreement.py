# SPDX-License-Identifier: Apache-2.0
"""The bench of agreement: what counts as drift, and a run with a tiny model of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from interactive_avatar.evaluation import bench, bench_agreement
from interactive_avatar.evaluation.bench_agreement import OTHER_NOISE, Way


class Player:
    """Makes grey pictures that brighten by ``drift`` a chunk, and notes its prompts."""

    def __init__(self, drift: int) -> None:
        self._drift, self._level, self.prompts = drift, 100, []

    def switch(self, prompt: str) -> None:
        self.prompts.append(prompt)

    def step(self, samples: np.ndarray) -> SimpleNamespace:
        self._level += self._drift
        return SimpleNamespace(frames=np.full((4, 8, 8, 3), self._level, np.uint8))


def test_a_stream_that_drifts_differs_more_in_every_fifth() -> None:
    streams = {'reference': Player(0), 'same': Player(0), 'drifting': Player(1)}
    found = bench_agreement.play_all(streams, iter([np.zeros(2560, np.int16)] * 10),
                                     ['rest', 'nod'], 10, 4)
    result = bench_agreement.summary(found)
    assert result['same']['largest_of_a_chunk'] == 0.0
    assert result['drifting']['fifths'] == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert result['drifting']['last_fifth_lightness_apart'] > 2.0
    assert result['drifting']['last_fifth_sharpness_apart'] == 0.0
    assert streams['same'].prompts == ['rest', 'nod', 'rest']


def test_ways_are_named_and_checked() -> None:
    assert Way.parse(' torch:fp16 ').options == {'precision': 'fp16'}
    assert str(Way.parse('onnx:int8')) == 'onnx:int8'
    for wrong in ('onnx', 'onnx:fp16', 'cuda:fp32'):
        with pytest.raises(ValueError, match='give some of onnx:int8'):
            Way.parse(wrong)
    with pytest.raises(ValueError, match='two ways'):
        bench_agreement.run(Path(), [Way('onnx', 'fp32')] * 2, None, 0, iter(()), ['a'], 10, 5)


def test_backends_of_a_tiny_model_agree_and_other_noise_does_not(tiny_model: Path,
                                                                 tmp_path: Path) -> None:
    picture = tmp_path / 'face.png'
    from interactive_avatar.media.picture import write_image

    write_image(picture, np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8))
    assert bench.main(['agreement', '--model', str(tiny_model), '--ways', 'onnx:fp32,torch:fp32',
                       '--reference', str(picture), '--chunks', '5', '--out', str(tmp_path)]) == 0
    ways = json.loads((tmp_path / 'agreement.json').read_text())['ways']
    assert ways['torch:fp32']['largest_of_a_chunk'] < 0.05
    assert ways[f'onnx:fp32 {OTHER_NOISE}']['mean'] > 10 * ways['torch:fp32']['mean']
    assert (tmp_path / 'agreement.png').stat().st_size > 1000
