# SPDX-License-Identifier: Apache-2.0
"""Speed of the wan size on this machine, with random weights: speed does not depend on values.

``avatar bench wan``, or ``python -m interactive_avatar.generator.wan.bench`` where only torch and
numpy are installed. Each part is written to the JSON file as soon as it is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interactive_avatar.generator.wan.backend import Options, WanBackend, required_bytes
from interactive_avatar.generator.wan.cache import WanCache
from interactive_avatar.generator.wan.config import SIZES, WanConfig
from interactive_avatar.generator.wan.light import LightDecoder, LightDecoderConfig
from interactive_avatar.generator.wan.memory import WanMemory
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.parallel import TwoCardRunner
from interactive_avatar.generator.wan.runner import BlockRunner
from interactive_avatar.generator.wan.vae import (
    CausalConv,
    Conv2d,
    DecoderState,
    StreamingDecoder,
    UpConv,
    VaeConfig,
)
from interactive_avatar.media.clock import FRAMES_PER_CHUNK

GATE = 0.5
"""Memory gates are opened, so that entries are attended to and paid for."""
TINY_VAE = VaeConfig(base_dim=8)


def build(module: Callable[[], Any], device: torch.device, dtype: torch.dtype,
          seed: int = 0) -> Any:
    """A module with random weights, made on the device."""
    with torch.device('meta'):
        made = module()
    made = made.to_empty(device=device).to(dtype)
    random = torch.Generator(device).manual_seed(seed)
    for name, parameter in made.named_parameters():
        with torch.no_grad():
            if 'memory_gate' in name:
                parameter.fill_(GATE)
            elif parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=random)
            elif name.endswith(('norm_q.weight', 'norm_k.weight', 'norm.weight')):
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02, generator=random)
    for name, buffer in made.named_buffers():
        if name in ('latent_mean', 'latent_std'):
            values = VaeConfig().latents_mean if name == 'latent_mean' else \
                VaeConfig().latents_std
            buffer.copy_(torch.tensor(values))
    return made.eval().requires_grad_(False)


def transformer_flops(config: WanConfig, frames: int, entries: int) -> dict[str, float]:
    """Floating-point operations of one forward of a block at a context of so many tokens."""
    n, tokens = config.network, config.block_tokens
    linear = 4 * n.width ** 2 + 2 * n.width ** 2 + 2 * n.width * n.ffn_width
    keys = tokens + frames + entries + n.text_tokens
    if config.audio.enabled:
        linear += 2 * n.width ** 2
        keys += config.audio.tokens
    return {'products': 2.0 * n.layers * tokens * linear,
            'attention': 4.0 * n.layers * tokens * keys * n.width}


def decoder_flops(decoder: nn.Module, run: Callable[[], Any]) -> float:
    """Operations of the convolutions in one call of ``run``."""
    total, hooks = [0.0], []

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        weight: Any = module.weight
        channels = weight.shape[0]
        # The doubled picture's equal neighbours are seen once: 16 of 36 taps.
        share = 4 / 9 if isinstance(module, UpConv) and module.method == 'phases' else 1.0
        total[0] += share * 2.0 * weight.numel() * output.numel() / channels

    for module in decoder.modules():
        if isinstance(module, CausalConv | Conv2d | UpConv | nn.Conv2d):
            hooks.append(module.register_forward_hook(count))
    run()
    for hook in hooks:
        hook.remove()
    return total[0]


class Timer:
    """Milliseconds of a call on the device, the median of several."""

    def __init__(self, backend: WanBackend) -> None:
        self._backend = backend

    def __call__(self, run: Callable[[], Any], repeats: int = 7) -> float:
        run()
        times = []
        for _ in range(repeats):
            self._backend.finish()
            start = time.perf_counter()
            run()
            self._backend.finish()
            times.append(1000.0 * (time.perf_counter() - start))
        return float(np.median(times))


class Stream:
    """One endless stream of blocks, as `stream.WanStream` drives it, without text and speech."""

    def __init__(self, backend: WanBackend, seed: int = 0) -> None:
        c = backend.config
        random = np.random.default_rng(seed)
        self.backend, self._block = backend, 0
        self._random = random
        self.text = backend.encode_text(random.standard_normal(
            (c.network.text_tokens, c.network.text_width), np.float32))
        window = FRAMES_PER_CHUNK + 2 * c.audio.margin_frames
        self._features = random.standard_normal(
            (c.chunk_latents, window, c.audio.feature_layers, c.audio.feature_width), np.float32)
        reference = random.standard_normal(c.latent_shape, np.float32)
        self.memory = WanMemory(backend, reference)
        self.state = DecoderState()
        backend.decode(torch.from_numpy(reference)[None].to(backend.device), self.state).result()

    @property
    def cache(self) -> WanCache:
        """What the memory has put before the next block."""
        return self.memory.cache

    def fill(self) -> None:
        """Fill every slot of the memory with entries of random latents."""
        c, backend = self.backend.config, self.backend
        n = c.network
        shape = (n.layers, c.frame_tokens, n.heads, n.head_width)
        entry = (torch.randn(shape, device=backend.device, dtype=backend.dtype),
                 torch.randn(shape, device=backend.device, dtype=backend.dtype))
        memory = c.memory
        for _ in range(memory.adjacent + memory.group * (memory.short + memory.long)):
            self.memory.commit(self._random.standard_normal(c.latent_shape, np.float32), entry)

    def step(self) -> Any:
        """Make one block; returns its `Decoding`."""
        backend = self.backend
        audio = backend.encode_audio(self._features)
        latents = backend.generate(self.text, audio, self.cache, self._block)
        decoding = backend.decode(latents, self.state)
        entries = backend.commit(latents)
        host = latents.cpu().numpy()
        for latent, entry in zip(host, entries, strict=True):
            self.memory.commit(latent, entry)
        self._block += 1
        return decoding


def frames_per_s(stream: Stream, blocks: int, overlapped: bool) -> dict[str, float]:
    """Frames per second on the host over some blocks, and the times of single blocks.

    Args:
        overlapped: a block is begun before the frames of the last have arrived.
    """
    stream.step().result()
    stream.step().result()
    stream.backend.finish()
    marks, waiting, frames = [time.perf_counter()], None, 0
    for _ in range(blocks):
        decoding = stream.step()
        if overlapped:
            decoding, waiting = waiting, decoding
        if decoding is not None:
            frames += len(decoding.result())
        marks.append(time.perf_counter())
    if waiting is not None:
        frames += len(waiting.result())
    stream.backend.finish()
    whole = time.perf_counter() - marks[0]
    blocks_ms = 1000.0 * np.diff(marks)
    return {'frames_per_s': frames / whole, 'frames': float(frames),
            'block_p50_ms': float(np.percentile(blocks_ms, 50)),
            'block_p99_ms': float(np.percentile(blocks_ms, 99))}


def _allocated(device: torch.device) -> int:
    """Bytes that tensors hold on the device; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == 'cuda' else 0


