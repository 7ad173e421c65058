# SPDX-License-Identifier: Apache-2.0
"""``avatar evaluate videos``: any other system's pictures to the same sound, by the same judges.

First `--export` writes the sound of the held-out performances as WAV files, each with a reference
picture and, for systems that are driven by text, its words and phones with their times. The other
system makes a video of each. Then its folder of videos is judged beside this project's generator
and the true pictures, in one run: the same frames of the same sentences, the same landmarks.

What another system looks like is not judged, and identity only by whether it stays: systems with
faces of their own cannot show the reference.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from interactive_avatar.evaluation import judges, metrics
from interactive_avatar.evaluation.bench_lips import BILABIALS, OPEN_VOWELS, closures
from interactive_avatar.evaluation.held_out import (
    IDENTITY_EVERY_FRAMES,
    SHIPPED_SET,
    HeldOut,
    load_set,
)
from interactive_avatar.evaluation.html import HtmlReport, Tone
from interactive_avatar.evaluation.model.figures import Figure, mean_of
from interactive_avatar.evaluation.model.lips import fits
from interactive_avatar.evaluation.model.performances import play_all, video_of
from interactive_avatar.evaluation.model.pictures import curves
from interactive_avatar.evaluation.model.play import Player, Setup
from interactive_avatar.evaluation.report import machine, table, write_json
from interactive_avatar.evaluation.sync import sync_fits
from interactive_avatar.media.audio import write_wav
from interactive_avatar.media.clock import FRAME_RATE_HZ, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from interactive_avatar.media.picture import contact_sheet, fit_square, read_image, write_image
from interactive_avatar.media.video import VideoReader, VideoWriter

VIDEO_KINDS: Final = ('.mp4', '.webm', '.mkv', '.mov', '.avi')
PICTURE_KINDS: Final = ('.png', '.jpg', '.jpeg')
# The face mesh looks at 192 pixels of a face: more only costs time.
MOST_SIDE_PX: Final = 720
TRUE_PICTURES: Final = 'true pictures'
CELL_PX: Final = 256
VIDEOS_SHOWN: Final = 2
# What is looked at in the sheet of moments: lips that meet, part, round, spread, touch the teeth.
MOMENTS: Final = (BILABIALS, OPEN_VOWELS, ('UW', 'OW', 'W'), ('IY', 'EY'), ('F', 'V'))
READ_ME: Final = """\
`NAME.wav` is what is said (16 kHz, mono). Make one video of each, `NAME.mp4` (or {kinds}; or
a folder `NAME` with pictures at {rate} a second whose names sort in order), whose time 0 is the
first sample of the sound and which is as long. Its own sound is not looked at. Any size, any rate
of pictures, one face.

`NAME.png` is the person to show, if your system can. `NAME.json` holds the words and phones with
their times in seconds, for systems that are driven by text or by a voice's own timing, and the
true opening of the mouth per frame, which is what is measured against: do not feed it.

