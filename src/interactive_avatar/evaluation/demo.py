# SPDX-License-Identifier: Apache-2.0
"""``avatar demo``: a recorded user talks to the avatar, and what happened is measured.

Starts the graph, lets `interactive_avatar.nodes.demo_client` speak and record in a process of its
own, stops the graph, and makes of the bag a video with sound, a contact sheet and a report. Exit
status 0 only if the avatar heard, answered and moved. Needs neither torch nor mediapipe.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interactive_avatar.evaluation import plots, session_page
from interactive_avatar.evaluation.bag import BagError, Recording, read_bag
from interactive_avatar.evaluation.conversation import write_contact_sheet, write_conversation
from interactive_avatar.evaluation.html import HtmlReport
from interactive_avatar.evaluation.process import run_process
from interactive_avatar.evaluation.report import machine, session_markdown, write_json
from interactive_avatar.evaluation.session import (
    HEARD_WORD_ERROR_RATE,
    Analysis,
    Expected,
    analyse,
    bag_name,
)
from interactive_avatar.graph import NODES, GraphError, start_graph

# Its own, so that an avatar that is already running neither hears nor disturbs the demo.
DEMO_NAMESPACE = 'avatar_demo'
UTTERANCES = Path(__file__).parent / 'utterances'
# Shares of the user's sentences; one slip of the recogniser is not a broken avatar.
NEEDED_SHARE = 0.8
# A mouth that rests moves less than this share of a mouth that speaks.
LARGEST_REST_TO_SPEECH = 0.8
LEAST_MOUTH_CHANGE_GREY = 0.3
MADE = ('demo.mp4', 'contact_sheet.png', 'timeline.png', 'bag', 'report.html', 'report.json',
        'report.md', 'said.json', 'logs')


class DemoError(RuntimeError):
    """The demo could not be carried out; the message says why and what to do."""


def checks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the avatar heard, answered and moved.

    Args:
        result: what `session.measure` gave, with what the user was expected to say.

    Returns:
        Rows of ``name``, ``passed`` and ``why``.
    """
    turns = [row for row in result['turns'] if 'said' in row]
    needed = NEEDED_SHARE * len(turns)
    heard = [row for row in turns if row['heard']
             and (row['word_error_rate'] <= HEARD_WORD_ERROR_RATE or row['understood'])]
    answered = [row for row in turns if row['understood']
                and (row['answer_s'] > 0 or row['actions'])]
    voiced = [row for row in turns if row['answer_s'] > 0]
    face = result['face'] or {}
    speech = face.get('mouth_change_in_speech') or 0.0
    ratio = face.get('mouth_rest_to_speech')
    moved = speech > LEAST_MOUTH_CHANGE_GREY and ratio is not None \
        and ratio < LARGEST_REST_TO_SPEECH
    return [
        {'name': 'heard', 'passed': bool(turns) and len(heard) >= needed,
         'why': f'{len(heard)} of {len(turns)} sentences recognised'},
        {'name': 'answered', 'passed': bool(turns) and len(answered) >= needed and bool(voiced),
         'why': f'{len(answered)} of {len(turns)} understood and answered, {len(voiced)} aloud'},
        {'name': 'moved', 'passed': bool(moved),
         'why': f'mouth region changes by {speech:.2f} grey levels per frame in speech, at rest '
                f'by {"nothing measured" if ratio is None else f"{100 * ratio:.0f} % of that"}'},
    ]


def describe(event: dict[str, Any]) -> str | None:
    """One line for people about an event of the demo's client; None to stay quiet."""
    kind = event['event']
    if kind == 'waiting':
        return f'waiting for {", ".join(event["missing"])}'
    if kind == 'ready':
        return f'the avatar is live; {event["utterances"]} sentences to say'
    if kind == 'playing':
        return f'the avatar is live; {event["seconds"]:.0f} s of the user are played'
    if kind == 'say':
        return f'user    "{event["text"]}"'
    if kind == 'heard':
        return f'heard   "{event["text"]}"'
    if kind == 'intent':
        action = f' → {event["action"]}' if event['action'] else ''
        return f'avatar  [{event["intent"]} {event["confidence"]:.2f}{action}] ' \
               f'"{event["speech"]}"'
    if kind == 'turn' and not event['answered']:
        return 'no answer came'
    if kind == 'not_ready':
        return f'gave up waiting for {", ".join(event["missing"])}'
    return None


