# SPDX-License-Identifier: Apache-2.0
"""Runs a wan model: the sibling of `backends.base.Backend` that works block by block on a device.

The stream, the conditioning bank and the visual memory use it as they use the compact backends;
what differs is that one call makes ``chunk_latents`` latent frames, which stay on the device, and
that decoding runs on a stream of its own (or a second card) beside what comes after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan import fp8
from interactive_avatar.generator.wan.cache import Entry, WanCache
from interactive_avatar.generator.wan.config import WanConfig
from interactive_avatar.generator.wan.light import LightDecoder
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.parallel import TwoCardRunner
from interactive_avatar.generator.wan.runner import (
    FP8_LINEARS,
    BlockRunner,
    quickest_products,
)
from interactive_avatar.generator.wan.timing import capture
from interactive_avatar.generator.wan.vae import DecoderState, StreamingDecoder
from interactive_avatar.media.clock import FRAMES_PER_CHUNK

PRECISIONS = ('float32', 'bf16', 'fp8')
TextCache = tuple[Tensor, Tensor]
"""A prompt's keys and values in every layer, [L, 1, tokens, H, hw]."""
AudioCache = tuple[Tensor, Tensor]
"""A block's audio keys and values in every layer, [L, latents, tokens, H, hw]."""

DECODER_BYTES_PER_PIXEL = 9_000
"""Work memory of the decoder in bf16 per pixel of the picture, for a block of three latents."""


@dataclass(frozen=True)
class Options:
    """How a wan model is run.

    Attributes:
        device: cuda, cuda:N or cpu; cuda where there is one by default.
        decode_device: where frames are decoded; the same by default, cuda:1 for a second card.
        precision: float32, bf16, or fp8 (bf16 with 8-bit matrix products in the layers, where
            they are quicker).
        compiled: torch.compile the layers; costs half a minute at the start. By default on CUDA.
        graphs: replay CUDA graphs once the memory is full. By default on CUDA.
        cards: 2 to split the transformer's passes with a second card (`parallel`), which also
            decodes: decode_device, by default the first one that is not ``device``.
        share: of a split pass that is the first card's.
        alone: passes of a block that the first card runs by itself while the second decodes,
            counted from the clean pass: 1 where a block's frames are waited for before the next
            block is begun, as a stream does; as many as decoding takes where they are not.
    """

    device: str = ''
    decode_device: str = ''
    precision: str = 'bf16'
    compiled: bool | None = None
    graphs: bool | None = None
    cards: int = 1
    share: float = 0.5
    alone: int = 1

    def resolved(self) -> Options:
        """With the defaults of this machine filled in.

        Raises:
            ModelError: if a choice cannot be had here.
        """
        device = self.device or ('cuda' if torch.cuda.is_available() else 'cpu')
        cuda = device.startswith('cuda')
        if cuda and not torch.cuda.is_available():
            raise ModelError(f'device {device!r} was asked for, but PyTorch sees no GPU here; '
                             f"install a CUDA build of torch, or give device 'cpu'")
        if self.precision not in PRECISIONS:
            raise ModelError(f'precision {self.precision!r} is unknown; use one of '
                             f'{", ".join(PRECISIONS)}')
        if self.precision == 'fp8' and cuda and not fp8.supported(torch.device(device)):
            raise ModelError(
                f'precision fp8 needs a card of compute capability 8.9 or newer; this one has '
                f'{".".join(map(str, torch.cuda.get_device_capability(device)))}: use bf16')
        return replace(self, device=device, decode_device=self._second(device),
                       compiled=cuda if self.compiled is None else self.compiled,
                       graphs=cuda if self.graphs is None else self.graphs)

    def _second(self, device: str) -> str:
        """Where frames are decoded, which with two cards is the second one."""
        if self.cards not in (1, 2):
            raise ModelError(f'cards {self.cards} cannot be used: give 1, or 2 to split the '
                             f'transformer between two cards')
        if not 0.0 < self.share < 1.0 or self.alone < 0:
            raise ModelError(f'share {self.share} must lie between 0 and 1, and alone '
                             f'{self.alone} be 0 or more')
        try:
            asked = torch.device(self.decode_device or device)
        except RuntimeError as error:
            raise ModelError(f'decode_device {self.decode_device!r} is no device: give cuda:1 for '
                             f'the second card, cpu, or nothing for {device!r}') from error
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.cards == 1 or not device.startswith('cuda'):
            if asked.type == 'cuda' and (asked.index or 0) >= count:
                raise ModelError(f'decode_device {self.decode_device!r} was asked for, but '
                                 f'PyTorch sees {count} GPUs here: leave it out, or make another '
                                 f'visible (CUDA_VISIBLE_DEVICES)')
            return self.decode_device or device
        first = torch.device(device).index or 0
        if count < 2:
            raise ModelError(f'cards 2 was asked for, but PyTorch sees one GPU here '
                             f'({torch.cuda.get_device_name(first)}): give cards 1, or make '
                             f'another visible (CUDA_VISIBLE_DEVICES)')
        second = self.decode_device or f'cuda:{0 if first else 1}'
        index = torch.device(second).index or 0
        if not second.startswith('cuda') or index == first or index >= count:
            raise ModelError(f'cards 2 needs a second GPU as decode_device, not {second!r} beside '
                             f'{device!r}; PyTorch sees cuda:0 to cuda:{count - 1}')
        ours, other = (torch.cuda.get_device_capability(i) for i in (first, index))
        if ours != other:
            raise ModelError(f'cards 2 needs two GPUs of one kind; {device!r} has compute '
                             f'capability {ours[0]}.{ours[1]}, {second!r} {other[0]}.{other[1]}: '
                             f'give cards 1 and decode_device {second!r} to decode there')
        return second


