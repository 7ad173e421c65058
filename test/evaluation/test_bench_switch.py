# SPDX-License-Identifier: Apache-2.0
"""The bench of switches: what it measures, and a run with a tiny model of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation import bench_switch
from interactive_avatar.evaluation.report import visible_ms

pytest.importorskip('torch')


def test_share_counts_cells_that_differ_noticeably() -> None:
    twin = np.full((2, 64, 64, 3), 120, np.uint8)
    other = twin.copy()
    other[1, :8, :16] = 140
    other[0, :8, :8] = 122  # below a just noticeable difference
    np.testing.assert_allclose(bench_switch.noticed_share(other, twin), [0.0, 2 / 64])
    assert bench_switch.first_visible(np.array([0.0, 0.009, 0.02])) == 2
    assert bench_switch.first_visible(np.zeros(4)) is None


def test_switch_costs_no_forward_and_recache_one_for_each_latent_of_the_window(
        tiny_model: Path, tmp_path: Path) -> None:
    scenes = (bench_switch.Scene('another', 'a person', 'a person in quite another mood'),)
    side = 128
    picture = np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8)
    result = bench_switch.run(tiny_model, 'onnx', {}, picture, 0, tmp_path, (), lead_chunks=3,
                              follow_chunks=2, chosen=scenes)
    twin, switched, recached = (result['ways'][way] for way in bench_switch.WAYS)
    assert twin['forwards'] == switched['forwards'] == 0 and twin['visible'] == 0
    assert recached['forwards'] == 2
    assert recached['networks_ms_p50'] > switched['switch_ms']['p50']
    assert not any(row['texts_encoded'] for row in result['scenes'])
    assert 'recache' in bench_switch.describe(result)
    assert Path(result['pictures'][0]).stat().st_size > 1000


def test_report_takes_the_switches_that_were_seen() -> None:
    rows = [{'switch_to_visible_ms': value} for value in (120.0, float('nan'), None, 80.0)]
    assert visible_ms({'turns': rows}) == [120.0, 80.0]
