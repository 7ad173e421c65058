# SPDX-License-Identifier: Apache-2.0
"""Metrics, judges, bags, reports, the demo and the benchmarks.

Imports every other part except the nodes; rclpy is reached only through processes of its own.
The demo's path needs numpy, Pillow, PyAV and rosbags; judges and plots need the `evaluate` extra.
"""

from interactive_avatar.evaluation.bag import BagError, BagWriter, Recording, read_bag
from interactive_avatar.evaluation.session import Expected, measure

__all__ = ['BagError', 'BagWriter', 'Expected', 'Recording', 'measure', 'read_bag']
