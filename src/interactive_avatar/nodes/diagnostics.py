# SPDX-License-Identifier: Apache-2.0
"""A small publisher of ``/diagnostics`` (``diagnostic_updater`` is not on PyPI)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import psutil
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from interactive_avatar.nodes import qos

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR
PERIOD_S = 1.0
# A problem that does not come back is forgotten after this time.
PROBLEM_HOLD_S = 10.0


class Diagnostics:
    """The health of one node, published once a second. Safe to use from any thread.

    Attributes:
        values: figures shown with the status; set them at any time.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._sources: list[Callable[[], Mapping[str, object]]] = []
        self._problems: dict[str, tuple[bytes, str, float]] = {}
        self._counts: dict[str, int] = {}
        self._state = (OK, 'starting')
        self.values: dict[str, object] = {}
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        self._timer = node.create_timer(PERIOD_S, self.publish)
        self._process = psutil.Process()
        # The first call gives 0; later ones the share since the call before.
        self._process.cpu_percent()

    def watch(self, source: Callable[[], Mapping[str, object]]) -> None:
        """Ask ``source`` for figures at every publication."""
        with self._lock:
            self._sources.append(source)

    def forget(self) -> None:
        """Drop all sources and figures (the node is cleaned up)."""
        with self._lock:
            self._sources.clear()
            self.values.clear()

    def process_age_s(self) -> float:
        """Seconds since this process was started."""
        return time.time() - self._process.create_time()

    def state(self, message: str, level: bytes = OK) -> None:
        """Set the lasting condition of the node, such as ``active``."""
        with self._lock:
            self._state = (level, message)
        self.publish()

    def count(self, key: str, amount: int = 1) -> int:
        """Add to a figure that only grows, and return it."""
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount
            return self._counts[key]

    def problem(self, key: str, message: str, level: bytes = WARN) -> bool:
        """Report something that went wrong; it is shown for ten seconds and counted.

        Args:
            key: short name of the kind of problem, also the name of its counter.
            message: what was wrong, with the value, and what to do next.
            level: WARN or ERROR.

        Returns:
            True if this kind of problem was not already being shown, so that a caller logs it
            once instead of fifty times a second.
        """
        now = time.monotonic()
        with self._lock:
            previous = self._problems.get(key)
            fresh = previous is None or now - previous[2] > PROBLEM_HOLD_S
            self._problems[key] = (level, message, now)
            self._counts[key] = self._counts.get(key, 0) + 1
        return fresh

    def status(self) -> DiagnosticStatus:
        """Compose the message: the worst level, all current problems, all figures."""
        now = time.monotonic()
        with self._lock:
            self._problems = {key: entry for key, entry in self._problems.items()
                              if now - entry[2] <= PROBLEM_HOLD_S}
            problems = list(self._problems.values())
            level, message = self._state
            values = {**self._counts, **self.values}
            sources = list(self._sources)
        for source in sources:
            values.update(source())
        values |= self._resources()
        level = max([level, *(entry[0] for entry in problems)])
        if problems:
            message = '; '.join([message, *(entry[1] for entry in problems)])
        return DiagnosticStatus(
            level=level, name=self._node.get_fully_qualified_name().lstrip('/'),
            message=message, hardware_id='avatar_bringup',
            values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()])

    def _resources(self) -> dict[str, object]:
        """Memory, processor and open files of this process (all its nodes share them)."""
        try:
            with self._process.oneshot():
                figures: dict[str, object] = {
                    'rss_mib': round(self._process.memory_info().rss / 2**20, 1),
                    'cpu_percent': round(self._process.cpu_percent(), 1)}
            # Windows knows handles instead.
            figures['open_files'] = self._process.num_fds()
            return figures
        except (psutil.Error, AttributeError):
            return {}

    def publish(self) -> None:
        """Publish the status now."""
        message = DiagnosticArray(status=[self.status()])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def _text(value: object) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
