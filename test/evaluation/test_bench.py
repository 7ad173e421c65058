# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what they compute, on streams and sets whose figures are known."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from performance import performance

from interactive_avatar.evaluation import bench, bench_image, bench_lips, plots
from interactive_avatar.evaluation.held_out import SHIPPED_SET, load_set
from interactive_avatar.media.clock import CHUNK_SAMPLES
from interactive_avatar.training.speech.align import Phone, Word

has_plots = importlib.util.find_spec('matplotlib') is not None
has_ros = all(importlib.util.find_spec(name) for name in ('rclpy', 'avatar_bringup'))


@dataclass
class Made:
    seconds: dict[str, float]


class SlowStream:
    """Takes 2 ms a chunk and remembers what it was asked."""

    lookahead_chunks = 1
    overlaps = False

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.switched: list[str] = []
        self.steps = 0

    def prepare(self, prompt: str) -> None:
        self.prepared.append(prompt)

    def switch(self, prompt: str) -> None:
        self.switched.append(prompt)

    def step(self, speech: np.ndarray, shown: Any = None) -> Made:
        assert speech.shape == (CHUNK_SAMPLES,) and speech.dtype == np.int16
        self.steps += 1
        time.sleep(0.002)
        return Made({'denoise': 0.0015, 'decode': 0.0005})


def test_conversation_has_speech_and_pauses() -> None:
    loop = bench.speech_loop()
    chunks = [next(loop) for _ in range(100)]
    silent = sum(not chunk.any() for chunk in chunks)
    assert 10 < silent < 80
    other = bench.speech_loop()
    assert all((chunk == next(other)).all() for chunk in chunks)


def test_run_stream_times_every_chunk_and_switches() -> None:
    stream = SlowStream()
    seen: list[int] = []
    run = bench.run_stream(stream, 60, each=lambda index, memory: seen.append(index))
    assert stream.steps == 60 + bench.WARM_UP_CHUNKS
    assert seen == list(range(60))
    assert len(stream.switched) == 3
    assert set(stream.switched) <= set(stream.prepared)
    assert run['step_ms'].min() >= 2.0
    assert run['stages_ms']['denoise'] == pytest.approx(np.full(60, 1.5))
    assert (run['rss_mib'] > 1.0).all()


class OverlappingStream(SlowStream):
    """Answers after 2 ms; its pictures take 4 ms more, beside the next chunk."""

    overlaps = True

    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPoolExecutor(1)

    def submit(self, speech: np.ndarray, shown: Any) -> Future[Made]:
        made = self.step(speech)

        def decode() -> Made:
            time.sleep(0.004)
            shown(made)
            return made

        return self.pool.submit(decode)


def test_run_stream_tells_pace_from_latency_where_chunks_overlap() -> None:
    stream = OverlappingStream()
    run = bench.run_stream(stream, 40, overlap=True)
    assert stream.steps == 40 + bench.WARM_UP_CHUNKS
    assert (run['shown_ms'] >= 6.0).all()
    assert run['stages_ms']['decode'] == pytest.approx(np.full(40, 0.5))
    # From the first speech to the last picture.
    assert run['real_time_factor'] * 160 * 40 >= 4 * 40
    assert np.median(run['step_ms']) < 6.0
    paced = bench.run_stream(stream, 4, paced=True, overlap=True)
    assert paced['real_time_factor'] == pytest.approx(paced['step_ms'].mean() / 160)


def test_paced_stream_keeps_real_time() -> None:
    begin = time.perf_counter()
    bench.run_stream(SlowStream(), 4, paced=True)
    assert time.perf_counter() - begin > 3 * 0.16


def test_results_are_valid_json(tmp_path: Path) -> None:
    result = {'a': np.float64(np.nan), 'b': [np.int64(1), np.array([0.5, np.inf])]}
    bench._finish(result, tmp_path, 'odd')
    saved = json.loads((tmp_path / 'odd.json').read_text())
    assert saved['a'] is None
    assert saved['b'] == [1, [0.5, None]]
    assert saved['machine']['cores'] >= 1


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        bench.main(['generator', '--chunks', '0'])
    assert '--chunks is 0' in capsys.readouterr().err
    assert bench.main(['lips', '--set', str(tmp_path), '--out', str(tmp_path)]) == 2
    assert 'no held-out performances' in capsys.readouterr().err


