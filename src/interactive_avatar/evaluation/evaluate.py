# SPDX-License-Identifier: Apache-2.0
"""``avatar evaluate``: figures and pictures from a bag, a model, others' videos or sentences."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from interactive_avatar.evaluation import judges
from interactive_avatar.evaluation.bag import BagError, read_bag
from interactive_avatar.evaluation.demo import ReportOptions, expected_from_log, make_report
from interactive_avatar.evaluation.session import Expected


def load_expected(path: Path) -> list[Expected]:
    """What the user was made to say: a ``said.json`` of the demo, or an ``utterances.yaml``.

    Raises:
        ValueError: if the file is neither.
    """
    if path.suffix == '.json':
        return expected_from_log(path)
    data = yaml.safe_load(path.read_text(encoding='utf-8'))
    if not isinstance(data, dict) or 'utterances' not in data:
        raise ValueError(f'{path} has no list "utterances": give a said.json of the demo, or a '
                         f'YAML file with utterances of name, text and intent')
    return [Expected(e['name'], e['text'], e['intent']) for e in data['utterances']]


def evaluate_bag(args: argparse.Namespace) -> int:
    """Carry out ``avatar evaluate bag``."""
    begun_s = time.monotonic()
    out = args.out or Path('out/evaluate') / args.bag.name
    said = args.said or args.bag.parent / 'said.json'
    expected = load_expected(said) if said.is_file() else []
    recording = read_bag(args.bag, args.namespace)
    against = read_bag(args.against, args.against_namespace) if args.against else None
    out.mkdir(parents=True, exist_ok=True)
    command = f'avatar evaluate bag {args.bag}' + (f' --against {args.against}'
                                                   if args.against else '')
    result = make_report(recording, expected, out, f'Session {args.bag.name}',
                         lambda text: print(text, flush=True),
                         ReportOptions(args.judges, (command,), against))
    problems = result['problems'] + [f'{args.against}: {p}' for p in against.problems] \
        if against else result['problems']
    for problem in problems:
        print(f'note: {problem}', file=sys.stderr)
    for row in result.get('against', {}).get('differences', []):
        if row['verdict'] in ('better', 'worse', 'differs'):
            print(f'{row["verdict"]:7} {row["name"]}: {row["first"]:.3f} against '
                  f'{row["second"]:.3f} {row["unit"]} (difference {row["low"]:+.3f} to '
                  f'{row["high"]:+.3f})')
    # Not in the report, which is the same for the same bag.
    print(f'{recording.seconds:.1f} s of session evaluated in {time.monotonic() - begun_s:.1f} s',
          file=sys.stderr)
    print(out / ('report.html' if 'report.html' in result['files'] else 'report.md'))
    return 0


def evaluate_intents(args: argparse.Namespace) -> int:
    """Carry out ``avatar evaluate intents``: accuracy of the embedded reasoner."""
    from interactive_avatar.reasoning import accuracy

    if not args.speech:
        return int(accuracy.main([str(args.file), '--persona', args.persona]) or 0)
    from interactive_avatar.evaluation import spoken_intents
    from interactive_avatar.evaluation.speakers import SpeakerMissing
    from interactive_avatar.reasoning.module import open_embedded

    try:
        figures, result = spoken_intents.run(
            accuracy.read_rows(args.file), open_embedded(args.persona).understand, args.sample,
            args.speakers, lambda text: print(text, file=sys.stderr, flush=True))
    except SpeakerMissing as error:
        raise ValueError(str(error)) from error
    for miss in result.misses:
        print(f'{miss.row.utterance!r}: {miss.row.intent} {dict(miss.row.slots) or ""} -> '
              f'{miss.intent} {dict(miss.slots) or ""} ({miss.confidence:.2f})')
    print(json.dumps(figures, indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``avatar evaluate``; returns the exit status."""
    parser = argparse.ArgumentParser(prog='avatar evaluate',
                                     description='Measure what was recorded.')
    kinds = parser.add_subparsers(required=True, metavar='WHAT')
    bag = kinds.add_parser('bag', help='a session: dialogue, timing, sync, picture',
                           description='Measure a recorded session; writes report.html '
                           '(one file with video and plots), report.md, report.json, a video '
                           'and a contact sheet.')
    bag.add_argument('bag', type=Path, help='bag folder, .mcap or .db3')
    bag.add_argument('--out', type=Path, help='folder for results (default: out/evaluate/NAME)')
    bag.add_argument('--namespace', help='of the avatar (default: found in the bag)')
    bag.add_argument('--said', type=Path, help='what the user was made to say: said.json or '
                     'utterances.yaml (default: said.json beside the bag)')
    bag.add_argument('--against', type=Path, metavar='BAG2',
                     help='another session, to see what differs and by how much')
    bag.add_argument('--against-namespace', metavar='NAMESPACE',
                     help='of the avatar in the other bag (default: found in it)')
    bag.add_argument('--judges', action=argparse.BooleanOptionalAction, default=None,
                     help='ask MediaPipe and dlib about lips and identity (default: where they '
                     'are installed)')
    bag.set_defaults(carry_out=evaluate_bag)
    intents = kinds.add_parser('intents', help='the embedded reasoner on labelled sentences',
                               description='Accuracy of the embedded reasoner on a TSV file of '
                               'intent and sentence.')
    intents.add_argument('file', type=Path)
    intents.add_argument('--persona', default='config/persona.yaml', help='persona file')
    intents.add_argument('--speech', action='store_true',
                         help='let two synthetic voices say the sentences, and score what is '
                              'heard')
    intents.add_argument('--sample', type=int, default=0, metavar='N',
                         help='with --speech: so many sentences, drawn by intent (default: all)')
    intents.add_argument('--speakers', nargs='+', default=[], metavar='NAME',
                         help='with --speech: voices (default: the first two that work)')
    intents.set_defaults(carry_out=evaluate_intents)
    from interactive_avatar.evaluation.model import command

    model = kinds.add_parser('model', help='a generator: lips, identity, memory, actions, cost',
                             description='Measure a generator on people, voices and sentences '
                             'that it was never trained on; prints a table of claims, writes '
                             'report.html and report.json.')
    command.add_arguments(model)
    model.set_defaults(carry_out=command.evaluate_model)
    from interactive_avatar.evaluation import videos as others

    videos = kinds.add_parser('videos', help="other systems' videos, beside ours",
                              description='Judge folders of videos that other systems made to '
                              'the held-out sound, beside this generator and the true pictures; '
                              'writes report.html, report.json and videos side by side.')
    others.add_arguments(videos)
    videos.set_defaults(carry_out=others.evaluate_videos)
    from interactive_avatar.evaluation import noise as again

    noise = kinds.add_parser('noise', help='how much each metric moves when nothing has changed',
                             description='Judge a bag again and again, several sessions of the '
                             'same user, or generations with other seeds; prints the spread of '
                             'each figure, writes noise.json and noise.md.')
    again.add_arguments(noise)
    noise.set_defaults(carry_out=again.evaluate_noise)
    args = parser.parse_args(argv)
    try:
        return int(args.carry_out(args))
    except (BagError, judges.JudgeMissing, OSError, ValueError, json.JSONDecodeError) as error:
        print(f'avatar evaluate: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
