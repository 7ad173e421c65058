# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

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
