# SPDX-License-Identifier: Apache-2.0
"""Plays the user of a bag at a running avatar, and records what it answers.

Publishes /clock from the bag's own time and every topic below ``user/`` with its recorded timing,
byte for byte. The avatar's nodes run with ``use_sim_time``, so what they say and show is stamped
in the bag's time too, at any rate: at 0.5 everything has twice the time. Prints one JSON object a
line about what happens, as the demo's user does. Used by `avatar replay` and by
``replay.launch.py``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from rosgraph_msgs.msg import Clock

from interactive_avatar.evaluation.bag import (
    NS_PER_S,
    BagError,
    BagWriter,
    find_namespace,
    open_bag,
)
from interactive_avatar.nodes.demo_client import Watcher, tell
from interactive_avatar.nodes.messages import to_time
from interactive_avatar.nodes.recorder import Recorder, message_class

CLOCK_PERIOD_S = 0.02
# Before the first thing of the user, so that the avatar is seen at rest.
LEAD_IN_S = 2.0
# After the last thing of the user: at least, and at most while a turn goes on.
LINGER_S, LONGEST_LINGER_S = 2.0, 30.0
RATES = (0.05, 4.0)
UserMessage = tuple[int, str, bytes]


class BagClock:
    """The bag's time on /clock: stands still until it is started, then runs at a rate.

    Args:
        node: publishes.
        start_ns: where it stands.
        rate: seconds of the bag per second.
    """

    def __init__(self, node: Node, start_ns: int, rate: float) -> None:
        self._publisher = node.create_publisher(Clock, '/clock', 10)
        self._start_ns, self._rate = start_ns, rate
        self._started_s: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='clock', daemon=True)
        self._thread.start()

    def now_ns(self) -> int:
        """The bag's time, nanoseconds."""
        if self._started_s is None:
            return self._start_ns
        return self._start_ns + int((time.monotonic() - self._started_s) * self._rate * NS_PER_S)

    def start(self) -> None:
        """Let it run."""
        self._started_s = time.monotonic()

    def wait_until(self, at_ns: int, stop: threading.Event) -> bool:
        """Wait for a time; False if ``stop`` was set first."""
        while not stop.is_set():
            left_s = (at_ns - self.now_ns()) / NS_PER_S / self._rate
            if left_s <= 0.0:
                return True
            stop.wait(min(left_s, 0.25))
        return False

    def _run(self) -> None:
        while not self._stop.wait(CLOCK_PERIOD_S):
            self._publisher.publish(Clock(clock=to_time(self.now_ns())))

    def close(self) -> None:
        """Stop publishing."""
        self._stop.set()
        self._thread.join(1.0)


def user_messages(bag: Path, namespace: str | None) -> tuple[dict[str, str], list[UserMessage]]:
    """The user's part of a bag.

    Args:
        bag: the bag.
        namespace: of the avatar in it; found by itself if None.

    Returns:
        (message type by topic below the namespace, messages as (time in ns, topic, CDR) in order).

    Raises:
        BagError: if the bag cannot be read or holds no user.
    """
    with open_bag(bag) as opened:
        kinds = {c.topic: str(c.msgtype) for c in opened.connections}
        prefix = find_namespace(kinds) if namespace is None else f'/{namespace.strip("/")}/'
        own = {topic: kind for topic, kind in kinds.items()
               if topic.startswith(f'{prefix}user/')}
        messages = [(int(at), connection.topic.removeprefix(prefix), bytes(raw))
                    for connection, at, raw in opened.messages(set(own))]
    messages.sort(key=lambda message: message[0])
    if not messages:
        raise BagError(f'{bag} holds no message below {prefix}user/: record user/audio, '
                       f'user/text or user/image_raw, or name the namespace with '
                       f'--recorded-namespace')
    return {topic.removeprefix(prefix): kind for topic, kind in own.items()}, messages


