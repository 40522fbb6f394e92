# SPDX-License-Identifier: Apache-2.0
"""Record demonstrations, train and distil diffusion policies, and run them on a robot under ROS 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ros_vdd.api import load as load

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import `ros_vdd.load` when it is asked for, so that `import ros_vdd` alone costs nothing."""
    if name == "load":
        from ros_vdd.api import load

        return load
    raise AttributeError(f"module 'ros_vdd' has no attribute '{name}'")
