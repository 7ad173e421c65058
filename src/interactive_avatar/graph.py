# SPDX-License-Identifier: Apache-2.0
"""Starts, watches and stops the graph of nodes as processes. Imports no ROS.

What a launch file does where ROS 2 is installed: one process for each node, parameters from one
YAML file, the Fast DDS profile, nodes that die are started again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from interactive_avatar.paths import cache_folder, resource

STATUS_FOLDER_VARIABLE = 'AVATAR_STATUS_FOLDER'
NODES = ('perception', 'face', 'reasoning', 'generator', 'web')
DEFAULT_NAMESPACE = 'avatar'
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
POLL_S = 0.1
STOP_PATIENCE_S = 5.0
# A node that dies is started again after 1, 2, 4 ... 30 s; a life of a minute forgives.
FIRST_RESPAWN_DELAY_S = 1.0
LONGEST_RESPAWN_DELAY_S = 30.0
FORGIVEN_AFTER_S = 60.0
LOG_TAIL_LINES = 15


class GraphError(RuntimeError):
    """The graph could not start; the message says which node, why, and what to do."""


def prepare_environment(environment: MutableMapping[str, str]) -> MutableMapping[str, str]:
    """Set what ROS processes of the avatar need and the user has not set otherwise.

    A process that joins the graph itself (the demo's client, a recorder) calls this with
    ``os.environ`` before it imports rclpy.

    Args:
        environment: the environment to change.

    Returns:
        The same mapping.
    """
    profile = str(resource('config/fastdds.xml').resolve())
    for variable in PROFILE_VARIABLES:
        environment.setdefault(variable, profile)
    # One machine is the normal case; a network of robots sets this variable.
    environment.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    prefixes = environment.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    if (Path(sys.prefix) / 'share' / 'rclpy').is_dir() and sys.prefix not in prefixes:
        environment['AMENT_PREFIX_PATH'] = os.pathsep.join(filter(None, [sys.prefix, *prefixes]))
    # Threads that spin while they wait would take the core from the other nodes; OpenBLAS, under
    # NumPy, cannot be told to wait otherwise, and the products here are small.
    environment.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    environment.setdefault('OPENBLAS_NUM_THREADS', '1')
    return environment


@dataclass
class NodeProcess:
    """One node's process.

    Attributes:
        name: name of the node and of its module in `interactive_avatar.nodes`.
        command: how it is started.
        log_path: file that takes its output.
        starts: how often it was started.
        process: the running process, None before the first start.
    """

    name: str
    command: list[str]
    log_path: Path
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    respawn_at_s: float | None = None
    delay_s: float = FIRST_RESPAWN_DELAY_S
    log: IO[bytes] | None = field(default=None, repr=False)


class Graph:
    """The running nodes. Made by `start_graph`; a context manager that stops them at the end."""

    def __init__(self, nodes: Sequence[NodeProcess], environment: Mapping[str, str],
                 status_folder: Path, *, respawn: bool,
                 tell: Callable[[str], None]) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.environment = dict(environment)
        self._status_folder = status_folder
        self._respawn = respawn
        self._tell = tell
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        for node in nodes:
            self._start(node)
        self._watcher = threading.Thread(target=self._watch, name='graph watcher', daemon=True)
        self._watcher.start()

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, node: NodeProcess) -> None:
        status = self._status_folder / f'{node.name}.json'
        status.unlink(missing_ok=True)
        if node.log is None:
            node.log = open(node.log_path, 'ab', buffering=0)
        node.process = subprocess.Popen(
            node.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=node.log,
            stderr=subprocess.STDOUT, start_new_session=True)
        node.started_s = time.monotonic()
        node.starts += 1
        node.respawn_at_s = None

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_S):
            with self._lock:
                for node in self.nodes.values():
                    self._look_after(node)

    def _look_after(self, node: NodeProcess) -> None:
        if self._stopping.is_set() or node.process is None or node.process.poll() is None:
            return
        now_s = time.monotonic()
        if node.respawn_at_s is None:
            if now_s - node.started_s > FORGIVEN_AFTER_S:
                node.delay_s = FIRST_RESPAWN_DELAY_S
            again = f', starting it again in {node.delay_s:.0f} s' if self._respawn else ''
            # The terminal may be gone, and the nodes are looked after all the same.
            with contextlib.suppress(OSError):
                self._tell(f'{node.name} ended with code {node.process.returncode}{again}; its '
                           f'log is {node.log_path}')
            node.respawn_at_s = now_s + node.delay_s if self._respawn else float('inf')
            node.delay_s = min(2 * node.delay_s, LONGEST_RESPAWN_DELAY_S)
        elif now_s >= node.respawn_at_s:
            self._start(node)

    def status(self, name: str) -> dict[str, Any]:
        """What a node said of itself: ``{'state': ..., 'error': ..., 'pid': ...}``.

        The state is ``starting`` before it said anything and ``ended`` when its process is gone.
        """
        node = self.nodes[name]
        if node.process is None or node.process.poll() is not None:
            code = None if node.process is None else node.process.returncode
            return {'state': 'ended', 'error': f'its process ended with code {code}', 'pid': None}
        try:
            text = (self._status_folder / f'{name}.json').read_text(encoding='utf-8')
            status: dict[str, Any] = json.loads(text)
            return status
        except (OSError, ValueError):
            return {'state': 'starting', 'error': '', 'pid': node.process.pid}

    def wait_until_active(self, timeout_s: float = 120.0,
                          progress: Callable[[str], None] = lambda text: None) -> None:
        """Wait until every node is active.

        Args:
            timeout_s: how long at most, seconds.
            progress: called with one line whenever a node's state changes.

        Raises:
            GraphError: if a node fails, ends or is not active in time.
        """
        deadline_s = time.monotonic() + timeout_s
        seen: dict[str, str] = {}
        while True:
            waiting = []
            for name in self.nodes:
                status = self.status(name)
                state = status['state']
                if seen.get(name) != state:
                    seen[name] = state
                    progress(f'{name}: {state}')
                if status['error']:
                    raise GraphError(f'{name} is not running: {status["error"]}\n'
                                     f'{self.log_tail(name)}')
                if state != 'active':
                    waiting.append(name)
            if not waiting:
                return
            if time.monotonic() > deadline_s:
                tails = '\n'.join(self.log_tail(name) for name in waiting)
                raise GraphError(f'{", ".join(waiting)} did not become active within '
                                 f'{timeout_s:.0f} s\n{tails}')
            time.sleep(POLL_S)

    def log_tail(self, name: str) -> str:
        """Last lines of a node's log, with its path."""
        path = self.nodes[name].log_path
        try:
            lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
        except OSError as error:
            return f'{path}: {error}'
        shown = '\n'.join(f'  | {line}' for line in lines[-LOG_TAIL_LINES:])
        return f'{path}:\n{shown}'

    def stop(self) -> None:
        """Stop all nodes: SIGINT, after five seconds SIGKILL. May be called twice."""
        self._stopping.set()
        self._watcher.join(2 * POLL_S + 1)
        with self._lock:
            alive = [node.process for node in self.nodes.values()
                     if node.process is not None and node.process.poll() is None]
            for process in alive:
                _signal_group(process, signal.SIGINT)
            deadline_s = time.monotonic() + STOP_PATIENCE_S
            for process in alive:
                try:
                    process.wait(max(deadline_s - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    _signal_group(process, signal.SIGKILL)
                    process.wait()
            for node in self.nodes.values():
                if node.log is not None:
                    node.log.close()
                    node.log = None
        shutil.rmtree(self._status_folder, ignore_errors=True)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def start_graph(
    config: str | os.PathLike[str] = 'config/avatar.yaml',
    *,
    nodes: Sequence[str] = NODES,
    namespace: str = DEFAULT_NAMESPACE,
    overrides: Mapping[str, object] | None = None,
    log_folder: str | os.PathLike[str] | None = None,
    respawn: bool = True,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Graph:
    """Start the nodes as processes of their own; `Graph.wait_until_active` waits for them.

    Args:
        config: parameter file, absolute or within the package.
        nodes: which nodes; all by default.
        namespace: namespace of nodes and topics.
        overrides: parameters that go before the file, as ``{'web.port': 8081}``.
        log_folder: where the nodes' output goes; a folder in the user's cache if None.
        respawn: start nodes that end again.
        environment: the nodes' environment; this process's if None.
        tell: called with one line when a node ends.

    Returns:
        The graph, starting.

    Raises:
        GraphError: if ROS is not there, or a node or override is unknown.
        FileNotFoundError: if the parameter file is missing.
    """
    for module, remedy in (
            ('rclpy', 'run `make`, or source the setup file of your ROS installation'),
            ('avatar_bringup', 'run `make`, or build the workspace with colcon and source it')):
        if importlib.util.find_spec(module) is None:
            raise GraphError(f'the Python package {module} was not found: {remedy}')
    unknown = [name for name in nodes if name not in NODES]
    if unknown:
        raise GraphError(f'there is no node {unknown[0]!r}, only {", ".join(NODES)}')
    config_path = resource(config).resolve()
    folder = Path(log_folder) if log_folder is not None else _new_log_folder()
    folder.mkdir(parents=True, exist_ok=True)
    status_folder = Path(tempfile.mkdtemp(prefix='avatar_status_'))
    base = dict(os.environ if environment is None else environment)
    prepared = prepare_environment(base)
    prepared[STATUS_FOLDER_VARIABLE] = str(status_folder)
    prepared.setdefault('ROS_LOG_DIR', str(folder.resolve() / 'ros'))
    prepared['PYTHONUNBUFFERED'] = '1'
    prepared['RCUTILS_COLORIZED_OUTPUT'] = '0'
    arguments: dict[str, list[str]] = {name: [] for name in nodes}
    for key, value in (overrides or {}).items():
        node, _, parameter = key.partition('.')
        if node not in arguments or not parameter:
            raise GraphError(f'parameter {key!r} names no node of this graph: write it as '
                             f'node.parameter, with a node of {", ".join(nodes)}')
        arguments[node] += ['-p', f'{parameter}:={_yaml(value)}']
    processes = [NodeProcess(
        name,
        [sys.executable, '-m', f'interactive_avatar.nodes.{name}', '--ros-args',
         '-r', f'__ns:=/{namespace.strip("/")}', '--params-file', str(config_path),
         *arguments[name]],
        folder / f'{name}.log') for name in nodes]
    return Graph(processes, prepared, status_folder, respawn=respawn, tell=tell)


def _yaml(value: object) -> str:
    """Write a parameter's value so that ROS reads the same type back."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return json.dumps(value, ensure_ascii=False)


def _new_log_folder() -> Path:
    return cache_folder() / 'log' / time.strftime('%Y%m%d-%H%M%S')
