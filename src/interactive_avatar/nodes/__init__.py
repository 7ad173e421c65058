# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes: thin rclpy adapters over the ROS-free parts, one file per node.

The only folder that imports rclpy. A node is started as a module, for example
``python -m interactive_avatar.nodes.generator --ros-args --params-file config/avatar.yaml``.
"""
