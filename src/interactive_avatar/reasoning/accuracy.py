# SPDX-License-Identifier: Apache-2.0
"""Measures how well utterances are understood: what `avatar evaluate intents FILE` prints.

The file is tab-separated: utterance, intent, slots (`direction=left;...` or a JSON object, may be
absent). A header line that starts with `utterance`, empty lines and lines that start with `#` are
skipped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interactive_avatar.reasoning.turn import OUT_OF_SCOPE

Understand = Callable[[str], tuple[str, float, Mapping[str, str]]]


@dataclass(frozen=True)
class Row:
    """One labelled utterance."""

    utterance: str
    intent: str
    slots: Mapping[str, str]


@dataclass(frozen=True)
class Miss:
    """One utterance that was understood otherwise than labelled."""

    row: Row
    intent: str
    confidence: float
    slots: Mapping[str, str]


@dataclass(frozen=True)
class Accuracy:
    """Result of a measurement.

    Attributes:
        count: utterances measured.
        accuracy: share with the right intent, of all.
        in_scope: share with the right intent, of those in scope.
        out_of_scope_recall: share recognised of those out of scope; 1 if there were none.
        slot_accuracy: share with all labelled slots right, of those that have any and whose
            intent is right; 1 if there were none.
        seconds_p50: median time of one utterance.
        misses: what went wrong.
    """

    count: int
    accuracy: float
    in_scope: float
    out_of_scope_recall: float
    slot_accuracy: float
    seconds_p50: float
    misses: tuple[Miss, ...]

    def report(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        return {'utterances': self.count, 'accuracy': round(self.accuracy, 4),
                'in_scope_accuracy': round(self.in_scope, 4),
                'out_of_scope_recall': round(self.out_of_scope_recall, 4),
                'slot_accuracy': round(self.slot_accuracy, 4),
                'milliseconds_p50': round(self.seconds_p50 * 1e3, 2),
                'confusions': dict(Counter(f'{miss.row.intent} -> {miss.intent}'
                                           for miss in self.misses).most_common())}


def read_rows(path: str | Path) -> list[Row]:
    """Read a labelled file.

    Raises:
        ValueError: on a line that cannot be read, with its number.
        FileNotFoundError: if there is no such file.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text('utf-8').splitlines(), 1):
        if not line.strip() or line.startswith(('#', 'utterance\t')):
            continue
        fields = line.split('\t')
        if not 2 <= len(fields) <= 3 or not fields[0].strip() or not fields[1].strip():
            raise ValueError(f'{path}:{number}: {len(fields)} tab-separated fields; expected '
                             f'utterance, intent and optionally slots')
        rows.append(Row(fields[0].strip(), fields[1].strip(),
                        _slots(fields[2].strip() if len(fields) > 2 else '', path, number)))
    if not rows:
        raise ValueError(f'{path}: no utterances in it')
    return rows


def _slots(text: str, path: str | Path, number: int) -> dict[str, str]:
    if not text or text == '-':
        return {}
    if text.startswith('{'):
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}:{number}: slots are not valid JSON: {error}') from error
        return {str(name): str(value) for name, value in loaded.items()}
    pairs = [part.partition('=') for part in text.replace(',', ';').split(';') if part.strip()]
    if not all(separator for _, separator, _ in pairs):
        raise ValueError(f'{path}:{number}: slots {text!r} must be name=value;name=value')
    return {name.strip(): value.strip() for name, _, value in pairs}


def measure(rows: Sequence[Row], understand: Understand) -> Accuracy:
    """Compare what is understood with the labels."""
    misses: list[Miss] = []
    seconds: list[float] = []
    right = right_out = out = slotted = slots_right = 0
    for row in rows:
        began = time.perf_counter()
        intent, confidence, slots = understand(row.utterance)
        seconds.append(time.perf_counter() - began)
        is_right = intent == row.intent
        right += is_right
        out += row.intent == OUT_OF_SCOPE
        right_out += is_right and row.intent == OUT_OF_SCOPE
        same = all(slots.get(name, '').lower() == value.lower()
                   for name, value in row.slots.items())
        if is_right and row.slots:
            slotted += 1
            slots_right += same
        if not is_right or not same:
            misses.append(Miss(row, intent, confidence, dict(slots)))
    inside = len(rows) - out
    return Accuracy(len(rows), right / len(rows), (right - right_out) / inside if inside else 1.0,
                    right_out / out if out else 1.0, slots_right / slotted if slotted else 1.0,
                    sorted(seconds)[len(seconds) // 2], tuple(misses))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the embedded reasoner on a file; prints the figures and what was missed."""
    parser = argparse.ArgumentParser(prog='avatar evaluate intents', description=__doc__)
    parser.add_argument('file', help='labelled utterances, tab-separated')
    parser.add_argument('--persona', default='config/persona.yaml', help='persona file')
    parser.add_argument('--json', action='store_true', help='print the figures as JSON only')
    options = parser.parse_args(arguments)
    from interactive_avatar.reasoning.module import open_embedded
    reasoner = open_embedded(options.persona)
    result = measure(read_rows(options.file), reasoner.understand)
    if not options.json:
        for miss in result.misses:
            print(f'{miss.row.utterance!r}: {miss.row.intent} {dict(miss.row.slots) or ""} -> '
                  f'{miss.intent} {dict(miss.slots) or ""} ({miss.confidence:.2f})')
    print(json.dumps(result.report(), indent=2))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
