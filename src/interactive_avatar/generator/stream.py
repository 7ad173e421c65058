# SPDX-License-Identifier: Apache-2.0
"""The avatar's video stream: 160 ms of speech in, four frames and their sound out, for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
    Decoded,
    MemoryJob,
)
from interactive_avatar.generator.blinking import CALM_CHUNKS, BlinkSchedule
from interactive_avatar.generator.conditioning import ConditioningBank
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.memory import (
    KEY_FRAME_POLICIES,
    History,
    MemorySnapshot,
    VisualMemory,
)
from interactive_avatar.generator.model import ModelError, ModelFiles
from interactive_avatar.generator.prompts import (
    WorldState,
    passing_prompt,
    somebody_there,
    stable_prompt,
)
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES, FRAME_MS, SAMPLE_RATE_HZ
from interactive_avatar.media.mel import MEL_FLOOR_LN, MEL_HISTORY_SAMPLES, log_mel
from interactive_avatar.media.picture import check_reference, fit_square, read_image

MEL_MS = 10
MELS_PER_CHUNK = CHUNK_MS // MEL_MS
"""Mel frames of a chunk."""


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
        seconds: time spent per stage (audio, denoise, decode, commit, memory) and their sum
            (total), which is more than has passed where stages lie beside each other.
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
    # Of the next chunk alone, see `passing_prompt`.
    passing: str | None = None
    # Number of the first chunk under the prompt, and what the last chunk had of a blink.
    since: int = -CALM_CHUNKS
    blink: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A stream between two chunks, in host memory and of no backend."""

    memory: MemorySnapshot
    mel: NDArray[np.float32]
    heard: NDArray[np.int16]
    index: int
    prompt: str
    passing: str | None = None
    since: int = -CALM_CHUNKS
    blink: int = 0


@dataclass(frozen=True)
class Hearing:
    """Where a stream stands in its sound, of no backend: see `Snapshot`."""

    mel: NDArray[np.float32]
    heard: NDArray[np.int16]
    index: int


@dataclass(frozen=True)
class BegunChunk:
    """A chunk whose job is ready for the backend; see `AvatarStream.begin`."""

    job: ChunkJob
    mel: NDArray[np.float32]
    speech: NDArray[np.int16]
    seconds: float