def run_client(out: Path, environment: dict[str, str], namespace: str, ready_timeout_s: float,
               say: Callable[[str], None], utterances: Path = UTTERANCES,
               pictures: bool = True, pause_s: float = 2.0,
               answer_timeout_s: float = 10.0, block_ms: int = 80) -> int:
    """Let the recorded user talk to a running graph.

    Args:
        out: folder for ``bag`` and ``said.json``.
        environment: as the graph's nodes have it.
        namespace: of the avatar.
        ready_timeout_s: how long to wait for a live avatar.
        say: called with each line of progress.
        utterances: folder with ``utterances.yaml``.
        pictures: whether pictures are asked for and recorded.
        pause_s: seconds between turns.
        answer_timeout_s: how long the user waits for an answer to begin.
        block_ms: sound in each message of the user's microphone.

    Returns:
        The client's exit status.
    """
    command = [sys.executable, '-m', 'interactive_avatar.nodes.demo_client',
               '--bag', str(out / 'bag'), '--log', str(out / 'said.json'),
               '--utterances', str(utterances), '--namespace', namespace,
               '--ready-timeout', str(ready_timeout_s), '--pause', str(pause_s),
               '--answer-timeout', str(answer_timeout_s), '--block-ms', str(block_ms)]
    if not pictures:
        command.append('--no-pictures')
    log = out / 'logs' / 'demo_client.log'

    def take(line: str) -> None:
        try:
            text = describe(json.loads(line))
        except (ValueError, KeyError):
            with open(log, 'a', encoding='utf-8') as file:
                file.write(line)
            return
        if text:
            say(text)

    return run_process(command, environment, log, take)


def expected_from_log(path: Path) -> list[Expected]:
    """What the client said aloud when, from its ``said.json``; empty if there is none.

    Lines that were typed and users who came or left are not there: nobody had to hear them.
    """
    if not path.is_file():
        return []
    return [Expected(row['name'], row['text'], row['intent'], row['start_ns'])
            for row in json.loads(path.read_text(encoding='utf-8'))
            if row.get('kind', 'said') == 'said']


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds beyond the session's own figures.

    Attributes:
        judges: ask the independent judges: True, False, or None for where they are installed.
        commands: what to type to do it again.
        against: another session to compare with.
        digests: what a replay in lock step said of its pictures and sound.
    """

    judges: bool | None = None
    commands: tuple[str, ...] = ()
    against: Recording | None = None
    digests: dict[str, Any] | None = None


def _ask_judges(analysis: Analysis, wanted: bool | None, say: Callable[[str], None]) -> None:
    """Add the judges' figures, or why there are none."""
    if wanted is False or not analysis.recording.pictures:
        return
    from interactive_avatar.evaluation.judges import JudgeMissing
    from interactive_avatar.evaluation.session_judges import judge_session

    try:
        analysis.result['judges'] = judge_session(analysis, say)
    except JudgeMissing as error:
        if wanted:
            raise
        analysis.result['judges_missing'] = str(error)


def make_report(recording: Recording, expected: Sequence[Expected], out: Path, title: str,
                say: Callable[[str], None], options: ReportOptions | None = None
                ) -> dict[str, Any]:
    """Measure a session, write video, contact sheet and reports into ``out``.

    Args:
        recording: the session.
        expected: what the user was made to say.
        out: folder, which exists.
        title: heading.
        say: called with each line of progress.
        options: judges, comparison, commands.

    Returns:
        The report's tree, with ``checks`` where something was expected.

    Raises:
        judges.JudgeMissing: if judges were asked for and are not installed.
    """
    options = options or ReportOptions()
    say('measuring')
    analysis = analyse(recording, expected)
    result = analysis.result
    result['machine'] = machine()
    if options.digests is not None:
        result['recorded'] |= {key: options.digests[key]
                               for key in ('frames_sha256', 'audio_sha256')}
        result['problems'] += options.digests['warnings']
    _ask_judges(analysis, options.judges, say)
    files = {}
    if recording.pictures:
        say('writing the video')
        write_conversation(recording, out / 'demo.mp4')
        files['demo.mp4'] = 'the conversation, with sound and captions'
        write_contact_sheet(recording, out / 'contact_sheet.png', title)
        files['contact_sheet.png'] = 'its moments'
    if expected:
        result['checks'] = checks(result)
    compared = None
    try:
        if recording.pictures and recording.audio:
            plots.draw_session(recording, out / 'timeline.png')
            files['timeline.png'] = 'voices, states, motion and regularity over time'
        files['report.html'] = 'this report with the video and plots, one file for a browser'
        if options.against is not None:
            compared = _compare(analysis, options, say)
    except plots.PlotsMissing as error:
        files.pop('report.html', None)
        say(f'no plots and no page: {error}')
    result['files'] = files | {'bag': 'everything that was said and shown (MCAP)',
                               'report.json': 'this report for machines'}
    if 'report.html' in files:
        say('writing the page')
        session_page.build_page(analysis, title, options.commands, out / 'demo.mp4',
                                out / 'contact_sheet.png', compared).write(out / 'report.html')
    write_json(out / 'report.json', result)
    (out / 'report.md').write_text(session_markdown(result, title), encoding='utf-8')
    return result


