# SPDX-License-Identifier: Apache-2.0
"""Plot performances: `python -m interactive_avatar.training.performances.plot --seeds 1 2`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from interactive_avatar.media.clock import CHUNK_MS, FRAME_RATE_HZ, SAMPLE_RATE_HZ
from interactive_avatar.training.performances.compose import Performance, compose
from interactive_avatar.training.speech.library import SpeechLibrary
from interactive_avatar.training.units import UNITS

_ROWS = (
    ('browInnerUp', 'browDownLeft', 'browOuterUpLeft', 'mouthSmileLeft', 'mouthFrownLeft',
     'eyeWideLeft'),
    ('eyeBlinkLeft', 'eyeLookOutLeft', 'eyeLookInLeft', 'eyeLookUpLeft', 'eyeLookDownLeft'),
    ('jawOpen', 'mouthFunnel', 'mouthPucker', 'mouthPressLeft', 'mouthRollLower'))


def plot(performance: Performance, library: SpeechLibrary, path: Path) -> None:
    """Write a picture of a performance's curves, sound, actions and prompts to `path`."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    times_s = np.arange(performance.frames) / FRAME_RATE_HZ
    figure, axes = plt.subplots(3 + len(_ROWS), 1, figsize=(20, 18), sharex=True)
    sound = performance.audio(library) / 32768.0
    axes[0].plot(np.arange(sound.size) / SAMPLE_RATE_HZ, sound, lw=.3, color='gray')
    axes[0].plot(times_s, performance.mouth_open, lw=1)
    axes[0].set_title(f'identity {performance.identity}: sound and true mouth opening')
    for event in performance.events:
        for axis in axes:
            axis.axvspan(event.start_frame / FRAME_RATE_HZ, event.end_frame / FRAME_RATE_HZ,
                         color='y', alpha=.2)
        label = ' '.join([event.action, *(value for _, value in event.slots)])
        axes[0].text(event.start_frame / FRAME_RATE_HZ, .6, label, fontsize=8, rotation=20)
    for column, name in enumerate(('yaw rad', 'pitch rad', 'roll rad')):
        axes[1].plot(times_s, performance.head[:, column], label=name)
    for column, name in enumerate(('x m', 'y m', 'z m')):
        axes[2].plot(times_s, performance.head[:, 3 + column], label=name)
    axes[2].plot(times_s, .5 * performance.glasses, '--', label='glasses / 2')
    axes[2].plot(times_s, .5 * performance.hat, ':', label='hat / 2')
    last = -1
    for chunk, number in enumerate(performance.prompt_ids):
        if number != last:
            axes[1].text(chunk * CHUNK_MS / 1000.0, .5, performance.prompts[number], fontsize=7,
                         rotation=18)
        last = number
    axes[1].set_ylim(-.7, .9)
    for axis, names in zip(axes[3:], _ROWS):
        for name in names:
            axis.plot(times_s, performance.units[:, UNITS.index(name)], lw=1, label=name)
    for axis in axes[1:]:
        axis.legend(loc='upper right', fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--speech', type=Path, default=Path('assets/speech/speech.npz'))
    parser.add_argument('--out', type=Path, default=Path('out/performances'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[1])
    parser.add_argument('--people', type=int, default=220, help='number of identities')
    parser.add_argument('--split', choices=('train', 'test'), default='train')
    options = parser.parse_args(arguments)
    library = SpeechLibrary.load(options.speech)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        performance = compose(seed, range(options.people), library, split=options.split)
        plot(performance, library, options.out / f'{options.split}{seed}.png')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
