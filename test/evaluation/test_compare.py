# SPDX-License-Identifier: Apache-2.0
"""Two sessions side by side: intervals that hold what they should, verdicts with a direction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation import compare, evaluate
from interactive_avatar.evaluation.bag import read_bag
from interactive_avatar.evaluation.session import analyse


def test_interval_of_a_paired_difference_by_hand() -> None:
    # Every pair differs by exactly 2, so every resample does.
    first = np.array([3.0, 5.0, 9.0, 4.0])
    assert compare.difference_interval(first, first - 2.0, paired=True) == (2.0, 2.0)
    # Unpaired, the spread of the values widens it.
    low, high = compare.difference_interval(first, first - 2.0)
    assert low < 0.0 < 2.0 < high


def test_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = compare.difference_interval(rng.normal(1, 1, 30), rng.normal(0, 1, 30),
                                                resamples=400)
        hits += low <= 1.0 <= high
    assert 176 <= hits <= 199


def test_too_few_values_and_uneven_pairs() -> None:
    assert np.isnan(compare.difference_interval([1, 2, 3], [1, 2, 3, 4])[0])
    with pytest.raises(ValueError, match='4 and 5 values'):
        compare.difference_interval(np.ones(4), np.ones(5), paired=True)


def test_blocks_by_hand() -> None:
    # Stretches of 2 s: (1, 3) -> 2, nothing known -> left out, (5) -> 5.
    found = compare.blocks([0, 1, 2, 3, 4], [1, 3, np.nan, np.nan, 5], 2.0)
    assert found.tolist() == [2.0, 5.0]


def test_a_session_against_itself_shows_no_difference(session_bag: Path) -> None:
    side = analyse(read_bag(session_bag))
    rows = compare.compare(side, side)
    assert {'sharpness', 'colour drift', 'answer after the last sound'} <= {r.name for r in rows}
    assert all(row.difference == 0.0 for row in rows)
    assert all(row.verdict in ('no difference seen', 'too few to say') for row in rows)


def test_a_difference_is_found_and_has_a_direction(make_bag: Callable[..., Path],
                                                   session_bag: Path, tmp_path: Path) -> None:
    # The same session with pictures that blur in its second half would be worse; here the
    # second bag is compared the other way round as well.
    sharp = analyse(read_bag(session_bag))
    soft = analyse(read_bag(make_bag(tmp_path / 'soft')))
    assert soft.track is not None
    soft.track.sharpness = soft.track.sharpness * 0.5
    for first, second, verdict in ((sharp, soft, 'better'), (soft, sharp, 'worse')):
        row = next(r for r in compare.compare(first, second) if r.name == 'sharpness')
        assert row.verdict == verdict
        assert row.low <= row.difference <= row.high
        assert np.sign(row.difference) == (1 if verdict == 'better' else -1)


def test_from_the_command_line(session_bag: Path, make_bag: Callable[..., Path],
                               tmp_path: Path) -> None:
    other = make_bag(tmp_path / 'other', drop_chunks=(10, 11))
    out = tmp_path / 'out'
    assert evaluate.main(['bag', str(session_bag), '--against', str(other), '--out', str(out),
                          '--no-judges']) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['against']['bag'] == 'other'
    names = [row['name'] for row in report['against']['differences']]
    assert 'sharpness' in names
    assert 'Against other' in (out / 'report.html').read_text()
