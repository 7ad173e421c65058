# SPDX-License-Identifier: Apache-2.0
"""The scripts of way A: they find the interpreter that has the dependencies, or say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'scripts' / 'avatar'
VARIABLES = ('AVATAR_VENV', 'AVATAR_PYTHON', 'VIRTUAL_ENV', 'AVATAR_PYTHON_CHANGED', 'PYTHONPATH',
             'LD_LIBRARY_PATH', '_ROS_WHEELS_BOOTSTRAP_COMPLETE')


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start a copy of the script with the interpreter that the environment was made from."""
    base = Path(sys.base_prefix) / 'bin' / f'python{sys.version_info[0]}.{sys.version_info[1]}'
    bare = not base.exists() or subprocess.run(
        [base, '-c', 'import onnxruntime'], capture_output=True, check=False).returncode == 0
    if bare or sys.prefix == sys.base_prefix:
        pytest.skip('needs a base interpreter without the dependencies')
    for name in ('avatar', 'avatar_python.py'):
        (tmp_path / name).write_bytes((SCRIPT.parent / name).read_bytes())
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run([base, tmp_path / 'avatar', *arguments], capture_output=True, text=True,
                          check=False, env={**environment, 'HOME': str(tmp_path), **variables})


def test_without_the_dependencies_the_missing_module_and_the_remedy_are_named(
        tmp_path: Path) -> None:
    done = run(tmp_path, '--version')
    assert done.returncode == 1
    assert 'lacks the Python module onnxruntime' in done.stderr
    assert 'python3 -m venv --system-site-packages' in done.stderr


def test_an_environment_that_is_named_is_changed_over_to(tmp_path: Path) -> None:
    done = run(tmp_path, '--version', AVATAR_VENV=sys.prefix)
    assert (done.returncode, done.stdout.strip()) == (0, '0.1.0'), done.stderr
