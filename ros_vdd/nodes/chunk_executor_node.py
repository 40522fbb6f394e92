# SPDX-License-Identifier: Apache-2.0
"""Action chunks and joint states in, commands out at the robot's rate; no engine, no images, nothing heavy."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from ros_vdd.errors import ConfigError
from ros_vdd.nodes.messages import CLASSES, COMMAND_QOS, JOINT_STATE_QOS, command_message
from ros_vdd.nodes.parameters import Parameter, declare
from ros_vdd.nodes.process import run
from ros_vdd.nodes.status import Status
from ros_vdd.runtime.chunking import read_chunk
from ros_vdd.runtime.command import Commander
from ros_vdd.runtime.limits import MARGIN
from ros_vdd.runtime.measurement import MeasuredPosition
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.streams.spec import RobotSpec, load_robot

PARAMETERS = (
    Parameter("robot", "", "robot file: a path, or the name of a shipped one"),
    Parameter("trigger", "timer", "what asks for a command: time, or a joint state", choices=("timer", "joint_states")),
    Parameter("command_rate_hz", 0.0, "commands per second of the timer; 0 for the robot file's", 0.0, 1000.0),
    Parameter("replan_steps", 0, "how many actions of a chunk are used; 0 for all (timer only)", 0, 1000),
    Parameter("clamp_margin", MARGIN, "overshoot that is clamped, not refused; fraction of a joint's range", 0.0, 1.0),
)


class ChunkExecutorNode(Node):
    """A `Commander` between the chunk topic and the command topic; everything runs in the executor's thread."""

    def __init__(self, **options: Any):
        super().__init__("chunk_executor_node", **options)
        parameters = declare(self, PARAMETERS)
        self._robot = _robot(parameters.robot, parameters.command_rate_hz)
        self._lock_step = parameters.trigger == "joint_states"
        _check_trigger(parameters.trigger, parameters.replan_steps, self._robot)
        self._commander = Commander(self._robot, parameters.replan_steps or None, parameters.clamp_margin)
        self._measured = MeasuredPosition(self._robot)
        self._asked_ns: int | None = None  # newest joint-state stamp; its command may have to wait for a chunk
        self._answered_ns: int | None = None  # newest joint-state stamp that got its command
        self._counts = dict.fromkeys(("chunks", "chunks_refused", "chunks_late", "commands", "safe_actions"), 0)
        self._status = Status(self, "execution", self._robot.name)
        self._publisher = self.create_publisher(CLASSES[self._robot.action.type], self._robot.action.topic, COMMAND_QOS)
        self.create_service(Trigger, "~/reset", self._reset)
        self.create_subscription(JointTrajectory, "action_chunk", self._take_chunk, COMMAND_QOS)
        for name, spec in self._robot.states.items():
            take = partial(self._take_joint_state, name)
            self.create_subscription(JointState, spec.topic, take, JOINT_STATE_QOS)
        if not self._lock_step:  # rcl keeps the phase: each deadline is the one before plus the period
            self.create_timer(1.0 / self._robot.action.command_rate_hz, self._tick)
        self.create_timer(1.0, self._diagnose, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._status.set("waiting", Reason.NO_CHUNK.value, "no valid action chunk has arrived")

    def _take_chunk(self, message: JointTrajectory) -> None:
        refusal = self._commander.receive(read_chunk(message, self._robot.dt_ns))
        late = refusal is not None and refusal.code is Reason.SUPERSEDED
        self._counts["chunks"] += 1
        self._counts["chunks_late"] += late
        self._counts["chunks_refused"] += refusal is not None and not late
        if self._lock_step:
            self._answer()

    def _take_joint_state(self, stream: str, message: JointState) -> None:
        usable = self._measured.push(stream, message, self.get_clock().now().nanoseconds)
        if usable and self._lock_step:
            self._asked_ns = self._measured.intakes[stream].newest_stamp_ns
            self._answer()

    def _answer(self) -> None:
        """Command the newest joint-state stamp, once, as soon as a chunk covers it."""
        if self._asked_ns in (None, self._answered_ns) or self._commander.awaits_chunk(self._asked_ns):
            return
        self._command(self._asked_ns)

    def _tick(self) -> None:
        self._command(self.get_clock().now().nanoseconds)

    def _command(self, now_ns: int) -> None:
        positions, refusal = self._commander.command(now_ns, self._measured.at(now_ns))
        if positions is not None:
            self._publisher.publish(command_message(self._robot.action, positions, now_ns))
            self._answered_ns = self._asked_ns
            self._counts["safe_actions" if refusal else "commands"] += 1
        self._tell(refusal)

    def _tell(self, refusal: Refusal | None) -> None:
        if refusal is None:
            self._status.set("running")
        else:
            self._status.set("stopped" if self._counts["commands"] else "waiting", refusal.code.value, refusal.detail)

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Forget every plan; a moving robot gets its safe action."""
        self._commander.forget()
        response.success, response.message = True, "plans forgotten"
        return response

    def _diagnose(self) -> None:
        gate = self._commander.gate
        self._status.diagnose({**self._counts, "chunks_clamped": gate.clamped, "commands_slowed": gate.slowed})


def _robot(name: str, command_rate_hz: float) -> RobotSpec:
    if not name:
        raise ConfigError("chunk_executor_node: parameter 'robot' is empty; give a robot file or a shipped name")
    robot = load_robot(name)
    if not command_rate_hz:
        return robot
    return dataclasses.replace(robot, action=dataclasses.replace(robot.action, command_rate_hz=command_rate_hz))


def _check_trigger(trigger: str, replan_steps: int, robot: RobotSpec) -> None:
    if trigger != "joint_states":
        return
    if not replan_steps:
        raise ConfigError(
            "chunk_executor_node: trigger is 'joint_states' and 'replan_steps' is 0; give the policy's n_action_steps, "
            "so that the command of a stamp comes from the chunk that is due then and never from the one before"
        )
    if not robot.states:
        raise ConfigError(f"chunk_executor_node: robot '{robot.name}' has no joint states to trigger; use 'timer'")


def main(args: list[str] | None = None) -> int:
    """Run the node; see `ros_vdd.nodes.process.run`."""
    return run(ChunkExecutorNode, args)
