# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

pytest.importorskip('torch')

import torch

from interactive_avatar.training.common import (
    Log,
    Process,
    join_parts,
    learning_rate,
    save_parts,
)


def test_a_log_loses_nothing_at_the_end(tmp_path: Path) -> None:
    log = Log(tmp_path, 'stage', Process(0, 1, torch.device('cpu')), every_s=1000.0)
    log.add(1, loss=4.0)
    for step in (2, 3):
        log.add(step, loss=float(step))
    log.plot()
    rows = [json.loads(line) for line in (tmp_path / 'stage.jsonl').read_text().splitlines()]
    assert rows[-1]['step'] == 3
    assert rows[-1]['loss'] in (2.5, 3.0)
    assert (tmp_path / 'stage.png').is_file()


def test_parts_join_to_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / 'weights'
    source.write_bytes(bytes(range(256)) * 10)
    parts = save_parts(source, tmp_path, part_bytes=1000)
    assert len(parts) == 3
    source.unlink()
    assert join_parts(tmp_path, 'weights').read_bytes() == bytes(range(256)) * 10
    with pytest.raises(FileNotFoundError, match='nothing'):
        join_parts(tmp_path, 'nothing')


def test_the_rate_rises_then_falls() -> None:
    assert learning_rate(0.01, 1.0) == pytest.approx(0.5)
    assert learning_rate(0.02, 1.0) == pytest.approx(1.0)
    assert learning_rate(1.0, 1.0) == pytest.approx(0.02)
