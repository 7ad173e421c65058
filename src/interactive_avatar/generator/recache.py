# SPDX-License-Identifier: Apache-2.0
"""`recache`: what Cache-Switching is compared with.

The keys and values of the window were made under the prompt that reigned then. LongLive rebuilds
them when the prompt changes: the latents of the window run through the network once more, under
the new prompt. Here the window is the adjacent queue; reference, short and long memory are made
without a prompt and stay. `AvatarStream.switch` leaves all of it as it is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import MASKED, pad_text
from interactive_avatar.generator.memory import MemorySnapshot
from interactive_avatar.generator.positions import cache_table, rotate
from interactive_avatar.generator.sampler import mix
from interactive_avatar.generator.stream import MELS_PER_CHUNK, AvatarStream


@dataclass(frozen=True)
class Recached:
    """What a switch with `recache` took.

    Attributes:
        passes: forwards of the denoiser.
        forward_s: time in networks, seconds.
        total_s: with the copies in and out of the backend, seconds.
    """

    passes: int
    forward_s: float
    total_s: float


class Recacher:
    """Switches a stream's prompt and rebuilds the window under it, on any backend.

    Args:
        stream: an open stream of the compact size.
        encode_text: text to hidden states float32 [n, text width].
    """

    def __init__(self, stream: AvatarStream,
                 encode_text: Callable[[str], NDArray[np.float32]]) -> None:
        self._stream, self._encode = stream, encode_text
        self._texts: dict[str, dict[str, NDArray[np.float32]]] = {}

    def prepare(self, prompt: str) -> None:
        """Compute a prompt's keys and values ahead of need, as `AvatarStream.prepare` does."""
        self._stream.prepare(prompt)
        padded, masks = pad_text(self._encode(prompt), self._stream.config)
        out = self._stream.backend.run_graph('encode_text', {'text': padded[None]})
        self._texts[prompt] = {**out, 'text_mask': masks[:1]}

    def switch(self, prompt: str) -> Recached:
        """Use ``prompt`` from the next chunk on, as if the window had been made under it.

        Raises:
            ValueError: on an empty prompt.
        """
        if prompt not in self._texts:
            self.prepare(prompt)
        stream, text = self._stream, self._texts[prompt]
        started_s = time.perf_counter()
        stream.switch(prompt)
        snapshot = stream.snapshot()
        config, cache = stream.config, snapshot.memory.cache
        start, count, tokens = config.cache_layout['adjacent']
        cos, sin = cache_table(config)
        window = slice(start, start + count * tokens)
        cache.mask[window] = MASKED
        level = config.sampler.commit_level
        latents = snapshot.memory.history.adjacent
        previous, forward_s = snapshot.memory.history.followed, 0.0
        for place, latent in enumerate(latents, count - len(latents)):
            back = count - 1 - place
            end = len(snapshot.mel) - back * MELS_PER_CHUNK
            noise = stream.noise(snapshot.index - 1 - back)[-1]
            begun_s = time.perf_counter()
            audio = stream.backend.run_graph(
                'encode_audio', {'mel': stream.audio_window(snapshot.mel[:end])[None]})
            # A latent sees what is older at the place where the next chunk sees the newest.
            shift = (back + 1) * tokens
            k, v, mask = cache.k.copy(), cache.v.copy(), cache.mask.copy()
            mask[window] = MASKED
            older = slice(start, start + place * tokens)
            moved = slice(older.start + shift, older.stop + shift)
            k[..., moved, :], v[..., moved, :] = cache.k[..., older, :], cache.v[..., older, :]
            mask[moved] = cache.mask[older]
            out = stream.backend.run_graph('denoise', {
                'latent': mix(latent, level, noise)[None],
                'level': np.array([level], np.float32), 'previous': previous[None], **audio,
                **text, 'cache_k': rotate(k, (cos, sin))[None], 'cache_v': v[None],
                'cache_mask': mask[None]})
            forward_s += time.perf_counter() - begun_s
            span = slice(start + place * tokens, start + (place + 1) * tokens)
            cache.k[..., span, :], cache.v[..., span, :] = out['k'][0], out['v'][0]
            cache.mask[span] = 0.0
            previous = latent
        stream.restore(dataclasses.replace(
            snapshot, memory=MemorySnapshot(cache, snapshot.memory.history)))
        return Recached(len(latents), forward_s, time.perf_counter() - started_s)
