# SPDX-License-Identifier: Apache-2.0
"""Whether the middleware has room for the cameras' images; without it they vanish and nothing says why."""

from __future__ import annotations

from collections.abc import Mapping

from ros_vdd.resources import FAST_DDS_VARIABLES
from ros_vdd.streams.image_codec import CHANNELS
from ros_vdd.streams.spec import RobotSpec

DEFAULT_SEGMENT_BYTES = 512 << 10  # shared-memory segment of Fast DDS without a profile, 2.x and 3.x


def image_problem(robot: RobotSpec, rmw: str, environment: Mapping[str, str]) -> str | None:
    """Return a warning if raw images are larger than what Fast DDS takes by default, and no profile is set.

    Args:
        robot: its cameras
        rmw: identifier of the middleware in use, such as "rmw_fastrtps_cpp"
        environment: variables of this process
    """
    if "fastrtps" not in rmw or any(environment.get(name) for name in FAST_DDS_VARIABLES):
        return None
    raw = [(name, c) for name, c in robot.cameras.items() if c.type == "sensor_msgs/msg/Image"]
    sizes = {name: c.width * c.height * CHANNELS[c.encoding] for name, c in raw}
    large = [name for name, size in sizes.items() if size > DEFAULT_SEGMENT_BYTES]
    if not large:
        return None
    return (
        f"raw images of {', '.join(large)} have up to {max(sizes.values())} bytes, and Fast DDS without a profile "
        f"loses what is larger than {DEFAULT_SEGMENT_BYTES}: set {FAST_DDS_VARIABLES[0]} ({FAST_DDS_VARIABLES[1]} "
        "up to Jazzy) to config/fastdds.xml of ros_vdd, here and for the camera driver; the launch files do it for "
        "their nodes"
    )
