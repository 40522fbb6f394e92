# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes, thin: the only place where rclpy and message classes are imported."""

from importlib.util import find_spec

if find_spec("rclpy") is None:
    raise ModuleNotFoundError(
        "the module 'rclpy' is missing, and nodes need it: source a ROS 2 installation, or pip install 'ros_vdd[ros]'", name="rclpy"
    )
