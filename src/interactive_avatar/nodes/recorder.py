# SPDX-License-Identifier: Apache-2.0
"""Records the avatar's topics into a bag: ``avatar record``, and the demo's recorder.

Messages are written as they came off the wire, without decoding them.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from interactive_avatar.evaluation.bag import (
    LATCHED_TOPICS,
    RECORDED_TOPICS,
    BagError,
    BagWriter,
)

DISCOVERY_PERIOD_S = 0.25
PROGRESS_PERIOD_S = 5.0
# A second of pictures: the recorder may be held up for that long without a loss.
QUEUE_DEPTH = 30
Listener = Callable[[str, bytes, int], None]


def message_class(name: str) -> Any:
    """The class of a message type such as ``std_msgs/msg/String``.

    Raises:
        ModuleNotFoundError: if its package is not installed; the message says what to do.
    """
    package, _, kind = name.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), kind)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'messages of {package} are not installed ({error}): run '
                                  f'`make build`, or source the workspace that holds them'
                                  ) from error


class Recorder:
    """Subscribes to the avatar's topics as their publishers appear, and writes what comes.

    Args:
        node: whose context, namespace and executor are used.
        writer: an open bag.
        topics: message type by topic; relative names go below the node's namespace.
        listener: called with (topic as in ``topics``, CDR bytes, arrival in ns) after writing.
        now_ns: clock of the arrivals, nanoseconds.
    """

    def __init__(self, node: Node, writer: BagWriter, topics: dict[str, str] | None = None,
                 listener: Listener | None = None,
                 now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._node = node
        self._writer = writer
        self._listener = listener
        self._wanted = dict(RECORDED_TOPICS if topics is None else topics)
        self._names = {name: node.resolve_topic_name(name) for name in self._wanted}
        self._subscriptions: dict[str, Subscription] = {}
        for name, kind in self._wanted.items():
            writer.add_topic(self._names[name], kind, latched=name in LATCHED_TOPICS)
        self._timer = node.create_timer(DISCOVERY_PERIOD_S, self.discover)
        self.discover()

    @property
    def missing(self) -> list[str]:
        """Topics that nobody has published so far, absolute names."""
        return [self._names[name] for name in self._wanted if name not in self._subscriptions]

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far, by topic as in ``topics``."""
        return {name: self._writer.counts[full] for name, full in self._names.items()}

    def discover(self) -> None:
        """Subscribe to topics whose publisher has appeared, with a QoS that suits it."""
        for name in [n for n in self._wanted if n not in self._subscriptions]:
            publishers = self._node.get_publishers_info_by_topic(self._names[name])
            if not publishers:
                continue
            offered = [info.qos_profile for info in publishers]
            # As rosbag2 does: ask for no more than every publisher offers.
            reliable = all(q.reliability == ReliabilityPolicy.RELIABLE for q in offered)
            latched = all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in offered)
            qos = QoSProfile(
                history=HistoryPolicy.KEEP_LAST, depth=QUEUE_DEPTH,
                reliability=ReliabilityPolicy.RELIABLE if reliable
                else ReliabilityPolicy.BEST_EFFORT,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if latched
                else DurabilityPolicy.VOLATILE)
            self._subscriptions[name] = self._node.create_subscription(
                message_class(self._wanted[name]), self._names[name],
                self._taker(name), qos, raw=True)

    def _taker(self, name: str) -> Callable[[bytes], None]:
        full = self._names[name]

        def take(data: bytes) -> None:
            now_ns = self._now_ns()
            self._writer.write(full, now_ns, data)
            if self._listener:
                self._listener(name, data, now_ns)

        return take

    def close(self) -> None:
        """Stop listening; the bag stays open for its owner to finish."""
        self._node.destroy_timer(self._timer)
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``avatar record``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='avatar record', description='Record the topics of a running avatar into an MCAP bag '
        'that `avatar evaluate bag`, `ros2 bag play` and Foxglove read.')
    parser.add_argument('out', type=Path, nargs='?',
                        help='bag folder to create (default: out/bags/<date and time>)')
    parser.add_argument('--namespace', default='avatar', help='namespace of the avatar')
    parser.add_argument('--seconds', type=float, default=0.0,
                        help='stop after so many seconds (default: on Ctrl-C)')
    parser.add_argument('--list-topics', action='store_true',
                        help='only print what is recorded, for `ros2 bag record --topics '
                             '$(avatar record --list-topics)`')
    args = parser.parse_args(argv)
    if args.list_topics:
        prefix = f'/{args.namespace.strip("/")}/'
        print('\n'.join(name if name.startswith('/') else prefix + name
                        for name in RECORDED_TOPICS))
        return 0
    out = args.out or Path('out/bags') / time.strftime('%Y-%m-%d_%H-%M-%S')
    try:
        writer = BagWriter(out, {'recorder': 'avatar record'})
    except BagError as error:
        print(f'avatar record: {error}', file=sys.stderr)
        return 2
    stop = False

    def ask_to_stop(*_: object) -> None:
        nonlocal stop
        stop = True

    # A bag must be finished to be readable, so both signals only ask.
    previous = {number: signal.signal(number, ask_to_stop)
                for number in (signal.SIGINT, signal.SIGTERM)}
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.create_node('recorder', namespace=args.namespace)
    recorder = Recorder(node, writer)
    print(f'recording /{args.namespace.strip("/")} into {out}; Ctrl-C ends it', flush=True)
    start = told = time.monotonic()
    try:
        while not stop and not (args.seconds and time.monotonic() - start > args.seconds):
            rclpy.spin_once(node, timeout_sec=0.1)
            if time.monotonic() - told > PROGRESS_PERIOD_S:
                told = time.monotonic()
                counts = ', '.join(f'{name} {n}' for name, n in recorder.counts.items() if n)
                print(f'{told - start:6.0f} s  {counts or "nothing yet: is the avatar running?"}',
                      flush=True)
    except ExternalShutdownException:
        pass
    finally:
        for name in recorder.missing:
            print(f'nobody published {name}', file=sys.stderr)
        recorder.close()
        writer.close()
        node.destroy_node()
        rclpy.try_shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)
    print(f'{sum(writer.counts.values())} messages in {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
