# SPDX-License-Identifier: Apache-2.0
"""What happens at control time, without ROS and without torch; every clock is handed in."""
