# SPDX-License-Identifier: Apache-2.0
"""Files outside the Python package that an installation from a wheel brings along.

Everything else is declared in pyproject.toml. The targets are those of a ROS package's share
folder, so that `interactive_avatar.paths` finds them the same way on every kind of installation.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
SHARE = Path('share/avatar_bringup')


def data_files(*folders: str) -> list[tuple[str, list[str]]]:
    """List the files of ``folders`` by folder of installation, as setuptools wants them."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                relative = path.relative_to(ROOT)
                found.setdefault(str(SHARE / relative.parent), []).append(str(relative))
    return list(found.items())


setup(data_files=data_files('config', 'launch', 'models'))
