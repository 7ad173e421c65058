# SPDX-License-Identifier: Apache-2.0
"""Starts the avatar: the nodes perception, face, reasoning, generator and web.

    ros2 launch avatar_bringup avatar.launch.py
    ros2 launch avatar_bringup avatar.launch.py namespace:=face web:=false model:=/data/my_model
    ros2 launch avatar_bringup avatar.launch.py mode:=telepresence
"""

import os
import sys
from pathlib import Path

from launch import LaunchDescription, LaunchDescriptionEntity, SomeSubstitutionsType
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(__file__).resolve().parents[1]
NODES = ('perception', 'face', 'reasoning', 'generator', 'web')
RESPAWN_DELAY_S = 2.0
# Nodes that have the parameter `mode`.
MODAL = ('perception', 'reasoning', 'generator', 'web')
# Launch argument -> (node, parameter); an empty argument leaves the parameter file's value.
SHORTCUTS = {
    'model': ('generator', 'model'),
    'backend': ('generator', 'backend'),
    'reference': ('generator', 'reference'),
    'port': ('web', 'port'),
}


def arguments() -> list[LaunchDescriptionEntity]:
    """Every argument, with its description (`ros2 launch -s` shows them)."""
    declared = [
        DeclareLaunchArgument(
            'namespace', default_value='avatar',
            description='Namespace of all nodes and topics.'),
        DeclareLaunchArgument(
            'params_file', default_value=str(SHARE / 'config' / 'avatar.yaml'),
            description='YAML file with the parameters of all nodes.'),
        DeclareLaunchArgument(
            'fastdds_profile', default_value=str(SHARE / 'config' / 'fastdds.xml'),
            description='Fast DDS profile; one that is set in the environment goes first.'),
        DeclareLaunchArgument(
            'python', default_value=os.environ.get('AVATAR_PYTHON', ''),
            description="Python interpreter that has the avatar's dependencies (a virtual "
                        'environment made with --system-site-packages); empty for the one that '
                        'the node scripts find by themselves.'),
        DeclareLaunchArgument(
            'log_level', default_value='info',
            choices=['debug', 'info', 'warn', 'error', 'fatal'],
            description='Lowest level of log messages that is shown.'),
        DeclareLaunchArgument(
            'respawn', default_value='true', choices=['true', 'false'],
            description='Start a node again when its process ends.'),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', choices=['true', 'false'],
            description="Take stamps from /clock instead of the system's clock."),
        DeclareLaunchArgument(
            'mode', default_value='', choices=['', 'companion', 'telepresence'],
            description='Converse (companion) or let an operator speak through the avatar '
                        "(telepresence); empty for the parameter file's."),
        DeclareLaunchArgument(
            'model', default_value='',
            description="Folder of the generator's model; empty for the parameter file's."),
        DeclareLaunchArgument(
            'backend', default_value='', choices=['', 'auto', 'onnx', 'tensorrt', 'torch'],
            description="What runs the model; empty for the parameter file's."),
        DeclareLaunchArgument(
            'reference', default_value='',
            description='Identity of the model or path of a picture of a face; empty for the '
                        "parameter file's."),
        DeclareLaunchArgument(
            'port', default_value='',
            description="TCP port of the page; empty for the parameter file's."),
    ]
    declared += [
        DeclareLaunchArgument(
            name, default_value='true', choices=['true', 'false'],
            description=f'Start the node {name}.')
        for name in NODES]
    return declared


def start_nodes(context) -> list[LaunchDescriptionEntity]:
    """Make the node actions once the arguments have their values."""
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    actions: list[LaunchDescriptionEntity] = []
    python = value('python')
    if python and not os.access(python, os.X_OK):
        raise RuntimeError(
            f'python:={python} is not an interpreter: give the path of bin/python of the '
            f'virtual environment, for example python:=$HOME/avatar/.venv/bin/python')
    for name in NODES:
        own: dict[str, object] = {'use_sim_time': value('use_sim_time') == 'true'}
        if name in MODAL and value('mode'):
            own['mode'] = value('mode')
        for argument, (node, parameter) in SHORTCUTS.items():
            if node == name and value(argument):
                own[parameter] = int(value(argument)) if parameter == 'port' else value(argument)
        actions.append(Node(
            package='avatar_bringup',
            executable=f'{name}_node',
            name=name,
            namespace=LaunchConfiguration('namespace'),
            prefix=python or None,
            parameters=[LaunchConfiguration('params_file'), own],
            ros_arguments=['--log-level', LaunchConfiguration('log_level')],
            output='both',
            emulate_tty=sys.stdout.isatty(),
            respawn=value('respawn') == 'true',
            respawn_delay=RESPAWN_DELAY_S,
            condition=IfCondition(LaunchConfiguration(name)),
        ))
    return actions


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    def unless_set(variable: str, value: SomeSubstitutionsType) -> SetEnvironmentVariable:
        return SetEnvironmentVariable(variable, EnvironmentVariable(variable, default_value=value))

    return LaunchDescription([
        *arguments(),
        unless_set('FASTRTPS_DEFAULT_PROFILES_FILE', LaunchConfiguration('fastdds_profile')),
        unless_set('FASTDDS_DEFAULT_PROFILES_FILE', LaunchConfiguration('fastdds_profile')),
        # Threads that spin while they wait would take the core from the other nodes.
        unless_set('OMP_WAIT_POLICY', 'PASSIVE'),
        unless_set('OPENBLAS_NUM_THREADS', '1'),
        OpaqueFunction(function=start_nodes),
    ])