def measure(backend: WanBackend, blocks: int, note: Callable[[str, Any], None]) -> Stream:
    """All figures of one backend."""
    c, timer = backend.config, Timer(backend)
    began = time.perf_counter()
    note('tuned', backend.tune())
    stream = Stream(backend)
    stream.fill()
    stream.step().result()
    stream.step().result()
    backend.finish()
    note('ready_s', time.perf_counter() - began)
    if backend.device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    note('serial', frames_per_s(stream, blocks, False))
    before = _allocated(backend.device)
    note('overlapped', frames_per_s(stream, blocks, True))
    note('memory_growth_mib', (_allocated(backend.device) - before) / 2**20)
    runner, cache = backend.runner, stream.cache
    latents = torch.randn((1, c.chunk_latents, *c.latent_shape), device=backend.device)
    level, steps = c.sampler.levels[0], len(c.sampler.levels)
    together = {}
    if isinstance(runner, TwoCardRunner) and runner.splits:
        alone = runner.forward_alone(latents, level).clone()
        note('relative_error_to_one_card',
             relative_error(runner.forward_together(latents, level), alone))
        together = {'forward_together': timer(lambda: runner.forward_together(latents, level))}
    # Of two cards' steps those before the first split one run alone, as the clean pass does.
    single = min(steps, max(0, backend.options.alone - 1)) if together else steps
    parts = {
        'forward': timer(lambda: BlockRunner.forward(runner, latents, level)), **together,
        'context': timer(lambda: runner.see(cache)),
        'commit': timer(lambda: backend.commit(latents[0])),
        'compress': timer(lambda: backend.compress(
            np.zeros((c.memory.group, *c.latent_shape), np.float32), cache)),
        'decode': timer(lambda: backend.decode(latents[0], stream.state).result())}
    per_block = {
        'denoise': (parts['forward'] * single
                    + parts.get('forward_together', 0.0) * (steps - single)),
        'commit': parts['commit'],
        'context': parts['context'],
        'memory': parts['compress'] * c.chunk_latents / c.memory.group, 'decode': parts['decode']}
    whole = sum(per_block.values())
    note('parts_ms', parts)
    note('shares_of_block', {name: value / whole for name, value in per_block.items()})
    ops = transformer_flops(c, cache.frame_tokens, cache.entry_tokens if runner.memory_on else 0)
    note('forward_tflop', {name: value / 1e12 for name, value in ops.items()})
    note('forward_tflops_reached', sum(ops.values()) / parts['forward'] / 1e9)
    note('context_tokens', {'frames': cache.frame_tokens, 'entries': cache.entry_tokens,
                            'own': c.block_tokens})
    if backend.device.type == 'cuda':
        note('memory_gib', {
            'allocated': torch.cuda.max_memory_allocated() / 2**30,
            'reserved': torch.cuda.max_memory_reserved() / 2**30,
            'estimate': sum(required_bytes(c, backend.options.precision).values()) / 2**30})
        if backend.decode_device != backend.device:
            note('second_card_gib', torch.cuda.memory_allocated(backend.decode_device) / 2**30)
    return stream


