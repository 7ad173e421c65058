# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import pytest

pytest.importorskip('torch')

import torch

from interactive_avatar.paths import SOURCE_ROOT
from interactive_avatar.training.acting import ActingOptions
from interactive_avatar.training.autoencoder import AutoencoderOptions
from interactive_avatar.training.blinking import BlinkingOptions
from interactive_avatar.training.common import (
    Log,
    Process,
    join_parts,
    learning_rate,
    options_from,
    save_parts,
)
from interactive_avatar.training.distil import DistilOptions
from interactive_avatar.training.hearing import HearingOptions
from interactive_avatar.training.memory import MemoryOptions
from interactive_avatar.training.reading import ReadingOptions
from interactive_avatar.training.recall import RecallOptions
from interactive_avatar.training.teacher import TeacherOptions


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


def test_parts_of_a_longer_file_do_not_stay(tmp_path: Path) -> None:
    source = tmp_path / 'weights'
    for size in (50, 20):
        source.write_bytes(bytes(range(size)))
        save_parts(source, tmp_path, part_bytes=16)
    source.unlink()
    assert join_parts(tmp_path, 'weights').read_bytes() == bytes(range(20))


OPTIONS = {'autoencoder': AutoencoderOptions, 'teacher': TeacherOptions, 'memory': MemoryOptions,
           'distil': DistilOptions, 'recall': RecallOptions, 'audio': HearingOptions,
           'act': ActingOptions, 'text': ReadingOptions, 'blink': BlinkingOptions}


CONFIGS = Path(str(SOURCE_ROOT), 'config', 'training')


@pytest.mark.parametrize('name', sorted(path.name for path in CONFIGS.glob('*.yaml')))
def test_shipped_options_are_of_the_stage_that_they_name(name: str) -> None:
    path = CONFIGS / name
    command = re.search(r'`avatar train (\w+) --config (\S+)`', path.read_text())
    assert command is not None and command[2] == f'config/training/{name}'
    defaults = OPTIONS[command[1]]()
    options = options_from(path, defaults)
    assert isinstance(options, OPTIONS[command[1]]) and options != defaults


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'options.yaml'
    path.write_text('peek_rate: 1.0e-4\n')
    with pytest.raises(ValueError, match=r"unknown entry 'peek_rate'; known: .*'peak_rate'"):
        options_from(path, TeacherOptions())


@pytest.mark.parametrize(('visible', 'index', 'expected'), [
    (None, 1, 1), ('', None, 0), ('2', 0, 2), ('3,1', 1, 1), ('GPU-8a3b', 0, 0), ('5', 1, 1)])
def test_pictures_are_drawn_on_the_card_that_is_seen(
        visible: str | None, index: int | None, expected: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    device = torch.device('cpu') if index is None else torch.device('cuda', index)
    assert Process(0, 1, device).egl_index == expected
