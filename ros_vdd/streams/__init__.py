# SPDX-License-Identifier: Apache-2.0
"""Topics to arrays and back, without ROS and without torch: what a robot sends, and what it accepts."""
