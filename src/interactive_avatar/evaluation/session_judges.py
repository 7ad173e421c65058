# SPDX-License-Identifier: Apache-2.0
"""What the independent judges see in a recorded session: lips, blinks, identity, sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import judges, metrics, sync
from interactive_avatar.evaluation.bag import NS_PER_S, Recording
from interactive_avatar.evaluation.session import (
    Analysis,
    levels_dbfs,
    resting_mask,
    speaking_mask,
)
from interactive_avatar.media.clock import (
    FRAME_MS,
    FRAME_NS,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
)

IDENTITY_PERIOD_S = 1.0
Series = NDArray[np.float64]


def loudness_at(recording: Recording, stamps_ns: NDArray[np.int64]) -> Series:
    """Level of the avatar's sound at each picture, dBFS float64 [n]; NaN where there is none."""
    stamps, levels = levels_dbfs(recording.audio)
    if not stamps.size:
        return np.full(stamps_ns.size, np.nan)
    at = np.clip(np.searchsorted(stamps, stamps_ns, side='right') - 1, 0, stamps.size - 1)
    near = np.abs(stamps[at] - stamps_ns) <= FRAME_NS
    return np.where(near, levels[at], np.nan)


def _lips(recording: Recording, stamps: NDArray[np.int64], gap: Series, opening: Series
          ) -> dict[str, float]:
    seconds = (stamps - stamps[0]) / NS_PER_S
    speaking = speaking_mask(recording, stamps)
    # Rest and speech only: gestures open mouths on purpose.
    chosen = speaking | resting_mask(recording, stamps)
    figures = {
        'frames_with_face': float(np.isfinite(gap).mean()),
        'lip_motion_at_rest_to_speech': metrics.motion_ratio(
            np.where(chosen, gap, np.nan), speaking),
        'lip_gap_at_rest': metrics.percentiles(gap[chosen & ~speaking])['p50'],
        'lip_gap_in_speech_p95': metrics.percentiles(gap[speaking])['p95'],
        'blinks_per_minute': metrics.blinks_per_minute(opening, seconds)}
    # In speech alone, so that silence against speech does not make up the correlation.
    spoken = np.where(speaking, gap, np.nan)
    if gap.size > 2 * metrics.MAX_LAG_FRAMES:
        fit = metrics.lip_fit(spoken, loudness_at(recording, stamps))
        figures |= {'lip_gap_to_loudness': fit.correlation,
                    'lip_gap_to_loudness_lag_ms': fit.lag_ms}
    return figures


def sync_fit(recording: Recording, stamps_ns: NDArray[np.int64], gap: Series
             ) -> metrics.SyncFit | None:
    """In-domain sync of the avatar's lips with its sound, over frames with speech.

    Lips and sound are laid out by their stamps; where no sound came there is silence, and where
    no picture came no face.

    Args:
        recording: the session.
        stamps_ns: int64 [n], stamps of the pictures, sorted.
        gap: float64 [n], lip gap of each, NaN without a face.

    Returns:
        The fit, its offset positive if the picture is late; None without sound, without speech,
        or with too few frames that show a face.
    """
    if not recording.audio or not stamps_ns.size:
        return None
    frame = np.rint((stamps_ns - stamps_ns[0]) / FRAME_NS).astype(np.int64)
    count = max(int(frame[-1]) + 1, sync.WINDOW_FRAMES)
    lips = np.full(count, np.nan)
    lips[frame] = gap
    sound = np.zeros(count * SAMPLES_PER_FRAME, np.int16)
    for piece in recording.audio:
        at = round((piece.stamp_ns - int(stamps_ns[0])) * SAMPLE_RATE_HZ / NS_PER_S)
        first, last = max(at, 0), min(at + piece.samples.size, sound.size)
        if first < last:
            sound[first:last] = piece.samples[first - at:last - at]
    speaking = speaking_mask(recording,
                             stamps_ns[0] + FRAME_NS * np.arange(count, dtype=np.int64))
    fit = sync.shipped().measure([(lips, sound, speaking)])
    return fit if np.isfinite(fit.confidence) else None


def judge_session(analysis: Analysis, say: Callable[[str], None] = lambda _: None
                  ) -> dict[str, Any]:
    """Ask the judges about a session.

    Args:
        analysis: of a session with pictures; its ``series`` gets ``lip_gap`` and ``eye_opening``
            [pictures], ``sync_offset_ms`` and ``sync_distance`` [shifts] of in-domain sync,
            ``identity_s`` and ``identity_distance`` [seconds].
        say: called with each line of progress.

    Returns:
        Figures by name, None where nothing could be measured.

    Raises:
        judges.JudgeMissing: if no judge is installed.
    """
    recording = analysis.recording
    pictures = sorted({p.stamp_ns: p for p in recording.pictures}.values(),
                      key=lambda picture: picture.stamp_ns)
    stamps = np.array([picture.stamp_ns for picture in pictures], np.int64)
    seconds = (stamps - stamps[0]) / NS_PER_S
    result: dict[str, Any] = {}
    missing = []
    try:
        with judges.MeshJudge() as mesh:
            say('asking the face mesh')
            track = mesh.track(picture.decode() for picture in pictures)
        analysis.series |= {'lip_gap': track.lip_gap, 'eye_opening': track.eye_opening}
        result |= _lips(recording, stamps, track.lip_gap, track.eye_opening)
        fit = sync_fit(recording, stamps, track.lip_gap)
        nan = float('nan')
        result |= {'in_domain_sync_confidence': fit.confidence if fit else nan,
                   'in_domain_sync_distance': fit.distance if fit else nan,
                   'in_domain_sync_offset_ms': fit.offset_ms if fit else nan}
        if fit is None:
            say('in-domain sync is left out: no speech with a face in view')
        else:
            most = metrics.MAX_SYNC_OFFSET_FRAMES
            analysis.series |= {'sync_offset_ms': FRAME_MS * np.arange(-most, most + 1.0),
                                'sync_distance': fit.distances}
    except judges.JudgeMissing as error:
        missing.append(str(error))
    try:
        identity = judges.IdentityJudge()
        say('asking the identity judge')
        every = max(1, round(IDENTITY_PERIOD_S * len(pictures) / max(seconds[-1], 1.0)))
        embeddings = identity.embed_all(picture.decode() for picture in pictures[::every])
        known = embeddings[np.isfinite(embeddings[:, 0])]
        if len(known):
            distance = metrics.identity_distance(embeddings, known[:3].mean(axis=0))
            slope = metrics.slope_per_minute(seconds[::every], distance)
            analysis.series |= {'identity_s': seconds[::every], 'identity_distance': distance}
            result |= {'identity_distance_median': float(np.nanmedian(distance)),
                       'identity_distance_worst': float(np.nanmax(distance)),
                       'identity_slope_per_minute': slope.per_minute,
                       'identity_slope_standard_error': slope.standard_error}
    except judges.JudgeMissing as error:
        missing.append(str(error))
    if len(missing) == 2:
        raise judges.JudgeMissing('; '.join(missing))
    return {key: round(value, 4) if np.isfinite(value) else None for key, value in result.items()}
