# SPDX-License-Identifier: Apache-2.0
"""A session's figures against the session that was composed for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation.bag import Diagnostic, Recording, read_bag
from interactive_avatar.evaluation.session import (
    Expected,
    measure,
    measure_missed,
    measure_start,
    utterances,
)

T0_NS = 1_700_000_000 * 1_000_000_000


def test_the_user_is_found_by_level(session_bag: Path) -> None:
    spoken = utterances(read_bag(session_bag).user_audio)
    assert len(spoken) == 1
    # Chunks 7 to 12 are voiced: 1.12 s to 2.08 s.
    assert (spoken[0].start_ns - T0_NS) / 1e9 == pytest.approx(1.12)
    assert (spoken[0].end_ns - T0_NS) / 1e9 == pytest.approx(2.08)


def test_measures_of_a_known_session(session_bag: Path) -> None:
    seen: list[int] = []
    result = measure(read_bag(session_bag), [Expected('nod', 'Please nod!', 'nod')], seen.append)
    json.dumps(result, allow_nan=False)
    assert len(seen) == 200
    assert result['stream']['frames_per_second'] == pytest.approx(25.0)
    assert result['stream']['audio']['clean_share'] == 1.0
    assert result['stream']['av_offset_ms'] == {'chunks': 50, 'without_picture': 0, 'mean': 0.0,
                                                'worst': 0.0}
    assert result['stream']['missed'] == {'repeated': 0, 'intervals': 8, 'made': 48,
                                          'clean_share': 1.0}
    assert list(result['nodes']) == ['avatar/generator']
    face = result['face']
    assert face['size'] == [32, 32]
    assert face['mouth_change_in_speech'] > 1.0
    assert face['mouth_change_at_rest'] == 0.0
    assert face['mouth_rest_to_speech'] == 0.0
    turn = result['turns'][0]
    assert turn['heard'] == 'please nod'
    assert turn['word_error_rate'] == 0.0
    assert turn['understood']
    assert turn['actions'] == ['nod']
    # Intent at 2.4 s + 20 ms on its way, words over at 2.08 s.
    assert turn['decision_latency_s'] == pytest.approx(0.34)
    # First voiced sound at 3.2 s + 20 ms.
    assert turn['response_latency_s'] == pytest.approx(1.14)
    assert turn['answer_s'] == pytest.approx(1.6)
    # The picture flickers from the second frame of the first spoken chunk.
    assert turn['switch_to_visible_ms'] == pytest.approx(40.0)
    assert [row['phase'] for row in result['states']] == ['STABLE', 'ACTION', 'STABLE']


def test_lost_chunks_show(make_bag: Callable[..., Path], tmp_path: Path) -> None:
    result = measure(read_bag(make_bag(tmp_path / 'bag', drop_chunks=(10, 40))))
    assert result['stream']['audio']['lost'] == 2
    assert result['stream']['audio']['clean_seconds'] == result['stream']['audio']['seconds'] - 2


def test_what_was_never_heard_stays_in_the_table(make_bag: Callable[..., Path],
                                                 tmp_path: Path) -> None:
    bag = make_bag(tmp_path / 'bag', skip_topics=('user/audio', 'perception'))
    rows = measure(read_bag(bag), [Expected('nod', 'Please nod!', 'nod')])['turns']
    assert len(rows) == 1
    assert rows[0]['understood'] is False
    assert rows[0]['response_latency_s'] is None


def test_a_bag_without_pictures_is_still_measured(make_bag: Callable[..., Path],
                                                  tmp_path: Path) -> None:
    result = measure(read_bag(make_bag(tmp_path / 'bag', skip_topics=('image_raw/compressed',))))
    assert result['face'] is None
    assert result['turns'][0]['intents'] == ['nod']


def test_repeated_chunks_are_counted_from_the_generator_s_own_figures(tmp_path: Path) -> None:
    def status(second: int, late: int, slots: int) -> Diagnostic:
        return Diagnostic(second * 10**9, 'avatar/generator', 0, '',
                          {'chunks_late': str(late), 'slots': str(slots)})

    recording = Recording(tmp_path)
    assert measure_missed(recording)['intervals'] == 0
    # 3 were missed before the recording; then 0, 2, and 1 after a restart, 0.
    recording.diagnostics = [status(0, 3, 10), status(1, 3, 16), status(2, 5, 22),
                             status(3, 1, 28), status(4, 1, 34)]
    assert measure_missed(recording) == {'repeated': 3, 'intervals': 4, 'made': 24,
                                         'clean_share': 0.5}


def test_the_first_chunk_is_the_generators_own_figure(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    assert np.isnan(measure_start(recording)['first_chunk_s'])
    recording.diagnostics = [
        Diagnostic(second * 10**9, f'avatar/{node}', 0, '', {'first_chunk_s': text})
        for second, node, text in ((0, 'face', '9.0'), (1, 'generator', '4.25'),
                                   (2, 'generator', '4.25'))]
    assert measure_start(recording)['first_chunk_s'] == 4.25
