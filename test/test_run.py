# SPDX-License-Identifier: Apache-2.0
"""`avatar run` ends its nodes whatever it is ended by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Runs a graph of one node that sleeps, and says the node's process id once signals are handled.
SCRIPT = """
import argparse, os, sys
from pathlib import Path
from interactive_avatar import run
from interactive_avatar.graph import Graph, NodeProcess

folder = Path(sys.argv[1])

def start_graph(*_, **__):
    node = NodeProcess('web', [sys.executable, '-c', 'import time; time.sleep(60)'],
                       folder / 'web.log')
    graph = Graph([node], dict(os.environ), folder / 'status', respawn=False, tell=print)
    print(node.process.pid, flush=True)
    return graph

(folder / 'status').mkdir()
run.start_graph = start_graph
sys.exit(run.main(argparse.Namespace(mode='', nodes=['web'], overrides=[], log=None, timeout=60.0,
                                     config='config/avatar.yaml', namespace='avatar')))
"""


def start(folder: Path, *before: str) -> tuple[subprocess.Popen[str], int]:
    # Tests that themselves run under nohup would hand its deafness on.
    kept = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = subprocess.Popen([*before, sys.executable, '-c', SCRIPT, str(folder)],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_nodes_end_with_the_graph(tmp_path: Path, number: signal.Signals) -> None:
    process, node = start(tmp_path)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not alive(node)


def test_under_nohup_a_closed_terminal_is_survived(tmp_path: Path) -> None:
    process, node = start(tmp_path, 'nohup')
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and alive(node)
    process.terminate()
    assert process.wait(20) == 0
    assert not alive(node)
