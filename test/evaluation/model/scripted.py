# SPDX-License-Identifier: Apache-2.0
"""A stream that draws what its prompt says in plain pixels, and a held-out performance."""

from __future__ import annotations

import numpy as np

from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.generator.stream import Chunk
from interactive_avatar.media.clock import CHUNK_SAMPLES

SIDE_PX = 32


class ScriptedStream:
    """Like `AvatarStream`: one chunk of lookahead; frames are as bright as the sound is loud, and
    their first pixel counts the chunks."""

    lookahead_chunks = 1

    def __init__(self, prompt: str = 'rest') -> None:
        self.prompt, self.index = prompt, 0
        self.heard = np.zeros(CHUNK_SAMPLES, np.int16)
        self.prompts: list[str] = []

    def switch(self, prompt: str) -> None:
        self.prompt = prompt

    def step(self, speech: np.ndarray) -> Chunk:
        assert speech.shape == (CHUNK_SAMPLES,) and speech.dtype == np.int16
        frames = np.full((4, SIDE_PX, SIDE_PX, 3), int(np.abs(self.heard).max()) % 256, np.uint8)
        frames[:, 0, 0] = self.index
        chunk = Chunk(self.index, frames, self.heard, self.prompt)
        self.prompts.append(self.prompt)
        self.heard, self.index = speech.copy(), self.index + 1
        return chunk

    def snapshot(self) -> object:
        return self.index, self.prompt, self.heard

    def restore(self, snapshot: object) -> None:
        self.index, self.prompt, self.heard = snapshot  # type: ignore[misc]


def held_out(name: str, chunks: int = 50, seed: int = 0) -> HeldOut:
    """Speech in the first half; the mouth moves with it; true pictures of a known look."""
    rng = np.random.default_rng(seed)
    frames = 4 * chunks
    audio = np.zeros(frames * 640, np.int16)
    audio[:audio.size // 2] = rng.integers(-4000, 4000, audio.size // 2)
    opening = np.zeros(frames, np.float32)
    opening[:frames // 2] = np.convolve(rng.uniform(0, 1, frames // 2 + 2), np.ones(3) / 3,
                                        'valid')
    picture = rng.integers(0, 255, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
    return HeldOut(name, picture, audio, opening, ('talk',) * chunks,
                   (0.3 * opening).astype(np.float32), rng.normal(0, 0.01, (8, 128)),
                   rng.normal(size=(20, 240)).astype(np.float32), 1.0)
