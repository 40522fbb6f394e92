# SPDX-License-Identifier: Apache-2.0
"""A tiny robot under a policy and an executor that run as processes: where they are harmed, and where it is seen what comes of it.

The arm follows every command as a joint_trajectory_controller would, to the stop at its end, and each command is held against it:
a jump is a command that this arm couldn't have followed within the limits of its robot file.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from ros_peers import Peer, good_image, good_joints
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from tiny_policy import HEIGHT, ROBOT, WIDTH, write_policy, write_robot
from trajectory_msgs.msg import JointTrajectory

from ros_vdd.nodes.messages import CAMERA_QOS, time_message

PERIOD_S, FASTEST, STEEPEST = 0.02, 1.0, 4.0  # of commands; velocity and acceleration of the robot file
ACTION = {**ROBOT["action"], "interpolation": "cubic", "max_velocity": [FASTEST] * 2, "max_acceleration": [STEEPEST] * 2}
CAMERA = {**ROBOT["cameras"]["top"], "frozen_after_s": 0.5}
LOOKAHEAD_S = 0.1  # the executor's default
LATE_S, UNSURE_S = 0.1, 0.3  # a machine so busy that this process or a message is late shows the nodes an arm that lags: for a
# while after that a command isn't held against it
JOINTS_S, PICTURES_S = 0.02, 0.05
PATIENCE_S = 30.0  # a busy machine takes long; an idle one none of it
ROUNDING = 1e-5  # measured positions are float32

ENGINE = '''
import os, time
from pathlib import Path
import numpy as np
from ros_vdd.backends import onnxruntime

FAULT = Path(os.environ["ROS_VDD_TEST_FAULT"])
VALUES = {"nan": np.nan, "inf": np.inf, "huge": 1e30}

class Engine:
    """Moves both joints to and fro, and fails as a file says."""

    def __init__(self, engine):
        self.name, self.engine, self.way = "lab.engine", engine, 1.0

    def run(self, inputs):
        fault = FAULT.read_text()
        if fault == "raise":
            raise ValueError("node 7: shapes don't match")
        if fault == "memory":
            raise RuntimeError("CUDA error: out of memory")
        while fault == "hang" and FAULT.read_text() == "hang":
            time.sleep(0.02)
        outputs, position = dict(self.engine.run(inputs)), inputs["state"][0, -1]
        if abs(position[0]) > 0.5:
            self.way = -np.sign(position[0])
        means = np.array(outputs["means"])
        means[:] = position + self.way * 0.03 * np.arange(1, means.shape[2] + 1)[:, None]
        if fault in VALUES:
            means[..., 3, 1] = VALUES[fault]
        return {**outputs, "means": means.astype(np.float32)}

def load(bundle):
    return Engine(onnxruntime.load(bundle))
'''

CAMERA_DRIVER = '''
import itertools, sys, rclpy
from sensor_msgs.msg import Image
from ros_vdd.nodes.messages import CAMERA_QOS
rclpy.init()
node = rclpy.create_node("camera_driver", namespace=sys.argv[1])
width, height, pictures = int(sys.argv[2]), int(sys.argv[3]), itertools.count()
publisher = node.create_publisher(Image, "camera", CAMERA_QOS)
def show():
    data = next(pictures).to_bytes(4, "big") + bytes(3 * width * height - 4)
    message = Image(width=width, height=height, step=3 * width, encoding="rgb8", data=data)
    message.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(message)
node.create_timer(0.05, show)
rclpy.spin(node)
'''


class Process:
    """A node of ros_vdd, or other Python code, with what it says in a file: a pipe that nobody reads would stop it."""

    def __init__(self, folder: Path, namespace: str, name: str, code: str | None = None, words=(), **parameters):
        self.log = folder / f"{namespace}_{name}.log"
        if code is None:
            code = f"import sys; from ros_vdd.nodes.{name} import main; sys.exit(main())"
            given = (word for key, value in parameters.items() for word in ("-p", f"{key}:={value}"))
            words = ["--ros-args", "-r", f"__ns:=/{namespace}", *given]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}
        environment["ROS_VDD_TEST_FAULT"] = str(folder / "fault")
        with self.log.open("a") as log:
            atexit.register(self.kill)  # also where a test gives up
            self._process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=log, stdout=log, env=environment)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def number(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        return self.log.read_text()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait(30)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to end; return its exit status."""
        if self.alive:
            self._process.send_signal(number)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Arm:
    """Where a robot is that follows each trajectory from where it is, and rests at its end."""

    def __init__(self, position):
        self.place(position)

    def place(self, position) -> None:
        """Put it somewhere, at rest."""
        self._times, self._points = np.zeros(1), np.asarray(position, float)[None]

    def at(self, time_s: float) -> np.ndarray:
        return np.array([np.interp(time_s, self._times, column) for column in self._points.T])

    def shift(self, span_s: float) -> None:
        """Go on by a clock that was set."""
        self._times = self._times + span_s

    def rests(self, time_s: float) -> bool:
        return bool(time_s > self._times[-1])

    def follow(self, begun_s: float, after_s: list[float], positions: np.ndarray) -> None:
        here = self.at(begun_s)
        self._times, self._points = begun_s + np.array([0.0, *after_s]), np.concatenate([here[None], positions])


