# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m interactive_avatar.evaluation.explained``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from interactive_avatar.evaluation import judges
from interactive_avatar.evaluation.bag import BagError, read_bag
from interactive_avatar.evaluation.explained import faces, system
from interactive_avatar.evaluation.explained.draw import Explained, draw
from interactive_avatar.evaluation.held_out import SHIPPED_SET, load_set
from interactive_avatar.evaluation.model.play import Player, Setup
from interactive_avatar.evaluation.report import machine, write_json

# Who is shown: one who talks, another, and one with actions and a change of the world.
CHOSEN = ('person_019', 'person_149', 'person_129')


def explain(args: argparse.Namespace) -> Iterator[Explained]:
    """Each metric with its cases, one after another.

    Raises:
        judges.JudgeMissing: without mediapipe or dlib.
        BagError: if there is no session to take the system's metrics from.
    """
    player = Player(Setup(args.model, args.backend))
    items = {item.name: item for item in load_set(SHIPPED_SET)}
    chosen = [*[items.pop(name) for name in CHOSEN], *items.values()]
    wanted = set(args.only or ())
    with judges.MeshJudge() as mesh:
        material = faces.Material(player, chosen, mesh, judges.IdentityJudge())
        for make in faces.FACES:
            if not wanted or make.__name__ in wanted:
                yield make(material)
    session = None
    for explains in system.SYSTEM:
        if not wanted or explains.__name__ in wanted:
            session = session or system.Session(read_bag(args.bag), player, chosen[0])
            yield explains(session)


def main() -> int:
    """Draw the pictures; returns the exit status."""
    names = [make.__name__ for make in (*faces.FACES, *system.SYSTEM)]
    parser = argparse.ArgumentParser(
        prog='python -m interactive_avatar.evaluation.explained',
        description='Draw a good and a bad case of each metric.')
    parser.add_argument('--out', type=Path, default=Path('docs/metrics'), help='folder')
    parser.add_argument('--bag', type=Path, default=Path('out/demo/bag'),
                        help='a session of the running graph with pictures, as `avatar demo` '
                        'records it (default: %(default)s)')
    parser.add_argument('--model', default='models/compact', help='folder of the model')
    parser.add_argument('--backend', default='onnx', help='what runs it')
    parser.add_argument('--only', nargs='+', choices=names, help='some of them')
    args = parser.parse_args()
    values = {}
    try:
        for item in explain(args):
            path = draw(item, args.out / f'{item.name}.webp')
            values[item.name] = item.values
            print(f'{path}: good {item.good.value}; bad {item.bad.value}', flush=True)
    except (BagError, FileNotFoundError, judges.JudgeMissing) as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 2
    if not args.only:
        write_json(args.out / 'values.json', {'values': values, 'machine': machine()})
    return 0


if __name__ == '__main__':
    sys.exit(main())
