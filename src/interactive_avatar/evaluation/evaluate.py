# SPDX-License-Identifier: Apache-2.0
"""``avatar evaluate``: figures and pictures from a bag, or from a file of sentences."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from interactive_avatar.evaluation import judges, metrics
from interactive_avatar.evaluation.bag import NS_PER_S, BagError, Recording, read_bag
from interactive_avatar.evaluation.demo import expected_from_log, make_report
from interactive_avatar.evaluation.report import session_markdown, write_json
from interactive_avatar.evaluation.session import Expected, resting_mask, speaking_mask

IDENTITY_PERIOD_S = 1.0


def judge_session(recording: Recording) -> dict[str, Any]:
    """What the independent judges see in a session.

    Args:
        recording: a session with pictures.

    Returns:
        Figures by name, None where nothing could be measured.

    Raises:
        judges.JudgeMissing: if neither judge is installed.
    """
    pictures = sorted({p.stamp_ns: p for p in recording.pictures}.values(),
                      key=lambda picture: picture.stamp_ns)
    stamps = np.array([picture.stamp_ns for picture in pictures], np.int64)
    seconds = (stamps - stamps[0]) / NS_PER_S
    result: dict[str, Any] = {}
    missing = []
    try:
        with judges.MeshJudge() as mesh:
            track = mesh.track(picture.decode() for picture in pictures)
        speaking = speaking_mask(recording, stamps)
        # Rest and speech only: gestures open mouths on purpose.
        chosen = speaking | resting_mask(recording, stamps)
        gap = np.where(chosen, track.lip_gap, np.nan)
        result |= {'frames_with_face': float(track.found.mean()),
                   'lip_motion_at_rest_to_speech': metrics.motion_ratio(gap, speaking),
                   'lip_gap_at_rest': metrics.percentiles(
                       track.lip_gap[chosen & ~speaking])['p50'],
                   'lip_gap_in_speech_p95': metrics.percentiles(
                       track.lip_gap[speaking])['p95'],
                   'blinks_per_minute': blinks_per_minute(track.eye_opening, seconds)}
    except judges.JudgeMissing as error:
        missing.append(str(error))
    try:
        identity = judges.IdentityJudge()
        every = max(1, round(IDENTITY_PERIOD_S * len(pictures) / max(seconds[-1], 1.0)))
        embeddings = identity.embed_all(picture.decode() for picture in pictures[::every])
        known = embeddings[np.isfinite(embeddings[:, 0])]
        if len(known):
            distance = metrics.identity_distance(embeddings, known[:3].mean(axis=0))
            slope = metrics.slope_per_minute(seconds[::every], distance)
            result |= {'identity_distance_median': float(np.nanmedian(distance)),
                       'identity_distance_worst': float(np.nanmax(distance)),
                       'identity_slope_per_minute': slope.per_minute,
                       'identity_slope_standard_error': slope.standard_error}
    except judges.JudgeMissing as error:
        missing.append(str(error))
    if len(missing) == 2:
        raise judges.JudgeMissing('; '.join(missing))
    return {key: value if np.isfinite(value) else None for key, value in result.items()}


def blinks_per_minute(opening: np.ndarray, seconds: np.ndarray) -> float:
    """Blinks: falls of the eye opening below 60 % of its median, per minute.

    Source: the eye aspect ratio of Soukupova and Cech (2016) with a threshold relative to the
    face's own median.

    Args:
        opening: float64 [n], NaN where there is no face.
        seconds: float64 [n], stream time.
    """
    known = opening[np.isfinite(opening)]
    if known.size < metrics.MIN_COMMON_FRAMES or seconds[-1] <= seconds[0]:
        return float('nan')
    closed = np.nan_to_num(opening, nan=np.inf) < 0.6 * np.median(known)
    starts = int((closed[1:] & ~closed[:-1]).sum())
    return 60.0 * starts / float(seconds[-1] - seconds[0])


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
    out = args.out or Path('out/evaluate') / args.bag.name
    out.mkdir(parents=True, exist_ok=True)
    said = args.said or args.bag.parent / 'said.json'
    expected = load_expected(said) if said.is_file() else []
    recording = read_bag(args.bag, args.namespace)
    result = make_report(recording, expected, out, f'Session {args.bag.name}',
                         lambda text: print(text, flush=True))
    if args.judges and recording.pictures:
        print('asking the judges', flush=True)
        result['judges'] = judge_session(recording)
        write_json(out / 'report.json', result)
        (out / 'report.md').write_text(session_markdown(result, f'Session {args.bag.name}'),
                                       encoding='utf-8')
    for problem in result['problems']:
        print(f'note: {problem}', file=sys.stderr)
    print(out / 'report.md')
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
                           description='Measure a recorded session; writes report.md, '
                           'report.json, a video and a contact sheet.')
    bag.add_argument('bag', type=Path, help='bag folder, .mcap or .db3')
    bag.add_argument('--out', type=Path, help='folder for results (default: out/evaluate/NAME)')
    bag.add_argument('--namespace', help='of the avatar (default: found in the bag)')
    bag.add_argument('--said', type=Path, help='what the user was made to say: said.json or '
                     'utterances.yaml (default: said.json beside the bag)')
    bag.add_argument('--judges', action='store_true',
                     help='also ask MediaPipe and dlib (slower; extra packages)')
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
    args = parser.parse_args(argv)
    try:
        return int(args.carry_out(args))
    except (BagError, judges.JudgeMissing, OSError, ValueError, json.JSONDecodeError) as error:
        print(f'avatar evaluate: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