class Rig:
    """Policy, executor and arm of one namespace.

    Args:
        folder: of this rig alone.
        namespace: likewise.
        camera: keys of its camera that differ.
        policy: further parameters of the policy node.
        sim_time: the arm's clock is the time of all.
    """

    def __init__(self, folder: Path, namespace: str, camera=None, policy=None, sim_time=False):
        self.folder, self.namespace, self.sim_time = folder, namespace, sim_time
        (folder / "lab").mkdir()
        (folder / "lab" / "__init__.py").touch()
        (folder / "lab" / "engine.py").write_text(ENGINE)
        self.engine("")
        self.policy = write_policy(folder / "tiny").path
        cameras = {"top": {**CAMERA, **(camera or {})}}
        self.robot = write_robot(folder / "robot.yaml", name=namespace, cameras=cameras, action=ACTION)
        self._shift_s, self._set_by_s, self._set, self._origin_s = 0.0, 0.0, False, time.monotonic()
        clock = {"use_sim_time": "true"} if sim_time else {}
        self.parameters = {
            "policy_node": {"policy": self.policy, "robot": self.robot, "backend": "lab.engine", **clock, **(policy or {})},
            "chunk_executor_node": {"robot": self.robot, **clock},
        }
        self.processes: dict[str, Process] = {}
        for name in self.parameters:
            self.start(name)
        self.peer = Peer(namespace)
        self.compressed = self.peer.node.create_publisher(CompressedImage, camera["topic"], CAMERA_QOS) if camera else None
        self.clock = self.peer.node.create_publisher(Clock, "/clock", 10) if sim_time else None
        self.status = {name: self.peer.hear_status(name) for name in self.parameters}
        self.chunks = self.peer.hear(JointTrajectory, "action_chunk")
        self.figures: dict[str, dict[str, str]] = {}
        self.peer.node.create_subscription(DiagnosticArray, "/diagnostics", self._take_figures, 100)
        self.commands: list[JointTrajectory] = []
        self.jumps: list[str] = []
        self.peer.node.create_subscription(JointTrajectory, "command", self._take_command, 1000)
        self.arm, self._before, self.heard = Arm([0.0, -0.2]), None, 0
        self._pictures, self._shown_s, self._told_s = itertools.count(), 0.0, 0.0
        self._fed_s, self._unsure_s, self.judged = time.monotonic(), 0.0, 0
        self.heal()

    def start(self, name: str, **others) -> Process:
        """Start a node, or start it again; one that isn't of this rig gets `others` as its parameters."""
        given = self.parameters.get(name, others)
        self.processes[name] = Process(self.folder, self.namespace, name, **given)
        return self.processes[name]

    def drive_camera(self) -> Process:
        """Let a process of its own publish the pictures."""
        self.showing = False
        return Process(self.folder, self.namespace, "camera", CAMERA_DRIVER, [f"/{self.namespace}", str(WIDTH), str(HEIGHT)])

    def heal(self) -> None:
        """Take back whatever was done to sensors and engine."""
        self.showing = self.telling = True
        self.picture = self.joints = self.stamp = lambda value: value
        self.pictures_s, self.still = PICTURES_S, False
        self.engine("")

    def engine(self, fault: str) -> None:
        """Let the engine fail from its next answer on; "" lets it work."""
        new = self.folder / "new"
        new.write_text(fault)
        new.replace(self.folder / "fault")

    def now_s(self) -> float:
        """Return the time that stamps are of."""
        return 1000.0 + time.monotonic() - self._origin_s + self._shift_s if self.sim_time else self.peer.now_ns() / 1e9

    def set_clock(self, shift_s: float) -> None:
        """Set simulated time ahead or back; the arm doesn't care."""
        self._shift_s, self._set_by_s, self._set = self._shift_s + shift_s, shift_s, True
        self.arm.shift(shift_s)
        self._before = self._before and (self._before[0] + shift_s, self._before[1])

    def until(self, condition, what: str, limit_s: float = PATIENCE_S) -> float:
        """Feed the nodes until something is true; return after how many seconds that was."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > limit_s:
                raise AssertionError(f"{what}: not within {limit_s:g} s; {self._last()}")
            self._hear()
            self.feed()
        return time.monotonic() - begun

    def _hear(self) -> None:
        """Take what has come, all of it: the arm is where the newest command has led it."""
        self.peer.executor.spin_once(timeout_sec=0.005)
        idle = 0
        while idle < 3:
            before = self.heard
            self.peer.executor.spin_once(timeout_sec=0)
            idle = 0 if self.heard > before else idle + 1

    def feed(self) -> None:
        """Publish what is due of the sensors, each at its rate."""
        now = time.monotonic()
        self._watch_lateness(now - self._fed_s)
        self._fed_s = now
        if self.clock:
            self.clock.publish(Clock(clock=time_message(round(self.now_s() * 1e9))))
        if now - self._told_s >= JOINTS_S:
            self._told_s = now
            if self.telling:
                a, b = self.arm.at(self.now_s())
                self._publish(self.peer.joints, self.joints(good_joints(float(a), float(b))))
        if now - self._shown_s >= self.pictures_s:
            self._shown_s = now
            number = 0 if self.still else next(self._pictures)
            if self.showing and self.compressed:
                noise = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
                data = cv2.imencode(".jpg", noise)[1].tobytes()
                self._publish(self.compressed, self.picture(CompressedImage(format="jpeg", data=data)))
            elif self.showing:
                data = number.to_bytes(4, "big") + bytes(3 * WIDTH * HEIGHT - 4)
                self._publish(self.peer.cameras, self.picture(good_image(data=data)))

    def running(self) -> bool:
        """Whether both nodes run and the arm moves."""
        told = all(status and status[-1]["state"] == "running" for status in self.status.values())
        return told and bool(self.commands) and not self.arm.rests(self.now_s())

    def run(self) -> None:
        """Wait until everything runs, then look at what comes from now on only."""
        self.until(self.running, "it runs")
        for status in self.status.values():
            del status[:-1]
        del self.commands[:], self.chunks[:]

    def code(self, node: str, code: str | tuple[str, ...], *words: str) -> float:
        """Wait until a node has said one of some reason codes since `run`, with some words; return after how many seconds."""
        codes = (code,) if isinstance(code, str) else code
        said = lambda: any(s["code"] in codes and all(w in s["detail"] for w in words) for s in self.status[node])  # noqa: E731
        return self.until(said, f"{node} says {' or '.join(codes)} {' '.join(words)}")

    def holds(self) -> float:
        """Wait until the executor has stopped and the arm rests; return after how many seconds."""
        stopped = lambda: self.status["chunk_executor_node"][-1]["state"] == "stopped"  # noqa: E731
        return self.until(lambda: stopped() and self.arm.rests(self.now_s()), "the arm holds")

    def figure(self, node: str, key: str) -> float:
        """Return a number of a node's newest diagnostics; NaN where there is none yet."""
        told = self.figures.get(node, {}).get(key, "nan")
        return float("nan") if told == "None" else float(told)

    def check(self) -> None:
        """No jump, no traceback, and both nodes live."""
        jumps, self.jumps = self.jumps, []
        assert not jumps, jumps[:3]
        for name, process in self.processes.items():
            assert process.alive, f"{name} ended:\n{process.said[-2000:]}"
            assert "Traceback" not in process.said, process.said[-3000:]

    def close(self) -> list[int]:
        """Ask all nodes to end; return their exit statuses."""
        self.peer.close()
        return [process.stop() for process in self.processes.values()]

    def _publish(self, publisher, message) -> None:
        if message is not None:
            stamp_s = self.stamp(self.now_s())
            message.header.stamp = time_message(round(stamp_s * 1e9))
            publisher.publish(message)

    def _take_figures(self, message: DiagnosticArray) -> None:
        for status in message.status:
            space, _, node = status.name.split(":")[0].rpartition("/")
            if node in self.parameters and space == self.namespace.strip("/"):
                self.figures[node] = {"message": status.message, **{pair.key: pair.value for pair in status.values}}

    def _take_command(self, message: JointTrajectory) -> None:
        stamp_s = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        if stale := abs(stamp_s - self.now_s()) > 10:  # it was on its way when the clock was set
            stamp_s += self._set_by_s
        positions = np.array([point.positions for point in message.points])
        velocities = np.array([point.velocities for point in message.points])
        after_s = [point.time_from_start.sec + point.time_from_start.nanosec / 1e9 for point in message.points]
        self._watch_lateness(self.now_s() - stamp_s)
        wrong = self._ill_formed(stamp_s, positions, velocities) or self._jump(stamp_s, positions[0], velocities[0])
        self._set = self._set and stale
        if wrong:
            since_s = stamp_s - self._before[0] if self._before else float("nan")
            rested = "after rest" if self.arm.rests(stamp_s) else "in motion"
            self.jumps.append(f"command {len(self.commands)}, {since_s:.3f} s after the one before, {rested}: {wrong}")
        self._before, self.heard = (stamp_s, velocities[0]), self.heard + 1
        self.arm.follow(stamp_s, after_s, positions)
        self.commands.append(message)

    def _watch_lateness(self, late_s: float) -> None:
        if late_s > LATE_S:
            self._unsure_s = time.monotonic() + UNSURE_S

    def _ill_formed(self, stamp_s: float, positions: np.ndarray, velocities: np.ndarray) -> str:
        """Return what is wrong with a command whatever the arm does; "" where nothing is."""
        if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
            return "not finite"
        if np.abs(positions).max() > 1.0 + ROUNDING:
            return "outside the limits"
        if velocities[-1].any():
            return "doesn't end in rest"
        if np.abs(velocities).max() > FASTEST + ROUNDING:
            return "too fast"
        if np.abs(np.diff(velocities, axis=0)).max(initial=0.0) > STEEPEST * PERIOD_S + ROUNDING:
            return "too steep within"
        if self._before is None:  # the first that was heard needn't be the first that was sent
            return ""
        before_s, before = self._before
        goes_on = np.abs(velocities[0] - before).max() <= STEEPEST * (max(stamp_s - before_s, 0.0) + PERIOD_S) + ROUNDING
        begins = np.abs(velocities[0]).max() <= STEEPEST * PERIOD_S + ROUNDING
        return "" if goes_on or begins else "a step in velocity"

    def _jump(self, stamp_s: float, position: np.ndarray, velocity: np.ndarray) -> str:
        """Return why the arm, which follows the command before, couldn't follow this one; "" where it can."""
        if time.monotonic() < self._unsure_s or self._before is None:
            return ""
        self.judged += 1
        away = np.abs(position - self.arm.at(stamp_s + PERIOD_S)).max()
        late_s, unknown_s = (LOOKAHEAD_S, LOOKAHEAD_S) if self._set else (PERIOD_S, 0.0)  # how long setting took, no clock tells
        if away > 1.5 * FASTEST * late_s:  # a command may also come late by most of a period
            return f"{away:.4f} away from where the arm would be"
        if self._before is None or self.arm.rests(stamp_s):
            steep, span_s = np.abs(velocity).max(), PERIOD_S
        else:
            steep, span_s = np.abs(velocity - self._before[1]).max(), max(stamp_s - self._before[0], 0.0) + PERIOD_S + unknown_s
        return f"velocity changes by {steep:.4f} in {span_s:.3f} s" if steep > STEEPEST * span_s + ROUNDING else ""

    def _last(self) -> str:
        return "; ".join(f"{name}: {status[-1] if status else 'silent'}" for name, status in self.status.items())
