# SPDX-License-Identifier: Apache-2.0
"""The web node: the page on localhost, between the browser and the topics.

A thin adapter over `web.AvatarPage`. Pictures are subscribed to, and therefore encoded, only
while a page is open.
"""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from avatar_bringup.msg import AudioChunk, AvatarIntent, AvatarState, UserPerception
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from interactive_avatar.media.picture import PictureError, decode_image
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.assembler import ChunkAssembler
from interactive_avatar.nodes.base import AvatarNode, be_nice, run_node
from interactive_avatar.nodes.diagnostics import WARN
from interactive_avatar.nodes.messages import (
    ImageWriter,
    activity_name,
    audio_message,
    phase_name,
    samples_of,
    to_ns,
)
from interactive_avatar.nodes.options import option
from interactive_avatar.web import AvatarPage

WATCH_PERIOD_S = 0.2
USER_CAMERA_FRAME = 'user_camera'


@dataclass(frozen=True)
class WebOptions:
    """Parameters of the web node."""

    autostart: bool = option(True, 'configure and activate without being asked')
    mode: str = option('companion', 'telepresence shows buttons for actions instead of a '
                                    'conversation', choices=('companion', 'telepresence'))
    host: str = option('127.0.0.1', 'address to listen at; 0.0.0.0 for all, but browsers give the '
                                    'microphone to localhost and https only')
    port: int = option(8080, 'TCP port of the page; 0 takes a free one', minimum=0, maximum=65535)
    allowed_hosts: str = option('', 'further host names under which the page may be opened, '
                                    'separated by spaces; * for all, though other sites stay '
                                    'shut out')
    nice: int = option(5, 'scheduling priority, 19 is lowest', minimum=-20, maximum=19)


