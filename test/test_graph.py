# SPDX-License-Identifier: Apache-2.0
import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interactive_avatar.graph import (
    PROFILE_VARIABLES,
    STATUS_FOLDER_VARIABLE,
    Graph,
    GraphError,
    NodeProcess,
    prepare_environment,
    start_graph,
)

# A stand-in for a node's process: announces itself as a node does, then does as it is told.
SCRIPT = f"""
import json, os, sys, time
name, state, error, life_s = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
folder = os.environ[{STATUS_FOLDER_VARIABLE!r}]
print('hello from', name, flush=True)
with open(os.path.join(folder, name + '.json'), 'w') as file:
    json.dump({{'pid': os.getpid(), 'state': state, 'error': error}}, file)
time.sleep(life_s)
sys.exit(3)
"""


def make(tmp_path: Path, state: str = 'active', error: str = '', life_s: float = 60.0,
         respawn: bool = True,
         tell: Callable[[str], None] | None = None) -> tuple[Graph, list[str]]:
    told: list[str] = []
    status = tmp_path / 'status'
    status.mkdir()
    node = NodeProcess('web', [sys.executable, '-c', SCRIPT, 'web', state, error, str(life_s)],
                       tmp_path / 'web.log')
    environment = {**os.environ, STATUS_FOLDER_VARIABLE: str(status)}
    return Graph([node], environment, status, respawn=respawn,
                 tell=tell or told.append), told


def test_waits_until_active_and_stops(tmp_path: Path) -> None:
    graph, _ = make(tmp_path)
    with graph:
        graph.wait_until_active(10)
        process = graph.nodes['web'].process
        assert process is not None and graph.status('web')['pid'] == process.pid
    assert process.poll() is not None


def test_a_node_that_fails_is_named_with_its_reason_and_log(tmp_path: Path) -> None:
    graph, _ = make(tmp_path, 'unconfigured', 'no model')
    with graph, pytest.raises(GraphError, match=r'web is not running: no model') as caught:
        graph.wait_until_active(10)
    assert 'hello from web' in str(caught.value)


def test_a_node_that_is_slow_is_named(tmp_path: Path) -> None:
    graph, _ = make(tmp_path, 'inactive')
    with graph, pytest.raises(GraphError, match='web did not become active within 0 s'):
        graph.wait_until_active(0.3)


def kill_and_wait(graph: Graph) -> None:
    """Kill the web node, and wait until it has been started again."""
    process = graph.nodes['web'].process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 10
    while graph.nodes['web'].starts < 2 and time.monotonic() < deadline_s:
        time.sleep(0.05)


def test_a_killed_node_is_started_again(tmp_path: Path) -> None:
    graph, told = make(tmp_path)
    with graph:
        graph.wait_until_active(10)
        kill_and_wait(graph)
        graph.wait_until_active(10)
    assert 'web ended with code -9, starting it again' in told[0]


def test_nodes_are_looked_after_without_a_terminal(tmp_path: Path) -> None:
    def closed(_: str) -> None:
        raise OSError(errno.EIO, 'Input/output error')

    graph, _ = make(tmp_path, tell=closed)
    with graph:
        graph.wait_until_active(10)
        kill_and_wait(graph)
        assert graph.nodes['web'].starts == 2


def test_without_respawn_an_ended_node_is_an_error(tmp_path: Path) -> None:
    graph, _ = make(tmp_path, life_s=0.0, respawn=False)
    with graph:
        assert graph.nodes['web'].process is not None
        graph.nodes['web'].process.wait(10)
        with pytest.raises(GraphError, match='its process ended with code 3'):
            graph.wait_until_active(10)


def test_the_environment_keeps_what_the_user_set() -> None:
    environment = prepare_environment({PROFILE_VARIABLES[0]: '/mine.xml',
                                       'OPENBLAS_NUM_THREADS': '4'})
    assert environment[PROFILE_VARIABLES[0]] == '/mine.xml'
    assert environment[PROFILE_VARIABLES[1]].endswith('config/fastdds.xml')
    assert environment['OPENBLAS_NUM_THREADS'] == '4'
    assert prepare_environment({})['OPENBLAS_NUM_THREADS'] == '1'


def test_wrong_names_are_refused() -> None:
    pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
    with pytest.raises(GraphError, match="there is no node 'wob'"):
        start_graph(nodes=['wob'])
    with pytest.raises(GraphError, match='names no node'):
        start_graph(overrides={'port': 1})
    with pytest.raises(FileNotFoundError, match=r'no_such\.yaml was not found'):
        start_graph('no_such.yaml')
