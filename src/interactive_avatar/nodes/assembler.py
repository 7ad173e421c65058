# SPDX-License-Identifier: Apache-2.0
"""Puts pictures and sound of one chunk together again by their stamps. No ROS in here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.clock import CHUNK_NS, FRAMES_PER_CHUNK

# Pictures and sound come on two topics, a few ms apart; what waits longer goes out incomplete.
MAX_WAITING_CHUNKS = 3


@dataclass
class _Waiting:
    audio: NDArray[np.int16] | None = None
    frames: dict[int, bytes] = field(default_factory=dict)


class ChunkAssembler:
    """Collects chunks and hands each out once, in order of their stamps.

    Without pictures (nobody encodes them yet) the sound goes out alone, and the reverse.
    """

    def __init__(self, emit: Callable[[int, list[bytes], NDArray[np.int16] | None], None]) -> None:
        """Make an empty assembler.

        Args:
            emit: called with stamp in ns, JPEG pictures in order, and sound int16 [n] or None.
        """
        self._emit = emit
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()
        self._anchor_ns: int | None = None
        self._done_ns = -1

    def add_audio(self, stamp_ns: int, samples: NDArray[np.int16]) -> None:
        """Add the sound of the chunk that starts at ``stamp_ns``."""
        if self._anchor_ns is None or (stamp_ns - self._anchor_ns) % CHUNK_NS:
            # The sender has started anew, with another origin of its media clock.
            self._flush_all()
            self._anchor_ns, self._done_ns = stamp_ns, -1
        self._entry(stamp_ns).audio = samples
        self._deliver()

    def add_frame(self, stamp_ns: int, jpeg: bytes) -> None:
        """Add one picture; its chunk follows from its stamp."""
        if self._anchor_ns is None:
            self._anchor_ns = stamp_ns
        chunk_ns = stamp_ns - (stamp_ns - self._anchor_ns) % CHUNK_NS
        if chunk_ns > self._done_ns:
            self._entry(chunk_ns).frames[stamp_ns] = jpeg
            self._deliver()

    def _entry(self, chunk_ns: int) -> _Waiting:
        return self._waiting.setdefault(chunk_ns, _Waiting())

    def _deliver(self) -> None:
        while self._waiting:
            chunk_ns = min(self._waiting)
            entry = self._waiting[chunk_ns]
            complete = entry.audio is not None and len(entry.frames) == FRAMES_PER_CHUNK
            if not complete and len(self._waiting) <= MAX_WAITING_CHUNKS:
                return
            self._send(chunk_ns)

    def _flush_all(self) -> None:
        for chunk_ns in sorted(self._waiting):
            self._send(chunk_ns)

    def _send(self, chunk_ns: int) -> None:
        entry = self._waiting.pop(chunk_ns)
        self._done_ns = chunk_ns
        self._emit(chunk_ns, [entry.frames[key] for key in sorted(entry.frames)], entry.audio)
