# SPDX-License-Identifier: Apache-2.0
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String

from interactive_avatar.graph import STATUS_FOLDER_VARIABLE
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.base import FAILURE, SUCCESS, AvatarNode
from interactive_avatar.nodes.options import option


@dataclass(frozen=True)
class EchoOptions:
    autostart: bool = option(False, 'start at once')
    gain: float = option(1.0, 'factor', minimum=0.0, maximum=2.0)
    mode: str = option('soft', 'kind', choices=('soft', 'hard'))


class EchoNode(AvatarNode):
    """The smallest node with a topic in and a topic out."""

    options_class = EchoOptions

    def __init__(self, **arguments: Any) -> None:
        super().__init__('echo', **arguments)
        self.broken = ''

    def configure(self) -> None:
        self.out = self.publish_to(String, 'out', qos.EVENT)
        self.listen_to(String, 'in', self._echo, qos.EVENT)
        if self.broken == 'configure':
            raise RuntimeError('no such device')

    def activate(self) -> None:
        if self.broken == 'activate':
            raise OSError('port 80 is in use')

    def _echo(self, message: String) -> None:
        if message.data == 'bad':
            raise ValueError('"bad" is refused')
        self.out.publish(message)


def spin(context: Any, nodes: list[Any], until: Any, timeout_s: float = 5.0) -> bool:
    executor = SingleThreadedExecutor(context=context)
    for node in nodes:
        executor.add_node(node)
    deadline_s = time.monotonic() + timeout_s
    while not until() and time.monotonic() < deadline_s:
        executor.spin_once(timeout_sec=0.05)
    for node in nodes:
        executor.remove_node(node)
    executor.shutdown()
    return bool(until())


def test_starts_itself(context: Any) -> None:
    node = EchoNode(context=context, parameters={'autostart': True})
    assert spin(context, [node], lambda: node.state_label == 'active')
    node.close()
    assert node.state_label == 'finalized'


def test_configure_and_cleanup_twice_leave_nothing_behind(context: Any) -> None:
    node = EchoNode(context=context)
    before = len(list(node.publishers)), len(list(node.subscriptions))
    for _ in range(2):
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
        assert (len(list(node.publishers)), len(list(node.subscriptions))) == before


@pytest.mark.parametrize('broken, left', [('configure', 'unconfigured'), ('activate', 'inactive')])
def test_a_failed_transition_is_told_and_can_be_tried_again(
        context: Any, broken: str, left: str) -> None:
    node = EchoNode(context=context)
    node.broken = broken
    if broken == 'activate':
        node.trigger_configure()
    trigger = getattr(node, f'trigger_{broken}')
    assert trigger() == FAILURE
    assert node.state_label == left
    status = node.diagnostics.status()
    assert status.level == DiagnosticStatus.ERROR and f'could not {broken}' in status.message
    node.broken = ''
    assert trigger() == SUCCESS


@pytest.mark.parametrize('name, value, told', [
    ('gain', 3.0, 'gain is 3.0, but must be float from 0.0 to 2.0'),
    ('gain', 'loud', "gain is 'loud'"),
    ('mode', 'loud', "must be one of 'soft', 'hard'"),
])
def test_an_unusable_parameter_fails_configure_with_its_value(
        context: Any, name: str, value: Any, told: str) -> None:
    node = EchoNode(context=context, parameters={name: value})
    assert node.trigger_configure() == FAILURE
    assert told in node.diagnostics.status().message


def test_an_unknown_parameter_is_reported_with_the_closest_name(context: Any) -> None:
    node = EchoNode(context=context, parameters={'gian': 1.0})
    status = node.diagnostics.status()
    assert status.level == DiagnosticStatus.WARN
    assert 'unknown parameter gian is ignored; did you mean gain?' in status.message
    assert node.trigger_configure() == SUCCESS


def test_whole_numbers_are_taken_for_fractions(context: Any) -> None:
    assert EchoNode(context=context, parameters={'gain': 2}).options.gain == 2.0


def test_parameters_are_described(context: Any) -> None:
    node = EchoNode(context=context)
    gain = node.describe_parameter('gain')
    assert gain.description == 'factor' and gain.floating_point_range[0].to_value == 2.0
    assert node.describe_parameter('mode').additional_constraints == 'one of: soft, hard'


def test_a_bad_message_is_reported_and_the_next_one_is_served(context: Any) -> None:
    node = EchoNode(context=context, parameters={'autostart': True})
    friend = EchoNode(context=context, namespace='friend')
    heard: list[str] = []
    friend.create_subscription(String, '/out', lambda m: heard.append(m.data), qos.EVENT)
    talk = friend.create_publisher(String, '/in', qos.EVENT)
    assert spin(context, [node, friend],
                lambda: (node.state_label == 'active' and talk.get_subscription_count()
                         and node.out.get_subscription_count()))
    # A publisher knows its subscription a little before the subscription knows the publisher.
    spin(context, [node, friend], lambda: False, 0.2)
    talk.publish(String(data='bad'))
    talk.publish(String(data='good'))
    assert spin(context, [node, friend], lambda: heard == ['good'])
    assert 'in: "bad" is refused' in node.diagnostics.status().message


def test_the_state_is_announced_to_the_starting_process(
        context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_FOLDER_VARIABLE, str(tmp_path))
    node = EchoNode(context=context)
    node.broken = 'configure'
    node.trigger_configure()
    status = json.loads((tmp_path / 'echo.json').read_text())
    assert status['state'] == 'unconfigured' and 'no such device' in status['error']


def test_qos_can_be_overridden(context: Any) -> None:
    node = EchoNode(context=context, parameters={'qos_overrides./out.publisher.depth': 3})
    assert node.trigger_configure() == SUCCESS
    assert node.out.qos_profile.depth == 3
    # Other topics with the same named profile keep it as it is.
    assert qos.EVENT.depth == 16
    assert 'unknown' not in node.diagnostics.status().message
