# SPDX-License-Identifier: Apache-2.0
"""``avatar bench lips``: does the generated mouth say what is heard, on people never trained on.

The generator gets the sound, the reference and the prompts of a held-out set (`held_out`);
MediaPipe's face mesh measures lips on what it draws.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import judges, metrics, sync
from interactive_avatar.evaluation.held_out import (
    IDENTITY_EVERY_FRAMES,
    SHIPPED_SET,
    HeldOut,
    load_set,
)
from interactive_avatar.evaluation.model.play import Player, Setup
from interactive_avatar.evaluation.model.play import run as run_script
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.media.clock import (
    CHUNK_MS,
    FRAME_RATE_HZ,
    FRAMES_PER_CHUNK,
    SAMPLES_PER_FRAME,
)

AIM_CORRELATION = 0.85
AIM_LAG_MS = 40.0
AIM_SILENCE_SHARE = 0.05
# Lips meet in these, whoever speaks; and these vowels part them most.
BILABIALS = ('B', 'M', 'P')
OPEN_VOWELS = ('AA', 'AE', 'AH', 'AO', 'AW', 'AY')


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        model: folder of the generator's model.
        backend: what runs it.
        seed: of the sampler.
        source: folder of a held-out set.
        limit: how many performances at most; 0 for all.
        save: folder for the generated frames as videos; None to keep none.
        lookahead_ms: speech waited for before a frame is drawn; see `AvatarStream.open`.
    """

    model: str = 'models/compact'
    backend: str = 'onnx'
    seed: int = 0
    source: Path = SHIPPED_SET
    limit: int = 0
    save: Path | None = None
    lookahead_ms: int = CHUNK_MS


