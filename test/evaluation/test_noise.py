# SPDX-License-Identifier: Apache-2.0
"""Spreads of repeated runs, by hand and on the small session."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation import evaluate, noise
from interactive_avatar.evaluation.bag import read_bag


def test_spread_by_hand() -> None:
    spread = noise.Spread((1.0, 2.0, float('nan'), 6.0))
    assert (spread.mean, spread.span) == (3.0, 5.0)
    # Squares of the distances from 3 are 4, 1 and 9; two degrees of freedom.
    assert spread.deviation == pytest.approx(np.sqrt(7.0))
    assert spread.as_json()['values'] == [1.0, 2.0, None, 6.0]
    assert noise.Spread((0.1, 0.1, 0.1)).deviation == 0.0
    alone = noise.Spread((1.0,))
    assert np.isnan(alone.deviation) and alone.as_json()['standard_deviation'] is None
    assert np.isnan(noise.Spread((float('nan'),)).span)


def test_spreads_take_the_names_of_the_first_run() -> None:
    found = noise.spreads([{'a': 1.0, 'b': 2.0}, {'a': 3.0}])
    assert found['a'].mean == 2.0
    assert found['b'].known.tolist() == [2.0]
    assert noise.spreads([]) == {}


def test_disturbances_are_small() -> None:
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 255, (8, 8, 3)), 8, 0), 8, 1).astype(np.uint8)
    for name, disturb in noise.DISTURBANCES.items():
        other = disturb(smooth)
        assert other.shape == smooth.shape and other.dtype == np.uint8, name
        assert not np.array_equal(other, smooth), name
    right = noise.DISTURBANCES['a pixel to the right'](smooth)
    assert np.array_equal(right[:, 1:], smooth[:, :-1])
    lower = noise.DISTURBANCES['a pixel lower'](smooth)
    assert np.array_equal(lower[1:], smooth[:-1])
    white = noise.DISTURBANCES['a grey level brighter'](np.full((2, 2, 3), 255, np.uint8))
    assert (white == 255).all()


def test_a_bag_judged_again_is_the_same(session_bag: Path) -> None:
    again, moved = noise.instrument(read_bag(session_bag), 2, lambda _: None, judged=False)
    assert again['seam ratio'].mean > 0.0
    assert all(spread.span == 0.0 for spread in again.values() if spread.known.size)
    assert moved['sharpness'].deviation > 0.0
    # Stamps are not touched by pictures.
    assert moved['answer after the last sound, p50 (s)'].span == 0.0
    rows = noise.rows_of({'again': again, 'pictures': moved})
    assert [len(row) for row in rows] == [4] * len(rows)
    assert dict((row[0], row[2]) for row in rows)['sharpness'] == '0'


def test_the_command_writes_what_it_says(session_bag: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(['noise', str(session_bag), str(session_bag), '--no-judges',
                          '--repeats', '2', '--out', str(tmp_path)]) == 0
    found = json.loads((tmp_path / 'noise.json').read_text())
    assert set(found['Sessions']) == {'judged 2 times', 'pictures disturbed', '2 sessions'}
    assert 'seam ratio' in (tmp_path / 'noise.md').read_text()
    assert 'σ: 2 sessions' in capsys.readouterr().out
    for arguments, said in ((['noise'], 'nothing to do again'),
                            (['noise', '--seeds', '1'], 'at least two runs'),
                            (['noise', str(tmp_path / 'none')], 'no bag at')):
        assert evaluate.main(arguments) == 2
        assert said in capsys.readouterr().err
