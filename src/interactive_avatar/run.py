# SPDX-License-Identifier: Apache-2.0
"""``avatar run``: starts the graph, prints the page's address, stays until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import yaml

from interactive_avatar.graph import DEFAULT_NAMESPACE, NODES, GraphError, start_graph
from interactive_avatar.paths import resource

# Nodes that have the parameter `mode`.
MODAL_NODES = ('perception', 'reasoning', 'generator', 'web')


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that starts a graph."""
    parser.add_argument('--config', default='config/avatar.yaml', metavar='FILE',
                        help='parameter file (default: %(default)s of the package)')
    parser.add_argument('--namespace', default=DEFAULT_NAMESPACE,
                        help='namespace of nodes and topics (default: %(default)s)')
    parser.add_argument('--log', metavar='FOLDER',
                        help="folder of the nodes' logs (default: in the user's cache)")
    parser.add_argument('-p', '--set', action='append', default=[], metavar='NODE.PARAMETER=VALUE',
                        dest='overrides', help='a parameter that goes before the file; may be '
                                               'repeated, e.g. -p web.port=8081')


def mode_overrides(mode: str, nodes: Sequence[str]) -> dict[str, Any]:
    """The parameters that put a graph into a mode; none for ''."""
    return {f'{name}.mode': mode for name in MODAL_NODES if mode and name in nodes}


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """Read ``node.parameter=value`` pairs; values are YAML.

    Raises:
        GraphError: if a pair is not written so.
    """
    overrides = {}
    for text in texts:
        key, equals, value = text.partition('=')
        if not equals or '.' not in key:
            raise GraphError(f'{text!r} is not a parameter: write NODE.PARAMETER=VALUE, for '
                             f'example web.port=8081')
        overrides[key.strip()] = yaml.safe_load(value)
    return overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``avatar run``."""
    add_graph_arguments(parser)
    parser.add_argument('--nodes', nargs='+', default=list(NODES), choices=NODES,
                        help='which nodes to start (default: all)')
    parser.add_argument('--mode', default='', choices=('companion', 'telepresence'),
                        help='converse, or let an operator speak through the avatar (default: as '
                             'the parameter file says)')
    parser.add_argument('--timeout', type=float, default=180.0, metavar='SECONDS',
                        help='how long to wait for the nodes (default: %(default)s)')


def page_address(config: str, overrides: dict[str, Any]) -> str:
    """Address of the page under these settings."""
    with open(resource(config), encoding='utf-8') as file:
        tree = yaml.safe_load(file) or {}
    settings: dict[str, Any] = {}
    for pattern in ('/**', '/**/web', 'web'):
        settings |= (tree.get(pattern) or {}).get('ros__parameters') or {}
    settings |= {key.removeprefix('web.'): value for key, value in overrides.items()
                 if key.startswith('web.')}
    host = settings.get('host', 'localhost')
    return (f'http://{"localhost" if host in ("127.0.0.1", "0.0.0.0", "") else host}:'
            f'{settings.get("port", 8080)}/')


def main(arguments: argparse.Namespace) -> int:
    """Run until interrupted.

    Returns:
        0 after Ctrl-C, SIGTERM or a closed terminal, 1 if the graph could not start.
    """
    stop = threading.Event()
    # The nodes have sessions of their own, so a terminal that closes ends only this process:
    # without it they would run on. Under nohup a closed terminal is to be survived.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
    try:
        overrides = {**mode_overrides(arguments.mode, arguments.nodes),
                     **parse_overrides(arguments.overrides)}
        graph = start_graph(arguments.config, nodes=arguments.nodes, overrides=overrides,
                            namespace=arguments.namespace, log_folder=arguments.log)
    except (GraphError, FileNotFoundError) as error:
        print(f'avatar run: {error}', file=sys.stderr)
        return 1
    with graph:
        waiter = _Waiter(graph, arguments.timeout)
        waiter.start()
        while waiter.is_alive() and not stop.wait(0.2):
            pass
        if stop.is_set():
            return 0
        if waiter.error is not None:
            # The nodes that do run are of use; a node that failed can be mended and started.
            print(f'avatar run: {waiter.error}', file=sys.stderr)
            if not any(graph.status(name)['state'] == 'active' for name in graph.nodes):
                return 1
            print('avatar run: going on with the nodes that run; `avatar doctor` may know more',
                  file=sys.stderr)
        if 'web' in graph.nodes:
            print(f'The avatar is at {page_address(arguments.config, overrides)}  '
                  f'(Ctrl-C ends it)', flush=True)
        else:
            print('The avatar runs (Ctrl-C ends it)', flush=True)
        stop.wait()
    return 0


class _Waiter(threading.Thread):
    """Waits for the graph in a thread, so that Ctrl-C is heard meanwhile."""

    def __init__(self, graph: Any, timeout_s: float) -> None:
        super().__init__(daemon=True)
        self._graph, self._timeout_s = graph, timeout_s
        self.error: GraphError | None = None

    def run(self) -> None:
        try:
            self._graph.wait_until_active(self._timeout_s, self._show)
        except GraphError as error:
            self.error = error

    @staticmethod
    def _show(text: str) -> None:
        # A terminal that was closed takes no more lines.
        with contextlib.suppress(OSError):
            print(text, flush=True)
