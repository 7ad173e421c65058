# SPDX-License-Identifier: Apache-2.0
"""What a backend offers to streams: whole chunks, and a cache kept where it likes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.config import BLINK_CHUNKS, GeneratorConfig

MASKED: Final = np.float32(-1e4)
"""Added to attention scores of empty slots; finite in float16."""

STAGES: Final = ('audio', 'denoise', 'decode', 'commit')
"""Parts of a chunk that backends time, in order."""

TextCache = Any
"""A prompt's text keys, values and mask in every layer; opaque outside its backend."""


class BackendMemoryError(RuntimeError):
    """The device has no room for one more stream; those that run are not touched."""


class BackendLostError(RuntimeError):
    """The device failed and its caches are gone; open another backend and restore a snapshot."""


@dataclass
class CacheState:
    """All that the networks see of a stream's past, in host memory: the form that every backend
    takes and gives, so that a stream can go on elsewhere.

    Attributes:
        k, v: keys (not rotated) and values float32 [L, H, context tokens, hw].
        mask: float32 [context tokens], 0 where a slot is filled, `MASKED` where not.
        previous: finished latent that the next chunk follows, float32 [C, 16, 16].
        reference: latent of the reference picture, float32 [C, 16, 16].
        last: frame shown last, uint8 [H, W, 3].
        picture: reference picture, uint8 [H, W, 3].
    """

    k: NDArray[np.float32]
    v: NDArray[np.float32]
    mask: NDArray[np.float32]
    previous: NDArray[np.float32]
    reference: NDArray[np.float32]
    last: NDArray[np.uint8]
    picture: NDArray[np.uint8]

    @classmethod
    def begin(cls, config: GeneratorConfig, picture: NDArray[np.uint8],
              latent: NDArray[np.float32], k: NDArray[np.float32],
              v: NDArray[np.float32]) -> CacheState:
        """The state of a stream that shows its reference picture.

        Args:
            config: sizes of the networks.
            picture: uint8 [H, W, 3]; latent: its latent float32 [C, 16, 16].
            k, v: keys and values of the reference, float32 [L, H, chunk tokens, hw].
        """
        d = config.denoiser
        shape = (d.layers, d.heads, config.context_tokens, d.head_width)
        state = cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32),
                    np.full(config.context_tokens, MASKED, np.float32), latent, latent, picture,
                    picture)
        tokens = k.shape[2]
        state.k[:, :, :tokens], state.v[:, :, :tokens], state.mask[:tokens] = k, v, 0.0
        return state

    def copy(self) -> CacheState:
        """An independent copy."""
        return CacheState(**{field.name: getattr(self, field.name).copy()
                             for field in dataclasses.fields(self)})


class Cache(Protocol):
    """A stream's past in a backend; moved on by `Backend.chunks` and `Backend.remember`."""

    def state(self) -> CacheState:
        """A copy in host memory."""
        ...

    def close(self) -> None:
        """Give its memory back; it cannot be used afterwards."""
        ...


@dataclass(frozen=True)
class ChunkJob:
    """One stream's next chunk.

    Attributes:
        mel: log-mel window float32 [96, 64].
        noise: float32 [steps + 1, C, 16, 16]: where the sampler starts, what it puts back between
            its steps, and last what the commit adds.
        text: the prompt.
        cache: the stream's past.
        blink: which chunk of a blink this is, from 1; 0 for none.
        shown: if given, a backend that can calls it with the frames, uint8 [4, H, W, 3], as soon
            as they are decoded, perhaps from a thread of its own: nobody has to wait for the
            commit. If it fails, the chunk fails.
        ahead: the caller takes the frames later, from `ChunkResult.decoding`, and may begin the
            next chunk meanwhile. For backends that overlap; the others pay no heed.
    """

    mel: NDArray[np.float32]
    noise: NDArray[np.float32]
    text: TextCache
    cache: Any
    blink: int = 0
    shown: Callable[[NDArray[np.uint8]], None] | None = None
    ahead: bool = False


