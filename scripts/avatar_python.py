# SPDX-License-Identifier: Apache-2.0
"""Finds the Python interpreter that has the avatar's dependencies, and runs a module with it.

Where ROS 2 is installed by apt, rclpy belongs to the system's interpreter while the avatar's
dependencies lie in a virtual environment made with ``--system-site-packages``. A node script that
simply starts with the system's interpreter would not find them; this one changes over.
"""

import importlib.util
import os
import sys
from pathlib import Path

# Set once this process has changed over, so that it does so only once.
CHANGED_VARIABLE = 'AVATAR_PYTHON_CHANGED'
# One module of the dependencies that no ROS installation brings along.
TELLING_MODULES = ('onnxruntime', 'faster_whisper', 'tokenizers')


def missing_modules() -> list[str]:
    """Modules that this interpreter lacks."""
    return [name for name in TELLING_MODULES if importlib.util.find_spec(name) is None]


def candidates() -> list[Path]:
    """Interpreters to try, best first: named, active, beside the workspace, in the home."""
    folders = []
    for variable in ('AVATAR_VENV', 'VIRTUAL_ENV'):
        if os.environ.get(variable):
            folders.append(Path(os.environ[variable]))
    # <workspace>/install[/avatar_bringup]/lib/avatar_bringup/<this file>
    here = Path(__file__).resolve()
    for parent in list(here.parents)[1:6]:
        folders += [parent / '.venv', parent / 'venv']
    folders.append(Path.home() / '.local' / 'share' / 'avatar_bringup' / 'venv')
    pythons = [folder / 'bin' / 'python' for folder in folders]
    if os.environ.get('AVATAR_PYTHON'):
        pythons.insert(0, Path(os.environ['AVATAR_PYTHON']))
    return [python for python in pythons if os.access(python, os.X_OK)]


def run(module: str) -> None:
    """Run ``module`` as a program, with another interpreter if this one lacks the dependencies.

    Ends the process with a message that names the missing module and the command that installs
    it, where no interpreter has all.
    """
    missing = missing_modules()
    if missing and not os.environ.get(CHANGED_VARIABLE):
        for python in candidates():
            if python.resolve() != Path(sys.executable).resolve() or python.parent != Path(
                    sys.executable).parent:
                os.environ[CHANGED_VARIABLE] = str(python)
                os.execv(str(python), [str(python), *sys.argv])
    if missing:
        print(f"{sys.executable} lacks the Python module {missing[0]}. Install the avatar's "
              f'dependencies once, beside the ROS installation:\n'
              f'  python3 -m venv --system-site-packages ~/.local/share/avatar_bringup/venv\n'
              f"  ~/.local/share/avatar_bringup/venv/bin/pip install <this package's folder>\n"
              f'or name an environment that has them with AVATAR_VENV=<folder>.',
              file=sys.stderr)
        sys.exit(1)
    import runpy
    runpy.run_module(module, run_name='__main__', alter_sys=True)
