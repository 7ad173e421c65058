# SPDX-License-Identifier: Apache-2.0
"""``avatar evaluate model``: measure a generator against everything that it must reach."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from interactive_avatar.evaluation import judges
from interactive_avatar.evaluation.held_out import SHIPPED_SET, HeldOut, load_set
from interactive_avatar.evaluation.html import Card, HtmlReport, Tone
from interactive_avatar.evaluation.model import (
    actions,
    blinks,
    cost,
    hours,
    identity,
    lips,
    looks,
    recorded,
    retention,
    seams,
)
from interactive_avatar.evaluation.model.figures import NOTHING, Result, Row
from interactive_avatar.evaluation.model.gestures import TRIALS
from interactive_avatar.evaluation.model.performances import Seen, play_all, video_of
from interactive_avatar.evaluation.model.play import Player, Setup
from interactive_avatar.evaluation.report import machine, table, write_json
from interactive_avatar.generator.memory import KEY_FRAME_POLICIES
from interactive_avatar.generator.sampler import levels_of
from interactive_avatar.media.picture import write_image

SETS: Final = ('lips', 'silence', 'identity', 'seams', 'blinks', 'frechet', 'actions',
               'retention', 'recorded', 'hours', 'cost')
QUICK_SETS: Final = ('lips', 'silence', 'identity', 'seams', 'blinks', 'frechet', 'actions',
                     'retention', 'cost')
QUICK_PERFORMANCES: Final = 4
QUICK_PEOPLE: Final = 2
QUICK_CHUNKS: Final = 100
FULL_CHUNKS: Final = 500
VIDEOS_SHOWN: Final = 3


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        sets: names of `SETS`, in the order in which they run.
        source: folder of the held-out set.
        performances: how many at most; 0 for all.
        people: how many people act, keep objects and say recordings; 0 for all of the set.
        quick: the short form of each claim.
        minutes: length of the long stream.
        streams: how many people have one.
        out: folder for the report and for what was found so far.
    """

    sets: tuple[str, ...] = SETS
    source: Path = SHIPPED_SET
    performances: int = 0
    people: int = 0
    quick: bool = False
    minutes: int = 30
    streams: int = 1
    out: Path = Path('out/evaluate/model')


def _say(text: str) -> None:
    print(f'  {text}', file=sys.stderr, flush=True)


class _Measurer:
    """Runs the claims of a plan on one generator; performances are played once for all."""

    def __init__(self, plan: Plan, setup: Setup) -> None:
        self.plan, self.player = plan, Player(setup)
        self.everyone = load_set(plan.source)
        count = plan.performances or (QUICK_PERFORMANCES if plan.quick else len(self.everyone))
        self.items = _spread(self.everyone, count)
        self.people = _spread(self.everyone, plan.people or (QUICK_PEOPLE if plan.quick
                                                             else len(self.everyone)))
        self.cache = plan.out / 'found'
        self._seen: list[Seen] = []

    def seen(self) -> list[Seen]:
        """What the judges saw of the performances."""
        self._seen = self._seen or play_all(self.items, self.player, self.cache, _say)
        return self._seen

    def lips(self) -> Result:
        result = lips.measure(self.items, self.seen())
        result.videos = [(item.name, video_of(item, self.player, self.cache))
                         for item in self.items[:VIDEOS_SHOWN]]
        return result

    def identity(self) -> Result:
        return identity.measure(self.items, self.seen())

    def seams(self) -> Result:
        return seams.measure(self.items, self.seen())

    def blinks(self) -> Result:
        told = self.player.files.config.denoiser.blink_rows > 0
        return blinks.measure(self.items, self.seen(), told, self.player.setup.seed)

    def frechet(self) -> Result:
        return looks.measure(self.items, self.seen())

    def actions(self) -> Result:
        quick = self.plan.quick
        trials = [trial for trial in TRIALS if not quick or trial.name in actions.QUICK]
        variants = (actions.CANONICAL,
                    *(actions.QUICK_PARAPHRASES if quick else actions.PARAPHRASES))
        return actions.measure(self.people, self.player, trials, variants, self.cache, _say)

    def retention(self) -> Result:
        times = retention.QUICK if self.plan.quick else retention.Timeline()
        return retention.measure(self.people, self.player, times, self.cache, _say)

    def recorded(self) -> Result:
        return recorded.measure(self.people, self.player, self.cache, 4 if self.plan.quick else 0,
                                _say)

    def hours(self) -> Result:
        return hours.measure(_spread(self.everyone, self.plan.streams), self.player,
                             self.plan.minutes, self.cache, _say, self.everyone)

    def cost(self) -> Result:
        return cost.measure(self.items[0].reference, self.player,
                            QUICK_CHUNKS if self.plan.quick else FULL_CHUNKS)


