# SPDX-License-Identifier: Apache-2.0
"""Many avatars in one process: their chunks are made together, as one batch of the backend.

Each stream keeps its own reference, memory, prompts and noise; who joins or leaves changes the
size of the batch and nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.base import Backend, BackendMemoryError
from interactive_avatar.generator.conditioning import ConditioningBank
from interactive_avatar.generator.model import ModelFiles
from interactive_avatar.generator.prompts import WorldState, stable_prompt
from interactive_avatar.generator.stream import AvatarStream, BegunChunk, Chunk, reference_picture
from interactive_avatar.media.clock import CHUNK_MS

BUDGET_MS: Final = 0.8 * CHUNK_MS
"""Time that a batch may take: what is left of 160 ms goes to carrying the results away."""

HISTORY_STEPS: Final = 100
MAX_PROMPTS: Final = 256
THREADS: Final = 8


class StreamRefusedError(RuntimeError):
    """One more stream would make all of them miss their deadlines, or does not fit."""


class StreamGroup:
    """Streams of one backend that go forward together. Not thread-safe.

    Args:
        backend: runs all streams.
        encode_text: text to hidden states float32 [n, width].
        budget_ms: time that a step may take with one more stream, for that stream to be let in.
    """

    def __init__(self, backend: Backend, encode_text: Callable[[str], NDArray[np.float32]],
                 budget_ms: float = BUDGET_MS) -> None:
        self.backend, self._encode, self._budget_ms = backend, encode_text, budget_ms
        self._bank = ConditioningBank(backend, encode_text, MAX_PROMPTS)
        self._members: list[AvatarStream] = []
        # Milliseconds of recent steps by number of streams; the first of each number is left out,
        # because that is when memory is taken and kernels are loaded.
        self._step_ms: dict[int, deque[float]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix='stream group')

    @classmethod
    def open(cls, model: Path | str = 'models/compact', backend: str = 'torch',
             budget_ms: float = BUDGET_MS, **backend_options: Any) -> StreamGroup:
        """Open a model for many streams.

        Args:
            model: directory of the model.
            backend: which backend.
            budget_ms: see the class.
            **backend_options: passed to the backend (``streams``: the most that may join).

        Raises:
            ModelError: if the model or the backend cannot be used.
        """
        from interactive_avatar.generator.text import TextEncoder

        files = ModelFiles.open(model)
        group = cls(open_backend(backend, files, **backend_options), TextEncoder.load().encode,
                    budget_ms)
        group._files = files
        return group

    _files: ModelFiles | None = None

    def __len__(self) -> int:
        return len(self._members)

    def join(self, reference: NDArray[np.uint8] | str | None = None, prompt: str | None = None,
             seed: int = 0, key_frames: str = 'dynamic') -> AvatarStream:
        """Let one more stream in; it takes part from the next step on.

        Args: see `AvatarStream.open`.

        Returns:
            The stream, to `switch` and `prepare`; its chunks come from `step` of the group.

        Raises:
            StreamRefusedError: if a step would take too long with it, or memory is short.
            ValueError: if the picture, identity name or prompt is unusable.
        """
        expected_ms = self.expected_ms(len(self._members) + 1)
        if expected_ms > self._budget_ms:
            raise StreamRefusedError(
                f'stream {len(self._members) + 1} is refused: a step of so many is expected to '
                f'take {expected_ms:.0f} ms, more than the {self._budget_ms:.0f} ms that it may '
                f'take; wait until one leaves, or start another process on another card')
        picture = reference_picture(self._files, self.backend.config, reference)
        try:
            stream = AvatarStream(self.backend, picture, prompt or stable_prompt(WorldState()),
                                  self._encode, seed, key_frames, self._bank)
        except BackendMemoryError as error:
            raise StreamRefusedError(f'stream {len(self._members) + 1} is refused: {error}'
                                     ) from error
        self._members.append(stream)
        return stream

    def leave(self, stream: AvatarStream) -> None:
        """Let a stream go.

        Raises:
            ValueError: if it is not in the group.
        """
        if stream not in self._members:
            raise ValueError('this stream is not in the group')
        self._members.remove(stream)
        stream.close()

    def expected_ms(self, streams: int) -> float:
        """Time that a step of so many streams is expected to take, from the slow ones among the
        last steps (their 99th percentile), in proportion to the nearest smaller number seen."""
        seen = [count for count, times in self._step_ms.items() if times and count <= streams]
        if not seen:
            return 0.0
        count = max(seen)
        return float(np.percentile(self._step_ms[count], 99)) * streams / count

    def step(self, speech: Mapping[AvatarStream, NDArray[np.int16]]) -> dict[AvatarStream, Chunk]:
        """Make the next chunk of each stream in ``speech``.

        Args:
            speech: stream -> int16 [2560].

        Returns:
            stream -> its chunk, as `AvatarStream.step` returns it.

        Raises:
            ValueError: if a stream is not in the group, or its sound is of another form; then no
                stream has gone forward.
        """
        strangers = [stream for stream in speech if stream not in self._members]
        if strangers:
            raise ValueError(f'{len(strangers)} of the streams are not in the group; join first')
        if not speech:
            return {}
        started_s = time.perf_counter()
        begun: list[BegunChunk] = list(self._threads.map(
            lambda pair: pair[0].begin(pair[1]), speech.items()))
        results = self.backend.chunks([item.job for item in begun])
        chunks, works = {}, []
        for stream, item, result in zip(speech, begun, results, strict=True):
            chunks[stream], work = stream.finish(item, result)
            if work is not None:
                works.append(work)
        self.backend.remember(works)
        if len(speech) in self._step_ms:
            self._step_ms[len(speech)].append(1000.0 * (time.perf_counter() - started_s))
        else:
            self._step_ms[len(speech)] = deque(maxlen=HISTORY_STEPS)
        return chunks

    def close(self) -> None:
        """Let all streams go and release the backend."""
        for stream in list(self._members):
            self.leave(stream)
        self._threads.shutdown()
        self.backend.close()
