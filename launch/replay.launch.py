# SPDX-License-Identifier: Apache-2.0
"""Plays a recorded user at the avatar again, records the answer and measures it.

    ros2 launch avatar_bringup replay.launch.py bag:=/data/session
    ros2 launch avatar_bringup replay.launch.py bag:=/data/session model:=/data/my_model rate:=0.5

The player publishes /clock from the bag's own time, and every topic below user/ with its recorded
timing; the avatar's nodes run with use_sim_time. Bags of any storage and compression are read,
whether rosbag2 is installed or not.
"""

from pathlib import Path

from launch import LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

LAUNCH_FOLDER = Path(__file__).resolve().parent


def play(context) -> list[LaunchDescriptionEntity]:
    """Start the player, and end the launch with it if that is wanted."""
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    bag = Path(value('bag')).expanduser()
    if not bag.exists():
        raise RuntimeError(f'bag:={bag} does not exist: give the folder or the .mcap file of a '
                           f'recorded session (`avatar record` makes one)')
    out = Path(value('out')).expanduser() if value('out') else Path('out/replay') / bag.stem
    if (out / 'bag').exists():
        raise RuntimeError(f'{out / "bag"} exists already: name another folder with out:=')
    arguments = [str(bag), '--out', str(out / 'bag'), '--rate', value('rate'),
                 '--namespace', value('namespace'), '--ready-timeout', value('ready_timeout')]
    if value('recorded_namespace'):
        arguments += ['--recorded-namespace', value('recorded_namespace')]
    if value('evaluate') == 'true':
        arguments += ['--evaluate', str(out)]
    out.mkdir(parents=True, exist_ok=True)
    # The player is the clock, so it alone does not live on it.
    player = Node(package='avatar_bringup', executable='replay_client', name='replay',
                  arguments=arguments, prefix=value('python') or None, output='screen')
    end = EmitEvent(event=Shutdown(reason='the bag was played'))
    return [player, RegisterEventHandler(
        OnProcessExit(target_action=player, on_exit=[end]),
        condition=IfCondition(LaunchConfiguration('exit_at_end')))]


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    return LaunchDescription([
        DeclareLaunchArgument(
            'bag', description='Bag whose topics below user/ are played: its folder, or an '
                               '.mcap or .db3 file.'),
        DeclareLaunchArgument(
            'out', default_value='',
            description='Folder for the new bag and its report; empty for out/replay/NAME.'),
        DeclareLaunchArgument(
            'recorded_namespace', default_value='',
            description='Namespace of the avatar in the bag; empty to find it.'),
        DeclareLaunchArgument(
            'rate', default_value='1.0',
            description='Seconds of the bag per second; below 1 for slow machines.'),
        DeclareLaunchArgument(
            'ready_timeout', default_value='180.0',
            description='Seconds that the graph gets to come alive before it is given up.'),
        DeclareLaunchArgument(
            'evaluate', default_value='true', choices=['true', 'false'],
            description='Measure the new bag against the old one at the end.'),
        DeclareLaunchArgument(
            'exit_at_end', default_value='true', choices=['true', 'false'],
            description='End the launch when the bag has been played.'),
        # Declares all its own arguments, which can be given here too (namespace, model, ...).
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(LAUNCH_FOLDER / 'avatar.launch.py')),
            launch_arguments={'use_sim_time': 'true', 'web': 'false',
                              'respawn': 'false'}.items()),
        OpaqueFunction(function=play),
    ])