def _spread(items: Sequence[HeldOut], count: int) -> list[HeldOut]:
    """`count` of the items, evenly spread."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def measure(plan: Plan, setup: Setup) -> dict[str, Result]:
    """Measure a generator.

    Returns:
        Results by name of the set; lips and silence are one, ``lips``.

    Raises:
        judges.JudgeMissing: without mediapipe or dlib.
        FileNotFoundError: without a held-out set, a model or the fitted judges.
    """
    measurer = _Measurer(plan, setup)
    results: dict[str, Result] = {}
    for name in plan.sets:
        key = 'lips' if name == 'silence' else name
        if key in results:
            continue
        print(f'{setup.name}: {key}', file=sys.stderr, flush=True)
        begin = time.monotonic()
        work: Callable[[], Result] = getattr(measurer, key)
        results[key] = work()
        results[key].detail['seconds'] = round(time.monotonic() - begin, 1)
    return results


def rows_of(results: dict[str, Result], against: dict[str, Result] | None, other: str,
            ) -> list[Row]:
    """All lines of the table; another model's figures go beside where the claim is the same."""
    rows: list[Row] = []
    for name, result in results.items():
        beside = {row.claim: row.figure for row in against[name].rows} \
            if against and name in against else {}
        for row in result.rows:
            compared = dict(row.compared)
            if against is not None:
                compared[other] = beside.get(row.claim, NOTHING)
            rows.append(Row(row.claim, row.figure, row.aim, row.met, compared))
    return rows


def _verdict(row: Row) -> str:
    return '' if row.met is None else ('yes' if row.met else 'no')


HEAD: Final = ('claim', 'figure', 'aim', 'met', 'compared with')


def cells(row: Row) -> list[str]:
    """A line of the table as text."""
    return [row.claim, str(row.figure), row.aim, _verdict(row),
            '; '.join(f'{name}: {figure}' for name, figure in row.compared.items())]


def write_report(plan: Plan, setup: Setup, results: dict[str, Result], rows: Sequence[Row],
                 command: str, key: str) -> Path:
    """Write ``report.json`` and ``report.html``; returns the page's path."""
    info = machine()
    write_json(plan.out / 'report.json', {
        'model': setup.name, 'key': key, 'command': command, 'machine': info,
        'rows': [row.as_json() for row in rows],
        'claims': {name: _plain({'how': result.how, **result.detail})
                   for name, result in results.items()}})
    report = HtmlReport('What the generator reaches', setup.name)
    judged = [row for row in rows if row.met is not None]
    report.section('In short').cards([
        Card(row.claim, str(row.figure).split(',')[0], f'aim {row.aim}',
             'good' if row.met else 'bad') for row in judged])
    tones: list[Tone] = ['plain' if row.met is None else 'good' if row.met else 'bad'
                         for row in rows]
    whole = report.section('Claims')
    whole.text('Intervals are of 95 %, by bootstrap over what N counts (people or performances); '
               'of shares in which all trials end alike, by Wilson; of slopes, ± 2 standard '
               'errors.')
    whole.table(HEAD, [cells(row) for row in rows], tones=tones)
    for name, result in results.items():
        section = report.section(result.title)
        section.text(result.how)
        section.table(('figure', 'generated', 'compared with'),
                      [(row.claim, str(row.figure), cells(row)[-1]) for row in result.rows])
        if result.table:
            section.table(*result.table)
        for number, (caption, plot) in enumerate(result.plots):
            if isinstance(plot, np.ndarray):
                path = plan.out / f'{name}_{number}.jpg'
                write_image(path, plot)
                section.picture(path, caption, caption)
            else:
                section.plot(plot, caption)
        for caption, path in result.videos:
            section.video(path, caption)
    report.provenance(info, [command], {'seed': setup.seed}, {'model': setup.name, 'hash': key})
    return report.write(plan.out / 'report.html')