def first_frame(backend: WanBackend) -> float:
    """Seconds from a block's speech to its frames on the host, at the start of a stream."""
    Stream(backend).step().result()
    stream = Stream(backend)
    backend.finish()
    start = time.perf_counter()
    stream.step().result()
    return time.perf_counter() - start


def decoding(backend: WanBackend, note: Callable[[str, Any], None]) -> None:
    """Operations and pace of the VAE decoder; the convolutions alone are its floor."""
    c = backend.config
    latents = torch.zeros((c.chunk_latents, *c.latent_shape), device=backend.decode_device)
    state = DecoderState()
    backend.decoder(latents[:1], state)
    ops = decoder_flops(backend.decoder, lambda: backend.decoder(latents, state))
    note('decode_tflop', ops / 1e12)
    note('decode_tflops_reached',
         ops / Timer(backend)(lambda: backend.decoder(latents, state), 3) / 1e9)


def floor(section: dict[str, Any], peak: dict[str, float], precision: str,
          forwards: int, frames: int) -> dict[str, float]:
    """Milliseconds of a block if all its products ran as fast as the card's one large product.

    Args:
        section: of `measure` and `decoding`. peak: of `peaks`. precision: of the layers' products;
            attention and decoding run in bf16.
        forwards: of the transformer per block. frames: of a block.
    """
    wide = peak['bf16_tflops']
    narrow = peak.get('fp8_tflops', wide) if precision == 'fp8' else wide
    ops = section['forward_tflop']
    denoise = 1000.0 * forwards * (ops['products'] / narrow + ops['attention'] / wide)
    decode = 1000.0 * section['decode_tflop'] / wide
    return {'denoise_ms': denoise, 'decode_ms': decode,
            'frames_per_s': 1000.0 * frames / (denoise + decode)}


def peaks(device: torch.device) -> dict[str, float]:
    """What the card reaches on one large product of random numbers, TFLOP/s, and on a copy."""
    side = 8192
    a, b = (torch.randn((side, side), device=device, dtype=torch.bfloat16) for _ in range(2))
    runs: dict[str, Callable[[], Any]] = {'bf16': lambda: a @ b}
    from interactive_avatar.generator.wan import fp8
    if fp8.supported(device):
        small, scale = fp8.quantise(a)
        other, scale_b = fp8.quantise(b)
        runs['fp8'] = lambda: torch._scaled_mm(
            small, other.t(), scale_a=scale, scale_b=scale_b.t(), out_dtype=torch.bfloat16,
            use_fast_accum=True)
    found = {}
    for name, run in runs.items():
        run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            run()
        torch.cuda.synchronize()
        found[f'{name}_tflops'] = 2.0 * side ** 3 * 10 / (time.perf_counter() - start) / 1e12
    start = time.perf_counter()
    for _ in range(20):
        b.copy_(a)
    torch.cuda.synchronize()
    found['copy_tb_per_s'] = 20 * 4.0 * side ** 2 / (time.perf_counter() - start) / 1e12
    return found


def relative_error(made: Tensor, expected: Tensor) -> float:
    """‖made − expected‖ / ‖expected‖."""
    return float((made.float() - expected.float()).norm() / expected.float().norm())


