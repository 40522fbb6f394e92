# SPDX-License-Identifier: Apache-2.0
"""The executor measured: `python benchmarks/executor.py seams|injection|timing|stack --out runs/benchmark_executor`.

seams: 1,000 random plans that follow each other on a seven-joint arm: the largest step in velocity between two commands, as a share of
what the acceleration limit allows in one period, blended within limits, and by plain replacement.
injection: a million poisoned chunks (NaN, infinite, out of limits, wrong lengths, jumps): what reached the command.
timing: the command thread at 100 and 500 Hz while a busy process competes: lateness and missed slots; `--seconds 600` for ten minutes.
stack: the same of a real chunk_executor_node, with simulator, policy and recorder beside it, each a process: PushT from its camera. Its
diagnostics tell the lateness of the newest 10,000 slots; the largest of each percentile that was told is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]

from comparison import hardware  # noqa: E402

from ros_vdd.config import dump_yaml  # noqa: E402
from ros_vdd.offline.processes import Processes, ros_environment  # noqa: E402
from ros_vdd.runtime.chunking import ActionChunk  # noqa: E402
from ros_vdd.runtime.command import Commander  # noqa: E402
from ros_vdd.runtime.pacing import Pacer  # noqa: E402
from ros_vdd.runtime.splicing import SpliceConfig  # noqa: E402
from ros_vdd.streams.spec import RobotSpec, load_robot  # noqa: E402

BUSY = "while True: pass"
DOMAIN = 78


def plan(robot: RobotSpec, rng: np.random.Generator, stamp_ns: int, start: np.ndarray) -> ActionChunk:
    """Return a random walk of 16 actions from somewhere near a position `(A,)`."""
    action = robot.action
    span = np.subtract(action.upper, action.lower)
    walk = start + 0.02 * span * rng.standard_normal((16, len(start))).cumsum(axis=0)
    return ActionChunk(stamp_ns, robot.dt_ns, action.joints, np.clip(walk, action.lower, action.upper))


def seams(args: argparse.Namespace) -> dict:
    """Return the largest velocity steps over random splices."""
    robot = load_robot("example_arm")
    bare = dataclasses.replace(robot, action=dataclasses.replace(robot.action, max_acceleration=None, max_jerk=None, max_velocity=None))
    return {name: _steps(which, SpliceConfig(method)) for name, which, method in (("blend", robot, "blend"), ("replace", bare, "replace"))}


def _steps(robot: RobotSpec, splicing: SpliceConfig) -> float:
    """Return the largest step in velocity between two commands, in units of the acceleration limit times the period."""
    limits = np.asarray(load_robot("example_arm").action.max_acceleration)
    period_ns = round(1e9 / robot.action.command_rate_hz)
    rng, made = np.random.default_rng(0), Commander(robot, splicing=splicing)
    middle = np.add(robot.action.lower, robot.action.upper) / 2
    state, before, velocity, worst, now = middle, middle, np.zeros(len(middle)), 0.0, 0
    for _ in range(1000):
        made.receive(plan(robot, rng, now - robot.dt_ns, state))
        for _ in range(4 * robot.dt_ns // period_ns):
            state = made.command(now, state).positions
            faster = (state - before) * 1e9 / period_ns
            worst = max(worst, float((np.abs(faster - velocity) / (limits * period_ns / 1e9)).max()))
            before, velocity, now = state, faster, now + period_ns
    return round(worst, 3)


def injection(args: argparse.Namespace) -> dict:
    """Return how many poisoned chunks were injected and refused, and how many commands broke a limit."""
    robot = load_robot("example_arm")
    action, period_ns = robot.action, round(1e9 / robot.action.command_rate_hz)
    limit = np.asarray(action.max_acceleration) / action.command_rate_hz * (1 + 1e-6)
    rng, made = np.random.default_rng(0), Commander(robot, splicing=SpliceConfig("blend"))
    state, velocity, now = np.add(action.lower, action.upper) / 2, np.zeros(len(action.joints)), 0
    counts = dict.fromkeys(("injected", "refused", "commands", "broken"), 0)
    for _ in range(args.count):
        chunk = plan(robot, rng, now, state)
        kind = rng.integers(4)
        if kind == 0:
            chunk.actions[tuple(rng.integers(chunk.actions.shape))] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 1:
            chunk.actions[tuple(rng.integers(chunk.actions.shape))] = rng.choice([1e30, -1e30, 50.0, -50.0])
        elif kind == 2:
            chunk = dataclasses.replace(chunk, actions=chunk.actions[:, : rng.integers(chunk.actions.shape[1])])
        else:
            chunk = dataclasses.replace(chunk, actions=rng.uniform(action.lower, action.upper, chunk.actions.shape))
        counts["injected"] += 1
        counts["refused"] += made.receive(chunk) is not None
        motion = made.command(now, state).motion
        now += period_ns
        if motion is None:
            velocity = np.zeros_like(velocity)
            continue
        counts["commands"] += 1
        first, faster = motion.positions[0], motion.velocities[0]
        inside = np.isfinite(first).all() and (first >= action.lower).all() and (first <= action.upper).all()
        counts["broken"] += not (inside and (np.abs(faster - velocity) <= limit).all())
        state, velocity = first, faster
    return counts


def timing(args: argparse.Namespace) -> dict:
    """Return how late the command thread was, with a busy process beside it."""
    found = {}
    for rate in (100.0, 500.0):
        robot = load_robot("example_arm")
        robot = dataclasses.replace(robot, action=dataclasses.replace(robot.action, command_rate_hz=rate, type="std_msgs/msg/Float64MultiArray"))
        made, lock, rng = Commander(robot, splicing=SpliceConfig("blend")), threading.Lock(), np.random.default_rng(0)
        state = np.add(robot.action.lower, robot.action.upper) / 2

        def command():
            nonlocal state
            with lock:
                motion = made.command(time.time_ns(), state).motion
            state = state if motion is None else motion.positions[0]

        pacer = Pacer(round(1e9 / rate), command, print, args.priority)
        busy = subprocess.Popen([sys.executable, "-c", BUSY])
        pacer.late_us.__init__(10_000_000)
        pacer.start()
        end = time.monotonic() + args.seconds
        while time.monotonic() < end:
            with lock:
                made.receive(plan(robot, rng, time.time_ns(), state))
            time.sleep(0.4)
        pacer.stop()
        busy.kill()
        late = {f"p{p}": round(pacer.late_us.percentile(p), 1) for p in (50, 99, 99.9, 100)}
        found[f"{rate:.0f} Hz"] = {"slots": int(pacer.slots), "missed": int(pacer.missed), "late_us": late, "realtime": pacer.realtime or "yes"}
    return found


def stack(args: argparse.Namespace) -> dict:
    """Return how late the commands of a real node were, while PushT was played, planned and recorded by three others."""
    return {f"{rate} Hz": _played(rate, args.seconds) for rate in args.rates}


def _played(rate: int, seconds: float) -> dict:
    os.environ.update(ros_environment(DOMAIN))
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from std_srvs.srv import Trigger

    plain, told = load_robot("pusht"), []
    robot = dataclasses.replace(plain, action=dataclasses.replace(plain.action, command_rate_hz=float(rate)))
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("listener", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def take(message: DiagnosticArray) -> None:
        told.extend(found for status in message.status if "slots" in (found := {v.key: v.value for v in status.values}))

    node.create_subscription(DiagnosticArray, "/diagnostics", take, 10)
    record = node.create_client(Trigger, "recorder_node/start_episode")
    with tempfile.TemporaryDirectory() as place, Processes(Path(place), ros_environment(DOMAIN)) as nodes:
        file = Path(place) / "robot.yaml"
        file.write_text(dump_yaml(robot), encoding="utf-8")
        nodes.start_node("policy_node", policy="pusht_vdd", robot=file)
        nodes.start_node("chunk_executor_node", robot=file)
        nodes.start_node("recorder_node", robot=file, root=Path(place) / "episodes")
        nodes.start_node("sim_bridge_node", robot=file, episodes=100_000, reset_service="policy_node/reset")
        recording = None
        while not told or float(told[-1]["slots"]) < rate * seconds:
            executor.spin_once(timeout_sec=0.2)
            nodes.ended("chunk_executor_node")
            if recording is None or recording.done() and not recording.result().success:
                recording = record.call_async(Trigger.Request()) if record.service_is_ready() else None
    rclpy.shutdown(context=context)
    late = {key.removeprefix("late_us."): max(float(row[key]) for row in told[2:] if row[key] != "None") for key in ("late_us.p50", "late_us.p99")}
    last = told[-1]
    recorded = recording is not None and recording.done() and recording.result().success
    return {key: int(last[key]) for key in ("slots", "slots_missed", "commands")} | {"late_us": late, "realtime": last["realtime"], "recorded": recorded}


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seams", "injection", "timing", "stack"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_executor"))
    parser.add_argument("--count", type=int, default=1_000_000, help="injected chunks")
    parser.add_argument("--seconds", type=float, default=60.0, help="timing of each rate")
    parser.add_argument("--rates", type=int, nargs="+", default=[100, 500], help="stack: commands a second (default 100 500)")
    parser.add_argument("--priority", type=int, default=45, help="SCHED_FIFO priority, 0 for none")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = {**{"seams": seams, "injection": injection, "timing": timing, "stack": stack}[args.what](args), "hardware": hardware()}
    (args.out / f"{args.what}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
