# SPDX-License-Identifier: Apache-2.0
"""The whole stack while simulator, policy, executor and recorder are killed in turn: the rest holds, a new one recovers."""

from __future__ import annotations

import itertools
import os
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
pytest.importorskip("gym_pusht", reason="needs the simulator")

from fault_rig import Process  # noqa: E402
from ros_peers import Peer  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from ros_vdd.config import dump_yaml, to_plain  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402

PATIENCE_S, PERIOD_S = 60.0, 0.02
FASTEST, STEEPEST = 300.0, 2000.0  # [px/s], [px/s^2]
ROBOT = to_plain(load_robot("pusht"))
LIMITED = {**ROBOT, "action": {**ROBOT["action"], "max_velocity": [FASTEST] * 2, "max_acceleration": [STEEPEST] * 2}}
NODES = ("policy_node", "chunk_executor_node", "recorder_node", "sim_bridge_node")


class Stack:
    """Four processes, and what they say."""

    def __init__(self, folder):
        self.folder, robot = folder, folder / "robot.yaml"
        robot.write_text(dump_yaml(LIMITED), encoding="utf-8")
        self.given = {
            "policy_node": {"policy": "pusht_vdd", "robot": robot},
            "chunk_executor_node": {"robot": robot},
            "recorder_node": {"robot": robot, "root": folder / "episodes", "task": "killed"},
            "sim_bridge_node": {"robot": robot, "episodes": 1000, "first_seed": 100000},
        }
        (folder / "fault").write_text("")
        self.processes = {name: Process(folder, "stack", name, **given) for name, given in self.given.items()}
        self.peer, self.commands, self.jumps, self.measured = Peer("stack"), 0, [], []
        self.status = {name: self.peer.hear_status(name) for name in NODES}
        self.peer.node.create_subscription(JointState, "joint_states", self._take_state, 100)
        topic = "joint_trajectory_controller/joint_trajectory"
        self.peer.node.create_subscription(JointTrajectory, topic, self._take_command, 1000)
        self._before = None

    def until(self, condition, what):
        begun = time.monotonic()
        while not condition():
            told = {name: status[-1] if status else None for name, status in self.status.items()}
            assert time.monotonic() - begun < PATIENCE_S, f"{what}: not within {PATIENCE_S:g} s; {told}"
            self.peer.executor.spin_once(timeout_sec=0.02)
        return time.monotonic() - begun

    def says(self, name, state, *codes):
        told = lambda: self.status[name] and self.status[name][-1]["state"] == state  # noqa: E731
        return self.until(lambda: told() and (not codes or self.status[name][-1]["code"] in codes), f"{name} is {state}")

    def runs(self):
        """Wait until both nodes run and commands come."""
        count = self.commands
        for name in NODES[:2]:
            self.says(name, "running")
        self.until(lambda: self.commands > count + 10, "commands come")

    def record(self):
        """Let the recorder begin an episode."""
        client, asked = self.peer.node.create_client(Trigger, "recorder_node/start_episode"), itertools.count()
        futures = []

        def begun():
            if client.service_is_ready() and next(asked) % 25 == 0:
                futures.append(client.call_async(Trigger.Request()))
            return any(future.done() and future.result().success for future in futures)

        self.until(begun, "the recorder begins")
        size = lambda: sum(p.stat().st_size for p in (self.folder / "episodes").rglob("*") if p.is_file())  # noqa: E731
        self.until(lambda: size() > 50_000, "it records")

    def kill(self, name):
        self.processes[name].kill()
        for status in self.status.values():
            del status[:-1]

    def restart(self, name):
        del self.status[name][:]
        self.processes[name] = Process(self.folder, "stack", name, **self.given[name])

    def check(self):
        assert not self.jumps, self.jumps[:3]
        for name, process in self.processes.items():
            assert process.alive and "Traceback" not in process.said, f"{name}:\n{process.said[-3000:]}"

    def _take_state(self, message):
        self.measured = [*self.measured[-49:], np.array(message.position)]  # of the last five seconds

    def _take_command(self, message):
        stamp_s = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        position, velocity = (np.array(getattr(message.points[0], key)) for key in ("positions", "velocities"))
        reach = FASTEST * PERIOD_S + 1e-3
        from_rest = any(np.abs(position - place).max() <= STEEPEST * PERIOD_S**2 + 1e-3 for place in self.measured)
        from_rest &= np.abs(velocity).max() <= STEEPEST * PERIOD_S + 1e-3
        if self._before is not None and not from_rest:
            before_s, place, pace = self._before
            slots = max(1, round((stamp_s - before_s) / PERIOD_S) + 1)
            steep = STEEPEST * PERIOD_S * slots + 1e-3
            if np.abs(position - place).max() > reach * slots or np.abs(velocity - pace).max() > steep:
                moved = f"{place} -> {position}, {pace} -> {velocity}"
                self.jumps.append(f"command {self.commands}: {moved} in {stamp_s - before_s:.3f} s")
        if message.points[-1].velocities and np.any(message.points[-1].velocities):
            self.jumps.append(f"command {self.commands} doesn't end in rest")
        self._before, self.commands = (stamp_s, position, velocity), self.commands + 1


def test_each_process_is_killed_in_turn_and_the_rest_holds_until_a_new_one_runs(tmp_path):
    stack, seen = Stack(tmp_path), {}
    stack.runs()
    stack.record()

    stack.kill("recorder_node")
    count = stack.commands
    stack.until(lambda: stack.commands > count + 100, "commands go on")
    stack.restart("recorder_node")
    stack.says("recorder_node", "running", "")
    stack.check()

    for name, held in {
        "policy_node": lambda: stack.says("chunk_executor_node", "stopped", "chunk_expired"),
        "chunk_executor_node": lambda: stack.until(still(stack), "the simulated robot rests"),
        "sim_bridge_node": lambda: (
            stack.says("policy_node", "stopped", "stale")
            + stack.says("chunk_executor_node", "stopped", "no_measurement", "chunk_expired")
        ),
    }.items():
        stack.runs()
        stack.kill(name)
        held_s = held()
        count = stack.commands
        for _ in range(20):
            stack.peer.executor.spin_once(timeout_sec=0.02)
        assert stack.commands - count < 5  # nothing is commanded any more
        stack.restart(name)
        begun = time.monotonic()
        stack.runs()
        seen[name] = f"held after {held_s:.2f} s, runs {time.monotonic() - begun:.2f} s after the restart"
        stack.check()
    print("\n" + "\n".join(f"{name:22s} {times}" for name, times in seen.items()))
    stack.peer.close()
    assert [process.stop() for process in stack.processes.values()] == [0] * len(NODES), os.linesep.join(
        process.said[-500:] for process in stack.processes.values()
    )


def still(stack):
    """Return what tells whether the last ten measured positions are one."""

    def told():
        places = np.array(stack.measured[-10:])
        return len(places) == 10 and np.abs(places - places[-1]).max() < 0.5

    del stack.measured[:]
    return told
