# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd doctor`: what works on this machine, what doesn't, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError, RosVddError
from ros_vdd.offline.finding import Finding
from ros_vdd.offline.live_check import examine_live
from ros_vdd.resources import FAST_DDS_VARIABLES, fast_dds_profile, share_dir
from ros_vdd.streams.spec import load_robot

HELP = "say what works on this machine, and what to do about the rest"

RUN_TIME = {"numpy": "numpy", "yaml": "pyyaml", "cv2": "opencv-python-headless", "onnxruntime": "onnxruntime", "tqdm": "tqdm"}
EXTRAS = {
    "data": {"mcap": "mcap", "rosbags": "rosbags", "zarr": "zarr"},
    "train": {"torch": "torch", "onnx": "onnx", "onnxscript": "onnxscript", "safetensors": "safetensors"},
    "tensorrt": {"tensorrt": "tensorrt"},
}
ROS = ("rclpy", "sensor_msgs", "trajectory_msgs", "std_msgs", "std_srvs", "diagnostic_msgs", "rosgraph_msgs")
SHM_NEEDED = 3 * (64 << 20)  # config/fastdds.xml takes 64 MiB for each process: camera, policy, executor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--robot", metavar="FILE", help="also check this robot file, or shipped name such as pusht")
    parser.add_argument("--live", action="store_true", help="hold the robot file against the topics; move images")
    parser.add_argument("--seconds", type=float, default=5.0, help="with --live: how long to listen (default 5)")
    parser.add_argument("--namespace", default="", metavar="NS", help="with --live: the namespace that the nodes will run in")
    parser.add_argument("--use-sim-time", action="store_true", help="with --live: the nodes will run on /clock")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list of {check, level, detail, remedy}")


def run(args: argparse.Namespace) -> int:
    """Print all findings; the exit status is 1 when one of them is an error."""
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise ConfigError(f"--seconds is {args.seconds}; expected a number above 0")
    live = examine_live(args.robot, args.seconds, args.namespace, args.use_sim_time) if args.live else ()
    findings = list(itertools.chain(examine(args.robot), live))
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print("\n".join(map(_line, findings)))
    return int(any(finding.level == "error" for finding in findings))


def examine(robot: str | None = None) -> Iterator[Finding]:
    """Yield the findings of every check, imports of nothing heavy included: packages are looked up, not loaded."""
    yield check_python(sys.version_info[:3])
    yield from (check_package(m, d, "error", "pip install ros_vdd") for m, d in RUN_TIME.items())
    yield check_opencv()
    for extra, packages in EXTRAS.items():
        yield from (check_package(m, d, "warn", f"pip install 'ros_vdd[{extra}]'") for m, d in packages.items())
    yield check_ros()
    yield check_profile(os.environ)
    yield check_shared_memory(Path("/dev/shm"))
    yield check_package("gym_pusht", "gym-pusht", "warn", "pip install 'ros_vdd[sim]' && pip install --no-deps gym-pusht")
    yield check_gpu()
    yield from check_policies(share_dir() / "models")
    if robot is not None:
        yield check_robot(robot)


def check_python(version: tuple[int, int, int]) -> Finding:
    """Check the interpreter's version."""
    text = ".".join(map(str, version))
    if version < (3, 10):
        return Finding("python", "error", f"{text}; needed: 3.10 or newer", "make PYTHON=python3.11 setup")
    return Finding("python", "ok", f"{text} at {sys.executable}")


