# SPDX-License-Identifier: Apache-2.0
"""What a backend offers to the stream: the model's graphs, and a cache kept where it likes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.config import GeneratorConfig

KeysValues = Any
"""Keys and values of some tokens in every layer; opaque outside their backend."""

TextCache = Any
"""A prompt's text keys, values and mask in every layer; opaque outside its backend."""

MASKED = np.float32(-1e4)
"""Added to attention scores of empty slots; finite in float16."""


class Cache(Protocol):
    """What a stream's next chunk sees: slots of keys and values for self-attention, the latent it
    follows, and for the decoder the reference picture and the frame shown last."""

    def open(self, picture: NDArray[np.uint8], latent: NDArray[np.float32]) -> None:
        """Begin a stream at a reference picture uint8 [H, W, 3] with its latent [C, 16, 16]."""
        ...

    def place(self, kind: str, index: int, entry: KeysValues) -> None:
        """Fill slot ``index`` of ``kind`` (reference, long, short, adjacent)."""
        ...

    def push(self, kind: str, entry: KeysValues) -> None:
        """Shift the slots of ``kind`` by one (the oldest falls out) and fill the newest."""
        ...

    def take(self, kind: str, index: int) -> KeysValues:
        """A copy of a slot's keys and values."""
        ...

    def follow(self, latent: NDArray[np.float32]) -> None:
        """Name the finished latent float32 [C, 16, 16] that the next chunk follows."""
        ...

    def copy(self) -> Any:
        """An independent copy."""
        ...


class Backend(Protocol):
    """Runs the graphs of one model. All arrays are numpy on the host.

    A `cache` argument is always a cache of the same backend, from `new_cache`.
    """

    name: str
    config: GeneratorConfig

    def new_cache(self) -> Cache:
        """An empty cache."""
        ...

    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [4, H, W, 3] -> latent float32 [C, 16, 16]."""
        ...

    def encode_audio(self, mel: NDArray[np.float32]) -> KeysValues:
        """Log-mel float32 [96, 64] of a chunk's window -> keys and values for its forwards."""
        ...

    def encode_text(self, tokens: NDArray[np.float32]) -> TextCache:
        """Text encoder states float32 [n, text width] -> a prompt's keys and values."""
        ...

    def embed_reference(self, latent: NDArray[np.float32]) -> KeysValues:
        """Latent of the reference picture -> its slot's keys and values."""
        ...

    def denoise(self, latent: NDArray[np.float32], level: float, audio: KeysValues,
                text: TextCache, cache: Any) -> NDArray[np.float32]:
        """Velocity float32 [C, 16, 16] of a noisy latent at ``level`` in [0, 1]."""
        ...

    def commit(self, latent: NDArray[np.float32], level: float, audio: KeysValues,
               text: TextCache, cache: Any) -> KeysValues:
        """Keys and values of a finished latent, to be pushed to ``adjacent``."""
        ...

    def compress(self, latents: NDArray[np.float32], cache: Any) -> KeysValues:
        """Latents float32 [group, C, 16, 16] -> keys and values of one memory entry."""
        ...

    def decode(self, latent: NDArray[np.float32], cache: Any) -> NDArray[np.uint8]:
        """Latent float32 [C, 16, 16] -> frames uint8 [4, H, W, 3], going on from the frame that
        the cache's stream showed last; the cache then holds the last of these."""
        ...
