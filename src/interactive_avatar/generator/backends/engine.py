# SPDX-License-Identifier: Apache-2.0
"""``avatar engine build|list|inspect|clean``: TensorRT engines of a model, ahead of need."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from interactive_avatar.generator.backends.engine_graph import PRECISIONS
from interactive_avatar.generator.backends.engines import (
    MODULES,
    PORTABLE,
    EngineCache,
    EngineError,
    EngineSpec,
    GraphFiles,
    build_engine,
    inspect_engine,
    load_api,
)
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.signatures import DEVICE_GRAPHS, STREAM_GRAPHS
from interactive_avatar.generator.wan.export import WanGraphFiles
from interactive_avatar.generator.wan.files import is_wan
from interactive_avatar.paths import resource


def build(args: argparse.Namespace) -> int:
    """Build what is missing or unusable; with ``--force`` everything."""
    files, known = graphs_of(resource(args.model))
    strange = sorted(set(args.graph or ()) - set(known))
    if strange:
        raise ValueError(f'{args.model!r} has no graph {strange[0]!r}; it has {", ".join(known)}')
    api = load_api(args.api)
    capability = args.compute_capability or default_capability(api.needs_gpu_to_build)
    cache = EngineCache(args.folder)
    for graph in args.graph or known:
        spec = EngineSpec.of(files, graph, api, capability, args.precision)
        try:
            if not args.force:
                cache.load(spec)
                print(f'{graph}: ready: {cache.path(spec)}')
                continue
        except EngineError:
            pass
        build_engine(spec, files, api, cache, print)
    return 0


def graphs_of(model: Path) -> tuple[GraphFiles, tuple[str, ...]]:
    """The graphs of a model folder of either architecture, and their names.

    Raises:
        ModelError: if they cannot be read.
    """
    if is_wan(model):
        wan = WanGraphFiles.open(model)
        return wan, tuple(wan.graphs)
    return ModelFiles.open(model), (*STREAM_GRAPHS, *DEVICE_GRAPHS)


def default_capability(needs_gpu: bool) -> str:
    """Compute capability of this machine's card, or `PORTABLE` where there is none.

    Raises:
        EngineError: if there is no card and one is needed.
    """
    from interactive_avatar.generator.backends import device

    try:
        return device.compute_capability()
    except device.DeviceError as error:
        if needs_gpu:
            raise EngineError(f'tensorrt compiles only on the card that will run the engine, and '
                              f'none can be used here: {error}') from error
        return PORTABLE


def show_list(args: argparse.Namespace) -> int:
    """One line for each engine in the cache."""
    cache = EngineCache(args.folder)
    kept = list(cache.entries())
    for entry in kept:
        record = entry.record
        about = (f'{record["graph"]}  {record["api"]} {record["api_version"]}  compute capability '
                 f'{record["compute_capability"]}  {record["precision"]}  '
                 f'{record["engine_bytes"] / 2**20:.1f} MiB' if record else '?')
        print(f'{entry.path.name}  {about}  {entry.trouble or "ready"}')
    print(f'{len(kept)} engines in {cache.folder}')
    return 0


def inspect(args: argparse.Namespace) -> int:
    """The whole record of one engine, and whether it can be used."""
    path = args.engine
    if not path.is_file():
        path = EngineCache(args.folder).folder / path.name
    if not path.is_file():
        raise EngineError(f"there is no engine {str(args.engine)!r}; 'avatar engine list' names "
                          f'those that are kept')
    entry = inspect_engine(path)
    print(json.dumps(entry.record, indent=2))
    print(entry.trouble or 'ready')
    return 1 if entry.trouble else 0


def clean(args: argparse.Namespace) -> int:
    """Remove engines that cannot be used; with ``--all`` every one."""
    cache = EngineCache(args.folder)
    removed = 0
    for entry in list(cache.entries()):
        if args.all or entry.trouble:
            print(f'removed {entry.path.name}: {entry.trouble or "asked for"}')
            cache.remove(entry.path)
            removed += 1
    print(f'{removed} engines removed from {cache.folder}')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``avatar engine``; returns the exit status."""
    parser = argparse.ArgumentParser(prog='avatar engine',
                                     description='TensorRT engines of a model.')
    parser.add_argument('-v', '--verbose', action='store_true', help="show TensorRT's own words")
    actions = parser.add_subparsers(required=True, metavar='ACTION')
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--folder', type=Path,
                        help="where engines lie (default: the user's cache)")

    action = actions.add_parser('build', parents=[common], help='build what is missing')
    action.add_argument('--model', default='models/compact', help='folder of the model')
    action.add_argument('--api', default='', choices=('', *MODULES),
                        help='which TensorRT (default: the first that is installed)')
    action.add_argument('--precision', default='fp16', choices=PRECISIONS)
    action.add_argument('--compute-capability', metavar='X.Y',
                        help=f"card to build for, or '{PORTABLE}' for all that TensorRT-RTX knows "
                             f"(default: this machine's card)")
    action.add_argument('--graph', action='append',
                        help='only this graph; may be given several times')
    action.add_argument('--force', action='store_true', help='build anew what is ready')
    action.set_defaults(carry_out=build)
    action = actions.add_parser('list', parents=[common], help='what is in the cache')
    action.set_defaults(carry_out=show_list)
    action = actions.add_parser('inspect', parents=[common], help='one engine: what it is')
    action.add_argument('engine', type=Path, help='file, or its name in the cache')
    action.set_defaults(carry_out=inspect)
    action = actions.add_parser('clean', parents=[common], help='remove what cannot be used')
    action.add_argument('--all', action='store_true', help='remove everything')
    action.set_defaults(carry_out=clean)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.WARNING,
                        format='%(message)s', stream=sys.stderr)
    try:
        return int(args.carry_out(args))
    except (ModelError, FileNotFoundError, ValueError) as error:
        print(f'avatar engine: {error}', file=sys.stderr)
        return 1
