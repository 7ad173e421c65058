# SPDX-License-Identifier: Apache-2.0
"""Contact sheets to judge the people by: `python -m interactive_avatar.training.render.look`.

Open them. Would a stranger like this face on a robot? Melted lids, stern looks, hair over the
eyes, a white slit between closed lips: all show here before they show in a trained model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from interactive_avatar.training.render.renderer import Renderer
from interactive_avatar.training.units import UNITS, index

# unit amounts; a name that ends in LR stands for both sides
EXPRESSIONS: dict[str, dict[str, float]] = {
    'neutral': {},
    'smile': {'mouthSmileLR': 0.8, 'cheekSquintLR': 0.4, 'mouthUpperUpLR': 0.25},
    'frown': {'mouthFrownLR': 0.7, 'browDownLR': 0.6},
    'surprise': {'jawOpen': 0.3, 'browInnerUp': 0.9, 'browOuterUpLR': 0.8, 'eyeWideLR': 0.7},
    'blink': {'eyeBlinkLR': 1.0},
    'half blink': {'eyeBlinkLR': 0.5},
    'left': {'eyeLookOutLeft': 0.9, 'eyeLookInRight': 0.9},
    'up': {'eyeLookUpLR': 0.8},
    'down': {'eyeLookDownLR': 0.8, 'eyeBlinkLR': 0.25},
}
SOUNDS: dict[str, dict[str, float]] = {
    'rest': {},
    'aa': {'jawOpen': 0.55, 'mouthLowerDownLR': 0.3, 'mouthUpperUpLR': 0.25},
    'ee': {'jawOpen': 0.18, 'mouthStretchLR': 0.4, 'mouthSmileLR': 0.3, 'mouthLowerDownLR': 0.4,
           'mouthUpperUpLR': 0.3},
    'oo': {'jawOpen': 0.2, 'mouthFunnel': 0.6, 'mouthPucker': 0.4},
    'oh': {'jawOpen': 0.4, 'mouthFunnel': 0.5},
    'm': {'mouthPressLR': 0.4, 'mouthRollLower': 0.3, 'mouthRollUpper': 0.3},
    'f': {'jawOpen': 0.1, 'mouthRollLower': 0.55, 'mouthUpperUpLR': 0.35},
    'w': {'mouthPucker': 0.9, 'jawOpen': 0.08},
}


def units_of(amounts: dict[str, float]) -> np.ndarray:
    """Write named amounts as a row of units: float32 [52]."""
    row = np.zeros(len(UNITS), np.float32)
    for name, amount in amounts.items():
        sides = [name] if not name.endswith('LR') else [name[:-2] + s for s in ('Left', 'Right')]
        for side in sides:
            row[index(side)] = amount
    return row


def sheet(frames: np.ndarray, columns: int) -> Image.Image:
    """Lay frames uint8 [n, h, w, 3] out in rows."""
    blank = [np.zeros_like(frames[0])] * (-len(frames) % columns)
    cells = list(frames) + blank
    rows = [np.concatenate(cells[i:i + columns], 1) for i in range(0, len(cells), columns)]
    return Image.fromarray(np.concatenate(rows))


def bench(renderer: Renderer, frames: int) -> float:
    """Measure frames per second: clips of one person each, mouths and heads moving."""
    rng = np.random.default_rng(0)
    units = rng.random((frames, len(UNITS)), np.float32) * 0.3
    head = rng.normal(0, 0.1, (frames, 6)).astype(np.float32) * [1, 1, 1, 0.3, 0.3, 0.3]
    who = np.repeat(rng.integers(0, len(renderer.people), frames // 64 + 1), 64)[:frames]
    renderer.render(who[:256], units[:256], head[:256])
    start = time.perf_counter()
    renderer.render(who, units, head, glasses=rng.integers(0, 2, frames))
    return frames / (time.perf_counter() - start)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--people', type=Path, default=Path('assets/people.npz'))
    parser.add_argument('--out', type=Path, default=Path('out/render'))
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--identities', type=int, nargs='*', help='who, on the detail sheets')
    parser.add_argument('--device-index', type=int, default=0)
    parser.add_argument('--bench', type=int, default=0, help='frames to measure the speed with')
    options = parser.parse_args()
    start = time.perf_counter()
    renderer = Renderer(options.people, options.size, options.device_index)
    print(f'{renderer.device}: ready in {time.perf_counter() - start:.1f} s')
    if options.bench:
        print(f'{bench(renderer, options.bench):.0f} frames/s at {options.size} pixels')
        return
    options.out.mkdir(parents=True, exist_ok=True)
    everybody = np.arange(len(renderer.people))
    for first in range(0, len(everybody), 60):
        who = everybody[first:first + 60]
        frames, _ = renderer.render(who, np.zeros((len(who), len(UNITS))))
        sheet(frames, 10).save(options.out / f'people_{first:03d}.png')
    some = options.identities or everybody[::max(1, len(everybody) // 6)][:6].tolist()
    for name, table in (('expressions', EXPRESSIONS), ('sounds', SOUNDS)):
        units = np.stack([units_of(amounts) for amounts in table.values()])
        rows = [renderer.render(i, units)[0] for i in some]
        sheet(np.concatenate(rows), len(table)).save(options.out / f'{name}.png')
    head = np.zeros((10, 6), np.float32)
    head[[0, 1], 0] = 0.5, -0.5
    head[[2, 3], 1] = 0.3, -0.3
    head[[4, 5], 2] = 0.25, -0.25
    head[6, 3], head[7, 5] = 0.3, 0.25
    glasses = np.array([1, 1, 0, 1, 0, 1, 0, 0, 0.5, 1])
    hat = np.array([0, 1, 1, 0, 1, 0, 0, 0, 0, 0.5])
    rows = [renderer.render(i, np.zeros((10, len(UNITS))), head, glasses, hat)[0] for i in some]
    sheet(np.concatenate(rows), 10).save(options.out / 'poses.png')
    print(f'sheets in {options.out}')


if __name__ == '__main__':
    main()