class AvatarStream:
    """One avatar's stream; see `open`. Not thread-safe: step, submit, switch and prepare from one
    thread or behind a lock.

    A chunk is generated with one chunk of lookahead: `step` returns the frames of the speech given
    the call before. With a shorter `lookahead_ms` its frames and sound belong to speech that is
    newer by the difference, and what the network would have heard ahead is the last 10 ms held.
    """

    # Of a stream as it is opened by default, for those who plan before they have one.
    lookahead_chunks = 1
    overlaps = False
    """Whether `submit` may answer before the chunk is there."""

    def __init__(self, backend: Backend, reference: NDArray[np.uint8], prompt: str,
                 encode_text: Callable[[str], NDArray[np.float32]], seed: int = 0,
                 key_frames: str = 'dynamic', bank: ConditioningBank | None = None,
                 lookahead_ms: int = CHUNK_MS, blinks: bool = True) -> None:
        """Args: see `open`; encode_text: text to hidden states float32 [n, width]; bank: text
        caches shared with other streams of the backend."""
        if lookahead_ms not in range(0, CHUNK_MS + 1, FRAME_MS):
            raise ValueError(f'lookahead_ms is {lookahead_ms}: give a multiple of {FRAME_MS} '
                             f'from 0 to {CHUNK_MS}')
        config = backend.config
        self.overlaps = backend.overlaps
        self.lookahead_ms = lookahead_ms
        # Whose speech most of a returned chunk is: that of this call, or of the one before.
        self.lookahead_chunks = round(lookahead_ms / CHUNK_MS + 1e-9)
        self.config, self.backend, self._seed = config, backend, seed
        self._bank = bank or ConditioningBank(backend, encode_text)
        self._bank.prepare(prompt)
        self._blinks = BlinkSchedule(seed) if blinks and config.denoiser.blink_rows else None
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
             seed: int = 0, key_frames: str = 'dynamic', lookahead_ms: int = CHUNK_MS,
             blinks: bool = True, **backend_options: Any) -> AvatarStream:
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
            lookahead_ms: speech that is waited for before a frame is drawn, 0 to 160 in steps of
                40; less is sooner and worse for the lips. The wan size takes the default only.
            blinks: whether the avatar blinks now and then (`BlinkSchedule`), where the model has
                learnt to when it is told; the wan size pays no heed.
            **backend_options: passed to the backend (threads, int8, device).

        Raises:
            ModelError: if the model or the backend cannot be used.
            ValueError: if the picture, identity name or prompt is unusable.
        """
        from interactive_avatar.generator.wan.files import is_wan

        if is_wan(model):
            from interactive_avatar.generator.wan.stream import WanStream

            return WanStream.open(model, backend, reference, prompt, seed, key_frames,
                                  lookahead_ms, **backend_options)
        from interactive_avatar.generator.text import TextEncoder

        # Most of loading the text encoder is reading and checking its file. It takes as long as
        # all else, so it begins first.
        with ThreadPoolExecutor(1, 'text encoder') as beside:
            encoder = beside.submit(TextEncoder.load)
            files = ModelFiles.open(model)
            picture = reference_picture(files, files.config, reference)
            opened = open_backend(backend, files, **backend_options)
            opened.warm_up()
        return cls(opened, picture, prompt or stable_prompt(WorldState()),
                   encoder.result().encode, seed, key_frames,
                   lookahead_ms=lookahead_ms, blinks=blinks)

    @property
    def prompt(self) -> str:
        """The prompt of the next chunk."""
        return self._state.prompt

    @property
    def memory(self) -> VisualMemory:
        """The stream's visual memory, to look at."""
        return self._state.memory

    def prepare(self, prompt: str) -> None:
        """Compute a prompt's text cache ahead of need, and that of the moment in which the prompt
        of now gives way to it."""
        self._passing(prompt)
        self._bank.prepare(prompt)

    def switch(self, prompt: str) -> None:
        """Use another prompt from the next chunk on; the visual caches stay as they are."""
        passing = self._passing(prompt)
        self._bank.prepare(prompt)
        self._state.prompt, self._state.passing = prompt, passing
        self._state.since = self._state.index

    def _passing(self, prompt: str) -> str | None:
        """What is told in the first chunk after a switch to a prompt, if it is something of its
        own; in the bank now."""
        passing = None
        if self.config.denoiser.passing:
            passing = passing_prompt(self._state.prompt, prompt)
        if passing is not None:
            self._bank.prepare(passing)
        return passing

    def step(self, speech: NDArray[np.int16],
             shown: Callable[[Chunk], None] | None = None) -> Chunk:
        """Make the next chunk.

        Args:
            speech: int16 [2560], 16 kHz mono; zeros in silence.
            shown: called with the chunk as soon as its frames are there, where the backend can
                tell, perhaps from another thread, while the chunk is still being committed to
                the memory.

        Returns:
            The chunk whose sound was given the call before (silence in the first call).

        Raises:
            ValueError: on another type or length.
        """
        begun = self._shown_to(shown, self.begin(speech))
        result, = self.backend.chunks([begun.job])
        chunk, work = self.finish(begun, result)
        if work is not None:
            spent_s = self._remember(work)
            chunk.seconds['memory'] += spent_s
            chunk.seconds['total'] += spent_s
        return chunk

    def submit(self, speech: NDArray[np.int16],
               shown: Callable[[Chunk], None] | None = None) -> Future[Chunk]:
        """`step` for those who need not wait: the next chunk may be given while the pictures of
        this one are still being decoded, which takes the other core where the stream overlaps.

        At most one chunk is on its way when this returns; its pixels are those of `step`. If a
        picture cannot be decoded, the chunk fails and the stream goes on after it, from the frame
        that was shown last. `snapshot`, `restore` and `close` wait for what is on its way.

        Args: as for `step`.

        Returns:
            The chunk to come; there already where the stream does not overlap. What is to be done
            when it comes is called in the thread that decodes.

        Raises:
            ValueError: see `step`. If hearing, sampling or committing fails, the stream stands
                before this chunk, as after a failed `step`.
        """
        coming: Future[Chunk] = Future()
        coming.set_running_or_notify_cancel()
        if not self.overlaps:
            coming.set_result(self.step(speech, shown))
            return coming
        begun = self._shown_to(shown, self.begin(speech))
        begun = replace(begun, job=replace(begun.job, ahead=True))
        result, = self.backend.chunks([begun.job])
        assert result.decoding is not None
        index, prompt, sound = self._state.index, self._state.prompt, self._sound_of(begun)
        seconds, work = self._follow(begun, result)
        if work is not None:
            seconds['memory'] += self._remember(work)

        def deliver(decoding: Future[Decoded]) -> None:
            error = decoding.exception()
            if error is not None:
                coming.set_exception(error)
                return
            decoded = decoding.result()
            seconds['decode'] = decoded.seconds
            seconds['total'] = sum(seconds.values())
            coming.set_result(Chunk(index, decoded.frames, sound, prompt, seconds))

        result.decoding.add_done_callback(deliver)
        return coming

    def _shown_to(self, shown: Callable[[Chunk], None] | None, begun: BegunChunk) -> BegunChunk:
        """The same, with a job that tells ``shown``."""
        if shown is None:
            return begun
        index, prompt, sound = self._state.index, self._state.prompt, self._sound_of(begun)
        return replace(begun, job=replace(begun.job, shown=lambda frames: shown(
            Chunk(index, frames, sound, prompt))))

    def _remember(self, work: MemoryJob) -> float:
        """Let the backend remember; the seconds that took."""
        started_s = time.perf_counter()
        self.backend.remember([work])
        return time.perf_counter() - started_s

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
        job = ChunkJob(self.audio_window(mel), self.noise(state.index),
                       self._bank.prepare(state.passing or state.prompt), state.memory.cache,
                       blink=self._blink())
        return BegunChunk(job, mel, speech.copy(), time.perf_counter() - started_s)

    def _blink(self) -> int:
        """Which chunk of a blink comes next, from 1; 0 for none."""
        state = self._state
        return 0 if self._blinks is None else self._blinks.told(
            state.index, state.since, somebody_there(state.prompt), state.blink)

    def replace_silence(self, speech: NDArray[np.int16]) -> None:
        """Let speech take the place of the silence that was given last and is not shown yet.

        A stream waits a lookahead for every chunk. Where speech begins, two chunks of it are
        mostly there at once; so the silence before it need not be shown first.

        Args:
            speech: int16 [2560], as for `step`.

        Raises:
            ValueError: if what was given last is no silence, or the stream waits for less than a
                chunk.
        """
        if self.lookahead_ms != CHUNK_MS or self._state.heard.any():
            raise ValueError('there is no chunk of silence that waits to be shown')
        state = self._state
        state.mel = np.concatenate([state.mel[:-MELS_PER_CHUNK], log_mel(speech)])
        state.heard = speech.copy()

    def audio_window(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the audio encoder sees after log-mel frames float32 [n, 64], as [96, 64]: those
        ahead that are not waited for are the last one held."""
        held = MELS_PER_CHUNK - self.lookahead_ms // MEL_MS
        wide = np.concatenate([mel, np.repeat(mel[-1:], held, axis=0)])
        return wide[-self.config.audio.window_mels:]

    def noise(self, index: int) -> NDArray[np.float32]:
        """The noise of chunk ``index``: see `ChunkJob.noise`."""
        a = self.config.autoencoder
        return np.random.default_rng([self._seed, index]).standard_normal(
            (len(self.config.sampler.levels) + 1, a.latent_channels, a.latent_px, a.latent_px),
            np.float32)

    def finish(self, begun: BegunChunk, result: ChunkResult) -> tuple[Chunk, MemoryJob | None]:
        """The second part of `step`: the chunk, and what is to be remembered now, if anything."""
        assert result.frames is not None, 'the job went ahead'
        index, prompt, sound = self._state.index, self._state.prompt, self._sound_of(begun)
        seconds, work = self._follow(begun, result)
        seconds['total'] = sum(seconds.values())
        return Chunk(index, result.frames, sound, prompt, seconds), work

    def _follow(self, begun: BegunChunk,
                result: ChunkResult) -> tuple[dict[str, float], MemoryJob | None]:
        """Let the state follow a chunk that is made; its stages' seconds, and what is to be
        remembered now, if anything."""
        started_s = time.perf_counter()
        state = self._state
        work = state.memory.commit(result.latent)
        seconds = dict(result.seconds)
        seconds['audio'] = seconds.get('audio', 0.0) + begun.seconds
        seconds['memory'] = time.perf_counter() - started_s
        state.mel, state.heard = begun.mel, begun.speech
        state.index += 1
        state.passing, state.blink = None, begun.job.blink
        return seconds, work

    def _sound_of(self, begun: BegunChunk) -> NDArray[np.int16]:
        """The sound that belongs to the frames: that of the lookahead ago."""
        end = 2 * CHUNK_SAMPLES - self.lookahead_ms * SAMPLE_RATE_HZ // 1000
        both = np.concatenate([self._state.heard, begun.speech])
        return both[end - CHUNK_SAMPLES:end]

    @property
    def hearing(self) -> Hearing:
        """Where the stream stands in its sound; what it holds is never written to."""
        return Hearing(self._state.mel, self._state.heard, self._state.index)

    def snapshot(self) -> Snapshot:
        """The whole state between two chunks, for `restore` on any stream of the same model."""
        state = self._state
        return Snapshot(state.memory.snapshot(), state.mel, state.heard, state.index,
                        state.prompt, state.passing, state.since, state.blink)

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
                             snapshot.heard, snapshot.index, snapshot.prompt,
                             snapshot.passing, snapshot.since, snapshot.blink)

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