def _plain(value: Any) -> Any:
    """Values as JSON knows them: NaN becomes None, arrays lists."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (np.floating, float)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``avatar evaluate model``."""
    parser.add_argument('model', nargs='?', default='models/compact', help='folder of the model')
    parser.add_argument('--backend', default='onnx', help='what runs it')
    parser.add_argument('--sets', default='', metavar='NAMES',
                        help=f'comma-separated, of {",".join(SETS)} (default: all; with --quick '
                        f'all but recorded and hours)')
    parser.add_argument('--quick', action='store_true',
                        help='short form: fewer people, actions and seconds')
    parser.add_argument('--out', type=Path, help='folder for the report and for what was found; '
                        'a run that was cut off goes on from it (default: out/evaluate/MODEL)')
    parser.add_argument('--against', metavar='MODEL', help='measure this model too (a teacher, '
                        'another checkpoint) and put its figures beside')
    parser.add_argument('--levels', default='', metavar='L,L',
                        help="noise levels of the sampler, as 1,0.5 (default: the model's own)")
    parser.add_argument('--key-frames', choices=sorted(KEY_FRAME_POLICIES), default='dynamic',
                        help='policy of the long memory; none leaves it empty, window the short '
                        'memory too')
    parser.add_argument('--window-only', action='store_const', const='window', dest='key_frames',
                        help='as --key-frames window: only the reference and the last two latents')
    parser.add_argument('--seed', type=int, default=0, help='of the sampler')
    parser.add_argument('--set', type=Path, default=SHIPPED_SET, dest='source', metavar='FOLDER',
                        help='held-out set (default: the one that ships)')
    parser.add_argument('--performances', type=int, default=0, help='at most (0: all)')
    parser.add_argument('--people', type=int, default=0,
                        help='who act, keep objects and say recordings (0: all of the set)')
    parser.add_argument('--minutes', type=int, default=30, help='of the long stream')
    parser.add_argument('--streams', type=int, default=1, help='people with a long stream')


def parse(args: argparse.Namespace) -> tuple[Plan, Setup]:
    """The plan and the setup that the arguments ask for.

    Raises:
        ValueError: on an unknown set, bad levels or a count that is too small.
    """
    sets = tuple(name for name in args.sets.split(',') if name) or \
        (QUICK_SETS if args.quick else SETS)
    unknown = [name for name in sets if name not in SETS]
    if unknown:
        raise ValueError(f'--sets {unknown[0]!r} is unknown; use {", ".join(SETS)}')
    levels = levels_of(args.levels)
    for name, least in (('performances', 0), ('people', 0), ('minutes', 2), ('streams', 1)):
        if getattr(args, name) < least:
            raise ValueError(f'--{name} {getattr(args, name)}: give {least} or more')
    out = args.out or Path('out/evaluate') / Path(args.model).name
    return (Plan(sets, args.source, args.performances, args.people, args.quick, args.minutes,
                 args.streams, out),
            Setup(args.model, args.backend, args.seed, args.key_frames, levels))


def evaluate_model(args: argparse.Namespace) -> int:
    """Carry out ``avatar evaluate model``."""
    from interactive_avatar.generator.model import ModelError

    plan, setup = parse(args)
    missing = [why for why in judges.available().values() if why]
    if missing:
        raise judges.JudgeMissing('; '.join(missing))
    plan.out.mkdir(parents=True, exist_ok=True)
    try:
        results = measure(plan, setup)
        against = measure(plan, replace(setup, model=args.against)) if args.against else None
        key = Player(setup).key
    except ModelError as error:
        raise ValueError(str(error)) from error
    rows = rows_of(results, against, args.against or '')
    command = shlex.join(['avatar', 'evaluate', 'model', *sys.argv[3:]])
    page = write_report(plan, setup, results, rows, command, key)
    print(f'{setup.name}\n')
    print(table(HEAD, [cells(row) for row in rows]))
    for result in results.values():
        if result.detail.get('note'):
            print(f'\n{result.title}: {result.detail["note"]}')
    print(f'\n{page}')
    return 0