class WebNode(AvatarNode):
    """Serves the page; see the module."""

    options_class = WebOptions
    options: WebOptions

    def __init__(self, **arguments: Any) -> None:
        super().__init__('web', **arguments)
        self._page: AvatarPage | None = None

    def configure(self) -> None:
        """Open the port, make the topics."""
        options = self.options
        be_nice(self, options.nice)
        self._lock = threading.Lock()
        self._sequence = 0
        self._user_caption = self._typed = 0
        self._told_turn = self._epoch = 0
        self._pictures: Any = None
        self._watch_timer: Any = None
        self._assembler = ChunkAssembler(self._show)
        self._audio_out = self.publish_to(AudioChunk, 'user/audio', qos.AUDIO)
        self._image_out = self.publish_to(Image, 'user/image_raw', qos.IMAGE)
        self._image_writer = ImageWriter(USER_CAMERA_FRAME)
        self._text_out = self.publish_to(String, 'user/text', qos.EVENT)
        self.listen_to(AudioChunk, 'audio', self._on_audio, qos.AUDIO)
        self.listen_to(AvatarState, 'state', self._on_state, qos.STATE)
        self.listen_to(AvatarIntent, 'intent', self._on_intent, qos.EVENT)
        self.listen_to(UserPerception, 'perception', self._on_perception, qos.EVENT)
        self._page = AvatarPage(
            options.port, on_audio=self._from_microphone, on_text=self._from_keyboard,
            host=options.host, allowed_hosts=options.allowed_hosts.split(),
            on_picture=self._from_camera)
        self._page.start()
        self.get_logger().info(f'the page is at {self._page.url}')

    def activate(self) -> None:
        """Subscribe to pictures while a page is open."""
        self._watch_timer = self.create_timer(WATCH_PERIOD_S, self._watch)
        self.diagnostics.watch(self._figures)

    def deactivate(self) -> None:
        """Let go of the pictures."""
        if self._watch_timer is not None:
            self.destroy_timer(self._watch_timer)
            self._watch_timer = None
        self._drop_pictures()

    def cleanup(self) -> None:
        """Close the page."""
        if self._page is not None:
            self._page.close()
            self._page = None

    def _figures(self) -> dict[str, object]:
        page = self._page
        if page is None:
            return {}
        return {'address': page.url, 'pages': page.pages, 'media_dropped': page.dropped}

    # From the topics to the page -------------------------------------------------------------

    def _watch(self) -> None:
        watched = self._page is not None and self._page.watched
        if watched and self._pictures is None:
            self._pictures = self.create_subscription(
                CompressedImage, 'image_raw/compressed', self._on_picture, qos.COMPRESSED_IMAGE)
        elif not watched:
            self._drop_pictures()

    def _drop_pictures(self) -> None:
        if self._pictures is not None:
            self.destroy_subscription(self._pictures)
            self._pictures = None

    def _on_picture(self, message: CompressedImage) -> None:
        self._assembler.add_frame(to_ns(message.header.stamp), bytes(message.data))

    def _on_audio(self, message: AudioChunk) -> None:
        if self._page is not None and self._page.watched:
            self._assembler.add_audio(to_ns(message.header.stamp), samples_of(message))

    def _show(self, stamp_ns: int, frames: list[bytes], audio: NDArray[np.int16] | None) -> None:
        if self._page is not None:
            self._page.publish_chunk(stamp_ns, frames, audio)

    def _on_state(self, message: AvatarState) -> None:
        if self._page is not None:
            self._page.publish_state({
                'phase': phase_name(message.phase), 'activity': activity_name(message.activity),
                'turn_id': message.turn_id, 'prompt': message.prompt,
                'mode': self.options.mode})

    def _on_intent(self, message: AvatarIntent) -> None:
        if self._page is None:
            return
        self._page.publish_intent({
            'intent': message.intent, 'confidence': round(float(message.confidence), 3),
            'emotion': message.emotion, 'action': message.action, 'turn_id': message.turn_id,
            'slots': dict(zip(message.slot_names, message.slot_values))})
        if message.speech:
            if message.turn_id <= self._told_turn:
                # The reasoning node has started anew and counts from the beginning: what it said
                # before stays. Seen on the intents alone, as other topics may come out of order.
                self._epoch += 1
            self._told_turn = message.turn_id
            self._page.publish_caption('avatar', message.speech, True,
                                       f'turn{self._epoch}.{message.turn_id}')

    def _on_perception(self, message: UserPerception) -> None:
        if self._page is None:
            return
        if message.event == UserPerception.SPEECH_STARTED:
            self._user_caption += 1
        elif message.event in (UserPerception.PARTIAL, UserPerception.FINAL):
            self._page.publish_caption(
                'user', message.text, message.event == UserPerception.FINAL,
                f'user{self._user_caption}')
        if not math.isnan(message.distance_m):
            self.diagnostics.values['user_distance_m'] = float(message.distance_m)

    # From the page to the topics -------------------------------------------------------------

    def _from_microphone(self, samples: NDArray[np.int16], stamp_ns: int) -> None:
        with self._lock:
            sequence, self._sequence = self._sequence, self._sequence + 1
        self._audio_out.publish(audio_message(
            samples, stamp_ns, sequence=sequence, source='browser'))

    def _from_camera(self, jpeg: bytes, stamp_ns: int) -> None:
        # Decoded only for somebody who looks.
        if not self._image_out.get_subscription_count():
            return
        try:
            picture = decode_image(jpeg)
        except PictureError as error:
            self.report('camera', f"a picture of the page's camera cannot be used: {error}", WARN)
            return
        self.diagnostics.count('camera_pictures')
        self._image_out.publish(self._image_writer.write(picture, stamp_ns))

    def _from_keyboard(self, text: str) -> None:
        self._text_out.publish(String(data=text))
        if self._page is not None:
            with self._lock:
                # Named apart from what is spoken, which may go on meanwhile.
                self._typed += 1
                caption = f'typed{self._typed}'
            self._page.publish_caption('user', text, True, caption)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    return run_node(WebNode, args)


if __name__ == '__main__':
    sys.exit(main())
