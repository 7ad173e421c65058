# SPDX-License-Identifier: Apache-2.0
"""What is measured of an avatar, as small pure functions on numpy arrays.

Every function names its source and its units. A series that was measured on pictures may hold
NaN where no face was found; such frames are left out, never filled in.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interactive_avatar.media.clock import CHUNK_NS, FRAME_NS, FRAME_RATE_HZ, FRAMES_PER_CHUNK

MAX_LAG_FRAMES = 10
MAX_SYNC_OFFSET_FRAMES = 15
# Fewer common frames than this say nothing about a correlation.
MIN_COMMON_FRAMES = 8
NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


def _series(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f'{name} must be a flat series, got shape {array.shape}: give one value '
                         f'per frame')
    return array


def _pictures(frames: NDArray[np.uint8], at_least: int) -> NDArray[np.uint8]:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f'frames must be uint8 [n, H, W, 3], got {frames.dtype} {frames.shape}: '
                         f'stack RGB pictures of one size')
    if len(frames) < at_least:
        raise ValueError(f'got {len(frames)} frame(s), need {at_least} or more: record longer')
    return frames


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's correlation of two series over the frames where both are finite.

    Source: K. Pearson, Notes on regression and inheritance, 1895.

    Args:
        a: [n] values.
        b: [n] values.

    Returns:
        -1 to 1; NaN with fewer than `MIN_COMMON_FRAMES` common frames or a constant series.

    Raises:
        ValueError: if the lengths differ.
    """
    x, y = _series(a, 'a'), _series(b, 'b')
    if x.shape != y.shape:
        raise ValueError(f'series of {x.size} and {y.size} values: cut both to the same frames')
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < MIN_COMMON_FRAMES:
        return float('nan')
    x, y = x[both] - x[both].mean(), y[both] - y[both].mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 1e-12 else float('nan')


@dataclass(frozen=True)
class LipFit:
    """How a measured lip gap follows the true mouth opening.

    Attributes:
        correlation: Pearson's correlation at the best lag.
        correlation_at_zero: the same with no shift.
        lag_ms: shift of the best fit; positive if the picture is late.
        frames: frames compared at the best lag.
    """

    correlation: float
    correlation_at_zero: float
    lag_ms: float
    frames: int


def lip_fit(measured: ArrayLike, true: ArrayLike, max_lag_frames: int = MAX_LAG_FRAMES,
            frame_rate_hz: float = FRAME_RATE_HZ) -> LipFit:
    """Best correlation of the measured lip gap with the true opening over a range of lags.

    Source: normalised cross-correlation (J. P. Lewis, Fast normalized cross-correlation, 1995):
    mouth opening of an independent judge against the known one.

    Args:
        measured: [n] lip gap by a judge, any unit, NaN where there is no face.
        true: [n] mouth opening of the performance, any unit.
        max_lag_frames: shifts tried on either side, in frames.
        frame_rate_hz: frames per second.

    Returns:
        The fit; lags of equal correlation go to the smaller shift.

    Raises:
        ValueError: if the lengths differ or are not longer than twice the range of lags.
    """
    gap, opening = _series(measured, 'measured'), _series(true, 'true')
    if gap.shape != opening.shape or gap.size <= 2 * max_lag_frames:
        raise ValueError(f'series of {gap.size} and {opening.size} frames for lags of '
                         f'±{max_lag_frames}: need equal lengths above {2 * max_lag_frames}')
    best = LipFit(float('nan'), correlation(gap, opening), 0.0, 0)
    for lag in sorted(range(-max_lag_frames, max_lag_frames + 1), key=abs):
        late = gap[max(0, lag):gap.size + min(0, lag)]
        early = opening[max(0, -lag):opening.size - max(0, lag)]
        value = correlation(late, early)
        if np.isfinite(value) and (not np.isfinite(best.correlation)
                                   or value > best.correlation + 1e-9):
            common = int((np.isfinite(late) & np.isfinite(early)).sum())
            best = LipFit(value, best.correlation_at_zero, 1000.0 * lag / frame_rate_hz, common)
    return best


@dataclass(frozen=True)
class SyncFit:
    """How well mouths and sounds belong together, by a scorer that places both in one space.

    Attributes:
        offset_ms: shift of the least distance; positive if the picture is late.
        distance: D, the mean distance at that shift.
        confidence: C, the median of the mean distances over all shifts less D.
        distances: float64 [2 m + 1], mean distance at each shift from -m to m frames.
        frames: frames that each mean is taken over.
    """

    offset_ms: float
    distance: float
    confidence: float
    distances: NDArray[np.float64]
    frames: int


