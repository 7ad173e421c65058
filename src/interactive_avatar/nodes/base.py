# SPDX-License-Identifier: Apache-2.0
"""What all nodes share: a life cycle that starts itself, and failures that are told."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile

from interactive_avatar.graph import STATUS_FOLDER_VARIABLE
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.diagnostics import ERROR, WARN, Diagnostics
from interactive_avatar.nodes.options import (
    OptionError,
    declare_options,
    unknown_parameters,
)

# How often a simulated clock is looked at.
SIMULATED_WAIT_S = 0.005
SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE


class AvatarNode(LifecycleNode):
    """A lifecycle node that configures and activates itself.

    A subclass names its option struct and implements `configure`, `activate`, `deactivate` and
    `cleanup`, which simply raise on failure: rclpy swallows exceptions of transitions, this
    class logs them, reports them on ``/diagnostics`` and answers FAILURE, and the process stays
    up, so that the transition can be tried again. Publishers and subscriptions made with
    `publish_to` and `listen_to` are destroyed at cleanup.

    Attributes:
        options: the node's parameters.
        diagnostics: its entry on ``/diagnostics``.
    """

    options_class: ClassVar[type]

    def __init__(self, name: str, *, context: Context | None = None, namespace: str | None = None,
                 parameters: dict[str, Any] | None = None) -> None:
        """Declare the parameters and, if ``autostart`` is set, start at the first spin.

        Args:
            name: name of the node.
            context: rclpy context; the default one if None.
            namespace: namespace; that of the command line if None.
            parameters: values that go before those of the parameter file (for tests).
        """
        overrides = [Parameter(key, value=value) for key, value in (parameters or {}).items()]
        super().__init__(name, context=context, namespace=namespace,
                         parameter_overrides=overrides)
        self._owned: list[tuple[Callable[[Any], Any], Any]] = []
        self._option_error: OptionError | None = None
        self.diagnostics = Diagnostics(self)
        try:
            self.options: Any = declare_options(self, self.options_class)
        except OptionError as error:
            self._option_error = error
            self.options = self.options_class()
        else:
            for complaint in unknown_parameters(self, list(self._parameters)):
                self.get_logger().error(complaint)
                self.diagnostics.problem('unknown_parameters', complaint, WARN)
        self._announce('unconfigured', '')
        self._autostart_timer = None
        if self.options.autostart:
            self._autostart_timer = self.create_timer(0.0, self._autostart)

    # What a subclass implements -----------------------------------------------------------

    def configure(self) -> None:
        """Load models, make publishers and subscriptions. Raise on failure."""

    def activate(self) -> None:
        """Start the work. Raise on failure."""

    def deactivate(self) -> None:
        """Stop the work."""

    def cleanup(self) -> None:
        """Release what `configure` took; also called after a `configure` that failed."""

    # Tools for subclasses -----------------------------------------------------------------

    def publish_to(self, kind: type, topic: str, profile: QoSProfile) -> Publisher:
        """Make a publisher that is destroyed at cleanup."""
        # rclpy writes overrides into the profile that it is given, so this topic gets its own.
        publisher = self.create_publisher(
            kind, topic, copy.copy(profile), qos_overriding_options=qos.overridable())
        self._owned.append((self.destroy_publisher, publisher))
        return publisher

    def listen_to(self, kind: type, topic: str, callback: Callable[[Any], None],
                  profile: QoSProfile) -> None:
        """Make a subscription that is destroyed at cleanup.

        An exception of ``callback`` is logged and reported; it does not end the node.
        """
        def guarded(message: Any) -> None:
            try:
                callback(message)
            except Exception as error:
                self.report(f'refused.{topic}', f'{topic}: {error}', WARN)

        subscription = self.create_subscription(kind, topic, guarded, profile)
        self._owned.append((self.destroy_subscription, subscription))

    def report(self, key: str, message: str, level: bytes = ERROR) -> None:
        """Log a problem (once while it lasts) and show it on ``/diagnostics``. Thread-safe."""
        if self.diagnostics.problem(key, message, level) and rclpy.ok(context=self.context):
            if level == ERROR:
                self.get_logger().error(message)
            else:
                self.get_logger().warning(message)

    @property
    def simulated(self) -> bool:
        """Whether the node's time comes from /clock (``use_sim_time``)."""
        return bool(self.get_clock().ros_time_is_active)  # type: ignore[attr-defined]

    def seconds(self) -> float:
        """A clock that only runs forward and sets the pace: /clock's where it is simulated."""
        if self.simulated:
            return self.get_clock().now().nanoseconds / 1e9
        return time.monotonic()

    def wait_until(self, stop: threading.Event, due_s: float) -> bool:
        """Wait until `seconds` reaches ``due_s``; True as soon as ``stop`` is set."""
        while not stop.is_set():
            left_s = due_s - self.seconds()
            if left_s <= 0.0:
                return False
            # A simulated clock may run at any speed.
            stop.wait(min(left_s, SIMULATED_WAIT_S) if self.simulated else left_s)
        return True

    @property
    def state_label(self) -> str:
        """Name of the life cycle's state, such as ``active``."""
        return str(self._state_machine.current_state[1])

    # The life cycle -----------------------------------------------------------------------

    def _autostart(self) -> None:
        assert self._autostart_timer is not None
        self.destroy_timer(self._autostart_timer)
        self._autostart_timer = None
        if self.state_label == 'unconfigured':
            self.trigger_configure()
        if self.state_label == 'inactive':
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Configure; on failure undo what was done and stay unconfigured."""
        started_s = time.monotonic()
        try:
            if self._option_error is not None:
                raise self._option_error
            self.configure()
        except Exception as error:
            self._release()
            return self._failed('configure', 'unconfigured', error)
        return self._done('inactive', f'configured in {time.monotonic() - started_s:.1f} s')

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Activate; on failure stay inactive."""
        try:
            self.activate()
        except Exception as error:
            with contextlib.suppress(Exception):
                self.deactivate()
            return self._failed('activate', 'inactive', error)
        return self._done('active', 'active')

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate."""
        try:
            self.deactivate()
        except Exception as error:
            return self._failed('deactivate', 'active', error)
        return self._done('inactive', 'inactive')

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node can be configured again."""
        self._release()
        return self._done('unconfigured', 'unconfigured')

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release everything, from whichever state."""
        if state.label == 'active':
            try:
                self.deactivate()
            except Exception as error:
                self.report('shutdown', f'shutdown: {error}')
        self._release()
        return self._done('finalized', 'finalized')

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come back to unconfigured after an error, so that the node can be tried again."""
        self._release()
        return SUCCESS

    def _release(self) -> None:
        try:
            self.cleanup()
        except Exception as error:
            self.report('cleanup', f'cleanup: {type(error).__name__}: {error}')
        while self._owned:
            destroy, entity = self._owned.pop()
            destroy(entity)
        self.diagnostics.forget()

    def _done(self, state: str, message: str) -> TransitionCallbackReturn:
        if rclpy.ok(context=self.context):
            self.get_logger().info(message)
            self.diagnostics.state(state)
        self._announce(state, '')
        return SUCCESS

    def _failed(self, action: str, state: str, error: Exception) -> TransitionCallbackReturn:
        # Errors of the avatar's own classes and of the system say all that a user needs; any
        # other may be a mistake of the program, so that is shown with its place.
        foreseen = (isinstance(error, OSError)
                    or type(error).__module__.startswith('interactive_avatar.'))
        text = str(error) if foreseen else f'{type(error).__name__}: {error}'
        message = f'could not {action}: {text}'
        self.get_logger().error(message)
        if not foreseen:
            import traceback
            self.get_logger().error(''.join(traceback.format_exception(error)))
        self.diagnostics.state(message, ERROR)
        self._announce(state, message)
        return FAILURE

    def _announce(self, state: str, error: str) -> None:
        """Tell the process that started this one (`interactive_avatar.graph`) how it is."""
        folder = os.environ.get(STATUS_FOLDER_VARIABLE)
        if not folder:
            return
        status = {'pid': os.getpid(), 'state': state, 'error': error}
        path = Path(folder) / f'{self.get_name()}.json'
        try:
            temporary = path.with_suffix('.new')
            temporary.write_text(json.dumps(status), encoding='utf-8')
            temporary.replace(path)
        except OSError as problem:
            self.get_logger().warning(f'{path} could not be written: {problem}')

    def close(self) -> None:
        """Shut down from whichever state; for the end of the process."""
        label = self.state_label
        if label not in ('unconfigured', 'inactive', 'active'):
            return
        if rclpy.ok(context=self.context):
            self.trigger_shutdown()
        else:
            # After a signal rclpy has closed its context, and no transition can be announced.
            self.on_shutdown(LifecycleState(label=label, state_id=0))


def be_nice(node: AvatarNode, nice: int) -> None:
    """Set the scheduling priority of the calling thread and of those it starts.

    Raising it needs rights that a user often lacks; then it stays as it is, which is told.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    except (OSError, AttributeError) as error:
        node.get_logger().info(
            f'scheduling priority stays as it is (nice {nice} was refused: {error}); to allow '
            f'it, raise the limit "nice" of this user')


def run_node(factory: Callable[[], AvatarNode], args: list[str] | None = None) -> int:
    """Initialise ROS, spin a node until it is told to stop, and shut it down in order.

    Returns:
        Exit code of the process: 0 at a normal end, 1 if it could not start.
    """
    try:
        rclpy.init(args=args)
    except Exception as error:
        print(f'ROS could not start: {error}\nCheck the parameter file and the --ros-args.',
              file=sys.stderr)
        return 1
    node = factory()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
