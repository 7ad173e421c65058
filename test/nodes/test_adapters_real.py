# SPDX-License-Identifier: Apache-2.0
"""The adapters on real topics, with interface packages built in the tests' own workspace.

``hri_msgs`` and ``audio_common_msgs`` come with ROS 2 from apt and are not on PyPI. Where they are
not installed, packages of the same names with the fields that the adapters use (as REP-155 and the
packages' documentation state them) are built once with colcon and kept in pytest's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')
pytest.importorskip('avatar_bringup', reason='messages are not built: run `make build`')

HEADER = 'std_msgs/Header header\n'
PACKAGES = {
    'hri_msgs': {
        'IdsList': HEADER + 'string[] ids\n',
        'LiveSpeech': HEADER + 'string incremental\nstring final\nfloat64 confidence\n',
        'Expression': HEADER + 'string expression\nfloat32 valence\nfloat32 arousal\n'
                               'float32 confidence\n',
        'EngagementLevel': HEADER + 'uint8 level\n',
        'Gaze': HEADER + 'string sender\nstring receiver\n',
    },
    'audio_common_msgs': {
        'AudioData': 'uint8[] data\n',
        'AudioDataStamped': HEADER + 'audio_common_msgs/AudioData audio\n',
        'AudioInfo': 'uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\n'
                     'string coding_format\n',
    },
}
CMAKE = """cmake_minimum_required(VERSION 3.16)
project({name} LANGUAGES C CXX)
find_package(ament_cmake REQUIRED)
find_package(std_msgs REQUIRED)
find_package(rosidl_default_generators REQUIRED)
get_property(imported_targets DIRECTORY PROPERTY IMPORTED_TARGETS)
foreach(imported_target IN LISTS imported_targets)
  get_target_property(include_dirs ${{imported_target}} INTERFACE_INCLUDE_DIRECTORIES)
  if(include_dirs)
    set(existing_dirs "")
    foreach(include_dir IN LISTS include_dirs)
      if(include_dir MATCHES "^\\\\$<" OR EXISTS "${{include_dir}}")
        list(APPEND existing_dirs "${{include_dir}}")
      endif()
    endforeach()
    set_target_properties(
      ${{imported_target}} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${{existing_dirs}}")
  endif()
endforeach()
rosidl_generate_interfaces({name} {files} DEPENDENCIES std_msgs)
ament_package()
"""
MANIFEST = """<package format="3"><name>{name}</name><version>0.0.0</version>
<description>Interfaces for a test.</description>
<maintainer email="nobody@example.invalid">nobody</maintainer><license>Apache-2.0</license>
<buildtool_depend>ament_cmake</buildtool_depend>
<buildtool_depend>rosidl_default_generators</buildtool_depend>
<depend>std_msgs</depend><exec_depend>rosidl_default_runtime</exec_depend>
<member_of_group>rosidl_interface_packages</member_of_group>
<export><build_type>ament_cmake</build_type></export></package>
"""


@pytest.fixture(scope='module')
def workspace(request: pytest.FixtureRequest) -> Path | None:
    """Install prefix of the interface packages; None where they are installed anyway."""
    if all(importlib.util.find_spec(name) for name in PACKAGES):
        return None
    colcon = Path(sys.executable).with_name('colcon')
    if not colcon.is_file() or not shutil.which('cmake'):
        pytest.skip('colcon or cmake is missing: run `make build`')
    key = hashlib.sha256(json.dumps([PACKAGES, CMAKE, MANIFEST, sys.version]).encode()).hexdigest()
    cache = request.config.cache
    assert cache is not None
    root = Path(cache.mkdir('interfaces')) / key[:16]
    prefix = root / 'install'
    if (root / 'complete').is_file():
        return prefix
    shutil.rmtree(root, ignore_errors=True)
    for name, messages in PACKAGES.items():
        folder = root / 'src' / name
        (folder / 'msg').mkdir(parents=True)
        for message, text in messages.items():
            (folder / 'msg' / f'{message}.msg').write_text(text, encoding='utf-8')
        files = ' '.join(f'msg/{message}.msg' for message in messages)
        (folder / 'CMakeLists.txt').write_text(CMAKE.format(name=name, files=files),
                                               encoding='utf-8')
        (folder / 'package.xml').write_text(MANIFEST.format(name=name), encoding='utf-8')
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('PYTHONPATH', 'CMAKE_MODULE_PATH', 'COLCON_PREFIX_PATH')}
    environment |= {'AMENT_PREFIX_PATH': sys.prefix, 'CMAKE_PREFIX_PATH': sys.prefix,
                    'PATH': f'{colcon.parent}{os.pathsep}{os.environ["PATH"]}'}
    done = subprocess.run(
        [colcon, '--log-base', root / 'log', 'build', '--base-paths', root / 'src',
         '--merge-install', '--install-base', prefix, '--build-base', root / 'build',
         '--cmake-args', '-DBUILD_TESTING=OFF', f'-DPython3_EXECUTABLE={sys.executable}',
         f'-DPYTHON_EXECUTABLE={sys.executable}', '-Wno-dev'],
        cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (root / 'complete').touch()
    return prefix


# Runs in a process of its own: its library path must hold the packages before it starts.
PLAY = """
import json, math, os, sys, time
from array import array
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Bool
from audio_common_msgs.msg import AudioData, AudioDataStamped, AudioInfo
from hri_msgs.msg import EngagementLevel, Expression, Gaze, IdsList, LiveSpeech
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.adapters import AudioCommonAdapter, HriAdapter, find_messages

context = rclpy.Context()
rclpy.init(context=context, domain_id=int(sys.argv[1]))
node, friend = Node('ear', context=context), Node('friend', context=context)
heard, sound, told = [], [], []
humans = HriAdapter(node, find_messages('hri_msgs'), heard.append)
audio = AudioCommonAdapter(node, find_messages('audio_common_msgs'),
                           lambda samples, stamp: sound.append([samples.tolist(), stamp]),
                           told.append)
executor = SingleThreadedExecutor(context=context)
executor.add_node(node)
executor.add_node(friend)
publishers = {}

def until(done, seconds=8.0):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.02)
    assert done(), 'timed out'

