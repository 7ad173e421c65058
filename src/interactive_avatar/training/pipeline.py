# SPDX-License-Identifier: Apache-2.0
"""Runs training stages on any number of GPUs, through ``torchrun -m``.

Every process renders its own shard, trains together with the others, and the first one writes
weights, curves and sample sheets. A stage reads the weights that the one before left in
``--state`` (a folder that outlives the call) or in ``--weights`` (a file, or parts brought along).
What it trains goes to ``--out``, in parts, and back to ``--state``: as generator.safetensors, the
former of which is kept beside it, or, of the teacher, as teacher.safetensors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from interactive_avatar.generator.autoencoder import as_input, as_pixels
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import WEIGHTS_NAME
from interactive_avatar.generator.networks import Generator, saved_config
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.acting import ActingOptions, train_acting
from interactive_avatar.training.audio import train_audio
from interactive_avatar.training.autoencoder import AutoencoderOptions, train_autoencoder
from interactive_avatar.training.blinking import BlinkingOptions, train_blinking
from interactive_avatar.training.clips import (
    ClipFolder,
    encode,
    predict_twins,
    require_encoder,
)
from interactive_avatar.training.common import Process, join_parts, options_from, save_parts
from interactive_avatar.training.data import Shard, ShardOptions
from interactive_avatar.training.denoiser import DenoiserOptions, Trainee, train_denoiser
from interactive_avatar.training.distil import DistilOptions, train_distil
from interactive_avatar.training.hearing import HearingOptions, train_hearing
from interactive_avatar.training.memory import MemoryOptions, train_memory
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.reading import (
    ReadingOptions,
    load_paraphrases,
    train_reading,
)
from interactive_avatar.training.recall import RecallOptions, train_recall
from interactive_avatar.training.rollout import predict_shard
from interactive_avatar.training.samples import write_samples
from interactive_avatar.training.speech.library import SpeechLibrary
from interactive_avatar.training.stage import Optimiser, Run, averaged, whole_state
from interactive_avatar.training.stage import shard as split
from interactive_avatar.training.student import StudentOptions, train_student
from interactive_avatar.training.teacher import TeacherOptions, train_teacher

WEIGHTS = 'generator.safetensors'
TEACHER = 'teacher.safetensors'
STAGES = ('teacher', 'memory', 'student', 'distil', 'recall', 'act', 'text', 'blink')
"""Those that learn from latents of clips."""
ADDED = {'act': 'denoiser.refiner.', 'text': 'denoiser.refiner.', 'blink': 'denoiser.blink_'}
"""Prefixes of what stages add to weights that lack it, and alone train."""
RESUMED = (*STAGES, 'audio')
CLIPS_AT_ONCE = 110
"""Clips whose pictures are held at a time: 22 GB at 40 s and 256×256."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='avatar train', description=__doc__)
    parser.add_argument('stage', choices=('autoencoder', 'audio', 'denoiser', *STAGES))
    parser.add_argument('--seconds', type=float, default=0.0,
                        help='wall time of the stage; 0 (and no --steps) only prepares the data')
    parser.add_argument('--steps', type=int, default=0,
                        help='length of the schedule in steps, instead of --seconds '
                             f'({", ".join(RESUMED)})')
    parser.add_argument('--resume', action='store_true',
                        help=f'go on from where an earlier call ended ({", ".join(RESUMED)})')
    parser.add_argument('--checkpoint-seconds', type=float, default=600.0,
                        help='how often state and samples are written beside the end')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--accumulate', type=int, default=1,
                        help='parts in which each process works its batch off')
    parser.add_argument('--fsdp', action='store_true',
                        help='split weights and optimiser over the processes (FSDP2)')
    parser.add_argument('--teacher', type=Path,
                        help='weights of the teacher for distil (teacher.safetensors of the state '
                             'folder if not given), or of the tutor for recall (what it begins '
                             'with if not given), or for text what act left: a file, or a '
                             'folder with parts')
    parser.add_argument('--audio-seconds', type=float, default=30.0,
                        help='wall time of the audio warm-up before the autoencoder; 0 for none')
    parser.add_argument('--assets', type=Path, default=Path('assets'),
                        help='folder with people.npz, speech/speech.npz, prompts.npz and, for act '
                             'and text, paraphrases.npz')
    parser.add_argument('--state', type=Path, default=Path('checkpoints/state'),
                        help='folder kept between stages: weights, latents, optimiser')
    parser.add_argument('--weights', type=Path,
                        help='earlier weights: a safetensors file, a folder with '
                             f'{WEIGHTS} or its parts, or a released model')
    parser.add_argument('--out', type=Path, default=Path('out/train'))
    parser.add_argument('--shards', type=Path,
                        help="folder into which 'avatar render' writes clips, before or while the "
                             f'stage runs, instead of rendering first ({", ".join(STAGES)})')
    parser.add_argument('--clips', type=int, default=150, help='clips per process')
    parser.add_argument('--clip-seconds', type=int, default=40)
    parser.add_argument('--first-seed', type=int, default=1000,
                        help='of the clips that the stage renders: another gives other people')
    parser.add_argument('--render-seconds', type=float, default=150.0,
                        help='rendering ends after this long, with fewer clips')
    parser.add_argument('--done', type=float, default=0.0,
                        help='share of the schedule done by earlier calls')
    parser.add_argument('--until', type=float, default=1.0,
                        help='share of the schedule done after this call')
    parser.add_argument('--config', type=Path, help="YAML with the stage's options")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a stage."""
    args = arguments(argv)
    process = Process.join()
    torch.manual_seed(1234 + process.rank)
    start = time.monotonic()

    def say(text: str) -> None:
        if process.leads:
            print(f'[{time.monotonic() - start:6.1f} s] {text}', flush=True)

    for folder in (args.state, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    given = None
    if args.weights is not None:
        given = weights_file(args.weights, WEIGHTS)
    elif (args.state / WEIGHTS).is_file():
        given = args.state / WEIGHTS
    config = GeneratorConfig() if given is None else saved_config(given)
    options = options_from(args.config, AutoencoderOptions()) if args.stage == 'autoencoder' \
        else None
    if config.autoencoder.upscale > 1 and not (options and options.decoder_only):
        raise ValueError(f'{str(given)!r} has a decoder for pictures of '
                         f'{config.autoencoder.picture_px} pixels, and its latents are those of '
                         f'smaller ones: train the other stages with weights of an upscale of 1, '
                         f'and of these the decoder alone (avatar train autoencoder --config '
                         f'config/training/decoder.yaml)')
    if args.stage == 'text':
        reading = options_from(args.config, ReadingOptions())
        config = replace(config, denoiser=replace(
            config.denoiser, refiner_layers=config.denoiser.refiner_layers or reading.layers,
            passing=reading.passing_share > 0.0))
    if args.stage == 'blink' and not config.denoiser.blink_rows:
        rows = options_from(args.config, BlinkingOptions()).rows
        config = replace(config, denoiser=replace(config.denoiser, blink_rows=rows))
    generator = Generator(config)
    fresh = frozenset(generator.state_dict())
    if given is not None:
        # A teacher brings no autoencoder and a released one may have another decoder, which
        # stages that work on latents need for nothing but sample sheets.
        fresh = generator.load(given, partial=args.weights is not None or args.stage in ADDED,
                               misfits=args.weights is not None and args.stage in STAGES)
    folder = None
    if args.shards is not None and args.stage in STAGES:
        folder = ClipFolder(args.shards, process, config, say)
    elif args.stage not in ('autoencoder', 'audio') and not (args.state / 'latents0.pt').is_file():
        require_encoder(fresh, args.weights or args.state / WEIGHTS)
    generator.to(process.device)
    if args.stage == 'audio':
        train_audio_stage(args, config, generator, process, say, fresh)
        process.leave()
        return 0
    shard = folder.first(args.seed, args.render_seconds) if folder is not None else \
        prepare_shard(args, config, generator, process, say,
                      options.restless_share if options else 0.0)
    if args.seconds <= 0 and not args.steps:
        process.leave()
        return 0
    if args.stage in STAGES:
        train_stage(args, config, generator, shard, process, say, fresh, folder)
        process.leave()
        return 0
    if options is not None:
        if args.audio_seconds > 0:
            train_audio(generator.audio, shard, process, args.audio_seconds, args.out)
            say('audio encoder trained')
        if options.goes_on:
            encode(generator, shard, process)
            if options.decoder_only:
                # The next stage needs these latents too: the clips are drawn once for both.
                torch.save(shard.state(), args.state / f'latents{process.rank}.pt')
            if options.predicted_share > 0.0:
                prompts = Prompts(args.assets / 'prompts.npz', config.denoiser.text_tokens,
                                  process.device)
                twins = round(options.twin_share * len(shard.performances))
                predict_shard(Trainee(generator.audio, generator.denoiser), shard, prompts, twins)
                if twins:
                    predict_twins(generator, shard, shard_options(args, process),
                                  args.assets / 'people.npz', process, twins)
            say('latents ready')
        train_autoencoder(generator.autoencoder, shard, process, args.seconds, args.out, options)
        say('autoencoder trained')
        if not options.decoder_only:
            # Of an earlier encoder: the next stage is to draw and encode its clips anew.
            (args.state / f'latents{process.rank}.pt').unlink(missing_ok=True)
        if process.leads:
            reconstruction_sheet(generator, shard, args.out / 'autoencoder_sheet.png')
    else:
        train_denoiser_stage(args, config, generator, shard, process, fresh)
    if process.leads:
        generator.save(args.state / WEIGHTS, quantise=False)
        # Only what the stage trained travels: the autoencoder stays as its own stage left it.
        trained: tuple[str, ...] = ('audio.', 'denoiser.')
        if options is not None:
            trained = options.trained
        generator.save(args.out / WEIGHTS, quantise=False, prefixes=trained)
        save_parts(args.out / WEIGHTS, args.out)
        (args.out / WEIGHTS).unlink()
    process.leave()
    return 0


def weights_file(path: Path, name: str) -> Path:
    """A safetensors file: ``path`` itself, or in that folder ``name``, its parts, or the released
    ``model.safetensors``.

    Raises:
        FileNotFoundError: if there is none of them.
    """
    if path.is_file():
        return path
    released = path / WEIGHTS_NAME
    if released.is_file() and not list(path.glob(f'{name}*')):
        return released
    return join_parts(path, name)


def train_stage(args: argparse.Namespace, config: GeneratorConfig, generator: Generator,
                shard: Shard, process: Process, say: Callable[[str], None],
                fresh: frozenset[str], folder: ClipFolder | None) -> None:
    """Run one of `STAGES`, and write the averaged weights and a sheet of samples."""
    added = (ADDED[args.stage],) if args.stage in ADDED else ()
    untrained = [n for n in fresh if n.startswith(('denoiser.', 'audio.', 'autoencoder.encoder'))
                 and not n.startswith(added)]
    if untrained:
        raise ValueError(f'the stage {args.stage} needs trained weights, but {untrained[0]!r} and '
                         f'{len(untrained) - 1} others are missing in '
                         f'{str(args.weights or args.state)!r}: give those of the denoiser stage '
                         f'with --weights, or the folder that it left with --state')
    run = bounds(args, None if folder is None else folder.poll)
    prompts = Prompts(args.assets / 'prompts.npz', config.denoiser.text_tokens, process.device)
    trainee = Trainee(generator.audio, generator.denoiser).to(process.device)
    process.share_weights(trainee)
    names: tuple[str, ...] = ('audio.', 'denoiser.')
    sheet = partial(write_samples, generator, shard, prompts, process, args)
    if args.fsdp:
        for module in (generator.audio, generator.denoiser):
            split(module, process)
    if args.stage == 'teacher':
        optimiser = train_teacher(trainee, shard, prompts, process, run,
                                  options_from(args.config, TeacherOptions()), sheet)
    elif args.stage == 'memory':
        remembering = options_from(args.config, MemoryOptions())
        optimiser = train_memory(generator.denoiser, shard, process, run, remembering,
                                 generator.autoencoder)
        if remembering.compare:
            say(f'compared: {args.out / "retrieval.json"}; no weights are kept of a comparison')
            return
    elif args.stage == 'student':
        optimiser = train_student(trainee, shard, prompts, process, run,
                                  options_from(args.config, StudentOptions()), sheet)
    elif args.stage == 'recall':
        tutor = None if args.teacher is None else load_teacher(args.teacher, config, process)
        optimiser = train_recall(trainee, shard, prompts, process, run,
                                 options_from(args.config, RecallOptions()), sheet, tutor)
    elif args.stage == 'act':
        moments = load_paraphrases(args.assets / 'paraphrases.npz', config.denoiser.text_tokens,
                                   process.device)[2]
        optimiser = train_acting(trainee, shard, prompts, moments, process, run,
                                 options_from(args.config, ActingOptions()), sheet)
        names = (ADDED[args.stage],)
    elif args.stage == 'text':
        texts = load_paraphrases(args.assets / 'paraphrases.npz', config.denoiser.text_tokens,
                                 process.device)
        tutor = None if args.teacher is None else load_tutor(args.teacher, config, generator,
                                                             process)
        optimiser = train_reading(trainee, shard, prompts, *texts, process, run,
                                  options_from(args.config, ReadingOptions()), tutor)
        names = (ADDED[args.stage],)
    elif args.stage == 'blink':
        optimiser = train_blinking(trainee, shard, prompts, process, run,
                                   options_from(args.config, BlinkingOptions()), sheet)
        names = (ADDED[args.stage],)
    else:
        distilling = options_from(args.config, DistilOptions())
        teacher = None
        if distilling.dmd_weight > 0.0:
            teacher = load_teacher(args.teacher or args.state, config, process)
        optimiser = train_distil(trainee, teacher, shard, prompts, process, run,
                                 distilling, partial(sheet, levels=distilling.samplers[0]))
    say(f'{args.stage} trained')
    save_averaged(args, config, generator, optimiser, process, names)


def bounds(args: argparse.Namespace, between: Callable[[], None] | None = None) -> Run:
    """What the command line says about how long and how a stage runs."""
    return Run(out=args.out, state=args.state, seconds=args.seconds, steps=args.steps,
               until=args.until, resume=args.resume, seed=args.seed, accumulate=args.accumulate,
               checkpoint_seconds=args.checkpoint_seconds, sharded=args.fsdp, between=between)


def save_averaged(args: argparse.Namespace, config: GeneratorConfig, generator: Generator,
                  optimiser: Optimiser, process: Process, names: tuple[str, ...]) -> None:
    """Write averaged weights to the state folder and, of what was trained, to the output."""
    with averaged(optimiser):
        state = whole_state(generator)
    if process.leads:
        plain = Generator(config)
        plain.load_state_dict(state)
        name = TEACHER if args.stage == 'teacher' else WEIGHTS
        target = args.state / name
        if target.is_file():
            target.replace(args.state / f'before_{args.stage}.{name}')
        plain.save(target, quantise=False, prefixes=names if name == TEACHER else ('',))
        plain.save(args.out / name, quantise=False, prefixes=names)
        save_parts(args.out / name, args.out)
        (args.out / name).unlink()


def train_audio_stage(args: argparse.Namespace, config: GeneratorConfig, generator: Generator,
                      process: Process, say: Callable[[str], None],
                      fresh: frozenset[str]) -> None:
    """The audio encoder alone, on the speech library: no pictures are drawn."""
    untrained = sorted(name for name in fresh if name.startswith('audio.'))
    if untrained:
        raise ValueError(f'the stage audio goes on from a trained encoder, but {untrained[0]!r} '
                         f'is missing in {str(args.weights or args.state)!r}: give trained ones '
                         f'with --weights (a first encoder: --audio-seconds of the stage '
                         f'autoencoder)')
    if args.fsdp:
        raise ValueError('the audio encoder is too small to be split: leave out --fsdp')
    library = SpeechLibrary.load(args.assets / 'speech' / 'speech.npz')
    if args.seconds <= 0 and not args.steps:
        say(f'{len(library.of_split("train"))} utterances to train on')
        return
    optimiser = train_hearing(generator.audio, library, process, bounds(args),
                              options_from(args.config, HearingOptions()))
    say('audio trained')
    save_averaged(args, config, generator, optimiser, process, ('audio.',))


def load_teacher(path: Path, config: GeneratorConfig, process: Process) -> Trainee:
    """The teacher's audio encoder and denoiser."""
    generator = Generator(config)
    missing = [name for name in generator.load(weights_file(path, TEACHER), partial=True)
               if name.startswith(('audio.', 'denoiser.'))]
    if missing:
        raise ValueError(f'{str(path)!r} is no teacher: it lacks {missing[0]!r}')
    return Trainee(generator.audio, generator.denoiser).to(process.device)


