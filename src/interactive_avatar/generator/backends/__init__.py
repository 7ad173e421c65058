# SPDX-License-Identifier: Apache-2.0
"""Backends: run a model's graphs. Importing this package imports neither torch nor a runtime."""

from __future__ import annotations

import importlib.util
from typing import Any

from interactive_avatar.generator.backends.base import (
    Backend,
    BackendLostError,
    BackendMemoryError,
    Cache,
)
from interactive_avatar.generator.model import ModelError, ModelFiles

BACKEND_NAMES = ('onnx', 'tensorrt', 'torch')
AUTO = 'auto'

__all__ = ['AUTO', 'BACKEND_NAMES', 'Backend', 'BackendLostError', 'BackendMemoryError', 'Cache',
           'choose_backend', 'open_backend']


def choose_backend() -> tuple[str, str]:
    """The fastest backend that can run here, and why: tensorrt if TensorRT, PyCUDA and a card
    are there, else torch if it sees a CUDA card, else onnx.

    Returns:
        (name, reason); the reason says what the faster ones lack.
    """
    trouble = _tensorrt_trouble()
    if not trouble:
        return 'tensorrt', 'TensorRT and a card are there'
    reasons = [f'tensorrt: {trouble}']
    trouble = _torch_trouble()
    if not trouble:
        return 'torch', f'a CUDA card is there; {reasons[0]}'
    reasons.append(f'torch: {trouble}')
    return 'onnx', '; '.join(reasons)


def _tensorrt_trouble() -> str:
    """What keeps the tensorrt backend from running; empty if nothing does."""
    from interactive_avatar.generator.backends import device, engines

    try:
        capability = device.compute_capability()
        api = engines.load_api()
    except (device.DeviceError, ModelError) as error:
        return str(error)
    if api.name == 'tensorrt_rtx' and capability in engines.UNSUPPORTED_BY_RTX:
        return f'TensorRT-RTX does not run on compute capability {capability}'
    return ''


def _torch_trouble() -> str:
    """What keeps torch from a CUDA card; empty if nothing does."""
    if importlib.util.find_spec('torch') is None:
        return 'not installed'
    from interactive_avatar.generator.backends.device import card_files

    # Looked for first, because importing torch to hear that there is no card takes seconds.
    if not card_files():
        return 'there is no CUDA card'
    import torch
    return '' if torch.cuda.is_available() else 'it sees no CUDA card'


def open_backend(name: str, files: ModelFiles, **options: Any) -> Backend:
    """Open a backend by name.

    Raises:
        ModelError: if the backend is unknown or what it needs is not installed.
        BackendMemoryError: if its card has no room.
    """
    try:
        if name == 'onnx':
            from interactive_avatar.generator.backends.onnx import OnnxBackend
            return OnnxBackend(files, **options)
        if name == 'torch':
            from interactive_avatar.generator.backends.torch import TorchBackend
            return TorchBackend(files, **options)
        if name == 'tensorrt':
            from interactive_avatar.generator.backends.tensorrt import TensorRTBackend
            return TensorRTBackend(files, **options)
    except ImportError as error:
        raise ModelError(f'backend {name!r} cannot be loaded: {error}; install what it needs '
                         f"('avatar doctor' names it) or choose another") from error
    raise ModelError(f'backend {name!r} does not exist here; use one of '
                     f'{", ".join(BACKEND_NAMES)}')
