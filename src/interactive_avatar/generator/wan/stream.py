# SPDX-License-Identifier: Apache-2.0
"""`AvatarStream` for the wan size: the same calls, 160 ms in and four frames out.

A block of ``chunk_latents`` chunks is made at once, when its speech and the lookahead have been
heard; the calls between two blocks hand out its frames. With the default of three, every third
call takes the time of a block and the others none, so a node needs ``ahead_chunks: 3``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from interactive_avatar.generator.conditioning import ConditioningBank
from interactive_avatar.generator.memory import KEY_FRAME_POLICIES
from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.prompts import WorldState, stable_prompt
from interactive_avatar.generator.stream import AvatarStream, Chunk, identity_picture
from interactive_avatar.generator.wan.audio import Wav2Vec2Features, window_samples
from interactive_avatar.generator.wan.backend import Options, WanBackend, check_memory
from interactive_avatar.generator.wan.files import WanFiles
from interactive_avatar.generator.wan.memory import WanMemory
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.text import Umt5Text
from interactive_avatar.generator.wan.vae import DecoderState, encode_picture, load_decoder
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES, FRAMES_PER_CHUNK
from interactive_avatar.media.picture import check_reference, fit_square

MAX_PROMPTS = 8
"""Prompts kept on the card; each takes 94 MB at 1.3B."""


@dataclass
class _WanState:
    """All that changes from chunk to chunk."""

    memory: WanMemory
    decoder: DecoderState
    heard: NDArray[np.int16]
    frames: NDArray[np.uint8]
    index: int
    prompt: str
    made_under: str


class WanStream(AvatarStream):
    """See `AvatarStream`; `open` is reached through `AvatarStream.open` with a wan model."""

    def __init__(self, backend: WanBackend, reference: NDArray[np.uint8], prompt: str,
                 encode_text: Callable[[str], NDArray[np.float32]],
                 hear: Callable[[NDArray[np.int16]], NDArray[np.float32]] | None = None,
                 seed: int = 0, key_frames: str = 'dynamic') -> None:
        """Args: see `AvatarStream.open`; encode_text: text to states float32 [n, text width];
        hear: `Wav2Vec2Features.windows`, None for a model without audio.

        Raises:
            ValueError: if the model's lookahead is not one chunk.
        """
        c = backend.config
        # The base class is typed for the compact size; what both offer is the same.
        self.config, self.backend, self._seed = cast(Any, c), cast(Any, backend), seed
        self.lookahead_chunks = c.chunk_latents
        if window_samples(c) % CHUNK_SAMPLES:
            raise ValueError(f'audio.left_context_ms {c.audio.left_context_ms} and lookahead_ms '
                             f'{c.audio.lookahead_ms} must be whole chunks of 160 ms')
        self._wan, self._hear = backend, hear
        self._bank = ConditioningBank(cast(Any, backend), encode_text, MAX_PROMPTS)
        # The unconditional prompt, under which the reference and memory entries are run.
        backend.use_empty_prompt(backend.encode_text(encode_text('')))
        latent = backend.encode_image(reference[None])
        decoder = DecoderState()
        # The reference is the VAE's first frame, so every later latent gives four.
        backend.decode(torch.from_numpy(latent)[None].to(backend.device), decoder).result()
        self._state = cast(Any, _WanState(
            WanMemory(backend, latent, KEY_FRAME_POLICIES[key_frames]()), decoder,
            np.zeros(window_samples(c), np.int16),
            np.zeros((0, c.picture_px, c.picture_px, 3), np.uint8), 0, prompt, prompt))
        self._bank.prepare(prompt)

    @classmethod
    def open(cls, model: Path | str = '', backend: str = 'torch',
             reference: NDArray[np.uint8] | str | None = None, prompt: str | None = None,
             seed: int = 0, key_frames: str = 'dynamic', lookahead_ms: int = CHUNK_MS,
             blinks: bool = True, **options: Any) -> WanStream:
        """Open a wan model folder; see `AvatarStream.open`.

        Args:
            lookahead_ms: only 160, the default, is taken.
            blinks: a wan model blinks when it likes; nothing is done.
            **options: of `backend.Options` (device, decode_device, cards, precision, ...), and
                ``text_device``, where UMT5 runs (cpu).

        Raises:
            ModelError: if the model or the device cannot be used.
            ValueError: if the picture, identity name or prompt is unusable.
        """
        if lookahead_ms != CHUNK_MS:
            raise ValueError(f'the wan size cannot take lookahead_ms {lookahead_ms}: leave it at '
                             f'{CHUNK_MS}')
        if backend != 'torch':
            raise ModelError(f"a wan model runs with backend 'torch', not {backend!r}: set the "
                             f'parameter backend')
        text_device = options.pop('text_device', 'cpu')
        try:
            run = Options(**options).resolved()
        except TypeError as error:
            raise ModelError(f'a wan model does not take this option: {error}') from error
        files = WanFiles.open(model)
        c = files.config
        picture = (identity_picture(files, reference)
                   if reference is None or isinstance(reference, str)
                   else check_reference(reference))
        check_memory(c, run)
        text = Umt5Text.load(files.component('text_encoder'), files.component('tokenizer'),
                             c.network, text_device)
        hear = (Wav2Vec2Features.load(files.component('audio_encoder'), c, run.device).windows
                if c.audio.enabled else None)
        vae, device = files.component('vae'), torch.device(run.device)
        if 'light_decoder' in c.components:
            from interactive_avatar.generator.wan.light import load_light_decoder
            decoder: Any = load_light_decoder(files.component('light_decoder'))
        else:
            decoder = load_decoder(vae, torch.device('cpu'), torch.float32)
        made = WanBackend(load_network(files), decoder, run,
                          lambda frames: encode_picture(vae, device, frames))
        made.tune()
        if device.type == 'cuda':
            made.warm_up()
        return cls(made, fit_square(picture, c.picture_px), prompt or stable_prompt(WorldState()),
                   text.encode, hear, seed, key_frames)

    def _passing(self, prompt: str) -> str | None:
        """See `AvatarStream._passing`: the wan size knows no such moments."""
        return None

    def replace_silence(self, speech: NDArray[np.int16]) -> None:
        """See `AvatarStream.replace_silence`; for blocks of one chunk."""
        state = cast(_WanState, self._state)
        if self.lookahead_chunks != 1 or state.heard[-CHUNK_SAMPLES:].any():
            raise ValueError('there is no chunk of silence that waits to be shown')
        state.heard = np.concatenate([state.heard[:-CHUNK_SAMPLES], speech])

    def step(self, speech: NDArray[np.int16],
             shown: Callable[[Chunk], None] | None = None) -> Chunk:
        """See `AvatarStream.step`; the frames belong to the speech of ``lookahead_chunks`` calls
        before, and ``shown`` is not called."""
        if speech.dtype != np.int16 or speech.shape != (CHUNK_SAMPLES,):
            raise ValueError(f'step needs int16 [{CHUNK_SAMPLES}], got {speech.dtype} '
                             f'{list(speech.shape)}')
        state, block = cast(_WanState, self._state), self.lookahead_chunks
        begin = time.perf_counter()
        state.heard = np.concatenate([state.heard[CHUNK_SAMPLES:], speech])
        seconds = {'audio': 0.0, 'denoise': 0.0, 'decode': 0.0, 'commit': 0.0}
        if state.index % block == 0:
            self._make_block(state, seconds)
        frames = state.frames[:FRAMES_PER_CHUNK]
        state.frames = state.frames[FRAMES_PER_CHUNK:]
        start = len(state.heard) - (block + 1) * CHUNK_SAMPLES
        chunk = Chunk(state.index, frames, state.heard[start:start + CHUNK_SAMPLES].copy(),
                      state.made_under, {**seconds, 'total': time.perf_counter() - begin})
        state.index += 1
        return chunk

    def _make_block(self, state: _WanState, seconds: dict[str, float]) -> None:
        backend, marks = self._wan, [time.perf_counter()]
        text = self._bank.prepare(state.prompt)
        audio = None if self._hear is None else backend.encode_audio(self._hear(state.heard))
        marks.append(time.perf_counter())
        seed = int(np.random.default_rng([self._seed, state.index]).integers(2**62))
        latents = backend.generate(text, audio, state.memory.cache, seed)
        decoding = backend.decode(latents, state.decoder)
        entries = backend.commit(latents)
        host = latents.cpu().numpy()  # waits for the steps and the commit, not for the decoder
        marks.append(time.perf_counter())
        for latent, entry in zip(host, entries, strict=True):
            state.memory.commit(latent, entry)
        marks.append(time.perf_counter())
        state.frames, state.made_under = decoding.result(), state.prompt
        marks.append(time.perf_counter())
        for name, span in zip(('audio', 'denoise', 'commit', 'decode'), np.diff(marks)):
            seconds[name] = float(span)

    def snapshot(self) -> Any:
        """See `AvatarStream.snapshot`."""
        return _copy(cast(_WanState, self._state))

    def restore(self, snapshot: Any) -> None:
        """See `AvatarStream.restore`."""
        if not isinstance(snapshot, _WanState):
            raise TypeError(f'{type(snapshot).__name__} is not a snapshot of a wan stream')
        self._state = cast(Any, _copy(snapshot))


def _copy(state: _WanState) -> _WanState:
    other = copy.copy(state)
    other.memory, other.decoder = state.memory.copy(), state.decoder.copy()
    return other


def load_network(files: WanFiles) -> WanTransformer:
    """The transformer of a model folder, on the host in the dtype it was stored in.

    Raises:
        ModelError: names the weights that do not fit.
    """
    from safetensors.torch import load_file

    try:
        state = load_file(str(files.weights))
    except Exception as error:  # safetensors raises its own kinds
        raise ModelError(f'{str(files.weights)!r} cannot be read: {error}; run '
                         f"'avatar import-weights' again") from error
    with torch.device('meta'):
        network = WanTransformer(files.config)
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(state)) + [
        name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        raise ModelError(f'{str(files.weights)!r} does not fit its config.json; it differs at '
                         f"{wrong[:5]}: run 'avatar import-weights' again")
    network.load_state_dict(state, assign=True)
    return network.eval()