class Replay:
    """One replay; see the module."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._kinds, self._messages = user_messages(args.bag, args.recorded_namespace)
        self._stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())

    def run(self) -> int:
        """Play and record; 0 at a normal end, 3 if the avatar never came up, 130 if stopped."""
        args = self._args
        rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        node = rclpy.create_node('replay', namespace=args.namespace)
        clock = BagClock(node, self._messages[0][0] - int(LEAD_IN_S * NS_PER_S), args.rate)
        # Reliable offers serve both kinds of subscriber.
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=50,
                         reliability=ReliabilityPolicy.RELIABLE)
        publishers = {topic: node.create_publisher(message_class(kind), topic, qos)
                      for topic, kind in self._kinds.items()}
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        watcher = Watcher()
        custom = {'recorder': 'avatar replay', 'replay_of': args.bag.name,
                  'rate': f'{args.rate:g}'}
        with BagWriter(args.out, custom) as writer:
            recorder = Recorder(node, writer, listener=watcher, now_ns=clock.now_ns)
            thread = threading.Thread(target=self._spin, args=(executor,), daemon=True)
            thread.start()
            try:
                missing = self._wait_ready(node, publishers, watcher)
                if missing:
                    tell('not_ready', missing=missing)
                    return 130 if self._stop.is_set() else 3
                tell('playing', messages=len(self._messages),
                     seconds=(self._messages[-1][0] - self._messages[0][0]) / NS_PER_S)
                clock.start()
                for at_ns, topic, raw in self._messages:
                    if not clock.wait_until(at_ns, self._stop):
                        return 130
                    publishers[topic].publish(raw)
                self._linger(clock, watcher)
                tell('done', counts=recorder.counts)
            finally:
                executor.shutdown(timeout_sec=2.0)
                thread.join(timeout=2.0)
                recorder.close()
                clock.close()
                node.destroy_node()
                rclpy.try_shutdown()
        return 130 if self._stop.is_set() else 0

    @staticmethod
    def _spin(executor: SingleThreadedExecutor) -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    def _wait_ready(self, node: Node, publishers: dict[str, Any], watcher: Watcher) -> list[str]:
        deadline_s = time.monotonic() + self._args.ready_timeout
        told: list[str] = []
        while True:
            missing = [f'a listener on {topic}' for topic, publisher in publishers.items()
                       # The recorder is one, on the topics that it records.
                       if topic in ('user/audio', 'user/text')
                       and any(t == topic for _, t, _ in self._messages)
                       and publisher.get_subscription_count() < 2]
            if watcher.seen.phase is None:
                missing.append('a state on state (reasoning)')
            if not node.count_publishers(node.resolve_topic_name('audio')):
                missing.append('sound on audio (generator)')
            if not missing or self._stop.is_set() or time.monotonic() > deadline_s:
                return missing
            if missing != told:
                told = missing
                tell('waiting', missing=missing)
            time.sleep(0.2)

    def _linger(self, clock: BagClock, watcher: Watcher) -> None:
        end_ns = self._messages[-1][0]
        clock.wait_until(end_ns + int(LINGER_S * NS_PER_S), self._stop)
        last_ns = end_ns + int(LONGEST_LINGER_S * NS_PER_S)
        # The answer to the last sentence is still to come when the bag ends.
        while not self._stop.is_set() and clock.now_ns() < last_ns and watcher.seen.phase != 0:
            time.sleep(0.1)
        clock.wait_until(clock.now_ns() + NS_PER_S // 2, self._stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bag', type=Path, help='bag whose topics below user/ are played')
    parser.add_argument('--out', type=Path, required=True, help='bag folder to create')
    parser.add_argument('--namespace', default='avatar', help='of the running avatar')
    parser.add_argument('--recorded-namespace', help='of the avatar in the bag (default: found)')
    parser.add_argument('--rate', type=float, default=1.0)
    parser.add_argument('--ready-timeout', type=float, default=180.0, help='seconds')
    parser.add_argument('--evaluate', type=Path, metavar='FOLDER',
                        help='afterwards measure what was recorded, into this folder')
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(remove_ros_args(['replay', *given])[1:])
    if not RATES[0] <= args.rate <= RATES[1]:
        parser.error(f'--rate {args.rate:g}: give {RATES[0]:g} to {RATES[1]:g}')
    try:
        status = Replay(args).run()
    except (BagError, ModuleNotFoundError, OSError) as error:
        print(f'avatar replay: {error}', file=sys.stderr)
        return 2
    if args.evaluate and status in (0, 130) and args.out.exists():
        from interactive_avatar.evaluation import evaluate

        return max(status, evaluate.main(['bag', str(args.out), '--out', str(args.evaluate),
                                          '--against', str(args.bag)]))
    return status


if __name__ == '__main__':
    sys.exit(main())
