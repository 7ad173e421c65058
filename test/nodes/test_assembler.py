# SPDX-License-Identifier: Apache-2.0
import numpy as np

from interactive_avatar.media.clock import CHUNK_NS, CHUNK_SAMPLES, FRAME_NS
from interactive_avatar.nodes.assembler import ChunkAssembler

T0 = 1_000_000_007


class Page:
    """Collects what comes out."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, list[bytes], bool]] = []
        self.assembler = ChunkAssembler(
            lambda stamp, frames, audio: self.chunks.append((stamp, frames, audio is not None)))

    def sound(self, chunk: int, t0: int = T0) -> None:
        self.assembler.add_audio(t0 + chunk * CHUNK_NS, np.zeros(CHUNK_SAMPLES, np.int16))

    def frame(self, chunk: int, number: int, t0: int = T0) -> None:
        self.assembler.add_frame(t0 + chunk * CHUNK_NS + number * FRAME_NS,
                                 f'{chunk}.{number}'.encode())


def test_a_chunk_goes_out_when_all_of_it_is_there() -> None:
    page = Page()
    page.sound(0)
    for number in range(3):
        page.frame(0, number)
    assert not page.chunks
    page.frame(0, 3)
    assert page.chunks == [(T0, [b'0.0', b'0.1', b'0.2', b'0.3'], True)]


def test_pictures_may_come_before_their_sound() -> None:
    page = Page()
    page.sound(0)
    for number in range(4):
        page.frame(1, number)
    page.sound(1)
    for number in range(4):
        page.frame(0, number)
    assert [stamp for stamp, _, _ in page.chunks] == [T0, T0 + CHUNK_NS]


def test_sound_alone_goes_out_a_little_later() -> None:
    page = Page()
    for chunk in range(6):
        page.sound(chunk)
    assert [(frames, sound) for _, frames, sound in page.chunks] == [([], True)] * 3


def test_a_straggler_is_dropped() -> None:
    page = Page()
    for chunk in range(6):
        page.sound(chunk)
    page.frame(0, 2)
    assert [stamp for stamp, _, _ in page.chunks] == [T0 + n * CHUNK_NS for n in range(3)]


def test_a_sender_that_starts_anew_is_followed() -> None:
    page = Page()
    page.sound(0)
    other = T0 + 17 * CHUNK_NS + 12345
    page.sound(0, other)
    for number in range(4):
        page.frame(0, number, other)
    assert [stamp for stamp, _, _ in page.chunks] == [T0, other]
