# SPDX-License-Identifier: Apache-2.0
"""Stands in for the avatar's nodes in tests of the demo's user: answers any sentence the same.

Run as a process: ``python puppet_avatar.py NAMESPACE SECONDS``.
"""

from __future__ import annotations

import io
import sys
import time

import numpy as np
import rclpy
from avatar_bringup.msg import AudioChunk, AvatarIntent, AvatarState, UserPerception
from builtin_interfaces.msg import Time
from PIL import Image
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage

CHUNK_NS = 160_000_000


class Puppet(Node):
    """Hears by level, answers with a tone and a flickering mouth, then rests."""

    def __init__(self, namespace: str) -> None:
        super().__init__('puppet', namespace=namespace)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.state_out = self.create_publisher(AvatarState, 'state', latched)
        self.intent_out = self.create_publisher(AvatarIntent, 'intent', 10)
        self.perception_out = self.create_publisher(UserPerception, 'perception', 10)
        self.audio_out = self.create_publisher(AudioChunk, 'audio', 10)
        self.image_out = self.create_publisher(CompressedImage, 'image_raw/compressed', 10)
        self.create_subscription(AudioChunk, 'user/audio', self.hear, 50)
        self.t0_ns = time.time_ns()
        self.index = self.turn = self.speaking = self.quiet_blocks = 0
        self.awake = False
        self.pictures = []
        for level in (0, 90):
            pixels = np.full((64, 64, 3), 60, np.uint8)
            pixels[36:48, 24:40] += level
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, 'JPEG')
            self.pictures.append(buffer.getvalue())
        self.tell_state(AvatarState.STABLE)
        self.create_timer(0.02, self.make)

    def stamp(self, ns: int) -> Time:
        return Time(sec=ns // 10**9, nanosec=ns % 10**9)

    def tell_state(self, phase: int) -> None:
        message = AvatarState(phase=phase, turn_id=self.turn, prompt=f'phase {phase}')
        message.header.stamp = self.stamp(time.time_ns())
        self.state_out.publish(message)

    def hear(self, message: AudioChunk) -> None:
        loud = np.abs(np.frombuffer(message.data.tobytes(), '<i2')).max() > 500
        self.awake |= bool(loud)
        self.quiet_blocks = 0 if loud else self.quiet_blocks + 1
        if self.awake and self.quiet_blocks == 5:
            self.awake = False
            self.turn += 1
            now = self.stamp(time.time_ns())
            heard = UserPerception(event=UserPerception.FINAL, text='Hello there.')
            heard.header.stamp = now
            self.perception_out.publish(heard)
            intent = AvatarIntent(turn_id=self.turn, intent='greeting', confidence=1.0,
                                  speech='Hello.', user_text='Hello there.')
            intent.header.stamp = now
            self.intent_out.publish(intent)
            self.tell_state(AvatarState.ACTION)
            self.speaking = 6

    def make(self) -> None:
        stamp_ns = self.t0_ns + self.index * CHUNK_NS
        if time.time_ns() < stamp_ns:
            return
        self.index += 1
        sound = (self.speaking > 0) * 6000 * np.sin(np.arange(2560) * 0.1)
        message = AudioChunk(sequence=self.index, sample_rate=16000, channels=1,
                             encoding='S16LE')
        message.header.stamp = self.stamp(stamp_ns)
        message.data.frombytes(sound.astype('<i2').tobytes())
        self.audio_out.publish(message)
        for k in range(4):
            picture = CompressedImage(format='jpeg')
            picture.header.stamp = self.stamp(stamp_ns + k * 40_000_000)
            picture.data.frombytes(self.pictures[k % 2 if self.speaking else 0])
            self.image_out.publish(picture)
        if self.speaking:
            self.speaking -= 1
            if not self.speaking:
                self.tell_state(AvatarState.STABLE)


def main() -> None:
    rclpy.init()
    node = Puppet(sys.argv[1])
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.05)


if __name__ == '__main__':
    main()
