# SPDX-License-Identifier: Apache-2.0
"""``avatar render``: clips drawn and encoded into a folder, before or while stages train on them.

Every part of a folder has a population of its own (`People.recombined`), so that who trains longer
also sees more people. A denoiser is as good on a new face as the number of faces it has seen:
beside one GPU that trains, its idle processor cores keep several of these commands busy. A stage
takes the clips with ``--shards FOLDER``, and between its steps those that have come since.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from interactive_avatar.generator.autoencoder import as_input
from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.model import WEIGHTS_NAME
from interactive_avatar.generator.networks import Generator, saved_config
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard, ShardOptions
from interactive_avatar.training.render.people import People

LOOK_AGAIN_S = 10.0
"""How often a training stage looks for clips that have come."""
ORDER_NAME = 'order.txt'
TWIN_LEAST = 0.4
"""Of a twin's latents in a blend, at least."""
PREFIX = 'clips'


def _encoder(generator: Generator, process: Process) -> Callable[[torch.Tensor], torch.Tensor]:
    """Frames uint8 [B, 4, H, W, 3] to latents [B, C, h, w]."""
    def run(frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast(process.device.type, torch.bfloat16,
                            enabled=process.device.type == 'cuda'):
            return generator.autoencoder.encode(as_input(frames.to(process.device))).float()
    return run


def encode(generator: Generator, shard: Shard, process: Process) -> None:
    """Latents of the shard's frames with the trained autoencoder."""
    generator.eval()
    shard.encode(_encoder(generator, process))
    generator.train()


@torch.no_grad()
def predict_twins(generator: Generator, shard: Shard, options: ShardOptions, people: Path,
                  process: Process, count: int) -> None:
    """Put blends with a twin's latents into `Shard.predicted` for the first ``count`` clips.

    A twin has the shape of the person and does the same, with the skin, eyes and hair of somebody
    else (`People.with_other_looks`). Where heads turn, a denoiser knows where everything is, and
    gets wrong who it is; a decoder that is asked for the person learns to take that from the
    reference picture.

    Args:
        shard: rendered and encoded, with pictures. options: that it was rendered with.
    """
    # The renderer's library is not needed by whoever only reads clips.
    from interactive_avatar.training.render.renderer import Renderer

    assert shard.latents is not None
    if shard.predicted is None:
        shard.predicted = shard.latents.clone()
    population = People(people)
    if options.recombine:
        population = population.recombined(options.first_seed)
    renderer = Renderer(population.with_other_looks(options.first_seed + 1),
                        size=shard.config.autoencoder.picture_px,
                        device_index=process.egl_index)
    generator.eval()
    run = _encoder(generator, process)
    for index, play in enumerate(shard.performances[:count]):
        frames, _ = renderer.render(play.identity, play.units, play.head, play.glasses, play.hat)
        groups = torch.from_numpy(frames).unflatten(0, (-1, FRAMES_PER_CHUNK))
        twin = torch.cat([run(part) for part in groups.split(64)])
        much = TWIN_LEAST + (1.0 - TWIN_LEAST) * float(torch.rand(()))
        own = shard.latents[index].float()
        shard.predicted[index] = (own + much * (twin - own)).half()
    renderer.close()
    generator.train()


def require_encoder(fresh: frozenset[str], weights: Path) -> None:
    """Refuse weights that cannot encode.

    Args:
        fresh: names that were missing in the weights.

    Raises:
        ValueError: if the encoder or the scale of its latents is among them.
    """
    if any(name.startswith(('autoencoder.encoder.', 'autoencoder.latent_')) for name in fresh):
        raise ValueError(f'{str(weights)!r} lacks the encoder or the scale of its latents, '
                         f'which clips are encoded with: give whole weights with --weights')


class ClipFolder:
    """The clips that `avatar render` writes into a folder, as they come.

    The first process notes the order in which files were found (`ORDER_NAME`), and every process
    takes those whose turn is its own. So nobody's turn shifts when a file comes whose name lies
    between others, and a later call finds the clips in the same order.

    Args:
        folder: what ``--out`` of the rendering was. process: who asks.
        say: told what has been taken.
    """

    def __init__(self, folder: Path, process: Process, config: GeneratorConfig,
                 say: Callable[[str], None] = print) -> None:
        self._folder, self._process, self._config, self._say = folder, process, config, say
        self._taken: set[Path] = set()
        self._looked = 0.0
        self.shard: Shard | None = None

    def first(self, seed: int, patience_s: float) -> Shard:
        """The shard with what is there; waits for a first file.

        Raises:
            FileNotFoundError: if none comes in time.
        """
        end = time.monotonic() + patience_s
        while not self._new():
            if time.monotonic() > end:
                raise FileNotFoundError(
                    f"no clips came to {str(self._folder)!r} in {patience_s:.0f} s: run "
                    f"'avatar render --out {self._folder}' before or beside this stage")
            time.sleep(0.2)
        self.take()
        assert self.shard is not None
        self.shard.random.manual_seed(seed)
        return self.shard

    def _new(self) -> list[Path]:
        order = self._folder / ORDER_NAME
        names = order.read_text().split() if order.is_file() else []
        if self._process.leads:
            known = set(names)
            fresh = sorted(path.name for path in self._folder.glob(f'{PREFIX}*.pt')
                           if path.name not in known)
            if fresh:
                names += fresh
                part = order.with_suffix(f'.{os.getpid()}.tmp')
                part.write_text('\n'.join(names) + '\n')
                part.replace(order)
        own = [self._folder / name for name in names[self._process.rank::self._process.world]]
        return [path for path in own if path not in self._taken and path.is_file()]

    def poll(self) -> None:
        """Between steps: take what has come, at most every `LOOK_AGAIN_S`."""
        if time.monotonic() - self._looked > LOOK_AGAIN_S:
            self.take()

    def take(self) -> None:
        """Take all new files into the shard."""
        self._looked = time.monotonic()
        new = self._new()
        if not new:
            return
        states = [torch.load(path, map_location=self._process.device, weights_only=True)
                  for path in new]
        if self.shard is None:
            self.shard = Shard.of(states, self._config, self._process.device, 0)
        else:
            self.shard.extend(states)
        self._taken.update(new)
        self._say(f'{len(self.shard.mel)} clips')


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='avatar render', description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('checkpoints/clips'))
    parser.add_argument('--assets', type=Path, default=Path('assets'),
                        help='folder with people.npz and speech/speech.npz')
    parser.add_argument('--weights', type=Path, default=Path('models/compact'),
                        help='whose encoder makes latents of the pictures: a safetensors file or '
                             'a released model')
    parser.add_argument('--clips', type=int, default=0, help='how many; 0: until it is stopped')
    parser.add_argument('--part-clips', type=int, default=60,
                        help='clips of one file, which has a population of its own')
    parser.add_argument('--clip-seconds', type=int, default=24,
                        help='length; all files of a folder must agree')
    parser.add_argument('--first-seed', type=int, default=1000,
                        help='a number for each of several commands that run side by side, at '
                             'least as far apart as each draws clips')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Render clips."""
    args = arguments(argv)
    process = Process.join()
    weights = args.weights / WEIGHTS_NAME if args.weights.is_dir() else args.weights
    # Latents are the same for decoders of all sizes, and pictures of the encoder's side are the
    # quickest to draw.
    config = saved_config(weights)
    config = replace(config, autoencoder=config.autoencoder.upscaled(1))
    generator = Generator(config)
    require_encoder(generator.load(weights, partial=True, misfits=True), weights)
    generator.to(process.device)
    args.out.mkdir(parents=True, exist_ok=True)
    start, made = time.monotonic(), 0

    def say(text: str) -> None:
        print(f'[{time.monotonic() - start:6.1f} s] {text}', flush=True)

    while not args.clips or made < args.clips:
        clips = min(args.part_clips, args.clips - made) if args.clips else args.part_clips
        seed = args.first_seed + made
        options = ShardOptions(clips=clips, seconds=args.clip_seconds, first_seed=seed,
                               render_seconds=float('inf'))
        shard = Shard.render(options, config, args.assets / 'people.npz',
                             args.assets / 'speech' / 'speech.npz', process.device,
                             device_index=process.egl_index, say=say)
        encode(generator, shard, process)
        shard.drop_frames()
        target = args.out / f'{PREFIX}{seed:09d}.pt'
        # Under another name until it is whole: a stage may be looking.
        part = target.with_suffix(f'.{os.getpid()}.tmp')
        torch.save({name: value.cpu() for name, value in shard.state().items()}, part)
        part.replace(target)
        made += clips
        say(f'{made} clips encoded')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
