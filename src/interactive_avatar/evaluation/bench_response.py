# SPDX-License-Identifier: Apache-2.0
"""``avatar bench response``: how soon the avatar answers, and how soon it falls silent.

Two synthetic users talk, type and interrupt on the real graph; everything is measured from the
bag, stage by stage.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.bag import NS_PER_S, Recording, read_bag
from interactive_avatar.evaluation.demo import DemoError, run_client
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.evaluation.session import (
    VOICED_DBFS,
    Expected,
    levels_dbfs,
    measure_turns,
    utterances,
)
from interactive_avatar.evaluation.speakers import SpeakerMissing, available, read
from interactive_avatar.evaluation.stages import STAGES, measure_stages
from interactive_avatar.graph import start_graph
from interactive_avatar.media.audio import write_wav

NAMESPACE: Final = 'avatar_bench'
STARTED_EVENT: Final = 1
NODES: Final = ('perception', 'reasoning', 'generator')
P50_AIM_S: Final = 1.0
P95_AIM_S: Final = 1.6
TYPED_AIM_S: Final = 0.5
STOP_AIM_S: Final = 0.2
PAUSE_S: Final = 0.8
# (sentence, intent). Some are in the persona file: time is measured here, not understanding.
SPOKEN: Final = (
    ('Hello there, nice to meet you.', 'greeting'), ('Who am I talking to?', 'ask_name'),
    ('What sort of things can you do?', 'ask_capability'), ('How are you feeling?',
                                                           'ask_wellbeing'),
    ('Could you tell me the time?', 'ask_time'), ('Which day is it today?', 'ask_date'),
    ('Do you know a good joke?', 'joke'), ('Please put your glasses on.', 'wear'),
    ('Thank you very much.', 'thanks'), ('That looks great on you.', 'compliment'),
    ('Are you a real person?', 'ask_identity'), ('Take off the glasses.', 'remove'),
    ('My name is Peter.', 'introduce_self'), ('Would you wear your hat for me?', 'wear'),
    ('Could you repeat that?', 'ask_repeat'), ('Who was the first man on the moon?',
                                              'out_of_scope'),
    ('I am sorry about that.', 'apology'), ('Tell me something funny.', 'joke'),
    ('Take the hat off again, please.', 'remove'), ('What day of the week do we have?',
                                                   'ask_date'),
    ('How do you do?', 'greeting'), ('Are you a robot?', 'ask_identity'),
    ('What is the time now?', 'ask_time'), ('Goodbye, see you tomorrow.', 'farewell'),
)
TYPED: Final = (
    ('Hello!', 'greeting'), ('What is your name?', 'ask_name'), ('How are you?', 'ask_wellbeing'),
    ('Thanks!', 'thanks'), ('Tell me a joke', 'joke'), ('Goodbye', 'farewell'),
)
LONG_ANSWER: Final = ('What can you do?', 'ask_capability')
INTERRUPTION: Final = ('Thank you, please put on your glasses.', 'wear')
INTERRUPTS_AFTER_S: Final = 1.2


def write_script(folder: Path, spoken: int, typed: int, interruptions: int) -> int:
    """Write what the users say, as `nodes.demo_client` takes it; returns the entries.

    Raises:
        SpeakerMissing: if fewer than two synthetic voices work here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    said: list[tuple[str, str]] = []

    def add(text: str, intent: str, **more: Any) -> None:
        name = f'{len(entries):02d}_{intent}'
        entries.append({'name': name, 'text': text, 'intent': intent, **more})
        if not more.get('typed'):
            said.append((name, text))

    for number_, (text, intent) in enumerate(SPOKEN * (spoken // len(SPOKEN) + 1)):
        if number_ < spoken:
            add(text, intent)
    for text, intent in (TYPED * (typed // len(TYPED) + 1))[:typed]:
        add(text, intent, typed=True)
    for _ in range(interruptions):
        add(*LONG_ANSWER)
        add(*INTERRUPTION, interrupts=INTERRUPTS_AFTER_S)
    voices = available(2)
    for (name, _), samples in zip(said, read(voices, [text for _, text in said]), strict=True):
        write_wav(folder / f'{name}.wav', samples)
    text = yaml.safe_dump({'utterances': entries}, allow_unicode=True)
    (folder / 'utterances.yaml').write_text(text, encoding='utf-8')
    return len(entries)


def measure_stops(recording: Recording, log: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """How soon the avatar fell silent each time that it was interrupted.

    Args:
        recording: the session.
        log: what was said, with ``start_ns``; those whose predecessor did not end interrupt.

    Returns:
        Per interruption seconds from the user's first sound (``voice``), and from the moment at
        which perception told of it (``told``), to the avatar's last sound, 0 if it was silent
        before.
    """
    spoken = utterances(recording.user_audio)
    # By presentation: what has left before the interruption is still played at its stamp.
    heard, levels = levels_dbfs(recording.audio)
    found = []
    for before, row in itertools.pairwise(log):
        if before.get('ended') or not before.get('sounded'):
            continue
        start = next((u.start_ns for u in spoken if abs(u.start_ns - row['start_ns']) < NS_PER_S),
                     None)
        told = next((e.arrival_ns for e in recording.perceptions
                     if e.fields.get('event') == STARTED_EVENT and start is not None
                     and e.arrival_ns > start), None)
        if start is None or told is None:
            continue
        # The answer to the interruption is another turn; its sound is not what should stop. The
        # first one may never sound, where the user paused and went on.
        answers = {e.fields.get('turn_id') for e in recording.intents if e.arrival_ns > told}
        began = next((s.stamp_ns for s in recording.audio if s.turn_id in answers), None)
        sounding = (levels > VOICED_DBFS) & (heard >= start - NS_PER_S)
        if began is not None:
            sounding &= heard < began
        last = heard[sounding]
        end_ns = int(last[-1]) + 40_000_000 if last.size else start
        found.append({'voice': max(0.0, (end_ns - start) / NS_PER_S),
                      'told': max(0.0, (end_ns - told) / NS_PER_S)})
    return found


def measure_typed(recording: Recording, log: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds from each typed line to the first sound of its answer, as it arrives.

    On a machine that falls behind the answer before may still sound; it is not taken for this one.
    """
    delay_ns = int(np.median([s.arrival_ns - s.stamp_ns for s in recording.audio])) \
        if recording.audio else 0
    found = []
    for row in log:
        if row.get('kind') != 'typed' or not row['answered']:
            continue
        turn = next((e.fields.get('turn_id') for e in recording.intents
                     if e.arrival_ns > row['start_ns']), None)
        stamps, levels = levels_dbfs([s for s in recording.audio if s.turn_id == turn])
        heard = stamps[levels > VOICED_DBFS] + delay_ns
        after = heard[heard > row['start_ns']]
        if after.size:
            found.append((int(after[0]) - row['start_ns']) / NS_PER_S)
    return found


def measure_typed_stages(recording: Recording, log: Sequence[dict[str, Any]]
                         ) -> dict[str, list[float]]:
    """Where the time of each answered typed line went.

    Returns:
        Seconds by stage: ``reasoning`` (line to intent), ``voice`` (to the first piece on
        `speech`), ``generator`` (to the first sound on `audio`, as it arrives).
    """
    found: dict[str, list[float]] = {'reasoning': [], 'voice': [], 'generator': []}
    for row in log:
        if row.get('kind') != 'typed' or not row['answered']:
            continue
        total = measure_typed(recording, [row])
        intent = min((e.arrival_ns for e in recording.intents if e.arrival_ns > row['start_ns']),
                     default=None)
        speech = min((s.arrival_ns for s in recording.speech if s.arrival_ns > row['start_ns']),
                     default=None)
        if total and intent is not None and speech is not None and intent < speech:
            parts = [(intent - row['start_ns']) / NS_PER_S, (speech - intent) / NS_PER_S]
            for name, part in zip(found, [*parts, total[0] - sum(parts)], strict=True):
                found[name].append(part)
    return found


def summarise(recording: Recording, log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a session of this benchmark."""
    # The answer to an interruption is measured as its stop; mixed in, the avatar's old words
    # would pass for the new ones.
    interrupting = {after['name'] for before, after in itertools.pairwise(log)
                    if not before.get('ended')}
    plain = [row for row in log if row.get('kind') == 'said' and row['ended']
             and row['name'] not in interrupting]
    expected = [Expected(row['name'], row['text'], row['intent'], row['start_ns'])
                for row in plain]
    rows = [row for row in measure_turns(recording, expected) if 'said' in row]
    latency = [row['response_latency_s'] for row in rows
               if row['response_latency_s'] == row['response_latency_s']]
    stops = measure_stops(recording, log)
    return {
        'spoken': len(plain), 'answered_aloud': len(latency),
        'understood': sum(bool(row['understood']) for row in rows),
        'response_s': {**metrics.percentiles(latency, (50, 95)),
                       'worst': max(latency, default=float('nan'))},
        'stages_s': measure_stages(recording, rows),
        'typed_s': {'count': len(typed := measure_typed(recording, log)),
                    **metrics.percentiles(typed, (50, 95)),
                    'stages': {name: metrics.percentiles(values, (50, 95)) for name, values
                               in measure_typed_stages(recording, log).items()}},
        'stop_s': {'count': len(stops),
                   'from_voice': metrics.percentiles([s['voice'] for s in stops], (50, 95)),
                   'from_told': metrics.percentiles([s['told'] for s in stops], (50, 95))},
        'aims': {'response_p50_s': P50_AIM_S, 'response_p95_s': P95_AIM_S,
                 'typed_p50_s': TYPED_AIM_S, 'stop_s': STOP_AIM_S},
    }


def describe(result: dict[str, Any]) -> str:
    """The figures for people."""
    response, stages = result['response_s'], result['stages_s']
    rows = [[name.replace('_', ' '), number(stages[name]['p50'], 's'),
             number(stages[name]['p95'], 's'), why] for name, why in STAGES.items()]
    rows.append(['**all**', number(response['p50'], 's'), number(response['p95'], 's'),
                 f'aim {P50_AIM_S} and {P95_AIM_S} s'])
    typed, stop = result['typed_s'], result['stop_s']
    rows.append(['typed line to first sound', number(typed['p50'], 's'),
                 number(typed['p95'], 's'), f'{typed["count"]} lines, aim {TYPED_AIM_S} s'])
    rows += [[f'of that: {name}', number(part['p50'], 's'), number(part['p95'], 's'), '']
             for name, part in typed['stages'].items()]
    rows.append(['interrupted: silent after being told', number(stop['from_told']['p50'], 's'),
                 number(stop['from_told']['p95'], 's'),
                 f'{stop["count"]} interruptions, aim {STOP_AIM_S} s'])
    rows.append(["interrupted: silent after the user's first sound",
                 number(stop['from_voice']['p50'], 's'), number(stop['from_voice']['p95'], 's'),
                 ''])
    return table(['stage', 'p50', 'p95', ''], rows) + (
        f'\n{result["answered_aloud"]} of {result["spoken"]} spoken sentences answered aloud, '
        f'{result["understood"]} understood')


def run(out: Path, spoken: int, typed: int, interruptions: int, config: str,
        overrides: dict[str, Any], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Carry the benchmark out.

    Args:
        out: folder; takes the sound, the bag and the logs.
        spoken: sentences said.
        typed: lines typed.
        interruptions: answers broken off.
        config: parameter file.
        overrides: parameters that go before it.
        say: called with each line of progress.

    Raises:
        RuntimeError: if the graph or the users failed.
    """
    for name in ('bag', 'said.json', 'user'):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    try:
        write_script(out / 'user', spoken, typed, interruptions)
    except SpeakerMissing as error:
        raise DemoError(str(error)) from error
    with start_graph(config, nodes=NODES, namespace=NAMESPACE, overrides=overrides,
                     log_folder=out / 'logs', tell=say) as graph:
        graph.wait_until_active(180.0, say)
        status = run_client(out, graph.environment, NAMESPACE, 180.0, say, out / 'user',
                            pause_s=PAUSE_S)
    if status or not (out / 'bag').exists():
        raise DemoError(f'the users ended with status {status}; see '
                        f'{out / "logs" / "demo_client.log"}')
    log = json.loads((out / 'said.json').read_text(encoding='utf-8'))
    result = {'benchmark': 'response', **summarise(read_bag(out / 'bag', NAMESPACE), log)}
    print(describe(result), file=sys.stdout)
    return result
