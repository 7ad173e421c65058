# SPDX-License-Identifier: Apache-2.0
"""Averages of weights that were trained from the same ones (``avatar average``).

Runs from one beginning lie in one basin, and an average of two that err in different places often
errs less than either (model soups, arXiv 2203.05482). What training changed in one part can be
kept and in another be put back (task arithmetic, arXiv 2212.04089): a recall that remembers more
shows actions more weakly, and the two lie in different parts (docs/training.md, "What the memory
holds").
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from interactive_avatar.generator.networks import saved_config, saved_weights
from interactive_avatar.training.pipeline import WEIGHTS, weights_file

SUM_WITHIN = 1e-6
"""Shares are typed by hand, as 0.33, 0.33, 0.34."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``avatar average``."""
    parser.add_argument('--weights', type=Path, required=True, nargs='+',
                        help=f'folders with {WEIGHTS} or its parts, as stages write, or released '
                             'models; what one of them lacks is left out')
    parser.add_argument('--shares', required=True, metavar='A,B',
                        help='of each of them; their sum is 1')
    parser.add_argument('--part', action='append', default=[], metavar='NAME=A,B',
                        help='other shares for weights with NAME in their names, as .up.=1,0; may '
                             'be given several times, the first that fits counts')
    parser.add_argument('--scale', action='append', default=[], metavar='NAME=FACTOR',
                        help='weights with NAME in their names are multiplied by it; may be given '
                             'several times')
    parser.add_argument('--out', type=Path, required=True, help=f'folder for {WEIGHTS}')


def shares_of(text: str, count: int) -> tuple[float, ...]:
    """Shares as they are typed, A,B.

    Raises:
        ValueError: if they are not ``count`` numbers whose sum is 1.
    """
    try:
        shares = tuple(float(part) for part in text.split(','))
    except ValueError:
        shares = ()
    if len(shares) != count or abs(sum(shares) - 1.0) > SUM_WITHIN:
        raise ValueError(f'the shares {text!r} are not {count} numbers whose sum is 1: give one '
                         f'for each folder of weights')
    return shares


def named(items: Sequence[str], what: str) -> dict[str, str]:
    """NAME=VALUE of arguments that may be given several times.

    Raises:
        ValueError: if one is not of that form.
    """
    found = {}
    for item in items:
        name, sign, value = item.partition('=')
        if not (name and sign and value):
            raise ValueError(f'{what} {item!r} is not NAME=VALUE')
        found[name] = value
    return found


def factor_of(text: str) -> float:
    """A factor as it is typed.

    Raises:
        ValueError: if it is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--scale: {text!r} is no number') from None


def average(weights: Sequence[Mapping[str, torch.Tensor]], shares: Sequence[float],
            parts: Mapping[str, Sequence[float]] | None = None,
            scales: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
    """Sums of weights of the same names, each times its share, float32.

    Args:
        weights: by name. shares: one for each.
        parts: shares of weights that have a key in their names, the first key counts.
        scales: factors of weights that have a key in their names.

    Raises:
        ValueError: if they have no name in common, some are of different shapes, or a part or
            scale fits none.
    """
    parts, scales = parts or {}, scales or {}
    names = sorted(set.intersection(*(set(each) for each in weights)))
    if not names:
        raise ValueError('these weights have no name in common: give such as one stage trained')
    for name in names:
        shapes = {tuple(each[name].shape) for each in weights}
        if len(shapes) > 1:
            raise ValueError(f'{name!r} has the shapes {sorted(shapes)}: these weights are of '
                             f'different configs')
    for key in (*parts, *scales):
        if not any(key in name for name in names):
            raise ValueError(f'no weight has {key!r} in its name; one is {names[0]!r}')
    made = {}
    for name in names:
        own = next((parts[key] for key in parts if key in name), shares)
        total = sum(share * each[name].float() for share, each in zip(own, weights, strict=True))
        assert isinstance(total, torch.Tensor)
        for key, factor in scales.items():
            if key in name:
                total = factor * total
        made[name] = total
    return made


def main(args: argparse.Namespace) -> int:
    """Average, and write float16 weights as stages do.

    Raises:
        ValueError: also if the output folder holds parts, which are joined over its weights when
            they are read.
    """
    if parts := sorted(args.out.glob(f'{WEIGHTS}.part*')):
        raise ValueError(f'{str(args.out)!r} holds what a stage wrote ({parts[0].name}), which '
                         f'would come back in place of the average: give --out another folder')
    files = [weights_file(folder, WEIGHTS) for folder in args.weights]
    count = len(files)
    weights = [saved_weights(file) for file in files]
    made = average(weights, shares_of(args.shares, count),
                   {name: shares_of(text, count)
                    for name, text in named(args.part, '--part').items()},
                   {name: factor_of(text) for name, text in named(args.scale, '--scale').items()})
    # The encoder's and the denoiser's configs are alike; the last decoder's is the made one's.
    config = saved_config(files[-1])
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / WEIGHTS
    save_file({name: value.half().contiguous() for name, value in made.items()}, str(target),
              {'config': config.to_json()})
    left = len(set.union(*(set(each) for each in weights))) - len(made)
    print(f'{target}: {len(made)} weights' + (f'; {left} others are not in all of them'
                                              if left else ''))
    return 0
