# SPDX-License-Identifier: Apache-2.0
"""What hours of stream are summed up to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from interactive_avatar.evaluation import bench, bench_stream


def minute(number: int, rss_mib: float, offset_ms: float = 0.0) -> dict[str, Any]:
    """A minute of a graph of one node."""
    return {'minute': number, 'seconds': 60.0 * number, 'chunks': 375, 'pictures': 1500,
            'said': 3, 'answered': 3, 'lost': 0, 'missed': 1, 'made': 375,
            'av_offset_worst_ms': offset_ms, 'sound_after_stamp_ms': -40.0,
            'nodes': {'generator': {'rss_mib': rss_mib, 'open_files': 40, 'cpu_percent': 90}}}


def test_growth_by_hand() -> None:
    # 100 MiB and 2 MiB more each minute from minute 3 on: 120 MiB an hour.
    minutes = [minute(n, 100.0 + 2.0 * (n - 3)) for n in range(1, 13)]
    found = bench_stream.growth(minutes, 'rss_mib')['generator']
    assert found['first'] == 100.0 and found['last'] == 118.0
    assert found['per_hour'] == pytest.approx(120.0)
    assert found['standard_error'] == pytest.approx(0.0, abs=1e-9)


def test_a_leak_and_an_offset_are_not_within_the_aims() -> None:
    pictures = [np.full((16, 16, 3), 90, np.uint8)] * 12
    calm = bench_stream.summarise([minute(n, 300.0) for n in range(1, 13)], pictures, False)
    assert calm['memory_within_aim'] and calm['av_offset_within_aim']
    assert (calm['chunks'], calm['missed'], calm['hours']) == (4500, 12, 0.2)
    assert calm['looks']['colour_delta_e'].max() == 0.0
    leak = bench_stream.summarise([minute(n, 300.0 + n, 25.0) for n in range(1, 13)], pictures,
                                  False)
    assert not leak['memory_within_aim'] and not leak['av_offset_within_aim']


def test_a_short_run_says_nothing_of_growth() -> None:
    short = bench_stream.summarise([minute(1, 300.0)], [], False)
    assert short['memory_within_aim'] is None and short['looks'] == {}


def test_the_page_and_the_line_hold_the_figures() -> None:
    minutes = [minute(n, 300.0) for n in range(1, 7)]
    pictures = [np.full((16, 16, 3), 90, np.uint8)] * 6
    result = bench_stream.summarise(minutes, pictures, False)
    text = bench_stream._page(result, minutes, pictures, 'avatar bench stream').render()
    assert '6 of 2250' in text and text.count('<svg') == 3
    assert 'missed 1' in bench_stream.describe_minute(minutes[0])


def test_hours_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(['stream', '--hours', '0']) == 2
    assert '--hours is 0' in capsys.readouterr().err
