# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from interactive_avatar.evaluation.model.figures import (
    NOTHING,
    Figure,
    Row,
    bootstrap,
    mean_of,
    share_of,
    wilson,
)


def test_a_figure_prints_its_interval_and_n() -> None:
    assert str(Figure(0.854, 0.8, 0.9, 12, 'people')) == '0.85 (0.80 to 0.90), N = 12 people'
    assert str(Figure(12.0, n=3, of='streams', unit='%', digits=0)) == '12 %, N = 3 streams'
    assert str(NOTHING) == '–'
    assert NOTHING.as_json()['value'] is None


def test_bootstrap_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 100)
    figure = mean_of(values.tolist(), 'draws')
    error = values.std(ddof=1) / 10.0
    assert figure.value == pytest.approx(values.mean())
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert figure == mean_of(values.tolist(), 'draws')


def test_too_little_has_no_interval() -> None:
    assert math.isnan(bootstrap(lambda i: 1.0, 1, 'x').low)
    assert math.isnan(mean_of([], 'x').value)
    assert mean_of([1.0, float('nan'), 3.0], 'x').n == 2


def test_wilson_by_hand() -> None:
    # 9 of 10: centre (0.9 + 3.8415/20)/1.38415, see Wilson 1927 or any table: 0.596 to 0.982.
    low, high = wilson(9, 10)
    assert (low, high) == (pytest.approx(0.596, abs=1e-3), pytest.approx(0.982, abs=1e-3))
    assert wilson(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match='0 of 0'):
        wilson(0, 0)


def test_shares_are_pooled_and_bounded() -> None:
    half = share_of([[True] * 4, [False] * 4, [], [True, True], [False, False]], 'trials')
    assert half.value == pytest.approx(50.0)
    assert half.n == 12
    # People that always or never succeed: nothing is known more closely than by four people.
    assert half.low <= 10.0 and half.high >= 90.0
    all_right = share_of([[True] * 5, [True] * 5], 'trials')
    assert all_right.value == 100.0
    assert all_right.low == pytest.approx(100 * wilson(10, 10)[0])


def test_rows_know_whether_the_aim_is_met() -> None:
    assert Row.at_least('a', Figure(0.9), 0.85).met is True
    assert Row.at_most('a', Figure(-60.0, unit='ms'), 40.0).met is False
    assert Row.at_most('a', Figure(1.05), 1.1).aim == '≤ 1.1'
    assert Row.at_least('a', NOTHING, 0.85).met is None