def parameter_count(config: WanConfig) -> int:
    """Weights of the transformer with all that is added to it."""
    with torch.device('meta'):
        return sum(p.numel() for p in WanTransformer(config).parameters())


def required_bytes(config: WanConfig, precision: str = 'bf16') -> dict[str, int]:
    """Device memory that a stream needs, by part; `sum` of the values is the whole."""
    n, memory, wide = config.network, config.memory, 4 if precision == 'float32' else 2
    weights = parameter_count(config) * wide
    if precision == 'fp8':
        # Of the rest bf16 may be quicker on some card (`runner.quickest_products`).
        block = 3 * n.width * n.width + n.width * n.ffn_width
        weights -= n.layers * block
    per_token = 2 * n.layers * n.width * wide
    frames = (1 + memory.adjacent) * config.frame_tokens
    entries = (memory.short + memory.long) * memory.entry_tokens
    cached = (frames + entries) * per_token
    working = (frames + entries + config.block_tokens * 3 // 2) * per_token
    prompts = 8 * n.text_tokens * per_token
    hidden = config.block_tokens * (n.ffn_width + 6 * n.width) * 4
    decoding = (DECODER_BYTES_PER_PIXEL * config.picture_px ** 2 * config.chunk_latents // 3
                * wide // 2)
    return {'weights': weights, 'cache': cached, 'context': working, 'prompts': prompts,
            'layers': hidden, 'decoder': decoding}


def check_memory(config: WanConfig, options: Options) -> None:
    """Refuse before loading what does not fit.

    Raises:
        ModelError: says how much is needed, by part, and how much is free.
    """
    if torch.device(options.device).type != 'cuda':
        return
    parts = required_bytes(config, options.precision)
    _check_card(config, options, options.device, parts)
    if options.cards == 2:  # the cache and all but one prompt stay on the first
        _check_card(config, options, options.decode_device, {
            name: size for name, size in parts.items() if name not in ('cache', 'prompts')})


def _check_card(config: WanConfig, options: Options, card: str, parts: dict[str, int]) -> None:
    needed, (free, _) = sum(parts.values()), torch.cuda.mem_get_info(torch.device(card))
    if needed > free:
        listed = ', '.join(f'{name} {size / 2**30:.1f}' for name, size in parts.items())
        raise ModelError(
            f'{config.name} at {config.picture_px}×{config.picture_px} in {options.precision} '
            f'needs about {needed / 2**30:.1f} GiB of GPU memory ({listed}), but '
            f'{free / 2**30:.1f} GiB are free on {card}: stop what else uses the card, '
            f'use precision fp8, or import the weights with a smaller --picture-px')


class Decoding:
    """Frames on their way to the host."""

    def __init__(self, frames: Tensor, event: Any) -> None:
        self._frames, self._event = frames, event

    def result(self) -> NDArray[np.uint8]:
        """uint8 [4 · latents, H, W, 3]; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        array: NDArray[np.uint8] = self._frames.numpy()
        return array


class WanBackend:
    """One model on one device (two with ``decode_device`` or ``cards``).

    Args:
        network: transformer in float32 or bf16, on any device.
        decoder: its VAE decoder.
        options: how to run.
        encode_picture: frames uint8 [n, H, W, 3] -> latent float32 [C, h, w]; None where streams
            start from a latent (benchmarks).
    """

    name = 'torch'

    def __init__(self, network: WanTransformer, decoder: StreamingDecoder | LightDecoder,
                 options: Options,
                 encode_picture: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None
                 ) -> None:
        self.options = options = options.resolved()
        self.config = network.config
        self.device = torch.device(options.device)
        self.decode_device = torch.device(options.decode_device)
        dtype = torch.float32 if options.precision == 'float32' else torch.bfloat16
        self.dtype = dtype
        self.network = network.to(self.device, dtype).eval().requires_grad_(False)
        self._products_ms: dict[str, dict[str, float]] = {}
        if options.precision == 'fp8' and not any(
                isinstance(module, fp8.Fp8Linear) for module in self.network.layers[0].modules()):
            # Chosen before weights are quantised, so that none is held twice; what another backend
            # has quantised, or not, stays as it chose.
            if self.device.type == 'cuda':
                self._products_ms = quickest_products(self.network, bool(options.compiled))
            fp8.quantise_linears(self.network.blocks, FP8_LINEARS, {
                name: next(iter(times)) for name, times in self._products_ms.items() if times})
        self.runner: BlockRunner
        if options.cards == 2:
            self.runner = TwoCardRunner(self.network, self.decode_device, bool(options.compiled),
                                        bool(options.graphs), options.share, options.alone)
        else:
            self.runner = BlockRunner(self.network, bool(options.compiled), bool(options.graphs))
        if self.device.type == 'cuda':
            # Shapes never change; the search for kernels pays at once.
            torch.backends.cudnn.benchmark = True
        self.decoder = decoder.to(self.decode_device, dtype).eval().requires_grad_(False)
        if self.decode_device.type == 'cuda':
            self.decoder.fuse()
        self._encode_picture = encode_picture
        self._decode_stream: Any = None
        if self.decode_device.type == 'cuda':
            # Frames have the right of way: who looks at them waits for them. Not where the card
            # has a share of the transformer, for which the other card waits in every layer.
            self._decode_stream = torch.cuda.Stream(self.decode_device,
                                                    priority=0 if options.cards == 2 else -1)
        c = self.config
        self._decode_in = torch.zeros((c.chunk_latents, *c.latent_shape),
                                      device=self.decode_device)
        self._decode_graph: Any = None
        self._decode_out: Tensor | None = None
        self._graph_state: DecoderState | None = None
        self._empty_prompt: TextCache | None = None
        self._group = torch.zeros((1, c.memory.group, *c.latent_shape), device=self.device,
                                  dtype=dtype)
        self._reference: Entry | None = None
        self._features: Tensor | None = None
        self._hear_graph: Any = None
        self._heard: Tensor | None = None
        self._compress_graph: Any = None
        self._compressed: Tensor | None = None

    def tune(self) -> dict[str, Any]:
        """Choose the quickest kernels for this device, once; returns what was chosen."""
        c = self.config
        found: dict[str, Any] = self.runner.tune()
        found['products'] = fp8.ways_of(self.network.layers[0], FP8_LINEARS)
        found['products_ms'] = self._products_ms
        if self.decode_device.type == 'cuda':
            found['convolutions'] = self.decoder.tune(torch.zeros(
                (c.chunk_latents, *c.latent_shape), device=self.decode_device))
        return found

    @torch.no_grad()
    def warm_up(self) -> None:
        """Compile and capture all that a stream will run, so that none of its chunks waits."""
        c, n = self.config, self.config.network
        cache = self.new_cache()

        def entry(tokens: int) -> Entry:
            shape = (n.layers, tokens, n.heads, n.head_width)
            return (torch.zeros(shape, device=self.device, dtype=self.dtype),
                    torch.zeros(shape, device=self.device, dtype=self.dtype))

        text = self._still_text()
        window = FRAMES_PER_CHUNK + 2 * c.audio.margin_frames
        audio = self.encode_audio(np.zeros((
            c.chunk_latents, window, c.audio.feature_layers, c.audio.feature_width), np.float32))
        cache.place('reference', 0, self.embed_reference(np.zeros(c.latent_shape, np.float32)))
        state = DecoderState()
        latents = self.generate(text, audio, cache, 0)
        self.decode(latents[:1], state).result()
        for _ in range(2):
            self.decode(latents, state).result()
        self.commit(latents)
        self.compress(np.zeros((c.memory.group, *c.latent_shape), np.float32), cache)
        for kind, count, tokens in (('adjacent', c.memory.adjacent, c.frame_tokens),
                                    ('short', c.memory.short, c.memory.entry_tokens)):
            for _ in range(count):
                cache.push(kind, entry(tokens))
        for slot in range(c.memory.long):
            cache.place('long', slot, entry(c.memory.entry_tokens))
        self.generate(text, audio, cache, 0)
        self.finish()

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)

    # What the memory and the conditioning bank ask for ---------------------------------------

    def new_cache(self) -> WanCache:
        """See `Backend.new_cache`."""
        return WanCache(self.config, self.device, self.dtype)

    def encode_image(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Frames uint8 [n, H, W, 3], the first of which counts -> latent float32 [C, h, w].

        Raises:
            ModelError: if the backend was made without a VAE encoder.
        """
        if self._encode_picture is None:
            raise ModelError('this wan backend has no VAE encoder; open the model from its folder')
        return self._encode_picture(frames)

    @torch.no_grad()
    def encode_text(self, tokens: NDArray[np.float32]) -> TextCache:
        """See `Backend.encode_text`; [n, text width]."""
        pairs = self.network.text_cache(self._tensor(tokens)[None])
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])

    @torch.no_grad()
    def encode_audio(self, features: NDArray[np.float32]) -> AudioCache | None:
        """Wav2Vec2 windows [latents, window, layers, width] -> the block's keys and values."""
        if self.network.audio_projector is None:
            return None
        given = self._tensor(features)
        if not (self.options.graphs and self.device.type == 'cuda'):
            pair = self._hear(given)
        else:
            # Hundreds of small kernels, which take longer to launch than to run.
            if self._features is None or self._features.shape != given.shape:
                self._features = given.clone()
                self._hear_graph, self._heard = capture(
                    lambda: self._hear(cast(Tensor, self._features)))
            self._features.copy_(given)
            self._hear_graph.replay()
            pair = cast(Tensor, self._heard).clone()
        return pair[0], pair[1]

    def _hear(self, features: Tensor) -> Tensor:
        pairs = self.network.audio_cache(features)
        return torch.stack([torch.stack([k for k, _ in pairs]),
                            torch.stack([v for _, v in pairs])])

    def use_empty_prompt(self, text: TextCache) -> None:
        """The prompt under which the reference and memory entries are run: the empty one, as in
        the unconditional half of Wan's training."""
        self._empty_prompt = text

    def _still_text(self) -> TextCache:
        if self._empty_prompt is None:
            n = self.config.network
            self._empty_prompt = self.encode_text(np.zeros((1, n.text_width), np.float32))
        return self._empty_prompt

    @torch.no_grad()
    def embed_reference(self, latent: NDArray[np.float32]) -> Entry:
        """See `Backend.embed_reference`; [C, h, w]."""
        tokens = self.network.embed(self._tensor(latent)[None, None])[:, 0]
        return self.runner.still(tokens, self._still_text(), None)

    def _compress(self) -> Tensor:
        tokens = self.network.compressor(self._group, self.network.embed)
        return torch.stack(self.runner.still(tokens, self._still_text(), self._reference))

    @torch.no_grad()
    def compress(self, latents: NDArray[np.float32], cache: WanCache) -> Entry:
        """See `Backend.compress`; [group, C, h, w]."""
        reference = cache.take('reference', 0)
        if self._reference is None:
            self._reference = reference
        else:
            for own, given in zip(self._reference, reference, strict=True):
                own.copy_(given)
        self._group.copy_(self._tensor(latents)[None])
        if not (self.options.graphs and self.device.type == 'cuda'):
            pair = self._compress()
        else:
            if self._compress_graph is None:
                self._compress_graph, self._compressed = capture(self._compress)
            self._compress_graph.replay()
            pair = cast(Tensor, self._compressed).clone()
        return pair[0], pair[1]

    # A block ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, text: TextCache, audio: AudioCache | None, cache: WanCache,
                 seed: int) -> Tensor:
        """Make the next block: few-step sampling as in `sampler.sample`, on the device.

        Args:
            seed: of the block's noise.

        Returns:
            latents float32 [F, C, h, w].
        """
        c = self.config
        self.runner.condition(text, audio)
        self.runner.see(cache)
        random = torch.Generator(self.device).manual_seed(seed)

        def noise() -> Tensor:
            return torch.randn((1, c.chunk_latents, *c.latent_shape), generator=random,
                               device=self.device)

        x = clean = noise()
        for index, level in enumerate(c.sampler.levels):
            clean = x - level * self.runner.forward(x, level)
            if index + 1 < len(c.sampler.levels):
                following = c.sampler.levels[index + 1]
                x = (1.0 - following) * clean + following * noise()
        return clean[0]

    def commit(self, latents: Tensor) -> list[Entry]:
        """Keys and values of each latent of the block just generated, [F, C, h, w]."""
        level = self.config.sampler.commit_level
        x = latents[None]
        if level:
            x = (1.0 - level) * x + level * torch.randn_like(x)
        return self.runner.commit(x, level)

    @torch.no_grad()
    def decode(self, latents: Tensor, state: DecoderState) -> Decoding:
        """Start decoding [F, C, h, w]; returns at once, goes on beside what is called next."""
        if self._decode_stream is None:
            return Decoding(self.decoder(latents.to(self.decode_device), state).cpu(), None)
        made = torch.cuda.Event()
        made.record(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.decode_device), torch.cuda.stream(self._decode_stream):
            self._decode_stream.wait_event(made)
            if self.decode_device == self.device:
                latents.record_stream(self._decode_stream)
            frames = self._decode(latents.to(self.decode_device, non_blocking=True), state)
            host = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=True)
            host.copy_(frames, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        return Decoding(host, done)

    def _decode(self, latents: Tensor, state: DecoderState) -> Tensor:
        usual = state.started and latents.shape == self._decode_in.shape
        if not (self.options.graphs and usual):
            return self.decoder(latents, state)
        self._decode_in.copy_(latents)
        if self._graph_state is not state:
            # The graph's buffers are one stream's; another stream's are carried over.
            if self._graph_state is None:
                self._graph_state = state
            else:
                self._graph_state.assign(state)
        if self._decode_graph is None:
            kept = state.copy()
            self._decode_graph, self._decode_out = capture(
                lambda: self.decoder(self._decode_in, cast(DecoderState, self._graph_state)))
            self._graph_state.assign(kept)
        self._decode_graph.replay()
        if self._graph_state is not state:
            state.assign(self._graph_state)
        return cast(Tensor, self._decode_out)

    def finish(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        if self.decode_device.type == 'cuda':
            torch.cuda.synchronize(self.decode_device)
