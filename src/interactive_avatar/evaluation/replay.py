# SPDX-License-Identifier: Apache-2.0
"""``avatar replay``: a recorded user talks to the avatar again, with another model or voice.

Live (the default): starts the graph on the bag's clock, plays the user's topics at it with the
recorded timing, records, and measures the result against the original. With ``--deterministic``
the same parts run in lock step on the bag's time instead, without a clock.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interactive_avatar.evaluation.bag import BagError, Recording, read_bag
from interactive_avatar.evaluation.demo import (
    ReportOptions,
    describe,
    expected_from_log,
    make_report,
)
from interactive_avatar.evaluation.process import run_process
from interactive_avatar.graph import (
    NODES,
    GraphError,
    prepare_environment,
    start_graph,
)
from interactive_avatar.run import add_graph_arguments, parse_overrides

# Its own, so that an avatar that is already running neither hears nor disturbs the replay.
REPLAY_NAMESPACE = 'avatar_replay'
MADE = ('bag', 'digests.json', 'report.html', 'report.json', 'report.md', 'demo.mp4',
        'contact_sheet.png', 'timeline.png', 'logs')
Say = Callable[[str], None]


class ReplayError(RuntimeError):
    """A replay that could not be carried out; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``avatar replay``."""
    parser.add_argument('bag', type=Path, help='bag folder, .mcap or .db3 of a session')
    parser.add_argument('--out', type=Path, help='folder for results (default: out/replay/NAME)')
    parser.add_argument('--deterministic', action='store_true',
                        help="on the bag's time, step by step: the same pictures each time, "
                             'however loaded the machine is')
    parser.add_argument('--rate', type=float, default=1.0,
                        help='seconds of the bag per second, live; below 1 for slow machines')
    parser.add_argument('--model', help='folder of another generator model')
    parser.add_argument('--backend', help='what runs the model')
    parser.add_argument('--seed', type=int, default=0,
                        help='of replies, voice and pictures, for --deterministic')
    parser.add_argument('--recorded-namespace', help='of the avatar in the bag (default: found)')
    parser.add_argument('--ready-timeout', type=float, default=180.0, metavar='SECONDS',
                        help='how long to wait for a live avatar')
    parser.add_argument('--no-judges', dest='judges', action='store_false',
                        help='do not ask the independent face judges')
    parser.add_argument('--no-report', dest='report', action='store_false',
                        help='only make the bag')
    add_graph_arguments(parser)
    parser.set_defaults(namespace=REPLAY_NAMESPACE)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    overrides = parse_overrides(args.overrides)
    if args.model:
        overrides['generator.model'] = args.model
    if args.backend:
        overrides['generator.backend'] = args.backend
    return overrides


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
    return '\n'.join(lines[-8:]) or 'it left no message'


def replay_in_lockstep(args: argparse.Namespace, out: Path, say: Say) -> dict[str, Any]:
    """Replay without a clock.

    Returns:
        What the process found: digests of pictures and sound, warnings, settings.

    Raises:
        ReplayError: if it could not be done.
    """
    overrides = {'generator.seed': args.seed} | _overrides(args)
    log = out / 'logs' / 'lockstep.log'

    def take(line: str) -> None:
        event = json.loads(line)
        say(f'{event["done_s"]:.0f} of about {event["all_s"]:.0f} s replayed')

    command = [sys.executable, '-m', 'interactive_avatar.nodes.lockstep', str(args.bag),
               '--out', str(out / 'bag'), '--digests', str(out / 'digests.json'),
               '--config', args.config, '--namespace', args.namespace,
               '--seed', str(args.seed), '--overrides', json.dumps(overrides)]
    if args.recorded_namespace:
        command += ['--recorded-namespace', args.recorded_namespace]
    environment = dict(prepare_environment(dict(_environment())))
    if run_process(command, environment, log, take) or not (out / 'digests.json').is_file():
        raise ReplayError(_last_lines(log))
    found: dict[str, Any] = json.loads((out / 'digests.json').read_text(encoding='utf-8'))
    say(f'{found["chunks"]} chunks; pictures {found["frames_sha256"][:16]}, sound '
        f'{found["audio_sha256"][:16]}')
    return found


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def replay_live(args: argparse.Namespace, out: Path, say: Say) -> None:
    """Replay into the running graph.

    Raises:
        GraphError: if a node failed.
        ReplayError: if the avatar did not come alive, or the user's process failed.
    """
    nodes = tuple(name for name in NODES if name != 'web')
    overrides = {key: value for key, value in _overrides(args).items()
                 if not key.startswith('web.')}
    overrides |= {f'{name}.use_sim_time': True for name in nodes}
    log = out / 'logs' / 'replay_client.log'
    with start_graph(args.config, nodes=nodes, namespace=args.namespace, overrides=overrides,
                     log_folder=args.log or out / 'logs', tell=say) as graph:
        command = [sys.executable, '-m', 'interactive_avatar.nodes.replay_client',
                   str(args.bag), '--out', str(out / 'bag'), '--namespace', args.namespace,
                   '--rate', str(args.rate), '--ready-timeout', str(args.ready_timeout)]
        if args.recorded_namespace:
            command += ['--recorded-namespace', args.recorded_namespace]
        failure: list[GraphError] = []

        def watch() -> None:
            try:
                graph.wait_until_active(args.ready_timeout, say)
            except GraphError as error:
                failure.append(error)

        # Beside the client: the nodes live on the clock that it publishes.
        watcher = threading.Thread(target=watch, name='graph watcher', daemon=True)
        watcher.start()

        def take(line: str) -> None:
            if failure:
                raise failure[0]
            try:
                text = describe(json.loads(line))
            except (ValueError, KeyError):
                return
            if text:
                say(text)

        status = run_process(command, graph.environment, log, take)
        if failure:
            raise failure[0]
        if status == 130:
            raise KeyboardInterrupt
        if status == 3:
            tails = '\n'.join(graph.log_tail(name) for name in nodes)
            raise ReplayError(f'the avatar did not come alive within {args.ready_timeout:.0f} s\n'
                              f'{tails}')
        if status:
            raise ReplayError(_last_lines(log))


def _prepare(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in MADE:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (out / 'logs').mkdir()


def carry_out(args: argparse.Namespace, say: Say) -> int:
    """Replay and measure; returns the exit status.

    Raises:
        BagError: if the bag cannot be read.
        ReplayError: if the replay failed.
        GraphError: if a node failed.
    """
    source = read_bag(args.bag, args.recorded_namespace)
    for problem in source.problems:
        say(f'note: {problem}')
    name = args.bag.name if args.bag.name != 'bag' else args.bag.resolve().parent.name
    out = args.out or Path('out/replay') / name
    if (out / 'bag').resolve() == args.bag.resolve():
        raise ReplayError(f'--out {out} is where the bag lies that is replayed: name another')
    _prepare(out)
    found = None
    if args.deterministic:
        found = replay_in_lockstep(args, out, say)
    else:
        replay_live(args, out, say)
    if not args.report:
        say(str(out / 'bag'))
        return 0
    command = f'avatar replay {args.bag}' + (f' --deterministic --seed {args.seed}'
                                             if args.deterministic else f' --rate {args.rate:g}')
    result = make_report(
        read_bag(out / 'bag', args.namespace), expected_from_log(args.bag.parent / 'said.json'),
        out, f'Replay of {name}', say,
        ReportOptions(None if args.judges else False, (command,), _comparable(source), found))
    say(str(out / ('report.html' if 'report.html' in result['files'] else 'report.md')))
    return 0


def _comparable(source: Recording) -> Recording | None:
    """The original, if it holds an avatar and not only a user."""
    return source if source.pictures and source.audio else None


def main(args: argparse.Namespace) -> int:
    """Carry out ``avatar replay``; returns the exit status."""
    if not 0.05 <= args.rate <= 4.0:
        print(f'avatar replay: --rate {args.rate:g}: give 0.05 to 4', file=sys.stderr)
        return 2
    try:
        return carry_out(args, lambda text: print(text, flush=True))
    except (BagError, ReplayError, GraphError, FileNotFoundError) as error:
        print(f'avatar replay: {error}', file=sys.stderr)
        return 2