def _compare(analysis: Analysis, options: ReportOptions, say: Callable[[str], None]
             ) -> Callable[[HtmlReport], None]:
    from interactive_avatar.evaluation import compare

    assert options.against is not None
    say(f'measuring {options.against.path}')
    other = analyse(options.against)
    _ask_judges(other, options.judges, say)
    rows = compare.compare(analysis, other)
    names = (bag_name(analysis.recording), bag_name(options.against))
    if names[0] == names[1]:
        names = (str(analysis.recording.path), str(options.against.path))
    analysis.result['against'] = {'bag': names[1], 'differences': compare.as_plain(rows)}
    return compare.compared_section(rows, analysis, other, names)


def _prepare_folder(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in MADE:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _summary(result: dict[str, Any], out: Path) -> list[str]:
    stream, latency = result['stream'], result['response_latency_s']['p50']
    share = stream['missed']['clean_share']
    if share is None:
        share = stream['audio']['clean_share']
    lines = [f'{"ok  " if c["passed"] else "FAIL"} {c["name"]}: {c["why"]}'
             for c in result.get('checks', [])]
    lines.append(f'     {stream["seconds"]:.1f} s of stream at '
                 f'{stream["frames_per_second"] or 0:.2f} frames/s; '
                 f'{0 if share is None else 100 * share:.1f} % of seconds without a missed chunk; '
                 + ('no answer was heard' if latency is None
                    else f"answers begin {latency:.2f} s after the user's last sound (median)"))
    lines += [f'     {out / name}' for name in (*result['files'], 'report.md')]
    return lines


def run_demo(out: Path, config: str, overrides: dict[str, object], page: bool,
             ready_timeout_s: float, namespace: str = DEMO_NAMESPACE,
             say: Callable[[str], None] = print, judges: bool | None = None) -> int:
    """Carry out the whole demo; returns the exit status.

    Raises:
        DemoError: if the graph did not start or the client could not record.
        GraphError: if a node failed.
    """
    started = time.monotonic()

    def tell(text: str) -> None:
        say(f'{time.monotonic() - started:6.1f} s  {text}')

    _prepare_folder(out)
    nodes = NODES if page else tuple(name for name in NODES if name != 'web')
    tell(f'starting {", ".join(nodes)}')
    with start_graph(config, nodes=nodes, namespace=namespace, overrides=overrides,
                     log_folder=out / 'logs', tell=tell) as graph:
        graph.wait_until_active(ready_timeout_s, tell)
        status = run_client(out, graph.environment, namespace, ready_timeout_s, tell)
        if status not in (0, 3) or not (out / 'bag').exists():
            raise DemoError(f'the recorded user ended with status {status}; its log is '
                            f'{out / "logs" / "demo_client.log"}')
        if status == 3:
            tails = '\n'.join(graph.log_tail(name) for name in nodes)
            raise DemoError(f'the avatar did not come alive within {ready_timeout_s:.0f} s\n'
                            f'{tails}')
    recording = read_bag(out / 'bag', namespace)
    result = make_report(
        recording, expected_from_log(out / 'said.json'), out, 'Avatar demo', tell,
        ReportOptions(judges, (f'avatar demo --out {out}',
                               f'avatar evaluate bag {out / "bag"}',
                               f'avatar replay {out / "bag"} --deterministic')))
    for line in _summary(result, out):
        say(line)
    return 0 if result.get('checks') and all(c['passed'] for c in result['checks']) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``avatar demo``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='avatar demo', description='A recorded user talks to the avatar; ends with a video, '
        'a contact sheet, a bag and a report. Exit status 0 only if the avatar heard, answered '
        'and moved.')
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='folder for results')
    parser.add_argument('--config', default='config/avatar.yaml', help='parameter file')
    parser.add_argument('--model', help='folder of another generator model')
    parser.add_argument('--set', action='append', default=[], metavar='NODE.PARAMETER=VALUE',
                        help='set a parameter, such as generator.reference=maya; repeatable')
    parser.add_argument('--page', action='store_true',
                        help='also serve the page, to watch in a browser')
    parser.add_argument('--ready-timeout', type=float, default=180.0, metavar='SECONDS',
                        help='how long to wait for a live avatar')
    parser.add_argument('--no-judges', dest='judges', action='store_false',
                        help='do not ask the independent face judges, where they are installed')
    args = parser.parse_args(argv)
    overrides: dict[str, object] = {'generator.model': args.model} if args.model else {}
    for item in args.set:
        key, equals, value = item.partition('=')
        if not equals:
            parser.error(f'--set {item}: write NODE.PARAMETER=VALUE')
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    try:
        return run_demo(args.out, args.config, overrides, args.page, args.ready_timeout,
                        judges=None if args.judges else False)
    except (BagError, DemoError, GraphError, FileNotFoundError) as error:
        print(f'avatar demo: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('avatar demo: interrupted; what was recorded is in the bag', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
