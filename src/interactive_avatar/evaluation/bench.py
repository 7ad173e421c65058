# SPDX-License-Identifier: Apache-2.0
"""``avatar bench``: how fast, how regular, how true, on this machine.

Each benchmark prints a table, writes JSON with the machine it ran on, and draws a plot where
matplotlib is installed (extra `evaluate`).
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.report import machine, number, table, write_json
from interactive_avatar.generator.backends import BACKEND_NAMES
from interactive_avatar.media.audio import AudioFormatError, read_wav
from interactive_avatar.media.clock import CHUNK_MS, CHUNK_SAMPLES, SAMPLE_RATE_HZ
from interactive_avatar.media.picture import PictureError, read_image
from interactive_avatar.paths import resource
from interactive_avatar.run import add_graph_arguments

UTTERANCES = Path(__file__).parent / 'utterances'
WARM_UP_CHUNKS = 12
# The plan of a benchmark's prompts: switch so often, to pay for switching as a dialogue does.
CHUNKS_PER_PROMPT = 25
CHUNKS_PER_MINUTE = 60_000 // CHUNK_MS
RTF_AIM = 0.4
MEMORY_AIM_SHARE = 0.02


def rss_mib() -> float:
    """Resident memory of this process in MiB; NaN where the system does not say."""
    try:
        pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE') / 2**20
    except (OSError, ValueError, IndexError):
        return float('nan')


def speech_loop(seed: int = 0) -> Iterator[NDArray[np.int16]]:
    """Endless conversation: the demo user's sentences with pauses, int16 [2560] a time."""
    rng = np.random.default_rng(seed)
    sentences = [read_wav(path) for path in sorted(UTTERANCES.glob('*.wav'))]
    waiting = np.zeros(0, np.int16)
    while True:
        while waiting.size < CHUNK_SAMPLES:
            pause = np.zeros(int(rng.uniform(0.5, 3.0) * SAMPLE_RATE_HZ), np.int16)
            waiting = np.concatenate([waiting, sentences[rng.integers(len(sentences))], pause])
        yield waiting[:CHUNK_SAMPLES]
        waiting = waiting[CHUNK_SAMPLES:]


def reference_of(text: str) -> NDArray[np.uint8] | str:
    """A picture's pixels if ``text`` is a file, else the text as the name of an identity."""
    return read_image(Path(text)) if Path(text).is_file() else text


def open_stream(args: argparse.Namespace) -> Any:
    """Open an `AvatarStream` as the command line says; without a reference, the first identity."""
    from interactive_avatar.generator import AvatarStream
    from interactive_avatar.generator.prompts import WorldState, stable_prompt

    options: dict[str, Any] = {'model': str(resource(args.model)), 'backend': args.backend,
                               'prompt': stable_prompt(WorldState()), 'seed': args.seed,
                               'reference': reference_of(args.reference)
                               if args.reference else None}
    return AvatarStream.open(**options, **backend_options(args))