def in_domain_sync(mouth: ArrayLike, sound: ArrayLike,
                   max_offset_frames: int = MAX_SYNC_OFFSET_FRAMES,
                   frame_rate_hz: float = FRAME_RATE_HZ) -> SyncFit:
    """Distance and confidence of sync over a range of shifts, for embeddings of any scorer.

    Source: J. S. Chung and A. Zisserman, Out of time: automated lip sync in the wild, 2016: D is
    the least mean Euclidean distance over the shifts, C the median less the least. The formulas
    are theirs; the scorer (`sync`) is not, so neither are the figures.

    Args:
        mouth: [n, d] place of each frame's mouth, rows of NaN where it is unknown.
        sound: [n, d] place of each frame's sound, likewise.
        max_offset_frames: m, shifts tried on either side, in frames.
        frame_rate_hz: frames per second.

    Returns:
        The fit over the frames known at every shift, so that all means are over the same mouths;
        NaN with fewer than `MIN_COMMON_FRAMES` of them.

    Raises:
        ValueError: if the shapes differ or are not [n, d].
    """
    lips, voice = np.asarray(mouth, np.float64), np.asarray(sound, np.float64)
    if lips.ndim != 2 or lips.shape != voice.shape:
        raise ValueError(f'mouths {lips.shape} and sounds {voice.shape}: need [n, d] for both')
    shifts = np.arange(-max_offset_frames, max_offset_frames + 1)
    places = np.arange(max_offset_frames, len(lips) - max_offset_frames)
    # A picture that is late by k frames shows at f what was heard at f - k.
    each = np.array([np.linalg.norm(lips[places] - voice[places - k], axis=1) for k in shifts])
    each = each[:, np.isfinite(each).all(axis=0)]
    if each.shape[1] < MIN_COMMON_FRAMES:
        nan = float('nan')
        return SyncFit(nan, nan, nan, np.full(shifts.size, nan), each.shape[1])
    means = each.mean(axis=1)
    best = min(range(shifts.size), key=lambda k: (round(means[k], 9), abs(shifts[k])))
    return SyncFit(1000.0 * int(shifts[best]) / frame_rate_hz, float(means[best]),
                   float(np.median(means) - means[best]), means, each.shape[1])


def motion_ratio(values: ArrayLike, speaking: ArrayLike) -> float:
    """Mean absolute change per frame while silent, relative to that while speaking.

    0 is a mouth that rests, 1 one that never does.

    Args:
        values: [n] lip gap or any measure of the mouth, NaN where unknown.
        speaking: [n] bool, True in frames with speech.

    Returns:
        The ratio; NaN if either part has no pair of neighbouring frames or speech has no motion.

    Raises:
        ValueError: if the lengths differ.
    """
    series, mask = _series(values, 'values'), np.asarray(speaking, bool)
    if series.shape != mask.shape:
        raise ValueError(f'{series.size} values but {mask.size} speech flags: need one each')
    change = np.abs(np.diff(series))
    # A pair that straddles the border between speech and silence belongs to neither.
    loud, quiet = change[mask[1:] & mask[:-1]], change[~mask[1:] & ~mask[:-1]]
    loud, quiet = loud[np.isfinite(loud)], quiet[np.isfinite(quiet)]
    if not loud.size or not quiet.size or loud.mean() < 1e-12:
        return float('nan')
    return float(quiet.mean() / loud.mean())


def separation(low: ArrayLike, high: ArrayLike) -> float:
    """Chance that a value of the second kind is above one of the first; equal ones count half.

    Source: H. B. Mann and D. R. Whitney 1947 (U over the number of pairs); also the area under the
    ROC curve (J. A. Hanley and B. J. McNeil 1982). Neither scale nor shape of the values matters.

    Args:
        low: [n] values that should be below, NaN where unknown.
        high: [m] values that should be above.

    Returns:
        1 if all are in order, 0.5 by chance; NaN if either kind has no known value.
    """
    first, second = _series(low, 'low'), _series(high, 'high')
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    if not first.size or not second.size:
        return float('nan')
    apart = second[:, None] - first[None, :]
    return float((apart > 0).mean() + 0.5 * (apart == 0).mean())


