# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from interactive_avatar import cli, doctor
from interactive_avatar.generator import backends
from interactive_avatar.generator.wan.config import WAN_TINY
from interactive_avatar.paths import resource


def write_config(folder: Path, model: Path, backend: str = 'onnx', port: int = 8080) -> str:
    path = folder / 'avatar.yaml'
    path.write_text(f'/**/generator:\n  ros__parameters: {{model: {model}, backend: {backend}}}\n'
                    f'/**/web:\n  ros__parameters: {{port: {port}}}\n')
    return str(path)


def levels(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.topic: finding.level for finding in findings}


def test_a_sound_model_passes_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    model = tmp_path / 'model'
    shutil.copytree(resource('models/compact'), model)
    config = write_config(tmp_path, model)

    def found() -> doctor.Finding:
        return next(item for item in doctor.check_model(config) if item.topic == 'model')

    assert found().level == doctor.OK, found().text
    (model / 'denoise.onnx').write_bytes(b'weighty')
    assert found().level == doctor.PROBLEM and "denoise.onnx' is corrupt" in found().text
    (model / 'denoise.onnx').unlink()
    assert "denoise.onnx' is missing" in found().text and found().remedy


def test_a_missing_model_comes_with_a_remedy(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / 'nothing')
    found = {finding.topic: finding for finding in doctor.check_model(config)}['model']
    assert found.level == doctor.PROBLEM and found.remedy


def test_an_unknown_backend_is_a_problem(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path, backend='abacus')
    found = {finding.topic: finding for finding in doctor.check_model(config)}['backend']
    assert found.level == doctor.PROBLEM and "'abacus' is not a backend" in found.text


def test_the_shipped_parameters_name_a_backend_that_runs() -> None:
    found = {finding.topic: finding for finding in doctor.check_model('config/avatar.yaml')}
    assert found['backend'].level == doctor.OK, found['backend'].text
    assert 'chosen by auto (' in found['backend'].text


def test_a_wan_model_is_looked_at_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / 'wan'
    model.mkdir()
    for name in ('vae', 'text_encoder', 'tokenizer'):
        (model / name).mkdir()
    config = replace(WAN_TINY, components={
        name: name for name in ('vae', 'text_encoder', 'tokenizer', 'audio_encoder')})
    (model / 'config.json').write_text(config.to_json())
    (model / 'model.safetensors').write_bytes(bytes(8))

    def found(backend: str) -> dict[str, doctor.Finding]:
        path = write_config(tmp_path, model, backend)
        return {finding.topic: finding for finding in doctor.check_model(path)}

    absent = found('torch')
    assert absent['model'].level == doctor.PROBLEM and 'audio_encoder' in absent['model'].text
    assert 'avatar import-weights' in absent['model'].remedy
    (model / 'audio_encoder').mkdir()
    there = found('torch')
    assert there['model'].level == doctor.OK and config.name in there['model'].text
    assert there['backend'].level == doctor.OK and there['backend'].text.startswith('torch')
    assert 'cannot run a wan model' in found('tensorrt')['backend'].text
    monkeypatch.setattr(backends, 'choose_backend', lambda: ('onnx', 'there is no CUDA card'))
    assert 'needs torch and a CUDA card' in found('auto')['backend'].text
    monkeypatch.setattr(backends, 'choose_backend', lambda: ('tensorrt', 'a card is there'))
    assert found('auto')['backend'].text.startswith('torch, chosen by auto')


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = write_config(tmp_path, tmp_path, port=port)
        (found,) = doctor.check_page(config)
    assert found.level == doctor.NOTE and f'port {port} is in use' in found.text


def test_the_findings_can_be_read_by_programs(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(['doctor', '--json'])
    findings = json.loads(capsys.readouterr().out)
    problems = [finding for finding in findings if finding['level'] == doctor.PROBLEM]
    assert code == (1 if problems else 0)
    assert all(finding['remedy'] for finding in problems)
