# SPDX-License-Identifier: Apache-2.0
"""Backends: run a model's graphs. Importing this package imports neither torch nor a runtime."""

from __future__ import annotations

from typing import Any

from interactive_avatar.generator.backends.base import Backend, Cache
from interactive_avatar.generator.model import ModelError, ModelFiles

BACKEND_NAMES = ('onnx', 'torch')

__all__ = ['BACKEND_NAMES', 'Backend', 'Cache', 'open_backend']


def open_backend(name: str, files: ModelFiles, **options: Any) -> Backend:
    """Open a backend by name.

    Raises:
        ModelError: if the backend is unknown or what it needs is not installed.
    """
    try:
        if name == 'onnx':
            from interactive_avatar.generator.backends.onnx import OnnxBackend
            return OnnxBackend(files, **options)
        if name == 'torch':
            from interactive_avatar.generator.backends.torch import TorchBackend
            return TorchBackend(files, **options)
    except ImportError as error:
        raise ModelError(f'backend {name!r} cannot be loaded: {error}; install what it needs '
                         f"('avatar doctor' names it) or choose another") from error
    raise ModelError(f'backend {name!r} does not exist here; use one of '
                     f'{", ".join(BACKEND_NAMES)}')
