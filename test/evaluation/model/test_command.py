# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from interactive_avatar.evaluation import evaluate
from interactive_avatar.evaluation.model import command
from interactive_avatar.evaluation.model.figures import Figure, Result, Row


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(given)


def test_a_plan_from_arguments() -> None:
    plan, setup = command.parse(arguments('some/model', '--sets', 'lips,cost', '--levels', '1,0.5',
                                          '--window-only', '--minutes', '5'))
    assert plan.sets == ('lips', 'cost')
    assert plan.out == Path('out/evaluate/model')
    assert (setup.model, setup.levels, setup.key_frames) == ('some/model', (1.0, 0.5), 'window')
    assert command.parse(arguments('--quick'))[0].sets == command.QUICK_SETS


@pytest.mark.parametrize(('given', 'why'), [
    (('--sets', 'lips,nose'), "'nose' is unknown"), (('--levels', '0.5'), 'falling numbers'),
    (('--levels', '1,1'), 'falling numbers'), (('--levels', '1,x'), 'falling numbers'),
    (('--minutes', '1'), '--minutes 1'), (('--people', '-1'), '--people -1')])
def test_bad_arguments_say_what_to_give(given: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        command.parse(arguments(*given))


def test_a_missing_model_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert evaluate.main(['model', str(tmp_path / 'none'), '--sets', 'cost', '--out',
                          str(tmp_path)]) == 2
    assert 'none' in capsys.readouterr().err


def test_another_model_stands_beside_where_the_claim_is_the_same() -> None:
    mine = {'cost': Result('Cost', '', [Row('cost', Figure(0.5)), Row('only here', Figure(1.0))])}
    other = {'cost': Result('Cost', '', [Row('cost', Figure(0.7))])}
    first, second = command.rows_of(mine, other, 'teacher')
    assert first.compared['teacher'].value == 0.7
    assert command.cells(second)[-1] == 'teacher: –'


def test_the_report_is_one_page_and_json_without_nan(tmp_path: Path) -> None:
    plan, setup = command.parse(arguments('--out', str(tmp_path)))
    row = Row.at_least('lips & <more>', Figure(0.5, 0.4, 0.6, 4, 'people'), 0.85,
                       {'true pictures': Figure(float('nan'))})
    results = {'lips': Result('Lips', 'how', [row], {'each': [float('nan'), np.float32(1.0)]},
                              [('a picture', np.zeros((8, 8, 3), np.uint8))],
                              table=(['a', 'b'], [['1', '2']]))}
    page = command.write_report(plan, setup, results, [row], 'avatar evaluate model', 'abc')
    text = page.read_text()
    assert 'lips &amp; &lt;more&gt;' in text and 'data:image/jpeg' in text and '≥ 0.85' in text
    saved = json.loads((tmp_path / 'report.json').read_text())
    assert saved['claims']['lips']['each'] == [None, 1.0]
    assert saved['rows'][0]['met'] is False
    assert saved['rows'][0]['compared']['true pictures']['value'] is None