def frame_change(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean absolute difference of each frame from the one before, in grey levels (0 to 255).

    Args:
        frames: uint8 [n, H, W, 3], n at least 2.

    Returns:
        float64 [n - 1].

    Raises:
        ValueError: on another shape or a single frame.
    """
    pictures = _pictures(frames, at_least=2)
    # Frame by frame, since a minute of int16 differences would take a gigabyte.
    return np.array([np.abs(later.astype(np.int16) - earlier).mean()
                     for earlier, later in itertools.pairwise(pictures)])


def luma_change(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`frame_change` of brightness alone, blind to tints that come and go.

    Args:
        frames: uint8 [n, H, W, 3], n at least 2.

    Returns:
        float64 [n - 1].

    Raises:
        ValueError: on another shape or a single frame.
    """
    pictures = _pictures(frames, at_least=2)
    return np.array([np.abs(luma(later) - luma(earlier)).mean()
                     for earlier, later in itertools.pairwise(pictures)], np.float64)


def seam_ratio(frames: NDArray[np.uint8], frames_per_chunk: int = FRAMES_PER_CHUNK) -> float:
    """Change across chunk borders relative to the change inside chunks; 1 is seamless.

    Args:
        frames: uint8 [n, H, W, 3], the first being the first of a chunk.
        frames_per_chunk: length of a chunk in frames, at least 2.

    Returns:
        The ratio; NaN if nothing changes inside chunks.

    Raises:
        ValueError: with fewer frames than a chunk and one.
    """
    change = frame_change(_pictures(frames, at_least=frames_per_chunk + 1))
    border = np.arange(1, change.size + 1) % frames_per_chunk == 0
    inside = float(change[~border].mean())
    return float(change[border].mean()) / inside if inside > 1e-9 else float('nan')


def luma(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness with the weights of ITU-R BT.601, uint8 [..., 3] to float32 [...], 0 to 255."""
    return np.asarray(frames, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def sharpness(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the 4-neighbour Laplacian of each frame's luma; higher is sharper.

    Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000.

    Args:
        frames: uint8 [n, H, W, 3], at least 3 by 3 pixels.

    Returns:
        float64 [n], in squared grey levels.

    Raises:
        ValueError: on another shape.
    """
    def one(picture: NDArray[np.uint8]) -> float:
        grey = luma(picture)
        return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
                      - 4.0 * grey[1:-1, 1:-1]).var())
    return np.array([one(picture) for picture in _pictures(frames, at_least=1)])


