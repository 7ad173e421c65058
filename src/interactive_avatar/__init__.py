# SPDX-License-Identifier: Apache-2.0
"""Interactive avatar for ROS 2: listens, understands, speaks and acts, as streamed video."""

__version__ = '0.1.0'