@torch.no_grad()
def velocities(network: WanTransformer, dtype: torch.dtype) -> Tensor:
    """One forward of a whole clip on fixed input, for comparing precisions and layouts."""
    c = network.config
    device = network.patch_embedding.weight.device
    random = torch.Generator(device).manual_seed(5)
    x = torch.randn((1, c.chunk_latents, *c.latent_shape), generator=random, device=device)
    text = torch.randn((1, c.network.text_tokens, c.network.text_width), generator=random,
                       device=device)
    level = torch.full((1, 1), 0.75, device=device)
    return network(x.to(dtype), level, network.text_cache(text.to(dtype)))


@torch.no_grad()
def parity(network: WanTransformer) -> dict[str, float]:
    """One forward against diffusers at this shape, in the network's dtype and in float32.

    Raises:
        ImportError: without diffusers.
    """
    from diffusers import WanTransformer3DModel

    from interactive_avatar.generator.wan.weights import source_names
    c, n = network.config, network.config.network
    weight = network.patch_embedding.weight
    kind: Any = WanTransformer3DModel
    theirs = build(lambda: kind(
        num_attention_heads=n.heads, attention_head_dim=n.head_width, text_dim=n.text_width,
        freq_dim=n.frequency_width, ffn_dim=n.ffn_width, num_layers=n.layers),
        weight.device, weight.dtype)
    state = theirs.state_dict()
    for name, value in network.state_dict().items():
        for source, part in zip(source_names(name, 'diffusers'),
                                value.chunk(len(source_names(name, 'diffusers')))):
            if source in state:
                state[source].copy_(part.reshape(state[source].shape))
    random = torch.Generator(weight.device).manual_seed(5)
    x = torch.randn((1, c.chunk_latents, *c.latent_shape), generator=random,
                    device=weight.device)
    text = torch.randn((1, n.text_tokens, n.text_width), generator=random, device=weight.device)
    found = {}
    for name, dtype in (('as_run', weight.dtype), ('float32', torch.float32)):
        network.to(dtype)
        theirs.to(dtype)
        # The tables that no checkpoint holds were emptied by to_empty, and a cast rounds them.
        theirs.rope = type(theirs.rope)(n.head_width, (1, n.patch, n.patch), 1024).to(
            weight.device)
        expected = theirs(x.to(dtype).transpose(1, 2), torch.tensor([750.0], device=weight.device),
                          text.to(dtype), return_dict=False)[0].transpose(1, 2)
        # Audio attention adds something here: its weights are random. Left out, as in diffusers.
        found[name] = relative_error(velocities(network, dtype), expected)
    network.to(weight.dtype)
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns all that was noted."""
    began = time.perf_counter()
    config = replace(SIZES[args.size], picture_px=args.side or SIZES[args.size].picture_px)
    layouts = layouts_of(args)
    options = layouts[0][1]
    device = torch.device(options.device)
    result: dict[str, Any] = {
        'benchmark': 'wan', 'size': config.name, 'picture_px': config.picture_px,
        'weights': 'random', 'steps': len(config.sampler.levels), 'torch': torch.__version__,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
        'decode_device': options.decode_device}
    args.out.mkdir(parents=True, exist_ok=True)

    def noting(section: dict[str, Any], prefix: str) -> Callable[[str, Any], None]:
        def note(name: str, value: Any) -> None:
            section[name] = value
            print(f'[{time.perf_counter() - began:6.1f} s] {prefix}{name}: '
                  f'{json.dumps(rounded(value))}', flush=True)
            (args.out / 'wan.json').write_text(json.dumps(result, indent=1))
        return note

    top = noting(result, '')
    base = torch.bfloat16 if device.type == 'cuda' else torch.float32
    network = build(lambda: WanTransformer(config), device, base)
    vae = TINY_VAE if config.network.width < 512 else VaeConfig()
    top('parameters', sum(p.numel() for p in network.parameters()))
    if device.type == 'cuda':
        top('card_reaches', peaks(device))
    exact = None
    if not args.skip_parity:
        try:
            top('relative_error_to_diffusers', parity(network))
        except Exception as error:  # a comparison that cannot be made costs no measurement
            network.to(base)
            top('relative_error_to_diffusers',
                f'not measured: {type(error).__name__}: {error}')
        exact = velocities(network.float(), torch.float32)
        network.to(base)
        top('relative_error_to_float32', {str(base): relative_error(
            velocities(network, base), exact)})
    precisions = args.precisions.split(',')
    # The light decoder with the last precision; what is quantised stays so.
    cases = [(precision, False, layout) for precision in precisions for layout in layouts]
    cases += [(precisions[-1], True, layout) for layout in layouts] if args.light else []
    decoder: Any = None
    for precision, is_light, (layout, options) in cases:
        kind = f'{precision}+light decoder' if is_light else precision
        name, decode_device = kind + layout, torch.device(options.decode_device)
        section = result.setdefault(name, {})
        note = noting(section, f'{name}: ')
        backend = None
        try:
            if is_light:
                decoder = build(lambda: LightDecoder(
                    LightDecoderConfig.for_width(config.network.width)), decode_device, base)
            elif decoder is None:
                decoder = build(lambda: StreamingDecoder(vae), decode_device, base)
            opening = time.perf_counter()
            backend = WanBackend(network, decoder, replace(options, precision=precision))
            note('opened_s', time.perf_counter() - opening)
            if exact is not None and precision == 'fp8' and not is_light:
                note('relative_error_to_float32',
                     relative_error(velocities(network, backend.dtype), exact))
            measure(backend, args.blocks, note)
            if layout and 'overlapped' in result.get(kind, {}):
                note('ratio_to_one_card', section['overlapped']['frames_per_s']
                     / result[kind]['overlapped']['frames_per_s'])
            decoding(backend, note)
            if 'card_reaches' in result:
                note('floor', floor(section, result['card_reaches'], precision,
                                    len(config.sampler.levels) + 1,
                                    FRAMES_PER_CHUNK * config.chunk_latents))
            if not args.quick and precision == precisions[-1]:
                note('first_frame_s', first_frame(backend))
        except Exception as error:  # the other cases are still worth their time
            note('failed', f'{type(error).__name__}: {error}')
            if args.strict:
                raise
        # Graphs and caches go before those of the next case come.
        del backend
        gc.collect()
        if device.type == 'cuda':
            torch.cuda.empty_cache()
    top('seconds', time.perf_counter() - began)
    return result


def layouts_of(args: argparse.Namespace) -> list[tuple[str, Options]]:
    """What is to be measured of ways to use the cards: the end of a section's name, and options.

    Raises:
        ModelError: if one cannot be had here.
    """
    graphs = False if args.no_graphs else None
    found = []
    for cards in args.cards.split(','):
        if cards == '1':
            found.append(('', Options(args.device, args.decode_device, graphs=graphs)))
            continue
        for share in args.share.split(','):
            for alone in args.alone.split(','):
                found.append((f', {cards} cards, share {share}, alone {alone}', Options(
                    args.device, args.decode_device, graphs=graphs, cards=int(cards),
                    share=float(share), alone=int(alone))))
    return [(name, options.resolved()) for name, options in found]


def rounded(value: Any) -> Any:
    """Numbers to four digits, for reading."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f'{value:.4g}') if isinstance(value, float) else value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `run`."""
    parser.add_argument('--size', default='wan-1.3b', choices=sorted(SIZES))
    parser.add_argument('--side', type=int, default=0, help='of the picture, pixels')
    parser.add_argument('--device', default='', help='cuda, cuda:N or cpu')
    parser.add_argument('--decode-device', default='',
                        help='cuda:1 to decode on a second card (pipelined)')
    parser.add_argument('--cards', default='1',
                        help='2 to split the transformer between two cards; 1,2 for both')
    parser.add_argument('--share', default='0.5',
                        help="of a split pass that is the first card's; several with commas")
    parser.add_argument('--alone', default='1,2',
                        help='passes of a block that the first card runs by itself while the '
                             'second decodes, the clean pass first; several with commas')
    parser.add_argument('--no-graphs', action='store_true', help='without CUDA graphs')
    parser.add_argument('--precisions', default='bf16,fp8', help='of bf16, fp8, float32')
    parser.add_argument('--blocks', type=int, default=16, help='measured blocks of each kind')
    parser.add_argument('--light', action='store_true',
                        help='measure the light decoder too, with the last precision')
    parser.add_argument('--quick', action='store_true', help='leave out the first frame')
    parser.add_argument('--skip-parity', action='store_true',
                        help='leave out the comparison with diffusers and float32')
    parser.add_argument('--strict', action='store_true', help='stop at the first failure')


def main(argv: Sequence[str] | None = None) -> int:
    """Command line where only torch and numpy are installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('out/bench'))
    add_arguments(parser)
    run(parser.parse_args(argv))
    return 0


if __name__ == '__main__':
    sys.exit(main())
