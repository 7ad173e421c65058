# SPDX-License-Identifier: Apache-2.0
"""The generator node: speech and prompts in, pictures and their sound out, 25 frames a second.

A thin adapter over `generator.AvatarStream`, which `nodes.pacer.StreamPacer` drives in threads of
its own; the executor only files what arrives.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from avatar_bringup.msg import AudioChunk, AvatarState
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from interactive_avatar.media.clock import FRAME_NS
from interactive_avatar.media.picture import encode_jpeg, read_image
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.base import AvatarNode, be_nice, run_node
from interactive_avatar.nodes.diagnostics import ERROR, WARN
from interactive_avatar.nodes.messages import (
    ImageWriter,
    audio_message,
    camera_info,
    compressed_message,
    samples_of,
)
from interactive_avatar.nodes.options import option
from interactive_avatar.nodes.pacer import Slot, StreamPacer
from interactive_avatar.nodes.speech_queue import SpeechQueue
from interactive_avatar.paths import resource


@dataclass(frozen=True)
class GeneratorOptions:
    """Parameters of the generator node."""

    autostart: bool = option(True, 'configure and activate without being asked')
    mode: str = option('companion', "telepresence speaks an operator's voice as soon as it can: "
                                    'the remote_ parameters take the place of lead_ms, '
                                    'budget_ms, ahead_chunks and prebuffer_chunks',
                       choices=('companion', 'telepresence'))
    model: str = option('models/compact', 'folder of the model, absolute or in the package')
    backend: str = option('auto', 'what runs the model; auto takes tensorrt if it can run, else '
                                  'torch on a CUDA card, else onnx; a wan model runs with torch',
                          choices=('auto', 'onnx', 'tensorrt', 'torch'))
    fallback: bool = option(True, 'go on with the onnx backend when the card fails; not with a '
                                  'wan model')
    build_engines: bool = option(True, 'build TensorRT engines that are missing; otherwise they '
                                       'are refused with the command that builds them')
    threads: int = option(2, 'processor threads of the onnx backend', minimum=1, maximum=64)
    int8: bool = option(True, 'use the 8-bit graph of the onnx backend: faster, a little coarser')
    precision: str = option('', 'of the torch and tensorrt backends: fp32, fp16 or bf16; of a wan '
                                'model: float32, bf16 or fp8; empty for the default')
    cards: int = option(1, 'GPUs that a wan model is split between', minimum=1, maximum=2)
    decode_device: str = option('', 'where the frames of a wan model are decoded, such as cuda:1; '
                                    'empty for the card that makes them, or the second of two')
    reference: str = option('', 'who the avatar is: a named identity of the model, or the path of '
                                'a picture of a face; empty for the first identity')
    prompt: str = option('', 'prompt until the reasoning node sends one; empty for the stable '
                             'prompt of the world at rest')
    seed: int = option(0, 'seed of the sampler noise', minimum=0, maximum=2**31 - 1)
    blinks: bool = option(True, 'blink now and then, where the model has learnt when to')
    lead_ms: float = option(60.0, 'how long before its presentation time a chunk is published, ms',
                            minimum=0.0, maximum=1000.0)
    budget_ms: float = option(40.0, 'how late a chunk may be before the last frames are repeated '
                                    'instead, ms', minimum=0.0, maximum=1000.0)
    ahead_chunks: int = option(1, 'chunks computed ahead of their time; each adds 160 ms of '
                                  'latency', minimum=1, maximum=8)
    prebuffer_chunks: int = option(1, 'chunks of a turn that must have arrived before it is '
                                      'spoken', minimum=1, maximum=8)
    remote_lookahead_ms: int = option(
        40, 'in telepresence, speech waited for before a frame is drawn, ms, in steps of 40: '
            'less is sooner, and worse for the lips', minimum=0, maximum=160)
    remote_ahead_ms: float = option(
        110.0, 'in telepresence, how long before it is published a chunk is begun, ms: a little '
               'more than shown_p95_ms in /diagnostics', minimum=10.0, maximum=160.0)
    remote_lead_ms: float = option(10.0, 'lead_ms in telepresence', minimum=0.0, maximum=1000.0)
    remote_budget_ms: float = option(
        80.0, 'budget_ms in telepresence: a late chunk delays itself, a held one the voice up to '
              'its next pause', minimum=0.0, maximum=1000.0)
    remote_reserve_ms: float = option(
        20.0, 'in telepresence, voice kept back against uneven arrival, ms', minimum=0.0,
        maximum=500.0)
    jpeg_quality: int = option(88, 'quality of image_raw/compressed', minimum=1, maximum=95)
    nice: int = option(-10, 'scheduling priority of the generating threads, -20 is highest',
                       minimum=-20, maximum=19)


def open_stream(options: GeneratorOptions, log: Callable[[str], None] = print,
                report: Callable[[str], None] = print) -> tuple[Any, str]:
    """Open the stream that the options describe.

    Args:
        options: the node's parameters.
        log: told what takes long, such as building engines.
        report: told if the card fails later and the stream goes on without it.

    Returns:
        the stream, and which backend runs it and why.

    Raises:
        FileNotFoundError: if the model or the reference picture is missing.
        ModelError: if the model cannot be run as the options ask.
        ValueError: if the reference picture or the model's files are unusable.
    """
    # Imported here so that a missing dependency is a failed transition with a message, not a
    # node that is never seen.
    from interactive_avatar.generator import AvatarStream
    from interactive_avatar.generator.backends import (
        AUTO,
        BackendMemoryError,
        choose_backend,
    )
    from interactive_avatar.generator.model import ModelError
    from interactive_avatar.generator.prompts import WorldState, stable_prompt
    from interactive_avatar.generator.resilient import ResilientStream
    from interactive_avatar.generator.wan.files import is_wan

    model = str(resource(options.model))
    wan = is_wan(model)
    if not wan and (options.cards != 1 or options.decode_device):
        asked = ('decode_device' if options.cards == 1 else 'cards')
        raise ModelError(f'{asked} {getattr(options, asked)!r} was asked for, but {model!r} is no '
                         f'wan model and runs on one card: leave the parameter {asked} out')
    reference: Any = options.reference or None
    if options.reference and any(mark in options.reference for mark in './\\'):
        reference = read_image(resource(options.reference))
    def opened(name: str) -> AvatarStream:
        extra: dict[str, Any] = {}
        if name == 'onnx':
            # What is said live is to be seen soon, not ahead: see `OnnxBackend`.
            extra = {'threads': options.threads, 'int8': options.int8,
                     'overlap': options.mode != 'telepresence'}
        elif name == 'tensorrt':
            extra = {'build': options.build_engines, 'log': log}
        if name != 'onnx' and options.precision:
            extra['precision'] = options.precision
        if wan:
            extra = {'cards': options.cards, 'decode_device': options.decode_device, **extra}
        elif options.mode == 'telepresence':
            extra['lookahead_ms'] = options.remote_lookahead_ms
        return AvatarStream.open(
            model=model, backend=name, reference=reference,
            prompt=options.prompt or stable_prompt(WorldState()), seed=options.seed,
            blinks=options.blinks, **extra)

    name, reason = options.backend, 'chosen by the parameter backend'
    if name == AUTO:
        name, reason = choose_backend()
        if wan:
            if name == 'onnx':
                raise ModelError(f'{model!r} is a wan model, which needs torch and a CUDA card '
                                 f'({reason}); to run it on the processor all the same, far from '
                                 f"real time, set the parameter backend to 'torch'")
            name, reason = 'torch', 'a CUDA card is there, and a wan model runs with torch'
    if name == 'onnx' or wan or not options.fallback:
        return opened(name), f'{name} ({reason})'
    try:
        stream = opened(name)
    except (ModelError, BackendMemoryError) as error:
        if options.backend != AUTO:
            raise
        return opened('onnx'), f'onnx ({name} was chosen and failed: {error})'
    return (ResilientStream(stream, lambda: opened('onnx'), report), f'{name} ({reason})')


class GeneratorNode(AvatarNode):
    """Publishes the avatar's pictures and sound; see the module."""

    options_class = GeneratorOptions
    options: GeneratorOptions
    _first_chunk_told = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__('generator', **arguments)
        self._pacer: StreamPacer | None = None
        self._stream: Any = None

    @property
    def _remote(self) -> bool:
        return self.options.mode == 'telepresence'

    def configure(self) -> None:
        """Open the model, make the topics."""
        # ONNX Runtime's threads inherit the priority of the thread that makes them.
        opened: list[Any] = []
        failure: list[Exception] = []

        def load() -> None:
            be_nice(self, self.options.nice)
            try:
                opened.append(open_stream(
                    self.options, lambda text: self.get_logger().info(text),
                    lambda text: self.report('backend_lost', text)))
            except Exception as error:
                failure.append(error)

        loader = threading.Thread(target=load, name='model loader')
        loader.start()
        loader.join()
        if failure:
            raise failure[0]
        self._stream, backend = opened[0]
        self.get_logger().info(f'backend: {backend}')
        self.diagnostics.values['backend'] = backend
        self._speech = SpeechQueue(self.options.prebuffer_chunks,
                                   self.options.remote_reserve_ms if self._remote else None)
        self._image = self.publish_to(Image, 'image_raw', qos.IMAGE)
        self._info = self.publish_to(CameraInfo, 'camera_info', qos.IMAGE)
        self._compressed = self.publish_to(
            CompressedImage, 'image_raw/compressed', qos.COMPRESSED_IMAGE)
        self._audio = self.publish_to(AudioChunk, 'audio', qos.AUDIO)
        self._writer = ImageWriter()
        self._prompt = self._next_prompt = ''
        self._turn_id = 0
        self.listen_to(AudioChunk, 'speech', self._on_speech, qos.AUDIO)
        self.listen_to(AvatarState, 'state', self._on_state, qos.STATE)
        self.diagnostics.watch(self._speech.figures)

    def activate(self) -> None:
        """Start the stream; from now on a chunk is made every 160 ms."""
        self._pacer = StreamPacer(
            self._stream, self._speech, self._publish_slot, self._publish_frame,
            now_ns=lambda: self.get_clock().now().nanoseconds, simulated=self.simulated,
            complain=self._complain,
            on_maker_start=lambda: be_nice(self, self.options.nice),
            lead_ms=self.options.remote_lead_ms if self._remote else self.options.lead_ms,
            budget_ms=self.options.remote_budget_ms if self._remote else self.options.budget_ms,
            ahead_chunks=1 if self._remote else self.options.ahead_chunks,
            ahead_ms=self.options.remote_ahead_ms if self._remote else None)
        if self._prompt:
            self._pacer.switch(self._prompt)
        if self._next_prompt:
            self._pacer.prepare(self._next_prompt)
        self.diagnostics.watch(self._pacer.figures)
        self._pacer.start()

    def deactivate(self) -> None:
        """Stop the stream; nothing is published any more."""
        if self._pacer is not None:
            self._pacer.stop()
            self._pacer = None
        self._speech.abort(self._speech.newest_turn)

    def cleanup(self) -> None:
        """Release the model."""
        self._stream = None

    def _complain(self, key: str, message: str) -> None:
        self.report(key, message, WARN if key == 'chunk_late' else ERROR)

    # What arrives ---------------------------------------------------------------------------

    def _on_speech(self, message: AudioChunk) -> None:
        if self._pacer is None:
            # Nobody speaks it now, and it is not to be said when its time is long past.
            return
        if message.turn_id == 0:
            raise ValueError('speech with turn_id 0 is refused: number the turns from 1')
        samples = samples_of(message)
        complaint = self._speech.push(message.turn_id, message.sequence, samples, message.last)
        if complaint:
            self.report('speech', complaint, WARN)

    def _on_state(self, message: AvatarState) -> None:
        if message.turn_id < self._turn_id:
            # The reasoning node has started anew and counts from the beginning: its turns must
            # not be taken for those that were broken off before.
            self._speech.restart()
            if self._pacer is not None:
                self._pacer.unmute()
        self._turn_id = message.turn_id
        if message.activity in (AvatarState.LISTENING, AvatarState.THINKING):
            # The user speaks, or has typed: what is unsaid is dropped, what is on its way is faded
            # out. While the avatar thinks, its next turn may already come, so that only the turn
            # that the state names, the last to have begun, is over.
            turn_id = message.turn_id
            if message.activity == AvatarState.LISTENING:
                turn_id = max(turn_id, self._speech.newest_turn)
            self._speech.abort(turn_id)
            if self._pacer is not None:
                self._pacer.mute(turn_id)
        if message.prompt and message.prompt != self._prompt:
            self._prompt = message.prompt
            if self._pacer is not None:
                self._pacer.switch(message.prompt)
        if message.next_prompt and message.next_prompt != self._next_prompt:
            self._next_prompt = message.next_prompt
            if self._pacer is not None:
                self._pacer.prepare(message.next_prompt)

    # What leaves ----------------------------------------------------------------------------

    def _publish_slot(self, slot: Slot) -> None:
        if slot.index == 0 and not self._first_chunk_told:
            # Once: a node that is activated again has loaded its model before.
            self._first_chunk_told = True
            self.diagnostics.values['first_chunk_s'] = round(self.diagnostics.process_age_s(), 2)
        self._audio.publish(audio_message(
            slot.audio, slot.stamp_ns, sequence=slot.index, turn_id=slot.turn_id, last=slot.last,
            source='avatar'))
        if self._compressed.get_subscription_count():
            for number, frame in enumerate(slot.frames):
                self._compressed.publish(compressed_message(
                    encode_jpeg(frame, self.options.jpeg_quality),
                    slot.stamp_ns + number * FRAME_NS))

    def _publish_frame(self, frame: NDArray[np.uint8], stamp_ns: int) -> None:
        if self._image.get_subscription_count():
            self._image.publish(self._writer.write(frame, stamp_ns))
        if self._info.get_subscription_count():
            self._info.publish(camera_info(frame.shape[0], frame.shape[1], stamp_ns))


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    return run_node(GeneratorNode, args)


if __name__ == '__main__':
    sys.exit(main())
