# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes, thin: the only place where rclpy and message classes are imported."""