def check_package(module: str, distribution: str, level: Literal["warn", "error"], remedy: str) -> Finding:
    """Look a package up without importing it; a missing one has the level given."""
    if importlib.util.find_spec(module) is None:
        return Finding(distribution, level, "not installed", remedy)
    try:
        return Finding(distribution, "ok", metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return Finding(distribution, "ok", "installed, not by pip")


def check_opencv() -> Finding:
    """Check that only one package owns the folder cv2."""
    names = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    present = [name for name in names if _installed(name)]
    if len(present) > 1:
        remedy = f"pip uninstall -y {' '.join(present)} && pip install 'opencv-python-headless<5'"
        return Finding("cv2", "warn", f"{' and '.join(present)} overwrite each other's files", remedy)
    return Finding("cv2", "ok", "one owner")


def check_ros() -> Finding:
    """Check that rclpy and the message packages can be found."""
    missing = [name for name in ROS if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "source /opt/ros/DISTRO/setup.bash, or on Linux x86-64: pip install 'ros_vdd[ros]'"
        return Finding("ros", "warn", f"not importable: {', '.join(missing)}; needed on a robot and for the demo", remedy)
    origin = os.environ.get("ROS_DISTRO") or "wheels"
    return Finding("ros", "ok", f"rclpy and messages ({origin}), domain {os.environ.get('ROS_DOMAIN_ID', '0')}")


def check_profile(environment: os._Environ | dict[str, str]) -> Finding:
    """Check that Fast DDS will find a profile with room for camera images."""
    given = [environment[name] for name in FAST_DDS_VARIABLES if environment.get(name)]
    ((name, profile),) = fast_dds_profile({"ROS_DISTRO": environment.get("ROS_DISTRO", "")}).items()
    remedy = f"in this shell and the camera driver's: export {name}={profile}"
    if not given:
        return Finding("fastdds", "warn", "no profile is set: raw images above 512 KiB get lost (launch files set it)", remedy)
    if not Path(given[0]).is_file():
        return Finding("fastdds", "error", f"the profile '{given[0]}' doesn't exist", remedy)
    return Finding("fastdds", "ok", given[0])


def check_shared_memory(folder: Path) -> Finding:
    """Check that shared memory has room for the segments of our nodes."""
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if free < SHM_NEEDED:
        text = f"{free >> 20} MiB free in {folder}; three processes take {SHM_NEEDED >> 20}"
        return Finding("shared memory", "warn", text, "docker run --shm-size 512m")
    return Finding("shared memory", "ok", f"{free >> 20} MiB free in {folder}")


def check_gpu() -> Finding:
    """Ask the NVIDIA driver which GPU there is; none is no fault."""
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", "ok", "none; policies run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return Finding("gpu", "warn", "nvidia-smi gave no answer in 20 s", "check the driver")
    if asked.returncode:
        return Finding("gpu", "warn", asked.stdout.strip() or asked.stderr.strip(), "check the driver")
    return Finding("gpu", "ok", "; ".join(asked.stdout.split("\n")).strip("; "))


def check_policies(folder: Path) -> Iterator[Finding]:
    """Verify the checksums of every shipped policy."""
    for path in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else ():
        try:
            bundle = Bundle.open(path)
            yield Finding(f"policy {path.name}", "ok", f"{bundle.kind}, {len(list(path.iterdir()))} files verified")
        except RosVddError as error:
            yield Finding(f"policy {path.name}", "error", str(error), "install the package again")


def check_robot(name: str) -> Finding:
    """Read a robot file as a node would."""
    try:
        robot = load_robot(name)
    except RosVddError as error:
        return Finding("robot", "error", str(error), "correct the file; config/robots/example_arm.yaml explains every key")
    cameras = ", ".join(robot.cameras) or "none"
    detail = (
        f"{robot.name}: cameras {cameras}; {robot.state_size} state values; {robot.action_size} joints at {robot.rate_hz:g} Hz"
    )
    if robot.goal:
        told = f"{len(robot.goal.tasks)} tasks" if robot.goal.tasks else f"{robot.goal.size} numbers"
        detail += f"; goal of {told} on '{robot.goal.topic}'"
    return Finding("robot", "ok", detail)


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _line(finding: Finding) -> str:
    remedy = f"\n{'':31}-> {finding.remedy}" if finding.remedy else ""
    return f"{finding.level:<5}  {finding.check:<22}  {finding.detail}{remedy}"
