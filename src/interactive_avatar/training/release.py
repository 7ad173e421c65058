# SPDX-License-Identifier: Apache-2.0
"""Makes a model directory from trained weights: graphs, manifest, named reference pictures."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.export import export
from interactive_avatar.generator.model import CONFIG_NAME, IDENTITIES_NAME
from interactive_avatar.generator.networks import Generator, saved_config
from interactive_avatar.generator.sampler import levels_of
from interactive_avatar.media.picture import read_image, write_image
from interactive_avatar.training.pipeline import WEIGHTS, weights_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``avatar export``."""
    parser.add_argument('--weights', type=Path, required=True, nargs='+',
                        help=f'folders with {WEIGHTS} or its parts, as stages write, or released '
                             'models; later ones overrule earlier ones')
    parser.add_argument('--levels', default='', metavar='L,L',
                        help="noise levels of the model's sampler, as 1,0.5, one for each step; "
                             "left out, a released model's own, else 1,0.5")
    parser.add_argument('--upscale', type=int, default=0, metavar='N',
                        help="pictures of N times the encoder's side (256 pixels); a decoder for "
                             'smaller ones is widened, to be trained on. Left out, as the last '
                             'decoder among the weights has it')
    parser.add_argument('--out', type=Path, default=Path('models/compact'))
    parser.add_argument('--people', type=Path, default=Path('assets/people.npz'),
                        help='baked people, for the reference pictures')
    parser.add_argument('--identity', action='append', default=[], metavar='NAME=NUMBER',
                        help='a named reference picture; may be given several times')


def has_decoder(file: Path) -> bool:
    """Whether weights have a decoder among them."""
    with safe_open(str(file), 'pt') as stored:
        return any(name.startswith('autoencoder.decoder.') for name in stored.keys())


def main(args: argparse.Namespace) -> int:
    """Export weights and draw the named identities; those of a released model come along.

    Raises:
        ValueError: if some part of the model has no weights, or an identity is no NAME=NUMBER.
    """
    files = [weights_file(folder, WEIGHTS) for folder in args.weights]
    config, levels = GeneratorConfig(), levels_of(args.levels)
    for folder in args.weights:
        if (folder / CONFIG_NAME).is_file():
            config = GeneratorConfig.from_json((folder / CONFIG_NAME).read_text())
    saved = [saved_config(file) for file in files]
    # A token refiner and a blink come after the rest, in weights of their own.
    refined = max((each.denoiser for each in saved), key=lambda d: d.refiner_layers)
    config = replace(config, denoiser=replace(
        config.denoiser, refiner_layers=refined.refiner_layers,
        refiner_heads=refined.refiner_heads, refiner_ffn_width=refined.refiner_ffn_width,
        blink_rows=max(each.denoiser.blink_rows for each in saved),
        passing=any(each.denoiser.passing for each in saved)))
    # Stages that leave the decoder alone may have been run beside a smaller one.
    upscale = args.upscale or next((
        each.autoencoder.upscale for file, each in zip(reversed(files), reversed(saved),
                                                       strict=True) if has_decoder(file)), 1)
    config = replace(config, autoencoder=config.autoencoder.upscaled(upscale))
    if levels:
        config = replace(config, sampler=replace(config.sampler, levels=levels))
    generator = Generator(config)
    fresh = frozenset(generator.state_dict())
    for file in files:
        fresh &= generator.load(file, partial=True, widen=True)
    if fresh:
        raise ValueError(
            f'{len(fresh)} weights are in none of {", ".join(map(str, args.weights))}, such as '
            f'{min(fresh)!r}: stages write what they trained to --out and the whole model to '
            f'--state, so give that folder (checkpoints/state) or both')
    export(generator, args.out)
    for folder in args.weights:
        if (folder / IDENTITIES_NAME).is_dir() and folder.resolve() != args.out.resolve():
            shutil.copytree(folder / IDENTITIES_NAME, args.out / IDENTITIES_NAME,
                            dirs_exist_ok=True)
    if args.identity:
        from interactive_avatar.training.render.renderer import Renderer
        renderer = Renderer(args.people, size=config.autoencoder.picture_px)
        folder = args.out / IDENTITIES_NAME
        folder.mkdir(exist_ok=True)
        for item in args.identity:
            name, _, number = item.partition('=')
            if not number.isdigit():
                raise ValueError(f'--identity {item!r} is not NAME=NUMBER')
            write_image(folder / f'{name}.png', renderer.reference_view(int(number)))
        renderer.close()
    side = config.autoencoder.picture_px
    if config.autoencoder.upscale > 1:
        for path in sorted((args.out / IDENTITIES_NAME).glob('*.png')):
            if (own := min(read_image(path).shape[:2])) < side:
                print(f'{path} has {own} pixels where the model draws {side}, and would be '
                      f'enlarged: draw it anew with --identity {path.stem}=NUMBER')
    size_mb = (args.out / 'model.safetensors').stat().st_size / 1e6
    print(f'{args.out}: {size_mb:.1f} MB of weights, '
          f'{len(list(args.out.glob("*.onnx")))} graphs')
    return 0
