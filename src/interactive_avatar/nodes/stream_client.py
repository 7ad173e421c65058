# SPDX-License-Identifier: Apache-2.0
"""Talks to a running avatar for hours, and keeps a minute's figures instead of a bag.

Runs as a process of its own (started by ``avatar bench stream``) and prints one JSON object per
minute: counts of chunks, pictures and turns, offset of sound and picture, lateness, memory, open
files and processor of each node, and one picture of the minute as a file.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from avatar_bringup.msg import AudioChunk, AvatarIntent
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage

from interactive_avatar.evaluation import metrics
from interactive_avatar.media.audio import read_wav
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.demo_client import Microphone, tell
from interactive_avatar.nodes.messages import to_ns

MINUTE_S = 60.0
# A day of conversation: mostly nobody is there; now and then somebody talks for a while.
PAUSE_IN_TALK_S = (6.0, 14.0)
PAUSE_BETWEEN_TALKS_S = (20.0, 120.0)
SENTENCES_IN_TALK = (3, 8)
NODE_FIGURES = ('rss_mib', 'open_files', 'cpu_percent')


def day_plan(seed: int, names: Sequence[str]) -> Any:
    """Endless conversation: yields (seconds to wait, name of a sentence)."""
    rng = np.random.default_rng(seed)
    while True:
        for index in range(int(rng.integers(*SENTENCES_IN_TALK))):
            pause = PAUSE_BETWEEN_TALKS_S if index == 0 else PAUSE_IN_TALK_S
            yield float(rng.uniform(*pause)), names[int(rng.integers(len(names)))]


class Minute:
    """What came within a minute."""

    def __init__(self) -> None:
        self.sound: list[tuple[int, int]] = []
        self.pictures: list[tuple[int, int]] = []
        self.intents = 0
        self.said = 0
        self.sample: bytes = b''


class Observer(Node):
    """Listens to what the avatar says and shows; memory does not grow with time."""

    def __init__(self, namespace: str) -> None:
        super().__init__('stream_bench', namespace=namespace)
        self._lock = threading.Lock()
        self._minute = Minute()
        self._nodes: dict[str, dict[str, str]] = {}
        self._late_before = self._slots_before = -1
        # The last stamps of the minute before, to count what is lost between two minutes.
        self._last_sound_ns = 0
        self.create_subscription(AudioChunk, 'audio', self._on_audio, qos.AUDIO)
        self.create_subscription(CompressedImage, 'image_raw/compressed', self._on_picture,
                                 qos.COMPRESSED_IMAGE)
        self.create_subscription(AvatarIntent, 'intent', self._on_intent, qos.EVENT)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 50)

    def _on_audio(self, message: AudioChunk) -> None:
        with self._lock:
            self._minute.sound.append((to_ns(message.header.stamp), time.time_ns()))

    def _on_picture(self, message: CompressedImage) -> None:
        with self._lock:
            self._minute.pictures.append((to_ns(message.header.stamp), time.time_ns()))
            self._minute.sample = message.data.tobytes()

    def _on_intent(self, _: AvatarIntent) -> None:
        with self._lock:
            self._minute.intents += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        own = self.get_namespace().strip('/') + '/'
        with self._lock:
            for status in message.status:
                if status.name.startswith(own):
                    self._nodes[status.name.removeprefix(own)] = {
                        item.key: item.value for item in status.values}

    def said(self) -> None:
        """Count a sentence of the user."""
        with self._lock:
            self._minute.said += 1

    @property
    def alive(self) -> bool:
        """Whether sound and pictures come."""
        with self._lock:
            return bool(self._minute.sound and self._minute.pictures)

    def turn_minute(self) -> tuple[dict[str, Any], bytes]:
        """Figures of the minute that ends, and a picture of it."""
        with self._lock:
            minute, self._minute = self._minute, Minute()
            nodes = {name: dict(values) for name, values in self._nodes.items()}
        figures = self._figures(minute)
        generator = nodes.get('generator', {})
        late, slots = (int(generator.get(key, -1)) for key in ('chunks_late', 'slots'))
        known = 0 <= self._late_before <= late
        figures['missed'] = late - self._late_before if known else None
        figures['made'] = slots - self._slots_before if known else None
        self._late_before, self._slots_before = late, slots
        for key in ('chunk_p50_ms', 'chunk_p99_ms'):
            if key in generator:
                figures[key] = float(generator[key])
        figures['nodes'] = {name: {key: float(values[key]) for key in NODE_FIGURES
                                   if key in values} for name, values in sorted(nodes.items())}
        return figures, minute.sample

    def _figures(self, minute: Minute) -> dict[str, Any]:
        sound = np.array(minute.sound, np.int64).reshape(-1, 2)
        pictures = np.array(minute.pictures, np.int64).reshape(-1, 2)
        stamps = sound[:, 0]
        if self._last_sound_ns:
            stamps = np.r_[self._last_sound_ns, stamps]
        if sound.size:
            self._last_sound_ns = int(sound[-1, 0])
        offsets = metrics.av_offsets_ms(pictures[:, 0], sound[:, 0])
        delays: dict[str, NDArray[np.float64]] = {
            name: (rows[:, 1] - rows[:, 0]) / 1e6 for name, rows in
            (('sound', sound), ('pictures', pictures))}
        return {
            'chunks': len(sound), 'pictures': len(pictures),
            'said': minute.said, 'answered': minute.intents,
            'lost': int(np.maximum(0, np.rint(np.diff(stamps) / 160e6) - 1).sum()),
            'av_offset_worst_ms': float(np.abs(offsets).max()) if offsets.size else None,
            **{f'{name}_after_stamp_ms': float(np.median(values)) if values.size else None
               for name, values in delays.items()}}


def run(args: argparse.Namespace) -> int:
    """Talk until the time is over or a signal comes; 3 if the avatar never came alive."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    names = [entry['name'] for entry in yaml.safe_load(
        (args.utterances / 'utterances.yaml').read_text(encoding='utf-8'))['utterances']]
    sounds = {name: read_wav(args.utterances / f'{name}.wav') for name in names}
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    observer = Observer(args.namespace)
    executor = SingleThreadedExecutor()
    executor.add_node(observer)

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    microphone = Microphone(observer)
    args.pictures.mkdir(parents=True, exist_ok=True)
    try:
        deadline_s = time.monotonic() + args.ready_timeout
        while not observer.alive and not stop.wait(0.2):
            if time.monotonic() > deadline_s:
                tell('not_ready', missing=['sound and pictures'])
                return 3
        observer.turn_minute()
        plan = day_plan(args.seed, names)
        start_s = time.monotonic()
        wait_s, name = next(plan)
        due_s, told = start_s + min(wait_s, 5.0), 0
        while not stop.wait(0.1):
            now_s = time.monotonic()
            if now_s >= due_s and not microphone.busy:
                microphone.say(sounds[name])
                observer.said()
                wait_s, name = next(plan)
                due_s = now_s + wait_s
            over = now_s - start_s >= args.seconds
            if now_s - start_s >= (told + 1) * MINUTE_S or over:
                told += 1
                figures, picture = observer.turn_minute()
                path = args.pictures / f'{told:05d}.jpg'
                path.write_bytes(picture)
                tell('minute', minute=told, seconds=round(now_s - start_s, 1), **figures)
            if over:
                break
    finally:
        microphone.close()
        executor.shutdown(timeout_sec=2.0)
        thread.join(2.0)
        observer.destroy_node()
        rclpy.try_shutdown()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; started by `interactive_avatar.evaluation.bench_stream`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--namespace', required=True)
    parser.add_argument('--utterances', type=Path, required=True)
    parser.add_argument('--pictures', type=Path, required=True, help='folder for a JPEG a minute')
    parser.add_argument('--seconds', type=float, required=True)
    parser.add_argument('--ready-timeout', type=float, default=180.0)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except OSError as error:
        print(json.dumps({'event': 'failed', 'why': str(error)}), flush=True)
        return 2


if __name__ == '__main__':
    sys.exit(main())
