# SPDX-License-Identifier: Apache-2.0
"""Two processes for ``avatar bench image-topic``: one publishes pictures, one takes them.

``python -m interactive_avatar.nodes.bench_image_topic publish|take …``; the taker prints one JSON
object with the time of each picture from just before `publish` to its callback.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import numpy as np
import rclpy
from sensor_msgs.msg import Image

from interactive_avatar.nodes import qos
from interactive_avatar.nodes.messages import ImageWriter, to_ns

QUIET_S = 5.0


def publish(topic: str, size: int, messages: int, rate_hz: float) -> None:
    """Publish ``messages`` pictures uint8 [size, size, 3], stamped just before they leave."""
    node = rclpy.create_node('bench_publisher')
    publisher = node.create_publisher(Image, topic, qos.IMAGE)
    deadline = time.monotonic() + 20.0
    while not publisher.get_subscription_count() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # Discovery is mutual: the subscriber must know of us too.
    frame = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    writer = ImageWriter()
    start = time.monotonic()
    for index in range(messages):
        time.sleep(max(0.0, start + index / rate_hz - time.monotonic()))
        message = writer.write(frame, time.time_ns())
        publisher.publish(message)
    time.sleep(1.0)
    node.destroy_node()


def take(topic: str, messages: int) -> None:
    """Print the delays in ms of pictures until all have come or none comes any more."""
    node = rclpy.create_node('bench_taker')
    delays: list[float] = []
    last = [time.monotonic() + 20.0]

    def receive(message: Image) -> None:
        delays.append((time.time_ns() - to_ns(message.header.stamp)) / 1e6)
        last[0] = time.monotonic()

    node.create_subscription(Image, topic, receive, qos.IMAGE)
    while len(delays) < messages and time.monotonic() - last[0] < QUIET_S:
        rclpy.spin_once(node, timeout_sec=0.2)
    print(json.dumps({'delays_ms': delays}), flush=True)
    node.destroy_node()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; started by `interactive_avatar.evaluation.bench_image`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('role', choices=('publish', 'take'))
    parser.add_argument('--topic', required=True)
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--messages', type=int, default=300)
    parser.add_argument('--rate', type=float, default=25.0)
    args = parser.parse_args(argv)
    rclpy.init()
    try:
        if args.role == 'publish':
            publish(args.topic, args.size, args.messages, args.rate)
        else:
            take(args.topic, args.messages)
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
