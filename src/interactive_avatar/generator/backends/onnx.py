# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU: the embedded default. Needs neither torch nor a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import GRAPH_NAMES, ModelError, ModelFiles
from interactive_avatar.generator.positions import cache_table, rotate

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class OnnxText:
    """A prompt: keys and values float32 [1, L, H, n, hw] and the mask [1, n]."""

    k: NDArray[np.float32]
    v: NDArray[np.float32]
    mask: NDArray[np.float32]


class OnnxCache:
    """Keys and values float32 [1, L, H, context tokens, hw] in host memory, written in place.

    Keys are kept as they came; `rotated` holds them turned to the positions of their slots,
    refreshed where a slot changes, so that the forwards of a chunk share one rotation.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        d = config.denoiser
        shape = (1, d.layers, d.heads, config.context_tokens, d.head_width)
        self.k = np.zeros(shape, np.float32)
        self.rotated = np.zeros(shape, np.float32)
        self.v = np.zeros(shape, np.float32)
        self.mask = np.full((1, config.context_tokens), MASKED, np.float32)
        a = config.autoencoder
        self.previous = np.zeros((1, a.latent_channels, a.latent_px, a.latent_px), np.float32)
        self.reference = self.previous
        self.picture = np.zeros((1, a.picture_px, a.picture_px, 3), np.uint8)
        self.last = self.picture
        self._cos, self._sin = cache_table(config)
        self._slots = config.cache_layout

    def _span(self, kind: str, index: int) -> slice:
        start, count, tokens = self._slots[kind]
        if not 0 <= index < count:
            raise IndexError(f'slot {index} of {kind!r} does not exist; it has {count}')
        return slice(start + index * tokens, start + (index + 1) * tokens)

    def _turn(self, span: slice) -> None:
        self.rotated[..., span, :] = rotate(self.k[..., span, :],
                                            (self._cos[span], self._sin[span]))

    def open(self, picture: NDArray[np.uint8], latent: NDArray[np.float32]) -> None:
        """See `Cache.open`."""
        self.picture = self.last = picture[None]
        self.reference = self.previous = latent[None].astype(np.float32)

    def place(self, kind: str, index: int, entry: Pair) -> None:
        """See `Cache.place`."""
        span = self._span(kind, index)
        self.k[..., span, :], self.v[..., span, :] = entry
        self.mask[:, span] = 0.0
        self._turn(span)

    def push(self, kind: str, entry: Pair) -> None:
        """See `Cache.push`."""
        start, count, tokens = self._slots[kind]
        end = start + count * tokens
        for array in (self.k, self.v):
            array[..., start:end - tokens, :] = array[..., start + tokens:end, :].copy()
        self.mask[:, start:end - tokens] = self.mask[:, start + tokens:end].copy()
        self._turn(slice(start, end - tokens))
        self.place(kind, count - 1, entry)

    def take(self, kind: str, index: int) -> Pair:
        """See `Cache.take`."""
        span = self._span(kind, index)
        return self.k[..., span, :].copy(), self.v[..., span, :].copy()

    def follow(self, latent: NDArray[np.float32]) -> None:
        """See `Cache.follow`."""
        self.previous = latent[None].astype(np.float32)

    def copy(self) -> OnnxCache:
        """See `Cache.copy`."""
        other = object.__new__(OnnxCache)
        other.__dict__.update(self.__dict__)
        for name in ('k', 'rotated', 'v', 'mask'):
            setattr(other, name, getattr(self, name).copy())
        return other


class OnnxBackend:
    """Runs a model's graphs with ONNX Runtime's CPU provider.

    Args:
        files: the checked model.
        threads: intra-op threads; 0 lets ONNX Runtime take every core.
        int8: run the denoiser's matrix products in 8-bit integers.
        graphs: which graphs to load; all by default.

    Raises:
        ModelError: if a graph cannot be loaded.
    """

    name = 'onnx'

    def __init__(self, files: ModelFiles, threads: int = 2, int8: bool = True,
                 graphs: tuple[str, ...] = GRAPH_NAMES) -> None:
        self.config = files.config
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Waiting threads that spin take the cores that recognition and the voice need.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        self._sessions: dict[str, Any] = {}
        for name in graphs:
            try:
                variant = 'denoise.int8' if int8 and name == 'denoise' else name
                self._sessions[name] = ort.InferenceSession(
                    str(files.graph(variant)), options, providers=['CPUExecutionProvider'])
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise ModelError(f'graph {name!r} of {str(files.root)!r} cannot be loaded by ONNX '
                                 f"Runtime: {error}; run 'avatar export' again") from error

    def _run(self, name: str, **inputs: Any) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._sessions[name].run(None, inputs)
        return outputs

    def new_cache(self) -> OnnxCache:
        """See `Backend.new_cache`."""
        return OnnxCache(self.config)

    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.encode_image`."""
        return self._run('encode_image', frames=frames[None])[0][0]

    def encode_audio(self, mel: NDArray[np.float32]) -> Pair:
        """See `Backend.encode_audio`."""
        k, v = self._run('encode_audio', mel=mel[None])
        return k, v

    def encode_text(self, tokens: NDArray[np.float32]) -> OnnxText:
        """See `Backend.encode_text`; longer prompts are cut, shorter ones masked."""
        d = self.config.denoiser
        padded = np.zeros((1, d.text_tokens, d.text_width), np.float32)
        mask = np.full((1, d.text_tokens), MASKED, np.float32)
        count = min(len(tokens), d.text_tokens)
        padded[0, :count] = tokens[:count]
        mask[0, :count] = 0.0
        k, v = self._run('encode_text', text=padded)
        return OnnxText(k, v, mask)

    def embed_reference(self, latent: NDArray[np.float32]) -> Pair:
        """See `Backend.embed_reference`."""
        k, v = self._run('embed_reference', latent=latent[None])
        return k, v

    def _forward(self, latent: NDArray[np.float32], level: float, audio: Pair,
                 text: OnnxText, cache: OnnxCache) -> list[NDArray[np.float32]]:
        return self._run('denoise', latent=latent[None], level=np.array([level], np.float32),
                         previous=cache.previous, audio_k=audio[0], audio_v=audio[1],
                         text_k=text.k, text_v=text.v, text_mask=text.mask, cache_k=cache.rotated,
                         cache_v=cache.v, cache_mask=cache.mask)

    def denoise(self, latent: NDArray[np.float32], level: float, audio: Pair,
                text: OnnxText, cache: OnnxCache) -> NDArray[np.float32]:
        """See `Backend.denoise`."""
        return self._forward(latent, level, audio, text, cache)[0][0]

    def commit(self, latent: NDArray[np.float32], level: float, audio: Pair,
               text: OnnxText, cache: OnnxCache) -> Pair:
        """See `Backend.commit`; the same graph as `denoise`, whose velocity is not used."""
        _, k, v = self._forward(latent, level, audio, text, cache)
        return k, v

    def compress(self, latents: NDArray[np.float32], cache: OnnxCache) -> Pair:
        """See `Backend.compress`."""
        reference_k, reference_v = cache.take('reference', 0)
        k, v = self._run('compress', latents=latents[None], reference_k=reference_k,
                         reference_v=reference_v)
        return k, v

    def decode(self, latent: NDArray[np.float32], cache: OnnxCache) -> NDArray[np.uint8]:
        """See `Backend.decode`."""
        frames = self._run('decode', latent=latent[None], previous=cache.previous,
                           reference=cache.reference, last=cache.last, picture=cache.picture)[0][0]
        cache.last = frames[None, -1]
        return frames
