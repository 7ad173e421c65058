# SPDX-License-Identifier: Apache-2.0
"""Where the time goes between the user's last sound and the avatar's first.

Everything is measured at the recorder, from the arrival of the messages, so that the stages add up
to the response latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from interactive_avatar.evaluation import metrics
from interactive_avatar.evaluation.bag import NS_PER_S, Event, Recording

FINAL_EVENT: Final = 3
ENDED_EVENT: Final = 4
# From ... to the message that ends it.
STAGES: Final[Mapping[str, str]] = {
    'end_of_speech': "the user's last sound to SPEECH_ENDED: the silence that is waited for",
    'recognition': 'to the final words',
    'reasoning': 'to the intent',
    'voice': "to the first chunk of the avatar's voice on `speech`",
    'generator': 'to the first sound on `audio`, with its pictures',
}


def stages_of(recording: Recording, row: Mapping[str, Any]) -> dict[str, float] | None:
    """Seconds of each stage of one turn.

    Args:
        recording: the session.
        row: of `session.measure_turns`.

    Returns:
        Seconds by stage, in order; None unless all were seen, as with a turn without speech.
    """
    latency_s = row.get('response_latency_s')
    if latency_s is None or latency_s != latency_s or 'end_ns' not in row:
        return None
    end_ns = int(row['end_ns'])
    sounded_ns = end_ns + round(latency_s * NS_PER_S)
    intent = next((e for e in recording.intents if row['start_ns'] < e.arrival_ns <= sounded_ns),
                  None)
    if intent is None:
        return None
    turn_id = intent.fields.get('turn_id')
    speech = next((s for s in recording.speech if s.turn_id == turn_id), None)
    ended = _last(recording.perceptions, ENDED_EVENT, row['start_ns'], intent.arrival_ns)
    words = _last(recording.perceptions, FINAL_EVENT, row['start_ns'], intent.arrival_ns)
    if speech is None or ended is None or words is None:
        return None
    marks = [end_ns, ended.arrival_ns, words.arrival_ns, intent.arrival_ns, speech.arrival_ns,
             sounded_ns]
    return {name: (after - before) / NS_PER_S
            for name, before, after in zip(STAGES, marks, marks[1:])}


def _last(events: Sequence[Event], kind: int, start_ns: int, end_ns: int) -> Event | None:
    return next((e for e in reversed(events) if e.fields.get('event') == kind
                 and start_ns < e.arrival_ns <= end_ns), None)


def measure_stages(recording: Recording, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Percentiles of each stage over a session's turns, and how many turns had them all."""
    found = [stages for row in rows if (stages := stages_of(recording, row)) is not None]
    return {'turns': len(found), **{
        name: metrics.percentiles([stages[name] for stages in found], (50, 95))
        for name in STAGES}}
