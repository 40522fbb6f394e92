# SPDX-License-Identifier: Apache-2.0
"""Action chunks and joint states in, commands out at the robot's rate; no engine, no images, nothing heavy.

By time, a thread of its own commands at absolute deadlines while the node is active; callbacks run beside it, with a lock around
the commander.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from functools import partial
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from ros_vdd.errors import ConfigError, RosVddError
from ros_vdd.nodes.managed import AUTOSTART, ManagedNode
from ros_vdd.nodes.messages import CLASSES, COMMAND_QOS, JOINT_STATE_QOS, command_message
from ros_vdd.nodes.parameters import Parameter
from ros_vdd.nodes.process import await_reader, publish, run
from ros_vdd.nodes.protective_stop import ProtectiveStop
from ros_vdd.nodes.robot_description import await_description
from ros_vdd.runtime.chunking import read_chunk
from ros_vdd.runtime.command import FIRST_JUMP
from ros_vdd.runtime.execution import Execution, ExecutionConfig
from ros_vdd.runtime.limits import MARGIN
from ros_vdd.runtime.pacing import Pacer
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.runtime.splicing import METHODS
from ros_vdd.runtime.urdf_limits import narrow
from ros_vdd.streams.spec import RobotSpec, load_robot

PARAMETERS = (
    Parameter("autostart", True, AUTOSTART),
    Parameter("robot", "", "robot file: a path, or the name of a shipped one"),
    Parameter("trigger", "timer", "what asks for a command: time, or a joint state", choices=("timer", "joint_states")),
    Parameter("command_rate_hz", 0.0, "commands per second of the timer; 0 for the robot file's", 0.0, 1000.0),
    Parameter("replan_steps", 0, "how many actions of a chunk are used; 0 for all (timer only)", 0, 1000),
    Parameter("clamp_margin", MARGIN, "overshoot that is clamped, not refused; fraction of a joint's range", 0.0, 1.0),
    Parameter("splicing", "auto", "how plans are joined; auto: blend with max_acceleration, else replace", choices=("auto", *METHODS)),
    Parameter("splice_s", 0.2, "how long a blend takes at least [s]", 1e-3, 10.0),
    Parameter("ensemble_decay", 0.01, "of splicing ensemble: exp(-this) less weight for each newer chunk", 0.0, 100.0),
    Parameter("lookahead_s", 0.1, "of a JointTrajectory with max_acceleration: how much of the plan stands before its stop [s]", 0.0, 10.0),
    Parameter("first_jump", FIRST_JUMP, "farthest first action from where the robot is; fraction of a joint's range", 0.0, 1e9),
    Parameter("watch", True, "move only while fresh joint states come, where the robot file has all action joints among them"),
    Parameter("enabled", True, "whether the robot may be moved from the start; ~/enable changes it"),
    Parameter("limits_from_urdf", False, "narrow position and velocity limits to those of robot_description"),
    Parameter("urdf_timeout_s", 10.0, "of limits_from_urdf: how long configure waits for robot_description [s]", 0.1, 600.0),
    Parameter("realtime_priority", 45, "SCHED_FIFO priority of the command thread, where permitted; 0 for none", 0, 99),
)
_TELL_S = 0.02  # how often the command thread's reasons are told
_REST_S = 60.0  # how long deactivate waits for the safe action to be over
_ARRIVES = Duration(seconds=1)  # for the last command to be received: the process may end after it


class ChunkExecutor:
    """A `Commander` between the chunk topic and the command topic: the work of a `ManagedNode`.

    Inactive it keeps the measurement and forgets plans; to deactivate is to bring the robot to its safe action.
    """

    def __init__(self, node: ManagedNode, parameters: Any):
        self._node, self._status = node, node.status
        self._robot = _robot(parameters.robot, parameters.command_rate_hz)
        if parameters.limits_from_urdf:
            self._robot = _narrowed(node, self._robot, parameters.urdf_timeout_s)
        self._status.robot = self._robot.name
        self._lock_step = parameters.trigger == "joint_states"
        _check_trigger(parameters.trigger, parameters.replan_steps, self._robot)
        named = [field.name for field in dataclasses.fields(ExecutionConfig)]
        config = ExecutionConfig(**{name: getattr(parameters, name) for name in named})
        self._paced = not (self._lock_step or node.get_parameter("use_sim_time").value)
        self._execution = Execution(self._robot, config, real_time=self._paced)
        self._commander = self._execution.commander
        if self._execution.leaps:
            node.get_logger().warning(
                f"the safe position of robot '{self._robot.name}' is commanded in one jump; give its file 'max_velocity' or 'max_acceleration'"
            )
        self._lock = threading.Lock()  # around both
        self._reasons: deque[Refusal | None] = deque(maxlen=1000)  # of the command thread, to be told
        self._interventions: dict[str, int] = {}
        self._active, self._enabled, self._stopped = False, parameters.enabled, False
        command = self._robot.action
        self._publisher = node.create_lifecycle_publisher(CLASSES[command.type], command.topic, COMMAND_QOS)
        node.create_service(Trigger, "~/reset", self._reset)
        node.create_service(SetBool, "~/enable", self._enable)
        self._protective_stop = ProtectiveStop(node, self._take_stop)
        node.create_subscription(JointTrajectory, "action_chunk", self._take_chunk, COMMAND_QOS)
        for name, spec in self._robot.states.items():
            take = partial(self._take_joint_state, name)
            node.create_subscription(JointState, spec.topic, take, JOINT_STATE_QOS)
        self._forbid()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(1.0, self._diagnose, clock=steady)
        self._period_ns, self._priority = round(1e9 / command.command_rate_hz), parameters.realtime_priority
        self._pacer: Pacer | None = None  # of the time since the newest activation
        if not self._lock_step and not self._paced:  # a simulation's time, at its own speed
            node.create_timer(self._period_ns / 1e9, lambda: self._active and self._tick())
        node.create_timer(_TELL_S, self._tell, clock=steady)
        node.at_cleanup(self._end_thread)

    def activate(self) -> None:
        """Let chunks that come from now on be commanded."""
        self._active = True
        self._forbid()
        self._status.set("waiting", Reason.NO_CHUNK.value, "no valid action chunk has arrived")
        if self._paced:
            self._pacer = Pacer(self._period_ns, self._tick, self._node.fail, self._priority)
            self._pacer.start()

    def deactivate(self) -> None:
        """Bring a moving robot to its safe action, then command nothing.

        Raises:
            RosVddError: that took too long.
        """
        self._active = False
        self._forbid()
        limit_s = time.monotonic() + _REST_S
        now_ns = (self._lock_step and self._execution.asked_ns) or self._now_ns()
        while self._moving() and time.monotonic() < limit_s and (not self._paced or self._pacer.alive):
            time.sleep(self._period_ns / 1e9)
            self._protective_stop.poll()  # no callback runs during a transition
            now_ns += self._period_ns
            if not self._paced:  # what asks for commands otherwise, a clock or a joint state, waits for this thread
                self._command(now_ns)
        self._end_thread()
        self._tell()
        self._publisher.wait_for_all_acked(_ARRIVES)
        if self._moving():
            late = time.monotonic() >= limit_s
            why = f"wasn't over within {_REST_S:g} s" if late else "was given up: the command thread has ended"
            raise RosVddError(f"the safe action {why}; nothing more is commanded")

    def _end_thread(self) -> None:
        if self._pacer is not None:
            self._pacer.stop()

    def _moving(self) -> bool:
        with self._lock:
            return self._commander.moving

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _take_chunk(self, message: JointTrajectory) -> None:
        chunk = read_chunk(message, self._robot.dt_ns)
        with self._lock:
            self._execution.take_chunk(chunk)
        if self._lock_step:
            self._answer()

    def _take_joint_state(self, stream: str, message: JointState) -> None:
        with self._lock:
            usable = self._execution.take_joint_state(stream, message, self._now_ns())
        if usable and self._lock_step:
            self._answer()

    def _answer(self) -> None:
        """Command the newest joint-state stamp, once, as soon as a chunk covers it."""
        if self._active and (due_ns := self._execution.due_ns) is not None:
            self._command(due_ns)
            self._tell()

    def _tick(self) -> None:
        self._command(self._now_ns())

    def _command(self, now_ns: int) -> None:
        with self._lock:
            motion, refusal = self._execution.command(now_ns)
        if motion is not None:
            if self._lock_step:
                await_reader(self._publisher)
            publish(self._node, self._publisher, command_message(self._robot.action, motion, now_ns))
        self._reasons.append(refusal)

    def _tell(self) -> None:
        """Say what the newest commands were, one line a change; each change away from a plan counts as an intervention."""
        while self._reasons:
            refusal = self._reasons.popleft()
            if refusal is None:
                self._status.set("running")
            elif self._status.set("stopped" if self._execution.counts["commands"] else "waiting", refusal.code.value, refusal.detail):
                self._interventions[refusal.code.value] = self._interventions.get(refusal.code.value, 0) + 1

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Allow or forbid motion; a moving robot is brought to its safe action."""
        self._enabled = request.data
        self._forbid()
        response.success, response.message = True, "enabled" if self._enabled else "disabled"
        if self._enabled and self._stopped:
            response.message = "enabled; protective_stop still holds the robot: when it is safe, call ~/reset"
        return response

    def _take_stop(self) -> None:
        """Stop until ~/reset."""
        if not self._stopped:
            self._stopped = True
            self._forbid()

    def _forbid(self) -> None:
        refusal = None
        if not self._enabled:
            refusal = Refusal(Reason.DISABLED, "motion is disabled; call ~/enable with true")
        if not self._active:
            refusal = Refusal(Reason.INACTIVE, "deactivated; a moving robot is brought to its safe action")
        if self._stopped:  # before all others: only it keeps the robot from a safe position
            refusal = Refusal(Reason.PROTECTIVE_STOP, "protective_stop said true; when it is safe, call ~/reset")
        with self._lock:
            self._commander.forbid(refusal)

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Forget every plan and a protective stop; a moving robot gets its safe action."""
        self._stopped = False
        self._forbid()
        response.success, response.message = True, "plans forgotten" if self._enabled else "plans forgotten; still disabled"
        return response

    def _diagnose(self) -> None:
        gate = self._commander.gate
        latency_ms = self._commander.latency_ms
        values: dict[str, Any] = {f"latency_ms.p{p}": latency_ms.percentile(p) for p in (50, 99)}
        values |= {**self._execution.counts, "chunks_clamped": gate.clamped, "commands_slowed": gate.slowed}
        values |= {"seams": self._commander.splicer.seams, "enabled": self._enabled, "protective_stop": self._stopped}
        values |= {f"interventions.{code}": count for code, count in self._interventions.items()}
        if pacer := self._pacer:
            values |= {"slots": pacer.slots, "slots_missed": pacer.missed, "realtime": pacer.realtime or "yes"}
            values |= {f"late_us.p{p}": pacer.late_us.percentile(p) for p in (50, 99)}
        self._status.diagnose(values)


def _robot(name: str, command_rate_hz: float) -> RobotSpec:
    if not name:
        raise ConfigError("chunk_executor_node: parameter 'robot' is empty; give a robot file or a shipped name")
    robot = load_robot(name)
    if not command_rate_hz:
        return robot
    return dataclasses.replace(robot, action=dataclasses.replace(robot.action, command_rate_hz=command_rate_hz))


def _narrowed(node: ManagedNode, robot: RobotSpec, timeout_s: float) -> RobotSpec:
    """Return the robot with the tighter limits of its file and the robot description, and say what came of it."""
    found = narrow(robot, await_description(node, timeout_s))
    for line in found.changes:
        node.get_logger().info(line)
    for line in found.open:
        node.get_logger().warning(f"{line}; the robot file's limits hold there")
    return found.robot


def _check_trigger(trigger: str, replan_steps: int, robot: RobotSpec) -> None:
    if trigger != "joint_states":
        return
    if not replan_steps:
        raise ConfigError(
            "chunk_executor_node: trigger is 'joint_states' and 'replan_steps' is 0; give the policy's n_action_steps, "
            "so that the command of a stamp comes from the chunk that is due then and never from the one before"
        )
    if robot.action.max_acceleration is not None:
        raise ConfigError(
            f"chunk_executor_node: trigger is 'joint_states' and robot '{robot.name}' has 'max_acceleration', which is kept at the pace of "
            "the timer only; take trigger 'timer', or leave max_acceleration out for lock-step"
        )
    if not robot.states:
        raise ConfigError(f"chunk_executor_node: robot '{robot.name}' has no joint states to trigger; use 'timer'")


def make(**options: Any) -> ManagedNode:
    """Return the node, of which `options` are rclpy's."""
    return ManagedNode("chunk_executor_node", "execution", ChunkExecutor, PARAMETERS, **options)


def main(args: list[str] | None = None) -> int:
    """Run the node; see `ros_vdd.nodes.process.run`."""
    return run(make, args)
