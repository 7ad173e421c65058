# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest

from interactive_avatar import cli
from interactive_avatar.graph import GraphError
from interactive_avatar.run import page_address, parse_overrides


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(['--help'])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert 'run' in shown and 'doctor' in shown


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(['dance'])
    assert caught.value.code == 2


def test_a_missing_dependency_is_named_with_its_command(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name='torch')

    monkeypatch.setattr(cli.importlib, 'import_module', refuse)
    monkeypatch.setattr(cli, 'COMMANDS', (
        cli.Command('train', 'interactive_avatar.run', 'train', 'train'),))
    assert cli.main(['train']) == 1
    assert 'needs the Python package torch' in (told := capsys.readouterr().err)
    assert '[ros,train]' in told


def test_what_is_wrong_with_what_was_given_is_said_in_a_line(
        tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    given = ['export', '--weights', str(tmp_path / 'nothing'), '--out', str(tmp_path / 'out')]
    assert cli.main(given) == 1
    said = capsys.readouterr().err
    assert said.startswith('avatar export: ') and 'is missing, and so are its parts' in said
    assert 'FileNotFoundError; AVATAR_TRACEBACK=1' in said
    monkeypatch.setenv(cli.TRACEBACK, '1')
    with pytest.raises(FileNotFoundError):
        cli.main(given)


def test_a_fault_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @staticmethod
        def main(rest: list[str]) -> int:
            return int('seven')

    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: Module)
    with pytest.raises(ValueError, match='seven'):
        cli.main(['train'])


def test_the_command_line_costs_no_heavy_import() -> None:
    code = ('import sys, interactive_avatar.cli as c; c.build_parser(); '
            'heavy = {"torch", "rclpy", "numpy", "onnxruntime"} & set(sys.modules); '
            'sys.exit(str(heavy) if heavy else 0)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr


def test_overrides_are_yaml() -> None:
    assert parse_overrides(['web.port=8081', 'generator.reference=ada', 'web.autostart=false']
                           ) == {'web.port': 8081, 'generator.reference': 'ada',
                                 'web.autostart': False}
    with pytest.raises(GraphError, match=r'NODE\.PARAMETER=VALUE'):
        parse_overrides(['port:=1'])


def test_the_address_follows_the_port() -> None:
    assert page_address('config/avatar.yaml', {}) == 'http://localhost:8080/'
    assert page_address('config/avatar.yaml', {'web.port': 9}) == 'http://localhost:9/'
