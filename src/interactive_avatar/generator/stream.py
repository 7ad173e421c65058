# SPDX-License-Identifier: Apache-2.0
"""The avatar's video stream: 160 ms of speech in, four frames and their sound out, for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.base import (
    Backend,
    CacheState,
    ChunkJob,
    ChunkResult,
    MemoryJob,
)
from interactive_avatar.generator.conditioning import ConditioningBank
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.memory import (
    KEY_FRAME_POLICIES,
    History,
    MemorySnapshot,
    VisualMemory,
)
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.prompts import WorldState, stable_prompt
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES
from interactive_avatar.media.mel import MEL_FLOOR_LN, MEL_HISTORY_SAMPLES, log_mel
from interactive_avatar.media.picture import check_reference, fit_square, read_image

MELS_PER_CHUNK = CHUNK_MS // 10
"""10 ms mel frames of a chunk."""


class IdentityFiles(Protocol):
    """A model folder that may hold named reference pictures."""

    @property
    def root(self) -> Path:
        """The folder."""
        ...

    @property
    def identities(self) -> dict[str, Path]:
        """Pictures by name."""
        ...


@dataclass(frozen=True)
class Chunk:
    """160 ms of the stream.

    Attributes:
        index: number of the chunk, from 0.
        frames: uint8 [4, H, W, 3] RGB.
        audio: int16 [2560], the sound that belongs to the frames.
        prompt: the prompt they were made under.
        seconds: time spent per stage (audio, denoise, decode, commit, memory, total).
    """

    index: int
    frames: NDArray[np.uint8]
    audio: NDArray[np.int16]
    prompt: str
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _State:
    """All that changes from chunk to chunk."""

    memory: VisualMemory
    mel: NDArray[np.float32]
    heard: NDArray[np.int16]
    index: int
    prompt: str


@dataclass(frozen=True)
class Snapshot:
    """A stream between two chunks, in host memory and of no backend."""

    memory: MemorySnapshot
    mel: NDArray[np.float32]
    heard: NDArray[np.int16]
    index: int
    prompt: str


@dataclass(frozen=True)
class BegunChunk:
    """A chunk whose job is ready for the backend; see `AvatarStream.begin`."""

    job: ChunkJob
    mel: NDArray[np.float32]
    speech: NDArray[np.int16]
    seconds: float


class AvatarStream:
    """One avatar's stream; see `open`. Not thread-safe: step, switch and prepare from one thread
    or behind a lock.

    A chunk is generated with one chunk of lookahead: `step` returns the frames of the speech given
    the call before.
    """

    lookahead_chunks = 1

    def __init__(self, backend: Backend, reference: NDArray[np.uint8], prompt: str,
                 encode_text: Callable[[str], NDArray[np.float32]], seed: int = 0,
                 key_frames: str = 'dynamic', bank: ConditioningBank | None = None) -> None:
        """Args: see `open`; encode_text: text to hidden states float32 [n, width]; bank: text
        caches shared with other streams of the backend."""
        config = backend.config
        self.config, self.backend, self._seed = config, backend, seed
        self._bank = bank or ConditioningBank(backend, encode_text)
        self._bank.prepare(prompt)
        still = np.repeat(reference[None], config.autoencoder.frames, axis=0)
        latent = backend.encode_image(still)
        # As long as the windows of the adjacent chunks together, which `recache` needs again.
        mel = np.full((config.audio.window_mels + (config.memory.adjacent - 1) * MELS_PER_CHUNK,
                       config.audio.mel_bands), MEL_FLOOR_LN, np.float32)
        start = CacheState.begin(config, reference, latent, *backend.embed_reference(latent))
        memory = VisualMemory(backend, start, History(
            config.memory, latent, KEY_FRAME_POLICIES[key_frames]()))
        self._state = _State(memory, mel, np.zeros(CHUNK_SAMPLES, np.int16), 0, prompt)

    @classmethod
    def open(cls, model: Path | str = 'models/compact', backend: str = 'onnx',
             reference: NDArray[np.uint8] | str | None = None, prompt: str | None = None,
             seed: int = 0, key_frames: str = 'dynamic', **backend_options: Any) -> AvatarStream:
        """Open a model and start a stream.

        Args:
            model: directory of the model.
            backend: onnx or torch.
            reference: who the avatar is: RGB picture uint8 [H, W, 3], or the name of one of the
                model's identities, or None for its first.
            prompt: what is seen at first; the prompt of a world at rest if None.
            seed: of the sampler's noise; same seed and input, same frames.
            key_frames: policy of the long memory: dynamic, fifo or random; as ablations none (it
                stays empty) and window (the short memory too).
            **backend_options: passed to the backend (threads, int8, device).

        Raises:
            ModelError: if the model or the backend cannot be used.
            ValueError: if the picture, identity name or prompt is unusable.
        """
        from interactive_avatar.generator.wan.files import is_wan

        if is_wan(model):
            from interactive_avatar.generator.wan.stream import WanStream

            return WanStream.open(model, backend, reference, prompt, seed, key_frames,
                                  **backend_options)
        from interactive_avatar.generator.text import TextEncoder

        files = ModelFiles.open(model)
        picture = reference_picture(files, files.config, reference)
        return cls(open_backend(backend, files, **backend_options), picture,
                   prompt or stable_prompt(WorldState()), TextEncoder.load().encode, seed,
                   key_frames)

    @property
    def prompt(self) -> str:
        """The prompt of the next chunk."""
        return self._state.prompt

    @property
    def memory(self) -> VisualMemory:
        """The stream's visual memory, to look at."""
        return self._state.memory

    def prepare(self, prompt: str) -> None:
        """Compute a prompt's text cache ahead of need."""
        self._bank.prepare(prompt)

    def switch(self, prompt: str) -> None:
        """Use another prompt from the next chunk on; the visual caches stay as they are."""
        self._bank.prepare(prompt)
        self._state.prompt = prompt

    def step(self, speech: NDArray[np.int16]) -> Chunk:
        """Make the next chunk.

        Args:
            speech: int16 [2560], 16 kHz mono; zeros in silence.

        Returns:
            The chunk whose sound was given the call before (silence in the first call).

        Raises:
            ValueError: on another type or length.
        """
        begun = self.begin(speech)
        result, = self.backend.chunks([begun.job])
        chunk, work = self.finish(begun, result)
        if work is not None:
            started_s = time.perf_counter()
            self.backend.remember([work])
            spent_s = time.perf_counter() - started_s
            chunk.seconds['memory'] += spent_s
            chunk.seconds['total'] += spent_s
        return chunk

    def begin(self, speech: NDArray[np.int16]) -> BegunChunk:
        """The first part of `step`: what the backend needs for the next chunk.

        `step` is `begin`, `Backend.chunks`, `finish`, `Backend.remember`; a group of streams takes
        the backend's parts for all of them at once.

        Raises:
            ValueError: see `step`.
        """
        if speech.dtype != np.int16 or speech.shape != (CHUNK_SAMPLES,):
            raise ValueError(f'step needs int16 [{CHUNK_SAMPLES}], got {speech.dtype} '
                             f'{list(speech.shape)}')
        started_s = time.perf_counter()
        state = self._state
        fresh = log_mel(speech, state.heard[-MEL_HISTORY_SAMPLES:])
        mel = np.concatenate([state.mel[len(fresh):], fresh])
        job = ChunkJob(mel[-self.config.audio.window_mels:], self.noise(state.index),
                       self._bank.prepare(state.prompt), state.memory.cache)
        return BegunChunk(job, mel, speech.copy(), time.perf_counter() - started_s)

    def noise(self, index: int) -> NDArray[np.float32]:
        """The noise of chunk ``index``: see `ChunkJob.noise`."""
        a = self.config.autoencoder
        return np.random.default_rng([self._seed, index]).standard_normal(
            (len(self.config.sampler.levels) + 1, a.latent_channels, a.latent_px, a.latent_px),
            np.float32)

    def finish(self, begun: BegunChunk, result: ChunkResult) -> tuple[Chunk, MemoryJob | None]:
        """The second part of `step`: the chunk, and what is to be remembered now, if anything."""
        started_s = time.perf_counter()
        state = self._state
        work = state.memory.commit(result.latent)
        seconds = dict(result.seconds)
        seconds['audio'] = seconds.get('audio', 0.0) + begun.seconds
        seconds['memory'] = time.perf_counter() - started_s
        seconds['total'] = sum(seconds.values())
        chunk = Chunk(state.index, result.frames, state.heard, state.prompt, seconds)
        state.mel, state.heard = begun.mel, begun.speech
        state.index += 1
        return chunk, work

    def snapshot(self) -> Snapshot:
        """The whole state between two chunks, for `restore` on any stream of the same model."""
        state = self._state
        return Snapshot(state.memory.snapshot(), state.mel, state.heard, state.index, state.prompt)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, which may come from a stream on another backend; it can be
        restored any number of times.

        Raises:
            TypeError: if it is not a snapshot.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f'{type(snapshot).__name__} is not a snapshot of a stream')
        self._bank.prepare(snapshot.prompt)
        self._state.memory.cache.close()
        self._state = _State(VisualMemory.restore(self.backend, snapshot.memory), snapshot.mel,
                             snapshot.heard, snapshot.index, snapshot.prompt)

    def close(self) -> None:
        """Give the stream's memory back to the backend, which goes on serving others."""
        self._state.memory.cache.close()


def reference_picture(files: ModelFiles | None, config: GeneratorConfig,
                      reference: NDArray[np.uint8] | str | None) -> NDArray[np.uint8]:
    """The reference picture at the model's size: RGB uint8 [H, W, 3] of any size, or the name of
    one of the model's identities, or None for its first.

    Raises:
        ModelError: if the model has no identities; ValueError: on an unusable picture or name.
    """
    if isinstance(reference, np.ndarray):
        return fit_square(check_reference(reference), config.autoencoder.picture_px)
    if files is None:
        raise ModelError('there are no identities without a model directory; give a picture')
    return fit_square(identity_picture(files, reference), config.autoencoder.picture_px)


def identity_picture(files: IdentityFiles, name: str | None) -> NDArray[np.uint8]:
    """The picture of a named identity of the model, or of its first."""
    names = files.identities
    if not names:
        raise ModelError(f'{str(files.root)!r} has no identities; give a reference picture')
    if name is None:
        name = next(iter(names))
    if name not in names:
        raise ValueError(f'the model has no identity {name!r}; it has {", ".join(names)}')
    return read_image(names[name])