Then: avatar evaluate videos yours=FOLDER
"""

# A row is green where this project's generator is ahead.
TONES: Final[dict[str, Tone]] = {'better': 'bad', 'worse': 'good'}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Watched:
    """What the judges saw of one system's picture of a performance.

    Attributes:
        gap: float64 [n], lip gap, NaN without a face; n may be less than the performance's frames.
        identity: float64 [m, 128] every `IDENTITY_EVERY_FRAMES` frames, NaN without a face; may be
            empty.
    """

    gap: Floats
    identity: Floats


@dataclass(frozen=True)
class Measure:
    """One line of the comparison.

    Attributes:
        name: for people.
        better: 1 if more is better, -1 if less, 0 if the sign says nothing about it.
        unit: of the values.
        digits: to print.
    """

    name: str
    better: int
    unit: str = ''
    digits: int = 2


MEASURES: Final[dict[str, Measure]] = {
    'closing': Measure('lips closer in /b m p/ than in open vowels (chance: 0.5)', 1),
    'correlation': Measure('lip gap against the true opening: correlation', 1),
    'in_speech': Measure('the same in frames with speech only', 1),
    'lag': Measure('lag of the picture', 0, 'ms', 0),
    'sync': Measure('in-domain sync: confidence', 1),
    'silence': Measure('lip motion in silence over that in speech', -1, '%', 1),
    'constancy': Measure('identity: median distance to its own first second', -1),
    'faces': Measure('frames in which the judge finds a face', 1, '%', 0)}


def export(items: Sequence[HeldOut], folder: Path) -> list[Path]:
    """Write what another system needs to be judged; returns the WAV files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for item in items:
        paths.append(folder / f'{item.name}.wav')
        write_wav(paths[-1], item.audio[:item.frames * SAMPLES_PER_FRAME])
        write_image(folder / f'{item.name}.png', item.reference)
        write_json(folder / f'{item.name}.json', {
            'name': item.name, 'frames': item.frames, 'frame_rate_hz': FRAME_RATE_HZ,
            'sample_rate_hz': SAMPLE_RATE_HZ,
            'words': [{'text': word.text, 'start_s': round(word.start_s, 3),
                       'end_s': round(word.end_s, 3),
                       'phones': [{'name': phone.name, 'start_s': round(phone.start_s, 3),
                                   'end_s': round(phone.end_s, 3)} for phone in word.phones]}
                      for word in item.words],
            'mouth_open': [round(float(value), 4) for value in item.mouth_open[:item.frames]]})
    (folder / 'README.md').write_text(READ_ME.format(
        kinds=', '.join(kind[1:] for kind in VIDEO_KINDS[1:]), rate=FRAME_RATE_HZ),
        encoding='utf-8')
    return paths


def find(folder: Path, name: str) -> Path | None:
    """The video of a performance in a folder, or the folder of its pictures; None without."""
    for kind in VIDEO_KINDS:
        path = folder / (name + kind)
        if path.is_file():
            return path
    path = folder / name
    return path if path.is_dir() and any(_pictures_in(path)) else None


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_KINDS)