@dataclass(frozen=True)
class Decoded:
    """The pictures of a chunk.

    Attributes:
        frames: uint8 [4, H, W, 3].
        seconds: time of the stage decode.
    """

    frames: NDArray[np.uint8]
    seconds: float


@dataclass(frozen=True)
class ChunkResult:
    """What became of a `ChunkJob`.

    Attributes:
        latent: float32 [C, 16, 16].
        frames: uint8 [4, H, W, 3]; None where they come in `decoding`.
        seconds: time of each of `STAGES`, as far as the backend can tell them apart; without
            decode where that is in `decoding`.
        decoding: the frames of a job that goes ahead. If it fails, only they are lost: the past
            is that after the chunk, with the frame before it as the last one shown.
    """

    latent: NDArray[np.float32]
    frames: NDArray[np.uint8] | None
    seconds: Mapping[str, float]
    decoding: Future[Decoded] | None = None


@dataclass(frozen=True)
class MemoryJob:
    """Latents that leave a stream's adjacent queue, to be compressed into its short memory.

    Attributes:
        latents: float32 [group, C, 16, 16].
        cache: the stream's past.
        long_slot: slot of the long memory that takes the oldest short entry, which this one
            pushes out; None forgets that entry.
    """

    latents: NDArray[np.float32]
    cache: Any
    long_slot: int | None


class Backend(Protocol):
    """Runs one model for one or many streams. All arrays are numpy on the host.

    Not thread-safe. Caches and texts are those of the same backend.

    Attributes:
        name: as it is asked for.
        config: of the model.
        overlaps: whether `ChunkJob.ahead` is heeded.
    """

    name: str
    config: GeneratorConfig
    overlaps: bool

    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [4, H, W, 3] -> latent float32 [C, 16, 16]."""
        ...

    def embed_reference(
            self, latent: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Latent of the reference picture -> keys and values float32 [L, H, tokens, hw]."""
        ...

    def encode_text(self, tokens: NDArray[np.float32]) -> TextCache:
        """Text encoder states float32 [n, text width] -> a prompt's keys and values."""
        ...

    def open_cache(self, state: CacheState) -> Cache:
        """Take in a stream's past.

        Raises:
            BackendMemoryError: if there is no room; other streams are not touched.
        """
        ...

    def chunks(self, jobs: Sequence[ChunkJob]) -> list[ChunkResult]:
        """Make the next chunk of each job: encode the sound, denoise, decode, and commit the
        finished latent to the adjacent queue.

        Raises:
            BackendLostError: if the device failed.
        """
        ...

    def remember(self, jobs: Sequence[MemoryJob]) -> None:
        """Compress groups of latents and push them into the short memories.

        Raises:
            BackendLostError: if the device failed.
        """
        ...

    def run_graph(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph of `signatures` by itself, to compare and to measure."""
        ...

    def warm_up(self, streams: int = 1) -> None:
        """Do now what the first chunk of up to ``streams`` streams at once would wait for."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


def pad_text(tokens: NDArray[np.float32],
             config: GeneratorConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Text states float32 [n, text width] at the fixed length; longer prompts are cut.

    Returns:
        states [text tokens, text width], and masks [1 + `BLINK_CHUNKS`, text rows]: without a
        blink, and for each of its chunks.
    """
    d = config.denoiser
    padded = np.zeros((d.text_tokens, d.text_width), np.float32)
    masks = np.full((1 + BLINK_CHUNKS, d.text_rows), MASKED, np.float32)
    count = min(len(tokens), d.text_tokens)
    padded[:count], masks[:, :count] = tokens[:count], 0.0
    for chunk in range(BLINK_CHUNKS):
        start = d.text_tokens + chunk * d.blink_rows
        masks[1 + chunk, start:start + d.blink_rows] = 0.0
    return padded, masks
