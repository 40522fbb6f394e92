# SPDX-License-Identifier: Apache-2.0
"""Camera images and joint states in, time-stamped action chunks out; inference runs in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from ros_vdd import backends, resources
from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError, PolicyError
from ros_vdd.nodes.messages import CAMERA_QOS, CLASSES, COMMAND_QOS, JOINT_STATE_QOS, chunk_message, json_message
from ros_vdd.nodes.parameters import Parameter, declare
from ros_vdd.nodes.process import publish, run
from ros_vdd.nodes.status import Status
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.inference import InferenceThread, PolicyRunner, Prediction
from ros_vdd.runtime.intake import NotReady
from ros_vdd.runtime.limits import SafetyGate
from ros_vdd.runtime.observer import Observer
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.runtime.statistics import Window
from ros_vdd.streams.spec import RobotSpec, load_robot

PARAMETERS = (
    Parameter("policy", "", "policy folder: a path, or the name of a shipped one"),
    Parameter("robot", "", "robot file: a path, or the name of a shipped one; empty for the policy's own"),
    Parameter("backend", "onnxruntime", "engine that runs the policy"),
    Parameter("choice", "argmax", "which expert acts: the likeliest, or one drawn", choices=("argmax", "sample")),
    Parameter("seed", 0, "of everything drawn at random; set again by ~/reset", 0, 2**31 - 1),
    Parameter("replan_steps", 0, "policy periods between two chunks; 0 for the policy's n_action_steps", 0, 1000),
    Parameter("equal_stamps", False, "lock-step: use only ticks at which every stream has the same stamp"),
)
STATUS_PERIOD_S = 0.1


class _Job(NamedTuple):
    """One observation on its way through the inference thread."""

    arrays: Mapping[str, np.ndarray]
    stamp_ns: int
    epoch: int  # how often ~/reset had been called
    received_s: float  # wall clock at the callback


class PolicyNode(Node):
    """An `Observer` before and a `PolicyRunner` behind a one-slot mailbox.

    Callbacks run in the executor's thread; `_predict`, `_publish` and `_fail` in the inference thread.
    """

    def __init__(self, **options: Any):
        super().__init__("policy_node", **options)
        self._inference: InferenceThread | None = None
        parameters = declare(self, PARAMETERS)
        bundle, self._robot = _open_policy(parameters.policy, parameters.robot)
        self._replan_steps = _replan_steps(parameters.replan_steps, bundle)
        self._seed = parameters.seed
        self._runner = PolicyRunner(bundle, backends.load(bundle, parameters.backend), parameters.choice, self._seed)
        self._runner.warm_up(_blank(bundle))
        self._observer = Observer(self._robot, bundle.n_obs_steps, parameters.equal_stamps)
        self._gate = SafetyGate(self._robot)
        self._not_ready: NotReady | None = None
        self._failure: Refusal | None = None  # why the newest prediction wasn't published
        self._asked_ns: int | None = None  # tick of the newest observation handed to the inference thread
        self._epoch, self._epoch_lock, self._reseed = 0, threading.Lock(), threading.Event()
        self._chunks = 0
        self._latency_ms, self._compute_ms = Window(), Window()
        self._status = Status(self, "policy", self._robot.name)
        self._chunk_publisher = self.create_publisher(JointTrajectory, "action_chunk", COMMAND_QOS)
        self._prediction_publisher = self.create_publisher(String, "~/prediction", COMMAND_QOS)
        self.create_service(Trigger, "~/reset", self._reset)
        wall = Clock(clock_type=ClockType.STEADY_TIME)  # a simulation that stands still is told about, too
        self.create_timer(STATUS_PERIOD_S, self._update_status, clock=wall)
        self.create_timer(1.0, self._diagnose, clock=wall)
        self._inference = InferenceThread(self._predict, self._publish, self._fail)
        self._subscribe()

    def destroy_node(self) -> None:
        """End the inference thread, then the node; rclpy also destroys a node whose constructor refused."""
        if self._inference is not None:
            self._inference.stop()
        super().destroy_node()

    def _subscribe(self) -> None:
        """Subscribe to joint states first: of messages that wait together, they are then taken before the images."""
        for name, spec in self._robot.states.items():
            take = partial(self._take, self._observer.push_joint_state, name)
            self.create_subscription(JointState, spec.topic, take, JOINT_STATE_QOS)
        for name, spec in self._robot.cameras.items():
            take = partial(self._take, self._observer.push_image, name)
            self.create_subscription(CLASSES[spec.type], spec.topic, take, CAMERA_QOS)

    def _take(self, push: Any, stream: str, message: Any) -> None:
        received_s = time.perf_counter()
        if push(stream, message, self.get_clock().now().nanoseconds):
            self._ask(received_s)

    def _ask(self, received_s: float) -> None:
        """Hand the newest observation to the inference thread if the plan is due to be renewed."""
        tick_ns = self._observer.tick_ns
        if tick_ns is None or not self._due(tick_ns):
            return
        observation = self._observer.snapshot(tick_ns)
        if isinstance(observation, NotReady):
            self._not_ready = observation
            return
        self._not_ready, self._asked_ns = None, tick_ns
        self._inference.submit(_Job(observation.arrays, tick_ns, self._epoch, received_s))

    def _due(self, tick_ns: int) -> bool:
        """Whether `replan_steps` periods have passed, to a quarter of a period: stamps of cameras jitter."""
        if self._asked_ns is None or tick_ns < self._asked_ns:
            return True
        return tick_ns - self._asked_ns >= (self._replan_steps - 0.25) * self._robot.dt_ns

    def _predict(self, job: _Job) -> Prediction:
        if self._reseed.is_set():
            self._reseed.clear()
            self._runner.reset(self._seed)
        return self._runner.act(job.arrays)

    def _publish(self, job: _Job, prediction: Prediction) -> None:
        """Publish a prediction, unless the gate refuses it or `~/reset` was called since the observation."""
        chunk = ActionChunk(job.stamp_ns, self._robot.dt_ns, self._robot.action.joints, prediction.actions)
        checked = self._gate.check(chunk)
        if isinstance(checked, Refusal):
            self._failure = checked
            return
        message = chunk_message(checked)
        with self._epoch_lock:
            if job.epoch != self._epoch:
                return
            publish(self, self._chunk_publisher, message)
        self._failure = None
        self._chunks += 1
        self._tell(job, prediction)

    def _tell(self, job: _Job, prediction: Prediction) -> None:
        """Measure and publish what belongs to a chunk but not into the command."""
        latency_ms = (self.get_clock().now().nanoseconds - job.stamp_ns) / 1e6
        compute_ms = (time.perf_counter() - job.received_s) * 1e3
        self._latency_ms.add(latency_ms)
        self._compute_ms.add(compute_ms)
        gate = None if prediction.log_gate is None else [float(value) for value in prediction.log_gate]
        content = {"stamp_ns": job.stamp_ns, "expert": prediction.expert, "log_gate": gate}
        content |= {"latency_ms": latency_ms, "compute_ms": compute_ms}
        publish(self, self._prediction_publisher, json_message(content))

    def _fail(self, job: _Job, error: Exception) -> None:
        self._failure = Refusal(Reason.INFERENCE_FAILED, f"{type(error).__name__}: {error}")

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Begin anew: forget the history, drop what is being predicted, seed again."""
        with self._epoch_lock:
            self._epoch += 1
        self._observer.reset()
        self._asked_ns = self._not_ready = None
        self._reseed.set()
        response.success, response.message = True, f"history forgotten, seed {self._seed}"
        return response

    def _update_status(self) -> None:
        problem = self._observer.silence(self.get_clock().now().nanoseconds) or self._not_ready
        state = "stopped" if self._chunks else "waiting"
        if problem:
            self._status.set(state, problem.code.value, problem.detail, problem.stream)
        elif failure := self._failure:
            self._status.set(state, failure.code.value, failure.detail)
        elif self._chunks:
            self._status.set("running")

    def _diagnose(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        values: dict[str, Any] = {"chunks": self._chunks, "observations_replaced": self._inference.replaced}
        for intake in self._observer.intakes:
            values[f"{intake.name}.received"] = intake.received
            values[f"{intake.name}.refused"] = intake.refused
            values[f"{intake.name}.age_s"] = intake.age_s(now_ns)
        for name, window in (("latency_ms", self._latency_ms), ("compute_ms", self._compute_ms)):
            values[f"{name}.p50"], values[f"{name}.p99"] = window.percentile(50), window.percentile(99)
        values["chunks_clamped"] = self._gate.clamped
        self._status.diagnose(values)


def _open_policy(policy: str, robot: str) -> tuple[Bundle, RobotSpec]:
    """Return the verified policy and the robot it runs on, which must agree with the one it was trained on."""
    if not policy:
        raise ConfigError("policy_node: parameter 'policy' is empty; give a policy folder or the name of a shipped one")
    bundle = Bundle.open(resources.find("models", policy))
    if not robot:
        return bundle, bundle.robot
    given = load_robot(robot)
    if lines := bundle.robot.difference(given):
        raise PolicyError(
            f"policy '{bundle.path}' doesn't fit robot '{robot}' (policy here, robot there): {'; '.join(lines)}. "
            "Use the robot file the policy was trained with, or train for this one"
        )
    return bundle, given


def _blank(bundle: Bundle) -> dict[str, np.ndarray]:
    """Return an observation of zeros for the warm-up, whose results go nowhere."""
    shapes = backends.input_shapes(bundle).items()
    return {name: np.zeros(shape[1:], kind) for name, (shape, kind) in shapes if name in bundle.input_shapes}


def _replan_steps(asked: int, bundle: Bundle) -> int:
    if asked > bundle.horizon:
        raise ConfigError(
            f"policy_node: parameter 'replan_steps' is {asked}; this policy's chunks have {bundle.horizon}"
        )
    return asked or bundle.n_action_steps


def main(args: list[str] | None = None) -> int:
    """Run the node; see `ros_vdd.nodes.process.run`."""
    return run(PolicyNode, args)
