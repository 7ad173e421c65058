# SPDX-License-Identifier: Apache-2.0
"""Where configuration and models lie, on every kind of installation.

A source tree (``make``), a colcon workspace (``share/avatar_bringup``) and a wheel
(``<prefix>/share/avatar_bringup``) hold the same folders ``config``, ``launch`` and ``models``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE_NAME = 'avatar_bringup'
SOURCE_ROOT = Path(__file__).resolve().parents[2]


def share_folders() -> Iterator[Path]:
    """Yield the folders that may hold ``config`` and ``models``, best first."""
    if (SOURCE_ROOT / 'package.xml').is_file():
        yield SOURCE_ROOT
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    for prefix in [*filter(None, prefixes), sys.prefix]:
        yield Path(prefix) / 'share' / PACKAGE_NAME


def resource(path: str | os.PathLike[str]) -> Path:
    """Find a file or folder that comes with the package, or one named by the user.

    Args:
        path: absolute, or relative to the working directory, or relative to the package's share
            folder such as ``config/avatar.yaml``; tried in this order.

    Returns:
        The path of what was found.

    Raises:
        FileNotFoundError: if it is nowhere; the message lists where it was looked for.
    """
    wanted = Path(path).expanduser()
    if wanted.exists():
        return wanted
    tried = [wanted.absolute()]
    if not wanted.is_absolute():
        for folder in share_folders():
            if (folder / wanted).exists():
                return folder / wanted
            tried.append(folder / wanted)
    places = '\n  '.join(str(place) for place in tried)
    raise FileNotFoundError(
        f'{path} was not found; looked for\n  {places}\n'
        'Give an absolute path, or install the package again (`make`).')


def cache_folder() -> Path:
    """Folder for what can be made again (logs, engines), created if it is missing."""
    base = os.environ.get('XDG_CACHE_HOME') or str(Path.home() / '.cache')
    folder = Path(base) / PACKAGE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    return folder