def generate(item: HeldOut, player: Player) -> NDArray[np.uint8]:
    """Frames that the generator draws for a performance, uint8 [n, H, W, 3], in step with it."""
    prompts = item.prompts[:item.frames // FRAMES_PER_CHUNK]
    return run_script(player.stream(item.reference, prompts[0]), prompts, item.audio)


def pooled(series: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
    """Put series behind each other, each to mean 0 and spread 1, apart by more than any lag."""
    gap = np.full(2 * metrics.MAX_LAG_FRAMES, np.nan)
    parts: list[NDArray[np.float64]] = []
    for one in series:
        values = np.asarray(one, np.float64)
        spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
        parts += [(values - np.nanmean(values)) / spread if spread > 1e-9
                  else np.full(values.size, np.nan), gap]
    return np.concatenate(parts)


def closures(item: HeldOut, gap: NDArray[np.float64]) -> tuple[NDArray[np.float64],
                                                               NDArray[np.float64]]:
    """Lip gap in the middle of the phones that need the lips to meet, and of open vowels.

    Args:
        item: a performance whose words are known.
        gap: float64 [n], lip gap by the judge, NaN without a face.

    Returns:
        float64 [c] at /b m p/ and float64 [v] at `OPEN_VOWELS`, NaN where no face was found.
    """
    found: dict[bool, list[float]] = {True: [], False: []}
    for word in item.words:
        for phone in word.phones:
            frame = int((phone.start_s + phone.end_s) / 2 * FRAME_RATE_HZ)
            if phone.name in (*BILABIALS, *OPEN_VOWELS) and frame < gap.size:
                found[phone.name in BILABIALS].append(float(gap[frame]))
    return np.array(found[True]), np.array(found[False])


def closing(items: Sequence[HeldOut], gaps: Sequence[NDArray[np.float64]]) -> float:
    """How surely lips are closer in /b m p/ than in open vowels of the same performance.

    It knows nothing of how wide a system opens the mouth, or of the curves that this project's
    renders move by: only which phone is heard.

    Args:
        items: the performances.
        gaps: float64 [n] each, lip gap by the judge, NaN without a face.

    Returns:
        1 if each closure is closer than each vowel, 0.5 by chance; mean over performances, NaN
        without any that has both.
    """
    each = [metrics.separation(*closures(item, gap))
            for item, gap in zip(items, gaps, strict=True)]
    known = [value for value in each if np.isfinite(value)]
    return float(np.mean(known)) if known else float('nan')


def summarise(items: Sequence[HeldOut], gaps: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Fit of measured lip gaps to the truth and to the sound, and motion of the mouth in silence.

    Args:
        items: the performances.
        gaps: float64 [n] each, lip gap by the judge, NaN without a face.
    """
    fits = [metrics.lip_fit(gap, item.mouth_open[:gap.size])
            for item, gap in zip(items, gaps, strict=True)]
    truth = [item.mouth_open[:gap.size] for item, gap in zip(items, gaps, strict=True)]
    speaking = [item.speaking()[:gap.size] for item, gap in zip(items, gaps, strict=True)]
    said = [np.where(on, gap, np.nan) for on, gap in zip(speaking, gaps, strict=True)]
    # Both to mean 0 and spread 1 over the same frames: what is left out of one is of both.
    whole, spoken = (metrics.lip_fit(pooled(chosen), pooled(
        [np.where(np.isfinite(gap), true, np.nan) for gap, true in zip(chosen, truth, strict=True)
         ])) for chosen in (gaps, said))
    ratios = [metrics.motion_ratio(gap, on) for gap, on in zip(gaps, speaking, strict=True)]
    known = [ratio for ratio in ratios if np.isfinite(ratio)]
    heard, other, heard_each = sync.sync_fits(items, gaps)
    return {'correlation': whole.correlation, 'correlation_at_zero': whole.correlation_at_zero,
            'lag_ms': whole.lag_ms, 'correlation_in_speech': spoken.correlation,
            'correlation_of_each': [fit.correlation for fit in fits],
            'lag_ms_of_each': [fit.lag_ms for fit in fits],
            'motion_in_silence': float(np.mean(known)) if known else float('nan'),
            'frames': whole.frames, 'closing': closing(items, gaps),
            'in_domain_sync_confidence': heard.confidence,
            'in_domain_sync_distance': heard.distance,
            'in_domain_sync_offset_ms': heard.offset_ms,
            'in_domain_sync_confidence_other_sound': other.confidence,
            'in_domain_sync_confidence_of_each': [fit.confidence for fit in heard_each],
            'in_domain_sync_offset_ms_of_each': [fit.offset_ms for fit in heard_each],
            'in_domain_sync_distances': heard.distances.tolist(),
            'frames_with_face': float(np.mean([np.isfinite(gap).mean() for gap in gaps]))}


def identity_figures(item: HeldOut, frames: NDArray[np.uint8], judge: judges.IdentityJudge
                     ) -> tuple[float, float]:
    """Median identity distance to the reference of generated and of true pictures."""
    reference = judge.embed(item.reference)
    drawn = metrics.identity_distance(judge.embed_all(frames[::IDENTITY_EVERY_FRAMES]), reference)
    true = metrics.identity_distance(item.true_identity, reference) \
        if item.true_identity.size else np.full(1, np.nan)

    def median(values: NDArray[np.float64]) -> float:
        return float(np.nanmedian(values)) if np.isfinite(values).any() else float('nan')

    return median(drawn), median(true)


def run(options: Options) -> dict[str, Any]:
    """Measure a model on a held-out set.

    Returns:
        Figures, and the series of each performance under ``plot``.

    Raises:
        judges.JudgeMissing: without mediapipe.
        FileNotFoundError: without a set or a model.
    """
    items = load_set(options.source, options.limit)
    player = Player(Setup(options.model, options.backend, options.seed,
                          lookahead_ms=options.lookahead_ms))
    gaps, distances = [], []
    identity = judges.IdentityJudge() if not judges.available()['dlib'] else None
    with judges.MeshJudge() as mesh:
        for item in items:
            frames = generate(item, player)
            gaps.append(mesh.track(frames).lip_gap)
            if identity is not None:
                distances.append(identity_figures(item, frames, identity))
            if options.save is not None:
                _save_video(item, frames, options.save)
            fit = metrics.lip_fit(gaps[-1], item.mouth_open[:gaps[-1].size])
            print(f'{item.name}: correlation {fit.correlation:.2f}, lag {fit.lag_ms:.0f} ms, face '
                  f'in {100 * np.isfinite(gaps[-1]).mean():.0f} % of {len(frames)} frames',
                  file=sys.stderr, flush=True)
    true_gaps = [item.true_gap[:item.frames].astype(np.float64) for item in items]
    result: dict[str, Any] = {
        'benchmark': 'lips', 'model': options.model, 'backend': options.backend,
        'lookahead_ms': options.lookahead_ms, 'performances': [item.name for item in items],
        'seconds': sum(item.frames for item in items) / FRAME_RATE_HZ,
        'judge': 'MediaPipe face mesh 0.10.21, lip gap over eye distance',
        'generated': summarise(items, gaps), 'true_pictures': summarise(items, true_gaps),
        'generated_against_true_pictures': metrics.lip_fit(
            pooled(gaps), pooled(true_gaps)).correlation,
        'aims': {'correlation': AIM_CORRELATION, 'lag_ms': AIM_LAG_MS,
                 'motion_in_silence': AIM_SILENCE_SHARE},
    }
    if distances:
        drawn, true = np.array(distances).T
        result['identity_distance'] = {
            name: float(values[np.isfinite(values)].mean()) if np.isfinite(values).any()
            else float('nan') for name, values in (('generated', drawn), ('true_pictures', true))}
    _print(result)
    result['plot'] = {'tracks': [
        {'generated': gap, 'true pictures': true, 'true': item.mouth_open[:item.frames]}
        for item, gap, true in zip(items, gaps, true_gaps, strict=True)]}
    return result


def _print(result: dict[str, Any]) -> None:
    rows = []
    for key, label, aim in (('correlation', 'correlation with the true opening',
                             f'≥ {AIM_CORRELATION}'),
                            ('correlation_in_speech', 'the same, frames with speech only', ''),
                            ('lag_ms', 'lag (ms, + is late)', f'±{AIM_LAG_MS:.0f}'),
                            ('motion_in_silence', 'motion in silence / in speech',
                             f'≤ {AIM_SILENCE_SHARE}'),
                            ('closing', 'lips closer in /b m p/ than in open vowels (0.5: '
                             'chance)', ''),
                            ('in_domain_sync_confidence', 'in-domain sync: confidence', ''),
                            ('in_domain_sync_confidence_other_sound',
                             "the same with another performance's sound", '0'),
                            ('in_domain_sync_distance', 'in-domain sync: distance', ''),
                            ('in_domain_sync_offset_ms',
                             'in-domain sync: offset (ms, + is a late picture)', ''),
                            ('frames_with_face', 'frames with a face', '')):
        rows.append([label, number(float(result['generated'][key])),
                     number(float(result['true_pictures'][key])), aim])
    if 'identity_distance' in result:
        row = result['identity_distance']
        rows.append(['identity distance to the reference', number(row['generated']),
                     number(row['true_pictures']), '< 0.48'])
    print(table(['figure', 'generated', 'true pictures, same judge', 'aim'], rows))


def _save_video(item: HeldOut, frames: NDArray[np.uint8], folder: Path) -> None:
    from interactive_avatar.media.video import VideoWriter

    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(folder / f'{item.name}.mp4', frames.shape[2], frames.shape[1]) as writer:
        writer.write(frames, item.audio[:len(frames) * SAMPLES_PER_FRAME])