def backend_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says to the backend."""
    if args.backend == 'onnx':
        return {'threads': args.threads, 'int8': not args.float32,
                'overlap': not getattr(args, 'no_overlap', False)}
    options: dict[str, Any] = {}
    if getattr(args, 'precision', ''):
        options['precision'] = args.precision
    if args.backend == 'torch' and getattr(args, 'profile', False):
        options['profile'] = True
    if args.backend == 'torch' and getattr(args, 'compiled', False):
        options['compiled'] = True
    return options


def backend_names(text: str) -> str:
    """One backend or several with commas between, checked."""
    unknown = set(text.split(',')) - set(BACKEND_NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(f'{sorted(unknown)[0]!r} is none of '
                                         f'{", ".join(BACKEND_NAMES)}')
    return text


def _prompts() -> list[str]:
    from interactive_avatar.generator.prompts import WorldState, action_prompt, stable_prompt

    world = WorldState()
    return [stable_prompt(world), action_prompt('talk', world), stable_prompt(world),
            action_prompt('nod', world)]


def run_stream(stream: Any, chunks: int, paced: bool = False,
               each: Callable[[int, float], None] | None = None,
               overlap: bool = False) -> dict[str, Any]:
    """Drive a stream with conversation and changing prompts.

    Args:
        stream: an open stream.
        chunks: how many to make after warming up.
        paced: one chunk every 160 ms as in life; as fast as it goes if False.
        each: called after each chunk with (index, resident memory in MiB).
        overlap: begin a chunk while the pictures of the one before are being decoded.

    Returns:
        ``step_ms`` [chunks], how long each kept the next from being begun (or, if longer, the
        decoder from the next one's pictures); ``shown_ms`` [chunks], from the speech to the
        pictures; ``stages_ms`` {name: [chunks]}; ``rss_mib`` [chunks]; ``real_time_factor``, of
        all the time from the first speech to the last picture, but of the mean of ``step_ms``
        where the stream was paced.
    """
    speech, prompts = speech_loop(), _prompts()
    for prompt in prompts:
        stream.prepare(prompt)
    for _ in range(WARM_UP_CHUNKS):
        stream.step(next(speech))
    step_ms, shown_ms, memory = np.zeros(chunks), np.zeros(chunks), np.zeros(chunks)
    stages: dict[str, NDArray[np.float64]] = {}
    waiting: list[tuple[int, float, Future[Any]]] = []

    def shown(index: int, begin: float, chunk: Any) -> None:
        shown_ms[index] = shown_ms[index] or 1000.0 * (time.perf_counter() - begin)

    def take(index: int, begin: float, chunk: Any) -> None:
        shown(index, begin, chunk)  # where the backend has not told
        for name, seconds in chunk.seconds.items():
            if name != 'total':  # measured here from outside, with what lies between the stages
                stages.setdefault(name, np.zeros(chunks))[index] = 1000.0 * seconds
        if overlap:
            step_ms[index] = max(step_ms[index], 1000.0 * chunk.seconds.get('decode', 0.0))

    start = time.perf_counter()
    for index in range(chunks):
        if paced:
            time.sleep(max(0.0, start + index * CHUNK_MS / 1000 - time.perf_counter()))
        samples = next(speech)
        begin = time.perf_counter()
        if index % CHUNKS_PER_PROMPT == 0:
            stream.switch(prompts[index // CHUNKS_PER_PROMPT % len(prompts)])
        if overlap:
            waiting.append((index, begin, stream.submit(samples, partial(shown, index, begin))))
        else:
            chunk = stream.step(samples, partial(shown, index, begin))
        step_ms[index] = 1000.0 * (time.perf_counter() - begin)
        if not overlap:
            take(index, begin, chunk)
        while waiting and (index + 1 == chunks or waiting[0][2].done()):
            which, begun, coming = waiting.pop(0)
            take(which, begun, coming.result())
        memory[index] = rss_mib()
        if each:
            each(index, memory[index])
    spent_ms = step_ms.sum() if paced else 1000.0 * (time.perf_counter() - start)
    return {'step_ms': step_ms, 'shown_ms': shown_ms, 'stages_ms': stages, 'rss_mib': memory,
            'real_time_factor': metrics.real_time_factor(spent_ms, CHUNK_MS * chunks)}


def _progress(total: int, what: str) -> Callable[[int, float], None]:
    started = time.monotonic()
    told = [started]

    def each(index: int, memory: float) -> None:
        now = time.monotonic()
        if now - told[0] > 5.0 or index + 1 == total:
            told[0] = now
            print(f'{what}: {index + 1} of {total}, '
                  f'{(now - started) / (index + 1) * 1000:.0f} ms each, {memory:.0f} MiB',
                  file=sys.stderr, flush=True)

    return each


def bench_generator(args: argparse.Namespace) -> dict[str, Any]:
    """Time per chunk and stage of one backend, or of several with their ratios; or of a group
    of streams."""
    names = args.backend.split(',')
    results = []
    for name in names:
        one = copy.copy(args)
        one.backend = name
        if len(names) > 1:
            print(f'--- {name}')
        results.append(bench_group(one) if args.streams > 1 else bench_one(one))
    if len(results) == 1:
        return results[0]
    key = 'step_ms' if args.streams > 1 else 'chunk_ms'
    ratios = {name: {p: result[key][p] / results[0][key][p] for p in ('p50', 'p95', 'p99')}
              for name, result in zip(names, results, strict=True)}
    print(table([f'time per chunk, as a multiple of {names[0]}', 'p50', 'p95', 'p99'],
                [[name, *(number(value, '', 3) for value in ratio.values())]
                 for name, ratio in ratios.items()]))
    plot = results[0].pop('plot', None)
    for result in results[1:]:
        result.pop('plot', None)
    return {**results[0], 'ratios': ratios, 'others': results[1:], 'plot': plot}


def bench_group(args: argparse.Namespace) -> dict[str, Any]:
    """Many avatars in one process: time of a step of all of them."""
    from interactive_avatar.evaluation import bench_streams
    from interactive_avatar.generator.group import StreamGroup

    options = backend_options(args)
    if args.backend == 'torch':
        options['streams'] = args.streams
    group = StreamGroup.open(str(resource(args.model)), args.backend, **options)
    found = bench_streams.run(group, args.streams, args.chunks, speech_loop, args.paced)
    result = {'benchmark': 'streams', 'model': args.model, 'backend': args.backend,
              'precision': getattr(group.backend, 'precision', ''), 'steps': args.chunks,
              'paced': args.paced, **bench_streams.summary(found)}
    print(table(['one step of all streams (ms)', 'p50', 'p95', 'p99'],
                [[f'{result["streams"]} streams',
                  *(number(result['step_ms'][p], '', 1) for p in ('p50', 'p95', 'p99'))]]))
    print(f'{result["frames_per_s"]:.0f} frames/s, {100 * result["late_share"]:.2f} % of steps '
          f'above {CHUNK_MS} ms, {result["refused"]} refused {result["refusal"]}')
    result['plot'] = None
    return result


def bench_one(args: argparse.Namespace) -> dict[str, Any]:
    """Time per chunk and per stage, real-time factor, first frame, memory."""
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
    begin = time.perf_counter()
    stream = open_stream(args)
    opened = time.perf_counter()
    seen: list[float] = []
    coming = [stream.submit(np.zeros(CHUNK_SAMPLES, np.int16),
                            lambda chunk: seen.append(time.perf_counter()))
              for _ in range(int(stream.lookahead_chunks) + 1)]
    coming[-1].result()
    first = seen[-1] if len(seen) == len(coming) else time.perf_counter()
    overlap = bool(stream.overlaps)
    turns = _turns(stream, args) if args.turns and overlap else {}
    run = run_stream(stream, args.chunks, args.paced, _progress(args.chunks, 'generator'),
                     overlap)
    step, shown = run['step_ms'], run['shown_ms']
    result: dict[str, Any] = {
        'benchmark': 'generator', 'model': args.model, 'backend': args.backend,
        'threads': args.threads, 'float32': args.float32,
        'precision': getattr(stream.backend, 'precision', ''),
        'chunks': args.chunks, 'paced': args.paced, 'overlap': overlap, 'load_before': load,
        'frames_per_s': 4000.0 * args.chunks / float(step.sum()),
        'open_s': opened - begin, 'first_frame_s': first - begin,
        'real_time_factor': run['real_time_factor'],
        'chunk_ms': {**metrics.percentiles(shown), 'max': float(shown.max())},
        'period_ms': {**metrics.percentiles(step), 'max': float(step.max())},
        'late_share': float((shown > CHUNK_MS).mean()),
        'stages_ms': {name: metrics.percentiles(values)
                      for name, values in run['stages_ms'].items()},
        'rss_mib': {'first': float(run['rss_mib'][0]), 'last': float(run['rss_mib'][-1]),
                    'max': float(run['rss_mib'].max())},
        'chunk_ms_first_fifth_p50': float(np.median(step[:max(1, len(step) // 5)])),
        'chunk_ms_last_fifth_p50': float(np.median(step[-max(1, len(step) // 5):])),
        **turns,
    }
    rows = [[name, *(number(value[p], '', 1) for p in ('p50', 'p95', 'p99'))]
            for name, value in [*result['stages_ms'].items(),
                                ('speech in to frames out', result['chunk_ms']),
                                ('one chunk to the next', result['period_ms'])]]
    print(table(['stage (ms)', 'p50', 'p95', 'p99'], rows))
    way = 'decoding beside the next chunk' if overlap else 'one chunk after the other'
    print(f'real-time factor {result["real_time_factor"]:.3f} (aim {RTF_AIM}; {way}), '
          f'{100 * result["late_share"]:.2f} % of chunks above {CHUNK_MS} ms, opened in '
          f'{result["open_s"]:.2f} s, first frame '
          f'{result["first_frame_s"] - result["open_s"]:.2f} s later, '
          f'{result["rss_mib"]["max"]:.0f} MiB; '
          f'load before the run {load:.1f} on {machine()["cores"]} cores')
    result['plot'] = {'step_ms': step, 'stages_ms': run['stages_ms']}
    return result


def _turns(stream: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Real-time factors without and with overlap, in turns, so that a busy machine is busy for
    both, and the ratio of their medians."""
    other = copy.copy(args)
    other.no_overlap = True
    streams = {'without': open_stream(other), 'with': stream}
    factors: dict[str, list[float]] = {name: [] for name in streams}
    for turn in range(args.turns):
        for name, found in factors.items():
            run = run_stream(streams[name], args.chunks, args.paced, overlap=name == 'with')
            found.append(run['real_time_factor'])
            print(f'turn {turn + 1} of {args.turns}, {name} overlap: real-time factor '
                  f'{found[-1]:.3f}', file=sys.stderr, flush=True)
    ratio = float(np.median(factors['with']) / np.median(factors['without']))
    print(table(['real-time factor, in turns', *map(str, range(1, args.turns + 1)), 'median'],
                [[f'{name} overlap', *(number(value, '', 3) for value in
                                       [*found, float(np.median(found))])]
                 for name, found in factors.items()]))
    print(f'with overlap / without: {ratio:.3f}')
    streams['without'].backend.close()
    return {'turns': factors, 'turns_ratio': ratio}


def bench_agreement(args: argparse.Namespace) -> dict[str, Any]:
    """Whether backends that make the same stream drift apart."""
    from interactive_avatar.evaluation import bench_agreement as agreement

    ways = [agreement.Way.parse(text) for text in args.ways.split(',')]
    return agreement.run(resource(args.model), ways,
                         reference_of(args.reference) if args.reference else None, args.seed,
                         speech_loop(), _prompts(), args.chunks, CHUNKS_PER_PROMPT)


def bench_operators(args: argparse.Namespace) -> dict[str, Any]:
    """Where the time of each graph of the onnx backend goes."""
    from interactive_avatar.evaluation import bench_operators as operators

    return operators.run(resource(args.model), args.threads, not args.float32, args.runs)


def bench_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of minute 1 against the last minute of a stream."""
    chunks = max(2, round(args.minutes * CHUNKS_PER_MINUTE))
    stream = open_stream(args)
    run = run_stream(stream, chunks, args.paced, _progress(chunks, 'memory'))
    minute = min(CHUNKS_PER_MINUTE, chunks // 2)
    # The end of the first minute: by then every cache has filled once.
    first = float(np.median(run['rss_mib'][minute // 2:minute]))
    last = float(np.median(run['rss_mib'][-minute:]))
    result: dict[str, Any] = {
        'benchmark': 'memory', 'model': args.model, 'backend': args.backend,
        'minutes': chunks / CHUNKS_PER_MINUTE, 'rss_mib_first_minute': first,
        'rss_mib_last_minute': last, 'growth_share': last / first - 1.0,
        'flat': abs(last / first - 1.0) <= MEMORY_AIM_SHARE,
        'chunk_ms_first_minute_p50': float(np.median(run['step_ms'][:minute])),
        'chunk_ms_last_minute_p50': float(np.median(run['step_ms'][-minute:])),
    }
    print(f'memory {first:.1f} MiB in minute 1, {last:.1f} MiB in minute '
          f'{result["minutes"]:.0f}: {100 * result["growth_share"]:+.2f} % (aim ±'
          f'{100 * MEMORY_AIM_SHARE:.0f} %); chunk p50 {result["chunk_ms_first_minute_p50"]:.1f} '
          f'then {result["chunk_ms_last_minute_p50"]:.1f} ms')
    result['plot'] = {'rss_mib': run['rss_mib'], 'step_ms': run['step_ms']}
    return result


def bench_image_topic(args: argparse.Namespace) -> dict[str, Any]:
    """Publish-to-callback time of pictures between two processes."""
    from interactive_avatar.evaluation import bench_image

    return bench_image.run(args.size, args.messages, args.rate)


def bench_lips(args: argparse.Namespace) -> dict[str, Any]:
    """Lips of generated pictures against the true mouth of held-out performances."""
    from interactive_avatar.evaluation import bench_lips as lips
    from interactive_avatar.evaluation.held_out import SHIPPED_SET, make_set

    if args.make_set:
        make_set(args.make_set, args.people, args.speech, args.performances or 12, args.seconds,
                 args.side)
    return lips.run(lips.Options(
        model=args.model, backend=args.backend, seed=args.seed,
        source=args.make_set or args.set or SHIPPED_SET, limit=args.performances,
        lookahead_ms=args.lookahead_ms,
        save=args.out / 'lips' if args.save_videos else None))


def bench_hearing(args: argparse.Namespace) -> dict[str, Any]:
    """How well audio encoders hear voices that they were never trained on."""
    from interactive_avatar.evaluation import bench_hearing as hearing

    return hearing.run(hearing.Options(tuple(args.models), args.set or hearing.SHIPPED_SET,
                                       args.speech))


def bench_latents(args: argparse.Namespace) -> dict[str, Any]:
    """What decoders make of the latents of true pictures."""
    from interactive_avatar.evaluation import bench_latents as latents

    return latents.run(latents.Options(tuple(args.models), args.performances, args.seconds,
                                       args.noise, args.people, args.speech))


def bench_switch(args: argparse.Namespace) -> dict[str, Any]:
    """Cache-Switching against rebuilding the window, in one run."""
    from interactive_avatar.evaluation import bench_switch as switch

    speech = read_wav(sorted(UTTERANCES.glob('*.wav'))[0])
    blocks = [speech[at:at + CHUNK_SAMPLES]
              for at in range(0, speech.size - CHUNK_SAMPLES + 1, CHUNK_SAMPLES)]
    return switch.run(resource(args.model), args.backend, backend_options(args),
                      reference_of(args.reference) if args.reference else None, args.seed,
                      args.out, blocks)


def bench_response(args: argparse.Namespace) -> dict[str, Any]:
    """From the user's last sound to the avatar's first, stage by stage, on the real graph."""
    from interactive_avatar.evaluation import bench_response as response
    from interactive_avatar.run import parse_overrides

    return response.run(args.out / 'response', args.spoken, args.typed, args.interruptions,
                        args.config, parse_overrides(args.overrides))


def bench_telepresence(args: argparse.Namespace) -> dict[str, Any]:
    """From an operator's microphone to the face, on the real graph in telepresence."""
    from interactive_avatar.evaluation import bench_telepresence as telepresence
    from interactive_avatar.run import parse_overrides

    return telepresence.run(args.out / 'telepresence', args.config,
                            parse_overrides(args.overrides))


def bench_face(args: argparse.Namespace) -> dict[str, Any]:
    """The avatar's eyes against rendered people whose heads and faces are known."""
    from interactive_avatar.evaluation import bench_face as face

    if args.make_template:
        print(face.make_template(args.people, args.make_template))
    if args.make_fixture:
        print(face.make_fixture(args.people, args.make_fixture))
    return face.run(face.Options(args.people, args.poses, args.clips, args.seed))


def add_wan_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `avatar bench wan`, where torch is installed (extra `wan`)."""
    try:
        from interactive_avatar.generator.wan import bench as wan
    except ModuleNotFoundError as error:
        parser.epilog = f'not available: {error} (install the extra `wan`)'
    else:
        wan.add_arguments(parser)


def bench_wan(args: argparse.Namespace) -> dict[str, Any]:
    """Frames per second of the wan size, its parts, memory and first frame."""
    try:
        from interactive_avatar.generator.wan import bench as wan
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error}: {sys.executable} -m pip install -e '.[wan]'") from error
    return wan.run(args)


def bench_training(args: argparse.Namespace) -> dict[str, Any]:
    """How training stages scale over GPUs."""
    from interactive_avatar.evaluation import bench_training as training

    folder, wrong = args.out / 'training', []
    if not args.only_report:
        extra = ['--steps', str(args.steps), '--warm-up', str(args.warm_up),
                 *(['--eager'] if args.eager else []),
                 *(['--model-config', str(args.model_config)] if args.model_config else [])]
        todo = training.cases(args.stages.split(','), [int(n) for n in args.gpus.split(',')],
                              args.batch)
        wrong = training.run(todo, folder, extra)
    runs = training.collect(folder)
    print(training.report(runs))
    return {'benchmark': 'training', 'runs': runs, 'failed': wrong, 'plot': {'runs': runs}}


def bench_stream(args: argparse.Namespace) -> dict[str, Any]:
    """The real graph in conversation for hours."""
    from interactive_avatar.evaluation import bench_stream as stream
    from interactive_avatar.run import parse_overrides

    overrides = parse_overrides(args.overrides)
    if args.hours <= 0:
        raise ValueError(f'--hours is {args.hours:g}: give more than 0')
    result, _ = stream.run(stream.StreamOptions(
        args.hours, args.out / 'stream', args.config, tuple(overrides.items()), args.seed))
    return result


def _finish(result: dict[str, Any], out: Path, name: str) -> None:
    plot = result.pop('plot', None)
    result['machine'] = machine()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f'{name}.json', _plain(result))
    made = [out / f'{name}.json']
    if plot is not None:
        from interactive_avatar.evaluation import plots

        try:
            made.append(plots.draw(name, result, plot, out / f'{name}.png'))
        except plots.PlotsMissing as error:
            print(f'no plot: {error}', file=sys.stderr)
    print('\n'.join(str(path) for path in made))


def _plain(value: Any) -> Any:
    """NumPy values to Python's, NaN to None, as JSON needs it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``avatar bench``; returns the exit status."""
    parser = argparse.ArgumentParser(prog='avatar bench', description='Measure this machine.')
    kinds = parser.add_subparsers(required=True, metavar='WHAT', dest='what')
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--out', type=Path, default=Path('out/bench'), help='folder for results')
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument('--model', default='models/compact', help='folder of the model')
    model.add_argument('--backend', default='onnx', type=backend_names,
                       help='onnx, tensorrt or torch; several with commas between for '
                            '`generator`, which then prints ratios to the first')
    model.add_argument('--reference', default='', help='identity or picture (default: the first)')
    model.add_argument('--seed', type=int, default=0)
    model.add_argument('--threads', type=int, default=2, help='of the onnx backend')
    model.add_argument('--float32', action='store_true',
                       help="the onnx backend's plain graph instead of the 8-bit one")
    model.add_argument('--paced', action='store_true',
                       help='a chunk every 160 ms as in life, instead of as fast as it goes')

    kind = kinds.add_parser('generator', parents=[common, model],
                            help='time per chunk and stage, first frame, memory')
    kind.add_argument('--chunks', type=int, default=600)
    kind.add_argument('--streams', type=int, default=1, help='avatars at once, in one batch')
    kind.add_argument('--precision', default='', choices=('', 'fp32', 'fp16', 'bf16'),
                      help='of the torch and tensorrt backends')
    kind.add_argument('--no-overlap', action='store_true',
                      help='onnx: no chunk is begun before the pictures of the last one are '
                           'there, and every graph has all threads')
    kind.add_argument('--turns', type=int, default=0, metavar='N',
                      help='before the run, N runs without overlap and N with it, in turns, and '
                           'the ratio of their medians')
    kind.add_argument('--profile', action='store_true',
                      help='torch on a card: one CUDA graph per stage, to time the stages')
    kind.add_argument('--compiled', action='store_true',
                      help='torch: fuse layers and decoder with torch.compile')
    kind.set_defaults(carry_out=bench_generator)
    kind = kinds.add_parser('agreement', parents=[common],
                            help='whether backends that make the same stream drift apart')
    kind.add_argument('--ways', default='onnx:fp32,onnx:int8', metavar='BACKEND:VARIANT,…',
                      help='of onnx:fp32, onnx:int8, and torch and tensorrt with fp32, fp16 or '
                           'bf16; the first is what the others are compared with')
    kind.add_argument('--model', default='models/compact', help='folder of the model')
    kind.add_argument('--reference', default='', help='identity or picture (default: the first)')
    kind.add_argument('--seed', type=int, default=0)
    kind.add_argument('--chunks', type=int, default=500)
    kind.set_defaults(carry_out=bench_agreement)
    kind = kinds.add_parser('operators', parents=[common],
                            help='where the time of each graph of the onnx backend goes')
    kind.add_argument('--model', default='models/compact', help='folder of the model')
    kind.add_argument('--threads', type=int, default=1, help='of one run')
    kind.add_argument('--float32', action='store_true', help='the plain graphs')
    kind.add_argument('--runs', type=int, default=20, help='to take the median of')
    kind.set_defaults(carry_out=bench_operators)
    kind = kinds.add_parser('memory', parents=[common, model],
                            help='memory of minute 1 against the last')
    kind.add_argument('--minutes', type=float, default=10.0, help='of stream, not of your time')
    kind.set_defaults(carry_out=bench_memory)
    kind = kinds.add_parser('image-topic', parents=[common],
                            help='publish-to-callback time with the shipped Fast DDS profile')
    kind.add_argument('--size', type=int, default=512, help='side of the picture, pixels')
    kind.add_argument('--messages', type=int, default=300)
    kind.add_argument('--rate', type=float, default=25.0, help='pictures per second')
    kind.set_defaults(carry_out=bench_image_topic)
    kind = kinds.add_parser('lips', parents=[common, model],
                            help='lips against the truth of held-out performances')
    kind.add_argument('--performances', type=int, default=0,
                      help='how many at most (default: all of the set)')
    kind.add_argument('--set', type=Path, metavar='FOLDER',
                      help='held-out set (default: the one that ships)')
    kind.add_argument('--lookahead-ms', type=int, default=CHUNK_MS, metavar='MS',
                      help='speech waited for before a frame is drawn (default: %(default)s; '
                           'telepresence waits less)')
    kind.add_argument('--save-videos', action='store_true', help='keep what was generated')
    kind.add_argument('--make-set', type=Path, metavar='FOLDER',
                      help='first compose and render a set (needs the training assets)')
    kind.add_argument('--seconds', type=float, default=16.0, help='of each, for --make-set')
    kind.add_argument('--side', type=int, default=256, metavar='PX',
                      help='of its pictures, for --make-set: 512 for compact512')
    kind.add_argument('--people', type=Path, default=Path('assets/people.npz'),
                      help='baked people, for --make-set')
    kind.add_argument('--speech', type=Path, default=Path('assets/speech/speech.npz'),
                      help='speech library with its sound beside it, for --make-set')
    kind.set_defaults(carry_out=bench_lips)
    kind = kinds.add_parser('hearing', parents=[common],
                            help='how well audio encoders hear a mouth, of voices that they were '
                                 'never trained on (seconds)')
    kind.add_argument('models', type=Path, nargs='*', default=[Path('models/compact')],
                      help='folders of models')
    kind.add_argument('--set', type=Path, metavar='FOLDER',
                      help='held-out set (default: the one that ships)')
    kind.add_argument('--speech', type=Path, default=Path('assets/speech/speech.npz'),
                      help='packed speech library, whose test voices are heard too')
    kind.set_defaults(carry_out=bench_hearing)
    kind = kinds.add_parser('latents', parents=[common],
                            help='what decoders make of true latents: error, seams, lips (needs '
                                 'the training assets)')
    kind.add_argument('models', type=Path, nargs='*', default=[Path('models/compact')],
                      help='folders of models')
    kind.add_argument('--performances', type=int, default=3, help='held-out ones')
    kind.add_argument('--seconds', type=float, default=12.0, help='of each')
    kind.add_argument('--noise', type=float, default=0.0,
                      help='standard deviation of noise on the latents')
    kind.add_argument('--people', type=Path, default=Path('assets/people.npz'),
                      help='baked people')
    kind.add_argument('--speech', type=Path, default=Path('assets/speech/speech.npz'),
                      help='packed speech library')
    kind.set_defaults(carry_out=bench_latents)
    kind = kinds.add_parser('switch', parents=[common, model],
                            help='switching the prompt against rebuilding the window under it')
    kind.set_defaults(carry_out=bench_switch)
    kind = kinds.add_parser('response', parents=[common],
                            help="from the user's last sound to the avatar's first, by stages")
    kind.add_argument('--spoken', type=int, default=24, help='sentences said by two voices')
    kind.add_argument('--typed', type=int, default=6, help='lines typed')
    kind.add_argument('--interruptions', type=int, default=4, help='answers broken off')
    add_graph_arguments(kind)
    kind.set_defaults(carry_out=bench_response)
    kind = kinds.add_parser('telepresence', parents=[common],
                            help="from an operator's microphone to the face")
    add_graph_arguments(kind)
    kind.set_defaults(carry_out=bench_telepresence)
    kind = kinds.add_parser('face', parents=[common],
                            help="the avatar's eyes against rendered people; what they cost")
    kind.add_argument('--people', type=Path, default=Path('assets/people.npz'),
                      help='baked people')
    kind.add_argument('--poses', type=int, default=200, help='single pictures')
    kind.add_argument('--clips', type=int, default=12, help='clips of each kind')
    kind.add_argument('--seed', type=int, default=0)
    kind.add_argument('--make-template', type=Path, metavar='FILE',
                      help="first measure the tracker's template of a face on training people")
    kind.add_argument('--make-fixture', type=Path, metavar='FOLDER',
                      help='first render the film that the tests watch')
    kind.set_defaults(carry_out=bench_face)
    kind = kinds.add_parser('stream', parents=[common],
                            help='the real graph in conversation for hours: drift, memory, sync')
    kind.add_argument('--hours', type=float, default=2.0, help='of conversation')
    kind.add_argument('--seed', type=int, default=0, help='of the conversation')
    kind.add_argument('--config', default='config/avatar.yaml', help='parameter file')
    kind.add_argument('-p', '--set', action='append', default=[], dest='overrides',
                      metavar='NODE.PARAMETER=VALUE', help='a parameter, repeatable')
    kind.set_defaults(carry_out=bench_stream)
    kind = kinds.add_parser('training', parents=[common],
                            help='steps per second, memory and loss of training over GPUs')
    kind.add_argument('--stages', default='teacher,distil', help='with commas between')
    kind.add_argument('--gpus', default='1,2', help='numbers of GPUs, with commas between')
    kind.add_argument('--batch', type=int, default=32, help='clips per GPU where the batch grows')
    kind.add_argument('--steps', type=int, default=60, help='of each run')
    kind.add_argument('--warm-up', type=int, default=40, help='steps before the clock starts')
    kind.add_argument('--eager', action='store_true',
                      help='without torch.compile, as FSDP2 always is')
    kind.add_argument('--model-config', type=Path, help='JSON of the model (default: compact)')
    kind.add_argument('--only-report', action='store_true',
                      help='table and plot of the runs that lie in OUT/training')
    kind.set_defaults(carry_out=bench_training)
    kind = kinds.add_parser('wan', parents=[common],
                            help='frames per second of the wan size on a GPU, random weights')
    kind.set_defaults(carry_out=bench_wan)
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ['wan']:  # torch takes seconds to import
        add_wan_arguments(kind)
    args = parser.parse_args(given)
    for name in ('chunks', 'messages', 'size', 'poses', 'clips', 'runs'):
        value = getattr(args, name, 1)  # `size` of `wan` is a name
        if isinstance(value, int) and value < 1:
            parser.error(f'--{name} is {value}: give 1 or more')
    try:
        _finish(args.carry_out(args), args.out, args.what)
    except (AudioFormatError, OSError, PictureError, RuntimeError, ValueError) as error:
        print(f'avatar bench: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
