# SPDX-License-Identifier: Apache-2.0
"""``avatar evaluate noise``: how much each metric moves when nothing that it measures has changed.

Three kinds of noise, each by doing it again:

- the *instrument*: one bag is judged again from nothing, and once more with its pictures disturbed
  in ways that no viewer would call another avatar (a pixel aside, a grey level brighter, encoded
  once more);
- the *session*: several recordings of the same user talking to the same avatar, whose answers,
  timing and noise differ as they do in life;
- the *sampler*: the held-out performances generated with other seeds.

A difference between two runs that is smaller than these says nothing.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from interactive_avatar.evaluation import judges, metrics
from interactive_avatar.evaluation.bag import Recording, read_bag
from interactive_avatar.evaluation.bench_lips import summarise
from interactive_avatar.evaluation.held_out import SHIPPED_SET, HeldOut, load_set
from interactive_avatar.evaluation.model import frechet
from interactive_avatar.evaluation.model.performances import Seen, play_all
from interactive_avatar.evaluation.model.play import Player, Setup
from interactive_avatar.evaluation.model.seams import ratio
from interactive_avatar.evaluation.report import machine, number, table, write_json
from interactive_avatar.evaluation.session import Analysis, analyse
from interactive_avatar.evaluation.session_judges import judge_session

REPEATS: Final = 3
BRIGHTER: Final = 1
JPEG_QUALITY: Final = 92

Frames = NDArray[np.uint8]
Disturb = Callable[[Frames], Frames]


def _encoded(frame: Frames) -> Frames:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'JPEG', quality=JPEG_QUALITY)
    return np.asarray(Image.open(buffer).convert('RGB'), np.uint8)


def _moved(frame: Frames, right: int, down: int) -> Frames:
    """A picture moved by some pixels; what is at its edge is repeated."""
    height, width = frame.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return frame[rows][:, columns]


DISTURBANCES: Final[dict[str, Disturb]] = {
    'a pixel to the right': lambda frame: _moved(frame, 1, 0),
    'a pixel lower': lambda frame: _moved(frame, 0, 1),
    'a grey level brighter': lambda frame: np.minimum(frame, 255 - BRIGHTER) + np.uint8(BRIGHTER),
    f'JPEG of quality {JPEG_QUALITY}': _encoded}


@dataclass(frozen=True)
class Spread:
    """A figure done again and again.

    Attributes:
        values: of each run, NaN where it could not be measured.
    """

    values: tuple[float, ...]

    @property
    def known(self) -> NDArray[np.float64]:
        """The values that could be measured, float64 [k]."""
        values = np.array(self.values, np.float64)
        return values[np.isfinite(values)]

    @property
    def mean(self) -> float:
        """Mean of the known values; NaN without one."""
        return float(self.known.mean()) if self.known.size else float('nan')

    @property
    def deviation(self) -> float:
        """Standard deviation over the runs, of a sample (n - 1); NaN with fewer than two."""
        if self.known.size < 2:
            return float('nan')
        # Equal values are equal, whatever their mean is rounded to.
        return float(self.known.std(ddof=1)) if self.span > 0.0 else 0.0

    @property
    def span(self) -> float:
        """Largest less smallest; NaN without a value."""
        return float(np.ptp(self.known)) if self.known.size else float('nan')

    def as_json(self) -> dict[str, Any]:
        """Plain values, None for NaN."""
        def plain(value: float) -> float | None:
            return value if np.isfinite(value) else None
        return {'values': [plain(value) for value in self.values], 'mean': plain(self.mean),
                'standard_deviation': plain(self.deviation), 'span': plain(self.span)}


def spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """The figures of several runs, by name in the order of the first run."""
    return {name: Spread(tuple(float(run.get(name, float('nan'))) for run in runs))
            for name in (runs[0] if runs else {})}


def _float(value: Any) -> float:
    return float('nan') if value is None else float(value)


def session_figures(analysis: Analysis) -> dict[str, float]:
    """The figures of a session by name with their unit, NaN where there is none."""
    result = analysis.result
    stream, face = result['stream'], result['face'] or {}
    seen = [_float(row['switch_to_visible_ms']) for row in result['turns']]
    seen = [value for value in seen if np.isfinite(value)]
    heard = [row['word_error_rate'] for row in result['turns'] if 'word_error_rate' in row]
    figures = {
        'first picture (s)': _float(result['start']['first_chunk_s']),
        'answer after the last sound, p50 (s)': _float(result['response_latency_s']['p50']),
        'word error rate': float(np.mean(heard)) if heard else float('nan'),
        'switch to visible, mean (ms)': float(np.mean(seen)) if seen else float('nan'),
        'missed chunks': _float(stream['missed']['repeated']),
        'lost and late chunks': _float(stream['audio']['lost'] + stream['audio']['late']),
        'sound against picture, worst (ms)': _float(stream['av_offset_ms']['worst']),
        'seam ratio': _float(face.get('seam_ratio')),
        'mouth region at rest over speech': _float(face.get('mouth_rest_to_speech')),
        'sharpness': _float(face.get('sharpness', {}).get('mean')),
        'colour drift, last second (ΔE)': _float(
            face.get('colour_drift_delta_e', {}).get('last_second'))}
    for name, values in result['nodes'].items():
        if name.endswith('generator'):
            for point in ('p50', 'p95', 'p99'):
                text = values['values'].get(f'chunk_{point}_ms', '')
                figures[f'chunk time, {point} (ms)'] = float(text) if text else float('nan')
    for name, row in result['system'].items():
        if name.endswith('generator'):
            figures['memory of the generator, most (MiB)'] = _float(
                row.get('rss_mib', {}).get('max'))
            figures['processor of the generator (% of a core)'] = _float(row.get('cpu_percent'))
    figures |= {name.replace('in_domain', 'in-domain').replace('_', ' '): _float(value)
                for name, value in result.get('judges', {}).items()}
    return figures


def measured(recording: Recording, judged: bool = True) -> dict[str, float]:
    """Measure a session from nothing, with new judges."""
    analysis = analyse(recording)
    if judged and recording.pictures:
        analysis.result['judges'] = judge_session(analysis)
    return session_figures(analysis)


def disturbed(recording: Recording, disturb: Disturb) -> Recording:
    """The same session with other pictures."""
    def changed(data: Frames) -> bytes:
        buffer = io.BytesIO()
        # Lossless, so that nothing but the disturbance is added.
        Image.fromarray(disturb(data)).save(buffer, 'PNG', compress_level=1)
        return buffer.getvalue()
    return replace(recording, pictures=[replace(picture, data=changed(picture.decode()))
                                        for picture in recording.pictures])


def instrument(recording: Recording, repeats: int, say: Callable[[str], None],
               judged: bool = True) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """One bag judged again, and with its pictures disturbed.

    Returns:
        Figures over ``repeats`` runs of the same bag, and over the bag as it is and each of
        `DISTURBANCES`.
    """
    runs = []
    for run in range(repeats):
        say(f'judging {recording.path}, {run + 1} of {repeats}')
        runs.append(measured(recording, judged))
    others = [runs[0]]
    for name, disturb in DISTURBANCES.items():
        say(f'judging {recording.path}: {name}')
        others.append(measured(disturbed(recording, disturb), judged))
    return spreads(runs), spreads(others)


def model_figures(items: Sequence[HeldOut], seen: Sequence[Seen]) -> dict[str, float]:
    """Figures of one generation of the held-out performances by name, with their unit."""
    lips = summarise(items, [one.gap for one in seen])
    known = [metrics.identity_distance(one.identity, one.reference) for one in seen]
    space = frechet.Space([item.true_look for item in items])
    return {
        'lip correlation': lips['correlation'],
        'lip correlation, in speech': lips['correlation_in_speech'],
        'lag (ms)': lips['lag_ms'],
        'lips closer in /b m p/': lips['closing'],
        'motion in silence (%)': 100.0 * lips['motion_in_silence'],
        'in-domain sync, C': lips['in_domain_sync_confidence'],
        'in-domain sync, D': lips['in_domain_sync_distance'],
        'in-domain sync, offset (ms)': lips['in_domain_sync_offset_ms'],
        'identity distance, median': float(np.nanmedian(np.concatenate(known))),
        'seam ratio': float(np.mean([ratio(one.change) for one in seen])),
        'Fréchet distance (Gabor)': frechet.distance(
            np.concatenate([space.place(one.look) for one in seen]),
            np.concatenate([space.place(item.true_look) for item in items]))}


def sampler(items: Sequence[HeldOut], setup: Setup, seeds: int, folder: Path,
            say: Callable[[str], None]) -> dict[str, Spread]:
    """The held-out performances generated with seeds 0, 1, ...; finished ones are read again."""
    runs = []
    for seed in range(seeds):
        say(f'generating with seed {seed}')
        runs.append(model_figures(items, play_all(
            items, Player(replace(setup, seed=seed)), folder, say)))
    return spreads(runs)


def apart(items: Sequence[HeldOut], judge: judges.IdentityJudge) -> NDArray[np.float64]:
    """Distances of all pairs of different people's reference pictures, float64 [n (n - 1) / 2].

    What the identity judge must tell apart, beside the distances that it finds for one person.
    """
    rows = np.array([judge.embed(item.reference) for item in items])
    first, second = np.triu_indices(len(rows), 1)
    return np.linalg.norm(rows[first] - rows[second], axis=1)


def _digits(value: float) -> str:
    """A figure with as many digits as it needs: three that count."""
    if not np.isfinite(value):
        return '–'
    if value == 0.0:
        return '0'
    places = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f'{value:.{min(places, 4)}f}'


def rows_of(columns: Mapping[str, Mapping[str, Spread]]) -> list[list[str]]:
    """Lines of a table: figure, its mean in the first column's runs, the deviation in each."""
    first = next(iter(columns.values()))
    lines = []
    for name in first:
        if not np.isfinite(first[name].mean):
            continue
        cells = [_digits(column[name].deviation) if name in column else '–'
                 for column in columns.values()]
        lines.append([name, _digits(first[name].mean), *cells])
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``avatar evaluate noise``."""
    parser.add_argument('bags', nargs='*', type=Path, metavar='BAG',
                        help='sessions of the same user with the same avatar; the first is also '
                        'judged again and with its pictures disturbed')
    parser.add_argument('--repeats', type=int, default=REPEATS,
                        help='how often the first bag is judged (default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=0, metavar='N',
                        help='generate the held-out performances with so many seeds (default: '
                        'none)')
    parser.add_argument('--performances', type=int, default=0, help='at most (0: all)')
    parser.add_argument('--model', default='models/compact', help='folder of the model')
    parser.add_argument('--backend', default='onnx', help='what runs it')
    parser.add_argument('--no-judges', dest='judged', action='store_false',
                        help='pixels and timing only')
    parser.add_argument('--out', type=Path, default=Path('out/evaluate/noise'),
                        help='folder for results (default: %(default)s)')


def evaluate_noise(args: argparse.Namespace) -> int:
    """Carry out ``avatar evaluate noise``."""
    if not args.bags and not args.seeds:
        raise ValueError('nothing to do again: give a bag, several, or --seeds N')
    for name, least in (('repeats', 2), ('seeds', 0), ('performances', 0)):
        if getattr(args, name) < least or (name == 'seeds' and args.seeds == 1):
            raise ValueError(f'--{name} {getattr(args, name)}: a spread needs at least two runs')

    def say(text: str) -> None:
        print(f'  {text}', file=sys.stderr, flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {'machine': machine()}
    parts: list[str] = []

    def put(title: str, columns: Mapping[str, Mapping[str, Spread]], note: str) -> None:
        result[title] = {column: {name: spread.as_json() for name, spread in found.items()}
                         for column, found in columns.items()}
        parts.append(f'### {title}\n\n{note}\n\n' + table(
            ['figure', 'mean', *(f'σ: {column}' for column in columns)], rows_of(columns)))

    if args.bags:
        recordings = [read_bag(path) for path in args.bags]
        again, moved = instrument(recordings[0], args.repeats, say, args.judged)
        columns = {f'judged {args.repeats} times': again, 'pictures disturbed': moved}
        if len(recordings) > 1:
            runs = []
            for recording in recordings:
                say(f'judging {recording.path}')
                runs.append(measured(recording, args.judged))
            columns[f'{len(runs)} sessions'] = spreads(runs)
        put('Sessions', columns, 'Standard deviations; disturbances: '
            + ', '.join(DISTURBANCES) + '.')
    if args.seeds:
        missing = [why for why in judges.available().values() if why]
        if missing:
            raise judges.JudgeMissing('; '.join(missing))
        from interactive_avatar.generator.model import ModelError

        items = load_set(SHIPPED_SET, args.performances)
        try:
            found = sampler(items, Setup(args.model, args.backend), args.seeds,
                            args.out / 'found', say)
        except ModelError as error:
            raise ValueError(str(error)) from error
        put('Generation', {f'{args.seeds} seeds': found},
            f'{len(items)} held-out performances of {args.model}.')
        pairs = apart(items, judges.IdentityJudge())
        result['reference_pairs'] = {'distances': sorted(pairs.tolist())}
        parts.append(f'References of different people, {pairs.size} pairs: distance '
                     f'{number(float(pairs.min()))} to {number(float(pairs.max()))}, median '
                     f'{number(float(np.median(pairs)))}; {int((pairs < 0.5).sum())} below 0.5.')
    text = '\n\n'.join(parts)
    write_json(args.out / 'noise.json', result)
    (args.out / 'noise.md').write_text(text + '\n', encoding='utf-8')
    print(text)
    print(f'\n{args.out / "noise.json"}')
    return 0