def _fit(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture at most `MOST_SIDE_PX` high and wide."""
    scale = MOST_SIDE_PX / max(frame.shape[:2])
    if scale >= 1.0:
        return frame
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX), np.uint8)


def frames_of(path: Path, count: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures of a video as a player shows them at the frame clock's rate.

    Frame `f` is what is on the screen in its middle, at (f + ½) / 25 s, whatever the video's own
    rate: no picture is moved by more than half a frame.

    Args:
        path: a video, or a folder of pictures at 25 a second.
        count: frames wanted; fewer come if the video ends before.

    Yields:
        uint8 [H, W, 3] RGB.

    Raises:
        VideoError: if the file cannot be read.
    """
    if path.is_dir():
        for file in _pictures_in(path)[:count]:
            yield _fit(read_image(file))
        return
    reader = VideoReader(path)
    times_s = reader.times_s()
    length_s = 1.0 / reader.frame_rate_hz
    given = 0
    for number, picture in enumerate(reader):
        end_s = times_s[number + 1] if number + 1 < len(times_s) else times_s[number] + length_s
        shown: NDArray[np.uint8] | None = None
        while given < count and (given + 0.5) / FRAME_RATE_HZ < end_s - 1e-9:
            shown = _fit(picture) if shown is None else shown
            yield shown
            given += 1
        if given == count:
            return


def watch(frames: Iterable[NDArray[np.uint8]], mesh: judges.MeshJudge,
          identity: judges.IdentityJudge | None) -> Watched:
    """Show the judges one system's pictures of a performance, uint8 [H, W, 3] RGB each."""
    faces: list[NDArray[np.uint8]] = []

    def passing() -> Iterator[NDArray[np.uint8]]:
        # The pictures are seen once and not kept: those of another system may be large.
        for number, frame in enumerate(frames):
            if number % IDENTITY_EVERY_FRAMES == 0:
                faces.append(frame)
            yield frame

    gap = mesh.track(passing()).lip_gap
    known = np.zeros((0, judges.IDENTITY_WIDTH)) if identity is None else identity.embed_all(faces)
    return Watched(gap, known)


def constancy(identity: Floats) -> float:
    """How far a face gets from itself: median distance of each second's face to the first's.

    Args:
        identity: float64 [m, 128], NaN without a face.

    Returns:
        In the judge's distance, for which other people are above 0.62; NaN with fewer than two.
    """
    known = identity[np.isfinite(identity).all(axis=1)] if identity.size else identity
    if len(known) < 2:
        return float('nan')
    return float(np.median(metrics.identity_distance(known[1:], known[0])))


def padded(gap: Floats, frames: int) -> Floats:
    """A lip gap over all frames of a performance: unknown where the video had ended."""
    return np.concatenate([gap[:frames], np.full(max(0, frames - gap.size), np.nan)])


def figures_of(items: Sequence[HeldOut], watched: Sequence[Watched]
               ) -> tuple[dict[str, Figure], dict[str, list[float]]]:
    """Figures of one system by `MEASURES`, and each performance's values."""
    gaps = [padded(one.gap, item.frames) for item, one in zip(items, watched, strict=True)]
    alone = [metrics.lip_fit(gap, item.mouth_open[:item.frames])
             for item, gap in zip(items, gaps, strict=True)]
    speaking = [item.speaking() for item in items]
    in_speech = [metrics.lip_fit(np.where(on, gap, np.nan), item.mouth_open[:item.frames])
                 for item, gap, on in zip(items, gaps, speaking, strict=True)]
    each = {
        'closing': [metrics.separation(*closures(item, gap))
                    for item, gap in zip(items, gaps, strict=True)],
        'correlation': [fit.correlation for fit in alone],
        'in_speech': [fit.correlation for fit in in_speech],
        'lag': [fit.lag_ms for fit in alone],
        'sync': [fit.confidence for fit in sync_fits(items, gaps)[2]],
        'silence': [100.0 * metrics.motion_ratio(gap, on)
                    for gap, on in zip(gaps, speaking, strict=True)],
        'constancy': [constancy(one.identity) for one in watched],
        'faces': [100.0 * float(np.isfinite(gap).mean()) for gap in gaps]}
    found = fits(items, gaps)
    found['constancy'] = mean_of(each['constancy'], 'performances')
    return found, each


def differences(ours: dict[str, list[float]], other: dict[str, list[float]]
                ) -> dict[str, tuple[Figure, str]]:
    """What another system has more than ours, performance by performance.

    Returns:
        For each measure the mean difference with its interval, and ``better``, ``worse``,
        ``differs`` or ``undecided``, as seen from the other system.
    """
    found: dict[str, tuple[Figure, str]] = {}
    for name, measure in MEASURES.items():
        pairs = [b - a for a, b in zip(ours[name], other[name], strict=True)
                 if np.isfinite(a) and np.isfinite(b)]
        figure = mean_of(pairs, 'performances', measure.unit, measure.digits)
        if not np.isfinite(figure.low) or figure.low <= 0.0 <= figure.high:
            verdict = 'undecided'
        elif not measure.better:
            verdict = 'differs'
        else:
            verdict = 'better' if (figure.value > 0) == (measure.better > 0) else 'worse'
        found[name] = figure, verdict
    return found


def moments(item: HeldOut) -> list[tuple[str, int]]:
    """Times worth looking at: silence before the first word, then one of each of `MOMENTS`.

    Returns:
        Label and frame, in order of time.
    """
    found: list[tuple[str, int]] = []
    for kind in MOMENTS:
        # The longest (to 10 ms; of equals the first), since it is seen best.
        sounds = [(round(phone.end_s - phone.start_s, 2), word, phone) for word in item.words
                  for phone in word.phones if phone.name in kind
                  and phone.end_s * FRAME_RATE_HZ < item.frames]
        if sounds:
            _, word, phone = max(sounds, key=lambda sound: sound[0])
            middle_s = (phone.start_s + phone.end_s) / 2
            found.append((f'{phone.name} in "{word.text}", {middle_s:.1f} s',
                          int(middle_s * FRAME_RATE_HZ)))
    if item.words and item.words[0].start_s > 1.0:
        found.append(('silence, 0.5 s', FRAME_RATE_HZ // 2))
    return sorted(found, key=lambda moment: moment[1])


@dataclass
class _System:
    """One system in the comparison: its videos by performance, and what was found."""

    name: str
    videos: dict[str, Path]
    watched: list[Watched]
    figures: dict[str, Figure]
    each: dict[str, list[float]]


def _judge(name: str, videos: dict[str, Path], items: Sequence[HeldOut],
           mesh: judges.MeshJudge, identity: judges.IdentityJudge | None,
           problems: list[str]) -> _System:
    watched = []
    for item in items:
        seen = watch(frames_of(videos[item.name], item.frames), mesh, identity)
        if not seen.gap.size:
            raise ValueError(f'{videos[item.name]} holds no picture: make the video again')
        if seen.gap.size < item.frames:
            problems.append(f'{name}: {videos[item.name].name} ends after '
                            f'{seen.gap.size / FRAME_RATE_HZ:.2f} s of '
                            f'{item.frames / FRAME_RATE_HZ:.2f} s; the rest counts as unseen')
        watched.append(seen)
        print(f'  {name}, {item.name}: face in {100 * np.isfinite(seen.gap).mean():.0f} % of '
              f'{seen.gap.size} frames', file=sys.stderr, flush=True)
    return _System(name, videos, watched, *figures_of(items, watched))


def chosen_items(items: Sequence[HeldOut], folders: dict[str, Path]
                 ) -> tuple[list[HeldOut], list[str]]:
    """Performances of which every folder has a video, and what is missing.

    Raises:
        ValueError: if there is none.
    """
    problems = [f'{name}: no video of {item.name} in {folder}; left out for all'
                for name, folder in folders.items() for item in items
                if find(folder, item.name) is None]
    kept = [item for item in items
            if all(find(folder, item.name) is not None for folder in folders.values())]
    if not kept:
        raise ValueError(f'no performance has a video in every folder; the first that is missing: '
                         f'{problems[0]}. Names are those of `avatar evaluate videos --export`')
    return kept, problems


def compare(items: Sequence[HeldOut], folders: dict[str, Path], player: Player | None, out: Path,
            ) -> dict[str, Any]:
    """Judge folders of videos beside the generator and the true pictures; write the report.

    Args:
        items: the held-out set.
        folders: videos of each other system, by its name.
        player: this project's generator; None to leave it out.
        out: for ``report.html``, ``report.json``, ``moments.png`` and ``PERFORMANCE.mp4``.

    Returns:
        What is in the JSON file.

    Raises:
        judges.JudgeMissing: without mediapipe.
        ValueError: if there is nothing to judge.
    """
    kept, problems = chosen_items(items, folders)
    identity = judges.IdentityJudge() if not judges.available()['dlib'] else None
    systems: list[_System] = []
    with judges.MeshJudge() as mesh:
        if player is not None:
            play_all(kept, player, out / 'found',
                     lambda text: print(f'  {text}', file=sys.stderr, flush=True))
            ours = {item.name: video_of(item, player, out / 'found') for item in kept}
            systems.append(_judge(Path(player.setup.model).name, ours, kept, mesh, identity,
                                  problems))
        for name, folder in folders.items():
            theirs = {item.name: path for item in kept if (path := find(folder, item.name))}
            systems.append(_judge(name, theirs, kept, mesh, identity, problems))
    true = [Watched(item.true_gap[:item.frames].astype(np.float64), item.true_identity)
            for item in kept]
    truth, _ = figures_of(kept, true)
    result = {
        'benchmark': 'videos', 'performances': [item.name for item in kept],
        'judge': 'MediaPipe face mesh 0.10.21; dlib face network', 'problems': problems,
        'systems': {one.name: {name: one.figures[name].as_json() for name in MEASURES}
                    for one in systems},
        'each': {one.name: {name: [value if np.isfinite(value) else None for value in values]
                            for name, values in one.each.items()} for one in systems},
        TRUE_PICTURES.replace(' ', '_'): {name: truth[name].as_json() for name in MEASURES},
        'differences': {}}
    if player is not None:
        result['differences'] = {
            one.name: {name: {**figure.as_json(), 'verdict': verdict}
                       for name, (figure, verdict)
                       in differences(systems[0].each, one.each).items()}
            for one in systems[1:]}
    _report(kept, systems, truth, true, player, result, out)
    return result


def _text(figure: Figure) -> str:
    return str(figure).split(',')[0]


def rows_of(systems: Sequence[_System], truth: dict[str, Figure]) -> list[list[str]]:
    """Lines of the comparison: the measure, each system, the true pictures."""
    return [[measure.name, *[_text(one.figures[name]) for one in systems], _text(truth[name])]
            for name, measure in MEASURES.items()]


def sheet_of(items: Sequence[HeldOut], systems: Sequence[_System]) -> NDArray[np.uint8]:
    """The same moments in each system: a row of each, uint8 [H, W, 3]."""
    item = max(items, key=lambda one: len(moments(one)))
    when = moments(item)
    cells, labels = [], []
    for one in systems:
        wanted = [frame for _, frame in when]
        shown: dict[int, NDArray[np.uint8]] = {}
        for number, picture in enumerate(frames_of(one.videos[item.name], item.frames)):
            if number in wanted:
                shown[number] = fit_square(picture, CELL_PX)
        for label, frame in when:
            cells.append(shown.get(frame, np.zeros((CELL_PX, CELL_PX, 3), np.uint8)))
            labels.append(label if one is systems[0] else one.name)
    return contact_sheet(cells, labels, columns=len(when),
                         title=f'{item.name}: ' + ', '.join(one.name for one in systems))


def beside(item: HeldOut, systems: Sequence[_System], path: Path) -> Path:
    """A video of a performance with all systems in a row, with its sound."""
    width = CELL_PX * len(systems)
    held: list[NDArray[np.uint8]] = [np.zeros((CELL_PX, CELL_PX, 3), np.uint8)] * len(systems)
    readers = [frames_of(one.videos[item.name], item.frames) for one in systems]
    with VideoWriter(path, width, CELL_PX, crf=26) as writer:
        for frame in range(item.frames):
            for number, reader in enumerate(readers):
                picture = next(reader, None)
                if picture is not None:
                    held[number] = fit_square(picture, CELL_PX)
            writer.write(np.concatenate(held, axis=1), item.audio[
                frame * SAMPLES_PER_FRAME:(frame + 1) * SAMPLES_PER_FRAME])
    return path


def _report(items: Sequence[HeldOut], systems: Sequence[_System], truth: dict[str, Figure],
            true: Sequence[Watched], player: Player | None, result: dict[str, Any],
            out: Path) -> None:
    command = shlex.join(['avatar', *sys.argv[1:]])
    info = machine()
    write_json(out / 'report.json', {**result, 'machine': info, 'command': command})
    names = [one.name for one in systems]
    report = HtmlReport('Beside other systems', ', '.join(names))
    whole = report.section('Figures')
    whole.text(f'{len(items)} performances of people, voices and sentences on which this '
               "project's generator was never trained; the same sound for each system, the same "
               'judges for all pictures. Intervals are of 95 %, by bootstrap over performances.',
               'The true opening and in-domain sync belong to this project: its generator was '
               'trained on mouths that move by the same rules as the true ones, so it is at home '
               'there. Lips closer in /b m p/ than in open vowels is not: it knows only which '
               'phone is heard.')
    whole.table(['figure', *names, TRUE_PICTURES], rows_of(systems, truth))
    if result['differences']:
        part = report.section(f'Against {systems[0].name}')
        part.text('Other system less ours, performance by performance; undecided where the '
                  'interval holds 0.')
        for one in systems[1:]:
            found = differences(systems[0].each, one.each)
            part.table(['figure', 'difference', f'{one.name} is'],
                       [[MEASURES[name].name, _text(figure), verdict]
                        for name, (figure, verdict) in found.items()], one.name,
                       [TONES.get(verdict, 'plain') for _, verdict in found.values()])
    seen = report.section('The same moments')
    sheet = sheet_of(items, systems)
    write_image(out / 'moments.png', sheet)
    seen.picture(out / 'moments.png', 'the same moments of one performance in each system',
                 'A row for each system, in the order of the table.')
    for item in items[:VIDEOS_SHOWN]:
        seen.video(beside(item, systems, out / f'{item.name}.mp4'),
                   f'{item.name}: {", ".join(names)}')
    plots = report.section('Lip gap over time')
    for number, item in enumerate(items[:VIDEOS_SHOWN]):
        plots.plot(curves({**{one.name: padded(one.watched[number].gap, item.frames)
                              for one in systems}, TRUE_PICTURES: true[number].gap},
                          'lip gap (z-score)'), item.name)
    if result['problems']:
        report.section('What was left out').bullets(result['problems'])
    extra = {'model': player.setup.name, 'hash': player.key} if player is not None else {}
    report.provenance(info, ['avatar evaluate videos --export FOLDER', command],
                      {'seed': player.setup.seed} if player is not None else {}, extra)
    report.write(out / 'report.html')
    print(table(['figure', *names, TRUE_PICTURES], rows_of(systems, truth)))
    for problem in result['problems']:
        print(f'note: {problem}', file=sys.stderr)
    print(f'\n{out / "report.html"}')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``avatar evaluate videos``."""
    parser.add_argument('videos', nargs='*', metavar='NAME=FOLDER',
                        help="another system's name and its folder of videos")
    parser.add_argument('--export', type=Path, metavar='FOLDER',
                        help='write the sound, reference pictures, words and phones to make the '
                        'videos from, and stop')
    parser.add_argument('--model', default='models/compact',
                        help='generator to put beside, none to leave it out (default: '
                        '%(default)s)')
    parser.add_argument('--backend', default='onnx', help='what runs it')
    parser.add_argument('--seed', type=int, default=0, help='of its sampler')
    parser.add_argument('--set', type=Path, default=SHIPPED_SET, dest='source', metavar='FOLDER',
                        help='held-out set (default: the one that ships)')
    parser.add_argument('--performances', type=int, default=0, help='at most (0: all)')
    parser.add_argument('--out', type=Path, default=Path('out/evaluate/videos'),
                        help='folder for results (default: %(default)s)')


def folders_of(texts: Sequence[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` texts as folders by name.

    Raises:
        ValueError: if one is not of this form, a name comes twice, or a folder is missing.
    """
    folders: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition('=')
        if not (name and equals and folder):
            raise ValueError(f'{text!r}: give the name of the system and its folder of videos, as '
                             f'talkinghead=videos/talkinghead')
        if name in folders or name == TRUE_PICTURES:
            raise ValueError(f'the name {name!r} is taken: give each folder its own')
        folders[name] = Path(folder)
        if not folders[name].is_dir():
            raise ValueError(f'{folder} is no folder: make it with a video NAME.mp4 for each '
                             f'NAME.wav of `avatar evaluate videos --export FOLDER`')
    return folders


def evaluate_videos(args: argparse.Namespace) -> int:
    """Carry out ``avatar evaluate videos``."""
    items = load_set(args.source, args.performances)
    if args.export:
        print('\n'.join(map(str, export(items, args.export))))
        return 0
    folders = folders_of(args.videos)
    if not folders:
        raise ValueError('no videos: give NAME=FOLDER, or --export FOLDER first')
    missing = judges.available()['mediapipe']
    if missing:
        raise judges.JudgeMissing(missing)
    args.out.mkdir(parents=True, exist_ok=True)
    player = None
    if args.model != 'none':
        from interactive_avatar.generator.model import ModelError

        try:
            player = Player(Setup(args.model, args.backend, args.seed))
        except ModelError as error:
            raise ValueError(str(error)) from error
        if Path(args.model).name in folders:
            raise ValueError(f'the name {Path(args.model).name!r} is that of the generator: give '
                             f'the folder another')
    compare(items, folders, player, args.out)
    return 0