def send(message, topic, profile=qos.EVENT):
    key = topic
    if key not in publishers:
        publishers[key] = friend.create_publisher(type(message), topic, profile)
    until(lambda: publishers[key].get_subscription_count() > 0)
    publishers[key].publish(message)

def listeners(topic):
    return node.count_subscribers(topic)

# A voice and a face come.
send(IdsList(ids=['v1']), '/humans/voices/tracked')
until(lambda: listeners('/humans/voices/v1/speech') == 1)
send(Bool(data=True), '/humans/voices/v1/is_speaking')
until(lambda: len(heard) == 1)
send(LiveSpeech(incremental='please'), '/humans/voices/v1/speech')
until(lambda: len(heard) == 2)
send(Bool(data=False), '/humans/voices/v1/is_speaking')
until(lambda: len(heard) == 3)
send(LiveSpeech(final='please nod', confidence=0.75), '/humans/voices/v1/speech')
until(lambda: len(heard) == 4)
send(IdsList(ids=['f1', 'f2']), '/humans/faces/tracked')
until(lambda: len(heard) == 5 and listeners('/humans/faces/f2/expression') == 1)
send(Expression(expression='happy'), '/humans/faces/f1/expression')
until(lambda: len(heard) == 6)
send(IdsList(ids=['p1']), '/humans/persons/tracked')
send(EngagementLevel(level=3), '/humans/persons/p1/engagement_status')
until(lambda: len(heard) == 7)
send(Gaze(sender='p1', receiver=''), '/humans/interactions/gazing')
until(lambda: len(heard) == 8)
# They go, and so do the subscriptions.
send(IdsList(ids=['f2']), '/humans/faces/tracked')
until(lambda: listeners('/humans/faces/f1/expression') == 0)
send(IdsList(ids=[]), '/humans/faces/tracked')
until(lambda: listeners('/humans/faces/f2/expression') == 0)
send(IdsList(ids=[]), '/humans/voices/tracked')
until(lambda: listeners('/humans/voices/v1/speech') == 0)

data = AudioDataStamped(audio=AudioData(data=array('B', b'\\1\\0\\2\\0')))
data.header.stamp.sec = 5
send(data, 'user/audio_stamped')
until(lambda: len(told) == 1)
info = AudioInfo(channels=1, sample_rate=44100, sample_format='S16LE', coding_format='WAVE')
send(info, 'user/audio_info', qos.STATE)
until(lambda: audio._format is not None)
send(data, 'user/audio_stamped')
until(lambda: len(told) == 2)
info.sample_rate = 16000
send(info, 'user/audio_info', qos.STATE)
until(lambda: audio._format.sample_rate_hz == 16000)
send(data, 'user/audio_stamped')
until(lambda: len(sound) == 1)
humans.close()
audio.close()
until(lambda: listeners('/humans/faces/tracked') == 0 and listeners('user/audio_stamped') == 0)
print(json.dumps({'told': told, 'sound': sound, 'heard': [
    [m.source, m.user_id, m.event, m.text, m.people, m.expression, m.looking, m.engagement_level,
     None if math.isnan(m.confidence) else m.confidence] for m in heard]}))
rclpy.try_shutdown(context=context)
"""


@pytest.mark.slow
def test_humans_come_speak_and_go_on_real_topics(workspace: Path | None) -> None:
    from interactive_avatar.graph import prepare_environment

    environment = dict(os.environ)
    if workspace is not None:
        site = next((workspace / 'lib').glob('python*/site-packages'))

        def first(variable: str, folder: Path) -> None:
            environment[variable] = os.pathsep.join(
                filter(None, [str(folder), environment.get(variable, '')]))

        first('PYTHONPATH', site)
        first('LD_LIBRARY_PATH', workspace / 'lib')
        first('AMENT_PREFIX_PATH', workspace)
    prepare_environment(environment)
    done = subprocess.run([sys.executable, '-c', PLAY, str(100 + os.getpid() % 40)],
                          env=environment, capture_output=True, text=True, timeout=90,
                          check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    events = [(row[1], row[2], row[3]) for row in result['heard'][:4]]
    assert events == [('v1', 1, ''), ('v1', 2, 'please'), ('v1', 4, ''), ('v1', 3, 'please nod')]
    assert math.isclose(result['heard'][3][8], 0.75)
    assert all(row[0] == 'hri' for row in result['heard'])
    # source, id, event, text, people, expression, looking, engagement level
    assert result['heard'][7][4:8] == [2, 'smile', True, 3]
    assert [row[4] for row in result['heard'][8:]] == [1, 0]
    assert 'nobody has declared its format' in result['told'][0]
    assert '44100' in result['told'][1]
    assert result['sound'] == [[[1, 2], 5_000_000_000]]
