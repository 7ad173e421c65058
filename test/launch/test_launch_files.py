# SPDX-License-Identifier: Apache-2.0
"""The launch files, run for real where ``launch_ros`` is installed (way A)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('launch_ros', reason='launch_ros is not installed: it is not on PyPI, it '
                                         'comes with ROS 2 from apt (way A)')
import launch
import launch.actions
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from launch.launch_description_sources import get_launch_description_from_python_launch_file
from rclpy.executors import SingleThreadedExecutor

LAUNCH = Path(__file__).parents[2] / 'launch'
START_TIMEOUT_S = 60.0
DOMAIN = 100
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource

service = LaunchService(argv=sys.argv[2:])
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    AnyLaunchDescriptionSource(sys.argv[1]),
    launch_arguments=[tuple(text.split(':=', 1)) for text in sys.argv[2:]])]))
sys.exit(service.run())
"""


def installed() -> Path:
    """Launch folder of the installed package; skips where only the messages are installed."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix
    try:
        prefix = Path(get_package_prefix('avatar_bringup'))
    except PackageNotFoundError:
        pytest.skip('avatar_bringup is not in AMENT_PREFIX_PATH: build it with colcon')
    if not (prefix / 'lib' / 'avatar_bringup' / 'web_node').exists():
        pytest.skip('only the messages of avatar_bringup are installed (way B)')
    return prefix / 'share' / 'avatar_bringup' / 'launch'


@pytest.mark.parametrize('name', ['avatar.launch.py', 'replay.launch.py'])
def test_every_argument_is_described(name: str) -> None:
    description = get_launch_description_from_python_launch_file(str(LAUNCH / name))
    arguments = [entity for entity in description.entities
                 if isinstance(entity, launch.actions.DeclareLaunchArgument)]
    assert len(arguments) >= 6
    assert all(len(argument.description) > 15 and '.' in argument.description
               for argument in arguments)


@pytest.fixture
def watcher() -> Iterator[Any]:
    """A context and an executor with one node on the launch test's domain."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    node = rclpy.create_node('watcher', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    yield node, executor
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.mark.slow
def test_the_graph_comes_up_with_its_arguments(watcher: Any, tmp_path: Path) -> None:
    node, executor = watcher
    launch_folder = installed()
    states: dict[str, str] = {}
    values: dict[str, str] = {}

    def note(message: DiagnosticArray) -> None:
        for status in message.status:
            states[status.name] = status.message
            values.update({pair.key: pair.value for pair in status.values})

    node.create_subscription(DiagnosticArray, '/diagnostics', note, 10)
    log = tmp_path / 'launch.log'
    with open(log, 'wb') as output:
        process = subprocess.Popen(
            [sys.executable, '-c', RUN, str(launch_folder / 'avatar.launch.py'),
             'namespace:=face', 'generator:=false', 'port:=8391',
             f'python:={sys.executable}'],
            env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)}, stdout=output,
            stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        wanted = {'face/perception', 'face/reasoning', 'face/web'}
        while time.monotonic() < deadline_s and process.poll() is None:
            executor.spin_once(timeout_sec=0.1)
            if {name for name, text in states.items() if text.startswith('active')} >= wanted:
                break
        text = log.read_text()
        assert {name for name in states} == wanted, text
        assert values.get('address') == 'http://localhost:8391/', text
    finally:
        process.send_signal(2)
        process.wait(20)
    assert 'process has finished cleanly' in log.read_text()


@pytest.mark.slow
def test_a_missing_bag_is_named() -> None:
    launch_folder = installed()
    done = subprocess.run(
        [sys.executable, '-c', RUN, str(launch_folder / 'replay.launch.py'), 'bag:=/no/such/bag',
         'perception:=false', 'reasoning:=false', 'generator:=false', 'web:=false'],
        env={**os.environ, 'ROS_DOMAIN_ID': str(DOMAIN)}, capture_output=True, text=True,
        timeout=60, check=False)
    assert '/no/such/bag does not exist' in done.stdout + done.stderr