def load_tutor(path: Path, config: GeneratorConfig, generator: Generator,
               process: Process) -> Trainee:
    """The generator with the token refiner that the stage act left at ``path``."""
    other = Generator(config)
    other.load_state_dict(generator.state_dict())
    missing = other.load(weights_file(path, WEIGHTS), partial=True)
    if any(name.startswith(ADDED['act']) for name in missing):
        raise ValueError(f'{str(path)!r} has no token refiner: give what the stage act left')
    return Trainee(other.audio, other.denoiser).to(process.device)


def shard_options(args: argparse.Namespace, process: Process) -> ShardOptions:
    """What this process renders."""
    return ShardOptions(clips=args.clips, seconds=args.clip_seconds,
                        render_seconds=args.render_seconds,
                        first_seed=args.first_seed + process.rank * 100_000)


def prepare_shard(args: argparse.Namespace, config: GeneratorConfig, generator: Generator,
                  process: Process, say: Callable[[str], None],
                  restless_share: float = 0.0) -> Shard:
    """This process's clips: rendered anew, or with the latents of an earlier call."""
    people, speech = args.assets / 'people.npz', args.assets / 'speech' / 'speech.npz'
    options = replace(shard_options(args, process), restless_share=restless_share)
    kept = args.state / f'latents{process.rank}.pt'
    # Another random order for every continued call.
    seed = options.first_seed + int(args.done * 1000)
    if args.stage != 'autoencoder' and kept.is_file():
        state = torch.load(kept, map_location=process.device)
        return Shard.of([state], config, process.device, seed)
    render = partial(Shard.render, config=config, people=people, speech=speech,
                     device=process.device, say=say,
                     device_index=process.egl_index)
    if args.stage == 'autoencoder':
        return render(options)
    # The denoiser needs no pictures: they are drawn and encoded in parts that fit the memory.
    states = []
    for first in range(0, options.clips, CLIPS_AT_ONCE):
        part = render(replace(options, clips=min(CLIPS_AT_ONCE, options.clips - first),
                              first_seed=options.first_seed + first))
        encode(generator, part, process)
        part.drop_frames()
        states.append(part.state())
    shard = Shard.of(states, config, process.device, seed)
    torch.save(shard.state(), kept)
    say(f'{len(shard.mel)} clips encoded')
    return shard


