# SPDX-License-Identifier: Apache-2.0
"""Baked prompts are read as they were encoded, and those of another version are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interactive_avatar.generator import text
from interactive_avatar.generator.prompts import prompt_table
from interactive_avatar.training import prompts
from interactive_avatar.training.prompts import Prompts, bake_prompts

WIDTH = 6


class Encoder:
    """States that tell a text's length and its first letters."""

    @classmethod
    def load(cls) -> Encoder:
        return cls()

    def encode(self, words: str) -> np.ndarray:
        codes = np.frombuffer(words.encode()[:WIDTH], np.uint8).astype(np.float32)
        return np.outer(1.0 + np.arange(len(words.split())), codes / 100.0)


def test_prompts_come_back_as_they_were_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                ) -> None:
    monkeypatch.setattr(text, 'TextEncoder', Encoder)
    path = tmp_path / 'assets' / 'prompts.npz'
    with pytest.raises(FileNotFoundError, match=r'training\.prompts --out'):
        Prompts(path, 8, torch.device('cpu'))
    bake_prompts(path, 8)
    read = Prompts(path, 8, torch.device('cpu'))
    table = prompt_table()
    assert read.states.shape == (len(table), 8, WIDTH)
    for number in (0, 700, len(table) - 1):
        true = Encoder().encode(table[number].text)[:8]
        count = len(true)
        assert (read.mask[number, :count] == 0).all() and (read.mask[number, count:] < -1e3).all()
        torch.testing.assert_close(read.states[number, :count].float(),
                                   torch.from_numpy(true).float(), rtol=0.02, atol=0.05)


def test_prompts_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                ) -> None:
    monkeypatch.setattr(text, 'TextEncoder', Encoder)
    path = tmp_path / 'prompts.npz'
    bake_prompts(path, 8)
    monkeypatch.setattr(prompts, 'prompt_table', lambda: prompt_table()[:-1])
    with pytest.raises(ValueError, match='prompts of another version'):
        Prompts(path, 8, torch.device('cpu'))
