# SPDX-License-Identifier: Apache-2.0
"""The avatar's video stream: 160 ms of speech in, four frames and their sound out, for ever."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends import open_backend
from interactive_avatar.generator.backends.base import Backend
from interactive_avatar.generator.conditioning import ConditioningBank
from interactive_avatar.generator.memory import KEY_FRAME_POLICIES, VisualMemory
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.prompts import WorldState, stable_prompt
from interactive_avatar.generator.sampler import mix, sample
from interactive_avatar.media.clock import CHUNK_SAMPLES
from interactive_avatar.media.mel import MEL_FLOOR_LN, MEL_HISTORY_SAMPLES, log_mel
from interactive_avatar.media.picture import check_reference, fit_square, read_image


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
        seconds: time spent per stage (audio, denoise, decode, commit, total).
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


class AvatarStream:
    """One avatar's stream; see `open`. Not thread-safe: step, switch and prepare from one thread
    or behind a lock.

    A chunk is generated with one chunk of lookahead: `step` returns the frames of the speech given
    the call before.
    """

    lookahead_chunks = 1

    def __init__(self, backend: Backend, reference: NDArray[np.uint8], prompt: str,
                 encode_text: Callable[[str], NDArray[np.float32]], seed: int = 0,
                 key_frames: str = 'dynamic') -> None:
        """Args: see `open`; encode_text: text to hidden states float32 [n, width]."""
        config = backend.config
        self.config, self.backend, self._seed = config, backend, seed
        self._bank = ConditioningBank(backend, encode_text)
        still = np.repeat(reference[None], config.autoencoder.frames, axis=0)
        latent = backend.encode_image(still)
        mel = np.full((config.audio.window_mels, config.audio.mel_bands), MEL_FLOOR_LN,
                      np.float32)
        self._state = _State(VisualMemory(backend, latent, reference,
                                          KEY_FRAME_POLICIES[key_frames]()),
                             mel, np.zeros(CHUNK_SAMPLES, np.int16), 0, prompt)
        self._bank.prepare(prompt)

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
            key_frames: policy of the long memory: dynamic, fifo or random.
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
        if reference is None or isinstance(reference, str):
            picture = identity_picture(files, reference)
        else:
            picture = check_reference(reference)
        picture = fit_square(picture, files.config.autoencoder.picture_px)
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
        if speech.dtype != np.int16 or speech.shape != (CHUNK_SAMPLES,):
            raise ValueError(f'step needs int16 [{CHUNK_SAMPLES}], got {speech.dtype} '
                             f'{list(speech.shape)}')
        state, a = self._state, self.config.autoencoder
        marks = [time.perf_counter()]
        fresh = log_mel(speech, state.heard[-MEL_HISTORY_SAMPLES:])
        state.mel = np.concatenate([state.mel[len(fresh):], fresh])
        audio = self.backend.encode_audio(state.mel)
        text = self._bank.prepare(state.prompt)
        random = np.random.default_rng([self._seed, state.index])
        cache, backend = state.memory.cache, self.backend
        marks.append(time.perf_counter())
        latent = sample(lambda x, t: backend.denoise(x, t, audio, text, cache),
                        (a.latent_channels, a.latent_px, a.latent_px),
                        self.config.sampler.levels, random)
        marks.append(time.perf_counter())
        frames = backend.decode(latent, cache)
        marks.append(time.perf_counter())
        level = self.config.sampler.commit_level
        noise = random.standard_normal(latent.shape, np.float32)
        state.memory.commit(latent, backend.commit(mix(latent, level, noise), level, audio, text,
                                                   cache))
        marks.append(time.perf_counter())
        spans = np.diff(marks).tolist()
        chunk = Chunk(state.index, frames, state.heard, state.prompt,
                      {**dict(zip(('audio', 'denoise', 'decode', 'commit'), spans, strict=True)),
                       'total': marks[-1] - marks[0]})
        state.heard = speech.copy()
        state.index += 1
        return chunk

    def snapshot(self) -> object:
        """The whole state between two chunks, for `restore` on this stream."""
        state = copy.copy(self._state)
        state.memory = state.memory.copy()
        return state

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot; it can be restored any number of times.

        Raises:
            TypeError: if it is not a snapshot.
        """
        if not isinstance(snapshot, _State):
            raise TypeError(f'{type(snapshot).__name__} is not a snapshot of a stream')
        self._state = copy.copy(snapshot)
        self._state.memory = snapshot.memory.copy()


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