def test_the_size_of_the_wan_bench_is_a_name(monkeypatch: pytest.MonkeyPatch,
                                             tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(bench, 'bench_wan', lambda args: asked.append(args.size) or {})
    assert bench.main(['wan', '--size', 'wan-tiny', '--out', str(tmp_path)]) == 0
    assert asked == ['wan-tiny']


def test_several_backends_are_checked_by_name() -> None:
    assert bench.backend_names('onnx,torch') == 'onnx,torch'
    with pytest.raises(argparse.ArgumentTypeError, match="'abacus' is none of"):
        bench.backend_names('onnx,abacus')


def test_lip_summary_of_known_lag() -> None:
    items, gaps = zip(*(performance(str(i), i, lag=2) for i in range(3)))
    result = bench_lips.summarise(items, gaps)
    assert result['lag_ms'] == pytest.approx(80.0)
    assert result['correlation'] > 0.99
    assert result['motion_in_silence'] == pytest.approx(0.0, abs=1e-6)
    assert result['frames_with_face'] == 1.0
    speaking = items[0].speaking()
    assert speaking[:100].all()
    assert not speaking[110:].any()


def test_lips_that_close_where_they_should() -> None:
    item, gap = performance('one', 3)
    item = replace(item, words=(
        Word('my', (Phone('M', 0.8, 0.88), Phone('AY', 0.96, 1.04), Phone('S', 1.1, 1.2))),))
    gap[:] = 0.5
    gap[21] = 0.1  # the frame in which the middle of /m/, 0.84 s, lies
    closed, opened = bench_lips.closures(item, gap)
    assert (closed.tolist(), opened.tolist()) == ([0.1], [0.5])
    assert bench_lips.closing([item], [gap]) == 1.0
    assert bench_lips.closing([item], [1.0 - gap]) == 0.0
    assert np.isnan(bench_lips.closing([performance('two', 4)[0]], [gap]))


def test_lip_summary_of_noise_is_near_zero() -> None:
    items, _ = zip(*(performance(str(i), i) for i in range(4)))
    noise = [np.random.default_rng(90 + i).normal(size=200) for i in range(4)]
    result = bench_lips.summarise(items, noise)
    # The best of 21 lags over 800 frames of noise stays small, but not zero.
    assert abs(result['correlation']) < 0.2
    assert result['motion_in_silence'] > 0.7


@pytest.mark.skipif(not has_plots, reason='matplotlib is not installed (extra "evaluate")')
@pytest.mark.parametrize(('name', 'result', 'data'), [
    ('generator', {'real_time_factor': 0.5},
     {'step_ms': np.arange(50.0), 'stages_ms': {'decode': np.arange(50.0)}}),
    ('memory', {'growth_share': 0.01},
     {'rss_mib': np.arange(50.0), 'step_ms': np.arange(50.0)}),
    ('image-topic', {'size': 8}, {'shipped profile': [1.0, 2.0]}),
    ('lips', {'generated': {'correlation': 0.5, 'lag_ms': 40.0}},
     {'tracks': [{'generated': np.arange(9.0), 'true': np.arange(9.0)}]}),
])
def test_plots(name: str, result: dict, data: dict, tmp_path: Path) -> None:
    assert plots.draw(name, result, data, tmp_path / 'plot.png').stat().st_size > 5000


@pytest.mark.skipif(not has_ros, reason='rclpy or the built messages are missing: run `make`')
def test_pictures_cross_between_processes() -> None:
    environment = dict(os.environ)
    environment['PYTHONPATH'] = os.pathsep.join(
        [str(Path(bench.__file__).parents[2]), environment.get('PYTHONPATH', '')])
    from interactive_avatar.graph import prepare_environment

    delays = bench_image.measure(dict(prepare_environment(environment)), 64, 10, 50.0)
    assert len(delays) == 10
    assert 0.0 < np.median(delays) < 100.0


def test_the_shipped_set_is_held_out_and_the_judge_agrees_with_the_truth() -> None:
    items = load_set(SHIPPED_SET)
    assert len(items) >= 5
    for item in items:
        assert int(item.name.split('_')[1]) % 10 == 9
        assert len(item.prompts) * 4 == item.frames == item.audio.size // 640
        assert item.reference.shape == (256, 256, 3)
    ceiling = bench_lips.summarise(items, [item.true_gap.astype(float) for item in items])
    assert ceiling['correlation'] > 0.9
    assert ceiling['lag_ms'] == 0.0
    assert ceiling['motion_in_silence'] < 0.15
    assert ceiling['closing'] > 0.95
    assert all(len(item.words) > 10 for item in items)
    assert ceiling['in_domain_sync_offset_ms_of_each'] == [0.0] * len(items)
    assert min(ceiling['in_domain_sync_confidence_of_each']) > 0.3
    assert ceiling['in_domain_sync_confidence_other_sound'] < 0.1
