# SPDX-License-Identifier: Apache-2.0
"""Parameters stand in three places that say the same: the code, config/avatar.yaml, README.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

from interactive_avatar.nodes.face import FaceNodeOptions
from interactive_avatar.nodes.generator import GeneratorOptions
from interactive_avatar.nodes.perception import PerceptionOptions
from interactive_avatar.nodes.reasoning import ReasoningOptions
from interactive_avatar.nodes.web import WebOptions

ROOT = Path(__file__).parents[2]
STRUCTS: dict[str, Any] = {'perception': PerceptionOptions, 'face': FaceNodeOptions,
                           'reasoning': ReasoningOptions, 'generator': GeneratorOptions,
                           'web': WebOptions}


@pytest.mark.parametrize('node', STRUCTS)
def test_the_parameter_file_has_every_parameter_and_its_default(node: str) -> None:
    given = yaml.safe_load((ROOT / 'config' / 'avatar.yaml').read_text(encoding='utf-8'))
    assert given[f'/**/{node}']['ros__parameters'] == {
        field.name: field.default for field in dataclasses.fields(STRUCTS[node])}


@pytest.mark.parametrize('node', STRUCTS)
def test_the_readme_lists_every_parameter_as_the_code_has_it(node: str) -> None:
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    rows = re.findall(rf'^\| `{node}\.\w+` \| .* \|$', text, re.MULTILINE)
    assert rows == [
        f"| `{node}.{field.name}` | `{field.default!r}` | {field.metadata['description']} |"
        for field in dataclasses.fields(STRUCTS[node]) if field.name != 'autostart']
