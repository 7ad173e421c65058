# SPDX-License-Identifier: Apache-2.0
"""In-domain sync: a small scorer, trained here, of how well lips and sound belong together.

Two towers of convolutions over time put 11 frames of the lip gap and the sound of the same 440 ms
into one space, near each other where they belong together. It hears log-mel and sees one number a
frame; it knows the synthetic voices and mouth curves of this project's speech library, and is
neither SyncNet nor comparable with its figures. `train_sync` makes the weights; this runs them in
numpy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.held_out import SHIPPED_SET, HeldOut, load_set
from interactive_avatar.media.clock import FRAME_RATE_HZ, SAMPLES_PER_FRAME
from interactive_avatar.media.mel import MEL_BANDS, log_mel

WEIGHTS: Final = Path(__file__).with_name('sync.safetensors')
WINDOW_FRAMES: Final = 11
STRETCH_FRAMES: Final = 25
MARGIN: Final = WINDOW_FRAMES // 2
EMBEDDING: Final = 64
# The lip gap's range over a clip goes to 0 to 1; percentiles, since single frames are misjudged.
LOW_PERCENT, HIGH_PERCENT = 5.0, 95.0
GAP_LEAST, GAP_MOST = -0.5, 2.0
# Near mean and spread of speech in nepers; fixed, so that a pause stays a pause.
MEL_CENTRE, MEL_SPREAD = -4.0, 4.0

Floats = NDArray[np.float32]


class Layer(NamedTuple):
    """A convolution over time without padding: channels in and out, width and stride."""

    inputs: int
    outputs: int
    width: int
    stride: int = 1


# Both towers see exactly 11 frames: 1 + 4 + 4 + 2, the sound's after 4 spectra a frame are one.
TOWERS: Final[Mapping[str, tuple[Layer, ...]]] = {
    'sound': (Layer(MEL_BANDS, 96, 4, 4), Layer(96, 96, 5), Layer(96, 96, 5),
              Layer(96, EMBEDDING, 3)),
    'mouth': (Layer(1, 48, 5), Layer(48, 96, 5), Layer(96, EMBEDDING, 3))}


def read_tensors(path: Path) -> dict[str, Floats]:
    """Read a safetensors file of F16 and F32 tensors as float32, without the package.

    Source: the format's description, https://github.com/huggingface/safetensors#format.

    Raises:
        FileNotFoundError: without the file.
        ValueError: if it is cut off or not of this format.
    """
    data = path.read_bytes()
    kinds: dict[str, Any] = {'F16': np.dtype('<f2'), 'F32': np.dtype('<f4')}
    try:
        size = int.from_bytes(data[:8], 'little')
        head = json.loads(data[8:8 + size])
        body = data[8 + size:]
        return {name: np.frombuffer(body[slice(*entry['data_offsets'])], kinds[entry['dtype']])
                .reshape(entry['shape']).astype(np.float32)
                for name, entry in head.items() if name != '__metadata__'}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is not a whole safetensors file of F16 or F32: {error}; '
                         f'install the package anew') from error


def scale_gap(gap: NDArray[np.floating], chosen: NDArray[np.bool_] | None = None) -> Floats:
    """Put a clip's lip gap into the range that the mouth's tower knows.

    Args:
        gap: [n], any unit, NaN without a face.
        chosen: bool [n], frames whose 5th and 95th percentile become 0 and 1; all if None.

    Returns:
        float32 [n], clipped to -0.5 to 2; NaN throughout if the gap never changes.
    """
    values = np.asarray(gap, np.float64)
    known = np.isfinite(values) if chosen is None else np.isfinite(values) & chosen
    if not known.any():
        return np.full(values.size, np.nan, np.float32)
    low, high = np.percentile(values[known], (LOW_PERCENT, HIGH_PERCENT))
    if high - low < 1e-9:
        return np.full(values.size, np.nan, np.float32)
    return np.clip((values - low) / (high - low), GAP_LEAST, GAP_MOST).astype(np.float32)


def scale_mel(mel: Floats) -> Floats:
    """Log-mel in nepers to about mean 0 and spread 1, same shape."""
    return np.asarray((mel - MEL_CENTRE) / MEL_SPREAD, np.float32)


class SyncScorer:
    """The scorer, in numpy.

    Args:
        tensors: ``<tower>.<layer>.weight`` [out, in, width] and ``.bias`` [out] of `TOWERS`.

    Raises:
        ValueError: if a tensor is missing or has another shape.
    """

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._tensors = dict(tensors)
        for tower, layers in TOWERS.items():
            for index, layer in enumerate(layers):
                shapes = {'weight': (layer.outputs, layer.inputs, layer.width),
                          'bias': (layer.outputs,)}
                for part, shape in shapes.items():
                    found = self._tensors.get(f'{tower}.{index}.{part}')
                    if found is None or found.shape != shape:
                        raise ValueError(
                            f'{tower}.{index}.{part} must be {shape}, got '
                            f'{None if found is None else found.shape}: train the scorer again '
                            f'with "python -m interactive_avatar.evaluation.train_sync"')

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> SyncScorer:
        """The scorer with the weights of a file, by default those of this package.

        Raises:
            FileNotFoundError: without the file.
            ValueError: if it is not one of this scorer.
        """
        return cls(read_tensors(path))

    def _run(self, tower: str, values: Floats) -> NDArray[np.float64]:
        """[time, channels] to rows of length 1, float64 [n, EMBEDDING], one per frame but for
        the margins, which are NaN."""
        layers = TOWERS[tower]
        for index, layer in enumerate(layers):
            seen = np.lib.stride_tricks.sliding_window_view(values, layer.width, axis=0)
            seen = seen[::layer.stride]  # [time, channels, width]
            weight = self._tensors[f'{tower}.{index}.weight'].reshape(layer.outputs, -1)
            bias = self._tensors[f'{tower}.{index}.bias']
            values = seen.reshape(len(seen), -1) @ weight.T + bias
            if index + 1 < len(layers):
                values = np.maximum(values, 0.0)
        rows = values.astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        margin = np.full((MARGIN, EMBEDDING), np.nan)
        return np.concatenate([margin, rows, margin])

    def mouth(self, gap: NDArray[np.floating], chosen: NDArray[np.bool_] | None = None
              ) -> NDArray[np.float64]:
        """Place the mouth of each frame.

        Args:
            gap: [n] lip gap, any unit, NaN without a face.
            chosen: bool [n], frames that are judged (and give the gap's range); all if None.

        Returns:
            float64 [n, EMBEDDING]; NaN in frames that are not chosen, whose 11 frames hold one
            without a face, or nearer to an end than 5.

        Raises:
            ValueError: with fewer than 11 frames, or flags of another number.
        """
        if gap.ndim != 1 or gap.size < WINDOW_FRAMES:
            raise ValueError(f'lip gap of shape {gap.shape}: need one value for each of '
                             f'{WINDOW_FRAMES} frames or more')
        if chosen is not None and chosen.shape != gap.shape:
            raise ValueError(f'{gap.size} lip gaps but {chosen.size} flags: need one each')
        scaled = scale_gap(gap, chosen)
        # NaN spreads over exactly the windows that hold it (ReLU by np.maximum keeps it).
        rows = self._run('mouth', scaled[:, None])
        if chosen is not None:
            rows[~chosen] = np.nan
        return rows

    def sound(self, audio: NDArray[np.int16]) -> NDArray[np.float64]:
        """Place the sound of each frame.

        Args:
            audio: int16 [640 n], 16 kHz, n at least 11.

        Returns:
            float64 [n, EMBEDDING], NaN nearer to an end than 5 frames.

        Raises:
            ValueError: on another length.
        """
        if audio.size < WINDOW_FRAMES * SAMPLES_PER_FRAME or audio.size % SAMPLES_PER_FRAME:
            raise ValueError(f'{audio.size} samples: need {SAMPLES_PER_FRAME} for each of '
                             f'{WINDOW_FRAMES} frames or more')
        return self.sound_of_mel(log_mel(audio))

    def sound_of_mel(self, mel: Floats) -> NDArray[np.float64]:
        """The same from the log-mel of the sound, float32 [4 n, 64] in nepers."""
        return self._run('sound', scale_mel(mel))

    def measure(self, clips: Sequence[tuple[NDArray[np.floating], NDArray[np.int16],
                                            NDArray[np.bool_] | None]]) -> metrics.SyncFit:
        """In-domain sync over all frames of some clips.

        Args:
            clips: lip gap [n], sound int16 [640 n], flags of the frames with speech bool [n] or
                None for all.

        Returns:
            The fit; a positive offset is a late picture.

        Raises:
            ValueError: if a clip's parts do not have the same number of frames.
        """
        if not clips:
            nothing = np.zeros((0, EMBEDDING))
            return metrics.in_domain_sync(nothing, nothing)
        apart = np.full((metrics.MAX_SYNC_OFFSET_FRAMES, EMBEDDING), np.nan)
        mouths, sounds = [apart], [apart]
        for gap, audio, speaking in clips:
            if audio.size != gap.size * SAMPLES_PER_FRAME:
                raise ValueError(f'{gap.size} lip gaps but {audio.size} samples: need '
                                 f'{SAMPLES_PER_FRAME} samples per frame')
            mouths += [self.mouth(gap, speaking), apart]
            sounds += [self.sound(audio), apart]
        return metrics.in_domain_sync(np.concatenate(mouths), np.concatenate(sounds))


@lru_cache(maxsize=1)
def shipped() -> SyncScorer:
    """The package's scorer, read once."""
    return SyncScorer.load()


def sync_fits(items: Sequence[HeldOut], gaps: Sequence[NDArray[np.float64]], shift: int = 0
              ) -> tuple[metrics.SyncFit, metrics.SyncFit, list[metrics.SyncFit]]:
    """In-domain sync of measured lip gaps with the sound, over frames with speech.

    Args:
        items: the performances.
        gaps: float64 [n] each, lip gap by the judge, NaN without a face.
        shift: frames by which the sound comes early (what passes the end comes in at the start),
            so that pictures in sync are late by as much.

    Returns:
        The fit over all; over all with the sound of the next performance (NaN if there is but
        one); the fit of each.
    """
    scorer = shipped()
    clips = [(gap, np.roll(item.audio[:gap.size * SAMPLES_PER_FRAME], -shift * SAMPLES_PER_FRAME),
              item.speaking()[:gap.size]) for item, gap in zip(items, gaps, strict=True)]
    others = []
    for index, (gap, _, speaking) in enumerate(clips):
        sound = clips[(index + 1) % len(clips)][1]
        size = min(gap.size, sound.size // SAMPLES_PER_FRAME)
        if len(clips) > 1:
            others.append((gap[:size], sound[:size * SAMPLES_PER_FRAME], speaking[:size]))
    return scorer.measure(clips), scorer.measure(others), [scorer.measure([one]) for one in clips]


def draw(curves: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Draw distances float64 [2 m + 1] over the shifts, by name, into a picture."""
    from interactive_avatar.evaluation.plots import axes_of

    figure, (axes,) = axes_of(1, 2.6)
    for name, distances in curves.items():
        most = distances.size // 2
        axes.plot(np.arange(-most, most + 1) * 1000.0 / FRAME_RATE_HZ, distances, marker='.',
                  label=name)
    axes.set(xlabel='picture later than sound by (ms)', ylabel='distance of sound\nand lips')
    axes.legend(frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Check the scorer on the true pictures of a held-out set: in sync, with another performance's
    sound, and with the sound early by some frames."""
    from interactive_avatar.evaluation.report import number, table

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--source', type=Path, default=SHIPPED_SET, help='a held-out set')
    parser.add_argument('--plot', type=Path, help='picture of the distances to write')
    parser.add_argument('--bench', type=Path,
                        help='lips.json of `avatar bench lips`, whose pictures go into the plot')
    options = parser.parse_args()
    items = load_set(options.source)
    gaps = [item.true_gap[:item.frames].astype(np.float64) for item in items]
    fit, other, each = sync_fits(items, gaps)
    spread = [one.confidence for one in each]
    print(table(['true pictures with', 'C', 'D', 'offset (ms)', 'frames'], [
        [name, number(one.confidence), number(one.distance), number(one.offset_ms),
         str(one.frames)] for name, one in (('their sound', fit), ("another's sound", other))]))
    print(f'C of each: {min(spread):.2f} to {max(spread):.2f}; offset 0 in '
          f'{sum(one.offset_ms == 0 for one in each)} of {len(each)}.')
    most = metrics.MAX_SYNC_OFFSET_FRAMES
    found = sum(round(one.offset_ms * FRAME_RATE_HZ / 1000.0) == shift
                for shift in range(-most, most + 1) for one in sync_fits(items, gaps, shift)[2])
    if options.plot is not None:
        curves = {'true pictures': fit.distances, "another's sound": other.distances}
        if options.bench is not None:
            drawn = json.loads(options.bench.read_text(encoding='utf-8'))['generated']
            curves['generated'] = np.array(drawn['in_domain_sync_distances'])
        draw(curves, options.plot)
    scorer, right = shipped(), []
    for item, gap in zip(items, gaps, strict=True):
        mouth = scorer.mouth(gap, item.speaking()[:gap.size])
        sound = scorer.sound(item.audio[:gap.size * SAMPLES_PER_FRAME])
        for first in range(most, gap.size - most - STRETCH_FRAMES + 1, STRETCH_FRAMES):
            part = slice(first - most, first + STRETCH_FRAMES + most)
            short = metrics.in_domain_sync(mouth[part], sound[part])
            if short.frames == STRETCH_FRAMES:
                right.append(short.offset_ms == 0)
    print(f'Stretches of {STRETCH_FRAMES} frames of speech: offset 0 in {sum(right)} of '
          f'{len(right)}.')
    print(f'Sound shifted by -{most} to {most} frames: {found} of {(2 * most + 1) * len(items)} '
          f'shifts found exactly.')


if __name__ == '__main__':
    main()
