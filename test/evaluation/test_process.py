# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest

from interactive_avatar.evaluation.process import run_process

PROGRAM = """
import signal, sys, time
def leave(*_):
    open(sys.argv[1], 'w').write('finished')
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print('one', flush=True)
print('trouble', file=sys.stderr, flush=True)
if len(sys.argv) > 2:
    time.sleep(60)
sys.exit(3)
"""


def test_lines_are_passed_on_and_complaints_are_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / 'logs' / 'client.log'
    status = run_process([sys.executable, '-c', PROGRAM, str(tmp_path / 'mark')], {}, log,
                         lines.append)
    assert (status, lines, log.read_text()) == (3, ['one\n'], 'trouble\n')


def test_an_interrupted_run_lets_the_process_finish_what_it_writes(tmp_path: Path) -> None:
    mark = tmp_path / 'mark'

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_process([sys.executable, '-c', PROGRAM, str(mark), 'stay'], {}, tmp_path / 'log',
                    interrupt)
    assert mark.read_text() == 'finished'
