# SPDX-License-Identifier: Apache-2.0
"""The live part of `ros-vdd doctor`: starts the processes that listen to the graph and move images, and reads what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ros_vdd.errors import RosVddError
from ros_vdd.offline.finding import Finding
from ros_vdd.offline.live_graph import judge
from ros_vdd.resources import FAST_DDS_VARIABLES, fast_dds_profile
from ros_vdd.streams.image_codec import CHANNELS
from ros_vdd.streams.spec import RobotSpec, load_robot

PATIENCE_S = 90.0  # beside what is asked for: a busy machine takes long to start a process
IMAGES, VGA_BYTES = 30, 640 * 480 * 3
DOMAINS = range(1, 102)  # those whose ports lie below the ephemeral ones of Linux
GET_ROS = "source /opt/ros/DISTRO/setup.bash, or on Linux x86-64: pip install 'ros_vdd[ros]'"


def examine_live(robot: str | None, seconds: float, namespace: str, use_sim_time: bool) -> Iterator[Finding]:
    """Yield the findings on the topics of a robot file, if one is given, and on the transport of its images."""
    if importlib.util.find_spec("rclpy") is None:
        yield Finding("live", "error", "the module 'rclpy' is missing", GET_ROS)
        return
    spec = None
    if robot is not None:
        try:
            spec = load_robot(robot)
        except RosVddError:
            return  # told by the check of the file
        words = [robot, "--seconds", str(seconds), f"--namespace={namespace}", *(["--use-sim-time"] if use_sim_time else [])]
        facts = _facts(_start("graph_probe", words, os.environ), seconds)
        yield from [facts] if isinstance(facts, Finding) else judge(spec, facts, seconds)
    yield check_image_transport(largest_image(spec), os.environ)


def largest_image(robot: RobotSpec | None) -> int:
    """Return the bytes of the largest raw image of a robot; of 640x480 rgb8 where there is no robot; 0 without raw images."""
    if robot is None:
        return VGA_BYTES
    raw = [camera for camera in robot.cameras.values() if camera.type == "sensor_msgs/msg/Image"]
    return max((camera.width * camera.height * CHANNELS[camera.encoding] for camera in raw), default=0)


def check_image_transport(size: int, environment: Mapping[str, str]) -> Finding:
    """Send images of `size` bytes from a process to another as cameras do, in a domain of their own; count those that arrive."""
    if not size:
        return Finding("image transport", "ok", "no raw images to move")
    taken = environment.get("ROS_DOMAIN_ID", "0")
    domain = random.SystemRandom().choice([d for d in DOMAINS if str(d) != taken])
    alone = {**environment, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    words = ["--size", str(size), "--count", str(IMAGES)]
    receiver, sender = (_start("image_loopback", [side, *words], alone) for side in ("receive", "send"))
    received, sent = (_facts(child, IMAGES) for child in (receiver, sender))
    for answer in (received, sent):
        if isinstance(answer, Finding):
            return answer._replace(check="image transport")
    return judge_transport(size, sent["images"], received["images"], received["rmw"], environment)


def judge_transport(size: int, sent: int, received: int, rmw: str, environment: Mapping[str, str]) -> Finding:
    """Say whether images get through, and what to do where they don't."""
    what = f"images of {size} bytes, best effort, between two processes"
    if not sent:
        remedy = "do nodes find each other on this machine? ros2 multicast receive/send; /dev/shm and loopback in containers"
        return Finding("image transport", "error", f"{what}: the two processes didn't find each other", remedy)
    told = f"{what}: {received} of {sent} arrived"
    if received == sent:
        return Finding("image transport", "ok", told)
    if received > sent // 2:
        return Finding("image transport", "warn", told, "the machine is busy; check again when it isn't")
    if "fastrtps" not in rmw:
        remedy = f"enlarge the receive buffers of {rmw} (net.core.rmem_max), or send compressed or smaller images"
        return Finding("image transport", "error", told, remedy)
    given = [environment[name] for name in FAST_DDS_VARIABLES if environment.get(name)]
    if given:
        remedy = f"give segment_size in '{given[0]}' room for several images, and /dev/shm too (docker run --shm-size 512m)"
        return Finding("image transport", "error", f"{told}: the shared-memory segment is too small", remedy)
    ((name, profile),) = fast_dds_profile({"ROS_DISTRO": environment.get("ROS_DISTRO", "")}).items()
    remedy = f"in this shell and the camera driver's: export {name}={profile}"
    return Finding("image transport", "error", f"{told}: Fast DDS's shared-memory segment has 512 KiB", remedy)


def _start(module: str, words: list[str], environment: Mapping[str, str]) -> subprocess.Popen:
    code = f"import sys; from ros_vdd.nodes.{module} import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(environment)
    )


def _facts(child: subprocess.Popen, seconds: float) -> dict[str, Any] | Finding:
    """Return what a process said in its last line, or how it failed."""
    try:
        out, err = child.communicate(timeout=seconds + PATIENCE_S)
    except subprocess.TimeoutExpired:
        return Finding("live", "error", f"no answer within {seconds + PATIENCE_S:g} s", "is the machine overloaded?")
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    if child.returncode:
        last = (err.strip().splitlines() or ["it said nothing"])[-1]
        told = f"the process that listens ended with status {child.returncode}: {last}"
        return Finding("live", "error", told, "does ros2 topic list work?")
    return json.loads(out.splitlines()[-1])
