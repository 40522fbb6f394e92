# SPDX-License-Identifier: Apache-2.0
"""How fast bags of raw images become an episode store, and in how much memory.

    python benchmarks/conversion.py [--seconds 60] [--cameras 1] [--size 96] [--jobs 1] [--folder /tmp]

Writes a bag of 640x480 rgb8 images at 30 Hz and joint states at 100 Hz (28 MB/s a camera), converts it at 10 Hz with pictures of
SIZE x SIZE in a process of its own, and deletes both. Told are frames of the bag a second, the most memory that the process had
to itself (anonymous, which no page cache explains) and in all, and the load of the machine, without which no figure means much.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from ros_vdd.config import dump_yaml
from ros_vdd.data import cdr_message
from ros_vdd.data.bag_writer import BagWriter
from ros_vdd.streams.spec import RobotSpec, robot_from_mapping

JOINTS = [f"joint_{i}" for i in range(6)]
START = 1_795_178_486_000_000_000
WIDTH, HEIGHT = 640, 480


def robot(cameras: int, size: int) -> RobotSpec:
    """Return a robot of six joints whose pictures are resized to (size, size); 0 leaves them as they come."""
    resize = {"resize": [size, size]} if size else {}
    camera = {"width": WIDTH, "height": HEIGHT, "max_age_s": 0.2, **resize}
    action = {
        "topic": "command",
        "joints": JOINTS,
        "unit": "rad",
        "lower": [-4.0] * 6,
        "upper": [4.0] * 6,
        "command_rate_hz": 100.0,
    }
    action |= {"source": {"topic": "joint_states"}}
    return robot_from_mapping(
        {"name": "bench", "rate_hz": 10.0, "action": action, "safe_action": {"kind": "hold", "stale_chunk_s": 1.0}}
        | {"cameras": {f"c{i}": {**camera, "topic": f"camera_{i}"} for i in range(cameras)}}
        | {"states": {"arm": {"topic": "joint_states", "joints": JOINTS, "unit": "rad", "max_age_s": 0.1}}}
    )


def write_bag(folder: Path, cameras: int, seconds: float) -> int:
    """Write the bag and return how many images it holds; noise, so that nothing is gained from its content."""
    topics = {f"/camera_{i}": cdr_message.IMAGE for i in range(cameras)} | {"/joint_states": cdr_message.JOINT_STATE}
    writer = BagWriter(folder, topics, {}, time.monotonic_ns)
    noise = np.random.default_rng(0).integers(0, 256, (8, HEIGHT, WIDTH, 3)).astype(np.uint8)
    events = [(k / 30 + 0.003, f"/camera_{i}", k) for k in range(round(seconds * 30)) for i in range(cameras)]
    events += [(k / 100, "/joint_states", k) for k in range(round(seconds * 100))]
    for at, topic, k in sorted(events):
        stamp = START + round(at * 1e9)
        image = topic != "/joint_states"
        message = (
            cdr_message.image(stamp, noise[k % 8])
            if image
            else cdr_message.joint_state(stamp, JOINTS, position=np.sin([k / 100] * 6))
        )
        writer.write(topic, stamp, message)
    writer.close()
    return round(seconds * 30) * cameras


def watch(process: subprocess.Popen, peaks: dict[str, int]) -> None:
    """Keep the largest RssAnon and VmHWM [kB] of a process, of its children in all where it has some."""
    while process.poll() is None:
        anonymous = whole = 0
        for pid in [process.pid, *children(process.pid)]:
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmHWM"))}
            anonymous, whole = anonymous + found.get("RssAnon", 0), whole + found.get("VmHWM", 0)
        peaks["anonymous"], peaks["whole"] = max(peaks.get("anonymous", 0), anonymous), max(peaks.get("whole", 0), whole)
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(p) for p in path.read_text().split()]
        except OSError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in the store, 0: as they come")
    parser.add_argument("--jobs", type=int, default=1, help="as many bags, converted at once")
    parser.add_argument("--folder", help="where bag and store are written (default: TMPDIR)")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ros_vdd_conversion_", dir=args.folder))
    try:
        print(json.dumps(measure(root, args)))
    finally:
        shutil.rmtree(root)


def measure(root: Path, args: argparse.Namespace) -> dict:
    """Write, convert, and return the figures."""
    (root / "robot.yaml").write_text(dump_yaml(robot(args.cameras, args.size)))
    bags = [root / f"bag_{k}" for k in range(args.jobs)]
    images = sum(write_bag(bag, args.cameras, args.seconds + k * 0.1) for k, bag in enumerate(bags))
    held = sum(p.stat().st_size for bag in bags for p in bag.iterdir())
    load, peaks, began, spent = os.getloadavg()[0], {}, time.monotonic(), os.times()
    command = [
        sys.executable,
        "-m",
        "ros_vdd",
        "convert",
        *map(str, bags),
        "--robot",
        str(root / "robot.yaml"),
        "--out",
        str(root / "store"),
    ]
    process = subprocess.Popen([*command, "--no-progress", "--jobs", str(args.jobs)], stdout=subprocess.PIPE, text=True)
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    said = process.communicate()[0].strip()
    wall, now = time.monotonic() - began, os.times()
    watcher.join()
    cpu = now.children_user + now.children_system - spent.children_user - spent.children_system
    return {
        "bag_mb": round(held / 1e6),
        "images": images,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "images_per_s": round(images / wall),
        "images_per_cpu_s": round(images / cpu),
        "anonymous_mb": round(peaks["anonymous"] / 1e3),
        "whole_mb": round(peaks["whole"] / 1e3),
        "load_before": round(load, 2),
        "status": process.returncode,
        "said": said.splitlines()[-1],
    }


if __name__ == "__main__":
    main()
