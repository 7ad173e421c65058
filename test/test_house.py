# SPDX-License-Identifier: Apache-2.0
"""The rules of the house: who may import whom, and what is never imported at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'src' / 'interactive_avatar'
# Each folder may import those of a lower number, and itself.
LEVELS = {'media': 0, 'generator': 1, 'reasoning': 2, 'perception': 2, 'training': 2,
          'evaluation': 3, 'nodes': 4, 'web': 4}
# Same level, and yet allowed: the page is what its node serves.
ALLOWED = {('nodes', 'web')}
ROS_MODULES = ('rclpy', 'avatar_bringup', 'sensor_msgs', 'std_msgs', 'diagnostic_msgs',
               'builtin_interfaces', 'lifecycle_msgs', 'rcl_interfaces')


def sources() -> list[Path]:
    """All Python files of the package."""
    return sorted(PACKAGE.rglob('*.py'))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def folder_of(path: Path) -> str:
    """First folder below the package; empty for files at its top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ''


@pytest.mark.parametrize('path', sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_downward_and_ros_stays_in_nodes(path: Path) -> None:
    own = folder_of(path)
    for name in imports(path):
        parts = name.split('.')
        if parts[0] in ROS_MODULES:
            assert own == 'nodes', f'{name} is imported outside nodes/'
        if own and parts[0] == 'interactive_avatar' and len(parts) > 1 and parts[1] in LEVELS:
            other = parts[1]
            assert (other == own or LEVELS[other] < LEVELS[own] or (own, other) in ALLOWED), (
                f'{own} may not import {other}')


@pytest.mark.parametrize('module', [
    'generator', 'reasoning.module', 'perception', 'web', 'nodes.generator', 'nodes.reasoning',
    'nodes.perception', 'nodes.face', 'nodes.web', 'evaluation.demo', 'cli'])
def test_the_run_time_imports_no_torch(module: str) -> None:
    if module.startswith('nodes.'):
        pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
    code = (f'import sys, interactive_avatar.{module}; '
            'heavy = {"torch", "mediapipe", "cv2", "matplotlib", "transformers"}; '
            'heavy &= set(sys.modules); '
            'sys.exit(str(heavy) if heavy else 0)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('folder', ['src', 'test', 'launch', 'scripts', 'config', 'msg'])
def test_every_file_names_its_licence(folder: str) -> None:
    kinds = {'.py', '.msg', '.yaml', '.xml', '.js', '.css'}
    for path in sorted((ROOT / folder).rglob('*')):
        if path.suffix in kinds and '__pycache__' not in path.parts:
            head = path.read_text(encoding='utf-8')[:300]
            assert 'SPDX-License-Identifier: Apache-2.0' in head, path
