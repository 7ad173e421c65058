# SPDX-License-Identifier: Apache-2.0
"""Held-out sets survive their files, and what is none is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from performance import performance

from interactive_avatar.evaluation.held_out import load_set
from interactive_avatar.training.speech.align import Phone, Word


def test_held_out_performances_survive_a_file(tmp_path: Path) -> None:
    item, _ = performance('one', 3)
    item = replace(item, words=(
        Word('my', (Phone('M', 0.5, 0.6), Phone('AY', 0.6, 0.8))),
        Word('a', (Phone('AH', 0.8, 0.9),))))
    item.save(tmp_path)
    again, = load_set(tmp_path)
    assert again.name == 'one'
    assert [(word.text, [phone.name for phone in word.phones]) for word in again.words] == [
        ('my', ['M', 'AY']), ('a', ['AH'])]
    assert again.words[1].start_s == pytest.approx(0.8)
    assert again.prompts == item.prompts
    assert (again.audio == item.audio).all()
    assert again.mouth_open == pytest.approx(item.mouth_open, abs=1e-3)
    np.savez(tmp_path / 'two.npz', audio=item.audio)
    with pytest.raises(ValueError, match=r'two\.npz is not a performance'):
        load_set(tmp_path)


def test_what_is_found_on_another_performance_of_a_name_is_kept_elsewhere(tmp_path: Path) -> None:
    item, _ = performance('one', 3)
    assert item.file_name.startswith('one_')
    item.save(tmp_path)
    again, = load_set(tmp_path)
    assert again.file_name == item.file_name
    others = [replace(item, audio=item.audio[::-1].copy()),
              replace(item, mouth_open=item.mouth_open + 0.5),
              replace(item, prompts=item.prompts[::-1]),
              replace(item, reference=item.reference + 1)]
    assert len({each.file_name for each in (item, *others)}) == 5


def test_a_set_needs_to_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='--make-set'):
        load_set(tmp_path)
