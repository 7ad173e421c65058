# SPDX-License-Identifier: Apache-2.0
"""Plays a recorded user at the avatar: the user's topics of a bag, and the graph that answers.

    ros2 launch avatar_bringup replay.launch.py bag:=/data/session
"""

from pathlib import Path

from launch import LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

LAUNCH_FOLDER = Path(__file__).resolve().parent
USER_TOPICS = ('user/audio', 'user/image_raw', 'user/text')


def play(context) -> list[LaunchDescriptionEntity]:
    """Play the bag once the graph has had time to start; end with it if that is wanted."""
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    bag = Path(value('bag')).expanduser()
    if not bag.exists():
        raise RuntimeError(f'bag:={bag} does not exist: give the folder or the .mcap file of a '
                           f'recorded session (`avatar record` makes one)')
    namespace = value('namespace').strip('/')
    recorded = value('recorded_namespace').strip('/')
    topics = [f'/{recorded}/{topic}' for topic in USER_TOPICS]
    remappings = [f'{topic}:=/{namespace}/{name}' for topic, name in zip(topics, USER_TOPICS)]
    command = ['ros2', 'bag', 'play', str(bag), '--rate', value('rate'), '--topics', *topics]
    if namespace != recorded:
        command += ['--remap', *remappings]
    player = ExecuteProcess(cmd=command, output='screen', name='player')
    # The answer to the last sentence is still to come when the bag ends.
    end = TimerAction(period=float(value('linger')), actions=[
        EmitEvent(event=Shutdown(reason='the bag was played'))])
    return [
        TimerAction(period=float(value('delay')), actions=[player]),
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[end]),
                             condition=IfCondition(LaunchConfiguration('exit_at_end'))),
    ]


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    return LaunchDescription([
        DeclareLaunchArgument(
            'bag', description='Bag whose user/audio, user/image_raw and user/text are played: '
                               'its folder, or an .mcap file.'),
        DeclareLaunchArgument(
            'recorded_namespace', default_value='avatar',
            description='Namespace of the topics in the bag.'),
        DeclareLaunchArgument(
            'rate', default_value='1.0',
            description='Speed of playing; speech is only understood at 1.0.'),
        DeclareLaunchArgument(
            'delay', default_value='10.0',
            description='Seconds that the graph gets to start before the bag is played.'),
        DeclareLaunchArgument(
            'linger', default_value='8.0',
            description='Seconds to go on after the end of the bag.'),
        DeclareLaunchArgument(
            'exit_at_end', default_value='true', choices=['true', 'false'],
            description='End the launch when the bag has been played.'),
        # Declares all its own arguments, which can be given here too (namespace, model, ...).
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(LAUNCH_FOLDER / 'avatar.launch.py'))),
        OpaqueFunction(function=play),
    ])
