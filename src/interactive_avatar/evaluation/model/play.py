# SPDX-License-Identifier: Apache-2.0
"""Drives a generator through scripts of prompts and sound."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.stream import AvatarStream
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES, FRAME_MS, FRAMES_PER_CHUNK
from interactive_avatar.media.picture import fit_square
from interactive_avatar.paths import resource

SILENCE: Final = np.zeros(CHUNK_SAMPLES, np.int16)


@dataclass(frozen=True)
class Setup:
    """Which generator, and how it is run; every field but the first is an ablation's switch.

    Attributes:
        model: folder.
        backend: what runs it.
        seed: of the sampler.
        key_frames: policy of the long memory, of `generator.memory.KEY_FRAME_POLICIES`.
        levels: noise levels of the sampler; the model's own if empty.
        lookahead_ms: speech waited for before a frame is drawn, see `AvatarStream.open`.
    """

    model: str = 'models/compact'
    backend: str = 'onnx'
    seed: int = 0
    key_frames: str = 'dynamic'
    levels: tuple[float, ...] = ()
    lookahead_ms: int = CHUNK_MS

    @property
    def name(self) -> str:
        """For people: the model and what differs from its defaults."""
        parts = [self.model, self.backend if self.backend != 'onnx' else '',
                 f'key frames {self.key_frames}' if self.key_frames != 'dynamic' else '',
                 f'levels {", ".join(f"{level:g}" for level in self.levels)}'
                 if self.levels else '',
                 f'lookahead {self.lookahead_ms} ms' if self.lookahead_ms != CHUNK_MS else '']
        return '; '.join(part for part in parts if part)


class Player:
    """An open model that makes streams; the graphs are loaded once.

    Args:
        setup: which model and how.

    Raises:
        FileNotFoundError: if there is no such model.
        generator.model.ModelError: if it cannot be used.
    """

    def __init__(self, setup: Setup) -> None:
        from interactive_avatar.generator.backends import open_backend
        from interactive_avatar.generator.model import ModelFiles
        from interactive_avatar.generator.text import TextEncoder

        self.setup = setup
        self.files = ModelFiles.open(resource(setup.model))
        if setup.levels:
            config = self.files.config
            self.files = replace(self.files, config=replace(
                config, sampler=replace(config.sampler, levels=setup.levels)))
        self.backend = open_backend(setup.backend, self.files)
        self._encode = TextEncoder.load().encode

    @property
    def key(self) -> str:
        """Short hash of the weights and the way they are run: names what was measured of them."""
        text = repr((sorted(self.files.sha256.items()), self.files.config.to_json(),
                     self.setup.backend, self.setup.seed, self.setup.key_frames,
                     self.setup.levels, *([self.setup.lookahead_ms]
                                          if self.setup.lookahead_ms != CHUNK_MS else [])))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def stream(self, reference: NDArray[np.uint8], prompt: str, seed: int = 0) -> AvatarStream:
        """A new stream of a person, uint8 [H, W, 3] RGB; `seed` is added to the setup's."""
        picture = fit_square(reference, self.files.config.autoencoder.picture_px)
        return AvatarStream(self.backend, picture, prompt, self._encode, self.setup.seed + seed,
                            self.setup.key_frames, lookahead_ms=self.setup.lookahead_ms)


def run(stream: Any, prompts: Sequence[str], audio: NDArray[np.int16] | None = None,
        lookahead: int | None = None) -> NDArray[np.uint8]:
    """Play a script.

    Args:
        stream: an open stream.
        prompts: one per chunk.
        audio: int16, one chunk's 2,560 samples per prompt (missing ones are silence); None for
            silence from beginning to end.
        lookahead: chunks made in advance and dropped, so that frames and sound are in step; the
            stream's own by default, none without sound. Give 0 to go on with a stream without
            losing a chunk: its frames then are late by the stream's lookahead.

    Returns:
        uint8 [4 n, H, W, 3], in step with the prompts and the sound.
    """
    late_frames = FRAMES_PER_CHUNK * int(stream.lookahead_chunks)
    late_frames = getattr(stream, 'lookahead_ms', late_frames * FRAME_MS) // FRAME_MS
    if lookahead is None:
        lookahead = 0 if audio is None else -(-late_frames // FRAMES_PER_CHUNK)
    else:
        late_frames = FRAMES_PER_CHUNK * lookahead
    frames: list[NDArray[np.uint8]] = []
    for step in range(len(prompts) + lookahead):
        # The chunk that comes back belongs to an earlier step's sound, and so does its prompt.
        prompt = prompts[max(0, step - lookahead)]
        if prompt != stream.prompt:
            stream.switch(prompt)
        samples = SILENCE
        if audio is not None:
            part = audio[step * CHUNK_SAMPLES:(step + 1) * CHUNK_SAMPLES]
            samples = np.concatenate([part, SILENCE[part.size:]])
        frames.append(stream.step(samples).frames)
    start = late_frames if lookahead else 0
    return np.concatenate(frames)[start:start + FRAMES_PER_CHUNK * len(prompts)]
