# SPDX-License-Identifier: Apache-2.0
"""Metrics, judges, bags, reports, the demo and the benchmarks.

Imports every other part except the nodes; rclpy is reached only through processes of its own.
The demo's path needs numpy, Pillow, PyAV and rosbags; judges and plots need the `evaluate` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interactive_avatar.evaluation.bag import BagError, BagWriter, Recording, read_bag
    from interactive_avatar.evaluation.session import Expected, measure

_HOMES = {'BagError': 'bag', 'BagWriter': 'bag', 'Expected': 'session', 'Recording': 'bag',
          'measure': 'session', 'read_bag': 'bag'}
__all__ = ['BagError', 'BagWriter', 'Expected', 'Recording', 'measure', 'read_bag']


def __getattr__(name: str) -> Any:
    # Lazy, so that benchmarks of the generator need neither bags nor video.
    if name in _HOMES:
        import importlib
        return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
