# SPDX-License-Identifier: Apache-2.0
"""The command ``avatar``: one sub-command for each thing a person does with the avatar.

Each sub-command lives in the module that owns it, as ``add_arguments(parser)`` and
``main(arguments) -> int``, or, with sub-commands of its own, as ``main(argv) -> int``; this file
only lists them, so that `avatar --help` costs no import of
what is not asked for. A sub-command whose module is not part of the installation is not listed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interactive_avatar import __version__

TRACEBACK = 'AVATAR_TRACEBACK'
"""Environment variable that lets errors through."""


@dataclass(frozen=True)
class Command:
    """One sub-command.

    Attributes:
        name: what the user types.
        module: module with ``add_arguments`` and ``main``.
        help: one line for the list.
        extra: extra of the Python package that brings its dependencies, empty for none.
    """

    name: str
    module: str
    help: str
    extra: str = ''


COMMANDS = (
    Command('demo', 'interactive_avatar.evaluation.demo',
            'play a recorded user at the avatar; ends with a video and a report'),
    Command('run', 'interactive_avatar.run',
            'start the avatar and keep it running, with its page on localhost'),
    Command('doctor', 'interactive_avatar.doctor',
            'say what is installed, what is missing and the command that mends it'),
    Command('record', 'interactive_avatar.evaluation.record',
            'record the topics of a running avatar into a bag'),
    Command('replay', 'interactive_avatar.evaluation.replay',
            'play the user of a bag at the avatar again, and compare'),
    Command('evaluate', 'interactive_avatar.evaluation.evaluate',
            'measure a bag, a video or a file of sentences', 'evaluate'),
    Command('bench', 'interactive_avatar.evaluation.bench',
            'measure speed, latency and memory on this machine', 'evaluate'),
    Command('render', 'interactive_avatar.training.clips',
            'draw and encode labelled performances for training', 'train'),
    Command('train', 'interactive_avatar.training.pipeline',
            'train a stage of the generator', 'train'),
    Command('average', 'interactive_avatar.training.average',
            'average trained weights, some parts otherwise than others', 'train'),
    Command('export', 'interactive_avatar.training.release',
            'export a trained model to graphs', 'train'),
    Command('import-weights', 'interactive_avatar.generator.wan.import_weights',
            'bring a checkpoint of Wan2.1 and its relatives in as a model', 'wan'),
    Command('engine', 'interactive_avatar.generator.backends.engine',
            'build or check TensorRT engines'),
)


def _exists(module: str) -> bool:
    """Whether a module of this package is installed, without importing its parents."""
    path = Path(__file__).parent.joinpath(*module.split('.')[1:])
    return path.with_suffix('.py').is_file() or (path / '__init__.py').is_file()


def build_parser() -> argparse.ArgumentParser:
    """Make the top-level parser; the sub-commands' own arguments are added when one is chosen."""
    parser = argparse.ArgumentParser(
        prog='avatar', description='An interactive avatar for ROS 2.')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for command in COMMANDS:
        if _exists(command.module):
            commands.add_parser(command.name, help=command.help, add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        arguments: what was typed after ``avatar``; the process's arguments if None.

    Returns:
        Exit code: 0 success, 1 failure with a message, 2 wrong usage, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    known, rest = parser.parse_known_args(given[:1])
    command = next(entry for entry in COMMANDS if entry.name == known.command)
    rest = given[1:]
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        extra = f"'.[ros,{command.extra}]'" if command.extra else "'.[ros]'"
        print(f'avatar {command.name} needs the Python package {error.name}: '
              f'{sys.executable} -m pip install -e {extra}', file=sys.stderr)
        return 1
    try:
        if not hasattr(module, 'add_arguments'):
            return int(module.main(rest) or 0)
        own = argparse.ArgumentParser(
            prog=f'avatar {command.name}',
            description=command.help[0].upper() + command.help[1:])
        module.add_arguments(own)
        return int(module.main(own.parse_args(rest)) or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get(TRACEBACK) or not _says_so_itself(error):
            raise
        print(f'avatar {command.name}: {error}\n'
              f'({type(error).__name__}; {TRACEBACK}=1 says where it came up)', file=sys.stderr)
        return 1


def _says_so_itself(error: Exception) -> bool:
    """Whether an error tells its reader what was wrong with what was given: files that cannot be
    read or written, and what this package has raised in so many words."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    ours = last is not None and \
        Path(last.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)
    return bool(str(error)) and (isinstance(error, OSError) or (
        ours and isinstance(error, ValueError | RuntimeError)))


if __name__ == '__main__':
    sys.exit(main())
