# SPDX-License-Identifier: Apache-2.0
"""Train the scorer of in-domain sync: ``python -m interactive_avatar.evaluation.train_sync``.

Learns from the training split of the speech library alone, sound against the lip opening that
follows from its mouth curves, by contrast (InfoNCE, van den Oord et al. 2018): each moment's mouth
is to find its sound among the shifts of ±15 frames, and among all moments of the batch, and the
other way round. The curves are disturbed so that what a face mesh measures on pictures looks
familiar. Prints what it reaches on voices and sentences of the test split.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.sync import (
    MARGIN,
    TOWERS,
    WEIGHTS,
    SyncScorer,
    scale_gap,
    scale_mel,
)
from interactive_avatar.media.mel import MEL_CEILING_LN, MEL_FLOOR_LN, mel_from_bytes
from interactive_avatar.training.common import learning_rate
from interactive_avatar.training.performances.mouth import mouth_opening
from interactive_avatar.training.speech.curves import MOUTH_UNITS, PAIRED_UNITS
from interactive_avatar.training.speech.library import SpeechLibrary, Utterance
from interactive_avatar.training.units import UNITS

SPEECH: Final = Path('assets/speech/speech.npz')
CLIP_FRAMES: Final = 80
BATCH: Final = 12
PEAK_RATE: Final = 2e-3
FIRST_SCALE: Final = 10.0
MOST_SCALE: Final = 40.0
BAND_SHIFT: Final = 4
TEST_CLIP_UTTERANCES: Final = 4

Floats = NDArray[np.float32]


class Tower(nn.Sequential):
    """A tower of `TOWERS`, [B, channels, time] to rows of length 1 [B, frames, EMBEDDING]."""

    def __init__(self, name: str) -> None:
        layers = TOWERS[name]
        super().__init__(*(nn.Conv1d(one.inputs, one.outputs, one.width, one.stride)
                           for one in layers))

    def forward(self, values: Tensor) -> Tensor:
        """Run it."""
        for index, layer in enumerate(self):
            values = layer(values)
            if index + 1 < len(self):
                values = F.relu(values)
        return F.normalize(values.transpose(1, 2), dim=2)


def opening_of(library: SpeechLibrary, utterance: Utterance) -> Floats:
    """True lip opening of an utterance, float32 [length], 1 is a fully open jaw."""
    units = np.zeros((utterance.length, len(UNITS)), np.float32)
    for name, curve in zip(MOUTH_UNITS, library.curves_of(utterance).T, strict=True):
        for unit in (f'{name}Left', f'{name}Right') if name in PAIRED_UNITS else (name,):
            units[:, UNITS.index(unit)] = curve
    return mouth_opening(units)


def disturb_opening(opening: Floats, rng: np.random.Generator) -> Floats:
    """Make a true opening look measured: smoothed, bent, noisy, drifting, at times stuck.

    All of it is symmetric in time, so that the scorer learns no lag.

    Args:
        opening: float32 [n].
        rng: random numbers.

    Returns:
        float32 [n], scaled as the scorer's mouth.
    """
    gap = np.asarray(opening, np.float64) / max(float(np.percentile(opening, 98)), 1e-3)
    gap = np.maximum(gap, 0.0) ** rng.uniform(0.7, 1.4)
    if rng.random() < 0.7:
        gap = gaussian_filter1d(gap, rng.uniform(0.3, 1.4), mode='nearest')
    spread = rng.uniform(0.0, 0.12) * rng.random()
    gap = gap + spread * rng.normal(size=gap.size)
    drift = gaussian_filter1d(rng.normal(size=gap.size), 20.0, mode='nearest')
    gap = gap + rng.uniform(0.0, 0.2) * drift / max(float(drift.std()), 1e-6)
    for start in np.flatnonzero(rng.random(gap.size) < 0.01):
        gap[start:start + 3] = gap[start]
    # A mesh does not see lips apart by less than some width.
    gap = np.maximum(gap, rng.uniform(-0.1, 0.12))
    scaled = scale_gap(gap)
    if not np.isfinite(scaled).all():
        return np.zeros(opening.size, np.float32)
    return np.asarray(scaled * rng.uniform(0.8, 1.25) + rng.uniform(-0.1, 0.1), np.float32)


def disturb_mel(mel: Floats, rng: np.random.Generator) -> Floats:
    """Other voices and rooms: shifted bands, gain, tilt, noise floor, bands left out.

    Args:
        mel: float32 [n, 64] in nepers.
        rng: random numbers.
    """
    shift = int(rng.integers(-BAND_SHIFT, BAND_SHIFT + 1))
    bands = mel.shape[1]
    out = mel[:, np.clip(np.arange(bands) - shift, 0, bands - 1)]
    tilt = rng.uniform(-1.5, 1.5) * np.linspace(-1.0, 1.0, bands)
    out = np.where(out <= MEL_FLOOR_LN + 0.1, out, out + rng.uniform(-2.5, 1.5) + tilt)
    if rng.random() < 0.4:
        out = np.maximum(out, MEL_FLOOR_LN + rng.uniform(0.0, 7.0)
                         + 0.5 * rng.normal(size=out.shape))
    if rng.random() < 0.4:
        width, first = int(rng.integers(1, 9)), int(rng.integers(0, bands - 8))
        out[:, first:first + width] = out.mean()
    return np.clip(out, MEL_FLOOR_LN, MEL_CEILING_LN).astype(np.float32)


class Clips:
    """Random stretches of the training split, disturbed."""

    def __init__(self, library: SpeechLibrary, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._rows = [(mel_from_bytes(library.mel_of(one)), opening_of(library, one), one)
                      for one in library.of_split('train')
                      if one.speech_end - one.speech_start >= CLIP_FRAMES // 2]
        # Voices first, so that the one that reads most does not set the tone.
        self._by_voice: dict[str, list[int]] = {}
        for index, (_, _, one) in enumerate(self._rows):
            self._by_voice.setdefault(one.voice.split('*')[0], []).append(index)
        self._voices = sorted(self._by_voice)

    def batch(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw some.

        Returns:
            Sound float32 [count, 64, 4 * CLIP_FRAMES], mouth float32 [count, 1, CLIP_FRAMES], and
            which frames hold speech, bool [count, CLIP_FRAMES - 10].
        """
        rng, sounds, mouths, spoken = self._rng, [], [], []
        for _ in range(count):
            # Half by voice and half by utterance: every voice is heard, and many sentences.
            pool = self._by_voice[self._voices[rng.integers(len(self._voices))]] \
                if rng.random() < 0.5 else range(len(self._rows))
            mel, opening, one = self._rows[pool[rng.integers(len(pool))]]
            gap, heard = disturb_opening(opening, rng), disturb_mel(mel, rng)
            missing = max(0, CLIP_FRAMES - one.length)
            gap = np.pad(gap, (0, missing), 'edge')
            heard = np.pad(heard, ((0, 4 * missing), (0, 0)), 'edge')
            start = int(rng.integers(0, gap.size - CLIP_FRAMES + 1))
            place = np.arange(start, start + CLIP_FRAMES)
            spoken.append((place >= one.speech_start) & (place < one.speech_end))
            mouths.append(gap[place])
            sounds.append(scale_mel(heard[4 * start:4 * (start + CLIP_FRAMES)]).T)
        return (torch.from_numpy(np.stack(sounds)), torch.from_numpy(np.stack(mouths))[:, None],
                torch.from_numpy(np.stack(spoken)[:, MARGIN:-MARGIN]))


