# SPDX-License-Identifier: Apache-2.0
"""A stream that outlives its backend: when the card fails, it goes on elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import BackendLostError
from interactive_avatar.generator.stream import AvatarStream, Chunk, Hearing, Snapshot

SNAPSHOT_CHUNKS = 25
"""Chunks between snapshots, 4 s: what is lost of the memory when a card fails, and no more."""


class ResilientStream:
    """Drives a stream, keeps a recent snapshot in host memory, and moves to a second stream.

    What is lost are pictures of the memory since the snapshot; sound and numbers of chunks go on
    from where they are.

    Args:
        stream: the stream.
        open_fallback: opens the stream to go on with, on another backend.
        report: told once, in a sentence, what was lost and what goes on.
        snapshot_chunks: chunks between snapshots.
    """

    def __init__(self, stream: AvatarStream, open_fallback: Callable[[], AvatarStream],
                 report: Callable[[str], None], snapshot_chunks: int = SNAPSHOT_CHUNKS) -> None:
        self._stream, self._open_fallback, self._report = stream, open_fallback, report
        self.lookahead_chunks = stream.lookahead_chunks
        self._every, self._since, self._moved = snapshot_chunks, 0, False
        self._prompt = stream.prompt
        self._snapshot: Snapshot = stream.snapshot()
        # Taken before each chunk: one may fail after the stream has moved on.
        self._hearing: Hearing | None = None

    @property
    def overlaps(self) -> bool:
        """See `AvatarStream.overlaps`: as long as the first backend may be lost, every chunk is
        waited for, so that the one that fails is made again."""
        return self._moved and self._stream.overlaps

    @property
    def backend_name(self) -> str:
        """Name of the backend that runs the stream now."""
        return self._stream.backend.name

    def step(self, speech: NDArray[np.int16],
             shown: Callable[[Chunk], None] | None = None) -> Chunk:
        """See `AvatarStream.step`; on a failed card the chunk is made by the second stream.

        Raises:
            BackendLostError: if the second stream's backend fails as well.
        """
        try:
            if not self._moved and self._since >= self._every:
                self._snapshot, self._since = self._stream.snapshot(), 0
            self._hearing = self._stream.hearing
            chunk = self._stream.step(speech, shown)
        except BackendLostError as error:
            self._move(error)
            # Shown once already, perhaps; it is for the caller to take the first only.
            chunk = self._stream.step(speech, shown)
        self._since += 1
        return chunk

    def submit(self, speech: NDArray[np.int16],
               shown: Callable[[Chunk], None] | None = None) -> Future[Chunk]:
        """See `AvatarStream.submit`; on a failed card the chunk is made by the second stream.

        Raises:
            BackendLostError: see `step`.
        """
        if self.overlaps:
            return self._stream.submit(speech, shown)
        made: Future[Chunk] = Future()
        made.set_result(self.step(speech, shown))
        return made

    def replace_silence(self, speech: NDArray[np.int16]) -> None:
        """See `AvatarStream.replace_silence`."""
        self._stream.replace_silence(speech)

    def switch(self, prompt: str) -> None:
        """See `AvatarStream.switch`."""
        self._try(lambda: self._stream.switch(prompt))
        self._prompt = prompt

    def prepare(self, prompt: str) -> None:
        """See `AvatarStream.prepare`."""
        self._try(lambda: self._stream.prepare(prompt))

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BackendLostError as error:
            self._move(error)
            work()

    def _move(self, error: BackendLostError) -> None:
        if self._moved:
            raise error
        lost = self._stream.backend.name
        fallback = self._open_fallback()
        heard = {} if self._hearing is None else vars(self._hearing)
        fallback.restore(replace(self._snapshot, **heard))
        fallback.switch(self._prompt)
        self._stream, self._moved = fallback, True
        self._report(f'backend {lost!r} was lost ({error}); the stream goes on with '
                     f'{fallback.backend.name!r}, its memory from {self._since} chunks ago. '
                     f'Restart the node when the card works again')
