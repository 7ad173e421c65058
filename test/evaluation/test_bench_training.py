# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from interactive_avatar.evaluation import bench
from interactive_avatar.evaluation.bench_training import Case, cases, collect, report


def measured(folder: Path, gpus: int, clips_per_s: float, loss: list[float],
             **values: object) -> None:
    item = {'stage': 'teacher', 'gpus': gpus, 'fsdp': False, 'compiled': True, 'accumulate': 1,
            'global_batch': 64, 'clips_per_s': clips_per_s, 'steps_per_s': clips_per_s / 64,
            'steps': len(loss),
            'allocated_gib': 20.0, 'loss': loss, **values}
    name = '-'.join(map(str, (gpus, item['fsdp'], item['global_batch'])))
    folder.mkdir(exist_ok=True)
    (folder / f'{name}.json').write_text(json.dumps(item))


def test_every_way_with_the_batch_equal_and_grown() -> None:
    found = cases(['teacher', 'distil'], [1, 2], 32)
    assert Case('teacher', 1, False, 32, 2) in found  # 64 clips in two parts
    assert Case('teacher', 1, False, 32, 1) in found
    assert Case('teacher', 2, True, 32, 1) in found
    assert Case('distil', 1, False, 64, 1) in found  # streams cannot be worked off in parts
    assert len(set(found)) == len(found) == 8
    command = found[-1].command(Path('out'), ['--steps', '3'])
    assert '--nproc-per-node=2' in command and command[-2:] == ['--steps', '3']


def test_runs_are_compared_with_one_gpu(tmp_path: Path) -> None:
    folder = tmp_path / 'training'
    measured(folder, 1, 100.0, [2.0, 1.0], accumulate=2)
    measured(folder, 2, 190.0, [2.0, 1.001])
    measured(folder, 2, 150.0, [2.0, 1.0], fsdp=True, compiled=False)
    runs = collect(folder)
    assert [run['gpus'] for run in runs] == [1, 2, 2]
    assert runs[1]['efficiency'] == pytest.approx(0.95)
    assert runs[1]['loss_apart'] == pytest.approx(1e-3)
    assert runs[2]['speed_up'] == pytest.approx(1.5) and runs[2]['loss_apart'] == 0.0
    table = report(runs)
    assert '| teacher | 2 | FSDP2 | 64 |' in table and '64 in 2 parts' in table
    assert bench.main(['training', '--only-report', '--out', str(tmp_path)]) == 0
    assert (tmp_path / 'training.png').stat().st_size > 10_000
    assert json.loads((tmp_path / 'training.json').read_text())['runs']


def test_losses_of_schedules_of_other_lengths_are_not_compared(tmp_path: Path) -> None:
    folder = tmp_path / 'training'
    measured(folder, 1, 100.0, [2.0, 1.0])
    measured(folder, 4, 390.0, [2.0, 1.5, 1.0])
    measured(folder, 4, 300.0, [2.0, 1.5, 1.1], fsdp=True)
    apart = [run['loss_apart'] for run in collect(folder)]
    # FSDP2 is compared with data parallel where one GPU has no such run.
    assert apart == [0.0, None, pytest.approx(0.1)]


def test_nothing_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'training').mkdir()
    assert bench.main(['training', '--only-report', '--out', str(tmp_path)]) == 2
    assert 'no measured runs' in capsys.readouterr().err