def contrast(sound: Tensor, mouth: Tensor, spoken: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE over the shifts within a clip and over the whole batch, in both directions.

    Args:
        sound: [B, n, d] places of sounds, of length 1.
        mouth: [B, n, d] places of the mouths of the same moments.
        spoken: bool [B, n], moments that are asked about.
        scale: factor of the cosines.

    Returns:
        The mean loss, a scalar.
    """
    count = sound.shape[1]
    at = torch.arange(count)
    far = (at[:, None] - at[None]).abs() > metrics.MAX_SYNC_OFFSET_FRAMES
    within = (scale * mouth @ sound.transpose(1, 2))
    everything = scale * mouth.flatten(0, 1) @ sound.flatten(0, 1).T
    chosen, number = spoken.flatten(), torch.arange(spoken.numel())
    loss = torch.zeros(())
    for near, whole in ((within, everything), (within.transpose(1, 2), everything.T)):
        near = near.masked_fill(far, -1e4)[spoken]
        loss = loss + F.cross_entropy(near, at.expand(len(spoken), count)[spoken])
        loss = loss + 0.5 * F.cross_entropy(whole[chosen], number[chosen])
    return loss


def judge(scorer: SyncScorer, library: SpeechLibrary) -> dict[str, Any]:
    """Figures on the test split: its true openings, undisturbed, four utterances in a row.

    Returns:
        ``clips``, share of them whose offset is 0 (``found``), mean C in sync and with the sound
        of the next clip (``confidence``, ``confidence_of_other_sound``).
    """
    rows = library.of_split('test')
    fits, others = [], []
    parts = []
    for first in range(0, len(rows) - TEST_CLIP_UTTERANCES + 1, TEST_CLIP_UTTERANCES):
        some = rows[first:first + TEST_CLIP_UTTERANCES]
        mouth = scorer.mouth(
            np.concatenate([opening_of(library, one) for one in some]),
            np.concatenate([(np.arange(one.length) >= one.speech_start)
                            & (np.arange(one.length) < one.speech_end) for one in some]))
        sound = scorer.sound_of_mel(mel_from_bytes(
            np.concatenate([library.mel_of(one) for one in some])))
        parts.append((mouth, sound))
    for (mouth, sound), (_, other) in zip(parts, parts[1:] + parts[:1], strict=True):
        fits.append(metrics.in_domain_sync(mouth, sound))
        size = min(len(mouth), len(other))
        others.append(metrics.in_domain_sync(mouth[:size], other[:size]))
    return {'clips': len(fits), 'found': float(np.mean([fit.offset_ms == 0 for fit in fits])),
            'confidence': float(np.mean([fit.confidence for fit in fits])),
            'distance': float(np.mean([fit.distance for fit in fits])),
            'confidence_of_other_sound': float(np.mean([fit.confidence for fit in others]))}


def numbers(towers: nn.ModuleDict) -> dict[str, Tensor]:
    """Weights by the names that `SyncScorer` knows, as float16."""
    return {name: value.detach().half().contiguous()
            for name, value in towers.state_dict().items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--speech', type=Path, default=SPEECH)
    parser.add_argument('--steps', type=int, default=6000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    library = SpeechLibrary.load(options.speech)
    clips = Clips(library, options.seed)
    towers = nn.ModuleDict({name: Tower(name) for name in TOWERS})
    log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
    optimiser = torch.optim.AdamW([*towers.parameters(), log_scale], lr=PEAK_RATE,
                                  weight_decay=1e-2)
    started, seen = time.monotonic(), []
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group['lr'] = learning_rate(step / options.steps, PEAK_RATE)
        sound, mouth, spoken = clips.batch(BATCH)
        loss = contrast(towers['sound'](sound), towers['mouth'](mouth), spoken,
                        log_scale.exp().clamp(max=MOST_SCALE))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        seen.append(float(loss.detach()))
        if (step + 1) % 250 == 0:
            print(f'step {step + 1}: loss {np.mean(seen[-250:]):.3f}, '
                  f'{time.monotonic() - started:.0f} s', file=sys.stderr, flush=True)
    tensors = numbers(towers)
    figures = judge(SyncScorer({name: value.float().numpy() for name, value in tensors.items()}),
                    library)
    save_file(tensors, options.out, {
        'made_by': f'python -m interactive_avatar.evaluation.train_sync --steps {options.steps} '
                   f'--seed {options.seed}',
        'speech_sha256': hashlib.sha256(options.speech.read_bytes()).hexdigest(),
        'licence': 'Apache-2.0'})
    print(f'{options.out}: {options.out.stat().st_size / 1e3:.0f} kB; test split: ' + ', '.join(
        f'{name} {value:.3f}' if isinstance(value, float) else f'{name} {value}'
        for name, value in figures.items()))


if __name__ == '__main__':
    main()