def srgb_to_lab(colours: ArrayLike) -> NDArray[np.float64]:
    """sRGB to CIE 1976 L*a*b* under D65.

    Source: IEC 61966-2-1 (sRGB) and CIE 15:2004 (L*a*b*).

    Args:
        colours: [..., 3], 0 to 255.

    Returns:
        float64 [..., 3]: L* 0 to 100, a* and b*.
    """
    rgb = np.asarray(colours, np.float64) / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375],
                       [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    small = 6.0 / 29.0
    f = np.where(xyz > small ** 3, np.cbrt(xyz), xyz / (3.0 * small ** 2) + 4.0 / 29.0)
    return np.stack([116.0 * f[..., 1] - 16.0, 500.0 * (f[..., 0] - f[..., 1]),
                     200.0 * (f[..., 1] - f[..., 2])], axis=-1)


def colour_drift(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Distance of each frame's mean colour from the reference's, as CIE76 delta E.

    Source: CIE 15:2004; about 2.3 is a just noticeable difference (Mahy et al. 1994).

    Args:
        frames: uint8 [n, H, W, 3].
        reference: uint8 [H, W, 3], or several [m, H, W, 3] whose mean is taken.

    Returns:
        float64 [n].

    Raises:
        ValueError: on other shapes.
    """
    def mean_lab(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        # A quarter of the pixels: the mean colour does not need more.
        return np.array([srgb_to_lab(p[::2, ::2]).mean(axis=(0, 1))
                         for p in _pictures(pictures, at_least=1)])
    reference = np.asarray(reference)
    goal = mean_lab(reference if reference.ndim == 4 else reference[None]).mean(axis=0)
    return np.asarray(np.linalg.norm(mean_lab(frames) - goal, axis=1))


def identity_distance(embeddings: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Euclidean distance of face embeddings to the reference's.

    Source: the measure for which dlib's face network was trained (threshold 0.6 on photographs;
    on this project's renders the same person stays below 0.48, others are above 0.62).

    Args:
        embeddings: [n, d], rows of NaN where no face was found.
        reference: [d].

    Returns:
        float64 [n], NaN where the embedding is.

    Raises:
        ValueError: if the widths differ.
    """
    rows, goal = np.asarray(embeddings, np.float64), np.asarray(reference, np.float64)
    if rows.ndim != 2 or goal.shape != rows.shape[1:]:
        raise ValueError(f'embeddings {rows.shape} against a reference {goal.shape}: need [n, d] '
                         f'and [d] of the same judge')
    return np.asarray(np.linalg.norm(rows - goal, axis=1))


@dataclass(frozen=True)
class Slope:
    """A straight line through a series.

    Attributes:
        per_minute: change of the value per minute of stream.
        standard_error: of that change; the drift is real if it is well above this.
    """

    per_minute: float
    standard_error: float


def slope_per_minute(times_s: ArrayLike, values: ArrayLike) -> Slope:
    """Least-squares slope of a value against stream time, NaN values left out.

    Source: ordinary least squares, with the standard error of its slope.

    Args:
        times_s: [n] seconds.
        values: [n].

    Returns:
        The slope; NaN with fewer than 3 values or no spread in time.

    Raises:
        ValueError: if the lengths differ.
    """
    t, v = _series(times_s, 'times_s'), _series(values, 'values')
    if t.shape != v.shape:
        raise ValueError(f'{t.size} times but {v.size} values: need one each')
    known = np.isfinite(t) & np.isfinite(v)
    t, v = t[known] / 60.0, v[known]
    if t.size < 3 or np.ptp(t) <= 0.0:
        return Slope(float('nan'), float('nan'))
    t = t - t.mean()
    spread = float(t @ t)
    slope = float(t @ v) / spread
    residual = v - v.mean() - slope * t
    return Slope(slope, float(np.sqrt(residual @ residual / (t.size - 2) / spread)))


def real_time_factor(compute_s: float, media_s: float) -> float:
    """Seconds of computing per second of media; below 1 keeps up.

    Raises:
        ValueError: if there is no media.
    """
    if media_s <= 0.0:
        raise ValueError(f'{media_s} s of media: a real-time factor needs some')
    return compute_s / media_s


def percentiles(values: ArrayLike, points: Sequence[float] = (50, 95, 99)) -> dict[str, float]:
    """Percentiles by linear interpolation, as ``{'p50': …}``; NaN for an empty series.

    Source: Hyndman and Fan 1996, type 7.
    """
    series = _series(values, 'values')
    series = series[np.isfinite(series)]
    return {f'p{point:g}': float(np.percentile(series, point)) if series.size else float('nan')
            for point in points}


@dataclass(frozen=True)
class Delivery:
    """How regularly chunks came.

    Attributes:
        chunks: distinct chunks received.
        lost: chunks whose stamp was skipped.
        late: chunks that came after the sound before them had run out.
        seconds: whole seconds of stream looked at.
        clean_seconds: those with neither loss nor lateness.
        worst_late_ms: the worst lateness, 0 if none.
    """

    chunks: int
    lost: int
    late: int
    seconds: int
    clean_seconds: int
    worst_late_ms: float

    @property
    def clean_share(self) -> float:
        """Share of seconds without a missed chunk, 0 to 1; NaN without a second."""
        return self.clean_seconds / self.seconds if self.seconds else float('nan')


def delivery(stamps_ns: ArrayLike, arrivals_ns: ArrayLike, buffer_ms: float = CHUNK_NS / 1e6,
             chunk_ns: int = CHUNK_NS) -> Delivery:
    """Count chunks that were skipped or came too late for a player with a small buffer.

    A player starts ``buffer_ms`` after the median chunk has come (so that one early or late chunk
    does not decide) and then plays by stamp. A chunk is late if it comes after its own turn.

    Source: playout deadline misses as in adaptive playout (Ramjee et al., INFOCOM 1994), with a
    fixed delay.

    Args:
        stamps_ns: [n] presentation stamps of the chunks' first samples, nanoseconds.
        arrivals_ns: [n] times of arrival, nanoseconds, on any clock of constant offset.
        buffer_ms: the player's buffer, milliseconds.
        chunk_ns: duration of a chunk, nanoseconds.

    Returns:
        The counts; zeros for no chunk.

    Raises:
        ValueError: if the lengths differ.
    """
    stamps, arrivals = np.asarray(stamps_ns, np.int64), np.asarray(arrivals_ns, np.int64)
    if stamps.shape != arrivals.shape or stamps.ndim != 1:
        raise ValueError(f'{stamps.shape} stamps but {arrivals.shape} arrivals: need one each')
    if not stamps.size:
        return Delivery(0, 0, 0, 0, 0, 0.0)
    stamps, first = np.unique(stamps, return_index=True)
    delay = arrivals[first] - stamps
    late_ns = delay - np.median(delay) - buffer_ms * NS_PER_MS
    late = late_ns > 0
    skipped = np.maximum(0, np.rint(np.diff(stamps) / chunk_ns).astype(np.int64) - 1)
    second = (stamps - stamps[0]) // NS_PER_S
    # The last, unfinished second has fewer chunks to miss and would flatter the share.
    whole = int((stamps[-1] + chunk_ns - stamps[0]) // NS_PER_S)
    bad = set(second[late].tolist()) | set(second[1:][skipped > 0].tolist())
    return Delivery(int(stamps.size), int(skipped.sum()), int(late.sum()), whole,
                    whole - len({s for s in bad if s < whole}),
                    float(max(0.0, late_ns.max() / NS_PER_MS)))


def av_offsets_ms(frame_stamps_ns: ArrayLike, audio_stamps_ns: ArrayLike,
                  frame_ns: int = FRAME_NS) -> NDArray[np.float64]:
    """Offset of each chunk's sound from the nearest picture's stamp, in milliseconds.

    Positive if the picture is stamped later. 0 for every chunk is sync by construction.

    Args:
        frame_stamps_ns: [n] stamps of pictures, nanoseconds.
        audio_stamps_ns: [m] stamps of the first samples of chunks, nanoseconds.
        frame_ns: duration of a picture; an offset of more than half of it means that the
            chunk's own picture is missing, and the chunk is left out (count them).

    Returns:
        float64 [k], k at most m.
    """
    pictures = np.unique(np.asarray(frame_stamps_ns, np.int64))
    sounds = np.asarray(audio_stamps_ns, np.int64)
    if not pictures.size or not sounds.size:
        return np.zeros(0)
    after = np.clip(np.searchsorted(pictures, sounds), 0, pictures.size - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(pictures[after] - sounds) <= np.abs(pictures[before] - sounds),
                       pictures[after], pictures[before])
    offset = nearest - sounds
    return np.asarray(offset[np.abs(offset) <= frame_ns // 2] / NS_PER_MS, np.float64)


def first_change(values: ArrayLike, start: int, baseline: int = 25, sigmas: float = 4.0,
                 floor: float = 0.0) -> int | None:
    """Index of the first value that leaves the range of those before an event.

    Source: Shewhart control chart (limits of ``sigmas`` standard deviations).

    Args:
        values: [n] for instance the change of each frame.
        start: index of the event.
        baseline: values before ``start`` that set the limits.
        sigmas: width of the limits.
        floor: least excess over the baseline's mean that counts as a change.

    Returns:
        The index at or after ``start``, or None if nothing changed or no baseline exists.
    """
    series = _series(values, 'values')
    before = series[max(0, start - baseline):max(0, start)]
    before = before[np.isfinite(before)]
    if before.size < MIN_COMMON_FRAMES:
        return None
    limit = before.mean() + max(sigmas * before.std(), floor)
    beyond = np.flatnonzero(series[start:] > limit)
    return start + int(beyond[0]) if beyond.size else None


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation (apostrophes inside words are dropped)."""
    return re.findall(r'[a-z0-9]+', text.lower().replace("'", '').replace('’', ''))


def word_error_rate(said: str, heard: str) -> float:
    """Insertions, deletions and substitutions of words per word said.

    Source: edit distance (Levenshtein 1966) over words, as in speech recognition.

    Args:
        said: the reference.
        heard: what was recognised.

    Returns:
        0 if equal; may exceed 1.

    Raises:
        ValueError: if nothing was said.
    """
    reference, guess = words(said), words(heard)
    if not reference:
        raise ValueError(f'no words in the reference {said!r}: nothing to compare with')
    row = list(range(len(guess) + 1))
    for i, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(guess, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / len(reference)


def blinks_per_minute(opening: NDArray[np.float64],
                      seconds: NDArray[np.float64]) -> float:
    """Blinks: falls of the eye opening below 60 % of its median, per minute.

    Source: the eye aspect ratio of Soukupova and Cech (2016) with a threshold relative to the
    face's own median.

    Args:
        opening: float64 [n], NaN where there is no face.
        seconds: float64 [n], stream time.
    """
    known = opening[np.isfinite(opening)]
    if known.size < MIN_COMMON_FRAMES or seconds[-1] <= seconds[0]:
        return float('nan')
    closed = np.nan_to_num(opening, nan=np.inf) < 0.6 * np.median(known)
    starts = int((closed[1:] & ~closed[:-1]).sum())
    return 60.0 * starts / float(seconds[-1] - seconds[0])
