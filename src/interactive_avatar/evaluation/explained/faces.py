# SPDX-License-Identifier: Apache-2.0
"""Metrics of lips, identity, picture and memory, on what the shipped model draws."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from interactive_avatar.evaluation import judges, metrics, sync
from interactive_avatar.evaluation.bench_lips import BILABIALS, OPEN_VOWELS, closures, generate
from interactive_avatar.evaluation.explained.draw import (
    BAD_COLOUR,
    Case,
    Explained,
    Floats,
    lines,
    standard,
)
from interactive_avatar.evaluation.held_out import HeldOut
from interactive_avatar.evaluation.model import frechet, retention
from interactive_avatar.evaluation.model.play import Player, Setup, run
from interactive_avatar.evaluation.videos import moments
from interactive_avatar.generator.config import MemoryConfig
from interactive_avatar.generator.memory import KEY_FRAME_POLICIES, History, redundancy
from interactive_avatar.media.clock import (
    FRAME_MS,
    FRAME_RATE_HZ,
    FRAMES_PER_CHUNK,
    SAMPLES_PER_FRAME,
)
from interactive_avatar.media.picture import fit_square

Frames = NDArray[np.uint8]

LATE_FRAMES: Final = 5
SHOWN_S: Final = 8.0
# How the defects are made; strong enough to be seen in a small picture.
WARM: Final = (1.10, 1.0, 0.88)
MOST_BLUR_PX: Final = 2.0
JPEG_QUALITY: Final = 8
MOUTH_SIDE: Final = 1.15
FACE_SIDE: Final = 2.4
SHOWN_SOUNDS: Final = 4
REST_CHUNKS: Final = 125


@dataclass
class Material:
    """What the pictures are made of.

    Attributes:
        player: the shipped model.
        items: held-out performances; the first speaks, the second is the other person, the third
            changes its world.
        mesh: the judge of lips.
        identity: the judge of who it is.
    """

    player: Player
    items: Sequence[HeldOut]
    mesh: judges.MeshJudge
    identity: judges.IdentityJudge

    @cached_property
    def drawn(self) -> list[Frames]:
        """Generated frames of the first two performances, uint8 [n, H, W, 3]."""
        return [generate(item, self.player) for item in self.items[:2]]

    @cached_property
    def gaps(self) -> list[Floats]:
        """Their lip gaps, float64 [n]."""
        return [self.mesh.track(frames).lip_gap for frames in self.drawn]

    @property
    def item(self) -> HeldOut:
        """The first performance."""
        return self.items[0]

    @property
    def frames(self) -> Frames:
        """Its generated frames."""
        return self.drawn[0]

    @property
    def gap(self) -> Floats:
        """Their lip gap."""
        return self.gaps[0]

    @property
    def truth(self) -> Floats:
        """Its true opening, float64 [n]."""
        return self.item.mouth_open[:self.item.frames].astype(np.float64)

    def common(self) -> int:
        """Frames that both performances have."""
        return min(len(frames) for frames in self.drawn)

    def first_word(self) -> int:
        """Frame half a second before the first word."""
        at_s = self.item.words[0].start_s - 0.5 if self.item.words else 0.0
        return max(0, int(at_s * FRAME_RATE_HZ))


def _seconds(count: int, start: int = 0) -> Floats:
    return (start + np.arange(count)) / FRAME_RATE_HZ


def _late(series: Floats, frames: int) -> Floats:
    """A series of pictures that come later by so many frames; the first is held."""
    return np.concatenate([np.full(frames, series[0]), series[:-frames]])


def _thumbnails(material: Material, frames: Frames, late: int = 0
                ) -> tuple[list[Frames], list[str]]:
    """Faces at a few sounds of the first performance, and which sounds."""
    when = [(label.rsplit(',', 1)[0], at) for label, at in moments(material.item)][:SHOWN_SOUNDS]
    cells = [frames[max(0, min(at - late, len(frames) - 1))] for _, at in when]
    return [mouth_crop(cell, material.mesh.landmarks(cell), FACE_SIDE) for cell in cells], \
        [label for label, _ in when]


def _curve(material: Material, gap: Floats) -> Callable[..., None]:
    first = material.first_word()
    part = slice(first, first + int(SHOWN_S * FRAME_RATE_HZ))
    truth = material.truth[part]
    x = _seconds(truth.size, first)
    return lines({'true opening': (x, standard(truth)),
                  'lip gap': (x, standard(gap[part]))}, 'stream time (s)', 'z-score')


def correlation(material: Material) -> Explained:
    """Lips that follow the sound, and lips of another sentence."""
    count = material.common()
    truth, own, other = material.truth[:count], material.gap[:count], material.gaps[1][:count]
    good, bad = metrics.lip_fit(own, truth), metrics.lip_fit(other, truth)
    right, labels = _thumbnails(material, material.frames)
    wrong, _ = _thumbnails(material, material.drawn[1])
    return Explained(
        'lip_correlation', 'Lip gap against the true opening: correlation at the best lag',
        Case('generated for this sound', f'{good.correlation:.2f}', right, labels,
             _curve(material, material.gap)),
        Case("generated for another performance's sound", f'{bad.correlation:.2f}', wrong, labels,
             _curve(material, np.r_[other, np.full(material.gap.size - count, np.nan)])),
        {'good': good.correlation, 'bad': bad.correlation})


def lag(material: Material) -> Explained:
    """Lips in time, and the same pictures a few frames late."""
    late = _late(material.gap, LATE_FRAMES)
    good = metrics.lip_fit(material.gap, material.truth)
    bad = metrics.lip_fit(late, material.truth)
    right, labels = _thumbnails(material, material.frames)
    wrong, _ = _thumbnails(material, material.frames, LATE_FRAMES)
    return Explained(
        'lip_lag', 'Lag: the shift at which lip gap and true opening fit best (+ is late)',
        Case('generated', f'{good.lag_ms:.0f} ms (correlation {good.correlation:.2f})', right,
             labels, _curve(material, material.gap)),
        Case(f'the same pictures, {LATE_FRAMES} frames late',
             f'{bad.lag_ms:.0f} ms (correlation {bad.correlation:.2f})', wrong, labels,
             _curve(material, late)), {'good': good.lag_ms, 'bad': bad.lag_ms})


def mouth_crop(frame: Frames, points: NDArray[np.float64] | None, side_eyes: float = MOUTH_SIDE
               ) -> Frames:
    """The mouth and what is around it, a square of so many eye distances; the whole picture
    without a face."""
    if points is None:
        return frame
    scale = float(np.linalg.norm(points[judges.EYE_OUTER[0]] - points[judges.EYE_OUTER[1]]))
    middle = 0.5 * (points[judges.MOUTH_LEFT] + points[judges.MOUTH_RIGHT])
    half = 0.5 * side_eyes * scale
    # A larger crop shows the eyes rather than the chest.
    left, top = int(middle[0] - half), int(middle[1] - half * max(1.0, 0.6 * side_eyes))
    side = int(2 * half)
    height, width = frame.shape[:2]
    left, top = max(0, min(left, width - side)), max(0, min(top, height - side))
    return frame[top:top + side, left:left + side]


def closing(material: Material) -> Explained:
    """Mouths at sounds that need shut lips and at open vowels; and a few frames late."""
    late = _late(material.gap, LATE_FRAMES)
    good = metrics.separation(*closures(material.item, material.gap))
    bad = metrics.separation(*closures(material.item, late))
    sounds: dict[tuple[bool, str], tuple[str, int]] = {}
    for word in material.item.words:
        for phone in word.phones:
            at = int((phone.start_s + phone.end_s) / 2 * FRAME_RATE_HZ)
            if phone.name in (*BILABIALS, *OPEN_VOWELS) and at < material.gap.size:
                sounds.setdefault((phone.name in BILABIALS, word.text),
                                  (f'{phone.name} {word.text}', at))
    # Three of each kind, from words spread over the performance.
    kinds = [[sound for (closed, _), sound in sounds.items() if closed == kind]
             for kind in (True, False)]
    when = [kind[k * len(kind) // 3] for kind in kinds for k in range(min(3, len(kind)))]

    def side(shift: int, gap: Floats, what: str, value: float) -> Case:
        cells = [material.frames[max(0, at - shift)] for _, at in when]
        return Case(what, f'{value:.2f} (chance: 0.5)',
                    [mouth_crop(cell, material.mesh.landmarks(cell)) for cell in cells],
                    [f'{label}\ngap {gap[at]:.2f}' for label, at in when])

    return Explained(
        'lip_closing', 'Lips closer in /b m p/ than in open vowels: share of pairs in order',
        side(0, material.gap, 'generated: three closures, three vowels', good),
        side(LATE_FRAMES, late, f'the same pictures, {LATE_FRAMES} frames late', bad),
        {'good': good, 'bad': bad})


def _motion(frames: Frames) -> Frames:
    """Where pictures change, as a heat picture: mean absolute change of each pixel."""
    total = np.zeros(frames.shape[1:3])
    for before, after in itertools.pairwise(frames):
        total += np.abs(after.astype(np.int16) - before).mean(axis=2)
    share = np.clip(total / max(1, len(frames) - 1) / 6.0, 0.0, 1.0)[..., None]
    grey = frames[0].astype(np.float64).mean(axis=2, keepdims=True) * 0.5 + 60.0
    hot = np.array([255.0, 80.0, 30.0])
    return np.asarray(grey * (1.0 - share) + hot * share, np.uint8)


def silence(material: Material) -> Explained:
    """A mouth that rests in silence, and one that goes on."""
    speaking = material.item.speaking()[:material.gap.size]
    quiet, loud = np.flatnonzero(~speaking), np.flatnonzero(speaking)
    # The longest stretch of silence, and as many frames of speech in order.
    parts = np.split(quiet, np.flatnonzero(np.diff(quiet) > 1) + 1)
    rest = max(parts, key=lambda part: part.size)
    talk = np.resize(loud, rest.size)
    restless = material.gap.copy()
    restless[quiet] = material.gap[np.resize(loud, quiet.size)]
    good = metrics.motion_ratio(material.gap, speaking)
    bad = metrics.motion_ratio(restless, speaking)
    x = _seconds(material.gap.size)

    def plot(gap: Floats) -> Callable[..., None]:
        draw = lines({'lip gap': (x, gap)}, 'stream time (s)', 'lip gap')

        def with_speech(axes: Any) -> None:
            draw(axes)
            axes.fill_between(x, 0, 1, where=speaking, color='0.9', linewidth=0,
                              transform=axes.get_xaxis_transform())
        return with_speech

    return Explained(
        'silence', 'Mouth motion in silence over that in speech (grey: speech)',
        Case('generated; red: where the picture changes in silence', f'{100 * good:.1f} %',
             [_motion(material.frames[rest])], ['change in silence'], plot(material.gap)),
        Case('pictures of speech put where silence is', f'{100 * bad:.1f} %',
             [_motion(material.frames[talk])], ['change in silence'], plot(restless)),
        {'good': 100 * good, 'bad': 100 * bad})


def identity(material: Material) -> Explained:
    """The person of the reference, and somebody else."""
    reference = material.identity.embed(material.item.reference)
    middle = len(material.frames) // 2
    rows = [frames[middle] for frames in material.drawn]
    own, other = metrics.identity_distance(
        np.array([material.identity.embed(frame) for frame in rows]), reference)
    return Explained(
        'identity', "Identity: distance to the reference in dlib's space (others: above 0.62)",
        Case('generated from this reference', f'{own:.2f}', [material.item.reference, rows[0]],
             ['reference', 'generated']),
        Case("generated from another person's reference", f'{other:.2f}',
             [material.item.reference, rows[1]], ['reference', 'another person']),
        {'good': float(own), 'bad': float(other)})


def _dissolve(one: Frames, two: Frames) -> Frames:
    """One person becoming another, evenly over all frames."""
    share = np.linspace(0.0, 1.0, len(one))[:, None, None, None]
    return np.asarray(one * (1.0 - share) + two * share, np.uint8)


def slope(material: Material) -> Explained:
    """A face that stays, and one that drifts away."""
    count = material.common()
    # Not from the start: the first picture is the reference.
    picked = np.arange(FRAME_RATE_HZ, count, FRAME_RATE_HZ)
    seconds = picked / FRAME_RATE_HZ
    reference = material.identity.embed(material.item.reference)
    steady = material.frames[picked]
    drifting = _dissolve(steady, material.drawn[1][picked])
    found = [metrics.identity_distance(material.identity.embed_all(frames), reference)
             for frames in (steady, drifting)]
    fits = [metrics.slope_per_minute(seconds, values) for values in found]
    shown = np.linspace(0, len(picked) - 1, 4).astype(int)

    def side(frames: Frames, values: Floats, fit: metrics.Slope, what: str) -> Case:
        return Case(what, f'{fit.per_minute:+.2f} ± {fit.standard_error:.2f} per minute',
                    [frames[k] for k in shown], [f'{seconds[k]:.0f} s' for k in shown],
                    lines({'distance': (seconds, values)}, 'stream time (s)', 'distance',
                          limits=(0.0, 1.0)))

    return Explained(
        'identity_slope', 'Identity drift: slope of the distance over stream time',
        side(steady, found[0], fits[0], 'generated'),
        side(drifting, found[1], fits[1], 'dissolved into another person'),
        {'good': fits[0].per_minute, 'bad': fits[1].per_minute})


def colour(material: Material) -> Explained:
    """Colours that stay, and a cast that grows."""
    picked = np.arange(0, len(material.frames), FRAME_RATE_HZ)
    steady = material.frames[picked]
    gain = 1.0 + np.linspace(0.0, 1.0, len(steady))[:, None] * (np.array(WARM) - 1.0)
    warm = np.clip(steady * gain[:, None, None, :], 0, 255).astype(np.uint8)
    start = material.frames[:FRAME_RATE_HZ]
    found = [metrics.colour_drift(frames, start) for frames in (steady, warm)]
    shown = np.linspace(0, len(picked) - 1, 4).astype(int)
    seconds = picked / FRAME_RATE_HZ

    def side(frames: Frames, values: Floats, what: str) -> Case:
        return Case(what, f'{values[-1]:.1f} ΔE in the last second', [frames[k] for k in shown],
                    [f'{seconds[k]:.0f} s' for k in shown],
                    lines({'drift': (seconds, values)}, 'stream time (s)', 'ΔE (CIE76)',
                          limit=2.3, limits=(0.0, max(float(found[1].max()), 3.0))))

    return Explained(
        'colour_drift', 'Colour drift from the first second (dashed: just noticeable)',
        side(steady, found[0], 'generated'),
        side(warm, found[1], 'a warm cast that grows'),
        {'good': float(found[0][-1]), 'bad': float(found[1][-1])})


def sharpness(material: Material) -> Explained:
    """Pictures that stay sharp, and a blur that grows."""
    from scipy.ndimage import gaussian_filter

    picked = np.arange(0, len(material.frames), FRAME_RATE_HZ)
    steady = material.frames[picked]
    widths = np.linspace(0.0, MOST_BLUR_PX, len(steady))
    soft = np.array([gaussian_filter(frame, (width, width, 0)) if width else frame
                     for frame, width in zip(steady, widths, strict=True)])
    seconds = picked / FRAME_RATE_HZ
    found = [metrics.sharpness(frames) for frames in (steady, soft)]
    fits = [metrics.slope_per_minute(seconds, values) for values in found]
    shown = np.linspace(0, len(picked) - 1, 4).astype(int)

    def side(frames: Frames, values: Floats, fit: metrics.Slope, what: str) -> Case:
        return Case(what, f'{values[-1] / values[0]:.2f} of the first second '
                    f'({fit.per_minute:+.0f} per minute)', [frames[k] for k in shown],
                    [f'{seconds[k]:.0f} s' for k in shown],
                    lines({'sharpness': (seconds, values)}, 'stream time (s)',
                          'variance of the\nLaplacian', limits=(0.0, None)))

    return Explained(
        'sharpness', 'Sharpness: variance of the Laplacian, and its drift',
        side(steady, found[0], fits[0], 'generated'),
        side(soft, found[1], fits[1], 'a blur that grows'),
        {'good': float(found[0][-1] / found[0][0]), 'bad': float(found[1][-1] / found[1][0])})


def even(frames: Frames) -> Frames:
    """The same motion without jumps: faded from each chunk's last picture to the next one's.

    Args:
        frames: uint8 [4 n + 1, H, W, 3], the first being the last of a chunk.
    """
    ends = frames[::FRAMES_PER_CHUNK].astype(np.float64)
    shares = np.arange(FRAMES_PER_CHUNK) / FRAMES_PER_CHUNK
    faded = [(1.0 - share) * one + share * two for one, two in itertools.pairwise(ends)
             for share in shares]
    return np.asarray([*faded, ends[-1]], np.uint8)


def seams(material: Material) -> Explained:
    """Pictures that change evenly, and chunks that jump."""
    # From the last picture of a chunk on; `even` makes the change of all frames alike.
    first = material.first_word() // FRAMES_PER_CHUNK * FRAMES_PER_CHUNK - 1
    part = material.frames[first:first + 12 * FRAMES_PER_CHUNK + 1]
    sides = []
    values: dict[str, float | None] = {}
    for kind, frames, what in (
            ('good', even(part), 'the same motion, faded evenly over each chunk'),
            ('bad', part, 'generated by the shipped model')):
        value = metrics.seam_ratio(frames[1:])
        change = metrics.frame_change(frames[1:])
        x = _seconds(change.size, first + 2)
        border = np.arange(1, change.size + 1) % FRAMES_PER_CHUNK == 0

        def plot(axes: Any, x: Floats = x, change: Floats = change,
                 border: NDArray[np.bool_] = border) -> None:
            axes.bar(x[~border], change[~border], 0.03, color='0.6', label='inside a chunk')
            axes.bar(x[border], change[border], 0.03, color=BAD_COLOUR, label='across a border')
            lines({}, 'stream time (s)', 'change of the\npicture (grey levels)')(axes)
            axes.legend(frameon=False, fontsize=7, ncols=2, loc='lower right',
                        bbox_to_anchor=(1.0, 0.98), borderaxespad=0.0)

        values[kind] = value
        sides.append(Case(what, f'{value:.2f}', plot=plot))
    return Explained('seams', 'Seam ratio: change across chunk borders over that inside (1 is '
                     'seamless)', sides[0], sides[1], values)


def frechet_distance(material: Material) -> Explained:
    """Pictures that are like the true ones, and ones that are not."""
    item = material.item
    space = frechet.Space([one.true_look for one in material.items])

    def encoded(frame: Frames) -> Frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, 'JPEG', quality=JPEG_QUALITY)
        return np.asarray(Image.open(buffer).convert('RGB'), np.uint8)

    drawn = material.frames[::10]
    blocky = np.array([encoded(frame) for frame in drawn])
    true = space.place(item.true_look)
    found = [frechet.distance(space.place(np.array([frechet.features(f) for f in frames])), true)
             for frames in (drawn, blocky)]
    shown = np.linspace(0, len(drawn) - 1, 3).astype(int)
    return Explained(
        'frechet', 'Fréchet distance to true pictures, over Gabor energies and colours',
        Case(f'generated, {len(drawn)} pictures', f'{found[0]:.1f}', [drawn[k] for k in shown]),
        Case(f'the same as JPEG of quality {JPEG_QUALITY}', f'{found[1]:.1f}',
             [blocky[k] for k in shown]), {'good': found[0], 'bad': found[1]})


def in_domain_sync(material: Material) -> Explained:
    """Sound that belongs to the lips, and another sound."""
    count = material.common()
    speaking = material.item.speaking()[:count]
    gap = material.gap[:count]
    fits = [sync.shipped().measure([(gap, item.audio[:count * SAMPLES_PER_FRAME], speaking)])
            for item in material.items[:2]]
    most = metrics.MAX_SYNC_OFFSET_FRAMES
    x = np.arange(-most, most + 1.0) * FRAME_MS
    low = min(float(fit.distances.min()) for fit in fits)
    high = max(float(fit.distances.max()) for fit in fits)

    def side(fit: metrics.SyncFit, what: str) -> Case:
        return Case(what, f'C {fit.confidence:.2f}, D {fit.distance:.2f}, at '
                    f'{fit.offset_ms:.0f} ms',
                    plot=lines({'distance': (x, fit.distances)},
                               'picture later than sound by (ms)', 'distance of\nsound and lips',
                               limits=(low - 0.05, high + 0.05)))

    return Explained(
        'in_domain_sync',
        'In-domain sync: C is the median distance over all shifts less the least, D',
        side(fits[0], 'generated, with its sound'),
        side(fits[1], "the same pictures with another performance's sound"),
        {'good': fits[0].confidence, 'bad': fits[1].confidence})


def object_retention(material: Material) -> Explained:
    """An object that stays through an absence, and a model without memory."""
    setup = material.player.setup
    forgetful = Player(Setup(setup.model, setup.backend, setup.seed, key_frames='window'))
    name = 'glasses'
    sides = []
    values: dict[str, float | None] = {}
    for kind, player, what in (
            ('good', material.player, 'the shipped model'),
            ('bad', forgetful, 'with the reference and the last two latents as its only memory')):
        kept, moments_seen = retention.story(material.items[1], name, player, material.mesh,
                                             retention.QUICK, 0)
        shown = [0, 1, 2, 3, 4]
        values[kind] = float(kept.after_unmentioned)
        sides.append(Case(what, f'{name} {"on" if kept.after_unmentioned else "gone"} after '
                          f'{retention.QUICK.away_s:g} s out of view',
                          [moments_seen[k] for k in shown],
                          [retention.MOMENTS[k] for k in shown]))
    return Explained('retention', 'Object retention: still worn after an absence in which no '
                     'prompt mentions it', sides[0], sides[1], values)


def remembered(latents: Sequence[NDArray[np.float32]], reference: NDArray[np.float32],
               sizes: MemoryConfig, policy: str) -> tuple[list[int], float]:
    """Which chunks a policy has in its long memory at the end of a stream.

    Args:
        latents: of each chunk, float32 [C, 16, 16].
        reference: latent of the reference picture.
        sizes: of the memory.
        policy: of `KEY_FRAME_POLICIES`.

    Returns:
        The middle chunk of what each slot holds, in order of time, and the redundancy R.
    """
    history = History(sizes, reference, KEY_FRAME_POLICIES[policy]())
    short: list[int] = []
    slots: dict[int, int] = {}
    for chunk, latent in enumerate(latents):
        leaving = history.follow(latent)
        if leaving is None:
            continue
        pushed = short.pop(0) if len(short) == sizes.short else None
        if leaving.long_slot is not None and pushed is not None:
            slots[leaving.long_slot] = pushed
        # A group ends with the latent that left the adjacent queue now.
        short.append(chunk - sizes.adjacent - sizes.group // 2)
    return sorted(slots.values()), redundancy(history.long_features)


def memory_redundancy(material: Material) -> Explained:
    """Key frames that differ, and the last ones whatever they show."""
    item, backend = material.items[2], material.player.backend
    # A performance with actions and a change of the world, then rest.
    prompts = item.prompts[:item.frames // FRAMES_PER_CHUNK]
    stream = material.player.stream(item.reference, prompts[0])
    frames = np.concatenate([run(stream, prompts, item.audio),
                             run(stream, [prompts[-1]] * REST_CHUNKS)])
    chunks = [frames[first:first + FRAMES_PER_CHUNK]
              for first in range(0, len(frames), FRAMES_PER_CHUNK)]
    latents = [backend.encode_image(chunk) for chunk in chunks]
    start = backend.encode_image(np.repeat(fit_square(
        item.reference, frames.shape[1])[None], FRAMES_PER_CHUNK, axis=0))

    def side(policy: str, what: str) -> tuple[Case, float]:
        held, value = remembered(latents, start, backend.config.memory, policy)
        return Case(what, f'R = {value:.2f}', [chunks[chunk][0] for chunk in held],
                    [f'{chunk * FRAMES_PER_CHUNK / FRAME_RATE_HZ:.0f} s' for chunk in held]), value

    good, low = side('dynamic', 'key frames chosen so that R falls, as shipped')
    bad, high = side('fifo', 'first in, first out: only what was last')
    return Explained('redundancy', 'Redundancy of memory: mean similarity of the remembered '
                     'pictures', good, bad, {'good': low, 'bad': high})


FACES: Final[tuple[Callable[[Material], Explained], ...]] = (
    correlation, lag, closing, silence, in_domain_sync, identity, slope, colour, sharpness, seams,
    frechet_distance, object_retention, memory_redundancy)
