# SPDX-License-Identifier: Apache-2.0
"""Record demonstrations, train and distil diffusion policies, and run them on a robot under ROS 2."""

__version__ = "0.1.0"