def train_denoiser_stage(args: argparse.Namespace, config: GeneratorConfig, generator: Generator,
                         shard: Shard, process: Process, fresh: frozenset[str]) -> None:
    """The denoiser's stage, continued from kept optimiser state where there is some."""
    if 'denoiser.blocks.0.qkv.weight' in fresh:
        fresh = frozenset()  # nothing of the denoiser was loaded: all of it starts anew
    prompts = Prompts(args.assets / 'prompts.npz', config.denoiser.text_tokens, process.device)
    options = options_from(args.config, DenoiserOptions())
    trainee = Trainee(generator.audio, generator.denoiser).to(process.device)
    kept = args.state / 'denoiser.pt'
    state = None
    if args.done > 0 and kept.is_file():
        state = torch.load(kept, map_location=process.device)
    state = train_denoiser(trainee, shard, prompts, process, args.seconds, args.out, args.done,
                           args.until, options, state, fresh)
    if process.leads:
        torch.save(state, kept)


@torch.no_grad()
def reconstruction_sheet(generator: Generator, shard: Shard, path: Path, count: int = 12,
                         chunks: int = 12) -> None:
    """True frames above the last ones of decoded clips, and mouth crops of both, as one PNG.

    Each clip is decoded from its reference picture on, as a stream.
    """
    from PIL import Image

    generator.eval()
    assert shard.frames is not None and shard.marks is not None and shard.stills is not None
    step = torch.arange(chunks * FRAMES_PER_CHUNK, device=shard.device)
    clip = shard._random(len(shard.frames), count)[:, None]
    index = shard._random(shard.length - len(step), count)[:, None] + step
    model = generator.autoencoder
    true = shard.frames[clip, index]
    latents = torch.stack([model.encode(as_input(frames).unflatten(0, (-1, FRAMES_PER_CHUNK)))
                           for frames in true])
    made = model.decode_clip(latents, as_input(shard.stills[clip[:, 0], 0]))
    shown = as_pixels(made[:, -1, -1])
    a, b = true[:, -1].cpu().numpy(), shown.cpu().numpy()
    mouths = shard.marks[clip, index][:, -1, 0].cpu().numpy()
    half = a.shape[1] // 8

    def crop(pictures: np.ndarray) -> np.ndarray:
        parts = []
        for picture, (x, y) in zip(pictures, mouths, strict=True):
            cx, cy = (int(np.clip(v, half, a.shape[1] - half)) for v in (x, y))
            part = picture[cy - half:cy + half, cx - half:cx + half]
            parts.append(np.repeat(np.repeat(part, 4, 0), 4, 1))
        return np.concatenate(parts, 1)

    rows = [np.concatenate(list(a), 1), np.concatenate(list(b), 1), crop(a), crop(b)]
    Image.fromarray(np.concatenate(rows, 0)).resize(
        (rows[0].shape[1] // 2, len(rows) * a.shape[1] // 2)).save(path)
    generator.train()


if __name__ == '__main__':
    raise SystemExit(main())
